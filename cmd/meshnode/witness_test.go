package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency/tlogwitness/witnesstest"
)

// A mesh whose genesis names a witness that we did not write is founded and works while that knows
// nothing of it, is cosigned once it does, goes on while it is down, and is cosigned again.
func TestOutsideWitness(t *testing.T) {
	if underRace {
		t.Skip("starts a dozen processes; TestOperations does, too")
	}
	w := witnesstest.Start(t)
	m := startTrialOf(t, admitted{witness: w.Key, config: fmt.Sprintf("witnesses: [{name: %s, url: %q}]\n", witnesstest.Name, w.URL)})
	raw, err := os.ReadFile(m.path("genesis.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := consensus.ParseGenesis(raw)
	if err != nil {
		t.Fatal(err)
	}
	// cosigned waits until every node has the witness's cosignature of a time after since.
	cosigned := func(since time.Time) {
		t.Helper()
		m.await(func() bool {
			for _, org := range trialOrgs {
				s, ok := m.status(org)
				o := s.Log.Published.Outside
				if !ok || len(o) != 1 || o[0].At == nil || o[0].At.Before(since) || o[0].Error != "" {
					return false
				}
			}
			return true
		})
	}
	// failing waits until the leader says that the witness does not cosign.
	failing := func(want string) {
		t.Helper()
		m.await(func() bool {
			for _, org := range trialOrgs {
				if s, ok := m.status(org); ok && len(s.Log.Published.Outside) == 1 && strings.Contains(s.Log.Published.Outside[0].Error, want) {
					return true
				}
			}
			return false
		})
	}
	failing("does not know this log's origin")
	m.run(0, "log", "export", "http://"+m.public["alpha"], m.path("log"))
	out := m.run(0, "log", "audit", m.path("log"))
	if !strings.Contains(out, "none of the 1 outside witnesses has cosigned it") {
		t.Errorf("the audit does not say what is missing:\n%s", out)
	}
	s, _ := m.status("alpha")
	w.Know(g.Origin(0), s.Log.Key)
	cosigned(time.Time{})

	w.Kill()
	down := time.Now().Add(-time.Second)
	m.grow()
	failing("refused")
	for _, org := range trialOrgs {
		if s, ok := m.status(org); !ok || s.Log.Published.Level != "strong" {
			t.Errorf("%s: published %+v while the witness is down", org, s.Log.Published)
		}
	}
	w.Restart()
	cosigned(down)

	m.run(0, "log", "export", "http://"+m.public["beta"], m.path("log2"))
	var report audit.Report
	if err := json.Unmarshal([]byte(m.run(0, "log", "audit", "--json", "--genesis", m.path("genesis.json"), m.path("log2"))), &report); err != nil {
		t.Fatal(err)
	}
	if !report.OK || len(report.Outside) != 1 || report.Outside[0].Name != witnesstest.Name {
		t.Errorf("got %+v", report)
	}
	if out := m.run(0, "status", "--node", m.path("alpha")); !strings.Contains(out, witnesstest.Name+": ") {
		t.Errorf("status does not name the witness:\n%s", out)
	}
}

// grow orders a change of the policy: an entry that nothing runs.
func (m *trial) grow() {
	m.t.Helper()
	draft := strings.Replace(m.run(0, "policy", "show", "--node", m.path("alpha"), "--draft"), "actions: []", "actions:\n  - add_entry: {kind: sim, measurement: "+
		strings.Repeat("ab", 48)+", roles: [member]}", 1)
	m.write("draft.yaml", draft)
	m.run(0, "policy", "approve", m.path("draft.yaml"), "--key", m.path("alpha-govern.pem"), "-o", m.path("proposal.json"))
	m.run(0, "policy", "approve", m.path("proposal.json"), "--key", m.path("beta-govern.pem"), "-o", m.path("proposal.json"))
	m.run(0, "policy", "propose", m.path("proposal.json"), "--node", m.path("alpha"))
}
