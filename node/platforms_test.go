package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// hardwareCrowd is a crowd of n SEV-SNP guests on Milan, with those of genoa on Genoa, those of
// old on platforms that lack updates, and a salt on each.
type hardwareCrowd struct {
	*crowd
	commitments []string
}

func newHardwareCrowd(t *testing.T, n int, genoa, old []int) *hardwareCrowd {
	t.Helper()
	lines := map[bool]*attesttest.SEVSNP{false: attesttest.NewSEVSNP(sevsnp.Milan, 3), true: attesttest.NewSEVSNP(sevsnp.Genoa, 3)}
	roots := maps.Clone(lines[false].Roots())
	maps.Copy(roots, lines[true].Roots())
	scheme, err := sevsnp.WithRoots(roots)
	if err != nil {
		t.Fatal(err)
	}
	h := &hardwareCrowd{crowd: &crowd{t: t, kind: attest.KindSEVSNP, schemes: []attest.Scheme{scheme}}}
	h.machine = func(i int, measurement string) (attest.Attester, *attesttest.Attester) {
		a := lines[slices.Contains(genoa, i)].Attester(measurement)
		if slices.Contains(old, i) {
			a.Forge(attesttest.OldTCB)
		}
		salted := attest.Salted(a, sha256.Sum256([]byte{byte(i)}))
		ev, err := salted.Attest(t.Context(), attest.ReportData{})
		if err != nil {
			t.Fatal(err)
		}
		claims, err := attest.Verify(t.Context(), scheme, ev, nil, time.Now())
		if err != nil || claims.Hardware == "" {
			t.Fatalf("node %d: %q %v", i, claims.Hardware, err)
		}
		h.commitments = append(h.commitments, claims.Hardware)
		return salted, a
	}
	h.populate(n, func(int) string { return "new" })
	return h
}

// goes demands that every link of the victims is closed for the reason, that no other link
// is, and that nobody made a quote.
func (h *hardwareCrowd) goes(before map[mesh.Link]*Node, quotes int, why attest.Code, victims ...*Node) {
	h.t.Helper()
	hit := func(p identity.PeerID) bool {
		return slices.ContainsFunc(victims, func(v *Node) bool { return v.self == p })
	}
	for l, n := range before {
		if !hit(n.self) && !hit(l.Peer()) {
			continue
		}
		select {
		case <-l.Done():
		case <-time.After(30 * time.Second):
			h.t.Fatalf("the link from %s to %s is still up", n.ref, l.Session().Node)
		}
		if hit(l.Peer()) && l.Cause().Code != why {
			h.t.Errorf("the link from %s to %s ended with %v, want %s", n.ref, l.Session().Node, l.Cause(), why)
		}
	}
	for l, n := range before {
		if !hit(n.self) && !hit(l.Peer()) && l.Cause().Code != "" {
			h.t.Errorf("the link from %s to %s went too: %v", n.ref, l.Session().Node, l.Cause())
		}
	}
	if now := h.quotes(); now != quotes {
		h.t.Errorf("%d new quotes", now-quotes)
	}
	// Who is out stays out: with a new quote, and the same code.
	for _, v := range victims {
		_, err := v.mesh.Dial(h.t.Context(), h.nodes[0].self, h.nodes[0].mesh.Addrs())
		var refused *mesh.Refusal
		if !errors.As(err, &refused) || len(refused.Reasons) == 0 || refused.Reasons[0].Code != why {
			h.t.Errorf("%s dials again: %v", v.ref, err)
		}
	}
}

// live are the links that are up.
func (h *hardwareCrowd) live() map[mesh.Link]*Node {
	out := h.links()
	maps.DeleteFunc(out, func(l mesh.Link, _ *Node) bool { return l.Cause().Code != "" })
	return out
}

