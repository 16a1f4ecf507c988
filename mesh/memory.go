package mesh

import (
	"context"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/internal/mempipe"
)

// MemoryNetwork connects meshes of one process. It stands for the network and for TLS: a
// connection knows both peer ids truly and has a secret from which exporter values are
// derived. Nothing in it sleeps or opens a socket, so it runs in a testing/synctest bubble.
// The zero value is ready.
type MemoryNetwork struct {
	mu    sync.Mutex
	nodes map[string]*memoryMesh // by address
	conns map[*memoryConn]struct{}
	cut   map[[2]identity.PeerID]bool
}

var (
	errUnreachable = errors.New("memory network: nobody listens there")
	errPartition   = errors.New("memory network: partitioned")
	errConnClosed  = errors.New("memory network: connection closed")
)

func pair(a, b identity.PeerID) [2]identity.PeerID { return [2]identity.PeerID{min(a, b), max(a, b)} }

// Cut breaks all connections between a and b and fails dials until Heal.
func (n *MemoryNetwork) Cut(a, b identity.PeerID) {
	n.mu.Lock()
	if n.cut == nil {
		n.cut = map[[2]identity.PeerID]bool{}
	}
	n.cut[pair(a, b)] = true
	var broken []*memoryConn
	for c := range n.conns {
		if pair(c.ends[0].self, c.ends[1].self) == pair(a, b) {
			broken = append(broken, c)
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		c.fail(errPartition)
	}
}

// Heal undoes Cut.
func (n *MemoryNetwork) Heal(a, b identity.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, pair(a, b))
}

func (n *MemoryNetwork) listen(m *memoryMesh) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes == nil {
		n.nodes, n.conns = map[string]*memoryMesh{}, map[*memoryConn]struct{}{}
	}
	for _, a := range m.addrs {
		if n.nodes[a] != nil {
			return fmt.Errorf("mesh: listen on %s: the address is taken", a)
		}
	}
	for _, a := range m.addrs {
		n.nodes[a] = m
	}
	return nil
}

func (n *MemoryNetwork) unlisten(m *memoryMesh) []*memoryConn {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range m.addrs {
		delete(n.nodes, a)
	}
	var own []*memoryConn
	for c := range n.conns {
		if c.ends[0] == m || c.ends[1] == m {
			own = append(own, c)
		}
	}
	return own
}

// connect returns the dialler's end of a new connection to whoever listens at addr. A bulk
// one names its protocol, a link's none.
func (n *MemoryNetwork) connect(from *memoryMesh, peer identity.PeerID, addr string, bulk Protocol) (*memoryEnd, error) {
	var secret [32]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	to := n.nodes[addr]
	switch {
	case to == nil:
		return nil, errUnreachable
	case n.cut[pair(from.self, to.self)]:
		return nil, errPartition
	case to.self != peer:
		r := attest.NewReason(attest.CodeWrongPeer, "peer", to.self.String(), peer.String())
		return nil, &Refusal{Peer: peer, Reasons: []attest.Reason{r}}
	}
	c := &memoryConn{net: n, ends: [2]*memoryMesh{from, to}, secret: secret, gone: make(chan struct{}), pipes: map[*mempipe.Pipe]struct{}{}}
	a, b := mempipe.New()
	c.pipes[a], c.pipes[b] = struct{}{}, struct{}{}
	ours := &memoryEnd{conn: c, side: 0, handshake: a, ready: make(chan struct{})}
	theirs := &memoryEnd{conn: c, side: 1, handshake: b, ready: make(chan struct{})}
	ours.other, theirs.other = theirs, ours
	if !to.spawn(func() {
		if bulk != "" {
			to.serveBulk(theirs, bulk)
			return
		}
		to.serve(theirs)
	}) {
		return nil, errUnreachable
	}
	n.conns[c] = struct{}{}
	return ours, nil
}

// memoryConn is one connection, shared by its two ends.
type memoryConn struct {
	net    *MemoryNetwork
	ends   [2]*memoryMesh // dialler, listener
	secret [32]byte
	gone   chan struct{} // closed when the connection is

	mu    sync.Mutex
	err   error
	pipes map[*mempipe.Pipe]struct{} // ends of streams; nil when the connection is gone
	links [2]*link
}

// fail ends the connection: all streams fail with err and both links are finished.
func (c *memoryConn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	pipes, links := c.pipes, c.links
	c.pipes = nil
	c.mu.Unlock()
	close(c.gone)
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	for p := range pipes {
		p.Fail(err)
	}
	for _, l := range links {
		if l != nil {
			l.finish()
		}
	}
}

// exporter derives keying material from the connection's secret: HKDF-Expand over
// lp(label) lp(context).
func (c *memoryConn) exporter(label string, context []byte, n int) ([]byte, error) {
	info := attest.LengthPrefixed(attest.LengthPrefixed(nil, []byte(label)), context)
	return hkdf.Expand(sha256.New, c.secret[:], string(info), n)
}

