package simulations

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/node"
)

// milans are SEV-SNP guests on Milan; those named run on platforms that lack updates.
func milans(old ...string) *hardware {
	snp := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	return &hardware{attest.KindSEVSNP, []attest.Scheme{snp.Scheme()}, func(name, m string) *attesttest.Attester {
		a := snp.Attester(m)
		if slices.Contains(old, name) {
			a.Forge(attesttest.OldTCB)
		}
		return a
	}}
}

// floor is what updated platforms have and the others have not.
func floor(from time.Time) consensus.Action {
	return consensus.Action{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: sevsnp.Milan, SEVSNP: &attest.TCB{Microcode: 115}, From: from}}}
}

// order has the mesh decide about an action, signed by three organisations.
func (a *actor) order(at string, action consensus.Action) {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), callWithin)
	defer cancel()
	h := a.host(at)
	raw, err := a.p.world.proposal("order at "+time.Now().String(), a.policy(at).Base, []string{"alpha", "beta", "gamma"}, action)
	if err != nil {
		a.Fatal(err)
	}
	a.p.world.proposed = time.Now()
	if _, err := h.propose(ctx, raw); err != nil {
		a.Fatal(err)
	}
}

func (a *actor) policy(at string) node.PolicyView {
	a.Helper()
	ctx, cancel := context.WithTimeout(a.Context(), callWithin)
	defer cancel()
	v, err := a.host(at).policy(ctx)
	if err != nil {
		a.Fatal(err)
	}
	return v
}

func (a *actor) entry(release string) consensus.Entry {
	a.Helper()
	e, err := entryOf(release)
	if err != nil {
		a.Fatal(err)
	}
	return e
}

func (a *actor) warned(name, text string) bool {
	return slices.ContainsFunc(a.status(name).Warnings, func(w string) bool { return strings.Contains(w, text) })
}

// G10 with real ordering: a floor that is a minute ahead is noted in the log and warns its
// node, nobody is out. At its time the seat that is below loses its links and, by the findings
// of the others, its place in the Raft configuration; the mesh stays writable all the time.
func TestFloorWithGraceLetsASeatGo(t *testing.T) {
	stageOn(t, milans("beta/n1"), five, nil, func(a *actor) {
		from := time.Now().Add(time.Minute).UTC().Truncate(time.Millisecond)
		a.order("delta/n1", floor(from))
		a.eventually("the node that is below is warned", func() bool { return a.warned("beta/n1", "below a floor") })
		for _, other := range []string{"alpha/n1", "gamma/n1"} {
			if a.warned(other, "below a floor") {
				a.Errorf("%s is warned too", other)
			}
		}
		a.do("expect voters alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 at rest\nexpect phase member of rest\nexpect kept rest\n")
		time.Sleep(time.Until(from) - 100*time.Millisecond)
		a.do("expect kept rest within 50ms\n")
		a.do("expect unlinked beta/n1 from alpha/n1 gamma/n1 delta/n1 epsilon/n1 within 10s\n" +
			"expect voters alpha/n1 gamma/n1 delta/n1 epsilon/n1 at alpha/n1 gamma/n1 delta/n1 epsilon/n1\n" +
			"expect phase refused code tcb_below_floor of beta/n1\n" +
			"expect kept alpha/n1 gamma/n1 delta/n1 epsilon/n1\n" +
			"propose remove old signed alpha beta gamma at gamma/n1\n" +
			"expect equal alpha/n1 gamma/n1 delta/n1 epsilon/n1\nexpect published alpha/n1 gamma/n1 delta/n1 epsilon/n1\nexpect phase member of alpha/n1 gamma/n1 delta/n1 epsilon/n1\n")
	})
}

// Where most seats are below it when its time comes, they keep their vote and their links, and
// everybody's status says so; something can still be ordered, but they take part in no round.
func TestFloorWithGraceSparesTheQuorum(t *testing.T) {
	long(t)
	below := []string{"alpha/n1", "beta/n1", "gamma/n1"}
	stageOn(t, milans(append(below, "delta/n2")...), five+"start delta/n2 new\nexpect phase member of rest\n", nil, func(a *actor) {
		from := time.Now().Add(time.Minute).UTC().Truncate(time.Millisecond)
		a.order("delta/n1", floor(from))
		for _, name := range below {
			a.eventually(name+" is warned", func() bool { return a.warned(name, "below a floor") })
		}
		time.Sleep(time.Until(from) + 4*consensus.TickInterval)
		// A member has no vote that anybody needs: it is out.
		a.do("expect phase refused code tcb_below_floor of delta/n2\n" +
			"expect voters alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 at alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1\n" +
			"expect kept alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 within 1s\n" +
			"propose remove old signed alpha beta gamma at epsilon/n1\n" +
			"expect equal alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1\n")
		for _, name := range below {
			if !a.warned("epsilon/n1", name+" does not meet what is demanded of it") {
				a.Errorf("no status says that %s is spared: %q", name, a.status("epsilon/n1").Warnings)
			}
			if s := a.status(name); s.Phase == "member" {
				a.Errorf("%s counts as a member that takes part in rounds", name)
			}
		}
		if v := a.policy("epsilon/n1"); strings.Join(v.Platforms.Spared, " ") != strings.Join(below, " ") || len(v.Platforms.Floors) != 1 || !v.Platforms.Floors[0].From.Equal(from) {
			a.Errorf("policy show: %+v", v.Platforms)
		}
		a.do("expect phase member of delta/n1 epsilon/n1\n")
	})
}

