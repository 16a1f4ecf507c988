package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/audit/misbehaviour"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/transparency"
)

// TestQuiet: a log that grows as it should gives no alert, and each round stands at its newest
// checkpoint, also after a restart.
func TestQuiet(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.expect("")
	for _, boot := range []string{"alpha/n2", "beta/n2", "gamma/n2"} {
		m.Tick(time.Minute)
		m.Command(consensus.KindCredential, m.Credential(boot))
		l.publish(m, seats3...)
		w.now = m.At
		w.expect("")
		if w.kept.Audited.Size != uint64(len(m.Leaves)) {
			t.Errorf("stands at %d of %d", w.kept.Audited.Size, len(m.Leaves))
		}
		if err := w.start(); err != nil {
			t.Fatal(err)
		}
		w.expect("")
	}
	if len(w.warnings) > 0 {
		t.Error(w.warnings)
	}
}

// TestLeafRules: each rule about leaves fires at its leaf, once, and not at those beside it.
func TestLeafRules(t *testing.T) {
	later := func(d time.Duration) func(*consensus.AttestationResult) {
		return func(r *consensus.AttestationResult) { r.At = r.At.Add(d) }
	}
	for name, c := range map[string]struct {
		write func(*audittest.Mesh)
		want  string
		says  string
	}{
		"measurement not allowed": {func(m *audittest.Mesh) { m.Force(m.Result("alpha/n1", "beta/n1", "evil", later(time.Second))) }, "8:measurement_not_allowed!", ""},
		"allowed": {func(m *audittest.Mesh) {
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "old", later(time.Second)))
		}, "", ""},
		"policy changed": {func(m *audittest.Mesh) { m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta")) }, "8:policy_changed",
			"epoch 1: widen; + allow "},
		"policy change refused": {func(m *audittest.Mesh) { m.Force(m.Proposal(m.Add("next"), "alpha")) }, "8:threshold!", ""},
		"suspended": {func(m *audittest.Mesh) {
			x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
			m.Command(consensus.KindSuspension, x)
			m.Command(consensus.KindLift, m.Lift(x, "beta", "gamma"))
		}, "8:policy_changed 9:policy_changed", "! no data for node beta/n1"},
		"unknown verifier": {func(m *audittest.Mesh) { m.Force(m.Result("gamma/n7", "beta/n1", "new")) }, "8:unknown_verifier!", "gamma/n7"},
		"contraindicated": {func(m *audittest.Mesh) {
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "evil", later(time.Second), audittest.Refusing(attest.VerdictContraindicated, attest.CodeDebug)))
		}, "8:contraindicated", "alpha/n1 found beta/n1 contraindicated"},
		"cannot decide": {func(m *audittest.Mesh) {
			m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n1", "evil", later(time.Second), audittest.Refusing(attest.VerdictNone, attest.CodeUnavailable)))
		}, "", ""},
		"round": {func(m *audittest.Mesh) { m.Force(m.Round(0)) }, "", ""},
		"not affirmed in a round": {func(m *audittest.Mesh) {
			m.Command(consensus.KindCredential, m.Credential("beta/n2"))
			m.Force(m.Round(0, func(r *federated.Round) { r.Accepted = append(r.Accepted, audittest.Accepted("beta/n2")) }))
		}, "9:not_eligible!", "beta/n2"},
		"unreadable":   {func(m *audittest.Mesh) { m.Force([]byte("nothing")) }, "8:malformed!", ""},
		"made ahead":   {func(m *audittest.Mesh) { m.Force(m.Result("alpha/n1", "beta/n1", "old", later(3*time.Minute))) }, "8:clock_skew", "by its clock"},
		"made in time": {func(m *audittest.Mesh) { m.Force(m.Result("alpha/n1", "beta/n1", "old", later(time.Minute))) }, "", ""},
		"recovered":    {func(m *audittest.Mesh) { m.Recover(1, "reborn", 8, 8) }, "8:recovered", "incarnation 1"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh()
			l := newLogDir(t).publish(m, seats3...)
			w := newWatch(t, m, l.path)
			w.expect("")
			c.write(m)
			l.publish(m, m.Cosigners()...)
			if err := w.round(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(w.out.alerts) > 0 {
				if got := w.out.alerts[0]; !strings.Contains(got.Message, c.says) || got.ID == "" || got.Origin == "" || got.Time != w.now {
					t.Errorf("%+v does not say %q", got, c.says)
				}
			}
			if got := w.out.codes(); got != c.want {
				t.Errorf("told %q, want %q", got, c.want)
			}
			w.expect("")
		})
	}
}

