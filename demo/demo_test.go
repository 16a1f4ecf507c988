package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// play runs the director against a fake mesh in a temporary directory of the test.
func play(t *testing.T, ctx context.Context, w *world, o Options) (string, error) {
	t.Helper()
	shortDir(t)
	var out bytes.Buffer
	o.Nodes, o.Rounds, o.Executable, o.Stdout = len(w.p.founders), w.rounds, w.exe, &out
	err := Run(ctx, o)
	eventually(t, "the end of every process", func() bool { return w.alive() == 0 })
	return out.String(), err
}

// shortDir makes a directory whose path leaves room for sockets, and temporary
// directories of the demo are made in it.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "d")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Setenv("TMPDIR", dir)
	return dir
}

// temporary lists what demos left in their temporary directories.
func temporary(t *testing.T) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "meshnode-*"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

func TestStory(t *testing.T) {
	for _, nodes := range []int{5, 6, 7} {
		w := newWorld(t, nodes, 6, "")
		out, err := play(t, t.Context(), w, Options{JSON: true})
		if err != nil {
			t.Fatalf("%d nodes: %v", nodes, err)
		}
		if left := temporary(t); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
		var r Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		checkReport(t, w, r)
	}
}

func checkReport(t *testing.T, w *world, r Report) {
	t.Helper()
	if !r.OK || !r.CertificateOK || r.Error != nil || r.Nodes != len(w.p.founders) || r.Rounds != w.rounds || len(r.Accuracy) != w.rounds {
		t.Errorf("report %+v", r)
	}
	if want := []Fate{{"beta/n2", "m-next", "measurement_not_allowed", "m-next", "another", "do something"}}; !slices.Equal(r.Denied, want) {
		t.Errorf("denied %v, want %v", r.Denied, want)
	}
	if want := []Fate{{Node: "beta/n2", Measurement: "m-next", Code: "affirming"}}; !slices.Equal(r.Admitted, want) {
		t.Errorf("admitted %v, want %v", r.Admitted, want)
	}
	if len(r.Evicted) != 1 || r.Evicted[0].Node != "delta/n1" || r.Evicted[0].Measurement != "m-older" || r.Evicted[0].Code != "revoked" {
		t.Errorf("evicted %v", r.Evicted)
	}
	if len(r.EvictionMS) != len(w.p.founders) || r.EvictionMS["alpha/n1"] != 40 {
		t.Errorf("eviction times %v, want one for every survivor", r.EvictionMS)
	}
	if r.Killed == nil || r.Killed.Attempt != 2 || r.Killed.Node == "delta/n1" || r.Killed.Aggregator == r.Killed.Node {
		t.Errorf("killed %+v", r.Killed)
	}
	if r.Log.Size != 30 || string(r.Log.Cosigners) != `["alpha","beta","gamma"]` || r.AccuracyLocal != 0.5 || r.AccuracyShuffled != 0.1 {
		t.Errorf("log %+v, local %v, shuffled %v", r.Log, r.AccuracyLocal, r.AccuracyShuffled)
	}
}

// TestFalseClaims makes each claim of the story false, once.
func TestFalseClaims(t *testing.T) {
	for fault, want := range map[string]string{
		"founder dies":    "the disk is on fire",
		"open door":       `step "deny a measurement nobody approved"`,
		"wrong code":      `code measurement_not_allowed, got "debug"`,
		"evicted dies":    "delta/n1",
		"slow closing":    "6000.0 ms after the first node's decision",
		"kill too late":   "SIGKILL came too late",
		"trains again":    "it trained 2 times",
		"another model":   "different models",
		"audit finding":   "replay_mismatch",
		"wrong sum":       "job verify",
		"local is better": "does not beat",
	} {
		t.Run(fault, func(t *testing.T) {
			w := newWorld(t, 5, 6, fault)
			out, err := play(t, t.Context(), w, Options{JSON: true})
			var failed *StepError
			if !errors.As(err, &failed) || !strings.Contains(err.Error(), want) {
				t.Fatalf("got %v, want a failed step that says %q", err, want)
			}
			var r Report
			if json.Unmarshal([]byte(out), &r) != nil || r.OK || r.Error == nil || r.Error.Step != failed.Step || r.Directory != failed.Dir {
				t.Errorf("report %s", out)
			}
			if left := temporary(t); len(left) != 1 || left[0] != failed.Dir {
				t.Errorf("kept %v, want the logs in %s", left, failed.Dir)
			}
		})
	}
}

