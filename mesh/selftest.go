package mesh

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ws "github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/internal/identity"
)

// selfTestTimeout bounds each attempt of the self-test, selfTestAtOnce how many addresses are
// tried at a time.
const (
	selfTestTimeout = 5 * time.Second
	selfTestAtOnce  = 4
)

// ErrUnguarded is returned by SelfTest when an unattested peer got a connection.
var ErrUnguarded = errors.New("mesh: an unattested peer got a connection")

// SelfTest dials every address of the node self as stock libp2p hosts do, and fails if a
// connection comes to be. A node runs it before it serves.
//
// To each TCP address: with TLS, Noise, plaintext and all defaults, over WebSocket, and with
// TLS under our own security protocol's name. To the UDP port of the same number: QUIC,
// WebTransport and WebRTC, unless the kernel says that nobody listens there (udp.go). Those
// three bring their own handshakes, so that a listener is a hole whatever it demands.
//
// An address where nobody answers, or that is not TCP's, fails too: a test that reached
// nothing has shown nothing, and there is no guard before other transports.
func SelfTest(ctx context.Context, self identity.PeerID, addrs []string) error {
	if len(addrs) == 0 {
		return errors.New("mesh: self-test: no address to dial")
	}
	for some := range slices.Chunk(addrs, selfTestAtOnce) {
		err := together(len(some), func(i int) error {
			addr, err := ma.NewMultiaddr(some[i])
			if err == nil {
				err = selfTestAddr(ctx, peer.ID(self), addr)
			}
			if err != nil {
				return fmt.Errorf("mesh: self-test of %s: %w", some[i], err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// stockKind is a libp2p host as anybody would start it, for one attempt.
type stockKind struct {
	name    string
	options []libp2p.Option
	suffix  string // of the address
	// streams counts a connection only if a stream opens on it: this host believes in one
	// before its peer does.
	streams bool
}

func stockKinds() []stockKind {
	overTCP := libp2p.Transport(tcp.NewTCPTransport)
	return []stockKind{
		{name: "defaults"},
		{name: "TLS", options: []libp2p.Option{overTCP, libp2p.Security(libp2ptls.ID, libp2ptls.New)}},
		{name: "Noise", options: []libp2p.Option{overTCP, libp2p.Security(noise.ID, noise.New)}},
		{name: "plaintext", options: []libp2p.Option{overTCP, libp2p.NoSecurity}},
		{name: "TLS as " + string(SecurityID), options: []libp2p.Option{overTCP, libp2p.Security(string(SecurityID), libp2ptls.New)}, streams: true},
		{name: "WebSocket", options: []libp2p.Option{libp2p.Transport(ws.New)}, suffix: "/ws"},
		{name: "WebSocket, plaintext", options: []libp2p.Option{libp2p.Transport(ws.New), libp2p.NoSecurity}, suffix: "/ws"},
	}
}

// newStock starts a stock host that listens nowhere.
func newStock(options ...libp2p.Option) (host.Host, error) {
	return libp2p.New(append([]libp2p.Option{libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.DisableRelay(),
		libp2p.DisableIdentifyAddressDiscovery(), libp2p.UserAgent("meshnode self-test")}, options...)...)
}

func selfTestAddr(ctx context.Context, self peer.ID, addr ma.Multiaddr) error {
	bare, _ := peer.SplitAddr(addr)
	if err := checkListenAddr(bare); err != nil {
		// Say so louder if somebody can use it.
		return errors.Join(tryStock(ctx, stockKind{name: "defaults"}, self, bare), err)
	}
	one, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	var d manet.Dialer
	raw, err := d.DialContext(one, bare)
	if err != nil {
		return fmt.Errorf("nobody answers, so nothing was tested: %w", err)
	}
	_ = raw.Close()
	return together(len(stockKinds())+1, func(i int) error {
		if i == 0 {
			return selfTestUDP(ctx, self, bare)
		}
		kind := stockKinds()[i-1]
		target := bare
		if kind.suffix != "" {
			target = bare.Encapsulate(ma.StringCast(kind.suffix))
		}
		return tryStock(ctx, kind, self, target)
	})
}

// together calls f(0) to f(n-1) at once and joins their errors.
func together(n int, f func(int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// tryStock dials addr; an error means that a connection came to be, or that nothing could
// be tried.
func tryStock(ctx context.Context, kind stockKind, self peer.ID, addr ma.Multiaddr) error {
	h, err := newStock(kind.options...)
	if err != nil {
		return fmt.Errorf("a stock host (%s): %w", kind.name, err)
	}
	defer h.Close()
	one, cancel := context.WithTimeout(ctx, selfTestTimeout)
	defer cancel()
	h.Peerstore().AddAddr(self, addr, 2*selfTestTimeout)
	conn, err := h.Network().DialPeer(network.WithForceDirectDial(one, "self-test"), self)
	if err != nil {
		return ctx.Err() // refused, unless the test itself was cut short
	}
	if kind.streams && !opensStream(one, h, self) {
		return ctx.Err()
	}
	state := conn.ConnState()
	return fmt.Errorf("%w: %s over %s (%s)", ErrUnguarded, kind.name, state.Transport, state.Security)
}

// opensStream reports whether the peer answers on a stream, be it that it does not speak
// what it is asked for.
func opensStream(ctx context.Context, h host.Host, to peer.ID) bool {
	s, err := h.NewStream(ctx, to, "/ipfs/ping/1.0.0")
	if err == nil {
		_ = s.Reset()
		return true
	}
	var answered mss.ErrNotSupported[protocol.ID]
	return errors.As(err, &answered)
}

// checkListenAddr demands an IP address and a TCP port and nothing else.
func checkListenAddr(a ma.Multiaddr) error {
	if _, err := a.ValueForProtocol(ma.P_TCP); err != nil || len(a) != 2 || !manet.IsThinWaist(a) {
		return fmt.Errorf("%s: want an IP address and a TCP port: other transports have handshakes of their own, which prove nothing", a)
	}
	return nil
}
