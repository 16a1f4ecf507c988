package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/durable"
)

var errCut = errors.New("cut")

// TestCut: the monitor is cut off at every step that it takes on the disk and at its output, once each,
// and started again. Every match is in the journal once, reaches the output at least once and in
// order, with one id.
func TestCut(t *testing.T) {
	stride := 1
	if raceDetector {
		stride = 7
	}
	for n := 0; ; n += stride {
		steps := cutAt(t, n)
		if t.Failed() {
			t.Fatalf("cut at step %d", n)
		}
		if n >= steps {
			t.Logf("%d steps", steps)
			if steps < 30 {
				t.Errorf("%d steps: the scenario does too little", steps)
			}
			return
		}
	}
}

// cutAt runs a scenario that fails at step n, and returns how many steps it took.
func cutAt(t *testing.T, n int) int {
	t.Helper()
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.cfg.Rules = []Rule{{Name: "all", Kind: ".*"}}
	steps := 0
	step := func() error {
		steps++
		if steps-1 == n {
			return errCut
		}
		return nil
	}
	w.store = []durable.Option{durable.WithFault(func(durable.Op, string) error { return step() })}
	out := &cutOutput{step: step}
	round := func() {
		t.Helper()
		for range 3 {
			if w.Monitor == nil {
				if err := w.start(); err != nil && !errors.Is(err, errCut) {
					t.Fatal(err)
				} else if err != nil {
					continue
				}
				w.store2(out, step)
			}
			err := w.round(t.Context())
			if err == nil {
				return
			}
			if !errors.Is(err, errCut) {
				t.Fatal(err)
			}
			w.Close() // as the kernel does for a process that was killed
			w.Monitor = nil
		}
		t.Fatal("does not come up again")
	}
	round()
	m.Tick(time.Minute)
	m.Grow(len(m.Leaves) + 3)
	l.publish(m, seats3...)
	w.now = m.At
	round()
	round()
	raw, err := os.ReadFile(filepath.Join(w.cfg.State, journalName))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := matches(t, raw), upTo(len(m.Leaves)); !slices.Equal(got, want) {
		t.Errorf("the journal has %v", got)
	}
	if got, want := firsts(matches(t, out.buf.Bytes())), upTo(len(m.Leaves)); !slices.Equal(got, want) {
		t.Errorf("the output has %v", got)
	}
	return steps
}

// store2 gives a monitor the output, and has its journal fail too.
func (w *watch) store2(out Output, step func() error) {
	w.deps.Out = out
	w.Monitor.store.journal.fault = func(string) error { return step() }
}

// cutOutput is an output that fails before and after a line.
type cutOutput struct {
	buf  bytes.Buffer
	step func() error
}

func (o *cutOutput) Alert(line []byte) error {
	if err := o.step(); err != nil {
		return err
	}
	o.buf.Write(line)
	return nil
}

func (o *cutOutput) Heartbeat(Heartbeat) error { return nil }
func (o *cutOutput) Sync() error               { return o.step() }

// matches returns the indices of the matches in lines, and demands one id for each.
func matches(t *testing.T, lines []byte) []uint64 {
	t.Helper()
	ids, of := map[uint64]string{}, map[string]uint64{}
	var out []uint64
	for line := range bytes.Lines(lines) {
		var a Alert
		if err := json.Unmarshal(line, &a); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if a.Code != CodeMatch {
			continue
		}
		if id, ok := ids[*a.Index]; ok && id != a.ID {
			t.Errorf("leaf %d has ids %s and %s", *a.Index, id, a.ID)
		}
		if i, ok := of[a.ID]; ok && i != *a.Index {
			t.Errorf("leaves %d and %d have id %s", i, *a.Index, a.ID)
		}
		ids[*a.Index], of[a.ID] = a.ID, *a.Index
		out = append(out, *a.Index)
	}
	return out
}

// firsts returns each value where it comes first.
func firsts(in []uint64) []uint64 {
	seen := map[uint64]bool{}
	return slices.DeleteFunc(slices.Clone(in), func(i uint64) bool { again := seen[i]; seen[i] = true; return again })
}

func upTo(n int) []uint64 {
	var out []uint64
	for i := range n {
		out = append(out, uint64(i))
	}
	return out
}

// TestTornJournal: what was written of a line when the power went is removed; a journal that was cut
// from outside is refused.
func TestTornJournal(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.cfg.Rules = []Rule{{Name: "all", Kind: ".*"}}
	w.poll()
	w.Close()
	w.Monitor = nil
	name := filepath.Join(w.cfg.State, journalName)
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, tail := range []string{"{", "{\"type\":\"alert\"}x\n", "\x00\x00\x00\n", fmt.Sprintf("%070000d", 1)} {
		if err := os.WriteFile(name, append(slices.Clone(whole), tail...), 0o600); err != nil {
			t.Fatal(err)
		}
		w.expect("")
		w.Close()
		w.Monitor = nil
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, whole) {
			t.Errorf("after %.20q: %d bytes, want %d (%v)", tail, len(got), len(whole), err)
		}
	}
	if err := os.WriteFile(name, whole[:len(whole)-1], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.start(); !errors.Is(err, ErrBroken) {
		t.Errorf("cut from outside: %v", err)
	}
}
