package simulations

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
)

// submission hands a signed statement in at a node and does not wait; giveUp ends the try and
// returns how it ended.
func (a *actor) submission(route, at string, raw []byte) (giveUp func() error) {
	a.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done, h := make(chan error, 1), a.host(at)
	go func() { // giveUp waits for it
		_, err := h.submit(ctx, route, raw)
		done <- err
	}()
	return func() error { cancel(); return <-done }
}

// dead reports whether no byte comes back on a stream any more.
func (a *actor) dead(what string, s mesh.Stream) {
	a.Helper()
	if flows(s) == nil {
		a.Errorf("%s still flows", what)
	}
}

// Three of five seats are frozen: nothing can be ordered. A narrowing that a member hears ends
// all streams with whom it hits, at members and seats alike, and the links with members; a
// seat keeps its links, by which it votes. Epoch and digest stay. When the seats are back the
// narrowing is ordered, though who handed it in has long given up, and the seat leaves.
func TestRevocationWithoutQuorum(t *testing.T) {
	text := strings.Replace(five, "start epsilon/n1 new seat", "start epsilon/n1 old seat", 1) + "start alpha/n2 new\nstart beta/n2 old\nstart gamma/n2 new\n" +
		"expect phase member of rest\nexpect linked rest\nexpect proof proven of rest at rest\n"
	stage(t, text, nil, func(a *actor) {
		a.echoes("beta/n2", "epsilon/n1", "gamma/n2", "delta/n1")
		cut := map[string]mesh.Stream{}
		for _, pair := range [][2]string{{"alpha/n2", "beta/n2"}, {"gamma/n2", "beta/n2"}, {"delta/n1", "beta/n2"}, {"epsilon/n1", "beta/n2"},
			{"alpha/n2", "epsilon/n1"}, {"gamma/n2", "epsilon/n1"}, {"delta/n1", "epsilon/n1"}} {
			cut[pair[0]+" to "+pair[1]] = a.stream(pair[0], pair[1])
		}
		kept := []mesh.Stream{a.stream("alpha/n2", "gamma/n2"), a.stream("alpha/n2", "delta/n1")}
		seat, member := a.link("delta/n1", "epsilon/n1"), a.link("alpha/n2", "beta/n2")
		a.do("silence alpha/n1 | beta/n1 | gamma/n1 | rest\nwait 1s\n")
		before := a.status("gamma/n2")
		action := remove("old")
		raw, err := a.p.world.proposal("without a quorum", 0, []string{"alpha", "beta", "delta"}, action)
		if err != nil {
			a.Fatal(err)
		}
		giveUp := a.submission("/v1/proposals", "gamma/n2", raw)
		a.do("wait 500ms\n")
		for what, s := range cut {
			a.dead(what, s)
		}
		for i, s := range kept {
			if err := flows(s); err != nil {
				a.Errorf("stream %d that it does not hit: %v", i, err)
			}
		}
		if cause := member.Cause(); cause.Code != attest.CodeRevoked {
			a.Errorf("the link with a member ended with %v", cause)
		}
		select {
		case <-seat.Done():
			a.Errorf("the link with a seat ended before anything was ordered: %v", seat.Cause())
		default:
		}
		a.do("expect phase suspended code revoked of epsilon/n1 within 1s\n")
		_, err = a.open("delta/n1", "epsilon/n1", "blob")
		a.refusal(err, false, attest.CodeRevoked)
		after := a.status("gamma/n2")
		if after.Epoch != 0 || after.State != before.State || len(after.Provisional) != 1 || !strings.Contains(strings.Join(after.Warnings, "\n"), "not ordered yet") {
			a.Errorf("epoch %d, digest moved %v, provisional %v", after.Epoch, after.State != before.State, after.Provisional)
		}
		a.do("wait 2s\n")
		if err := giveUp(); err == nil {
			a.Error("it was ordered without a quorum")
		}
		a.do("heal\nexpect equal rest -beta/n2 -epsilon/n1\nexpect unlinked epsilon/n1 from rest -beta/n2\nexpect voters alpha/n1 beta/n1 gamma/n1 delta/n1 at alpha/n1 within 60s\n")
		for _, name := range []string{"alpha/n1", "delta/n1", "alpha/n2", "gamma/n2"} {
			if s := a.status(name); s.Epoch != 1 || len(s.Provisional) != 0 {
				a.Errorf("%s has epoch %d, provisional %v", name, s.Epoch, s.Provisional)
			}
		}
	})
}

