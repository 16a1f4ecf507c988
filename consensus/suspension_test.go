package consensus

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// suspending returns a started mesh of n organisations that orders suspensions, in which
// all nodes run "new".
func suspending(t testing.TB, n int) *mesh {
	t.Helper()
	g := genesisOf(t, n)
	g.FSMVersion = fsmSuspensions
	m := newMeshOf(t, g)
	m.start()
	m.attestAll(allNew)
	return m
}

func onNode(name string) func(*Suspension) {
	return func(x *Suspension) {
		ref, _ := identity.ParseNodeRef(name)
		x.Entry, x.Node = "", &ref
	}
}

func onEntry(t testing.TB, name string) func(*Suspension) {
	return func(x *Suspension) { x.Entry, x.Node = entry(t, name).ID, nil }
}

func until(d time.Duration) func(*Suspension) {
	return func(x *Suspension) { x.Until = x.Issued.Add(d) }
}

// suspension returns a suspension of beta/n1 by alpha for an hour, but for the changes.
func (m *mesh) suspension(change ...func(*Suspension)) Suspension {
	x := Suspension{MeshID: m.g.MeshID(), Organisation: "alpha", Nonce: fmt.Sprintf("%032x", len(m.log)), Cause: CausePrecaution, Issued: m.at, Until: m.at.Add(time.Hour)}
	onNode("beta/n1")(&x)
	for _, f := range change {
		f(&x)
	}
	return x
}

// suspend returns the signed suspension and its id.
func (m *mesh) suspend(key string, change ...func(*Suspension)) ([]byte, SuspensionID) {
	m.t.Helper()
	raw, err := SignSuspension(signer(m.t, key), m.suspension(change...))
	if err != nil {
		m.t.Fatal(err)
	}
	x, _, err := ParseSuspension(raw)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw, x.ID()
}

func (m *mesh) lift(id SuspensionID, keys ...string) []byte {
	m.t.Helper()
	payload, err := SuspensionLift{MeshID: m.g.MeshID(), Suspension: id}.Payload()
	if err != nil {
		m.t.Fatal(err)
	}
	return m.sign(payload, keys...)
}

// suspended orders a suspension by alpha and returns its id.
func (m *mesh) suspended(change ...func(*Suspension)) SuspensionID {
	m.t.Helper()
	raw, id := m.suspend("alpha emergency", change...)
	if out := m.ok(m.command(KindSuspension, raw)); !out.SuspensionsChanged || len(out.Leaves) != 1 || string(out.Leaves[0]) != string(raw) {
		m.t.Fatalf("got %+v, want the envelope as the leaf", out)
	}
	return id
}

// policyOf is everything of a state that a suspension must leave as it is.
func (m *mesh) policyOf() string {
	nodes := m.s.Nodes()
	for i := range nodes {
		nodes[i].Credential = nil
	}
	return fmt.Sprintf("%x %d %+v", m.s.PolicyDigest(), m.s.Quorum(), nodes)
}

func TestSuspendedNodeIsNotEligible(t *testing.T) {
	m := suspending(t, 3)
	before := m.policyOf()
	id := m.suspended()
	if got := names(m.s.Eligible(m.at)); got != "alpha/n1 gamma/n1" {
		t.Errorf("eligible are %s", got)
	}
	if m.s.IsEligible(peerOf("beta/n1", 1), m.at) || !m.s.IsAffirmed(peerOf("beta/n1", 1), m.at) {
		t.Error("a suspended node is affirmed and not eligible")
	}
	x, ok := m.s.SuspendedNode(m.s.Seats()[1].Ref, m.at)
	if !ok || x.ID() != id || !x.Ends.Equal(m.at.Add(time.Hour)) || x.Target() != "node beta/n1" {
		t.Errorf("got %v", x)
	}
	if after := m.policyOf(); after != before {
		t.Errorf("a suspension changed the policy or the members:\n%s\n%s", before, after)
	}
	m.ok(m.command(KindLift, m.lift(id, "beta govern", "gamma govern")))
	if got := names(m.s.Eligible(m.at)); got != "alpha/n1 beta/n1 gamma/n1" {
		t.Errorf("after the lift, eligible are %s", got)
	}
	m.refused(m.command(KindLift, m.lift(id, "alpha govern")), attest.CodeReplayed)
}

