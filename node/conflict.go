package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/misbehaviour"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// Every node tells others the newest checkpoint that it believes, and holds what it is told against
// the tree that it built itself:
//
//	checkpoint ──► of this log? by its key, or a cosigner's? ──► larger than the own tree: kept until it is not
//	      ├─ the same root: believed, if a quorum has cosigned it (publish.go)
//	      └─ another root: two histories ──► misbehaviour.New with each of one's own newest checkpoints
//	             ├─ who has cosigned both is convicted: a file under DATA, an alarm, not counted and not
//	             │  followed any more
//	             ├─ both were published: besides, this node cosigns nothing any more
//	             └─ only the log key has signed both: an alarm, nothing else; it convicts nobody
//
// They are told with every gossip exchange (gossip.go), and each new one at once to one peer by chance,
// beside the leader, who tells everybody: so one that was shown to some alone meets others within
// seconds.

const (
	maxCheckpoint = 64 << 10 // bytes of a signed checkpoint
	// checkpointBurst and checkpointRate bound the checkpoints that one peer shows: at once, and a second.
	checkpointBurst, checkpointRate = 16, 4.0
	tellEvery                       = time.Second
	maxOwnNotes                     = 8   // newest checkpoints of one's own that others are held against
	maxAgainst                      = 16  // checkpoints that contradict one's own history
	maxAhead                        = 64  // checkpoints larger than the own tree, one of a peer
	maxKnownCosigners               = 512 // Credentials of cosigners that are remembered
	maxMisbehaviourFiles            = 64
	maxFilesOfOrg                   = 8 // of cosigners of one organisation, which has one in each boot
	misbehaviourDir                 = "misbehaviour"
)

var (
	// errForeign: what no honest node passes on.
	errForeign = errors.New("a checkpoint that neither this log's key nor a cosigner has signed")
	// errTwoHistories is wrapped where a checkpoint is of another history than the own tree.
	errTwoHistories = errors.New("two histories")
)

// ConflictStatus is another history of the log that this node was shown.
type ConflictStatus struct {
	Code attest.Code `json:"code"` // misbehaviour or log_key_leaked
	// Convicted are the cosigners that have signed both.
	Convicted []string `json:"convicted"`
	// Published is set where both have been cosigned by enough: this node then cosigns nothing.
	Published bool      `json:"published,omitempty"`
	Size      uint64    `json:"size"` // of the other history's checkpoint
	Root      string    `json:"root"`
	Since     time.Time `json:"since"`
	// File proves it to anybody: meshnode log verify FILE. Empty where it could not be written, or
	// an outside witness says so and shows nothing.
	File string `json:"file,omitempty"`
	// Witness is the outside witness whose word it is.
	Witness string `json:"witness,omitempty"`
}

// conflicts is what a node holds against other histories.
type conflicts struct {
	dir *durable.Dir // nil in simulations

	mu        sync.Mutex
	own       [][]byte                          // guarded by mu; newest checkpoints of one's own history, oldest first
	against   []*conflict                       // guarded by mu
	ahead     map[identity.PeerID][]byte        // guarded by mu
	known     map[string][]byte                 // guarded by mu; Credentials of cosigners, by name
	convicted map[string]misbehaviour.Convicted // guarded by mu; by name
	parted    map[string]bool                   // guarded by mu; origins of which two histories were published
	files     int                               // guarded by mu; written or read
}

// conflict is one checkpoint of another history.
type conflict struct {
	note   []byte
	at     transparency.Checkpoint
	report misbehaviour.Report // of the file that says most; its verdict is empty before the first
	file   string
	raw    []byte
	since  time.Time
}

func newConflicts() *conflicts {
	return &conflicts{ahead: map[identity.PeerID][]byte{}, known: map[string][]byte{}, convicted: map[string]misbehaviour.Convicted{}, parted: map[string]bool{}}
}

