package audit

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

func matrixOf(t *testing.T, m *audittest.Mesh, p Place) (Report, *Matrix, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	m.Publish(dir, m.Cosigners()...)
	r, err := transparency.OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	opts := Options{Genesis: m.Genesis, At: m.CosignedAt().Add(time.Minute)}
	report, out, err := MatrixOf(t.Context(), r, p, opts)
	if err == nil && p == (Place{}) {
		keep(t, dir, opts, report)
	}
	return report, out, err
}

func mustMatrix(t *testing.T, m *audittest.Mesh, p Place) *Matrix {
	t.Helper()
	report, out, err := matrixOf(t, m, p)
	if err != nil || !report.OK {
		t.Fatalf("%v, %+v", err, report.Findings)
	}
	return out
}

// brief tells a matrix in few words: who is eligible, or why not, and each edge's worth.
func brief(m *Matrix) string {
	var out []string
	for _, n := range m.Nodes {
		word := "eligible"
		if !n.Eligible {
			word = string(n.Code)
		}
		out = append(out, fmt.Sprintf("%s %s %v", n.Node, word, n.AffirmedBy))
	}
	for _, e := range m.Edges {
		word := "counts"
		if !e.Counts {
			word = string(e.Verdict) + " " + string(e.Code)
		}
		out = append(out, fmt.Sprintf("%s>%s #%d e%d@%d %s", e.Verifier, e.Subject, e.Leaf, e.Epoch, e.PolicyLeaf, word))
	}
	return strings.Join(out, "\n")
}

// A mesh whose edges count or not for every reason that there is.
func TestMatrix(t *testing.T) {
	m := audittest.New(audittest.Options{At: audittest.CompleteAt}).Start()
	begin := m.At
	m.Tick(10 * time.Minute)
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))                                                                     // 8
	m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta"))                                                    // 9, epoch 1
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "next"), m.Result("beta/n1", "beta/n2", "next"))                // 10, 11
	m.Command(consensus.KindResults, m.Result("beta/n2", "alpha/n1", "new", audittest.Refusing(attest.VerdictWarning, "tcb_ahead"))) // 12
	m.Tick(10 * time.Minute)
	m.Command(consensus.KindResults, m.Result("gamma/n1", "beta/n2", "next")) // 13
	m.Command(consensus.KindResults, m.Result("beta/n2", "gamma/n1", "new"))  // 14
	x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
	m.Command(consensus.KindSuspension, x) // 15
	m.Tick(10 * time.Minute)
	m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("next"), "alpha", "beta")) // 16, epoch 2

	founders := `alpha/n1>beta/n1 #2 e0@1 counts`
	for name, c := range map[string]struct {
		place       Place
		index       uint64
		epoch, from uint64
		has         []string
	}{
		"the end": {Place{}, 16, 2, 16, []string{"alpha/n1 eligible [beta gamma]", "beta/n1 suspended [alpha gamma]", "beta/n2 revoked []", founders,
			"alpha/n1>beta/n2 #10 e1@9 affirming revoked", "beta/n1>beta/n2 #11 e1@9 affirming own_organisation",
			"beta/n2>alpha/n1 #12 e1@9 warning ", "beta/n2>gamma/n1 #14 e1@9 affirming revoked"}},
		"before the vote":        {Place{Index: new(uint64(15))}, 15, 1, 9, []string{"beta/n2 eligible [alpha gamma]", "beta/n2>gamma/n1 #14 e1@9 counts", "beta/n1 suspended [alpha gamma]"}},
		"one verifier":           {Place{Index: new(uint64(12))}, 12, 1, 9, []string{"beta/n2 few_verifiers [alpha]"}},
		"after the Bootstrap":    {Place{Index: new(uint64(1))}, 1, 0, 1, []string{"alpha/n1 few_verifiers []"}},
		"at a time":              {Place{Time: begin.Add(15 * time.Minute)}, 12, 1, 9, []string{"beta/n2 few_verifiers [alpha]", "beta/n1 eligible [alpha gamma]"}},
		"to the second":          {Place{Time: begin.Add(10*time.Minute - time.Second)}, 7, 0, 1, []string{"alpha/n1 eligible [beta gamma]"}},
		"on the second":          {Place{Time: begin.Add(10 * time.Minute)}, 12, 1, 9, nil},
		"when all had run out":   {Place{Time: begin.Add(5 * time.Hour)}, 16, 2, 16, []string{"alpha/n1 few_verifiers []", "alpha/n1>beta/n1 #2 e0@1 affirming stale"}},
		"when nobody had a name": {Place{Time: begin.Add(50 * time.Hour)}, 16, 2, 16, []string{"alpha/n1 credential_expired []"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := mustMatrix(t, m, c.place)
			if got.Index != c.index || uint64(got.Epoch) != c.epoch || got.PolicyLeaf != c.from || got.Needed != 2 {
				t.Errorf("entry %d, epoch %d from %d, %d needed", got.Index, got.Epoch, got.PolicyLeaf, got.Needed)
			}
			lines := strings.Split(brief(got), "\n")
			for _, want := range c.has {
				if !slices.Contains(lines, want) {
					t.Errorf("no %q in\n%s", want, brief(got))
				}
			}
		})
	}
	for _, p := range []Place{{Index: new(uint64(17))}, {Time: begin.Add(-time.Second)}} {
		if _, _, err := matrixOf(t, m, p); !errors.Is(err, ErrNoPlace) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}

// Of a log with every kind of leaf the matrix at its end is what its state says.
func TestMatrixOfComplete(t *testing.T) {
	m := audittest.Complete()
	got := mustMatrix(t, m, Place{})
	if got.At != m.At || len(got.Nodes) != len(m.State.Nodes()) || len(got.Edges) != len(m.State.AllEdges()) {
		t.Errorf("%+v", got)
	}
	for _, e := range got.Edges {
		r, err := consensus.ParseResult(m.Leaves[e.Leaf])
		if err != nil || r.Verifier.Node != e.Verifier || r.Subject.Node != e.Subject || !r.At.Equal(e.Made) {
			t.Errorf("entry %d is not the edge %+v: %v", e.Leaf, e, err)
		}
	}
	eligible := m.State.Eligible(m.At)
	for _, n := range got.Nodes {
		if want := slices.ContainsFunc(eligible, func(x consensus.Node) bool { return x.Ref == n.Node }); want != n.Eligible || n.Eligible != (n.Code == "") {
			t.Errorf("%+v, the state says %v", n, want)
		}
	}
	for i := 3; i < len(m.Leaves); i += 7 {
		index := uint64(i)
		if at := mustMatrix(t, m, Place{Index: &index}); at.Index != index {
			t.Errorf("entry %d: %+v", i, at)
		}
	}
}

// A log that does not hold is said to be so, and shown as far as it goes.
func TestMatrixOfBadLog(t *testing.T) {
	m := audittest.New(audittest.Options{At: audittest.CompleteAt}).Start()
	m.Force(m.Result("alpha/n1", "beta/n1", "evil"))
	report, out, err := matrixOf(t, m, Place{})
	if err != nil || report.OK || out == nil || !strings.Contains(brief(out), "alpha/n1>beta/n1 #2 e0@1 counts") {
		t.Errorf("%v, %+v, %+v", err, report.Findings, out)
	}
	m.Leaves[1] = m.Leaves[2]
	if report, out, err = matrixOf(t, m, Place{}); err != nil || report.OK || out != nil {
		t.Errorf("%v, %+v, %+v", err, report.Findings, out)
	}
}
