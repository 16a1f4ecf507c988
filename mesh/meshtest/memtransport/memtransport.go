// Package memtransport is a libp2p transport without sockets: real upgraders, TLS, exchange
// and yamux over byte pipes in memory, so that whole meshes run in a testing/synctest bubble
// with virtual time. For tests and simulations only.
//
// Addresses look like TCP's and belong to no machine: "/ip4/10.0.0.1/tcp/4001". Each host
// has a name, by which pairs of hosts are cut and healed.
package memtransport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/mesh/internal/mempipe"
)

// Network connects hosts of one process. The zero value is ready.
type Network struct {
	mu        sync.Mutex
	listeners map[string]*listener // by address
	conns     map[*conn]struct{}   // both ends
	cut       map[[2]string]bool
	ports     int
}

var errUnreachable = errors.New("memtransport: unreachable")

func pair(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// Cut breaks all connections between the hosts a and b and fails dials until Heal.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	if n.cut == nil {
		n.cut = map[[2]string]bool{}
	}
	n.cut[pair(a, b)] = true
	var broken []*conn
	for c := range n.conns {
		if pair(c.host, c.other) == pair(a, b) {
			broken = append(broken, c)
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		c.Fail(errUnreachable)
	}
}

// Heal undoes Cut.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, pair(a, b))
}

// Host returns what mesh.Config.Transport wants, for the host with this name.
func (n *Network) Host(name string) func(transport.Upgrader, network.ResourceManager) (transport.Transport, error) {
	return func(up transport.Upgrader, limits network.ResourceManager) (transport.Transport, error) {
		return &memTransport{net: n, host: name, upgrader: up, limits: limits}, nil
	}
}

type memTransport struct {
	net      *Network
	host     string
	upgrader transport.Upgrader
	limits   network.ResourceManager
}

// CanDial implements transport.Transport.
func (t *memTransport) CanDial(addr ma.Multiaddr) bool {
	_, err := addr.ValueForProtocol(ma.P_TCP)
	return err == nil
}

// Protocols implements transport.Transport.
func (t *memTransport) Protocols() []int { return []int{ma.P_TCP} }

// Proxy implements transport.Transport.
func (t *memTransport) Proxy() bool { return false }

// Dial implements transport.Transport.
func (t *memTransport) Dial(ctx context.Context, addr ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	scope, err := t.limits.OpenConnection(network.DirOutbound, true, addr)
	if err != nil {
		return nil, err
	}
	if err := scope.SetPeer(p); err != nil {
		scope.Done()
		return nil, err
	}
	raw, err := t.net.dial(ctx, t.host, addr)
	if err != nil {
		scope.Done()
		return nil, err
	}
	return t.upgrader.Upgrade(ctx, t, raw, network.DirOutbound, p, scope)
}

// Listen implements transport.Transport; port 0 takes a free one.
func (t *memTransport) Listen(addr ma.Multiaddr) (transport.Listener, error) {
	l, err := t.net.listen(t.host, addr)
	if err != nil {
		return nil, err
	}
	return t.upgrader.UpgradeGatedMaListener(t, t.upgrader.GateMaListener(l)), nil
}

func (n *Network) listen(host string, addr ma.Multiaddr) (*listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners == nil {
		n.listeners, n.conns, n.ports = map[string]*listener{}, map[*conn]struct{}{}, 40000
	}
	if port, err := addr.ValueForProtocol(ma.P_TCP); err != nil {
		return nil, fmt.Errorf("memtransport: listen on %s: %w", addr, err)
	} else if port == "0" {
		n.ports++
		ip, _ := ma.SplitLast(addr)
		addr = ip.Encapsulate(ma.StringCast(fmt.Sprintf("/tcp/%d", n.ports)))
	}
	if n.listeners[addr.String()] != nil {
		return nil, fmt.Errorf("memtransport: listen on %s: the address is taken", addr)
	}
	l := &listener{net: n, host: host, addr: addr, incoming: make(chan *conn), done: make(chan struct{})}
	n.listeners[addr.String()] = l
	return l, nil
}

func (n *Network) dial(ctx context.Context, host string, addr ma.Multiaddr) (*conn, error) {
	n.mu.Lock()
	l := n.listeners[addr.String()]
	if l == nil || n.cut[pair(host, l.host)] {
		n.mu.Unlock()
		return nil, errUnreachable
	}
	n.ports++
	from := ma.StringCast(fmt.Sprintf("/ip4/10.255.255.255/tcp/%d", n.ports))
	a, b := mempipe.New()
	ours := &conn{Pipe: a, net: n, host: host, other: l.host, local: from, remote: addr}
	theirs := &conn{Pipe: b, net: n, host: l.host, other: host, local: addr, remote: from}
	n.conns[ours], n.conns[theirs] = struct{}{}, struct{}{}
	n.mu.Unlock()
	select {
	case l.incoming <- theirs:
		return ours, nil
	case <-l.done:
		err := errUnreachable
		_, _ = ours.Close(), theirs.Close()
		return nil, err
	case <-ctx.Done():
		_, _ = ours.Close(), theirs.Close()
		return nil, ctx.Err()
	}
}

type listener struct {
	net      *Network
	host     string
	addr     ma.Multiaddr
	incoming chan *conn
	once     sync.Once
	done     chan struct{}
}

var _ manet.Listener = (*listener)(nil)

// Accept implements manet.Listener.
func (l *listener) Accept() (manet.Conn, error) {
	select {
	case c := <-l.incoming:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements manet.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	delete(l.net.listeners, l.addr.String())
	return nil
}

// Multiaddr implements manet.Listener.
func (l *listener) Multiaddr() ma.Multiaddr { return l.addr }

// Addr implements manet.Listener.
func (l *listener) Addr() net.Addr { return netAddr(l.addr) }

// conn is one end of a raw connection.
type conn struct {
	*mempipe.Pipe
	net           *Network
	host, other   string
	local, remote ma.Multiaddr
}

var _ manet.Conn = (*conn)(nil)

// Close ends both directions at once; the peer reads what was written, then io.EOF.
func (c *conn) Close() error {
	c.net.mu.Lock()
	delete(c.net.conns, c)
	c.net.mu.Unlock()
	return c.Pipe.Close()
}

// LocalMultiaddr implements manet.Conn.
func (c *conn) LocalMultiaddr() ma.Multiaddr { return c.local }

// RemoteMultiaddr implements manet.Conn.
func (c *conn) RemoteMultiaddr() ma.Multiaddr { return c.remote }

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return netAddr(c.local) }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return netAddr(c.remote) }

func netAddr(addr ma.Multiaddr) net.Addr {
	a, err := manet.ToNetAddr(addr)
	if err != nil {
		return &net.TCPAddr{}
	}
	return a
}

// Epoch is when bubbles should begin: testing/synctest starts at 2000-01-01, before the
// validity of any certificate. Sleeping until then costs nothing.
func Epoch() { time.Sleep(time.Until(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))) }
