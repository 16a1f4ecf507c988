package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/aggregate"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// The aggregator's side of a round:
//
//	deliveries ──► Admit each ──► all here, or enough and the rest gone ──► RoundClose ordered
//	  ──► Combine ──► outcome to every participant ──► enough receipts ──► RoundCommit ordered
//
// Nothing is committed that only the aggregator holds: receipts of min(2, others) stored
// copies come first.

const (
	collectGrace = 3 * time.Second // for those still linked, once enough have delivered
	receiptsFor  = 10 * time.Second
	closeTries   = 3
)

// outcome is what a round ended in, as the aggregator tells it.
type outcome struct {
	root     chunk.Root
	result   []byte
	openings map[identity.NodeRef]federated.Opening
	updates  map[identity.NodeRef][]byte // nil where the job's terms do not disclose
}

// session collects the deliveries to one attempt that this node aggregates.
type session struct {
	mu    sync.Mutex
	parts map[identity.PeerID]part // guarded by mu
	done  chan struct{}            // closed when out or err is set
	out   outcome                  // set before done is closed
	err   error
	acks  chan identity.PeerID
}

type part struct {
	accepted federated.Accepted
	delivery federated.Delivery
}

func newSession(participants int) *session {
	return &session{parts: map[identity.PeerID]part{}, done: make(chan struct{}), acks: make(chan identity.PeerID, participants)}
}

// runAggregator aggregates every attempt that names this node, until ctx ends.
func (n *Node) runAggregator(ctx context.Context) {
	for {
		changed := n.changed.wait()
		for _, job := range n.jobs() {
			o := job.Open
			if o == nil || o.Aggregator.Peer != n.self {
				continue
			}
			n.work.mu.Lock()
			_, known := n.work.sessions[turnOf(o)]
			s := newSession(len(o.Participants))
			if !known {
				n.work.sessions[turnOf(o)] = s
			}
			n.work.mu.Unlock()
			if known {
				continue
			}
			n.changed.notify()
			n.tasks.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, time.Duration(job.Job.Spec.Deadline)*time.Second)
				defer cancel()
				if err := n.aggregate(ctx, job, s); err != nil {
					n.log.Warn("round not aggregated", "job", o.Job, "round", o.Round, "attempt", o.Attempt, "error", err)
				}
			})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// aggregate runs one attempt from the first delivery to the commit.
func (n *Node) aggregate(ctx context.Context, job federated.JobStatus, s *session) error {
	finish := func(out outcome, err error) error {
		s.out, s.err = out, err
		close(s.done)
		return err
	}
	o := job.Open
	if err := n.collect(ctx, job, s); err != nil {
		return finish(outcome{}, err)
	}
	closed, err := n.closeAttempt(ctx, o, s)
	if err != nil {
		return finish(outcome{}, err)
	}
	out, err := n.combine(ctx, closed, s)
	if err != nil {
		return finish(outcome{}, err)
	}
	if err := n.keepOutcome(closed, out); err != nil {
		return finish(outcome{}, err)
	}
	_ = finish(out, nil)
	if err := n.awaitReceipts(ctx, closed, s); err != nil {
		return err
	}
	if cause := n.lostParticipants(closed); cause != "" { // perhaps before it was ordered
		return errors.New(cause)
	}
	return n.commitAttempt(ctx, closed, out)
}

// collect waits for the participants: for all of them, or for enough while the rest is
// gone or slower than collectGrace.
func (n *Node) collect(ctx context.Context, job federated.JobStatus, s *session) error {
	o := job.Open
	var enough <-chan time.Time
	late := false
	for {
		changed := n.changed.wait()
		out := n.putOutOf(o)
		s.mu.Lock()
		have := 0
		waitFor := slices.ContainsFunc(o.Participants, func(m federated.Member) bool {
			_, here := s.parts[m.Peer]
			return !here && !out[m.Peer] && (m.Peer == n.self || n.hasLink(m.Peer))
		})
		for peer := range s.parts {
			if !out[peer] {
				have++
			}
		}
		s.mu.Unlock()
		switch {
		case have == len(o.Participants)-len(out) && have > 0:
			return nil
		case have >= job.Job.Spec.MinParticipants && (late || !waitFor):
			return nil
		case have >= job.Job.Spec.MinParticipants && enough == nil:
			timer := time.NewTimer(collectGrace)
			defer timer.Stop()
			enough = timer.C
		}
		select {
		case <-changed:
		case <-enough:
			late = true
		case <-ctx.Done():
			return fmt.Errorf("%d of %d participants delivered: %w", have, len(o.Participants), ctx.Err())
		}
		if now, ok := n.job(o.Job); !ok || now.Open == nil || turnOf(now.Open) != turnOf(o) {
			return fmt.Errorf("round %d attempt %d is over", o.Round, o.Attempt)
		}
	}
}

