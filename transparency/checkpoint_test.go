package transparency

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/attestmesh/meshnode/internal/identity"
)

// The bytes of a cosigned checkpoint are fixed for ever. In the bubble the clock stands at
// 2000-01-01T00:00:00Z.
func TestGoldenCheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := string(signHead(t, Checkpoint{testOrigin, 3, LeafHash([]byte("root"))}, cosigner("alpha", "n1")))
		const want = "test.mesh/0123456789abcdef/0\n3\nPAb5plclr2BSYfY2ZyyWINQJcx2JpFHXRV/pxK4WeCk=\n\n" +
			"— test.mesh/0123456789abcdef/0 dt21skQ6Y93BpCGfCWR1RrxaJbLO4UT1p1t0qWH4UW3CgS2JqJAQz7b2QK0rCpQrGOw8s0xqs6DHKEE5sjYrxrhCbQI=\n" +
			"— test.mesh/0123456789abcdef/0/alpha/n1/7 Z2cbkAAAAAA4bUOAn97flzfmFIXrMCxOaOtv93jUGeVB6xMp54hnTnWWLLR4+Zl4ZLufDtCjync1fOYQVmDfTgBWA1ueqxSdnHDUDA==\n"
		if got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestLevels(t *testing.T) {
	all := []Cosigner{cosigner("alpha", "n1"), cosigner("beta", "n1"), cosigner("gamma", "n1"), cosigner("delta", "n1"), cosigner("epsilon", "n1")}
	again := cosigner("alpha", "n2")
	for _, c := range []struct {
		by    []Cosigner
		orgs  string
		level Level
	}{
		{nil, "[]", Unpublished},
		{all[:2], "[alpha beta]", Unpublished},
		{[]Cosigner{all[0], all[1], again}, "[alpha beta]", Unpublished},
		{all[:3], "[alpha beta gamma]", Published},
		{[]Cosigner{all[2], again, all[4]}, "[alpha epsilon gamma]", Published},
		{all[:4], "[alpha beta delta gamma]", Strong},
		{all, "[alpha beta delta epsilon gamma]", Strong},
	} {
		cp := signHead(t, Checkpoint{testOrigin, 9, Hash{1}}, c.by...)
		v, err := Verify(cp, testPolicy(5, append(slices.Clone(all), again)...))
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(v.Orgs) != c.orgs || v.Level != c.level || len(v.Problems) != 0 || v.Strangers != 0 {
			t.Errorf("%d cosigners: got %v %s %v, want %s %s", len(c.by), v.Orgs, v.Level, v.Problems, c.orgs, c.level)
		}
		if v.Fresh.IsZero() != (c.level == Unpublished) {
			t.Errorf("%d cosigners: fresh %v", len(c.by), v.Fresh)
		}
	}
	for n, want := range map[int]Quorum{1: {1, 1}, 2: {2, 2}, 3: {2, 3}, 4: {3, 3}, 5: {3, 4}, 7: {4, 5}} {
		if got := QuorumOf(n); got != want {
			t.Errorf("QuorumOf(%d) = %v, want %v", n, got, want)
		}
	}
}

// A quorum's time is that of its slowest member: a minority cannot freshen a checkpoint.
func TestFreshIsTheQuorums(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := cosigner("alpha", "n1"), cosigner("beta", "n1"), cosigner("gamma", "n1")
		cp := signHead(t, Checkpoint{testOrigin, 9, Hash{1}}, a, b)
		signed := time.Now().UTC()
		time.Sleep(time.Hour)
		line, err := Cosign(cp, c.Name, key(c.Name))
		if err != nil {
			t.Fatal(err)
		}
		if cp, err = Merge(cp, line, c); err != nil {
			t.Fatal(err)
		}
		if line, err = Cosign(cp, a.Name, key(a.Name)); err != nil {
			t.Fatal(err)
		}
		if cp, err = Merge(cp, line, a); err != nil { // replaces a's earlier one
			t.Fatal(err)
		}
		if n := bytes.Count(cp, []byte("— ")); n != 4 {
			t.Errorf("%d signatures, want 4:\n%s", n, cp)
		}
		p := testPolicy(3, a, b, c)
		if v, err := Verify(cp, p); err != nil || !v.Fresh.Equal(signed.Add(time.Hour)) || v.Level != Strong {
			t.Errorf("two of three signed an hour later: %+v, %v", v, err)
		}
		p.Quorum = Quorum{3, 3}
		if v, err := Verify(cp, p); err != nil || !v.Fresh.Equal(signed) {
			t.Errorf("a quorum of three was last complete at %v: %+v, %v", signed, v, err)
		}
	})
}

