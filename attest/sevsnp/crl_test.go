package sevsnp

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// TestRevocation judges a chain by the lists beside it, each twice: the second time they
// are remembered.
func TestRevocation(t *testing.T) {
	v, other := vendors[Milan](), vendors[Genoa]()
	vcek, vlek := v.vcek(nil), v.vlek(nil)
	byVCEK, byVLEK := v.report(3, nil), v.report(3, func(b []byte) { b[offKeyInfo] = 1 << 2 })
	ask, asvk := v.root.ASK, v.root.ASVK
	good := v.crl(nil)
	span := func(from, to int) func(*x509.RevocationList) {
		return func(l *x509.RevocationList) {
			l.ThisUpdate, l.NextUpdate = milanAt.AddDate(0, 0, from), milanAt.AddDate(0, 0, to)
		}
	}
	old, future := v.crl(span(-9, -1)), v.crl(span(1, 9))
	critical := v.crl(func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}} // a delta list
	})
	broken := slices.Clone(good)
	broken[len(broken)-1] ^= 1
	byASK := must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: milanAt.AddDate(0, -1, 0), NextUpdate: milanAt.AddDate(0, 1, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS}, signingCRLs(ask), v.keys.Ask))
	for name, tc := range map[string]struct {
		ev   attest.Evidence
		crl  string
		want attest.Code
	}{
		"none":                            {evidence(byVCEK, vcek), "", ""},
		"good":                            {withCRL(evidence(byVCEK, vcek), good), attest.CRLGood, ""},
		"good, for a VLEK":                {withCRL(evidence(byVLEK, vlek), good), attest.CRLGood, ""},
		"old":                             {withCRL(evidence(byVCEK, vcek), old), attest.CRLStale, ""},
		"not yet":                         {withCRL(evidence(byVCEK, vcek), future), attest.CRLStale, ""},
		"old and good":                    {withCRL(evidence(byVCEK, vcek), old, good), attest.CRLGood, ""},
		"good and old":                    {withCRL(evidence(byVCEK, vcek), good, old), attest.CRLGood, ""},
		"of another product":              {withCRL(evidence(byVCEK, vcek), other.crl(nil, other.root.ASK)), "", ""},
		"the other intermediate":          {withCRL(evidence(byVCEK, vcek), v.crl(nil, asvk)), attest.CRLGood, ""},
		"the ASK":                         {withCRL(evidence(byVCEK, vcek), v.crl(nil, asvk, ask)), "", attest.CodeCertificateRevoked},
		"the ASK, beside a good one":      {withCRL(evidence(byVCEK, vcek), good, v.crl(nil, ask)), "", attest.CodeCertificateRevoked},
		"the ASK, by an old one":          {withCRL(evidence(byVCEK, vcek), good, v.crl(span(-9, -1), ask)), "", attest.CodeCertificateRevoked},
		"the ASK, by a later one":         {withCRL(evidence(byVCEK, vcek), v.crl(span(1, 9), ask)), "", attest.CodeCertificateRevoked},
		"the ASVK, for a VLEK":            {withCRL(evidence(byVLEK, vlek), v.crl(nil, asvk)), "", attest.CodeCertificateRevoked},
		"the ASK, for a VLEK":             {withCRL(evidence(byVLEK, vlek), v.crl(nil, ask)), attest.CRLGood, ""},
		"a broken signature":              {withCRL(evidence(byVCEK, vcek), broken), "", attest.CodeNotGenuine},
		"by the ASK, which may not":       {withCRL(evidence(byVCEK, vcek), byASK), "", attest.CodeNotGenuine},
		"a list of changes":               {withCRL(evidence(byVCEK, vcek), critical), "", attest.CodeUnsupported},
		"a trailing byte":                 {withCRL(evidence(byVCEK, vcek), append(slices.Clone(good), 0)), "", attest.CodeMalformed},
		"cut":                             {withCRL(evidence(byVCEK, vcek), good[:len(good)-1]), "", attest.CodeMalformed},
		"nonsense":                        {withCRL(evidence(byVCEK, vcek), []byte("x")), "", attest.CodeMalformed},
		"PEM":                             {withCRL(evidence(byVCEK, vcek), pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good})), "", attest.CodeMalformed},
		"too large":                       {withCRL(evidence(byVCEK, vcek), make([]byte, maxCRL+1)), "", attest.CodeMalformed},
		"too many":                        {withCRL(evidence(byVCEK, vcek), slices.Repeat([][]byte{good}, maxCRLs+1)...), "", attest.CodeMalformed},
		"as many as may be":               {withCRL(evidence(byVCEK, vcek), slices.Repeat([][]byte{good}, maxCRLs)...), attest.CRLGood, ""},
		"good, but the report is not its": {withCRL(evidence(byVCEK, v.vcek(func(l *leaf) { l.key = v.keys.Vlek.Public() })), good), "", attest.CodeNotGenuine},
	} {
		s := v.scheme(t)
		for range 2 {
			c, err := s.Verify(context.Background(), tc.ev, nil, milanAt)
			if tc.want != "" {
				if err == nil || code(t, err) != tc.want {
					t.Errorf("%s: got %v, want %s", name, err, tc.want)
				}
				continue
			}
			if err != nil || c.SEVSNP.CRL != tc.crl || (c.SEVSNP.CRLNextUpdate != nil) != (tc.crl == attest.CRLGood) {
				t.Errorf("%s: got %v, %+v, want %q", name, err, c.SEVSNP, tc.crl)
			}
		}
	}
}

