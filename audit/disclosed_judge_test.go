package audit

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sim"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// disclosure collects files of evidence as members disclose them.
type disclosure struct {
	m     *mesh
	files fstest.MapFS
	count byte
}

func (m *mesh) disclosure() *disclosure { return &disclosure{m, fstest.MapFS{}, 0} }

// simulated is encoded evidence of a sim platform that genesis names.
func (d *disclosure) simulated(runs string, data byte) []byte {
	d.m.t.Helper()
	sum, err := hex.DecodeString(audittest.Measurement(runs))
	d.m.check(err)
	report, err := sim.Sign(audittest.Key("sim root"), [sim.MeasurementSize]byte(sum), attest.ReportData{data})
	d.m.check(err)
	raw, err := sim.Evidence(report).Encode()
	d.m.check(err)
	return raw
}

// behind discloses evidence behind a result.
func (d *disclosure) behind(raw []byte) func(*consensus.AttestationResult) {
	d.count++
	salt := [saltSize]byte{d.count}
	commitment := consensus.EvidenceCommitment(salt, raw)
	d.files[commitment] = &fstest.MapFile{Data: append(salt[:], raw...)}
	return func(r *consensus.AttestationResult) { r.Evidence = commitment }
}

func (d *disclosure) audit(change ...func(*Options)) Report {
	d.m.t.Helper()
	return d.m.audit(d.m.publish(seats...), append([]func(*Options){func(o *Options) {
		o.Disclosed = NewEvidence(d.files)
	}}, change...)...)
}

// Two seats collude and let a node in that runs what nobody allowed: the results are well signed
// and the log holds, but the evidence that they commit to says what the node runs.
func TestFalseAffirmingResultIsFound(t *testing.T) {
	m := started(t) // leaves 0 to 7
	m.Tick(50 * time.Minute)
	d := m.disclosure()
	m.Command(consensus.KindCredential, m.Credential("gamma/n2")) // 8
	for i, verifier := range []string{"alpha/n1", "beta/n1"} {    // 9 and 10
		m.Command(consensus.KindResults, m.Result(verifier, "gamma/n2", "new", d.behind(d.simulated("evil", byte(i)))))
	}
	honest := d.behind(d.simulated("new", 7))
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", honest)) // 11
	if r := m.audit(m.publish(seats...)); !r.OK {
		t.Fatalf("the log does not hold before anything is disclosed: %v", r.Findings)
	}
	r := d.audit(func(o *Options) { o.At = o.At.Add(time.Hour) })
	if got, want := codes(r), "9:false_result 10:false_result"; got != want {
		t.Fatalf("findings %q, want %q: %v", got, want, r.Findings)
	}
	if !strings.Contains(r.Findings[0].Message, "alpha/n1 found gamma/n2 affirming") || r.Undecided() {
		t.Errorf("finding %q, undecided %v", r.Findings[0].Message, r.Undecided())
	}
	if got := r.Disclosed; got.Results != 9 || got.Confirmed != 1 || got.Withheld != 6 || fmt.Sprint(got.WithheldLeaves) != "[2 3 4 5 6 7]" || got.Undecided != 0 {
		t.Errorf("disclosed: %+v", got)
	}
}

func TestDisclosedEvidenceIsHeldAgainstItsResult(t *testing.T) {
	for name, c := range map[string]struct {
		make func(*mesh, *disclosure) // orders leaf 8
		want string
	}{
		"what it says": {func(m *mesh, d *disclosure) {
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", d.behind(d.simulated("new", 1))))
		}, ""},
		"another salt": {func(m *mesh, d *disclosure) {
			b := d.behind(d.simulated("new", 1))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", b))
			for _, f := range d.files {
				f.Data[0] ^= 1
			}
		}, "8:evidence_mismatch"},
		"a byte of the evidence": {func(m *mesh, d *disclosure) {
			b := d.behind(d.simulated("new", 1))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", b))
			for _, f := range d.files {
				f.Data[len(f.Data)-1] ^= 1
			}
		}, "8:evidence_mismatch"},
		"cut to a salt": {func(m *mesh, d *disclosure) {
			b := d.behind(d.simulated("new", 1))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", b))
			for _, f := range d.files {
				f.Data = f.Data[:saltSize]
			}
		}, "8:evidence_mismatch"},
		"no evidence at all": {func(m *mesh, d *disclosure) {
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", d.behind([]byte("junk"))))
		}, "8:false_result"},
		"another allowed software": {func(m *mesh, d *disclosure) {
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", d.behind(d.simulated("old", 1))))
		}, "8:false_result"},
		"another measurement behind a refusal": {func(m *mesh, d *disclosure) {
			refused := func(r *consensus.AttestationResult) {
				r.Verdict, r.Reference, r.Vector = attest.VerdictContraindicated, "", attest.Vector{Executables: 96}
				r.Codes = []attest.Code{attest.CodeMeasurementNotAllowed}
			}
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "old", refused, d.behind(d.simulated("evil", 1))))
		}, "8:false_result"},
		"junk behind a refusal": {func(m *mesh, d *disclosure) {
			refused := func(r *consensus.AttestationResult) {
				r.Verdict, r.Reference, r.Vector, r.Measurement = attest.VerdictContraindicated, "", attest.Vector{Hardware: 96}, ""
				r.Codes = []attest.Code{attest.CodeNotGenuine}
			}
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "old", refused, d.behind([]byte("junk"))))
		}, ""},
		"one quote under two peers": {func(m *mesh, d *disclosure) {
			raw := d.simulated("new", 1)
			m.Command(consensus.KindResults, m.Result("gamma/n1", "alpha/n1", "new", d.behind(raw)))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", d.behind(raw)))
		}, "9:evidence_reused"},
		"one quote by two results on one peer": {func(m *mesh, d *disclosure) {
			raw := d.simulated("new", 1)
			for range 2 {
				m.Tick(40 * time.Minute)
				m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", d.behind(raw)))
			}
		}, ""},
		"under an epoch that has passed": {func(m *mesh, d *disclosure) {
			before := m.Result("alpha/n1", "beta/n1", "new", d.behind(d.simulated("new", 1)))
			m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "beta"))
			m.Command(consensus.KindResults, before)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := started(t)
			m.Tick(50 * time.Minute)
			d := m.disclosure()
			c.make(m, d)
			r := d.audit(func(o *Options) { o.At = o.At.Add(3 * time.Hour) })
			if got := codes(r); got != c.want {
				t.Errorf("findings %q, want %q: %v", got, c.want, r.Findings)
			}
		})
	}
}

