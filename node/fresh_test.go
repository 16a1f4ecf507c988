package node

import (
	"math"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// tick orders a tick that every seat has sampled.
func (c *crowd) tick() {
	c.t.Helper()
	var samples [][]byte
	for _, n := range c.nodes[:len(crowdOrgs)] {
		sample, err := n.sampleTime(n.tickSeq() + 1)
		if err != nil {
			c.t.Fatal(err)
		}
		samples = append(samples, sample)
	}
	c.order(consensus.KindTick, samples...)
}

// sevenSeats is a mesh of seats only, all running one release, in a bubble.
func sevenSeats(t *testing.T, f func(*testing.T, *crowd)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.found()
		c.link(1)
		f(t, c)
	})
}

func wantStale(t *testing.T, why *attest.Reason, claim string) {
	t.Helper()
	if claim == "" && why != nil || claim != "" && (why == nil || why.Code != attest.CodeStale || why.Claim != claim) {
		t.Errorf("got %v, want stale because of %q", why, claim)
	}
}

// Every protocol has a class: one without would be refused to everybody.
func TestEveryProtocolHasAClass(t *testing.T) {
	p := newProtocols(identity.MeshID{1})
	v := reflect.ValueOf(p)
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if p.class(mesh.Protocol(v.Field(i).String())) == classNone {
			t.Errorf("%s is in no class", name)
		}
	}
	if p.class("/meshnode/other/blob/1") != classNone {
		t.Error("a protocol of another mesh has a class")
	}
}

// A seat whose newer Credential does not grant the role speaks nothing of seats any more.
func TestSeatStreamsEndWithTheRole(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		n := c.nodes[0]
		now := *n.mesh.Links()[0].Session()
		now.Roles = []string{RoleTrainer}
		for _, p := range []mesh.Protocol{n.protocols.found, n.protocols.raft, n.protocols.cosign, n.protocols.clock} {
			for what, why := range map[string]*attest.Reason{"permit": judge{n}.Permit(&now, p), "keep": judge{n}.Keep(&now, p)} {
				if why == nil || why.Code != attest.CodeNotSeat {
					t.Errorf("%s %s: %v", what, p, why)
				}
			}
		}
		if why := (judge{n}).Keep(&now, n.protocols.follow); why != nil {
			t.Errorf("following: %v", why)
		}
	})
}

// A peer that is linked is not one that the policy refuses, whatever was shown in its name.
func TestLinkedPeerIsWanted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.found()
		n := c.nodes[0]
		for _, other := range c.nodes {
			n.peers.refuse(other.self, attest.NewReason(attest.CodeMeasurementNotAllowed, "measurement", "x", "y"), n.openings())
		}
		c.link(1)
		synctest.Wait()
		if len(n.links()) == 0 {
			t.Fatal("no links")
		}
		for _, l := range n.links() {
			if why := n.peers.refused(l.Peer(), n.openings()); why != nil {
				t.Errorf("a linked peer would not be dialled: %v", why)
			}
		}
	})
}

// After max_staleness without a tick nothing is fresh; the next tick alone does not mend it,
// a proof that began before the gap does not, a new one does. Control, policy and log are
// permitted all the time.
func TestGapVoidsTheProof(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		n := c.nodes[0]
		s := n.mesh.Links()[0].Session()
		check := func(claim string) {
			t.Helper()
			wantStale(t, n.stale(), claim)
			j := judge{n}
			for _, p := range []mesh.Protocol{n.protocols.raft, n.protocols.cosign, n.protocols.follow, n.protocols.head, n.protocols.submit} {
				if why := j.Permit(s, p); why != nil {
					t.Errorf("%s: %v", p, why)
				}
				if why := j.Keep(s, p); why != nil {
					t.Errorf("keep %s: %v", p, why)
				}
			}
			for _, p := range []mesh.Protocol{n.protocols.round, n.protocols.blob} {
				wantStale(t, j.Permit(s, p), claim)
				wantStale(t, j.Keep(s, p), claim)
			}
		}
		check("")
		time.Sleep(maxStaleness)
		check("")
		began := n.began()
		time.Sleep(time.Millisecond)
		check("last tick")
		c.tick()
		check("start-up proof")
		n.completed(began)
		check("start-up proof")
		n.completed(n.began())
		check("")
		for range 10 { // ticks in time are no gap
			time.Sleep(maxStaleness)
			c.tick()
		}
		wantStale(t, n.stale(), "")
	})
}

// A machine that stood still (T7) is a gap, although no clock of the node has moved.
func TestSuspensionVoidsTheProof(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		n := c.nodes[0]
		var asleep atomic.Int64
		synctest.Wait() // who has linked has asked already
		n.asleep = func() time.Duration { return time.Duration(asleep.Load()) }
		asleep.Store(int64(maxStaleness))
		wantStale(t, n.stale(), "")
		asleep.Store(int64(24 * time.Hour))
		wantStale(t, n.stale(), "start-up proof")
		c.tick()
		wantStale(t, n.stale(), "start-up proof")
		n.completed(n.began())
		wantStale(t, n.stale(), "")
	})
}

