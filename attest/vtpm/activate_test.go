package vtpm

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
	"errors"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"

	mesh "github.com/attestmesh/meshnode/attest"
)

// forger makes endorsements without a TPM: what somebody with software alone can show.
type forger struct {
	t        testing.TB
	root     *x509.Certificate
	rootKey  *ecdsa.PrivateKey
	middle   *x509.Certificate // an intermediate under root
	midKey   *ecdsa.PrivateKey
	ek       *rsa.PrivateKey
	ak       *ecdsa.PrivateKey
	template *x509.Certificate // of the EK's certificate
	area     tpm2.Public
	created  tpm2.CreationData
	attested tpm2.AttestationData
	parent   *x509.Certificate
	signer   *ecdsa.PrivateKey // of the EK's certificate
	// edits of the structures' bytes, after what is signed over them
	tail map[string][]byte
}

// forgedEK is one key for all forgers: it takes long to make.
var forgedEK = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

var certifiedAt = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func newForger(t testing.TB) *forger {
	t.Helper()
	f := &forger{t: t, tail: map[string][]byte{}}
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	f.rootKey, f.midKey, f.ak = key(), key(), key()
	f.ek = forgedEK()
	ca := func(name string) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: certifiedAt.AddDate(-1, 0, 0),
			NotAfter: certifiedAt.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	}
	f.root = f.issue(ca("root"), ca("root"), &f.rootKey.PublicKey, f.rootKey)
	f.middle = f.issue(ca("middle"), f.root, &f.midKey.PublicKey, f.rootKey)
	f.parent, f.signer = f.root, f.rootKey
	f.template = &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: certifiedAt.AddDate(0, -1, 0), NotAfter: certifiedAt.AddDate(0, 1, 0),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageKeyEncipherment, UnknownExtKeyUsage: []asn1.ObjectIdentifier{ekUsage},
		ExtraExtensions: []pkix.Extension{{Id: subjectAltName, Critical: true, Value: directoryName(t)}}}
	f.area = client.AKTemplateECC()
	point, err := f.ak.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		t.Fatal(err)
	}
	f.area.ECCParameters.Point.XRaw, f.area.ECCParameters.Point.YRaw = point[1:33], point[33:]
	digest := tpm2.HashValue{Alg: tpm2.AlgSHA256, Value: make([]byte, 32)}
	f.created = tpm2.CreationData{PCRSelection: tpm2.PCRSelection{Hash: tpm2.AlgSHA256}, ParentNameAlg: tpm2.AlgSHA256,
		ParentName: tpm2.Name{Digest: &digest}, ParentQualifiedName: tpm2.Name{Digest: &digest}}
	f.attested = tpm2.AttestationData{Magic: 0xff544347, Type: tpm2.TagAttestCreation, QualifiedSigner: tpm2.Name{Digest: &digest},
		AttestedCreationInfo: &tpm2.CreationInfo{}}
	return f
}

// directoryName is a subjectAltName as TPMs have it, which crypto/x509 does not read.
func directoryName(t testing.TB) []byte {
	t.Helper()
	name, err := asn1.Marshal(pkix.RDNSequence{{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, 1}, Value: "id:00001014"}}})
	if err != nil {
		t.Fatal(err)
	}
	inner, err := asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: name})
	if err != nil {
		t.Fatal(err)
	}
	out, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: inner})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (f *forger) issue(template, parent *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	f.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		f.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		f.t.Fatal(err)
	}
	return cert
}

