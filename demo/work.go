package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// roundGrace is added to what rounds take by their own pace.
const roundGrace = 30 * time.Second

// deadlineSeconds is how long one attempt at a round may take.
const deadlineSeconds = 15

// writeJob writes the job. It can start with the founders alone and go on after an
// eviction and a crash.
func (d *director) writeJob() error {
	return writeYAML(d.lay.jobSpec(), jobSpec{Name: "demo", Rounds: d.opts.Rounds, Seed: seed,
		Features: d.data.Features, Labels: d.data.Labels, Model: modelSpec{Hidden: 32},
		Train:           trainSpec{Epochs: d.job.epochs, Batch: 16, LearningRate: 0.05, Momentum: 0.9},
		MinParticipants: 3, Deadline: deadlineSeconds, Interval: d.job.interval, Disclosure: "full"})
}

// baselineResult is what one comparison found.
type baselineResult struct {
	shuffled bool
	value    float64
	err      error
}

func (d *director) baselineCommand(shuffled bool) []string {
	argv := d.meshnode("job", "baseline", d.lay.jobSpec())
	for _, n := range d.plan.all() {
		argv = append(argv, "--train", d.lay.part(n.part))
	}
	argv = append(argv, "--holdout", d.lay.holdout())
	if shuffled {
		argv = append(argv, "--shuffle-labels")
	}
	return append(argv, "--json")
}

// startBaselines starts the two comparisons, each a process of its own at the lowest
// priority: the mesh needs the cores, they have until the end of the story.
func (d *director) startBaselines() {
	d.baselines = make(chan baselineResult, 2)
	d.helpers.Go(func() {
		for _, shuffled := range []bool{false, true} {
			var v struct {
				BestLocal float64 `json:"best_local"`
				Federated float64 `json:"federated"`
			}
			argv := d.baselineCommand(shuffled)
			out, err := d.run.background(d.ctx, argv...)
			if err == nil {
				err = decodeOutput(argv, out, &v)
			}
			value := v.BestLocal
			if shuffled {
				value = v.Federated
			}
			d.baselines <- baselineResult{shuffled, value, err}
		}
	})
}

// submit has every organisation sign the job and starts following it.
func (d *director) submit() error {
	from := d.lay.jobSpec()
	var hand []string
	for _, org := range d.plan.orgs {
		approve := d.meshnode("job", "approve", from, "--genesis", d.lay.genesis(), "--key", d.lay.key(org, "govern"), "-o", d.lay.jobApproved())
		if _, err := d.run.run(d.ctx, approve...); err != nil {
			return err
		}
		hand = append(hand, quoteCommand(approve))
		from = d.lay.jobApproved()
	}
	argv := d.meshnode("job", "submit", d.lay.jobApproved(), "--node", d.lay.socket(d.plan.founders[0]), "--json")
	var v struct{ ID string }
	if err := d.run.runJSON(d.ctx, &v, argv...); err != nil {
		return err
	}
	d.jobID = v.ID
	d.watch = newWatch(d)
	d.helpers.Go(d.watch.run)
	d.say.step(fmt.Sprintf("job of %d rounds signed by %d organisations and submitted", d.opts.Rounds, d.plan.seats()),
		append(hand, quoteCommand(argv), d.hand("job", "show", v.ID, "--node", d.lay.socket(d.plan.founders[0]), "--follow"))...)
	return nil
}

// watch follows the job: one process that prints a line for every change, on one seat,
// and on the next when that ends before the job does. It tells each committed round and,
// when armed, kills the aggregator of the round that it sees open.
type watch struct {
	d *director

	mu      sync.Mutex
	view    jobView       // guarded by mu: the newest
	told    int           // guarded by mu: the last round that was told
	opened  int           // guarded by mu: the last round seen open
	armed   bool          // guarded by mu
	victim  string        // guarded by mu: who was killed, in round killedIn
	killed  int           // guarded by mu
	changed chan struct{} // guarded by mu: closed and renewed at every change
	err     error         // guarded by mu: nobody can be followed any more
}

