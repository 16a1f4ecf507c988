package consensus

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// seating returns a started mesh of n organisations, all of whose seats run "new", of a
// version that lets seats return.
func seating(t testing.TB, n int) *mesh {
	t.Helper()
	g := genesisOf(t, n)
	g.FSMVersion = fsmGovernance
	m := newMeshOf(t, g)
	m.start()
	m.attestAll(allNew)
	return m
}

// reboots orders the n-th boot of a node and edges of two other organisations on it.
func (m *mesh) reboots(node string, n int) {
	m.t.Helper()
	m.ok(m.command(KindCredential, m.credential(node, n)))
	m.affirm(node)
}

func (m *mesh) affirm(node string) {
	m.t.Helper()
	for _, seat := range m.s.Seats() {
		if seat.Ref.String() != node && !strings.HasPrefix(node, string(seat.Ref.Org)+"/") {
			m.ok(m.command(KindResults, m.result(seat.Ref.String(), node, "new", func(r *AttestationResult) { r.Verifier.Peer = seat.Peer })))
		}
	}
}

func (m *mesh) readyOf(node string, n int, change ...func(*Ready)) Ready {
	m.t.Helper()
	r := Ready{MeshID: m.g.MeshID(), Node: must(identity.ParseNodeRef(node)), Peer: peerOf(node, n), Seq: 77, Digest: strings.Repeat("cd", 32)}
	for _, f := range change {
		f(&r)
	}
	return r
}

// ready returns a Ready signed by its node and the boots named as "beta/n1 2".
func (m *mesh) ready(r Ready, own ed25519.PrivateKey, by ...string) []byte {
	m.t.Helper()
	payload := must(r.Payload())
	parts := [][]byte{must(ConfirmReady(own, payload))}
	for _, b := range by {
		node, n, _ := strings.Cut(b, " ")
		parts = append(parts, must(ConfirmReady(boot(node, int(n[0]-'0')), payload)))
	}
	return must(Merge(parts...))
}

// A seat that was started anew is nobody's until others confirm it; then it is a seat like any
// other, under its new identity.
func TestSeatReturns(t *testing.T) {
	m := seating(t, 5)
	if len(m.s.Vacant()) != 0 || len(m.s.Candidates()) != 0 {
		t.Fatalf("vacant %v, candidates %s", m.s.Vacant(), names(m.s.Candidates()))
	}
	m.ok(m.command(KindCredential, m.credential("beta/n1", 2)))
	if _, held := m.s.Holder("beta"); held || fmt.Sprint(m.s.Vacant()) != "[beta]" || len(m.s.Candidates()) != 0 || !m.s.SeatExpected("beta") {
		t.Fatalf("vacant %v, candidates %s", m.s.Vacant(), names(m.s.Candidates()))
	}
	m.affirm("beta/n1")
	if names(m.s.Candidates()) != "beta/n1" || !m.s.IsCandidate(peerOf("beta/n1", 2)) || m.s.IsCandidate(peerOf("beta/n1", 1)) {
		t.Fatalf("candidates %s", names(m.s.Candidates()))
	}
	raw := m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1", "delta/n1 1")
	out := m.ok(m.command(KindReady, raw))
	if len(out.Leaves) != 2 || !bytes.Equal(out.Leaves[0], raw) || !out.SeatsChanged || out.EpochChanged {
		t.Fatalf("got %+v", out)
	}
	leaf, err := ParseMembership(out.Leaves[1])
	if err != nil || leaf.Change != ChangeSeatTaken || leaf.Peer != peerOf("beta/n1", 2) || leaf.Code != "" || leaf.Cause != "ready "+sha256Hex(raw) {
		t.Errorf("%+v %v", leaf, err)
	}
	if h, held := m.s.Holder("beta"); !held || h.Peer != peerOf("beta/n1", 2) || len(m.s.Seats()) != 5 || len(m.s.Vacant()) != 0 || m.s.StrongQuorum() != 4 {
		t.Errorf("%s hold seats", names(m.s.Seats()))
	}
	m.refused(m.command(KindReady, raw), attest.CodeSeatHeld)
	// It can be started anew again, and its time samples count.
	m.reboots("beta/n1", 3)
	m.ok(m.command(KindReady, m.ready(m.readyOf("beta/n1", 3), boot("beta/n1", 3), "alpha/n1 1", "gamma/n1 1", "delta/n1 1")))
	m.refused(m.command(KindReady, raw), attest.CodeRetired)
}