// memoryEnd is one end of a connection and the carrier of its link.
type memoryEnd struct {
	conn      *memoryConn
	side      int
	other     *memoryEnd
	handshake *mempipe.Pipe
	ready     chan struct{} // closed when this end has its link
}

// exchange proves both ends to each other and ends the connection if one is refused.
func (e *memoryEnd) exchange(ctx context.Context, m *memoryMesh) (*channel, error) {
	peer := e.conn.ends[1-e.side].self
	params := m.params(attest.PurposeChannel, peer, e.side == 0, e.conn.exporter)
	if !params.Initiator {
		m.guardInbound(&params, nil)
	}
	s, err := exchange.Run(ctx, e.handshake, params)
	if err != nil {
		e.conn.fail(errConnClosed)
		return nil, m.report(peer, err)
	}
	m.counters.session(s)
	return newChannel(s, e.conn.exporter), nil
}

// attest runs the exchange and registers the link.
func (e *memoryEnd) attest(ctx context.Context, m *memoryMesh) error {
	ch, err := e.exchange(ctx, m)
	if err != nil {
		return err
	}
	l := m.register(ch, e)
	if l == nil {
		e.conn.fail(errConnClosed)
		return errConnClosed
	}
	e.conn.mu.Lock()
	e.conn.links[e.side] = l
	delete(e.conn.pipes, e.handshake)
	err = e.conn.err
	e.conn.mu.Unlock()
	if err != nil {
		l.finish() // the connection broke before it knew its link
	}
	close(e.ready)
	return nil
}

func (e *memoryEnd) open(ctx context.Context, p Protocol) (Stream, error) {
	a, b := mempipe.New()
	c := e.conn
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return nil, c.err
	}
	c.pipes[a], c.pipes[b] = struct{}{}, struct{}{}
	c.mu.Unlock()
	ours, theirs := &memoryStream{Pipe: a, conn: c}, &memoryStream{Pipe: b, conn: c}
	remote := c.ends[1-e.side]
	if !remote.spawn(func() { e.other.serve(p, theirs) }) {
		_ = theirs.Reset()
	}
	return ours, ctx.Err()
}

// serve runs a stream that the other end opened.
func (e *memoryEnd) serve(p Protocol, s *memoryStream) {
	select {
	case <-e.ready:
	case <-e.conn.gone:
		_ = s.Reset()
		return
	}
	e.conn.mu.Lock()
	l := e.conn.links[e.side]
	e.conn.mu.Unlock()
	l.accept(p, s)
}

func (e *memoryEnd) close() { e.conn.fail(errConnClosed) }

// memoryStream is a pipe that its connection can fail.
type memoryStream struct {
	*mempipe.Pipe
	conn *memoryConn
}

func (s *memoryStream) forget() {
	s.conn.mu.Lock()
	delete(s.conn.pipes, s.Pipe)
	s.conn.mu.Unlock()
}

func (s *memoryStream) Close() error {
	s.forget()
	return s.Pipe.Close()
}

func (s *memoryStream) Reset() error {
	s.forget()
	return s.Pipe.Reset()
}

// memoryMesh is a Mesh over a MemoryNetwork.
type memoryMesh struct {
	*hub
	net   *MemoryNetwork
	addrs []string
}

// NewMemory returns a mesh on net: the same exchange, links and rules as NewLibp2p without
// sockets. It listens on cfg.Listen, any distinct names, or on "/memory/" and its peer id.
func NewMemory(net *MemoryNetwork, cfg Config) (Mesh, error) {
	h, err := newHub(cfg)
	if err != nil {
		return nil, err
	}
	m := &memoryMesh{hub: h, net: net, addrs: slices.Clone(cfg.Listen)}
	if len(m.addrs) == 0 {
		m.addrs = []string{"/memory/" + h.self.String()}
	}
	if err := net.listen(m); err != nil {
		h.shutdown()
		return nil, errors.Join(err, h.wait())
	}
	return m, nil
}

func (m *memoryMesh) Addrs() []string { return slices.Clone(m.addrs) }

// serve answers a dial.
func (m *memoryMesh) serve(e *memoryEnd) { _ = e.attest(m.ctx, m) }

func (m *memoryMesh) Dial(ctx context.Context, peer identity.PeerID, addrs []string) (Link, error) {
	return m.dialPeer(ctx, peer, addrs, m.connect)
}

func (m *memoryMesh) connect(ctx context.Context, peer identity.PeerID, addrs []string) error {
	err := errors.New("no address")
	for _, a := range addrs {
		var end *memoryEnd
		if end, err = m.net.connect(m, peer, a, ""); err != nil {
			err = fmt.Errorf("%s: %w", a, m.report(peer, err))
			continue
		}
		if err = end.attest(ctx, m); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (m *memoryMesh) Close() error {
	if !m.shutdown() {
		return nil
	}
	for _, c := range m.net.unlisten(m) {
		c.fail(errConnClosed)
	}
	return m.wait()
}
