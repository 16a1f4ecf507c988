package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"crypto/ed25519"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/transparency"
)

// subjects are nodes that only exist as Credentials.
func (c *crowd) subjects(n int) (parties []consensus.Party, credentials [][]byte) {
	c.t.Helper()
	for i := range n {
		ref, key := identity.NodeRef{Org: identity.OrgID(crowdOrgs[i%len(crowdOrgs)]), Name: identity.NodeName(fmt.Sprint("subject-", i))}, crowdKey("subject", fmt.Sprint(i))
		raw, err := crowdEnroller{c, ref, []string{RoleTrainer}, Keys{Peer: key, Cosigner: crowdKey("cosigner", fmt.Sprint(i))}}.Credential(context.Background(), nil)
		if err != nil {
			c.t.Fatal(err)
		}
		parties = append(parties, consensus.Party{Node: ref, Peer: identity.PeerIDFromKey(key.Public().(ed25519.PublicKey))})
		credentials = append(credentials, raw)
	}
	return parties, credentials
}

// news is finding number i of a seat on a subject, each with something new in it.
func (c *crowd) news(v *Node, subject consensus.Party, i int, at time.Time) []byte {
	c.t.Helper()
	r := consensus.AttestationResult{Verifier: consensus.Party{Node: v.ref, Peer: v.self}, Subject: subject, MeshID: c.genesis.MeshID(),
		Kind: attest.KindSim, Measurement: attesttest.Measurement("new"), Verdict: attest.VerdictAffirming, Reference: c.entry("new").ID,
		Evidence: consensus.EvidenceCommitment([32]byte{1}, fmt.Append(nil, i)), At: at, Expires: at.Add(time.Hour)}
	r.Vector.Executables = int8(2 + i%90)
	raw, err := consensus.SignResult(v.key, r)
	if err != nil {
		c.t.Fatal(err)
	}
	return raw
}

