package simulations

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
	"github.com/attestmesh/meshnode/node"
)

var (
	seeds   = flag.Uint64("seeds", 2, "how many seeds to play of each scenario")
	seed    = flag.Uint64("seed", 0, "play this seed only")
	nodeLog = flag.Bool("nodelog", false, "show what the nodes log")
)

// partition is the shortest scenario in which a node's own view grows old.
const partition = `
mesh alpha beta gamma
allow new
start alpha/n1 new seat
start beta/n1 new seat
start gamma/n1 new seat
expect phase member of rest
clients 4
wait 3s
silence leader | rest
wait 20s
heal
wait 5s
quiet
expect equal rest
`

func parse(t *testing.T, text string) *Script {
	t.Helper()
	s, err := Parse("scenario.txt", text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func load(t *testing.T, name string) *Script {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Parse(name, string(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// play plays a script in a bubble of its own.
func play(t *testing.T, s *Script, seed uint64, opts Options) *Result {
	t.Helper()
	opts.Log = func(line string) { t.Log(line) }
	opts.NodeLog = nodeLogger()
	var r *Result
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = s.Play(seed, opts); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

func nodeLogger() *slog.Logger {
	if !*nodeLog {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	first, last := uint64(1), *seeds
	if underRace {
		last = 1
	}
	if *seed != 0 {
		first, last = *seed, *seed
	}
	for _, f := range files {
		s := load(t, filepath.Base(f))
		for n := first; n <= last; n++ {
			t.Run(fmt.Sprintf("%s/%d", strings.TrimSuffix(filepath.Base(f), ".txt"), n), func(t *testing.T) {
				t.Parallel() // one bubble keeps little more than one core busy
				start := time.Now()
				r := play(t, s, n, Options{})
				wall := time.Since(start)
				if err := r.History.Check(); err != nil {
					t.Fatal(err)
				}
				ops, open := r.History.Len()
				t.Logf("%s virtual in %s; %d operations, %d without outcome; eviction %s", r.Virtual, wall, ops, open, r.Evicted)
			})
		}
	}
}

// The checker finds what it looks for: clients that read a node's own view see old bases.
func TestStaleReadsAreFound(t *testing.T) {
	t.Parallel()
	s := parse(t, partition)
	for n := uint64(1); n <= 5; n++ {
		r := play(t, s, n, Options{StaleReads: true})
		if err := r.History.Check(); err != nil {
			t.Logf("seed %d: %v", n, err)
			return
		}
	}
	t.Fatal("local reads passed as linearizable with every seed")
}

// What cannot be met ends a scenario with the line that asked for it.
func TestUnmetExpectations(t *testing.T) {
	for _, line := range []string{
		"expect phase refused of alpha/n1 within 1s",
		"expect leader among gamma/n1 within 1s",
		"expect closed beta/n1 by alpha/n1 within 1s",
		"expect unlinked beta/n1 from alpha/n1 within 1s",
		"expect voters alpha/n1 at alpha/n1 within 1s",
		"expect linked alpha/n1 gamma/n1 within 1s",
		"expect equal alpha/n1 gamma/n1 within 1s",
		"expect published gamma/n1 within 1s",
		"propose remove new signed alpha at alpha/n1",
		"propose add newer signed alpha beta at alpha/n1 refused threshold",
		"start delta/n1 new",
		"start alpha/n1 new",
		"stop delta/n1",
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			s := parse(t, `mesh alpha beta
allow new
start alpha/n1 new seat
start beta/n1 new seat
expect phase member of rest
start alpha/n2 unknown
expect phase refused of alpha/n2
`+strings.ReplaceAll(line, "gamma/n1", "alpha/n2"))
			synctest.Test(t, func(t *testing.T) {
				_, err := s.Play(1, Options{})
				if err == nil || !strings.HasPrefix(err.Error(), "scenario.txt:8: seed 1: ") {
					t.Errorf("got %v, want an error that names line 8", err)
				}
			})
		})
	}
}

// The control socket answers while the node has no mesh yet.
func TestStatusBeforeTheMesh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memtransport.Epoch()
		w, err := newWorld([]string{"alpha", "beta"}, []string{"new"}, 1, Options{})
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan struct{})
		w.beforeMesh = func(h *host) {
			defer close(asked)
			if s, err := h.status(); err != nil || s.Phase != node.PhaseFounding {
				t.Errorf("got phase %q, %v", s.Phase, err)
			}
			raw, err := w.proposal("early", 0, []string{"alpha", "beta"}, remove("new"))
			if err != nil {
				t.Error(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), callWithin)
			defer cancel()
			if _, err := h.propose(ctx, raw); !errors.Is(err, errNoOutcome) {
				t.Errorf("a proposal before the mesh: %v, want no outcome", err)
			}
		}
		if err := w.start("alpha/n1", "new", []string{node.RoleSeat}); err != nil {
			t.Fatal(err)
		}
		<-asked
		if err := w.hosts[0].stop(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Second)
	})
}
