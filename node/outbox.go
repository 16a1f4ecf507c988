package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The outbox holds what this node has found out and the log does not hold yet, oldest first.
//
// # What is acknowledged
//
// A finding is acknowledged when it is ordered: nothing before promises that it will be in the log,
// and no peer acts on less than its proof under a published checkpoint (quarantine.go). What is
// ordered survives what Raft survives.
//
// # What survives what
//
// A finding is signed once, by the key of this boot. The same bytes are submitted until they are
// ordered or refused for good, so an outcome that was lost is asked for again and orders nothing
// twice: of one verifier on one subject each statement must be later than the one before. While no
// quorum orders anything, however long, findings wait in their order. Each expires an hour after it
// was made, as every result does, and is dropped then; what still holds was said again meanwhile, since
// a link's finding is renewed at half that time.
//
// The key does not survive the process: identity is new at every boot, and the old one is retired
// for ever once the log knows the new one's Credential. So a killed node's findings are void by the
// rules of the log, not for want of storing them; its new boot verifies everybody anew, and logs
// that. What was signed is nevertheless a file of DATA/boot-N/outbox before it is submitted, synced,
// and until it is ordered: a statement carries its own proof, whoever submits it. A new boot
// submits the earlier one's before its own Credential is ordered. They count if the log still takes
// the earlier boot for the node's newest, as after an outage of the whole mesh, and are void
// otherwise: dropped, counted and said in the node's log.
//
// The files hold what the log will show to everybody and no more: codes and commitments.
//
// # Back-pressure
//
// At most maxPendingEdges findings wait, and edgeShare bounds what is about one organisation's
// peers, of which it can invent any number. The 1,025th stays where it comes from. An affirming
// verdict lets its peer in as always, pending; once there is room it joins the queue, and where
// that takes more than proofWithin the peer gets no data. A refusal finds no place: the peer is
// refused all the same, and the next time it asks there is another. Links are never refused for
// want of room, since the quorum that makes room needs them.

// finding is one entry of the outbox.
type finding struct {
	edge
	seq  uint64 // names its file
	raw  []byte // signed, and in its file; nil before
	busy bool   // is being signed
	sent bool   // belongs to drain: has been submitted, and may be ordered by now
}

// outbox is the queue. Its owner's lock guards it.
type outbox struct {
	queue   []*finding
	seq     uint64
	ofOrg   map[identity.OrgID]int
	ofPeer  map[identity.PeerID]int
	held    map[identity.OrgID]int // bytes of evidence of what is not signed yet
	delayed uint64                 // verdicts that found no room at first
	turned  uint64                 // refusals that found none
	void    uint64                 // findings that expired here
}

func newOutbox() outbox {
	return outbox{ofOrg: map[identity.OrgID]int{}, ofPeer: map[identity.PeerID]int{}, held: map[identity.OrgID]int{}}
}

// room reports whether a finding about a peer of org may join the queue.
func (o *outbox) room(org identity.OrgID) bool {
	return len(o.queue) < maxPendingEdges && o.ofOrg[org] < maxPendingEdges/edgeShare
}

// add puts a finding at the end. One that says the same as the newest on its subject replaces
// that while it is not signed: before the mesh has started nothing is.
func (o *outbox) add(ed edge) {
	if f := o.newest(ed.subject.Peer); f != nil && f.raw == nil && !f.busy && f.saysSame(ed) {
		o.held[ed.subject.Node.Org] += len(ed.evidence) - len(f.evidence)
		f.edge = ed
		return
	}
	o.seq++
	o.queue = append(o.queue, &finding{edge: ed, seq: o.seq})
	o.ofOrg[ed.subject.Node.Org]++
	o.ofPeer[ed.subject.Peer]++
	o.held[ed.subject.Node.Org] += len(ed.evidence)
}

// newest returns the last finding about peer that waits, or nil.
func (o *outbox) newest(peer identity.PeerID) *finding {
	if o.ofPeer[peer] == 0 {
		return nil
	}
	for _, f := range slices.Backward(o.queue) {
		if f.subject.Peer == peer {
			return f
		}
	}
	return nil
}