// Where nobody has moved by then, the seats keep their vote and their links, and a member on the
// old release goes. What was meant can still be ordered: here, to keep the old release.
func TestSupersededQuorumStays(t *testing.T) {
	long(t)
	stage(t, three+"start alpha/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		at := time.Now().Add(time.Minute).UTC().Truncate(time.Millisecond)
		next, old := a.entry("next"), a.entry("new")
		next.ID, next.Supersedes, next.SupersedeAt = "", []string{old.ID}, at
		next, err := consensus.NewEntry(next)
		if err != nil {
			a.Fatal(err)
		}
		a.order("gamma/n1", consensus.Action{AddEntry: &consensus.AddEntry{Entry: next}})
		time.Sleep(time.Until(at) + 3*consensus.TickInterval)
		seats := "alpha/n1 beta/n1 gamma/n1"
		a.do("expect phase refused code expired of alpha/n2\nexpect kept " + seats + " within 1s\nexpect voters " + seats + " at " + seats + "\n")
		time.Sleep(10 * time.Minute) // over two windows: their links are attested again
		a.do("expect linked " + seats + " within 1s\nexpect voters " + seats + " at " + seats + "\n")
		if v := a.policy("beta/n1"); strings.Join(v.Platforms.Spared, " ") != seats {
			a.Errorf("spared %v", v.Platforms.Spared)
		}
		a.order("beta/n1", consensus.Action{AddEntry: &consensus.AddEntry{Entry: old, Readmit: true}})
		a.do("expect phase member of " + seats + " alpha/n2\nexpect equal " + seats + " alpha/n2\n")
	})
}

// A release gives way to the next one: both may join until the time that the new entry says,
// and then the old one is out at every node within two ticks, with nobody proposing anything.
// What moved in time does not notice, and what is late comes back with the new release.
func TestSupersededReleaseEnds(t *testing.T) {
	stage(t, three+"start alpha/n2 old\nexpect phase member of rest\nstart beta/n2 newer\nexpect phase refused code measurement_not_allowed of beta/n2\n", nil, func(a *actor) {
		at := time.Now().Add(time.Minute).UTC().Truncate(time.Millisecond)
		newer, old := a.entry("newer"), a.entry("old")
		newer.ID, newer.Supersedes, newer.SupersedeAt = "", []string{old.ID}, at
		newer, err := consensus.NewEntry(newer)
		if err != nil {
			a.Fatal(err)
		}
		a.order("gamma/n1", consensus.Action{AddEntry: &consensus.AddEntry{Entry: newer}})
		a.do("expect phase member of beta/n2\nstart gamma/n2 old\nexpect phase member of rest\nexpect linked rest\ncrash gamma/n2\n")
		shown := a.policy("gamma/n1")
		for _, e := range shown.Entries {
			if ends := map[bool]time.Time{true: at}[e.ID == old.ID]; !shown.Ends[e.ID].Equal(ends) || e.DescribeProvenance() != "UNPROVENANCED" {
				a.Errorf("policy show: %+v", e)
			}
		}
		time.Sleep(time.Until(at) - 50*time.Millisecond)
		a.do("expect phase member of rest within 50ms\n")
		a.p.world.proposed = at
		stay := "alpha/n1 beta/n1 gamma/n1 beta/n2"
		a.do("expect closed alpha/n2 by " + stay + " within 5s\nexpect phase refused code expired of alpha/n2\n" +
			"expect kept " + stay + "\nexpect phase member of " + stay + "\nexpect equal " + stay + "\n")
		a.do("reboot alpha/n2 newer\nexpect phase member of alpha/n2\n")
	})
}

// A floor without grace puts out whom it hits at once: at every peer, a member like a seat.
func TestFloorAtOnce(t *testing.T) {
	stageOn(t, milans("beta/n1", "gamma/n2"), five+"start gamma/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		a.order("delta/n1", floor(time.Time{}))
		rest := "alpha/n1 gamma/n1 delta/n1 epsilon/n1"
		a.do("expect closed beta/n1 by " + rest + " within 5s\nexpect closed gamma/n2 by " + rest + " within 5s\n" +
			"expect voters " + rest + " at " + rest + "\nexpect phase refused code tcb_below_floor of beta/n1 gamma/n2\n" +
			"expect kept " + rest + "\nexpect equal " + rest + "\npropose remove old signed alpha beta gamma at alpha/n1\nexpect phase member of " + rest + "\n")
	})
}