// closeAttempt has the list of accepted updates ordered. Whoever has been put out
// meanwhile is left out and the list is made again.
func (n *Node) closeAttempt(ctx context.Context, o *federated.OpenRound, s *session) (federated.JobStatus, error) {
	signer, err := envelope.NewSigner(n.key)
	if err != nil {
		return federated.JobStatus{}, err
	}
	for try := 0; ; try++ {
		accepted, rejected, updates := n.list(o, s)
		env, err := federated.SignClose(signer, o.CloseStatement(accepted, rejected))
		if err != nil {
			return federated.JobStatus{}, err
		}
		body, err := federated.CloseCommand(env.Marshal(), updates)
		if err != nil {
			return federated.JobStatus{}, err
		}
		_, err = n.submit(ctx, consensus.Command{V: consensus.CommandVersion, Kind: consensus.KindRoundClose, Body: body})
		if err == nil {
			return n.waitClosed(ctx, turnOf(o))
		}
		if !isRefused(err) || try == closeTries {
			return federated.JobStatus{}, err
		}
		n.log.Info("close refused, making the list again", "round", o.Round, "error", err)
	}
}

// list splits the participants into those whose update counts and those left out, in node
// order, judged by what this node acts on: the ledger demands that they are eligible by what
// is ordered, which may be more of them.
func (n *Node) list(o *federated.OpenRound, s *session) (accepted []federated.Accepted, rejected []federated.Rejected, updates [][]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n.machine.Present(func(st *consensus.State) {
		members := n.machine.members(st)
		for _, m := range o.Participants {
			p, delivered := s.parts[m.Peer]
			_, eligible := members.Node(m.Peer)
			switch {
			case delivered && eligible:
				accepted = append(accepted, p.accepted)
				updates = append(updates, p.delivery.Statement)
			case !eligible:
				rejected = append(rejected, federated.Rejected{Node: m.Ref, Peer: m.Peer, Code: attest.CodeNotEligible})
			default:
				rejected = append(rejected, federated.Rejected{Node: m.Ref, Peer: m.Peer, Code: attest.CodeUnavailable})
			}
		}
	})
	slices.SortFunc(rejected, func(a, b federated.Rejected) int { return aggregate.CompareNodes(a.Node, b.Node) })
	return accepted, rejected, updates
}

// combine adds up what was closed.
func (n *Node) combine(ctx context.Context, job federated.JobStatus, s *session) (outcome, error) {
	base, err := n.baseModel(ctx, job.Open.BaseRoot)
	if err != nil {
		return outcome{}, err
	}
	out := outcome{openings: map[identity.NodeRef]federated.Opening{}}
	disclosed := job.Job.Spec.Disclosure == federated.DiscloseFull
	if disclosed {
		out.updates = map[identity.NodeRef][]byte{}
	}
	var parts []federated.Contribution
	s.mu.Lock()
	for _, a := range job.Open.Closed.Accepted {
		d := s.parts[a.Peer].delivery
		parts = append(parts, federated.Contribution{Node: a.Node, Examples: d.Opening.Examples, Update: d.Update})
		out.openings[a.Node] = d.Opening
		if disclosed {
			out.updates[a.Node] = d.Update
		}
	}
	s.mu.Unlock()
	if out.result, err = job.Job.Spec.Combine(job.Open.Round, base, parts); err != nil {
		return outcome{}, err
	}
	out.root, err = chunk.RootOf(out.result)
	return out, err
}

