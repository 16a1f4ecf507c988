package mesh

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	webrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	ws "github.com/libp2p/go-libp2p/p2p/transport/websocket"
	webtransport "github.com/libp2p/go-libp2p/p2p/transport/webtransport"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

func wantUnguarded(t *testing.T, self identity.PeerID, addr, by string) {
	t.Helper()
	err := SelfTest(testContext(t), self, []string{addr})
	if !errors.Is(err, ErrUnguarded) || !strings.Contains(err.Error(), by) {
		t.Errorf("%s: got %v, want it unguarded by %s", addr, err, by)
	}
}

// A node that lets stock hosts in over TCP is found, whatever it lets them in by.
func TestSelfTestFindsOpenTCP(t *testing.T) {
	overTCP := libp2p.Transport(tcp.NewTCPTransport)
	for name, c := range map[string]struct {
		options []libp2p.Option
		suffix  string
	}{
		"TLS":                          {options: []libp2p.Option{overTCP, libp2p.Security(libp2ptls.ID, libp2ptls.New)}},
		"Noise":                        {options: []libp2p.Option{overTCP, libp2p.Security(noise.ID, noise.New)}},
		"plaintext":                    {options: []libp2p.Option{overTCP, libp2p.NoSecurity}},
		"defaults":                     {options: []libp2p.Option{overTCP}},
		"TLS as " + string(SecurityID): {options: []libp2p.Option{overTCP, libp2p.Security(string(SecurityID), libp2ptls.New)}},
		"WebSocket":                    {options: []libp2p.Option{libp2p.Transport(ws.New)}, suffix: "/ws"},
		"WebSocket, plaintext":         {options: []libp2p.Option{libp2p.Transport(ws.New), libp2p.NoSecurity}, suffix: "/ws"},
	} {
		t.Run(name, func(t *testing.T) {
			open := stock(t, append(c.options, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"+c.suffix))...)
			wantUnguarded(t, identity.PeerID(open.ID()), strings.TrimSuffix(open.Addrs()[0].String(), c.suffix), name)
		})
	}
}

// A guarded TCP port does not hide what listens at the UDP port of the same number.
func TestSelfTestFindsOpenUDP(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.node("alpha/n1", nil)
	key, err := ic.UnmarshalEd25519PrivateKey(n.Key)
	if err != nil {
		t.Fatal(err)
	}
	port := n.Addrs()[0][strings.LastIndex(n.Addrs()[0], "/")+1:]
	for _, c := range []struct {
		name   string
		option libp2p.Option
		suffix string
	}{
		{"QUIC", libp2p.Transport(quic.NewTransport), "/quic-v1"},
		{"WebTransport", libp2p.Transport(webtransport.New), "/quic-v1/webtransport"},
		{"WebRTC", libp2p.Transport(webrtc.New), "/webrtc-direct"},
	} {
		t.Run(c.name, func(t *testing.T) {
			listen := fmt.Sprintf("/ip4/127.0.0.1/udp/%s%s", port, c.suffix)
			open := stock(t, libp2p.Identity(key), c.option, libp2p.ListenAddrStrings(listen))
			wantUnguarded(t, n.Self(), n.Addrs()[0], c.name)
			// And where the node itself says that it listens there.
			err := SelfTest(testContext(t), n.Self(), []string{open.Addrs()[0].String()})
			if !errors.Is(err, ErrUnguarded) {
				t.Errorf("%s: %v", open.Addrs()[0], err)
			}
			_ = open.Close()
		})
	}
	if err := SelfTest(testContext(t), n.Self(), n.Addrs()); err != nil {
		t.Errorf("the guarded node alone: %v", err)
	}
}

// The self-test does not pass for want of something to test.
func TestSelfTestIsNotVacuous(t *testing.T) {
	self := meshtest.NewRoot().NewPeer()
	for _, addrs := range [][]string{nil, {"/ip4/127.0.0.1/tcp/1"}, {"nonsense"}, {"/ip4/127.0.0.1/udp/1/quic-v1"}, {"/dns4/localhost/tcp/1"}} {
		if err := SelfTest(testContext(t), self, addrs); err == nil || errors.Is(err, ErrUnguarded) {
			t.Errorf("%q: %v", addrs, err)
		}
	}
}

func TestSelfTestIsQuickAndObeysItsContext(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.node("alpha/n1", nil)
	begun := time.Now()
	if err := SelfTest(testContext(t), n.Self(), n.Addrs()); err != nil {
		t.Error(err)
	}
	t.Logf("one address in %s", time.Since(begun))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := SelfTest(ctx, n.Self(), n.Addrs()); err == nil {
		t.Error("passed without having tested anything")
	}
	n.wantNoLink(t)
}

// Stock hosts on every other transport get nothing either, and no handler runs.
func TestStockTransportsGetNothing(t *testing.T) {
	w := newLibp2pWorld(t)
	n := w.node("alpha/n1", nil)
	n.Handle(echo, func(Link, Stream) { t.Error("a handler ran") })
	n.Notify(func(Link) { t.Error("a link was announced") })
	at := n.Addrs()[0]
	udp := strings.Replace(at, "/tcp/", "/udp/", 1)
	const hash = "/certhash/uEiAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	for name, c := range map[string]struct {
		option libp2p.Option
		addr   string
	}{
		"QUIC":         {libp2p.Transport(quic.NewTransport), udp + "/quic-v1"},
		"WebTransport": {libp2p.Transport(webtransport.New), udp + "/quic-v1/webtransport" + hash},
		"WebRTC":       {libp2p.Transport(webrtc.New), udp + "/webrtc-direct" + hash},
		"WebSocket":    {libp2p.Transport(ws.New), at + "/ws"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := stock(t, libp2p.NoListenAddrs, c.option)
			connected := make(chan struct{}, 1)
			h.Network().Notify(&network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) { connected <- struct{}{} }})
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := h.Connect(ctx, info(t, peer.ID(n.Self()), c.addr)); err == nil || len(connected) != 0 {
				t.Errorf("connected: %v", err)
			}
			n.wantNoLink(t)
		})
	}
}
