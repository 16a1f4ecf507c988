package node

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// crowd is many nodes of one mesh on one memory network: real identities, Credentials,
// evidence, exchanges, links, machines and the tasks that watch the policy. What Raft would
// order is applied to each machine by the test.
type crowd struct {
	t         testing.TB
	genesis   *consensus.Genesis
	forger    *attesttest.Forger
	network   mesh.MemoryNetwork
	nodes     []*Node
	attesters []*attesttest.Attester
	nonce     int
	base      uint64
	fed       []*Node // whose machines the test feeds; nil: all
	weak      bool    // what is ordered is not strong at once
	// faced, if set, stands between a node and its mesh.
	faced func(i int, m mesh.Mesh) mesh.Mesh
	// kind of the evidence, the schemes that verify it, and what makes that of node i; the
	// second result is the machine below, where the first is more than it.
	kind    string
	schemes []attest.Scheme
	machine func(i int, measurement string) (attest.Attester, *attesttest.Attester)
}

var crowdOrgs = []string{"alpha", "beta", "delta", "epsilon", "eta", "gamma", "zeta"}

func crowdSigner(t testing.TB, org, role string) signature.Signer {
	t.Helper()
	s, err := envelope.NewSigner(crowdKey(org, role))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func crowdKey(org, role string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("crowd " + org + " " + role))
	return ed25519.NewKeyFromSeed(seed[:])
}

// crowdEnroller signs Credentials for one node.
type crowdEnroller struct {
	c     *crowd
	ref   identity.NodeRef
	roles []string
	keys  Keys
}

func (e crowdEnroller) Credential(context.Context, *attest.Quoter) ([]byte, error) {
	now := time.Now()
	return consensus.SignCredential(crowdSigner(e.c.t, string(e.ref.Org), consensus.KeyEnroll), consensus.Credential{
		MeshID: e.c.genesis.MeshID(), Organisation: e.ref.Org, Node: e.ref.Name,
		Peer:     identity.PeerIDFromKey(e.keys.Peer.Public().(ed25519.PublicKey)),
		Cosigner: envelope.PublicKey{PublicKey: e.keys.Cosigner.Public()},
		Roles:    e.roles, BootSeq: 1, Issued: now, Expires: now.Add(time.Hour),
	})
}

func (crowdEnroller) SignBootstrap(context.Context, []byte) ([]byte, error) { return nil, errMalformed }
func (crowdEnroller) Started(context.Context, uint32) error                 { return errMalformed }

// noDirectory finds nobody: the test dials.
type noDirectory struct{}

func (noDirectory) Announcement(context.Context, string) (Announcement, error) {
	return Announcement{}, errMalformed
}
func (noDirectory) Policy(context.Context, string) (PolicyDocument, error) {
	return PolicyDocument{}, errMalformed
}

// newCrowd returns n nodes of seven organisations before Bootstrap. The first seven are the
// seats; release says what each runs, which must be "new" or "old".
func newCrowd(t testing.TB, n int, release func(i int) string) *crowd {
	t.Helper()
	return newFacedCrowd(t, n, release, nil)
}

// newFacedCrowd is newCrowd with crowd.faced.
func newFacedCrowd(t testing.TB, n int, release func(i int) string, faced func(i int, m mesh.Mesh) mesh.Mesh) *crowd {
	t.Helper()
	c := &crowd{t: t, forger: attesttest.New("crowd"), kind: attest.KindSim, faced: faced}
	c.schemes = []attest.Scheme{c.forger.Scheme()}
	c.machine = func(_ int, measurement string) (attest.Attester, *attesttest.Attester) {
		a := c.forger.Attester(measurement)
		return a, a
	}
	c.populate(n, release)
	return c
}

