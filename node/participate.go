package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// TrainingData is a node's own data: it never leaves the node.
type TrainingData struct {
	Train   *data.Dataset // nil where the node does not train
	Holdout *data.Dataset // nil where it does not evaluate
}

// loadTraining reads the files of a configuration, so that a bad one is refused before
// anything is started.
func loadTraining(cfg Config) (*TrainingData, error) {
	t := &TrainingData{}
	for _, f := range []struct {
		field, path string
		into        **data.Dataset
	}{{"training.data", cfg.Training.Data, &t.Train}, {"training.holdout", cfg.Training.Holdout, &t.Holdout}} {
		if f.path == "" {
			continue
		}
		d, err := data.ReadFile(f.path)
		if err != nil {
			return nil, &ConfigError{Field: f.field, Err: err, Remedy: "mend the file: numbers, then the label, the same number of columns in every row"}
		}
		*f.into = d
	}
	if t.Train != nil && t.Holdout != nil && t.Train.Features != t.Holdout.Features {
		return nil, &ConfigError{Field: "training.holdout", Err: fmt.Errorf("%s has %d features, %s has %d", t.Holdout.Source, t.Holdout.Features, t.Train.Source, t.Train.Features),
			Remedy: "name two parts of one data set"}
	}
	return t, nil
}

// Messages on a round stream, in order:
//
//	participant → aggregator   delivery, then a frame with the update
//	aggregator → participant   verdict: accepted or the reason
//	aggregator → participant   outcome, then a frame with the result, then one frame for
//	                           each disclosed update, in the order of the outcome
//	participant → aggregator   receipt: the result is stored (and was added up again)
type deliveryMessage struct {
	Job       federated.JobID  `json:"job"`
	Round     uint32           `json:"round"`
	Attempt   uint32           `json:"attempt"`
	Statement []byte           `json:"statement"`
	Examples  uint64           `json:"examples"`
	Salt      federated.Digest `json:"salt"`
}

type verdictMessage struct {
	Reason *attest.Reason `json:"reason,omitempty"`
}

type outcomeMessage struct {
	Root     chunk.Root       `json:"root"`
	Openings []openingMessage `json:"openings"`
	// Disclosed says that every update follows.
	Disclosed bool `json:"disclosed"`
}

type openingMessage struct {
	Node     identity.NodeRef `json:"node"`
	Examples uint64           `json:"examples"`
	Salt     federated.Digest `json:"salt"`
}

type receiptMessage struct {
	Stored bool   `json:"stored"`
	Error  string `json:"error,omitempty"`
}

// runParticipant takes part in every open attempt that names this node, and evaluates
// what is committed, until ctx ends. A new attempt ends the work on the old one; training
// that was done is kept.
func (n *Node) runParticipant(ctx context.Context) {
	type running struct {
		turn   turn
		cancel context.CancelFunc
	}
	active := map[federated.JobID]running{}
	for {
		changed := n.changed.wait()
		for _, job := range n.jobs() {
			n.settle(ctx, job)
			old, busy := active[job.Job.ID]
			if busy && (job.Open == nil || turnOf(job.Open) != old.turn) {
				old.cancel()
				delete(active, job.Job.ID)
				busy = false
			}
			if busy || job.Open == nil {
				continue
			}
			self, named := job.Open.Participant(n.self)
			if !named {
				continue
			}
			workCtx, cancel := context.WithCancel(ctx)
			active[job.Job.ID] = running{turnOf(job.Open), cancel}
			n.tasks.Go(func() {
				if err := n.participate(workCtx, job, self); err != nil && workCtx.Err() == nil {
					n.log.Warn("no part in the round", "job", job.Job.ID, "round", job.Open.Round, "attempt", job.Open.Attempt, "error", err)
				}
			})
		}
		select {
		case <-changed:
		case <-ctx.Done():
			for _, r := range active {
				r.cancel()
			}
			return
		}
	}
}

