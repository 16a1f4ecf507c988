// Package audittest makes transparency logs for tests: of a mesh whose every private key follows
// from a label, so that a log is the same bytes in each run, and whoever wants to forge a leaf, a
// checkpoint or a whole history has the keys to do it with. It is for tests and for the programs
// that tests start; internal/layering keeps it out of meshnode.
//
// A Mesh is driven through the real commands (package consensus) and publishes through the real
// tree (package transparency): what a published log looks like is decided there. What Apply would
// refuse, a lying majority of seats could still write: Force does.
//
//	m := audittest.New(audittest.Options{At: at}).Start() // leaves 0 to 7
//	m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta"))
//	m.Force(m.Result("alpha/n1", "beta/n1", "evil"))
//	m.Publish(dir, audittest.Seats()...)
//
// # Names
//
// Organisations are alpha, beta and gamma; their keys are labelled "alpha govern", "alpha enroll"
// and "alpha emergency". A boot is a node's reference, "beta/n1", or that and anything after a
// space for a later boot of the same node: "beta/n1 again". Its keys are "beta/n1 again peer" and
// "beta/n1 again cosigner". The log key is "log", and "log N" in incarnation N. A release is a
// word: Measurement gives what it measures, Mesh.Entry the entry that allows it. Key returns the
// key of a label: Ed25519, its seed the SHA-256 of the label.
//
// Mistakes of a caller, and commands that are refused, panic.
package audittest

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// keys are those that were made: a long log takes few of them very often.
var keys sync.Map

// Key returns the private key of a label.
func Key(label string) ed25519.PrivateKey {
	if k, ok := keys.Load(label); ok {
		return k.(ed25519.PrivateKey)
	}
	seed := sha256.Sum256([]byte(label))
	k := ed25519.NewKeyFromSeed(seed[:])
	keys.Store(label, k)
	return k
}

// Public returns the public key of a label.
func Public(label string) envelope.PublicKey {
	return envelope.PublicKey{PublicKey: Key(label).Public()}
}

// KeyID returns the id of the key of a label, as genesis and proposals name keys.
func KeyID(label string) string { return must(envelope.KeyID(Key(label).Public())) }

// Signer returns what signs envelopes with the key of a label.
func Signer(label string) signature.Signer { return must(envelope.NewSigner(Key(label))) }

// PeerOf returns the peer id of a boot.
func PeerOf(boot string) identity.PeerID {
	return identity.PeerIDFromKey(Key(boot + " peer").Public().(ed25519.PublicKey))
}

// Ref returns the node that boots.
func Ref(boot string) identity.NodeRef {
	return must(identity.ParseNodeRef(strings.Split(boot, " ")[0]))
}

// Measurement returns what a release measures: 48 bytes in hex.
func Measurement(release string) string {
	sum := sha256.Sum256([]byte(release))
	return strings.Repeat(hex.EncodeToString(sum[:16]), 3)
}

// Seats returns the first boots of the seats of a mesh that has started.
func Seats() []string { return []string{"alpha/n1", "beta/n1", "gamma/n1"} }

// AllRoles returns the roles that every entry and Credential has unless it is changed.
func AllRoles() []string {
	return []string{consensus.RoleMember, consensus.RoleSeat, consensus.RoleTrainer, consensus.RoleAggregator}
}

// Options of New.
type Options struct {
	// At is the first instant of the mesh; required, in whole seconds of UTC.
	At time.Time
	// Version is genesis' fsm_version; 0 is the newest.
	Version int
	// Edit changes the genesis before it is signed; it may be nil.
	Edit func(*consensus.Genesis)
}

// Mesh is a mesh of three organisations that writes a log.
type Mesh struct {
	Genesis *consensus.Genesis
	State   *consensus.State
	// At is the seats' clock.
	At time.Time
	// Cosigned is the time of the cosignatures in a checkpoint; zero takes the newest that At was
	// at a tick, or is.
	Cosigned time.Time
	// Leaves are all that was appended.
	Leaves [][]byte

	nonce  int
	newest time.Time                  // of all ticks
	boots  map[identity.PeerID]string // label of every boot that a Credential was made for
}

