// Package node runs one member of a mesh: the Relying Party, and the only package that
// sees all the others. It brings time, peers and disks to the pure cores (attest,
// consensus, federated, transparency) and holds no decision of its own that one of them
// could make.
//
// One file per flow: admit.go (evidence → appraisal → result → log), member.go (peer →
// attested connection → membership → round), evict.go (proposal → approvals → allowed set
// → eviction), gossip.go (what is signed → who hears it). seat.go, reconcile.go and drain.go
// are the life of a seat, found.go and recover.go the beginnings of an incarnation, snapshot.go
// and catchup.go how who is behind catches up. machine.go is the replicated machine that every
// node feeds with the same ordered commands; docs/ARCHITECTURE.md draws them all.
//
// # Life of a node
//
//	enrolling   a fresh identity and cosigner key; the organisation's enroller signs a Credential
//	founding    (a seat, before Bootstrap) all seats attest each other and start Raft
//	joining     linked, catching up, not yet eligible
//	member      admitted: proof that it is fresh, and affirming edges of foreign organisations
//	refused     every peer that answers refuses it; it goes on asking
//	draining    on its operator's word: it leaves rounds, services and its seat
//	drained     it can be stopped without anybody missing it
//
// Nothing survives the process but the published log, disclosed blobs, the signed jobs and the
// outbox (outbox.go): identity is new at every boot.
package node

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/throttle"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/service/run"
	"github.com/attestmesh/meshnode/transparency"
)

// Enroller is this organisation's enroller, as seen by a node.
type Enroller interface {
	// Credential enrols this boot or renews its Credential.
	Credential(ctx context.Context, prover *attest.Quoter) ([]byte, error)
	// SignBootstrap returns an envelope with the enroller's signature over payload.
	SignBootstrap(ctx context.Context, payload []byte) ([]byte, error)
	// Started records that this seat starts under an attempt.
	Started(ctx context.Context, attempt uint32) error
}

// Keys are the two keys of one boot.
type Keys struct {
	Peer     ed25519.PrivateKey // identity: signs Statements
	Cosigner ed25519.PrivateKey // signs checkpoints only
	// Enroll returns the organisation's enroll keys in force, as far as the node knows.
	Enroll func() []crypto.PublicKey
}

// Deps is what a node needs from outside. SystemDeps makes the real ones; simulations make
// their own. Genesis, Attester, Schemes, Enroller and Directory are required.
type Deps struct {
	Genesis *consensus.Genesis
	// Policy is the newest policy that is known at the start; nil for genesis's.
	Policy *consensus.PolicyState
	// Recovery is the file by which a mesh is recovered; nil where none is configured.
	Recovery  *consensus.RecoveryFile
	Attester  attest.Attester
	Schemes   []attest.Scheme
	Enroller  func(Keys) Enroller
	Directory Directory
	// NewMesh makes the mesh; nil: mesh.NewLibp2p.
	NewMesh func(mesh.Config) (mesh.Mesh, error)
	// Data is this node's training data; nil where it trains nothing.
	Data *TrainingData
	// InMemory keeps everything off the disk and opens no listener: simulations. The node
	// then serves on Control, Public and HTTPS, where they are set, and closes them.
	InMemory bool
	// Keep is how many commands, and entries of Raft's log, are kept behind a published copy of
	// the state; zero means the usual number. For simulations, which are short.
	Keep                   uint64
	Control, Public, HTTPS net.Listener
	// Clock reads this machine's clock; nil: time.Now. Simulations set it wrong. Intervals are
	// never measured by it.
	Clock func() time.Time
	// Ready, if set, is called once when the node can be reached.
	Ready func(Ready)
	Log   *slog.Logger
}

// Ready says how to reach a node that is up.
type Ready struct {
	Node   string   `json:"node"`
	Peer   string   `json:"peer"`
	Socket string   `json:"socket"`
	Public string   `json:"public"`
	HTTPS  string   `json:"https,omitempty"`
	Mesh   []string `json:"mesh"`
}

