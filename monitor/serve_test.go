package monitor

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attestmesh/meshnode/consensus"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestHostileServers: servers that do what they can to hang or to fill a monitor are unavailable, and
// what an honest copy shows is followed meanwhile.
func TestHostileServers(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	honest := httptest.NewServer(http.FileServer(http.Dir(l.path)))
	defer honest.Close()
	note, err := os.ReadFile(filepath.Join(l.path, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	endless := func(w http.ResponseWriter, r *http.Request) {
		chunk := []byte(strings.Repeat("A", 1<<16))
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}
	servers := map[string]http.HandlerFunc{
		"endless": endless,
		"loop":    func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path+"x", http.StatusFound) },
		"huge":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) },
		"nothing": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) },
		"broken":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"hang up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"no tiles": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/checkpoint") {
				_, _ = w.Write(m.Sealed(1<<39, emptyRoot(t), seats3...))
				return
			}
			http.NotFound(w, r)
		},
		"endless tiles": func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/checkpoint") {
				_, _ = w.Write(m.Sealed(9, emptyRoot(t), seats3...))
				return
			}
			endless(w, r)
		},
		"slow": func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		},
		"old": func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(note) },
	}
	w := newWatch(t, m, honest.URL)
	for name, h := range servers {
		srv := httptest.NewUnstartedServer(h)
		srv.Config.ErrorLog = nil
		srv.Start()
		t.Cleanup(srv.Close)
		w.cfg.Logs = append(w.cfg.Logs, srv.URL+"/"+strings.ReplaceAll(name, " ", "-"))
	}
	t.Cleanup(func() { close(release) })
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	w.limits = limits{2 * time.Second, 3 * time.Second, 5 * time.Second, 0}
	for _, boot := range []string{"beta/n2", "gamma/n2"} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		m.Command(consensus.KindCredential, m.Credential(boot))
		l.publish(m, seats3...)
		got := w.poll()
		w.now = w.now.Add(unavailableFor)
		runtime.ReadMemStats(&after)
		if w.kept.Audited.Size != uint64(len(m.Leaves)) {
			t.Errorf("stands at %d of %d after %s", w.kept.Audited.Size, len(m.Leaves), got)
		}
		if grew := int64(after.HeapInuse) - int64(before.HeapInuse); grew > 64<<20 {
			t.Errorf("the heap grew by %d MiB", grew>>20)
		}
	}
	if n := strings.Count(w.openCodes(), " "); n < 8 {
		t.Errorf("lasts: %s", w.openCodes())
	}
}

// TestRun: rounds go on until the context ends, metrics say where they are, and the hook is given
// every alert in order, again while it fails.
func TestRun(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	dir := t.TempDir()
	taken, failed := filepath.Join(dir, "taken"), filepath.Join(dir, "failed")
	// Refuses the first alert once, and says so.
	script := filepath.Join(dir, "hook")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nif [ ! -e \"$2\" ]; then : >\"$2\"; echo not now >&2; exit 7; fi\ncat >>\"$1\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.cfg.Hook = []string{script, taken, failed}
	w.cfg.Rules = []Rule{{Name: "all", Kind: ".*"}, {Name: "never", Kind: "none", Severity: Error}}
	w.cfg.Interval = time.Second
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx, ln) }()
	waitFor(t, "the hook", func() bool {
		raw, err := os.ReadFile(taken)
		return err == nil && strings.Count(string(raw), "\n") == 8
	})
	raw, err := os.ReadFile(taken)
	if err != nil {
		t.Fatal(err)
	}
	if got := matches(t, raw); len(firsts(got)) != 8 || got[0] != 0 || got[7] != 7 {
		t.Errorf("the hook was given %v", got)
	}
	waitFor(t, "the metrics", func() bool {
		text := get(t, "http://"+ln.Addr().String()+"/metrics")
		for _, want := range []string{"meshnode_monitor_verified_size 8", `meshnode_monitor_alerts_total{code="match",severity="notice"} 8`, `meshnode_monitor_alerts_total{code="match",severity="error"} 0`,
			"meshnode_monitor_hook_failures_total 1", "meshnode_monitor_hook_queue_bytes 0", "meshnode_monitor_lag_entries 0",
			"meshnode_monitor_checks_total", "meshnode_monitor_verified_timestamp_seconds 1.7"} {
			if !strings.Contains(text, want) {
				t.Logf("no %s", want)
				return false
			}
		}
		return true
	})
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Errorf("ended with %v", err)
	}
	if len(w.out.beats) == 0 || w.out.beats[0].Size != 8 {
		t.Errorf("heartbeats %v", w.out.beats)
	}
}

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// waitFor polls until f holds.
func waitFor(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// TestHook: an alert is taken by exit 0 alone; what does not end is killed with all it has started.
func TestHook(t *testing.T) {
	dir := t.TempDir()
	run := func(ctx context.Context, argv ...string) error { return runHook(ctx, argv, []byte("{}\n")) }
	if err := run(t.Context(), "/bin/sh", "-c", `read line && [ "$line" = "{}" ]`); err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), "/bin/sh", "-c", "echo because >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "because") {
		t.Errorf("exit 3: %v", err)
	}
	if err := run(t.Context(), filepath.Join(dir, "none")); err == nil {
		t.Error("a command that is not there took it")
	}
	if err := run(t.Context(), "/bin/true; exit 0"); err == nil {
		t.Error("a shell took part")
	}
	// It prints without end and has a child: both end with the context.
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(dir, "started")
	var done atomic.Bool
	go func() {
		_ = run(ctx, "/bin/sh", "-c", `sleep 1000 & echo $! >"$0"; while :; do echo xxxxxxxxxxxxxxxx; done`, started)
		done.Store(true)
	}()
	waitFor(t, "the hook", func() bool { raw, err := os.ReadFile(started); return err == nil && len(raw) > 1 })
	cancel()
	waitFor(t, "its end", done.Load)
	raw, err := os.ReadFile(started)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of its child", func() bool {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(raw)) + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}
