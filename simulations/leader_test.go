package simulations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/node"
)

// leader names the node that leads.
func (a *actor) leader() string {
	a.Helper()
	h, err := a.p.leader()
	if err != nil {
		a.Fatal(err)
	}
	return h.name
}

// read asks a node for the base behind a barrier: a proposal on a base that cannot be is
// ordered, refused and tells the base that it met.
func (a *actor) read(at, name string) error {
	a.Helper()
	e, err := add(name)
	if err != nil {
		a.Fatal(err)
	}
	raw, err := a.p.world.proposal(name, 1<<40, []string{"alpha", "beta", "gamma", "delta"}, e)
	if err != nil {
		a.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = a.host(at).propose(ctx, raw)
	return err
}

// M13: the leader is cut off for three times its lease and more while the others decide. What
// it answers behind the barrier is nothing, until it has heard of what they decided; what it
// serves by itself ends after max_staleness.
func TestPausedLeaderServesNoStaleRead(t *testing.T) {
	stage(t, five+"expect linked rest\npropose add r0 signed alpha beta gamma delta at alpha/n1\n", nil, func(a *actor) {
		old := a.leader()
		var refused *refusedError
		if err := a.read(old, "before"); !errors.As(err, &refused) || refused.code != string(attest.CodeBehind) {
			a.Fatalf("a read at the leader: %v", err)
		}
		a.do("name old " + old + "\nsilence old | rest\nwait 4s\nexpect leader among rest -old\n")
		other := a.leader()
		a.do("propose add r1 signed alpha beta gamma delta at " + other + "\n")
		if err := a.read(old, "while cut off"); !errors.Is(err, errNoOutcome) {
			a.Errorf("a read at a leader that was deposed: %v", err)
		}
		if s := a.status(old); s.Base != 1 || s.Phase == "" {
			a.Fatalf("%s has base %d", old, s.Base)
		}
		a.do("wait 12s\n")
		if s := a.status(old); s.Phase != node.PhaseJoining || s.PhaseReason == nil || s.PhaseReason.Code != attest.CodeStale {
			a.Errorf("%s is %s because of %v", old, s.Phase, s.PhaseReason)
		}
		a.do("heal\nexpect phase member of rest\n")
		err := a.read(old, "after")
		if !errors.As(err, &refused) || a.status(old).Base != 2 {
			a.Errorf("a read when it is back: %v, base %d", err, a.status(old).Base)
		}
	})
}

// M8: the leader and one other seat do not hear each other, all others hear both. The other may
// depose it once; they do not depose each other for ever.
func TestPartialPartitionDoesNotFlap(t *testing.T) {
	stage(t, five+"expect linked rest\n", nil, func(a *actor) {
		leader := a.leader()
		other := "alpha/n1"
		if leader == other {
			other = "beta/n1"
		}
		before := a.status(leader).Raft.Term
		a.do(fmt.Sprintf("silence %s | %s\nwait 3m\n", leader, other))
		after := a.status("gamma/n1").Raft.Term
		if after > before+3 {
			a.Errorf("%d terms in three minutes", after-before)
		}
		if now := a.leader(); now != leader {
			leader, other = now, leader
		}
		a.do("propose add r0 signed alpha beta gamma delta at " + leader + "\nexpect equal rest -" + other + "\nheal\nexpect equal rest\n")
	})
}

// M19: who was a member keeps its session and hears nobody's farewell: its older boot runs on,
// or what it runs was revoked. Everybody cuts it off within five seconds, by himself.
func TestExMemberIsCutOff(t *testing.T) {
	for name, c := range map[string]struct {
		do, victim string
		code       attest.Code
	}{
		"a newer boot": {"reboot alpha/n2 new\n", "alpha/n2", attest.CodeRetired},
		"revoked":      {"propose remove old signed alpha beta at gamma/n1\n", "beta/n2", attest.CodeRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			stage(t, three+"start alpha/n2 new\nstart beta/n2 old\nstart gamma/n2 new\nexpect phase member of rest\nexpect linked rest\nexpect proof proven of rest at rest\n", nil, func(a *actor) {
				victim := c.victim
				a.echoes(victim)
				ex := a.mesh(victim)
				self, links := ex.Self(), ex.Links()
				others := []string{"alpha/n1", "beta/n1", "gamma/n1", "gamma/n2"}
				for _, other := range others {
					if err := flows(a.stream(other, victim)); err != nil {
						a.Fatal(err)
					}
				}
				a.do(c.do)
				for _, l := range links {
					select {
					case <-l.Done():
					case <-time.After(30 * time.Second):
						a.Fatalf("the link with %s is still up", l.Session().Node)
					}
					if got := l.Cause().Code; got != c.code {
						a.Errorf("the link with %s ended with %s", l.Session().Node, got)
					}
				}
				a.do("wait 1s\n")
				for _, other := range others {
					closed := a.status(other).Closed
					i := slices.IndexFunc(closed, func(c node.Closing) bool { return c.Peer == self.String() })
					if i < 0 || closed[i].Closed.Sub(closed[i].Decided) > 5*time.Second {
						a.Errorf("%s has closed %v", other, closed)
					}
					if _, linked := a.mesh(other).Link(self); linked {
						a.Errorf("%s is linked to it", other)
					}
				}
				for _, l := range links { // and its session gets it nowhere
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					if _, err := l.Open(ctx, a.protocol("follow")); err == nil {
						a.Error("a stream of an old session was opened")
					}
					cancel()
				}
			})
		})
	}
}
