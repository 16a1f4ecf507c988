package consensus

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

func TestResultsAdmitted(t *testing.T) {
	m := started(t, 3)
	shift := func(d time.Duration) func(*AttestationResult) {
		return func(r *AttestationResult) { r.At = r.At.Add(d); r.Expires = r.Expires.Add(d) }
	}
	contra := func(r *AttestationResult) {
		r.Verdict, r.Reference, r.Codes = attest.VerdictContraindicated, "", []attest.Code{attest.CodeDebug}
	}
	first := m.result("alpha/n1", "beta/n1", "new")
	if out := m.ok(m.command(KindResults, first)); len(out.Leaves) != 1 || string(out.Leaves[0]) != string(first) {
		t.Fatalf("the leaf is not the envelope as ordered: %+v", out)
	}
	for _, tc := range []struct {
		name string
		code attest.Code
		raw  []byte
	}{
		{"the same again", attest.CodeReplayed, first},
		{"nothing new", attest.CodeDuplicate, m.result("alpha/n1", "beta/n1", "new", shift(time.Minute))},
		{"older", attest.CodeReplayed, m.result("alpha/n1", "beta/n1", "new", shift(-time.Minute), contra)},
		{"unknown verifier", attest.CodeNoCredential, m.result("alpha/n7", "beta/n1", "new")},
		{"unknown subject", attest.CodeNoCredential, m.result("alpha/n1", "beta/n7", "new")},
		{"other mesh", attest.CodeWrongMesh, m.result("alpha/n1", "gamma/n1", "new", func(r *AttestationResult) { r.MeshID[0]++ })},
		{"other incarnation", attest.CodeWrongIncarnation, m.result("alpha/n1", "gamma/n1", "new", func(r *AttestationResult) { r.Incarnation = 1 })},
		{"future epoch", attest.CodeBehind, m.result("alpha/n1", "gamma/n1", "new", func(r *AttestationResult) { r.Epoch = 9 })},
		{"another boot", attest.CodeRetired, m.result("alpha/n1", "gamma/n1", "new", func(r *AttestationResult) { r.Subject.Peer = peerOf("gamma/n1", 2) })},
		{"not allowed", attest.CodeMeasurementNotAllowed, m.result("alpha/n1", "gamma/n1", "x")},
		{"expired", attest.CodeStale, m.result("alpha/n1", "gamma/n1", "new", shift(-time.Hour))},
		{"from the future", attest.CodeStale, m.result("alpha/n1", "gamma/n1", "new", shift(time.Hour))},
	} {
		t.Run(tc.name, func(t *testing.T) { m.t = t; m.refused(m.command(KindResults, tc.raw), tc.code) })
	}
	m.t = t
	// A batch keeps what is good and names what it left out.
	out := m.ok(m.command(KindResults, first, m.result("alpha/n1", "gamma/n1", "new"), m.result("gamma/n1", "beta/n1", "x")))
	if len(out.Leaves) != 1 || len(out.Skipped) != 2 || out.Skipped[0].Index != 0 || out.Skipped[1].Reason.Code != attest.CodeMeasurementNotAllowed {
		t.Errorf("got %+v", out)
	}
	// A change is let in at once, an unchanged edge as a heartbeat.
	m.ok(m.command(KindResults, m.result("alpha/n1", "beta/n1", "new", shift(time.Second), contra)))
	m.tick(HeartbeatAfter)
	m.ok(m.command(KindResults, m.result("alpha/n1", "gamma/n1", "new")))
	// Something that is no result spoils the command: the guard should have stopped it.
	m.refused(m.command(KindResults, m.result("alpha/n1", "beta/n1", "new"), m.credential("alpha/n2", 1)), attest.CodeMalformed)
}

