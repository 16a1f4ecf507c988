package consensus

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// governing returns a started mesh of n organisations whose constitution can change.
func governing(t testing.TB, n int, change ...func(*Genesis)) *mesh {
	t.Helper()
	g := genesisOf(t, n)
	g.FSMVersion = fsmGovernance
	for _, f := range change {
		f(g)
	}
	m := newMeshOf(t, g)
	m.start()
	return m
}

func act(actions ...Action) func(*Proposal) {
	return func(p *Proposal) { p.Actions = append(p.Actions, actions...) }
}

func keyOf(label string) Key {
	return Key{Role: strings.Fields(label)[1], Public: public(label)}
}

func keyIDOf(label string) string { return keyOf(label).ID() }

// rotate replaces the key of one label by that of another.
func rotate(from, to string) func(*Proposal) {
	f := strings.Fields(from)
	return act(Action{RotateKey: &RotateKey{Organisation: identity.OrgID(f[0]), Role: f[1], Old: keyIDOf(from), Public: public(to)}})
}

func addKey(label string) func(*Proposal) {
	return act(Action{AddKey: &AddKey{identity.OrgID(strings.Fields(label)[0]), keyOf(label)}})
}

func removeKey(label string) func(*Proposal) {
	f := strings.Fields(label)
	return act(Action{RemoveKey: &RemoveKey{identity.OrgID(f[0]), f[1], keyIDOf(label)}})
}

func newOrg(id string) Organisation {
	return Organisation{ID: identity.OrgID(id), Roles: []string{OrgMember}, Keys: []Key{keyOf(id + " govern"), keyOf(id + " enroll"), keyOf(id + " emergency")}}
}

func addOrg(id string, change ...func(*Organisation)) func(*Proposal) {
	o := newOrg(id)
	for _, f := range change {
		f(&o)
	}
	return act(Action{AddOrganisation: &AddOrganisation{o}})
}

func removeOrg(id string) func(*Proposal) {
	return act(Action{RemoveOrganisation: &RemoveOrganisation{identity.OrgID(id)}})
}

func setLimits(l Limits) func(*Proposal) { return act(Action{SetLimits: &SetLimits{l}}) }

// vote orders a proposal that the given keys have signed.
func (m *mesh) vote(p *Proposal, labels ...string) Outcome {
	m.t.Helper()
	return m.command(KindProposal, m.sign(m.payload(p), labels...))
}

// by returns the govern keys of organisations.
func by(orgs ...string) []string {
	var out []string
	for _, o := range orgs {
		out = append(out, o+" govern")
	}
	return out
}

// amendments are proposals of every action that changes the constitution.
var amendments = []func(*Proposal){rotate("alpha enroll", "alpha enroll 2"), addKey("beta emergency 2"), removeKey("alpha govern 2"), addOrg("eta"), removeOrg("beta"),
	setLimits(Limits{Nodes: 7, Results: 9}), act(Action{SetWitnesses: &SetWitnesses{[]string{witness}}})}

func TestConstitutionStartsAsGenesis(t *testing.T) {
	m := governing(t, 3, func(g *Genesis) { g.Witnesses = []string{witness} })
	if !reflect.DeepEqual(m.s.Organisations(), m.g.Organisations) || m.s.Limits() != m.g.Limits || !slices.Equal(m.s.Witnesses(), m.g.Witnesses) || len(m.s.FormerKeys()) != 0 {
		t.Errorf("got %+v", m.s.Organisations())
	}
}

