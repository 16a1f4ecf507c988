package consensus

import (
	"bytes"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

func (m *mesh) drain(node string, n int, change ...func(*Drain)) []byte {
	m.t.Helper()
	d := Drain{MeshID: m.g.MeshID(), Node: must(identity.ParseNodeRef(node)), Peer: peerOf(node, n)}
	for _, f := range change {
		f(&d)
	}
	return must(SignDrain(boot(node, n), d))
}

func (m *mesh) retirement(node string, n int, label string, change ...func(*Retirement)) []byte {
	m.t.Helper()
	r := Retirement{MeshID: m.g.MeshID(), Node: must(identity.ParseNodeRef(node)), Peer: peerOf(node, n)}
	for _, f := range change {
		f(&r)
	}
	return must(SignRetirement(signer(m.t, label), r))
}

// A drained node keeps its membership until it is stopped and leaves its seat vacant.
func TestDrain(t *testing.T) {
	m := seating(t, 5)
	raw := m.drain("beta/n1", 1)
	out := m.ok(m.command(KindDrain, raw))
	if len(out.Leaves) != 2 || !bytes.Equal(out.Leaves[0], raw) || !out.SeatsChanged || len(out.Retired) != 0 {
		t.Fatalf("got %+v", out)
	}
	leaf, err := ParseMembership(out.Leaves[1])
	if err != nil || leaf.Change != ChangeSeatRemoved || leaf.Code != attest.CodeDrained || leaf.Cause != "drain "+sha256Hex(raw) {
		t.Errorf("%+v %v", leaf, err)
	}
	if _, held := m.s.Holder("beta"); held || !m.s.Drained(peerOf("beta/n1", 1)) || m.s.Drained(peerOf("alpha/n1", 1)) || m.s.SeatExpected("beta") {
		t.Error("it holds its seat, or is not drained")
	}
	if n, _ := m.s.Node(peerOf("beta/n1", 1)); !n.Drained || !m.s.IsEligible(n.Peer, m.at) {
		t.Errorf("%+v: the round it is in must be able to end", n)
	}
	m.refused(m.command(KindDrain, raw), attest.CodeReplayed)
	// Its next boot is a node like any other.
	m.reboots("beta/n1", 2)
	if m.s.Drained(peerOf("beta/n1", 2)) || names(m.s.Candidates()) != "beta/n1" {
		t.Error("the next boot inherits the drain")
	}
	// A node without a seat leaves no seat.
	m.ok(m.command(KindCredential, m.credential("alpha/n2", 1)))
	if out := m.ok(m.command(KindDrain, m.drain("alpha/n2", 1))); out.SeatsChanged || len(out.Leaves) != 1 {
		t.Errorf("got %+v", out)
	}
}

// A drain must leave the others able to go on; the only seat stays.
func TestDrainKeepsQuorum(t *testing.T) {
	for n, allowed := range map[int]int{2: 1, 3: 1, 4: 1, 5: 2, 7: 3} {
		m := seating(t, n)
		for i, org := range m.orgs() {
			out := m.command(KindDrain, m.drain(string(org)+"/n1", 1))
			if i < allowed {
				m.ok(out)
			} else {
				m.refused(out, attest.CodeQuorumLoss)
			}
		}
		if len(m.s.Seats()) != n-allowed {
			t.Errorf("n %d: %d seats are left", n, len(m.s.Seats()))
		}
	}
}

func TestDrainAttacks(t *testing.T) {
	m := seating(t, 3)
	for name, tc := range map[string]struct {
		code attest.Code
		raw  []byte
	}{
		"by another node":   {attest.CodeWrongSigner, must(SignDrain(boot("alpha/n1", 1), Drain{MeshID: m.g.MeshID(), Node: must(identity.ParseNodeRef("beta/n1")), Peer: peerOf("beta/n1", 1)}))},
		"of nobody":         {attest.CodeUnknownNode, m.drain("beta/n4", 1)},
		"of another boot":   {attest.CodeWrongPeer, m.drain("beta/n1", 2)},
		"other mesh":        {attest.CodeWrongMesh, m.drain("beta/n1", 1, func(d *Drain) { d.MeshID[0]++ })},
		"other incarnation": {attest.CodeWrongIncarnation, m.drain("beta/n1", 1, func(d *Drain) { d.Incarnation++ })},
		"a retirement":      {attest.CodeMalformed, m.retirement("beta/n1", 1, "beta govern")},
		"nothing":           {attest.CodeMalformed, []byte("{}")},
		"far too large":     {attest.CodeMalformed, bytes.Repeat([]byte(" "), MaxReady+1)},
	} {
		t.Run(name, func(t *testing.T) { m.refused(m.command(KindDrain, tc.raw), tc.code) })
	}
}

// An organisation voids one boot of its node, for ever; a later boot is another matter.
func TestRetirement(t *testing.T) {
	for _, label := range []string{"beta govern", "beta enroll"} {
		m := seating(t, 5)
		raw := m.retirement("beta/n1", 1, label)
		out := m.ok(m.command(KindRetirement, raw))
		if len(out.Leaves) != 2 || !bytes.Equal(out.Leaves[0], raw) || !out.SeatsChanged || len(out.Retired) != 1 || out.Retired[0] != peerOf("beta/n1", 1) {
			t.Fatalf("got %+v", out)
		}
		if leaf, err := ParseMembership(out.Leaves[1]); err != nil || leaf.Code != attest.CodeRetired || leaf.Cause != "retirement "+sha256Hex(raw) {
			t.Errorf("%+v %v", leaf, err)
		}
		if _, known := m.s.Node(peerOf("beta/n1", 1)); known || !m.s.Retired(peerOf("beta/n1", 1)) || len(m.s.Edges(peerOf("beta/n1", 1))) != 0 {
			t.Error("it is a node of the mesh")
		}
		m.refused(m.command(KindRetirement, raw), attest.CodeReplayed)
		m.refused(m.command(KindCredential, m.credential("beta/n1", 1, later24)), attest.CodeRetired)
		m.refused(m.command(KindCredential, m.credential("beta/n1", 2, func(c *Credential) { c.BootSeq = 1001 })), attest.CodeRetired)
		m.refused(m.command(KindResults, m.result("alpha/n1", "beta/n1", "new")), attest.CodeNoCredential)
		m.refused(m.command(KindReady, m.ready(m.readyOf("beta/n1", 1), boot("beta/n1", 1), "alpha/n1 1", "gamma/n1 1", "delta/n1 1")), attest.CodeRetired)
		m.reboots("beta/n1", 2)
		m.ok(m.command(KindReady, m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1", "delta/n1 1")))
	}
}

func later24(c *Credential) { c.Issued = c.Issued.Add(1e9); c.Expires = c.Expires.Add(1e9) }

// Another node of the organisation takes the seat of one whose machine is lost.
func TestRetiredHolderIsReplaced(t *testing.T) {
	m := seating(t, 3)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	m.affirm("beta/n2")
	ready := m.ready(m.readyOf("beta/n2", 1), boot("beta/n2", 1), "alpha/n1 1", "gamma/n1 1")
	m.refused(m.command(KindReady, ready), attest.CodeSeatHeld)
	m.ok(m.command(KindRetirement, m.retirement("beta/n1", 1, "beta govern")))
	m.ok(m.command(KindReady, ready))
	if names(m.s.Seats()) != "alpha/n1 beta/n2 gamma/n1" {
		t.Errorf("seats %s", names(m.s.Seats()))
	}
}

// A Credential that is in no log yet can be voided before it gets there.
func TestRetirementBeforeCredential(t *testing.T) {
	m := seating(t, 3)
	m.ok(m.command(KindRetirement, m.retirement("beta/n2", 1, "beta enroll")))
	m.refused(m.command(KindCredential, m.credential("beta/n2", 1)), attest.CodeRetired)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 2)))
}

