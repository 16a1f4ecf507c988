package mesh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/meshtest"
	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
)

// attacker is a peer with a valid Credential and genuine evidence that does not keep to the
// protocol on its way to a victim. In a bubble, so that time is exact.
type attacker struct {
	*meshtest.Node
	t      *testing.T
	w      *world
	wire   *memtransport.Network
	victim *node
}

// underAttack runs f with a victim in a bubble. Whatever f does, the victim must have no
// link afterwards, run no handler, count what it turned away and serve an honest peer.
func underAttack(t *testing.T, f func(*testing.T, *attacker)) {
	synctest.Test(t, func(t *testing.T) {
		memtransport.Epoch()
		wire := &memtransport.Network{}
		w := &world{t: t, root: meshtest.NewRoot(), meshID: identity.MeshID{7}, start: NewLibp2p}
		start := func(name, ip string) *node {
			return w.node(name, func(_ *meshtest.Node, c *Config) {
				c.Transport, c.Listen = wire.Host(name), []string{"/ip4/" + ip + "/tcp/4001"}
			})
		}
		victim, honest := start("alpha/n1", "10.0.0.1"), start("beta/n1", "10.0.0.2")
		victim.Handle(echo, func(l Link, s Stream) {
			if l.Peer() != honest.Self() {
				t.Error("a handler ran")
			}
			_ = s.Reset()
		})
		victim.Notify(func(l Link) {
			if l.Peer() != honest.Self() {
				t.Error("a link was announced")
			}
		})
		a := &attacker{Node: w.root.NewNode(w.meshID, "evil/n1"), t: t, w: w, wire: wire, victim: victim}
		defer a.Node.Close()
		f(t, a)
		synctest.Wait()
		victim.wantNoLink(t)
		in := victim.Mesh.(*libp2pMesh).intake // nothing is counted as pending any more
		in.mu.Lock()
		left := in.strangers.silent.Len() + in.strangers.speaking.Len() + in.strangers.proved
		in.mu.Unlock()
		if left != 0 {
			t.Errorf("%d places are still taken", left)
		}
		counts, sum := victim.Counters(), uint64(0)
		for _, n := range counts {
			sum += n
		}
		if sum == 0 {
			t.Error("nothing was counted")
		}
		w.dial(honest, victim)
	})
}

// slowWire writes a byte a second while it is told to.
type slowWire struct {
	net.Conn
	slow atomic.Bool
}

