package vtpm

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm-tools/proto/attest"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"
	"google.golang.org/protobuf/proto"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
	_ "github.com/attestmesh/meshnode/internal/quietlog" // the TPM client links go-tdx-guest
)

// Paths of Linux, where there is one TPM.
const (
	DefaultDevice   = "/dev/tpmrm0"
	DefaultEventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"
	DefaultIMALog   = "/sys/kernel/security/ima/binary_runtime_measurements"
)

// RuntimePCR is the register that the runtime event log is extended into. Firmware, boot
// loader and IMA leave it alone, and it is not resettable (TCG PC Client PTP, §4.6.2).
const RuntimePCR = 13

// How long the TPM may take. Hardware makes an RSA endorsement key in tens of seconds, the
// rest in one or two.
const (
	keyWithin     = 2 * time.Minute
	commandWithin = 20 * time.Second
	logWithin     = 10 * time.Second
	// quoteTries is how often a quote is made again because a register moved between it
	// and the reading of the registers.
	quoteTries = 5
	maxChain   = 64 << 10
)

// Options say where the TPM and its logs are.
type Options struct {
	// Device is a character device or the unix socket of an emulator.
	Device string
	// EventLog is the file of the firmware's TCG event log; without one the registers are
	// not explained. IMALog is the file of IMA's runtime measurements, if IMA measures.
	EventLog string
	IMALog   string
	// EKChain is a PEM file with the certificates between the endorsement key's, which is
	// in the TPM, and the manufacturer's root. Optional: verifiers may know them.
	EKChain string
	// AK names an attestation key that was provided with the machine, as clouds do. Nil
	// has the attester make one, which an Attestation CA can activate.
	AK *ProvisionedAK
}

// ProvisionedAK is an attestation key that came with the machine: persistent, or a primary
// of the endorsement hierarchy made from a template in an NV index; and the NV index of its
// certificate.
type ProvisionedAK struct {
	Handle           uint32 // 0: made from the template
	TemplateIndex    uint32
	CertificateIndex uint32 // 0: none
}

// String says where the key is.
func (p ProvisionedAK) String() string {
	if p.Handle != 0 {
		return fmt.Sprintf("handle %#x", p.Handle)
	}
	return fmt.Sprintf("template %#x", p.TemplateIndex)
}

// Attester quotes the registers of one TPM over SHA-256 of the report data, with logs. It
// makes its attestation key in the TPM at its first use and keeps the channel to the TPM
// open; a lost channel is opened again, where the same key comes back or the attester
// refuses. Methods may be called from several goroutines; commands go one after the other.
type Attester struct {
	opts     Options
	device   *device.Device
	eventLog *device.File
	imaLog   *device.File
	ekChain  *device.File
	template tpm2.Public

	// Owned by whoever has the device's turn.
	channel *channel
	key     *loaded
	bank    tpm2.Algorithm

	mu       sync.Mutex
	akDigest string // guarded by mu; "" until the key was made
}

// NewAttester returns the attester of one TPM. It opens nothing yet.
func NewAttester(opts Options) *Attester {
	a := &Attester{opts: opts, device: device.New(opts.Device), template: attestationTemplate()}
	file := func(path string, limit int) *device.File {
		if path == "" {
			return nil
		}
		return device.NewFile(path, limit, logWithin)
	}
	a.eventLog, a.imaLog, a.ekChain = file(opts.EventLog, mesh.MaxLog), file(opts.IMALog, mesh.MaxLog), file(opts.EKChain, maxChain)
	return a
}

// Kind implements attest.Attester.
func (*Attester) Kind() string { return mesh.KindVTPM }