// A new boot of a node, or a new entry for the same measurement, does not escape.
func TestSuspensionCannotBeSidestepped(t *testing.T) {
	m := suspending(t, 3)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	m.suspended(onNode("beta/n2"))
	m.suspended(onEntry(t, "new"))
	m.ok(m.command(KindCredential, m.credential("beta/n2", 2)))
	if _, ok := m.s.SuspendedNode(m.ref("beta/n2"), m.at); !ok {
		t.Error("a newer boot is not suspended any more")
	}
	trainer, err := NewEntry(Entry{Kind: attest.KindSim, Measurement: measurement("new"), Roles: []string{RoleMember, RoleTrainer}})
	if err != nil {
		t.Fatal(err)
	}
	m.ok(m.order(m.propose(add(trainer)), 3))
	if _, ok := m.s.SuspendedRun("sim", measurement("new"), trainer.ID, m.at); !ok {
		t.Error("another entry for the measurement of a suspended one escapes")
	}
	if _, ok := m.s.SuspendedRun("sim", measurement("old"), entry(t, "old").ID, m.at); ok {
		t.Error("another measurement is suspended")
	}
}

func (m *mesh) ref(name string) identity.NodeRef {
	m.t.Helper()
	ref, err := identity.ParseNodeRef(name)
	if err != nil {
		m.t.Fatal(err)
	}
	return ref
}