func TestRetirementAttacks(t *testing.T) {
	m := seating(t, 3)
	for name, tc := range map[string]struct {
		code attest.Code
		raw  []byte
	}{
		"by another organisation":        {attest.CodeWrongSigner, m.retirement("beta/n1", 1, "alpha govern")},
		"by an emergency key":            {attest.CodeWrongSigner, m.retirement("beta/n1", 1, "beta emergency")},
		"by the node":                    {attest.CodeWrongSigner, m.retirement("beta/n1", 1, "beta/n1 boot 1")},
		"of another organisation's peer": {attest.CodeWrongPeer, m.retirement("beta/n1", 1, "beta govern", func(r *Retirement) { r.Peer = peerOf("alpha/n1", 1) })},
		"other mesh":                     {attest.CodeWrongMesh, m.retirement("beta/n1", 1, "beta govern", func(r *Retirement) { r.MeshID[0]++ })},
		"other incarnation":              {attest.CodeWrongIncarnation, m.retirement("beta/n1", 1, "beta govern", func(r *Retirement) { r.Incarnation++ })},
		"a drain":                        {attest.CodeMalformed, m.drain("beta/n1", 1)},
	} {
		t.Run(name, func(t *testing.T) { m.refused(m.command(KindRetirement, tc.raw), tc.code) })
	}
	m.ok(m.command(KindRetirement, m.retirement("beta/n1", 1, "beta govern")))
	m.ok(m.command(KindRetirement, m.retirement("gamma/n1", 1, "gamma govern")))
	m.refused(m.command(KindRetirement, m.retirement("alpha/n1", 1, "alpha govern")), attest.CodeQuorumLoss) // the only seat
}

// What decides about seats is in the digest.
func TestSeatsAreInTheDigest(t *testing.T) {
	digests := map[[32]byte]string{}
	for name, do := range map[string]func(m *mesh){
		"nothing": func(*mesh) {},
		"drained": func(m *mesh) {
			m.s.nodes[must(identity.ParseNodeRef("beta/n2"))].drained = true
		},
		"voided":       func(m *mesh) { m.s.voided[must(identity.ParseNodeRef("beta/n9"))] = 5 },
		"voided later": func(m *mesh) { m.s.voided[must(identity.ParseNodeRef("beta/n9"))] = 6 },
		"seat":         func(m *mesh) { m.s.nodes[must(identity.ParseNodeRef("beta/n2"))].seat = true },
	} {
		m := seating(t, 3)
		m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
		do(m)
		if other, twice := digests[m.s.Digest()]; twice {
			t.Errorf("%s and %s have one digest", name, other)
		}
		digests[m.s.Digest()] = name
	}
}
