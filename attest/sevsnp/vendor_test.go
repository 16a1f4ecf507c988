package sevsnp

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"slices"
	"sync"
	"testing"
	"time"

	snptest "github.com/google/go-sev-guest/testing"

	"github.com/attestmesh/meshnode/attest"
)

// vendor is a fake AMD of one product, with the library's public test keys, whose every
// certificate and list a test can spoil.
type vendor struct {
	product string
	keys    *snptest.AmdKeys
	root    Root
}

var vendors = map[string]func() *vendor{}

func init() {
	for _, product := range []string{Milan, Genoa, Turin} {
		vendors[product] = sync.OnceValue(func() *vendor { return newVendor(product) })
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func amdName(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{"Advanced Micro Devices"}, OrganizationalUnit: []string{"Engineering"},
		Country: []string{"US"}, Locality: []string{"Santa Clara"}, Province: []string{"CA"}}
}

func newVendor(product string) *vendor {
	v := &vendor{product: product, keys: snptest.DefaultAmdKeys()}
	v.root.ARK = v.ca("ARK-"+product, 1, v.keys.Ark.Public(), nil)
	v.root.ASK = v.ca("SEV-"+product, 2, v.keys.Ask.Public(), v.root.ARK)
	v.root.ASVK = v.ca("SEV-VLEK-"+product, 3, v.keys.Asvk.Public(), v.root.ARK)
	return v
}

func (v *vendor) ca(cn string, serial int64, key crypto.PublicKey, parent *x509.Certificate) *x509.Certificate {
	service := "vcek"
	if serial == 3 {
		service = "vlek"
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: amdName(cn), NotBefore: milanAt.AddDate(-3, 0, 0), NotAfter: milanAt.AddDate(20, 0, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		CRLDistributionPoints: []string{"https://kdsintf.amd.com/" + service + "/v1/" + v.product + "/crl"}}
	if parent == nil {
		parent = c
		c.KeyUsage |= x509.KeyUsageCRLSign
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, parent, key, v.keys.Ark))))
}

func (v *vendor) scheme(t testing.TB) *Scheme {
	t.Helper()
	s, err := WithRoots(Roots{v.product: v.root})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func extension(value []byte, arc ...int) pkix.Extension {
	return pkix.Extension{Id: append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, arc...), Value: value}
}

func integer(n int, arc ...int) pkix.Extension { return extension(must(asn1.Marshal(n)), arc...) }

func ia5(s string) []byte { return must(asn1.MarshalWithParams(s, "ia5")) }

// leaf is the certificate of an endorsement key before it is signed.
type leaf struct {
	x509.Certificate
	parent *x509.Certificate
	key    crypto.PublicKey
	signer crypto.Signer
}

// drop removes an extension of AMD's arc.
func (l *leaf) drop(arc ...int) {
	id := extension(nil, arc...).Id
	l.ExtraExtensions = slices.DeleteFunc(l.ExtraExtensions, func(e pkix.Extension) bool { return e.Id.Equal(id) })
}

// set replaces or adds an extension.
func (l *leaf) set(value []byte, arc ...int) {
	l.drop(arc...)
	l.ExtraExtensions = append(l.ExtraExtensions, extension(value, arc...))
}

// levels are the patch levels of the reports that fakeReport makes, by extension.
func levels(product string) []pkix.Extension {
	if product == Turin {
		return []pkix.Extension{integer(1, 3, 9), integer(2, 3, 1), integer(3, 3, 2), integer(4, 3, 3), integer(0, 3, 5), integer(0, 3, 6), integer(0, 3, 7), integer(200, 3, 8)}
	}
	return []pkix.Extension{integer(2, 3, 1), integer(3, 3, 2), integer(0, 3, 4), integer(0, 3, 5), integer(0, 3, 6), integer(0, 3, 7), integer(4, 3, 3), integer(200, 3, 8)}
}

func (v *vendor) chip() []byte {
	chip := make([]byte, 64)
	for i := range chip {
		if v.product != Turin || i < 8 {
			chip[i] = byte(i + 1)
		}
	}
	return chip
}

// vcek certifies the VCEK of v.chip; edit may be nil.
func (v *vendor) vcek(edit func(*leaf)) []byte {
	id := v.chip()
	name := v.product + "-B0"
	if v.product == Turin {
		id, name = id[:8], v.product
	}
	l := v.leaf("SEV-VCEK", v.root.ASK, v.keys.Vcek.Public(), v.keys.Ask)
	l.ExtraExtensions = append(append([]pkix.Extension{integer(0, 1), extension(ia5(name), 2)}, levels(v.product)...), extension(id, 4))
	return l.sign(edit)
}