// Of two entries that registers tell apart, one can be suspended alone; who is not known to
// have other registers is suspended too.
func TestSuspensionKnowsRegisters(t *testing.T) {
	with := func(v string) Entry {
		e, err := NewEntry(Entry{Kind: attest.KindSim, Measurement: measurement("new"), Roles: allRoles, Registers: map[string]string{"rtmr0": strings.Repeat(v, 48)}})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	m := suspending(t, 3)
	m.ok(m.order(m.propose(add(with("aa")), add(with("bb"))), 3))
	m.suspended(func(x *Suspension) { x.Entry, x.Node = with("aa").ID, nil })
	for _, c := range []struct {
		name, reference string
		want            bool
	}{{"itself", with("aa").ID, true}, {"other registers", with("bb").ID, false}, {"registers unknown", entry(t, "new").ID, true}, {"no entry", "", true}} {
		if _, got := m.s.SuspendedRun("sim", measurement("new"), c.reference, m.at); got != c.want {
			t.Errorf("%s: suspended is %t", c.name, got)
		}
	}
}

// The only entry is suspended by whoever stole an emergency key: nobody is eligible, every
// seat still votes, and the others lift it.
func TestSuspendingTheOnlyEntryStopsNoOrdering(t *testing.T) {
	m := suspending(t, 3)
	m.ok(m.order(m.propose(remove("old")), 2))
	before := m.policyOf()
	id := m.suspended(onEntry(t, "new"))
	if got := names(m.s.Eligible(m.at)); got != "" {
		t.Errorf("eligible are %s", got)
	}
	m.tick(time.Minute)
	if after := m.policyOf(); after != before || len(m.s.Seats()) != 3 {
		t.Errorf("changed:\n%s\n%s", before, after)
	}
	m.refused(m.command(KindLift, m.lift(id, "alpha emergency")), attest.CodeWrongSigner) // it gives nothing back
	m.refused(m.command(KindLift, m.lift(id, "beta govern")), attest.CodeThreshold)
	m.ok(m.command(KindLift, m.lift(id, "beta govern", "gamma govern")))
	if got := names(m.s.Eligible(m.at)); got != "alpha/n1 beta/n1 gamma/n1" {
		t.Errorf("after the lift, eligible are %s", got)
	}
}

func TestSuspensionExpiresByTicks(t *testing.T) {
	m := suspending(t, 3)
	m.suspended(until(time.Minute))
	if out := m.tick(59 * time.Second); out.SuspensionsChanged || len(m.s.Suspensions(m.s.Now())) != 1 {
		t.Errorf("a second early: %+v", out)
	}
	if out := m.tick(time.Second); !out.SuspensionsChanged || len(m.s.Suspensions(m.s.Now())) != 0 || len(out.Leaves) != 0 {
		t.Errorf("at its end: %+v", out)
	}
	if got := names(m.s.Eligible(m.s.Now())); got != "alpha/n1 beta/n1 gamma/n1" {
		t.Errorf("after its end, eligible are %s", got)
	}
	for range 3 {
		m.tick(8 * time.Hour)
	}
	if len(m.s.suspensions) != 0 {
		t.Errorf("%d suspensions are kept for ever", len(m.s.suspensions))
	}
}

// An issuer whose clock is ahead gets no more than the longest time.
func TestSuspensionNeverOutlastsADay(t *testing.T) {
	m := suspending(t, 3)
	m.suspended(func(x *Suspension) {
		x.Issued, x.Until = m.at.Add(5*time.Minute), m.at.Add(MaxSuspension+5*time.Minute)
	})
	if got := m.s.Suspensions(m.at)[0].Ends; !got.Equal(m.at.Add(MaxSuspension)) {
		t.Errorf("ends at %s, ordered at %s", got, m.at)
	}
}

func TestSuspensionRefusals(t *testing.T) {
	m := suspending(t, 4)
	ordered, _ := m.suspend("alpha emergency", func(x *Suspension) { x.Nonce = strings.Repeat("ee", 16) })
	m.ok(m.command(KindSuspension, ordered))
	seatOnly := genesisOf(t, 3)
	seatOnly.FSMVersion, seatOnly.Organisations[2].Roles = fsmSuspensions, []string{OrgSeat}
	neutral := newMeshOf(t, seatOnly)
	neutral.start()
	early := newMeshOf(t, func() *Genesis { g := genesisOf(t, 3); g.FSMVersion = fsmSuspensions; return g }())
	early.ok(early.command(KindBootstrap, early.g.Raw(), early.bootstrap(1)))
	for name, c := range map[string]struct {
		m      *mesh
		key    string
		change func(*Suspension)
		want   attest.Code
	}{
		"another mesh":              {m, "alpha emergency", func(x *Suspension) { x.MeshID[0] ^= 1 }, attest.CodeWrongMesh},
		"another incarnation":       {m, "alpha emergency", func(x *Suspension) { x.Incarnation = 1 }, attest.CodeWrongIncarnation},
		"another's key":             {m, "beta emergency", func(*Suspension) {}, attest.CodeWrongSigner},
		"a govern key":              {m, "alpha govern", func(*Suspension) {}, attest.CodeWrongSigner},
		"an enroll key":             {m, "alpha enroll", func(*Suspension) {}, attest.CodeWrongSigner},
		"a stranger's key":          {m, "mallory", func(*Suspension) {}, attest.CodeWrongSigner},
		"an unknown organisation":   {m, "alpha emergency", func(x *Suspension) { x.Organisation = "omega" }, attest.CodeWrongSigner},
		"a neutral seat":            {neutral, "gamma emergency", func(x *Suspension) { x.Organisation = "gamma" }, attest.CodeWrongSigner},
		"ordered before":            {m, "alpha emergency", func(x *Suspension) { x.Nonce = strings.Repeat("ee", 16) }, attest.CodeReplayed},
		"over already":              {m, "alpha emergency", func(x *Suspension) { x.Issued, x.Until = m.at.Add(-time.Hour), m.at }, attest.CodeSuspensionEnded},
		"for a time to come":        {m, "alpha emergency", func(x *Suspension) { x.Issued, x.Until = m.at.Add(time.Hour), m.at.Add(25*time.Hour) }, attest.CodeLimit},
		"no such node":              {m, "alpha emergency", onNode("beta/n9"), attest.CodeUnknownNode},
		"no such entry":             {m, "alpha emergency", onEntry(t, "never"), attest.CodeUnknownEntry},
		"before the first tick":     {early, "alpha emergency", func(*Suspension) {}, attest.CodeNotStarted},
		"a genesis of version 1":    {started(t, 3), "alpha emergency", func(*Suspension) {}, attest.CodeWrongVersion},
		"an entry that was revoked": {revokedOld(t), "alpha emergency", onEntry(t, "old"), attest.CodeUnknownEntry},
	} {
		t.Run(name, func(t *testing.T) {
			c.m.t = t
			raw, _ := c.m.suspend(c.key, c.change)
			c.m.refused(c.m.command(KindSuspension, raw), c.want)
		})
	}
	for name, raw := range map[string][]byte{
		"no signature":     (&envelope.Envelope{Payload: must(envelope.Parse(ordered)).Payload}).Marshal(),
		"a bad signature":  spoiled(ordered),
		"another's beside": must(Merge(ordered, m.sign(must(envelope.Parse(ordered)).Payload, "beta emergency"))),
	} {
		m.t = t
		t.Log(name)
		m.refused(m.command(KindSuspension, raw), attest.CodeWrongSigner)
	}
	m.refused(m.command(KindSuspension, m.lift(SuspensionID{1}, "alpha govern")), attest.CodeMalformed)
	m.refused(m.command(KindSuspension, []byte(strings.Repeat("x", MaxSuspensionSize+1))), attest.CodeMalformed)
}

func revokedOld(t *testing.T) *mesh {
	m := suspending(t, 3)
	m.ok(m.order(m.propose(remove("old")), 2))
	return m
}

// spoiled returns an envelope with one bit of its first signature flipped.
func spoiled(raw []byte) []byte {
	env := must(envelope.Parse(raw))
	env.Signatures[0].Sig[0] ^= 1
	return env.Marshal()
}

func TestSuspensionFields(t *testing.T) {
	m := suspending(t, 2)
	for name, change := range map[string]func(*Suspension){
		"no mesh":         func(x *Suspension) { x.MeshID = identity.MeshID{} },
		"no organisation": func(x *Suspension) { x.Organisation = "" },
		"no nonce":        func(x *Suspension) { x.Nonce = "" },
		"no target":       func(x *Suspension) { x.Node = nil },
		"two targets":     func(x *Suspension) { x.Entry = entry(t, "new").ID },
		"a bad node":      func(x *Suspension) { x.Node = &identity.NodeRef{Org: "beta"} },
		"a bad entry":     func(x *Suspension) { x.Node, x.Entry = nil, "new" },
		"no cause":        func(x *Suspension) { x.Cause = "" },
		"free text":       func(x *Suspension) { x.Cause = "Bob did it" },
		"no time":         func(x *Suspension) { x.Issued, x.Until = time.Time{}, time.Time{} },
		"no duration":     until(0),
		"over a day":      until(MaxSuspension + time.Millisecond),
	} {
		if raw, err := SignSuspension(signer(t, "alpha emergency"), m.suspension(change)); err == nil {
			t.Errorf("%s: signed %s", name, raw)
		}
	}
	if _, err := (SuspensionLift{MeshID: m.g.MeshID()}).Payload(); err == nil {
		t.Error("a lift of nothing")
	}
	var id SuspensionID
	for _, text := range []string{"", "00", strings.Repeat("AB", 32), strings.Repeat("zz", 32)} {
		if id.UnmarshalText([]byte(text)) == nil {
			t.Errorf("%q is an id", text)
		}
	}
}

func TestSuspensionQuota(t *testing.T) {
	m := suspending(t, 3)
	var ids []SuspensionID
	for range MaxSuspensionsLive {
		ids = append(ids, m.suspended())
	}
	refusedOnce := func(when string) {
		t.Helper()
		t.Log(when)
		raw, _ := m.suspend("alpha emergency")
		m.refused(m.command(KindSuspension, raw), attest.CodeLimit)
	}
	refusedOnce("too many in force")
	raw, _ := m.suspend("beta emergency", func(x *Suspension) { x.Organisation = "beta" })
	m.ok(m.command(KindSuspension, raw)) // each organisation has a quota of its own
	for _, id := range ids {
		m.ok(m.command(KindLift, m.lift(id, "alpha govern")))
	}
	for range MaxSuspensionsDaily - MaxSuspensionsLive {
		m.ok(m.command(KindLift, m.lift(m.suspended(), "alpha govern")))
	}
	refusedOnce("too many within a day")
	m.tick(23 * time.Hour)
	refusedOnce("an hour early")
	m.tick(time.Hour)
	m.suspended()
}

func TestLiftRefusals(t *testing.T) {
	m := suspending(t, 4)
	id := m.suspended()
	other := m.suspended(until(time.Minute), onEntry(t, "old"))
	m.tick(time.Minute)
	for name, c := range map[string]struct {
		raw  []byte
		want attest.Code
	}{
		"another suspension":          {m.lift(SuspensionID{1}, "beta govern", "gamma govern", "delta govern"), attest.CodeUnknownSuspension},
		"one that is over":            {m.lift(other, "beta govern", "gamma govern", "delta govern"), attest.CodeSuspensionEnded},
		"too few":                     {m.lift(id, "beta govern", "gamma govern"), attest.CodeThreshold},
		"one organisation twice":      {m.lift(id, "beta govern", "gamma govern", "gamma govern 2"), attest.CodeThreshold},
		"emergency keys":              {m.lift(id, "beta emergency", "gamma emergency", "delta emergency"), attest.CodeWrongSigner},
		"its own emergency key":       {m.lift(id, "alpha emergency"), attest.CodeWrongSigner},
		"an emergency key among them": {m.lift(id, "beta govern", "gamma govern", "delta emergency"), attest.CodeWrongSigner},
		"a stranger":                  {m.lift(id, "beta govern", "gamma govern", "mallory"), attest.CodeWrongSigner},
		"a bad signature":             {spoiled(m.lift(id, "alpha govern")), attest.CodeWrongSigner},
		"a suspension":                {must1(m.suspend("alpha emergency")), attest.CodeMalformed},
		"another mesh":                {m.sign(must(SuspensionLift{MeshID: identity.MeshID{1}, Suspension: id}.Payload()), "alpha govern"), attest.CodeWrongMesh},
		"another incarnation":         {m.sign(must(SuspensionLift{MeshID: m.g.MeshID(), Incarnation: 1, Suspension: id}.Payload()), "alpha govern"), attest.CodeWrongIncarnation},
	} {
		t.Run(name, func(t *testing.T) {
			m.t = t
			m.refused(m.command(KindLift, c.raw), c.want)
		})
	}
	m.t = t
	m.ok(m.command(KindLift, m.lift(id, "beta govern", "gamma govern", "delta govern")))
}

func must1[T, U any](v T, _ U) T { return v }

// min(⌊N/2⌋+1, N−1) others: counted for every number of organisations.
func TestLiftThreshold(t *testing.T) {
	for n, want := range map[int]int{2: 1, 3: 2, 4: 3, 5: 3, 6: 4, 7: 4} {
		m := suspending(t, n)
		id := m.suspended()
		var others []string
		for _, o := range m.orgs() {
			if o != "alpha" && len(others) < want {
				others = append(others, string(o)+" govern")
			}
		}
		if want > 1 {
			m.refused(m.command(KindLift, m.lift(id, others[:want-1]...)), attest.CodeThreshold)
		}
		m.ok(m.command(KindLift, m.lift(id, others...)))
		m.ok(m.command(KindLift, m.lift(m.suspended(), "alpha govern")))
	}
}

// Another replica, and an auditor who replays leaves without ticks, come to the same.
func TestSuspensionsReplay(t *testing.T) {
	m := suspending(t, 3)
	id := m.suspended()
	m.suspended(onEntry(t, "new"), until(MaxSuspension))
	m.ok(m.command(KindLift, m.lift(id, "beta govern", "gamma govern")))
	other := NewState(m.g)
	for _, c := range m.log {
		other.Apply(c)
	}
	if other.Digest() != m.s.Digest() {
		t.Error("two replicas differ")
	}
	replayed := NewState(m.g)
	replayed.Apply(m.log[0])
	var leaves [][]byte
	again := NewState(m.g)
	for _, c := range m.log {
		leaves = append(leaves, again.Apply(c).Leaves...)
	}
	for _, leaf := range leaves[2:] {
		if _, err := replayed.Replay(leaf); err != nil {
			t.Fatal(err)
		}
	}
	if got := replayed.Suspensions(m.at); len(got) != 1 || got[0].Target() != "entry "+entry(t, "new").ID {
		t.Errorf("the replay suspends %v", got)
	}
	// What the quota rules out whenever it was ordered, a replay finds too.
	for i := range MaxSuspensionsLive {
		raw, _ := m.suspend("beta emergency", func(x *Suspension) { x.Organisation, x.Nonce = "beta", fmt.Sprintf("%032d", i) })
		if _, err := replayed.Replay(raw); err != nil {
			t.Fatal(err)
		}
	}
	raw, _ := m.suspend("beta emergency", func(x *Suspension) { x.Organisation = "beta" })
	if _, err := replayed.Replay(raw); err == nil || ReasonOf(err).Code != attest.CodeLimit {
		t.Errorf("got %v, want the quota", err)
	}
}

// A state's digest is told apart by what is suspended, until when, and what was lifted.
func TestSuspensionsAreInTheDigest(t *testing.T) {
	m := suspending(t, 3)
	seen := map[[32]byte]string{m.s.Digest(): "nothing"}
	look := func(what string) {
		if other, ok := seen[m.s.Digest()]; ok {
			t.Errorf("%s has the digest of %s", what, other)
		}
		seen[m.s.Digest()] = what
	}
	id := m.suspended()
	look("suspended")
	m.ok(m.command(KindLift, m.lift(id, "alpha govern")))
	look("lifted")
}
