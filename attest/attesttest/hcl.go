package attesttest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// HCL is a fake Azure: machines of a TEE with the TPM of a paravisor inside.
type HCL struct {
	tee interface {
		Kind() string
		Scheme() attest.Scheme
		Policy(measurements ...string) attest.Policy
		Attester(measurement string) *Attester
	}
	useRSA bool
}

// NewHCL returns the forger of composite evidence on the machines of a *SEVSNP or *TDX.
// Attestation keys are RSA, as Azure's are, or of P-256.
func NewHCL[T *SEVSNP | *TDX](tee T, useRSA bool) *HCL {
	switch tee := any(tee).(type) {
	case *SEVSNP:
		return &HCL{tee, useRSA}
	case *TDX:
		return &HCL{tee, useRSA}
	}
	panic("attesttest: no TEE")
}

// Kind is the kind of evidence the forger makes.
func (f *HCL) Kind() string { return f.tee.Kind() + "," + attest.KindVTPM }

// Scheme returns a new Scheme that believes the TEE's roots.
func (f *HCL) Scheme() attest.Scheme { return must(hcl.New(f.tee.Scheme(), vtpm.New(nil))) }

// Policy returns a policy that admits genuine evidence of the measurements, and nothing
// more.
func (f *HCL) Policy(measurements ...string) attest.Policy {
	p := f.tee.Policy(measurements...)
	p.Kinds, p.References, p.VTPM = []string{f.Kind()}, references(f.Kind(), measurements), tpmPolicy(attest.AKTrustReport)
	for i, m := range measurements {
		guest := NewSoftTPM(false)
		guest.Boot(loaderOf([measurementSize]byte(must(hex.DecodeString(m)))), true)
		p.References[i].Registers = map[string]string{"pcr4": hex.EncodeToString(guest.banks[crypto.SHA256][4])}
	}
	return p
}

// Attester returns an attester on a machine of its own whose genuine evidence has a
// measurement, that of its TEE.
func (f *HCL) Attester(measurement string) *Attester {
	tee := f.tee.Attester(measurement).machine
	return newAttester(&hclMachine{HCL: f, tee: tee, ak: NewSoftTPM(f.useRSA).Key}, measurement)
}

// hclMachine is a TEE's machine and the key of the TPM in it.
type hclMachine struct {
	*HCL
	tee machine
	ak  crypto.Signer
}

func (m *hclMachine) kind() string { return m.Kind() }

func (m *hclMachine) forgeries() []Forgery {
	own := append([]Forgery{OtherHalf, ForeignRuntime, NoRuntime}, tpmForgeries...)
	return append(own, m.tee.forgeries()...)
}

func (m *hclMachine) evidence(f Forgery, measurement [measurementSize]byte, data attest.ReportData) (attest.Evidence, int, error) {
	nonce := sha256.Sum256(data[:])
	ak := m.ak
	if f == OtherHalf { // a quote of another machine over the same report data
		ak = newP256()
	}
	tpm := booted(ak, f, measurement)
	runtime := runtimeData(m.ak.Public(), f != SecureBootOff)
	named := reportDataOf(runtime)
	if f == ForeignRuntime { // made up after the report: it names another key
		ak = newP256()
		tpm.Key, runtime = ak, runtimeData(ak.Public(), true)
	}
	if f == NoRuntime { // a report bound to the exchange itself, as one alone would be
		named = data
	}
	report, _, err := m.tee.evidence(f, measurement, named)
	if err != nil {
		return attest.Evidence{}, 0, err
	}
	ev := attest.Evidence{Kind: m.kind(), Items: tpm.items(f, nonce[:])}
	solid := len(ev.Items[0].Data)
	hardware := report.Items[0].Data
	if report.Kind == attest.KindTDX {
		ev.Items = append(ev.Items, report.Items[0])
		hardware = make([]byte, 1024) // the TD's own report, which nobody can verify
	}
	if f == NoRuntime {
		if report.Kind == attest.KindSEVSNP {
			ev.Items = append(ev.Items, report.Items[0])
		}
	} else {
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeHCLReport, Data: hclReport(report.Kind, hardware, runtime)})
	}
	ev.Items = append(ev.Items, report.Items[1:]...)
	return ev, solid, nil
}

// reportDataOf is what a TEE's report carries for runtime data.
func reportDataOf(runtime []byte) (out attest.ReportData) {
	digest := sha256.Sum256(runtime)
	copy(out[:], digest[:])
	return out
}

// runtimeData returns the paravisor's JSON that names a key.
func runtimeData(ak crypto.PublicKey, secureBoot bool) []byte {
	number := func(n *big.Int) string { return base64.RawURLEncoding.EncodeToString(n.Bytes()) }
	key := map[string]any{"kid": "HCLAkPub", "key_ops": []string{"sign"}}
	switch ak := ak.(type) {
	case *rsa.PublicKey:
		key["kty"], key["e"], key["n"] = "RSA", number(big.NewInt(int64(ak.E))), number(ak.N)
	case *ecdsa.PublicKey:
		point := must(ak.Bytes())
		key["kty"], key["crv"] = "EC", "P-256"
		key["x"], key["y"] = base64.RawURLEncoding.EncodeToString(point[1:33]), base64.RawURLEncoding.EncodeToString(point[33:])
	}
	return must(json.Marshal(map[string]any{"keys": []any{key}, "user-data": fmt.Sprintf("%0128d", 0),
		"vm-configuration": map[string]any{"console-enabled": true, "secure-boot": secureBoot, "tpm-enabled": true, "vmUniqueId": "00000000-0000-0000-0000-000000000000"}}))
}

// hclReport returns the paravisor's report, padded to its NV index (package hcl, Parse).
func hclReport(kind string, hardware, runtime []byte) []byte {
	const claimsAt, runtimeAt, index = 1216, 1236, 2600
	size := runtimeAt + len(runtime)
	out := make([]byte, max(size, index))
	word := func(at, v int) { binary.LittleEndian.PutUint32(out[at:], uint32(v)) }
	copy(out, "HCLA")
	word(4, 2)
	word(8, size-16)
	word(12, 2)
	copy(out[32:claimsAt], hardware)
	word(claimsAt, len(runtime)+20)
	word(claimsAt+4, 1)
	word(claimsAt+8, map[string]int{attest.KindSEVSNP: 2, attest.KindTDX: 4}[kind])
	word(claimsAt+12, 1)
	word(claimsAt+16, len(runtime))
	copy(out[runtimeAt:], runtime)
	return out
}
