package tdx

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// authority makes chains of Intel's shape, and others.
type authority struct {
	t          testing.TB
	at         time.Time
	extension  pkix.Extension // the SGX extension of a genuine PCK certificate
	root       *x509.Certificate
	rootKey    *ecdsa.PrivateKey
	intermed   *x509.Certificate
	intermedKy *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	q, err := parseQuote(rawQuote())
	if err != nil {
		t.Fatal(err)
	}
	genuine, err := parseChain(q.chain, nil)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, at: sampleAt}
	for _, e := range genuine[0].Extensions {
		if e.Id.Equal(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}) {
			a.extension = e
		}
	}
	a.rootKey, a.intermedKy = a.p256(), a.p256()
	a.root = a.issue(nil, a.rootKey, &a.rootKey.PublicKey, "Intel SGX Root CA", func(c *x509.Certificate) { c.IsCA = true })
	a.intermed = a.issue(a.root, a.rootKey, &a.intermedKy.PublicKey, platformCA, func(c *x509.Certificate) { c.IsCA = true })
	return a
}

func (a *authority) p256() *ecdsa.PrivateKey { return a.key(elliptic.P256()) }

func (a *authority) key(c elliptic.Curve) *ecdsa.PrivateKey {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	return key
}

// issue returns a certificate; without a parent one that signs itself.
func (a *authority) issue(parent *x509.Certificate, signer crypto.Signer, key crypto.PublicKey, name string, edit func(*x509.Certificate)) *x509.Certificate {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: []string{"Intel Corporation"}},
		NotBefore: a.at.AddDate(-1, 0, 0), NotAfter: a.at.AddDate(1, 0, 0), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, SubjectKeyId: []byte(name), CRLDistributionPoints: []string{"https://example.org"}}
	if edit != nil {
		edit(c)
	}
	if c.IsCA {
		c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return out
}

// pck is a certificate of Intel's shape but for one thing.
func (a *authority) pck(edit func(*x509.Certificate)) *x509.Certificate {
	key := a.p256()
	return a.issue(a.intermed, a.intermedKy, &key.PublicKey, pckName, func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{a.extension}
		if edit != nil {
			edit(c)
		}
	})
}