// rawCosignature makes a cosignature line with any timestamp over any text.
func rawCosignature(t testing.TB, text string, c Cosigner, unix uint64) string {
	t.Helper()
	v, err := c.verifier()
	if err != nil {
		t.Fatal(err)
	}
	msg := fmt.Sprintf("cosignature/v1\ntime %d\n%s", unix, text)
	sig, err := key(c.Name).Sign(nil, []byte(msg), noHash{})
	if err != nil {
		t.Fatal(err)
	}
	raw := binary.BigEndian.AppendUint32(nil, v.KeyHash())
	raw = append(binary.BigEndian.AppendUint64(raw, unix), sig...)
	return "— " + c.Name + " " + base64.StdEncoding.EncodeToString(raw) + "\n"
}

// Cosignatures that do not count do not void the others, and each is named with its code.
func TestCosignaturesThatDoNotCount(t *testing.T) {
	a, b, c := cosigner("alpha", "n1"), cosigner("beta", "n1"), cosigner("gamma", "n1")
	head := Checkpoint{testOrigin, 9, Hash{1}}
	base := signHead(t, head, b)
	now := time.Now()
	other := Checkpoint{"other.mesh/0123456789abcdef/0", 9, Hash{1}}
	wrongKey := a
	wrongKey.Key = public("somebody else")
	wrongType, err := note.Sign(&note.Note{Text: head.text()}, mustSigner(t, a.Name))
	if err != nil {
		t.Fatal(err)
	}
	typeLine := string(wrongType[len(head.text())+1:])
	unix := uint64(now.Unix())
	for name, x := range map[string]struct{ line, code string }{
		"another size":        {rawCosignature(t, Checkpoint{testOrigin, 8, Hash{1}}.text(), a, unix), CodeCosignatureInvalid},
		"another origin":      {rawCosignature(t, other.text(), a, unix), CodeCosignatureInvalid},
		"zero timestamp":      {rawCosignature(t, head.text(), a, 0), CodeCosignatureTime},
		"in the future":       {rawCosignature(t, head.text(), a, unix+600), CodeCosignatureTime},
		"timestamp overflows": {rawCosignature(t, head.text(), a, 1<<63+1), CodeCosignatureTime},
		"year overflows":      {rawCosignature(t, head.text(), a, 1<<63-1), CodeCosignatureTime},
		"plain Ed25519":       {typeLine, CodeCosignatureKey},
		"another key":         {strings.ReplaceAll(rawCosignature(t, head.text(), c, unix), c.Name, a.Name), CodeCosignatureKey},
		"too short":           {"— " + a.Name + " " + base64.StdEncoding.EncodeToString([]byte("12345678")) + "\n", CodeCosignatureKey},
	} {
		cp := append(bytes.Clone(base), x.line...)
		v, err := Verify(cp, Policy{Origin: testOrigin, LogKey: public("log"), Cosigners: []Cosigner{a, b, c}, Quorum: QuorumOf(3), At: now})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if fmt.Sprint(v.Orgs) != "[beta]" || v.Level != Unpublished || len(v.Problems) != 1 || v.Problems[0].Code != x.code || v.Problems[0].Name != a.Name {
			t.Errorf("%s: got %v %s %+v, want code %s", name, v.Orgs, v.Level, v.Problems, x.code)
		}
		if _, err := Merge(base, []byte(x.line), a); err == nil && x.code != CodeCosignatureTime {
			t.Errorf("%s: merged", name)
		}
	}
	stranger := cosigner("zeta", "n1")
	v, err := Verify(signHead(t, head, stranger, b), Policy{Origin: testOrigin, LogKey: public("log"), Cosigners: []Cosigner{a, b, c}, Quorum: QuorumOf(3), At: now})
	if err != nil || v.Strangers != 1 || len(v.Orgs) != 1 {
		t.Errorf("a stranger's signature: %+v, %v", v, err)
	}
}

type noHash struct{}

// HashFunc says that the message is signed as it is.
func (noHash) HashFunc() crypto.Hash { return 0 }

