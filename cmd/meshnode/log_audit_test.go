package main

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
)

// gate serves a log up to a bundle, and makes whoever asks for a later one wait.
type gate struct {
	files http.Handler
	mu    sync.Mutex
	limit int
	asked []int // bundles, since the last reset
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if name, ok := strings.CutPrefix(r.URL.Path, "/tile/entries/"); ok {
		n, err := strconv.Atoi(name[:3])
		if err != nil {
			http.NotFound(w, r)
			return
		}
		g.mu.Lock()
		g.asked = append(g.asked, n)
		wait := n >= g.limit
		g.mu.Unlock()
		if wait {
			<-r.Context().Done()
			return
		}
	}
	g.files.ServeHTTP(w, r)
}

func (g *gate) open(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit, g.asked = limit, nil
}

func (g *gate) seen() []int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

// longLog is a log of some 20 bundles with three lies in it.
func longLog(t *testing.T) (g *gate, url string) {
	t.Helper()
	m := audittest.Complete()
	m.Cosigned = time.Now()
	m.Grow(5000)
	boots := m.Cosigners()
	m.Leaves = slices.Insert(m.Leaves, 700, []byte("no leaf"))
	m.Leaves = slices.Insert(m.Leaves, 2500, m.Result(boots[0], boots[1], "evil"))
	m.Leaves[4000] = m.Leaves[3999]
	dir := filepath.Join(t.TempDir(), "log")
	m.Publish(dir, boots...)
	g = &gate{files: http.FileServer(http.Dir(dir)), limit: 1 << 20}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	return g, server.URL
}

func auditProcess(t *testing.T, args ...string) (cmd *exec.Cmd, stdout *bytes.Buffer) {
	t.Helper()
	stdout = &bytes.Buffer{}
	cmd = exec.CommandContext(t.Context(), "meshnode", append([]string{"log", "audit", "--json"}, args...)...)
	cmd.Env = append(os.Environ(), exitAtOnce)
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, stdout
}

// An audit that is killed, wherever it has come to, goes on from what it has saved, and says what
// one says that nothing has interrupted.
func TestLogAuditSurvivesKills(t *testing.T) {
	g, url := longLog(t)
	whole, want := auditProcess(t, url)
	if err := whole.Wait(); exitCode(err) != exitRefused {
		t.Fatal(err)
	}
	for _, finding := range []string{`"index":700,"code":"malformed"`, `"index":2500,"code":"measurement_not_allowed"`, `"index":4000,"code":"replayed"`} {
		if !strings.Contains(want.String(), finding) {
			t.Fatalf("no %s in %.2000s", finding, want)
		}
	}
	state := filepath.Join(t.TempDir(), "audit.state")
	for limit := 3; limit < 20; limit += 4 {
		before, _ := os.ReadFile(state)
		g.open(limit)
		cmd, _ := auditProcess(t, "--state", state, "--save-every", "1ns", url)
		awaitChange(t, state, before)
		signal := syscall.SIGKILL
		if limit == 11 {
			signal = syscall.SIGINT
		}
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); signal == syscall.SIGINT && exitCode(err) != exitInterrupted {
			t.Errorf("interrupted: %v, want exit %d", err, exitInterrupted)
		}
		if limit > 3 && slices.Contains(g.seen(), 0) {
			t.Errorf("the audit that could go to bundle %d began again", limit)
		}
	}
	for _, what := range []string{"the rest", "nothing new"} {
		g.open(1 << 20)
		cmd, got := auditProcess(t, "--state", state, url)
		if err := cmd.Wait(); exitCode(err) != exitRefused || got.String() != want.String() {
			t.Errorf("%s: %v\n got %.2000s\nwant %.2000s", what, err, got, want)
		}
		if asked := g.seen(); what == "nothing new" && len(asked) > 0 {
			t.Errorf("nothing new: bundles %v were read", asked)
		}
	}
}

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// awaitChange returns when a file holds something else than before.
func awaitChange(t *testing.T, path string, before []byte) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); <-tick.C {
		if now, err := os.ReadFile(path); err == nil && !bytes.Equal(now, before) {
			return
		}
	}
	t.Fatalf("%s: as it was for a minute", path)
}
