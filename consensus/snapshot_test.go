package consensus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// lived returns a mesh whose state has something of everything.
func lived(t testing.TB) *mesh {
	t.Helper()
	m := governing(t, 3)
	m.attestAll(func(node string) string {
		if node == "gamma/n1" {
			return "old"
		}
		return "new"
	})
	for boot := 1; boot <= 3; boot++ {
		m.ok(m.command(KindCredential, m.credential("beta/n2", boot, func(c *Credential) {
			c.Roles, c.Checkpoint = []string{RoleMember}, CheckpointSeen{9, sha256Hex([]byte("root"))}
		})))
	}
	m.ok(m.command(KindResults, m.result("alpha/n1", "beta/n2", "new", func(r *AttestationResult) {
		r.Verdict, r.Reference, r.Codes = attest.VerdictWarning, "", []attest.Code{attest.CodeStale, attest.CodeDebug}
	})))
	suspension, id := m.suspend("alpha emergency", onEntry(t, "new"))
	m.ok(m.command(KindSuspension, suspension))
	m.ok(m.command(KindLift, m.lift(id, "beta govern", "gamma govern")))
	suspension, _ = m.suspend("beta emergency", func(x *Suspension) { x.Organisation = "beta" }, onNode("alpha/n1"))
	m.ok(m.command(KindSuspension, suspension))
	m.ok(m.order(m.propose(add(entry(t, "next")), remove("old")), 3))
	m.tick(time.Second)
	m.ok(m.logState(DigestEvery))
	return m
}

// logState orders a digest command after seq others.
func (m *mesh) logState(seq uint64) Outcome {
	m.t.Helper()
	c, err := NewCommand(KindDigest)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.s.LogState(c, seq, m.s.Digest())
}

