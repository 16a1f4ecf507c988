package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/strictyaml"
)

// policyFile is the YAML of appraise --policy. What is left out refuses.
type policyFile struct {
	Kinds      []string        `yaml:"kinds"`
	References []referenceFile `yaml:"references"`
	Revoked    []referenceFile `yaml:"revoked"`
	SEVSNP     *struct {
		AllowDebug     bool               `yaml:"allow_debug"`
		AllowMigrateMA bool               `yaml:"allow_migrate_ma"`
		AllowSMT       bool               `yaml:"allow_smt"`
		AllowVLEK      bool               `yaml:"allow_vlek"`
		AllowMaskedID  bool               `yaml:"allow_masked_id"`
		VMPL           []uint32           `yaml:"vmpl"`
		MinimumTCB     map[string]tcbFile `yaml:"minimum_tcb"`
	} `yaml:"sevsnp"`
	TDX *struct {
		AllowDebug    bool     `yaml:"allow_debug"`
		AllowNoSEPTVE bool     `yaml:"allow_no_sept_ve_disable"`
		XFAMAllowed   uint64   `yaml:"xfam_allowed"`
		TCBStatuses   []string `yaml:"tcb_statuses"`
	} `yaml:"tdx"`
	VTPM *struct {
		AllowNoSecureBoot bool     `yaml:"allow_no_secure_boot"`
		RequiredPCRs      []int    `yaml:"required_pcrs"`
		Banks             []string `yaml:"banks"`
		Roots             []string `yaml:"roots"` // PEM files, relative to this file
	} `yaml:"vtpm"`
}

type referenceFile struct {
	ID          string            `yaml:"id"`
	Kind        string            `yaml:"kind"`
	Measurement string            `yaml:"measurement"`
	Registers   map[string]string `yaml:"registers"`
	NotBefore   string            `yaml:"not_before"`
	NotAfter    string            `yaml:"not_after"`
}

type tcbFile struct {
	FMC        uint8 `yaml:"fmc"`
	BootLoader uint8 `yaml:"boot_loader"`
	TEE        uint8 `yaml:"tee"`
	SNP        uint8 `yaml:"snp"`
	Microcode  uint8 `yaml:"microcode"`
}

// readAppraisalPolicy reads a policy for samples: report data need not be compared,
// reference values are demanded.
func readAppraisalPolicy(path string) (attest.Policy, []*x509.Certificate, error) {
	var f policyFile
	if err := strictyaml.ReadFile(path, &f); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return attest.Policy{}, nil, usageError("check the path", "%v", err)
		}
		return attest.Policy{}, nil, usageError("correct the file; meshnode appraise --help shows its form", "%v", err)
	}
	p := attest.Policy{Kinds: f.Kinds, AllowUnbound: true}
	var err error
	if p.References, err = references(path, "references", f.References); err != nil {
		return attest.Policy{}, nil, err
	}
	if p.Revoked, err = references(path, "revoked", f.Revoked); err != nil {
		return attest.Policy{}, nil, err
	}
	for _, k := range f.Kinds {
		if _, err := attest.ParseKinds(k); err != nil {
			return attest.Policy{}, nil, usageError("use sevsnp, tdx or vtpm", "%s: kinds: %v", path, err)
		}
		if slices.Contains(strings.Split(k, ","), attest.KindSim) {
			return attest.Policy{}, nil, usageError("leave --policy out: simulated evidence is judged under --genesis alone", "%s: kinds: %s", path, k)
		}
	}
	if s := f.SEVSNP; s != nil {
		p.SEVSNP = &attest.SEVSNPPolicy{AllowDebug: s.AllowDebug, AllowMigrateMA: s.AllowMigrateMA, AllowSMT: s.AllowSMT,
			AllowVLEK: s.AllowVLEK, AllowMaskedID: s.AllowMaskedID, VMPL: s.VMPL, MinimumTCB: map[string]attest.TCB{}}
		for product, t := range s.MinimumTCB {
			p.SEVSNP.MinimumTCB[product] = attest.TCB(t)
		}
	}
	if t := f.TDX; t != nil {
		p.TDX = attest.StrictPolicy().TDX
		p.TDX.AllowDebug, p.TDX.AllowNoSEPTVEDisable = t.AllowDebug, t.AllowNoSEPTVE
		p.TDX.XFAMAllowed, p.TDX.TCBStatuses = t.XFAMAllowed, t.TCBStatuses
	}
	var roots []*x509.Certificate
	if v := f.VTPM; v != nil {
		p.VTPM = &attest.VTPMPolicy{AKTrust: []string{attest.AKTrustCertificate, attest.AKTrustActivation, attest.AKTrustReport}, RequiredPCRs: v.RequiredPCRs,
			Banks: v.Banks, AllowRestarts: true, Boot: attest.StrictBoot(), IMA: attest.StrictIMA()}
		p.VTPM.Boot.AllowSecureBootOff = v.AllowNoSecureBoot
		if roots, err = readRoots(path, v.Roots); err != nil {
			return attest.Policy{}, nil, err
		}
	}
	return p, roots, nil
}

func references(path, list string, in []referenceFile) ([]attest.Reference, error) {
	var out []attest.Reference
	for i, r := range in {
		fail := func(format string, args ...any) error {
			return usageError("correct the entry", "%s: %s: entry %d: %s", path, list, i+1, fmt.Sprintf(format, args...))
		}
		if _, err := attest.ParseKinds(r.Kind); err != nil {
			return nil, fail("%v", err)
		}
		if b, err := hex.DecodeString(r.Measurement); err != nil || len(b) < 32 || r.Measurement != strings.ToLower(r.Measurement) {
			return nil, fail("measurement %q: want at least 32 bytes in lower-case hex", r.Measurement)
		}
		ref := attest.Reference{ID: r.ID, Kind: r.Kind, Measurement: r.Measurement, Registers: r.Registers}
		for _, t := range []struct {
			text string
			dst  *time.Time
		}{{r.NotBefore, &ref.NotBefore}, {r.NotAfter, &ref.NotAfter}} {
			if t.text == "" {
				continue
			}
			var err error
			if *t.dst, err = time.Parse(time.RFC3339, t.text); err != nil {
				return nil, fail("%q is no RFC 3339 time", t.text)
			}
		}
		if ref.ID == "" {
			ref.ID = fmt.Sprintf("%s %d", list, i+1)
		}
		out = append(out, ref)
	}
	return out, nil
}

func readRoots(path string, files []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, name := range files {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, usageError("check the path", "%s: vtpm.roots: %v", path, err)
		}
		found := len(out)
		for rest := raw; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, usageError("give PEM certificates", "%s: vtpm.roots: %s: %v", path, name, err)
			}
			out = append(out, cert)
		}
		if len(out) == found {
			return nil, usageError("give PEM certificates", "%s: vtpm.roots: %s holds no certificate", path, name)
		}
	}
	return out, nil
}

// fields lists the members of a JSON object as "name value", in their order.
func fields(v any) []string {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil // a nil section
	}
	var out []string
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			break
		}
		out = append(out, fmt.Sprintf("%-20v %s", name, value))
	}
	return out
}
