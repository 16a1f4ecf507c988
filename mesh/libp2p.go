package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"time"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/gologshim"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/x/rate"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// libp2pMesh is a Mesh over a libp2p swarm.
type libp2pMesh struct {
	*hub
	swarm      *swarm.Swarm
	intake     *intake
	bulkDialer transport.Transport
	// closers are released in reverse order after the swarm.
	closers []func() error
}

// NewLibp2p returns a mesh that listens on cfg.Listen. Nothing is left behind on error.
func NewLibp2p(cfg Config) (Mesh, error) {
	h, err := newHub(cfg)
	if err != nil {
		return nil, err
	}
	m := &libp2pMesh{hub: h, intake: newIntake(cfg.Allow, newIntakeLimits(openFiles()))}
	if err := m.start(); err != nil {
		return nil, errors.Join(fmt.Errorf("mesh: start libp2p: %w", err), m.Close())
	}
	return m, nil
}

func (m *libp2pMesh) start() error {
	// libp2p writes to standard error on its own; what matters reaches Config.Log and OnRefusal.
	gologshim.SetDefaultHandler(slog.DiscardHandler)
	key, err := ic.UnmarshalEd25519PrivateKey(m.cfg.Key)
	if err != nil {
		return err
	}
	store, err := pstoremem.NewPeerstore()
	if err != nil {
		return err
	}
	m.closers = append(m.closers, store.Close)
	if err := errors.Join(store.AddPrivKey(peer.ID(m.self), key), store.AddPubKey(peer.ID(m.self), key.GetPublic())); err != nil {
		return err
	}
	limits, err := newLimits()
	if err != nil {
		return err
	}
	m.closers = append(m.closers, limits.Close)
	m.intake.reserve = allowlist(limits)
	if m.swarm, err = swarm.NewSwarm(peer.ID(m.self), store, eventbus.NewBus(),
		swarm.WithConnectionGater(gater{}), swarm.WithResourceManager(limits), swarm.WithDialRanker(oneByOne),
		swarm.WithDialTimeout(DialTimeout), swarm.WithDialTimeoutLocal(DialTimeout),
		swarm.WithUDPBlackHoleSuccessCounter(nil), swarm.WithIPv6BlackHoleSuccessCounter(nil)); err != nil {
		return err
	}
	t, err := m.newTransport(key, limits)
	if err != nil {
		return err
	}
	if err := m.swarm.AddTransport(t); err != nil {
		return err
	}
	if m.bulkDialer, err = m.newBulkDialer(key, limits); err != nil {
		return err
	}
	m.swarm.SetStreamHandler(m.acceptStream)
	m.swarm.Notify(&network.NotifyBundle{ConnectedF: m.connected, DisconnectedF: m.disconnected})
	for _, a := range m.cfg.Listen {
		addr, err := ma.NewMultiaddr(a)
		if err != nil {
			return fmt.Errorf("listen address %q: %w", a, err)
		}
		if err := checkListenAddr(addr); err != nil {
			return fmt.Errorf("listen on %w", err)
		}
		if err := m.swarm.Listen(addr); err != nil {
			return fmt.Errorf("listen on %s: %w", a, err)
		}
	}
	return nil
}

// newTransport returns the only transport, with all guards in its upgraders. It accepts
// links and bulk connections, and dials links.
func (m *libp2pMesh) newTransport(key ic.PrivKey, limits network.ResourceManager) (transport.Transport, error) {
	links := upgrader.StreamMuxer{ID: yamux.ID, Muxer: muxerGuard{newYamux()}}
	accept, err := m.newUpgrader(key, limits, []upgrader.StreamMuxer{links, {ID: BulkID, Muxer: muxerGuard{bulkMuxer{}}}})
	if err != nil {
		return nil, err
	}
	dial, err := m.newUpgrader(key, limits, []upgrader.StreamMuxer{links})
	if err != nil {
		return nil, err
	}
	return m.transportOver(frontedUpgrader{accept, dial, m}, limits)
}

// newUpgrader returns an upgrader that knows our security protocol and muxers alone.
func (m *libp2pMesh) newUpgrader(key ic.PrivKey, limits network.ResourceManager, muxers []upgrader.StreamMuxer) (transport.Upgrader, error) {
	s, err := m.newSecurity(SecurityID, key, muxers)
	if err != nil {
		return nil, err
	}
	return upgrader.New([]sec.SecureTransport{s}, muxers, nil, limits, gater{})
}

