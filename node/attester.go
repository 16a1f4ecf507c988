package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/sim"
	"github.com/attestmesh/meshnode/attest/tdx"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/enroll"
)

// AttesterConfig selects the source of evidence: exactly one field is set, and Collateral
// where it helps.
type AttesterConfig struct {
	// Sim is the unix socket of a sim platform.
	Sim string `yaml:"sim"`
	// SEVSNP and TDX take this guest's own device, whichever interface the kernel has.
	SEVSNP bool `yaml:"sevsnp"`
	TDX    bool `yaml:"tdx"`
	// TPM takes a TPM 2.0.
	TPM *TPMConfig `yaml:"tpm"`
	// Collateral is a store (meshnode collateral fetch) from which evidence of sevsnp and tdx
	// gets what the device does not give: peers fetch nothing.
	Collateral string `yaml:"collateral"`
	// HardwareSalt is a file with the salt of this machine's chip (meshnode policy hardware),
	// which opens the chip's commitment to peers; for sevsnp and tdx. Needed where the
	// organisation, or the entry of what runs here, has a list of chips.
	HardwareSalt string `yaml:"hardware_salt"`
}

// TPMConfig says where a TPM and its logs are. Nothing in it is believed: what the logs say
// counts as far as the quote covers it.
type TPMConfig struct {
	// Device is a character device or the unix socket of an emulator; default /dev/tpmrm0.
	Device string `yaml:"device"`
	// EventLog is the firmware's log; default that of the kernel's first TPM.
	EventLog string `yaml:"event_log"`
	// IMALog is IMA's list of measured files, in the kernel's binary or text form. Needed where
	// the allowed set lists files; no default.
	IMALog string `yaml:"ima_log"`
	// EKChain is a PEM file with the certificates between that of the endorsement key and the
	// root that genesis names, where there are any.
	EKChain string `yaml:"ek_chain"`
	// AK is an attestation key with a certificate that the machine was provided with. Without
	// it the node makes one at every start and has the enroller activate it.
	AK *ProvisionedAK `yaml:"ak"`
}

// ProvisionedAK is a persistent handle and the NV index of the certificate.
type ProvisionedAK struct {
	Handle           uint32 `yaml:"handle"`
	CertificateIndex uint32 `yaml:"certificate_index"`
}

// kinds lists what is selected.
func (c *AttesterConfig) kinds() []string {
	var out []string
	for _, k := range []struct {
		set  bool
		kind string
	}{{c.Sim != "", attest.KindSim}, {c.SEVSNP, attest.KindSEVSNP}, {c.TDX, attest.KindTDX}, {c.TPM != nil, attest.KindVTPM}} {
		if k.set {
			out = append(out, k.kind)
		}
	}
	return out
}

func (c *AttesterConfig) check() error {
	switch kinds := c.kinds(); {
	case len(kinds) == 0:
		return fmt.Errorf("is missing")
	case len(kinds) > 1:
		return fmt.Errorf("%s: a node has one source of evidence", strings.Join(kinds, " and "))
	case c.Collateral != "" && !c.SEVSNP && !c.TDX:
		return fmt.Errorf("collateral: evidence of kind %s needs none", kinds[0])
	case c.HardwareSalt != "" && !c.SEVSNP && !c.TDX:
		return fmt.Errorf("hardware_salt: evidence of kind %s names no chip", kinds[0])
	case c.Sim != "":
		return checkSocket(c.Sim)
	case c.TPM != nil && c.TPM.AK != nil && (c.TPM.AK.Handle == 0 || c.TPM.AK.CertificateIndex == 0):
		return fmt.Errorf("tpm.ak: handle %#x and certificate_index %#x, want both: a key that was not made here cannot be activated", c.TPM.AK.Handle, c.TPM.AK.CertificateIndex)
	}
	return nil
}

// paths are those that are relative to the configuration file.
func (c *AttesterConfig) paths() []*string {
	out := []*string{&c.Sim, &c.Collateral, &c.HardwareSalt}
	if c.TPM != nil {
		out = append(out, &c.TPM.Device, &c.TPM.EventLog, &c.TPM.IMALog, &c.TPM.EKChain)
	}
	return out
}

