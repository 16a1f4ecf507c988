package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/transparency"
)

// begin is the first instant of the meshes of these tests.
var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newMesh() *audittest.Mesh { return audittest.New(audittest.Options{At: begin}).Start() }

// logDir is a published copy of a mesh's log that grows.
type logDir struct {
	t    testing.TB
	path string
	tree *transparency.Tree
}

func newLogDir(t testing.TB) *logDir {
	t.Helper()
	l := &logDir{t: t, path: filepath.Join(t.TempDir(), "log")}
	dir, err := durable.Open(l.path)
	if err != nil {
		t.Fatal(err)
	}
	if l.tree, err = transparency.NewTree(dir); err != nil {
		t.Fatal(err)
	}
	return l
}

// publish brings the copy to all of a mesh's leaves, cosigned by boots.
func (l *logDir) publish(m *audittest.Mesh, boots ...string) *logDir {
	l.t.Helper()
	l.extend(m.Leaves)
	l.seal(m.Checkpoint(l.tree, boots...))
	return l
}

func (l *logDir) extend(leaves [][]byte) {
	l.t.Helper()
	if _, err := l.tree.AppendAll(leaves[l.tree.Size():]); err != nil {
		l.t.Fatal(err)
	}
}

func (l *logDir) seal(note []byte) {
	l.t.Helper()
	if err := l.tree.Publish(note); err != nil {
		l.t.Fatal(err)
	}
}

// show puts any bytes in place of the checkpoint.
func (l *logDir) show(note []byte) {
	l.t.Helper()
	if err := os.WriteFile(filepath.Join(l.path, "checkpoint"), note, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// book is an Output that keeps what it is given.
type book struct {
	alerts []Alert
	beats  []Heartbeat
	fail   error
	synced int
}

func (b *book) Alert(line []byte) error {
	if b.fail != nil {
		return b.fail
	}
	var a Alert
	if err := json.Unmarshal(line, &a); err != nil {
		return err
	}
	b.alerts = append(b.alerts, a)
	return nil
}

func (b *book) Heartbeat(h Heartbeat) error { b.beats = append(b.beats, h); return nil }
func (b *book) Sync() error                 { b.synced = len(b.alerts); return nil }

// codes lists what was given since the last call: code, ! for errors, + and - for conditions, and
// the index of leaves.
func (b *book) codes() string {
	var out []string
	for _, a := range b.alerts {
		s := a.Code
		switch a.Change {
		case Raised:
			s = "+" + s
		case Cleared:
			s = "-" + s
		}
		if a.Index != nil {
			s = fmt.Sprintf("%d:%s", *a.Index, s)
		}
		if a.Severity == Error {
			s += "!"
		}
		out = append(out, s)
	}
	b.alerts, b.synced = nil, 0
	return strings.Join(out, " ")
}

// watch is a monitor under test and its clock.
type watch struct {
	*Monitor
	t        testing.TB
	cfg      Config
	genesis  *consensus.Genesis
	receipts []Receipt
	now      time.Time
	out      *book
	warnings []string
	hold     time.Duration
	store    []durable.Option
}

func newWatch(t testing.TB, m *audittest.Mesh, logs ...string) *watch {
	t.Helper()
	w := &watch{t: t, cfg: DefaultConfig(), genesis: m.Genesis, now: m.At, out: &book{}}
	w.cfg.State, w.cfg.Logs = filepath.Join(t.TempDir(), "state"), logs
	t.Cleanup(func() {
		if w.Monitor != nil {
			w.Close()
		}
	})
	return w
}

// start makes the monitor, as after a restart if there was one.
func (w *watch) start() error {
	w.t.Helper()
	if w.Monitor != nil {
		w.Close()
		w.Monitor = nil
	}
	if err := w.cfg.Validate(); err != nil {
		w.t.Fatal(err)
	}
	m, err := New(w.cfg, w.receipts, Deps{Genesis: w.genesis, Out: w.out, Now: func() time.Time { return w.now }, Store: w.store,
		Warn: func(s string) { w.warnings = append(w.warnings, s) },
		Open: func(_ context.Context, location string) (*transparency.Reader, error) {
			return transparency.OpenReader(location)
		}})
	if err != nil {
		return err
	}
	w.Monitor = m
	m.limits.away = w.hold
	return nil
}

// poll makes one round and returns the codes of its alerts.
func (w *watch) poll() string {
	w.t.Helper()
	if w.Monitor == nil {
		if err := w.start(); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.round(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	if w.out.synced != len(w.out.alerts) {
		w.t.Errorf("%d alerts were given, %d synced", len(w.out.alerts), w.out.synced)
	}
	return w.out.codes()
}

// expect makes one round and compares the codes of its alerts.
func (w *watch) expect(want string) {
	w.t.Helper()
	if got := w.poll(); got != want {
		w.t.Errorf("told %q, want %q", got, want)
	}
}

func (w *watch) openCodes() string {
	var out []string
	for _, c := range w.conds.open() {
		out = append(out, c.Code)
	}
	return strings.Join(out, " ")
}

var seats3 = audittest.Seats()

func emptyRoot(t testing.TB) transparency.Hash {
	t.Helper()
	root, err := transparency.NewAccumulator().Root()
	if err != nil {
		t.Fatal(err)
	}
	return root
}
