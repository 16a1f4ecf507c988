package audit

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/transparency"
)

func (m *mesh) impact(target string, disclose func(*consensus.Genesis, *consensus.AttestationResult) Disclosed) (Report, Impact) {
	m.t.Helper()
	q, err := ParseTarget(target)
	if strings.Contains(target, " ") {
		q, err = ParseAssumption(target)
	}
	m.check(err)
	r, err := transparency.OpenReader(m.publish(seats...))
	m.check(err)
	defer r.Close()
	report, out, err := ImpactOf(m.t.Context(), r, Options{Genesis: m.Genesis, At: time.Now().Add(4 * time.Hour)}, q, disclose)
	m.check(err)
	return report, out
}

// by are the participants of a round.
func (m *mesh) by(nodes ...string) func(*federated.Round) {
	return func(r *federated.Round) {
		for i, node := range nodes {
			r.Accepted[i].Node, r.Accepted[i].Peer = audittest.Ref(node), audittest.PeerOf(node)
		}
		r.Accepted = r.Accepted[:len(nodes)]
	}
}

func rounds(i Impact) string {
	var out []string
	for _, r := range i.Rounds {
		out = append(out, fmt.Sprintf("%d:%s:%v", r.Round, r.How, r.Nodes))
	}
	return strings.Join(out, " ")
}

// touched is a log in which a release "next" came, took part in one round and left.
func touched(t *testing.T) *mesh {
	t.Helper()
	m := started(t) // leaves 0 to 7
	m.Force(m.Round(0))
	m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta")) // 9
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))                  // 10
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "next"), m.Result("gamma/n1", "beta/n2", "next"))
	m.Force(m.Round(1))                              // 13
	m.Force(m.Round(2, m.by("alpha/n1", "beta/n2"))) // 14
	m.Force(m.Round(3))                              // 15
	other := func(r *federated.Round) { r.Job = "8899aabbccddeeff" }
	m.Force(m.Round(0, other)) // 16
	return m
}

func TestImpactOfEntry(t *testing.T) {
	m := touched(t)
	next := m.Entry("next")
	for _, target := range []string{next.ID, "entry:" + next.ID, next.Measurement} {
		report, got := m.impact(target, nil)
		if !report.OK {
			t.Fatal(report.Findings)
		}
		if len(got.Admissions) != 2 || got.Admissions[0].Leaf != 11 || got.Admissions[1].Leaf != 12 || fmt.Sprint(got.Nodes) != "[beta/n2]" || got.Undecided != 0 {
			t.Errorf("%s: %+v", target, got)
		}
		if want := "2:took_part:[beta/n2] 3:inherits:[]"; rounds(got) != want {
			t.Errorf("%s: rounds %s, want %s", target, rounds(got), want)
		}
		// The log was clean up to the first admission; its root is that of a log of that size.
		before := *m
		before.Leaves = m.Leaves[:11]
		if clean := before.audit(before.publish(seats...)); got.Clean.Size != 11 || got.Clean.Root != clean.Root {
			t.Errorf("clean at %d %s, want 11 %s", got.Clean.Size, got.Clean.Root, clean.Root)
		}
		if len(got.Models) != 2 || got.Models[0].Job != "0011223344556677" || got.Models[0].Round != 1 || got.Models[0].Leaf != 13 || got.Models[1].Leaf != 16 {
			t.Errorf("clean models %+v", got.Models)
		}
	}
	// Nothing relied on what nobody ran: all of the log is clean.
	report, got := m.impact(m.Entry("old").ID, nil)
	if len(got.Admissions) != 0 || len(got.Rounds) != 0 || got.Clean.Size != report.Entries || got.Clean.Root != report.Root {
		t.Errorf("got %+v", got)
	}
}

// A node that only the word of touched verifiers let in is no cleaner than they.
func TestImpactThroughVerifiers(t *testing.T) {
	m := touched(t)
	later := func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) }
	m.Command(consensus.KindResults, m.Result("beta/n1", "alpha/n1", "next", later), m.Result("gamma/n1", "alpha/n1", "next", later))
	m.Force(m.Round(1, func(r *federated.Round) { r.Job = "8899aabbccddeeff" }, m.by("beta/n1")))
	_, got := m.impact(m.Entry("next").ID, nil)
	last := got.Rounds[len(got.Rounds)-1]
	// alpha/n1 runs it: of the two organisations that beta/n1 and gamma/n1 need, one is left.
	if last.How != HowVouched || fmt.Sprint(last.Nodes) != "[gamma/n1 beta/n1]" {
		t.Errorf("got %+v", last)
	}
}

func TestImpactOfCode(t *testing.T) {
	m := touched(t)
	bad := func(r *consensus.AttestationResult) {
		r.Verdict, r.Reference, r.Codes, r.At = attest.VerdictContraindicated, "", []attest.Code{attest.CodeTCBBelowFloor}, r.At.Add(time.Second)
	}
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "next", bad))
	_, got := m.impact("tcb_below_floor", nil)
	if got.Refusals != 1 || len(got.Admissions) != 0 || got.Undecided != 0 {
		t.Errorf("got %+v", got)
	}
}

