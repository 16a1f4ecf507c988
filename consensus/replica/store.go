package replica

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/durable"
)

// The kinds of stores. Genesis fixes which one a mesh uses.
const (
	// StoreMemory keeps everything in memory, which inside a TEE the host can neither read
	// nor roll back. It dies with the process.
	StoreMemory = "memory"
	// StoreDisk keeps everything in one bbolt file, each write synchronous. Whoever owns
	// the disk can put back an older file: no rollback protection.
	StoreDisk = "disk"
)

// Store holds a replica's log, term and vote.
//
// A write that has returned nil survives the end of the process (StoreDisk) and is seen by
// every later read. A write that fails leaves the store as it was, and the replica ends.
// StoreLogs continues the log: indices are consecutive, from any in an empty log.
// DeleteRange takes the beginning or the end of the log, both ends inclusive.
// GetLog of an absent entry returns raft.ErrLogNotFound; Get of an absent key returns an
// error with the text "not found", as raft expects; GetUint64 of one returns 0.
// StageCommitIndex keeps its index for the next StoreLogs, which writes both in one step;
// GetCommitIndex returns the newest written, never above the last entry. SaveSnapshot replaces
// the snapshot as a whole; LoadSnapshot returns it, nil where there is none, and fails if it is
// not what was saved. Reads may run beside a write. One replica at a time uses a Store.
type Store interface {
	raft.CommitTrackingLogStore
	raft.StableStore
	SaveSnapshot(*Snapshot) error
	LoadSnapshot() (*Snapshot, error)
	io.Closer
}

// OpenStore opens a store of the kind. dir, needed for StoreDisk only, holds its file
// raft.db, which no other process may have open.
func OpenStore(kind string, dir *durable.Dir) (Store, error) {
	switch kind {
	case StoreMemory:
		return newMemoryStore(), nil
	case StoreDisk:
		if dir == nil {
			return nil, errors.New("raft store: kind disk needs a directory")
		}
		return openBolt(dir)
	}
	return nil, fmt.Errorf("raft store: unknown kind %.32q, want %s or %s", kind, StoreMemory, StoreDisk)
}

// membership is a configuration and the index of its entry.
type membership struct {
	index         uint64
	configuration raft.Configuration
}

// watchedStore stands between raft and its store. It refuses to delete what is committed,
// knows which configuration holds where, and reports a store that fails or hangs.
type watchedStore struct {
	Store
	commit  func() uint64 // raft's commit index
	fail    func(error)
	timeout time.Duration

	mu          sync.Mutex // held for no store access
	memberships []membership
	failed      error
	snapshot    uint64 // index of the stored snapshot
	obsolete    uint64 // up to here the log is of another history than the snapshot
}

// watch wraps s and reads the configurations of its log.
func watch(s Store, fail func(error)) (*watchedStore, error) {
	w := &watchedStore{Store: s, commit: func() uint64 { return 0 }, fail: fail, timeout: storeTimeout}
	first, err := s.FirstIndex()
	if err != nil {
		return nil, fmt.Errorf("raft store: first index: %w", err)
	}
	last, err := s.LastIndex()
	if err != nil {
		return nil, fmt.Errorf("raft store: last index: %w", err)
	}
	if first, err = w.behindSnapshot(first, last); err != nil {
		return nil, fmt.Errorf("raft store: %w", err)
	}
	for i := first; i <= last && first > 0; i++ {
		var l raft.Log
		if err := s.GetLog(i, &l); err != nil {
			return nil, fmt.Errorf("raft store: entry %d: %w", i, err)
		}
		if err := inspectEntry(&l, func([]byte) error { return nil }); err != nil {
			return nil, fmt.Errorf("raft store: %w", err)
		}
		w.remember(&l)
	}
	return w, nil
}

func (w *watchedStore) remember(l *raft.Log) {
	if l.Type != raft.LogConfiguration {
		return
	}
	c, err := decodeConfiguration(l.Data)
	if err != nil {
		return // only our own raft could have made it; raft panics over it by itself
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.memberships); n == 0 || w.memberships[n-1].index < l.Index { // a snapshot's may be newer
		w.memberships = append(w.memberships, membership{l.Index, c})
	}
}

// behindSnapshot reads the snapshot of a store that is opened, lets go of a log that ends before
// it (a crash came between the two), and returns the first entry.
func (w *watchedStore) behindSnapshot(first, last uint64) (uint64, error) {
	s, err := w.Store.LoadSnapshot()
	if err != nil || s == nil {
		return first, err
	}
	c, err := s.check()
	if err != nil {
		return first, err
	}
	w.snapshot, w.memberships = s.Index, []membership{{s.ConfigurationIndex, c}}
	var l raft.Log
	if err := w.Store.GetLog(s.Index, &l); first > 0 && (last < s.Index || err == nil && l.Term != s.Term) {
		return 0, w.Store.DeleteRange(first, last)
	}
	return first, nil
}