// The wall clock has no say (T2): what freshness compares carries the monotonic clock.
func TestFreshnessIsMonotonic(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("other")}})
	m := c.nodes[0].machine
	for what, at := range map[string]time.Time{"tick": m.TickAt(), "epoch": m.DecidedAt(1)} {
		if !strings.Contains(at.String(), " m=") {
			t.Errorf("the time of the %s has no monotonic reading: %s", what, at)
		}
	}
	if got := stoodStill(); got < 0 || got > 365*24*time.Hour {
		t.Errorf("this machine stood still for %s", got)
	}
}

// Ordered time passes only while the peer is linked and this node is fresh; the proof ends
// it at any time, and reconnecting does not begin it anew.
func TestProofIsAwaitedInOrderedTime(t *testing.T) {
	p, peer, at := newPendingProofs(), identity.PeerID("peer"), time.Unix(1000, 0)
	for i, step := range []struct {
		after         time.Duration
		proven, fresh bool
		paused        bool // before
		want          Proof
	}{
		{0, false, true, false, ProofPending},
		{9 * time.Second, false, true, false, ProofPending},
		{time.Hour, false, false, false, ProofPending}, // this node was not fresh
		{time.Hour, false, true, true, ProofPending},   // the peer was not linked
		{time.Second, false, true, false, ProofPending},
		{time.Millisecond, false, true, false, ProofQuarantined},
		{0, false, true, true, ProofQuarantined}, // linked anew
		{0, true, true, false, ProofProven},
		{time.Hour, false, true, false, ProofPending}, // a new verdict has its own time
		{proofWithin, false, true, false, ProofPending},
		{1, false, true, false, ProofQuarantined},
	} {
		if step.paused {
			p.pause(func(identity.PeerID) bool { return false })
		}
		at = at.Add(step.after)
		if got, _ := p.look(peer, step.proven, step.fresh, 0, at); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	if got, _ := p.look("other", false, true, 0, at); got != ProofPending {
		t.Errorf("another peer is %s", got)
	}
	at = at.Add(time.Hour)
	if got, _ := p.look("other", false, true, 1, at); got != ProofPending {
		t.Errorf("the time of a gap counts: %s", got)
	}
}

func TestPendingProofsAreBounded(t *testing.T) {
	p := newPendingProofs()
	for i := range maxPeers + 10 {
		p.look(identity.PeerID(rune(i)), false, true, 0, time.Unix(1000, 0))
	}
	if len(p.byPeer) > maxPeers {
		t.Errorf("%d proofs awaited", len(p.byPeer))
	}
	p.pause(func(identity.PeerID) bool { return false })
	if len(p.byPeer) >= maxPeers {
		t.Errorf("%d proofs of peers that are gone", len(p.byPeer))
	}
}

// A finding that is in no log is ordered again, later and later, and no more once it is.
func TestMissingFindingsAreOrderedAgain(t *testing.T) {
	e, s, at := newEdges(nil), testSubject(t, 1), time.Unix(1000, 0)
	e.relog(s.Peer, false, at) // nothing is known of it
	e.record(s, []byte("evidence"), affirming(at))
	e.taken() // and it was refused
	var again []time.Duration
	for step := range 200 {
		now := at.Add(time.Duration(step) * time.Second)
		e.relog(s.Peer, step == 199, now)
		if len(e.taken()) > 0 {
			again = append(again, now.Sub(at))
		}
	}
	if want := []time.Duration{3, 9, 21, 45, 93, 153}; !slices.EqualFunc(again, want, func(a, b time.Duration) bool { return a == b*time.Second }) {
		t.Errorf("ordered again after %v, want %v seconds", again, want)
	}
	if len(e.missing) != 0 {
		t.Error("a logged finding is still missed")
	}
}

// The nodes of one organisation log at most so many results on a subject; theirs stand for
// the others'. Before they are published they prove nothing.
func TestLoggedFindsSiblings(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		subject, own := c.nodes[1], c.nodes[0]
		l, ok := own.linkTo(subject.self)
		if !ok {
			t.Fatal("not linked")
		}
		s := l.Session()
		if _, logged := own.machine.logged(own.self, s, math.MaxUint64); logged {
			t.Fatal("proven before anything was logged")
		}
		raw, err := own.signEdge(edge{s.Subject, nil, s.Result})
		if err != nil {
			t.Fatal(err)
		}
		c.order(consensus.KindResults, raw)
		size := own.machine.tree.Size()
		for _, step := range []struct {
			self identity.PeerID
			size uint64
			want bool
		}{{own.self, size, true}, {own.self, size - 1, false}, {c.nodes[2].self, size, false}} {
			if _, logged := own.machine.logged(step.self, s, step.size); logged != step.want {
				t.Errorf("%s at %d: %t, want %t", step.self.Short(), step.size, logged, step.want)
			}
		}
		other := *s
		other.Result.Measurement = "another"
		if _, logged := own.machine.logged(own.self, &other, size); logged {
			t.Error("the log holds another verdict than that of this link")
		}
		own.machine.View(func(st *consensus.State, _ *federated.Ledger) {
			if got := st.Edges(subject.self); len(got) != 1 {
				t.Errorf("%d results", len(got))
			}
		})
	})
}
