package node

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// unsignedRemoval is a draft that nobody has signed.
func (c *crowd) unsignedRemoval(release string) []byte {
	c.t.Helper()
	return c.unsigned(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement(release)}})
}

func (c *crowd) unsigned(a consensus.Action) []byte {
	c.t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	p := consensus.Proposal{MeshID: c.genesis.MeshID(), Base: c.base, Nonce: strings.Repeat("5", 32), Created: now, Expires: now.Add(time.Hour),
		Actions: []consensus.Action{a}}
	payload, err := p.Payload()
	if err != nil {
		c.t.Fatal(err)
	}
	return (&envelope.Envelope{Payload: payload}).Marshal()
}

// A node judges the last claims of everybody it is linked to under a candidate: those it says
// that it would refuse are those whose links then close, and no others. Asking changes nothing.
func TestDryRunJudgesClaims(t *testing.T) {
	old := func(i int) bool { return i == 8 || i == 10 }
	c := newCrowd(t, 12, func(i int) string {
		if old(i) {
			return "old"
		}
		return "new"
	})
	defer c.close()
	c.found()
	c.link(0) // all with the first
	hub := c.nodes[0]
	await(t, "every link at the hub, whose other end comes up first", func() bool { return len(hub.mesh.Links()) >= len(c.nodes)-1 })
	draft := c.unsignedRemoval("old")
	before, links := hub.machine.Digest(), len(hub.mesh.Links())
	got, err := hub.dryRun(draft)
	if err != nil {
		t.Fatal(err)
	}
	if got.Refused != nil || got.AsIs == nil || got.Class != consensus.ClassNarrow || got.Signatures.Missing != 4 || got.Time.IsZero() {
		t.Errorf("got %+v", got)
	}
	var refused []string
	for _, r := range got.Refuses {
		if r.Reason.Code != attest.CodeRevoked {
			t.Errorf("%s: %v", r.Node, r.Reason)
		}
		refused = append(refused, r.Node)
	}
	if want := []string{c.nodes[8].ref.String(), c.nodes[10].ref.String()}; !slices.Equal(refused, want) {
		t.Fatalf("would refuse %v, want %v", refused, want)
	}
	if !slices.Contains(got.Unjudged, hub.ref.String()) {
		t.Errorf("it claims to have judged itself: unjudged %v", got.Unjudged)
	}
	if hub.machine.Digest() != before || len(hub.mesh.Links()) != links {
		t.Error("asking has changed something")
	}
	ends := hub.mesh.Links()
	c.propose(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement("old")}})
	for _, l := range ends {
		if !slices.Contains(refused, l.Session().Node.String()) {
			continue
		}
		select {
		case <-l.Done():
		case <-time.After(30 * time.Second):
			t.Fatalf("the link to %s is still up", l.Session().Node)
		}
	}
	if left := len(hub.mesh.Links()); left != links-len(refused) {
		t.Errorf("%d links are left of %d", left, links)
	}
	// What is ordered now cannot be ordered again, and what is malformed is not judged.
	if again, err := hub.dryRun(c.unsignedRemoval("never")); err != nil || again.Refused == nil || again.Refused.Code != attest.CodeUnknownEntry || len(again.Refuses) > 0 {
		t.Errorf("got %+v, %v", again.Refused, err)
	}
	if _, err := hub.dryRun([]byte("{}")); err == nil {
		t.Error("junk was judged")
	}
}

// What an ordered demand on hardware hits is in claims alone, which are not ordered: the node
// says whom, with which code, and from when on.
func TestDryRunForeseesDemands(t *testing.T) {
	const floored, denied = 8, 10
	h := newHardwareCrowd(t, 12, []int{denied}, []int{floored})
	defer h.close()
	h.found()
	h.link(0)
	hub := h.nodes[0]
	await(t, "every link at the hub, whose other end comes up first", func() bool { return len(hub.mesh.Links()) >= len(h.nodes)-1 })
	milan, from := attest.TCB{BootLoader: 3, SNP: 8, Microcode: 115}, time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	for name, tc := range map[string]struct {
		action consensus.Action
		victim int
		code   attest.Code
		at     time.Time
	}{
		"floor":       {consensus.Action{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: sevsnp.Milan, SEVSNP: &milan}}}, floored, attest.CodeTCBBelowFloor, time.Time{}},
		"floor ahead": {consensus.Action{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: sevsnp.Milan, SEVSNP: &milan, From: from}}}, floored, attest.CodeTCBBelowFloor, from},
		"product":     {consensus.Action{DenyProduct: &consensus.DenyProduct{Product: attest.Product{Line: sevsnp.Genoa}}}, denied, attest.CodePlatformDenied, time.Time{}},
	} {
		got, err := hub.dryRun(h.unsigned(tc.action))
		if err != nil || got.Refused != nil || len(got.Departures) != 0 {
			t.Fatalf("%s: %+v, %v", name, got, err)
		}
		if len(got.Refuses) != 1 || got.Refuses[0].Node != h.nodes[tc.victim].ref.String() || got.Refuses[0].Reason.Code != tc.code || !got.Refuses[0].At.Equal(tc.at) {
			t.Errorf("%s: %+v", name, got.Refuses)
		}
	}
}

// A narrowing acts where it is heard; once one of those who signed it withdraws and too few are
// left, it acts nowhere any more.
func TestWithdrawnNarrowingActsNoMore(t *testing.T) {
	c := newCrowd(t, 8, func(i int) string { return map[bool]string{true: "old", false: "new"}[i == 7] })
	defer c.close()
	c.found()
	hub := c.nodes[0]
	draft, err := envelope.Parse(c.unsignedRemoval("old"))
	if err != nil {
		t.Fatal(err)
	}
	for _, org := range crowdOrgs[:4] { // just enough: ⌊7/2⌋+1
		if err := draft.Sign(crowdSigner(t, org, consensus.KeyGovern)); err != nil {
			t.Fatal(err)
		}
	}
	if _, fresh, err := hub.machine.Hear(draft.Marshal()); err != nil || !fresh || !hub.machine.Hears() {
		t.Fatalf("heard %v, %v", fresh, err)
	}
	p, err := consensus.DecodeProposal(draft.Payload)
	if err != nil {
		t.Fatal(err)
	}
	openings := hub.machine.Openings()
	w, err := consensus.SignWithdrawal(crowdSigner(t, crowdOrgs[1], consensus.KeyGovern), consensus.WithdrawalOf(p, identity.OrgID(crowdOrgs[1]), time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	c.order(consensus.KindWithdrawal, w)
	if hub.machine.Hears() || hub.machine.Openings() == openings {
		t.Errorf("it acts still: %v", hub.machine.Heard())
	}
	if _, _, err := hub.machine.Hear(draft.Marshal()); err == nil || consensus.ReasonOf(err).Code != attest.CodeThreshold {
		t.Errorf("heard again: %v", err)
	}
}