// newLimits returns fixed limits, not scaled to this machine's memory, so that a mesh behaves
// alike everywhere. What others open is bounded by intake, which knows members; libp2p's
// own limits stand behind it, with room for what is being closed, and are sized so that
// intake's are met first. Its caps per source (8 connections, one in five seconds) cannot
// be lifted for members, so they are off.
func newLimits() (network.ResourceManager, error) {
	const pending rcmgr.LimitVal = 2 * (limitHandshakes + memberHandshakes)
	const perPeer rcmgr.LimitVal = 2 * (maxLinksPerPeer + maxBulks)
	limits := rcmgr.PartialLimitConfig{
		System:      rcmgr.ResourceLimits{Conns: 4 * pending, ConnsInbound: 2 * pending, ConnsOutbound: 2 * pending, FD: limitFiles},
		Transient:   rcmgr.ResourceLimits{Conns: 2 * pending, ConnsInbound: pending, FD: 2 * pending},
		PeerDefault: rcmgr.ResourceLimits{Conns: 2 * perPeer, ConnsInbound: perPeer, ConnsOutbound: perPeer, FD: 2 * perPeer},
		// Asked where the limits above are reached, for addresses on libp2p's own allowlist.
		AllowlistedSystem:    rcmgr.ResourceLimits{Conns: 2 * memberHandshakes, ConnsInbound: 2 * memberHandshakes},
		AllowlistedTransient: rcmgr.ResourceLimits{Conns: memberHandshakes, ConnsInbound: memberHandshakes},
	}.Build(rcmgr.DefaultLimits.Scale(limitMemory, limitFiles))
	return rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(limits),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet([]rcmgr.ConnLimitPerSubnet{}, []rcmgr.ConnLimitPerSubnet{}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{}))
}

// allowlist puts addresses on libp2p's own allowlist. None is taken off again: the library's
// Remove leaves the last one there, and intake has the last word about who is a member.
func allowlist(limits network.ResourceManager) func(netip.Addr) {
	list := rcmgr.GetAllowlist(limits)
	return func(addr netip.Addr) {
		if ip, err := manet.FromIP(net.IP(addr.AsSlice())); err == nil {
			_ = list.Add(ip) // refuses what is no address
		}
	}
}

// newYamux is libp2p's muxer with keep-alives that notice a vanished peer sooner.
func newYamux() *yamux.Transport {
	config := *yamux.DefaultTransport.Config()
	config.KeepAliveInterval = keepAlive
	config.ConnectionWriteTimeout = keepAlive
	return (*yamux.Transport)(&config)
}

// oneByOne dials a peer's addresses in order, each when the one before failed or was slow:
// a race would cost the loser's exchange a quote at both ends.
func oneByOne(addrs []ma.Multiaddr) []network.AddrDelay {
	out := make([]network.AddrDelay, len(addrs))
	for i, a := range addrs {
		out[i] = network.AddrDelay{Addr: a, Delay: time.Duration(i) * addressDelay}
	}
	return out
}

// Addrs implements Mesh.
func (m *libp2pMesh) Addrs() []string {
	addrs, err := m.swarm.InterfaceListenAddresses()
	if err != nil {
		addrs = m.swarm.ListenAddresses()
	}
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}

// connected is called by libp2p before any stream of c exists; it must not block.
func (m *libp2pMesh) connected(_ network.Network, c network.Conn) {
	var ch *channel
	if !c.As(&ch) || m.register(ch, &libp2pCarrier{c, m.hub}) == nil {
		_ = c.Close()
		return
	}
	m.intake.met(remoteAddr(c))
}

// disconnected is called by libp2p after connected, once, when c is closed.
func (m *libp2pMesh) disconnected(_ network.Network, c network.Conn) {
	var ch *channel
	if c.As(&ch) {
		if l := m.byChannel(ch); l != nil {
			l.finish()
			m.intake.met(remoteAddr(c))
		}
	}
	// Peers have new identities at every boot; their keys would pile up for ever.
	m.swarm.Peerstore().RemovePeer(c.RemotePeer())
}

// acceptStream is called by libp2p in a goroutine of the stream; it leaves that goroutine
// for one that Close waits for.
func (m *libp2pMesh) acceptStream(raw network.Stream) {
	if !m.spawn(func() { m.serve(raw) }) {
		_ = raw.Reset()
	}
}

