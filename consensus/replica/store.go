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
// GetCommitIndex returns the newest written, never above the last entry. Reads may run
// beside a write. One replica at a time uses a Store.
type Store interface {
	raft.CommitTrackingLogStore
	raft.StableStore
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
	w.memberships = append(w.memberships, membership{l.Index, c})
	w.mu.Unlock()
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

// DeleteRange implements raft.LogStore. It runs on raft's main loop, so that the commit
// index cannot move under it. raft calls it to replace a conflicting suffix; there is no
// compaction yet.
func (w *watchedStore) DeleteRange(first, last uint64) error {
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
