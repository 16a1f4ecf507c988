package consensus

import (
	"bytes"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// randomResult returns a result with something in every field.
func randomResult(m *mesh, rng *rand.Rand) AttestationResult {
	r := AttestationResult{Verifier: Party{must(identity.ParseNodeRef("alpha/n1")), peerOf("alpha/n1", 1)}, Subject: Party{must(identity.ParseNodeRef("beta/n2")), peerOf("beta/n2", 1+rng.IntN(3))},
		MeshID: m.g.MeshID(), Verdict: attest.VerdictContraindicated, Codes: []attest.Code{}, Evidence: EvidenceCommitment([32]byte{1}, nil)}
	r.Epoch, r.Incarnation = 0, 0
	if rng.IntN(2) == 0 {
		r.Epoch, r.Incarnation = math.MaxUint64, 10
	}
	for range rng.IntN(4) {
		r.Codes = append(r.Codes, []attest.Code{attest.CodeDebug, attest.CodeStale, "x"}[rng.IntN(3)])
	}
	for _, f := range []*int8{&r.Vector.InstanceIdentity, &r.Vector.Hardware, &r.Vector.SourcedData} {
		*f = []int8{0, 2, 96, -128, 127, -1}[rng.IntN(6)]
	}
	if rng.IntN(2) == 0 {
		r.Kind, r.Measurement = "sevsnp,vtpm", strings.Repeat("0a", rng.IntN(65))
	}
	if rng.IntN(3) == 0 {
		r.Verdict, r.Kind, r.Measurement, r.Reference = attest.VerdictAffirming, "sim", "ab", "0123456789abcdef"
	}
	r.At = time.Date(2000+rng.IntN(8000), 2, 3, 4, 5, 6, []int{0, 7, 70, 700, 123}[rng.IntN(5)]*int(time.Millisecond), time.UTC)
	r.Expires = r.At.Add(time.Duration(1+rng.IntN(1000)) * time.Millisecond)
	return r
}

// The quick reading of a result is the decoder's, at every byte that differs.
func TestScanResultIsDecode(t *testing.T) {
	m := governing(t, 3)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 300 {
		r := randomResult(m, rng)
		payload, err := envelope.NewPayload(envelope.TypeAttestationResult, nodeSubject(r.Subject.Node, r.Subject.Peer), r)
		if err != nil {
			t.Fatal(err)
		}
		sameScan(t, payload, true)
		if i >= 3 {
			continue
		}
		for at := range payload {
			if at%8 != 0 && at+1 < len(payload) && alike(payload[at-1]) && alike(payload[at]) && alike(payload[at+1]) {
				continue
			}
			for _, c := range []byte("\x00\n \"\\,]}{=A0-.eZ/~\x7f\xc3") {
				bad := bytes.Clone(payload)
				bad[at] = c
				sameScan(t, bad, false)
				sameScan(t, slices.Insert(bytes.Clone(payload), at, c), false)
			}
			sameScan(t, slices.Delete(bytes.Clone(payload), at, at+1), false)
			sameScan(t, payload[:at], false)
		}
		sameScan(t, append(bytes.Clone(payload), ' '), false)
	}
	for _, other := range [][]byte{nil, []byte("{}"), []byte("null")} {
		sameScan(t, other, false)
	}
}

// alike reports whether c is one of the many characters of names and digests: of those, some
// positions stand for all.
func alike(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func sameScan(t *testing.T, payload []byte, must bool) {
	t.Helper()
	quick, by := scanResult(payload)
	if quick == nil {
		if must {
			t.Fatalf("%s is not read at once", payload)
		}
		return
	}
	strict, err := unmarshalResult(payload)
	if err != nil || !reflect.DeepEqual(quick, strict) || by.id != strict.Verifier.Peer {
		t.Fatalf("%s is read at once as\n%+v\nwant\n%+v, %v", payload, quick, strict, err)
	}
}

func FuzzScanResult(f *testing.F) {
	m := governing(f, 3)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		r := randomResult(m, rng)
		payload, err := envelope.NewPayload(envelope.TypeAttestationResult, nodeSubject(r.Subject.Node, r.Subject.Peer), r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) { sameScan(t, payload, false) })
}

// A Leaf says of a result what VerifyResult says, and whoever replays it need not ask again.
func TestLeafKnowsWhoSigned(t *testing.T) {
	m := governing(t, 3)
	good := m.result("alpha/n1", "beta/n1", "new")
	env, err := envelope.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	env.Signatures[0].Sig[9] ^= 1
	forged := env.Marshal()
	for name, c := range map[string]struct {
		raw  []byte
		code attest.Code
	}{
		"signed":          {good, ""},
		"forged":          {forged, attest.CodeWrongSigner},
		"another leaf":    {m.credential("beta/n2", 1), attest.CodeMalformed},
		"another writing": {bytes.Replace(good, []byte(`","`), []byte(`", "`), 1), attest.CodeMalformed},
		"nothing":         {nil, attest.CodeMalformed},
		"too large":       {slices.Concat(good, make([]byte, MaxResult)), attest.CodeMalformed},
	} {
		l := ParseLeaf(c.raw)
		r, err := l.Result()
		_, want := VerifyResult(c.raw)
		if (err == nil) != (want == nil) || (err == nil) != (c.code == "") || err != nil && ReasonOf(err).Code != c.code || (r != nil) != (err == nil) {
			t.Errorf("%s: %v, VerifyResult says %v", name, err, want)
		}
		if !bytes.Equal(l.Raw(), c.raw) {
			t.Errorf("%s: other bytes", name)
		}
	}
	for _, l := range []*Leaf{nil, {}} {
		if _, err := m.s.ReplayLeaf(l); err == nil {
			t.Error("replayed nothing")
		}
		if _, err := l.Result(); err == nil {
			t.Error("a result that is none")
		}
	}
}
