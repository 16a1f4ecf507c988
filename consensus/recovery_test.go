package consensus

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// governed returns a started mesh of n organisations of the newest version, in which all
// nodes run "new", that has voted "old" out and suspended beta/n1.
func governed(t testing.TB, n int) *mesh {
	t.Helper()
	g := genesisOf(t, n)
	g.FSMVersion = fsmGovernance
	m := newMeshOf(t, g)
	m.start()
	m.attestAll(allNew)
	m.ok(m.order(m.propose(remove("old")), NarrowThreshold(n)))
	raw, _ := m.suspend("alpha emergency")
	m.ok(m.command(KindSuspension, raw))
	return m
}

// leavesOf applies the commands of m to a new state and returns the leaves.
func (m *mesh) leavesOf() (leaves [][]byte) {
	m.t.Helper()
	s := NewState(m.g)
	for _, c := range m.log {
		leaves = append(leaves, s.Apply(c).Leaves...)
	}
	return leaves
}

// replayed returns the state that leaves lead to.
func (m *mesh) replayed(leaves [][]byte) *State {
	m.t.Helper()
	s := NewState(m.g)
	m.ok(s.Apply(must(NewCommand(KindBootstrap, leaves[0], leaves[1]))))
	for i, leaf := range leaves[2:] {
		if s.Started() && bytes.Contains(must(envelope.Parse(leaf)).Payload, []byte("/membership/")) {
			continue // derived by the leaf before
		}
		if _, err := s.Replay(leaf); err != nil {
			m.t.Fatalf("leaf %d: %v", i+2, err)
		}
	}
	return s
}

func place(leaves [][]byte) CheckpointSeen {
	return CheckpointSeen{Size: uint64(len(leaves)), Root: sha256Hex(bytes.Join(leaves, nil))} // of no tree, but of these leaves
}

// draft returns a Recovery of m to incarnation 1 with all organisations, but for the changes.
func (m *mesh) draft(s *State, at CheckpointSeen, change ...func(*Recovery)) *RecoveryFile {
	m.t.Helper()
	r := Recovery{Incarnation: s.Incarnation() + 1, Organisations: m.orgs(), Nonce: strings.Repeat("cd", 16), Created: m.at, Expires: m.at.Add(time.Hour)}
	for _, f := range change {
		f(&r)
	}
	file, err := s.DraftRecovery(r, at)
	if err != nil {
		m.t.Fatal(err)
	}
	return file
}

// recovery returns the signed envelope of file.
func (m *mesh) recovery(file *RecoveryFile, k int) []byte {
	m.t.Helper()
	return m.sign(file.Envelope().Payload, m.governors(k)...)
}

func inIncarnation(inc identity.Incarnation) func(*Credential) {
	return func(c *Credential) { c.Incarnation = inc }
}

// rebirth returns the Bootstrap of the incarnation that s is recovering to, with boot n of
// each founder, signed by the given organisations' enrollers; all if none is given.
func (m *mesh) rebirth(s *State, n int, orgs ...identity.OrgID) []byte {
	m.t.Helper()
	var creds [][]byte
	var labels []string
	for _, o := range s.Founders() {
		creds = append(creds, m.credential(string(o)+"/n1", n, inIncarnation(s.Incarnation())))
	}
	if len(orgs) == 0 {
		orgs = s.Founders()
	}
	for _, o := range orgs {
		labels = append(labels, string(o)+" enroll")
	}
	payload, err := s.NewBootstrap(1, creds, key(fmt.Sprint("log of ", s.Incarnation())).Public().(ed25519.PublicKey), m.at)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.sign(payload, labels...)
}

