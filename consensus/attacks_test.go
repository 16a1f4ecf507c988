package consensus

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The attacks of groups G (governance) and M4, M5 of the catalogue in docs/ATTACKS.md that bear
// on signatures, orders and sets of organisations, on every class of proposal. Each is made on a
// fresh mesh of five, where the same proposal without the fault is accepted (the control).

// ballot is a proposal with whose keys make it good.
type ballot struct {
	change func(*Proposal)
	signed []string
}

func ballots(t testing.TB) map[Class]ballot {
	return map[Class]ballot{
		ClassNarrow:       {remove("old"), by("alpha", "beta", "gamma")},
		ClassWiden:        {add(entry(t, "x")), by("alpha", "beta", "gamma", "delta")},
		ClassConstitution: {rotate("beta emergency", "beta emergency 2"), by("alpha", "gamma", "delta", "epsilon")},
	}
}

// onEach runs an attack on a ballot of each class: it returns what to order in place of the
// good one.
func onEach(t *testing.T, code attest.Code, names string, attack func(m *mesh, b ballot) []byte) {
	t.Helper()
	for class, b := range ballots(t) {
		t.Run(string(class), func(t *testing.T) {
			m := governing(t, 5)
			out := m.command(KindProposal, attack(m, b))
			m.refused(out, code)
			if !strings.Contains(out.Reason.String(), names) {
				t.Errorf("the refusal does not say %q: %v", names, out.Reason)
			}
			if out := m.ok(m.vote(m.propose(b.change), b.signed...)); out.Proposal.Class != class {
				t.Errorf("the control is %s", out.Proposal.Class)
			}
		})
	}
}

func (m *mesh) signed(b ballot, change ...func(*Proposal)) []byte {
	m.t.Helper()
	return m.sign(m.payload(m.propose(append([]func(*Proposal){b.change}, change...)...)), b.signed...)
}

// resign parses an envelope, changes it and puts it together again.
func resign(raw []byte, change func(*envelope.Envelope)) []byte {
	env := must(envelope.Parse(raw))
	change(env)
	return env.Marshal()
}

func TestG2TooFewSignatures(t *testing.T) {
	onEach(t, attest.CodeThreshold, "organisations", func(m *mesh, b ballot) []byte {
		b.signed = b.signed[1:]
		return m.signed(b)
	})
}

func TestG3WrongKeys(t *testing.T) {
	swap := func(label string) func(*mesh, ballot) []byte {
		return func(m *mesh, b ballot) []byte {
			b.signed = append(slices.Clone(b.signed[1:]), label)
			return m.signed(b)
		}
	}
	t.Run("unknown", func(t *testing.T) {
		onEach(t, attest.CodeWrongSigner, keyIDOf("mallory govern")[:16], swap("mallory govern"))
	})
	t.Run("enroll", func(t *testing.T) { onEach(t, attest.CodeWrongSigner, "the enroll key", swap("epsilon enroll")) })
	t.Run("emergency", func(t *testing.T) { onEach(t, attest.CodeWrongSigner, "the emergency key", swap("epsilon emergency")) })
	t.Run("removed", func(t *testing.T) {
		for class, b := range ballots(t) {
			m := governing(t, 5)
			old := b.signed[0]
			m.ok(m.vote(m.propose(rotate(old, old+" 9")), append(by("beta", "delta", "gamma", "epsilon"), old+" 9")...))
			out := m.command(KindProposal, m.signed(b))
			if want := map[Class]attest.Code{ClassNarrow: attest.CodeThreshold}[class]; want != "" {
				m.refused(out, want)
			} else {
				m.refused(out, attest.CodeWrongSigner)
			}
			if !strings.Contains(out.Reason.Got, "removed") {
				t.Errorf("%s: the removed key is not named: %v", class, out.Reason)
			}
		}
	})
	t.Run("expired", func(t *testing.T) {
		for class, b := range ballots(t) {
			m := governing(t, 5, func(g *Genesis) {
				for i := range g.Organisations {
					g.Organisations[i].Keys[0].NotAfter = start.Add(90 * time.Minute)
				}
			})
			out := m.command(KindProposal, m.signed(b)) // expires two hours after the start
			m.refused(out, attest.CodeWrongSigner)
			if !strings.Contains(out.Reason.Got, "which ends at") {
				t.Errorf("%s: got %v", class, out.Reason)
			}
			m.ok(m.command(KindProposal, m.signed(b, func(p *Proposal) { p.Expires = start.Add(90 * time.Minute) })))
		}
	})
}