func imageOf(t testing.TB, s *State) []byte {
	t.Helper()
	raw, err := s.Image()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestImageRestoresEverything(t *testing.T) {
	m := lived(t)
	raw := imageOf(t, m.s)
	restored, err := Restore(m.g, raw)
	if err != nil {
		t.Fatal(err)
	}
	if restored.Digest() != m.s.Digest() || !bytes.Equal(imageOf(t, restored), raw) {
		t.Fatal("another state than the one that was saved")
	}
	if !restored.Now().Equal(m.s.Now()) || len(restored.Suspensions(m.at)) != 1 || !restored.Retired(peerOf("beta/n2", 2)) || len(restored.Seats()) != 2 {
		t.Fatalf("restored: %v, %d suspensions, %v", restored.Now(), len(restored.Suspensions(m.at)), names(restored.Seats()))
	}
	// What comes next does the same to both.
	twin := *m
	twin.s = restored
	for i, c := range []func(m *mesh) Outcome{
		func(m *mesh) Outcome { return m.command(KindCredential, m.credential("beta/n2", 2)) },
		func(m *mesh) Outcome {
			return m.command(KindResults, m.result("alpha/n1", "beta/n1", "new", func(r *AttestationResult) {
				r.At, r.Expires = r.At.Add(40*time.Minute), r.Expires.Add(40*time.Minute)
			}))
		},
		func(m *mesh) Outcome { return m.order(m.propose(remove("new")), 2) },
		func(m *mesh) Outcome { return m.logState(DigestEvery + 1) },
	} {
		a, b := c(m), c(&twin)
		if !reflect.DeepEqual(a, b) || m.s.Digest() != twin.s.Digest() {
			t.Fatalf("command %d: %+v and %+v", i, a, b)
		}
	}
}

// Whatever can be in a state can be restored: lists in an image are bounded by its size alone.
func TestImageOfLongLists(t *testing.T) {
	m := lived(t)
	for i := range 1<<16 + 1 {
		seed := sha256.Sum256(binary.BigEndian.AppendUint64(nil, uint64(i)))
		m.s.retired[identity.PeerIDFromKey(seed[:])] = identity.NodeRef{Org: "alpha", Name: identity.NodeName(fmt.Sprintf("x%d", i))}
	}
	restored, err := Restore(m.g, imageOf(t, m.s))
	if err != nil {
		t.Fatal(err)
	}
	if restored.Digest() != m.s.Digest() {
		t.Error("another state")
	}
}

// What was ordered by keys that were removed since is in the state, and comes back with it.
func TestImageAfterRotation(t *testing.T) {
	m := lived(t)
	var actions []func(*Proposal)
	signers := by("alpha", "beta", "gamma")
	for _, org := range []string{"alpha", "beta", "gamma"} {
		for _, role := range []string{"enroll", "emergency"} {
			actions = append(actions, rotate(org+" "+role, org+" "+role+" 9"))
		}
	}
	m.ok(m.vote(m.propose(actions...), signers...))
	restored, err := Restore(m.g, imageOf(t, m.s))
	if err != nil {
		t.Fatal(err)
	}
	if restored.Digest() != m.s.Digest() || len(restored.Suspensions(m.at)) != 1 || names(restored.Nodes()) != names(m.s.Nodes()) {
		t.Errorf("restored %s, %d suspensions", names(restored.Nodes()), len(restored.Suspensions(m.at)))
	}
}

// Who adds a field to a state decides here how an image keeps it.
func TestImageKnowsEveryField(t *testing.T) {
	for _, c := range []struct {
		of   any
		kept string
	}{
		{State{}, "PolicyState now tickSeq nodes peers retired edges spared suspensions used logged voided withdrawals"},
		// All of it follows from genesis and the chain.
		{PolicyState{}, "genesis incarnation epoch base entries revoked platforms seen bootstrap recovery continues chain chainBytes links orgs limits witnesses former enrollers"},
		{node{}, "cred run evicted contradicted seat removed drained"},
		{suspended{}, "Suspension raw entry ordered ends lifted"},
		{measured{}, "Kind Measurement Reference"},
		{logged{}, "seq at"},
		{Credential{}, "MeshID Incarnation Organisation Node Peer Cosigner Roles BootSeq Checkpoint Issued Expires AK raw key packed"},
		{AttestationResult{}, "Verifier Subject MeshID Incarnation Epoch Kind Measurement Verdict Codes Vector Reference Evidence At Expires digest raw packed"},
	} {
		var got []string
		for i := range reflect.TypeOf(c.of).NumField() {
			got = append(got, reflect.TypeOf(c.of).Field(i).Name)
		}
		if strings.Join(got, " ") != c.kept {
			t.Errorf("%T has the fields %v; images know %s", c.of, got, c.kept)
		}
	}
}

// No bit of an image may change and leave the digest that a quorum has logged.
func TestImageBitFlips(t *testing.T) {
	m := lived(t)
	raw, want := imageOf(t, m.s), m.s.Digest()
	for i := 0; i < few(len(raw)*8); i += 61 { // all of them take minutes; 61 is prime, so that every kind of bit comes up
		flipped := bytes.Clone(raw)
		flipped[i/8] ^= 1 << (i % 8)
		if s, err := Restore(m.g, flipped); err == nil && s.Digest() == want {
			t.Fatalf("bit %d of byte %d (%x) may be flipped", i%8, i/8, raw[max(0, i/8-8):i/8+1])
		}
	}
	for n := 0; n < few(len(raw)); n += 97 {
		if _, err := Restore(m.g, raw[:n]); err == nil {
			t.Fatalf("accepted the first %d bytes", n)
		}
	}
	if _, err := Restore(m.g, append(bytes.Clone(raw), 0)); err == nil {
		t.Fatal("accepted a byte behind the image")
	}
	if _, err := Restore(m.g, make([]byte, MaxImage+1)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Fatalf("got %v, want the size limit", err)
	}
}

// Each altered image is refused by itself or has another digest than was logged.
func TestImageAltered(t *testing.T) {
	m := lived(t)
	want := m.s.Digest()
	for name, c := range map[string]struct {
		alter func(w *wireImage)
		err   string // the reason; empty where only the digest tells
	}{
		"version":               {func(w *wireImage) { w.Version = 2 }, "version 2"},
		"mesh":                  {func(w *wireImage) { w.MeshID = bytes.Repeat([]byte{1}, 32) }, "of mesh"},
		"policy step missing":   {func(w *wireImage) { w.Chain = w.Chain[:2] }, ""},
		"no Bootstrap":          {func(w *wireImage) { w.Chain = nil }, "no Bootstrap"},
		"policy step forged":    {func(w *wireImage) { w.Chain[2].Sigs[0][5] ^= 1 }, "wrong_signer"},
		"approvals missing":     {func(w *wireImage) { w.Chain[2].KeyIDs, w.Chain[2].Sigs = w.Chain[2].KeyIDs[:1], w.Chain[2].Sigs[:1] }, "threshold"},
		"clock":                 {func(w *wireImage) { w.Now -= 1000 }, ""},
		"tick":                  {func(w *wireImage) { w.TickSeq++ }, ""},
		"node missing":          {func(w *wireImage) { w.Nodes = w.Nodes[:len(w.Nodes)-1] }, ""},
		"node twice":            {func(w *wireImage) { w.Nodes = append(w.Nodes, w.Nodes[0]) }, "distinct nodes"},
		"credential forged":     {func(w *wireImage) { w.Nodes[0].Credential.Sig[3] ^= 1 }, "no_credential"},
		"credential of another": {func(w *wireImage) { w.Nodes[0].Credential.Peer = w.Nodes[1].Credential.Peer }, "no_credential"},
		"boot number":           {func(w *wireImage) { w.Nodes[0].Credential.BootSeq++ }, "no_credential"},
		"eviction undone":       {func(w *wireImage) { w.Nodes[slices.IndexFunc(w.Nodes, seatGone)].Removed = w.Nodes[0].Removed }, ""},
		"a second seat":         {func(w *wireImage) { w.Nodes[slices.IndexFunc(w.Nodes, noSeat)].Seat = true }, ""},
		"measurement":           {func(w *wireImage) { w.Nodes[0].Run = nil }, ""},
		"edge missing":          {func(w *wireImage) { w.Nodes[0].Edges = w.Nodes[0].Edges[1:] }, ""},
		"edge of nobody":        {func(w *wireImage) { w.Nodes[0].Edges[0].Verifier = 99 }, "verifier 99"},
		"edge of itself":        {func(w *wireImage) { w.Nodes[0].Edges[0].Verifier = 0 }, "judges itself"},
		"edge later":            {func(w *wireImage) { w.Nodes[0].Edges[0].At += 1000 }, ""},
		"string missing":        {func(w *wireImage) { w.Strings = w.Strings[:1] }, "string"},
		"string unused":         {func(w *wireImage) { w.Strings = append(w.Strings, "more") }, canonical.ErrForm.Error()},
		"boot forgotten":        {func(w *wireImage) { w.Retired = nil }, ""},
		"half a peer":           {func(w *wireImage) { w.Retired[0].Peers = w.Retired[0].Peers[:40] }, "bytes behind"},
		"current peer retired":  {func(w *wireImage) { w.Retired[0].Peers = w.Nodes[0].Credential.Peer }, "is in use"},
		"suspension dropped":    {func(w *wireImage) { w.Suspensions = w.Suspensions[:1] }, ""},
		"suspension lifted":     {func(w *wireImage) { w.Suspensions[slices.IndexFunc(w.Suspensions, notLifted)].Lifted = true }, ""},
		"suspension shortened":  {func(w *wireImage) { w.Suspensions[0].Ends -= 1000 }, ""},
		"suspension forged":     {func(w *wireImage) { w.Suspensions[0].Envelope.Sigs[0][3] ^= 1 }, "suspension by"},
		"suspended entry":       {func(w *wireImage) { w.Suspensions[slices.IndexFunc(w.Suspensions, onAnEntry)].Entry = nil }, "bytes of entry"},
		"pace of digests":       {func(w *wireImage) { w.Parts[0].Image = must(images.enc.Marshal(loggedImage{})) }, ""},
		"part missing":          {func(w *wireImage) { w.Parts = nil }, "0 parts"},
		"another part":          {func(w *wireImage) { w.Parts[0].Name = "x" }, "part 0"},
	} {
		t.Run(name, func(t *testing.T) {
			var w wireImage
			if err := images.decode(imageOf(t, m.s), &w); err != nil {
				t.Fatal(err)
			}
			c.alter(&w)
			s, err := Restore(m.g, must(images.enc.Marshal(w)))
			switch {
			case c.err != "" && (err == nil || !strings.Contains(err.Error()+string(errorCode(err)), c.err)):
				t.Fatalf("got %v, want %q", err, c.err)
			case err == nil && s.Digest() == want:
				t.Fatal("the digest is the logged one")
			}
		})
	}
	other := governing(t, 2)
	if _, err := Restore(other.g, imageOf(t, m.s)); err == nil {
		t.Error("restored in another mesh")
	}
	if _, err := NewState(m.g).Image(); err == nil {
		t.Error("an image of a state without Bootstrap")
	}
}

func seatGone(w wireNode) bool        { return w.Removed != w.Evicted || w.Removed > 3 && w.Seat }
func noSeat(w wireNode) bool          { return !w.Seat }
func notLifted(w wireSuspension) bool { return !w.Lifted }
func onAnEntry(w wireSuspension) bool { return len(w.Entry) > 0 }
func errorCode(err error) (c attest.Code) {
	var e *attest.Error
	if errors.As(err, &e) {
		c = e.Reason.Code
	}
	return c
}

// What an image cannot rebuild from its parts it keeps whole.
func TestImageKeepsForeignFormsWhole(t *testing.T) {
	m := governing(t, 2)
	m.ok(m.command(KindCredential, m.credential("beta/n2", 1)))
	n := m.s.nodes[m.s.refs()[2]]
	table := &interner{index: map[string]uint64{}}
	whole := packCredential(&Credential{raw: []byte("not an envelope")}, table)
	if string(whole.Raw) != "not an envelope" || len(table.list) != 0 {
		t.Fatalf("got %+v", whole)
	}
	packed := packCredential(n.cred, table)
	if len(packed.Raw) != 0 {
		t.Fatal("a Credential is kept whole")
	}
	got, err := m.s.unpackCredential(wireCredential{Raw: n.cred.raw}, table)
	if err != nil || got.Peer != n.cred.Peer {
		t.Fatalf("got %v, %v", got, err)
	}
	r := must(ParseResult(m.result("alpha/n1", "beta/n1", "new")))
	if e := packEdge(r, 0, table); len(e.Raw) != 0 {
		t.Fatal("an edge is kept whole")
	}
	again, err := m.s.unpackEdge(wireEdge{Raw: r.raw}, r.Verifier, r.Subject, table)
	if err != nil || again.digest != r.digest {
		t.Fatalf("got %v, %v", again, err)
	}
	if _, err := m.s.unpackEdge(wireEdge{Raw: r.raw}, r.Subject, r.Verifier, table); err == nil {
		t.Fatal("an edge in another's place")
	}
}

func FuzzImage(f *testing.F) {
	m := lived(f)
	f.Add(imageOf(f, m.s))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Restore(m.g, raw)
		if err != nil {
			return
		}
		again, err := s.Image()
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("accepted %x, which encodes to %x (%v)", raw, again, err)
		}
	})
}