const witness = "witness.example.org+01234567+AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// The class is computed, moves the base and needs the widen threshold.
func TestConstitutionClass(t *testing.T) {
	for name, change := range map[string]func(*Proposal){
		"add_key":             addKey("alpha emergency 2"),
		"remove_key":          removeKey("alpha govern 2"),
		"add_organisation":    addOrg("eta"),
		"remove_organisation": removeOrg("alpha"),
		"set_limits":          setLimits(Limits{Nodes: 4}),
		"set_witnesses":       act(Action{SetWitnesses: &SetWitnesses{[]string{witness}}}),
		"beside a narrowing":  func(p *Proposal) { remove("old")(p); setLimits(Limits{Nodes: 4})(p) },
		"beside a widening":   func(p *Proposal) { add(entry(t, "x"))(p); setLimits(Limits{Nodes: 4})(p) },
	} {
		t.Run(name, func(t *testing.T) {
			m := governing(t, 5)
			extra := []string{}
			if name == "add_organisation" {
				extra = by("eta")
			}
			m.refused(m.vote(m.propose(change), append(by("beta", "gamma", "delta"), extra...)...), attest.CodeThreshold)
			out := m.ok(m.vote(m.propose(change), append(by("beta", "gamma", "delta", "epsilon"), extra...)...))
			if out.Proposal.Class != ClassConstitution || m.s.Base() != 1 || m.s.Epoch() != 1 || !out.EpochChanged {
				t.Errorf("got %+v, base %d", out.Proposal, m.s.Base())
			}
			m.refused(m.vote(m.propose(add(entry(t, "y")), func(p *Proposal) { p.Base = 0 }), by("beta", "gamma", "delta", "epsilon")...), attest.CodeStaleBase)
		})
	}
}

// An organisation that replaces its own key needs fewer others than who replaces it without
// its consent, and never fewer than more than half, before and after.
func TestRotationThresholds(t *testing.T) {
	for _, n := range []int{2, 3, 4, 5, 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			orgs := slices.Sorted(slices.Values(orgNames[:n]))
			others := []string{}
			for _, o := range orgs[1:] {
				others = append(others, string(o)+" govern")
			}
			const old, new = "alpha govern", "alpha govern 9"
			p := func(m *mesh) *Proposal { return m.propose(rotate(old, new)) }
			k := NarrowThreshold(n)
			m := governing(t, n)
			m.refused(m.vote(p(m), append(others[:k-1:k-1], old)...), attest.CodeThreshold)                     // the new key did not sign
			m.refused(m.vote(p(m), append(others[:k-2:k-2], old, new)...), attest.CodeThreshold)                // one too few
			m.refused(m.vote(p(m), append(others[:k-1:k-1], new)...), attest.CodeThreshold)                     // its old key did not
			m.ok(m.vote(p(m), append(others[:k-1:k-1], old, new)...))                                           // both
			m.refused(m.vote(m.propose(remove("old")), append(others[:k-1:k-1], old)...), attest.CodeThreshold) // the old key is out
			m.ok(m.vote(m.propose(add(entry(t, "x"))), append(others[:WidenThreshold(n)-1:WidenThreshold(n)-1], new)...))
			if n > 2 { // the key is lost: the others replace it, with what anything else needs
				m = governing(t, n)
				w := WidenThreshold(n)
				if w < n {
					m.refused(m.vote(p(m), append(others[:w-1:w-1], new)...), attest.CodeThreshold)
					m.ok(m.vote(p(m), append(others[:w:w], new)...))
				}
			}
		})
	}
}

// What else a rotation does counts in full.
func TestRotationAlone(t *testing.T) {
	m := governing(t, 5)
	few := append(by("alpha", "beta", "gamma"), "alpha govern 9")
	for _, more := range []func(*Proposal){add(entry(t, "x")), rotate("beta enroll", "beta enroll 9"), setLimits(Limits{Nodes: 4}), remove("old")} {
		m.refused(m.vote(m.propose(rotate("alpha govern", "alpha govern 9"), more), few...), attest.CodeThreshold)
	}
	m.ok(m.vote(m.propose(rotate("alpha govern", "alpha govern 9"), rotate("alpha enroll", "alpha enroll 9")), few...))
}

