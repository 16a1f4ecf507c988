package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	mss "github.com/multiformats/go-multistream"

	ic "github.com/libp2p/go-libp2p/core/crypto"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// BulkID names the muxer that muxes nothing: the connection is one stream, without frames.
// Who dials offers it alone in TLS's ALPN, on the same port and under the same security
// protocol as any other connection.
const BulkID protocol.ID = "/meshnode-bulk/1.0.0"

// bulk opens a stream of p over a connection of its own, which belongs to the live link.
func (h *hub) bulk(ctx context.Context, peer identity.PeerID, p Protocol, dial func(context.Context, Protocol) (Stream, error)) (Stream, error) {
	if err := validateProtocol(p); err != nil {
		return nil, err
	}
	shown, ok := h.Link(peer)
	if !ok {
		return nil, fmt.Errorf("mesh: bulk %s to %s: no link to it", p, peer)
	}
	l := shown.(*link)
	if reason := l.permit(p); reason != nil {
		return nil, &Refusal{Peer: peer, Reasons: []attest.Reason{*reason}}
	}
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	defer context.AfterFunc(h.ctx, cancel)()
	s, err := l.openBy(ctx, p, dial)
	if err != nil {
		return nil, fmt.Errorf("mesh: bulk %s to %s: %w", p, peer, err)
	}
	return s, nil
}

// bulkMuxer makes a bulkConn of an attested connection.
type bulkMuxer struct{}

// NewConn implements network.Multiplexer.
func (bulkMuxer) NewConn(c net.Conn, _ bool, _ network.PeerScope) (network.MuxedConn, error) {
	attested, ok := c.(*attestedConn)
	if !ok {
		return nil, fmt.Errorf("mesh: a %T was never attested", c)
	}
	inner, ok := attested.SecureConn.(halfCloser)
	if !ok {
		return nil, fmt.Errorf("mesh: a %T cannot close one direction", attested.SecureConn)
	}
	return &bulkConn{inner: inner}, nil
}

// halfCloser is what *tls.Conn can do besides net.Conn.
type halfCloser interface {
	net.Conn
	CloseWrite() error // sends close_notify
	NetConn() net.Conn // what is below TLS
}

// bulkConn is a network.MuxedConn without streams.
type bulkConn struct {
	inner  halfCloser
	closed atomic.Bool
}

var errBulk = errors.New("mesh: a bulk connection has no streams")

// OpenStream implements network.MuxedConn.
func (c *bulkConn) OpenStream(context.Context) (network.MuxedStream, error) { return nil, errBulk }

// AcceptStream implements network.MuxedConn.
func (c *bulkConn) AcceptStream() (network.MuxedStream, error) { return nil, errBulk }

// IsClosed implements network.MuxedConn.
func (c *bulkConn) IsClosed() bool { return c.closed.Load() }

// Close implements network.MuxedConn. What was written may not arrive; see bulkStream.
func (c *bulkConn) Close() error {
	c.closed.Store(true)
	return c.inner.Close()
}

// CloseWithError implements network.MuxedConn; there is no frame for a code.
func (c *bulkConn) CloseWithError(network.ConnErrorCode) error { return c.Close() }

// As implements network.MuxedConn.
func (c *bulkConn) As(target any) bool {
	if b, ok := target.(**bulkConn); ok {
		*b = c
		return true
	}
	return false
}

// bulkStream is the one stream of a bulk connection.
type bulkStream struct {
	halfCloser
	conn   transport.CapableConn
	hub    *hub
	closed atomic.Bool
	ended  sync.Once
	// reading is held by Read from its look at closed to its end.
	reading sync.Mutex
}

// attestedBulk returns the stream of c, or nil if c is no bulk connection. An error means
// that c is one and carries no verdict about its peer.
func (h *hub) attestedBulk(c transport.CapableConn) (*bulkStream, error) {
	var b *bulkConn
	if !c.As(&b) {
		return nil, nil
	}
	if !attestedAs(c, c.RemotePeer()) {
		return nil, errors.New("mesh: a bulk connection without a verdict")
	}
	return &bulkStream{halfCloser: b.inner, conn: c, hub: h}, nil
}

// Read implements io.Reader.
func (s *bulkStream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	return s.halfCloser.Read(p)
}

// Write implements io.Writer.
func (s *bulkStream) Write(p []byte) (int, error) {
	if s.closed.Load() {
		return 0, net.ErrClosed
	}
	return s.halfCloser.Write(p)
}

// Close ends both directions. The connection itself stays until the peer has closed its
// direction too, but not for longer than bulkLinger; then the kernel sends what it still has.
// A socket closed with unread bytes, or as libp2p sets them up, resets instead, and destroys
// what is on its way.
func (s *bulkStream) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	_ = s.SetReadDeadline(time.Unix(1, 0)) // ends a blocked Read
	linger := func() {
		// A Read that did not see closed must meet the deadline above, not the next one.
		s.reading.Lock()
		_ = s.SetDeadline(time.Now().Add(bulkLinger))
		s.reading.Unlock()
		defer context.AfterFunc(s.hub.ctx, s.end)()
		if s.CloseWrite() == nil {
			if _, err := io.Copy(io.Discard, s.halfCloser); err == nil {
				s.setLinger(-1)
			}
		}
		s.end()
	}
	if !s.hub.spawn(linger) {
		s.end()
	}
	return nil
}

