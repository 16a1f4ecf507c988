// Package machine says which evidence the machine it runs on can give, and makes the
// attester for it. What it says is no proof of anything: a verifier decides by the evidence.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tdx"
	"github.com/attestmesh/meshnode/attest/tsm"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// Source is a place where evidence may come from.
type Source struct {
	Name    string // what people call it
	Path    string
	Gives   string // in words, what it is for
	Present bool
	// Says is what was found out about a source that is present.
	Says string
	// Err says why a present source cannot be used; nil where it can or was not tried.
	Err error
}

// Sources looks at every source this package knows, in the order of their paths' use.
func Sources(ctx context.Context) []Source {
	return []Source{
		look(ctx, "configfs-tsm", tsm.Path, "reports of SEV-SNP and TDX guests by configfs-tsm", probeTSM),
		look(ctx, sevsnp.DevicePath, sevsnp.DevicePath, "SEV-SNP reports", nil),
		look(ctx, tdx.DevicePath, tdx.DevicePath, "TDX quotes", nil),
		look(ctx, "CCEL", tdx.CCELPath, "the event log of a TD", readable),
		look(ctx, "RTMR3", tdx.RTMRPath, "the runtime event log's register in a TD", nil),
		look(ctx, vtpm.DefaultDevice, vtpm.DefaultDevice, "TPM quotes", inspect),
		look(ctx, "TCG event log", vtpm.DefaultEventLog, "the event log of a measured boot", readable),
		look(ctx, "IMA list", vtpm.DefaultIMALog, "IMA's list of what was executed", readable),
	}
}

// look looks at one source and, if it is there, asks probe.
func look(ctx context.Context, name, path, gives string, probe func(context.Context, string) (string, error)) Source {
	s := Source{Name: name, Path: path, Gives: gives}
	if s.Err = device.Present(path); errors.Is(s.Err, fs.ErrNotExist) {
		s.Err = nil
		return s
	}
	s.Present = true
	if s.Err == nil && probe != nil {
		s.Says, s.Err = probe(ctx, path)
	}
	return s
}

// probeTSM asks which vendor's driver answers.
func probeTSM(ctx context.Context, _ string) (string, error) {
	name, err := tsm.Provider(ctx)
	return "provider " + name, err
}

func readable(_ context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	return "readable", f.Close()
}

// inspect puts a TPM's facts into words.
func inspect(ctx context.Context, path string) (string, error) {
	f, err := vtpm.Inspect(ctx, path)
	if err != nil {
		return "", err
	}
	says := []string{fmt.Sprintf("vendor %s, banks %s", f.Manufacturer, strings.Join(f.Banks, " "))}
	if f.EKIssuer != "" {
		says = append(says, "endorsement key certified by "+f.EKIssuer)
	} else {
		says = append(says, "no certificate of an endorsement key")
	}
	if f.HCLReport {
		says = append(says, "a paravisor's, with the report of its TEE")
	}
	if f.AK != nil {
		says = append(says, fmt.Sprintf("a certified attestation key of %s", f.AK))
	}
	return strings.Join(says, "; "), nil
}

// Attester is an attester that can be asked whether its device answers.
type Attester interface {
	attest.Attester
	Probe(ctx context.Context) error
}

// kindHCL is the kind of a guest with a paravisor.
const kindHCL = attest.KindSEVSNP + "," + attest.KindVTPM

// Kinds lists the kinds that there are attesters for.
func Kinds() []string {
	return []string{attest.KindSEVSNP, attest.KindTDX, kindHCL, attest.KindVTPM}
}

// Find returns the attester of a kind, or with kind "" that of the strongest kind which
// this machine has: a TEE before a TPM, whose registers its host could set. A device that
// is there and does not work is an error, never a reason to take a weaker one. It also
// returns what is to be closed at the end.
func Find(ctx context.Context, kind string, tpm vtpm.Options) (Attester, func() error, error) {
	nothing := func() error { return nil }
	var tried []string
	absent := func(err error) bool {
		tried = append(tried, err.Error())
		return kind == "" && errors.Is(err, fs.ErrNotExist)
	}
	if kind == "" || kind == attest.KindSEVSNP {
		a, err := sevsnp.FindAttester(ctx)
		if err == nil {
			return a, nothing, nil
		}
		if !absent(err) {
			return nil, nil, err
		}
	}
	if kind == "" || kind == attest.KindTDX {
		a, err := tdx.FindAttester(ctx)
		if err == nil {
			return a, nothing, nil
		}
		if !absent(err) {
			return nil, nil, err
		}
	}
	if kind == "" || kind == attest.KindVTPM || kind == kindHCL {
		facts, err := vtpm.Inspect(ctx, tpm.Device)
		if err == nil {
			if tpm.AK == nil {
				tpm.AK = facts.AK
			}
			a := vtpm.NewAttester(tpm)
			if kind == kindHCL || kind == "" && facts.HCLReport {
				h := hcl.NewAttester(a)
				if err := h.Probe(ctx); err != nil {
					return nil, nil, errors.Join(err, a.Close())
				}
				return h, a.Close, nil
			}
			return a, a.Close, nil
		}
		if !absent(err) {
			return nil, nil, err
		}
	}
	if tried == nil {
		return nil, nil, fmt.Errorf("kind %q, want one of %s", kind, strings.Join(Kinds(), " "))
	}
	return nil, nil, fmt.Errorf("nothing to attest with: %s", strings.Join(tried, "; "))
}

// TPM returns the options for the TPM at path, with the logs of this machine where it is
// this machine's own TPM and there are any.
func TPM(path string) vtpm.Options {
	o := vtpm.Options{Device: path}
	if path != vtpm.DefaultDevice {
		return o // an emulator: the machine's logs are not of its boot
	}
	for path, field := range map[string]*string{vtpm.DefaultEventLog: &o.EventLog, vtpm.DefaultIMALog: &o.IMALog} {
		if device.Present(path) == nil {
			*field = path
		}
	}
	return o
}