// sign notes that f was signed; its evidence is not needed here any more.
func (o *outbox) sign(f *finding, raw []byte) {
	o.release(f)
	f.raw = raw
}

// release gives up the evidence that f holds.
func (o *outbox) release(f *finding) {
	org := f.subject.Node.Org
	if o.held[org] -= len(f.evidence); o.held[org] <= 0 {
		delete(o.held, org)
	}
	f.evidence = nil
}

// remove takes findings out of the queue.
func (o *outbox) remove(out ...*finding) {
	for _, f := range out {
		i := slices.Index(o.queue, f)
		if i < 0 {
			continue
		}
		o.queue = slices.Delete(o.queue, i, i+1)
		o.release(f)
		if o.ofOrg[f.subject.Node.Org]--; o.ofOrg[f.subject.Node.Org] == 0 {
			delete(o.ofOrg, f.subject.Node.Org)
		}
		if o.ofPeer[f.subject.Peer]--; o.ofPeer[f.subject.Peer] == 0 {
			delete(o.ofPeer, f.subject.Peer)
		}
	}
}

// OutboxStatus is what waits for the log.
type OutboxStatus struct {
	// Waiting is how many findings wait, Limit how many may.
	Waiting int `json:"waiting"`
	Limit   int `json:"limit"`
	// Delayed counts affirming verdicts that found no room at first, TurnedAway refusals that found
	// none, Expired findings that waited for longer than they held.
	Delayed    uint64 `json:"delayed"`
	TurnedAway uint64 `json:"turned_away"`
	Expired    uint64 `json:"expired"`
}

func (e *edges) status() OutboxStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	return OutboxStatus{Waiting: len(e.box.queue), Limit: maxPendingEdges, Delayed: e.box.delayed, TurnedAway: e.box.turned, Expired: e.box.void}
}

// outboxWarnings says when findings wait in numbers.
func (n *Node) outboxWarnings() []string {
	s := n.edges.status()
	if s.Waiting < s.Limit/2 {
		return nil
	}
	return []string{fmt.Sprintf("outbox: %d findings of at most %d wait for the log; while it is full new peers stay pending and get no data: look whether the seats have a leader", s.Waiting, s.Limit)}
}

