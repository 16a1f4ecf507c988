package consensus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// A change of the constitution is predicted as it happens.
func TestConstitutionDryRun(t *testing.T) {
	for name, tc := range map[string]struct {
		change  func(*Proposal)
		signed  []string
		gone    string // "node code", in order
		reenrol string
		lost    string
	}{
		"an organisation leaves": {removeOrg("beta"), by("alpha", "gamma", "delta", "epsilon"),
			"beta/n1 organisation_removed, beta/n2 organisation_removed", "[]", "[beta/n1]"},
		"an enroll key": {rotate("beta enroll", "beta enroll 9"), by("alpha", "gamma", "delta", "epsilon"), "", "[beta/n1 beta/n2]", "[]"},
		"its own key":   {rotate("beta enroll", "beta enroll 9"), by("alpha", "beta", "gamma"), "", "[beta/n1 beta/n2]", "[]"},
		"limits":        {setLimits(Limits{Nodes: 9}), by("alpha", "gamma", "delta", "epsilon"), "", "[]", "[]"},
	} {
		t.Run(name, func(t *testing.T) {
			m := governing(t, 5)
			m.attestAll(allNew)
			m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
			m.ok(m.command(KindResults, m.result("alpha/n1", "beta/n2", "new"), m.result("gamma/n1", "beta/n2", "new")))
			raw := m.sign(m.payload(m.propose(tc.change)), tc.signed...)
			p := m.s.DryRun(raw)
			if p.AsIs != nil || p.Signatures.Missing != 0 || p.Signatures.Want > len(tc.signed) || p.Class != ClassConstitution {
				t.Errorf("predicted %+v, %v", p.Signatures, p.AsIs)
			}
			if short := m.s.DryRun(m.sign(m.payload(m.propose(tc.change)), tc.signed[1:]...)); short.AsIs == nil || short.Signatures.Missing == 0 {
				t.Errorf("one signature fewer: %+v, %v", short.Signatures, short.AsIs)
			}
			var gone []string
			var peers []identity.PeerID
			for _, d := range p.Departures {
				gone, peers = append(gone, fmt.Sprint(d.Node, " ", d.Code)), append(peers, d.Peer)
			}
			if strings.Join(gone, ", ") != tc.gone || fmt.Sprint(p.Reenrol) != tc.reenrol || fmt.Sprint(p.Seats.Lost) != tc.lost {
				t.Errorf("predicted %s; enrol anew %v; lost %v", gone, p.Reenrol, p.Seats.Lost)
			}
			out := m.ok(m.command(KindProposal, raw))
			if fmt.Sprint(out.Evicted) != fmt.Sprint(peers) || m.s.Digest() != p.After().Digest() || len(m.s.Seats()) != p.Seats.After {
				t.Errorf("evicted %v, predicted %v", out.Evicted, peers)
			}
			for _, n := range m.s.Nodes() {
				if void := strings.Contains(tc.reenrol, n.Ref.String()); void == m.s.Stands(n.Peer) {
					t.Errorf("%s stands: %t", n.Ref, !void)
				}
			}
		})
	}
}

// A state with a removed organisation, void Credentials and used quotas comes back from its
// image.
func TestConstitutionImage(t *testing.T) {
	m := governing(t, 5, func(g *Genesis) {
		e := entry(t, "new")
		e.NotAfter = start.Add(90 * time.Minute)
		g.Policy.Entries = []Entry{must(NewEntry(Entry{Kind: e.Kind, Measurement: e.Measurement, Roles: e.Roles, NotAfter: e.NotAfter}))}
	})
	id := m.g.Policy.Entries[0].ID
	var batch [][]byte
	for _, v := range m.orgs() {
		for _, o := range m.orgs() {
			if v != o {
				batch = append(batch, m.result(string(v)+"/n1", string(o)+"/n1", "new", func(r *AttestationResult) { r.Reference = id }))
			}
		}
	}
	m.ok(m.command(KindResults, batch...))
	m.ok(m.vote(m.propose(rotate("alpha enroll", "alpha enroll 9")), by("alpha", "beta", "gamma")...))
	m.tick(time.Hour) // the entry of all seats has ended: they stay, since the mesh would stop
	if len(m.s.Spared()) != 5 {
		t.Fatalf("spared: %v", m.s.Spared())
	}
	m.ok(m.vote(m.propose(removeOrg("beta"), func(p *Proposal) { p.ConfirmQuorumLoss = true }), by("alpha", "gamma", "delta", "epsilon")...))
	restored, err := Restore(m.g, imageOf(t, m.s))
	if err != nil {
		t.Fatal(err)
	}
	if restored.Digest() != m.s.Digest() || restored.Stands(peerOf("alpha/n1", 1)) || restored.N() != 4 || len(restored.FormerKeys()) != 5 {
		t.Errorf("restored N %d, %d former keys", restored.N(), len(restored.FormerKeys()))
	}
}

// A boot under a void Credential takes no seat.
func TestVoidCredentialTakesNoSeat(t *testing.T) {
	m := seating(t, 5)
	m.reboots("beta/n1", 2)
	raw := m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1", "delta/n1 1")
	m.ok(m.vote(m.propose(rotate("beta enroll", "beta enroll 9")), by("alpha", "beta", "gamma")...))
	if len(m.s.Candidates()) != 0 {
		t.Errorf("candidates %s", names(m.s.Candidates()))
	}
	m.refused(m.command(KindReady, raw), attest.CodeNoCredential)
	m.ok(m.command(KindCredential, must(SignCredential(signer(t, "beta enroll 9"), m.credentialOf("beta/n1", 2)))))
	m.ok(m.command(KindReady, raw))
}

// An organisation that came in takes its seat by the same way as one whose node was started
// anew, and then counts in every quorum.
func TestNewOrganisationTakesItsSeat(t *testing.T) {
	m := seating(t, 3)
	m.ok(m.vote(m.propose(addOrg("zeta")), append(by("alpha", "beta"), "zeta govern")...))
	if fmt.Sprint(m.s.Vacant()) != "[zeta]" || m.s.N() != 4 || m.s.Quorum() != 2 {
		t.Fatalf("vacant %v, N %d, quorum %d", m.s.Vacant(), m.s.N(), m.s.Quorum())
	}
	m.ok(m.command(KindCredential, m.credential("zeta/n1", 1)))
	m.affirm("zeta/n1")
	m.ok(m.command(KindReady, m.ready(m.readyOf("zeta/n1", 1), boot("zeta/n1", 1), "alpha/n1 1", "beta/n1 1")))
	if len(m.s.Seats()) != 4 || m.s.Quorum() != 3 {
		t.Errorf("seats %s, quorum %d", names(m.s.Seats()), m.s.Quorum())
	}
	// It leaves again, and is out of the Raft configuration at once.
	out := m.ok(m.vote(m.propose(removeOrg("zeta")), by("alpha", "beta", "gamma")...))
	if len(m.s.Seats()) != 3 || !out.SeatsChanged || len(m.s.Vacant()) != 0 {
		t.Errorf("seats %s, vacant %v", names(m.s.Seats()), m.s.Vacant())
	}
}
