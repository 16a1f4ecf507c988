package main

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/strictyaml"
)

// policyFile is the YAML of appraise --policy. Its sections are those of attest.Policy, field
// by field. Whoever writes a section writes all of it, so that a line that was forgotten is
// an error and not a decision.
type policyFile struct {
	Kinds      []string             `yaml:"kinds"`
	References []attest.Reference   `yaml:"references"`
	Revoked    []attest.Reference   `yaml:"revoked,omitempty"`
	SEVSNP     *attest.SEVSNPPolicy `yaml:"sevsnp,omitempty"`
	TDX        *attest.TDXPolicy    `yaml:"tdx,omitempty"`
	VTPM       *attest.VTPMPolicy   `yaml:"vtpm,omitempty"`
	// VTPMRoots are PEM files of those who certify attestation keys, relative to this file.
	VTPMRoots []string `yaml:"vtpm_roots,omitempty"`
}

// readAppraisalPolicy reads a policy for samples: report data need not be compared,
// reference values are demanded.
func readAppraisalPolicy(path string) (attest.Policy, []*x509.Certificate, error) {
	fail := func(err error) (attest.Policy, []*x509.Certificate, error) { return attest.Policy{}, nil, err }
	raw, err := readLimited(path, strictyaml.MaxSize)
	if err != nil {
		return fail(err)
	}
	var f policyFile
	if err := strictyaml.DecodeComplete(path, raw, &f); err != nil {
		return fail(usageError("correct the file; meshnode appraise --default-policy prints a whole one", "%v", err))
	}
	if err := f.checkKinds(path); err != nil {
		return fail(err)
	}
	p := attest.Policy{Kinds: f.Kinds, AllowUnbound: true, SEVSNP: f.SEVSNP, TDX: f.TDX, VTPM: f.VTPM}
	if p.References, err = checkReferences(path, "references", f.References); err != nil {
		return fail(err)
	}
	if p.Revoked, err = checkReferences(path, "revoked", f.Revoked); err != nil {
		return fail(err)
	}
	roots, err := readRoots(path, f.VTPMRoots)
	return p, roots, err
}

// checkKinds demands known kinds, and the section of each part of each.
func (f policyFile) checkKinds(path string) error {
	sections := map[string]bool{attest.KindSEVSNP: f.SEVSNP != nil, attest.KindTDX: f.TDX != nil, attest.KindVTPM: f.VTPM != nil}
	for _, kind := range f.Kinds {
		parts, err := attest.ParseKinds(kind)
		if err != nil {
			return usageError("use sevsnp, tdx, vtpm or a list like sevsnp,vtpm", "%s: kinds: %v", path, err)
		}
		if slices.Contains(parts, attest.KindSim) {
			return usageError("leave --policy out: simulated evidence is judged under --genesis alone", "%s: kinds: %s", path, kind)
		}
		for _, part := range parts {
			if !sections[part] {
				return usageError("add the section; meshnode appraise --default-policy prints a whole one",
					"%s: %q is missing, but kinds admit %s", path, part, kind)
			}
		}
	}
	return nil
}

func checkReferences(path, list string, in []attest.Reference) ([]attest.Reference, error) {
	for i := range in {
		r := &in[i]
		fail := func(format string, args ...any) error {
			return usageError("correct the entry", "%s: %s: entry %d: %s", path, list, i+1, fmt.Sprintf(format, args...))
		}
		if _, err := attest.ParseKinds(r.Kind); err != nil {
			return nil, fail("%v", err)
		}
		if !isDigest(r.Measurement) {
			return nil, fail("measurement %q: want at least 32 bytes in lower-case hex", r.Measurement)
		}
		for name, v := range r.Registers {
			if !isDigest(v) {
				return nil, fail("register %s: %q: want at least 32 bytes in lower-case hex", name, v)
			}
		}
		if !r.NotAfter.IsZero() && r.NotAfter.Before(r.NotBefore) {
			return nil, fail("not_after is before not_before")
		}
		if r.ID == "" {
			r.ID = fmt.Sprintf("%s %d", list, i+1)
		}
	}
	return in, nil
}

// isDigest reports whether s is a digest of SHA-256 or stronger in lower-case hex.
func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) >= 32 && s == strings.ToLower(s)
}

func readRoots(path string, files []string) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for _, name := range files {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		raw, err := readLimited(name, strictyaml.MaxSize)
		if err != nil {
			return nil, err
		}
		found := len(out)
		for rest := raw; ; {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, usageError("give PEM certificates", "%s: vtpm_roots: %s: %v", path, name, err)
			}
			out = append(out, cert)
		}
		if len(out) == found {
			return nil, usageError("give PEM certificates", "%s: vtpm_roots: %s holds no certificate", path, name)
		}
	}
	return out, nil
}

// printDefaultPolicy writes the policy that holds without --policy, as a file to start from:
// it has every field, and names no software.
func printDefaultPolicy(w io.Writer) error {
	strict := attest.StrictPolicy()
	var b bytes.Buffer
	b.WriteString(`# What meshnode appraise demands without --policy. Every field of a section must stand; a section
# may go with its kinds. With --policy the software must be named here:
#   references: [{kind: sevsnp, measurement: HEX, registers: {NAME: HEX}, not_before: TIME, not_after: TIME}]
# "revoked" is a list of the same form, of software that was wanted once. Names of the fields are
# explained in docs/POLICIES.md.
`)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	err := enc.Encode(policyFile{Kinds: strict.Kinds, References: []attest.Reference{}, SEVSNP: strict.SEVSNP, TDX: strict.TDX, VTPM: strict.VTPM})
	if err == nil {
		err = enc.Close()
	}
	if err == nil {
		_, err = w.Write(b.Bytes())
	}
	return err
}
