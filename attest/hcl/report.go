package hcl

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // hashes of runtime data
	_ "crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"

	"github.com/attestmesh/meshnode/attest"
)

// Offsets and sizes of a report; integers little-endian:
//
//	  0  "HCLA", u32 version (1, 2), u32 size, u32 request type, u32 status, 12 reserved
//	 32  hardware report: SEV-SNP ATTESTATION_REPORT, or TDREPORT_STRUCT and zeros
//	1216 u32 size of what follows with this header, u32 version, u32 type of hardware report,
//	     u32 hash, u32 size of the runtime data
//	1236 runtime data, JSON; then nothing, or zeros up to the 2,600 bytes of the NV index
const (
	headerSize   = 32
	hardwareSize = 1184
	tdReportSize = 1024
	claimsAt     = headerSize + hardwareSize
	claimsHeader = 20
	runtimeAt    = claimsAt + claimsHeader
	indexSize    = 2600
)

// Types of hardware reports.
const (
	typeSEVSNP = 2
	typeTDX    = 4
)

// hashes of runtime data, by their numbers.
var hashes = map[uint32]crypto.Hash{1: crypto.SHA256, 2: crypto.SHA384, 3: crypto.SHA512}

// Report is a report taken apart. Nothing in it is authentic before ReportData was found in
// a verified report of the TEE.
type Report struct {
	// TEE is attest.KindSEVSNP or attest.KindTDX.
	TEE string
	// Hardware is the report of the SEV-SNP guest, or the TD's report, which nobody but its
	// own machine can verify: of a TD only a quote is evidence.
	Hardware []byte
	// ReportData is what the TEE's report carries if it vouches for this runtime data: their
	// hash, then zeros.
	ReportData attest.ReportData
	// AK is the attestation key of the paravisor's TPM.
	AK crypto.PublicKey
	// Digest is the hash of the runtime data.
	Digest []byte
	// Runtime is what else the runtime data say.
	Runtime Runtime
}

// Runtime is what the paravisor says of the machine.
type Runtime struct {
	SecureBoot     *bool  `json:"secure-boot"`
	TPMEnabled     *bool  `json:"tpm-enabled"`
	TPMPersisted   *bool  `json:"tpm-persisted"`
	ConsoleEnabled *bool  `json:"console-enabled"`
	VMUniqueID     string `json:"vmUniqueId"`
	userData       string
}

// runtimeData is the JSON form. Members that are not here are the paravisor's own.
type runtimeData struct {
	Keys     []jwk   `json:"keys"`
	Machine  Runtime `json:"vm-configuration"`
	UserData string  `json:"user-data"`
}

// jwk is a key as RFC 7517 has it.
type jwk struct {
	ID    string `json:"kid"`
	Type  string `json:"kty"`
	E     string `json:"e"`
	N     string `json:"n"`
	Curve string `json:"crv"`
	X     string `json:"x"`
	Y     string `json:"y"`
}

// akName is the id of the attestation key.
const akName = "HCLAkPub"

// LooksLike reports whether raw bears two of the three marks of a report, so that one that
// was tampered with is still refused as a report.
func LooksLike(raw []byte) bool {
	if len(raw) <= runtimeAt || len(raw) > MaxReport {
		return false
	}
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(raw[at:]) }
	marks := 0
	for _, ok := range []bool{bytes.HasPrefix(raw, []byte("HCLA")), word(4) <= 2 && word(claimsAt+4) == 1,
		bytes.HasPrefix(raw[runtimeAt:], []byte(`{"keys":`))} {
		if ok {
			marks++
		}
	}
	return marks >= 2
}

