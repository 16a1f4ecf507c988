package redteam

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// Muxer bytes that are pipelined behind ATT_I are waiting when the target has answered with
// ATT_R: they stand where ACK belongs.
func TestMuxerPipelinedBehindEvidence(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.unharmed(t, "refused/"+string(attest.CodeProtocol), func() {
		ch, err := dialTLS(testContext(t), s.c.addrs[0], s.victim.Peer, s.self.Key)
		if err != nil {
			t.Fatal(err)
		}
		defer ch.Close()
		sp := &speaker{conn: ch, export: ch.export, id: s.c.arsenal.Self, target: &s.c.target}
		if err := sp.hellos(); err != nil {
			t.Fatal(err)
		}
		body, err := sp.attestation(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := exchange.WriteFrame(ch, exchange.FrameAttI, body); err != nil {
			t.Fatal(err)
		}
		// yamux: version 0, window update, SYN, stream 1, no delta.
		if _, err := ch.Write([]byte{0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0}); err != nil {
			t.Fatal(err)
		}
		if _, err := exchange.ReadFrame(ch, exchange.FrameAttR, exchange.MaxAttestation); err != nil {
			t.Errorf("no ATT_R: %v", err)
		}
		var refused *exchange.RefusedError
		if _, err := exchange.ReadFrame(ch, exchange.FrameAccept, 0); !errors.As(err, &refused) {
			t.Errorf("got %v, want a REFUSAL", err)
		}
		if _, hungUp := drained(ch, 3*time.Second); !hungUp {
			t.Error("still open")
		}
	})
}

// Whoever leaves after ATT_I has proved itself and accepted nobody: no verdict is kept.
func TestAbandonedExchangeLeavesNoVerdict(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	id := asIdentity(s.node("alpha/redteam"))
	for _, reset := range []bool{false, true} {
		a := s.c.attemptOnce(testContext(t), s.c.addrs[0], id, lies{})
		if a.err != nil {
			t.Fatal(a.err)
		}
		before := s.m.Counters()["refused/unavailable"]
		if reset {
			_ = a.channel.raw.(*net.TCPConn).SetLinger(0)
			_ = a.channel.raw.Close()
		}
		a.close()
		s.eventually(t, "the end of the exchange", func() bool { return s.m.Counters()["refused/unavailable"] > before })
		if want := s.wants(t, id); len(want) != 0 {
			t.Errorf("after reset %v a verdict is held", reset)
		}
	}
	if s.links() != 1 {
		t.Errorf("%d links", s.links())
	}
}

// A restart forgets every verdict: the next exchange is full, both ways.
func TestRestartGoesFull(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	if len(s.wants(t, s.c.arsenal.Self)) == 0 {
		t.Fatal("no verdict is held before the restart")
	}
	if err := s.m.Close(); err != nil {
		t.Fatal(err)
	}
	again := &scene{world: s.world, m: s.sound(nil)}
	c, err := NewCampaign(testContext(t), s.target(again.m.Addrs()...), s.arsenal())
	if err != nil {
		t.Fatal(err)
	}
	again.c = c
	if len(again.wants(t, again.c.arsenal.Self)) != 0 {
		t.Error("a verdict survived the restart")
	}
}

// Peers are Ed25519 keys: others end before the exchange.
func TestOtherKeyTypesAreNoPeers(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	for name, kind := range map[string][2]int{"RSA 2048": {ic.RSA, 2048}, "ECDSA": {ic.ECDSA, -1}, "secp256k1": {ic.Secp256k1, -1}} {
		key, _, err := ic.GenerateKeyPairWithReader(kind[0], kind[1], rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		quotes, judged := s.victim.Attester.Quotes.Load(), s.victim.Judge.Credentials.Load()
		tlsT, err := libp2ptls.New(mesh.SecurityID, key, []upgrader.StreamMuxer{{ID: yamux.ID}})
		if err != nil {
			t.Fatal(err)
		}
		raw, err := dialSelected(testContext(t), s.c.addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		if conn, err := tlsT.SecureOutbound(testContext(t), raw, peer.ID(s.victim.Peer)); err == nil {
			ch, err := newChannel(conn, raw)
			if err != nil {
				t.Fatal(err)
			}
			_ = exchange.WriteFrame(ch, exchange.FrameHelloI, make([]byte, 300))
			if got, hungUp := drained(ch, 5*time.Second); !hungUp || len(got) > 0 && exchange.FrameType(got[0]) != exchange.FrameRefusal {
				t.Errorf("%s: closed %v, answered %x", name, hungUp, got)
			}
		}
		_ = raw.Close()
		if s.victim.Attester.Quotes.Load() != quotes || s.victim.Judge.Credentials.Load() != judged {
			t.Errorf("%s: cost a quote or a look at a Credential", name)
		}
	}
	if s.links() != 1 {
		t.Errorf("%d links", s.links())
	}
}

// No address leads through a relay, attested or not.
func TestRelayedAddressesAreNotDialled(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	relay, err := libp2p.New(libp2p.DisableMetrics(), libp2p.Transport(tcp.NewTCPTransport), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.EnableRelayService(), libp2p.Security(string(mesh.SecurityID), libp2ptls.New))
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	through := relay.Addrs()[0].String() + "/p2p/" + relay.ID().String() + "/p2p-circuit"
	ctx, cancel := context.WithTimeout(testContext(t), 5*time.Second)
	defer cancel()
	if _, err := s.m.Dial(ctx, s.other.Peer, []string{through}); err == nil || ctx.Err() != nil {
		t.Errorf("through a relay: %v", err)
	}
	if n := len(relay.Network().Conns()); n != 0 {
		t.Errorf("the relay has %d connections", n)
	}
}

// Ten thousand HELLOs have ten thousand nonces.
func TestNoncesNeverRepeat(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seen := map[[exchange.NonceSize]byte]bool{}
	for range 10_000 {
		a, b := net.Pipe()
		done := make(chan error, 1)
		go func() {
			_, err := exchange.Run(context.Background(), a, exchange.Params{Self: w.victim.Peer, Peer: w.self.Peer, Initiator: true, MeshID: testMesh,
				Purpose: attest.PurposeChannel, Credential: w.victim.Credential, Prover: w.victim.Quoter, Judge: w.victim.Judge,
				Export: func(string, []byte, int) ([]byte, error) { return make([]byte, 32), nil }})
			done <- err
		}()
		body, err := exchange.ReadFrame(b, exchange.FrameHelloI, exchange.MaxHello)
		_ = b.Close()
		if <-done == nil || err != nil {
			t.Fatal(err)
		}
		_ = a.Close()
		h, reason := exchange.DecodeHello(body)
		if reason != nil {
			t.Fatal(reason)
		}
		if seen[h.Nonce] {
			t.Fatalf("nonce %x twice", h.Nonce)
		}
		seen[h.Nonce] = true
	}
}
