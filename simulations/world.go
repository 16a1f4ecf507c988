package simulations

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
	"github.com/attestmesh/meshnode/node"
)

// latency is the way from one host to another: two clouds of one continent.
const latency = 20 * time.Millisecond

// hardware is a kind of platform with a vendor of its own.
type hardware struct {
	kind    string
	schemes []attest.Scheme
	// attester is that of the machine on which a node, as it is called at first, runs.
	attester func(name, measurement string) *attesttest.Attester
}

// world is one mesh with everything around it. One goroutine, the player's, uses it; what
// clients need of it is immutable once they run.
type world struct {
	opts      Options
	keep      uint64 // see the scenario's line "keep"
	hardware  hardware
	rnd       *rand.Rand
	wire      *memtransport.Network
	forger    *attesttest.Forger
	genesis   *consensus.Genesis
	enrollers map[identity.OrgID]*enroller
	policy    *consensus.PolicyState // what nodes that start from now on are given; nil is genesis's
	hosts     []*host
	parted    [][2]string // pairs of hosts
	proposed  time.Time   // when the last propose command was sent
	nonces    int
	watch     watch

	// What tests do to nodes: their data and clocks, between the Credential and the mesh, and to what they think
	// of peers.
	training   func(name string) *node.TrainingData
	clock      func(name string) func() time.Time
	beforeMesh func(*host)
	judge      func(*host, mesh.Judge) mesh.Judge
}

func newWorld(orgs, releases []string, seed uint64, opts Options) (*world, error) {
	w := &world{
		opts: opts, rnd: rand.New(rand.NewPCG(seed, 1)), wire: &memtransport.Network{Latency: latency},
		forger: attesttest.New("simulations"), enrollers: map[identity.OrgID]*enroller{},
	}
	w.hardware = hardware{attest.KindSim, []attest.Scheme{w.forger.Scheme()}, func(_, m string) *attesttest.Attester { return w.forger.Attester(m) }}
	if opts.hardware != nil {
		w.hardware = *opts.hardware
	}
	g, err := w.makeGenesis(orgs, releases)
	if err != nil {
		return nil, err
	}
	w.genesis = g
	for _, o := range g.Organisations {
		s, err := envelope.NewSigner(key(string(o.ID), consensus.KeyEnroll))
		if err != nil {
			return nil, err
		}
		w.enrollers[o.ID] = newEnroller(g, o.ID, s)
	}
	return w, nil
}

// makeGenesis writes the file that people would, and has every organisation sign it.
func (w *world) makeGenesis(orgs, releases []string) (*consensus.Genesis, error) {
	kinds := []string{w.hardware.kind}
	g := &consensus.Genesis{
		Name: "simulation", Nonce: strings.Repeat("5a", 32), CreatedAt: time.Now().UTC().Truncate(time.Second), LogOrigin: "example.org/simulation",
		FSMVersion: consensus.FSMVersion, StoreKind: consensus.StoreMemory,
		Kinds:     consensus.Kinds{Member: kinds, Seat: kinds, Aggregator: kinds},
		Roots:     consensus.Roots{Sim: []envelope.PublicKey{}, VTPM: []consensus.RootKey{}},
		Witnesses: []string{}, Limits: consensus.Limits{Nodes: consensus.DefaultNodes},
	}
	if w.hardware.kind == attest.KindSim {
		g.AllowSim, g.LogOrigin = true, "sim."+g.LogOrigin
		for _, r := range w.forger.Roots() {
			g.Roots.Sim = append(g.Roots.Sim, envelope.PublicKey{PublicKey: r})
		}
	}
	for _, name := range releases {
		e, err := entryOn(w.hardware.kind, name)
		if err != nil {
			return nil, err
		}
		g.Policy.Entries = append(g.Policy.Entries, e)
	}
	slices.SortFunc(g.Policy.Entries, func(a, b consensus.Entry) int { return strings.Compare(a.ID, b.ID) })
	var signers []signature.Signer
	for _, org := range slices.Sorted(slices.Values(orgs)) {
		id, neutral := strings.CutSuffix(org, ":seat")
		o := consensus.Organisation{ID: identity.OrgID(id), Roles: []string{consensus.OrgMember}}
		if neutral {
			o.Roles = []string{consensus.OrgSeat}
		}
		for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll, consensus.KeyEmergency} {
			o.Keys = append(o.Keys, consensus.Key{Role: role, Public: envelope.PublicKey{PublicKey: key(id, role).Public()}})
		}
		g.Organisations = append(g.Organisations, o)
		s, err := envelope.NewSigner(key(id, consensus.KeyGovern))
		if err != nil {
			return nil, err
		}
		signers = append(signers, s)
	}
	return consensus.SignGenesis(g, signers...)
}

