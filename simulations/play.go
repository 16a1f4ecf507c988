package simulations

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/mesh/meshtest/memtransport"
	"github.com/attestmesh/meshnode/node"
)

// Options change how a scenario is played. The zero value plays it quietly.
type Options struct {
	// StaleReads makes clients read a node's own view: a planted bug that History.Check
	// must find.
	StaleReads bool
	// Log, if set, gets one line for each command, with virtual time.
	Log func(line string)
	// NodeLog, if set, gets what the nodes log.
	NodeLog *slog.Logger

	// hardware is what the nodes run on; nil for sim platforms.
	hardware *hardware
	// A test's: before the first node starts, and after the last step while all run.
	prepare func(*world)
	then    func(*player) error
}

// Result is what a scenario leaves behind. History still has to be checked, outside the
// bubble.
type Result struct {
	History *History
	// Virtual is how long it took by the bubble's clock.
	Virtual time.Duration
	// Evicted is the longest time from a proposal to a closed link that a line "expect
	// closed" saw.
	Evicted time.Duration
}

// player plays one script.
type player struct {
	world   *world
	clients *clients
	names   map[string]string // given by the command name
	seed    uint64
	log     func(line string)
	result  *Result
	// suspended is the last suspension.
	suspended consensus.SuspensionID
}

// run runs the steps of a script in order.
func (p *player) run(s *Script) error {
	for _, step := range s.steps {
		p.log(step.text)
		if err := step.run(p); err != nil {
			return fmt.Errorf("%s:%d: seed %d: %s: %w", s.name, step.line, p.seed, step.text, err)
		}
	}
	return nil
}

// Play plays the scenario once. It must be called in a testing/synctest bubble, and has
// ended all that it started when it returns. The error names the line that failed.
func (s *Script) Play(seed uint64, opts Options) (_ *Result, err error) {
	memtransport.Epoch()
	start := time.Now()
	w, err := newWorld(s.orgs, s.releases, seed, opts)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	w.keep = s.keep
	if opts.prepare != nil {
		opts.prepare(w)
	}
	p := &player{world: w, seed: seed, names: map[string]string{}, result: &Result{History: newHistory(start)}}
	defer func() {
		p.quiet()
		p.heal()
		for _, h := range w.hosts {
			if e := h.stop(); e != nil {
				err = errors.Join(err, fmt.Errorf("%s: %s ended with: %w", s.name, h.name, e))
			}
		}
		time.Sleep(time.Second) // net/http finishes dials that nobody waits for any more
	}()
	p.log = func(line string) {
		if opts.Log != nil {
			opts.Log(fmt.Sprintf("%9.3fs  %s", time.Since(start).Seconds(), line))
		}
	}
	if err := p.run(s); err != nil {
		return nil, err
	}
	if opts.then != nil {
		if err := opts.then(p); err != nil {
			return nil, fmt.Errorf("%s: seed %d: %w", s.name, seed, err)
		}
	}
	p.result.Virtual = time.Since(start)
	if err := errors.Join(p.nothingLost(), w.watch.err()); err != nil {
		return nil, fmt.Errorf("%s: seed %d: %w", s.name, seed, err)
	}
	return p.result, nil
}

// nodes resolves names; "leader" and "rest" depend on the moment. taken are nodes that
// "rest" does not mean.
func (p *player) nodes(names []string, taken ...string) ([]*host, error) {
	var out []*host
	for _, name := range names {
		if but, ok := strings.CutPrefix(name, "-"); ok {
			taken = append(slices.Clone(taken), p.real(but))
			continue
		}
		switch name = p.real(name); name {
		case "rest":
		case "leader":
			h, err := p.leader()
			if err != nil {
				return nil, err
			}
			out = append(out, h)
		default:
			h, err := p.world.host(name)
			if err != nil {
				return nil, err
			}
			out = append(out, h)
		}
	}
	if !slices.Contains(names, "rest") {
		return out, nil
	}
	for _, h := range p.world.running() {
		if !slices.Contains(out, h) && !slices.Contains(taken, h.name) {
			out = append(out, h)
		}
	}
	return out, nil
}

// real is the name of a node that the script gave another one.
func (p *player) real(name string) string {
	if n, ok := p.names[name]; ok {
		return n
	}
	return name
}

// leader waits for the node that leads in the highest term.
func (p *player) leader() (*host, error) {
	var leader *host
	err := p.expect(func(p *player) error {
		var term uint64
		for _, h := range p.world.running() {
			s, err := h.status()
			if err == nil && s.Raft.State == string(replica.Leader) && s.Raft.Term > term {
				leader, term = h, s.Raft.Term
			}
		}
		if leader == nil {
			return errors.New("no node leads")
		}
		return nil
	}, expectWithin)
	return leader, err
}

// name gives a node another name, for the rest of the script.
func (p *player) name(word, name string) error {
	hosts, err := p.nodes([]string{name})
	if err == nil {
		p.names[word] = hosts[0].name
	}
	return err
}

// expect repeats a check until it holds, for limit.
func (p *player) expect(check func(*player) error, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		err := check(p)
		if err == nil || !time.Now().Before(deadline) {
			return err
		}
		time.Sleep(pollEvery)
	}
}