// Attest implements attest.Attester. The IMA list is read after the quote: it may be
// longer than what was quoted, never shorter.
func (a *Attester) Attest(ctx context.Context, data mesh.ReportData) (mesh.Evidence, error) {
	nonce := sha256.Sum256(data[:])
	msg, err := do(ctx, a, "quote", again, func(ch *channel) (*attest.Attestation, error) { return a.quote(nonce[:]) })
	if err != nil {
		return mesh.Evidence{}, err
	}
	if a.eventLog != nil {
		if msg.EventLog, err = a.eventLog.Read(ctx); err != nil {
			return mesh.Evidence{}, fmt.Errorf("TCG event log: %w", err)
		}
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return mesh.Evidence{}, err
	}
	ev := mesh.Evidence{Kind: mesh.KindVTPM, Items: []mesh.Item{{Type: mesh.TypeTPMQuote, Data: raw}}}
	if a.imaLog != nil {
		list, err := a.imaLog.Read(ctx)
		if err != nil {
			return mesh.Evidence{}, fmt.Errorf("IMA list: %w", err)
		}
		ev.Items = append(ev.Items, mesh.Item{Type: mesh.TypeIMALog, Data: list})
	}
	return ev, ev.Check()
}

// quote quotes all registers of the bank.
func (a *Attester) quote(nonce []byte) (*attest.Attestation, error) {
	public, err := a.key.PublicArea().Encode()
	if err != nil {
		return nil, err
	}
	msg := &attest.Attestation{AkPub: public, AkCert: a.key.CertDERBytes()}
	for try := 1; ; try++ {
		q, err := a.key.Quote(client.FullPcrSel(a.bank), nonce)
		if err == nil {
			msg.Quotes = []*tpmpb.Quote{q}
			return msg, nil
		}
		if answered(err) || a.channel.broken {
			return nil, err
		}
		// The library verifies what it made; it fails where IMA extended a register
		// between the quote and the reading.
		if try == quoteTries {
			return nil, fmt.Errorf("%d quotes, none over the registers as they were read: %w", try, err)
		}
	}
}

// Extend extends the runtime register of every bank by the digest of event, in the bank's
// hash. It implements attest.Extender.
func (a *Attester) Extend(ctx context.Context, event []byte) error {
	// TPM2_PCR_Event takes 1024 bytes at most (TPM2B_EVENT).
	if len(event) == 0 || len(event) > 1024 {
		return fmt.Errorf("device %s: extend: an event of %d bytes, want 1 to 1024", a.device.Name(), len(event))
	}
	_, err := do(ctx, a, "extend", once, func(ch *channel) (struct{}, error) {
		return struct{}{}, tpm2.PCREvent(ch, tpmutil.Handle(RuntimePCR), event)
	})
	return err
}

// Probe reports whether the TPM answers.
func (a *Attester) Probe(ctx context.Context) error {
	_, err := do(ctx, a, "probe", again, func(ch *channel) (struct{}, error) {
		_, err := tpm2.GetRandom(ch, 1)
		return struct{}{}, err
	})
	return err
}

// ReadIndex returns what is in an NV index that anybody or the owner, with an empty password,
// may read.
func (a *Attester) ReadIndex(ctx context.Context, index uint32) ([]byte, error) {
	return do(ctx, a, "read NV", again, func(ch *channel) ([]byte, error) { return readWhole(ch, index) })
}

// AKDigest returns SHA-256 of the attestation key's SubjectPublicKeyInfo, in hex, as
// claims name it.
func (a *Attester) AKDigest(ctx context.Context) (string, error) {
	if err := a.Probe(ctx); err != nil {
		return "", err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.akDigest, nil
}

// Close gives the TPM back. A later call opens it again.
func (a *Attester) Close() error {
	_, err := device.Do(context.Background(), a.device, "close", commandWithin, func(until time.Time) (struct{}, error) {
		if a.channel == nil {
			return struct{}{}, nil
		}
		a.channel.until = until
		if a.key != nil && (a.opts.AK == nil || a.opts.AK.Handle == 0) {
			a.key.Close() // an emulator without a resource manager would keep it
		}
		return struct{}{}, a.drop()
	})
	return err
}

// chain returns the configured intermediates of the endorsement key.
func (a *Attester) chain(ctx context.Context) ([][]byte, error) {
	if a.ekChain == nil {
		return nil, nil
	}
	raw, err := a.ekChain.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("chain of the endorsement key: %w", err)
	}
	var out [][]byte
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			out = append(out, block.Bytes)
		}
	}
	if len(out) == 0 || len(out) > maxEKChain {
		return nil, fmt.Errorf("chain of the endorsement key: %s: %d certificates in PEM, want 1 to %d", a.ekChain.Name(), len(out), maxEKChain)
	}
	return out, nil
}