func TestG4OneOrganisationSignsTwice(t *testing.T) {
	t.Run("two keys", func(t *testing.T) {
		onEach(t, attest.CodeThreshold, "organisations", func(m *mesh, b ballot) []byte {
			b.signed = append(slices.Clone(b.signed[1:]), b.signed[1]+" 2")
			return m.signed(b)
		})
	})
	t.Run("one signature twice", func(t *testing.T) {
		onEach(t, attest.CodeWrongSigner, "signs twice", func(m *mesh, b ballot) []byte {
			return resign(m.signed(b), func(e *envelope.Envelope) { e.Signatures[0] = e.Signatures[1] })
		})
	})
	t.Run("empty key id", func(t *testing.T) {
		onEach(t, attest.CodeWrongSigner, "no key id", func(m *mesh, b ballot) []byte {
			return resign(m.signed(b), func(e *envelope.Envelope) { e.Signatures[0].KeyID = "" })
		})
	})
	t.Run("under another's name", func(t *testing.T) {
		onEach(t, attest.CodeWrongSigner, "signature", func(m *mesh, b ballot) []byte {
			return resign(m.signed(b), func(e *envelope.Envelope) { e.Signatures[0].Sig = e.Signatures[1].Sig })
		})
	})
}

// An empty set allows nobody: it is not the absence of a rule.
func TestG5EmptySet(t *testing.T) {
	m := governing(t, 3, func(g *Genesis) { g.Policy.Entries = []Entry{} })
	if code := m.s.allows(measured{"sim", measurement("new"), entry(t, "new").ID}, []string{RoleMember}, m.at); code != attest.CodeMeasurementNotAllowed {
		t.Errorf("code %q", code)
	}
	if p := m.s.AttestPolicy(identity.NodeRef{Org: "alpha", Name: "n1"}, RoleMember); len(p.References) != 0 || len(p.Kinds) != 1 {
		t.Errorf("got %+v", p)
	}
}

func TestG6Reencoded(t *testing.T) {
	for what, change := range map[string]func(string) string{
		"a space":       func(s string) string { return strings.Replace(s, `"base":`, `"base": `, 1) },
		"order":         func(s string) string { return strings.Replace(s, `"base":0,"nonce":"`, `"nonce":"`, 1) },
		"twice":         func(s string) string { return strings.Replace(s, `"base":0`, `"base":0,"base":0`, 1) },
		"another field": func(s string) string { return strings.Replace(s, `"base":0`, `"base":0,"class":"narrow"`, 1) },
		"another case":  func(s string) string { return strings.Replace(s, `"base"`, `"Base"`, 1) },
		"a float":       func(s string) string { return strings.Replace(s, `"base":0`, `"base":0.0`, 1) },
	} {
		t.Run(what, func(t *testing.T) {
			onEach(t, attest.CodeMalformed, "proposal", func(m *mesh, b ballot) []byte {
				payload := string(m.payload(m.propose(b.change)))
				if change(payload) == payload {
					t.Fatal("nothing was changed")
				}
				return m.sign([]byte(change(payload)), b.signed...)
			})
		})
	}
	t.Run("escaped", func(t *testing.T) {
		onEach(t, attest.CodeMalformed, "proposal", func(m *mesh, b ballot) []byte {
			return []byte(strings.Replace(string(m.signed(b)), "payloadType", `payload\u0054ype`, 1))
		})
	})
}

func TestG7Replayed(t *testing.T) {
	t.Run("executed", func(t *testing.T) {
		for _, b := range ballots(t) {
			m := governing(t, 5)
			raw := m.signed(b)
			m.ok(m.command(KindProposal, raw))
			m.refused(m.command(KindProposal, raw), attest.CodeReplayed)
		}
	})
	t.Run("other mesh", func(t *testing.T) {
		other := governing(t, 5, func(g *Genesis) { g.Nonce = strings.Repeat("cd", 32) })
		onEach(t, attest.CodeWrongMesh, other.g.MeshID().Short(), func(_ *mesh, b ballot) []byte { return other.signed(b) })
	})
	t.Run("other incarnation", func(t *testing.T) {
		onEach(t, attest.CodeWrongIncarnation, "got 1", func(m *mesh, b ballot) []byte { return m.signed(b, func(p *Proposal) { p.Incarnation = 1 }) })
	})
	t.Run("expired", func(t *testing.T) {
		onEach(t, attest.CodeProposalExpired, "expires", func(m *mesh, b ballot) []byte {
			return m.signed(b, func(p *Proposal) { p.Created, p.Expires = start, m.s.Now() })
		})
	})
	t.Run("base to come", func(t *testing.T) {
		onEach(t, attest.CodeBehind, "base", func(m *mesh, b ballot) []byte { return m.signed(b, func(p *Proposal) { p.Base = 1 }) })
	})
	t.Run("stale base", func(t *testing.T) {
		for _, first := range []func(*Proposal){add(entry(t, "y")), setLimits(Limits{Nodes: 4})} {
			for class, b := range ballots(t) {
				m := governing(t, 5)
				late := m.signed(b)
				m.ok(m.vote(m.propose(first), by("alpha", "beta", "gamma", "delta")...))
				if out := m.command(KindProposal, late); class == ClassNarrow {
					m.ok(out)
				} else {
					m.refused(out, attest.CodeStaleBase)
				}
			}
		}
	})
}

