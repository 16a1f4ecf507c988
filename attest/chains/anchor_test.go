package chains

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"
)

// issuer is a key that certifies.
type issuer struct {
	key  crypto.Signer
	cert *x509.Certificate
}

func (i issuer) issue(t *testing.T, name string, ca bool) issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return i.certify(t, name, ca, key)
}

func (i issuer) certify(t *testing.T, name string, ca bool, key crypto.Signer) issuer {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour), IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	parent, signer := i.cert, i.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{key, cert}
}

func TestAnchors(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	root := issuer{}.certify(t, "root", true, key)
	middle := root.issue(t, "middle", true)
	leaf := middle.issue(t, "leaf", false)
	namesake := issuer{}.issue(t, "root", true)
	forged := namesake.issue(t, "middle", true).issue(t, "leaf", false)
	noCA := root.issue(t, "middle", false)
	under := noCA.issue(t, "leaf", false)
	anchor := func(i issuer) *x509.Certificate {
		a, err := Anchor(i.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	for name, tc := range map[string]struct {
		roots []*x509.Certificate
		chain []*x509.Certificate
		at    time.Duration
		want  bool
	}{
		"by key":                       {[]*x509.Certificate{anchor(root)}, []*x509.Certificate{leaf.cert, middle.cert}, 0, true},
		"by key, the root sent along":  {[]*x509.Certificate{anchor(root)}, []*x509.Certificate{leaf.cert, middle.cert, root.cert}, 0, true},
		"by the intermediate's key":    {[]*x509.Certificate{anchor(middle)}, []*x509.Certificate{leaf.cert}, 0, true},
		"by certificate":               {[]*x509.Certificate{root.cert}, []*x509.Certificate{leaf.cert, middle.cert}, 0, true},
		"by the second of two":         {[]*x509.Certificate{anchor(namesake), anchor(root)}, []*x509.Certificate{leaf.cert, middle.cert}, 0, true},
		"nobody":                       {nil, []*x509.Certificate{leaf.cert, middle.cert}, 0, false},
		"another key of the same name": {[]*x509.Certificate{anchor(namesake)}, []*x509.Certificate{leaf.cert, middle.cert}, 0, false},
		"forged under a namesake":      {[]*x509.Certificate{anchor(root)}, []*x509.Certificate{forged.cert, namesake.cert}, 0, false},
		"no intermediate":              {[]*x509.Certificate{anchor(root)}, []*x509.Certificate{leaf.cert}, 0, false},
		"under one that is no CA":      {[]*x509.Certificate{anchor(root)}, []*x509.Certificate{under.cert, noCA.cert}, 0, false},
		"expired":                      {[]*x509.Certificate{anchor(root)}, []*x509.Certificate{leaf.cert, middle.cert}, 2 * time.Hour, false},
		"the leaf's own key":           {[]*x509.Certificate{anchor(forged)}, []*x509.Certificate{leaf.cert}, 0, false},
	} {
		between := x509.NewCertPool()
		for _, c := range tc.chain[1:] {
			between.AddCert(c)
		}
		_, err := tc.chain[0].Verify(x509.VerifyOptions{Roots: Pool(tc.roots, tc.chain...), Intermediates: between, CurrentTime: noon.Add(tc.at),
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if (err == nil) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Anchors(key.Public(), "no key"); err == nil {
		t.Error("a text is an anchor")
	}
}
