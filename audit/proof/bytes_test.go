package proof

import (
	"bytes"
	"encoding/base64"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

var update = flag.Bool("update", false, "write testdata anew")

// lean is a proof file with as few bytes as there can be.
func lean(t testing.TB) (*audittest.Mesh, []byte) {
	m := audittest.New(audittest.Options{At: audittest.CompleteAt, Version: 1})
	m.Command(consensus.KindBootstrap, m.Genesis.Raw(), m.Bootstrap())
	m.Tick(0)
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new"), m.Result("beta/n1", "alpha/n1", "new"))
	data, _ := export(t, m, at(2), "alpha/n1", "beta/n1")
	return m, data
}

// Whatever byte of a file is changed, it is refused, as malformed or as wrong, and nothing panics.
func TestEveryByte(t *testing.T) {
	m, data := lean(t)
	opts := options(m)
	if _, err := Verify(data, opts); err != nil {
		t.Fatal(err)
	}
	bits := []byte{1, 2, 4, 0x20, 0x80}
	malformed, refused := 0, 0
	for i := 0; i < len(data); i += step {
		// Inside of the extra line one change for each byte has to do: it is most of the file.
		changes := bits
		if i > 40 && i < bytes.LastIndex(data, []byte("index"))-40 {
			changes = bits[i%3 : i%3+1]
		}
		for _, x := range changes {
			bad := slices.Clone(data)
			bad[i] ^= x
			_, err := Verify(bad, opts)
			var a *Malformed
			var b *Refused
			switch {
			case errors.As(err, &a):
				malformed++
			case errors.As(err, &b):
				refused++
			default:
				t.Fatalf("byte %d of %d changed by %#x: %v", i, len(data), x, err)
			}
		}
	}
	if malformed < 100/step || refused < 1000/step {
		t.Errorf("%d malformed, %d refused of %d bytes", malformed, refused, len(data))
	}
	for i := range data {
		if i%97 == 0 {
			if _, err := Verify(data[:i], opts); err == nil || errors.Is(err, ErrBare) {
				t.Fatalf("cut off after %d bytes: %v", i, err)
			}
			if _, err := Verify(slices.Insert(slices.Clone(data), i, '\n'), opts); err == nil || errors.Is(err, ErrBare) {
				t.Fatalf("a newline before byte %d: %v", i, err)
			}
		}
	}
}

// A plain tlog-proof is told from what is no proof; what is too large is not looked at.
func TestBare(t *testing.T) {
	m, data := lean(t)
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(f.Plain(), options(m)); !errors.Is(err, ErrBare) {
		t.Errorf("a plain proof: %v", err)
	}
	p := newReplay(m.Genesis, true)
	for i, leaf := range m.Leaves {
		if err := p.leaf(uint64(i), kindOf(leaf), leaf, false); err != nil {
			t.Fatal(err)
		}
	}
	policy, _ := p.checkpointPolicy(m.At)
	if index, _, err := transparency.VerifyProof(f.Subject.Data, f.Plain(), policy, transparency.Published); err != nil || index != 2 {
		t.Errorf("the plain proof itself: %d, %v", index, err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), make([]byte, MaxFile+1), []byte(header), []byte(header + "extra AAAA\n"), f.Plain()[:60]} {
		var malformed *Malformed
		if _, err := Verify(bad, options(m)); !errors.As(err, &malformed) {
			t.Errorf("%.20q…: %v", bad, err)
		}
	}
	later := bytes.Replace(data, []byte(base64.StdEncoding.EncodeToString([]byte("meshnode-proof/v1\n"))), []byte(base64.StdEncoding.EncodeToString([]byte("meshnode-proof/v2\n"))), 1)
	if _, err := Verify(later, options(m)); err == nil || !strings.Contains(err.Error(), "newer release") {
		t.Errorf("another version: %v", err)
	}
}

// A client library that others wrote reads the file as it is, by a policy made of what the leaves say.
func TestReadByTorchwood(t *testing.T) {
	m := audittest.Complete()
	subject := m.Find(envelope.TypeRound)[0]
	data, _ := export(t, m, at(int(subject)), m.Cosigners()...)
	logKey, err := transparency.VerifierKey(m.State.Origin(), m.State.LogKey())
	if err != nil {
		t.Fatal(err)
	}
	policy := "log " + logKey + "\n"
	var names []string
	for _, boot := range m.Cosigners() {
		n, ok := m.State.Node(audittest.PeerOf(boot))
		if !ok {
			t.Fatal(boot)
		}
		s, err := torchwood.NewCosignatureSigner(m.CosignerName(boot), audittest.Key(boot+" cosigner"))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, string(n.Ref.Org))
		policy += "witness " + string(n.Ref.Org) + " " + s.Verifier().String() + "\n"
	}
	policy += "group g all " + strings.Join(names, " ") + "\nquorum g\n"
	p, err := torchwood.ParsePolicy([]byte(policy))
	if err != nil {
		t.Fatal(err)
	}
	if err := torchwood.VerifyProof(p, tlog.RecordHash(m.Leaves[subject]), data); err != nil {
		t.Error(err)
	}
	if err := torchwood.VerifyProof(p, tlog.RecordHash(m.Leaves[subject+1]), data); err == nil {
		t.Error("another leaf is accepted")
	}
	extra, err := torchwood.ProofExtraData(data)
	if err != nil || !bytes.HasPrefix(extra, []byte(magic)) {
		t.Errorf("extra data: %v", err)
	}
}

// A file that was made once proves the same for ever.
func TestGolden(t *testing.T) {
	m := audittest.Complete()
	results := m.Find(envelope.TypeAttestationResult)
	data, _ := export(t, m, at(int(results[len(results)-1])), m.Cosigners()...)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile("testdata/result.proof", data, 0o644), os.WriteFile("testdata/genesis.json", m.Genesis.Raw(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.ReadFile("testdata/result.proof")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(was, data) {
		t.Error("testdata/result.proof is not what is exported today; if that is meant, write it anew")
	}
	raw, err := os.ReadFile("testdata/genesis.json")
	if err != nil {
		t.Fatal(err)
	}
	g, err := consensus.ParseGenesis(raw)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Verify(was, Options{Genesis: g, At: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil || p.Index != results[len(results)-1] || p.Level != transparency.Strong {
		t.Errorf("%v, %+v", err, p)
	}
}

// No file is accepted that is not one of the two in the corpus; what is parsed encodes to the same
// bytes.
func FuzzParse(f *testing.F) {
	m, data := lean(f)
	file, err := Parse(data)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(file.Plain())
	f.Add([]byte(header + "extra " + base64.StdEncoding.EncodeToString([]byte(magic+"\x00\x00")) + "\nindex 0\n\nx"))
	opts := options(m)
	f.Fuzz(func(t *testing.T, in []byte) {
		if p, err := Parse(in); err == nil && !bytes.Equal(p.Marshal(), in) {
			t.Fatal("two encodings of one file")
		}
		if _, err := Verify(in, opts); err == nil && !bytes.Equal(in, data) {
			if p, err := Parse(in); err != nil || !bytes.Equal(p.Subject.Data, file.Subject.Data) {
				t.Fatal("another leaf was proven")
			}
		}
	})
}
