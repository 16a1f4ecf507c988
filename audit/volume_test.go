package audit

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
)

// codesOf audits a mesh's log and returns its findings in short.
func codesOf(t *testing.T, m *audittest.Mesh) string {
	t.Helper()
	report, _, err := matrixOf(t, m, Place{})
	if err != nil {
		t.Fatal(err)
	}
	return codes(report)
}

// What a lying majority writes beyond the rule is found, at the leaf and by its code.
func TestVolume(t *testing.T) {
	late := func(d time.Duration) func(*consensus.AttestationResult) {
		return func(r *consensus.AttestationResult) { r.At, r.Expires = r.At.Add(d), r.Expires.Add(d) }
	}
	for name, c := range map[string]struct {
		leaves func(*audittest.Mesh) [][]byte
		want   string
	}{
		"a heartbeat in time": {func(m *audittest.Mesh) [][]byte {
			return [][]byte{m.Result("alpha/n1", "beta/n1", "new", late(consensus.HeartbeatAfter))}
		}, ""},
		"a change at once": {func(m *audittest.Mesh) [][]byte {
			return [][]byte{m.Result("alpha/n1", "beta/n1", "new", late(time.Second), audittest.Refusing(attest.VerdictWarning, "tcb_ahead")), m.Result("alpha/n1", "beta/n1", "new", late(2*time.Second))}
		}, ""},
		"a heartbeat too early": {func(m *audittest.Mesh) [][]byte {
			return [][]byte{m.Result("alpha/n1", "beta/n1", "new", late(consensus.HeartbeatAfter-time.Second))}
		}, "8:duplicate"},
		"a result twice": {func(m *audittest.Mesh) [][]byte { return [][]byte{m.Leaves[2]} }, "8:replayed"},
		"too many verifiers": {func(m *audittest.Mesh) (out [][]byte) {
			for i := range consensus.MaxVerifiers {
				node := fmt.Sprintf("alpha/v%d", i)
				out = append(out, m.Credential(node), m.Result(node, "beta/n1", "new"))
			}
			return out
		}, "23:limit"}, // with alpha/n1 the last is the ninth
	} {
		t.Run(name, func(t *testing.T) {
			m := audittest.New(audittest.Options{At: audittest.CompleteAt, Edit: func(g *consensus.Genesis) { g.Limits.Nodes = 20 }}).Start()
			for _, leaf := range c.leaves(m) {
				m.Force(leaf)
			}
			m.Cosigned = m.At.Add(time.Hour)
			if got := codesOf(t, m); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// stuffed is a mesh that lets an organisation have one result and one Credential between two ticks, with
// n results of alpha between two state leaves; and a later stretch with none.
func stuffed(n int) *audittest.Mesh {
	m := audittest.New(audittest.Options{At: audittest.CompleteAt, Edit: func(g *consensus.Genesis) { g.Limits.Results, g.Limits.Credentials = 1, 1 }})
	m.Command(consensus.KindBootstrap, m.Genesis.Raw(), m.Bootstrap())
	m.AttestAll("new") // 2 to 7
	m.Tick(0)
	m.Tick(time.Minute)
	m.LogState(consensus.DigestEvery) // 8
	for i := range n {
		of, release := "beta/n1", "old"
		if i/2%2 == 1 {
			release = "new"
		}
		if i%2 == 1 {
			of = "gamma/n1"
		}
		at := time.Duration(i+1) * time.Millisecond
		m.Force(m.Result("alpha/n1", of, release, func(r *consensus.AttestationResult) { r.At = r.At.Add(at) }))
	}
	m.Force(m.Credential("gamma/n2"))
	first := m.LogState
	m.Tick(2 * time.Minute)
	first(2 * consensus.DigestEvery)
	m.Tick(2 * time.Minute)
	first(3 * consensus.DigestEvery)
	return m
}

// An organisation whose results are more than all the ticks between two state leaves can have allowed is
// found, whether the audit reads the log at once or stops in between.
func TestQuotaBetweenStates(t *testing.T) {
	// Of 1,024 commands 8 at least were these results and one the Credential, so that 1,015 were ticks.
	const most = 1016
	if got := codesOf(t, stuffed(most)); got != "" {
		t.Errorf("at the bound: %s", got)
	}
	m := stuffed(most + 1)
	report, _, err := matrixOf(t, m, Place{})
	if err != nil || codes(report) != fmt.Sprintf("%d:quota", 8+most+1) || !strings.Contains(report.Findings[0].Message, "alpha had 1017 results ordered between the state leaves 8 and 1027, by 1024 commands, of which at most 1015 were ticks") {
		t.Errorf("%v, %+v", err, report.Findings)
	}
}

// A saved count goes on where it was.
func TestVolumeSaved(t *testing.T) {
	v := volume{at: 8, seq: 1024, results: 3, others: 2, used: map[account]spent{{"alpha", "results"}: {3, 11, 6}, {"beta", "credentials"}: {1, 9, 1}}}
	w := v.wire()
	again := w.of()
	a, err1 := states.Encode(w)
	b, err2 := states.Encode(again.wire())
	if err1 != nil || err2 != nil || !bytes.Equal(a, b) || len(again.used) != 2 {
		t.Errorf("%v, %v: %+v", err1, err2, again)
	}
}