func TestG8ContentSwapped(t *testing.T) {
	onEach(t, attest.CodeWrongSigner, "signature", func(m *mesh, b ballot) []byte {
		return resign(m.signed(b), func(e *envelope.Envelope) {
			e.Payload = m.payload(m.propose(b.change, func(p *Proposal) { p.Nonce = strings.Repeat("e", 32) }))
		})
	})
}

func TestG9QuorumEvicted(t *testing.T) {
	m := governing(t, 5)
	m.attestAll(allNew)
	out := m.vote(m.propose(remove("new")), by("alpha", "beta", "gamma")...)
	m.refused(out, attest.CodeQuorumLoss)
	for _, o := range m.orgs() {
		if !strings.Contains(out.Reason.Got, string(o)+"/n1") {
			t.Errorf("the seat of %s is not named: %v", o, out.Reason)
		}
	}
}

// Thresholds are formulas over the organisations: there is no number to set wrongly.
func TestG12ThresholdsAreNotSet(t *testing.T) {
	g := genesisOf(t, 3)
	payload := string(must(g.Payload()))
	for _, with := range []string{`"thresholds":{"widen":0},`, `"thresholds":{"widen":4},`} {
		if _, err := DecodeGenesis([]byte(strings.Replace(payload, `"organisations":`, with+`"organisations":`, 1))); err == nil {
			t.Errorf("genesis with %s accepted", with)
		}
	}
	for n := MinOrganisations; n <= MaxOrganisations; n++ {
		if NarrowThreshold(n) < 2 || 2*NarrowThreshold(n) <= n || WidenThreshold(n) < NarrowThreshold(n) || WidenThreshold(n) > n {
			t.Errorf("%d organisations: %d and %d", n, NarrowThreshold(n), WidenThreshold(n))
		}
	}
}

// Of two that were approved on one base one takes effect, the same everywhere; of two with the
// same bytes, too.
func TestG15Race(t *testing.T) {
	for name, second := range map[string]func(m *mesh, first *Proposal) *Proposal{
		"conflicting": func(m *mesh, _ *Proposal) *Proposal {
			return m.propose(rotate("beta govern", "beta govern 9"), func(p *Proposal) { p.Nonce = strings.Repeat("2", 32) })
		},
		"equal in effect": func(m *mesh, _ *Proposal) *Proposal {
			return m.propose(removeOrg("alpha"), func(p *Proposal) { p.Nonce = strings.Repeat("2", 32) })
		},
		"equal": func(_ *mesh, first *Proposal) *Proposal { return first },
	} {
		t.Run(name, func(t *testing.T) {
			code := attest.CodeStaleBase
			if name == "equal" {
				code = attest.CodeReplayed
			}
			a, b := governing(t, 5), governing(t, 5)
			first := a.propose(removeOrg("alpha"))
			one := a.sign(a.payload(first), by("beta", "gamma", "delta", "epsilon")...)
			two := a.sign(a.payload(second(a, first)), append(by("gamma", "beta", "epsilon", "delta"), map[bool][]string{true: {"beta govern 9"}}[name == "conflicting"]...)...)
			for _, m := range []*mesh{a, b} { // every replica has one order
				m.ok(m.command(KindProposal, one))
				m.refused(m.command(KindProposal, two), code)
			}
			if a.s.Digest() != b.s.Digest() {
				t.Error("two replicas differ")
			}
			other := governing(t, 5)
			other.ok(other.command(KindProposal, two))
			other.refused(other.command(KindProposal, one), code)
		})
	}
}

// M4: an organisation is its keys.
func TestM4OtherOrganisationsKey(t *testing.T) {
	m := governing(t, 3)
	for _, label := range []string{"beta enroll", "mallory enroll", "alpha govern", "alpha emergency"} {
		raw, err := SignCredential(signer(t, label), m.credentialOf("alpha/n2", 1))
		if err != nil {
			t.Fatal(err)
		}
		m.refused(m.command(KindCredential, raw), attest.CodeNoCredential)
	}
	m.ok(m.command(KindCredential, m.credential("alpha/n2", 1)))
}