// Reset ends both directions with an error: TLS's farewell, which would look like an
// orderly end, is not said.
func (s *bulkStream) Reset() error {
	s.closed.Store(true)
	s.end()
	return nil
}

// setLinger is net.TCPConn's, where there is a socket.
func (s *bulkStream) setLinger(seconds int) {
	if c, ok := s.NetConn().(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(seconds)
	}
}

func (s *bulkStream) end() {
	s.ended.Do(func() {
		_ = s.NetConn().Close()
		_ = s.conn.Close() // libp2p's account of it
	})
}

// bulkListener hands bulk connections to their links and everything else to libp2p.
type bulkListener struct {
	transport.Listener
	take func(transport.CapableConn) bool
}

// Accept implements transport.Listener.
func (l *bulkListener) Accept() (transport.CapableConn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || !l.take(c) {
			return c, err
		}
	}
}

// takeBulk serves c if it is a bulk connection.
func (m *libp2pMesh) takeBulk(c transport.CapableConn) bool {
	s, err := m.attestedBulk(c)
	if s == nil && err == nil {
		return false
	}
	if err != nil || !m.spawn(func() { m.serveBulk(s) }) {
		_ = c.Close()
	}
	return true
}

// serveBulk runs an inbound bulk stream as one of the live link's.
func (m *libp2pMesh) serveBulk(s *bulkStream) {
	defer context.AfterFunc(m.ctx, s.end)()
	from := identity.PeerID(s.conn.RemotePeer())
	shown, ok := m.Link(from)
	if !ok || !m.bulks.begin(from) {
		s.end()
		return
	}
	defer m.bulks.end(from)
	if s.SetDeadline(time.Now().Add(OpenTimeout)) != nil {
		s.end()
		return
	}
	p, err := negotiate(s)
	if err != nil || ownProtocol(p) {
		s.end()
		return
	}
	shown.(*link).accept(p, s)
}

// bulkCount bounds the inbound bulk connections of each peer.
type bulkCount struct {
	mu     sync.Mutex
	byPeer map[identity.PeerID]int // guarded by mu
}

func (b *bulkCount) begin(peer identity.PeerID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byPeer[peer] >= maxBulks {
		return false
	}
	if b.byPeer == nil {
		b.byPeer = map[identity.PeerID]int{}
	}
	b.byPeer[peer]++
	return true
}

func (b *bulkCount) end(peer identity.PeerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.byPeer[peer]--; b.byPeer[peer] == 0 {
		delete(b.byPeer, peer)
	}
}

// Bulk implements Mesh.
func (m *libp2pMesh) Bulk(ctx context.Context, to identity.PeerID, addrs []string, p Protocol) (Stream, error) {
	dialable, err := parseAddrs(to, addrs)
	if err != nil {
		return nil, fmt.Errorf("mesh: bulk %s to %s: %w", p, to, err)
	}
	return m.bulk(ctx, to, p, func(ctx context.Context, p Protocol) (Stream, error) {
		var errs []error
		for _, a := range dialable {
			one, cancel := context.WithTimeout(ctx, bulkDialTimeout)
			c, err := m.bulkDialer.Dial(one, a, peer.ID(to))
			cancel()
			if err != nil {
				errs = append(errs, err)
				continue
			}
			return m.nameBulk(ctx, c, p)
		}
		return nil, errors.Join(errs...)
	})
}

// nameBulk makes the stream of a dialled connection and names its protocol to the peer.
func (m *libp2pMesh) nameBulk(ctx context.Context, c transport.CapableConn, p Protocol) (Stream, error) {
	s, err := m.attestedBulk(c)
	if s == nil {
		_ = c.Close()
		return nil, errors.Join(err, errors.New("the peer does not speak "+string(BulkID)))
	}
	stop := context.AfterFunc(ctx, s.end)
	if err := mss.SelectProtoOrFail(p, s); err != nil {
		s.end()
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	return s, nil
}

// newBulkDialer returns a transport that makes bulk connections and never listens.
func (m *libp2pMesh) newBulkDialer(key ic.PrivKey, limits network.ResourceManager) (transport.Transport, error) {
	up, err := m.newUpgrader(key, limits, []upgrader.StreamMuxer{{ID: BulkID, Muxer: muxerGuard{bulkMuxer{}}}})
	if err != nil {
		return nil, err
	}
	return m.transportOver(up, limits)
}

// transportOver returns the configured transport, or TCP.
func (m *libp2pMesh) transportOver(up transport.Upgrader, limits network.ResourceManager) (transport.Transport, error) {
	if m.cfg.Transport != nil {
		return m.cfg.Transport(up, limits)
	}
	return tcp.NewTCPTransport(up, limits, nil, tcp.DisableReuseport())
}