// endorsement signs and encodes what the forger was set to.
func (f *forger) endorsement() *Endorsement {
	f.t.Helper()
	must := func(raw []byte, err error) []byte {
		f.t.Helper()
		if err != nil {
			f.t.Fatal(err)
		}
		return raw
	}
	e := &Endorsement{EKCertificate: f.issue(f.template, f.parent, &f.ek.PublicKey, f.signer).Raw, Intermediates: [][]byte{f.middle.Raw}}
	e.AKPublic = must(f.area.Encode())
	e.CreateData = append(must(f.created.EncodeCreationData()), f.tail["data"]...)
	if info := f.attested.AttestedCreationInfo; info != nil {
		if info.Name.Digest == nil {
			name, err := f.area.Name()
			if err != nil {
				f.t.Fatal(err)
			}
			info.Name = name
		}
		if info.OpaqueDigest == nil {
			h, err := f.area.NameAlg.Hash()
			if err != nil {
				f.t.Fatal(err)
			}
			w := h.New()
			w.Write(e.CreateData)
			info.OpaqueDigest = w.Sum(nil)
		}
	}
	e.CreateAttestation = append(must(f.attested.Encode()), f.tail["attestation"]...)
	sum := sha256.Sum256(e.CreateAttestation)
	r, s, err := ecdsa.Sign(rand.Reader, f.ak, sum[:])
	if err != nil {
		f.t.Fatal(err)
	}
	e.CreateSignature = append(must(tpm2.Signature{Alg: tpm2.AlgECDSA, ECC: &tpm2.SignatureECC{HashAlg: tpm2.AlgSHA256, R: r, S: s}}.Encode()), f.tail["signature"]...)
	e.AKPublic = append(e.AKPublic, f.tail["public"]...)
	return e
}

// What the forger makes unedited is challenged: anything else would be refused for what the
// forger gets wrong. Only the TPM could answer.
func TestChallengeIsMadeForWhatASoftwareKeyShows(t *testing.T) {
	f := newForger(t)
	e := f.endorsement()
	ca := NewAttestationCA([]*x509.Certificate{f.root})
	c, p, err := ca.Challenge(e, certifiedAt)
	if err != nil {
		t.Fatal(err)
	}
	ak, _ := keyDigest(&f.ak.PublicKey)
	ek, _ := keyDigest(&f.ek.PublicKey)
	if p.AKDigest != ak || p.EKDigest != ek || len(c.Credential) == 0 || len(c.Secret) != 256 {
		t.Errorf("got %+v and a secret of %d bytes, want AK %s, EK %s, 256 bytes", p, len(c.Secret), ak, ek)
	}
	if again, _, err := ca.Challenge(e, certifiedAt); err != nil || bytes.Equal(again.Credential, c.Credential) {
		t.Errorf("two challenges are the same, or %v", err)
	}
	f.parent, f.signer = f.middle, f.midKey
	if _, _, err := ca.Challenge(f.endorsement(), certifiedAt); err != nil {
		t.Errorf("through an intermediate: %v", err)
	}
}

