package ratls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The tests of this file hold each check by itself: behind some of them another one would
// refuse as well, with other words.
type refused struct {
	err  error
	want string
}

func refusals(t *testing.T, errs map[string]refused) {
	t.Helper()
	for name, tc := range errs {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, tc.err, tc.want)
		}
	}
}

func usual() Claimant {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	return Claimant{MeshID: identity.MeshID{1}, Incarnation: 3, Peer: identity.PeerIDFromKey(key.Public().(ed25519.PublicKey))}
}

func TestNameChecks(t *testing.T) {
	c := usual()
	good := c.urn().String()
	if got, err := parseURN(good); err != nil || got != c {
		t.Fatalf("%+v, %v", got, err)
	}
	parse := func(s string) error { _, err := parseURN(s); return err }
	nobody := c
	nobody.Peer = ""
	mesh := c.MeshID.String()
	refusals(t, map[string]refused{
		"another prefix": {parse("urn:other:" + strings.TrimPrefix(good, urnPrefix)), "want urn:"},
		"no prefix":      {parse(strings.TrimPrefix(good, urnPrefix)), "want urn:"},
		"two parts":      {parse(urnPrefix + mesh + ":3"), "want urn:"},
		"four parts":     {parse(good + ":5"), "want urn:"},
		"incarnation x":  {parse(strings.Replace(good, ":3:", ":x:", 1)), "incarnation"},
		"incarnation 03": {parse(strings.Replace(good, ":3:", ":03:", 1)), "not in canonical form"},
		"mesh id":        {parse(strings.Replace(good, mesh, "zz", 1)), "mesh id"},
		"nobody":         {parse(nobody.urn().String()), "peer"},
	})
}

