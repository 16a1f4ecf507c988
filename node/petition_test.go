package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

func TestPetitions(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	p := newPetitions()
	never, always := func([]byte) bool { return false }, func([]byte) bool { return true }
	waits := []byte("waits")
	id := commandID(sha256.Sum256(waits))
	if !p.add(waits, "alpha", "L", 10, now) || p.add(waits, "beta", "L", 10, now) {
		t.Fatal("a petition is taken once")
	}
	for i := range maxPetitions {
		p.add(fmt.Append(nil, i), "alpha", "L", 10, now)
	}
	if len(p.open) != maxPetitionsOf {
		t.Fatalf("one organisation has %d petitions", len(p.open))
	}
	if got := p.hand("L", 10, now); len(got) != 0 {
		t.Errorf("%d are passed on twice", len(got))
	}
	for name, c := range map[string]struct {
		leader identity.PeerID
		seq    uint64
		after  time.Duration
		want   int
	}{
		"in time":                       {"L", 20, censorAfter - 1, 0},
		"nothing else was ordered":      {"L", 10, censorAfter, 0},
		"one other was on its way":      {"L", 11, censorAfter, 0},
		"others were ordered meanwhile": {"L", 12, censorAfter, maxPetitionsOf},
	} {
		if got := p.overdue(c.leader, c.seq, now.Add(c.after), never); len(got) != c.want {
			t.Errorf("%s: %d are overdue", name, len(got))
		}
	}
	// Complaints of distinct organisations about one leader and one command that is held here.
	if p.complain(commandID{1}, "beta", "L", 1, now) || p.complain(id, "beta", "", 1, now) {
		t.Error("a complaint about nothing counted")
	}
	for i, c := range []struct {
		org    identity.OrgID
		leader identity.PeerID
		want   bool
	}{{"beta", "L", false}, {"beta", "L", false}, {"gamma", "M", false}, {"delta", "L", false}, {"eta", "L", true}} {
		if got := p.complain(id, c.org, c.leader, 3, now); got != c.want {
			t.Errorf("complaint %d: %v", i, got)
		}
	}
	if p.own(id, "alpha") || !p.own(id, "beta") {
		t.Error("who has complained")
	}
	if p.complain(id, "zeta", "L", 3, now.Add(2*censorAfter)) {
		t.Error("old complaints counted")
	}
	// A new leader has its time, too.
	if got := p.overdue("M", 20, now.Add(censorAfter), never); len(got) != 0 {
		t.Errorf("%d are overdue under a new leader", len(got))
	}
	if got := p.overdue("M", 30, now.Add(2*censorAfter+time.Second), never); len(got) != 0 {
		t.Errorf("%d are overdue at a new leader that has not got them", len(got))
	}
	at := now.Add(censorAfter)
	if got := p.hand("M", 20, at); len(got) != maxPetitionsOf || len(p.hand("M", 20, at)) != 0 {
		t.Errorf("%d are passed on to the new leader, want each once", len(got))
	}
	if got := p.overdue("M", 30, now.Add(2*censorAfter+time.Second), never); len(got) != maxPetitionsOf {
		t.Errorf("%d are overdue under the new leader", len(got))
	}
	if got := p.overdue("M", 30, now.Add(2*censorAfter+time.Second), always); len(got) != 0 {
		t.Errorf("%d are overdue though quotas excuse it", len(got))
	}
	if got := p.overdue("M", 40, now.Add(3*censorAfter), never); len(got) != 0 {
		t.Errorf("%d are overdue soon after an excuse", len(got))
	}
	p.ordered([][]byte{waits})
	if p.complain(id, "zeta", "L", 1, now) || p.add(waits, "beta", "L", 10, now) {
		t.Error("what was ordered is still waited for")
	}
	if p.overdue("M", 20, now.Add(petitionFor+time.Second), never); len(p.open) != 0 {
		t.Errorf("%d petitions are kept for ever", len(p.open))
	}
	for i := range 3 * recentCommands {
		p.ordered([][]byte{fmt.Append(nil, "c", i)})
	}
	if len(p.recent) > 2*recentCommands+1 {
		t.Errorf("%d ordered commands are remembered", len(p.recent))
	}
}