func TestResultMalformed(t *testing.T) {
	m := started(t, 2)
	for name, change := range map[string]func(*AttestationResult){
		"itself":               func(r *AttestationResult) { r.Subject = r.Verifier },
		"its own older boot":   func(r *AttestationResult) { r.Subject.Node = r.Verifier.Node },
		"free text":            func(r *AttestationResult) { r.Codes = []attest.Code{"Chip 4711 is broken"} },
		"too many codes":       func(r *AttestationResult) { r.Codes = make([]attest.Code, MaxCodes+1) },
		"verdict":              func(r *AttestationResult) { r.Verdict = "fine" },
		"no verdict":           func(r *AttestationResult) { r.Verdict = "" },
		"kind":                 func(r *AttestationResult) { r.Kind = "sgx" },
		"measurement":          func(r *AttestationResult) { r.Measurement = "zz" },
		"no reference":         func(r *AttestationResult) { r.Reference = "" },
		"reference of a no":    func(r *AttestationResult) { r.Verdict = attest.VerdictContraindicated },
		"no commitment":        func(r *AttestationResult) { r.Evidence = "" },
		"two hours":            func(r *AttestationResult) { r.Expires = r.At.Add(2 * time.Hour) },
		"another's signature":  func(r *AttestationResult) { r.Verifier.Peer = peerOf("beta/n1", 2) },
		"no mesh":              func(r *AttestationResult) { r.MeshID = [32]byte{} },
		"affirming on nothing": func(r *AttestationResult) { r.Measurement = "" },
	} {
		if _, err := SignResult(boot("alpha/n1", 1), m.resultOf("alpha/n1", "beta/n1", "new", change)); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// What Apply does not check, the guard does.
func TestCheckResults(t *testing.T) {
	m := started(t, 3)
	good, other := m.result("alpha/n1", "beta/n1", "new"), m.result("gamma/n1", "beta/n1", "new")
	forged := must(envelope.Parse(good))
	forged.Signatures = must(envelope.Parse(other)).Signatures
	flipped := must(envelope.Parse(good))
	flipped.Signatures[0].Sig[5] ^= 1
	for name, tc := range map[string]struct {
		raws [][]byte
		ok   bool
	}{
		"good":      {[][]byte{good, other}, true},
		"forged":    {[][]byte{other, forged.Marshal()}, false},
		"flipped":   {[][]byte{flipped.Marshal()}, false},
		"no result": {[][]byte{m.credential("alpha/n2", 1)}, false},
		"unsigned":  {[][]byte{(&envelope.Envelope{Payload: flipped.Payload}).Marshal()}, false},
	} {
		c := must(NewCommand(KindResults, tc.raws...))
		if err := CheckResults(c); (err == nil) != tc.ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if err := CheckResults(must(NewCommand(KindTick))); err != nil {
		t.Errorf("another kind: %v", err)
	}
}

// Eligibility counts distinct organisations other than the subject's own, through
// verifiers that are themselves in good standing.
func TestEligible(t *testing.T) {
	m := started(t, 4) // alpha, beta, delta, gamma
	eligible := func(want string) {
		t.Helper()
		if got := names(m.s.Eligible(m.at)); got != want {
			t.Fatalf("eligible %q, want %q", got, want)
		}
	}
	send := func(edges ...[]byte) {
		t.Helper()
		if out := m.ok(m.command(KindResults, edges...)); len(out.Skipped) > 0 {
			t.Fatalf("skipped %+v", out.Skipped)
		}
	}
	m.ok(m.command(KindCredential, m.credential("alpha/n2", 1)))
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	eligible("")
	send(m.result("beta/n1", "alpha/n1", "new"), m.result("beta/n2", "alpha/n1", "new"), m.result("alpha/n2", "alpha/n1", "new"))
	eligible("") // the verifiers are not measured
	send(m.result("alpha/n1", "beta/n1", "new"), m.result("alpha/n1", "beta/n2", "new"), m.result("beta/n1", "alpha/n2", "new"))
	eligible("") // beta twice and alpha's own: one organisation
	send(m.result("gamma/n1", "alpha/n1", "new"))
	eligible("") // gamma is not measured
	send(m.result("alpha/n1", "gamma/n1", "new"))
	eligible("alpha/n1")
	if !m.s.IsEligible(peerOf("alpha/n1", 1), m.at) || len(m.s.Affirming(peerOf("alpha/n1", 1), m.at)) != 3 {
		t.Errorf("affirming %d", len(m.s.Affirming(peerOf("alpha/n1", 1), m.at)))
	}
	// Expired edges do not count, nor does a Credential past its time.
	m.at = m.at.Add(time.Hour)
	eligible("")
	m.at = m.at.Add(-time.Hour)
	// One lone contraindicated edge is an alarm, not an eviction.
	out := m.ok(m.command(KindResults, m.result("delta/n1", "alpha/n1", "new", func(r *AttestationResult) {
		r.Verdict, r.Reference, r.Codes = attest.VerdictContraindicated, "", []attest.Code{attest.CodeNotGenuine}
	})))
	eligible("alpha/n1")
	if len(out.Evicted) != 0 {
		t.Errorf("evicted %v", out.Evicted)
	}
	// A verifier that takes its word back no longer counts.
	send(m.result("gamma/n1", "alpha/n1", "new", func(r *AttestationResult) {
		r.At, r.Verdict, r.Reference, r.Codes = r.At.Add(time.Second), attest.VerdictContraindicated, "", []attest.Code{attest.CodeDebug}
	}))
	eligible("")
}

// With two organisations one affirming verifier is all there can be.
func TestEligibleOfTwo(t *testing.T) {
	m := started(t, 2)
	m.attestAll(allNew)
	if got := names(m.s.Eligible(m.at)); got != "alpha/n1 beta/n1" {
		t.Errorf("eligible %q", got)
	}
}

// An edge counts while its verifier is the newest boot of its node and runs what is allowed.
func TestEdgesOfWhoIsGoneDoNotCount(t *testing.T) {
	for name, goes := range map[string]func(m *mesh) Command{
		"a newer boot": func(m *mesh) Command { return must(NewCommand(KindCredential, m.credential("gamma/n1", 2))) },
		"voted out": func(m *mesh) Command {
			return must(NewCommand(KindProposal, m.sign(m.payload(m.propose(remove("old"))), "alpha govern", "beta govern", "delta govern")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := started(t, 4) // alpha, beta, delta, gamma
			m.ok(m.command(KindResults, m.result("alpha/n1", "beta/n1", "new"), m.result("alpha/n1", "gamma/n1", "old"), m.result("alpha/n1", "delta/n1", "new"),
				m.result("beta/n1", "alpha/n1", "new"), m.result("gamma/n1", "alpha/n1", "new")))
			if !m.s.IsEligible(peerOf("alpha/n1", 1), m.at) {
				t.Fatal("two other organisations' findings do not make a node eligible")
			}
			m.ok(m.apply(goes(m)))
			if m.s.IsEligible(peerOf("alpha/n1", 1), m.at) {
				t.Error("the finding of who is gone counts still")
			}
			m.ok(m.command(KindResults, m.result("delta/n1", "alpha/n1", "new")))
			if !m.s.IsEligible(peerOf("alpha/n1", 1), m.at) {
				t.Error("another organisation's does not count in its place")
			}
		})
	}
}

// One lying organisation can neither evict a node by naming a measurement that is about to
// be revoked, nor keep one in.
func TestLoneLiar(t *testing.T) {
	for name, tc := range map[string]struct {
		honest, lie string
		evicted     int
	}{
		"slander": {"new", "old", 0},
		"alibi":   {"old", "new", 1},
	} {
		t.Run(name, func(t *testing.T) {
			m := started(t, 4)
			m.ok(m.command(KindResults, m.result("beta/n1", "alpha/n1", tc.lie), m.result("gamma/n1", "alpha/n1", tc.honest), m.result("delta/n1", "alpha/n1", tc.honest)))
			if out := m.ok(m.order(m.propose(remove("old")), 3)); len(out.Evicted) != tc.evicted {
				t.Errorf("evicted %v", out.Evicted)
			}
		})
	}
}

func TestVerifiersPerOrganisationBounded(t *testing.T) {
	g := genesisOf(t, 2)
	g.Limits.Nodes = 20
	m := newMeshOf(t, g)
	m.start()
	for i := range MaxVerifiers + 1 {
		node := "beta/v" + string(rune('a'+i))
		m.ok(m.command(KindCredential, m.credential(node, 1)))
		out := m.command(KindResults, m.result(node, "alpha/n1", "new"))
		if i < MaxVerifiers {
			m.ok(out)
		} else {
			m.refused(out, attest.CodeLimit)
		}
	}
}

func TestResultOf(t *testing.T) {
	r := ResultOf(attest.Result{Verdict: attest.VerdictContraindicated, Kind: "sim", Measurement: measurement("x"), Epoch: 3, Reference: "r", At: start.Add(1),
		Reasons: []attest.Reason{attest.NewReason(attest.CodeRevoked, "measurement", "chip 4711", "secret")}}, strings.Repeat("0", 64))
	if r.Epoch != 3 || len(r.Codes) != 1 || r.Codes[0] != attest.CodeRevoked || r.Reference != "" || !r.At.Equal(start) {
		t.Errorf("got %+v", r)
	}
	var salt [32]byte
	a := EvidenceCommitment(salt, []byte("e"))
	salt[0] = 1
	if a == EvidenceCommitment(salt, []byte("e")) || a == EvidenceCommitment([32]byte{}, []byte("f")) {
		t.Error("the commitment ignores salt or evidence")
	}
}
