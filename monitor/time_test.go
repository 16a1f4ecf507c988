package monitor

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

// TestHours: in simulated time, rounds, heartbeats, what is told when, and when a hook that fails is
// given an alert again.
func TestHours(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := audittest.New(audittest.Options{At: time.Now().UTC()}).Start()
		l := newLogDir(t).publish(m, seats3...)
		w := newWatch(t, m, l.path)
		w.cfg.Hook = []string{"/bin/false"}
		w.cfg.MaxAge, w.cfg.Silent = 30*time.Minute, 30*time.Minute
		if err := w.start(); err != nil {
			t.Fatal(err)
		}
		w.Monitor.deps.Now = time.Now
		begin := time.Now()
		var warned []time.Duration
		w.Monitor.deps.Warn = func(string) { warned = append(warned, time.Since(begin)) }
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour+time.Second)
		defer cancel()
		if err := w.Run(ctx, nil); err != context.DeadlineExceeded {
			t.Errorf("ended with %v", err)
		}
		if got := len(w.out.beats); got != 61 {
			t.Errorf("%d heartbeats in an hour", got)
		}
		if len(w.out.alerts) != 1 || w.out.alerts[0].Code != CodeStale || w.out.alerts[0].Time.Sub(begin) != 30*time.Minute+10*time.Second {
			t.Errorf("told %+v", w.out.alerts)
		}
		// From there on with pauses of 1, 2, 4, … seconds and then 5 minutes.
		var pauses []time.Duration
		for i := 1; i < len(warned); i++ {
			pauses = append(pauses, warned[i]-warned[i-1])
		}
		want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second}
		if len(pauses) < 10 || !slices.Equal(pauses[:4], want) || pauses[len(pauses)-1] != hookSlowest {
			t.Errorf("given again after %v", pauses)
		}
	})
}

// TestSlowLog: a log that takes longer to read than a round may is read over several, and told once
// its checkpoint is reached; a copy that is quicker is not held up.
func TestSlowLog(t *testing.T) {
	m := newMesh()
	m.Command(consensus.KindProposal, m.Proposal(m.Add("last"), "alpha", "beta"))
	m.Grow(700)
	l := newLogDir(t).publish(m, seats3...)
	var requests atomic.Int64
	files := http.FileServer(http.Dir(l.path))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, "/entries/") && requests.Add(1)%3 == 0 {
			<-r.Context().Done()
			return
		}
		files.ServeHTTP(w, r)
	}))
	defer srv.Close()
	w := newWatch(t, m, srv.URL)
	w.cfg.Rules, w.cfg.MaxGrowth = []Rule{{Name: "all", Kind: ".*"}}, 1<<20
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	within := time.Second
	if raceDetector {
		within = 4 * time.Second
	}
	w.limits = limits{5 * time.Second, within, 10 * time.Second, 0}
	rounds := 0
	var told []uint64
	for ; w.kept.Audited.none(); rounds++ {
		if rounds == 20 {
			t.Fatal("never read to the end")
		}
		if err := w.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.kept.Audited.none() && len(w.out.alerts) > 0 {
			t.Fatalf("told before a checkpoint vouches for it: %+v", w.out.alerts[0])
		}
	}
	for _, a := range w.out.alerts {
		if a.Code == CodeMatch {
			told = append(told, *a.Index)
		}
	}
	if !slices.Equal(told, upTo(700)) || rounds < 2 {
		t.Errorf("%d entries told after %d rounds", len(told), rounds)
	}
	w.out.codes()
	// Beside a copy that is quick and shows less: what was read of the slow one counts for nothing.
	requests.Store(0)
	part := newLogDir(t)
	part.extend(m.Leaves[:300])
	part.seal(m.Checkpoint(part.tree, seats3...))
	fast := newWatch(t, m, srv.URL, part.path)
	fast.cfg = w.cfg
	fast.cfg.Logs, fast.cfg.State = []string{srv.URL, part.path}, filepath.Join(t.TempDir(), "state")
	if err := fast.start(); err != nil {
		t.Fatal(err)
	}
	fast.limits = w.limits
	for rounds = 0; fast.kept.Audited.none(); rounds++ {
		if rounds == 3 {
			t.Fatal("a slow copy holds up a quick one")
		}
		if err := fast.round(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	told = nil
	for _, a := range fast.out.alerts {
		if a.Code == CodeMatch {
			told = append(told, *a.Index)
		}
	}
	if !slices.Equal(told, upTo(300)) {
		t.Errorf("%d entries told, want 300", len(told))
	}
}

// TestWitness: what an outside witness shows is held against the log, without tiles.
func TestWitness(t *testing.T) {
	m := audittest.New(audittest.Options{At: begin, Edit: func(g *consensus.Genesis) { g.Witnesses = []string{audittest.WitnessKey()} }}).Start()
	l := newLogDir(t).publish(m, append(seats3, audittest.Witness)...)
	var shows atomic.Pointer[[]byte]
	show := func(note []byte) { shows.Store(&note) }
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/prefix/checkpoint" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(*shows.Load())
	}))
	defer srv.Close()
	note := func(of *audittest.Mesh, size int, boots ...string) []byte {
		at := audittest.Place(of.Leaves[:size])
		var root transparency.Hash
		if err := root.UnmarshalText([]byte(at.Root)); err != nil {
			t.Fatal(err)
		}
		return of.Sealed(uint64(size), root, boots...)
	}
	w := newWatch(t, m, l.path)
	w.cfg.Witnesses = []string{srv.URL + "/prefix"}
	show(note(m, 5, audittest.Witness))
	w.expect("")
	show(note(m, 8, audittest.Witness))
	w.expect("")
	// It has seen more than any member shows.
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	show(note(m, 9, audittest.Witness))
	w.expect("")
	w.now = w.now.Add(w.cfg.MaxAge)
	w.expect("+behind")
	m.Cosigned = w.now
	l.publish(m, seats3...)
	w.expect("-behind")
	// Members cosign and the witness does not.
	w.now = w.now.Add(w.cfg.Silent + time.Second)
	m.Cosigned = w.now
	l.publish(m, seats3...)
	w.expect("+witness_silent")
	show(note(m, 9, audittest.Witness))
	w.expect("-witness_silent")
	// It was shown another history, by who has the log key.
	other := audittest.New(audittest.Options{At: begin, Edit: func(g *consensus.Genesis) { g.Witnesses = []string{audittest.WitnessKey()} }}).Start()
	other.Command(consensus.KindCredential, other.Credential("gamma/n2"))
	show(note(other, 9, audittest.Witness))
	if got := w.poll(); got != "+log_key_leaked!" && got != "+misbehaviour!" {
		t.Errorf("told %q", got)
	}
	list, err := os.ReadDir(filepath.Join(w.cfg.State, evidenceDir))
	if err != nil || len(list) != 1 {
		t.Errorf("%d files of evidence, %v", len(list), fmt.Sprint(err))
	}
}