// As in TUF: the organisations after a change must have agreed to it too.
func TestNewOrganisationsAgree(t *testing.T) {
	m := governing(t, 3)
	// Three more make N six: four of six after it, though two of three would do before.
	grow := func() *Proposal { return m.propose(addOrg("delta"), addOrg("zeta"), addOrg("eta")) }
	if NarrowThreshold(6) != 4 || WidenThreshold(6) != 4 {
		t.Fatal("the arithmetic of this test")
	}
	newOnes := by("delta", "zeta", "eta")
	confirm := func(p *Proposal) *Proposal { p.ConfirmQuorumLoss = true; return p }
	m.refused(m.vote(confirm(grow()), append(by("alpha"), newOnes...)...), attest.CodeThreshold)
	m.refused(m.vote(confirm(grow()), append(by("alpha", "beta", "gamma"), newOnes[:2]...)...), attest.CodeThreshold)
	m.ok(m.vote(confirm(grow()), append(by("alpha", "beta"), newOnes...)...))
	if m.s.N() != 6 || m.s.Quorum() != 3 {
		t.Errorf("N %d quorum %d", m.s.N(), m.s.Quorum())
	}
	// The newcomers have votes and can name nodes.
	m.ok(m.vote(m.propose(add(entry(t, "x"))), append(by("alpha"), newOnes...)...))
	m.ok(m.command(KindCredential, m.credential("eta/n1", 1)))
}

// An organisation that leaves takes vote, seat, nodes and keys with it.
func TestOrganisationRemoved(t *testing.T) {
	m := governing(t, 4)
	m.attestAll(allNew)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	late := m.credential("beta/n3", 1)
	suspension := must1(m.suspend("beta emergency", func(x *Suspension) { x.Organisation = "beta" }, onEntry(t, "new")))
	out := m.ok(m.vote(m.propose(removeOrg("beta")), by("alpha", "gamma", "delta")...))
	if m.s.N() != 3 || names(m.s.Seats()) != "alpha/n1 delta/n1 gamma/n1" || m.s.Quorum() != 2 || !out.SeatsChanged {
		t.Errorf("N %d seats %s", m.s.N(), names(m.s.Seats()))
	}
	if !slices.Equal(out.Evicted, []identity.PeerID{peerOf("beta/n1", 1), peerOf("beta/n2", 1)}) || len(out.Leaves) != 2 {
		t.Errorf("got %+v", out)
	}
	if c, err := ParseMembership(out.Leaves[1]); err != nil || c.Code != attest.CodeOrganisationRemoved || c.Node.String() != "beta/n1" {
		t.Errorf("got %+v, %v", c, err)
	}
	for _, n := range m.s.Nodes() {
		if n.Ref.Org == "beta" {
			t.Errorf("%s is still a node", n.Ref)
		}
		for _, e := range m.s.Edges(n.Peer) {
			if e.Verifier.Node.Org == "beta" {
				t.Error("an edge by beta is left")
			}
		}
	}
	if !m.s.Retired(peerOf("beta/n1", 1)) || !m.s.Retired(peerOf("beta/n2", 1)) {
		t.Error("its peers can come back")
	}
	m.refused(m.command(KindCredential, late), attest.CodeOrganisationRemoved)
	m.refused(m.command(KindSuspension, suspension), attest.CodeWrongSigner)
	m.refused(m.vote(m.propose(remove("old")), by("beta")...), attest.CodeWrongSigner)
	m.refused(m.vote(m.propose(add(entry(t, "x"))), by("alpha", "beta", "gamma")...), attest.CodeWrongSigner)
	m.refused(m.command(KindResults, m.result("alpha/n1", "beta/n1", "new")), attest.CodeNoCredential)
	if len(m.s.Eligible(m.at)) != 3 {
		t.Errorf("eligible: %s", names(m.s.Eligible(m.at)))
	}
	// It comes back with new keys alone.
	m.refused(m.vote(m.propose(addOrg("beta")), by("alpha", "gamma", "beta")...), attest.CodeReplayed)
	fresh := func(o *Organisation) {
		o.Keys = []Key{keyOf("beta govern again"), keyOf("beta enroll again")}
	}
	m.ok(m.vote(m.propose(addOrg("beta", fresh)), append(by("alpha", "gamma"), "beta govern again")...))
	m.refused(m.command(KindCredential, late), attest.CodeNoCredential)
}

