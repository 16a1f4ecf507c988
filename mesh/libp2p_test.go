package mesh

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
)

// stock returns a libp2p host as anybody would start it.
func stock(t *testing.T, options ...libp2p.Option) host.Host {
	t.Helper()
	h, err := libp2p.New(append([]libp2p.Option{libp2p.DisableMetrics()}, options...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func info(t *testing.T, id peer.ID, addrs ...string) peer.AddrInfo {
	t.Helper()
	out := peer.AddrInfo{ID: id}
	for _, a := range addrs {
		out.Addrs = append(out.Addrs, ma.StringCast(a))
	}
	return out
}

func TestStockHostsGetNothing(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.node("alpha/n1", func(_ *meshtest.Node, c *Config) {
		c.Listen = []string{"/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0"}
	})
	n.Handle(echo, func(Link, Stream) { t.Error("a handler ran") })
	var announced atomic.Int64
	n.Notify(func(Link) { announced.Add(1) })
	if len(n.Addrs()) != 2 {
		t.Fatalf("listens on %q", n.Addrs())
	}
	loopback := libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0")
	for name, options := range map[string][]libp2p.Option{
		"default": {loopback}, "tls": {loopback, libp2p.Security(libp2ptls.ID, libp2ptls.New)},
		"noise": {loopback, libp2p.Security(noise.ID, noise.New)}, "plaintext": {loopback, libp2p.NoSecurity},
		"impostor": {loopback, libp2p.Security(string(SecurityID), libp2ptls.New)},
	} {
		t.Run(name, func(t *testing.T) {
			h := stock(t, options...)
			for _, a := range n.Addrs() {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				// The impostor finishes TLS under our private name and starts its muxer, so it may
				// think for a moment that it is connected; what counts is that nothing opens.
				err := h.Connect(ctx, info(t, peer.ID(n.Self()), a))
				if err == nil {
					_, err = h.NewStream(ctx, peer.ID(n.Self()), protocol.ID(echo))
				}
				if err == nil || ctx.Err() != nil {
					t.Errorf("%s: %v", a, err)
				}
				cancel()
			}
			// And the other way round.
			_, err := n.Dial(testContext(t), identity.PeerID(h.ID()), []string{h.Addrs()[0].String()})
			if err == nil {
				t.Error("the mesh dialled a stock host")
			}
			n.wantNoLink(t)
		})
	}
	t.Run("udp", func(t *testing.T) { // nobody listens there, whatever the host would speak
		h := stock(t, loopback)
		for _, a := range n.Addrs() {
			udp := strings.Replace(a, "/tcp/", "/udp/", 1)
			for _, suffix := range []string{"/quic-v1", "/quic-v1/webtransport"} {
				ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
				if err := h.Connect(ctx, info(t, peer.ID(n.Self()), udp+suffix)); err == nil {
					t.Errorf("%s connected", udp+suffix)
				}
				cancel()
			}
		}
	})
	if err := SelfTest(testContext(t), n.Self(), n.Addrs()); err != nil {
		t.Error(err)
	}
	if announced.Load() != 0 {
		t.Error("a link was announced")
	}
	// An honest peer still gets in.
	w.dial(w.node("beta/n1", nil), &node{Mesh: n.Mesh, Node: n.Node})
}

func TestSecurityRefusesForeignKeys(t *testing.T) {
	w := newLibp2pWorld(t)
	h := w.node("alpha/n1", nil).hub()
	own, err := ic.UnmarshalEd25519PrivateKey(h.cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.newSecurity(SecurityID, own, nil); err != nil {
		t.Errorf("own key: %v", err)
	}
	if _, err := h.newSecurity(libp2ptls.ID, own, nil); err == nil {
		t.Error("the guard took another protocol's name")
	}
	foreign, _, err := ic.GenerateEd25519Key(strings.NewReader(strings.Repeat("x", 64)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.newSecurity(SecurityID, foreign, nil); err == nil {
		t.Error("a foreign key got an attested identity")
	}
}

// Either guard alone stops a connection that stock TLS made by mistake.
func TestGuardsStopUnattestedConnections(t *testing.T) {
	for name, guard := range map[string]libp2p.Option{
		"muxer": libp2p.Muxer(yamux.ID, muxerGuard{newYamux()}),
		"gater": libp2p.ConnectionGater(gater{}),
	} {
		t.Run(name, func(t *testing.T) {
			server := stock(t, guard, libp2p.Security(libp2ptls.ID, libp2ptls.New), libp2p.DisableRelay(),
				libp2p.Transport(tcp.NewTCPTransport, tcp.DisableReuseport()), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
			ran := make(chan struct{}, 1)
			server.SetStreamHandler("/test", func(network.Stream) { ran <- struct{}{} })
			client := stock(t, libp2p.NoListenAddrs)
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			err := client.Connect(ctx, info(t, server.ID(), server.Addrs()[0].String()))
			if err == nil {
				_, err = client.NewStream(ctx, server.ID(), "/test")
			}
			if err == nil {
				t.Error("a stream opened")
			}
			if len(server.Network().Conns()) != 0 || len(ran) != 0 {
				t.Error("the server counts a connection")
			}
			// Outbound, too.
			listening := stock(t, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"))
			if err := server.Connect(ctx, info(t, listening.ID(), listening.Addrs()[0].String())); err == nil {
				t.Error("the guarded host dialled out unattested")
			}
		})
	}
}

// tap keeps the raw connections that a listener accepted.
type tap struct {
	manet.Listener
	mu    sync.Mutex
	conns []manet.Conn
}

func (l *tap) Accept() (manet.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.mu.Lock()
		l.conns = append(l.conns, c)
		l.mu.Unlock()
	}
	return c, err
}

func TestKilledPeerIsNoticed(t *testing.T) {
	w := newLibp2pWorld(t)
	var l *tap
	a := w.node("alpha/n1", nil)
	b := w.node("beta/n1", func(_ *meshtest.Node, c *Config) {
		c.WrapListener = func(inner manet.Listener) manet.Listener { l = &tap{Listener: inner}; return l }
	})
	la := w.dial(a, b)
	lb := w.linkTo(b, a)
	s, err := la.Open(testContext(t), echo)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	raw := l.conns
	l.mu.Unlock()
	if len(raw) != 1 {
		t.Fatalf("the hook saw %d connections", len(raw))
	}
	_ = raw[0].(interface{ SetLinger(int) error }).SetLinger(0)
	_ = raw[0].Close() // as the kernel does for a killed process
	await(t, "Done at the other end", la.Done(), 2*time.Second)
	await(t, "Done", lb.Done(), 2*time.Second)
	if la.Cause().Code != attest.CodeUnavailable {
		t.Errorf("cause %v", la.Cause())
	}
	if _, err := s.Read(make([]byte, 1)); err == nil {
		t.Error("a stream survived")
	}
	if again := w.dial(a, b); again == la {
		t.Error("the dead link was handed out")
	}
}

// A peer that stops reading must not hold up the closing of its link.
func TestCloseDoesNotWaitForADeafPeer(t *testing.T) {
	w := newLibp2pWorld(t)
	a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
	b.Handle("/meshnode/test/deaf/1", func(l Link, _ Stream) { <-l.Done() })
	l := w.dial(a, b)
	var wg sync.WaitGroup
	for range 8 {
		s, err := l.Open(testContext(t), "/meshnode/test/deaf/1")
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				if _, err := s.Write(make([]byte, 1<<20)); err != nil {
					return
				}
			}
		})
	}
	begun := time.Now()
	_ = l.Close(attest.NewReason(attest.CodeRevoked, "", "", ""))
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("closing took %s", took)
	}
	wg.Wait()
}

func TestGarbageAndSilenceOnTheWire(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.node("alpha/n1", nil)
	addr, err := manet.ToNetAddr(ma.StringCast(n.Addrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range []string{"", "GET / HTTP/1.1\r\n\r\n", "\x13/multistream/1.0.0\n\x07/tls/1.0.0\n",
		"\x13/multistream/1.0.0\n\x16/meshnode-atls/1.0.0\n" + strings.Repeat("\x00", 64)} {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(first))
		t.Cleanup(func() { _ = c.Close() })
	}
	w.dial(w.node("beta/n1", nil), n) // still served
	if len(n.Links()) > 1 {
		t.Error("garbage became a link")
	}
}

// The same nodes over an in-memory transport: real TLS, exchange and yamux, virtual time.
func TestLibp2pInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memtransport.Epoch()
		wire := &memtransport.Network{}
		w := &world{t: t, root: meshtest.NewRoot(), meshID: identity.MeshID{7}, start: NewLibp2p}
		var nodes []*node
		for i := range 5 {
			name := fmt.Sprintf("org%d/n1", i)
			nodes = append(nodes, w.node(name, func(_ *meshtest.Node, c *Config) {
				c.Transport, c.Listen = wire.Host(name), []string{"/ip4/10.0.0.1/tcp/0"}
			}))
		}
		for i, a := range nodes {
			for _, b := range nodes[:i] {
				w.dial(a, b)
			}
		}
		l := w.linkTo(nodes[0], nodes[1])
		s, err := l.Open(testContext(t), echo)
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		time.Sleep(10 * time.Minute) // idle: keep-alives hold
		if len(nodes[0].Links()) != 4 {
			t.Fatalf("%d links after idling", len(nodes[0].Links()))
		}
		wire.Cut("org0/n1", "org1/n1")
		await(t, "Done", l.Done(), time.Second)
		if _, err := nodes[0].Dial(testContext(t), nodes[1].Self(), nodes[1].Addrs()); err == nil {
			t.Error("dialled through a partition")
		}
		wire.Heal("org0/n1", "org1/n1")
		w.dial(nodes[0], nodes[1])
	})
}