// Parse takes a report apart and accounts for every byte: reserved ones and padding are zero.
func Parse(raw []byte) (Report, error) {
	if len(raw) <= runtimeAt || len(raw) > MaxReport {
		return Report{}, fmt.Errorf("HCL report: %d bytes, want %d to %d", len(raw), runtimeAt+1, MaxReport)
	}
	word := func(at int) uint32 { return binary.LittleEndian.Uint32(raw[at:]) }
	if !bytes.HasPrefix(raw, []byte("HCLA")) || word(4) < 1 || word(4) > 2 || !zero(raw[20:headerSize]) {
		return Report{}, fmt.Errorf("HCL report: header %x, want HCLA of version 1 or 2", raw[:headerSize])
	}
	size, kind, hash := word(claimsAt+16), word(claimsAt+8), hashes[word(claimsAt+12)]
	if size == 0 || uint64(size) > uint64(len(raw)-runtimeAt) || word(claimsAt) != size+claimsHeader || word(claimsAt+4) != 1 {
		return Report{}, fmt.Errorf("HCL report: runtime data of %d bytes in %d, in a section of %d of version %d", size, len(raw)-runtimeAt, word(claimsAt), word(claimsAt+4))
	}
	end := runtimeAt + int(size)
	if !zero(raw[end:]) || len(raw) != end && len(raw) != indexSize {
		return Report{}, fmt.Errorf("HCL report: %d bytes or something but zeros behind the runtime data, which end at byte %d", len(raw), end)
	}
	if hash == 0 {
		return Report{}, fmt.Errorf("HCL report: hash %d, want 1 to 3 for SHA-256, SHA-384, SHA-512", word(claimsAt+12))
	}
	out := Report{Hardware: raw[headerSize:claimsAt]}
	switch kind {
	case typeSEVSNP:
		out.TEE = attest.KindSEVSNP
	case typeTDX:
		out.TEE = attest.KindTDX
		if !zero(out.Hardware[tdReportSize:]) {
			return Report{}, errors.New("HCL report: something behind the TD's report")
		}
		out.Hardware = out.Hardware[:tdReportSize]
	default:
		return Report{}, fmt.Errorf("HCL report: hardware report of type %d, want %d for SEV-SNP or %d for TDX", kind, typeSEVSNP, typeTDX)
	}
	h := hash.New()
	h.Write(raw[runtimeAt:end])
	out.Digest = h.Sum(nil)
	copy(out.ReportData[:], out.Digest)
	return out, out.runtime(raw[runtimeAt:end])
}

// runtime reads runtime data.
func (r *Report) runtime(raw []byte) error {
	var data runtimeData
	if err := json.Unmarshal(raw, &data); err != nil {
		return fmt.Errorf("HCL report: runtime data: %w", err)
	}
	if len(data.Keys) > maxKeys {
		return fmt.Errorf("HCL report: %d keys, the limit is %d", len(data.Keys), maxKeys)
	}
	for _, k := range data.Keys {
		if k.ID != akName {
			continue
		}
		if r.AK != nil {
			return fmt.Errorf("HCL report: two keys %s", akName)
		}
		var err error
		if r.AK, err = k.public(); err != nil {
			return fmt.Errorf("HCL report: key %s: %w", akName, err)
		}
	}
	if r.AK == nil {
		return fmt.Errorf("HCL report: the runtime data name no key %s", akName)
	}
	r.Runtime = data.Machine
	r.Runtime.userData = data.UserData
	return nil
}

// public returns the key, RSA or of a NIST curve.
func (k jwk) public() (crypto.PublicKey, error) {
	fields := map[string][]byte{"e": nil, "n": nil, "x": nil, "y": nil}
	for name, text := range map[string]string{"e": k.E, "n": k.N, "x": k.X, "y": k.Y} {
		b, err := base64.RawURLEncoding.Strict().DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		fields[name] = b
	}
	switch k.Type {
	case "RSA":
		e := new(big.Int).SetBytes(fields["e"])
		if !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 || e.Bit(0) == 0 || len(fields["n"]) == 0 {
			return nil, errors.New("not an RSA key")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(fields["n"]), E: int(e.Int64())}, nil
	case "EC":
		curve := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384()}[k.Curve]
		if curve == nil {
			return nil, fmt.Errorf("curve %.20q", k.Curve)
		}
		return ecdsa.ParseUncompressedPublicKey(curve, append(append([]byte{4}, fields["x"]...), fields["y"]...))
	}
	return nil, fmt.Errorf("key type %.20q, want RSA or EC", k.Type)
}

func zero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// KindOf returns the kind of evidence that a report is part of, even if it was tampered
// with: the composite of the TEE it names, SEV-SNP where it names none.
func KindOf(raw []byte) string {
	if len(raw) > runtimeAt && binary.LittleEndian.Uint32(raw[claimsAt+8:]) == typeTDX {
		return attest.KindTDX + "," + attest.KindVTPM
	}
	return attest.KindSEVSNP + "," + attest.KindVTPM
}