func (v *vendor) vlek(edit func(*leaf)) []byte {
	l := v.leaf("SEV-VLEK", v.root.ASVK, v.keys.Vlek.Public(), v.keys.Asvk)
	l.ExtraExtensions = append(append([]pkix.Extension{integer(0, 1), extension(ia5(v.product), 2)}, levels(v.product)...), extension(ia5("CN=cloud"), 5))
	return l.sign(edit)
}

func (v *vendor) leaf(cn string, parent *x509.Certificate, key crypto.PublicKey, signer crypto.Signer) *leaf {
	return &leaf{x509.Certificate{SerialNumber: big.NewInt(0), Subject: amdName(cn), NotBefore: milanAt.AddDate(-1, 0, 0), NotAfter: milanAt.AddDate(6, 0, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS}, parent, key, signer}
}

func (l *leaf) sign(edit func(*leaf)) []byte {
	if edit != nil {
		edit(l)
	}
	return must(x509.CreateCertificate(rand.Reader, &l.Certificate, l.parent, l.key, l.signer))
}

// crl is a revocation list of the ARK's; edit may be nil.
func (v *vendor) crl(edit func(*x509.RevocationList), revoked ...*x509.Certificate) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: milanAt.AddDate(0, -1, 0), NextUpdate: milanAt.AddDate(0, 1, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS}
	for _, cert := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: cert.SerialNumber, RevocationTime: milanAt.AddDate(0, -2, 0)})
	}
	if edit != nil {
		edit(list)
	}
	return must(x509.CreateRevocationList(rand.Reader, list, v.root.ARK, v.keys.Ark))
}

// report makes a report in which each byte of each field that a version has is set, signed
// with the VCEK, or with the VLEK if edit makes it say so.
func (v *vendor) report(version byte, edit func([]byte)) []byte {
	raw := make([]byte, ReportSize)
	for i := range raw[:offReserved3] {
		raw[i] = byte(i*7 + 1)
	}
	copy(raw, []byte{version, 0, 0, 0})
	copy(raw[offPolicy:], []byte{51, 1, 1<<1 | 1<<0, 0, 0, 0, 0, 0})
	copy(raw[offVMPL:], []byte{2, 0, 0, 0, 1, 0, 0, 0})
	tcb := []byte{2, 3, 0, 0, 0, 0, 4, 200}
	if v.product == Turin {
		tcb = []byte{1, 2, 3, 4, 0, 0, 0, 200}
	}
	copy(raw[offReportedTCB:], tcb)
	copy(raw[offKeyInfo:], make([]byte, 8))
	clear(raw[offCPUID:offChipID])
	if version >= 3 {
		copy(raw[offCPUID:], map[string][]byte{Milan: {0x19, 0x01, 1}, Genoa: {0x19, 0x11, 2}, Turin: {0x1a, 0x02, 3}}[v.product])
	}
	copy(raw[offChipID:], v.chip())
	raw[offCurrent+3], raw[offCommitted+3] = 0, 0
	if version < 5 {
		clear(raw[offLaunchMit:offReserved3])
	}
	if edit != nil {
		edit(raw)
	}
	key := v.keys.Vcek
	if raw[offKeyInfo]>>2&7 == 1 {
		key = v.keys.Vlek
	}
	sign(raw, key)
	return raw
}

func sign(raw []byte, key *ecdsa.PrivateKey) {
	digest := sha512.Sum384(raw[:offSignature])
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		panic(err)
	}
	for i, x := range []*big.Int{r, s} {
		b := x.FillBytes(make([]byte, sizeScalar))
		slices.Reverse(b)
		copy(raw[offSignature+i*sizeScalar:], b)
	}
}

// verdict is the code with which s refuses, "" if it does not.
func verdict(t *testing.T, s *Scheme, ev attest.Evidence, at time.Time) attest.Code {
	t.Helper()
	c, err := s.Verify(context.Background(), ev, nil, at)
	if err == nil {
		if !c.Genuine {
			t.Error("accepted, not genuine")
		}
		return ""
	}
	if c.Genuine {
		t.Error("refused, yet genuine")
	}
	return code(t, err)
}

func withCRL(ev attest.Evidence, lists ...[]byte) attest.Evidence {
	ev.Items = slices.Clone(ev.Items)
	for _, l := range lists {
		ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCRL, Data: l})
	}
	return ev
}

// impostor certifies the key in the ASK's name, with a key that is not the ASK's.
func (v *vendor) impostor(l *leaf) {
	ask := *v.root.ASK
	ask.PublicKey = v.keys.Asvk.Public()
	l.parent, l.signer = &ask, v.keys.Asvk
}