func TestLogState(t *testing.T) {
	m := governing(t, 3)
	if m.s.LogStateDue(DigestEvery-1) || !m.s.LogStateDue(DigestEvery) {
		t.Fatal("due at the wrong time")
	}
	m.refused(m.logState(DigestEvery-1), attest.CodeLimit)
	digest := m.s.Digest()
	out := m.ok(m.logState(DigestEvery))
	l, err := ParseLoggedState(out.Leaves[0])
	policy := m.s.PolicyDigest()
	if err != nil || l.Digest != hex.EncodeToString(digest[:]) || l.Seq != DigestEvery || l.Policy != hex.EncodeToString(policy[:]) {
		t.Fatalf("got %+v, %v", l, err)
	}
	if m.s.Digest() == digest {
		t.Fatal("when the state was logged is not in its digest")
	}
	m.refused(m.logState(3*DigestEvery), attest.CodeLimit)
	m.tick(DigestPause - time.Millisecond)
	m.refused(m.logState(3*DigestEvery), attest.CodeLimit)
	m.tick(time.Millisecond)
	m.refused(m.logState(2*DigestEvery-1), attest.CodeLimit)
	m.ok(m.logState(3 * DigestEvery))

	m.refused(m.command(KindDigest), attest.CodeMalformed) // Apply alone cannot know the rest
	if out := m.s.LogState(Command{CommandVersion, KindTick, []byte{0x80}}, 9*DigestEvery, digest); out.Reason == nil {
		t.Error("another command was taken for a digest")
	}
	if out := m.s.LogState(Command{CommandVersion, KindDigest, []byte{0x81, 0x41, 0}}, 9*DigestEvery, digest); out.Reason == nil {
		t.Error("a digest command with a body was accepted")
	}
	old := started(t, 2)
	old.refused(old.logState(DigestEvery), attest.CodeWrongVersion)
	early := newMeshOf(t, func() *Genesis { g := genesisOf(t, 3); g.FSMVersion = fsmGovernance; return g }())
	early.refused(early.logState(DigestEvery), attest.CodeNotStarted)
}

