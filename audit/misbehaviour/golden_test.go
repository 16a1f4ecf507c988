package misbehaviour

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
)

var update = flag.Bool("update", false, "write testdata anew")

// Files that were made once hold for ever: for other implementations, and for the command line.
func TestGolden(t *testing.T) {
	m := newMesh(t, 5)
	ours, theirs := m.tree("ours", 10, 40), m.tree("theirs", 10, 40)
	if *update {
		files := map[string][]byte{"genesis.json": m.g.Raw()}
		for name, x := range map[string][2][]byte{
			"convicts.json": {m.note(ours, 33, "alpha", "beta", "delta"), m.note(theirs, 17, "delta", "epsilon", "eta")},
			"leaked.json":   {m.note(ours, 20, "alpha", "beta", "delta"), m.note(theirs, 20)},
		} {
			raw, _, err := New(m.policy, nil, ours, x[0], x[1])
			m.check(err)
			files[name] = raw
		}
		files["removed.json"], _ = m.removedKey()
		for name, raw := range files {
			m.check(os.WriteFile(filepath.Join("testdata", name), raw, 0o644))
		}
	}
	read := func(name string) []byte {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join("testdata", name))
		m.check(err)
		return raw
	}
	g, err := consensus.ParseGenesis(read("genesis.json"))
	if err != nil || !bytes.Equal(read("genesis.json"), m.g.Raw()) {
		t.Fatalf("genesis is another than the one that these tests make: %v", err)
	}
	r, err := Verify(read("convicts.json"), g)
	if err != nil || r.Verdict != VerdictMisbehaviour || convicted(r) != "delta/1" || !r.Published || r.Checkpoints[0].Size != 17 || r.Checkpoints[1].Size != 33 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = Verify(read("leaked.json"), g); err != nil || r.Verdict != VerdictLogKeyLeaked || len(r.Convicted) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = Verify(read("removed.json"), g); err != nil || convicted(r) != "alpha/2" || !r.Convicted[0].KeyRemoved {
		t.Errorf("%+v, %v", r, err)
	}
}
