package node

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
)

// tell opens an exchange from one node to another and says what the test wants.
func (c *crowd) tell(from, to *Node, m any) (theirs gossipMessage, err error) {
	c.t.Helper()
	l, ok := from.linkTo(to.self)
	if !ok {
		c.t.Fatalf("%s is not linked to %s", from.ref, to.ref)
	}
	s, err := l.Open(c.t.Context(), from.protocols.gossip)
	if err != nil {
		return theirs, err
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(time.Minute))
	if raw, ok := m.([]byte); ok {
		_, err = s.Write(raw)
	} else {
		err = writeMessage(s, m)
	}
	if err == nil {
		err = readMessage(s, &theirs)
	}
	return theirs, err
}

// says is a message of a node that has what another has.
func says(of *Node, change func(*gossipMessage)) gossipMessage {
	m, _ := of.message(of.self)
	change(&m)
	return m
}

// What does not verify acts nowhere and is passed on to nobody. A peer may err a few times;
// then it is not listened to, whatever it says, until a fault is forgiven. Honest ones are.
func TestRubbishCostsWhoSendsIt(t *testing.T) {
	chainOf(t, 3, func(int) string { return "new" }, func(t *testing.T, c *crowd, members []*Node) {
		liar, victim, third := members[0], members[1], members[2]
		good := c.removal("old", crowdOrgs[:4]...)
		rubbish := func(i int) []byte {
			c.nonce += 1000 + i
			return c.removal("old", crowdOrgs[:3]...) // one too few
		}
		for i := range faultBurst {
			raw := rubbish(i)
			for range 3 { // the same bytes cost the victim one verification
				_, err := c.tell(liar, victim, says(liar, func(m *gossipMessage) { m.Statements = [][]byte{raw} }))
				if last := i == faultBurst-1; (err != nil) != last {
					t.Fatalf("fault %d: %v", i+1, err)
				}
			}
		}
		if _, err := c.tell(liar, victim, says(liar, func(m *gossipMessage) { m.Statements = [][]byte{good} })); err == nil {
			t.Error("still listened to")
		}
		synctest.Wait()
		if len(victim.machine.Heard())+len(third.machine.Heard()) != 0 {
			t.Error("something that does not verify acts")
		}
		if _, err := c.tell(third, victim, says(third, func(m *gossipMessage) { m.Statements = [][]byte{good} })); err != nil {
			t.Errorf("an honest peer: %v", err)
		}
		if len(victim.machine.Heard()) != 1 {
			t.Error("an honest peer was not heard")
		}
		time.Sleep(time.Duration(1/faultRate)*time.Second + time.Second)
		if _, err := c.tell(liar, victim, says(liar, func(*gossipMessage) {})); err != nil {
			t.Errorf("after a fault was forgiven: %v", err)
		}
	})
}

// A policy that the organisations have not signed is not believed, nor one of another history.
func TestForgedPolicyIsNotBelieved(t *testing.T) {
	chainOf(t, 2, func(int) string { return "new" }, func(t *testing.T, c *crowd, members []*Node) {
		liar, victim := members[0], members[1]
		widening := c.proposal(crowdOrgs[:4], consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("evil")}}) // one too few
		chain := append(liar.machine.PolicyChain(), widening)
		for name, steps := range map[string]func(*gossipMessage){
			"a step too few have signed": func(m *gossipMessage) { m.From, m.Policy = 2, [][]byte{widening} },
			"from genesis":               func(m *gossipMessage) { m.From, m.Policy = 0, chain },
			"no steps at all":            func(m *gossipMessage) { m.From, m.Policy = 2, [][]byte{{1}, nil} },
			"another history":            func(m *gossipMessage) { m.From, m.Policy = 1, [][]byte{chain[0], chain[1], widening} },
			"a gap":                      func(m *gossipMessage) { m.From, m.Policy = 7, [][]byte{widening} },
			"another incarnation":        func(m *gossipMessage) { m.Incarnation, m.From, m.Policy = 1, 2, [][]byte{widening} },
			"a widening as a statement":  func(m *gossipMessage) { m.Statements = [][]byte{widening} },
		} {
			before := victim.policySteps()
			_, _ = c.tell(liar, victim, says(liar, func(m *gossipMessage) { m.Steps = 3; m.Chain = strings.Repeat("ab", 32); steps(m) }))
			if victim.policySteps() != before || victim.epoch() != 0 || len(victim.machine.Heard()) != 0 {
				t.Errorf("%s: %d steps, epoch %d", name, victim.policySteps(), victim.epoch())
			}
		}
		// What it says that it has costs the victim nothing but a few more pulls.
		opened := len(victim.gossip.peers)
		time.Sleep(time.Minute)
		if now := len(victim.gossip.peers); now != opened {
			t.Errorf("%d peers are remembered, then %d", opened, now)
		}
	})
}