// Each check of the CA, with an endorsement that fails it alone.
func TestChallengeRefuses(t *testing.T) {
	flags := func(set, clear tpm2.KeyProp) func(*forger, *AttestationCA, *time.Time) {
		return func(f *forger, _ *AttestationCA, _ *time.Time) { f.area.Attributes = f.area.Attributes&^clear | set }
	}
	usage := func(u x509.KeyUsage) func(*forger, *AttestationCA, *time.Time) {
		return func(f *forger, _ *AttestationCA, _ *time.Time) { f.template.KeyUsage = u }
	}
	tail := func(part string) func(*forger, *AttestationCA, *time.Time) {
		return func(f *forger, _ *AttestationCA, _ *time.Time) { f.tail[part] = []byte{0} }
	}
	for name, tc := range map[string]struct {
		edit func(*forger, *AttestationCA, *time.Time)
		code mesh.Code
		says string
	}{
		"no roots":           {func(_ *forger, ca *AttestationCA, _ *time.Time) { ca.roots = nil }, mesh.CodeNoEndorsement, "no roots"},
		"no time":            {func(_ *forger, _ *AttestationCA, at *time.Time) { *at = time.Time{} }, mesh.CodeNoEndorsement, "no time"},
		"another root":       {func(f *forger, ca *AttestationCA, _ *time.Time) { ca.roots = []*x509.Certificate{newForger(f.t).root} }, mesh.CodeNoEndorsement, "unknown authority"},
		"expired":            {func(_ *forger, _ *AttestationCA, at *time.Time) { *at = at.AddDate(0, 2, 0) }, mesh.CodeNoEndorsement, "expired"},
		"not yet valid":      {func(_ *forger, _ *AttestationCA, at *time.Time) { *at = at.AddDate(0, -2, 0) }, mesh.CodeNoEndorsement, "not yet valid"},
		"a CA's":             {func(f *forger, _ *AttestationCA, _ *time.Time) { f.template.IsCA = true }, mesh.CodeNoEndorsement, "CA: true"},
		"no usage":           {usage(0), mesh.CodeNoEndorsement, "key usage"},
		"signs":              {usage(x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature), mesh.CodeNoEndorsement, "key usage"},
		"signs certificates": {usage(x509.KeyUsageKeyEncipherment | x509.KeyUsageCertSign), mesh.CodeNoEndorsement, "key usage"},
		"a server's": {func(f *forger, _ *AttestationCA, _ *time.Time) {
			f.template.UnknownExtKeyUsage, f.template.ExtKeyUsage = nil, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}, mesh.CodeNoEndorsement, "tcg-kp-EKCertificate"},
		"another purpose": {func(f *forger, _ *AttestationCA, _ *time.Time) {
			f.template.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 3}}
		}, mesh.CodeNoEndorsement, "tcg-kp-EKCertificate"},
		"another critical extension": {func(f *forger, _ *AttestationCA, _ *time.Time) {
			f.template.ExtraExtensions[0].Id = asn1.ObjectIdentifier{1, 2, 3}
		}, mesh.CodeNoEndorsement, "unhandled critical"},

		"not restricted":       {flags(0, tpm2.FlagRestricted), mesh.CodeNotGenuine, "attributes"},
		"does not sign":        {flags(0, tpm2.FlagSign), mesh.CodeNotGenuine, "attributes"},
		"decrypts too":         {flags(tpm2.FlagDecrypt, 0), mesh.CodeNotGenuine, "attributes"},
		"may leave its TPM":    {flags(0, tpm2.FlagFixedTPM), mesh.CodeNotGenuine, "attributes"},
		"may leave its parent": {flags(0, tpm2.FlagFixedParent), mesh.CodeNotGenuine, "attributes"},
		"was imported":         {flags(0, tpm2.FlagSensitiveDataOrigin), mesh.CodeNotGenuine, "attributes"},
		"named by SHA-1":       {func(f *forger, _ *AttestationCA, _ *time.Time) { f.area.NameAlg = tpm2.AlgSHA1 }, mesh.CodeNotGenuine, "name algorithm"},
		"public area and more": {tail("public"), mesh.CodeNotGenuine, "public area is not in its one encoding"},
		"data and more":        {tail("data"), mesh.CodeNotGenuine, "creation data is not in its one encoding"},
		"attestation and more": {tail("attestation"), mesh.CodeNotGenuine, "creation attestation is not in its one encoding"},
		"signature and more":   {tail("signature"), mesh.CodeNotGenuine, "signature is not in its one encoding"},
		"not of a TPM":         {func(f *forger, _ *AttestationCA, _ *time.Time) { f.attested.Magic = 0 }, mesh.CodeNotGenuine, "incorrect magic value"},
		"another creation": {func(f *forger, _ *AttestationCA, _ *time.Time) {
			f.attested.AttestedCreationInfo.OpaqueDigest = make([]byte, 32)
		}, mesh.CodeNotGenuine, "different public key"},
		"another key": {func(f *forger, _ *AttestationCA, _ *time.Time) {
			f.attested.AttestedCreationInfo.Name, _ = client.AKTemplateECC().Name()
		}, mesh.CodeNotGenuine, "different key"},
		"not a creation": {func(f *forger, _ *AttestationCA, _ *time.Time) {
			digest := tpm2.HashValue{Alg: tpm2.AlgSHA256, Value: make([]byte, 32)}
			f.attested.Type, f.attested.AttestedCreationInfo = tpm2.TagAttestCertify, nil
			f.attested.AttestedCertifyInfo = &tpm2.CertifyInfo{Name: tpm2.Name{Digest: &digest}, QualifiedName: tpm2.Name{Digest: &digest}}
		}, mesh.CodeNotGenuine, "creation"},
	} {
		f, at := newForger(t), certifiedAt
		ca := NewAttestationCA([]*x509.Certificate{f.root})
		tc.edit(f, ca, &at)
		refusedWith(t, name, ca, f.endorsement(), at, tc.code, tc.says)
	}

	f := newForger(t)
	ca := NewAttestationCA([]*x509.Certificate{f.root})
	for name, tc := range map[string]struct {
		edit func(*Endorsement)
		code mesh.Code
		says string
	}{
		"no certificate":         {func(e *Endorsement) { e.EKCertificate = nil }, mesh.CodeMalformed, "certificate of 0 bytes"},
		"a long certificate":     {func(e *Endorsement) { e.EKCertificate = make([]byte, maxCertificate+1) }, mesh.CodeMalformed, "certificate of 8193 bytes"},
		"no intermediate":        {func(e *Endorsement) { e.Intermediates[0] = nil }, mesh.CodeMalformed, "certificate of 0 bytes"},
		"too many intermediates": {func(e *Endorsement) { e.Intermediates = slices.Repeat(e.Intermediates, maxEKChain+1) }, mesh.CodeMalformed, "9 intermediate"},
		"no public area":         {func(e *Endorsement) { e.AKPublic = nil }, mesh.CodeMalformed, "structure of 0 bytes"},
		"no creation data":       {func(e *Endorsement) { e.CreateData = nil }, mesh.CodeMalformed, "structure of 0 bytes"},
		"no attestation":         {func(e *Endorsement) { e.CreateAttestation = nil }, mesh.CodeMalformed, "structure of 0 bytes"},
		"no signature":           {func(e *Endorsement) { e.CreateSignature = nil }, mesh.CodeMalformed, "structure of 0 bytes"},
		"a long signature":       {func(e *Endorsement) { e.CreateSignature = make([]byte, maxStructure+1) }, mesh.CodeMalformed, "structure of 2049 bytes"},
		"no certificate at all":  {func(e *Endorsement) { e.EKCertificate = []byte{1} }, mesh.CodeNoEndorsement, "x509"},
		"a broken intermediate":  {func(e *Endorsement) { e.Intermediates[0] = []byte{1} }, mesh.CodeNoEndorsement, "intermediate certificate 0"},
		"another's signature":    {func(e *Endorsement) { e.CreateSignature = newForger(t).endorsement().CreateSignature }, mesh.CodeNotGenuine, "verify"},
		"another's key":          {func(e *Endorsement) { e.AKPublic = newForger(t).endorsement().AKPublic }, mesh.CodeNotGenuine, "different key"},
	} {
		e := f.endorsement()
		tc.edit(e)
		refusedWith(t, name, ca, e, certifiedAt, tc.code, tc.says)
	}
}

