package audit

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// A mesh is driven through the real commands and writes a real log: what a published log
// looks like is decided by package consensus and not by this test.

var allRoles = []string{consensus.RoleMember, consensus.RoleSeat, consensus.RoleTrainer, consensus.RoleAggregator}

func key(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(label string) envelope.PublicKey {
	return envelope.PublicKey{PublicKey: key(label).Public()}
}

func peerOf(node string) identity.PeerID {
	return identity.PeerIDFromKey(key(node + " peer").Public().(ed25519.PublicKey))
}

func measurement(name string) string {
	sum := sha256.Sum256([]byte(name))
	return strings.Repeat(hex.EncodeToString(sum[:16]), 3)
}

type mesh struct {
	t      testing.TB
	g      *consensus.Genesis
	s      *consensus.State
	at     time.Time // seats' clock; the present, so that cosignatures fit
	leaves [][]byte
	nonce  int
}

func (m *mesh) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *mesh) signer(label string) signature.Signer {
	m.t.Helper()
	s, err := envelope.NewSigner(key(label))
	m.check(err)
	return s
}

func (m *mesh) entry(name string, change ...func(*consensus.Entry)) consensus.Entry {
	m.t.Helper()
	e := consensus.Entry{Kind: attest.KindSim, Measurement: measurement(name), Roles: allRoles}
	for _, f := range change {
		f(&e)
	}
	e, err := consensus.NewEntry(e)
	m.check(err)
	return e
}

// newMesh returns a mesh of three organisations before Bootstrap, which allows "old" and
// "new", and "brief" for an hour.
func newMesh(t testing.TB) *mesh { return newMeshOf(t, consensus.FSMVersion) }

// newMeshOf is newMesh of a version of the state machine. Organisations have emergency keys
// where that knows suspensions.
func newMeshOf(t testing.TB, version int) *mesh {
	t.Helper()
	m := &mesh{t: t, at: time.Now().UTC().Truncate(time.Second)}
	g := &consensus.Genesis{Name: "trial", Nonce: strings.Repeat("ab", 32), CreatedAt: m.at, LogOrigin: "sim.example.org/trial",
		FSMVersion: version, StoreKind: consensus.StoreMemory, AllowSim: true,
		Kinds:     consensus.Kinds{Member: []string{"sim"}, Seat: []string{"sim"}, Aggregator: []string{"sim"}},
		Roots:     consensus.Roots{Sim: []envelope.PublicKey{public("sim root")}, VTPM: []consensus.RootKey{}},
		Witnesses: []string{}, Limits: consensus.Limits{Nodes: 3}}
	g.Policy.Entries = []consensus.Entry{m.entry("old"), m.entry("new"), m.entry("brief", func(e *consensus.Entry) { e.NotAfter = m.at.Add(time.Hour) })}
	slices.SortFunc(g.Policy.Entries, func(a, b consensus.Entry) int { return strings.Compare(a.ID, b.ID) })
	var signers []signature.Signer
	for _, org := range []string{"alpha", "beta", "gamma"} {
		g.Organisations = append(g.Organisations, consensus.Organisation{ID: identity.OrgID(org), Roles: []string{consensus.OrgMember}, Keys: []consensus.Key{
			{Role: consensus.KeyGovern, Public: public(org + " govern")}, {Role: consensus.KeyEnroll, Public: public(org + " enroll")}}})
		if version > 1 {
			o := &g.Organisations[len(g.Organisations)-1]
			o.Keys = append(o.Keys, consensus.Key{Role: consensus.KeyEmergency, Public: public(org + " emergency")})
		}
		signers = append(signers, m.signer(org+" govern"))
	}
	var err error
	m.g, err = consensus.SignGenesis(g, signers...)
	m.check(err)
	m.s = consensus.NewState(m.g)
	return m
}

// started returns a mesh after Bootstrap, its first tick, and an affirming edge between
// every two seats, all of which run "new": leaves 0 to 7.
func started(t testing.TB) *mesh { return newMesh(t).start() }

