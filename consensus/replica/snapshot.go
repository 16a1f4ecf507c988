package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hashicorp/raft"
)

// MaxSnapshot bounds what a Machine encodes, and so what a leader can make us hold.
const MaxSnapshot = 96 << 20

// Snapshot is the machine after the entry at Index, and the configuration that holds there. A Store
// keeps the newest.
type Snapshot struct {
	Index, Term        uint64
	Configuration      []byte // as in an entry
	ConfigurationIndex uint64
	Data               []byte
}

// check demands the form that only raft's own snapshots and inspected ones have.
func (s *Snapshot) check() (raft.Configuration, error) {
	if s.Index == 0 || s.Term == 0 || s.ConfigurationIndex == 0 || s.ConfigurationIndex > s.Index {
		return raft.Configuration{}, fmt.Errorf("%w: snapshot at entry %d of term %d with configuration %d", errRefused, s.Index, s.Term, s.ConfigurationIndex)
	}
	if len(s.Data) == 0 || len(s.Data) > MaxSnapshot {
		return raft.Configuration{}, fmt.Errorf("%w: snapshot of %d bytes, want 1 to %d", errRefused, len(s.Data), MaxSnapshot)
	}
	return decodeConfiguration(s.Configuration)
}

// snapshotID names the one snapshot that there is.
const snapshotID = "newest"

// snapshotStore implements raft.SnapshotStore on a watchedStore. One that cannot be read ends the
// replica: as a leader it would keep everybody from catching up (hashicorp/raft#522).
type snapshotStore struct{ store *watchedStore }

// Create implements raft.SnapshotStore.
func (s snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	return &snapshotSink{store: s.store, snapshot: Snapshot{Index: index, Term: term, Configuration: raft.EncodeConfiguration(c), ConfigurationIndex: ci}}, nil
}

// List implements raft.SnapshotStore.
func (s snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	snap, err := s.store.loadSnapshot()
	if err != nil || snap == nil {
		return nil, err
	}
	return []*raft.SnapshotMeta{snap.meta()}, nil
}

// Open implements raft.SnapshotStore.
func (s snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	snap, err := s.store.loadSnapshot()
	if err == nil && (snap == nil || id != snapshotID) {
		err = fmt.Errorf("no snapshot %.20q", id)
	}
	if err != nil {
		return nil, nil, err
	}
	return snap.meta(), io.NopCloser(bytes.NewReader(snap.Data)), nil
}

func (s *Snapshot) meta() *raft.SnapshotMeta {
	c, _ := s.check() // loadSnapshot has
	return &raft.SnapshotMeta{Version: 1, ID: snapshotID, Index: s.Index, Term: s.Term, Configuration: c, ConfigurationIndex: s.ConfigurationIndex, Size: int64(len(s.Data))}
}

// snapshotSink implements raft.SnapshotSink.
type snapshotSink struct {
	store    *watchedStore
	snapshot Snapshot
	done     bool
}

// Write implements io.Writer.
func (s *snapshotSink) Write(p []byte) (int, error) {
	if len(s.snapshot.Data)+len(p) > MaxSnapshot {
		return 0, fmt.Errorf("snapshot of more than %d bytes", MaxSnapshot)
	}
	s.snapshot.Data = append(s.snapshot.Data, p...)
	return len(p), nil
}

// Close implements io.Closer: only then is anything stored, at once. Raft calls it twice.
func (s *snapshotSink) Close() error {
	if s.done {
		return nil
	}
	s.done = true
	return s.store.saveSnapshot(&s.snapshot)
}

// ID implements raft.SnapshotSink.
func (s *snapshotSink) ID() string { return snapshotID }

// Cancel implements raft.SnapshotSink.
func (s *snapshotSink) Cancel() error {
	s.done = true
	return nil
}

// Snapshot has this replica store a snapshot of its machine and lets go of the log behind it,
// but for Config.Trailing entries. It fails where the machine has none to give, and between a
// change of the configuration and the next command: then try again later.
func (r *Replica) Snapshot(ctx context.Context) error {
	r.mu.Lock()
	if r.state.silent || r.state.closing {
		r.mu.Unlock()
		return ErrClosed
	}
	r.applies.Add(1)
	r.mu.Unlock()
	done := make(chan error, 1)
	go func() { // Close waits for it
		defer r.applies.Done()
		done <- r.raft.Snapshot().Error()
	}()
	select {
	case err := <-done:
		if errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return nil
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// machineSnapshot implements raft.FSMSnapshot.
type machineSnapshot struct{ encode func() ([]byte, error) }

// Persist implements raft.FSMSnapshot.
func (m machineSnapshot) Persist(sink raft.SnapshotSink) error {
	raw, err := m.encode()
	if err == nil {
		_, err = sink.Write(raw)
	}
	return err
}

// Release implements raft.FSMSnapshot.
func (machineSnapshot) Release() {}

// Snapshot implements raft.FSM.
func (a *adapter) Snapshot() (raft.FSMSnapshot, error) {
	if a.broken != nil {
		return nil, a.broken
	}
	encode, err := a.machine.Snapshot()
	return machineSnapshot{encode}, err
}

// Restore implements raft.FSM. What it is given was checked, so that an error is a fault of this
// replica: the store has the snapshot and the machine has not.
func (a *adapter) Restore(source io.ReadCloser) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("machine panics while it is restored: %v", p)
		}
		if err != nil {
			a.broken = err
			a.fail(fmt.Errorf("snapshot: %w", err))
		}
	}()
	raw, err := io.ReadAll(io.LimitReader(source, MaxSnapshot+1))
	if err != nil {
		return err
	}
	if err := a.machine.Restore(raw); err != nil {
		return err
	}
	a.move(a.snapshotIndex())
	return nil
}