// populate signs genesis and makes the nodes.
func (c *crowd) populate(n int, release func(i int) string) {
	t := c.t
	t.Helper()
	simulated, kinds := c.kind == attest.KindSim, []string{c.kind}
	g := &consensus.Genesis{
		Name: "crowd", Nonce: strings.Repeat("c0", 32), CreatedAt: time.Now().UTC().Truncate(time.Second), LogOrigin: "example.org/test",
		FSMVersion: consensus.FSMVersion, StoreKind: consensus.StoreMemory, AllowSim: simulated,
		Kinds:     consensus.Kinds{Member: kinds, Seat: kinds, Aggregator: kinds},
		Roots:     consensus.Roots{Sim: []envelope.PublicKey{}, VTPM: []consensus.RootKey{}},
		Witnesses: []string{}, Limits: consensus.Limits{Nodes: consensus.MaxNodes, Proposals: consensus.MaxQuota, Credentials: consensus.MaxQuota},
	}
	if simulated {
		g.LogOrigin = "sim." + g.LogOrigin
		for _, r := range c.forger.Roots() {
			g.Roots.Sim = append(g.Roots.Sim, envelope.PublicKey{PublicKey: r})
		}
	}
	for _, name := range []string{"new", "old"} {
		g.Policy.Entries = append(g.Policy.Entries, c.entry(name))
	}
	slices.SortFunc(g.Policy.Entries, func(a, b consensus.Entry) int { return strings.Compare(a.ID, b.ID) })
	var signers []signature.Signer
	for _, org := range crowdOrgs {
		o := consensus.Organisation{ID: identity.OrgID(org), Roles: []string{consensus.OrgMember}}
		for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll, consensus.KeyEmergency} {
			o.Keys = append(o.Keys, consensus.Key{Role: role, Public: envelope.PublicKey{PublicKey: crowdKey(org, role).Public()}})
		}
		g.Organisations = append(g.Organisations, o)
		signers = append(signers, crowdSigner(t, org, consensus.KeyGovern))
	}
	var err error
	if c.genesis, err = consensus.SignGenesis(g, signers...); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		c.add(i, release(i))
	}
}

func (c *crowd) entry(release string) consensus.Entry {
	c.t.Helper()
	e, err := consensus.NewEntry(consensus.Entry{Kind: c.kind, Measurement: attesttest.Measurement(release),
		Roles: consensus.NormaliseRoles([]string{consensus.RoleSeat, consensus.RoleTrainer, consensus.RoleAggregator})})
	if err != nil {
		c.t.Fatal(err)
	}
	return e
}

// add makes one node, as Run does up to the mesh.
func (c *crowd) add(i int, release string) {
	c.t.Helper()
	cfg := Config{Organisation: identity.OrgID(crowdOrgs[i%len(crowdOrgs)]), Node: identity.NodeName(fmt.Sprintf("n%d", i/len(crowdOrgs)+1)), Roles: []string{RoleTrainer}}
	if i < len(crowdOrgs) {
		cfg.Roles = []string{RoleSeat}
	}
	a, below := c.machine(i, attesttest.Measurement(release))
	deps := Deps{Genesis: c.genesis, Attester: a, Schemes: c.schemes, Directory: noDirectory{}, InMemory: true,
		Enroller: func(k Keys) Enroller { return crowdEnroller{c, cfg.Ref(), cfg.Roles, k} },
		NewMesh: func(m mesh.Config) (mesh.Mesh, error) {
			out, err := mesh.NewMemory(&c.network, m)
			if err == nil && c.faced != nil {
				out = c.faced(i, out)
			}
			return out, err
		}}
	n, err := newNode(context.Background(), cfg, deps)
	if err != nil {
		c.t.Fatal(err)
	}
	tree, err := transparency.NewTree(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	n.machine = newMachine(c.genesis, tree, n.changed, n.now)
	n.blobs, n.work = newBlobs(nil), newWorkbench()
	n.tasks.Go(func() { n.quoter.Run(n.ctx) })
	if err := n.enrol(n.ctx); err != nil {
		c.t.Fatal(err)
	}
	if err := n.join(deps); err != nil {
		c.t.Fatal(err)
	}
	n.tasks.Go(func() { n.watchPolicy(n.ctx) })
	n.tasks.Go(func() { n.watchStreams(n.ctx) })
	c.nodes, c.attesters = append(c.nodes, n), append(c.attesters, below)
}

// close ends all nodes.
func (c *crowd) close() {
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(func() { n.leave(); n.tasks.Wait(); n.services.stop() })
	}
	all.Wait()
}