func (m *mesh) start() *mesh {
	m.command(consensus.KindBootstrap, m.g.Raw(), m.bootstrap())
	m.tick(0)
	m.attestAll("new")
	return m
}

func (m *mesh) ref(node string) identity.NodeRef {
	m.t.Helper()
	ref, err := identity.ParseNodeRef(node)
	m.check(err)
	return ref
}

func (m *mesh) credential(node string, change ...func(*consensus.Credential)) []byte {
	m.t.Helper()
	ref := m.ref(strings.Split(node, " ")[0]) // "alpha/n1 again" is a later boot
	c := consensus.Credential{MeshID: m.g.MeshID(), Organisation: ref.Org, Node: ref.Name, Peer: peerOf(node), Cosigner: public(node + " cosigner"),
		Roles: allRoles, BootSeq: identity.BootSeq(1000 + len(m.leaves)), Issued: m.at, Expires: m.at.Add(24 * time.Hour)}
	for _, f := range change {
		f(&c)
	}
	raw, err := consensus.SignCredential(m.signer(string(c.Organisation)+" enroll"), c)
	m.check(err)
	return raw
}

func (m *mesh) bootstrap() []byte {
	m.t.Helper()
	var creds [][]byte
	for _, o := range m.g.Organisations {
		creds = append(creds, m.credential(string(o.ID)+"/n1"))
	}
	payload, err := consensus.NewBootstrap(m.g, 1, creds, key("log").Public().(ed25519.PublicKey), m.at)
	m.check(err)
	return m.sign(payload, "alpha enroll", "beta enroll", "gamma enroll")
}

func (m *mesh) sign(payload []byte, labels ...string) []byte {
	m.t.Helper()
	e := &envelope.Envelope{Payload: payload}
	for _, l := range labels {
		m.check(e.Sign(m.signer(l)))
	}
	raw, err := consensus.Merge(e.Marshal())
	m.check(err)
	return raw
}

// command orders envelopes and appends their leaves.
func (m *mesh) command(kind consensus.Kind, envelopes ...[]byte) consensus.Outcome {
	m.t.Helper()
	c, err := consensus.NewCommand(kind, envelopes...)
	m.check(err)
	out := m.s.Apply(c)
	if out.Reason != nil {
		m.t.Fatalf("%s refused: %v", kind, out.Reason)
	}
	m.leaves = append(m.leaves, out.Leaves...)
	return out
}

// force appends a leaf that Apply would refuse, as a lying majority of seats could.
func (m *mesh) force(leaf []byte) { m.leaves = append(m.leaves, leaf) }

func (m *mesh) tick(d time.Duration) consensus.Outcome {
	m.t.Helper()
	m.at = m.at.Add(d)
	var samples [][]byte
	for _, n := range m.s.Seats() {
		raw, err := consensus.SignTimeSample(key(n.Ref.String()+" peer"), consensus.TimeSample{MeshID: m.g.MeshID(), Peer: n.Peer, Seq: m.s.TickSeq() + 1, Time: m.at})
		m.check(err)
		samples = append(samples, raw)
	}
	return m.command(consensus.KindTick, samples...)
}

func (m *mesh) result(verifier, subject, runs string, change ...func(*consensus.AttestationResult)) []byte {
	m.t.Helper()
	party := func(node string) consensus.Party {
		return consensus.Party{Node: m.ref(strings.Split(node, " ")[0]), Peer: peerOf(node)}
	}
	r := consensus.AttestationResult{Verifier: party(verifier), Subject: party(subject), MeshID: m.g.MeshID(), Epoch: m.s.Epoch(), Kind: "sim",
		Measurement: measurement(runs), Verdict: attest.VerdictAffirming, Codes: []attest.Code{}, Evidence: consensus.EvidenceCommitment([32]byte{1}, []byte("e")),
		Reference: m.entry(runs).ID, Vector: attest.Vector{Executables: 2, Hardware: 2}, At: m.at, Expires: m.at.Add(time.Hour)}
	for _, f := range change {
		f(&r)
	}
	raw, err := consensus.SignResult(key(verifier+" peer"), r)
	m.check(err)
	return raw
}