// Node is one running member. Its zero value runs nothing.
type Node struct {
	cfg       Config
	ref       identity.NodeRef
	genesis   *consensus.Genesis
	schemes   map[string]attest.Scheme
	attester  attest.Attester
	enroller  Enroller
	directory Directory
	data      *TrainingData
	keys      Keys
	key       ed25519.PrivateKey
	self      identity.PeerID
	protocols protocols
	log       *slog.Logger
	strangers *slog.Logger // what others can cause without a valid Credential: capped
	kind      string

	ctx     context.Context // ends with the node; for handlers of streams
	stop    context.CancelCauseFunc
	tasks   sync.WaitGroup
	changed *notifier // wakes whoever waits for any change of this node's state

	machine     *Machine
	runtime     *runtimelog.Log // what was started since launch; its head is in every quote
	quoter      *attest.Quoter
	services    *services
	mesh        mesh.Mesh   // set by join; others look through links and linkTo
	meshUp      atomic.Bool // mesh is set: its constructor and the control socket call before
	peers       *peerBook
	edges       *edges
	gossip      *gossip
	addresses   *addressBook
	blobs       *blobs
	work        *workbench
	proofs      *pendingProofs
	wall        func() time.Time     // this machine's clock, which nobody else need believe; see time.go
	asleep      func() time.Duration // how long this machine has been suspended; see stoodStill
	raftDir     *durable.Dir         // for the store kind disk only
	headLimiter *throttle.Requests   // of heads that strangers ask for
	peerHeads   *throttle.Requests   // of heads that peers ask for, by peer id
	jobDir      *durable.Dir         // signed jobs, of all boots; nil in simulations
	logDir      string               // of this boot; "" in simulations
	givers      givers
	petitions   *petitions     // what this seat watches
	conflicts   *conflicts     // what contradicts this node's log
	publishing  sync.Mutex     // one checkpoint is published at a time
	keep        uint64         // Deps.Keep
	catching    chan struct{}  // holds a token while a snapshot is fetched and restored
	evidence    *evidenceStore // private: salted evidence behind this node's results; nil in simulations

	mu              sync.Mutex
	cred            []byte                    // guarded by mu; newest own Credential
	replica         *replica.Replica          // guarded by mu; set once, on a seat that started or joins
	founder         bool                      // guarded by mu; set with replica
	logPrivate      ed25519.PrivateKey        // guarded by mu; a founder's from the start, another's once it holds a seat
	before          *consensus.PolicyState    // guarded by mu; that this incarnation is recovered from, on its founders
	beforeQuorum    int                       // guarded by mu; of before
	heldBack        *attest.Reason            // guarded by mu; why this founder does not found
	credAt          time.Time                 // guarded by mu; when it came
	cosignerWitness *transparency.Witness     // guarded by mu; set with replica
	newest          published                 // guarded by mu
	newestAt        time.Time                 // guarded by mu
	fresh           freshness                 // guarded by mu
	badCredentials  map[identity.PeerID]error // guarded by mu; refused by the machine, not to be ordered again
	refusals        *refusals
	phase           Phase                // guarded by mu; until the first Credential
	phaseReason     *attest.Reason       // guarded by mu
	outages         map[string]outage    // guarded by mu; "attester", "enroller"
	draining        *drain               // guarded by mu; nil while this node is not drained
	newer           outage               // guarded by mu; who last sent a command that this release does not know, and when
	distrusted      map[string]bool      // guarded by conflicts.mu; cosigners that Raft is not to hear, by name
	seen            []seen               // guarded by mu; newest checkpoints of earlier boots: see seen.go
	witnessed       map[string]witnessed // guarded by mu; what outside witnesses have cosigned, by name
	shown           map[string]shown     // guarded by mu; how showing the log to outside witnesses goes, by name
}

// Run runs a node until ctx ends, and then stops everything it started. Mistakes that the
// operator can mend are *ConfigError.
func Run(ctx context.Context, cfg Config, deps Deps) error {
	if deps.Genesis == nil || deps.Attester == nil || len(deps.Schemes) == 0 || deps.Enroller == nil || deps.Directory == nil {
		return errors.New("node: genesis, attester, schemes, enroller and directory are required")
	}
	n, err := newNode(ctx, cfg, deps)
	if err != nil {
		return err
	}
	defer n.tasks.Wait()
	defer n.services.stop()
	defer n.stop(nil)
	dirs, err := n.openDirs(cfg, deps)
	if err != nil {
		return err
	}
	defer dirs.close()
	tree, err := transparency.NewTree(dirs.log)
	if err != nil {
		return &ConfigError{Field: "data", Err: err, Remedy: "give the node a directory of its own"}
	}
	n.machine = newMachine(n.genesis, tree, n.changed, n.now)
	if n.keep = deps.Keep; n.keep > 0 {
		n.machine.keep = n.keep
	}
	n.machine.pulled = deps.Policy
	n.blobs, n.work = newBlobs(dirs.blobs), newWorkbench()
	n.blobs.older = dirs.older
	if dirs.misbehaviour != nil {
		n.loadConflicts(dirs.misbehaviour)
		n.loadSeen()
	}

	if len(cfg.Services) > 0 {
		if err := run.NoCores(); err != nil {
			return err
		}
	}
	n.tasks.Go(func() { n.quoter.Run(n.ctx) })
	if dirs.control != nil {
		n.serve("control socket", func() error { return n.serveControl(n.ctx, dirs.control) })
	}
	if dirs.public != nil {
		n.serve("public listener", func() error { return n.servePublic(n.ctx, dirs.public) })
	}
	if deps.Recovery != nil {
		if err := n.recover(n.ctx, deps.Recovery); err != nil {
			if n.ctx.Err() == nil {
				n.fail(err)
			}
			n.tasks.Wait() // the listeners, which dirs closes
			return n.result(ctx, err)
		}
	}
	if err := n.enrol(n.ctx); err != nil {
		return n.result(ctx, err)
	}
	if err := n.join(deps); err != nil {
		return err
	}
	defer n.leave()
	if dirs.https != nil {
		n.serve("HTTPS endpoint", func() error { return n.serveHTTPS(n.ctx, dirs.https) })
	}
	n.startTasks()
	if deps.Ready != nil {
		r := Ready{Node: n.ref.String(), Peer: n.self.String(), Mesh: n.mesh.Addrs()}
		if dirs.public != nil {
			r.Socket, r.Public = absolute(cfg.SocketPath()), "http://"+dirs.public.Addr().String()
		}
		if dirs.https != nil {
			r.HTTPS = "https://" + dirs.https.Addr().String()
		}
		deps.Ready(r)
	}
	<-n.ctx.Done()
	return n.result(ctx, context.Cause(n.ctx))
}

