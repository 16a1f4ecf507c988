package audit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The whole story of a mesh audits clean, at every size that a checkpoint could have had.
func TestCleanLog(t *testing.T) {
	m := started(t)
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	m.Command(consensus.KindProposal, m.Proposal(m.Add("newer"), "alpha", "gamma"))
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "newer"), m.Result("gamma/n1", "beta/n2", "newer"))
	m.Command(consensus.KindResults, m.Result("beta/n2", "alpha/n1", "new", func(r *consensus.AttestationResult) {
		r.Verdict, r.Codes, r.Reference = attest.VerdictContraindicated, []attest.Code{attest.CodeDebug}, ""
	}))
	out := m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("newer"), "alpha", "beta"))
	if len(out.Evicted) != 1 {
		t.Fatalf("evicted %v", out.Evicted)
	}
	m.Command(consensus.KindCredential, m.Credential("beta/n2 again"))
	m.Command(consensus.KindCredential, m.Credential("alpha/n1 again")) // a seat reboots: a derived leaf
	all := m.Leaves
	report := m.audit(m.publish("beta/n1", "gamma/n1"))
	if !report.OK || report.Entries != uint64(len(all)) || report.Level != transparency.Strong || fmt.Sprint(report.Cosigners) != "[beta gamma]" ||
		report.Policies != 2 || report.Results != 9 || report.Members != 4 || !report.Simulated {
		t.Errorf("%+v", report)
	}
	for size := 8; size < len(all); size++ {
		m.Leaves = all[:size]
		if r := m.audit(m.publish("beta/n1", "gamma/n1")); !r.OK || r.Entries != uint64(size) {
			t.Errorf("size %d: %+v", size, r)
		}
	}
	raw, err := json.Marshal(report)
	if err != nil || !strings.HasPrefix(string(raw), `{"ok":true,"entries":17,"root":"`+report.Root.String()+`","cosigners":["beta","gamma"],"level":"strong","findings":[]}`) {
		t.Errorf("%s %v", raw, err)
	}
	if len(report.Proves()) == 0 || !strings.Contains(strings.Join(report.ProvesNot(), "\n"), "SIMULATED") {
		t.Error("the report does not say what it proves")
	}
}

// A log with every kind of leaf audits clean.
func TestCompleteLog(t *testing.T) {
	m := &mesh{*audittest.Complete(), t}
	r := m.audit(m.publish(append(m.Cosigners(), audittest.Witness)...))
	if !r.OK || r.Entries != uint64(len(m.Leaves)) || r.Level != transparency.Strong || len(r.Outside) != 1 || len(r.Recoveries) != 1 || r.Rounds != 3 || r.Suspensions != 4 || !r.Simulated {
		t.Errorf("%+v", r)
	}
	m.Grow(600)
	if r := m.audit(m.publish(m.Cosigners()...)); !r.OK || r.Entries != 600 {
		t.Errorf("grown: %+v", r)
	}
}