func newWatch(d *director) *watch {
	return &watch{d: d, told: 0, opened: -1, changed: make(chan struct{})}
}

// run follows the job until it is done or the story ends. A follower that dies with the
// node it asked is replaced by one on another seat.
func (w *watch) run() {
	for i := 0; w.d.ctx.Err() == nil; i++ {
		n := w.d.plan.founders[i%w.d.plan.seats()]
		if n.ref() == w.d.plan.evicted || !w.d.proc(n.ref()).alive() {
			continue
		}
		argv := w.d.meshnode("job", "show", w.d.jobID, "--node", w.d.lay.socket(n), "--json", "--follow")
		p, err := w.d.sup.start(spec{name: "job show", argv: argv, stdout: &lineWriter{each: w.line},
			stderr: w.d.run.log})
		if err != nil {
			w.fail(err)
			return
		}
		<-p.done
		if state := w.latest().State; state == "done" || state == "failed" {
			return
		}
		select { // the node may be gone for a moment only, or the next still be behind
		case <-time.After(pollEvery):
		case <-w.d.ctx.Done():
		}
	}
}

func (w *watch) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
	w.notify()
}

// notify wakes those who wait; mu is held.
func (w *watch) notify() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// line takes one state of the job. It is called by the reader of one process at a time.
func (w *watch) line(line []byte) {
	var v jobView
	if err := json.Unmarshal(line, &v); err != nil {
		w.fail(fmt.Errorf("job show --follow printed %.200q: %w", line, err))
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.strike(v)
	w.view = v
	w.tellCommitted(false)
	if v.lastCommitted() > w.told {
		time.AfterFunc(accuracyGrace, w.tellAnyway)
	}
	w.notify()
}

// accuracyGrace is how long the line of a committed round waits for its accuracy, which
// nodes measure after the commit.
const accuracyGrace = 700 * time.Millisecond

func (w *watch) tellAnyway() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.d.ctx.Err() == nil {
		w.tellCommitted(true)
	}
}

// tellCommitted tells the committed rounds in order. mu is held.
func (w *watch) tellCommitted(anyway bool) {
	for _, c := range w.view.Committed {
		if c.Round == w.told+1 && (c.Accuracy != nil || anyway) {
			w.told = c.Round
			w.tell(c)
		}
	}
}

// strike kills the aggregator of a round in the moment the round is first seen open, if
// that is wanted and the aggregator is not the node that was evicted. mu is held.
func (w *watch) strike(v jobView) {
	fresh := v.Phase == "collecting" && v.Attempt == 1 && v.Round > w.opened
	w.opened = max(w.opened, v.Round)
	if !fresh || !w.armed || w.victim != "" || v.Aggregator == "" || v.Aggregator == w.d.plan.evicted {
		return
	}
	n, ok := w.d.find(v.Aggregator)
	if !ok || !n.seat {
		return
	}
	w.d.proc(n.ref()).kill()
	w.victim, w.killed, w.armed = n.ref(), v.Round, false
}

func (w *watch) tell(c committedView) {
	s := fmt.Sprintf("round %d of %d committed: ", c.Round, w.d.opts.Rounds)
	if c.Accuracy != nil {
		s += fmt.Sprintf("accuracy %.3f, ", *c.Accuracy)
	}
	s += fmt.Sprintf("%d participants, summed by %s", len(c.Participants), c.Aggregator)
	if c.Attempt > 1 {
		s += fmt.Sprintf(" in attempt %d", c.Attempt)
	}
	w.d.say.line("%s", s)
}

func (w *watch) latest() jobView {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.view
}

// arm wants the aggregator of the next round that opens killed.
func (w *watch) arm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = true
}

// struck returns who was killed in which round.
func (w *watch) struck() (string, int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.victim, w.killed
}