// order applies a command to every machine that is fed, as if Raft had ordered it.
func (c *crowd) order(kind consensus.Kind, envelopes ...[]byte) {
	c.t.Helper()
	raw, err := command(kind, envelopes...)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.feeds() {
		if out := n.machine.apply(raw); out.Err != nil || out.Reason != nil {
			c.t.Fatalf("%s at %s: %v %v", kind, n.ref, out.Err, out.Reason)
		}
		if !c.weak {
			n.machine.strengthen(n.machine.tree.Size())
		}
	}
}

func (c *crowd) feeds() []*Node {
	if c.fed != nil {
		return c.fed
	}
	return c.nodes
}

// bootstrap returns the Bootstrap of all seats, signed by every enroller.
func (c *crowd) bootstrap() []byte {
	c.t.Helper()
	var creds, parts [][]byte
	for _, n := range c.nodes[:len(crowdOrgs)] {
		creds = append(creds, n.credential())
	}
	payload, err := consensus.NewBootstrap(c.genesis, 1, creds, crowdKey("log", "log").Public().(ed25519.PublicKey), time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	for _, org := range crowdOrgs {
		part, err := consensus.Sign(payload, crowdSigner(c.t, org, consensus.KeyEnroll))
		if err != nil {
			c.t.Fatal(err)
		}
		parts = append(parts, part)
	}
	bootstrap, err := consensus.Merge(parts...)
	if err != nil {
		c.t.Fatal(err)
	}
	return bootstrap
}

// found orders Bootstrap and the first tick.
func (c *crowd) found() {
	c.t.Helper()
	var samples [][]byte
	seats := c.nodes[:len(crowdOrgs)]
	c.order(consensus.KindBootstrap, c.genesis.Raw(), c.bootstrap())
	for _, n := range seats {
		sample, err := n.sampleTime(1)
		if err != nil {
			c.t.Fatal(err)
		}
		samples = append(samples, sample)
	}
	c.order(consensus.KindTick, samples...)
	for _, n := range c.feeds() {
		n.completed(n.began())
	}
}

// propose orders one action.
func (c *crowd) propose(a consensus.Action) {
	c.t.Helper()
	c.order(consensus.KindProposal, c.proposal(crowdOrgs[:5], a)) // enough for a widening: ⌈2·7/3⌉
	if a.AddEntry != nil {
		c.base++
	}
}

// crowdProposal is how long proposals are open: less than Credentials live.
const crowdProposal = 30 * time.Minute

// proposal makes one action, signed by orgs.
func (c *crowd) proposal(orgs []string, a consensus.Action) []byte {
	c.t.Helper()
	c.nonce++
	nonce, now := sha256.Sum256([]byte(fmt.Sprint("crowd ", c.nonce))), time.Now().UTC().Truncate(time.Second)
	p := consensus.Proposal{MeshID: c.genesis.MeshID(), Base: c.base, Nonce: hex.EncodeToString(nonce[:16]), Created: now,
		Expires: now.Add(crowdProposal), Actions: []consensus.Action{a}}
	payload, err := p.Payload()
	if err != nil {
		c.t.Fatal(err)
	}
	var parts [][]byte
	for _, org := range orgs {
		part, err := consensus.Sign(payload, crowdSigner(c.t, org, consensus.KeyGovern))
		if err != nil {
			c.t.Fatal(err)
		}
		parts = append(parts, part)
	}
	raw, err := consensus.Merge(parts...)
	if err != nil {
		c.t.Fatal(err)
	}
	return raw
}

// link links every node with its next neighbours and all with the first.
func (c *crowd) link(neighbours int) {
	c.t.Helper()
	var all sync.WaitGroup
	slots := make(chan struct{}, 8)
	for i, n := range c.nodes {
		to := []*Node{c.nodes[0]}
		for k := range neighbours {
			to = append(to, c.nodes[(i+k+1)%len(c.nodes)])
		}
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			for _, peer := range to {
				if peer == n || n.hasLink(peer.self) {
					continue
				}
				if _, err := n.mesh.Dial(c.t.Context(), peer.self, peer.mesh.Addrs()); err != nil {
					c.t.Errorf("%s to %s: %v", n.ref, peer.ref, err)
				}
			}
		})
	}
	all.Wait()
}

// quotes counts what all attesters made.
func (c *crowd) quotes() (sum int) {
	for _, a := range c.attesters {
		sum += a.Calls()
	}
	return sum
}