// M5: a statement of one purpose is none of another, whoever signed it.
func TestM5OtherPurpose(t *testing.T) {
	m := governing(t, 3)
	suspension, id := m.suspend("alpha emergency", onEntry(t, "new"))
	statements := map[Kind][]byte{
		KindCredential: m.credential("alpha/n2", 1), KindResults: m.result("alpha/n1", "beta/n1", "new"), KindTick: m.sample("alpha/n1", 1),
		KindProposal: m.sign(m.payload(m.propose(remove("old"))), by("alpha", "beta")...), KindSuspension: suspension, KindLift: m.lift(id, "alpha govern"),
	}
	for as := range statements {
		for of, raw := range statements {
			if as == of {
				continue
			}
			if out := m.command(as, raw); out.Reason == nil {
				t.Errorf("a %s was taken as a %s", of, as)
			}
		}
	}
}

// Whoever has stolen one emergency key suspends the only entry: data stops and nothing else
// does. Others lift it without that key's owner, and put the key out.
func TestStolenEmergencyKey(t *testing.T) {
	m := governing(t, 5, func(g *Genesis) { g.Policy.Entries = []Entry{entry(t, "new")} })
	m.attestAll(allNew)
	if len(m.s.Eligible(m.at)) != 5 {
		t.Fatal("not all are eligible to begin with")
	}
	raw, id := m.suspend("alpha emergency", onEntry(t, "new"))
	m.ok(m.command(KindSuspension, raw))
	if got := m.s.Eligible(m.at); len(got) != 0 {
		t.Errorf("data goes on: %s", names(got))
	}
	// The mesh goes on: seats, time, Credentials, findings, proposals.
	m.tick(2 * time.Second)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	m.ok(m.command(KindResults, m.result("gamma/n1", "beta/n2", "new")))
	m.ok(m.vote(m.propose(add(entry(t, "x"))), by("beta", "gamma", "delta", "epsilon")...))
	if len(m.s.Seats()) != 5 {
		t.Errorf("seats: %s", names(m.s.Seats()))
	}
	// The key can neither lift nor widen, and has a quota.
	m.refused(m.command(KindLift, m.lift(id, "alpha emergency")), attest.CodeWrongSigner)
	m.refused(m.vote(m.propose(add(entry(t, "y"))), append(by("beta", "gamma", "delta"), "alpha emergency")...), attest.CodeWrongSigner)
	for i := range MaxSuspensionsLive {
		again := must1(m.suspend("alpha emergency", onEntry(t, "new"), func(x *Suspension) { x.Nonce = fmt.Sprintf("%032x", i+7) }))
		if out := m.command(KindSuspension, again); i == MaxSuspensionsLive-1 {
			m.refused(out, attest.CodeLimit)
		} else {
			m.ok(out)
		}
	}
	m.ok(m.vote(m.propose(rotate("alpha emergency", "alpha emergency 2")), by("alpha", "beta", "gamma")...))
	m.refused(m.command(KindSuspension, must1(m.suspend("alpha emergency", onEntry(t, "new"), func(x *Suspension) { x.Nonce = strings.Repeat("9", 32) }))), attest.CodeWrongSigner)
	for _, x := range m.s.Suspensions(m.at) {
		m.refused(m.command(KindLift, m.lift(x.ID(), by("beta", "gamma")...)), attest.CodeThreshold)
		m.ok(m.command(KindLift, m.lift(x.ID(), by("beta", "gamma", "delta")...)))
	}
	if got := m.s.Eligible(m.at); len(got) != 5 {
		t.Errorf("after the lifts: %s", names(got))
	}
}

// A threshold of the organisations is enough to put one out, and one fewer is not, whatever it
// signs itself.
func TestOrganisationCannotVoteTwice(t *testing.T) {
	m := governing(t, 5)
	four := by("beta", "gamma", "delta", "epsilon")
	m.refused(m.vote(m.propose(removeOrg("alpha")), append(four[:3:3], "beta govern 2")...), attest.CodeThreshold)
	m.ok(m.vote(m.propose(removeOrg("alpha")), four...))
	if _, ok := m.s.Organisation("alpha"); ok || m.s.N() != 4 || NarrowThreshold(4) != 3 {
		t.Error("alpha is still there")
	}
	var left []identity.OrgID
	for _, o := range m.s.Organisations() {
		left = append(left, o.ID)
	}
	m.refused(m.vote(m.propose(remove("old")), by("beta", "gamma")...), attest.CodeThreshold)
	m.ok(m.vote(m.propose(remove("old")), by("beta", "gamma", "delta")...))
	if !slices.IsSorted(left) {
		t.Errorf("%v", left)
	}
}