// until waits until the job is in a state that ready accepts. A job that is over without
// that having happened is an error.
func (w *watch) until(what string, within time.Duration, ready func(jobView) bool) error {
	ctx, cancel := context.WithTimeout(w.d.ctx, within)
	defer cancel()
	for {
		w.mu.Lock()
		v, changed, err := w.view, w.changed, w.err
		w.mu.Unlock()
		switch {
		case err != nil:
			return err
		case ready(v):
			return nil
		case v.State == "failed":
			return fmt.Errorf("the job failed while waiting for %s: %s", what, v.summary())
		case v.State == "done":
			return fmt.Errorf("the job was done before %s: %s", what, v.summary())
		}
		w.d.say.waiting(w.d.step + ": waiting for " + what + "; " + v.summary())
		select {
		case <-changed:
		case <-ctx.Done():
			if cause := context.Cause(w.d.ctx); cause != nil {
				return cause
			}
			log := w.d.lay.nodeLog(w.d.survivors()[0])
			return fmt.Errorf("waited %s for %s; last seen: %s; %s ends:\n%s", within, what, v.summary(), log, logTail(log))
		}
	}
}

// pace is how long n rounds may take: their interval, the training, one lost attempt.
func (d *director) pace(n int) time.Duration {
	return time.Duration(n*(d.job.interval+deadlineSeconds))*time.Second + roundGrace
}

// train waits for the first third of the rounds.
func (d *director) train() error {
	everybody := refs(d.plan.all())
	if err := d.watch.until(fmt.Sprintf("round %d, and one trained by %s", d.job.voteAfter, strings.Join(everybody, " ")),
		d.pace(d.job.voteAfter+1), func(v jobView) bool {
			return v.lastCommitted() >= d.job.voteAfter && slices.ContainsFunc(v.Committed, func(c committedView) bool {
				return c.Round > 0 && len(missing(everybody, c.Participants)) == 0
			})
		}); err != nil {
		return err
	}
	d.say.step(fmt.Sprintf("all %d nodes train, %s among them", len(d.plan.all()), d.plan.newcomer.ref()),
		d.hand("job", "show", d.jobID, "--node", d.lay.socket(d.plan.founders[0])))
	return nil
}

// lose kills the aggregator of a round as it opens; the round must commit without it and
// without anybody training again.
func (d *director) lose() error {
	d.watch.arm()
	if err := d.watch.until("a round to open after the eviction", d.pace(2), func(jobView) bool {
		who, _ := d.watch.struck()
		return who != ""
	}); err != nil {
		return err
	}
	victim, in := d.watch.struck()
	d.killed = victim
	n, _ := d.find(victim)
	d.say.line("round %d opened: its aggregator %s (pid %d) is sent SIGKILL", in, victim, d.proc(victim).pid)
	if err := d.watch.until(fmt.Sprintf("round %d to commit", in), d.pace(2), func(v jobView) bool {
		_, ok := v.committed(in)
		return ok
	}); err != nil {
		return err
	}
	c, _ := d.watch.latest().committed(in)
	if c.Attempt < 2 || c.Aggregator == victim {
		return fmt.Errorf("round %d was committed by %s in attempt %d: SIGKILL came too late to lose its aggregator, and a second node is not killed; try again",
			in, c.Aggregator, c.Attempt)
	}
	if err := d.trainedOnce(in, c); err != nil {
		return err
	}
	d.report.Killed = &Killed{Node: victim, Round: in, Attempt: c.Attempt, Aggregator: c.Aggregator}
	d.say.step(fmt.Sprintf("round %d commits in attempt %d through %s; nobody trained again", in, c.Attempt, c.Aggregator),
		"kill -9 "+strconv.Itoa(d.proc(victim).pid), d.hand("job", "show", d.jobID, "--node", d.lay.socket(d.survivors()[0]), "--json"))
	return d.mourned(n)
}