// G13: the last two stay, and a quorum of seats unless it is meant otherwise.
func TestOrganisationCannotBeMissed(t *testing.T) {
	m := governing(t, 2)
	m.refused(m.vote(m.propose(removeOrg("beta")), by("alpha", "beta")...), attest.CodeUnreachableThreshold)
	m = governing(t, 4)
	two := func(p *Proposal) { removeOrg("beta")(p); removeOrg("delta")(p) }
	m.refused(m.vote(m.propose(two), by("alpha", "beta", "gamma", "delta")...), attest.CodeQuorumLoss)
	m.ok(m.vote(m.propose(two, func(p *Proposal) { p.ConfirmQuorumLoss = true }), by("alpha", "beta", "gamma", "delta")...))
	// Newcomers without a seat raise what a quorum is.
	m = governing(t, 3)
	many := func(p *Proposal) {
		for _, o := range []string{"delta", "zeta", "epsilon", "eta"} {
			addOrg(o)(p)
		}
	}
	m.ok(m.vote(m.propose(many), by("alpha", "beta", "gamma", "delta", "zeta", "epsilon", "eta")...)) // 3 of 4
	m = governing(t, 3)
	m.attestAll(allNew)
	m.ok(m.command(KindResults, m.result("alpha/n1", "gamma/n1", "old", func(r *AttestationResult) { r.At = m.at.Add(time.Second) }),
		m.result("beta/n1", "gamma/n1", "old", func(r *AttestationResult) { r.At = m.at.Add(time.Second) })))
	m.ok(m.order(m.propose(remove("old")), 2)) // gamma's seat goes
	m.refused(m.vote(m.propose(many), by("alpha", "beta", "gamma", "delta", "zeta", "epsilon", "eta")...), attest.CodeQuorumLoss)
}

// A key stands under one organisation, in one role, once: now and for ever.
func TestKeysAreUnique(t *testing.T) {
	three := by("alpha", "beta", "gamma")
	for name, tc := range map[string]struct {
		change func(*Proposal)
		code   attest.Code
		more   []string
	}{
		"another's key":   {act(Action{AddKey: &AddKey{"alpha", keyOf("beta govern")}}), attest.CodeDuplicate, nil},
		"in another role": {act(Action{AddKey: &AddKey{"alpha", Key{Role: KeyEmergency, Public: public("alpha govern")}}}), attest.CodeDuplicate, nil},
		"rotated to another's": {act(Action{RotateKey: &RotateKey{Organisation: "alpha", Role: KeyEnroll, Old: keyIDOf("alpha enroll"), Public: public("beta enroll")}}),
			attest.CodeMalformed, nil},
		"newcomer with another's": {addOrg("eta", func(o *Organisation) { o.Keys[0] = keyOf("beta govern") }), attest.CodeDuplicate, nil},
		"moved": {func(p *Proposal) {
			removeKey("beta govern 2")(p)
			act(Action{AddKey: &AddKey{"alpha", keyOf("beta govern 2")}})(p)
		}, attest.CodeReplayed, []string{"beta govern 2"}},
		"a node's":        {act(Action{AddKey: &AddKey{"alpha", Key{Role: KeyEmergency, Public: public("beta/n1 cosigner 1")}}}), attest.CodeDuplicate, nil},
		"a peer's":        {act(Action{AddKey: &AddKey{"alpha", Key{Role: KeyEmergency, Public: public("beta/n1 boot 1")}}}), attest.CodeDuplicate, nil},
		"the log's":       {act(Action{AddKey: &AddKey{"alpha", Key{Role: KeyEmergency, Public: public("log")}}}), attest.CodeDuplicate, nil},
		"no such key":     {removeKey("alpha govern 7"), attest.CodeUnknownKey, nil},
		"of another role": {act(Action{RemoveKey: &RemoveKey{"alpha", KeyEnroll, keyIDOf("alpha govern")}}), attest.CodeUnknownKey, nil},
		"last enroll key": {removeKey("alpha enroll"), attest.CodeMalformed, nil},
		"no organisation": {removeKey("omega govern"), attest.CodeUnknownOrganisation, nil},
		"removed twice":   {func(p *Proposal) { removeOrg("alpha")(p); removeOrg("alpha")(p) }, attest.CodeUnknownOrganisation, nil},
		"in already":      {addOrg("alpha"), attest.CodeReplayed, nil},
		"same limits":     {setLimits(Limits{Nodes: 3}), attest.CodeReplayed, nil},
		"same witnesses":  {act(Action{SetWitnesses: &SetWitnesses{[]string{}}}), attest.CodeReplayed, nil},
		"witness as the log": {func(p *Proposal) {
			act(Action{SetWitnesses: &SetWitnesses{[]string{strings.Replace(witness, "witness.example.org", genesisOf(t, 2).LogOrigin, 1)}}})(p)
		}, attest.CodeMalformed, nil},
		"nine keys": {func(p *Proposal) {
			for i := range 5 {
				addKey(fmt.Sprintf("alpha emergency %d", i))(p)
			}
		}, attest.CodeMalformed, nil},
	} {
		t.Run(name, func(t *testing.T) {
			m := governing(t, 3)
			m.refused(m.vote(m.propose(tc.change), append(slices.Clone(three), tc.more...)...), tc.code)
		})
	}
	g := genesisOf(t, 3)
	g.Organisations[0].Keys[0].Public = g.Organisations[1].Keys[0].Public
	if _, err := g.Payload(); err == nil || !strings.Contains(err.Error(), "one organisation") {
		t.Errorf("genesis with one key under two organisations: %v", err)
	}
}