// Whoever has the leaves recovers to the same state: the policy goes on, what is suspended
// stays suspended, nodes are void.
func TestRecovery(t *testing.T) {
	m := governed(t, 5)
	leaves := m.leavesOf()
	at := place(leaves)
	s := m.replayed(leaves)
	old := m.s
	recovery := m.recovery(m.draft(s, at), 4)
	if err := s.Recover(recovery, at, m.at); err != nil {
		t.Fatal(err)
	}
	if s.Started() || !s.Recovering() || s.Incarnation() != 1 || s.Epoch() != old.Epoch()+1 || s.Base() != old.Base()+1 || len(s.Nodes()) != 0 {
		t.Fatalf("recovering: started %v incarnation %d epoch %d base %d nodes %s", s.Started(), s.Incarnation(), s.Epoch(), s.Base(), names(s.Nodes()))
	}
	m.s, m.log = s, nil
	m.refused(m.command(KindTick), attest.CodeNotStarted)
	m.refused(m.command(KindBootstrap, m.g.Raw(), newMeshOf(t, genesisOf(t, 5)).bootstrap(1)), attest.CodeWrongIncarnation)
	bootstrap := m.rebirth(s, 2)
	out := m.ok(m.command(KindRecovery, recovery, bootstrap))
	if len(out.Leaves) != 2 || !bytes.Equal(out.Leaves[0], recovery) || !bytes.Equal(out.Leaves[1], bootstrap) || len(s.Seats()) != 5 || s.Quorum() != 3 {
		t.Fatalf("%d leaves, seats %s, quorum %d", len(out.Leaves), names(s.Seats()), s.Quorum())
	}
	m.refused(m.command(KindRecovery, recovery, bootstrap), attest.CodeReplayed)
	if s.Continues() != at || s.Origin() != m.g.Origin(1) {
		t.Errorf("continues %+v as %s", s.Continues(), s.Origin())
	}

	// An auditor, and a member that holds the chain alone, come to the same.
	replayed := m.replayed(append(leaves, recovery, bootstrap))
	if replayed.Digest() != s.Digest() {
		t.Error("the replay of the leaves has another digest")
	}
	member, err := ReplayPolicy(m.g, s.PolicyChain())
	if err != nil || member.PolicyDigest() != s.PolicyDigest() || member.Incarnation() != 1 {
		t.Errorf("policy chain: %v", err)
	}
	lower, err := ReplayPolicy(m.g, old.PolicyChain())
	if err != nil {
		t.Fatal(err)
	}
	if err := lower.Extend(s.PolicyChain()); err != nil || lower.Incarnation() != 1 {
		t.Errorf("a member of incarnation 0 hears of 1: %v", err)
	}
	if err := lower.Extend(old.PolicyChain()); err == nil {
		t.Error("and goes back to 0")
	}

	m.at = m.at.Add(time.Minute)
	var samples [][]byte
	for _, o := range m.orgs() {
		samples = append(samples, m.sample(string(o)+"/n1", 2, func(x *TimeSample) { x.Incarnation = 1 }))
	}
	m.ok(m.command(KindTick, samples...))
	// Nothing of the lower incarnation counts any more.
	m.refused(m.command(KindCredential, m.credential("alpha/n2", 1)), attest.CodeWrongIncarnation)
	m.refused(m.command(KindTick, m.sample("alpha/n1", 2)), attest.CodeWrongIncarnation)
	m.refused(m.order(m.propose(add(entry(t, "x"))), 4), attest.CodeWrongIncarnation)
	if out := m.command(KindResults, m.result("alpha/n1", "beta/n1", "new")); out.Reason == nil && len(out.Leaves) > 0 {
		t.Error("a result of incarnation 0 was accepted")
	}
	m.refused(m.order(m.propose(func(p *Proposal) { p.Incarnation, p.Base = 1, old.Base() }, add(entry(t, "x"))), 4), attest.CodeStaleBase)
	m.ok(m.order(m.propose(func(p *Proposal) { p.Incarnation = 1 }, add(entry(t, "x"))), 4))
	if len(s.Revoked()) != 1 {
		t.Error("what was voted out is not remembered")
	}
	if _, suspended := s.SuspendedNode(identity.NodeRef{Org: "beta", Name: "n1"}, m.at); !suspended {
		t.Error("a recovery ended a suspension")
	}
}

// Who can found an incarnation is said by the constitution in force, not by genesis.
func TestRecoveryByOrganisationsInForce(t *testing.T) {
	m := governing(t, 3)
	m.ok(m.vote(m.propose(removeOrg("gamma"), addOrg("zeta")), by("alpha", "beta", "zeta")...))
	if got := fmt.Sprint(m.s.OrganisationIDs()); got != "[alpha beta zeta]" {
		t.Errorf("got %s", got)
	}
}