// All seats of a mesh are replaced, one after the other, each confirmed by those there are.
func TestAllSeatsReturn(t *testing.T) {
	for _, n := range []int{2, 3, 4, 5, 7} {
		m := seating(t, n)
		for i, org := range m.orgs() {
			node := string(org) + "/n1"
			m.reboots(node, 2)
			var by []string
			for j, other := range m.orgs() {
				if other == org {
					continue
				}
				boot := 1
				if j < i {
					boot = 2
				}
				if len(by) < m.s.ReadyQuorum() {
					by = append(by, fmt.Sprintf("%s/n1 %d", other, boot))
				}
			}
			m.refused(m.command(KindReady, m.ready(m.readyOf(node, 2), boot(node, 2), by[1:]...)), attest.CodeThreshold)
			m.ok(m.command(KindReady, m.ready(m.readyOf(node, 2), boot(node, 2), by...)))
			if len(m.s.Seats()) != n {
				t.Fatalf("n %d: %d seats after %s", n, len(m.s.Seats()), node)
			}
		}
	}
}

func TestReadyAttacks(t *testing.T) {
	const node = "beta/n1"
	three := []string{"alpha/n1 1", "gamma/n1 1", "delta/n1 1"}
	for name, tc := range map[string]struct {
		code attest.Code
		make func(m *mesh) []byte
	}{
		"not by itself": {attest.CodeThreshold, func(m *mesh) []byte {
			return m.ready(m.readyOf(node, 2), boot("alpha/n1", 1), three...)
		}},
		"by its older boot": {attest.CodeWrongSigner, func(m *mesh) []byte { return m.ready(m.readyOf(node, 2), boot(node, 1), three...) }},
		"two of three":      {attest.CodeThreshold, func(m *mesh) []byte { return m.ready(m.readyOf(node, 2), boot(node, 2), three[:2]...) }},
		"by a node without a seat": {attest.CodeWrongSigner, func(m *mesh) []byte {
			m.ok(m.command(KindCredential, m.credential("gamma/n2", 1)))
			return m.ready(m.readyOf(node, 2), boot(node, 2), "alpha/n1 1", "gamma/n2 1", "delta/n1 1")
		}},
		"by a seat that was started anew": {attest.CodeWrongSigner, func(m *mesh) []byte {
			m.reboots("delta/n1", 2)
			return m.ready(m.readyOf(node, 2), boot(node, 2), three...)
		}},
		"for the older boot": {attest.CodeRetired, func(m *mesh) []byte { return m.ready(m.readyOf(node, 1), boot(node, 1), three...) }},
		"for nobody":         {attest.CodeUnknownNode, func(m *mesh) []byte { return m.ready(m.readyOf("beta/n3", 1), boot("beta/n3", 1), three...) }},
		"under another name": {attest.CodeWrongPeer, func(m *mesh) []byte {
			return m.ready(m.readyOf(node, 2, func(r *Ready) { r.Node.Org = "gamma" }), boot(node, 2), three...)
		}},
		"for a seat that is held": {attest.CodeSeatHeld, func(m *mesh) []byte {
			m.ok(m.command(KindCredential, m.credential("gamma/n2", 1)))
			m.affirm("gamma/n2")
			return m.ready(m.readyOf("gamma/n2", 1), boot("gamma/n2", 1), three...)
		}},
		"without the role": {attest.CodeNotSeat, func(m *mesh) []byte {
			m.ok(m.command(KindCredential, m.credential("beta/n2", 1, func(c *Credential) { c.Roles = []string{RoleMember} })))
			m.affirm("beta/n2")
			return m.ready(m.readyOf("beta/n2", 1), boot("beta/n2", 1), three...)
		}},
		"unmeasured": {attest.CodeNotReady, func(m *mesh) []byte {
			m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
			return m.ready(m.readyOf("beta/n2", 1), boot("beta/n2", 1), three...)
		}},
		"drained": {attest.CodeDrained, func(m *mesh) []byte {
			m.ok(m.command(KindDrain, m.drain(node, 2)))
			return m.ready(m.readyOf(node, 2), boot(node, 2), three...)
		}},
		"other mesh": {attest.CodeWrongMesh, func(m *mesh) []byte {
			return m.ready(m.readyOf(node, 2, func(r *Ready) { r.MeshID[0]++ }), boot(node, 2), three...)
		}},
		"other incarnation": {attest.CodeWrongIncarnation, func(m *mesh) []byte {
			return m.ready(m.readyOf(node, 2, func(r *Ready) { r.Incarnation = 1 }), boot(node, 2), three...)
		}},
		"a credential":  {attest.CodeMalformed, func(m *mesh) []byte { return m.credential(node, 2) }},
		"nothing":       {attest.CodeMalformed, func(*mesh) []byte { return []byte("{}") }},
		"far too large": {attest.CodeMalformed, func(*mesh) []byte { return bytes.Repeat([]byte(" "), MaxReady+1) }},
	} {
		t.Run(name, func(t *testing.T) {
			m := seating(t, 5)
			m.reboots(node, 2)
			raw := tc.make(m)
			m.refused(m.command(KindReady, raw), tc.code)
			if _, held := m.s.Holder("beta"); held {
				t.Error("the seat is taken")
			}
		})
	}
}

