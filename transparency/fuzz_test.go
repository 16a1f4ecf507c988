package transparency

import (
	"bytes"
	"testing"
)

// No note is counted that was not signed: with one genuine cosigner in the corpus, no
// mutation reaches a quorum of two or another size.
func FuzzVerify(f *testing.F) {
	a, b := cosigner("alpha", "n1"), cosigner("beta", "n1")
	head := Checkpoint{testOrigin, 9, Hash{1}}
	good := signHead(f, head, a)
	f.Add(good)
	f.Add(signHead(f, head))
	f.Add([]byte("a\n1\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n\n— a AAAAAAAA\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := Verify(data, testPolicy(2, a, b))
		if err != nil {
			return
		}
		if v.Checkpoint != head || v.Level != Unpublished || len(v.Orgs) > 1 {
			t.Fatalf("%+v", v)
		}
		_, _, _ = VerifyProof(nil, append([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n"), data...), testPolicy(2, a, b), Published)
	})
}

// What is read of a bundle re-encodes to the same bytes, and the rest is named.
func FuzzBundle(f *testing.F) {
	f.Add(bundleOf([][]byte{[]byte("a"), nil, []byte("bb")}), byte(3))
	f.Add([]byte{0, 9}, byte(1))
	f.Fuzz(func(t *testing.T, data []byte, width byte) {
		entries, rest, problem := splitBundle(data, int(width)+1)
		if problem == nil && len(entries) != int(width)+1 || problem != nil && problem.offset != len(entries) {
			t.Fatalf("%d entries of %d, %+v", len(entries), width, problem)
		}
		if !bytes.Equal(append(bundleOf(entries), rest...), data) {
			t.Fatal("entries and rest are not the input")
		}
	})
}