// Each demand on hardware that is ordered closes the links of whom it hits, at all of them,
// within seconds and without a quote of anybody; nobody else notices.
func TestDemandsOnHardwareEvict(t *testing.T) {
	const floored, listed, denied = 8, 9, 10
	h := newHardwareCrowd(t, 12, []int{denied}, []int{floored})
	defer h.close()
	h.found()
	h.link(3)
	milan := attest.TCB{BootLoader: 3, SNP: 8, Microcode: 115}
	scope := consensus.HardwareScope{Organisation: h.nodes[listed].ref.Org}
	var others []string
	for i, n := range h.nodes {
		if n.ref.Org == scope.Organisation && i != listed {
			others = append(others, h.commitments[i])
		}
	}
	slices.Sort(others)
	for _, step := range []struct {
		victim int
		code   attest.Code
		action consensus.Action
	}{
		{floored, attest.CodeTCBBelowFloor, consensus.Action{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: sevsnp.Milan, SEVSNP: &milan}}}},
		{listed, attest.CodeChipNotAllowed, consensus.Action{LimitHardware: &consensus.LimitHardware{HardwareScope: scope, Chips: others}}},
		{denied, attest.CodePlatformDenied, consensus.Action{DenyProduct: &consensus.DenyProduct{Product: attest.Product{Line: sevsnp.Genoa}}}},
	} {
		before, quotes := h.live(), h.quotes()
		h.propose(step.action)
		h.goes(before, quotes, step.code, h.nodes[step.victim])
	}
	if len(others) == 0 || len(h.live()) == 0 {
		t.Error("nobody is left")
	}
	// Results are public, and say nothing of the chip.
	for _, n := range h.nodes {
		n.edges.mu.Lock()
		for _, e := range n.edges.last {
			raw, err := n.signEdge(e)
			if err != nil {
				t.Error(err)
			}
			for _, l := range n.mesh.Links() {
				if id := l.Session().Claims.HardwareID; id == "" || strings.Contains(string(raw), id) {
					t.Errorf("chip %.16s in the statement of %s", id, n.ref)
				}
			}
			for _, c := range h.commitments {
				if strings.Contains(string(raw), c) {
					t.Errorf("a commitment to a chip in the statement of %s: which node is on which chip can be seen", n.ref)
				}
			}
		}
		n.edges.mu.Unlock()
	}
}

// G10 on real links: a floor that is ahead is noted, in the log and to its node; at its time the
// ordered clock puts the node out, and nobody else.
func TestFloorAheadOnLinks(t *testing.T) {
	const late = 8
	h := newHardwareCrowd(t, 10, nil, []int{late})
	defer h.close()
	h.found()
	h.link(3)
	milan := attest.TCB{Microcode: 115}
	from := time.Now().Add(3 * time.Second).UTC().Truncate(time.Millisecond)
	h.propose(consensus.Action{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: sevsnp.Milan, SEVSNP: &milan, From: from}}})
	victim := h.nodes[late]
	noted := func(n *Node) bool {
		n.edges.mu.Lock()
		defer n.edges.mu.Unlock()
		e, ok := n.edges.last[victim.self]
		return ok && e.result.Affirming() && e.result.Code() == attest.CodeFloorAhead
	}
	for end := time.Now().Add(30 * time.Second); !noted(h.nodes[0]); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody notes that a floor is ahead")
		}
	}
	if time.Now().Before(from) && !victim.hasLink(h.nodes[0].self) {
		t.Error("a note closed the link")
	}
	var results [][]byte
	for i, n := range h.nodes[:7] {
		n.edges.mu.Lock()
		e, ok := n.edges.last[victim.self]
		n.edges.mu.Unlock()
		if !ok || n.ref.Org == victim.ref.Org || i > 0 && e.result.Code() != attest.CodeFloorAhead {
			continue
		}
		raw, err := n.signEdge(e)
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, raw)
	}
	h.order(consensus.KindCredential, victim.credential())
	h.order(consensus.KindResults, results...)
	if w := strings.Join(victim.platformWarnings(), "\n"); !strings.Contains(w, "below a floor") {
		t.Errorf("the node itself is not warned: %q", w)
	}
	before, quotes := h.live(), h.quotes()
	ctx, cancel := context.WithDeadline(t.Context(), from.Add(10*time.Millisecond))
	defer cancel()
	<-ctx.Done()
	var samples [][]byte
	for _, n := range h.nodes[:len(crowdOrgs)] {
		sample, err := n.sampleTime(2)
		if err != nil {
			t.Fatal(err)
		}
		samples = append(samples, sample)
	}
	h.order(consensus.KindTick, samples...)
	h.goes(before, quotes, attest.CodeTCBBelowFloor, victim)
	h.nodes[0].machine.View(func(s *consensus.State, _ *federated.Ledger) {
		if len(s.Spared()) != 0 {
			t.Errorf("spared %v", s.Spared())
		}
	})
}
