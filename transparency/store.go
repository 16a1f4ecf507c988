package transparency

import (
	"fmt"
	"io/fs"
	"sync"

	"github.com/attestmesh/meshnode/internal/durable"
)

// store keeps the files of a log. put replaces atomically but not durably; sync makes
// named files durable; get wraps fs.ErrNotExist where there is no such file; drop removes
// a file or an empty directory and does not mind if it is absent.
type store interface {
	put(name string, data []byte) error
	get(name string, max int64) ([]byte, error)
	drop(name string) error
	sync(names []string) error
}

type dirStore struct{ dir *durable.Dir }

func (s dirStore) put(name string, data []byte) error         { return s.dir.Replace(name, data, 0o644) }
func (s dirStore) get(name string, max int64) ([]byte, error) { return s.dir.ReadFile(name, max) }
func (s dirStore) drop(name string) error                     { return s.dir.Discard(name) }
func (s dirStore) sync(names []string) error                  { return s.dir.Sync(names...) }

// memStore is the store of a tree without a directory.
type memStore struct {
	mu    sync.RWMutex
	files map[string][]byte // guarded by mu; values are never written again
}

func (s *memStore) put(name string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = append([]byte(nil), data...)
	return nil
}

func (s *memStore) get(name string, _ int64) ([]byte, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	data, ok := s.files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return data, nil
}

func (s *memStore) drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
	return nil
}

func (*memStore) sync([]string) error { return nil }