// Each lie of a majority of seats is found in the leaf that tells it. The tree itself is
// sound and signed by all.
func TestLyingSeats(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"result by nobody's key", func(m *mesh) {
			m.Force(m.Result("delta/n1", "alpha/n1", "new"))
		}, "8:no_credential"},
		{"result with a bad signature", func(m *mesh) {
			raw := m.Result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) })
			e, err := envelope.Parse(raw)
			m.check(err)
			e.Signatures[0].Sig[5] ^= 1
			m.Force(e.Marshal())
		}, "8:wrong_signer"},
		{"result with an extra signature", func(m *mesh) {
			e, err := envelope.Parse(m.Result("alpha/n1", "beta/n1", "new"))
			m.check(err)
			m.check(e.Sign(audittest.Signer("stranger")))
			m.Force(e.Marshal())
		}, "8:wrong_signer"},
		{"result in another spelling", func(m *mesh) {
			m.Force(bytes.Replace(m.Result("alpha/n1", "beta/n1", "new"), []byte(`","`), []byte(`", "`), 1))
		}, "8:malformed"},
		{"result of another payload type", func(m *mesh) {
			m.Force(bytes.Replace(m.Result("alpha/n1", "beta/n1", "new"), []byte("in-toto+json"), []byte("in-toto+jsom"), 1))
		}, "8:malformed"},
		{"affirming a measurement that nobody allowed", func(m *mesh) {
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Force(m.Result("alpha/n1", "beta/n2", "evil"))
		}, "9:measurement_not_allowed"},
		{"affirming a measurement before it is allowed", func(m *mesh) {
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Force(m.Result("alpha/n1", "beta/n2", "newer"))
			m.Command(consensus.KindProposal, m.Proposal(m.Add("newer"), "alpha", "gamma"))
		}, "9:measurement_not_allowed"},
		{"affirming a revoked measurement", func(m *mesh) {
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "gamma"))
			m.Force(m.Result("alpha/n1", "beta/n2", "old"))
		}, "10:revoked"},
		{"result of an epoch to come", func(m *mesh) {
			m.Force(m.Result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.Epoch++; r.At = r.At.Add(time.Second) }))
		}, "8:behind"},
		{"result of another mesh", func(m *mesh) {
			m.Force(m.Result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.MeshID[0] ^= 1 }))
		}, "8:wrong_mesh"},
		{"result ordered twice", func(m *mesh) { m.Force(m.Leaves[3]) }, "8:replayed"},
		{"result ordered after it expired", func(m *mesh) {
			late := func(r *consensus.AttestationResult) { r.At, r.Expires = r.At.Add(3*time.Hour), r.At.Add(4*time.Hour) }
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Tick(3 * time.Hour)
			m.At = m.At.Add(-3 * time.Hour)
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "new", late))
			m.Force(m.Result("alpha/n1", "beta/n2", "new"))
		}, "10:stale"},
		{"affirming an expired entry", func(m *mesh) {
			late := func(r *consensus.AttestationResult) {
				r.Reference = m.Entry("brief", func(e *consensus.Entry) { e.NotAfter = m.At.Add(time.Hour) }).ID
				r.At, r.Expires = r.At.Add(3*time.Hour), r.At.Add(4*time.Hour)
			}
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Force(m.Result("alpha/n1", "beta/n2", "brief", late))
			m.Cosigned = m.At.Add(3 * time.Hour)
		}, "9:expired"},
		{"result of a time to come", func(m *mesh) {
			m.Force(m.Result("alpha/n1", "beta/n1", "old", func(r *consensus.AttestationResult) {
				r.At = m.At.Add(consensus.ClockSkew + time.Second)
				r.Expires = r.At.Add(time.Hour)
			}))
			m.Force(m.Result("gamma/n1", "beta/n1", "old", func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) }))
		}, "8:ahead"},
		{"proposal with too few organisations", func(m *mesh) {
			m.Force(m.Proposal(m.Add("evil"), "alpha"))
		}, "8:threshold"},
		{"proposal signed twice by one organisation", func(m *mesh) {
			m.Force(m.Proposal(m.Add("evil"), "alpha", "alpha enroll"))
		}, "8:wrong_signer"},
		{"proposal on a base that is gone", func(m *mesh) {
			stale := m.Proposal(m.Add("evil"), "alpha", "beta", "gamma")
			m.Command(consensus.KindProposal, m.Proposal(m.Add("newer"), "alpha", "gamma"))
			m.Force(stale)
		}, "9:stale_base"},
		{"proposal ordered twice", func(m *mesh) {
			m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "gamma"))
			m.Force(m.Leaves[8])
		}, "9:replayed"},
		{"proposal ordered after it expired", func(m *mesh) {
			m.Force(m.ProposalUntil(m.At.Add(-time.Hour), audittest.Remove("old"), "alpha", "gamma"))
		}, "8:proposal_expired"},
		{"credential by another organisation", func(m *mesh) {
			m.Force(audittest.Sign(payloadOf(m, m.Credential("beta/n2")), "alpha enroll"))
		}, "8:no_credential"},
		{"credential of an older boot", func(m *mesh) {
			m.Force(m.Credential("beta/n1 before", func(c *consensus.Credential) { c.BootSeq = 1 }))
		}, "8:retired"},
		{"seat removed without a cause", func(m *mesh) {
			m.Force(m.Removal("beta/n1", attest.CodeRevoked, "proposal x"))
		}, "8:not_derived"},
		{"seat removed as expired that is not", func(m *mesh) {
			m.Force(m.Removal("beta/n1", attest.CodeExpired, "tick 5"))
		}, "8:not_derived"},
		{"removal left out", func(m *mesh) {
			m.Command(consensus.KindCredential, m.Credential("alpha/n1 again"))
			m.Leaves = m.Leaves[:9]
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
		}, "9:derived_missing"},
		{"unknown kind of leaf", func(m *mesh) {
			payload, err := envelope.NewPayload("https://example.org/x/v1", envelope.SubjectOf("x", nil), struct{}{})
			m.check(err)
			m.Force(audittest.Sign(payload, "stranger"))
		}, "8:unknown_leaf"},
		{"a leaf of rubbish", func(m *mesh) { m.Force([]byte("rubbish\x00")) }, "8:malformed"},
		{"an empty leaf", func(m *mesh) { m.Force(nil) }, "8:malformed"},
		{"a second Bootstrap", func(m *mesh) { m.Force(m.Leaves[1]) }, "8:unknown_leaf"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := started(t)
			c.do(m)
			r := m.audit(m.publish(seats[1:]...))
			if got := codes(r); got != c.want || r.Undecided() {
				t.Errorf("got %q, want %q; undecided: %v", got, c.want, r.Undecided())
			}
		})
	}
}