// What was not disclosed is listed and no finding, unless the auditor asks for it; then it
// cannot be decided.
func TestWithheldEvidence(t *testing.T) {
	m := started(t)
	r := m.disclosure().audit()
	if !r.OK || r.Disclosed.Withheld != 6 || r.Disclosed.Confirmed != 0 {
		t.Errorf("%v %+v", r.Findings, r.Disclosed)
	}
	if text := strings.Join(r.ProvesNot(), "\n"); !strings.Contains(text, "6 affirming results whose evidence was not disclosed are true") || strings.Contains(text, "does not decide") {
		t.Errorf("not said: %s", text)
	}
	r = m.disclosure().audit(func(o *Options) { o.RequireDisclosed = true })
	if r.OK || !r.Undecided() || len(r.Findings) != 6 || r.Findings[0].Code != CodeEvidenceWithheld || r.Findings[0].Index != 2 {
		t.Errorf("asked for: undecided %v, %v", r.Undecided(), r.Findings)
	}
	// However much is withheld: it stays undecided, and hides nothing that decides.
	m.grow(3 * maxFindings)
	required := func(o *Options) { o.RequireDisclosed = true }
	if r = m.disclosure().audit(required); !r.Undecided() || len(r.Findings) != maxFindings+1 {
		t.Errorf("undecided %v, %d findings", r.Undecided(), len(r.Findings))
	}
	m.Force(m.Result("alpha/n1", "beta/n1", "evil"))
	if r = m.disclosure().audit(required); r.Undecided() || len(r.Findings) != maxFindings+1 || r.Findings[maxFindings-1].Index != 3*maxFindings {
		t.Errorf("undecided %v, %d findings, %+v", r.Undecided(), len(r.Findings), r.Findings[maxFindings-1])
	}
}

// A TCB floor binds the results that come after it, and no earlier one; one that names the epoch
// before it is held against that.
func TestDisclosedEvidenceUnderTheFloorOfItsTime(t *testing.T) {
	fake := attesttest.NewSEVSNP("Milan", 3)
	snp := func(e *consensus.Entry) { e.Kind = attest.KindSEVSNP }
	now := time.Now().UTC().Truncate(time.Second)
	m := &mesh{t: t}
	m.Mesh = *audittest.New(audittest.Options{At: now, Edit: func(g *consensus.Genesis) {
		kinds := []string{attest.KindSEVSNP}
		g.AllowSim, g.LogOrigin, g.Roots.Sim = false, "example.org/trial", []envelope.PublicKey{}
		g.Kinds = consensus.Kinds{Member: kinds, Seat: kinds, Aggregator: kinds}
		g.Policy.Entries = []consensus.Entry{m.Entry("new", snp)}
	}})
	m.Cosigned = now
	of := func(r *consensus.AttestationResult) { r.Kind, r.Reference = attest.KindSEVSNP, m.Entry("new", snp).ID }
	m.Command(consensus.KindBootstrap, m.Genesis.Raw(), m.Bootstrap())
	m.Tick(0)
	d := m.disclosure()
	attester := fake.Attester(audittest.Measurement("new"))
	evidence := func(data byte) func(*consensus.AttestationResult) {
		ev, err := attester.Attest(t.Context(), attest.ReportData{data})
		m.check(err)
		raw, err := ev.Encode()
		m.check(err)
		return d.behind(raw)
	}
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", of, evidence(1))) // 2
	early := m.Result("gamma/n1", "beta/n1", "new", of, evidence(2))                          // signed before the floor
	floor := fake.Policy().SEVSNP.MinimumTCB["Milan"]
	floor.SNP++
	m.Command(consensus.KindProposal, m.Proposal(consensus.Action{RaiseFloor: &consensus.RaiseFloor{Floor: attest.Floor{Product: "Milan", SEVSNP: &floor}}}, "alpha", "beta")) // 3
	m.Command(consensus.KindResults, early)                                                                                                                                    // 4
	m.Command(consensus.KindResults, m.Result("alpha/n1", "gamma/n1", "new", of, evidence(3)))                                                                                 // 5
	for _, node := range []string{"alpha/n1"} {
		m.Command(consensus.KindResults, m.Result("beta/n1", node, "new", of), m.Result("gamma/n1", node, "new", of))
	}
	m.Command(consensus.KindResults, m.Result("beta/n1", "gamma/n1", "new", of))
	r := d.audit(func(o *Options) {
		o.Disclosed.schemes[m.Genesis.MeshID()] = map[string]attest.Scheme{attest.KindSEVSNP: fake.Scheme()}
	})
	if got, want := codes(r), "5:false_result"; got != want {
		t.Fatalf("findings %q, want %q: %v", got, want, r.Findings)
	}
	if !strings.Contains(r.Findings[0].Message, string(attest.CodeTCBBelowFloor)) || r.Disclosed.Confirmed != 2 {
		t.Errorf("%v %+v", r.Findings, r.Disclosed)
	}
}