// participate trains (once per round and base) and delivers, again and again until the
// aggregator has it or the attempt is over.
func (n *Node) participate(ctx context.Context, job federated.JobStatus, self federated.Member) error {
	o := job.Open
	if n.data == nil || n.data.Train == nil {
		return errors.New("this node has no training data")
	}
	// Who has just come back is named before it may exchange data, and has its part if it can in time.
	for why := n.withdrawn(); why != nil; why = n.withdrawn() {
		if n.pause(ctx, submitRetry); ctx.Err() != nil {
			return &RefusedError{*why}
		}
	}
	k, err := n.contribution(ctx, job)
	if err != nil {
		return err
	}
	signer, err := envelope.NewSigner(n.key)
	if err != nil {
		return err
	}
	env, err := federated.SignUpdate(signer, o.UpdateStatement(self, k.work, k.salt))
	if err != nil {
		return err
	}
	d := federated.Delivery{Statement: env.Marshal(), Opening: federated.Opening{Examples: k.work.Examples, Salt: k.salt}, Update: k.work.Update}
	for {
		var err error
		if o.Aggregator.Peer == n.self {
			err = n.deliverHere(ctx, job, d)
		} else {
			err = n.deliver(ctx, job, d)
		}
		if err == nil || isRefused(err) {
			return err
		}
		n.log.Info("delivery failed", "round", o.Round, "attempt", o.Attempt, "to", o.Aggregator.Ref.String(), "error", err)
		select {
		case <-time.After(submitRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// contribution returns the kept work for the attempt's round and base, or does it now.
func (n *Node) contribution(ctx context.Context, job federated.JobStatus) (kept, error) {
	o, key := job.Open, keptKey{job.Job.ID, job.Open.Round}
	n.work.mu.Lock()
	k, ok := n.work.kept[key]
	n.work.mu.Unlock()
	if ok && k.base == o.BaseRoot {
		return k, nil
	}
	base, err := n.baseModel(ctx, o.BaseRoot)
	if err != nil {
		return kept{}, err
	}
	n.work.mu.Lock()
	if n.work.trainings[o.Job] == nil {
		n.work.trainings[o.Job] = map[uint32]int{}
	}
	n.work.trainings[o.Job][o.Round]++
	n.work.mu.Unlock()
	w, err := job.Job.Spec.Participate(o.Job, o.Round, n.ref, base, n.data.Train)
	if err != nil {
		return kept{}, err
	}
	k = kept{base: o.BaseRoot, work: w}
	if _, err := rand.Read(k.salt[:]); err != nil {
		return kept{}, err
	}
	if _, err := n.blobs.Put(w.Update, job.Job.Spec.Disclosure == federated.DiscloseFull); err != nil {
		return kept{}, err
	}
	n.work.mu.Lock()
	n.work.kept[key] = k
	n.work.mu.Unlock()
	n.log.Info("contributed", "job", o.Job, "round", o.Round, "examples", w.Examples, "loss", w.Loss)
	n.changed.notify()
	return k, nil
}

// baseModel returns the model of a root; the zero root, of round 0, has none.
func (n *Node) baseModel(ctx context.Context, root chunk.Root) ([]byte, error) {
	if root.IsZero() {
		return nil, nil
	}
	return n.fetchBlob(ctx, root)
}

// deliver sends the update to the aggregator and stores the outcome that comes back.
func (n *Node) deliver(ctx context.Context, job federated.JobStatus, d federated.Delivery) error {
	o := job.Open
	link, ok := n.linkTo(o.Aggregator.Peer)
	if !ok {
		return fmt.Errorf("no link to the aggregator %s", o.Aggregator.Ref)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(job.Job.Spec.Deadline)*time.Second)
	defer cancel()
	s, err := n.openLarge(ctx, link, n.protocols.round, len(d.Update))
	if err != nil {
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := writeMessage(s, deliveryMessage{o.Job, o.Round, o.Attempt, d.Statement, d.Opening.Examples, d.Opening.Salt}); err != nil {
		return err
	}
	if err := writeFrame(s, d.Update); err != nil {
		return err
	}
	var verdict verdictMessage
	if err := readMessage(s, &verdict); err != nil {
		return err
	}
	if verdict.Reason != nil {
		return &RefusedError{*verdict.Reason}
	}
	out, err := readOutcome(s)
	if err != nil {
		return err
	}
	err = n.accept(ctx, turnOf(o), out)
	receipt := receiptMessage{Stored: err == nil}
	if err != nil {
		receipt.Error = err.Error()
	}
	return errors.Join(err, writeMessage(s, receipt))
}

// accept stores a round's outcome after checking it against the close that was ordered.
// Where the job's terms disclose updates, this node adds them up again by itself.
func (n *Node) accept(ctx context.Context, t turn, out outcome) error {
	job, err := n.waitClosed(ctx, t)
	if err != nil {
		return err
	}
	closed := job.Open.Closed
	root, err := chunk.RootOf(out.result)
	if err != nil || root != out.root {
		return fmt.Errorf("the result has root %s, the aggregator says %s", root, out.root)
	}
	for _, a := range closed.Accepted {
		if out.openings[a.Node].Commit(t.job, t.round, a.Node) != a.Examples {
			return fmt.Errorf("the aggregator does not open the commitment of %s", a.Node)
		}
	}
	if out.updates != nil {
		if err := n.reExecute(ctx, job, out); err != nil {
			return err
		}
	}
	if err := n.keepOutcome(job, out); err != nil {
		return err
	}
	return nil
}

// reExecute adds the disclosed updates up again.
func (n *Node) reExecute(ctx context.Context, job federated.JobStatus, out outcome) error {
	base, err := n.baseModel(ctx, job.Open.BaseRoot)
	if err != nil {
		return err
	}
	var parts []federated.Contribution
	for _, a := range job.Open.Closed.Accepted {
		update := out.updates[a.Node]
		if root, err := chunk.RootOf(update); err != nil || root != a.UpdateRoot {
			return fmt.Errorf("the update of %s has another root than it signed", a.Node)
		}
		parts = append(parts, federated.Contribution{Node: a.Node, Examples: out.openings[a.Node].Examples, Update: update})
	}
	sum, err := job.Job.Spec.Combine(job.Open.Round, base, parts)
	if err != nil {
		return err
	}
	if root, err := chunk.RootOf(sum); err != nil || root != out.root {
		return fmt.Errorf("round %d: the aggregator's sum is %s, adding up again gives %s", job.Open.Round, out.root, root)
	}
	return nil
}

func (n *Node) keepOutcome(job federated.JobStatus, out outcome) error {
	disclosed := job.Job.Spec.Disclosure == federated.DiscloseFull
	for _, update := range out.updates {
		if _, err := n.blobs.Put(update, true); err != nil {
			return err
		}
	}
	if _, err := n.blobs.Put(out.result, disclosed); err != nil {
		return err
	}
	n.work.mu.Lock()
	defer n.work.mu.Unlock()
	n.work.openings[keptKey{job.Job.ID, job.Open.Round}] = out.openings
	return nil
}

// waitClosed waits until this node's machine has the close of attempt t.
func (n *Node) waitClosed(ctx context.Context, t turn) (federated.JobStatus, error) {
	for {
		changed := n.changed.wait()
		job, ok := n.job(t.job)
		if !ok || job.Open == nil || turnOf(job.Open) != t {
			if ok && len(job.Committed) <= int(t.round) && (job.Open == nil || job.Open.Attempt < t.attempt) {
				// Not there yet.
			} else {
				return job, fmt.Errorf("round %d attempt %d is over", t.round, t.attempt)
			}
		} else if job.Open.Closed != nil {
			return job, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return job, ctx.Err()
		}
	}
}

// settle notes newly committed rounds: their time, for the interval between rounds, and
// the accuracy of their model on this node's hold-out data.
func (n *Node) settle(ctx context.Context, job federated.JobStatus) {
	for _, c := range job.Committed {
		key := keptKey{job.Job.ID, c.Round}
		since(&n.work.mu, n.work.committed, key, n.now())
		n.work.mu.Lock()
		known := n.work.settled[key]
		n.work.settled[key] = true
		delete(n.work.kept, key)
		n.work.mu.Unlock()
		if known || !n.evaluates() || c.Round == 0 {
			continue
		}
		n.tasks.Go(func() {
			accuracy, err := n.evaluate(ctx, job.Job, c)
			if err != nil {
				n.log.Warn("not evaluated", "job", job.Job.ID, "round", c.Round, "error", err)
				accuracy = notEvaluated
			}
			n.work.mu.Lock()
			n.work.accuracy[key] = accuracy
			n.work.mu.Unlock()
			n.changed.notify()
		})
	}
}

// notEvaluated stands for an accuracy that could not be computed.
const notEvaluated = -1

// evaluates reports whether this node has hold-out data.
func (n *Node) evaluates() bool { return n.data != nil && n.data.Holdout != nil }

func (n *Node) evaluate(ctx context.Context, job federated.Job, c federated.CommittedRound) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	model, err := n.fetchBlob(ctx, c.ResultRoot)
	if err != nil {
		return 0, err
	}
	return job.Spec.Evaluate(model, n.data.Holdout)
}

// isRefused reports whether err is final: trying again would be refused again.
func isRefused(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused)
}

// submitJob submits a signed job.
func (n *Node) submitJob(ctx context.Context, raw []byte) (Submission, error) {
	job, err := federated.ParseJob(raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	body, err := federated.JobCommand(raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	out, err := n.submit(ctx, consensus.Command{V: consensus.CommandVersion, Kind: consensus.KindJob, Body: body})
	if err != nil {
		return Submission{}, err
	}
	answer := Submission{ID: string(job.ID), Epoch: uint64(n.machine.Epoch()), LeafIndex: out.First}
	if ordered, err := n.waitJob(ctx, job.ID); err == nil {
		for _, org := range ordered.Job.Signers {
			answer.Organisations = append(answer.Organisations, string(org))
		}
	}
	return answer, nil
}

// waitJob waits until this node's own machine has the job.
func (n *Node) waitJob(ctx context.Context, id federated.JobID) (federated.JobStatus, error) {
	for {
		changed := n.changed.wait()
		if job, ok := n.job(id); ok {
			return job, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return federated.JobStatus{}, ctx.Err()
		}
	}
}
