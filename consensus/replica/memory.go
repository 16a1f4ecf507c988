package replica

import (
	"fmt"
	"sync"

	"github.com/hashicorp/raft"
)

// memoryStore is a Store in memory.
type memoryStore struct {
	mu     sync.RWMutex
	first  uint64 // index of logs[0]
	logs   []raft.Log
	stable map[string][]byte
	ints   map[string]uint64
	staged uint64
	commit uint64
	saved  *Snapshot
}

func newMemoryStore() *memoryStore {
	return &memoryStore{stable: map[string][]byte{}, ints: map[string]uint64{}}
}

// SaveSnapshot implements Store.
func (s *memoryStore) SaveSnapshot(snapshot *Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = snapshot
	return nil
}

// LoadSnapshot implements Store.
func (s *memoryStore) LoadSnapshot() (*Snapshot, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.saved, nil
}

// Close implements io.Closer; memory needs none.
func (s *memoryStore) Close() error { return nil }

// FirstIndex implements raft.LogStore.
func (s *memoryStore) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.logs) == 0 {
		return 0, nil
	}
	return s.first, nil
}

// LastIndex implements raft.LogStore.
func (s *memoryStore) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.last(), nil
}

func (s *memoryStore) last() uint64 {
	if len(s.logs) == 0 {
		return 0
	}
	return s.first + uint64(len(s.logs)) - 1
}

// GetLog implements raft.LogStore.
func (s *memoryStore) GetLog(index uint64, l *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.logs) == 0 || index < s.first || index > s.last() {
		return raft.ErrLogNotFound
	}
	*l = s.logs[index-s.first]
	return nil
}

// StoreLog implements raft.LogStore.
func (s *memoryStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs implements raft.LogStore.
func (s *memoryStore) StoreLogs(logs []*raft.Log) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := checkNext(s.last(), logs); err != nil {
		return err
	}
	if len(s.logs) == 0 && len(logs) > 0 {
		s.first = logs[0].Index
	}
	for _, l := range logs {
		s.logs = append(s.logs, *l)
	}
	s.commit = s.staged
	return nil
}

// checkNext refuses entries that do not continue a log that ends at last.
func checkNext(last uint64, logs []*raft.Log) error {
	for i, l := range logs {
		if l.Index == 0 || last > 0 && l.Index != last+1 {
			return fmt.Errorf("entry %d of %d has index %d, want %d", i, len(logs), l.Index, last+1)
		}
		last = l.Index
	}
	return nil
}

// DeleteRange implements raft.LogStore.
func (s *memoryStore) DeleteRange(first, last uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.logs) == 0 || first > s.last() || last < s.first {
		return nil
	}
	first, last = max(first, s.first), min(last, s.last())
	switch {
	case last == s.last():
		keep := first - s.first
		clear(s.logs[keep:]) // their data is garbage now
		s.logs = s.logs[:keep]
	case first == s.first:
		s.logs = append([]raft.Log(nil), s.logs[last-s.first+1:]...)
		s.first = last + 1
	default:
		return fmt.Errorf("entries %d to %d are neither the beginning nor the end of the log", first, last)
	}
	return nil
}

// StageCommitIndex implements raft.CommitTrackingLogStore.
func (s *memoryStore) StageCommitIndex(index uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.staged = index
	return nil
}

// GetCommitIndex implements raft.CommitTrackingLogStore.
func (s *memoryStore) GetCommitIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return min(s.commit, s.last()), nil
}

// Set implements raft.StableStore.
func (s *memoryStore) Set(key, value []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stable[string(key)] = append([]byte{}, value...)
	return nil
}

// Get implements raft.StableStore.
func (s *memoryStore) Get(key []byte) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	v, ok := s.stable[string(key)]
	if !ok {
		return nil, errNotFound
	}
	return append([]byte{}, v...), nil
}

// SetUint64 implements raft.StableStore.
func (s *memoryStore) SetUint64(key []byte, value uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ints[string(key)] = value
	return nil
}

// GetUint64 implements raft.StableStore.
func (s *memoryStore) GetUint64(key []byte) (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.ints[string(key)], nil
}