// A key has one life within a proposal too: put back where it was, it would be in force and
// removed at once, its votes passed over, and every later change of the constitution refused.
func TestKeyDoesNotReturnWithinAProposal(t *testing.T) {
	for name, changes := range map[string][]func(*Proposal){
		"key":          {removeKey("alpha emergency"), addKey("alpha emergency")},
		"organisation": {removeOrg("gamma"), act(Action{AddOrganisation: &AddOrganisation{genesisOf(t, 3).Organisations[2]}})},
	} {
		m := governing(t, 3)
		m.refused(m.vote(m.propose(changes...), by("alpha", "beta", "gamma")...), attest.CodeReplayed)
		if len(m.s.FormerKeys()) != 0 {
			t.Errorf("%s: %v", name, m.s.FormerKeys())
		}
	}
}

// A key that was rotated out has signed what was ordered, and signs nothing more; nor does it
// come back.
func TestRotatedKeyIsOut(t *testing.T) {
	m := governing(t, 3)
	m.ok(m.vote(m.propose(add(entry(t, "x"))), by("alpha", "beta")...))
	m.ok(m.vote(m.propose(rotate("alpha govern", "alpha govern 9")), append(by("alpha", "beta"), "alpha govern 9")...))
	out := m.vote(m.propose(add(entry(t, "y"))), by("alpha", "beta")...)
	m.refused(out, attest.CodeWrongSigner)
	if !strings.Contains(out.Reason.Got, "alpha") || !strings.Contains(out.Reason.Got, "removed") {
		t.Errorf("the refusal does not name the key: %v", out.Reason)
	}
	m.refused(m.vote(m.propose(rotate("alpha govern 9", "alpha govern")), append(by("alpha", "beta"), "alpha govern 9")...), attest.CodeReplayed)
	// What it signed replays, for members and for auditors.
	replayed, err := ReplayPolicy(m.g, m.s.PolicyChain())
	if err != nil || replayed.PolicyDigest() != m.s.PolicyDigest() {
		t.Errorf("the chain does not replay: %v", err)
	}
}