// Chips and vendors' advisories are in evidence alone: what was not disclosed is said.
func TestImpactOfEvidence(t *testing.T) {
	m := started(t)
	chip, hidden := strings.Repeat("c1", 64), consensus.EvidenceCommitment([32]byte{9}, []byte("hidden"))
	later := func(evidence string) func(*consensus.AttestationResult) {
		return func(r *consensus.AttestationResult) {
			r.Evidence = evidence
		}
	}
	m.Tick(40 * time.Minute)
	mark := func(s string) string { return consensus.EvidenceCommitment([32]byte{2}, []byte(s)) }
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", later(mark("on the chip"))), m.Result("gamma/n1", "beta/n1", "new", later(mark("elsewhere"))),
		m.Result("beta/n1", "gamma/n1", "new", later(hidden)), m.Result("alpha/n1", "gamma/n1", "new", later(mark("forged"))))
	disclose := func(_ *consensus.Genesis, r *consensus.AttestationResult) Disclosed {
		switch r.Evidence {
		case mark("on the chip"):
			return Disclosed{Given: true, Claims: attest.Claims{HardwareID: chip, SEVSNP: &attest.SEVSNPClaims{Product: "Milan"}}}
		case mark("elsewhere"):
			return Disclosed{Given: true, Claims: attest.Claims{HardwareID: "c2"}}
		case mark("forged"):
			return Disclosed{Given: true, Err: errors.New("not genuine")}
		}
		return Disclosed{}
	}
	_, got := m.impact("chip:"+chip, disclose)
	// Of ten affirming results two are decided: the six of the start, the hidden and the forged one are not.
	if len(got.Admissions) != 1 || got.Admissions[0].Evidence != mark("on the chip") || got.Undecided != 8 || len(got.Unread) != 1 || !strings.Contains(got.Unread[0], "not genuine") {
		t.Errorf("got %+v", got)
	}
	if _, got = m.impact(chip, nil); len(got.Admissions) != 0 || got.Undecided != 10 {
		t.Errorf("without evidence: %+v", got)
	}
	// Advisories are Intel's: of a mesh without TDX there is nothing to decide.
	if _, got = m.impact("INTEL-SA-00837", nil); len(got.Admissions) != 0 || got.Undecided != 0 {
		t.Errorf("advisory: %+v", got)
	}
	if _, got = m.impact("Milan broken", disclose); len(got.Admissions) != 1 || got.Undecided != 8 {
		t.Errorf("product line: %+v", got)
	}
	// A kind of evidence is public. What had ended before the date is not touched.
	if _, got = m.impact("sim broken", nil); len(got.Admissions) != 10 || got.Undecided != 0 || got.Clean.Size != 2 {
		t.Errorf("kind: %d admissions, clean at %d", len(got.Admissions), got.Clean.Size)
	}
	since := "sim broken since " + m.At.Add(30*time.Minute).Format(time.RFC3339)
	if _, got = m.impact(since, nil); len(got.Admissions) != 4 || got.Clean.Size != 8 {
		t.Errorf("%s: %d admissions, clean at %d", since, len(got.Admissions), got.Clean.Size)
	}
}

func TestParseTarget(t *testing.T) {
	for s, want := range map[string]string{
		"0011223344556677": TargetEntry, strings.Repeat("ab", 48): TargetMeasurement, strings.Repeat("ab", 64): TargetChip, strings.Repeat("ab", 16): TargetChip,
		"chip:0011223344556677": TargetChip, "INTEL-SA-00837": TargetAdvisory, "tcb_below_floor": TargetAdvisory, "revoked": TargetAdvisory, "advisory:code_of_tomorrow": TargetAdvisory, "measurement:" + strings.Repeat("ab", 64): TargetMeasurement,
		"": "", "entry:zz": "", "king:00": "", "INTEL": "", "revokd": "", "001122334455667": "", "0011223344556677x": "", "entry:00": "", "advisory:INTEL-SA-": "", strings.Repeat("ab", 65): "",
	} {
		if q, err := ParseTarget(s); q.Target != want || (err == nil) != (want != "") {
			t.Errorf("%q: %+v, %v", s, q, err)
		}
	}
	for s, want := range map[string]string{
		"Milan broken since 2026-03-01": "Milan 2026-03-01T00:00:00Z", "tdx broken": "tdx 0001-01-01T00:00:00Z", "00606a000000 broken since 2026-03-01T12:00:00Z": "00606a000000 2026-03-01T12:00:00Z",
		"Milan": "", "Milan broken since": "", "Milan broken since yesterday": "", "Mi lan broken": "", "broken": "",
	} {
		q, err := ParseAssumption(s)
		if got := q.Value + " " + q.Since.Format(time.RFC3339); err == nil && got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %+v, %v", s, q, err)
		}
	}
}
