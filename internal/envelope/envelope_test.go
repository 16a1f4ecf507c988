package envelope

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/sigstore/pkg/signature"
)

type note struct {
	Text string `json:"text"`
	N    int    `json:"n"`
}

func edSigner(t testing.TB, seed byte) (signature.Signer, ed25519.PublicKey) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
	s, err := NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, key.Public().(ed25519.PublicKey)
}

func signed(t testing.TB, signers ...signature.Signer) *Envelope {
	t.Helper()
	payload, err := NewPayload(TypeProposal, SubjectOf("s", []byte("x")), note{"<&>", 7})
	if err != nil {
		t.Fatal(err)
	}
	e := &Envelope{Payload: payload}
	for _, s := range signers {
		if err := e.Sign(s); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

// The bytes of an Ed25519 envelope are fixed for ever: logs of old meshes hold them.
func TestGolden(t *testing.T) {
	s, _ := edSigner(t, 1)
	const want = `{"payloadType":"application/vnd.in-toto+json","payload":"eyJfdHlwZSI6Imh0dHBzOi8vaW4tdG90by5pby9TdGF0ZW1lbnQvdjEiLCJzdWJqZWN0IjpbeyJuYW1lIjoicyIsImRpZ2VzdCI6eyJzaGEyNTYiOiIyZDcxMTY0MmI3MjZiMDQ0MDE2MjdjYTlmYmFjMzJmNWM4NTMwZmIxOTAzY2M0ZGIwMjI1ODcxNzkyMWE0ODgxIn19XSwicHJlZGljYXRlVHlwZSI6Imh0dHBzOi8vYXR0ZXN0bWVzaC5naXRodWIuaW8vbWVzaG5vZGUvcHJvcG9zYWwvdjEiLCJwcmVkaWNhdGUiOnsidGV4dCI6IjwmPiIsIm4iOjd9fQ==","signatures":[{"keyid":"`
	if got := string(signed(t, s).Marshal()); !strings.HasPrefix(got, want) {
		t.Errorf("got %s", got)
	}
}

func TestParseRefusesOtherSpellings(t *testing.T) {
	s, pub := edSigner(t, 1)
	raw := string(signed(t, s).Marshal())
	e, err := Parse([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Verify([]Key{{"a", pub}}); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"white space":     strings.Replace(raw, ",", ", ", 1),
		"trailing":        raw + "\n",
		"unknown field":   strings.Replace(raw, `{"payloadType"`, `{"x":1,"payloadType"`, 1),
		"duplicate field": strings.Replace(raw, `{"payloadType"`, `{"payloadType":"a","payloadType"`, 1),
		"other case":      strings.Replace(raw, `"payloadType"`, `"payloadtype"`, 1),
		"other type":      strings.Replace(raw, `in-toto+json`, `in-toto+jsom`, 1),
		"no signatures":   `{"payloadType":"application/vnd.in-toto+json","payload":""}`,
		"null":            `null`,
		"empty":           ``,
		"too large":       strings.Repeat(" ", MaxSize+1),
	} {
		if _, err := Parse([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	payload, err := NewPayload(TypeProposal, SubjectOf("s", nil), note{"t", 1})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := Decode[note](payload, TypeProposal); err != nil || st.Predicate.Text != "t" {
		t.Fatalf("%v %v", st, err)
	}
	if _, err := Decode[note](payload, TypeRound); err == nil {
		t.Error("other predicate type accepted")
	}
	for _, bad := range []string{
		strings.Replace(string(payload), `"n":1`, `"n":1,"m":2`, 1),
		strings.Replace(string(payload), `"n":1`, `"n":0,"n":1`, 1),
		strings.Replace(string(payload), `"n":1`, `"n":1.0`, 1),
		strings.Replace(string(payload), `,"n":1`, ``, 1),
		strings.Replace(string(payload), "in-toto.io/Statement/v1", "in-toto.io/Statement/v0.1", 1),
	} {
		if _, err := Decode[note]([]byte(bad), TypeProposal); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func TestVerifyCountsOrganisations(t *testing.T) {
	s1, p1 := edSigner(t, 1)
	s2, p2 := edSigner(t, 2)
	s3, p3 := edSigner(t, 3)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s4, err := NewSigner(ec)
	if err != nil {
		t.Fatal(err)
	}
	keys := []Key{{"a", p1}, {"a", p2}, {"b", ec.Public()}}
	orgs, err := signed(t, s1, s2, s4).Verify(keys)
	if err != nil || len(orgs) != 2 || orgs[0] != "a" || orgs[1] != identity.OrgID("b") {
		t.Fatalf("got %v, %v; want two organisations from three keys", orgs, err)
	}
	if _, err := signed(t, s1, s3).Verify(keys); err == nil {
		t.Error("a signature by an unknown key was accepted")
	}
	if _, err := signed(t).Verify(keys); err == nil {
		t.Error("no signature was accepted")
	}
	if _, err := signed(t, s3).Verify([]Key{{"a", p3}, {"b", p3}}); err == nil {
		t.Error("one key under two organisations was accepted")
	}
	twice := signed(t, s1)
	twice.Signatures = append(twice.Signatures, twice.Signatures[0])
	if _, err := twice.Verify(keys); err == nil {
		t.Error("a repeated signature was accepted")
	}
	unnamed := signed(t, s1)
	unnamed.Signatures[0].KeyID = ""
	if _, err := unnamed.Verify(keys); err == nil {
		t.Error("an empty key id was accepted")
	}
	if err := twice.Sign(s1); err == nil {
		t.Error("signing twice with one key was accepted")
	}
	for i := range len(signed(t, s1).Payload) {
		e := signed(t, s1)
		e.Payload[i] ^= 1
		if _, err := e.Verify(keys); err == nil {
			t.Fatalf("flipped payload byte %d accepted", i)
		}
	}
}

// The quick reading of an envelope accepts what the strict one does, at every byte that differs.
func TestScanIsParse(t *testing.T) {
	s1, _ := edSigner(t, 1)
	s2, _ := edSigner(t, 2)
	for _, raw := range [][]byte{signed(t).Marshal(), signed(t, s1).Marshal(), signed(t, s1, s2).Marshal(), (&Envelope{}).Marshal()} {
		sameParse(t, raw, true)
		for i := range raw {
			if i%32 != 0 && i+1 < len(raw) && alike(raw[i-1]) && alike(raw[i]) && alike(raw[i+1]) {
				continue
			}
			for _, c := range []byte("\x00\n \"\\,]}{=A/~\x7f\xc3") {
				bad := bytes.Clone(raw)
				bad[i] = c
				sameParse(t, bad, bytes.Equal(bad, raw))
				sameParse(t, slices.Insert(bytes.Clone(raw), i, c), false)
			}
			sameParse(t, slices.Delete(bytes.Clone(raw), i, i+1), false)
			sameParse(t, raw[:i], false)
		}
		sameParse(t, append(bytes.Clone(raw), ' '), false)
	}
	many := &Envelope{}
	for range MaxSignatures {
		many.Signatures = append(many.Signatures, Signature{"a", []byte{1}})
	}
	sameParse(t, many.Marshal(), true)
	many.Signatures = append(many.Signatures, Signature{"b", nil})
	sameParse(t, many.Marshal(), false)
	for _, id := range []string{"ä", "\u2028", "<&>", "\x1f", "a\"b"} {
		sameParse(t, (&Envelope{Signatures: []Signature{{id, nil}}}).Marshal(), id == "<&>")
	}
}

// alike reports whether c is one of the many characters of base64 and hex: of those, some positions
// stand for all.
func alike(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' }

func sameParse(t *testing.T, raw []byte, must bool) {
	t.Helper()
	quick := scan(raw)
	strict, err := parse(raw)
	if quick != nil && (err != nil || !bytes.Equal(quick.Marshal(), strict.Marshal()) || !bytes.Equal(quick.Marshal(), raw)) {
		t.Fatalf("%q is read at once, but refused: %v", raw, err)
	}
	if must && quick == nil {
		t.Fatalf("%q is not read at once", raw)
	}
}

func TestPAE(t *testing.T) {
	for _, payload := range []string{"", "x", strings.Repeat("y", 12345)} {
		if got, want := pae([]byte(payload)), dsse.PAE(PayloadType, []byte(payload)); !bytes.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestVerifyPeerKeyID(t *testing.T) {
	s, pub := edSigner(t, 1)
	want, err := KeyID(pub)
	if err != nil || ed25519KeyID(pub) != want {
		t.Errorf("%s, want %s, %v", ed25519KeyID(pub), want, err)
	}
	peer := identity.PeerIDFromKey(pub)
	e := signed(t, s)
	for _, err := range []error{e.VerifyPeer(peer), e.VerifyKey(pub, want), e.VerifyKey(pub, "")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(e *Envelope){
		"another payload":   func(e *Envelope) { e.Payload[3] ^= 1 },
		"another signature": func(e *Envelope) { e.Signatures[0].Sig[3] ^= 1 },
		"another key id":    func(e *Envelope) { e.Signatures[0].KeyID = strings.Repeat("0", 64) },
		"no signature":      func(e *Envelope) { e.Signatures = nil },
		"two signatures":    func(e *Envelope) { e.Signatures = append(e.Signatures, e.Signatures[0]) },
	} {
		e := signed(t, s)
		change(e)
		if e.VerifyPeer(peer) == nil || e.VerifyKey(pub, want) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	s, _ := edSigner(f, 1)
	f.Add(signed(f, s).Marshal())
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := Parse(raw)
		if err != nil {
			return
		}
		if _, err := parse(raw); err != nil {
			t.Fatalf("the quick reading accepted what the strict one refuses: %v", err)
		}
		if !bytes.Equal(e.Marshal(), raw) {
			t.Fatal("accepted bytes that encode differently")
		}
		_, _ = Decode[note](e.Payload, TypeProposal)
	})
}
