package redteam

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/fxamacker/cbor/v2"
	mss "github.com/multiformats/go-multistream"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// duo are two genuine nodes over real libp2p, and an attacker on the path between them.
type duo struct {
	t        *testing.T
	root     *meshtest.Root
	nodes    [2]*meshtest.Node
	meshes   [2]mesh.Mesh
	handled  atomic.Int64
	notified atomic.Int64
}

func newDuo(t *testing.T) *duo {
	d := &duo{t: t, root: meshtest.NewRoot()}
	for i, name := range []string{"alpha/n1", "beta/n1"} {
		n := d.root.NewNode(testMesh, name)
		t.Cleanup(n.Close)
		m, err := mesh.NewLibp2p(mesh.Config{Key: n.Key, MeshID: testMesh, Quoter: n.Quoter, Judge: n.Judge, Listen: []string{"/ip4/127.0.0.1/tcp/0"},
			Incarnation: func() identity.Incarnation { return 0 }, Epoch: func() identity.Epoch { return 1 }, Credential: func() []byte { return n.Credential }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close() })
		m.Handle(seatProtocol, func(_ mesh.Link, s mesh.Stream) { d.handled.Add(1); s.Close() })
		m.Notify(func(mesh.Link) { d.notified.Add(1) })
		d.nodes[i], d.meshes[i] = n, m
	}
	return d
}

// listen runs the attacker's end of each connection that the first node makes.
func (d *duo) listen(serve func(context.Context, net.Conn)) string {
	d.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
				defer stop()
				serve(ctx, conn)
			})
		}
	})
	d.t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	_, p, _ := net.SplitHostPort(l.Addr().String())
	return "/ip4/127.0.0.1/tcp/" + p
}

// terminate ends TLS with the first node as the holder of left, makes another connection to
// the second as the holder of right, and relays every frame between them.
func (d *duo) terminate(left, right ed25519.PrivateKey) func(context.Context, net.Conn) {
	return func(ctx context.Context, conn net.Conn) {
		mux := mss.NewMultistreamMuxer[string]()
		mux.AddHandler(string(mesh.SecurityID), nil)
		if _, _, err := mux.Negotiate(conn); err != nil {
			return
		}
		server, err := newTLS(left)
		if err != nil {
			d.t.Error(err)
			return
		}
		secured, err := server.SecureInbound(ctx, conn, "")
		if err != nil {
			return
		}
		first, err := newChannel(secured, conn)
		if err != nil {
			return
		}
		defer first.Close()
		second, err := dialTLS(ctx, d.meshes[1].Addrs()[0], d.nodes[1].Peer, right)
		if err != nil {
			d.t.Error(err)
			return
		}
		defer second.Close()
		stop := context.AfterFunc(ctx, func() { _ = first.Close(); _ = second.Close() })
		defer stop()
		relayFrames(first, second)
	}
}

// relayFrames forwards all frames in turn, as the exchange has them, with the transcripts
// made right for the other side.
func relayFrames(first, second *channel) {
	var bodies [][]byte
	ends := [2]*channel{first, second}
	for turn := 0; ; turn++ {
		from, to := ends[turn%2], ends[(turn+1)%2]
		kind, body, err := anyFrame(from)
		if err != nil {
			return
		}
		out := body
		if len(bodies) >= 2 && kind != exchange.FrameRefusal {
			ekm, err := exchange.EKM(to.export, bodies[0], bodies[1])
			if err != nil {
				return
			}
			out = withTranscript(kind, body, exchange.Transcript(ekm, bodies...))
		}
		bodies = append(bodies, out)
		if exchange.WriteFrame(to, kind, out) != nil || kind == exchange.FrameRefusal {
			_, _ = drained(from, exchange.RefusalLinger)
			return
		}
	}
}