// loadConflicts reads the files of earlier boots: who was convicted stays so.
func (n *Node) loadConflicts(dir *durable.Dir) {
	n.conflicts.dir = dir
	names, _ := filepath.Glob(dir.Path("*.json"))
	for _, name := range names[:min(len(names), maxMisbehaviourFiles)] {
		raw, err := dir.ReadFile(filepath.Base(name), misbehaviour.MaxFile)
		var r misbehaviour.Report
		if err == nil {
			r, err = misbehaviour.Verify(raw, n.genesis)
		}
		if err != nil {
			n.log.Warn("a misbehaviour file that does not hold", "file", name, "error", err)
			continue
		}
		var sides [2]transparency.Checkpoint
		for i, c := range r.Checkpoints {
			sides[i] = transparency.Checkpoint{Origin: r.Origin, Size: c.Size, Root: c.Root}
		}
		c := &conflict{at: sides[0], report: r, file: name, raw: raw, since: n.now()}
		n.conflicts.mu.Lock()
		n.conflicts.files++
		if len(n.conflicts.against) < maxAgainst {
			n.conflicts.against = append(n.conflicts.against, c)
		}
		n.conflicts.convict(r)
		n.conflicts.mu.Unlock()
	}
}

// convict takes what a report says. mu is held.
func (c *conflicts) convict(r misbehaviour.Report) {
	for _, k := range r.Convicted {
		c.convicted[k.Cosigner] = k
	}
	if r.Published {
		c.parted[r.Origin] = true
	}
}

// guilty reports whether a cosigner has signed two histories.
func (c *conflicts) guilty(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.convicted[name]
	return ok
}

// mayCosign says why this node cosigns nothing that peer asks for, or nil.
func (n *Node) mayCosign(peer identity.PeerID) error {
	origin := n.origin()
	n.conflicts.mu.Lock()
	defer n.conflicts.mu.Unlock()
	if n.conflicts.parted[origin] {
		return fmt.Errorf("%w of this log were published: nothing is cosigned until the organisations have looked at it", errTwoHistories)
	}
	for _, k := range n.conflicts.convicted {
		if k.Peer == peer {
			return fmt.Errorf("%s has cosigned %w", k.Cosigner, errTwoHistories)
		}
	}
	return nil
}

// hearCheckpoint takes a checkpoint that a peer shows.
func (n *Node) hearCheckpoint(from identity.PeerID, note []byte) error {
	if newest, _ := n.lastPublished(); bytes.Equal(newest.note, note) {
		return nil
	}
	if ahead, err := n.hold(from, note); ahead || err != nil {
		return err
	}
	return n.acceptCheckpoint(note)
}

// hold compares a checkpoint with this node's own tree. ahead says that it cannot yet.
func (n *Node) hold(from identity.PeerID, note []byte) (ahead bool, err error) {
	if len(note) > maxCheckpoint {
		return false, fmt.Errorf("%w: %d bytes, the limit is %d", errForeign, len(note), maxCheckpoint)
	}
	c, err := transparency.ParseCheckpoint(note)
	if err != nil {
		return false, fmt.Errorf("%w: %w", errForeign, err)
	}
	origin, logKey := n.origin(), n.logPublic()
	if logKey == nil {
		return true, nil // before Bootstrap nothing can be said
	}
	if c.Origin != origin {
		return false, fmt.Errorf("%w: of %.100q, this log is %q", errForeign, c.Origin, origin)
	}
	if c.Size == 0 {
		return false, fmt.Errorf("%w: of an empty log", errForeign) // it proves nothing
	}
	if c.Size <= n.machine.tree.Size() {
		root, err := n.machine.tree.RootAt(c.Size)
		if err != nil {
			return true, nil // its tiles have not come yet
		}
		if root == c.Root {
			return false, nil
		}
	}
	s, err := transparency.Signers(note, logKey, n.knownCosigners(), nil)
	if err != nil || !s.LogKey && len(s.Cosigners) == 0 {
		return false, errForeign
	}
	if c.Size > n.machine.tree.Size() {
		n.conflicts.later(from, note)
		return true, nil
	}
	n.contradicted(note, s)
	return false, fmt.Errorf("size %d has another root here than the checkpoint says (%s): %w", c.Size, c.Root, errTwoHistories)
}

// later keeps a checkpoint that is larger than the own tree, one of a peer.
func (c *conflicts) later(from identity.PeerID, note []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.ahead[from]; !ok && len(c.ahead) >= maxAhead {
		for other := range c.ahead { // any: whoever showed it shows it again
			delete(c.ahead, other)
			break
		}
	}
	c.ahead[from] = note
}