func mustSigner(t testing.TB, name string) note.Signer {
	t.Helper()
	s, err := logSigner(name, key(name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerifyRefuses(t *testing.T) {
	a, b := cosigner("alpha", "n1"), cosigner("beta", "n1")
	head := Checkpoint{testOrigin, 9, Hash{1}}
	good := signHead(t, head, a)
	p := testPolicy(2, a, b)
	if _, err := Verify(good, p); err != nil {
		t.Fatal(err)
	}
	edit := func(old, new string) []byte { return []byte(strings.Replace(string(good), old, new, 1)) }
	byOther, err := NewCheckpoint(Checkpoint{"other/0/0", 9, Hash{1}}, key("log"))
	if err != nil {
		t.Fatal(err)
	}
	byStranger, err := NewCheckpoint(head, key("stranger"))
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"empty":             nil,
		"size edited":       edit("\n9\n", "\n8\n"),
		"size padded":       edit("\n9\n", "\n09\n"),
		"origin edited":     edit(testOrigin, "x"+testOrigin),
		"root edited":       edit("AQAA", "AgAA"),
		"extension":         edit("\n\n", "\nx\n\n"),
		"no signature":      good[:bytes.Index(good, []byte("— "))],
		"cosignature only":  append(bytes.Clone(good[:bytes.Index(good, []byte("— "))]), good[bytes.LastIndex(good, []byte("— ")):]...),
		"trailing":          append(bytes.Clone(good), "x\n"...),
		"carriage return":   edit("\n9\n", "\n9\r\n"),
		"other origin":      byOther,
		"other log key":     byStranger,
		"huge size":         edit("\n9\n", "\n9223372036854775807\n"),
		"negative":          edit("\n9\n", "\n-9\n"),
		"over the limit":    append(bytes.Clone(good), bytes.Repeat([]byte(" "), maxNote)...),
		"too many unsigned": append(bytes.Clone(good), bytes.Repeat([]byte("— x AAAAAAAA\n"), 101)...),
	} {
		if v, err := Verify(bad, p); err == nil {
			t.Errorf("%s: accepted as %+v", name, v)
		}
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if v, err := Verify(bad, p); err == nil && len(v.Orgs) != 0 && !bytes.Equal(canonicalNote(t, bad), good) {
			t.Fatalf("flipped byte %d: counted as %+v", i, v)
		}
	}
}

// canonicalNote re-encodes a note: base64 has spare bits, whose flip changes nothing signed.
func canonicalNote(t testing.TB, signed []byte) []byte {
	t.Helper()
	n, err := openNote(signed)
	if err != nil {
		return nil
	}
	for i, s := range n.UnverifiedSigs {
		raw, err := base64.StdEncoding.DecodeString(s.Base64)
		if err != nil {
			t.Fatal(err)
		}
		n.UnverifiedSigs[i].Base64 = base64.StdEncoding.EncodeToString(raw)
	}
	out, err := note.Sign(n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The zero value of every field of a policy refuses.
func TestPolicyRefuses(t *testing.T) {
	a, b := cosigner("alpha", "n1"), cosigner("beta", "n1")
	good := signHead(t, Checkpoint{testOrigin, 9, Hash{1}}, a)
	sameKey, foreign, logKeyed, noKey, noOrg := b, a, b, b, b
	sameKey.Key = a.Key
	foreign.Name = strings.Replace(a.Name, testOrigin, "other", 1)
	logKeyed.Key = public("log")
	noKey.Key = nil
	noOrg.Org = identity.OrgID("gamma")
	for name, change := range map[string]func(*Policy){
		"zero":               func(p *Policy) { *p = Policy{} },
		"no origin":          func(p *Policy) { p.Origin = "" },
		"no log key":         func(p *Policy) { p.LogKey = nil },
		"no quorum":          func(p *Policy) { p.Quorum = Quorum{} },
		"strong below":       func(p *Policy) { p.Quorum = Quorum{3, 2} },
		"no time":            func(p *Policy) { p.At = time.Time{} },
		"one key twice":      func(p *Policy) { p.Cosigners = []Cosigner{a, sameKey} },
		"listed twice":       func(p *Policy) { p.Cosigners = []Cosigner{a, a} },
		"of another origin":  func(p *Policy) { p.Cosigners = []Cosigner{foreign} },
		"of another org":     func(p *Policy) { p.Cosigners = []Cosigner{noOrg} },
		"the log key":        func(p *Policy) { p.Cosigners = []Cosigner{logKeyed} },
		"cosigner keyless":   func(p *Policy) { p.Cosigners = []Cosigner{noKey} },
		"cosigner zero":      func(p *Policy) { p.Cosigners = []Cosigner{{}} },
		"origin with spaces": func(p *Policy) { p.Origin = "a b" },
	} {
		p := testPolicy(2, a, b)
		change(&p)
		if v, err := Verify(good, p); err == nil {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if _, err := NewCheckpoint(Checkpoint{testOrigin, 1, Hash{}}, nil); err == nil {
		t.Error("signed without a key")
	}
	for _, c := range []Checkpoint{{"", 1, Hash{}}, {"a b", 1, Hash{}}, {"a\nb", 1, Hash{}}, {testOrigin, maxLogSize + 1, Hash{}}} {
		if _, err := NewCheckpoint(c, key("log")); err == nil {
			t.Errorf("signed %+v", c)
		}
	}
}

func TestWitness(t *testing.T) {
	tree := newTree(t, nil)
	appendLeaves(t, tree, 0, 5)
	c := cosigner("alpha", "n1")
	w, err := NewWitness(tree, testOrigin, public("log"), c.Name, key(c.Name))
	if err != nil {
		t.Fatal(err)
	}
	five := sign(t, tree)
	appendLeaves(t, tree, 5, 8)
	eight := sign(t, tree)
	for name, bad := range map[string][]byte{
		"another root":    signHead(t, Checkpoint{testOrigin, 5, Hash{1}}),
		"a size to come":  signHead(t, Checkpoint{testOrigin, 9, tree.Root()}),
		"not by log key":  bytes.Replace(five, []byte("— "), []byte("— x"), 1),
		"no checkpoint":   []byte("x\n\n— y AAAAAAAA\n"),
		"another's":       signOther(t, tree),
		"not even a note": []byte("x"),
	} {
		if line, err := w.Cosign(bad); err == nil {
			t.Errorf("%s: cosigned %q", name, line)
		}
	}
	for _, cp := range [][]byte{five, eight, eight} {
		line, err := w.Cosign(cp)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Merge(cp, line, c); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.Cosign(five); err == nil {
		t.Error("cosigned a smaller size after a larger one")
	}
	if _, err := NewWitness(nil, testOrigin, public("log"), c.Name, key(c.Name)); err == nil {
		t.Error("a witness without a tree")
	}
	if _, err := NewWitness(tree, testOrigin, nil, c.Name, key(c.Name)); err == nil {
		t.Error("a witness without a log key")
	}
}

func signOther(t testing.TB, tree *Tree) []byte {
	t.Helper()
	out, err := NewCheckpoint(Checkpoint{"other/0/0", tree.Size(), tree.Root()}, key("log"))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestProof(t *testing.T) {
	a, b := cosigner("alpha", "n1"), cosigner("beta", "n1")
	tree := newTree(t, nil)
	appendLeaves(t, tree, 0, 300)
	cp := sign(t, tree, a, b)
	p := testPolicy(3, a, b)
	path, err := tree.InclusionProof(7, 300)
	if err != nil {
		t.Fatal(err)
	}
	good := FormatProof(7, path, cp)
	i, v, err := VerifyProof(leaf(7), good, p, Published)
	if err != nil || i != 7 || v.Size != 300 || v.Level != Published {
		t.Fatalf("%d %+v %v", i, v, err)
	}
	edit := func(old, new string) []byte { return []byte(strings.Replace(string(good), old, new, 1)) }
	for name, bad := range map[string][]byte{
		"empty":              nil,
		"another index":      FormatProof(8, path, cp),
		"index padded":       edit("index 7", "index 07"),
		"index signed":       edit("index 7", "index +7"),
		"extra data":         edit("index 7", "extra AAAA\nindex 7"),
		"another version":    edit("@v1", "@v2"),
		"hash missing":       FormatProof(7, path[1:], cp),
		"another checkpoint": FormatProof(7, path, signHead(t, Checkpoint{testOrigin, 300, Hash{1}}, a, b)),
		"no quorum":          FormatProof(7, path, sign(t, tree, a)),
		"another log":        FormatProof(7, path, signOther(t, tree)),
		"no checkpoint":      FormatProof(7, path, nil),
		"too large":          append(bytes.Clone(good), bytes.Repeat([]byte("— x AAAAAAAA\n"), 9000)...),
	} {
		if _, _, err := VerifyProof(leaf(7), bad, p, Published); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, _, err := VerifyProof(leaf(8), good, p, Published); err == nil {
		t.Error("another leaf: accepted")
	}
	if _, _, err := VerifyProof(leaf(7), good, p, Strong); err == nil {
		t.Error("two of three taken for strong")
	}
	if _, _, err := VerifyProof(leaf(7), good, p, Unpublished); err == nil {
		t.Error("a proof was accepted on the log key alone")
	}
}

func TestHashText(t *testing.T) {
	h := LeafHash([]byte("x"))
	var back Hash
	if err := back.UnmarshalText([]byte(h.String())); err != nil || back != h {
		t.Errorf("%v %v", back, err)
	}
	for _, bad := range []string{"", "00", strings.Repeat("zz", 32)} {
		if back.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q accepted", bad)
		}
	}
	var l Level
	for _, want := range []Level{Unpublished, Published, Strong} {
		if text, _ := want.MarshalText(); l.UnmarshalText(text) != nil || l != want {
			t.Errorf("%s decodes to %s", want, l)
		}
	}
	if l.UnmarshalText([]byte("Strong")) == nil {
		t.Error("another spelling of a level accepted")
	}
}
