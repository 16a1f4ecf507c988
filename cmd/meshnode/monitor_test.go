package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/monitor"
	"github.com/attestmesh/meshnode/transparency"
)

// grown is a log that grows, served as a web server does.
type grown struct {
	mesh *audittest.Mesh
	tree *transparency.Tree
	url  string
	dir  string
	n    int
}

// half an hour is what the mesh's clock may gain on ours: each result is a second later than the last.
const half = 30 * time.Minute

func newGrown(t *testing.T) *grown {
	t.Helper()
	g := &grown{mesh: audittest.New(audittest.Options{At: time.Now().UTC().Add(-half).Truncate(time.Second)}).Start(), dir: filepath.Join(t.TempDir(), "log")}
	dir, err := durable.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	if g.tree, err = transparency.NewTree(dir); err != nil {
		t.Fatal(err)
	}
	g.mesh.Command(consensus.KindProposal, g.mesh.Proposal(g.mesh.Add("last"), "alpha", "beta")) // which grow has run
	g.publish(t)
	srv := httptest.NewServer(http.FileServer(http.Dir(g.dir)))
	t.Cleanup(srv.Close)
	g.url = srv.URL
	return g
}

// grow appends a result that says something new.
func (g *grown) grow() {
	boots, releases := audittest.Seats(), []string{"last", "new"}
	g.mesh.At = g.mesh.At.Add(time.Second)
	g.mesh.Force(g.mesh.Result(boots[g.n%3], boots[(g.n+1)%3], releases[g.n/3%2]))
	g.n++
}

// publish publishes all leaves, cosigned now.
func (g *grown) publish(t *testing.T) {
	t.Helper()
	if _, err := g.tree.AppendAll(g.mesh.Leaves[g.tree.Size():]); err != nil {
		t.Fatal(err)
	}
	g.mesh.Cosigned = time.Now()
	if err := g.tree.Publish(g.mesh.Checkpoint(g.tree, audittest.Seats()...)); err != nil {
		t.Fatal(err)
	}
}

// TestMonitorKilled: the process is killed at random moments while the log grows. Every match is
// printed and given to the hook at least once, in order, and has one id.
func TestMonitorKilled(t *testing.T) {
	kills := 25
	if underRace {
		kills = 6
	}
	g := newGrown(t)
	dir := t.TempDir()
	out, hooked := filepath.Join(dir, "out.jsonl"), filepath.Join(dir, "hooked.jsonl")
	config := filepath.Join(dir, "monitor.yaml")
	text := fmt.Sprintf("state: state\nlogs: [%s]\ninterval: 1s\nhook: [/bin/sh, -c, 'cat >>\"$0\"', %s]\nrules:\n- name: results\n  kind: attestation-result\n", g.url, hooked)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range kills {
		f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("meshnode", "log", "monitor", "--config", config, "--json")
		cmd.Stdout, cmd.Stderr = f, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		f.Close()
		moment := time.NewTimer(time.Duration(random.IntN(900)) * time.Millisecond)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		tick := time.NewTicker(30 * time.Millisecond)
		for grows := true; grows; {
			select {
			case <-tick.C:
				for range 1 + random.IntN(3) {
					g.grow()
				}
				g.publish(t)
			case <-moment.C:
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				<-ended
				grows = false
			case err := <-ended:
				raw, _ := os.ReadFile(out)
				t.Fatalf("it ended by itself: %v; it printed last %s", err, raw[max(0, len(raw)-1024):])
			}
		}
		tick.Stop()
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	last := exec.Command("meshnode", "log", "monitor", "--config", config, "--json", "--once")
	last.Stdout, last.Stderr = f, os.Stderr
	if err := last.Run(); err != nil {
		raw, _ := os.ReadFile(out)
		t.Fatalf("%v; it printed last %s", err, raw[max(0, len(raw)-4096):])
	}
	f.Close()
	want := g.mesh.Find(envelope.TypeAttestationResult)
	for _, name := range []string{out, hooked, filepath.Join(dir, "state/alerts.jsonl")} {
		told, firsts := matchesIn(t, name)
		if !slices.Equal(firsts, want) {
			t.Errorf("%s: %d matches of %d, or in another order", name, len(firsts), len(want))
		}
		if strings.HasSuffix(name, "alerts.jsonl") && told != len(want) {
			t.Errorf("%s: %d matches, want each of %d once", name, told, len(want))
		}
		t.Logf("%s: %d matches, %d of them again", filepath.Base(name), told, told-len(firsts))
	}
}

// matchesIn returns how many matches a file of alerts has, and the indices of those that come first.
func matchesIn(t *testing.T, name string) (int, []uint64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := map[string]uint64{}
	told := 0
	var firsts []uint64
	for s := bufio.NewScanner(f); s.Scan(); {
		var a monitor.Alert
		if err := json.Unmarshal(s.Bytes(), &a); err != nil {
			t.Errorf("%s: %q: %v", name, s.Text(), err)
			continue
		}
		if a.Code != monitor.CodeMatch {
			continue
		}
		told++
		if i, again := seen[a.ID]; again {
			if i != *a.Index {
				t.Errorf("%s: one id for entries %d and %d", name, i, *a.Index)
			}
			continue
		}
		seen[a.ID] = *a.Index
		firsts = append(firsts, *a.Index)
	}
	return told, firsts
}
