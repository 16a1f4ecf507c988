package monitor

import (
	"io"
	"os"
)

// spool holds the alerts of leaves until a checkpoint vouches for them.
type spool struct {
	f     *os.File
	size  int64
	next  uint64 // leaf that follows those that were judged; 0 before any
	found map[string]bool
}

func openSpool(path string) (*spool, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return &spool{f: f, found: map[string]bool{}}, nil
}

func (s *spool) add(line []byte) error {
	n, err := s.f.WriteAt(line, s.size)
	s.size += int64(n)
	return err
}

// take returns what is to be told.
func (s *spool) take() (io.Reader, error) { return io.NewSectionReader(s.f, 0, s.size), nil }

func (s *spool) reset() error {
	s.size, s.next, s.found = 0, 0, map[string]bool{}
	return s.f.Truncate(0)
}

func (s *spool) Close() { s.f.Close() }
