package consensus

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// start is the moment of every test mesh.
var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var allRoles = []string{RoleMember, RoleSeat, RoleTrainer, RoleAggregator}

// key returns the Ed25519 key of a label; the same in every run.
func key(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(label string) envelope.PublicKey {
	return envelope.PublicKey{PublicKey: key(label).Public()}
}

func signer(t testing.TB, label string) signature.Signer {
	t.Helper()
	s, err := envelope.NewSigner(key(label))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// measurement returns a well-formed measurement named by one letter.
func measurement(name string) string {
	sum := sha256.Sum256([]byte(name))
	return strings.Repeat(hex.EncodeToString(sum[:16]), 3)
}

func entry(t testing.TB, name string, roles ...string) Entry {
	t.Helper()
	if len(roles) == 0 {
		roles = allRoles
	}
	e, err := NewEntry(Entry{Kind: attest.KindSim, Measurement: measurement(name), Roles: roles})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

var orgNames = []identity.OrgID{"alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta"}

// genesisOf returns a valid, unsigned genesis of n member organisations that allows the
// measurements "old" and "new" for everything.
func genesisOf(t testing.TB, n int) *Genesis {
	t.Helper()
	g := &Genesis{Name: "trial", Nonce: strings.Repeat("ab", 32), CreatedAt: start, LogOrigin: "sim.example.org/trial", FSMVersion: 1,
		StoreKind: StoreMemory, AllowSim: true, Kinds: Kinds{[]string{"sim"}, []string{"sim"}, []string{"sim"}},
		Roots:     Roots{Sim: []envelope.PublicKey{public("sim root")}, VTPM: []RootKey{}},
		Policy:    FirstPolicy{Entries: []Entry{entry(t, "old"), entry(t, "new")}},
		Witnesses: []string{}, Limits: Limits{Nodes: 3}}
	sortEntries(g.Policy.Entries)
	for _, id := range slices.Sorted(slices.Values(orgNames[:n])) {
		g.Organisations = append(g.Organisations, Organisation{ID: id, Roles: []string{OrgMember}, Keys: []Key{
			{Role: KeyGovern, Public: public(string(id) + " govern")}, {Role: KeyGovern, Public: public(string(id) + " govern 2")},
			{Role: KeyEnroll, Public: public(string(id) + " enroll")}, {Role: KeyEmergency, Public: public(string(id) + " emergency")}}})
	}
	return g
}

// mesh is a test mesh with all its keys.
type mesh struct {
	t  testing.TB
	g  *Genesis
	s  *State
	at time.Time
	// log collects every command applied, accepted or refused.
	log []Command
}

// newMesh returns a mesh of n organisations before Bootstrap.
func newMesh(t testing.TB, n int) *mesh {
	t.Helper()
	return newMeshOf(t, genesisOf(t, n))
}

func newMeshOf(t testing.TB, unsigned *Genesis) *mesh {
	t.Helper()
	var signers []signature.Signer
	for _, o := range unsigned.Organisations {
		signers = append(signers, signer(t, string(o.ID)+" govern"))
	}
	g, err := SignGenesis(unsigned, signers...)
	if err != nil {
		t.Fatal(err)
	}
	m := &mesh{t: t, g: g, s: NewState(g), at: start.Add(time.Hour)}
	keep(t, m)
	return m
}

// started returns a mesh after Bootstrap and its first tick.
func started(t testing.TB, n int) *mesh {
	t.Helper()
	m := newMesh(t, n)
	m.start()
	return m
}

func (m *mesh) start() {
	m.t.Helper()
	m.ok(m.command(KindBootstrap, m.g.Raw(), m.bootstrap(1)))
	m.tick(time.Second)
}

func (m *mesh) orgs() []identity.OrgID {
	var out []identity.OrgID
	for _, o := range m.g.Organisations {
		out = append(out, o.ID)
	}
	return out
}

// boot is the key of the n-th boot of a node.
func boot(node string, n int) ed25519.PrivateKey { return key(fmt.Sprintf("%s boot %d", node, n)) }

func peerOf(node string, n int) identity.PeerID {
	return identity.PeerIDFromKey(boot(node, n).Public().(ed25519.PublicKey))
}

func (m *mesh) credentialOf(node string, n int, change ...func(*Credential)) Credential {
	m.t.Helper()
	ref, err := identity.ParseNodeRef(node)
	if err != nil {
		m.t.Fatal(err)
	}
	c := Credential{MeshID: m.g.MeshID(), Organisation: ref.Org, Node: ref.Name, Peer: peerOf(node, n),
		Cosigner: public(fmt.Sprintf("%s cosigner %d", node, n)), Roles: allRoles, BootSeq: identity.BootSeq(1000 + n),
		Issued: m.at, Expires: m.at.Add(24 * time.Hour)}
	for _, f := range change {
		f(&c)
	}
	return c
}

// credential returns a Credential of the n-th boot of a node, as its enroller signs it.
func (m *mesh) credential(node string, n int, change ...func(*Credential)) []byte {
	m.t.Helper()
	c := m.credentialOf(node, n, change...)
	raw, err := SignCredential(signer(m.t, string(c.Organisation)+" enroll"), c)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw
}

func (m *mesh) bootstrapPayload(attempt uint32) []byte {
	m.t.Helper()
	var creds [][]byte
	for _, o := range m.orgs() {
		creds = append(creds, m.credential(string(o)+"/n1", 1))
	}
	payload, err := NewBootstrap(m.g, attempt, creds, key("log").Public().(ed25519.PublicKey), m.at)
	if err != nil {
		m.t.Fatal(err)
	}
	return payload
}

func (m *mesh) bootstrap(attempt uint32) []byte {
	m.t.Helper()
	var labels []string
	for _, o := range m.orgs() {
		labels = append(labels, string(o)+" enroll")
	}
	return m.sign(m.bootstrapPayload(attempt), labels...)
}

// sign returns an envelope with one signature per label, gathered one by one and merged.
func (m *mesh) sign(payload []byte, labels ...string) []byte {
	m.t.Helper()
	var parts [][]byte
	for _, l := range labels {
		part, err := Sign(payload, signer(m.t, l))
		if err != nil {
			m.t.Fatal(err)
		}
		parts = append(parts, part)
	}
	raw, err := Merge(parts...)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw
}

func (m *mesh) command(kind Kind, envelopes ...[]byte) Outcome {
	m.t.Helper()
	c, err := NewCommand(kind, envelopes...)
	if err != nil {
		m.t.Fatal(err)
	}
	return m.apply(c)
}

// apply applies c after a round trip through the framing, and demands that a refusal
// leaves no trace.
func (m *mesh) apply(c Command) Outcome {
	m.t.Helper()
	raw, err := EncodeCommand(c)
	if err != nil {
		m.t.Fatal(err)
	}
	if c, err = DecodeCommand(raw); err != nil {
		m.t.Fatal(err)
	}
	before := m.s.Digest()
	out := m.s.Apply(c)
	m.log = append(m.log, c)
	if out.Reason != nil {
		if after := m.s.Digest(); after != before || len(out.Leaves) > 0 || out.EpochChanged || len(out.Evicted) > 0 {
			m.t.Fatalf("a refused command had an effect: %+v", out)
		}
		if out.Reason.Remedy == "" {
			m.t.Fatalf("a refusal without a remedy: %v", out.Reason)
		}
	}
	return out
}

func (m *mesh) ok(out Outcome) Outcome {
	m.t.Helper()
	if out.Reason != nil {
		m.t.Fatalf("refused: %v", out.Reason)
	}
	return out
}

func (m *mesh) refused(out Outcome, code attest.Code) {
	m.t.Helper()
	if out.Reason == nil {
		m.t.Fatalf("accepted, want a refusal with %s", code)
	}
	if out.Reason.Code != code {
		m.t.Fatalf("refused with %v, want %s", out.Reason, code)
	}
}

func (m *mesh) sample(node string, n int, change ...func(*TimeSample)) []byte {
	m.t.Helper()
	s := TimeSample{MeshID: m.g.MeshID(), Peer: peerOf(node, n), Seq: m.s.TickSeq() + 1, Time: m.at}
	for _, f := range change {
		f(&s)
	}
	raw, err := SignTimeSample(boot(node, n), s)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw
}

// tick moves the clock of all seats by d and orders a tick.
func (m *mesh) tick(d time.Duration) Outcome {
	m.t.Helper()
	m.at = m.at.Add(d)
	var samples [][]byte
	for _, n := range m.s.Seats() {
		samples = append(samples, m.sample(n.Ref.String(), 1))
	}
	return m.ok(m.command(KindTick, samples...))
}

func (m *mesh) propose(change ...func(*Proposal)) *Proposal {
	p := &Proposal{MeshID: m.g.MeshID(), Base: m.s.Base(), Nonce: hex.EncodeToString(sum([]byte(fmt.Sprint(len(m.log))))[:16]),
		Created: m.at, Expires: m.at.Add(time.Hour), Actions: []Action{}}
	for _, f := range change {
		f(p)
	}
	return p
}

func add(e Entry) func(*Proposal) {
	return func(p *Proposal) { p.Actions = append(p.Actions, Action{AddEntry: &AddEntry{Entry: e}}) }
}

func readmit(e Entry) func(*Proposal) {
	return func(p *Proposal) {
		p.Actions = append(p.Actions, Action{AddEntry: &AddEntry{Entry: e, Readmit: true}})
	}
}

func remove(name string) func(*Proposal) {
	return func(p *Proposal) {
		p.Actions = append(p.Actions, Action{RemoveEntry: &RemoveEntry{Measurement: measurement(name)}})
	}
}

func removeID(id string) func(*Proposal) {
	return func(p *Proposal) { p.Actions = append(p.Actions, Action{RemoveEntry: &RemoveEntry{ID: id}}) }
}

func (m *mesh) payload(p *Proposal) []byte {
	m.t.Helper()
	payload, err := p.Payload()
	if err != nil {
		m.t.Fatal(err)
	}
	return payload
}

// governors are the govern keys of the first k organisations.
func (m *mesh) governors(k int) []string {
	var out []string
	for _, o := range m.orgs()[:k] {
		out = append(out, string(o)+" govern")
	}
	return out
}

// order signs p by the first k organisations and applies it.
func (m *mesh) order(p *Proposal, k int) Outcome {
	m.t.Helper()
	return m.command(KindProposal, m.sign(m.payload(p), m.governors(k)...))
}

func (m *mesh) resultOf(verifier, subject, name string, change ...func(*AttestationResult)) AttestationResult {
	m.t.Helper()
	party := func(node string) Party {
		ref, err := identity.ParseNodeRef(node)
		if err != nil {
			m.t.Fatal(err)
		}
		n := 1
		if v, ok := m.s.NodeByRef(ref); ok {
			n = int(v.BootSeq) - 1000
		}
		return Party{ref, peerOf(node, n)}
	}
	r := AttestationResult{Verifier: party(verifier), Subject: party(subject), MeshID: m.g.MeshID(), Epoch: m.s.Epoch(), Kind: "sim",
		Measurement: measurement(name), Verdict: attest.VerdictAffirming, Codes: []attest.Code{}, Evidence: EvidenceCommitment([32]byte{1}, []byte("e")),
		Reference: entry(m.t, name).ID, Vector: attest.Vector{Executables: 2, Hardware: 2}, At: m.at, Expires: m.at.Add(time.Hour)}
	for _, f := range change {
		f(&r)
	}
	return r
}

func (m *mesh) result(verifier, subject, name string, change ...func(*AttestationResult)) []byte {
	m.t.Helper()
	r := m.resultOf(verifier, subject, name, change...)
	for n := 1; n < 9; n++ {
		if peerOf(verifier, n) == r.Verifier.Peer {
			raw, err := SignResult(boot(verifier, n), r)
			if err != nil {
				m.t.Fatal(err)
			}
			return raw
		}
	}
	m.t.Fatal("unknown boot")
	return nil
}

// attestAll orders an affirming edge between every two seats; runs says what each node
// runs.
func (m *mesh) attestAll(runs func(node string) string) {
	m.t.Helper()
	var batch [][]byte
	for _, v := range m.orgs() {
		for _, o := range m.orgs() {
			if v != o {
				batch = append(batch, m.result(string(v)+"/n1", string(o)+"/n1", runs(string(o)+"/n1")))
			}
		}
	}
	if out := m.ok(m.command(KindResults, batch...)); len(out.Leaves) != len(batch) {
		m.t.Fatalf("%d of %d edges accepted: %+v", len(out.Leaves), len(batch), out.Skipped)
	}
}

func allNew(string) string { return "new" }

func names(nodes []Node) string {
	var out []string
	for _, n := range nodes {
		out = append(out, n.Ref.String())
	}
	return strings.Join(out, " ")
}