// reviewAhead looks again at the checkpoints that were larger than the own tree.
func (n *Node) reviewAhead() {
	n.conflicts.mu.Lock()
	due := n.conflicts.ahead
	n.conflicts.ahead = map[identity.PeerID][]byte{}
	n.conflicts.mu.Unlock()
	for from, note := range due {
		if err := n.hearCheckpoint(from, note); err != nil && !errors.Is(err, errTwoHistories) { // which has said so
			n.log.Debug("checkpoint not accepted", "from", n.nameOf(from), "error", err)
		}
	}
}

// contradicted takes up a checkpoint of another history, if it can say more than those before: whoever
// has the log key, or has been convicted, can make as many as it likes.
func (n *Node) contradicted(note []byte, s transparency.Signed) {
	c := n.conflicts
	c.mu.Lock()
	known := slices.ContainsFunc(c.against, func(x *conflict) bool { return bytes.Equal(x.note, note) }) ||
		len(s.Cosigners) == 0 && slices.ContainsFunc(c.against, func(x *conflict) bool { return x.at.Origin == s.Origin }) ||
		len(s.Cosigners) > 0 && !slices.ContainsFunc(s.Cosigners, func(k transparency.Cosigner) bool { _, ok := c.convicted[k.Name]; return !ok })
	if !known {
		if len(c.against) >= maxAgainst { // what says least makes room
			for _, less := range []func(x *conflict) bool{
				func(x *conflict) bool { return x.report.Verdict == "" },
				func(x *conflict) bool { return len(x.report.Convicted) == 0 && !x.report.Published },
				func(x *conflict) bool { return !x.report.Published }, // it stays convicted, and in its file
			} {
				if i := slices.IndexFunc(c.against, less); i >= 0 {
					c.against = slices.Delete(c.against, i, i+1)
					break
				}
			}
		}
		if len(c.against) < maxAgainst {
			c.against = append(c.against, &conflict{note: note, at: s.Checkpoint, since: n.now()})
		}
	}
	c.mu.Unlock()
	if !known {
		n.press()
	}
}

// believed notes a checkpoint of one's own history, and who cosigns it.
func (n *Node) believed(note []byte) {
	c := n.conflicts
	var credentials map[string][]byte
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		credentials = map[string][]byte{}
		for _, x := range s.Nodes() {
			if x.Credential.HasRole(RoleSeat) {
				credentials[s.CosignerName(x.Ref, x.BootSeq)] = x.Credential.Raw()
			}
		}
	})
	c.mu.Lock()
	for name, raw := range credentials {
		if _, ok := c.known[name]; !ok && len(c.known) < maxKnownCosigners {
			c.known[name] = raw
		}
	}
	c.own = append(c.own, note)
	c.own = c.own[max(0, len(c.own)-maxOwnNotes):]
	open := len(c.against) > 0
	c.mu.Unlock()
	if open {
		n.press()
	}
}

// press holds each checkpoint of another history against each of one's own.
func (n *Node) press() {
	var policy *consensus.PolicyState
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		if s.Started() {
			policy, _ = s.PolicyState.Append(nil) // a copy
		}
	})
	if policy == nil {
		return
	}
	cosigners := n.knownCosigners()
	c := n.conflicts
	c.mu.Lock()
	defer c.mu.Unlock()
	cosigners = c.convictable(cosigners)
	var credentials [][]byte
	for _, raw := range c.known {
		credentials = append(credentials, raw)
	}
	slices.SortFunc(credentials, bytes.Compare)
	for _, x := range c.against {
		if x.note == nil || x.at.Origin != policy.Origin() {
			continue // of an earlier boot or incarnation
		}
		for _, own := range slices.Backward(c.own) {
			if !c.worthwhile(own, x, policy, cosigners) {
				continue
			}
			raw, r, err := misbehaviour.New(policy, credentials, n.machine.tree, own, x.note)
			if err != nil || !saysMore(r, x.report) {
				continue
			}
			x.report, x.raw = r, raw
			c.convict(r)
			n.keepConflict(x)
		}
	}
	n.distrustConvicted()
}

