// Package memtransport is a libp2p transport without sockets: real upgraders, TLS, exchange
// and yamux over byte pipes in memory, so that whole meshes run in a testing/synctest bubble
// with virtual time. For tests and simulations only.
//
// Addresses look like TCP's and belong to no machine: "/ip4/10.0.0.1/tcp/4001". Each host
// has a name, by which pairs of hosts are parted: Cut as where a router says that the
// other side is gone, Silence as where nobody says anything. Plain connections (Listen,
// Dial) run over the same network, for what a node speaks besides libp2p.
package memtransport

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
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
	// Latency is the way from one host to another; within a host there is none.
	Latency time.Duration

	mu        sync.Mutex
	listeners map[string]*listener // by address
	conns     map[*conn]struct{}   // both ends
	parted    map[[2]string]parting
	healed    chan struct{}           // closed by Heal; nil while nobody waits
	homes     map[string]ma.Multiaddr // by host: what its connections seem to come from
	ports     int
}

// parting is how two hosts are parted.
type parting int

const (
	together parting = iota
	cut
	silent
)

var errUnreachable = errors.New("memtransport: unreachable")

func pair(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// Cut breaks all connections between the hosts a and b and fails dials until Heal.
func (n *Network) Cut(a, b string) {
	for _, c := range n.part(a, b, cut) {
		c.Fail(errUnreachable)
	}
}

// Silence stops every byte between the hosts a and b until Heal, and tells nobody:
// connections stay, dials wait. Heal delivers what was written, as TCP does by sending it
// again.
func (n *Network) Silence(a, b string) {
	for _, c := range n.part(a, b, silent) {
		c.Hold(true)
	}
}

// Heal undoes Cut and Silence.
func (n *Network) Heal(a, b string) {
	for _, c := range n.part(a, b, together) {
		c.Hold(false)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.healed != nil {
		close(n.healed)
		n.healed = nil
	}
}

// part notes how a and b are parted and returns the connections between them.
func (n *Network) part(a, b string, how parting) []*conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.parted == nil {
		n.parted = map[[2]string]parting{}
	}
	n.parted[pair(a, b)] = how
	var between []*conn
	for c := range n.conns {
		if pair(c.host, c.other) == pair(a, b) {
			between = append(between, c)
		}
	}
	return between
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
		n.homes = map[string]ma.Multiaddr{}
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
	n.homes[host], _ = ma.SplitLast(addr)
	return l, nil
}

// Listen opens a listener of a host for plain connections on addr, like "10.0.0.1:80".
func (n *Network) Listen(host, addr string) (net.Listener, error) {
	m, err := parse(addr)
	if err != nil {
		return nil, err
	}
	l, err := n.listen(host, m)
	if err != nil {
		return nil, err
	}
	return manet.NetListener(l), nil
}

// Dial opens a plain connection from a host to addr.
func (n *Network) Dial(ctx context.Context, host, addr string) (net.Conn, error) {
	m, err := parse(addr)
	if err != nil {
		return nil, err
	}
	return n.dial(ctx, host, m)
}

func parse(addr string) (ma.Multiaddr, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("memtransport: %w", err)
	}
	return manet.FromNetAddr(net.TCPAddrFromAddrPort(a))
}

func (n *Network) dial(ctx context.Context, host string, addr ma.Multiaddr) (*conn, error) {
	for {
		l, healed, err := n.route(host, addr)
		if err != nil {
			return nil, err
		}
		if healed == nil {
			return n.connect(ctx, host, l)
		}
		select {
		case <-healed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// route returns the listener at addr, and where nothing gets through a channel that is
// closed when that may have changed.
func (n *Network) route(host string, addr ma.Multiaddr) (*listener, <-chan struct{}, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[addr.String()]
	switch {
	case l == nil || n.parted[pair(host, l.host)] == cut:
		return nil, nil, errUnreachable
	case n.parted[pair(host, l.host)] == silent:
		if n.healed == nil {
			n.healed = make(chan struct{})
		}
		return l, n.healed, nil
	}
	return l, nil, nil
}

// connect takes the one round trip of TCP's handshake. Hosts that are parted meanwhile find
// out on the connection.
func (n *Network) connect(ctx context.Context, host string, l *listener) (*conn, error) {
	latency := n.Latency
	if host == l.host {
		latency = 0
	}
	trip := time.NewTimer(2 * latency)
	defer trip.Stop()
	select {
	case <-trip.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	n.ports++
	home := n.homes[host]
	if home == nil {
		home = ma.StringCast("/ip4/10.255.255.255")
	}
	from := home.Encapsulate(ma.StringCast(fmt.Sprintf("/tcp/%d", n.ports)))
	a, b := mempipe.NewDistant(latency)
	ours := &conn{Pipe: a, net: n, host: host, other: l.host, local: from, remote: l.addr}
	theirs := &conn{Pipe: b, net: n, host: l.host, other: host, local: l.addr, remote: from}
	n.conns[ours], n.conns[theirs] = struct{}{}, struct{}{}
	how := n.parted[pair(host, l.host)]
	n.mu.Unlock()
	switch how {
	case cut:
		ours.Fail(errUnreachable)
	case silent:
		ours.Hold(true)
	}
	select {
	case l.incoming <- theirs:
		return ours, nil
	case <-l.done:
		_, _ = ours.Close(), theirs.Close()
		return nil, errUnreachable
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
	err := c.Pipe.Close()
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	delete(c.net.conns, c)
	return err
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
