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
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The whole story of a mesh audits clean, at every size that a checkpoint could have had.
func TestCleanLog(t *testing.T) {
	m := started(t)
	m.command(consensus.KindCredential, m.credential("beta/n2"))
	m.command(consensus.KindProposal, m.proposal(m.add("newer"), "alpha", "gamma"))
	m.command(consensus.KindResults, m.result("alpha/n1", "beta/n2", "newer"), m.result("gamma/n1", "beta/n2", "newer"))
	m.command(consensus.KindResults, m.result("beta/n2", "alpha/n1", "new", func(r *consensus.AttestationResult) {
		r.Verdict, r.Codes, r.Reference = attest.VerdictContraindicated, []attest.Code{attest.CodeDebug}, ""
	}))
	out := m.command(consensus.KindProposal, m.proposal(remove("newer"), "alpha", "beta"))
	if len(out.Evicted) != 1 {
		t.Fatalf("evicted %v", out.Evicted)
	}
	m.command(consensus.KindCredential, m.credential("beta/n2 again"))
	m.command(consensus.KindCredential, m.credential("alpha/n1 again")) // a seat reboots: a derived leaf
	all := m.leaves
	report := m.audit(m.publish("beta/n1", "gamma/n1"))
	if !report.OK || report.Entries != uint64(len(all)) || report.Level != transparency.Strong || fmt.Sprint(report.Cosigners) != "[beta gamma]" ||
		report.Policies != 2 || report.Results != 9 || report.Members != 4 || !report.Simulated {
		t.Errorf("%+v", report)
	}
	for size := 8; size < len(all); size++ {
		m.leaves = all[:size]
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

// Each lie of a majority of seats is found in the leaf that tells it. The tree itself is
// sound and signed by all.
func TestLyingSeats(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"result by nobody's key", func(m *mesh) {
			m.force(m.result("delta/n1", "alpha/n1", "new"))
		}, "8:no_credential"},
		{"result with a bad signature", func(m *mesh) {
			raw := m.result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) })
			e, err := envelope.Parse(raw)
			m.check(err)
			e.Signatures[0].Sig[5] ^= 1
			m.force(e.Marshal())
		}, "8:wrong_signer"},
		{"result with an extra signature", func(m *mesh) {
			e, err := envelope.Parse(m.result("alpha/n1", "beta/n1", "new"))
			m.check(err)
			m.check(e.Sign(m.signer("stranger")))
			m.force(e.Marshal())
		}, "8:wrong_signer"},
		{"result in another spelling", func(m *mesh) {
			m.force(bytes.Replace(m.result("alpha/n1", "beta/n1", "new"), []byte(`","`), []byte(`", "`), 1))
		}, "8:malformed"},
		{"result of another payload type", func(m *mesh) {
			m.force(bytes.Replace(m.result("alpha/n1", "beta/n1", "new"), []byte("in-toto+json"), []byte("in-toto+jsom"), 1))
		}, "8:malformed"},
		{"affirming a measurement that nobody allowed", func(m *mesh) {
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.force(m.result("alpha/n1", "beta/n2", "evil"))
		}, "9:measurement_not_allowed"},
		{"affirming a measurement before it is allowed", func(m *mesh) {
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.force(m.result("alpha/n1", "beta/n2", "newer"))
			m.command(consensus.KindProposal, m.proposal(m.add("newer"), "alpha", "gamma"))
		}, "9:measurement_not_allowed"},
		{"affirming a revoked measurement", func(m *mesh) {
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.command(consensus.KindProposal, m.proposal(remove("old"), "alpha", "gamma"))
			m.force(m.result("alpha/n1", "beta/n2", "old"))
		}, "10:revoked"},
		{"result of an epoch to come", func(m *mesh) {
			m.force(m.result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.Epoch++; r.At = r.At.Add(time.Second) }))
		}, "8:behind"},
		{"result of another mesh", func(m *mesh) {
			m.force(m.result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.MeshID[0] ^= 1 }))
		}, "8:wrong_mesh"},
		{"result ordered twice", func(m *mesh) { m.force(m.leaves[3]) }, "8:replayed"},
		{"result ordered after it expired", func(m *mesh) {
			late := func(r *consensus.AttestationResult) { r.At, r.Expires = r.At.Add(3*time.Hour), r.At.Add(4*time.Hour) }
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.tick(3 * time.Hour)
			m.at = m.at.Add(-3 * time.Hour)
			m.command(consensus.KindResults, m.result("alpha/n1", "beta/n1", "new", late))
			m.force(m.result("alpha/n1", "beta/n2", "new"))
		}, "10:stale"},
		{"affirming an expired entry", func(m *mesh) {
			late := func(r *consensus.AttestationResult) {
				r.Reference = m.entry("brief", func(e *consensus.Entry) { e.NotAfter = m.at.Add(time.Hour) }).ID
				r.At, r.Expires = r.At.Add(3*time.Hour), r.At.Add(4*time.Hour)
			}
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.force(m.result("alpha/n1", "beta/n2", "brief", late))
		}, "9:expired"},
		{"proposal with too few organisations", func(m *mesh) {
			m.force(m.proposal(m.add("evil"), "alpha"))
		}, "8:threshold"},
		{"proposal signed twice by one organisation", func(m *mesh) {
			m.force(m.proposal(m.add("evil"), "alpha", "alpha enroll"))
		}, "8:wrong_signer"},
		{"proposal on a base that is gone", func(m *mesh) {
			stale := m.proposal(m.add("evil"), "alpha", "beta", "gamma")
			m.command(consensus.KindProposal, m.proposal(m.add("newer"), "alpha", "gamma"))
			m.force(stale)
		}, "9:stale_base"},
		{"proposal ordered twice", func(m *mesh) {
			m.command(consensus.KindProposal, m.proposal(remove("old"), "alpha", "gamma"))
			m.force(m.leaves[8])
		}, "9:replayed"},
		{"proposal ordered after it expired", func(m *mesh) {
			m.force(m.proposalUntil(m.at.Add(-time.Hour), remove("old"), "alpha", "gamma"))
		}, "8:proposal_expired"},
		{"credential by another organisation", func(m *mesh) {
			m.force(m.sign(payloadOf(m, m.credential("beta/n2")), "alpha enroll"))
		}, "8:no_credential"},
		{"credential of an older boot", func(m *mesh) {
			m.force(m.credential("beta/n1 before", func(c *consensus.Credential) { c.BootSeq = 1 }))
		}, "8:retired"},
		{"seat removed without a cause", func(m *mesh) {
			m.force(m.removal("beta/n1", attest.CodeRevoked, "proposal x"))
		}, "8:not_derived"},
		{"seat removed as expired that is not", func(m *mesh) {
			m.force(m.removal("beta/n1", attest.CodeExpired, "tick 5"))
		}, "8:not_derived"},
		{"removal left out", func(m *mesh) {
			m.command(consensus.KindCredential, m.credential("alpha/n1 again"))
			m.leaves = m.leaves[:9]
			m.command(consensus.KindCredential, m.credential("beta/n2"))
		}, "9:derived_missing"},
		{"unknown kind of leaf", func(m *mesh) {
			payload, err := envelope.NewPayload("https://example.org/x/v1", envelope.SubjectOf("x", nil), struct{}{})
			m.check(err)
			m.force(m.sign(payload, "stranger"))
		}, "8:unknown_leaf"},
		{"a leaf of rubbish", func(m *mesh) { m.force([]byte("rubbish\x00")) }, "8:malformed"},
		{"an empty leaf", func(m *mesh) { m.force(nil) }, "8:malformed"},
		{"a second Bootstrap", func(m *mesh) { m.force(m.leaves[1]) }, "8:unknown_leaf"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := started(t)
			c.do(m)
			if got := codes(m.audit(m.publish(seats[1:]...))); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func payloadOf(m *mesh, raw []byte) []byte {
	m.t.Helper()
	e, err := envelope.Parse(raw)
	m.check(err)
	return e.Payload
}

// removal forges the unsigned leaf of a seat's removal.
func (m *mesh) removal(node string, code attest.Code, cause string) []byte {
	m.t.Helper()
	payload, err := envelope.NewPayload(envelope.TypeMembership, envelope.SubjectOf(node, []byte(peerOf(node))), consensus.Membership{
		MeshID: m.g.MeshID(), Epoch: m.s.Epoch(), Change: consensus.ChangeSeatRemoved, Node: m.ref(node), Peer: peerOf(node), Code: code, Cause: cause})
	m.check(err)
	return (&envelope.Envelope{Payload: payload}).Marshal()
}

// A seat whose entry has run out is removed by a tick, which leaves no leaf of its own.
func TestExpiryIsReplayed(t *testing.T) {
	m := started(t)
	brief := func(r *consensus.AttestationResult) {
		r.Reference = m.entry("brief", func(e *consensus.Entry) { e.NotAfter = m.at.Add(time.Hour) }).ID
		r.At = r.At.Add(time.Second)
	}
	m.command(consensus.KindResults, m.result("alpha/n1", "gamma/n1", "brief", brief), m.result("beta/n1", "gamma/n1", "brief", brief))
	if out := m.tick(2 * time.Hour); len(out.Leaves) != 1 {
		t.Fatalf("%d leaves", len(out.Leaves))
	}
	m.command(consensus.KindProposal, m.proposal(remove("old"), "alpha", "beta"))
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
			e, err := envelope.Parse(m.leaves[0])
			m.check(err)
			e.Signatures = e.Signatures[:2]
			m.leaves[0] = e.Marshal()
			return m.publish(seats...), nil
		}, "0:genesis_invalid"},
		{"Bootstrap lacks a founder's signature", func(t *testing.T, m *mesh) (string, func(*Options)) {
			e, err := envelope.Parse(m.leaves[1])
			m.check(err)
			e.Signatures = e.Signatures[:2]
			m.leaves[1] = e.Marshal()
			return m.publish(seats...), nil
		}, "1:bootstrap_invalid"},
		{"nothing but genesis", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.leaves = m.leaves[:1]
			return m.publish(), nil
		}, "1:unpublished"},
		{"an empty log", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.leaves = nil
			return m.publish(), nil
		}, "0:unpublished"},
		{"too few organisations", func(t *testing.T, m *mesh) (string, func(*Options)) {
			return m.publish("beta/n1"), nil
		}, "8:unpublished"},
		{"cosigners without an affirming result", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.leaves = m.leaves[:3] // alpha has affirmed beta: one that counts
			return m.publish(seats...), nil
		}, "3:unpublished"},
		{"cosigned by a node that has no seat", func(t *testing.T, m *mesh) (string, func(*Options)) {
			m.command(consensus.KindCredential, m.credential("beta/n2"))
			m.command(consensus.KindResults, m.result("alpha/n1", "beta/n2", "new"), m.result("gamma/n1", "beta/n2", "new"))
			return m.publish("alpha/n1", "beta/n2"), nil
		}, "11:unpublished"},
		{"cosigned by a seat that was evicted", func(t *testing.T, m *mesh) (string, func(*Options)) {
			later := func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second) }
			m.command(consensus.KindResults, m.result("alpha/n1", "gamma/n1", "old", later), m.result("beta/n1", "gamma/n1", "old", later))
			m.command(consensus.KindProposal, m.proposal(remove("old"), "alpha", "beta"))
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
			cp, err := transparency.NewCheckpoint(head, key("stolen"))
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
			m.command(consensus.KindCredential, m.credential("beta/n2"))
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
			return edit(t, m.publish(seats...), "tile/entries/000.p/8", string(m.leaves[5][len(m.leaves[5])-50:]), strings.Repeat("x", 50)), nil
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
	g, err := consensus.DecodeGenesis(payloadOf(m, m.g.Raw()))
	m.check(err)
	other, err := consensus.SignGenesis(&consensus.Genesis{Name: "another", Nonce: g.Nonce, CreatedAt: g.CreatedAt, LogOrigin: g.LogOrigin, FSMVersion: g.FSMVersion,
		StoreKind: g.StoreKind, AllowSim: g.AllowSim, Organisations: g.Organisations, Kinds: g.Kinds, Roots: g.Roots, Policy: g.Policy, Witnesses: g.Witnesses, Limits: g.Limits},
		m.signer("alpha govern"), m.signer("beta govern"), m.signer("gamma govern"))
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
		m.force([]byte("x"))
	}
	r := m.audit(m.publish(seats...))
	if len(r.Findings) != maxFindings+1 || r.Findings[maxFindings].Code != CodeMoreFindings || !strings.HasPrefix(r.Findings[maxFindings].Message, "400 more") {
		t.Errorf("%d findings, the last %+v", len(r.Findings), r.Findings[len(r.Findings)-1])
	}
}