// A narrowing that was signed before a rotation keeps the signatures that still stand.
func TestNarrowingOutlivesRotation(t *testing.T) {
	m := governing(t, 4)
	cut := m.sign(m.payload(m.propose(remove("old"))), by("alpha", "beta", "gamma", "delta")...)
	thin := m.sign(m.payload(m.propose(remove("new"), func(p *Proposal) { p.ConfirmQuorumLoss = true })), by("alpha", "beta", "gamma")...)
	m.ok(m.vote(m.propose(rotate("alpha govern", "alpha govern 9")), append(by("alpha", "beta", "gamma"), "alpha govern 9")...))
	m.refused(m.command(KindProposal, thin), attest.CodeThreshold)
	out := m.ok(m.command(KindProposal, cut))
	if want := []identity.OrgID{"beta", "delta", "gamma"}; !slices.Equal(out.Proposal.Organisations, want) {
		t.Errorf("counted %v, want %v", out.Proposal.Organisations, want)
	}
	// A bad signature under the name of another key is still what nobody signed.
	env := must(envelope.Parse(m.sign(m.payload(m.propose(remove("new"))), by("beta", "gamma", "delta")...)))
	env.Signatures = append(env.Signatures, envelope.Signature{KeyID: keyIDOf("mallory govern"), Sig: []byte("x")})
	m.refused(m.command(KindProposal, env.Marshal()), attest.CodeWrongSigner)
}

// Credentials by a removed enroll key are void at once: their nodes take no part until they
// are enrolled anew, keep name and seat meanwhile, and the thief's count for nothing.
func TestRemovedEnrollKeyVoidsCredentials(t *testing.T) {
	m := governing(t, 4)
	m.attestAll(allNew)
	if !m.s.IsEligible(peerOf("alpha/n1", 1), m.at) {
		t.Fatal("not eligible to begin with")
	}
	unused := m.credential("alpha/n2", 1)
	stolen := m.credential("alpha/n3", 1, func(c *Credential) { c.BootSeq = 1 << 62 })
	m.ok(m.command(KindCredential, stolen))
	if _, err := m.s.VerifyCredential(unused, m.at); err != nil {
		t.Fatal(err)
	}
	m.ok(m.vote(m.propose(rotate("alpha enroll", "alpha enroll 9")), by("alpha", "beta", "gamma")...))
	m.refused(m.command(KindCredential, unused), attest.CodeNoCredential)
	for _, raw := range [][]byte{unused, m.credential("alpha/n1", 1)} {
		if _, err := m.s.VerifyCredential(raw, m.at); ReasonOf(err).Code != attest.CodeNoCredential || !strings.Contains(ReasonOf(err).Got, "removed") {
			t.Errorf("got %v, want no_credential that names the removed key", err)
		}
	}
	if m.s.IsEligible(peerOf("alpha/n1", 1), m.at) || len(m.s.Affirming(peerOf("beta/n1", 1), m.at)) != 2 || len(m.s.Seats()) != 4 {
		t.Errorf("eligible %t, %d edges on beta, seats %s", m.s.IsEligible(peerOf("alpha/n1", 1), m.at), len(m.s.Affirming(peerOf("beta/n1", 1), m.at)), names(m.s.Seats()))
	}
	anew := func(node string, n int) []byte {
		c := m.credentialOf(node, n)
		return must(SignCredential(signer(t, "alpha enroll 9"), c))
	}
	m.ok(m.command(KindCredential, anew("alpha/n1", 1))) // the same boot, the same expiry
	m.ok(m.command(KindCredential, anew("alpha/n3", 2))) // a number that the thief's was above
	if !m.s.IsEligible(peerOf("alpha/n1", 1), m.at) || len(m.s.Affirming(peerOf("beta/n1", 1), m.at)) != 3 || m.s.Retired(peerOf("alpha/n1", 1)) {
		t.Error("alpha/n1 has not come back")
	}
	m.refused(m.command(KindCredential, stolen), attest.CodeNoCredential)
}

