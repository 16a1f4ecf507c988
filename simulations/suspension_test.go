package simulations

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/node"
)

// endsWithin is how long data flows after a suspension was ordered, at worst: a few ways over
// the wire. It is less than the time after which streams are looked at anyway.
const endsWithin = 250 * time.Millisecond

// dataEnds demands that a stream that is open ends at once.
func (a *actor) dataEnds(what string, s mesh.Stream) {
	a.Helper()
	for end := a.p.world.proposed.Add(endsWithin + 4*latency); ; {
		if flows(s) != nil {
			return
		}
		if time.Now().After(end) {
			a.Errorf("%s still flows %s after the suspension", what, time.Since(a.p.world.proposed))
			return
		}
	}
}

// One organisation suspends a node. Every node ends its data streams with it, and it ends its
// own, within a second, members without seats like seats; nothing else is closed, no quote is
// made, and it takes its part in ordering and hears of the end. Then comes the same for
// another one.
func TestSuspensionClosesDataStreamsOnly(t *testing.T) {
	for _, who := range []string{"beta/n1", "beta/n2"} { // a seat, and a member without one
		t.Run(strings.ReplaceAll(who, "/", "-"), func(t *testing.T) {
			stage(t, three+"start alpha/n2 new\nstart beta/n2 new\nexpect phase member of rest\nexpect linked rest\nexpect proof proven of "+who+" at rest -"+who+"\n", nil, func(a *actor) {
				others := []string{"alpha/n1", "gamma/n1", "alpha/n2"}
				a.echoes(append(others, who)...)
				var open []mesh.Stream
				for _, other := range others {
					open = append(open, a.stream(other, who), a.stream(who, other))
				}
				open = append(open, a.bulk("alpha/n2", who))
				bystanders := a.stream("alpha/n2", "gamma/n1")
				for _, s := range append(open, bystanders) {
					if err := flows(s); err != nil {
						a.Fatal(err)
					}
				}
				head, quotes := a.keepsHeadStream("alpha/n2", who), a.quotes()
				a.do("suspend " + who + " for 2m by alpha at gamma/n1\n")
				for _, s := range open {
					a.dataEnds("a stream with "+who, s)
				}
				a.do("wait 500ms\n") // all have heard by then: each end refuses by itself
				for _, other := range others {
					_, err := a.open(other, who, "blob")
					a.refusal(err, false, attest.CodeSuspended)
					_, err = a.open(who, other, "round")
					a.refusal(err, false, attest.CodeSuspended)
				}
				if err := flows(bystanders); err != nil {
					a.Errorf("data between others: %v", err)
				}
				if !head() {
					a.Error("a policy stream of the suspended node ended")
				}
				a.do("expect phase suspended code suspended of " + who + "\nexpect phase member of rest -" + who + "\nexpect kept rest within 1s\n" +
					"expect voters alpha/n1 beta/n1 gamma/n1 at rest -alpha/n2 -beta/n2\npropose remove old signed alpha beta at " + who + "\nexpect equal rest\nexpect published rest\n")
				for _, s := range a.peersOf("alpha/n2") {
					if s.Node == who && (s.State != node.PeerConnected || s.Code != attest.CodeSuspended) {
						a.Errorf("alpha/n2 shows %s as %s, %s", who, s.State, s.Code)
					}
				}
				if after := a.quotes(); after != quotes {
					a.Errorf("%d new quotes", after-quotes)
				}
				// It ends by a tick.
				a.do("wait 110s\nexpect phase member of " + who + " within 20s\nwait 1s\n")
				if err := flows(a.stream("alpha/n2", who)); err != nil {
					a.Errorf("data after its end: %v", err)
				}
				// Or by a lift, for which one of two others is too few.
				a.do("suspend " + who + " for 24h by alpha at alpha/n2\nexpect phase suspended of " + who + " within 1s\n" +
					"lift signed gamma at alpha/n1 refused threshold\nlift signed beta gamma at " + who + "\nexpect phase member of rest within 2s\nwait 1s\n")
				if err := flows(a.stream(who, "alpha/n2")); err != nil {
					a.Errorf("data after the lift: %v", err)
				}
			})
		})
	}
}

// keepsHeadStream opens a policy stream and returns whether it is open still.
func (a *actor) keepsHeadStream(from, to string) func() bool {
	a.Helper()
	s, err := a.open(from, to, "follow")
	if err != nil {
		a.Fatal(err)
	}
	if err := writeJSON(s, `{"from":0}`); err != nil {
		a.Fatal(err)
	}
	return func() bool {
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		n, _ := s.Read(make([]byte, 1))
		return n == 1
	}
}

func (a *actor) peersOf(name string) []node.PeerStatus { return a.status(name).Peers }

// Whoever stole an emergency key suspends the only entry there is: every node's data stops,
// and nothing else. The seats still order, and the other organisations lift it. A node that
// joins meanwhile is linked, and suspended.
func TestStolenEmergencyKeyStopsNoOrdering(t *testing.T) {
	stage(t, "mesh alpha beta gamma\nallow new\nstart alpha/n1 new seat\nstart beta/n1 new seat\nstart gamma/n1 new seat\nstart alpha/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		a.echoes("alpha/n1", "alpha/n2", "beta/n1")
		s := []mesh.Stream{a.stream("alpha/n1", "beta/n1"), a.stream("alpha/n2", "beta/n1"), a.stream("beta/n1", "alpha/n2")}
		quotes := a.quotes()
		a.do("suspend new for 24h by gamma at gamma/n1\n")
		for _, s := range s {
			a.dataEnds("a stream", s)
		}
		a.do("expect phase suspended code suspended of rest within 1s\nexpect kept rest within 1s\nexpect voters alpha/n1 beta/n1 gamma/n1 at alpha/n1 beta/n1 gamma/n1\n")
		before := a.status("alpha/n1").State.Commands
		a.do("propose add newer signed alpha beta at alpha/n2\nwait 30s\nexpect equal rest\nexpect published rest\n")
		if after := a.status("alpha/n1").State.Commands; after < before+10 {
			a.Errorf("%d commands in half a minute", after-before)
		}
		if after := a.quotes(); after != quotes {
			a.Errorf("%d new quotes", after-quotes)
		}
		a.do("start beta/n2 new\nexpect phase suspended of beta/n2\nexpect linked rest\n")
		a.do("start beta/n3 newer\nexpect phase member of beta/n3\n")
		// The thief can repeat it until the quota is used up, and lift nothing.
		a.do("suspend new for 24h by gamma at gamma/n1\nsuspend new for 24h by gamma at gamma/n1\nsuspend new for 24h by gamma at gamma/n1 refused limit\n")
		view, err := a.host("alpha/n1").policy(context.Background())
		if err != nil || len(view.Suspensions) != 3 || view.Thresholds.Lift != 2 {
			a.Fatalf("%+v, %v", view.Suspensions, err)
		}
		for _, x := range view.Suspensions {
			if err := a.p.suspended.UnmarshalText([]byte(x.ID)); err != nil {
				a.Fatal(err)
			}
			a.do("lift signed alpha beta at beta/n1\n")
		}
		a.do("expect phase member of rest within 2s\nwait 1s\n")
		if !slices.ContainsFunc(a.peersOf("alpha/n1"), func(p node.PeerStatus) bool { return p.Node == "beta/n2" && p.Code == "" }) {
			a.Error("the late joiner is not cleared")
		}
		if err := flows(a.stream("alpha/n2", "beta/n1")); err != nil {
			a.Errorf("data after the lift: %v", err)
		}
	})
}
