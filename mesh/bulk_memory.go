package mesh

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/attestmesh/meshnode/internal/identity"
)

// memoryBulk is a whole connection of a MemoryNetwork as one stream: the pipe that carried
// its exchange.
type memoryBulk struct {
	*memoryStream
	once sync.Once
}

func (e *memoryEnd) stream() *memoryBulk {
	return &memoryBulk{memoryStream: &memoryStream{Pipe: e.handshake, conn: e.conn}}
}

// Close ends both directions; what was written is read first. The connection goes with its
// second end.
func (s *memoryBulk) Close() error {
	err := s.Pipe.Close()
	s.once.Do(func() {
		s.forget()
		s.conn.mu.Lock()
		last := s.conn.err == nil && len(s.conn.pipes) == 0
		s.conn.mu.Unlock()
		if last {
			s.conn.fail(errConnClosed)
		}
	})
	return err
}

// Reset ends the connection.
func (s *memoryBulk) Reset() error {
	s.conn.fail(errConnClosed)
	return nil
}

// Bulk implements Mesh.
func (m *memoryMesh) Bulk(ctx context.Context, peer identity.PeerID, addrs []string, p Protocol) (Stream, error) {
	return m.bulk(ctx, peer, p, func(ctx context.Context, p Protocol) (Stream, error) {
		err := errors.New("no address")
		for _, a := range addrs {
			var end *memoryEnd
			if end, err = m.net.connect(m, peer, a, p); err != nil {
				err = fmt.Errorf("%s: %w", a, m.report(peer, err))
				continue
			}
			if _, err = end.exchange(ctx, m); err == nil {
				return end.stream(), nil
			}
		}
		return nil, err
	})
}

// serveBulk runs an inbound bulk stream as one of the live link's.
func (m *memoryMesh) serveBulk(e *memoryEnd, p Protocol) {
	ch, err := e.exchange(m.ctx, m)
	if err != nil {
		return
	}
	from := ch.session().Peer
	shown, ok := m.Link(from)
	if !ok || !m.bulks.begin(from) {
		e.conn.fail(errConnClosed)
		return
	}
	defer m.bulks.end(from)
	shown.(*link).accept(p, e.stream())
}