// Nodes whose Credentials are void are not heard as verifiers: neither what they say from then on
// nor what they said before puts a node out, keeps one in, or settles what it runs.
func TestVoidedVerifiersAreNotHeard(t *testing.T) {
	m := governing(t, 4)
	m.attestAll(allNew)
	m.find("delta/n1", refusing, "alpha/n1")
	m.ok(m.vote(m.propose(rotate("alpha enroll", "alpha enroll 9")), by("alpha", "beta", "gamma")...))
	m.refused(m.command(KindResults, m.result("alpha/n1", "gamma/n1", "new", refusing)), attest.CodeNoCredential)
	m.find("delta/n1", refusing, "beta/n1", "gamma/n1")
	if len(m.s.Seats()) != 4 {
		t.Error("the word of a void node put out a seat")
	}
	again := m.credentialOf("alpha/n1", 1)
	m.ok(m.command(KindCredential, must(SignCredential(signer(t, "alpha enroll 9"), again))))
	m.find("delta/n1", later1(time.Minute), "alpha/n1")
	m.find("delta/n1", func(r *AttestationResult) { refusing(r); r.At = r.At.Add(2 * time.Minute) }, "alpha/n1")
	if names(m.s.Seats()) != "alpha/n1 beta/n1 gamma/n1" {
		t.Errorf("seats %s", names(m.s.Seats()))
	}

	m = governing(t, 4)
	m.attestAll(allNew)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	m.find("beta/n2", later1(0), "alpha/n1")
	m.ok(m.vote(m.propose(rotate("alpha enroll", "alpha enroll 9")), by("alpha", "beta", "gamma")...))
	m.ok(m.command(KindResults, m.result("gamma/n1", "beta/n2", "old")))
	if n, _ := m.s.Node(peerOf("beta/n2", 1)); n.Measurement != measurement("old") {
		t.Errorf("beta/n2 runs what a void node said: %+v", n)
	}
}

// A key signs nothing that outlives it, which needs no clock.
func TestKeysEnd(t *testing.T) {
	end := start.Add(2 * time.Hour)
	m := governing(t, 3, func(g *Genesis) {
		for i := range g.Organisations[0].Keys {
			g.Organisations[0].Keys[i].NotAfter = start.Add(48 * time.Hour)
		}
		g.Organisations[0].Keys[0].NotAfter, g.Organisations[0].Keys[3].NotAfter = end, end
	})
	short := func(p *Proposal) { p.Expires = end }
	long := func(p *Proposal) { p.Expires = end.Add(time.Second) }
	out := m.vote(m.propose(add(entry(t, "x")), long), by("alpha", "beta")...)
	m.refused(out, attest.CodeWrongSigner)
	if !strings.Contains(out.Reason.Got, "ends at") {
		t.Errorf("got %v", out.Reason)
	}
	m.ok(m.vote(m.propose(add(entry(t, "x")), short), by("alpha", "beta")...))
	until := func(at time.Time) func(*Suspension) { return func(x *Suspension) { x.Until = at } }
	m.refused(m.command(KindSuspension, must1(m.suspend("alpha emergency", onEntry(t, "new"), until(end.Add(time.Second))))), attest.CodeWrongSigner)
	m.ok(m.command(KindSuspension, must1(m.suspend("alpha emergency", onEntry(t, "new"), until(end)))))
	if _, err := m.s.VerifyCredential(m.credential("alpha/n2", 1, func(c *Credential) {
		c.Issued, c.Expires = start.Add(47*time.Hour), start.Add(48*time.Hour+time.Second)
	}), start.Add(47*time.Hour)); ReasonOf(err).Code != attest.CodeNoCredential {
		t.Errorf("a Credential beyond its key: %v", err)
	}
	if _, err := ReplayPolicy(m.g, m.s.PolicyChain()); err != nil {
		t.Error(err)
	}
	g := genesisOf(t, 3)
	g.Organisations[0].Keys[0].NotAfter = end
	if _, err := g.Payload(); err == nil || !strings.Contains(err.Error(), "fsm_version") {
		t.Errorf("an older genesis with not_after: %v", err)
	}
}

// In a mesh of an older version the constitution is what genesis says.
func TestConstitutionNeedsVersion(t *testing.T) {
	m := started(t, 3)
	for _, change := range []func(*Proposal){addOrg("eta"), removeOrg("alpha"), addKey("alpha emergency 2"), removeKey("alpha govern 2"),
		rotate("alpha enroll", "alpha enroll 2"), setLimits(Limits{Nodes: 4}), act(Action{SetWitnesses: &SetWitnesses{[]string{witness}}})} {
		m.refused(m.vote(m.propose(change), by("alpha", "beta", "gamma")...), attest.CodeWrongVersion)
	}
}
