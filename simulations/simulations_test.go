package simulations

import (
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	seeds   = flag.Uint64("seeds", 2, "how many seeds to play of each scenario")
	seed    = flag.Uint64("seed", 0, "play this seed only")
	nodeLog = flag.Bool("nodelog", false, "show what the nodes log")
)

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
	if *nodeLog {
		opts.NodeLog = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var r *Result
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = s.Play(seed, opts); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	first, last := uint64(1), *seeds
	if *seed != 0 {
		first, last = *seed, *seed
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			s := load(t, filepath.Base(f))
			for n := first; n <= last; n++ {
				start := time.Now()
				r := play(t, s, n, Options{})
				wall := time.Since(start)
				if err := r.History.Check(); err != nil {
					t.Fatalf("seed %d: %v", n, err)
				}
				ops, open := r.History.Len()
				t.Logf("seed %d: %s virtual in %s; %d operations, %d open; eviction %s", n, r.Virtual, wall, ops, open, r.Evicted)
			}
		})
	}
}
