package node

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
)

// tcpPeers are replicas that reach each other by loopback TCP.
type tcpPeers struct {
	mu        sync.Mutex
	listeners map[identity.PeerID]net.Listener
	serving   sync.WaitGroup
}

type tcpPeer struct {
	*tcpPeers
	self identity.PeerID
}

// Open dials; the first bytes say who does, which stands in for authentication.
func (p tcpPeer) Open(ctx context.Context, to identity.PeerID) (io.ReadWriteCloser, error) {
	p.mu.Lock()
	l := p.listeners[to]
	p.mu.Unlock()
	if l == nil {
		return nil, errors.New("does not listen yet")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	if err == nil {
		_, err = c.Write([]byte(p.self))
	}
	return c, err
}

func (p *tcpPeers) listen(b *testing.B, self identity.PeerID, serve func(identity.PeerID, io.ReadWriteCloser)) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	p.mu.Lock()
	p.listeners[self] = l
	p.mu.Unlock()
	p.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.serving.Go(func() {
				id := make([]byte, len(self))
				if _, err := io.ReadFull(c, id); err == nil {
					serve(identity.PeerID(id), c)
				}
				c.Close()
			})
		}
	})
}

// populate applies Credentials of so many members and two edges on each to the first machine.
func (c *crowd) settle(members int) {
	c.t.Helper()
	m, now := c.nodes[0].machine, time.Now().UTC().Truncate(time.Second)
	apply := func(kind consensus.Kind, raw []byte, err error) {
		if err == nil {
			raw, err = command(kind, raw)
		}
		if err != nil {
			c.t.Fatal(err)
		}
		if out := m.apply(raw); out.Err != nil || out.Reason != nil {
			c.t.Fatalf("%s: %v %v", kind, out.Err, out.Reason)
		}
	}
	tick, err := command(consensus.KindTick)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range members {
		if i%len(crowdOrgs) == 0 { // no organisation has more ordered than its quota of a tick
			m.apply(tick)
		}
		org := crowdOrgs[i%len(crowdOrgs)]
		seed := sha256.Sum256(fmt.Append(nil, "member ", i))
		key := ed25519.NewKeyFromSeed(seed[:])
		cosigner := sha256.Sum256(seed[:])
		ref := identity.NodeRef{Org: identity.OrgID(org), Name: identity.NodeName(fmt.Sprintf("member-%d", i))}
		peer := identity.PeerIDFromKey(key.Public().(ed25519.PublicKey))
		raw, err := consensus.SignCredential(crowdSigner(c.t, org, consensus.KeyEnroll), consensus.Credential{MeshID: c.genesis.MeshID(), Organisation: ref.Org, Node: ref.Name,
			Peer: peer, Cosigner: envelope.PublicKey{PublicKey: ed25519.NewKeyFromSeed(cosigner[:]).Public()}, Roles: []string{RoleTrainer}, BootSeq: 1, Issued: now, Expires: now.Add(time.Hour)})
		apply(consensus.KindCredential, raw, err)
		for k := 1; k <= 2; k++ {
			v := c.nodes[(i+k)%len(crowdOrgs)]
			raw, err := consensus.SignResult(v.key, consensus.AttestationResult{Verifier: consensus.Party{Node: v.ref, Peer: v.self}, Subject: consensus.Party{Node: ref, Peer: peer},
				MeshID: c.genesis.MeshID(), Kind: attest.KindSim, Measurement: attesttest.Measurement("new"), Verdict: attest.VerdictAffirming, Reference: c.entry("new").ID,
				Evidence: consensus.EvidenceCommitment(seed, []byte("e")), At: now, Expires: now.Add(time.Hour)})
			apply(consensus.KindResults, raw, err)
		}
	}
}

// BenchmarkRatioLearner is how long a learner of a mesh of 5,000 nodes with 10,000 edges takes
// from the moment the leader adds it until it has the leader's state, over loopback TCP: the
// snapshot sent, every signature of governance in it verified, and its root held against the
// cosigned one. Processor time of both ends in seconds, and the clock's, which other programs
// share.
func BenchmarkRatioLearner(b *testing.B) {
	c := newCrowd(b, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	c.settle(5000)
	m := c.nodes[0].machine
	raw, err := command(consensus.KindDigest)
	if err != nil {
		b.Fatal(err)
	}
	if out := m.apply(raw); out.Err != nil || out.Reason != nil {
		b.Fatal(out.Err, out.Reason)
	}
	tick, err := command(consensus.KindTick)
	if err != nil {
		b.Fatal(err)
	}
	m.published(m.tree.Size(), c.checkpointAt(m.tree.Size(), len(crowdOrgs)))
	m.mu.Lock()
	m.ordered = m.seq() // as if Raft had delivered them
	m.mu.Unlock()

	network := &tcpPeers{listeners: map[identity.PeerID]net.Listener{}}
	defer network.serving.Wait()
	self := c.nodes[0].self
	start := func(id identity.PeerID, machine replica.Machine, join bool) *replica.Replica {
		store, err := replica.OpenStore(replica.StoreMemory, nil)
		if err != nil {
			b.Fatal(err)
		}
		r, err := replica.New(replica.Config{Self: id, Peers: tcpPeer{network, id}, Member: func(identity.PeerID) bool { return true }, Machine: machine, Store: store,
			Servers: []identity.PeerID{self}, Join: join, Trailing: 1, Fatal: func(err error) { b.Error(err) }})
		if err != nil {
			b.Fatal(err)
		}
		network.listen(b, id, r.Serve)
		return r
	}
	stop := func(id identity.PeerID, r *replica.Replica) {
		if err := r.Close(); err != nil {
			b.Error(err)
		}
		network.mu.Lock()
		defer network.mu.Unlock()
		network.listeners[id].Close()
		delete(network.listeners, id)
	}
	leader := start(self, m, false)
	defer stop(self, leader)
	for leader.State() != replica.Leader {
		time.Sleep(10 * time.Millisecond)
	}
	for range 3 {
		if _, err := leader.Apply(b.Context(), tick); err != nil {
			b.Fatal(err)
		}
	}
	if err := leader.Snapshot(b.Context()); err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		g, err := consensus.ParseGenesis(c.genesis.Raw()) // which remembers no signature
		if err != nil {
			b.Fatal(err)
		}
		late := c.fresh()
		late.state = consensus.NewState(g)
		id := c.nodes[1+i%(len(crowdOrgs)-1)].self
		r := start(id, late, true)
		began := time.Now()
		processor := ratio.CPU(1, func() {
			if err := leader.AddNonvoter(b.Context(), id); err != nil {
				b.Fatal(err)
			}
			for late.Seq() < m.Seq() {
				if time.Since(began) > time.Minute {
					b.Fatalf("at command %d of %d after a minute", late.Seq(), m.Seq())
				}
				time.Sleep(time.Millisecond)
			}
		})().Seconds()
		wall := time.Since(began).Seconds()
		if late.Digest() != m.Digest() {
			b.Fatal("another state")
		}
		ratio.Print("raft.learner_catchup_s", processor)
		ratio.Print("raft.learner_catchup_wall_s", wall)
		if err := leader.RemoveServer(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		stop(id, r)
	}
}
