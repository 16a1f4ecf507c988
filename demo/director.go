package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// director plays one story. It is used by one goroutine; what the job watcher and the
// reaper touch says so.
type director struct {
	opts   Options
	plan   plan
	lay    layout
	report *Report
	say    *narrator // safe for concurrent use

	parent  context.Context         // the caller's: ends at Ctrl-C
	ctx     context.Context         // ends with parent, or with the reason to give up
	giveUp  context.CancelCauseFunc // safe for concurrent use
	serving atomic.Bool             // deaths are told, not fatal

	sup     *supervisor
	run     *runner
	logFile *os.File
	step    string // what is being done, for errors

	mu        sync.Mutex
	procs     map[string]*process      // guarded by mu: nodes by ref
	enrollers map[string]enrollerReady // guarded by mu while they start

	measurements map[string]string // by release
	ports        map[string]nodePorts
	sim          simReady
	data         splitView
	job          jobPlan
	jobID        string
	watch        *watch
	baselines    chan baselineResult
	helpers      sync.WaitGroup // the goroutines beside the story
	killed       string         // ref of the node sent SIGKILL
}

// nodePorts are the two ports of one node.
type nodePorts struct{ mesh, public *port }

// newDirector prepares a story; finish must be called.
func newDirector(parent context.Context, o Options, p plan, lay layout) (*director, error) {
	f, err := os.OpenFile(lay.commands(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	d := &director{opts: o, plan: p, lay: lay, report: newReport(o), logFile: f, parent: parent,
		measurements: map[string]string{}, procs: map[string]*process{}, ports: map[string]nodePorts{}, enrollers: map[string]enrollerReady{}}
	d.ctx, d.giveUp = context.WithCancelCause(parent)
	d.sup = newSupervisor(d.died)
	d.run = &runner{sup: d.sup, log: &lockedWriter{w: f}}
	d.say = &narrator{started: time.Now(), lines: o.Stdout, live: o.Progress, onBreak: d.giveUp}
	if o.JSON {
		d.say.lines = io.Discard
		if o.Progress != nil {
			d.say.lines = o.Progress
		}
	}
	return d, nil
}

// died is called by the reaper when a process ended unasked.
func (d *director) died(p *process) {
	if d.serving.Load() {
		d.say.line("%s ended: %s; ask another node what it makes of that", p.name, p.fate())
		return
	}
	d.giveUp(fmt.Errorf("%s (pid %d) ended unexpectedly: %s; its log %s ends:\n%s", p.name, p.pid, p.fate(), p.log, logTail(p.log)))
}

// act is one step of the story: do checks its claim and tells it.
type act struct {
	title string
	do    func() error
}

// play goes through the story and returns the first claim that did not hold.
func (d *director) play() error {
	for _, a := range d.acts() {
		d.step = a.title
		d.say.waiting(a.title + " …")
		if err := a.do(); err != nil {
			// What ended the story matters more than the wait it ended.
			if cause := context.Cause(d.ctx); cause != nil {
				err = cause
			}
			return &StepError{Step: a.title, Dir: d.lay.dir, Err: err}
		}
	}
	return nil
}

// finish tells the outcome, holds the mesh up where that is asked for, stops every process
// and removes the directory or says where it is.
func (d *director) finish(err error) error {
	d.say.clear()
	interrupted := d.parent.Err() != nil
	if err == nil && !interrupted {
		d.report.OK = true
	}
	d.report.Seconds = round(time.Since(d.say.started).Seconds(), 1)
	keep := d.opts.Keep || d.opts.Dir != "" || (err != nil && !interrupted)
	if keep || d.opts.Serve {
		d.report.Directory = d.lay.dir
	}
	if err != nil && !interrupted {
		d.keepEvidence()
	}
	err = errors.Join(err, d.tell(err, interrupted))
	if d.opts.Serve && err == nil {
		d.serve()
	}
	interrupted = d.parent.Err() != nil
	left := d.clean(keep)
	if !interrupted {
		return errors.Join(err, left)
	}
	if keep {
		d.say.plain(d.lookAround())
	}
	return errors.Join(d.parent.Err(), left)
}

// clean leaves no process and, unless it is to be kept, no directory.
func (d *director) clean(keep bool) error {
	var left error
	d.giveUp(errStopped)
	for _, p := range d.sup.stop(stopGrace) {
		left = errors.Join(left, fmt.Errorf("%s (pid %d) does not die", p.name, p.pid))
	}
	d.helpers.Wait()
	for _, p := range d.ports {
		p.mesh.release()
		p.public.release()
	}
	left = errors.Join(left, d.logFile.Close())
	if !keep {
		left = errors.Join(left, os.RemoveAll(d.lay.dir))
	}
	return left
}

// tell prints the table, or the report.
func (d *director) tell(err error, interrupted bool) error {
	if interrupted {
		return nil
	}
	var failed *StepError
	if errors.As(err, &failed) {
		d.report.Error = &Failure{Code: "demo_failed", Step: failed.Step, Message: failed.Error(), Remedy: "read the logs in " + d.lay.dir}
	}
	if d.opts.JSON {
		enc := json.NewEncoder(d.opts.Stdout)
		enc.SetEscapeHTML(false)
		return enc.Encode(d.report)
	}
	if err != nil {
		return nil // the caller prints it
	}
	d.say.plain("\n" + renderTable(d.report.table))
	d.say.plain("\n" + d.report.summary())
	if d.opts.Keep || d.opts.Dir != "" || d.opts.Serve {
		d.say.plain("\n" + d.lookAround())
	}
	return nil
}

// serve holds everything up until the caller's context ends.
func (d *director) serve() {
	d.serving.Store(true)
	d.say.plain("\nThe mesh stays up until Ctrl-C. Sockets and first questions:")
	for _, n := range d.plan.all() {
		if n.ref() == d.killed {
			d.say.detail("%-12s killed in the story", n.ref())
			continue
		}
		d.say.detail("%-12s pid %-8d %s", n.ref(), d.proc(n.ref()).pid, d.hand("status", "--node", d.lay.socket(n)))
	}
	n := d.survivors()[0]
	d.say.detail("%s", d.hand("peers", "--node", d.lay.socket(n)))
	d.say.detail("%s", d.hand("policy", "show", "--node", d.lay.socket(n)))
	d.say.detail("kill -9 PID, then ask another node's status")
	<-d.parent.Done()
	d.say.line("stopping")
}

// lookAround says what a kept directory is good for.
func (d *director) lookAround() string {
	last := "  rm -r " + quote(d.lay.dir)
	if d.opts.Dir == "" && !d.opts.Keep && d.report.OK {
		last = "  (removed at Ctrl-C; --keep keeps it)"
	}
	return strings.Join([]string{
		"Everything is in " + d.lay.dir + ":",
		"  " + d.hand("log", "audit", d.lay.log(), "--genesis", d.lay.genesis()),
		"  " + d.hand("job", "verify", d.lay.job()),
		"  " + d.hand("genesis", "show", d.lay.genesis()),
		"  less " + quote(filepath.Join(d.lay.dir, "nodes")) + "/*/node.log   " + quote(d.lay.commands()),
		last,
	}, "\n")
}

// meshnode returns the argv of one subcommand, run by the current release.
func (d *director) meshnode(args ...string) []string {
	return append([]string{d.lay.exe(releaseCurrent)}, args...)
}

// hand writes the same for a person's shell.
func (d *director) hand(args ...string) string { return quoteCommand(d.meshnode(args...)) }

// survivors returns the nodes that are neither evicted nor killed, seats first.
func (d *director) survivors() []node {
	return slices.DeleteFunc(d.plan.all(), func(n node) bool {
		return n.ref() == d.killed || (len(d.report.Evicted) > 0 && n.ref() == d.plan.evicted)
	})
}

// find returns a node of the plan by its stable name.
func (d *director) find(ref string) (node, bool) {
	all := d.plan.all()
	i := slices.IndexFunc(all, func(n node) bool { return n.ref() == ref })
	if i < 0 {
		return node{}, false
	}
	return all[i], true
}

// wait is one thing awaited: probe is asked until it says yes, fails or the time is up.
type wait struct {
	what   string
	within time.Duration
	log    string // of the process concerned, for the error
	probe  func(context.Context) (done bool, seen string, err error)
}

// pollEvery is the pause between two questions. Each starts a process, so it is a
// compromise between the story's pace and the cores that the mesh itself needs.
const pollEvery = 250 * time.Millisecond

// await polls until the awaited is there.
func (d *director) await(w wait) error {
	ctx, cancel := context.WithTimeout(d.ctx, w.within)
	defer cancel()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	seen := "nothing"
	for {
		done, now, err := w.probe(ctx)
		if cause := context.Cause(d.ctx); cause != nil {
			return cause
		}
		if ctx.Err() == nil {
			if err != nil {
				return fmt.Errorf("%s: %w", w.what, err)
			}
			if done {
				return nil
			}
			seen = now
		}
		d.say.waiting(d.step + ": waiting for " + w.what + "; " + seen)
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if cause := context.Cause(d.ctx); cause != nil {
				return cause
			}
			return fmt.Errorf("waited %s for %s; last seen: %s; %s ends:\n%s", w.within, w.what, seen, w.log, logTail(w.log))
		}
	}
}

// awaitNode awaits something of one node's own status.
func (d *director) awaitNode(n node, what string, within time.Duration, ready func(nodeView) (bool, string)) error {
	return d.await(wait{what: n.ref() + ": " + what, within: within, log: d.lay.nodeLog(n),
		probe: func(ctx context.Context) (bool, string, error) {
			v, err := d.status(ctx, n)
			if exitCode(err) == exitUnavailable {
				return false, "it does not answer yet", nil
			}
			if err != nil {
				return false, "", err
			}
			ok, seen := ready(v)
			if seen == "" {
				seen = v.summary()
			}
			return ok, seen, nil
		}})
}

// exitUnavailable is what meshnode's commands end with when nobody answers (DESIGN §10).
const exitUnavailable = 3

// status asks one node for its own view.
func (d *director) status(ctx context.Context, n node) (nodeView, error) {
	var v nodeView
	return v, d.run.runJSON(ctx, &v, d.meshnode("status", "--node", d.lay.socket(n), "--json")...)
}