// signWaiting signs what is not signed yet. Where the disk takes nothing it stays, and is tried again.
func (e *edges) signWaiting() {
	e.mu.Lock()
	var todo []*finding
	for _, f := range e.box.queue {
		if f.raw == nil {
			f.busy = true
			todo = append(todo, f)
		}
	}
	e.mu.Unlock()
	for i, f := range todo { // they stay as they are until they are signed
		raw, err := e.n.signEdge(f.edge)
		if err == nil {
			err = e.keepFinding(f.seq, raw)
			if err != nil {
				e.n.forgetEvidence(raw)
			}
		}
		var disk *fs.PathError
		switch {
		case err == nil:
			e.mu.Lock()
			e.box.sign(f, raw)
			e.mu.Unlock()
		case errors.As(err, &disk) || errors.As(err, new(*os.LinkError)):
			if said := err.Error(); said != e.failure {
				e.failure = said
				e.n.log.Warn("findings cannot be stored, and wait", "error", err)
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			for _, f := range todo[i:] {
				f.busy = false
			}
			return
		default:
			e.n.log.Error("a finding cannot be signed", "peer", f.subject.Peer.String(), "error", err)
			e.mu.Lock()
			e.box.remove(f)
			e.mu.Unlock()
		}
	}
	if len(todo) > 0 {
		e.failure = ""
	}
}

func fileOf(seq uint64) string { return fmt.Sprintf("%016d", seq) }

func (e *edges) keepFinding(seq uint64, raw []byte) error {
	if e.dir == nil {
		return nil
	}
	return e.dir.WriteFile(fileOf(seq), raw, 0o600)
}

// drop takes findings out that are ordered, or never will be. What comes back of a file after a
// power failure is submitted once more, and refused as late.
func (e *edges) drop(out ...*finding) {
	for _, f := range out {
		if e.dir != nil && f.raw != nil {
			_ = e.dir.Discard(fileOf(f.seq))
		}
		if f.raw != nil && !f.sent {
			e.n.forgetEvidence(f.raw)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.box.remove(out...)
}

// forgetEvidence deletes the evidence behind a statement that nobody has seen.
func (n *Node) forgetEvidence(raw []byte) {
	if r, err := consensus.ParseResult(raw); err == nil {
		n.evidence.forget(r)
	}
}

// drain orders what waits, oldest first, until nothing does or the log takes no more for now. It
// is called by one goroutine.
func (e *edges) drain(ctx context.Context) {
	n := e.n
	if !e.drainOlder(ctx) || n.orderCredential(ctx, n.self, n.credential()) == credentialUnheard {
		return
	}
	for ctx.Err() == nil && !e.heldBack(n.machine.TickSeq()) {
		batch := e.head(ctx)
		if len(batch) == 0 || !e.order(ctx, batch) {
			return
		}
	}
}

// head returns at most one command's worth of signed findings whose subjects' Credentials are in the
// log. On one subject none overtakes another. What is about a peer whose Credential is refused
// would be refused as well.
func (e *edges) head(ctx context.Context) (batch []*finding) {
	n := e.n
	e.mu.Lock()
	// What is signed comes before what is not.
	signed := slices.DeleteFunc(slices.Clone(e.box.queue), func(f *finding) bool { return f.raw == nil })
	e.mu.Unlock()
	var void []*finding
	defer func() { e.drop(void...) }()
	unheard, busy, now := false, map[identity.OrgID]bool{}, n.orderedTime()
	for _, f := range signed {
		if !now.IsZero() && !now.Before(f.result.At.Add(consensus.MaxResultLifetime)) {
			e.expired()
			void = append(void, f)
			continue
		}
		if !now.IsZero() && f.result.At.After(now.Add(consensus.ClockSkew)) {
			if f.result.At.After(n.time().Add(consensus.ClockSkew)) {
				void = append(void, f) // of a clock that was wrong then
			}
			continue // after an outage ordered time is behind until the next tick
		}
		peer, org := f.subject.Peer, f.subject.Node.Org
		if (unheard || busy[org]) && !n.stands(peer) {
			continue
		}
		switch n.orderCredential(ctx, peer, f.subject.Credential) {
		case credentialUnheard:
			unheard = true
		case credentialLater:
			busy[org] = true
		case credentialRefused:
			void = append(void, f)
		default:
			batch = append(batch, f)
		}
		if len(batch) == consensus.MaxResults {
			break
		}
	}
	return batch
}

func (e *edges) expired() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.box.void++
}

// order submits a batch and reports whether the next may follow at once.
func (e *edges) order(ctx context.Context, batch []*finding) bool {
	n := e.n
	envelopes := make([][]byte, len(batch))
	for i, f := range batch {
		envelopes[i], f.sent = f.raw, true
	}
	command, err := consensus.NewCommand(consensus.KindResults, envelopes...)
	if err != nil {
		n.log.Error("findings cannot be ordered", "error", err)
		e.drop(batch...)
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	out, err := n.submit(ctx, command)
	done, over := settled(batch, out, err)
	e.drop(done...)
	if over {
		e.holdBack(n.machine.TickSeq())
	}
	if err != nil {
		n.log.Warn("findings not ordered", "waiting", e.status().Waiting, "error", err)
	}
	return len(done) == len(batch)
}

// settled returns which findings of a batch are ordered or refused for good, and whether others wait
// for a quota. A batch that was ordered before, in part, is refused for what was, and names what was not.
func settled(batch []*finding, out Applied, err error) (done []*finding, over bool) {
	switch {
	case len(out.Again) > 0:
		return except(batch, out.Again), true
	case err == nil, isRefused(err) && !passes(err), errors.Is(err, errMalformed):
		return batch, false
	}
	return nil, passes(err)
}

// except returns the findings of a batch but those with the indices that a leader names.
func except(batch []*finding, again []int) (out []*finding) {
	for i, f := range batch {
		if !slices.Contains(again, i) {
			out = append(out, f)
		}
	}
	return out
}

// holdBack keeps findings here until another tick than seq: a quota is used up.
func (e *edges) holdBack(seq uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.full = seq
}

// heldBack reports whether findings wait for another tick than seq.
func (e *edges) heldBack(seq uint64) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.full != 0 && e.full == seq
}

// olderFindings are the statements of earlier boots that were not ordered when those ended.
type olderFindings struct {
	dirs    []*durable.Dir // oldest boot first
	waiting [][]byte       // what is left of them
	read    bool
	ordered int
	void    int
}

// openOutboxes returns the directories of earlier boots in data, oldest first.
func openOutboxes(data *durable.Dir, present string) (out []*durable.Dir) {
	paths, err := filepath.Glob(data.Path("boot-*", "outbox"))
	if err != nil {
		return nil
	}
	slices.SortFunc(paths, func(a, b string) int { // boot-N, of which a longer N is later
		return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
	})
	for _, path := range paths {
		if path == present {
			continue
		}
		if dir, err := durable.Open(path); err == nil {
			out = append(out, dir)
		}
	}
	return out
}

// load reads the newest maxPendingEdges statements of node own, in their order. A disk is the
// host's: what was not signed by a boot of this node is nobody's finding.
func (o *olderFindings) load(own identity.NodeRef, mesh identity.MeshID) {
	o.read = true
	for _, dir := range o.dirs {
		names, err := os.ReadDir(dir.Path())
		if err != nil {
			continue
		}
		for _, name := range names[max(0, len(names)-maxPendingEdges):] {
			if strings.HasPrefix(name.Name(), ".") {
				continue // was not finished
			}
			raw, err := dir.ReadFile(name.Name(), consensus.MaxResult)
			if err != nil {
				continue
			}
			if r, err := consensus.VerifyResult(raw); err == nil && r.Verifier.Node == own && r.MeshID == mesh {
				o.waiting = append(o.waiting, raw)
			}
		}
		over := max(0, len(o.waiting)-maxPendingEdges)
		o.waiting, o.void = slices.Clone(o.waiting[over:]), o.void+over
	}
}

// clear deletes the files. What a crash leaves of them is read again, and refused.
func (o *olderFindings) clear() {
	for _, dir := range o.dirs {
		_ = os.RemoveAll(dir.Path())
	}
	o.dirs = nil
}

// drainOlder submits what earlier boots left. It is false while that waits for a leader or a quota.
func (e *edges) drainOlder(ctx context.Context) bool {
	n, o := e.n, &e.older
	if len(o.dirs) == 0 {
		return true
	}
	if !o.read {
		o.load(n.ref, n.genesis.MeshID())
	}
	for len(o.waiting) > 0 {
		if e.heldBack(n.machine.TickSeq()) {
			return false
		}
		batch := o.waiting[:min(consensus.MaxResults, len(o.waiting))]
		if slices.ContainsFunc(batch, n.early) {
			return false
		}
		counts := slices.DeleteFunc(slices.Clone(batch), func(raw []byte) bool { return !n.stillCounts(raw) })
		var out Applied
		var err error
		if len(counts) > 0 {
			out, err = n.submitResults(ctx, counts)
		}
		if !o.submitted(len(batch), counts, out, err) {
			if len(out.Again) > 0 || passes(err) {
				e.holdBack(n.machine.TickSeq())
			}
			return false
		}
	}
	if o.ordered+o.void > 0 {
		n.log.Info("what an earlier boot found and had not got into the log", "submitted", o.ordered, "void", o.void)
	}
	o.clear()
	return true
}

// submitted takes what became of the first batch that waits, of which counts was submitted, and reports
// whether the next may follow at once.
func (o *olderFindings) submitted(batch int, counts [][]byte, out Applied, err error) bool {
	var again [][]byte
	for i, raw := range counts {
		if slices.Contains(out.Again, i) {
			again = append(again, raw)
		}
	}
	switch {
	case len(again) > 0: // those before are ordered
	case passes(err), err != nil && !isRefused(err):
		return false
	case err != nil:
		counts = nil
	}
	done := len(counts) - len(again)
	o.ordered, o.void = o.ordered+done, o.void+batch-done-len(again)
	o.waiting = append(again, o.waiting[batch:]...)
	return len(again) == 0
}

// stillCounts reports whether the ordered state takes the verifier of a statement for the newest boot
// of its node, and the statement has not expired.
func (n *Node) stillCounts(raw []byte) bool {
	r, err := consensus.ParseResult(raw)
	if err != nil {
		return false
	}
	now := n.orderedTime()
	return n.stands(r.Verifier.Peer) && (now.IsZero() || now.Before(r.Expires))
}

// early reports whether a statement was made after the present ordered time, which is behind after an
// outage, and not after this node's.
func (n *Node) early(raw []byte) bool {
	r, err := consensus.ParseResult(raw)
	now := n.orderedTime()
	return err == nil && !now.IsZero() && r.At.After(now.Add(consensus.ClockSkew)) && !r.At.After(n.time().Add(consensus.ClockSkew))
}

func (n *Node) submitResults(ctx context.Context, envelopes [][]byte) (Applied, error) {
	command, err := consensus.NewCommand(consensus.KindResults, envelopes...)
	if err != nil {
		return Applied{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	return n.submit(ctx, command)
}

// stands reports whether peer is the newest boot of its node in the ordered state.
func (n *Node) stands(peer identity.PeerID) (ok bool) {
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { ok = s.Stands(peer) })
	return ok
}

// orderedTime is the time of the newest tick, zero before the first.
func (n *Node) orderedTime() time.Time {
	now, _ := n.machine.Now()
	return now
}

// heardCredential is how the log stands to a Credential.
type heardCredential int

const (
	credentialUnheard heardCredential = iota // nobody orders it at present
	credentialLater                          // a quota is used up
	credentialRefused                        // for good
	credentialKnown
)

// orderCredential has a Credential ordered that the state does not know, or knows another one
// in place of that is void. A refusal is remembered, as that a newer boot is known, unless it
// passes by itself or the same boot may get another Credential.
func (n *Node) orderCredential(ctx context.Context, peer identity.PeerID, raw []byte) heardCredential {
	if n.stands(peer) {
		return credentialKnown
	}
	n.mu.Lock()
	refused := n.badCredentials[peer] != nil
	n.mu.Unlock()
	if refused || len(raw) == 0 {
		return n.refusedCredential(peer)
	}
	command, err := consensus.NewCommand(consensus.KindCredential, raw)
	if err != nil {
		err = malformed(err)
	} else {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, submitTimeout)
		defer cancel()
		_, err = n.submit(ctx, command)
	}
	switch {
	case err == nil:
		return credentialKnown
	case passes(err):
		n.log.Warn("credential not ordered yet", "peer", peer.String(), "error", err)
		return credentialLater
	case !isRefused(err) && !errors.Is(err, errMalformed):
		n.log.Warn("credential not ordered yet", "peer", peer.String(), "error", err)
		return credentialUnheard
	}
	n.log.Warn("credential not ordered", "peer", peer.String(), "error", err)
	if isRefused(err) && refusedAs(err) != attest.CodeNoCredential {
		n.mu.Lock()
		if len(n.badCredentials) < maxPeers {
			n.badCredentials[peer] = err
		}
		n.mu.Unlock()
	}
	return n.refusedCredential(peer)
}

// refusedCredential says what a refused Credential means: nothing, where the state knows the peer by
// an older one.
func (n *Node) refusedCredential(peer identity.PeerID) heardCredential {
	known := false
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { _, known = s.Node(peer) })
	if known {
		return credentialKnown
	}
	return credentialRefused
}