// raft starts a Raft replica on each of the seats, and links all nodes.
func (c *crowd) raft() {
	c.t.Helper()
	c.link(len(c.nodes) - 1)
	log := crowdKey("log", "log")
	b, err := consensus.NewPolicyState(c.genesis).ParseBootstrap(c.bootstrap(), time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes[:len(crowdOrgs)] {
		if err := n.startFounder(b, log); err != nil {
			c.t.Fatal(err)
		}
	}
}

// leading waits for the seat that leads and has ordered a tick.
func (c *crowd) leading() (leader *Node) {
	c.t.Helper()
	for end := time.Now().Add(time.Minute); leader == nil; <-time.After(50 * time.Millisecond) {
		for _, n := range c.nodes[:len(crowdOrgs)] {
			if n.raft().State() == replica.Leader && n.tickSeq() > 0 {
				leader = n
			}
		}
		if time.Now().After(end) {
			c.t.Fatal("no seat leads")
		}
	}
	return leader
}

// A leader that drops what one organisation submits, whoever passes it on, loses its office, and the
// command is ordered by the next.
func TestCensoringLeaderLosesOffice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.raft()
		censor := c.leading()
		victim := c.nodes[0]
		if victim == censor {
			victim = c.nodes[1]
		}
		renewed := c.renewal(victim, time.Minute)
		for _, p := range []mesh.Protocol{censor.protocols.submit, censor.protocols.petition} {
			censor.mesh.Handle(p, func(link mesh.Link, s mesh.Stream) {
				raw, err := readFrame(s, maxCommand)
				if err != nil || bytes.Contains(raw, renewed) {
					_ = s.Reset()
					return
				}
				out, err := censor.order(censor.ctx, raw, false, false)
				reply := submitReply{Applied: out}
				if err != nil {
					reply.Error = err.Error()
				}
				_ = writeMessage(s, reply)
				_ = s.Close()
			})
		}
		command, err := consensus.NewCommand(consensus.KindCredential, renewed)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		out, err := victim.submit(ctx, command)
		if err != nil || out.Reason != nil && out.Reason.Code != attest.CodeReplayed { // others have passed it on first
			t.Fatalf("%+v, %v after %v", out, err, time.Since(began))
		}
		if took := time.Since(began); took < petitionAfter+censorAfter || took > 25*time.Second {
			t.Errorf("ordered after %v", took)
		}
		if censor.raft().State() == replica.Leader {
			t.Error("the censor leads still")
		}
	})
}

// What a seat passes on for others leaves room for what its own organisation waits for: the seats that
// get both count them as one organisation's.
func TestPetitionsOfOthersLeaveRoom(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	p, passed := newPetitions(), 0
	for _, org := range []identity.OrgID{"mallory", "trudy"} {
		for i := range maxPetitionsOf {
			raw := fmt.Append(nil, org, i)
			if !p.add(raw, org, "L", 10, now) {
				t.Fatalf("%s %d is not watched", org, i)
			}
			if p.passOn(sha256.Sum256(raw), "alpha") {
				passed++
			}
		}
	}
	if passed != maxRelayed {
		t.Errorf("%d were passed on, want %d", passed, maxRelayed)
	}
	own := []byte("own")
	if !p.add(own, "alpha", "L", 10, now) || !p.passOn(sha256.Sum256(own), "alpha") {
		t.Error("this organisation's own is not passed on")
	}
	p.ordered([][]byte{fmt.Append(nil, "mallory", 0)})
	if !p.passOn(sha256.Sum256(fmt.Append(nil, "trudy", 0)), "alpha") {
		t.Error("what was granted takes room for ever")
	}
	if p.passOn(commandID{1}, "alpha") {
		t.Error("what is not watched was passed on")
	}
}

// verdictLink is a link with nothing but a verdict.
type verdictLink struct {
	seatLink
	session *mesh.Session
}

func (l verdictLink) Session() *mesh.Session { return l.session }

// Junk that is petitioned for costs its organisation what junk that is submitted costs.
func TestJunkPetitionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.raft()
		seat := c.leading()
		link := verdictLink{seatLink{peer: "M"}, &mesh.Session{Subject: mesh.Subject{Node: identity.NodeRef{Org: "mallory", Name: "m1"}}}}
		petition := func(raw []byte) {
			var in bytes.Buffer
			if err := writeFrame(&in, raw); err != nil {
				t.Fatal(err)
			}
			seat.handlePetition(link, pipeStream{Reader: &in})
		}
		ordered := func() uint64 { return seat.machine.Seq() }
		taken := 0
		for ; seat.refusals.over("mallory", false, time.Now()) == nil && taken < refusalBurst; taken++ {
			before := ordered()
			raw, err := command(consensus.KindProposal, bytes.Repeat(fmt.Appendf(nil, "%04d", taken), 64<<10))
			if err != nil {
				t.Fatal(err)
			}
			petition(raw)
			synctest.Wait()
			for end := time.Now().Add(10 * time.Second); ordered() == before && time.Now().Before(end); time.Sleep(time.Millisecond) {
			}
		}
		if taken == refusalBurst {
			t.Fatal("junk is ordered without end")
		}
		seat.lookAtOrdered()
		raw, err := command(consensus.KindProposal, []byte("one more"))
		if err != nil {
			t.Fatal(err)
		}
		petition(raw)
		seat.petitions.mu.Lock()
		defer seat.petitions.mu.Unlock()
		if len(seat.petitions.open) != 0 {
			t.Errorf("%d petitions are watched", len(seat.petitions.open))
		}
	})
}