func texts(certs ...*x509.Certificate) (out []byte) {
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// TestPCKChains: a chain of Intel's shape is believed, and none that differs in one thing.
func TestPCKChains(t *testing.T) {
	a := newAuthority(t)
	s, err := WithRoot(a.root)
	if err != nil {
		t.Fatal(err)
	}
	stranger, strangerCA := newAuthority(t), a.p256()
	processor := a.issue(a.root, a.rootKey, &strangerCA.PublicKey, processorCA, func(c *x509.Certificate) { c.IsCA = true })
	ofProcessor := a.issue(processor, strangerCA, &a.p256().PublicKey, pckName, func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{a.extension} })
	good := a.pck(nil)
	for name, chain := range map[string][]byte{
		"Intel's":          texts(good, a.intermed, a.root),
		"with a NUL":       append(texts(good, a.intermed, a.root), 0),
		"with other lines": bytes.ReplaceAll(texts(good, a.intermed, a.root), []byte("\n"), []byte("\r\n")),
		"of a processor":   texts(ofProcessor, processor, a.root),
	} {
		if _, err := s.pck(chain, a.at); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}

	otherCA := a.issue(a.root, a.rootKey, &a.intermedKy.PublicKey, "Intel SGX Other CA", func(c *x509.Certificate) { c.IsCA = true })
	noCA := a.issue(a.root, a.rootKey, &a.intermedKy.PublicKey, platformCA, nil)
	p384 := a.key(elliptic.P384())
	ca384 := a.issue(a.root, a.rootKey, &p384.PublicKey, platformCA, func(c *x509.Certificate) { c.IsCA = true })
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	under := func(ca *x509.Certificate, signer crypto.Signer, key crypto.PublicKey) *x509.Certificate {
		return a.issue(ca, signer, key, pckName, func(c *x509.Certificate) { c.ExtraExtensions = []pkix.Extension{a.extension} })
	}
	renewed := a.issue(nil, a.rootKey, &a.rootKey.PublicKey, "Intel SGX Root CA", func(c *x509.Certificate) { c.IsCA = true })
	for name, chain := range map[string][]byte{
		"nothing":                    nil,
		"two certificates":           texts(good, a.intermed),
		"four certificates":          texts(good, a.intermed, a.root, a.root),
		"in another order":           texts(a.intermed, good, a.root),
		"a stranger's root":          texts(good, a.intermed, stranger.root),
		"the root certified anew":    texts(good, a.intermed, renewed),
		"a stranger's chain":         texts(stranger.pck(nil), stranger.intermed, stranger.root),
		"a stranger's PCK":           texts(stranger.pck(nil), a.intermed, a.root),
		"a stranger under our root":  texts(stranger.pck(nil), stranger.intermed, a.root),
		"another subject":            texts(a.pck(func(c *x509.Certificate) { c.Subject.CommonName = "Intel SGX TCB Signing" }), a.intermed, a.root),
		"another issuer":             texts(under(otherCA, a.intermedKy, &a.p256().PublicKey), otherCA, a.root),
		"an issuer that is no CA":    texts(under(noCA, a.intermedKy, &a.p256().PublicKey), noCA, a.root),
		"a PCK that is a CA":         texts(a.pck(func(c *x509.Certificate) { c.IsCA = true }), a.intermed, a.root),
		"signed with SHA-384":        texts(a.pck(func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA384 }), a.intermed, a.root),
		"a PCK of P-384":             texts(under(a.intermed, a.intermedKy, &p384.PublicKey), a.intermed, a.root),
		"a PCK of RSA":               texts(under(a.intermed, a.intermedKy, &rsaKey.PublicKey), a.intermed, a.root),
		"an issuer of P-384":         texts(under(ca384, p384, &a.p256().PublicKey), ca384, a.root),
		"an expired PCK":             texts(a.pck(func(c *x509.Certificate) { c.NotAfter = a.at.Add(-time.Second) }), a.intermed, a.root),
		"a PCK of tomorrow":          texts(a.pck(func(c *x509.Certificate) { c.NotBefore = a.at.Add(time.Second) }), a.intermed, a.root),
		"without SGX extensions":     texts(a.pck(func(c *x509.Certificate) { c.ExtraExtensions = nil }), a.intermed, a.root),
		"empty SGX extensions":       texts(a.pck(func(c *x509.Certificate) { c.ExtraExtensions[0].Value = []byte{0x30, 0} }), a.intermed, a.root),
		"text before it":             append([]byte("subject=PCK\n"), texts(good, a.intermed, a.root)...),
		"text between":               slices.Concat(texts(good), []byte("issuer\n"), texts(a.intermed, a.root)),
		"text behind":                append(texts(good, a.intermed, a.root), "more"...),
		"a key behind":               append(texts(good, a.intermed, a.root), "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n"...),
		"headers in a block":         slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"A": "b"}, Bytes: good.Raw}), texts(a.intermed, a.root)),
		"a block that is no DER":     slices.Concat(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no")}), texts(a.intermed, a.root)),
		"a block that is no base64":  slices.Concat([]byte("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"), texts(a.intermed, a.root)),
		"a block in a broken block":  slices.Concat([]byte("-----BEGIN CERTIFICATE-----\n"), texts(good, a.intermed, a.root)),
		"a beginning without an end": []byte("-----BEGIN CERTIFICATE-----\n"),
		"an end alone":               []byte("-----END CERTIFICATE-----\n"),
	} {
		if got, err := s.pck(chain, a.at); err == nil {
			t.Errorf("%s: believed: %v", name, got.leaf.Subject)
		}
	}
	for name, at := range map[string]time.Time{"before": a.at.AddDate(-2, 0, 0), "after": a.at.AddDate(2, 0, 0)} {
		if _, err := s.pck(texts(good, a.intermed, a.root), at); err == nil {
			t.Errorf("believed %s its time", name)
		}
	}
}

