package mesh

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// plain is a swarm with stock TLS and yamux, our resource limits and nothing else: not a
// libp2p host, whose identify protocol would count for the other side.
func plain(b *testing.B) *swarm.Swarm {
	fail := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	key, _, err := ic.GenerateEd25519Key(rand.Reader)
	fail(err)
	id, err := peer.IDFromPrivateKey(key)
	fail(err)
	store, err := pstoremem.NewPeerstore()
	fail(err)
	fail(errors.Join(store.AddPrivKey(id, key), store.AddPubKey(id, key.GetPublic())))
	limits, err := newLimits()
	fail(err)
	s, err := swarm.NewSwarm(id, store, eventbus.NewBus(), swarm.WithResourceManager(limits))
	fail(err)
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: yamux.DefaultTransport}}
	security, err := libp2ptls.New(libp2ptls.ID, key, muxers)
	fail(err)
	up, err := upgrader.New([]sec.SecureTransport{security}, muxers, nil, limits, nil)
	fail(err)
	t, err := tcp.NewTCPTransport(up, limits, nil, tcp.DisableReuseport())
	fail(err)
	fail(s.AddTransport(t))
	fail(s.Listen(ma.StringCast("/ip4/127.0.0.1/tcp/0")))
	b.Cleanup(func() { _ = s.Close(); _ = limits.Close(); _ = store.Close() })
	return s
}

// rememberingJudge remembers which Credentials are correctly signed, as the genesis of a node
// does.
type rememberingJudge struct {
	Judge
	signed sync.Map // string of a Credential: its Subject
}

func (j *rememberingJudge) Credential(peer identity.PeerID, raw []byte) (Subject, *attest.Reason) {
	if s, ok := j.signed.Load(string(raw)); ok && s.(Subject).Peer == peer {
		return s.(Subject), nil
	}
	s, reason := j.Judge.Credential(peer, raw)
	if reason == nil {
		j.signed.Store(string(raw), s)
	}
	return s, reason
}

// benchPair is two attested meshes and two plain swarms.
type benchPair struct {
	b        *testing.B
	from, to Mesh
	x, y     *swarm.Swarm
	arrived  chan struct{} // one for each connection at to and y

	plainAddrs []string // of y
}

// newBenchPair starts all four; change may alter a node's configuration first.
func newBenchPair(b *testing.B, change func(*meshtest.Node, *Config)) *benchPair {
	root, meshID := meshtest.NewRoot(), identity.MeshID{7}
	start := func(name string) Mesh {
		n := root.NewNode(meshID, name)
		cfg := Config{Key: n.Key, MeshID: meshID, Quoter: n.Quoter, Judge: n.Judge, Listen: []string{"/ip4/127.0.0.1/tcp/0"}, FullBurst: 1 << 20,
			Incarnation: func() identity.Incarnation { return 0 }, Epoch: func() identity.Epoch { return 0 },
			Credential: func() []byte { return n.Credential }}
		if change != nil {
			change(n, &cfg)
		}
		cfg.Judge = &rememberingJudge{Judge: cfg.Judge}
		m, err := NewLibp2p(cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = m.Close(); n.Close() })
		return m
	}
	p := &benchPair{b: b, from: start("alpha/n1"), to: start("beta/n1"), x: plain(b), y: plain(b), arrived: make(chan struct{}, 1)}
	p.to.Notify(func(Link) { p.arrived <- struct{}{} })
	p.y.Notify(&network.NotifyBundle{ConnectedF: func(network.Network, network.Conn) { p.arrived <- struct{}{} }})
	for _, a := range p.y.ListenAddresses() {
		p.plainAddrs = append(p.plainAddrs, a.String())
	}
	return p
}

// settle waits until both ends have let go: what is still running would count elsewhere.
func (p *benchPair) settle(gone func() bool) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); !gone(); <-tick.C {
		if time.Now().After(end) {
			p.b.Fatal("a connection does not go away")
		}
	}
}

// dial returns when both ends have the link.
func (p *benchPair) dial() Link {
	l, err := p.from.Dial(context.Background(), p.to.Self(), p.to.Addrs())
	if err != nil {
		p.b.Fatal(err)
	}
	<-p.arrived
	return l
}

// dialPlain is the same by libp2p alone, which is given addresses to parse too.
func (p *benchPair) dialPlain() network.Conn {
	addrs := make([]ma.Multiaddr, len(p.plainAddrs))
	for i, a := range p.plainAddrs {
		addrs[i] = ma.StringCast(a)
	}
	p.x.Peerstore().AddAddrs(p.y.LocalPeer(), addrs, peerstore.TempAddrTTL)
	c, err := p.x.DialPeer(context.Background(), p.y.LocalPeer())
	if err != nil {
		p.b.Fatal(err)
	}
	<-p.arrived
	return c
}

// dials is the processor time of both ends of n attested dials, one after another, each from
// connect until both ends have their link. Closing is not in it. fast says which exchange it
// must be; where full, both ends forget each other first.
func (p *benchPair) dials(n int, fast bool) func() time.Duration {
	return func() (took time.Duration) {
		for range n {
			if !fast {
				p.from.(*libp2pMesh).hub.pairs.Drop(p.to.Self())
				p.to.(*libp2pMesh).hub.pairs.Drop(p.from.Self())
			}
			var l Link
			took += ratio.CPU(1, func() { l = p.dial() })()
			if l.Session().Fast != fast {
				p.b.Fatalf("fast %v, want %v", l.Session().Fast, fast)
			}
			_ = l.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
			p.settle(func() bool { // a link is gone from the table before its connection is
				return len(p.from.(*libp2pMesh).swarm.Conns())+len(p.to.(*libp2pMesh).swarm.Conns()) == 0
			})
		}
		return took
	}
}