// awaitReceipts waits until enough other participants hold the result.
func (n *Node) awaitReceipts(ctx context.Context, job federated.JobStatus, s *session) error {
	others := 0
	for _, a := range job.Open.Closed.Accepted {
		if a.Peer != n.self {
			others++
		}
	}
	want := min(2, others)
	timer := time.NewTimer(receiptsFor)
	defer timer.Stop()
	for have := map[identity.PeerID]bool{}; len(have) < want; {
		select {
		case p := <-s.acks:
			have[p] = true
		case <-timer.C:
			return fmt.Errorf("%d of %d participants stored the result", len(have), want)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// commitAttempt has the round leaf ordered.
func (n *Node) commitAttempt(ctx context.Context, job federated.JobStatus, out outcome) error {
	signer, err := envelope.NewSigner(n.key)
	if err != nil {
		return err
	}
	round, err := job.RoundStatement(out.root)
	if err != nil {
		return err
	}
	env, err := federated.SignRound(signer, round)
	if err != nil {
		return err
	}
	body, err := federated.CommitCommand(env.Marshal())
	if err != nil {
		return err
	}
	_, err = n.submit(ctx, consensus.Command{V: consensus.CommandVersion, Kind: consensus.KindRoundCommit, Body: body})
	if err == nil {
		n.log.Info("round committed", "job", job.Job.ID, "round", job.Open.Round, "attempt", job.Open.Attempt, "root", out.root.String())
	}
	return err
}

// session waits for the attempt that a delivery names: the participant may have heard of
// it before this node.
func (n *Node) session(ctx context.Context, t turn) (*session, error) {
	for {
		changed := n.changed.wait()
		n.work.mu.Lock()
		s, ok := n.work.sessions[t]
		n.work.mu.Unlock()
		if ok {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// admit judges a delivery and files it.
func (n *Node) admit(ctx context.Context, peer identity.PeerID, t turn, d federated.Delivery) (*session, *attest.Reason) {
	waitCtx, cancel := context.WithTimeout(ctx, headWithin)
	defer cancel()
	s, err := n.session(waitCtx, t)
	if err != nil {
		return nil, reason(attest.CodeNotAggregator, "round", fmt.Sprintf("round %d attempt %d", t.round, t.attempt), "an attempt that this node aggregates")
	}
	job, ok := n.job(t.job)
	if !ok || job.Open == nil || turnOf(job.Open) != t {
		return nil, reason(attest.CodeStaleRound, "round", fmt.Sprintf("round %d attempt %d", t.round, t.attempt), "the open attempt")
	}
	base, err := n.baseModel(ctx, job.Open.BaseRoot)
	if err != nil {
		return nil, reason(attest.CodeUnavailable, "base model", err.Error(), job.Open.BaseRoot.String())
	}
	accepted, why := job.Open.Admit(job.Job.Spec, peer, base, d)
	if why != nil {
		return nil, why
	}
	s.mu.Lock()
	s.parts[peer] = part{accepted, d}
	s.mu.Unlock()
	n.changed.notify()
	return s, nil
}

// handleUpload takes a participant's delivery and answers with verdict and outcome.
func (n *Node) handleUpload(link mesh.Link, st mesh.Stream) {
	defer st.Close()
	_ = st.SetDeadline(n.now().Add(forwardWithin))
	var m deliveryMessage
	if readMessage(st, &m) != nil {
		return
	}
	update, err := readFrame(st, federated.MaxModel)
	if err != nil {
		return
	}
	job, ok := n.job(m.Job)
	if !ok {
		_ = writeMessage(st, verdictMessage{reason(attest.CodeUnknownJob, "job", string(m.Job), "a submitted job")})
		return
	}
	deadline := time.Duration(job.Job.Spec.Deadline) * time.Second
	_ = st.SetDeadline(n.now().Add(deadline))
	t := turn{m.Job, m.Round, m.Attempt}
	s, why := n.admit(n.ctx, link.Peer(), t, federated.Delivery{Statement: m.Statement, Opening: federated.Opening{Examples: m.Examples, Salt: m.Salt}, Update: update})
	if err := writeMessage(st, verdictMessage{why}); err != nil || why != nil {
		return
	}
	select {
	case <-s.done:
	case <-link.Done():
		return
	case <-n.ctx.Done():
		return
	}
	if s.err != nil || writeOutcome(st, s.out) != nil {
		return
	}
	var receipt receiptMessage
	if readMessage(st, &receipt) != nil {
		return
	}
	if !receipt.Stored {
		n.log.Warn("a participant does not accept the sum", "node", link.Session().Node.String(), "error", receipt.Error)
		return
	}
	select {
	case s.acks <- link.Peer():
	default: // more receipts than participants: one came twice
	}
}

// deliverHere is deliver for the node that aggregates.
func (n *Node) deliverHere(ctx context.Context, job federated.JobStatus, d federated.Delivery) error {
	s, why := n.admit(ctx, n.self, turnOf(job.Open), d)
	if why != nil {
		return &RefusedError{*why}
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func writeOutcome(w io.Writer, out outcome) error {
	m := outcomeMessage{Root: out.root, Disclosed: out.updates != nil}
	for _, ref := range sortedRefs(out.openings) {
		o := out.openings[ref]
		m.Openings = append(m.Openings, openingMessage{ref, o.Examples, o.Salt})
	}
	if err := errors.Join(writeMessage(w, m), writeFrame(w, out.result)); err != nil || !m.Disclosed {
		return err
	}
	for _, o := range m.Openings {
		if err := writeFrame(w, out.updates[o.Node]); err != nil {
			return err
		}
	}
	return nil
}

func readOutcome(r io.Reader) (outcome, error) {
	var m outcomeMessage
	if err := readMessage(r, &m); err != nil {
		return outcome{}, err
	}
	if len(m.Openings) > federated.MaxParticipants {
		return outcome{}, fmt.Errorf("%d openings, the limit is %d", len(m.Openings), federated.MaxParticipants)
	}
	out := outcome{root: m.Root, openings: map[identity.NodeRef]federated.Opening{}}
	var err error
	if out.result, err = readFrame(r, federated.MaxModel); err != nil {
		return outcome{}, err
	}
	if m.Disclosed {
		out.updates = map[identity.NodeRef][]byte{}
	}
	for _, o := range m.Openings {
		out.openings[o.Node] = federated.Opening{Examples: o.Examples, Salt: o.Salt}
		if !m.Disclosed {
			continue
		}
		if out.updates[o.Node], err = readFrame(r, federated.MaxModel); err != nil {
			return outcome{}, err
		}
	}
	return out, nil
}

func sortedRefs(m map[identity.NodeRef]federated.Opening) []identity.NodeRef {
	refs := make([]identity.NodeRef, 0, len(m))
	for ref := range m {
		refs = append(refs, ref)
	}
	slices.SortFunc(refs, aggregate.CompareNodes)
	return refs
}