// signingCRLs is a certificate that says it may sign revocation lists.
func signingCRLs(c *x509.Certificate) *x509.Certificate {
	out := *c
	out.KeyUsage |= x509.KeyUsageCRLSign
	return &out
}

// TestRevokedSaysWhich: E:revoked names the certificate and its serial number.
func TestRevokedSaysWhich(t *testing.T) {
	v := vendors[Turin]()
	_, err := v.scheme(t).Verify(context.Background(), withCRL(evidence(v.report(5, nil), v.vcek(nil)), v.crl(nil, v.root.ASK)), nil, milanAt)
	var e *attest.Error
	if !errors.As(err, &e) || !strings.Contains(e.Reason.Got, "SEV-Turin, serial 2") || e.Reason.Remedy == "" {
		t.Errorf("got %v", err)
	}
}

// TestRevocationInTime: what is remembered of a list does not outlive it, and the claim
// names the latest date among the current lists.
func TestRevocationInTime(t *testing.T) {
	v := vendors[Genoa]()
	s, next := v.scheme(t), milanAt.AddDate(0, 0, 3)
	short := v.crl(func(l *x509.RevocationList) { l.NextUpdate = next })
	ev := withCRL(evidence(v.report(3, nil), v.vcek(nil)), short)
	status := func(ev attest.Evidence, at time.Time) string {
		t.Helper()
		c, err := s.Verify(context.Background(), ev, nil, at)
		if err != nil {
			t.Fatal(err)
		}
		if c.SEVSNP.CRLNextUpdate != nil {
			return c.SEVSNP.CRL + " " + c.SEVSNP.CRLNextUpdate.UTC().Format(time.DateOnly)
		}
		return c.SEVSNP.CRL
	}
	for _, tc := range []struct {
		at   time.Time
		want string
	}{{milanAt, "good 2026-03-04"}, {next, "good 2026-03-04"}, {next.Add(time.Second), "stale"}, {milanAt, "good 2026-03-04"}, {milanAt.AddDate(0, -2, 0), "stale"}} {
		if got := status(ev, tc.at); got != tc.want {
			t.Errorf("at %s: got %q, want %q", tc.at, got, tc.want)
		}
	}
	long := v.crl(nil)
	for _, lists := range [][][]byte{{short, long}, {long, short}} {
		if got := status(withCRL(evidence(v.report(3, nil), v.vcek(nil)), lists...), milanAt); got != "good 2026-04-01" {
			t.Errorf("got %q", got)
		}
	}
}

func TestIsCRL(t *testing.T) {
	v := vendors[Milan]()
	if !IsCRL(v.crl(nil)) || IsCRL(v.vcek(nil)) || IsCRL(nil) {
		t.Error("a list of AMD's is not told from other things")
	}
	foreign := signingCRLs(v.root.ASK)
	if IsCRL(must(x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: milanAt, NextUpdate: milanAt.AddDate(0, 1, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS}, foreign, v.keys.Ask))) {
		t.Error("a list of another issuer is AMD's")
	}
}

// FuzzCRL: whatever is given as a list, a chain is never called good by it unless the ARK
// signed it.
func FuzzCRL(f *testing.F) {
	v := vendors[Milan]()
	good, revoked := v.crl(nil), v.crl(nil, v.root.ASK)
	f.Add(good)
	f.Add(revoked)
	f.Add(v.vcek(nil))
	s := v.scheme(f)
	report, vcek := v.report(3, nil), v.vcek(nil)
	f.Fuzz(func(t *testing.T, list []byte) {
		if len(list) == 0 {
			return
		}
		c, err := s.Verify(context.Background(), withCRL(evidence(report, vcek), list), nil, milanAt)
		if err == nil && c.SEVSNP.CRL != "" {
			parsed, err := x509.ParseRevocationList(list)
			if err != nil || parsed.CheckSignatureFrom(v.root.ARK) != nil || !bytes.Equal(parsed.RawIssuer, v.root.ARK.RawSubject) {
				t.Errorf("%x is called %s", list, c.SEVSNP.CRL)
			}
		}
	})
}