// A policy chain has a Bootstrap behind each Recovery: nothing is decided in between.
func TestNothingBeforeBootstrap(t *testing.T) {
	m := governed(t, 5)
	leaves := m.leavesOf()
	at, s := place(leaves), m.replayed(leaves)
	recovery := m.recovery(m.draft(s, at), 4)
	if err := s.Recover(recovery, at, m.at); err != nil {
		t.Fatal(err)
	}
	p := m.propose(func(p *Proposal) { p.Incarnation, p.Base = 1, s.Base() }, remove("new"))
	raw := m.sign(m.payload(p), m.governors(5)...)
	if _, err := s.Append([][]byte{raw}); err == nil || ReasonOf(err).Code != attest.CodeNotStarted {
		t.Errorf("got %v, want not_started", err)
	}
	first := m.propose(remove("new"))
	if _, err := History(m.g, [][]byte{m.sign(m.payload(first), m.governors(5)...)}, func(Step, *PolicyState) {}); err == nil || ReasonOf(err).Code != attest.CodeNotStarted {
		t.Errorf("history: got %v, want not_started", err)
	}
	if _, err := s.Append([][]byte{recovery, m.rebirth(s, 2), raw}); err != nil {
		t.Error(err)
	}
}

// A second Recovery goes on from the log of the first, to any higher incarnation.
func TestRecoveryAgain(t *testing.T) {
	m := governed(t, 3)
	leaves := m.leavesOf()
	for i, inc := range []identity.Incarnation{1, 4, 5} {
		at := place(leaves)
		s := m.replayed(leaves)
		recovery := m.recovery(m.draft(s, at, func(r *Recovery) { r.Incarnation = inc }), 3)
		if err := s.Recover(recovery, at, m.at); err != nil {
			t.Fatal(err)
		}
		bootstrap := m.rebirth(s, 2+i)
		m.ok(s.Apply(must(NewCommand(KindRecovery, recovery, bootstrap))))
		leaves = append(leaves, recovery, bootstrap)
		if s.Incarnation() != inc || m.replayed(leaves).Digest() != s.Digest() {
			t.Fatalf("incarnation %d", s.Incarnation())
		}
	}
}