// result is nil where the caller ended the node, else why it ended by itself.
func (n *Node) result(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func newNode(ctx context.Context, cfg Config, deps Deps) (*Node, error) {
	var keys Keys
	var err error
	var public ed25519.PublicKey
	if public, keys.Peer, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	if _, keys.Cosigner, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{
		cfg: cfg, ref: cfg.Ref(), genesis: deps.Genesis, schemes: map[string]attest.Scheme{}, directory: deps.Directory,
		data: deps.Data, keys: keys, key: keys.Peer, self: identity.PeerIDFromKey(public), log: deps.Log, strangers: capped(deps.Log),
		protocols: newProtocols(deps.Genesis.MeshID()), kind: deps.Attester.Kind(), changed: newNotifier(),
		peers: newPeerBook(), addresses: newAddressBook(!deps.InMemory), badCredentials: map[identity.PeerID]error{}, phase: PhaseEnrolling, refusals: newRefusals(),
		attester: deps.Attester, outages: map[string]outage{}, runtime: &runtimelog.Log{}, proofs: newPendingProofs(), gossip: newGossip(), asleep: stoodStill, petitions: newPetitions(), conflicts: newConflicts(), distrusted: map[string]bool{}, catching: make(chan struct{}, 1),
	}
	n.peerHeads = &throttle.Requests{Rate: peerHeadRate, Burst: peerHeadBurst, Remotes: maxPeers}
	n.headLimiter = &throttle.Requests{Rate: headRate, Burst: headBurst, Remotes: maxVisitors}
	if n.wall = deps.Clock; n.wall == nil {
		n.wall = time.Now
	}
	if deps.InMemory {
		n.asleep = func() time.Duration { return 0 } // virtual time does not stand still
	}
	policy := deps.Policy
	if policy == nil {
		if policy, err = consensus.ReplayPolicy(n.genesis, nil); err != nil {
			return nil, err
		}
	}
	if _, ok := policy.Organisation(cfg.Organisation); !ok {
		return nil, unknownOrganisation(cfg, fmt.Errorf("%q is not in genesis", cfg.Organisation))
	}
	for _, s := range deps.Schemes {
		n.schemes[s.Kind()] = s
	}
	n.ctx, n.stop = context.WithCancelCause(ctx)
	if n.services, err = newServices(n, cfg.Services); err != nil {
		return nil, err
	}
	keys.Enroll = n.enrollKeys
	n.enroller = deps.Enroller(keys)
	n.edges = newEdges(n)
	n.edges.own = n.ref
	n.quoter = attest.NewQuoter(deps.Attester, n.genesis.MeshID(), string(n.self), n.runtime.Head)
	return n, nil
}

// fail ends the node: something happened after which going on could harm the mesh.
func (n *Node) fail(err error) {
	n.log.Error("the node stops", "error", err)
	n.stop(err)
}

// serve runs one of the node's listeners; that it fails ends the node.
func (n *Node) serve(what string, f func() error) {
	n.tasks.Go(func() {
		if err := f(); err != nil {
			n.fail(fmt.Errorf("%s: %w", what, err))
		}
	})
}

// join makes the mesh and its handlers.
func (n *Node) join(deps Deps) error {
	newMesh := deps.NewMesh
	if newMesh == nil {
		newMesh = mesh.NewLibp2p
	}
	m, err := newMesh(mesh.Config{
		Key: n.key, MeshID: n.genesis.MeshID(), Incarnation: n.incarnation, Epoch: n.epoch, Credential: n.credential,
		Quoter: n.quoter, Judge: judge{n}, Listen: n.cfg.Listen, Allow: n.addresses.prefixes, OnRefusal: n.noteRefusal, Log: n.strangers,
		OnEpoch: func(mesh.Link) { n.machine.news.notify() },
	})
	if err != nil {
		return &ConfigError{Field: "listen", Err: err, Remedy: "choose a free address; another process may hold the port"}
	}
	n.mesh = m
	n.meshUp.Store(true)
	for p, handler := range map[mesh.Protocol]func(mesh.Link, mesh.Stream){
		n.protocols.raft: n.handleRaft, n.protocols.found: n.handleFound, n.protocols.seat: n.handleSeat, n.protocols.submit: n.handleSubmitted,
		n.protocols.follow: n.handleFollow, n.protocols.head: n.handleHead, n.protocols.gossip: n.handleGossip, n.protocols.cosign: n.handleCosign,
		n.protocols.checkpoint: n.handleCheckpoint, n.protocols.clock: n.handleClock,
		n.protocols.round: n.handleUpload, n.protocols.blob: n.handleBlobRequest,
		n.protocols.snapshot: n.handleSnapshot, n.protocols.tile: n.handleTile, n.protocols.digest: n.handleDigest,
		n.protocols.petition: n.handlePetition, n.protocols.complain: n.handleComplaint,
	} {
		m.Handle(p, handler)
	}
	m.Notify(n.linked)
	if deps.NewMesh != nil {
		return nil // simulations have no sockets that a stock host could dial
	}
	if err := mesh.SelfTest(n.ctx, n.self, m.Addrs()); err != nil && n.ctx.Err() == nil {
		m.Close()
		return fmt.Errorf("start-up self-test: %w", err)
	}
	return nil
}

// startTasks starts the tasks that end with the node.
func (n *Node) startTasks() {
	for _, task := range []func(context.Context){
		n.watchPolicy, n.watchStreams, n.prove, n.edges.run, n.renew, n.runDriver, n.runParticipant, n.runAggregator, n.runKeeper, n.watchHalt, n.runProbes, n.watchMachine,
		n.syncLog, n.runHistories, n.keepJobs, n.resubmitJobs, n.runTiles, n.sweepEvidence,
	} {
		n.tasks.Go(func() { task(n.ctx) })
	}
	for _, url := range n.cfg.Peers {
		n.tasks.Go(func() { n.keepLinked(n.ctx, url) })
	}
	n.tasks.Go(func() {
		if n.isSeat() {
			n.found(n.ctx)
		}
		if n.raft() == nil {
			n.align(n.ctx)
		}
		if n.isSeat() {
			n.tasks.Go(func() { n.takeSeat(n.ctx) })
		}
		n.followWhileDeaf(n.ctx)
	})
}

// watchHalt ends the node when its machine has halted.
func (n *Node) watchHalt(ctx context.Context) {
	for {
		changed := n.changed.wait()
		if err := n.machine.Halted(); err != nil {
			n.fail(err)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// leave closes what join and startReplica opened, in the order in which peers notice least.
func (n *Node) leave() {
	n.stop(nil)
	if r := n.raft(); r != nil {
		r.Close()
	}
	n.mesh.Close()
}

func (n *Node) raft() *replica.Replica {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.replica
}

func (n *Node) credential() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cred
}

func (n *Node) incarnation() identity.Incarnation {
	var inc identity.Incarnation
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { inc = s.Incarnation() })
	return inc
}

// links returns the live links; none while there is no mesh yet.
func (n *Node) links() []mesh.Link {
	if !n.meshUp.Load() {
		return nil
	}
	return n.mesh.Links()
}

// linkTo returns the live link to peer.
func (n *Node) linkTo(peer identity.PeerID) (mesh.Link, bool) {
	if !n.meshUp.Load() {
		return nil, false
	}
	return n.mesh.Link(peer)
}

// isSeat reports whether this node asks for a seat.
func (n *Node) isSeat() bool { return n.cfg.HasRole(RoleSeat) }

// holdsSeat reports whether peer belongs into the Raft configuration now.
func (n *Node) holdsSeat(peer identity.PeerID) (ok bool) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		node, known := s.Node(peer)
		ok = known && node.Seat
	})
	return ok
}

func (n *Node) kinds() []string {
	var out []string
	for k := range n.schemes {
		out = append(out, k)
	}
	return out
}
