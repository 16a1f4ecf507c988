package audit

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/attestmesh/meshnode/consensus"
)

var update = flag.Bool("update", false, "write testdata/published anew")

// testdata/published is the whole log of a small mesh of version 1 with its genesis, byte for byte:
// what was published once must audit for ever, by other programs too. In the bubble the
// clock stands at 2000-01-01T00:00:00Z.
func TestGoldenLog(t *testing.T) {
	const golden = "testdata/published"
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, 1).start()
		m.command(consensus.KindCredential, m.credential("beta/n2"))
		m.command(consensus.KindProposal, m.proposal(m.add("newer"), "alpha", "gamma"))
		m.command(consensus.KindResults, m.result("alpha/n1", "beta/n2", "newer"), m.result("gamma/n1", "beta/n2", "newer"))
		m.force(m.round(0))
		m.force(m.round(1))
		m.command(consensus.KindProposal, m.proposal(remove("newer"), "alpha", "beta"))
		path := m.publish(seats...)
		if *update {
			m.check(os.RemoveAll(golden))
			m.check(os.CopyFS(filepath.Join(golden, "log"), os.DirFS(path)))
			m.check(os.WriteFile(filepath.Join(golden, "genesis.json"), m.g.Raw(), 0o644))
		}
		got, want := readAll(t, path), readAll(t, filepath.Join(golden, "log"))
		if len(got) != len(want) {
			t.Errorf("%d files, want %d", len(got), len(want))
		}
		for name, data := range want {
			if got[name] != data {
				t.Errorf("%s differs; if that is meant, old logs do not audit any more", name)
			}
		}
	})
	raw, err := os.ReadFile(filepath.Join(golden, "genesis.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := consensus.ParseGenesis(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, g: g}
	if r := m.audit(filepath.Join(golden, "log")); !r.OK || r.Entries != 15 || r.Level.String() != "strong" || r.Rounds != 2 {
		t.Errorf("%+v", r)
	}
}

func readAll(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, root)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