// describe names the source in words.
func (c *AttesterConfig) describe() string {
	switch {
	case c.SEVSNP:
		return "this guest's SEV-SNP device"
	case c.TDX:
		return "this guest's TDX device"
	case c.TPM != nil:
		return "the TPM at " + c.TPM.options().Device
	}
	return "the sim platform at " + c.Sim
}

func (c *TPMConfig) options() vtpm.Options {
	o := vtpm.Options{Device: c.Device, EventLog: c.EventLog, IMALog: c.IMALog, EKChain: c.EKChain}
	if o.Device == "" {
		o.Device = vtpm.DefaultDevice
	}
	if o.EventLog == "" {
		o.EventLog = vtpm.DefaultEventLog
	}
	if c.AK != nil {
		o.AK = &vtpm.ProvisionedAK{Handle: c.AK.Handle, CertificateIndex: c.AK.CertificateIndex}
	}
	return o
}

// findWithin bounds the look for a guest's own device.
const findWithin = 10 * time.Second

// source makes the attester that is configured and, for a TPM, what answers the enroller's
// challenges. It connects to nothing.
func (c *AttesterConfig) source() (attest.Attester, enroll.Activator, error) {
	ctx, cancel := context.WithTimeout(context.Background(), findWithin)
	defer cancel()
	switch {
	case c.SEVSNP:
		a, err := sevsnp.FindAttester(ctx)
		return found(a, err, "an SEV-SNP guest", c)
	case c.TDX:
		a, err := tdx.FindAttester(ctx)
		return found(a, err, "a TD", c)
	case c.TPM != nil:
		a := vtpm.NewAttester(c.TPM.options())
		if c.TPM.AK != nil {
			return a, nil, nil // a certificate vouches for it
		}
		return a, tpmActivator{a}, nil
	}
	return sim.NewAttester(c.Sim), nil, nil
}

// found turns the result of a search into ours: a nil pointer is no attester.
func found[A attest.Attester](a A, err error, what string, c *AttesterConfig) (attest.Attester, enroll.Activator, error) {
	if err == nil {
		completed, err := withCollateral(a, c.Collateral)
		if err != nil {
			return nil, nil, err
		}
		salted, err := withSalt(completed, c.HardwareSalt)
		return salted, nil, err
	}
	remedy := "look at meshnode doctor; the kernel module may be missing, or the device unreadable for this user"
	if errors.Is(err, fs.ErrNotExist) {
		remedy = "run the node in " + what + ", or select the attester that this machine has"
	}
	return nil, nil, &ConfigError{Field: "attester", Err: err, Remedy: remedy}
}

// tpmActivator is a TPM as the enroller's protocol carries it: encoded.
type tpmActivator struct{ tpm *vtpm.Attester }

// Endorse implements enroll.Activator.
func (a tpmActivator) Endorse(ctx context.Context) ([]byte, error) {
	e, err := a.tpm.Endorse(ctx)
	if err != nil {
		return nil, err
	}
	return e.Encode()
}

// Activate implements enroll.Activator.
func (a tpmActivator) Activate(ctx context.Context, challenge []byte) ([]byte, error) {
	c, err := vtpm.DecodeChallenge(challenge)
	if err != nil {
		return nil, err
	}
	return a.tpm.Activate(ctx, c)
}

// checkKind demands that genesis admits nodes with this kind of evidence to the roles
// that are asked for.
func checkKind(cfg Config, g *consensus.Genesis, kind string) error {
	for _, r := range []struct {
		role  string
		kinds []string
	}{{RoleMember, g.Kinds.Member}, {RoleSeat, g.Kinds.Seat}, {RoleAggregator, g.Kinds.Aggregator}} {
		if cfg.HasRole(r.role) && !slices.Contains(r.kinds, kind) {
			return &ConfigError{Field: "attester", Err: fmt.Errorf("evidence of kind %s, but genesis admits %s to the role %s", kind, strings.Join(r.kinds, ", "), r.role),
				Remedy: "attest with a kind that genesis admits, or ask for fewer roles"}
		}
	}
	return nil
}
