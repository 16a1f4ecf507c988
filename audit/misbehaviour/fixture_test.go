package misbehaviour

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

func key(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("misbehaviour " + label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(label string) envelope.PublicKey {
	return envelope.PublicKey{PublicKey: key(label).Public()}
}

var orgNames = []string{"alpha", "beta", "delta", "epsilon", "eta", "gamma", "zeta"}

// mesh is a mesh after Bootstrap, with all its keys.
type mesh struct {
	t      testing.TB
	g      *consensus.Genesis
	policy *consensus.PolicyState
	at     time.Time
	orgs   []string
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

func newMesh(t testing.TB, n int) *mesh {
	t.Helper()
	m := &mesh{t: t, at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), orgs: orgNames[:n]}
	entry, err := consensus.NewEntry(consensus.Entry{Kind: attest.KindSim, Measurement: strings.Repeat("ab", 48), Roles: []string{consensus.RoleMember, consensus.RoleSeat}})
	m.check(err)
	g := &consensus.Genesis{Name: "trial", Nonce: strings.Repeat("ab", 32), CreatedAt: m.at, LogOrigin: "sim.example.org/trial",
		FSMVersion: consensus.FSMVersion, StoreKind: consensus.StoreMemory, AllowSim: true,
		Kinds: consensus.Kinds{Member: []string{"sim"}, Seat: []string{"sim"}, Aggregator: []string{"sim"}},
		Roots: consensus.Roots{Sim: []envelope.PublicKey{public("root")}, VTPM: []consensus.RootKey{}}, Policy: consensus.FirstPolicy{Entries: []consensus.Entry{entry}},
		Witnesses: []string{}, Limits: consensus.Limits{Nodes: 3}}
	var signers []signature.Signer
	for _, org := range m.orgs {
		o := consensus.Organisation{ID: identity.OrgID(org), Roles: []string{consensus.OrgMember}}
		for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll, consensus.KeyEmergency} {
			o.Keys = append(o.Keys, consensus.Key{Role: role, Public: public(org + " " + role)})
		}
		g.Organisations, signers = append(g.Organisations, o), append(signers, m.signer(org+" "+consensus.KeyGovern))
	}
	m.g, err = consensus.SignGenesis(g, signers...)
	m.check(err)
	var creds [][]byte
	for _, org := range m.orgs {
		creds = append(creds, m.credential(org, 1))
	}
	payload, err := consensus.NewBootstrap(m.g, 1, creds, key("log").Public().(ed25519.PublicKey), m.at)
	m.check(err)
	m.policy, err = consensus.ReplayPolicy(m.g, [][]byte{m.g.Raw(), m.sign(payload, consensus.KeyEnroll, m.orgs...)})
	m.check(err)
	return m
}

// sign merges a signature by one key of each organisation.
func (m *mesh) sign(payload []byte, role string, orgs ...string) []byte {
	m.t.Helper()
	var parts [][]byte
	for _, org := range orgs {
		part, err := consensus.Sign(payload, m.signer(org+" "+role))
		m.check(err)
		parts = append(parts, part)
	}
	raw, err := consensus.Merge(parts...)
	m.check(err)
	return raw
}

func ref(org string) identity.NodeRef {
	return identity.NodeRef{Org: identity.OrgID(org), Name: "n1"}
}

func bootKey(org string, boot identity.BootSeq, what string) string {
	return fmt.Sprintf("%s %d %s", org, boot, what)
}

// credential is that of one boot of the node of org.
func (m *mesh) credential(org string, boot identity.BootSeq, change ...func(*consensus.Credential)) []byte {
	m.t.Helper()
	c := consensus.Credential{MeshID: m.g.MeshID(), Organisation: identity.OrgID(org), Node: "n1",
		Peer:     identity.PeerIDFromKey(key(bootKey(org, boot, "peer")).Public().(ed25519.PublicKey)),
		Cosigner: public(bootKey(org, boot, "cosigner")), Roles: []string{consensus.RoleMember, consensus.RoleSeat},
		BootSeq: boot, Issued: m.at, Expires: m.at.Add(24 * time.Hour)}
	for _, f := range change {
		f(&c)
	}
	raw, err := consensus.SignCredential(m.signer(org+" "+consensus.KeyEnroll), c)
	m.check(err)
	return raw
}

// extend orders one proposal of all organisations.
func (m *mesh) extend(a consensus.Action) {
	m.t.Helper()
	m.nonce++
	sum := sha256.Sum256(fmt.Append(nil, m.nonce))
	p := consensus.Proposal{MeshID: m.g.MeshID(), Base: m.policy.Base(), Nonce: hex.EncodeToString(sum[:16]), Created: m.at, Expires: m.at.Add(time.Hour), Actions: []consensus.Action{a}}
	payload, err := p.Payload()
	m.check(err)
	m.policy, err = m.policy.Append([][]byte{m.sign(payload, consensus.KeyGovern, m.orgs...)})
	m.check(err)
}

// tree returns a log of some leaves, of which the first common are the same in every history.
func (m *mesh) tree(history string, common, size int) *transparency.Tree {
	m.t.Helper()
	tree, err := transparency.NewTree(nil)
	m.check(err)
	for i := range size {
		leaf := fmt.Sprint("leaf ", i)
		if i >= common {
			leaf += " of " + history
		}
		_, err := tree.Append([]byte(leaf))
		m.check(err)
	}
	return tree
}

// note is a checkpoint of a tree at a size, signed by the log key and cosigned by boots of
// organisations: "alpha", or "alpha 2" for its second.
func (m *mesh) note(tree *transparency.Tree, size int, by ...string) []byte {
	m.t.Helper()
	root, err := tree.RootAt(uint64(size))
	m.check(err)
	return m.signed(transparency.Checkpoint{Origin: m.policy.Origin(), Size: uint64(size), Root: root}, by...)
}

func (m *mesh) signed(c transparency.Checkpoint, by ...string) []byte {
	m.t.Helper()
	note, err := transparency.NewCheckpoint(c, key("log"))
	m.check(err)
	for _, b := range by {
		note = m.cosign(note, b)
	}
	return note
}

func (m *mesh) cosign(note []byte, by string) []byte {
	m.t.Helper()
	org, boot := by, identity.BootSeq(1)
	if o, n, ok := strings.Cut(by, " "); ok {
		org = o
		_, err := fmt.Sscan(n, &boot)
		m.check(err)
	}
	k := key(bootKey(org, boot, "cosigner"))
	c := transparency.Cosigner{Name: m.policy.CosignerName(ref(org), boot), Org: identity.OrgID(org), Key: k.Public().(ed25519.PublicKey)}
	line, err := transparency.Cosign(note, c.Name, k)
	m.check(err)
	out, err := transparency.Merge(note, line, c)
	m.check(err)
	return out
}

func convicted(r Report) string {
	var out []string
	for _, c := range r.Convicted {
		out = append(out, fmt.Sprintf("%s/%d", c.Organisation, c.BootSeq))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}