// TestSigningChains: who may sign TCB info.
func TestSigningChains(t *testing.T) {
	a := newAuthority(t)
	s, err := WithRoot(a.root)
	if err != nil {
		t.Fatal(err)
	}
	signer := func(name string, edit func(*x509.Certificate)) *x509.Certificate {
		return a.issue(a.root, a.rootKey, &a.p256().PublicKey, name, edit)
	}
	first, second := signer(tcbSignerCN, nil), signer(tcbSignerCN, nil)
	for name, tc := range map[string]struct {
		texts [][]byte
		want  int
	}{
		"with the root":    {[][]byte{texts(first, a.root)}, 1},
		"without it":       {[][]byte{texts(first)}, 1},
		"the root first":   {[][]byte{texts(a.root, first)}, 1},
		"the same twice":   {[][]byte{texts(first, a.root), texts(first)}, 1},
		"renewed":          {[][]byte{texts(first, a.root), texts(second, a.root)}, 2},
		"two in one chain": {[][]byte{texts(first, second, a.root)}, 2},
	} {
		if got, err := s.tcbSigners(tc.texts); err != nil || len(got) != tc.want {
			t.Errorf("%s: %d signers, %v", name, len(got), err)
		}
	}
	stranger := newAuthority(t)
	theirs := stranger.issue(stranger.root, stranger.rootKey, &a.p256().PublicKey, tcbSignerCN, nil)
	for name, text := range map[string][]byte{
		"the root alone":     texts(a.root),
		"a stranger's":       texts(theirs, stranger.root),
		"under our root":     texts(theirs, a.root),
		"another subject":    texts(signer(pckName, nil), a.root),
		"a CA":               texts(signer(tcbSignerCN, func(c *x509.Certificate) { c.IsCA = true }), a.root),
		"a PCK's CA besides": texts(first, a.intermed, a.root),
		"one and a stranger": texts(first, theirs, a.root),
		"nothing":            []byte("\n"),
		"noise":              []byte("noise"),
	} {
		if got, err := s.tcbSigners([][]byte{text}); err == nil {
			t.Errorf("%s: %d signers", name, len(got))
		}
	}
}

