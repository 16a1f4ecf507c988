package node

import (
	"crypto/ed25519"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Nodes of an organisation that a change brings in are not known before it is strong.
func TestNewOrganisationWaitsUntilStrong(t *testing.T) {
	all := crowdOrgs
	crowdOrgs = crowdOrgs[:6] // there may be seven
	t.Cleanup(func() { crowdOrgs = all })
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.weak = true
	n := c.nodes[0]
	zeta := consensus.Organisation{ID: "zeta", Roles: []string{consensus.OrgMember}}
	for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll, consensus.KeyEmergency} {
		zeta.Keys = append(zeta.Keys, consensus.Key{Role: role, Public: envelope.PublicKey{PublicKey: crowdKey("zeta", role).Public()}})
	}
	c.order(consensus.KindProposal, c.proposal(append([]string{"zeta"}, crowdOrgs...), consensus.Action{AddOrganisation: &consensus.AddOrganisation{Organisation: zeta}}))
	peer := identity.PeerIDFromKey(crowdKey("zeta", "peer").Public().(ed25519.PublicKey))
	raw, err := consensus.SignCredential(crowdSigner(t, "zeta", consensus.KeyEnroll), consensus.Credential{MeshID: c.genesis.MeshID(), Organisation: "zeta", Node: "n1",
		Peer: peer, Cosigner: envelope.PublicKey{PublicKey: crowdKey("zeta", "cosigner").Public()}, Roles: []string{RoleMember}, BootSeq: 1, Issued: time.Now(), Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if _, why := (judge{n}).Credential(peer, raw); why == nil || why.Code != attest.CodeNotStrong {
		t.Errorf("before it is strong: %v", why)
	}
	if _, why := (judge{n}).Credential(c.nodes[1].self, c.nodes[1].credential()); why != nil {
		t.Errorf("a seat: %v", why)
	}
	openings := n.openings()
	n.machine.strengthen(n.machine.tree.Size() - 1)
	if n.machine.Awaiting() == nil {
		t.Error("a checkpoint before its leaf puts it in force")
	}
	n.machine.strengthen(n.machine.tree.Size())
	if _, why := (judge{n}).Credential(peer, raw); why != nil || n.openings() == openings {
		t.Errorf("once it is strong: %v, and who was refused is not let try again: %v", why, n.openings() == openings)
	}
}

// What puts a change in force is a checkpoint of two thirds, or one of a majority that an outside witness
// has cosigned; one of a majority alone does not, and status says so after a while.
func TestWhatIsStrong(t *testing.T) {
	for name, x := range map[string]struct {
		seats   int
		witness bool
		want    bool
	}{"a majority": {4, false, false}, "a majority and a witness": {4, true, true}, "two thirds": {5, false, true}} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
			defer c.close()
			c.found()
			c.affirm()
			key := crowdKey("witness", "key")
			c.order(consensus.KindProposal, c.proposal(crowdOrgs, consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{outsideKey(t, key).Key()}}}))
			c.base++
			c.weak = true
			c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
			n := c.nodes[0]
			note := c.noteOf(n, c.nodes[:x.seats]...)
			if x.witness {
				line, err := transparency.Cosign(note, witnessName, key)
				if err == nil {
					note, err = transparency.MergeOutside(note, line, outsideKey(t, key))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			c.believe(note, n)
			if got := n.machine.Awaiting() == nil; got != x.want {
				t.Errorf("%s puts it in force: %v", name, got)
			}
			time.Sleep(notStrongAfter)
			if said := strings.Contains(strings.Join(n.Status().Warnings, "\n"), "lets nobody in yet: the newest checkpoint is cosigned by 4 organisations, 5 are needed"); said == x.want {
				t.Errorf("%s: status says so: %v", name, said)
			}
		})
	}
}

