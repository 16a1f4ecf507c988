package consensus

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// approved makes a proposal signed by the first k organisations.
func (m *mesh) approved(p *Proposal, k int) []byte {
	m.t.Helper()
	return m.sign(m.payload(p), m.governors(k)...)
}

// hear has p judge a statement and demands that the ordered state stays as it is.
func (m *mesh) hear(p *Provisional, raw []byte) (*Heard, bool, error) {
	m.t.Helper()
	before := m.s.Digest()
	h, fresh, err := p.Hear(m.s, raw)
	if m.s.Digest() != before {
		m.t.Fatal("what was heard has changed the ordered state")
	}
	return h, fresh, err
}

func (m *mesh) heard(p *Provisional, raw []byte) *Heard {
	m.t.Helper()
	h, fresh, err := m.hear(p, raw)
	if err != nil || !fresh {
		m.t.Fatalf("heard anew: %v, %v", fresh, err)
	}
	return h
}

func (m *mesh) wantUnheard(p *Provisional, raw []byte, code attest.Code, later bool) {
	m.t.Helper()
	_, _, err := m.hear(p, raw)
	if err == nil || ReasonOf(err).Code != code || Later(err) != later {
		m.t.Errorf("got %v (later %v), want %s (later %v)", err, Later(err), code, later)
	}
}

// A narrowing that enough organisations have signed takes effect where it is heard; epoch, base
// and chain stay, and what is ordered is judged without it. Once ordered it is no longer kept.
func TestNarrowingIsHeard(t *testing.T) {
	m := suspending(t, 5)
	var p Provisional
	if p.Over(m.s) != m.s {
		t.Error("a state over which nothing was heard is another")
	}
	raw := m.approved(m.propose(remove("new")), 3)
	m.wantUnheard(&p, m.approved(m.propose(remove("new")), 2), attest.CodeThreshold, false)
	m.wantUnheard(&p, raw, attest.CodeQuorumLoss, true)
	raw = m.approved(m.propose(remove("old")), 3)
	h := m.heard(&p, raw)
	if _, fresh, err := m.hear(&p, m.approved(m.propose(remove("old")), 4)); fresh || err != nil {
		t.Errorf("the same payload by more organisations: %v, %v", fresh, err)
	}
	over := p.Over(m.s)
	if len(over.Entries()) != 1 || len(m.s.Entries()) != 2 || over.Epoch() != m.s.Epoch() || over.Base() != m.s.Base() || over.Steps() != m.s.Steps() {
		t.Errorf("%d and %d entries, epoch %d and %d", len(over.Entries()), len(m.s.Entries()), over.Epoch(), m.s.Epoch())
	}
	if !p.Has(h.ID) || h.Kind != KindProposal || !strings.Contains(h.Says, "alpha beta delta") || !strings.Contains(h.Says, measurement("old")) {
		t.Errorf("kept as %+v", h)
	}
	if gone, lapsed := p.Settle(m.s); gone+lapsed != 0 {
		t.Errorf("%d gone, %d lapsed before it was ordered", gone, lapsed)
	}
	m.ok(m.command(KindProposal, raw))
	if gone, lapsed := p.Settle(m.s); gone != 1 || lapsed != 0 || p.Over(m.s) != m.s {
		t.Errorf("%d gone, %d lapsed once it was ordered", gone, lapsed)
	}
	m.wantUnheard(&p, raw, attest.CodeReplayed, true)
}

// Ordered time alone ends what was heard: where nothing is ordered it stays in force.
func TestHeardEndsByOrderedTime(t *testing.T) {
	m := suspending(t, 5)
	var p Provisional
	m.heard(&p, m.approved(m.propose(remove("old")), 3))
	susp, id := m.suspend("alpha emergency", onNode("gamma/n1"), until(30*time.Minute))
	m.heard(&p, susp)
	m.at = m.at.Add(48 * time.Hour) // what clocks say is not what was ordered
	if _, lapsed := p.Settle(m.s); lapsed != 0 || p.Ended(m.s.Now()) {
		t.Fatalf("%d ended without a tick", lapsed)
	}
	m.at = m.s.Now()
	m.tick(30*time.Minute - time.Millisecond)
	if _, lapsed := p.Settle(m.s); lapsed != 0 || p.Ended(m.s.Now()) {
		t.Errorf("%d ended a millisecond too early", lapsed)
	}
	m.tick(time.Millisecond)
	if x, ok := p.Over(m.s).SuspendedNode(m.ref("gamma/n1"), m.s.Now()); ok {
		t.Errorf("in force after its end: %v", x)
	}
	if !p.Ended(m.s.Now()) {
		t.Error("nothing has ended")
	}
	if gone, lapsed := p.Settle(m.s); gone != 1 || lapsed != 1 {
		t.Errorf("%d gone, %d lapsed at the suspension's end", gone, lapsed)
	}
	m.wantUnheard(&p, susp, attest.CodeSuspensionEnded, true)
	m.wantUnheard(&p, m.lift(id, "beta govern"), attest.CodeUnknownSuspension, true)
	m.tick(30 * time.Minute)
	if gone, lapsed := p.Settle(m.s); gone != 1 || lapsed != 1 || len(p.Over(m.s).Entries()) != 2 {
		t.Errorf("%d gone, %d lapsed at the proposal's end", gone, lapsed)
	}
}