// key is an organisation's key in a role; the same in every run.
func key(org, role string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("simulations " + org + " " + role))
	return ed25519.NewKeyFromSeed(seed[:])
}

// entryOf allows a release in every role.
func entryOf(release string) (consensus.Entry, error) { return entryOn(attest.KindSim, release) }

// entryOn does so on a kind of platform.
func entryOn(kind, release string) (consensus.Entry, error) {
	return consensus.NewEntry(consensus.Entry{Kind: kind, Measurement: attesttest.Measurement(release),
		Roles: consensus.NormaliseRoles([]string{consensus.RoleSeat, consensus.RoleTrainer, consensus.RoleAggregator})})
}

func add(release string) (consensus.Action, error) {
	e, err := entryOf(release)
	return consensus.Action{AddEntry: &consensus.AddEntry{Entry: e}}, err
}

func remove(release string) consensus.Action {
	return consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement(release)}}
}

// proposal makes and signs a proposal, told apart from all others by name.
func (w *world) proposal(name string, base uint64, orgs []string, actions ...consensus.Action) ([]byte, error) {
	payload, err := w.payload(name, base, actions...)
	if err != nil {
		return nil, err
	}
	return signAll(payload, orgs)
}

// payload is what the signatures under a proposal are of.
func (w *world) payload(name string, base uint64, actions ...consensus.Action) ([]byte, error) {
	nonce := sha256.Sum256([]byte(name))
	now := time.Now().UTC().Truncate(time.Second)
	p := consensus.Proposal{MeshID: w.genesis.MeshID(), Base: base, Nonce: hex.EncodeToString(nonce[:16]),
		Created: now, Expires: now.Add(24 * time.Hour), Actions: actions}
	return p.Payload()
}

// suspension makes and signs a suspension by an organisation's emergency key.
func (w *world) suspension(name, org, release, target string, d time.Duration) ([]byte, consensus.SuspensionID, error) {
	nonce := sha256.Sum256([]byte(name))
	now := time.Now().UTC().Truncate(time.Second)
	x := consensus.Suspension{MeshID: w.genesis.MeshID(), Organisation: identity.OrgID(org), Nonce: hex.EncodeToString(nonce[:16]),
		Cause: consensus.CausePrecaution, Issued: now, Until: now.Add(d)}
	if target != "" {
		ref, err := identity.ParseNodeRef(target)
		if err != nil {
			return nil, consensus.SuspensionID{}, err
		}
		x.Node = &ref
	} else {
		e, err := entryOf(release)
		if err != nil {
			return nil, consensus.SuspensionID{}, err
		}
		x.Entry = e.ID
	}
	s, err := envelope.NewSigner(key(org, consensus.KeyEmergency))
	if err != nil {
		return nil, consensus.SuspensionID{}, err
	}
	raw, err := consensus.SignSuspension(s, x)
	if err != nil {
		return nil, consensus.SuspensionID{}, err
	}
	parsed, _, err := consensus.ParseSuspension(raw)
	if err != nil {
		return nil, consensus.SuspensionID{}, err
	}
	return raw, parsed.ID(), nil
}

// lift makes the lift of a suspension, signed by govern keys.
func (w *world) lift(id consensus.SuspensionID, orgs []string) ([]byte, error) {
	payload, err := consensus.SuspensionLift{MeshID: w.genesis.MeshID(), Suspension: id}.Payload()
	if err != nil {
		return nil, err
	}
	return signAll(payload, orgs)
}

// signAll signs a payload with the govern keys of orgs.
func signAll(payload []byte, orgs []string) ([]byte, error) {
	var parts [][]byte
	for _, org := range orgs {
		s, err := envelope.NewSigner(key(org, consensus.KeyGovern))
		if err != nil {
			return nil, err
		}
		part, err := consensus.Sign(payload, s)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return consensus.Merge(parts...)
}

// host returns the host of a node.
func (w *world) host(name string) (*host, error) {
	for _, h := range w.hosts {
		if h.name == name {
			return h, nil
		}
	}
	return nil, fmt.Errorf("no node %q was started", name)
}

// running returns the hosts whose node runs, in the order of their start.
func (w *world) running() []*host {
	var out []*host
	for _, h := range w.hosts {
		if h.up() {
			out = append(out, h)
		}
	}
	return out
}