// TestExpiredBefore: a result that had expired when the log was last cosigned without it came late.
func TestExpiredBefore(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.expect("")
	old := m.Result("alpha/n1", "beta/n1", "old", func(r *consensus.AttestationResult) { r.At = r.At.Add(time.Second); r.Expires = r.At.Add(time.Minute) })
	m.Tick(10 * time.Minute)
	l.publish(m, seats3...)
	w.now = m.At
	w.expect("")
	m.Force(old)
	l.publish(m, seats3...)
	w.expect("8:clock_skew")
}

// TestMatch: rules of the operator's match whole values of what leaves are about, from start to end.
func TestMatch(t *testing.T) {
	m := audittest.Complete()
	l := newLogDir(t).publish(m, m.Cosigners()...)
	count := func(change func(*Config)) map[string]int {
		t.Helper()
		w := newWatch(t, m, l.path)
		change(&w.cfg)
		w.cfg.MaxGrowth = 1 << 20
		if err := w.start(); err != nil {
			t.Fatal(err)
		}
		if err := w.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		out := map[string]int{}
		last := uint64(0)
		for _, a := range w.out.alerts {
			if a.Index != nil && *a.Index < last {
				t.Errorf("leaf %d is told after %d", *a.Index, last)
			}
			if a.Code == CodeMatch {
				out[a.Rule]++
				last = *a.Index
			}
		}
		return out
	}
	got := count(func(c *Config) {
		c.Rules = []Rule{{Name: "all", Kind: ".*"}, {Name: "beta", Node: "beta/n2"}, {Name: "none", Node: "beta/n"}, {Name: "org", Organisation: "delta|gamma", Kind: "credential"},
			{Name: "verdict", Verdict: "contraindicated|none", Verifier: "beta/.*"}, {Name: "release", Measurement: audittest.Measurement("next"), Kind: "proposal"},
			{Name: "rounds", Kind: "round", Node: "gamma/n1"}}
	})
	if got["all"] != len(m.Leaves) || got["beta"] < 3 || got["none"] != 0 || got["org"] == 0 || got["verdict"] != 2 || got["release"] != 2 || got["rounds"] < 2 {
		t.Errorf("%v of %d leaves", got, len(m.Leaves))
	}
	if got := count(func(c *Config) { c.Start, c.End, c.Rules = 5, 20, []Rule{{Name: "all", Kind: ".*"}} }); got["all"] != 15 {
		t.Errorf("from 5 to 20: %v", got)
	}
}

// TestCopies: two copies that tell two histories are found, with the proof of it, whoever is behind.
func TestCopies(t *testing.T) {
	m := newMesh()
	a, b := newLogDir(t).publish(m, seats3...), newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, a.path, b.path)
	w.expect("")
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	a.publish(m, seats3...)
	w.expect("")
	other := newMesh()
	other.Command(consensus.KindCredential, other.Credential("gamma/n2"))
	b.publish(other, seats3...)
	if err := w.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(w.out.alerts) != 1 || w.out.alerts[0].Code != CodeMisbehaviour || w.out.alerts[0].Subject != b.path {
		t.Fatalf("%+v", w.out.alerts)
	}
	raw, err := os.ReadFile(filepath.Join(w.cfg.State, w.out.alerts[0].Evidence))
	if err != nil {
		t.Fatal(err)
	}
	r, err := misbehaviour.Verify(raw, m.Genesis)
	if err != nil || r.Verdict != misbehaviour.VerdictMisbehaviour || len(r.Convicted) != 3 {
		t.Errorf("%+v, %v", r, err)
	}
	w.out.codes()
	w.expect("") // told once
	if got := w.openCodes(); got != "misbehaviour" {
		t.Errorf("lasts: %s", got)
	}
	// It grows on its own branch, and the other one stays what is followed.
	other.Command(consensus.KindCredential, other.Credential("gamma/n3"))
	b.publish(other, seats3...)
	w.expect("")
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	w.expect("")
	if w.kept.Audited.Size != uint64(len(m.Leaves)) || w.openCodes() != "misbehaviour" {
		t.Errorf("%d, %s", w.kept.Audited.Size, w.openCodes())
	}
	list, err := os.ReadDir(filepath.Join(w.cfg.State, evidenceDir))
	if err != nil || len(list) != 1 {
		t.Errorf("%d files of evidence, %v", len(list), err)
	}
}

