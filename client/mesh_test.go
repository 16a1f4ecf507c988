package client_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
	"github.com/attestmesh/meshnode/transparency"
)

// mesh is everything that a mesh of organisations has signed, without the mesh.
type mesh struct {
	t       testing.TB
	name    string
	genesis *consensus.Genesis
	forger  *attesttest.Forger
	seats   []seat
	logKey  ed25519.PrivateKey
	chain   [][]byte
	size    uint64 // of the log, as heads and checkpoints say
}

type seat struct {
	ref        identity.NodeRef
	peer       ed25519.PrivateKey
	cosigner   ed25519.PrivateKey
	credential []byte
	boot       identity.BootSeq
}

func key(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("client test " + label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func peerOf(k ed25519.PrivateKey) identity.PeerID {
	return identity.PeerIDFromKey(k.Public().(ed25519.PublicKey))
}

func signer(t testing.TB, k ed25519.PrivateKey) signature.Signer {
	t.Helper()
	s, err := envelope.NewSigner(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var allRoles = consensus.NormaliseRoles([]string{consensus.RoleSeat, consensus.RoleTrainer, consensus.RoleAggregator})

func entry(t testing.TB, release string) consensus.Entry {
	t.Helper()
	e, err := consensus.NewEntry(consensus.Entry{Kind: attest.KindSim, Measurement: attesttest.Measurement(release), Roles: allRoles})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// newMesh founds a mesh that allows the releases "one" and "two".
func newMesh(t testing.TB, name string, orgs ...identity.OrgID) *mesh {
	t.Helper()
	m := &mesh{t: t, name: name, forger: attesttest.New(name), logKey: key(name + " log"), size: 10}
	sim := []string{attest.KindSim}
	g := &consensus.Genesis{Name: name, Nonce: hex.EncodeToString(sum(name)), CreatedAt: time.Now().UTC().Truncate(time.Second), LogOrigin: "sim.example.org/" + name,
		FSMVersion: consensus.FSMVersion, StoreKind: consensus.StoreMemory, AllowSim: true, Kinds: consensus.Kinds{Member: sim, Seat: sim, Aggregator: sim},
		Roots: consensus.Roots{VTPM: []consensus.RootKey{}}, Witnesses: []string{}, Limits: consensus.Limits{Nodes: 8}}
	for _, r := range m.forger.Roots() {
		g.Roots.Sim = append(g.Roots.Sim, envelope.PublicKey{PublicKey: r})
	}
	g.Policy.Entries = []consensus.Entry{entry(t, "one"), entry(t, "two")}
	if g.Policy.Entries[0].ID > g.Policy.Entries[1].ID {
		g.Policy.Entries[0], g.Policy.Entries[1] = g.Policy.Entries[1], g.Policy.Entries[0]
	}
	var govern []signature.Signer
	for _, o := range orgs {
		org := consensus.Organisation{ID: o, Roles: []string{consensus.OrgMember}}
		for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll} {
			org.Keys = append(org.Keys, consensus.Key{Role: role, Public: envelope.PublicKey{PublicKey: m.key(o, role).Public()}})
		}
		g.Organisations = append(g.Organisations, org)
		govern = append(govern, signer(t, m.key(o, consensus.KeyGovern)))
	}
	var err error
	if m.genesis, err = consensus.SignGenesis(g, govern...); err != nil {
		t.Fatal(err)
	}
	m.bootstrap(orgs)
	return m
}

func sum(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

func (m *mesh) key(org identity.OrgID, role string) ed25519.PrivateKey {
	return key(m.name + " " + string(org) + " " + role)
}

// enrol has an organisation's enroller sign a Credential.
func (m *mesh) enrol(ref identity.NodeRef, boot identity.BootSeq, roles []string) seat {
	m.t.Helper()
	label := fmt.Sprintf("%s %s %d", m.name, ref, boot)
	s := seat{ref: ref, peer: key(label + " peer"), cosigner: key(label + " cosigner"), boot: boot}
	now := time.Now().UTC().Truncate(time.Second)
	var err error
	s.credential, err = consensus.SignCredential(signer(m.t, m.key(ref.Org, consensus.KeyEnroll)), consensus.Credential{MeshID: m.genesis.MeshID(),
		Organisation: ref.Org, Node: ref.Name, Peer: peerOf(s.peer), Cosigner: envelope.PublicKey{PublicKey: s.cosigner.Public()},
		Roles: roles, BootSeq: boot, Issued: now, Expires: now.Add(consensus.MaxCredentialLifetime)})
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *mesh) bootstrap(orgs []identity.OrgID) {
	m.t.Helper()
	var credentials [][]byte
	for _, o := range orgs {
		s := m.enrol(identity.NodeRef{Org: o, Name: "n1"}, 1, allRoles)
		m.seats = append(m.seats, s)
		credentials = append(credentials, s.credential)
	}
	payload, err := consensus.NewBootstrap(m.genesis, 1, credentials, m.logKey.Public().(ed25519.PublicKey), time.Now())
	if err != nil {
		m.t.Fatal(err)
	}
	m.chain = [][]byte{m.genesis.Raw(), m.sign(payload, consensus.KeyEnroll)}
}

// sign has every organisation sign a payload.
func (m *mesh) sign(payload []byte, role string) []byte {
	m.t.Helper()
	var parts [][]byte
	for _, s := range m.seats {
		part, err := consensus.Sign(payload, signer(m.t, m.key(s.ref.Org, role)))
		if err != nil {
			m.t.Fatal(err)
		}
		parts = append(parts, part)
	}
	raw, err := consensus.Merge(parts...)
	if err != nil {
		m.t.Fatal(err)
	}
	return raw
}

// remove votes a release out.
func (m *mesh) remove(release string) {
	m.t.Helper()
	m.propose(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement(release)}})
}

// propose has every organisation vote for something.
func (m *mesh) propose(a consensus.Action) {
	m.t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	p := consensus.Proposal{MeshID: m.genesis.MeshID(), Base: m.state(m.chain).Base(), Nonce: hex.EncodeToString(sum(fmt.Sprint(len(m.chain)))[:16]),
		Created: now, Expires: now.Add(time.Hour), Actions: []consensus.Action{a}}
	payload, err := p.Payload()
	if err != nil {
		m.t.Fatal(err)
	}
	m.chain = append(m.chain, m.sign(payload, consensus.KeyGovern))
}

func (m *mesh) state(chain [][]byte) *consensus.PolicyState {
	m.t.Helper()
	s, err := consensus.ReplayPolicy(m.genesis, chain)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func rootAt(size uint64) string { return hex.EncodeToString(sum(fmt.Sprint("root ", size))) }

// head is a seat's statement over a nonce.
func (m *mesh) head(s seat, nonce [32]byte, chain [][]byte, change func(*consensus.Head)) []byte {
	m.t.Helper()
	state := m.state(chain)
	h := consensus.Head{MeshID: m.genesis.MeshID(), Nonce: hex.EncodeToString(nonce[:]), Epoch: state.Epoch(), Policy: fmt.Sprintf("%x", state.PolicyDigest()),
		Tick: 7, Size: m.size, Root: rootAt(m.size)}
	if change != nil {
		change(&h)
	}
	env, err := envelope.SignStatement(signer(m.t, s.peer), envelope.TypeHead, envelope.SubjectOf(s.ref.String(), []byte(peerOf(s.peer))), h)
	if err != nil {
		m.t.Fatal(err)
	}
	return env.Marshal()
}

// checkpoint is the newest one, with the cosignatures of the first n seats.
func (m *mesh) checkpoint(n int) []byte {
	m.t.Helper()
	origin := m.genesis.Origin(0)
	raw, _ := hex.DecodeString(rootAt(m.size))
	note, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: origin, Size: m.size, Root: transparency.Hash(raw)}, m.logKey)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, s := range m.seats[:n] {
		name := m.genesis.CosignerName(0, s.ref, s.boot)
		line, err := transparency.Cosign(note, name, s.cosigner)
		if err != nil {
			m.t.Fatal(err)
		}
		if note, err = transparency.Merge(note, line, transparency.Cosigner{Name: name, Org: s.ref.Org, Key: s.cosigner.Public().(ed25519.PublicKey)}); err != nil {
			m.t.Fatal(err)
		}
	}
	return note
}

// started is a service's runtime event.
func started(name, program string) runtimelog.Event {
	return runtimelog.Event{Type: service.EventType, Name: name, Digests: []runtimelog.Digest{
		{Role: service.RoleManifest, SHA256: [32]byte(sum("manifest"))}, {Role: service.RoleModel, SHA256: [32]byte(sum("model"))}, {Role: service.RoleProgram, SHA256: [32]byte(sum(program))}}}
}

// prove makes evidence over a binder in a batch of its own.
func prove(t testing.TB, m *mesh, a attest.Attester, s seat, log *runtimelog.Log, bind [32]byte) attest.Proof {
	t.Helper()
	root, inclusions, err := attest.BatchRoot([][32]byte{bind})
	if err != nil {
		t.Fatal(err)
	}
	head := log.Head()
	ev, err := a.Attest(context.Background(), attest.NewReportData(a.Kind(), m.genesis.MeshID(), string(peerOf(s.peer)), head, root))
	if err != nil {
		t.Fatal(err)
	}
	return attest.Proof{Evidence: ev, RuntimeHead: head, Inclusion: inclusions[0]}
}

func encodeProof(t testing.TB, p attest.Proof) []byte {
	t.Helper()
	raw, err := ratls.EncodeProof(p)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// A fixture that is wrong would make every refusal look right.
func TestFixture(t *testing.T) {
	m := newMesh(t, "fixture", "alpha", "beta", "gamma")
	m.remove("two")
	s := m.state(m.chain)
	if s.Epoch() != 1 || len(s.Entries()) != 1 || len(s.Bootstrap().Seats()) != 3 {
		t.Errorf("epoch %d, entries %v", s.Epoch(), s.Entries())
	}
	if !strings.HasPrefix(s.Origin(), "sim.example.org/fixture/") {
		t.Error(s.Origin())
	}
}
