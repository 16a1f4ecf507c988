package audit

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
)

var update = flag.Bool("update", false, "write testdata/published and testdata/suspended anew")

// testdata/published is the whole log of a small mesh of version 1 with its genesis, byte for
// byte: what was published once must audit for ever, by other programs too. testdata/suspended
// is one of version 2, with suspensions. In the bubble the clock stands at
// 2000-01-01T00:00:00Z.
func TestGoldenLog(t *testing.T) {
	golden(t, "testdata/published", 1, 15, 2, 0, func(m *mesh) {
		m.Command(consensus.KindCredential, m.Credential("beta/n2"))
		m.Command(consensus.KindProposal, m.Proposal(m.Add("newer"), "alpha", "gamma"))
		m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "newer"), m.Result("gamma/n1", "beta/n2", "newer"))
		m.Force(m.Round(0))
		m.Force(m.Round(1))
		m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("newer"), "alpha", "beta"))
	})
	golden(t, "testdata/suspended", 2, 13, 1, 4, func(m *mesh) {
		x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
		m.Command(consensus.KindSuspension, x)
		m.Command(consensus.KindLift, m.Lift(x, "beta", "gamma"))
		m.Force(m.Round(0))
		x = m.Suspension("beta/n1", time.Hour, "alpha emergency", func(x *consensus.Suspension) { x.Node, x.Entry = nil, m.Entry("new").ID })
		m.Command(consensus.KindSuspension, x)
		m.Command(consensus.KindLift, m.Lift(x, "alpha"))
	})
}

// golden holds the log of a mesh to the one at dir, and that to an audit.
func golden(t *testing.T, dir string, version int, entries uint64, rounds, suspensions int, do func(*mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := newMeshOf(t, version).start()
		do(m)
		path := m.publish(seats...)
		if *update {
			m.check(os.RemoveAll(dir))
			m.check(os.CopyFS(filepath.Join(dir, "log"), os.DirFS(path)))
			m.check(os.WriteFile(filepath.Join(dir, "genesis.json"), m.Genesis.Raw(), 0o644))
		}
		got, want := readAll(t, path), readAll(t, filepath.Join(dir, "log"))
		if len(got) != len(want) {
			t.Errorf("%d files, want %d", len(got), len(want))
		}
		for name, data := range want {
			if got[name] != data {
				t.Errorf("%s: %s differs; if that is meant, old logs do not audit any more", dir, name)
			}
		}
	})
	raw, err := os.ReadFile(filepath.Join(dir, "genesis.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := consensus.ParseGenesis(raw)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{audittest.Mesh{Genesis: g}, t}
	if r := m.audit(filepath.Join(dir, "log")); !r.OK || r.Entries != entries || r.Level.String() != "strong" || r.Rounds != rounds || r.Suspensions != suspensions {
		t.Errorf("%s: %+v", dir, r)
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