// trainedOnce demands of every survivor that it took part in the round and trained once.
func (d *director) trainedOnce(in int, c committedView) error {
	if missing := missing(refs(d.survivors()), c.Participants); len(missing) > 0 {
		return fmt.Errorf("round %d was committed without %s", in, strings.Join(missing, " "))
	}
	for _, n := range d.survivors() {
		if err := d.awaitJob(n, fmt.Sprintf("its view of round %d", in), func(v jobView) (bool, error) {
			if _, ok := v.committed(in); !ok {
				return false, nil
			}
			if times := v.times(in); times != 1 {
				return false, fmt.Errorf("it trained %d times for round %d, want once", times, in)
			}
			return true, nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// awaitJob awaits something of the job as one node sees it.
func (d *director) awaitJob(n node, what string, ready func(jobView) (bool, error)) error {
	return d.await(wait{what: n.ref() + ": " + what, within: roundGrace, log: d.lay.nodeLog(n),
		probe: func(ctx context.Context) (bool, string, error) {
			var v jobView
			err := d.run.runJSON(ctx, &v, d.meshnode("job", "show", d.jobID, "--node", d.lay.socket(n), "--json")...)
			if err != nil {
				return false, "", err
			}
			ok, err := ready(v)
			return ok, v.summary(), err
		}})
}

// mourned waits until another node says that the killed one is out.
func (d *director) mourned(n node) error {
	witness := d.survivors()[0]
	var seen peerView
	if err := d.awaitNode(witness, "word that "+n.ref()+" is gone", evictDeadline, func(v nodeView) (bool, string) {
		p, ok := v.peer(n.ref())
		seen = p
		return ok && p.State != "connected", fmt.Sprintf("%s is %q there", n.ref(), p.State)
	}); err != nil {
		return err
	}
	said := seen.State
	if !seen.Since.IsZero() {
		said += " since " + seen.Since.Format(time.RFC3339)
	}
	if seen.Note != "" {
		said += ", " + seen.Note
	}
	d.say.step(fmt.Sprintf("%s stays out; %s says of it: %s", n.ref(), witness.ref(), said),
		d.hand("peers", "--node", d.lay.socket(witness)))
	return nil
}

// complete waits for the last round and for every survivor to hold the same model.
func (d *director) complete() error {
	if err := d.watch.until("the last round", d.pace(d.opts.Rounds), func(v jobView) bool { return v.State == "done" }); err != nil {
		return err
	}
	roots := map[string][]string{}
	for _, n := range d.survivors() {
		if err := d.awaitJob(n, "the finished job", func(v jobView) (bool, error) {
			d.report.ModelRoot = v.ModelRoot
			return v.State == "done" && v.ModelRoot != "", nil
		}); err != nil {
			return err
		}
		roots[d.report.ModelRoot] = append(roots[d.report.ModelRoot], n.ref())
	}
	if len(roots) != 1 {
		return fmt.Errorf("the surviving nodes hold different models: %v", roots)
	}
	if err := d.measure(); err != nil {
		return err
	}
	d.say.step(fmt.Sprintf("job done; %d surviving nodes hold the same model, root %s", len(d.survivors()), short(d.report.ModelRoot)),
		d.hand("job", "show", d.jobID, "--node", d.lay.socket(d.survivors()[0])))
	d.say.detail("accuracy by round: %.3f", d.report.Accuracy)
	return nil
}

// measure waits until one survivor knows the accuracy of every round. A node measures
// after the commit, and only the models that it could fetch.
func (d *director) measure() error {
	survivors := d.survivors()
	turn := 0
	return d.await(wait{what: "the accuracy of every round", within: roundGrace, log: d.lay.nodeLog(survivors[0]),
		probe: func(ctx context.Context) (bool, string, error) {
			n := survivors[turn%len(survivors)]
			turn++
			var v jobView
			if err := d.run.runJSON(ctx, &v, d.meshnode("job", "show", d.jobID, "--node", d.lay.socket(n), "--json")...); err != nil {
				return false, "", err
			}
			d.report.Accuracy = v.accuracies()
			if len(d.report.Accuracy) != d.opts.Rounds {
				return false, n.ref() + ": " + v.summary(), nil
			}
			d.watch.finish(v)
			return true, "", nil
		}})
}

// finish tells what the follower, which ends with the job, was too early for.
func (w *watch) finish(v jobView) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.view = v
	w.tellCommitted(true)
}

func refs(nodes []node) []string {
	out := make([]string, len(nodes))
	for i, n := range nodes {
		out[i] = n.ref()
	}
	return out
}

// proc returns the process of a node.
func (d *director) proc(ref string) *process {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.procs[ref]
}