// worthwhile reports whether a pair can say something that is not known: to make its file the whole
// policy chain is verified. That the log key has leaked is said once: a seat that cosigns nothing else
// could otherwise have any number of files made. mu is held.
func (c *conflicts) worthwhile(own []byte, x *conflict, policy *consensus.PolicyState, cosigners []transparency.Cosigner) bool {
	outside := transparency.OutsideOf(policy.Witnesses())
	ours, err1 := transparency.Signers(own, policy.LogKey(), cosigners, outside)
	theirs, err2 := transparency.Signers(x.note, policy.LogKey(), cosigners, outside)
	if err1 != nil || err2 != nil {
		return false
	}
	said := slices.ContainsFunc(c.against, func(o *conflict) bool { return o.at.Origin == x.at.Origin && o.report.Verdict != "" })
	both := slices.ContainsFunc(theirs.Outside, func(name string) bool { return slices.Contains(ours.Outside, name) })
	if x.report.Verdict == "" && (theirs.LogKey && !said || both) {
		return true
	}
	for _, k := range theirs.Cosigners {
		_, known := c.convicted[k.Name]
		if !known && slices.ContainsFunc(ours.Cosigners, func(o transparency.Cosigner) bool { return o.Name == k.Name }) {
			return true
		}
	}
	quorum := policy.SnapshotQuorum()
	return !c.parted[x.at.Origin] && organisationsOf(ours.Cosigners) >= quorum && organisationsOf(theirs.Cosigners) >= quorum
}

// convictable leaves out the cosigners of which a file cannot have the Credential. mu is held.
func (c *conflicts) convictable(cosigners []transparency.Cosigner) []transparency.Cosigner {
	return slices.DeleteFunc(cosigners, func(k transparency.Cosigner) bool { return c.known[k.Name] == nil })
}

func organisationsOf(cosigners []transparency.Cosigner) int {
	orgs := map[identity.OrgID]bool{}
	for _, k := range cosigners {
		orgs[k.Org] = true
	}
	return len(orgs)
}

// saysMore reports whether a report says more than the one before.
func saysMore(r, before misbehaviour.Report) bool {
	return before.Verdict == "" || len(r.Convicted) > len(before.Convicted) || len(r.Convicted) >= len(before.Convicted) && r.Published && !before.Published
}

// keepConflict writes the file and raises the alarm. conflicts.mu is held.
func (n *Node) keepConflict(x *conflict) {
	c := n.conflicts
	if c.dir != nil && c.files < maxMisbehaviourFiles && !c.plenty(x.report) {
		sum := sha256.Sum256(x.raw)
		name := fmt.Sprintf("%d-%s.json", x.at.Size, hex.EncodeToString(sum[:8]))
		if err := c.dir.WriteFile(name, x.raw, 0o600); err != nil {
			n.log.Error("the proof of two histories could not be written", "error", err, "proof", string(x.raw))
		} else {
			x.file = c.dir.Path(name)
			c.files++
		}
	}
	code := attest.Code(x.report.Verdict)
	n.log.Error("another history of the log", "code", code, "size", x.at.Size, "root", x.at.Root.String(),
		"convicted", convictedNames(x.report), "both_published", x.report.Published, "file", x.file, "remedy", attest.NewReason(code, "", "", "").Remedy)
	n.changed.notify()
}

// plenty reports whether so many cosigners of those whom a report convicts are convicted that its file
// would take others' places. mu is held.
func (c *conflicts) plenty(r misbehaviour.Report) bool {
	if r.Published || len(r.Convicted) == 0 {
		return false
	}
	for _, org := range r.Organisations() {
		count := 0
		for _, k := range c.convicted {
			if k.Organisation == org {
				count++
			}
		}
		if count <= maxFilesOfOrg {
			return false
		}
	}
	return true
}

func convictedNames(r misbehaviour.Report) []string {
	out := []string{}
	for _, c := range r.Convicted {
		out = append(out, c.Cosigner)
	}
	return out
}