// BenchmarkRatioAppend orders batches of 256 results through the whole state machine of one seat: raft
// with its log in a bbolt file and its fsyncs, every rule about results, the tree in a directory. The
// bound is what no log can do without: the leaves' hashes, and their bytes in a file with one fsync. The results'
// signatures are left out: the guard has checked them, in a pool, before the log is written.
func BenchmarkRatioAppend(b *testing.B) {
	const batch, pairs = 256, 37 // of subjects for each of seven verifiers
	c := newCrowd(b, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	subjects, credentials := c.subjects(pairs)
	dir := b.TempDir()
	tree, err := transparency.NewTree(mustOpen(b, filepath.Join(dir, "log")))
	if err != nil {
		b.Fatal(err)
	}
	m := newMachine(c.genesis, tree, newNotifier(), time.Now)
	r, err := crashReplica(mustOpen(b, filepath.Join(dir, "raft")), m, func(err error) { b.Error(err) })
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	order := func(raw []byte) {
		for {
			out, err := r.Apply(context.Background(), raw)
			if errors.Is(err, replica.ErrNotLeader) {
				<-time.After(time.Millisecond)
				continue
			}
			if err != nil || out.(Applied).Err != nil || out.(Applied).Reason != nil || len(out.(Applied).Again) > 0 {
				b.Fatalf("%+v, %v", out, err)
			}
			return
		}
	}
	encode := func(kind consensus.Kind, envelopes ...[]byte) []byte {
		raw, err := command(kind, envelopes...)
		if err != nil {
			b.Fatal(err)
		}
		return raw
	}
	tick := func() { // quotas begin anew
		var samples [][]byte
		for _, n := range c.nodes {
			sample, err := n.sampleTime(m.TickSeq() + 1)
			if err != nil {
				b.Fatal(err)
			}
			samples = append(samples, sample)
		}
		order(encode(consensus.KindTick, samples...))
	}
	order(encode(consensus.KindBootstrap, c.genesis.Raw(), c.bootstrap()))
	for _, raw := range credentials {
		order(encode(consensus.KindCredential, raw))
	}
	number, began := 0, time.Now()
	prepare := func() (leaves [][]byte, commands [][]byte) {
		at := began.Add(time.Duration(number) * time.Millisecond)
		for i := range batch {
			leaves = append(leaves, c.news(c.nodes[i%len(crowdOrgs)], subjects[i/len(crowdOrgs)], number, at))
		}
		number++
		for part := range slices.Chunk(leaves, consensus.MaxResults) {
			commands = append(commands, encode(consensus.KindResults, part...))
		}
		return leaves, commands
	}
	f, err := os.Create(filepath.Join(dir, "bound"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	const batches = 4
	bound := func() (took time.Duration) {
		for range batches {
			leaves, _ := prepare()
			start := time.Now()
			var all []byte
			var sum transparency.Hash
			for _, l := range leaves {
				sum, all = transparency.LeafHash(l), append(all, l...)
			}
			if _, err := f.Write(append(all, sum[:]...)); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			took += time.Since(start)
		}
		return took
	}
	appending := func() (took time.Duration) {
		tick()
		for range batches {
			_, commands := prepare()
			for _, raw := range commands {
				if err := m.Check(raw); err != nil {
					b.Fatal(err)
				}
			}
			before := tree.Size()
			start := time.Now()
			var both sync.WaitGroup
			for _, raw := range commands {
				both.Go(func() { order(raw) })
			}
			both.Wait()
			took += time.Since(start)
			if got := tree.Size() - before; got != batch {
				b.Fatalf("%d leaves of %d", got, batch)
			}
		}
		return took
	}
	for b.Loop() {
		ratio.Print("log.append_vs_bound", ratio.Of(25, bound, appending))
	}
}

// BenchmarkRatioTimeToProof is how long a submitter waits for a proof, on the clock: from the moment at
// which a result is handed to some seat of seven until that seat has verified a published checkpoint above
// it. Replicas, cosignatures and the checkpoint each second are real, evidence and network are not.
func BenchmarkRatioTimeToProof(b *testing.B) {
	const lanes, each = 7, 40
	for b.Loop() {
		c := newCrowd(b, len(crowdOrgs), func(int) string { return "new" })
		for _, n := range c.nodes {
			n.tasks.Go(func() { n.edges.run(n.ctx) })
		}
		c.raft()
		leader := c.leading()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		subjects, credentials := c.subjects(each)
		for _, raw := range credentials {
			command, err := consensus.NewCommand(consensus.KindCredential, raw)
			if err == nil {
				_, err = leader.submit(ctx, command)
			}
			if err != nil {
				b.Fatal(err)
			}
		}
		published := func(n *Node, size uint64) {
			for {
				changed := n.changed.wait()
				if p, _ := n.lastPublished(); p.Size > size {
					return
				}
				select {
				case <-changed:
				case <-ctx.Done():
					b.Error(ctx.Err())
					return
				}
			}
		}
		published(leader, leader.machine.tree.Size()-1)
		var mu sync.Mutex
		var took []time.Duration
		var all sync.WaitGroup
		for lane := range lanes {
			all.Go(func() {
				n := c.nodes[lane]
				for i := range each {
					// Nobody is in step with the checkpoints.
					<-time.After(time.Duration((lane*each+i)*397%1000) * time.Millisecond)
					raw := c.news(n, subjects[i], i, time.Now())
					start := time.Now()
					command, err := consensus.NewCommand(consensus.KindResults, raw)
					if err == nil {
						_, err = n.submit(ctx, command)
					}
					if err != nil {
						b.Error(err)
						return
					}
					index, ok := n.machine.leafIndex(raw)
					for !ok && ctx.Err() == nil { // a follower applies after the leader
						changed := n.changed.wait()
						if index, ok = n.machine.leafIndex(raw); !ok {
							select {
							case <-changed:
							case <-ctx.Done():
							}
						}
					}
					published(n, index)
					mu.Lock()
					took = append(took, time.Since(start))
					mu.Unlock()
				}
			})
		}
		all.Wait()
		cancel()
		c.close()
		slices.Sort(took)
		b.Logf("%d results: median %s, last %s", len(took), took[len(took)/2], took[len(took)-1])
		ratio.Print("log.time_to_proof_p50_s", ratio.Median(took).Seconds())
		ratio.Print("log.time_to_proof_p99_s", took[(len(took)*99+99)/100-1].Seconds())
	}
}
