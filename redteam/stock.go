package redteam

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	ma "github.com/multiformats/go-multiaddr"
)

// anyProtocol is opened where a stock host got a connection; who negotiates it at all has
// let a stranger speak.
const anyProtocol = "/ipfs/id/1.0.0"

// stockAttacks dial with libp2p as anybody has it: the handshakes that are no attested
// channel, on the mesh port and on every other transport that libp2p knows.
func stockAttacks() []Attack {
	const flaw = "finish a handshake without attestation and open streams"
	overTCP := libp2p.Transport(tcp.NewTCPTransport)
	tcpOnly := func(security libp2p.Option) func(context.Context, *Campaign) Outcome {
		return func(ctx context.Context, c *Campaign) Outcome { return c.stock(ctx, c.addrs, overTCP, security) }
	}
	return []Attack{
		{Name: "stock-default", Tries: "dial every announced address with a stock libp2p host, all transports on", Flaw: flaw,
			run: func(ctx context.Context, c *Campaign) Outcome { return c.stock(ctx, c.announced()) }},
		{Name: "stock-tls", Tries: "dial with libp2p TLS", Flaw: flaw, run: tcpOnly(libp2p.Security(libp2ptls.ID, libp2ptls.New))},
		{Name: "stock-noise", Tries: "dial with libp2p Noise", Flaw: flaw, run: tcpOnly(libp2p.Security(noise.ID, noise.New))},
		{Name: "stock-plaintext", Tries: "dial without any security", Flaw: flaw, run: tcpOnly(libp2p.NoSecurity)},
		{Name: "stock-websocket", Tries: "dial the mesh port, and announced addresses, as WebSocket", Flaw: flaw,
			run: func(ctx context.Context, c *Campaign) Outcome {
				addrs := suffixed(c.addrs, "/ws")
				for _, a := range c.announced() {
					if strings.HasSuffix(a, "/ws") {
						addrs = append(addrs, a)
					}
				}
				return c.stock(ctx, addrs, libp2p.Transport(websocket.New))
			}},
		{Name: "stock-quic", Tries: "find a QUIC or WebTransport endpoint beside the mesh port and connect", Flaw: flaw, run: quicAttack},
		{Name: "stock-webrtc", Tries: "find a WebRTC-direct endpoint beside the mesh port", Flaw: flaw, run: webrtcAttack},
	}
}

// announced are the target's addresses of any transport that may be attacked: those at an
// IP address that has proved to be the target's.
func (c *Campaign) announced() []string {
	var out []string
	for _, a := range c.target.Addresses {
		if ip, ok := ipOf(a); ok && (ip.IsLoopback() || c.proved(ip)) {
			out = append(out, a)
		}
	}
	return out
}

func (c *Campaign) proved(ip netip.Addr) bool {
	for _, a := range c.addrs {
		if got, ok := tcpAddr(a); ok && got == ip {
			return true
		}
	}
	return false
}

// ipOf returns the IP that any multiaddr starts with.
func ipOf(a string) (netip.Addr, bool) {
	m, err := ma.NewMultiaddr(a)
	if err != nil || len(m) == 0 {
		return netip.Addr{}, false
	}
	ip, err := netip.ParseAddr(m[0].Value())
	return ip.Unmap(), err == nil
}

func suffixed(addrs []string, suffix string) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a + suffix
	}
	return out
}

// stock dials each address with a fresh libp2p host and opens a stream if it connects.
func (c *Campaign) stock(ctx context.Context, addrs []string, options ...libp2p.Option) Outcome {
	if len(addrs) == 0 {
		return skipped("no address to dial")
	}
	options = append([]libp2p.Option{libp2p.NoListenAddrs, libp2p.DisableMetrics(), libp2p.DisableIdentifyAddressDiscovery(),
		libp2p.ResourceManager(&network.NullResourceManager{})}, options...)
	h, err := libp2p.New(options...)
	if err != nil {
		return skipped("stock host: %v", err)
	}
	defer h.Close()
	var why []string
	for _, a := range addrs {
		addr, err := ma.NewMultiaddr(a)
		if err != nil {
			return skipped("address %q: %v", a, err)
		}
		bare, _ := peer.SplitAddr(addr)
		if err := dialStock(ctx, h.Network(), peer.ID(c.target.Peer), bare); err != nil {
			why = append(why, fmt.Sprintf("%s: %s", a, firstLine(err)))
			continue
		}
		return broken("%s: a stock libp2p host got a stream", a)
	}
	return held("no connection: %s", strings.Join(why, "; "))
}

// dialStock is nil if a connection came to be and a stream on it spoke.
func dialStock(ctx context.Context, n network.Network, id peer.ID, addr ma.Multiaddr) error {
	ctx, cancel := context.WithTimeout(ctx, stockTimeout)
	defer cancel()
	n.Peerstore().ClearAddrs(id)
	n.Peerstore().AddAddr(id, addr, stockTimeout)
	conn, err := n.DialPeer(network.WithForceDirectDial(ctx, "redteam"), id)
	if err != nil {
		return err
	}
	defer conn.Close()
	s, err := conn.NewStream(ctx)
	if err != nil {
		return fmt.Errorf("connected by %s, no stream: %w", conn.ConnState().Security, err)
	}
	defer s.Reset()
	return streamSpeaks(ctx, s)
}

// firstLine shortens libp2p's errors of many lines, of which the last has the cause.
func firstLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}