// A witness that only the change itself names does not put it in force.
func TestWitnessOfTheChangeItself(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	c.weak = true
	key := crowdKey("witness", "key")
	c.order(consensus.KindProposal, c.proposal(crowdOrgs, consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{outsideKey(t, key).Key()}}}))
	n := c.nodes[0]
	note := c.noteOf(n, c.nodes[:4]...)
	line, err := transparency.Cosign(note, witnessName, key)
	if err == nil {
		note, err = transparency.MergeOutside(note, line, outsideKey(t, key))
	}
	if err != nil {
		t.Fatal(err)
	}
	c.believe(note, n)
	if n.machine.Awaiting() == nil {
		t.Error("a majority and a witness that nobody named before put it in force")
	}
	c.believe(c.noteOf(n, c.nodes[:5]...), n)
	if n.machine.Awaiting() != nil {
		t.Error("two thirds do not")
	}
}

// A copy of the state that passes over changes is no way around.
func TestSnapshotWaitsUntilStrong(t *testing.T) {
	c := aged(t)
	seat, m := c.nodes[0].machine, c.fresh()
	m.vouched()
	m.apply(seat.history[0])
	if err := m.CatchUp(snapshotOf(t, seat)); err != nil {
		t.Fatal(err)
	}
	before := m.Awaiting()
	if before == nil || before.Epoch() != 0 || m.Epoch() == 0 {
		t.Fatalf("awaiting %v at epoch %d", before != nil, m.Epoch())
	}
	m.strengthen(m.tree.Size())
	if m.Awaiting() != nil {
		t.Error("it waits for ever")
	}
	// Before the first start-up proof there is nothing to wait for.
	young := c.fresh()
	young.apply(seat.history[0])
	if err := young.CatchUp(snapshotOf(t, seat)); err != nil || young.Awaiting() != nil {
		t.Errorf("a node that starts: %v, %v", err, young.Awaiting() != nil)
	}
}

func TestAwaitedIsBounded(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.weak, c.fed = true, c.nodes[:1]
	m := c.nodes[0].machine
	for i := range maxAwaited + 5 {
		c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry(strings.Repeat("x", i+1))}})
	}
	if len(m.awaited) != maxAwaited {
		t.Errorf("%d changes wait", len(m.awaited))
	}
	m.strengthen(m.tree.Size() - 1)
	if m.Awaiting() == nil {
		t.Error("the last one is in force before a checkpoint holds it")
	}
	m.strengthen(m.tree.Size())
	if m.Awaiting() != nil {
		t.Error("it waits for ever")
	}
}

// While nothing grows a leader asks for missing cosignatures less and less often, but at once when a
// seat is linked.
func TestMissingCosignaturesAreAskedForLaterAndLater(t *testing.T) {
	var r retry
	at, asked := time.Unix(1000, 0), []int{}
	for second := range 200 {
		seats := 2
		if second >= 150 {
			seats = 3
		}
		if r.due(at.Add(time.Duration(second)*time.Second), seats) {
			asked = append(asked, second)
		}
	}
	want := []int{0, 1, 3, 7, 15, 31, 63, 123, 150, 151, 153, 157, 165, 181}
	if len(asked) != len(want) {
		t.Fatalf("asked at %v, want %v", asked, want)
	}
	for i := range want {
		if asked[i] != want[i] {
			t.Fatalf("asked at %v, want %v", asked, want)
		}
	}
}

// The line of a witness that is slower than the log grows is on no newest checkpoint; status says what
// it has cosigned last.
func TestWitnessSlowerThanTheLog(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	key := crowdKey("witness", "key")
	c.order(consensus.KindProposal, c.proposal(crowdOrgs, consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{outsideKey(t, key).Key()}}}))
	c.base++
	n := c.nodes[0]
	slow := c.noteOf(n, c.nodes[:5]...)
	size, _ := n.machine.tree.Head()
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
	c.believe(c.noteOf(n, c.nodes[:5]...), n)
	line, err := transparency.Cosign(slow, witnessName, key)
	if err == nil {
		slow, err = transparency.MergeOutside(slow, line, outsideKey(t, key))
	}
	if err != nil {
		t.Fatal(err)
	}
	c.believe(slow, n)
	if out := n.outsideStatus(); len(out) != 1 || out[0].At != nil || out[0].Size != size || out[0].Last == nil {
		t.Errorf("got %+v", out)
	}
	if p, _ := n.lastPublished(); p.Size <= size {
		t.Error("an older checkpoint is served")
	}
}