func refusedWith(t *testing.T, name string, ca *AttestationCA, e *Endorsement, at time.Time, code mesh.Code, says string) {
	t.Helper()
	c, p, err := ca.Challenge(e, at)
	var refused *mesh.Error
	if c != nil || p != nil || !errors.As(err, &refused) || refused.Reason.Code != code || !strings.Contains(err.Error(), says) {
		t.Errorf("%s: got %v, want %s saying %q", name, err, code, says)
	}
}

// A flipped bit anywhere is refused, or is in a certificate that nothing was decided by.
func TestChallengeRefusesEveryFlip(t *testing.T) {
	f := newForger(t)
	e := f.endorsement()
	ca := NewAttestationCA([]*x509.Certificate{f.root})
	for name, part := range map[string][]byte{"certificate": e.EKCertificate, "public area": e.AKPublic, "data": e.CreateData, "attestation": e.CreateAttestation, "signature": e.CreateSignature} {
		for bit := 0; bit < 8*len(part); bit += flipStep {
			part[bit/8] ^= 1 << (bit % 8)
			if _, _, err := ca.Challenge(e, certifiedAt); err == nil {
				t.Errorf("%s: bit %d flipped and challenged", name, bit)
			}
			part[bit/8] ^= 1 << (bit % 8)
		}
		for n := range part {
			if n%7 != 0 {
				continue
			}
			cut := *e
			for _, field := range []*[]byte{&cut.EKCertificate, &cut.AKPublic, &cut.CreateData, &cut.CreateAttestation, &cut.CreateSignature} {
				if bytes.Equal(*field, part) {
					*field = part[:n]
				}
			}
			if _, _, err := ca.Challenge(&cut, certifiedAt); err == nil {
				t.Errorf("%s: cut to %d bytes and challenged", name, n)
			}
		}
	}
}