// distrustConvicted has Raft hear none of the convicted any more. conflicts.mu is held.
func (n *Node) distrustConvicted() {
	r := n.raft()
	if r == nil {
		return
	}
	for name, k := range n.conflicts.convicted {
		if k.Peer == n.self || n.distrusted[name] {
			continue
		}
		n.distrusted[name] = true
		r.Distrust(k.Peer, 0, fmt.Errorf("%s has cosigned %w", name, errTwoHistories))
	}
}

// knownCosigners are all cosigners whose Credentials this node has seen.
func (n *Node) knownCosigners() (out []transparency.Cosigner) {
	names := map[string]*consensus.Credential{}
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		for _, x := range s.Nodes() {
			names[s.CosignerName(x.Ref, x.BootSeq)] = x.Credential
		}
	})
	n.conflicts.mu.Lock()
	for name, raw := range n.conflicts.known {
		if names[name] == nil {
			if cred, err := consensus.ParseCredential(raw); err == nil {
				names[name] = cred
			}
		}
	}
	n.conflicts.mu.Unlock()
	for name, cred := range names {
		out = append(out, transparency.Cosigner{Name: name, Org: cred.Organisation, Key: cred.CosignerKey()})
	}
	return out
}

func (n *Node) logPublic() (k ed25519.PublicKey) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { k = s.LogKey() })
	return k
}

// runHistories looks again at what was ahead of the own tree, and tells one peer by chance of each
// new checkpoint, until ctx ends.
func (n *Node) runHistories(ctx context.Context) {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	var told []byte
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n.reviewAhead()
		newest, _ := n.lastPublished()
		links := n.links()
		if newest.note == nil || bytes.Equal(told, newest.note) || len(links) == 0 {
			continue
		}
		told = newest.note
		n.showCheckpoint(ctx, links[rand.N(len(links)):][:1], newest.note)
	}
}

// showCheckpoint sends a checkpoint on each of links.
func (n *Node) showCheckpoint(ctx context.Context, links []mesh.Link, note []byte) {
	gather(ctx, links, cosignWithin, func(ctx context.Context, l mesh.Link) (struct{}, error) {
		s, err := n.open(ctx, l, n.protocols.checkpoint)
		if err != nil {
			return struct{}{}, err
		}
		defer s.Close()
		return struct{}{}, writeFrame(s, note)
	})
}

// conflictStatuses says what was found, newest last.
func (n *Node) conflictStatuses() []ConflictStatus {
	out, origin := []ConflictStatus{}, n.origin()
	c := n.conflicts
	c.mu.Lock()
	for _, x := range c.against {
		if x.report.Verdict == "" || x.at.Origin != origin {
			continue // no checkpoint of one's own covers it yet; or the mesh was recovered since, which ends it
		}
		out = append(out, ConflictStatus{Code: attest.Code(x.report.Verdict), Convicted: convictedNames(x.report), Published: x.report.Published,
			Size: x.at.Size, Root: x.at.Root.String(), Since: x.since, File: x.file})
	}
	c.mu.Unlock()
	return append(out, n.witnessConflicts()...)
}

// conflictWarnings says in words what follows from each.
func conflictWarnings(list []ConflictStatus) (out []string) {
	for _, c := range list {
		proof := "the proof is in memory only"
		switch {
		case c.File != "":
			proof = "the proof: meshnode log verify " + path.Clean(c.File)
		case c.Witness != "":
			proof = "the outside witness " + c.Witness + " says so and shows no proof"
		}
		switch {
		case c.Code == attest.CodeMisbehaviour && c.Published:
			out = append(out, fmt.Sprintf("misbehaviour: two histories of the log were published, cosigned both by %v; this node cosigns nothing until the organisations have looked at it; %s", c.Convicted, proof))
		case c.Code == attest.CodeMisbehaviour:
			out = append(out, fmt.Sprintf("misbehaviour: %v cosigned two histories of the log, and is not counted any more; %s", c.Convicted, proof))
		default:
			out = append(out, fmt.Sprintf("log_key_leaked: somebody has signed another history of the log with its key, at size %d; it convicts nobody, and nothing here depends on that key; begin a new incarnation when it suits; %s", c.Size, proof))
		}
	}
	return out
}