// Sizes, numbers and rates of what one peer says are bounded.
func TestGossipIsBounded(t *testing.T) {
	chainOf(t, 2, func(int) string { return "new" }, func(t *testing.T, c *crowd, members []*Node) {
		liar, victim := members[0], members[1]
		long := binary.BigEndian.AppendUint32(nil, maxMessage+1)
		for name, m := range map[string]any{
			"a long frame":         append(long, bytes.Repeat([]byte(" "), 1<<10)...),
			"no JSON":              []byte{0, 0, 0, 1, 'x'},
			"many ids":             says(liar, func(m *gossipMessage) { m.Heard = make([]consensus.StatementID, consensus.MaxProvisional+1) }),
			"many statements":      says(liar, func(m *gossipMessage) { m.Statements = make([][]byte, consensus.MaxProvisional+1) }),
			"many steps":           says(liar, func(m *gossipMessage) { m.Policy = make([][]byte, maxGossipSteps+1) }),
			"a negative number":    says(liar, func(m *gossipMessage) { m.Steps = -1 }),
			"steps from before 0":  says(liar, func(m *gossipMessage) { m.From = -1 }),
			"more steps than ever": says(liar, func(m *gossipMessage) { m.Steps = consensus.MaxChain + 1 }),
		} {
			if _, err := c.tell(liar, victim, m); err == nil {
				t.Errorf("%s was answered", name)
			}
		}
		time.Sleep(time.Minute)
		answered := 0
		for range 3 * gossipBurst {
			if _, err := c.tell(liar, victim, says(liar, func(*gossipMessage) {})); err == nil {
				answered++
			}
		}
		if answered > gossipBurst || answered < gossipBurst-2 { // its own pulls count too
			t.Errorf("%d exchanges at once, want %d", answered, gossipBurst)
		}
		for i := range 2 * maxRefused {
			victim.gossip.fault(liar.self, []byte(fmt.Sprint(i)), time.Now())
		}
		if len(victim.gossip.refused) > maxRefused {
			t.Errorf("%d refused statements are remembered", len(victim.gossip.refused))
		}
	})
}

// A long policy chain comes in parts, and only what is missing.
func TestPolicyComesInParts(t *testing.T) {
	chainOf(t, 2, func(int) string { return "new" }, func(t *testing.T, c *crowd, members []*Node) {
		near, far := members[0], members[1]
		c.network.Cut(near.self, far.self)
		c.fed = c.nodes[:len(crowdOrgs)]
		const changes = maxGossipSteps + 20
		for i := range changes / 2 {
			release := fmt.Sprintf("r%d", i)
			c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry(release)}})
			c.propose(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement(release)}})
		}
		time.Sleep(time.Minute)
		c.network.Heal(near.self, far.self)
		m, _ := near.message(far.self)
		if near.epoch() != changes || m.Steps != changes+2 {
			t.Fatalf("the near one judges under epoch %d", near.epoch())
		}
		near.gossip.note(far.self, says(far, func(*gossipMessage) {}))
		if m, _ := near.message(far.self); m.From != 2 || len(m.Policy) != maxGossipSteps {
			t.Errorf("the first part are %d steps from %d", len(m.Policy), m.From)
		}
		c.dial(far, near)
		time.Sleep(2 * time.Second)
		if e := far.epoch(); e != changes {
			t.Errorf("epoch %d after all parts, want %d", e, changes)
		}
		time.Sleep(2 * gossipEvery) // what it last said is of now
		if m, news := near.message(far.self); news || len(m.Policy) != 0 {
			t.Errorf("%d steps for one who has all", len(m.Policy))
		}
	})
}

// What was heard and ended unordered lets in again whom it put out.
func TestWhoWasPutOutByWhatEndedIsDialled(t *testing.T) {
	chainOf(t, 2, func(i int) string { return []string{"new", "old"}[i/(len(crowdOrgs)+1)] }, func(t *testing.T, c *crowd, members []*Node) {
		n, out := members[0], members[1]
		if _, _, err := n.machine.Hear(c.removal("old", crowdOrgs[:4]...)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if why := n.peers.refused(out.self, n.openings()); why == nil || why.Code != attest.CodeRevoked || n.hasLink(out.self) {
			t.Fatalf("it is put out: %v", why)
		}
		if _, err := n.mesh.Dial(t.Context(), out.self, out.mesh.Addrs()); err == nil {
			t.Error("it was let in")
		}
		time.Sleep(crowdProposal)
		c.tick()
		if why := n.peers.refused(out.self, n.openings()); why != nil || len(n.machine.Heard()) != 0 {
			t.Errorf("after the end of what put it out: %v", why)
		}
		c.dial(n, out)
	})
}

// FuzzGossip hands whatever a peer may say to a node: it does not panic, and nothing acts.
func FuzzGossip(f *testing.F) {
	m, bootstrap := testMachine(f)
	if out := m.apply(bootstrap); out.Reason != nil || out.Err != nil {
		f.Fatal(out)
	}
	n := &Node{machine: m, genesis: m.state.Genesis(), peers: newPeerBook(), wall: time.Now, asleep: func() time.Duration { return 0 }, changed: newNotifier(), log: slog.New(slog.DiscardHandler), strangers: slog.New(slog.DiscardHandler)}
	for _, change := range []func(*gossipMessage){
		func(*gossipMessage) {},
		func(m *gossipMessage) { m.Steps, m.From, m.Policy = 3, 2, [][]byte{{1}, nil} },
		func(m *gossipMessage) { m.Steps, m.From, m.Policy = 3, 0, n.machine.PolicyChain() },
		func(m *gossipMessage) { m.Statements = [][]byte{nil, {1}, n.machine.PolicyChain()[1]} },
		func(m *gossipMessage) { m.Published, m.Checkpoint = 1, []byte("x\n") },
	} {
		n.gossip = newGossip()
		raw, err := json.Marshal(says(n, change))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var said gossipMessage
		if json.Unmarshal(raw, &said) != nil {
			return
		}
		n.gossip = newGossip()
		_ = n.hearGossip("peer", said)
		_, _ = n.message("peer")
		if n.epoch() != 0 || n.policySteps() != 2 || len(n.machine.Heard()) != 0 {
			t.Fatalf("%q acts", raw)
		}
	})
}
