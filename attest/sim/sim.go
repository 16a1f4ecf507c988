// Package sim is the attestation of simulated nodes: a separate platform process holds a
// root key, measures whoever connects to it and signs reports. It serves trials only. A
// sim platform protects nothing from its host, from root, or from a process of the same
// user that lends its connection to another; what it does give is evidence that depends
// on the executable that really runs and on nothing that the node says about itself.
//
// # Measurement
//
// A platform measures each connection once, when it is made. It takes the peer's pid and
// user from the socket (SO_PEERCRED), a pidfd for the same process (SO_PEERPIDFD, or
// pidfd_open(2) on kernels before 6.5), and hashes the file that /proc/PID/exe opens with
// SHA-384. Afterwards the pidfd must show the process alive, so that a recycled pid is
// never measured in its place, and /proc/PID/exe must still be the file that was hashed.
// Peers of another user are refused; a node must stay dumpable for its file to be read.
//
// # Report
//
// A report is deterministic CBOR (RFC 8949 §4.2), an array of five elements:
//
//	[1,                    version, unsigned
//	 measurement,          48 bytes, SHA-384 of the executable
//	 report data,          64 bytes, as the attester asked
//	 platform,             32 bytes, SHA-256 of the root's SubjectPublicKeyInfo DER
//	 signature]            64 bytes, Ed25519 by the root
//
// The signature is over
//
//	lp("meshnode-sim/v1 report") lp(u8 version) lp(measurement) lp(report data) lp(platform)
//
// with lp(x) = u32 big-endian length, then x. As evidence a report is the only item, of
// type attest.TypeSimReport, in evidence of kind "sim".
//
// # Protocol
//
// The platform listens on a unix stream socket. Both directions carry frames: u32
// big-endian length, then that many bytes. A connection carries requests one after the
// other, each answered before the next is read:
//
//	request   u8 version (1), 64 bytes report data
//	answer    u8 0, report                 the request is granted
//	          u8 1, UTF-8 text             it is refused; the platform closes
//
// The limits are in limits.go. A frame over its limit, of another length than its content
// has, or that does not arrive in time ends the connection.
//
// # Directory
//
//	platform.key   PKCS #8 PEM, mode 0600: the root, made at the first start
//	root.pub       SubjectPublicKeyInfo PEM: what genesis names
//	sim.sock       mode 0600, while the platform runs
package sim

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/fxamacker/cbor/v2"
)

// Version is the only report and request version.
const Version = 1

// Sizes of the fixed fields.
const (
	MeasurementSize = sha512.Size384
	PlatformIDSize  = sha256.Size
)

// reportLabel separates reports from everything else that a root could sign.
const reportLabel = "meshnode-sim/v1 report"

// Report is a decoded report. Nothing of it may be believed before Scheme.Verify.
type Report struct {
	Measurement [MeasurementSize]byte
	ReportData  attest.ReportData
	Platform    [PlatformIDSize]byte
	Signature   [ed25519.SignatureSize]byte
}

// wireReport is the CBOR form of a Report.
type wireReport struct {
	_           struct{} `cbor:",toarray"`
	Version     uint64
	Measurement []byte
	ReportData  []byte
	Platform    []byte
	Signature   []byte
}

var (
	cborEncode = must(cbor.CoreDetEncOptions().EncMode())
	cborDecode = must(cbor.DecOptions{IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxArrayElements: 16, MaxNestedLevels: 4}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil { // constant options: cannot fail
		panic(err)
	}
	return v
}

// PlatformID returns what names a platform in its reports: the SHA-256 of its root's
// SubjectPublicKeyInfo.
func PlatformID(root ed25519.PublicKey) ([PlatformIDSize]byte, error) {
	if len(root) != ed25519.PublicKeySize {
		return [PlatformIDSize]byte{}, fmt.Errorf("sim root: %d bytes, want an Ed25519 public key of %d", len(root), ed25519.PublicKeySize)
	}
	der, err := envelope.MarshalPublic(root)
	if err != nil {
		return [PlatformIDSize]byte{}, fmt.Errorf("sim root: %w", err)
	}
	return sha256.Sum256(der), nil
}

// Sign returns the encoded report of a platform whose root is key.
func Sign(key ed25519.PrivateKey, measurement [MeasurementSize]byte, data attest.ReportData) ([]byte, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("sim report: no root key")
	}
	id, err := PlatformID(key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, err
	}
	r := Report{Measurement: measurement, ReportData: data, Platform: id}
	copy(r.Signature[:], ed25519.Sign(key, r.signed()))
	return r.Encode()
}

// signed returns the bytes under the signature.
func (r Report) signed() []byte {
	var buf []byte
	for _, part := range [][]byte{[]byte(reportLabel), {Version}, r.Measurement[:], r.ReportData[:], r.Platform[:]} {
		buf = attest.LengthPrefixed(buf, part)
	}
	return buf
}

// Encode returns the canonical bytes of r.
func (r Report) Encode() ([]byte, error) {
	return cborEncode.Marshal(wireReport{Version: Version, Measurement: r.Measurement[:], ReportData: r.ReportData[:],
		Platform: r.Platform[:], Signature: r.Signature[:]})
}

// ParseReport decodes a report strictly. It checks no signature.
func ParseReport(raw []byte) (Report, error) {
	if len(raw) > MaxReport {
		return Report{}, fmt.Errorf("sim report: %d bytes, the limit is %d", len(raw), MaxReport)
	}
	var w wireReport
	if err := cborDecode.Unmarshal(raw, &w); err != nil {
		return Report{}, fmt.Errorf("sim report: %w", err)
	}
	if w.Version != Version {
		return Report{}, fmt.Errorf("sim report: version %d, want %d", w.Version, Version)
	}
	var r Report
	for _, f := range []struct {
		name string
		dst  []byte
		src  []byte
	}{
		{"measurement", r.Measurement[:], w.Measurement}, {"report data", r.ReportData[:], w.ReportData},
		{"platform", r.Platform[:], w.Platform}, {"signature", r.Signature[:], w.Signature},
	} {
		if len(f.src) != len(f.dst) {
			return Report{}, fmt.Errorf("sim report: %s has %d bytes, want %d", f.name, len(f.src), len(f.dst))
		}
		copy(f.dst, f.src)
	}
	if back, _ := r.Encode(); !bytes.Equal(back, raw) { // byte strings always encode
		return Report{}, errors.New("sim report: not in canonical form")
	}
	return r, nil
}

// Evidence wraps an encoded report.
func Evidence(report []byte) attest.Evidence {
	return attest.Evidence{Kind: attest.KindSim, Items: []attest.Item{{Type: attest.TypeSimReport, Data: report}}}
}

// hexID is the text form of a platform id.
func hexID(id [PlatformIDSize]byte) string { return hex.EncodeToString(id[:]) }