// A seat whose entry has run out is removed by a tick, which leaves no leaf of its own.
func TestExpiryIsReplayed(t *testing.T) {
	m := started(t)
	m.Cosigned = m.At
	brief := func(r *consensus.AttestationResult) {
		r.Reference = m.Entry("brief", func(e *consensus.Entry) { e.NotAfter = m.At.Add(time.Hour) }).ID
		r.At = r.At.Add(time.Second)
	}
	m.Command(consensus.KindResults, m.Result("alpha/n1", "gamma/n1", "brief", brief), m.Result("beta/n1", "gamma/n1", "brief", brief))
	if out := m.Tick(2 * time.Hour); len(out.Leaves) != 1 {
		t.Fatalf("%d leaves", len(out.Leaves))
	}
	m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "beta"))
	path := m.publish("alpha/n1", "beta/n1")
	later := func(o *Options) { o.At = o.At.Add(3 * time.Hour) }
	if r := m.audit(path, later); !r.OK || r.Level != transparency.Strong { // two of the two seats that are left
		t.Errorf("%+v", r)
	}
	// An auditor whose own clock says that the entry has not run out yet.
	if got := codes(m.audit(path)); got != "10:not_derived" {
		t.Errorf("got %q", got)
	}
}

// Genesis, Bootstrap and checkpoint: what they must be before anything else counts.
func TestRoots(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, m *mesh) (string, func(*Options))
		want string
	}{
		{"another genesis is given", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return m.publish(seats...), func(o *Options) { o.Genesis = m.otherGenesis() }
		}, "0:genesis_mismatch"},
		{"genesis lacks a founder's signature", func(t *testing.T, m *mesh) (string, func(*Options)) {
			e, err := envelope.Parse(m.Leaves[0])
			m.check(err)
			e.Signatures = e.Signatures[:2]
			m.Leaves[0] = e.Marshal()
			return m.publish(seats...), nil
		}, "0:genesis_invalid"},
		{"Bootstrap lacks a founder's signature", func(t *testing.T, m *mesh) (string, func(*Options)) {
			e, err := envelope.Parse(m.Leaves[1])
			m.check(err)
			e.Signatures = e.Signatures[:2]
			m.Leaves[1] = e.Marshal()
			return m.publish(seats...), nil
		}, "1:bootstrap_invalid"},
		{"nothing but genesis", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.Leaves = m.Leaves[:1]
			return m.publish(), nil
		}, "1:unpublished"},
		{"an empty log", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.Leaves = nil
			return m.publish(), nil
		}, "0:unpublished"},
		{"too few organisations", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return m.publish("beta/n1"), nil
		}, "8:unpublished"},
		{"cosigners without an affirming result", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.Leaves = m.Leaves[:3] // alpha has affirmed beta: one that counts
			return m.publish(seats...), nil
		}, "3:unpublished"},
		{"cosigned by a node that has no seat", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "new"), m.Result("gamma/n1", "beta/n2", "new"))
			return m.publish("alpha/n1", "beta/n2"), nil
		}, "11:unpublished"},
		{"cosigned by a seat that was evicted", func(t *testing.T, m *mesh) (string, func(*Options)) {
			later := func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) }
			m.Command(consensus.KindResults, m.Result("alpha/n1", "gamma/n1", "old", later), m.Result("beta/n1", "gamma/n1", "old", later))
			m.Command(consensus.KindProposal, m.Proposal(audittest.Remove("old"), "alpha", "beta"))
			return m.publish("alpha/n1", "gamma/n1"), nil
		}, "12:unpublished"},
		{"size edited", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return edit(t, m.publish(seats...), "checkpoint", "\n8\n", "\n7\n"), nil
		}, "0:entries_missing 0:tile_missing"},
		{"size edited upwards", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return edit(t, m.publish(seats...), "checkpoint", "\n8\n", "\n9\n"), nil
		}, "0:entries_missing 0:tile_missing"},
		{"root edited", func(t *testing.T, m *mesh) (string, func(*Options)) {
			path := m.publish(seats...)
			data, err := os.ReadFile(filepath.Join(path, "checkpoint"))
			m.check(err)
			root := strings.Split(string(data), "\n")[2]
			return edit(t, path, "checkpoint", root, "AAAA"+root[4:]), nil
		}, "8:checkpoint_invalid"},
		{"signed by another log key", func(t *testing.T, m *mesh) (string, func(*Options)) {
			path := m.publish(seats...)
			reader, err := transparency.OpenReader(path)
			m.check(err)
			defer reader.Close()
			old, err := reader.Checkpoint(t.Context())
			m.check(err)
			head, err := transparency.ParseCheckpoint(old)
			m.check(err)
			cp, err := transparency.NewCheckpoint(head, audittest.Key("stolen"))
			m.check(err)
			m.check(os.WriteFile(filepath.Join(path, "checkpoint"), cp, 0o600))
			return path, nil
		}, "8:checkpoint_invalid"},
		{"another origin", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return edit(t, m.publish(seats...), "checkpoint", "sim.", "sim.x."), nil
		}, "8:checkpoint_invalid"},
		{"malformed", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return edit(t, m.publish(seats...), "checkpoint", "\n8\n", "\n+8\n"), nil
		}, "0:checkpoint_invalid"},
		{"no checkpoint, but tiles", func(t *testing.T, m *mesh) (string, func(*Options)) {
			path := m.publish(seats...)
			m.check(os.Remove(filepath.Join(path, "checkpoint")))
			return path, nil
		}, "0:checkpoint_missing"},
		{"a cosignature over another size", func(t *testing.T, m *mesh) (string, func(*Options)) {
			older := m.publish("gamma/n1")
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			path := m.publish("alpha/n1", "beta/n1")
			line := lastLine(t, filepath.Join(older, "checkpoint"))
			return edit(t, path, "checkpoint", "", line), nil
		}, "9:cosignature_invalid"},
		{"cosigned in the future", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return m.publish(seats...), func(o *Options) { o.At = o.At.Add(-time.Hour) }
		}, "8:cosignature_time 8:cosignature_time 8:cosignature_time 8:unpublished"},
		{"stale", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return m.publish(seats...), func(o *Options) { o.At, o.MaxAge = o.At.Add(time.Hour), time.Minute }
		}, "8:stale"},
		{"old, but nobody asks", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return m.publish(seats...), func(o *Options) { o.At = o.At.Add(10000 * time.Hour) }
		}, ""},
		{"an entry flipped", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return edit(t, m.publish(seats...), "tile/entries/000.p/8", string(m.Leaves[5][len(m.Leaves[5])-50:]), strings.Repeat("x", 50)), nil
		}, "5:entry_mismatch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := started(t)
			path, change := c.do(t, m)
			if change == nil {
				change = func(*Options) {}
			}
			r := m.audit(path, change)
			if got := codes(r); got != c.want {
				t.Errorf("got %q, want %q\n%+v", got, c.want, r.Findings)
			}
			if r.Undecided() != (c.name == "stale") {
				t.Errorf("undecided: %v", r.Undecided())
			}
		})
	}
}