// A signature over one payload is none over another.
func TestReadyIsWhatWasConfirmed(t *testing.T) {
	m := seating(t, 3)
	m.reboots("beta/n1", 2)
	good, other := m.readyOf("beta/n1", 2), m.readyOf("beta/n1", 2, func(r *Ready) { r.Seq++ })
	env := must(envelope.Parse(m.ready(good, boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1")))
	env.Payload = must(other.Payload())
	m.refused(m.command(KindReady, env.Marshal()), attest.CodeWrongSigner)
	if _, err := Merge(m.ready(good, boot("beta/n1", 2)), m.ready(other, boot("alpha/n1", 1))); err == nil {
		t.Error("confirmations of two states were put together")
	}
}

// Who was voted out does not come back into the configuration under the same identity, though
// its release is allowed again; another node of its organisation may take the seat, or its own
// next boot.
func TestEvictedSeatNeedsAnotherBoot(t *testing.T) {
	m := seating(t, 5)
	m.ok(m.command(KindResults, m.result("alpha/n1", "beta/n1", "old", secondLook), m.result("gamma/n1", "beta/n1", "old", secondLook),
		m.result("delta/n1", "beta/n1", "old", secondLook)))
	out := m.ok(m.order(m.propose(remove("old")), 3))
	if !out.SeatsChanged || fmt.Sprint(m.s.Vacant()) != "[beta]" {
		t.Fatalf("%+v, vacant %v", out, m.s.Vacant())
	}
	m.ok(m.order(m.propose(readmit(entry(t, "old"))), 5))
	three := []string{"alpha/n1 1", "gamma/n1 1", "delta/n1 1"}
	m.refused(m.command(KindReady, m.ready(m.readyOf("beta/n1", 1), boot("beta/n1", 1), three...)), attest.CodeSeatHeld)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	m.affirm("beta/n2")
	m.ok(m.command(KindReady, m.ready(m.readyOf("beta/n2", 1), boot("beta/n2", 1), three...)))
	m.reboots("beta/n1", 2)
	m.refused(m.command(KindReady, m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2), three...)), attest.CodeSeatHeld)
}

func secondLook(r *AttestationResult) { r.At = r.At.Add(1e9); r.Expires = r.Expires.Add(1e9) }

// Meshes of older versions order none of it and have the digests that they had.
func TestSeatsOfOlderVersions(t *testing.T) {
	g := genesisOf(t, 3)
	g.FSMVersion = fsmGovernance - 1
	m := newMeshOf(t, g)
	m.start()
	m.attestAll(allNew)
	m.reboots("beta/n1", 2)
	if len(m.s.Candidates()) != 0 || m.s.IsCandidate(peerOf("beta/n1", 2)) || m.s.SeatExpected("beta") || g.SeatsReturn() {
		t.Error("a mesh of an older version has candidates")
	}
	m.refused(m.command(KindReady, m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1")), attest.CodeWrongVersion)
	m.refused(m.command(KindDrain, m.drain("alpha/n1", 1)), attest.CodeWrongVersion)
	m.refused(m.command(KindRetirement, m.retirement("alpha/n1", 1, "alpha govern")), attest.CodeWrongVersion)
}

// The only seat that is held is not lost to a second start of its node: whoever could order that
// would still be there.
func TestOnlySeatIsNotReplaced(t *testing.T) {
	m := seating(t, 2)
	m.ok(m.command(KindDrain, m.drain("beta/n1", 1)))
	m.refused(m.command(KindCredential, m.credential("alpha/n1", 2)), attest.CodeQuorumLoss)
	m.reboots("beta/n1", 2)
	m.ok(m.command(KindReady, m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1")))
	m.ok(m.command(KindCredential, m.credential("alpha/n1", 2)))
}