func TestCertificateChecks(t *testing.T) {
	now := time.Date(2026, 11, 27, 9, 0, 0, 0, time.UTC)
	whole := Template{Claimant: usual(), NotBefore: now, Lifetime: time.Minute,
		Proof: attest.Proof{Evidence: attest.Evidence{Kind: attest.KindSim, Items: []attest.Item{{Type: attest.TypeEventLog, Data: []byte{1}}}}}}
	if _, err := (Key{}).Certificate(whole); err == nil || !strings.Contains(err.Error(), "no key") {
		t.Errorf("a certificate without a key: %v", err)
	}
	issue := func(curve elliptic.Curve, name string) error {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		uri, err := url.Parse(name)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now, NotAfter: now.Add(time.Minute), URIs: []*url.URL{uri}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		_, err = ParseCertificate(cert, now)
		return err
	}
	of := func(values ...[]byte) error {
		var cert x509.Certificate
		for _, v := range values {
			cert.Extensions = append(cert.Extensions, pkix.Extension{Id: OIDConceptualMessage(), Value: v})
		}
		_, err := certificateProof(&cert)
		return err
	}
	octets := func(b []byte) []byte {
		der, err := asn1.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	record := func(w wireRecord) []byte {
		raw, err := codec.Encode(w)
		if err != nil {
			t.Fatal(err)
		}
		return octets(raw)
	}
	usual := usual().urn().String()
	refusals(t, map[string]refused{
		"P-384":            {issue(elliptic.P384(), usual), "certificate key"},
		"another name":     {issue(elliptic.P256(), "urn:other"), "certificate name:"},
		"no proof":         {issue(elliptic.P256(), usual), "certificate evidence"},
		"two proofs":       {of([]byte{1}, []byte{1}), "more than one"},
		"none":             {of(), "0 bytes, want up to"},
		"an empty one":     {of([]byte{}), "0 bytes, want up to"},
		"a large one":      {of(make([]byte, MaxCertificateProof+257)), "bytes, want up to"},
		"no octet string":  {of([]byte{0x30, 0}), "not one DER OCTET STRING"},
		"and a byte":       {of(append(octets([]byte{1}), 0)), "not one DER OCTET STRING"},
		"no record":        {of(octets([]byte{0xff})), "conceptual message: cbor"},
		"another type":     {of(record(wireRecord{Type: "text/plain", Value: []byte{1}, Indicator: cmwEvidence})), `type "text/plain"`},
		"reference values": {of(record(wireRecord{Type: ProofType, Value: []byte{1}, Indicator: cmwEvidence + 1})), "with indicator"},
	})
}

func TestProofChecks(t *testing.T) {
	evidence := attest.Evidence{Kind: attest.KindSim, Items: []attest.Item{{Type: attest.TypeEventLog, Data: []byte{1}}}}
	encoded, err := evidence.Encode()
	if err != nil {
		t.Fatal(err)
	}
	decode := func(w wireProof, more ...byte) error {
		raw, err := codec.Encode(w)
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeProof(append(raw, more...))
		return err
	}
	head := make([]byte, 32)
	if err := decode(wireProof{Evidence: encoded, RuntimeHead: head}); err != nil {
		t.Fatal(err)
	}
	large := attest.Evidence{Kind: attest.KindSim}
	for range 1 + MaxProof/attest.MaxLog {
		large.Items = append(large.Items, attest.Item{Type: attest.TypeEventLog, Data: make([]byte, attest.MaxLog)})
	}
	_, tooLarge := EncodeProof(attest.Proof{Evidence: large})
	_, tooLong := DecodeProof(make([]byte, MaxProof+1))
	refusals(t, map[string]refused{
		"over the limit":         {tooLarge, "the limit is"},
		"over the limit, theirs": {tooLong, "the limit is"},
		"a byte behind":          {decode(wireProof{Evidence: encoded, RuntimeHead: head}, 0), "proof: "},
		"a head of 31":           {decode(wireProof{Evidence: encoded, RuntimeHead: head[1:]}), "runtime head of 31 bytes"},
		"a head of 33":           {decode(wireProof{Evidence: encoded, RuntimeHead: make([]byte, 33)}), "runtime head of 33 bytes"},
		"a long path":            {decode(wireProof{Evidence: encoded, RuntimeHead: head, Inclusion: attest.Inclusion{Path: make([][]byte, attest.MaxPath+1)}}), "max number of elements 16"},
		"no evidence":            {decode(wireProof{RuntimeHead: head}), "evidence: "},
	})
}

func TestChallengeChecks(t *testing.T) {
	ask := func(raw string) error { _, err := DecodeRequest([]byte(raw)); return err }
	nonce := strings.Repeat("ab", 32)
	if err := ask(`{"nonce":"` + nonce + `"}`); err != nil {
		t.Fatal(err)
	}
	good := Answer{Peer: usual().Peer}
	raw, err := good.Encode()
	if err != nil {
		t.Fatal(err)
	}
	decode := func(raw []byte) error { _, err := DecodeAnswer(raw); return err }
	large := good
	for range 1 << 19 {
		large.Heads.Inclusion.Path = append(large.Heads.Inclusion.Path, make([]byte, 32))
	}
	_, tooLarge := large.Encode()
	refusals(t, map[string]refused{
		"a long request":    {ask(strings.Repeat(" ", MaxRequest+1)), "the limit is"},
		"upper case":        {ask(`{"nonce":"` + strings.ToUpper(nonce) + `"}`), "lower-case hex"},
		"hex and more":      {ask(`{"nonce":"` + nonce + `zz"}`), "lower-case hex"},
		"a short nonce":     {ask(`{"nonce":"` + nonce[2:] + `"}`), "lower-case hex"},
		"over the limit":    {tooLarge, "the limit is"},
		"theirs over it":    {decode(make([]byte, MaxAnswer+1)), "the limit is"},
		"an unknown member": {decode(append([]byte(`{"x":1,`), raw[1:]...)), "unknown field"},
		"a blank":           {decode(append(bytes.Clone(raw), ' ')), "not in canonical form"},
	})
	const refusal = `{"error":{"code":"not_bound"}}`
	for body, want := range map[string]bool{refusal: true, refusal + strings.Repeat(" ", MaxRefusal): false,
		`{"error":{"code":"not_bound","claim":5}}`: false, `{"error":{}}`: false, `{"error":{"code":"` + hex.EncodeToString([]byte("x")) + `"}}`: false} {
		if r, ok := DecodeRefusal([]byte(body)); ok != want {
			t.Errorf("%.60s: %+v, %v", body, r, ok)
		}
	}
}