func TestActivationDecodersAreStrict(t *testing.T) {
	f := newForger(t)
	e := f.endorsement()
	raw, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := DecodeEndorsement(raw); err != nil || !bytes.Equal(back.CreateSignature, e.CreateSignature) {
		t.Errorf("got %+v, %v", back, err)
	}
	if _, err := DecodeEndorsement(append(bytes.Clone(raw), 0)); err == nil {
		t.Error("a trailing byte was taken")
	}
	wide := append([]byte{0x98, 6}, raw[1:]...) // the array's length in two bytes
	if _, err := DecodeEndorsement(wide); err == nil {
		t.Error("a second encoding was taken")
	}
	if _, err := DecodeEndorsement(make([]byte, MaxEndorsement+1)); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("too long: got %v", err)
	}
	if _, err := (&Endorsement{}).Encode(); err == nil {
		t.Error("an empty endorsement was encoded")
	}
	c := &Challenge{Credential: []byte{1}, Secret: []byte{2}}
	if raw, err = c.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeChallenge(raw); err != nil {
		t.Error(err)
	}
	if _, err := DecodeChallenge(append([]byte{0x98, 2}, raw[1:]...)); err == nil {
		t.Error("a second encoding was taken")
	}
	for _, c := range []*Challenge{{Credential: make([]byte, maxStructure+1), Secret: []byte{2}}, {Credential: []byte{1}, Secret: make([]byte, maxStructure+1)}} {
		if _, err := c.Encode(); err == nil {
			t.Error("too long a structure was encoded")
		}
	}
	if _, err := DecodeChallenge(append(raw, 0)); err == nil {
		t.Error("a trailing byte was taken")
	}
	if _, err := DecodeChallenge(make([]byte, MaxChallenge+1)); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("too long: got %v", err)
	}
	if _, err := (&Challenge{Credential: []byte{1}}).Encode(); err == nil {
		t.Error("half a challenge was encoded")
	}
	large := &Endorsement{EKCertificate: make([]byte, maxCertificate), AKPublic: make([]byte, maxStructure), CreateData: make([]byte, maxStructure),
		CreateAttestation: make([]byte, maxStructure), CreateSignature: make([]byte, maxStructure)}
	for range maxEKChain {
		large.Intermediates = append(large.Intermediates, make([]byte, maxCertificate))
	}
	if raw, err = large.Encode(); err != nil {
		t.Fatal(err)
	}
	if _, err := DecodeEndorsement(raw); err != nil {
		t.Errorf("the largest: %v", err)
	}
}

func FuzzActivation(f *testing.F) {
	forged := newForger(f)
	raw, err := forged.endorsement().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	ca := NewAttestationCA([]*x509.Certificate{forged.root})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := DecodeChallenge(raw); err == nil {
			if back, err := c.Encode(); err != nil || !bytes.Equal(back, raw) {
				t.Errorf("a challenge with two encodings: %x, %v", back, err)
			}
		}
		e, err := DecodeEndorsement(raw)
		if err != nil {
			return
		}
		if back, err := e.Encode(); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("an endorsement with two encodings: %v", err)
		}
		c, p, err := ca.Challenge(e, certifiedAt)
		var refused *mesh.Error
		if err != nil && (c != nil || p != nil || !errors.As(err, &refused)) {
			t.Errorf("got %v %v with %v", c, p, err)
		}
	})
}