// otherGenesis differs in its name alone.
func (m *mesh) otherGenesis() *consensus.Genesis {
	m.t.Helper()
	g, err := consensus.DecodeGenesis(payloadOf(m, m.Genesis.Raw()))
	m.check(err)
	other, err := consensus.SignGenesis(&consensus.Genesis{Name: "another", Nonce: g.Nonce, CreatedAt: g.CreatedAt, LogOrigin: g.LogOrigin, FSMVersion: g.FSMVersion,
		StoreKind: g.StoreKind, AllowSim: g.AllowSim, Organisations: g.Organisations, Kinds: g.Kinds, Roots: g.Roots, Policy: g.Policy, Witnesses: g.Witnesses, Limits: g.Limits},
		audittest.Signer("alpha govern"), audittest.Signer("beta govern"), audittest.Signer("gamma govern"))
	m.check(err)
	return other
}

// edit replaces old by new in a file, or appends where old is empty.
func edit(t *testing.T, root, name, old, new string) string {
	t.Helper()
	file := filepath.Join(root, name)
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := strings.Replace(string(data), old, new, 1)
	if old == "" {
		out = string(data) + new
	}
	if out == string(data) {
		t.Fatalf("%s does not hold %q", name, old)
	}
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

func lastLine(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	return lines[len(lines)-2]
}

func TestServerAndErrors(t *testing.T) {
	m := started(t)
	path := m.publish(seats...)
	server := httptest.NewServer(http.FileServer(http.Dir(path)))
	defer server.Close()
	if r := m.audit(server.URL); !r.OK || r.Level != transparency.Strong {
		t.Errorf("%+v", r)
	}
	if r := m.audit(server.URL, func(o *Options) { o.Genesis = nil }); !r.OK || r.GenesisGiven || len(r.Proves()) != 5 {
		t.Errorf("without a genesis: %+v", r)
	}
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/tile/") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		http.FileServer(http.Dir(path)).ServeHTTP(w, req)
	}))
	defer broken.Close()
	if r := m.audit(broken.URL); codes(r) != "0:unavailable" || !r.Undecided() {
		t.Errorf("%+v", r)
	}
	reader, err := transparency.OpenReader(t.TempDir())
	m.check(err)
	defer reader.Close()
	if _, err := Log(t.Context(), reader, Options{At: time.Now()}); !errors.Is(err, ErrNoLog) {
		t.Errorf("an empty directory: %v", err)
	}
	if _, err := Log(t.Context(), reader, Options{}); err == nil {
		t.Error("audited without a time")
	}
	full, err := transparency.OpenReader(path)
	m.check(err)
	defer full.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Log(ctx, full, Options{At: time.Now()}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// However many leaves lie, the report stays small.
func TestReportIsBounded(t *testing.T) {
	m := started(t)
	for range 500 {
		m.Force([]byte("x"))
	}
	r := m.audit(m.publish(seats...))
	if len(r.Findings) != maxFindings+1 || r.Findings[maxFindings].Code != CodeMoreFindings || !strings.HasPrefix(r.Findings[maxFindings].Message, "400 more") {
		t.Errorf("%d findings, the last %+v", len(r.Findings), r.Findings[len(r.Findings)-1])
	}
}