// Auditors derive all of a state leaf but the digest itself.
func TestReplayState(t *testing.T) {
	m := governing(t, 3)
	m.ok(m.order(m.propose(add(entry(t, "next"))), 3))
	good := must(ParseLoggedState(m.ok(m.logState(DigestEvery)).Leaves[0]))
	for name, c := range map[string]struct {
		change func(l *LoggedState)
		code   attest.Code
	}{
		"as derived":       {func(*LoggedState) {}, ""},
		"another digest":   {func(l *LoggedState) { l.Digest = strings.Repeat("00", 32) }, ""}, // only the seats know
		"another policy":   {func(l *LoggedState) { l.Policy = strings.Repeat("00", 32) }, attest.CodeMalformed},
		"another epoch":    {func(l *LoggedState) { l.Epoch-- }, attest.CodeMalformed},
		"another mesh":     {func(l *LoggedState) { l.MeshID[0] ^= 1 }, attest.CodeMalformed},
		"incarnation":      {func(l *LoggedState) { l.Incarnation++ }, attest.CodeMalformed},
		"too soon":         {func(l *LoggedState) { l.Seq-- }, attest.CodeMalformed},
		"half a digest":    {func(l *LoggedState) { l.Digest = "00" }, attest.CodeMalformed},
		"no digest of the": {func(l *LoggedState) { l.Policy = "" }, attest.CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewState(m.g)
			if out := s.Apply(m.log[0]); out.Reason != nil {
				t.Fatal(out.Reason)
			}
			if _, err := s.Replay(m.s.chain[2]); err != nil {
				t.Fatal(err)
			}
			l := *good
			c.change(&l)
			leaf := must(stateLeaf(l))
			out, err := s.Replay(leaf)
			if got := errorCode(err); got != c.code {
				t.Fatalf("got %v, want %q", err, c.code)
			}
			if err != nil {
				return
			}
			if !bytes.Equal(out.Leaves[0], leaf) {
				t.Error("another leaf")
			}
			if _, err := s.Replay(leaf); errorCode(err) != attest.CodeMalformed {
				t.Errorf("the same leaf again: %v", err)
			}
		})
	}
	signed := m.sign(must(envelope.Parse(must(stateLeaf(*good)))).Payload, "alpha govern")
	if _, err := ParseLoggedState(signed); err == nil || !strings.Contains(err.Error(), "signatures") {
		t.Errorf("a signed state leaf: %v", err)
	}
	if _, err := started(t, 2).s.Replay(must(stateLeaf(*good))); errorCode(err) != attest.CodeWrongVersion {
		t.Errorf("in an old mesh: %v", err)
	}
}