// TestInterrupted ends the story at many moments, each time as the n-th process starts.
func TestInterrupted(t *testing.T) {
	for n := 1; n < 100; n += 11 {
		w := newWorld(t, 5, 6, "")
		ctx, cancel := context.WithCancel(t.Context())
		var reached sync.Once
		w.onCall = func(call int, _ []string) {
			if call == n {
				reached.Do(cancel)
			}
		}
		out, err := play(t, ctx, w, Options{JSON: true})
		cancel()
		if !errors.Is(err, context.Canceled) || out != "" {
			t.Errorf("process %d: got %v and %q, want it interrupted and silent", n, err, out)
		}
		if left := temporary(t); len(left) > 0 {
			t.Errorf("process %d: left behind: %v", n, left)
		}
	}
}

func TestHumanStory(t *testing.T) {
	w := newWorld(t, 5, 6, "")
	dir := filepath.Join(shortDir(t), "kept dir")
	out, err := play(t, t.Context(), w, Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"genesis signed by 5 keys", "5 seats", "code   measurement_not_allowed", "remedy do something", "the same process, pid ",
		"round 1 of 6 committed: accuracy 0.901", "is sent SIGKILL", "nobody trained again", "longest 40.0 ms",
		"beta/n2", "denied, then admitted", "evicted, refused: revoked", "killed in round", "log audit '" + dir + "/log' --genesis",
		"federated accuracy 0.906 beats the best organisation alone, 0.500; with shuffled labels 0.100",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the story lacks %q", want)
		}
	}
	for _, name := range []string{"nodes/alpha-n1/config.yaml", "nodes/alpha-n1/node.log", "nodes/alpha-n1/status.json", "demo.log", "job.yaml"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.Log(out)
	}
}

// TestServe leaves the mesh up: a node killed then is told, not fatal.
func TestServe(t *testing.T) {
	w := newWorld(t, 5, 3, "")
	shortDir(t)
	r, pipe := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- Run(ctx, Options{Nodes: 5, Rounds: 3, Serve: true, Executable: w.exe, Stdout: pipe})
		pipe.Close()
	}()
	var told strings.Builder
	lines := &lineWriter{each: func(l []byte) {
		told.Write(append(l, '\n'))
		switch {
		case strings.Contains(string(l), "stays up until Ctrl-C"):
			w.kill("gamma/n1", "epsilon/n1")
		case strings.Contains(string(l), "ended: signal: killed"):
			cancel()
		}
	}}
	if _, err := io.Copy(lines, r); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatalf("%v\n%s", err, told.String())
	}
	eventually(t, "the end of every process", func() bool { return w.alive() == 0 })
	if left := temporary(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestUsage(t *testing.T) {
	w := newWorld(t, 5, 5, "")
	dir := shortDir(t)
	full := filepath.Join(dir, "full")
	text := filepath.Join(dir, "text.csv")
	if err := errors.Join(os.Mkdir(full, 0o700), os.WriteFile(filepath.Join(full, "x"), nil, 0o600), os.WriteFile(text, []byte("1,text,a\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	long := filepath.Join(dir, strings.Repeat("x", 90))
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Nodes: 4, Rounds: 5}, "--nodes 4"},
		{Options{Nodes: 8, Rounds: 5}, "--nodes 8"},
		{Options{Nodes: 5, Rounds: 2}, "--rounds 2"},
		{Options{Nodes: 5, Rounds: maxRounds + 1}, "--rounds 501"},
		{Options{Nodes: 5, Rounds: 5, Dir: full}, "is not empty"},
		{Options{Nodes: 5, Rounds: 5, Dir: text}, "--dir"},
		{Options{Nodes: 5, Rounds: 5, Dir: long}, "unix socket"},
		{Options{Nodes: 5, Rounds: 5, Data: filepath.Join(dir, "none.csv")}, "no such file"},
		{Options{Nodes: 5, Rounds: 5, Data: full}, "is not a file"},
		{Options{Nodes: 5, Rounds: 5, Data: text, Dir: filepath.Join(dir, "new")}, "line 1: field 2 is no number"},
	} {
		c.o.JSON = true
		var out bytes.Buffer
		c.o.Executable, c.o.Stdout = w.exe, &out
		err := Run(t.Context(), c.o)
		var mistake *UsageError
		if !errors.As(err, &mistake) || !strings.Contains(mistake.Message, c.want) || mistake.Remedy == "" {
			t.Errorf("%+v: got %v, want a usage error about %q with a remedy", c.o, err, c.want)
		}
		if out.Len() > 0 {
			t.Errorf("%+v: printed %s", c.o, out.String())
		}
	}
	if left := temporary(t); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("a directory was made although the data are bad")
	}
	if w.calls != 1 {
		t.Errorf("%d processes were started, want job split alone", w.calls)
	}
}

