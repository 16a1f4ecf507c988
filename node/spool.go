package node

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"

	"github.com/attestmesh/meshnode/transparency"
)

// spool holds the leaves of a log outside of memory: a file without a name, which is gone with
// this process at the latest. Each leaf is its length, a big-endian uint16, and its bytes.
type spool struct {
	f     *os.File
	w     *bufio.Writer
	count uint64
}

func newSpool() (*spool, error) {
	f, err := os.CreateTemp("", "meshnode-leaves")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return &spool{f: f, w: bufio.NewWriterSize(f, 1<<16)}, nil
}

func (s *spool) append(leaf []byte) error {
	if len(leaf) > math.MaxUint16 {
		return fmt.Errorf("a leaf of %d bytes, the limit is %d", len(leaf), math.MaxUint16)
	}
	if _, err := s.w.Write(binary.BigEndian.AppendUint16(nil, uint16(len(leaf)))); err != nil {
		return err
	}
	if _, err := s.w.Write(leaf); err != nil {
		return err
	}
	s.count++
	return nil
}

// each visits the leaves in order, up to the first error; visit may keep the slice.
func (s *spool) each(visit func(i uint64, leaf []byte) error) error {
	if err := s.w.Flush(); err != nil {
		return err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(s.f, 0, math.MaxInt64), 1<<16)
	for i := range s.count {
		var size [2]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return err
		}
		leaf := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(r, leaf); err != nil {
			return err
		}
		if err := visit(i, leaf); err != nil {
			return err
		}
	}
	return nil
}

// appendBatch is how many leaves are put into a tree at a time.
const appendBatch = 1024

// appendTo appends the leaves from one on to a tree.
func (s *spool) appendTo(tree *transparency.Tree, from uint64) error {
	var batch [][]byte
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		_, err := tree.AppendAll(batch)
		batch = batch[:0]
		return err
	}
	err := s.each(func(i uint64, leaf []byte) error {
		if i < from {
			return nil
		}
		if batch = append(batch, leaf); len(batch) < appendBatch {
			return nil
		}
		return flush()
	})
	if err != nil {
		return err
	}
	return flush()
}

func (s *spool) close() {
	if s != nil {
		s.f.Close()
	}
}