// A suspension acts unordered, and so does its lift, in whatever state of the two being ordered.
func TestSuspensionAndLiftAreHeard(t *testing.T) {
	for name, ordered := range map[string]bool{"heard": false, "ordered": true} {
		t.Run(name, func(t *testing.T) {
			m := suspending(t, 5)
			var p Provisional
			raw, id := m.suspend("alpha emergency")
			if ordered {
				m.ok(m.command(KindSuspension, raw))
			} else {
				m.heard(&p, raw)
			}
			peer := peerOf("beta/n1", 1)
			if p.Over(m.s).IsEligible(peer, m.at) || m.s.IsEligible(peer, m.at) == ordered {
				t.Error("not suspended, or not only here")
			}
			m.wantUnheard(&p, m.lift(id, "beta govern", "gamma govern"), attest.CodeThreshold, false)
			m.wantUnheard(&p, m.lift(id, "beta emergency", "gamma emergency", "delta emergency"), attest.CodeWrongSigner, false)
			m.heard(&p, m.lift(id, "beta govern", "gamma govern", "delta govern"))
			if !p.Over(m.s).IsEligible(peer, m.at) || m.s.IsEligible(peer, m.at) == ordered {
				t.Error("not lifted, or not only here")
			}
			if !ordered {
				m.ok(m.command(KindSuspension, raw))
				if gone, lapsed := p.Settle(m.s); gone != 1 || lapsed != 0 || !p.Over(m.s).IsEligible(peer, m.at) {
					t.Errorf("%d gone, %d lapsed: the lift must outlive that its suspension is ordered", gone, lapsed)
				}
			}
			m.ok(m.command(KindLift, m.lift(id, "beta govern", "gamma govern", "delta govern")))
			if gone, lapsed := p.Settle(m.s); gone != 1 || lapsed != 0 || !m.s.IsEligible(peer, m.at) {
				t.Errorf("%d gone, %d lapsed once the lift was ordered", gone, lapsed)
			}
		})
	}
}

// Nothing that lets in more is heard, nor what nobody signed, nor what is for others.
func TestOnlyNarrowingsAreHeard(t *testing.T) {
	m := suspending(t, 5)
	var p Provisional
	good := m.propose(remove("old"))
	for name, c := range map[string]struct {
		raw   []byte
		code  attest.Code
		later bool
	}{
		"a widening":            {m.approved(m.propose(add(entry(t, "third"))), 5), attest.CodeUnsupported, false},
		"a widening inside":     {m.approved(m.propose(remove("old"), add(entry(t, "third"))), 5), attest.CodeUnsupported, false},
		"an entry nobody knows": {m.approved(m.propose(remove("never")), 3), attest.CodeUnknownEntry, true},
		"a bad signature":       {spoiled(m.approved(good, 3)), attest.CodeWrongSigner, false},
		"by emergency keys":     {m.sign(m.payload(good), "alpha emergency", "beta emergency", "gamma emergency"), attest.CodeWrongSigner, false},
		"by one organisation":   {m.sign(m.payload(good), "alpha govern", "alpha govern 2"), attest.CodeThreshold, false},
		"a base to come":        {m.approved(m.propose(remove("old"), func(p *Proposal) { p.Base = 7 }), 3), attest.CodeBehind, true},
		"an expired one": {m.approved(m.propose(remove("old"), func(p *Proposal) {
			p.Created, p.Expires = m.at.Add(-time.Hour), m.at
		}), 3), attest.CodeProposalExpired, true},
		"another incarnation":     {m.approved(m.propose(remove("old"), func(p *Proposal) { p.Incarnation = 1 }), 3), attest.CodeWrongIncarnation, false},
		"a Credential":            {m.credential("beta/n2", 1), attest.CodeUnsupported, false},
		"a time sample":           {m.sample("beta/n1", 1), attest.CodeUnsupported, false},
		"no envelope":             {[]byte("{}"), attest.CodeMalformed, false},
		"nothing":                 {nil, attest.CodeMalformed, false},
		"a suspension by another": {must1(m.suspend("beta emergency")), attest.CodeWrongSigner, false},
		"a node nobody knows":     {must1(m.suspend("alpha emergency", onNode("beta/n9"))), attest.CodeUnknownNode, true},
	} {
		t.Run(name, func(t *testing.T) { m.t = t; m.wantUnheard(&p, c.raw, c.code, c.later) })
	}
	if len(p.All()) != 0 {
		t.Errorf("%d were kept", len(p.All()))
	}
}