// A suspension and its lift act unordered too, at members that hear it from each other.
func TestSuspensionWithoutQuorum(t *testing.T) {
	text := five + "start alpha/n2 new\nstart beta/n2 new\nexpect phase member of rest\nexpect linked rest\nexpect proof proven of rest at rest\n"
	stage(t, text, nil, func(a *actor) {
		a.echoes("beta/n2")
		s := a.stream("alpha/n2", "beta/n2")
		up := a.link("alpha/n2", "beta/n2")
		a.do("silence alpha/n1 | beta/n1 | gamma/n1 | rest\nwait 1s\n")
		raw, id, err := a.p.world.suspension("without a quorum", "gamma", "", "beta/n2", time.Hour)
		if err != nil {
			a.Fatal(err)
		}
		giveUp := a.submission("/v1/suspensions", "delta/n1", raw)
		a.do("wait 500ms\n")
		a.dead("data with a suspended node", s)
		a.do("expect phase suspended code suspended of beta/n2 within 1s\n")
		lift, err := a.p.world.lift(id, []string{"alpha", "beta", "delta"})
		if err != nil {
			a.Fatal(err)
		}
		stop := a.submission("/v1/lifts", "alpha/n2", lift)
		a.do("wait 500ms\n")
		if err := flows(a.stream("alpha/n2", "beta/n2")); err != nil {
			a.Errorf("after the lift: %v", err)
		}
		if l := a.link("alpha/n2", "beta/n2"); l != up {
			a.Error("the link was made anew")
		}
		if giveUp() == nil || stop() == nil {
			a.Error("it was ordered without a quorum")
		}
		a.do("heal\nexpect equal rest\nexpect phase member of rest\n")
		a.eventually("both ordered", func() bool { return len(a.status("alpha/n2").Provisional) == 0 })
	})
}

// A node that reaches no seat, ever, becomes a member by way of other members: it verifies the
// policy, follows what is ordered, proves that it is fresh, is judged and logged, and its peers
// are proven in the published log. It goes stale with them when they are cut off too.
func TestMemberWithoutALinkToASeat(t *testing.T) {
	stage(t, three+"start alpha/n2 new\nstart gamma/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		far := a.p.world.address(len(a.p.world.hosts))
		for _, seat := range []string{"alpha/n1", "beta/n1", "gamma/n1"} {
			a.p.world.wire.Silence(a.host(seat).machine, far)
			a.p.world.parted = append(a.p.world.parted, [2]string{a.host(seat).machine, far})
		}
		a.do("start beta/n2 new trainer\nexpect phase member of beta/n2\nexpect unlinked beta/n2 from alpha/n1 beta/n1 gamma/n1 within 1s\n" +
			"expect proof proven of alpha/n2 gamma/n2 at beta/n2 within 10s\nexpect proof proven of beta/n2 at alpha/n2 gamma/n2\nexpect equal rest\nexpect published rest\n")
		a.echoes("beta/n2")
		s := a.stream("alpha/n2", "beta/n2")
		a.do("propose remove old signed alpha beta at beta/n2\nexpect equal rest\nwait 60s\nexpect phase member of rest within 1s\n") // it submits, too
		if err := flows(s); err != nil {
			a.Errorf("data with it: %v", err)
		}
		a.do("silence alpha/n1 beta/n1 gamma/n1 | rest\nwait 17s\nexpect phase joining code stale of beta/n2 alpha/n2 gamma/n2 within 2s\n")
		a.dead("data among members that hear no seat", s)
	})
}