func (m *mesh) attestAll(runs string) {
	m.t.Helper()
	var batch [][]byte
	for _, v := range m.g.Organisations {
		for _, o := range m.g.Organisations {
			if v.ID != o.ID {
				batch = append(batch, m.result(string(v.ID)+"/n1", string(o.ID)+"/n1", runs))
			}
		}
	}
	m.command(consensus.KindResults, batch...)
}

// proposal returns a proposal signed by govern keys of orgs.
func (m *mesh) proposal(action consensus.Action, orgs ...string) []byte {
	return m.proposalUntil(m.at.Add(time.Hour), action, orgs...)
}

func (m *mesh) proposalUntil(expires time.Time, action consensus.Action, orgs ...string) []byte {
	m.t.Helper()
	m.nonce++
	p := &consensus.Proposal{MeshID: m.g.MeshID(), Base: m.s.Base(), Nonce: fmt.Sprintf("%032x", m.nonce), Created: expires.Add(-time.Hour), Expires: expires, Actions: []consensus.Action{action}}
	payload, err := p.Payload()
	m.check(err)
	var labels []string
	for _, o := range orgs {
		labels = append(labels, o+" govern")
	}
	return m.sign(payload, labels...)
}

func (m *mesh) add(name string) consensus.Action {
	return consensus.Action{AddEntry: &consensus.AddEntry{Entry: m.entry(name)}}
}

func remove(name string) consensus.Action {
	return consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: measurement(name)}}
}

// publish writes the log with a checkpoint cosigned by nodes, and returns its directory.
func (m *mesh) publish(cosigners ...string) string {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "log")
	dir, err := durable.Open(path)
	m.check(err)
	tree, err := transparency.NewTree(dir)
	m.check(err)
	_, err = tree.AppendAll(m.leaves)
	m.check(err)
	m.check(tree.Publish(m.checkpoint(tree, cosigners...)))
	return path
}

// logKey is the log key of the present incarnation.
func (m *mesh) logKey() ed25519.PrivateKey {
	if inc := m.s.Incarnation(); inc > 0 {
		return key(fmt.Sprint("log ", inc))
	}
	return key("log")
}

func (m *mesh) checkpoint(tree *transparency.Tree, cosigners ...string) []byte {
	m.t.Helper()
	size, root := tree.Head()
	cp, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: m.s.Origin(), Size: size, Root: root}, m.logKey())
	m.check(err)
	for _, node := range cosigners {
		n, ok := m.s.Node(peerOf(node))
		if !ok {
			m.t.Fatalf("%s is no node", node)
		}
		by := transparency.Cosigner{Name: m.s.CosignerName(n.Ref, n.BootSeq), Org: n.Ref.Org, Key: public(node + " cosigner").PublicKey.(ed25519.PublicKey)}
		if by.Name != transparency.CosignerName(m.s.Origin(), n.Ref, n.BootSeq) {
			m.t.Fatalf("two packages name cosigners differently: %s", by.Name)
		}
		line, err := transparency.Cosign(cp, by.Name, key(node+" cosigner"))
		m.check(err)
		cp, err = transparency.Merge(cp, line, by)
		m.check(err)
	}
	return cp
}

var seats = []string{"alpha/n1", "beta/n1", "gamma/n1"}

// audit audits a published log against the mesh's own genesis.
func (m *mesh) audit(location string, change ...func(*Options)) Report {
	m.t.Helper()
	opts := Options{Genesis: m.g, At: time.Now()}
	for _, f := range change {
		f(&opts)
	}
	r, err := transparency.OpenReader(location)
	m.check(err)
	defer r.Close()
	report, err := Log(m.t.Context(), r, opts)
	m.check(err)
	if report.OK != (len(report.Findings) == 0) {
		m.t.Errorf("ok is %v with findings %v", report.OK, report.Findings)
	}
	return report
}

func codes(r Report) string {
	var out []string
	for _, f := range r.Findings {
		out = append(out, fmt.Sprintf("%d:%s", f.Index, f.Code))
	}
	return strings.Join(out, " ")
}