func TestRenderTable(t *testing.T) {
	got := renderTable([]row{{"alpha/n1", "current", "member", "affirming", "5", "0123…"}, {"b/n", "older", "evicted, refused: revoked", "-", "12", "-"}})
	want := "" +
		"node      release  fate                       verdict    rounds trained  model root\n" +
		"alpha/n1  current  member                     affirming  5               0123…\n" +
		"b/n       older    evicted, refused: revoked  -          12              -\n"
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestFillDraft(t *testing.T) {
	frame := "mesh_id: \"00ff\"\ncreated: 2026-01-01T00:00:00.5Z\nbase: 3\nactions: []\n"
	got, err := fillDraft([]byte(frame), map[string]any{"remove_entry": map[string]string{"measurement": "ab"}})
	want := "mesh_id: \"00ff\"\ncreated: 2026-01-01T00:00:00.5Z\nbase: 3\nactions:\n"
	if err != nil || !strings.HasPrefix(string(got), want) || !strings.Contains(string(got), "measurement: ab") {
		t.Errorf("got %q (%v)", got, err)
	}
	for _, bad := range []string{"", "- a\n", "base: 3\n", ":::\n\t"} {
		if out, err := fillDraft([]byte(bad), nil); err == nil {
			t.Errorf("%q: got %q, want an error", bad, out)
		}
	}
}

func TestPlan(t *testing.T) {
	for nodes, seats := range map[int]int{5: 5, 6: 5, 7: 7} {
		p := newPlan(nodes)
		if len(p.founders) != nodes || p.seats() != seats {
			t.Errorf("%d nodes: %d founders, %d seats", nodes, len(p.founders), p.seats())
		}
		if r := p.releases("beta"); !slices.Equal(r, []string{releaseCurrent, releaseNext}) {
			t.Errorf("beta vouches for %v", r)
		}
		if _, err := p.approvers(seats, "delta"); err == nil {
			t.Error("more approvers than organisations that may be asked")
		}
	}
}

func TestJobPlanLeavesTimeToVote(t *testing.T) {
	for rounds := minRounds; rounds <= 60; rounds++ {
		j := newJobPlan(rounds, 1500, 6)
		left := rounds - j.voteAfter
		if j.voteAfter < 1 || left < 2 || left*j.interval < votingSeconds {
			t.Errorf("%d rounds: vote after %d, every %d s: too short a time", rounds, j.voteAfter, j.interval)
		}
	}
	if e := newJobPlan(5, 1_000_000, 6).epochs; e != 1 {
		t.Errorf("a large file is trained %d epochs a round, want 1", e)
	}
}