// An image of a recovered mesh: what was suspended in the incarnation before is suspended still.
func TestImageAfterRecovery(t *testing.T) {
	m := governed(t, 5)
	leaves := m.leavesOf()
	at, s := place(leaves), m.replayed(leaves)
	recovery := m.recovery(m.draft(s, at), 4)
	if err := s.Recover(recovery, at, m.at); err != nil {
		t.Fatal(err)
	}
	m.s, m.log = s, nil
	m.ok(m.command(KindRecovery, recovery, m.rebirth(s, 2)))
	m.at = m.at.Add(time.Minute)
	var samples [][]byte
	for _, o := range m.orgs() {
		samples = append(samples, m.sample(string(o)+"/n1", 2, func(x *TimeSample) { x.Incarnation = 1 }))
	}
	m.ok(m.command(KindTick, samples...))
	restored, err := Restore(m.g, imageOf(t, m.s))
	if err != nil {
		t.Fatal(err)
	}
	if restored.Digest() != m.s.Digest() || restored.Continues() != m.s.Continues() || len(restored.Suspensions(m.at)) != 1 {
		t.Fatalf("restored: continues %+v, %d suspensions", restored.Continues(), len(restored.Suspensions(m.at)))
	}
	if !m.s.LogStateDue(DigestEvery) {
		t.Error("the state is not logged in the new incarnation")
	}
}
