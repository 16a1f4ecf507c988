package vtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tpm-tools/proto/attest"
	"github.com/google/go-tpm-tools/server"
	"github.com/google/go-tpm/legacy/tpm2"
	"google.golang.org/protobuf/proto"

	mesh "github.com/attestmesh/meshnode/attest"
)

var at = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

func sample(t testing.TB, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func evidence(raw []byte) mesh.Evidence {
	return mesh.Evidence{Kind: mesh.KindVTPM, Items: []mesh.Item{{Type: mesh.TypeTPMQuote, Data: raw}}}
}

func edited(t *testing.T, name string, edit func(*attest.Attestation)) []byte {
	t.Helper()
	msg, err := Parse(sample(t, name))
	if err != nil {
		t.Fatal(err)
	}
	edit(msg)
	raw, err := proto.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func code(t *testing.T, err error) mesh.Code {
	t.Helper()
	var e *mesh.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *attest.Error", err)
	}
	return e.Reason.Code
}

func TestMeasuredBoot(t *testing.T) {
	for name, secure := range map[string]bool{"secureboot-on-rsa.pb": true, "secureboot-on-ecc.pb": true, "secureboot-off-ecc.pb": false} {
		c, err := New(nil).Verify(context.Background(), evidence(sample(t, name)), nil, at)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		v := c.VTPM
		if !c.Genuine || c.Bound || v.NonceVerified || !v.LogReplayed || v.Bank != "sha384" || len(v.PCRs) != 24 || v.AKTrust != "" ||
			v.SecureBoot == nil || *v.SecureBoot != secure || len(c.Registers) != 24 {
			t.Errorf("%s: got %+v %+v", name, c, v)
		}
		r := mesh.Appraise(c, mesh.StrictPolicy(), at)
		if secure && (r.Verdict != mesh.VerdictNone || r.Code() != mesh.CodeNoEndorsement) {
			t.Errorf("%s: got %s %v, want none: no_endorsement", name, r.Verdict, r.Reasons)
		}
		if !secure && (r.Verdict != mesh.VerdictContraindicated || r.Code() != mesh.CodeSecureBootOff) {
			t.Errorf("%s: got %s %v, want contraindicated: secure_boot_off", name, r.Verdict, r.Reasons)
		}
	}
}

// TestLargeLogsAreForgotten: anybody can send quotes of his own key with logs as large as
// evidence may hold.
func TestLargeLogsAreForgotten(t *testing.T) {
	for what, tc := range map[string]struct{ padding, want int }{"usual": {16, 1}, "large": {maxKnownLog, 0}} {
		s := New(nil)
		raw := edited(t, "secureboot-on-ecc.pb", func(msg *attest.Attestation) {
			msg.EventLog = append(msg.EventLog, make([]byte, tc.padding)...)
		})
		if _, err := s.Verify(context.Background(), evidence(raw), nil, at); err != nil || s.logs.Len() != tc.want {
			t.Errorf("%s: %v, %d logs are remembered, want %d", what, err, s.logs.Len(), tc.want)
		}
	}
}

// TestEveryFlippedBit spoils each bit of each statement, each signature and the key, and bits
// of every byte of the registers, of which a digest is compared.
func TestEveryFlippedBit(t *testing.T) {
	msg, err := Parse(sample(t, "secureboot-on-ecc.pb"))
	if err != nil {
		t.Fatal(err)
	}
	s := New(nil) // which remembers what held
	verify := func(what string) {
		raw, err := proto.Marshal(msg)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := s.Verify(context.Background(), evidence(raw), nil, at); err == nil || c.Genuine {
			t.Errorf("%s: accepted", what)
		}
	}
	// The attributes before the point are not authenticated: nothing is claimed from them.
	point := msg.AkPub[len(msg.AkPub)-68:]
	step := flipStep
	if testing.Short() {
		step = 31
	}
	for _, q := range msg.Quotes {
		spoil := func(part []byte, step int) {
			for bit := 0; bit < len(part)*8; bit += step {
				part[bit/8] ^= 1 << (bit % 8)
				verify(hex.EncodeToString(part))
				part[bit/8] ^= 1 << (bit % 8)
			}
		}
		for _, v := range q.Pcrs.Pcrs {
			spoil(v, max(step, 7))
		}
		for _, part := range [][]byte{q.Quote, q.RawSig, point} {
			spoil(part, step)
		}
	}
}

// TestTruncatedAndTrailing cuts a genuine message at every byte. Where a field of the protobuf
// ends there, what is left is a message without the log behind it, which no strict policy
// accepts; everywhere else it is none. What is appended is refused.
func TestTruncatedAndTrailing(t *testing.T) {
	raw := sample(t, "secureboot-on-ecc.pb")
	s, whole := New(nil), 0
	step := 1
	if testing.Short() || flipStep > 1 {
		step = 7
	}
	for n := 1; n < len(raw); n += step {
		c, err := s.Verify(context.Background(), evidence(raw[:n]), nil, at)
		if err != nil {
			continue
		}
		whole++
		c.VTPM.AKTrust = mesh.AKTrustCertificate
		if r := mesh.Appraise(c, mesh.StrictPolicy(), at); c.VTPM.LogReplayed || r.Verdict == mesh.VerdictAffirming || r.Verdict == mesh.VerdictWarning {
			t.Errorf("%d bytes: %s %v", n, r.Verdict, r.Reasons)
		}
	}
	if whole > 8 {
		t.Errorf("%d truncations are messages", whole)
	}
	for _, tail := range [][]byte{{0}, {1}, {0xff}, {0x1a, 0}, {0x3a, 0}, {0x0a, 1, 0}, raw} {
		if c, err := s.Verify(context.Background(), evidence(append(bytes.Clone(raw), tail...)), nil, at); err == nil || c.Genuine {
			t.Errorf("%x behind it: accepted", tail[:min(len(tail), 4)])
		}
	}
}

func TestRefusals(t *testing.T) {
	const name = "secureboot-on-rsa.pb"
	for what, tc := range map[string]struct {
		raw  []byte
		want mesh.Code
	}{
		"truncated":      {sample(t, name)[:9000], mesh.CodeMalformed},
		"noise":          {[]byte("not a protobuf at all"), mesh.CodeMalformed},
		"empty":          {[]byte{}, mesh.CodeMalformed},
		"unknown field":  {append(sample(t, name), 0xf8, 0x01, 0x01), mesh.CodeMalformed},
		"no quotes":      {edited(t, name, func(m *attest.Attestation) { m.Quotes = nil }), mesh.CodeMalformed},
		"the same twice": {edited(t, name, func(m *attest.Attestation) { m.Quotes = append(m.Quotes, m.Quotes[0]) }), mesh.CodeMalformed},
		"no key":         {edited(t, name, func(m *attest.Attestation) { m.AkPub = nil }), mesh.CodeMalformed},
		"another key": {edited(t, name, func(m *attest.Attestation) {
			other, _ := Parse(sample(t, "secureboot-on-ecc.pb"))
			m.AkPub = other.AkPub
		}), mesh.CodeNotGenuine},
		"another boot's log": {edited(t, name, func(m *attest.Attestation) {
			other, _ := Parse(sample(t, "secureboot-off-ecc.pb"))
			m.EventLog = other.EventLog
		}), mesh.CodeReplayMismatch},
		"a cut log":   {edited(t, name, func(m *attest.Attestation) { m.EventLog = m.EventLog[:len(m.EventLog)-1] }), mesh.CodeReplayMismatch},
		"no events":   {edited(t, name, func(m *attest.Attestation) { m.EventLog = m.EventLog[:headerLen(t, m.EventLog)] }), mesh.CodeReplayMismatch},
		"mixed boots": {edited(t, name, mix(t)), mesh.CodeNotGenuine},
	} {
		if c, err := New(nil).Verify(context.Background(), evidence(tc.raw), nil, at); err == nil || c.Genuine {
			t.Errorf("%s: accepted", what)
		} else if got := code(t, err); got != tc.want {
			t.Errorf("%s: got %v, want %s", what, err, tc.want)
		}
	}
	foreign := evidence(sample(t, name))
	foreign.Items = append(foreign.Items, mesh.Item{Type: mesh.TypeTDXQuote, Data: []byte{1}})
	if _, err := New(nil).Verify(context.Background(), foreign, nil, at); err == nil {
		t.Error("a foreign item was accepted")
	}
}

func mix(t *testing.T) func(*attest.Attestation) {
	return func(m *attest.Attestation) {
		other, err := Parse(sample(t, "secureboot-on-ecc.pb"))
		if err != nil {
			t.Fatal(err)
		}
		m.Quotes[0] = other.Quotes[0]
	}
}

// headerLen is the size of the log's first event, which no register shows.
func headerLen(t *testing.T, log []byte) int {
	t.Helper()
	return 32 + int(log[28]) | int(log[29])<<8
}

// TestLibraryAcceptsDroppedRegister: to go-tpm-tools a register that the log does not
// mention is explained, so dropping its events hides them.
func TestLibraryAcceptsDroppedRegister(t *testing.T) {
	raw := edited(t, "secureboot-off-ecc.pb", func(m *attest.Attestation) { m.EventLog = m.EventLog[:headerLen(t, m.EventLog)] })
	msg, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := areaKey(msg.AkPub)
	if err != nil {
		t.Fatal(err)
	}
	data, err := tpm2.DecodeAttestationData(msg.Quotes[0].Quote)
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.VerifyAttestation(msg, server.VerifyOpts{Nonce: data.ExtraData, TrustedAKs: []crypto.PublicKey{ak.public}, AllowSHA1: true})
	if err != nil {
		t.Errorf("go-tpm-tools refuses a log without events now: %v", err)
	}
	if _, err := New(nil).Verify(context.Background(), evidence(raw), nil, at); code(t, err) != mesh.CodeReplayMismatch {
		t.Errorf("a log without events explains everything: %v", err)
	}
}

func TestNonce(t *testing.T) {
	raw := sample(t, "secureboot-on-ecc.pb")
	msg, err := Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	info, err := tpm2.DecodeAttestationData(msg.Quotes[0].Quote)
	if err != nil {
		t.Fatal(err)
	}
	var data mesh.ReportData
	if sum := sha256.Sum256(data[:]); bytes.Equal(sum[:], info.ExtraData) {
		t.Fatal("the sample is bound to nothing")
	}
	if _, err := New(nil).Verify(context.Background(), evidence(raw), &data, at); code(t, err) != mesh.CodeNotBound {
		t.Errorf("got %v", err)
	}
}

// TestEventDataIsNotAuthenticated: the last event's data may change without the quote
// noticing, so nothing is claimed from it.
func TestEventDataIsNotAuthenticated(t *testing.T) {
	const name = "secureboot-on-rsa.pb"
	before, err := New(nil).Verify(context.Background(), evidence(sample(t, name)), nil, at)
	if err != nil {
		t.Fatal(err)
	}
	raw := edited(t, name, func(m *attest.Attestation) { m.EventLog[len(m.EventLog)-1] ^= 1 })
	after, err := New(nil).Verify(context.Background(), evidence(raw), nil, at)
	if err != nil {
		t.Fatal(err)
	}
	if before.Measurement != after.Measurement || *before.VTPM.SecureBoot != *after.VTPM.SecureBoot {
		t.Error("claims depend on data that nothing authenticates")
	}
}

// TestSecureBootIsAuthenticated flips the SecureBoot variable in the log: its digest no
// longer matches, so the state is unknown, never "on".
func TestSecureBootIsAuthenticated(t *testing.T) {
	raw := edited(t, "secureboot-off-ecc.pb", func(m *attest.Attestation) {
		name := []byte("S\x00e\x00c\x00u\x00r\x00e\x00B\x00o\x00o\x00t\x00")
		i := bytes.Index(m.EventLog, name)
		if i < 0 || m.EventLog[i+len(name)] != 0 {
			t.Fatal("no SecureBoot variable that is off")
		}
		m.EventLog[i+len(name)] = 1
	})
	c, err := New(nil).Verify(context.Background(), evidence(raw), nil, at)
	if err == nil && c.VTPM.SecureBoot != nil && *c.VTPM.SecureBoot {
		t.Error("an edited log turned Secure Boot on")
	}
}

// TestGCE uses a real cloud vTPM's attestation, whose AK certificate is not under a root
// we were given.
func TestGCE(t *testing.T) {
	var raw []byte
	for dir, _ := os.Getwd(); dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			raw, err = os.ReadFile(filepath.Join(filepath.Dir(dir), "shared", "data", "evidence", "tpm", "tpm-gce-cos-85-nonce9009", "attestation.pb"))
			if err != nil {
				t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
			}
		}
	}
	c, err := New(server.GceEKRoots).Verify(context.Background(), evidence(raw), nil, at)
	if err != nil {
		t.Fatal(err)
	}
	if c.ReportData != "9009" || c.VTPM.SecureBoot == nil || !*c.VTPM.SecureBoot || !c.VTPM.LogReplayed {
		t.Errorf("got %+v %+v", c, c.VTPM)
	}
	if c.VTPM.AKTrust != "" {
		t.Errorf("trusted by %q", c.VTPM.AKTrust)
	}
	// Its own issuer as a root would do, at a time when the certificate is valid.
	msg, err := Parse(raw)
	if err != nil || len(msg.GetAkCert()) == 0 {
		t.Skip("the sample holds no AK certificate")
	}
	cert, err := x509.ParseCertificate(msg.GetAkCert())
	if err != nil {
		t.Fatal(err)
	}
	for when, want := range map[time.Time]string{cert.NotBefore.Add(time.Hour): "certificate", cert.NotAfter.Add(time.Hour): "", {}: ""} {
		c, err := New([]*x509.Certificate{cert}).Verify(context.Background(), evidence(raw), nil, when)
		if err != nil || c.VTPM.AKTrust != want {
			t.Errorf("at %v: trust %q, %v, want %q", when, c.VTPM.AKTrust, err, want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(sample(f, "secureboot-off-ecc.pb"))
	f.Add(sample(f, "secureboot-on-ecc.pb"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := New(nil).Verify(context.Background(), evidence(raw), nil, at); err == nil && (!c.Genuine || c.VTPM.AKTrust != "") {
			t.Error("neither refused nor genuine")
		}
	})
}