// TestForkBetweenRounds: one copy that goes on from another history than before, with and without a
// quorum.
func TestForkBetweenRounds(t *testing.T) {
	for want, boots := range map[string][]string{"+misbehaviour!": seats3, "+log_key_leaked!": nil} {
		m := newMesh()
		m.Command(consensus.KindCredential, m.Credential("beta/n2"))
		w := newWatch(t, m, newLogDir(t).publish(m, seats3...).path)
		w.expect("")
		other := newMesh()
		other.Command(consensus.KindCredential, other.Credential("gamma/n2"))
		other.Command(consensus.KindCredential, other.Credential("gamma/n3"))
		if err := os.RemoveAll(w.cfg.Logs[0]); err != nil {
			t.Fatal(err)
		}
		other.Publish(w.cfg.Logs[0], boots...)
		if err := w.start(); err != nil {
			t.Fatal(err)
		}
		if got := w.poll(); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
		if w.kept.Audited.Size != 9 {
			t.Errorf("stands at %d", w.kept.Audited.Size)
		}
	}
}

// TestCheckpoints: what is wrong with checkpoints begins and ends.
func TestCheckpoints(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.expect("")
	first, err := os.ReadFile(filepath.Join(l.path, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	l.publish(m, "alpha/n1")
	w.expect("+unpublished!")
	l.show([]byte("nothing"))
	w.expect("+checkpoint_invalid!")
	if got := w.openCodes(); got != "unpublished checkpoint_invalid" && got != "checkpoint_invalid unpublished" {
		t.Errorf("lasts: %s", got)
	}
	l.publish(m, seats3...)
	w.expect("-checkpoint_invalid -unpublished")
	l.show(first)
	w.expect("+rolled_back!")
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	w.expect("")
	l.publish(m, seats3...)
	w.expect("-rolled_back")
	if err := os.Remove(filepath.Join(l.path, "checkpoint")); err != nil {
		t.Fatal(err)
	}
	w.expect("")
	w.now = w.now.Add(unavailableFor)
	w.expect("+unavailable")
	w.now = w.now.Add(5*time.Minute + time.Second)
	l.publish(m, seats3...)
	w.expect("-unavailable +stale")
	m.Cosigned = w.now
	l.publish(m, seats3...)
	w.expect("-stale")
}

// TestUnpublishedCopy: a copy that shows what is audited, with too few cosignatures.
func TestUnpublishedCopy(t *testing.T) {
	m := newMesh()
	a, b := newLogDir(t).publish(m, seats3...), newLogDir(t).publish(m, "beta/n1")
	w := newWatch(t, m, a.path, b.path)
	w.expect("+unpublished!")
	b.publish(m, seats3...)
	w.expect("-unpublished")
}

// TestFlapping: what comes and goes is told when it first comes, and once it has stayed away.
func TestFlapping(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.hold = 30 * time.Second
	w.expect("")
	good, err := os.ReadFile(filepath.Join(l.path, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"+checkpoint_invalid!", "", ""} {
		l.show([]byte("nothing"))
		w.expect(want)
		if got := w.openCodes(); got != "checkpoint_invalid" {
			t.Errorf("lasts: %q", got)
		}
		w.now = w.now.Add(10 * time.Second)
		l.show(good)
		w.expect("")
		if got := w.openCodes(); got != "" {
			t.Errorf("lasts: %q", got)
		}
		w.now = w.now.Add(10 * time.Second)
	}
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	w.expect("")
	w.now = w.now.Add(20 * time.Second)
	w.expect("-checkpoint_invalid")
	w.expect("")
}

// TestRecovered: the log goes on in a higher incarnation, and a copy that does not come along is stale
// after a while. One that gives up what was published is another history.
func TestRecovered(t *testing.T) {
	m := newMesh()
	a, b := newLogDir(t).publish(m, seats3...), newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, a.path, b.path)
	w.expect("")
	m.Recover(1, "reborn", 8, 8)
	m.Cosigned = w.now
	a.publish(m, m.Cosigners()...)
	w.expect("8:recovered")
	w.now = w.now.Add(w.cfg.MaxAge)
	m.Cosigned = w.now
	a.publish(m, m.Cosigners()...)
	w.expect("+stale")
	b.publish(m, m.Cosigners()...)
	w.expect("-stale")

	shorter := newMesh()
	shorter.Recover(1, "reborn", 6, 6)
	for range 3 {
		shorter.Tick(time.Minute)
		shorter.Grow(len(shorter.Leaves) + 3)
	}
	l := newLogDir(t).publish(shorter, shorter.Cosigners()...)
	old := newMesh()
	w = newWatch(t, old, newLogDir(t).publish(old, seats3...).path)
	w.expect("")
	w.cfg.Logs = []string{l.path}
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	w.expect("+forked!")
	if w.kept.Audited.Size != 8 {
		t.Errorf("stands at %d", w.kept.Audited.Size)
	}
}

// TestSilent: a seat that is missing is told once it is, whatever copy it is missing from.
func TestSilent(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.cfg.Level = transparency.Strong.String()
	w.expect("")
	for _, want := range []string{"", "", "+cosigner_silent", "+below_strong", ""} {
		w.now = w.now.Add(2 * time.Minute)
		m.Cosigned = w.now
		l.publish(m, "alpha/n1", "gamma/n1")
		w.expect(want)
	}
	l.publish(m, seats3...)
	w.expect("-below_strong -cosigner_silent")
}

// TestTampered: files that are not those of the log are named, and nothing of them is told.
func TestTampered(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.cfg.Rules = []Rule{{Name: "all", Kind: ".*"}}
	for range 8 {
		w.poll()
	}
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	l.publish(m, seats3...)
	name := filepath.Join(l.path, "tile/entries/000.p/9")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	bad := []byte(strings.Replace(string(good), "signatures", "signaturez", 9))
	if err := os.WriteFile(name, bad, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := w.poll(); !strings.Contains(got, "+entry_mismatch!") || strings.Contains(got, "match ") && !strings.Contains(got, "mismatch") {
		t.Errorf("told %q", got)
	}
	w.expect("")
	if err := os.WriteFile(name, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := w.poll(); !strings.HasPrefix(got, "8:match -entry_mismatch") {
		t.Errorf("told %q", got)
	}
}

// TestReceipts: a leaf that somebody was promised is missing, and found.
func TestReceipts(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	dir := t.TempDir()
	file := func(name string, data []byte) Receipt {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := ReadReceipt(path)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	promised := m.Credential("beta/n2")
	w := newWatch(t, m, l.path)
	w.receipts = []Receipt{file("there", m.Leaves[3]), file("promised", append(promised, '\n'))}
	w.expect("")
	w.now = w.now.Add(time.Minute)
	m.Cosigned = w.now
	l.publish(m, seats3...)
	w.expect("+omission!")
	m.Command(consensus.KindCredential, promised)
	l.publish(m, seats3...)
	w.expect("-omission")
	// One that is given later is looked for in what was audited before.
	w.receipts = append(w.receipts, file("earlier", m.Leaves[4]), file("never", m.Credential("gamma/n9")))
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	w.expect("")
	w.now = w.now.Add(time.Minute)
	m.Cosigned = w.now
	l.publish(m, seats3...)
	w.expect("+omission!")
}

// TestProvenReceipt: a proof from another history is an omission in this one.
func TestProvenReceipt(t *testing.T) {
	m, other := newMesh(), newMesh()
	other.Command(consensus.KindCredential, other.Credential("gamma/n2"))
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	prove := func(of *audittest.Mesh) Receipt {
		t.Helper()
		l := newLogDir(t).publish(of, seats3...)
		path, err := l.tree.InclusionProof(8, 9)
		if err != nil {
			t.Fatal(err)
		}
		r, err := newReceipt(of.Leaves[8], 8, path, of.Checkpoint(l.tree, seats3...))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := newReceipt(of.Leaves[7], 8, path, of.Checkpoint(l.tree, seats3...)); err == nil {
			t.Error("another leaf is proven")
		}
		return r
	}
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.receipts = []Receipt{prove(m), prove(other)}
	w.expect("+omission!")
	m.Command(consensus.KindCredential, m.Credential("beta/n3"))
	l.publish(m, seats3...)
	w.expect("")
}

// TestGrowth: more leaves than members write by their own rule.
func TestGrowth(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.cfg.MaxGrowth = 20
	w.expect("")
	m.Tick(2 * time.Minute)
	m.Grow(28)
	l.publish(m, seats3...)
	w.now = m.At
	w.poll()
	if got := w.openCodes(); got != "" {
		t.Errorf("lasts: %s", got)
	}
	m.Tick(2 * time.Minute)
	m.Grow(45)
	l.publish(m, seats3...)
	w.now = m.At
	w.poll()
	if got := w.openCodes(); got != "growth" {
		t.Errorf("lasts: %s", got)
	}
}

// TestStateDirectory: one of another mesh, of another range, damaged, or in use is refused.
func TestStateDirectory(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.expect("")
	again := *w
	again.Monitor = nil
	if err := again.start(); !errors.Is(err, durable.ErrInUse) {
		t.Errorf("in use: %v", err)
	}
	stranger := audittest.New(audittest.Options{At: begin, Edit: func(g *consensus.Genesis) { g.Name = "other" }}).Start()
	w.genesis = stranger.Genesis
	if err := w.start(); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("another genesis: %v", err)
	}
	w.genesis, w.cfg.Logs = nil, []string{newLogDir(t).publish(stranger, seats3...).path}
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	if err := w.round(t.Context()); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("another log: %v", err)
	}
	w.cfg.Logs = append(w.cfg.Logs, l.path)
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	w.expect("+wrong_mesh!")
	w.cfg.Start = 3
	if err := w.start(); !errors.Is(err, ErrStart) {
		t.Errorf("another start: %v", err)
	}
	w.cfg.Start = 0
	good, err := os.ReadFile(filepath.Join(w.cfg.State, stateName))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"{", "{}", strings.Replace(string(good), stateFormat, "meshnode-monitor/v9", 1)} {
		if err := os.WriteFile(filepath.Join(w.cfg.State, stateName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := w.start(); !errors.Is(err, ErrBroken) {
			t.Errorf("%.60s: %v", bad, err)
		}
	}
}

// TestAuditMadeAgain: where the kept audit cannot be read, the log is read again and nothing is told
// twice, nor another history taken for it.
func TestAuditMadeAgain(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	w := newWatch(t, m, l.path)
	w.cfg.Rules = []Rule{{Name: "all", Kind: ".*"}}
	if got := w.poll(); strings.Count(got, "match") != 8 {
		t.Errorf("told %q", got)
	}
	if err := os.WriteFile(filepath.Join(w.cfg.State, w.kept.Audit), []byte("of another release"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.start(); err != nil {
		t.Fatal(err)
	}
	if len(w.warnings) != 1 {
		t.Error(w.warnings)
	}
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	l.publish(m, seats3...)
	w.expect("8:match")
}

// TestFirstLogs: no log, an empty one, and none at all yet.
func TestFirstLogs(t *testing.T) {
	m := newMesh()
	l := newLogDir(t)
	w := newWatch(t, m, l.path)
	w.expect("")
	w.now = w.now.Add(unavailableFor)
	w.expect("+unavailable")
	l.show(m.Sealed(0, emptyRoot(t), seats3...))
	w.expect("")
	l.publish(m, seats3...)
	w.expect("-unavailable")
}

// TestTileOfHeld: a tile that is wrong in a copy whose entries hold is told, and the entries too.
func TestTileOfHeld(t *testing.T) {
	m := newMesh()
	l := newLogDir(t).publish(m, seats3...)
	name := filepath.Join(l.path, "tile/0/000.p/8")
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	raw[40] ^= 1
	if err := os.WriteFile(name, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWatch(t, m, l.path)
	w.expect("1:tile_mismatch!")
	w.expect("")
	if w.kept.Audited.Size != 8 {
		t.Errorf("stands at %d", w.kept.Audited.Size)
	}
}