// What one organisation can withhold by itself is bounded over what was ordered and what was
// heard together, and so is everything that is kept.
func TestHeardIsBounded(t *testing.T) {
	m := suspending(t, 5)
	var p Provisional
	for i := range MaxSuspensionsLive {
		raw, _ := m.suspend("alpha emergency", func(x *Suspension) { x.Nonce = strings.Repeat("0", 31) + string(rune('a'+i)) })
		if i == 0 {
			m.ok(m.command(KindSuspension, raw))
			continue
		}
		m.heard(&p, raw)
	}
	over, _ := m.suspend("alpha emergency", func(x *Suspension) { x.Nonce = strings.Repeat("f", 32) })
	m.wantUnheard(&p, over, attest.CodeLimit, true)
	for i := len(p.All()); i < MaxProvisional; i++ {
		m.log = append(m.log, Command{}) // another nonce
		m.heard(&p, m.approved(m.propose(remove("old")), 3))
	}
	m.log = append(m.log, Command{})
	m.wantUnheard(&p, m.approved(m.propose(remove("old")), 3), attest.CodeLimit, true)
}

// Two narrowings that together would leave no quorum do not both act.
func TestHeardTogetherKeepAQuorum(t *testing.T) {
	m := started(t, 5)
	m.attestAll(func(node string) string {
		if node == "alpha/n1" || node == "beta/n1" || node == "delta/n1" {
			return "new"
		}
		return "old"
	})
	var p Provisional
	m.heard(&p, m.approved(m.propose(remove("old")), 3))
	m.wantUnheard(&p, m.approved(m.propose(remove("new")), 3), attest.CodeQuorumLoss, true)
}

// A chain can be continued by its next steps alone, and its digest tells two chains apart.
func TestChainIsContinued(t *testing.T) {
	m := started(t, 4)
	m.ok(m.order(m.propose(remove("old")), 3))
	m.ok(m.order(m.propose(add(entry(t, "third"))), 3))
	chain := m.s.PolicyChain()
	short, err := ReplayPolicy(m.g, chain[:3])
	if err != nil {
		t.Fatal(err)
	}
	long, err := short.Append(m.s.StepsFrom(3, 1)) // one at least, whatever the limit
	if err != nil {
		t.Fatal(err)
	}
	if long.Epoch() != 2 || long.Base() != 1 || short.Epoch() != 1 || short.Steps() != 3 {
		t.Errorf("epochs %d and %d", long.Epoch(), short.Epoch())
	}
	if !m.s.BeginsWith(short) || !long.BeginsWith(m.s.PolicyState) || short.BeginsWith(long) {
		t.Error("which chain continues which")
	}
	for n := range 6 {
		a, okA := m.s.ChainDigest(n)
		b, okB := long.ChainDigest(n)
		if okA != (n <= 4) || okA != okB || a != b || n > 0 && n <= 4 && a == [32]byte{} {
			t.Errorf("digest of %d steps: %x %v and %x %v", n, a, okA, b, okB)
		}
	}
	other := started(t, 4)
	other.ok(other.order(other.propose(remove("new"), func(p *Proposal) { p.ConfirmQuorumLoss = true }), 3))
	if other.s.BeginsWith(short) {
		t.Error("another history continues this one")
	}
	if got := m.s.StepsFrom(2, len(chain[2])); len(got) != 1 || !bytes.Equal(got[0], chain[2]) {
		t.Errorf("%d steps within a limit of one", len(got))
	}
	if len(m.s.StepsFrom(4, 1<<20)) != 0 || len(m.s.StepsFrom(-1, 1<<20)) != 0 {
		t.Error("steps where there are none")
	}
	if _, err := short.Append([][]byte{chain[2]}); err == nil || ReasonOf(err).Code != attest.CodeReplayed {
		t.Errorf("a step twice: %v", err)
	}
	if _, err := short.Append([][]byte{spoiled(chain[3])}); err == nil {
		t.Error("a step that nobody signed was believed")
	}
	if empty, err := ReplayPolicy(m.g, nil); err != nil || empty.Steps() != 0 {
		t.Errorf("no steps: %v", err)
	} else if _, err := empty.Append(chain[:1]); err == nil {
		t.Error("genesis without Bootstrap was believed")
	}
}
