package vtpm_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// A certificate under a root of TPMs for another purpose than attestation makes no key one.
func TestKeyCertifiedForAnotherPurpose(t *testing.T) {
	m := tpm()
	ev := bare(t, m, attesttest.Statement{Bank: crypto.SHA256, Registers: allRegisters}, crypto.SHA256)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := chains.Anchor(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	tcg := func(arcs ...int) []asn1.ObjectIdentifier {
		return []asn1.ObjectIdentifier{append(asn1.ObjectIdentifier{2, 23, 133}, arcs...)}
	}
	for what, tc := range map[string]struct {
		usage    x509.KeyUsage
		purposes []asn1.ObjectIdentifier
		known    []x509.ExtKeyUsage
		want     string
	}{
		"signs":               {usage: x509.KeyUsageDigitalSignature, want: attest.AKTrustCertificate},
		"no usage":            {want: attest.AKTrustCertificate},
		"an attestation key":  {usage: x509.KeyUsageDigitalSignature, purposes: tcg(8, 3), want: attest.AKTrustCertificate},
		"a restricted key":    {purposes: tcg(11, 1, 3), want: attest.AKTrustCertificate},
		"as Google has it":    {usage: x509.KeyUsageDigitalSignature, purposes: tcg(8, 1), want: attest.AKTrustCertificate},
		"an endorsement key":  {usage: x509.KeyUsageKeyEncipherment, purposes: tcg(8, 1)},
		"a device's identity": {usage: x509.KeyUsageDigitalSignature, purposes: tcg(11, 1, 2)},
		"a client's of TLS":   {usage: x509.KeyUsageDigitalSignature, known: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		"a platform's":        {purposes: tcg(8, 2)},
	} {
		template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
			KeyUsage: tc.usage, UnknownExtKeyUsage: tc.purposes, ExtKeyUsage: tc.known}
		der, err := x509.CreateCertificate(rand.Reader, template, &x509.Certificate{Subject: pkix.Name{CommonName: "root"}}, m.Key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		with := ev
		with.Items = append(slices.Clone(ev.Items), attest.Item{Type: attest.TypeCertificate, Data: der})
		c, err := vtpm.New([]*x509.Certificate{root}).Verify(context.Background(), with, nil, now)
		if err != nil || c.VTPM.AKTrust != tc.want {
			t.Errorf("%s: trust %q, %v, want %q", what, c.VTPM.AKTrust, err, tc.want)
		}
	}
}

// A machine with another initrd in register 9 extends register 12, which is free, by what the
// expected initrd would have left in 9, and quotes 12 in its place.
func TestRegisterInPlaceOfAnother(t *testing.T) {
	good, bad := tpm(), tpm()
	good.Measure(9, 0xd, []byte("initrd"))
	bad.Measure(9, 0xd, []byte("another initrd"))
	bad.Extend(12, []byte("initrd"))
	measurement := func(m *attesttest.SoftTPM, registers ...int) string {
		c, code := verdict(t, bare(t, m, attesttest.Statement{Bank: crypto.SHA256, Registers: registers}, crypto.SHA256))
		if code != "" {
			t.Fatal(code)
		}
		return c.Measurement
	}
	want := measurement(good, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)
	if got := measurement(bad, 0, 1, 2, 3, 4, 5, 6, 7, 8, 12); got == want {
		t.Error("registers 0 to 8 and 12 of one machine measure as 0 to 9 of another")
	}
	if got := measurement(good, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 23); got != want {
		t.Error("registers that are not the boot's change the measurement")
	}
	// All of them are hashed alone, as they always were.
	h := sha256.New()
	c, _ := verdict(t, bare(t, good, attesttest.Statement{Bank: crypto.SHA256, Registers: allRegisters}, crypto.SHA256))
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14} {
		value, err := hex.DecodeString(c.Registers[fmt.Sprintf("pcr%d", n)])
		if err != nil {
			t.Fatal(err)
		}
		h.Write(value)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != c.Measurement {
		t.Errorf("got %s, want %s", c.Measurement, got)
	}
}

// A log that leaves out a register of the boot, which it may as far as replay goes, or a quote
// that does, must not pass for a boot without owner's keys.
func TestLogLeavesRegisterOut(t *testing.T) {
	m := tpm()
	before := m.Log()
	m.Measure(14, 0xd, []byte("a key of the owner's"))
	policy := attest.BootPolicy{AllowSecureBootOff: true, AllowDMAUnprotected: true, Components: []string{attest.Any},
		CommandLines: []string{attest.Any}, Files: []string{attest.Any}}
	for what, tc := range map[string]struct {
		registers []int
		log       []byte
		want      []string
	}{
		"whole":      {allRegisters, m.Log(), nil},
		"left out":   {allRegisters, before, []string{"pcr14"}},
		"not quoted": {allRegisters[:14], m.Log(), []string{"pcr14"}},
	} {
		ev := bare(t, m, attesttest.Statement{Bank: crypto.SHA256, Registers: tc.registers}, crypto.SHA256)
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeEventLog, Data: tc.log})
		c, code := verdict(t, ev)
		if code != "" || !slices.Equal(c.VTPM.Boot.Unexplained, tc.want) {
			t.Fatalf("%s: %s, unexplained %v, want %v", what, code, c.VTPM.Boot, tc.want)
		}
		p := attest.StrictPolicy()
		p.VTPM.Boot = policy
		r := attest.Appraise(c.Activated(c.VTPM.AKDigest), p, now)
		if !slices.ContainsFunc(r.Reasons, func(r attest.Reason) bool { return r.Code == attest.CodeMOK }) {
			t.Errorf("%s: a policy without owner's keys accepts the boot: %v", what, r.Reasons)
		}
	}
}