// G14, M20: an old, a forged or a foreign state, too few organisations, keys of another role.
func TestRecoveryRefused(t *testing.T) {
	m := governed(t, 5)
	leaves := m.leavesOf()
	at := place(leaves)
	older := m.replayed(leaves[:len(leaves)-2]) // before "old" was voted out
	good := m.draft(m.replayed(leaves), at)
	other := func(change func(*Recovery)) []byte {
		r := *good.Recovery
		change(&r)
		return m.sign(must(r.Payload()), m.governors(4)...)
	}
	payload := good.Envelope().Payload
	for name, tc := range map[string]struct {
		raw  []byte
		at   CheckpointSeen
		code attest.Code
		says string
	}{
		"nobody":            {(&envelope.Envelope{Payload: payload}).Marshal(), at, attest.CodeThreshold, "need 4 of 5"},
		"three of five":     {m.recovery(good, 3), at, attest.CodeThreshold, "have 3 organisations"},
		"two keys of one":   {m.sign(payload, append(m.governors(3), "alpha govern 2")...), at, attest.CodeThreshold, "have 3 organisations"},
		"emergency key":     {m.sign(payload, append(m.governors(3), "delta emergency")...), at, attest.CodeWrongSigner, ""},
		"enroll key":        {m.sign(payload, append(m.governors(3), "delta enroll")...), at, attest.CodeWrongSigner, ""},
		"older log":         {m.recovery(good, 4), place(leaves[:len(leaves)-1]), attest.CodeRolledBack, "size 23"},
		"other root":        {m.recovery(good, 4), CheckpointSeen{at.Size, sha256Hex(nil)}, attest.CodeRolledBack, ""},
		"longer log":        {m.recovery(good, 4), CheckpointSeen{at.Size + 1, at.Root}, attest.CodeRolledBack, ""},
		"other epoch":       {other(func(r *Recovery) { r.Epoch-- }), at, attest.CodeRolledBack, "epoch 1"},
		"other base":        {other(func(r *Recovery) { r.Base++ }), at, attest.CodeRolledBack, ""},
		"other policy":      {other(func(r *Recovery) { r.Policy = sha256Hex([]byte("x")) }), at, attest.CodeRolledBack, ""},
		"planned, too new":  {other(func(r *Recovery) { r.Planned = true; r.Epoch++ }), at, attest.CodeRolledBack, "or later"},
		"planned, old base": {other(func(r *Recovery) { r.Planned = true; r.Base++ }), at, attest.CodeStaleBase, ""},
		"planned, old log":  {other(func(r *Recovery) { r.Planned = true; r.Checkpoint.Size++ }), at, attest.CodeRolledBack, "or later"},
		"same incarnation":  {other(func(r *Recovery) { r.PreviousOrigin = m.g.Origin(1) }), at, attest.CodeWrongIncarnation, ""},
		"other mesh":        {other(func(r *Recovery) { r.MeshID[0]++ }), at, attest.CodeWrongMesh, ""},
		"two founders":      {other(func(r *Recovery) { r.Organisations = []identity.OrgID{"alpha", "beta"} }), at, attest.CodeThreshold, "at least 3 of 5"},
		"a stranger":        {other(func(r *Recovery) { r.Organisations = append(r.Organisations, "zzz") }), at, attest.CodeMalformed, "zzz"},
		"expired":           {other(func(r *Recovery) { r.Created, r.Expires = m.at.Add(-time.Hour), m.at }), at, attest.CodeRecoveryExpired, ""},
		"not yet":           {other(func(r *Recovery) { r.Created, r.Expires = m.at.Add(time.Hour), m.at.Add(2*time.Hour) }), at, attest.CodeRecoveryExpired, ""},
		"no envelope":       {[]byte("{}"), at, attest.CodeMalformed, ""},
	} {
		s := m.replayed(leaves)
		before := s.Digest()
		err := s.Recover(tc.raw, tc.at, m.at)
		if err == nil || ReasonOf(err).Code != tc.code || !strings.Contains(ReasonOf(err).String(), tc.says) {
			t.Errorf("%s: got %v, want %s %q", name, err, tc.code, tc.says)
		}
		if s.Digest() != before || !s.Started() {
			t.Errorf("%s: a refused recovery had an effect", name)
		}
	}
	// The real statement on a state that was rolled back, and on one that never had it.
	if err := older.Recover(m.recovery(good, 4), CheckpointSeen{}, m.at); err == nil || ReasonOf(err).Code != attest.CodeRolledBack {
		t.Errorf("older state: %v", err)
	}
	if err := NewState(m.g).Recover(m.recovery(good, 4), at, m.at); err == nil || ReasonOf(err).Code != attest.CodeNotStarted {
		t.Errorf("empty state: %v", err)
	}
	legacy := suspending(t, 3)
	r := *good.Recovery
	r.MeshID, r.PreviousOrigin = legacy.g.MeshID(), legacy.g.Origin(0)
	if err := legacy.s.Recover(legacy.sign(must(r.Payload()), legacy.governors(3)...), at, m.at); err == nil || ReasonOf(err).Code != attest.CodeWrongVersion {
		t.Errorf("a mesh of version %d: %v", legacy.g.FSMVersion, err)
	}
	for name, change := range map[string]func(*Recovery){
		"incarnation 0": func(r *Recovery) { r.Incarnation = 0 },
		"too long":      func(r *Recovery) { r.Expires = r.Created.Add(MaxRecovery + time.Millisecond) },
		"planned":       func(r *Recovery) { r.Planned, r.Expires = true, r.Created.Add(MaxPlannedRecovery+time.Millisecond) },
		"backwards":     func(r *Recovery) { r.Expires = r.Created },
		"nonce":         func(r *Recovery) { r.Nonce = "00" },
		"root":          func(r *Recovery) { r.Checkpoint.Root = "00" },
		"size":          func(r *Recovery) { r.Checkpoint.Size = 1 },
		"policy":        func(r *Recovery) { r.Policy = strings.ToUpper(r.Policy) },
		"twice":         func(r *Recovery) { r.Organisations = []identity.OrgID{"alpha", "alpha"} },
		"unsorted":      func(r *Recovery) { slices.Reverse(r.Organisations) },
		"nobody":        func(r *Recovery) { r.Organisations = nil },
	} {
		r := *good.Recovery
		r.Organisations = slices.Clone(r.Organisations)
		change(&r)
		if _, err := r.Payload(); err == nil {
			t.Errorf("%s: encoded", name)
		}
	}
}