// New returns a mesh of three organisations before Bootstrap, which allows "old" and "new", and
// "brief" for an hour. Organisations have emergency keys where the version knows suspensions.
func New(o Options) *Mesh {
	if o.Version == 0 {
		o.Version = consensus.FSMVersion
	}
	m := &Mesh{At: o.At, boots: map[identity.PeerID]string{}}
	g := &consensus.Genesis{Name: "trial", Nonce: strings.Repeat("ab", 32), CreatedAt: m.At, LogOrigin: "sim.example.org/trial",
		FSMVersion: o.Version, StoreKind: consensus.StoreMemory, AllowSim: true,
		Kinds:     consensus.Kinds{Member: []string{"sim"}, Seat: []string{"sim"}, Aggregator: []string{"sim"}},
		Roots:     consensus.Roots{Sim: []envelope.PublicKey{Public("sim root")}, VTPM: []consensus.RootKey{}},
		Witnesses: []string{}, Limits: consensus.Limits{Nodes: 3}}
	g.Policy.Entries = []consensus.Entry{m.Entry("old"), m.Entry("new"), m.Entry("brief", func(e *consensus.Entry) { e.NotAfter = m.At.Add(time.Hour) })}
	slices.SortFunc(g.Policy.Entries, func(a, b consensus.Entry) int { return strings.Compare(a.ID, b.ID) })
	for _, org := range []string{"alpha", "beta", "gamma"} {
		g.Organisations = append(g.Organisations, consensus.Organisation{ID: identity.OrgID(org), Roles: []string{consensus.OrgMember}, Keys: []consensus.Key{
			{Role: consensus.KeyGovern, Public: Public(org + " govern")}, {Role: consensus.KeyEnroll, Public: Public(org + " enroll")}}})
		if o.Version > 1 {
			last := &g.Organisations[len(g.Organisations)-1]
			last.Keys = append(last.Keys, consensus.Key{Role: consensus.KeyEmergency, Public: Public(org + " emergency")})
		}
	}
	if o.Edit != nil {
		o.Edit(g)
	}
	var signers []signature.Signer
	for _, org := range g.Organisations {
		signers = append(signers, Signer(string(org.ID)+" govern"))
	}
	m.Genesis = must(consensus.SignGenesis(g, signers...))
	m.State = consensus.NewState(m.Genesis)
	return m
}

// Start orders the Bootstrap, a first tick and an affirming edge between every two seats, all of
// which run "new": leaves 0 to 7 of three organisations.
func (m *Mesh) Start() *Mesh {
	m.Command(consensus.KindBootstrap, m.Genesis.Raw(), m.Bootstrap())
	m.Tick(0)
	m.AttestAll("new")
	return m
}

// Entry returns the entry that allows a release.
func (m *Mesh) Entry(release string, change ...func(*consensus.Entry)) consensus.Entry {
	e := consensus.Entry{Kind: attest.KindSim, Measurement: Measurement(release), Roles: AllRoles()}
	for _, f := range change {
		f(&e)
	}
	return must(consensus.NewEntry(e))
}

// Sign returns an envelope over payload with the signatures of the keys of labels.
func Sign(payload []byte, labels ...string) []byte {
	e := &envelope.Envelope{Payload: payload}
	for _, l := range labels {
		check(e.Sign(Signer(l)))
	}
	return must(consensus.Merge(e.Marshal()))
}

// Command orders envelopes and appends their leaves.
func (m *Mesh) Command(kind consensus.Kind, envelopes ...[]byte) consensus.Outcome {
	out := m.State.Apply(must(consensus.NewCommand(kind, envelopes...)))
	if out.Reason != nil {
		panic(fmt.Sprintf("audittest: %s refused: %v", kind, out.Reason))
	}
	m.Leaves = append(m.Leaves, out.Leaves...)
	return out
}

// Force appends a leaf whatever it is.
func (m *Mesh) Force(leaf []byte) { m.Leaves = append(m.Leaves, leaf) }

// Tick moves the seats' clock.
func (m *Mesh) Tick(d time.Duration) consensus.Outcome {
	m.At = m.At.Add(d)
	if m.At.After(m.newest) {
		m.newest = m.At
	}
	var samples [][]byte
	for _, n := range m.State.Seats() {
		samples = append(samples, must(consensus.SignTimeSample(Key(m.boot(n.Peer)+" peer"),
			consensus.TimeSample{MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Peer: n.Peer, Seq: m.State.TickSeq() + 1, Time: m.At})))
	}
	return m.Command(consensus.KindTick, samples...)
}

// boot returns the label of a peer, which a Credential of this mesh has named.
func (m *Mesh) boot(peer identity.PeerID) string {
	label, ok := m.boots[peer]
	if !ok {
		panic("audittest: no Credential was made for peer " + peer.String())
	}
	return label
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic("audittest: " + err.Error())
	}
}