// snapshotIndex returns the index of the stored snapshot, 0 without.
func (w *watchedStore) snapshotIndex() uint64 {
	if w == nil {
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snapshot
}

// loadSnapshot reads the snapshot; that it cannot be read is final.
func (w *watchedStore) loadSnapshot() (*Snapshot, error) {
	s, err := w.Store.LoadSnapshot()
	if err == nil && s != nil {
		_, err = s.check()
	}
	if err != nil {
		err = fmt.Errorf("raft store: snapshot: %w", err)
		w.fail(err)
		return nil, err
	}
	return s, nil
}

// saveSnapshot stores a snapshot: one that this replica made, or one that it was sent because its
// log ends before it or is of another history.
func (w *watchedStore) saveSnapshot(s *Snapshot) error {
	c, err := s.check()
	if err != nil {
		return err
	}
	var l raft.Log
	last, err := w.Store.LastIndex()
	if err != nil {
		return err
	}
	held := w.Store.GetLog(s.Index, &l) == nil && l.Term == s.Term
	if err := w.do("store a snapshot", func() error { return w.Store.SaveSnapshot(s) }); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.snapshot = s.Index
	if held {
		return nil
	}
	w.obsolete, w.memberships = last, []membership{{s.ConfigurationIndex, c}}
	return nil
}

// before returns the newest stored configuration below index.
func (w *watchedStore) before(index uint64) (membership, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := len(w.memberships) - 1; i >= 0; i-- {
		if w.memberships[i].index < index {
			return w.memberships[i], true
		}
	}
	return membership{}, false
}

// latest returns the newest stored configuration, committed or not.
func (w *watchedStore) latest() (membership, bool) { return w.before(1<<64 - 1) }

// do runs one write, with the watchdog beside it. After the first failure the log is
// closed for writing.
func (w *watchedStore) do(what string, write func() error) error {
	w.mu.Lock()
	failed := w.failed
	w.mu.Unlock()
	if failed != nil {
		return failed
	}
	dog := time.AfterFunc(w.timeout, func() {
		w.fail(fmt.Errorf("raft store: %s has not returned after %v", what, w.timeout))
	})
	err := write()
	dog.Stop()
	if err != nil {
		err = fmt.Errorf("raft store: %s: %w", what, err)
		w.mu.Lock()
		w.failed = err
		w.mu.Unlock()
		w.fail(err)
	}
	return err
}

// GetLog implements raft.LogStore.
func (w *watchedStore) GetLog(index uint64, l *raft.Log) error {
	err := w.Store.GetLog(index, l)
	if err != nil && !errors.Is(err, raft.ErrLogNotFound) {
		w.fail(fmt.Errorf("raft store: entry %d: %w", index, err))
	}
	return err
}

// StoreLog implements raft.LogStore.
func (w *watchedStore) StoreLog(l *raft.Log) error { return w.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore. It runs on raft's main loop.
func (w *watchedStore) StoreLogs(logs []*raft.Log) error {
	err := w.do("store entries", func() error {
		if err := w.Store.StageCommitIndex(w.commit()); err != nil {
			return err
		}
		return w.Store.StoreLogs(logs)
	})
	if err != nil {
		return err
	}
	for _, l := range logs {
		w.remember(l)
	}
	return nil
}

// StageCommitIndex implements raft.CommitTrackingLogStore; StoreLogs stages by itself.
func (w *watchedStore) StageCommitIndex(uint64) error { return nil }

// IsMonotonic implements raft.MonotonicLogStore: the log has no holes, so that all of it goes
// when a snapshot replaces it.
func (w *watchedStore) IsMonotonic() bool { return true }

// DeleteRange implements raft.LogStore. raft calls it on its main loop to replace a conflicting
// suffix, so that the commit index cannot move under it; and with the beginning of the log when
// a snapshot holds what that led to.
func (w *watchedStore) DeleteRange(first, last uint64) error {
	if done, err := w.compact(first, last); done || err != nil {
		return err
	}
	if floor := max(w.commit(), foundingIndex); first <= floor {
		return fmt.Errorf("%w: deletes entries %d to %d, committed are entries up to %d", errRefused, first, last, floor)
	}
	if err := w.do("delete entries", func() error { return w.Store.DeleteRange(first, last) }); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for n := len(w.memberships); n > 0 && w.memberships[n-1].index >= first; n-- {
		w.memberships = w.memberships[:n-1]
	}
	return nil
}

// compact deletes the beginning of the log, and reports whether it was asked to.
func (w *watchedStore) compact(first, last uint64) (bool, error) {
	begin, err := w.Store.FirstIndex()
	if err != nil {
		return false, err
	}
	w.mu.Lock()
	beginning := first <= begin && last <= max(w.snapshot, w.obsolete)
	w.mu.Unlock()
	if !beginning {
		return false, nil
	}
	if err := w.do("delete entries", func() error { return w.Store.DeleteRange(first, last) }); err != nil {
		return true, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.obsolete = 0
	n := 0 // the newest configuration up to last holds behind it
	for n+1 < len(w.memberships) && w.memberships[n+1].index <= last {
		n++
	}
	w.memberships = w.memberships[n:]
	return true, nil
}

// Set implements raft.StableStore.
func (w *watchedStore) Set(key, value []byte) error {
	return w.report(w.Store.Set(key, value))
}

// SetUint64 implements raft.StableStore.
func (w *watchedStore) SetUint64(key []byte, value uint64) error {
	return w.report(w.Store.SetUint64(key, value))
}

func (w *watchedStore) report(err error) error {
	if err != nil {
		err = fmt.Errorf("raft store: term and vote: %w", err)
		w.fail(err)
	}
	return err
}