// signer returns what signs bodies as Intel does, and its certificate.
func (a *authority) signer(edit func(*x509.Certificate)) (func(body string) string, *x509.Certificate) {
	key := a.p256()
	sign := func(body string) string {
		digest := sha256.Sum256([]byte(body))
		r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
		if err != nil {
			a.t.Fatal(err)
		}
		return hex.EncodeToString(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}
	return sign, a.issue(a.root, a.rootKey, &key.PublicKey, tcbSignerCN, edit)
}

// TestSignedBody: what of a document's form is wrong, before and after its signature.
func TestSignedBody(t *testing.T) {
	a := newAuthority(t)
	sign, cert := a.signer(nil)
	signers := []*x509.Certificate{cert}
	const body = `{"id":"TDX","version":3}`
	document := func(body, signature string) []byte {
		return fmt.Appendf(nil, `{"tcbInfo":%s,"signature":%q}`, body, signature)
	}
	good := sign(body)
	for name, raw := range map[string][]byte{
		"as signed": document(body, good), "in upper case": document(body, strings.ToUpper(good)),
		"with blanks": document("{\"id\": \"TDX\",\n\t\"version\":3}", good),
	} {
		var info tcbInfo
		if err := signedBody(raw, "tcbInfo", signers, &info); err != nil || info.ID != "TDX" {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
	mistyped := `{"id":"TDX","version":"three"}`
	undated := `{"id":"TDX","issueDate":"tomorrow"}`
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"no JSON":            {[]byte("x"), "invalid character"},
		"a list":             {[]byte("[]"), "cannot unmarshal array"},
		"no body":            {[]byte(`{"signature":"` + good + `"}`), "does not hold"},
		"no signature":       {[]byte(`{"tcbInfo":` + body + `}`), "signature: unexpected end"},
		"a number for it":    {[]byte(`{"tcbInfo":` + body + `,"signature":1}`), "signature: json: cannot unmarshal number"},
		"not in hex":         {document(body, "zz"+good[2:]), "signature of 0 bytes"},
		"hex and more":       {document(body, good+"zz"), "signature of 64 bytes, want 64"},
		"short":              {document(body, good[2:]), "signature of 63 bytes"},
		"long":               {document(body, good+"00"), "signature of 65 bytes"},
		"another":            {document(body, sign("{}")), "does not hold"},
		"another body":       {document(`{"id":"TDX","version":4}`, good), "does not hold"},
		"reordered":          {document(`{"version":3,"id":"TDX"}`, good), "does not hold"},
		"mistyped":           {document(mistyped, sign(mistyped)), "cannot unmarshal string"},
		"undated":            {document(undated, sign(undated)), "tomorrow"},
		"under another name": {bytes.Replace(document(body, good), []byte("tcbInfo"), []byte("enclaveIdentity"), 1), "does not hold"},
		"zero":               {document(body, strings.Repeat("00", 64)), "does not hold"},
	} {
		if err := signedBody(tc.raw, "tcbInfo", signers, new(tcbInfo)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	if err := signedBody(document(body, good), "tcbInfo", nil, new(tcbInfo)); err == nil {
		t.Error("believed without a signer")
	}
}

// TestDecodeSigned: a document that cannot be read to its end is not believed as far as it
// can, and one with more levels than Intel publishes not at all.
func TestDecodeSigned(t *testing.T) {
	a := newAuthority(t)
	sign, cert := a.signer(nil)
	answer := func(name, body string) []byte {
		return fmt.Appendf(nil, `{%q:%s,"signature":%q}`, name, body, sign(body))
	}
	const info, qe = `{"id":"TDX","version":3`, `{"id":"TD_QE","version":2`
	many := strings.Repeat(`{},`, maxTCBLevels) + `{}`
	for name, tc := range map[string]struct{ info, qe, want string }{
		"good":                {info + "}", qe + "}", ""},
		"256 levels":          {info + `,"tcbLevels":[` + many[3:] + `]}`, qe + "}", ""},
		"undated info":        {info + `,"issueDate":"tomorrow"}`, qe + "}", "tcbInfo"},
		"undated identity":    {info + "}", qe + `,"issueDate":"tomorrow"}`, "enclaveIdentity"},
		"257 levels":          {info + `,"tcbLevels":[` + many + `]}`, qe + "}", "more levels"},
		"257 of the QE":       {info + "}", qe + `,"tcbLevels":[` + many + `]}`, "more levels"},
		"many modules":        {info + `,"tdxModuleIdentities":[` + many + `]}`, qe + "}", "more levels"},
		"info for identity":   {info + "}", info + "}", "want TDX 3 and TD_QE 2"},
		"identity for info":   {qe + "}", qe + "}", "want TDX 3 and TD_QE 2"},
		"another info's form": {`{"id":"TDX","version":2}`, qe + "}", "want TDX 3 and TD_QE 2"},
		"another QE's form":   {info + "}", `{"id":"TD_QE","version":3}`, "want TDX 3 and TD_QE 2"},
	} {
		_, _, err := decodeSigned(answer("tcbInfo", tc.info), answer("enclaveIdentity", tc.qe), []*x509.Certificate{cert})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestVerifyDocument: its signer must be Intel's, and have been valid when it signed.
func TestVerifyDocument(t *testing.T) {
	a := newAuthority(t)
	var issued time.Time
	sign, cert := a.signer(func(c *x509.Certificate) { issued = c.NotBefore.Add(time.Hour).UTC().Truncate(time.Second) })
	answer := func(at time.Time) []byte {
		body := fmt.Sprintf(`{"id":"TDX","version":3,"issueDate":%q,"nextUpdate":%q,"fmspc":"00806f050000","tcbEvaluationDataNumber":18}`,
			at.Format(time.RFC3339), at.Add(time.Hour).Format(time.RFC3339))
		return fmt.Appendf(nil, `{"tcbInfo":%s,"signature":%q}`, body, sign(body))
	}
	good, chain := answer(issued), texts(cert, a.root)
	if d, err := VerifyDocument(attest.TypeTDXTCBInfo, good, chain, a.root); err != nil || !d.IssueDate.Equal(issued) {
		t.Fatalf("%+v, %v", d, err)
	}
	if !SignedBy(attest.TypeTDXTCBInfo, good, chain) || SignedBy(attest.TypeTDXTCBInfo, good, nil) || SignedBy(attest.TypeTDXTCBInfo, good, texts(a.root)) {
		t.Error("signed by another, or not by its signer")
	}
	for name, tc := range map[string]struct {
		raw, chain []byte
		root       *x509.Certificate
		want       string
	}{
		"another signature": {bytes.Replace(good, []byte(`18}`), []byte(`19}`), 1), chain, a.root, "does not hold"},
		"before its signer": {answer(cert.NotBefore.Add(-time.Hour).UTC()), chain, a.root, "outside the validity"},
		"after its signer":  {answer(cert.NotAfter.Add(time.Hour).UTC()), chain, a.root, "outside the validity"},
		"no root":           {good, chain, nil, "no root"},
		"no chain":          {good, nil, a.root, "no TCB signing certificate"},
	} {
		if d, err := VerifyDocument(attest.TypeTDXTCBInfo, tc.raw, tc.chain, tc.root); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v, want %q", name, d, err, tc.want)
		}
	}
}

// TestParseChain: certificates in PEM and nothing else, and not more than there can be.
func TestParseChain(t *testing.T) {
	a := newAuthority(t)
	good := texts(a.intermed, a.root)
	nested := []byte{0x05, 0x00} // a sequence in a sequence, 2,000 deep (E6): more does not fit into a chain
	for len(nested) < maxChain/2 {
		nested = append(binary.BigEndian.AppendUint16([]byte{0x30, 0x82}, uint16(len(nested))), nested...)
	}
	if certs, err := parseChain(append(good, 0), a.root); err != nil || len(certs) != 2 || certs[1] != a.root {
		t.Fatalf("%d certificates, %v", len(certs), err)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"four":         {string(good) + string(good), "one too many, behind 3"},
		"no end":       {string(good[:len(good)/2]) + "\n", "behind 0 certificates"},
		"an end apart": {"-----BEGIN CERTIFICATE-----END CERTIFICATE-----", "not in PEM"},
		"headers":      {strings.Replace(string(good), "CERTIFICATE-----\n", "CERTIFICATE-----\nA: b\n\n", 1), "not in PEM"},
		"between":      {strings.Replace(string(good), "-----END CERTIFICATE-----\n", "-----END CERTIFICATE-----\nx\n", 1), "behind 1 certificates"},
		"within":       {strings.Replace(string(good), "-----END CERTIFICATE-----\n", "", 1), "behind 0 certificates"},
		"nested":       {string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: nested})), "certificate 1"},
		"no DER":       {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1"},
	} {
		if certs, err := parseChain([]byte(tc.text), a.root); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d certificates, %v, want %q", name, len(certs), err, tc.want)
		}
	}
}

func FuzzChain(f *testing.F) {
	q, err := parseQuote(rawQuote())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q.chain)
	s := scheme(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		certs, err := parseChain(raw, s.root)
		if err == nil && len(certs) > certificates {
			t.Errorf("%d certificates", len(certs))
		}
		if got, err := s.pck(raw, sampleAt); err == nil && !bytes.Contains(raw, []byte("BEGIN CERTIFICATE")) {
			t.Errorf("believed %v out of no certificate", got.leaf.Subject)
		}
	})
}