// links returns every live link at both ends.
func (c *crowd) links() map[mesh.Link]*Node {
	out := map[mesh.Link]*Node{}
	for _, n := range c.nodes {
		for _, l := range n.mesh.Links() {
			out[l] = n
		}
	}
	return out
}

// awaitEpoch waits until every end of every link has heard that its peer judges under epoch.
func (c *crowd) awaitEpoch(epoch identity.Epoch) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		late := 0
		for l := range c.links() {
			if l.PeerEpoch() != epoch {
				late++
			}
		}
		if late == 0 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("%d ends of links have not heard of epoch %d", late, epoch)
		}
	}
}

// change orders that many changes of the policy that hit nobody, and waits until everybody
// knows that everybody else judges under them.
func (c *crowd) change(times int) {
	c.t.Helper()
	for i := range times / 2 {
		release := fmt.Sprintf("r%d", i)
		c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry(release)}})
		c.propose(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement(release)}})
		c.awaitEpoch(identity.Epoch(2 * (i + 1)))
	}
}

// Two hundred nodes and ten changes of the policy: not one new quote, and not one link of
// those who still pass is made anew. Then a change that hits every tenth node closes their
// links, at both ends and no others.
func TestEpochChangesCostNoQuotes(t *testing.T) { synctest.Test(t, epochChangesCostNoQuotes) }

func epochChangesCostNoQuotes(t *testing.T) {
	const nodes, changes, hub = 200, 10, 0
	old := func(i int) bool { return i >= len(crowdOrgs) && i%10 == 3 }
	c := newCrowd(t, nodes, func(i int) string {
		if old(i) {
			return "old"
		}
		return "new"
	})
	defer c.close()
	c.found()
	c.link(4)
	quotes, links := c.quotes(), c.links()
	if len(c.nodes[hub].mesh.Links()) != nodes-1 || len(links) < 2*5*(nodes-10) || quotes < nodes {
		t.Fatalf("%d links at the hub, %d ends in all, %d quotes", len(c.nodes[hub].mesh.Links()), len(links), quotes)
	}
	c.change(changes)
	if now := c.quotes(); now != quotes {
		t.Errorf("%d new quotes for %d changes", now-quotes, changes)
	}
	now := c.links()
	for l, n := range links {
		if now[l] == nil {
			t.Fatalf("the link from %s to %s is gone: %v", n.ref, l.Session().Node, l.Cause())
		}
	}

	// Only those of old go, and everybody's links to them.
	hit := map[identity.PeerID]bool{}
	for i, n := range c.nodes {
		hit[n.self] = old(i)
	}
	c.propose(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement("old")}})
	for l, n := range links {
		if !hit[n.self] && !hit[l.Peer()] {
			continue
		}
		select {
		case <-l.Done():
		case <-time.After(30 * time.Second):
			t.Fatalf("the link from %s to %s is still up", n.ref, l.Session().Node)
		}
		if l.Cause().Code != attest.CodeRevoked {
			t.Errorf("the link from %s to %s ended with %v", n.ref, l.Session().Node, l.Cause())
		}
	}
	now = c.links()
	for l, n := range links {
		if !hit[n.self] && !hit[l.Peer()] && now[l] == nil {
			t.Errorf("the link from %s to %s went too: %v", n.ref, l.Session().Node, l.Cause())
		}
	}
	if now := c.quotes(); now != quotes {
		t.Errorf("%d new quotes for the last change", now-quotes)
	}
}

// BenchmarkRatioEpochChanges is how many quotes two hundred nodes with some two thousand ends
// of links make for ten changes of the policy, for each node and change. Asking everybody
// for evidence again would make it at least one, since a quote can serve all links of a
// node. No time is compared.
func BenchmarkRatioEpochChanges(b *testing.B) {
	const nodes, changes = 200, 10
	for range b.N {
		c := newCrowd(b, nodes, func(int) string { return "new" })
		c.found()
		c.link(4)
		quotes := c.quotes()
		c.change(changes)
		ratio.Print("channel.quotes_per_node_and_epoch", float64(c.quotes()-quotes)/(nodes*changes))
		c.close()
	}
}