func anyFrame(r io.Reader) (exchange.FrameType, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > exchange.MaxAttestation {
		return 0, nil, errors.New("too long")
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return exchange.FrameType(head[0]), body, err
}

// withTranscript puts another transcript into ATT, FAST or ACK.
func withTranscript(kind exchange.FrameType, body []byte, t [32]byte) []byte {
	if kind == exchange.FrameAck {
		return t[:]
	}
	var fields []cbor.RawMessage
	if cbor.Unmarshal(body, &fields) != nil || len(fields) == 0 {
		return body
	}
	fields[0], _ = cbor.Marshal(t[:])
	out, _ := cbor.Marshal(fields)
	return out
}

// nothingHappened is what every relay must come to at both ends.
func (d *duo) nothingHappened(t *testing.T, notified int64) {
	t.Helper()
	for i, m := range d.meshes {
		if len(m.Links()) != 0 {
			t.Errorf("node %d has a link", i)
		}
	}
	if d.notified.Load() != notified || d.handled.Load() != 0 {
		t.Errorf("%d links announced, %d handlers ran", d.notified.Load()-notified, d.handled.Load())
	}
}

// The attacker has stolen both identity keys. What it lacks is the exporter of the other
// connection, which each TEE quotes only for its own.
func TestRelayBetweenGenuineNodesWithStolenKeys(t *testing.T) {
	t.Parallel()
	d := newDuo(t)
	addr := d.listen(d.terminate(d.nodes[1].Key, d.nodes[0].Key))
	_, err := d.meshes[0].Dial(testContext(t), d.nodes[1].Peer, []string{addr})
	var r *mesh.Refusal
	if !errors.As(err, &r) || !r.Remote || r.Code() != attest.CodeNotBound {
		t.Errorf("the dialler got %v", err)
	}
	eventually(t, func() bool { return d.meshes[1].Counters()["refused/not_bound"] > 0 }) // its refusal lingers
	if got := verdicts(d.meshes[1]); got["refused/not_bound"] != 1 || len(got) != 1 {
		t.Errorf("the listener counts %v", got)
	}
	if got := verdicts(d.meshes[0]); got["refused_us/not_bound"] != 1 || len(got) != 1 {
		t.Errorf("the dialler counts %v", got)
	}
	if d.nodes[1].Attester.Quotes.Load() != 0 {
		t.Error("the listener made evidence for the relay")
	}
	d.nothingHappened(t, 0)
}

// The same inside the window of an earlier attestation: the MACs of the fast mode are bound
// to the exporter as well, and the verdict survives the attempt.
func TestRelayOfFastModeWithStolenKeys(t *testing.T) {
	t.Parallel()
	d := newDuo(t)
	l, err := d.meshes[0].Dial(testContext(t), d.nodes[1].Peer, d.meshes[1].Addrs())
	if err != nil {
		t.Fatal(err)
	}
	first := l.Session()
	_ = l.Close(attest.NewReason(attest.CodeShutdown, "", "", ""))
	eventually(t, func() bool { return len(d.meshes[0].Links())+len(d.meshes[1].Links()) == 0 && d.notified.Load() == 2 })
	addr := d.listen(d.terminate(d.nodes[1].Key, d.nodes[0].Key))
	if _, err := d.meshes[0].Dial(testContext(t), d.nodes[1].Peer, []string{addr}); err == nil {
		t.Error("the relay was accepted")
	}
	eventually(t, func() bool { return d.meshes[1].Counters()["refused/not_bound"] == 1 })
	d.nothingHappened(t, 2)
	if q := d.nodes[0].Attester.Quotes.Load() + d.nodes[1].Attester.Quotes.Load(); q != 2 {
		t.Errorf("%d quotes: the relay was not in fast mode", q)
	}
	// An attack must not cost the honest pair its verdict.
	l, err = d.meshes[0].Dial(testContext(t), d.nodes[1].Peer, d.meshes[1].Addrs())
	if err != nil {
		t.Fatal(err)
	}
	if s := l.Session(); !s.Fast || !s.NotAfter.Equal(first.NotAfter) {
		t.Errorf("after the relay: fast %v, until %s, was until %s", s.Fast, s.NotAfter, first.NotAfter)
	}
}

// Without the second node's key the relay does not even get to the exchange.
func TestRelayWithAnOwnKey(t *testing.T) {
	t.Parallel()
	d := newDuo(t)
	addr := d.listen(d.terminate(newKey(), newKey()))
	_, err := d.meshes[0].Dial(testContext(t), d.nodes[1].Peer, []string{addr})
	var r *mesh.Refusal
	if !errors.As(err, &r) || r.Code() != attest.CodeWrongPeer {
		t.Errorf("the dialler got %v", err)
	}
	d.nothingHappened(t, 0)
}

// The control: the same listener that only carries bytes is no relay, and is let through.
func TestForwardingBytesIsNoRelay(t *testing.T) {
	t.Parallel()
	d := newDuo(t)
	addr := d.listen(func(ctx context.Context, conn net.Conn) {
		to, err := dialRaw(ctx, d.meshes[1].Addrs()[0])
		if err != nil {
			return
		}
		defer to.Close()
		stop := context.AfterFunc(ctx, func() { _ = to.Close() })
		defer stop()
		go func() { _, _ = io.Copy(to, conn); _ = to.Close() }()
		_, _ = io.Copy(conn, to)
	})
	if _, err := d.meshes[0].Dial(testContext(t), d.nodes[1].Peer, []string{addr}); err != nil {
		t.Error(err)
	}
}

// The control of the frame relay itself: where evidence is not bound to the exporter it
// goes through, so what stops it above is the exporter and nothing clumsy.
func TestRelayGoesThroughWithoutTheExporter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := &flawed{w: w, weaken: forgetEKM}
	target := f.serve(t)
	d := &duo{t: t, nodes: [2]*meshtest.Node{w.self, w.victim}, meshes: [2]mesh.Mesh{nil, addressOnly{addrs: target.Addresses}}}
	addr := d.listen(d.terminate(w.victim.Key, w.self.Key))
	id := asIdentity(w.self)
	id.Sum = f.sum
	ch, err := dialTLS(testContext(t), addr, w.victim.Peer, w.self.Key)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	sp := &speaker{conn: ch, export: ch.export, id: id, target: &target}
	if err := sp.play(testContext(t)); err != nil {
		t.Errorf("the relay was refused: %v", err)
	}
}

// addressOnly is where a node listens, and nothing else.
type addressOnly struct {
	mesh.Mesh
	addrs []string
}

func (a addressOnly) Addrs() []string { return a.addrs }
