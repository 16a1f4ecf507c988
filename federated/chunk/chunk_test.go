package chunk

import (
	"crypto/sha256"
	"testing"

	"github.com/transparency-dev/merkle/compact"
	"github.com/transparency-dev/merkle/rfc6962"
)

func bytesOf(n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(i*31 + i>>13)
	}
	return out
}

// The root is checked against another implementation of RFC 6962, at every shape of tree
// that small strings have.
func TestRootAgreesWithMerkle(t *testing.T) {
	for _, n := range []int{1, Size - 1, Size, Size + 1, 2 * Size, 3*Size + 5, 5 * Size, 7*Size + 1} {
		data := bytesOf(n)
		f := compact.RangeFactory{Hash: rfc6962.DefaultHasher.HashChildren}
		r := f.NewEmptyRange(0)
		for rest := data; len(rest) > 0; rest = rest[min(Size, len(rest)):] {
			if err := r.Append(rfc6962.DefaultHasher.HashLeaf(rest[:min(Size, len(rest))]), nil); err != nil {
				t.Fatal(err)
			}
		}
		want, err := r.GetRootHash(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := RootOf(data)
		if err != nil || string(got[:]) != string(want) {
			t.Errorf("%d bytes: got %s, %v, want %x", n, got, err, want)
		}
	}
	one := []byte("meshnode")
	got, err := RootOf(one)
	if want := sha256.Sum256(append([]byte{0}, one...)); err != nil || got != Root(want) {
		t.Errorf("got %s, %v", got, err)
	}
	if _, err := RootOf(nil); err == nil {
		t.Error("the empty string has a root")
	}
}

func TestProof(t *testing.T) {
	data := bytesOf(4*Size + 17)
	root, err := RootOf(data)
	if err != nil {
		t.Fatal(err)
	}
	for i := range Count(int64(len(data))) {
		p, err := Prove(data, i)
		if err != nil {
			t.Fatal(err)
		}
		piece := append([]byte(nil), data[i*Size:min((i+1)*Size, int64(len(data)))]...)
		if err := p.Verify(root, piece); err != nil {
			t.Fatal(err)
		}
		for name, bad := range map[string]Proof{
			"other place": {(p.Index + 1) % 5, p.Chunks, p.Path},
			"other size":  {p.Index, p.Chunks + 4, p.Path},
			"no path":     {p.Index, p.Chunks, nil},
			"longer path": {p.Index, p.Chunks, append([][32]byte{{}}, p.Path...)},
			"zero":        {},
			"negative":    {-1, p.Chunks, p.Path},
		} {
			if bad.Verify(root, piece) == nil {
				t.Errorf("piece %d: %s accepted", i, name)
			}
		}
		piece[len(piece)/2] ^= 1
		if p.Verify(root, piece) == nil || p.Verify(root, nil) == nil {
			t.Errorf("piece %d: a changed piece was accepted", i)
		}
	}
	for _, i := range []int64{-1, 5} {
		if _, err := Prove(data, i); err == nil {
			t.Errorf("piece %d has a proof", i)
		}
	}
}

func TestRootText(t *testing.T) {
	r := Root(sha256.Sum256(nil))
	var back Root
	if err := back.UnmarshalText([]byte(r.String())); err != nil || back != r {
		t.Errorf("got %v, %v", back, err)
	}
	for _, bad := range []string{"", "00", r.String() + "0", "E" + r.String()[1:], "g" + r.String()[1:]} {
		if back.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}
