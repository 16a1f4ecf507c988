package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// TestTrialLog looks at the published log of a mesh of real processes from outside.
func TestTrialLog(t *testing.T) {
	m := startTrial(t)
	t.Run("disclosure and erasure", m.disclosure)
}

// results returns the indices of results in the log at a location, by verifier and subject.
func (m *trial) results(location string) map[string][]uint64 {
	m.t.Helper()
	r, err := transparency.OpenReader(location)
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	note, err := r.Checkpoint(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	head, err := transparency.ParseCheckpoint(note)
	if err != nil {
		m.t.Fatal(err)
	}
	out := map[string][]uint64{}
	_, err = r.Walk(m.t.Context(), head, transparency.WalkOptions{Leaf: func(i uint64, leaf []byte) error {
		if res, err := consensus.ParseResult(leaf); err == nil {
			edge := fmt.Sprintf("%s on %s", res.Verifier.Node, res.Subject.Node)
			out[edge] = append(out[edge], i)
		}
		return nil
	}})
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// disclosure: an operator hands out evidence, an auditor verifies it anew; the operator erases it, and
// the log is what it was.
func (m *trial) disclosure(t *testing.T) {
	public := "http://" + m.public["beta"]
	m.run(0, "log", "export", public, m.path("copy"))
	found := m.results(m.path("copy"))
	onBeta, onGamma, others := found["alpha/n1 on beta/n1"], found["alpha/n1 on gamma/n1"], found["beta/n1 on gamma/n1"]
	if len(onBeta) == 0 || len(onGamma) == 0 || len(others) == 0 {
		t.Fatalf("results: %v", found)
	}
	disclose := func(exit int, dir string, args ...string) string {
		return m.run(exit, append([]string{"log", "disclose", "--node", m.path("alpha"), "-o", m.path(dir)}, args...)...)
	}
	reappraise := func(exit int, args ...string) (r audit.Report) {
		t.Helper()
		out := m.run(exit, append([]string{"log", "audit", m.path("copy"), "--genesis", m.path("genesis.json"), "--json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return r
	}

	disclose(0, "one", fmt.Sprint(onBeta[0]))
	if r := reappraise(0, "--disclosed", m.path("one")); r.Disclosed == nil || r.Disclosed.Confirmed != 1 || r.Disclosed.Withheld != r.Disclosed.Results-1 {
		t.Errorf("one file: %+v", r.Disclosed)
	}
	var list []struct {
		Leaf       uint64
		Commitment string
		Subject    identity.NodeRef
	}
	raw, err := os.ReadFile(m.path("one/disclosed.json"))
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil || len(list) != 1 || list[0].Leaf != onBeta[0] || list[0].Subject.String() != "beta/n1" {
		t.Errorf("disclosed.json: %v %s", err, raw)
	}
	if st, err := os.Stat(m.path("one/" + list[0].Commitment)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the disclosed file: %v %v", st, err)
	}
	r := reappraise(3, "--disclosed", m.path("one"), "--require-disclosed")
	if len(r.Findings) == 0 || r.Findings[0].Code != audit.CodeEvidenceWithheld {
		t.Errorf("findings %v, want evidence_withheld", r.Findings)
	}
	// A data directory as it is; and all that one node has.
	if r := reappraise(0, "--disclosed", m.path("alpha"), "--disclosed", m.path("beta"), "--disclosed", m.path("gamma")); r.Disclosed.Withheld != 0 || r.Disclosed.Confirmed != r.Disclosed.Results {
		t.Errorf("three data directories: %+v", r.Disclosed)
	}
	disclose(0, "all", "--all")
	if r := reappraise(0, "--disclosed", m.path("all")); r.Disclosed.Confirmed != len(onBeta)+len(onGamma) {
		t.Errorf("all of alpha's: %+v, want %d confirmed", r.Disclosed, len(onBeta)+len(onGamma))
	}
	// A changed byte of what was disclosed.
	file := m.path("one/" + list[0].Commitment)
	changed, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed[len(changed)/2] ^= 1
	if err := os.WriteFile(file, changed, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := reappraise(1, "--disclosed", m.path("one")); len(r.Findings) != 1 || r.Findings[0].Code != audit.CodeEvidenceMismatch || r.Findings[0].Index != onBeta[0] {
		t.Errorf("findings %v, want evidence_mismatch at %d", r.Findings, onBeta[0])
	}

	// What cannot be disclosed.
	if out := disclose(2, "no", fmt.Sprint(others[0])); !strings.Contains(out, "a result of beta/n1") {
		t.Errorf("another's: %s", out)
	}
	if out := disclose(2, "no", "0"); !strings.Contains(out, "no attestation result") {
		t.Errorf("genesis: %s", out)
	}
	disclose(2, "no", "99999999")
	disclose(2, "no", "-1")
	disclose(2, "no")
	disclose(2, "no", "--all", "1")
	m.run(2, "log", "disclose", "--node", m.path("alpha"), fmt.Sprint(onBeta[0]))

	// Erased.
	m.run(2, "log", "erase", "--node", m.path("alpha"))
	m.run(2, "log", "erase", "--node", m.path("alpha"), "--before", "2999-01-01T00:00:00Z", "--yes")
	m.run(2, "log", "erase", "--node", m.path("alpha"), "--subject", "beta")
	if out := m.run(2, "log", "erase", "--node", m.path("alpha"), "--subject", "beta/n1"); !strings.Contains(out, "nothing was erased") {
		t.Errorf("erase without --yes: %s", out)
	}
	if out := m.run(0, "log", "erase", "--node", m.path("alpha"), "--subject", "beta/n1", "--yes"); !strings.Contains(out, "files of evidence erased") || strings.HasPrefix(out, "0 ") {
		t.Errorf("erase: %s", out)
	}
	if out := m.run(0, "log", "erase", "--node", m.path("alpha"), "--subject", "beta/n1", "--yes", "--json"); !strings.Contains(out, `"files":0`) {
		t.Errorf("erase again: %s", out)
	}
	if out := disclose(1, "gone", fmt.Sprint(onBeta[0])); !strings.Contains(out, "erased at") {
		t.Errorf("after erasure: %s", out)
	}
	if left, err := filepath.Glob(m.path("alpha/boot-*/evidence/beta/n1/*")); err != nil || len(left) != 0 {
		t.Errorf("left on disk: %v %v", left, err)
	}
	disclose(0, "rest", fmt.Sprint(onGamma[0]))
	m.run(0, "log", "audit", public, "--genesis", m.path("genesis.json"))
	if r := reappraise(0, "--disclosed", m.path("alpha")); r.Disclosed.Confirmed != len(onGamma) {
		t.Errorf("after erasure: %+v, want %d confirmed", r.Disclosed, len(onGamma))
	}
}