// end ends a node: by its own word, or parted from everybody first.
func (p *player) end(name string, crash bool) error {
	hosts, err := p.nodes([]string{name})
	if err != nil {
		return err
	}
	gone := hosts[0]
	if crash {
		for _, h := range p.world.hosts {
			if h != gone {
				p.world.wire.Silence(h.machine, gone.machine)
				p.world.parted = append(p.world.parted, [2]string{h.machine, gone.machine})
			}
		}
	}
	return gone.stop()
}

// part parts every pair of hosts from different groups.
func (p *player) part(how string, groups [][]string) error {
	var named []string
	resolved := make([][]*host, len(groups))
	for _, rest := range []bool{false, true} { // "rest" needs to know the others
		for i, g := range groups {
			if slices.Contains(g, "rest") != rest {
				continue
			}
			hosts, err := p.nodes(g, named...)
			if err != nil {
				return err
			}
			resolved[i] = hosts
			for _, h := range hosts {
				named = append(named, h.name)
			}
		}
	}
	do := p.world.wire.Silence
	if how == "cut" {
		do = p.world.wire.Cut
	}
	for i, g := range resolved {
		for _, other := range resolved[:i] {
			for _, a := range g {
				for _, b := range other {
					do(a.machine, b.machine)
					p.world.parted = append(p.world.parted, [2]string{a.machine, b.machine})
				}
			}
		}
	}
	return nil
}

func (p *player) heal() {
	for _, pair := range p.world.parted {
		p.world.wire.Heal(pair[0], pair[1])
	}
	p.world.parted = nil
}

// propose has the mesh decide about a release through one node.
func (p *player) propose(how, release string, orgs []string, at, refused string) error {
	hosts, err := p.nodes([]string{at})
	if err != nil {
		return err
	}
	if of, ok := strings.CutPrefix(release, "of:"); ok {
		runs, err := p.nodes([]string{of})
		if err != nil {
			return err
		}
		release = runs[0].release
	}
	action := remove(release)
	if how == "add" {
		if action, err = add(release); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	view, err := hosts[0].policy(ctx)
	if err != nil {
		return err
	}
	p.world.nonces++
	raw, err := p.world.proposal(fmt.Sprint("propose ", p.world.nonces), view.Base, orgs, action)
	if err != nil {
		return err
	}
	p.world.proposed = time.Now()
	_, err = hosts[0].propose(ctx, raw)
	return wantRefused(err, refused)
}

// wantRefused returns nil if err is what a script expects: nil, or a refusal with a code.
func wantRefused(err error, code string) error {
	var no *refusedError
	switch {
	case err == nil && code != "":
		return fmt.Errorf("accepted, want it refused with code %s", code)
	case errors.As(err, &no) && no.code == code:
		return nil
	}
	return err
}

// suspend has one organisation suspend a node, if target names one, or a release.
func (p *player) suspend(target string, d time.Duration, org, at, refused string) error {
	hosts, err := p.nodes([]string{at})
	if err != nil {
		return err
	}
	release := ""
	if target = p.real(target); !strings.Contains(target, "/") {
		release, target = target, ""
	}
	p.world.nonces++
	raw, id, err := p.world.suspension(fmt.Sprint("suspend ", p.world.nonces), org, release, target, d)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	p.suspended, p.world.proposed = id, time.Now()
	_, err = hosts[0].submit(ctx, "/v1/suspensions", raw)
	return wantRefused(err, refused)
}

// lift has organisations lift the last suspension.
func (p *player) lift(orgs []string, at, refused string) error {
	hosts, err := p.nodes([]string{at})
	if err != nil {
		return err
	}
	raw, err := p.world.lift(p.suspended, orgs)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	_, err = hosts[0].submit(ctx, "/v1/lifts", raw)
	return wantRefused(err, refused)
}

func (p *player) startClients(n int) error {
	if p.clients != nil {
		return errors.New("clients run already")
	}
	p.clients = startClients(p.world, p.result.History, n)
	return nil
}

func (p *player) quiet() {
	if p.clients != nil {
		p.clients.stop()
		p.clients = nil
	}
}

// nothingLost looks for every acknowledged swap in the policy as it ended.
func (p *player) nothingLost() error {
	leader, err := p.leader()
	if err != nil {
		return err
	}
	view, err := leader.policy(context.Background())
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, e := range slices.Concat(view.Entries, view.Revoked) {
		have[e.Measurement] = true
	}
	for _, release := range p.result.History.acknowledged() {
		if e, err := entryOf(release); err != nil || !have[e.Measurement] {
			return fmt.Errorf("acknowledged release %s is in no policy", release)
		}
	}
	return nil
}

// statuses resolves names as nodes does and asks each node.
func (p *player) statuses(names []string, taken ...string) ([]node.Status, error) {
	hosts, err := p.nodes(names, taken...)
	if err != nil {
		return nil, err
	}
	return statuses(hosts)
}

// statuses asks each node.
func statuses(hosts []*host) ([]node.Status, error) {
	var out []node.Status
	for _, h := range hosts {
		s, err := h.status()
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}