func (c *slowWire) Write(p []byte) (int, error) {
	for i := range p {
		if !c.slow.Load() {
			n, err := c.Conn.Write(p[i:])
			return i + n, err
		}
		time.Sleep(time.Second)
		if _, err := c.Conn.Write(p[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

// connect opens a raw connection to the victim.
func (a *attacker) connect() *slowWire {
	c, err := a.wire.Dial(testContext(a.t), "evil", "10.0.0.1:4001")
	if err != nil {
		a.t.Fatal(err)
	}
	return &slowWire{Conn: c}
}

// secure names the security protocol on c and finishes TLS.
func (a *attacker) secure(c net.Conn) (sec.SecureConn, error) {
	if err := mss.SelectProtoOrFail(SecurityID, c); err != nil {
		return nil, err
	}
	return a.handshake(c)
}

func (a *attacker) handshake(c net.Conn) (sec.SecureConn, error) {
	key, err := ic.UnmarshalEd25519PrivateKey(a.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	client, err := libp2ptls.New(SecurityID, key, []upgrader.StreamMuxer{{ID: yamux.ID}})
	if err != nil {
		a.t.Fatal(err)
	}
	return client.SecureOutbound(context.Background(), c, peer.ID(a.victim.Self()))
}

// exchange runs the honest exchange on s, of which each frame that is sent passes send.
func (a *attacker) exchange(s sec.SecureConn, send func(nth int, frame []byte, s net.Conn) error) error {
	export, err := exporter(s)
	if err != nil {
		return err
	}
	_, err = exchange.Run(context.Background(), &tampered{SecureConn: s, send: send}, exchange.Params{
		Purpose: attest.PurposeChannel, Self: a.Peer, Peer: a.victim.Self(), Initiator: true, MeshID: a.MeshID,
		Credential: a.Credential, Prover: a.Quoter, Judge: a.Judge, Export: export,
	})
	return err
}

// tampered lets send do with each frame what it likes.
type tampered struct {
	sec.SecureConn
	send func(nth int, frame []byte, s net.Conn) error
	nth  int
}

func (c *tampered) Write(frame []byte) (int, error) {
	c.nth++
	if c.send == nil {
		return c.SecureConn.Write(frame)
	}
	if err := c.send(c.nth, frame, c.SecureConn); err != nil {
		return 0, err
	}
	return len(frame), nil
}

var errVanished = errors.New("vanished")

// A peer that speaks a byte a second is cut off in each stage, at the stage's time.
func TestSlowloris(t *testing.T) {
	for _, c := range []struct {
		name   string
		within time.Duration
		attack func(*attacker, *slowWire)
	}{
		{"multistream", negotiateTimeout, func(a *attacker, c *slowWire) {
			c.slow.Store(true)
			_, _ = a.secure(c)
		}},
		{"silent after multistream", negotiateTimeout, func(_ *attacker, c *slowWire) {
			_, _ = c.Write([]byte("\x13/multistream/1.0.0\n"))
		}},
		{"TLS", tlsTimeout, func(a *attacker, c *slowWire) {
			if err := mss.SelectProtoOrFail(SecurityID, c); err != nil {
				a.t.Fatal(err)
			}
			c.slow.Store(true)
			_, _ = a.handshake(c)
		}},
		{"silent before TLS", tlsTimeout, func(a *attacker, c *slowWire) {
			if err := mss.SelectProtoOrFail(SecurityID, c); err != nil {
				a.t.Fatal(err)
			}
		}},
		{"silent after TLS", exchange.HelloTimeout, func(a *attacker, c *slowWire) { _, _ = a.secure(c) }},
		{"HELLO", exchange.HelloTimeout, func(a *attacker, c *slowWire) {
			if s, err := a.secure(c); err == nil {
				c.slow.Store(true)
				_ = a.exchange(s, nil)
			}
		}},
		{"ATT", exchange.TotalTimeout, func(a *attacker, c *slowWire) {
			if s, err := a.secure(c); err == nil {
				_ = a.exchange(s, func(nth int, frame []byte, s net.Conn) error {
					c.slow.Store(nth > 1)
					_, err := s.Write(frame)
					return err
				})
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			underAttack(t, func(t *testing.T, a *attacker) {
				wire := a.connect()
				defer wire.Close()
				begun := time.Now()
				go c.attack(a, wire)
				for len(a.victim.Counters()) == 0 { // one goes up when the victim lets go
					time.Sleep(100 * time.Millisecond)
					if time.Since(begun) > c.within+time.Second {
						t.Fatalf("still there after %s", time.Since(begun))
					}
				}
				if took := time.Since(begun); took < c.within-time.Second {
					t.Errorf("gone after %s, want about %s", took, c.within)
				}
				_ = wire.Close()
				time.Sleep(2 * time.Minute) // whatever the attacker still says
			})
		})
	}
}

// A peer that goes away between any two messages leaves nothing behind.
func TestVanishingPeers(t *testing.T) {
	vanishAt := func(n int) func(int, []byte, net.Conn) error {
		return func(nth int, frame []byte, s net.Conn) error {
			if nth == n {
				return errVanished
			}
			_, err := s.Write(frame)
			return err
		}
	}
	for name, attack := range map[string]func(*attacker, net.Conn){
		"after connecting":  func(*attacker, net.Conn) {},
		"after multistream": func(_ *attacker, c net.Conn) { _ = mss.SelectProtoOrFail(SecurityID, c) },
		"after TLS":         func(a *attacker, c net.Conn) { _, _ = a.secure(c) },
		"before HELLO": func(a *attacker, c net.Conn) {
			if s, err := a.secure(c); err == nil {
				_ = a.exchange(s, vanishAt(1))
			}
		},
		"before ATT_I": func(a *attacker, c net.Conn) {
			if s, err := a.secure(c); err == nil {
				_ = a.exchange(s, vanishAt(2))
			}
		},
		"before ACK": func(a *attacker, c net.Conn) {
			if s, err := a.secure(c); err == nil {
				_ = a.exchange(s, vanishAt(3))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			underAttack(t, func(_ *testing.T, a *attacker) {
				c := a.connect()
				attack(a, c)
				_ = c.Close()
			})
		})
	}
}

// The other way round: whom the victim dials goes away at every point.
func TestVanishingServers(t *testing.T) {
	for name, serve := range map[string]func(*attacker, net.Conn){
		"after accepting": func(*attacker, net.Conn) {},
		"after multistream": func(_ *attacker, c net.Conn) {
			_, _ = negotiateAny(c)
		},
		"after TLS": func(a *attacker, c net.Conn) {
			if _, err := negotiateAny(c); err == nil {
				_, _ = a.accept(c)
			}
		},
		"before HELLO_R": func(a *attacker, c net.Conn) { a.serve(c, 1) },
		"before ATT_R":   func(a *attacker, c net.Conn) { a.serve(c, 2) },
	} {
		t.Run(name, func(t *testing.T) {
			underAttack(t, func(t *testing.T, a *attacker) {
				l, err := a.wire.Listen("evil", "10.0.0.66:4001")
				if err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				go func() {
					c, err := l.Accept()
					if err == nil {
						serve(a, c)
						_ = c.Close()
					}
				}()
				begun := time.Now()
				if _, err := a.victim.Dial(testContext(t), a.Peer, []string{"/ip4/10.0.0.66/tcp/4001"}); err == nil {
					t.Error("dialled")
				}
				if took := time.Since(begun); took > exchange.TotalTimeout {
					t.Errorf("a dial took %s", took)
				}
				// And one that is seen to be turned away, for the count.
				_ = a.connect().Close()
			})
		})
	}
}

func negotiateAny(c net.Conn) (string, error) {
	mux := mss.NewMultistreamMuxer[string]()
	mux.AddHandler(string(SecurityID), nil)
	p, _, err := mux.Negotiate(c)
	return p, err
}

func (a *attacker) accept(c net.Conn) (sec.SecureConn, error) {
	key, err := ic.UnmarshalEd25519PrivateKey(a.Key)
	if err != nil {
		a.t.Fatal(err)
	}
	server, err := libp2ptls.New(SecurityID, key, []upgrader.StreamMuxer{{ID: yamux.ID}})
	if err != nil {
		a.t.Fatal(err)
	}
	return server.SecureInbound(context.Background(), c, "")
}

// serve is an honest responder that goes away in place of its nth frame.
func (a *attacker) serve(c net.Conn, n int) {
	if _, err := negotiateAny(c); err != nil {
		return
	}
	s, err := a.accept(c)
	if err != nil {
		return
	}
	export, err := exporter(s)
	if err != nil {
		return
	}
	_, _ = exchange.Run(context.Background(), &tampered{SecureConn: s, send: func(nth int, frame []byte, s net.Conn) error {
		if nth == n {
			return errVanished
		}
		_, err := s.Write(frame)
		return err
	}}, exchange.Params{Purpose: attest.PurposeChannel, Self: a.Peer, Peer: a.victim.Self(), MeshID: a.MeshID,
		Credential: a.Credential, Prover: a.Quoter, Judge: a.Judge, Export: export})
}

// earlySYN opens stream 1.
var earlySYN = []byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}

// Frames of the muxer that come before the exchange is over are no streams: instead of
// HELLO, or pipelined behind a frame of the exchange.
func TestEarlyMuxerFrames(t *testing.T) {
	t.Run("after TLS", func(t *testing.T) {
		underAttack(t, func(_ *testing.T, a *attacker) {
			c := a.connect()
			defer c.Close()
			if s, err := a.secure(c); err == nil {
				_, _ = s.Write(slices.Repeat(earlySYN, 100))
				_, _ = s.Read(make([]byte, 1))
			}
		})
	})
	for n, name := range []string{"HELLO_I", "ATT_I"} {
		t.Run("behind "+name, func(t *testing.T) {
			underAttack(t, func(t *testing.T, a *attacker) {
				c := a.connect()
				defer c.Close()
				s, err := a.secure(c)
				if err != nil {
					t.Fatal(err)
				}
				err = a.exchange(s, func(nth int, frame []byte, s net.Conn) error {
					if nth == n+1 {
						frame = append(slices.Clone(frame), earlySYN...)
					}
					_, err := s.Write(frame)
					return err
				})
				if err == nil { // the client is done when it has sent ACK; the server refuses then
					_ = s.SetReadDeadline(time.Now().Add(exchange.TotalTimeout))
					_, err = io.Copy(io.Discard, s)
				}
				if isTimeout(err) {
					t.Error("the connection stands")
				}
			})
		})
	}
}

// A second connection of a linked peer that does not finish the exchange changes nothing
// about the link and gets no streams.
func TestOneConnectionAttestedAnotherNot(t *testing.T) {
	w := newLibp2pWorld(t)
	n, member := w.node("alpha/n1", nil), w.node("beta/n1", nil)
	l := w.dial(member, n)
	a := &attacker{Node: member.Node, t: t, w: w, victim: n}
	addr, err := manet.ToNetAddr(ma.StringCast(n.Addrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := a.secure(c)
	if err != nil {
		t.Fatal(err)
	}
	muxed, err := newYamux().NewConn(s, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer muxed.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if stream, err := muxed.OpenStream(ctx); err == nil {
		_ = stream.SetDeadline(time.Now().Add(5 * time.Second))
		if err := mss.SelectProtoOrFail(echo, stream); err == nil {
			t.Error("a stream opened on a connection that was not attested")
		}
	}
	if now, ok := n.Link(member.Self()); !ok || now.Cause() != (attest.Reason{}) {
		t.Error("the attested link is gone")
	}
	stream, err := l.Open(testContext(t), echo)
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Close()
}

// Many peers of one organisation, each with a valid Credential, keep the verifier busy; a
// peer of another organisation still joins in time.
func TestEvidenceFloodOfOneOrganisation(t *testing.T) {
	memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
		n := w.node("alpha/n1", func(n *meshtest.Node, c *Config) {
			c.OnRefusal = nil
			n.Judge.AppraiseFunc = func(exchange.Subject) *attest.Reason {
				time.Sleep(50 * time.Millisecond) // far more than a P-384 check
				return nil
			}
		})
		var flood sync.WaitGroup
		ctx, stop := context.WithCancel(context.Background())
		var busy atomic.Int64
		for i := range 200 {
			evil := w.node(fmt.Sprintf("evil/n%d", i), func(_ *meshtest.Node, c *Config) { c.OnRefusal = nil })
			flood.Go(func() {
				for ctx.Err() == nil {
					l, err := evil.Dial(ctx, n.Self(), n.Addrs())
					if err == nil {
						_ = l.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
					}
					var r *Refusal
					if errors.As(err, &r) && r.Code() == attest.CodeBusy {
						busy.Add(1)
						time.Sleep(100 * time.Millisecond)
					}
				}
			})
		}
		time.Sleep(time.Second)
		honest := w.node("beta/n1", nil)
		begun := time.Now()
		_, err := honest.Dial(testContext(t), n.Self(), n.Addrs())
		if took := time.Since(begun); err != nil || took > 2*time.Second {
			t.Errorf("the honest peer took %s: %v", took, err)
		}
		stop()
		flood.Wait()
		if busy.Load() == 0 {
			t.Error("nobody was turned away: that was no flood")
		}
	})
}