// stockDials is the same of libp2p's TLS alone.
func (p *benchPair) stockDials(n int) func() time.Duration {
	return func() (took time.Duration) {
		for range n {
			var c network.Conn
			took += ratio.CPU(1, func() { c = p.dialPlain() })()
			_ = c.Close()
			p.settle(func() bool { return len(p.x.Conns())+len(p.y.Conns()) == 0 })
		}
		return took
	}
}

// Of dialRatio; Of warms up with one round more.
const (
	dialRounds    = 61
	dialsPerRound = 10
)

// dialRatio compares dials on processor time.
func (p *benchPair) dialRatio(fast bool) float64 {
	return ratio.Of(dialRounds, p.dials(dialsPerRound, fast), p.stockDials(dialsPerRound))
}

// BenchmarkRatioDial is a dial with full mutual attestation, Ed25519 evidence, and one on
// which both ends know each other already, against one with libp2p's TLS alone.
func BenchmarkRatioDial(b *testing.B) {
	p := newBenchPair(b, nil)
	for b.Loop() {
		ratio.Print("channel.full_sim_vs_tls_cpu", p.dialRatio(false))
		ratio.Print("channel.fast_vs_tls_cpu", p.dialRatio(true))
	}
}

// BenchmarkRatioStream is what a processor gets through one attested stream, 64 MiB one
// way and both ends counted, against what it gets through a stream over libp2p's TLS and
// yamux. Every transfer has a connection of its own, because two connections of the same
// kind differ by more than the two kinds do.
func BenchmarkRatioStream(b *testing.B) {
	const sink Protocol = "/meshnode/test/sink/1"
	const size = 64 << 20
	p := newBenchPair(b, nil)
	p.to.Handle(sink, func(_ Link, s Stream) {
		defer s.Close()
		_, _ = io.Copy(io.Discard, s)
	})
	p.y.SetStreamHandler(func(s network.Stream) {
		defer s.Close()
		_, _ = io.Copy(io.Discard, s)
	})
	buf := make([]byte, 1<<20)
	send := func(s interface {
		io.ReadWriteCloser
		CloseWrite() error
	}, err error) {
		for sent := 0; err == nil && sent < size; sent += len(buf) {
			_, err = s.Write(buf)
		}
		if err == nil {
			err = s.CloseWrite()
		}
		if err == nil { // the other end closes when it has read everything
			_, err = s.Read(make([]byte, 1))
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		_ = s.Close()
	}
	attested := func() time.Duration {
		l := p.dial()
		took := ratio.CPU(1, func() { s, err := l.Open(context.Background(), sink); send(s, err) })()
		_ = l.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
		p.settle(func() bool { return len(p.from.Links())+len(p.to.Links()) == 0 })
		return took
	}
	stock := func() time.Duration {
		c := p.dialPlain()
		took := ratio.CPU(1, func() { s, err := c.NewStream(context.Background()); send(s, err) })()
		_ = c.Close()
		p.settle(func() bool { return len(p.x.Conns())+len(p.y.Conns()) == 0 })
		return took
	}
	for b.Loop() {
		ratio.Print("channel.stream_vs_libp2p_tls", ratio.Of(25, stock, attested))
	}
}

// bareTLS returns two ends of a TLS 1.3 connection over TCP loopback, nothing of libp2p's
// or ours around them.
func bareTLS(b *testing.B) (client, server *tls.Conn) {
	fail := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	fail(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	fail(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fail(err)
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	fail(err)
	s := <-accepted
	client = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	server = tls.Server(s, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}, MinVersion: tls.VersionTLS13})
	go func() { _ = server.Handshake() }()
	fail(client.Handshake())
	return client, server
}

// BenchmarkRatioBulk is what a processor gets through an attested bulk stream, 64 MiB one
// way and both ends counted, against what it gets through bare crypto/tls. Handshakes are
// left out on both sides.
func BenchmarkRatioBulk(b *testing.B) {
	const sink Protocol = "/meshnode/test/sink/1"
	const size = 64 << 20
	p := newBenchPair(b, nil)
	p.to.Handle(sink, func(_ Link, s Stream) {
		defer s.Close()
		_, _ = io.Copy(io.Discard, s)
	})
	p.dial()
	buf := make([]byte, 1<<20)
	send := func(s interface {
		io.ReadWriter
		CloseWrite() error
	}) {
		var err error
		for sent := 0; err == nil && sent < size; sent += len(buf) {
			_, err = s.Write(buf)
		}
		if err == nil {
			err = s.CloseWrite()
		}
		if err == nil { // the other end closes when it has read everything
			_, err = s.Read(make([]byte, 1))
		}
		if !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
	}
	bulk := func() time.Duration {
		s, err := p.from.Bulk(context.Background(), p.to.Self(), p.to.Addrs(), sink)
		if err != nil {
			b.Fatal(err)
		}
		took := ratio.CPU(1, func() { send(s) })()
		_ = s.Close()
		return took
	}
	bare := func() time.Duration {
		client, server := bareTLS(b)
		done := make(chan struct{})
		took := ratio.CPU(1, func() {
			go func() {
				defer close(done)
				_, _ = io.Copy(io.Discard, server)
				_ = server.CloseWrite()
			}()
			send(client)
			<-done
		})()
		_, _ = client.Close(), server.Close()
		return took
	}
	for b.Loop() {
		ratio.Print("channel.bulk_vs_crypto_tls", ratio.Of(25, bare, bulk))
	}
}