func (m *libp2pMesh) serve(raw network.Stream) {
	var ch *channel
	var l *link
	if raw.Conn().As(&ch) {
		l = m.byChannel(ch)
	}
	if l == nil || raw.SetDeadline(time.Now().Add(OpenTimeout)) != nil {
		_ = raw.ResetWithError(network.StreamGated)
		return
	}
	p, err := negotiate(raw)
	if err != nil {
		_ = raw.ResetWithError(network.StreamProtocolNegotiationFailed)
		return
	}
	l.accept(p, raw)
}

// negotiate reads what the opener of a stream wants to speak. Any name is negotiated:
// whether it is spoken here is answered with a reason.
func negotiate(raw io.ReadWriteCloser) (Protocol, error) {
	mux := mss.NewMultistreamMuxer[Protocol]()
	mux.AddHandlerWithFunc("any", func(p Protocol) bool { return ownProtocol(p) || validateProtocol(p) == nil }, nil)
	p, _, err := mux.Negotiate(raw)
	return p, err
}

// Dial implements Mesh.
func (m *libp2pMesh) Dial(ctx context.Context, to identity.PeerID, addrs []string) (Link, error) {
	return m.dialPeer(ctx, to, addrs, m.connect)
}

func (m *libp2pMesh) connect(ctx context.Context, to identity.PeerID, addrs []string) error {
	dialable, err := parseAddrs(to, addrs)
	if err != nil {
		return err
	}
	// Neither addresses of an earlier dial nor its back-off have a say in this one.
	store := m.swarm.Peerstore()
	store.ClearAddrs(peer.ID(to))
	store.AddAddrs(peer.ID(to), dialable, peerstore.TempAddrTTL)
	m.swarm.Backoff().Clear(peer.ID(to))
	ctx = network.WithForceDirectDial(network.WithDialPeerTimeout(ctx, DialTimeout), "meshnode")
	for began := time.Now(); ; {
		c, err := m.swarm.DialPeer(ctx, peer.ID(to))
		if err != nil {
			return err
		}
		var ch *channel
		if !c.As(&ch) {
			_ = c.Close()
			return errors.New("a connection without a verdict")
		}
		l := m.byChannel(ch)
		switch {
		case l == nil && c.Stat().Opened.Before(began):
			continue // an earlier connection, which libp2p was just about to forget
		case l == nil || l.down() == nil:
			return nil // live, or already gone: the caller looks into the table
		}
		// libp2p still knows a connection whose farewell is being said.
		select {
		case <-l.done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func parseAddrs(to identity.PeerID, addrs []string) ([]ma.Multiaddr, error) {
	out := make([]ma.Multiaddr, 0, len(addrs))
	for _, a := range addrs {
		addr, err := ma.NewMultiaddr(a)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", a, err)
		}
		bare, id := peer.SplitAddr(addr)
		if id != "" && identity.PeerID(id) != to {
			return nil, &Refusal{Peer: to, Reasons: []attest.Reason{attest.NewReason(attest.CodeWrongPeer, "address", id.String(), to.String())}}
		}
		out = append(out, bare)
	}
	if len(out) == 0 {
		return nil, errors.New("no address")
	}
	return out, nil
}

// Counters implements Mesh.
func (m *libp2pMesh) Counters() map[string]uint64 {
	out := m.hub.Counters()
	for why, n := range m.intake.counts() {
		out[countTurnedAway+string(why)] = n
	}
	return out
}

// Close implements Mesh.
func (m *libp2pMesh) Close() error {
	if !m.shutdown() {
		return nil
	}
	var errs []error
	if m.swarm != nil {
		errs = append(errs, m.swarm.Close())
	}
	errs = append(errs, m.wait())
	for i := len(m.closers) - 1; i >= 0; i-- {
		errs = append(errs, m.closers[i]())
	}
	return errors.Join(errs...)
}

// libp2pCarrier is the connection under a link.
type libp2pCarrier struct {
	conn network.Conn
	hub  *hub
}

func (c *libp2pCarrier) open(ctx context.Context, p Protocol) (Stream, error) {
	s, err := c.conn.NewStream(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if deadline, ok := ctx.Deadline(); ok {
		err = s.SetDeadline(deadline)
	}
	if err == nil {
		err = mss.SelectProtoOrFail(p, s)
	}
	if err != nil {
		if !c.hub.spawn(func() { _ = s.Reset() }) {
			_ = s.Reset()
		}
		return nil, err
	}
	return s, nil
}

func (c *libp2pCarrier) close() { _ = c.conn.Close() }