// The Bootstrap of an incarnation above 0 is signed by the enroller of every organisation
// that the Recovery names, and names the Recovery and the place in the log.
func TestRecoveryBootstrapRefused(t *testing.T) {
	m := governed(t, 5)
	leaves := m.leavesOf()
	at := place(leaves)
	fresh := func() *State {
		s := m.replayed(leaves)
		r := m.recovery(m.draft(s, at, func(r *Recovery) { r.Organisations = []identity.OrgID{"alpha", "beta", "gamma"} }), 4)
		if err := s.Recover(r, at, m.at); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := fresh()
	recovery := s.Recovery().Raw()
	tamper := func(change func(*Bootstrap)) []byte {
		b := *must(s.CheckBootstrap(must(envelope.Parse(m.rebirth(s, 2))).Payload, m.at))
		change(&b)
		return m.sign(must(envelope.NewPayload(envelope.TypeBootstrap, meshSubject(m.g.MeshID()), b)), "alpha enroll", "beta enroll", "gamma enroll")
	}
	again := m.recovery(m.draft(m.replayed(leaves), at, func(r *Recovery) { r.Nonce = strings.Repeat("ef", 16) }), 4)
	for name, tc := range map[string]struct {
		recovery, bootstrap []byte
		code                attest.Code
	}{
		"a founder missing":  {recovery, m.rebirth(s, 2, "alpha", "gamma"), attest.CodeThreshold},
		"other incarnation":  {recovery, tamper(func(b *Bootstrap) { b.Incarnation++ }), attest.CodeWrongIncarnation},
		"no recovery":        {recovery, tamper(func(b *Bootstrap) { b.Recovery = "" }), attest.CodeReplayMismatch},
		"other place":        {recovery, tamper(func(b *Bootstrap) { b.Continues.Size++ }), attest.CodeRolledBack},
		"no place":           {recovery, tamper(func(b *Bootstrap) { b.Continues = CheckpointSeen{} }), attest.CodeMalformed},
		"old credentials":    {recovery, tamper(func(b *Bootstrap) { b.Credentials[0] = string(m.credential("alpha/n1", 1)) }), attest.CodeWrongIncarnation},
		"an outsider's seat": {recovery, tamper(func(b *Bootstrap) { b.Credentials[2] = string(m.credential("delta/n1", 2, inIncarnation(1))) }), attest.CodeMalformed},
		"another recovery":   {again, m.rebirth(s, 2), attest.CodeReplayMismatch},
		"unsigned recovery":  {m.sign(must(envelope.Parse(recovery)).Payload, m.governors(3)...), m.rebirth(s, 2), attest.CodeThreshold},
	} {
		m.s = fresh()
		t.Run(name, func(t *testing.T) { m.refused(m.command(KindRecovery, tc.recovery, tc.bootstrap), tc.code) })
	}
	m.s = fresh()
	// Signatures by other organisations than the one file's: the same Recovery.
	m.ok(m.command(KindRecovery, m.sign(must(envelope.Parse(recovery)).Payload, "beta govern", "gamma govern", "delta govern", "epsilon govern"), m.rebirth(s, 2)))
	if m.s.Quorum() != 2 || len(m.s.Seats()) != 3 {
		t.Errorf("quorum %d of seats %s", m.s.Quorum(), names(m.s.Seats()))
	}
	if err := s.Recovery().inTime(m.at.Add(2 * time.Hour)); err == nil {
		t.Error("an expired Recovery founds")
	}
	if _, err := s.CheckBootstrap(must(envelope.Parse(m.rebirth(s, 2))).Payload, m.at.Add(2*time.Hour)); err == nil || ReasonOf(err).Code != attest.CodeRecoveryExpired {
		t.Errorf("a Bootstrap after the Recovery's end: %v", err)
	}
	// In incarnation 0 there is nothing to go on from.
	zero := newMesh(t, 2)
	b := *must(NewPolicyState(zero.g).CheckBootstrap(zero.bootstrapPayload(1), zero.at))
	b.Continues = at
	zero.refused(zero.command(KindBootstrap, zero.g.Raw(), zero.sign(must(envelope.NewPayload(envelope.TypeBootstrap, meshSubject(zero.g.MeshID()), b)), "alpha enroll", "beta enroll")), attest.CodeMalformed)
}

// A planned Recovery is signed before the mesh stops: it goes on from whatever narrowed
// policy, and whatever longer log, there is at the end.
func TestPlannedRecovery(t *testing.T) {
	m := governed(t, 3)
	early := m.leavesOf()
	file := m.draft(m.replayed(early), place(early), func(r *Recovery) { r.Planned, r.Expires = true, r.Created.Add(MaxPlannedRecovery) })
	recovery := m.recovery(file, 2)
	m.ok(m.command(KindCredential, m.credential("alpha/n2", 1)))
	// Whoever recovered by the same file from a shorter log hears where the mesh goes on.
	longer := m.replayed(m.leavesOf())
	waits := m.replayed(early)
	if err := errors.Join(longer.Recover(recovery, place(m.leavesOf()), m.at), waits.Recover(recovery, place(early), m.at)); err != nil {
		t.Fatal(err)
	}
	m.ok(longer.Apply(must(NewCommand(KindRecovery, recovery, m.rebirth(longer, 2)))))
	if err := waits.Extend(longer.PolicyChain()); err != nil || !waits.PolicyState.Started() || waits.Continues() != place(m.leavesOf()) {
		t.Errorf("extended to %+v: %v", waits.Continues(), err)
	}
	m.ok(m.order(m.propose(remove("new"), func(p *Proposal) { p.ConfirmQuorumLoss = true }), 2))
	late := m.leavesOf()
	s := m.replayed(late)
	if err := s.Recover(recovery, place(late), m.at.Add(MaxPlannedRecovery/2)); err != nil {
		t.Fatal(err)
	}
	if s.Epoch() != 3 || len(s.Entries()) != 0 {
		t.Errorf("epoch %d, %d entries: the narrowing after it was signed is lost", s.Epoch(), len(s.Entries()))
	}
	bootstrap := m.rebirth(s, 2)
	m.ok(s.Apply(must(NewCommand(KindRecovery, recovery, bootstrap))))
	if s.Continues() != place(late) {
		t.Errorf("continues %+v", s.Continues())
	}
	if _, err := ReplayPolicy(m.g, s.PolicyChain()); err != nil {
		t.Error(err)
	}
	if d := m.replayed(append(late, recovery, bootstrap)).Digest(); d != s.Digest() {
		t.Error("the replay of the leaves has another digest")
	}
	// An enroller, that has the file and no log, judges the same Bootstrap.
	if err := file.Add(recovery); err != nil {
		t.Fatal(err)
	}
	founding, err := file.Founding(m.at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := founding.CheckBootstrap(must(envelope.Parse(bootstrap)).Payload, m.at); err != nil {
		t.Error(err)
	}
	m.ok(m.order(m.propose(add(entry(t, "x"))), 2))
	widened := m.replayed(m.leavesOf())
	if err := widened.Recover(recovery, CheckpointSeen{}, m.at); err == nil || ReasonOf(err).Code != attest.CodeStaleBase {
		t.Errorf("after a widening: %v", err)
	}
}

func TestRecoveryFile(t *testing.T) {
	m := governed(t, 5)
	leaves := m.leavesOf()
	file := m.draft(m.replayed(leaves), place(leaves))
	if _, err := file.Founding(m.at); err == nil || ReasonOf(err).Code != attest.CodeThreshold {
		t.Errorf("an unsigned file founds: %v", err)
	}
	for i := range 4 {
		if err := file.Add(must(Sign(file.Envelope().Payload, signer(t, m.governors(4)[i])))); err != nil {
			t.Fatal(err)
		}
	}
	raw := must(file.Encode())
	back, err := ParseRecoveryFile(m.g, raw)
	if err != nil {
		t.Fatal(err)
	}
	if have, need := back.Signed(); len(have) != 4 || need != 4 || !bytes.Equal(must(back.Encode()), raw) {
		t.Errorf("have %v, need %d", have, need)
	}
	if s, err := back.Founding(m.at); err != nil || s.Incarnation() != 1 || s.Continues() != place(leaves) {
		t.Errorf("founding: %v", err)
	}
	if text := strings.Join(back.Describe(), "\n"); !strings.Contains(text, "have 4, need 4 of 5") || !strings.Contains(text, "1 entries allowed, 1 revoked") {
		t.Errorf("described as\n%s", text)
	}
	foreign := governed(t, 3)
	if _, err := ParseRecoveryFile(foreign.g, raw); err == nil {
		t.Error("a file of another mesh was read")
	}
	forged := m.draft(m.replayed(leaves), place(leaves))
	forged.env.Signatures = []envelope.Signature{{KeyID: back.env.Signatures[0].KeyID, Sig: back.env.Signatures[1].Sig}}
	if _, err := ParseRecoveryFile(m.g, must(forged.Encode())); err == nil {
		t.Error("a file with a bad signature was read")
	}
	for _, bad := range [][]byte{nil, []byte("{}"), append(slices.Clone(raw), '\n'), raw[:len(raw)-1], bytes.Replace(raw, []byte(`{"policy":[`), []byte(`{"policy":["AA==",`), 1)} {
		if _, err := ParseRecoveryFile(m.g, bad); err == nil {
			t.Errorf("%.60q was read", bad)
		}
	}
}

func FuzzRecovery(f *testing.F) {
	m := governed(f, 3)
	leaves := m.leavesOf()
	file := m.draft(m.replayed(leaves), place(leaves))
	seed := must(file.Encode())
	f.Add(seed)
	fuzzed := m.recovery(file, 2)
	f.Add(fuzzed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := NewState(m.g)
		s.Apply(must(NewCommand(KindBootstrap, leaves[0], leaves[1])))
		_ = s.Recover(raw, CheckpointSeen{}, m.at)
		_, _ = s.Replay(raw)
		_, _ = ReplayPolicy(m.g, [][]byte{leaves[0], leaves[1], raw, raw})
		if r, env, err := ParseRecovery(raw); err == nil {
			r.Describe()
			if again := must(r.Payload()); !bytes.Equal(again, env.Payload) {
				t.Fatalf("a Recovery with two encodings: %q", env.Payload)
			}
		}
		if got, err := ParseRecoveryFile(m.g, raw); err == nil {
			got.Describe()
			if !bytes.Equal(must(got.Encode()), raw) {
				t.Fatal("a file with two encodings")
			}
		}
	})
}

// goldenRecovery returns a Recovery and its Bootstrap, on a state that nobody has.
func (m *mesh) goldenRecovery() (recovery, bootstrap []byte) {
	r := Recovery{MeshID: m.g.MeshID(), Incarnation: 1, PreviousOrigin: m.g.Origin(0), Checkpoint: CheckpointSeen{9, sha256Hex([]byte("root"))}, Epoch: 3, Base: 2,
		Policy: sha256Hex([]byte("policy")), Organisations: m.orgs(), Planned: true, Nonce: strings.Repeat("cd", 16), Created: m.at, Expires: m.at.Add(MaxPlannedRecovery)}
	recovery = m.sign(must(r.Payload()), m.governors(3)...)
	parsed, _, err := ParseRecovery(recovery)
	if err != nil {
		m.t.Fatal(err)
	}
	s := NewState(m.g)
	s.incarnation, s.recovery, s.continues = 1, parsed, CheckpointSeen{12, sha256Hex([]byte("later"))}
	return recovery, m.rebirth(s, 2)
}
