package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Deadlines of the first half; the machine may be slow and busy.
const (
	readyDeadline = 20 * time.Second // a process prints its ready line
	foundDeadline = 60 * time.Second // the founders have bootstrapped and published
	denyDeadline  = 30 * time.Second // the newcomer has been refused
)

// drawnRows is how many digit images are drawn without --data: as many as in the UCI
// test set that people compare with.
const drawnRows = 1797

type simReady struct {
	Socket string `json:"socket"`
	Root   string `json:"root"`
}

type enrollerReady struct {
	URL  string `json:"url"`
	SPKI string `json:"spki"`
}

type nodeReady struct {
	Node   string `json:"node"`
	Peer   string `json:"peer"`
	Socket string `json:"socket"`
	Public string `json:"public"`
}

type splitView struct {
	Features int      `json:"features"`
	Labels   []string `json:"labels"`
	Nodes    []struct {
		Rows int `json:"rows"`
	} `json:"nodes"`
	Holdout struct {
		Rows int `json:"rows"`
	} `json:"holdout"`
}

// daemon starts a long-running process whose first line of output says that it is ready,
// and decodes that line into ready.
func (d *director) daemon(name, log string, argv []string, ready any) (*process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the child has its own
	first := make(chan []byte, 1)
	var once sync.Once
	out := &lineWriter{each: func(line []byte) { once.Do(func() { first <- bytes.Clone(line) }) }}
	p, err := d.sup.start(spec{name: name, argv: argv, stdout: out, stderr: f, log: log, daemon: true})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(d.ctx, readyDeadline)
	defer cancel()
	select {
	case line := <-first:
		return p, decodeOutput(argv, line, ready)
	case <-p.done:
		return nil, fmt.Errorf("%s ended before it was ready: %s; its log %s ends:\n%s", name, p.fate(), log, logTail(log))
	case <-ctx.Done():
		if cause := context.Cause(d.ctx); cause != nil {
			return nil, cause
		}
		return nil, fmt.Errorf("waited %s for the ready line of %s; its log %s ends:\n%s", readyDeadline, name, log, logTail(log))
	}
}

// releases makes the three executables and measures them.
func (d *director) releases() error {
	for _, release := range []string{releaseCurrent, releaseOlder, releaseNext} {
		stamp := ""
		if release != releaseCurrent {
			stamp = "\nmeshnode demo build stamp: " + release + "\n"
		}
		if err := copyExecutable(d.opts.Executable, d.lay.exe(release), stamp); err != nil {
			return err
		}
	}
	for _, release := range []string{releaseCurrent, releaseOlder, releaseNext} {
		var v struct{ Measurement string }
		if err := d.run.runJSON(d.ctx, &v, d.lay.exe(release), "version", "--json"); err != nil {
			return err
		}
		d.measurements[release] = v.Measurement
	}
	if m := d.measurements; m[releaseCurrent] == m[releaseOlder] || m[releaseCurrent] == m[releaseNext] || m[releaseOlder] == m[releaseNext] {
		return fmt.Errorf("the three executables must have three measurements, got %v", m)
	}
	d.say.step("three releases of this executable: current, older, next",
		quoteCommand([]string{d.lay.exe(releaseOlder), "version", "--json"}))
	return nil
}

// copyExecutable copies a program and appends a stamp, which the loader does not look at
// but a measurement of the file covers.
func copyExecutable(from, to, stamp string) (err error) {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	_, err = io.WriteString(out, stamp)
	return err
}

// simPlatform starts the one simulated thing: what a TEE's platform would do.
func (d *director) simPlatform() error {
	if err := os.MkdirAll(d.lay.sim(), 0o700); err != nil {
		return err
	}
	argv := d.meshnode("sim-platform", "--dir", d.lay.sim(), "--json")
	if _, err := d.daemon("sim-platform", d.lay.simLog(), argv, &d.sim); err != nil {
		return err
	}
	d.say.step("a simulated TEE platform measures every executable that connects", quoteCommand(argv))
	return nil
}

// keys makes two keys for each organisation: one a person decides with, one the enroller
// works with.
func (d *director) keys() error {
	if err := os.MkdirAll(d.lay.path("keys"), 0o700); err != nil {
		return err
	}
	err := inParallel(len(d.plan.orgs), func(i int) error {
		return errors.Join(d.key(d.plan.orgs[i], "govern"), d.key(d.plan.orgs[i], "enroll"))
	})
	if err != nil {
		return err
	}
	var hand []string
	for _, org := range d.plan.orgs {
		hand = append(hand, quoteCommand(d.keyCommand(org, "govern")), quoteCommand(d.keyCommand(org, "enroll")))
	}
	d.say.step(fmt.Sprintf("%d organisations make two keys each: to govern with, to enrol nodes with", d.plan.seats()), hand...)
	return nil
}

func (d *director) keyCommand(org, role string) []string {
	return d.meshnode("keygen", "--role", role, "-o", d.lay.key(org, role), "--json")
}

func (d *director) key(org, role string) error {
	var v struct{ Public string }
	if err := d.run.runJSON(d.ctx, &v, d.keyCommand(org, role)...); err != nil {
		return err
	}
	// Genesis is made of public keys alone; each organisation hands its own over.
	return os.WriteFile(d.lay.public(org, role), []byte(v.Public), 0o600)
}

// inParallel calls do for 0 to n-1, two at a time: the commands are short and mostly
// start-up. After a failure nothing new begins.
func inParallel(n int, do func(i int) error) error {
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	slots := make(chan struct{}, 2)
	for i := range n {
		slots <- struct{}{}
		if failed.Load() != nil {
			break
		}
		wg.Go(func() {
			if err := do(i); err != nil {
				failed.CompareAndSwap(nil, &err)
			}
			<-slots
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// genesis writes what the organisations agree on and has each of them sign it.
func (d *director) genesis() error {
	sim := []string{"sim"}
	spec := genesisSpec{Name: "demo", Origin: "sim.meshnode.example/demo", Store: "memory", AllowSim: true,
		Kinds: map[string][]string{"member": sim, "seat": sim, "aggregator": sim},
		Roots: map[string][]string{"sim": {d.sim.Root}}}
	for _, org := range d.plan.orgs {
		o := genesisOrg{ID: org}
		for _, role := range []string{"govern", "enroll"} {
			public, err := os.ReadFile(d.lay.public(org, role))
			if err != nil {
				return err
			}
			o.Keys = append(o.Keys, genesisKey{role, string(public)})
		}
		spec.Organisations = append(spec.Organisations, o)
	}
	for _, release := range []string{releaseCurrent, releaseOlder} {
		spec.Entries = append(spec.Entries, entrySpec{"sim", d.measurements[release], d.plan.roles(release)})
	}
	if err := writeYAML(d.lay.genesisSpec(), spec); err != nil {
		return err
	}
	made := d.meshnode("genesis", "new", d.lay.genesisSpec(), "-o", d.lay.genesis())
	if _, err := d.run.run(d.ctx, made...); err != nil {
		return err
	}
	hand := []string{quoteCommand(made)}
	for _, org := range d.plan.orgs {
		sign := d.meshnode("genesis", "sign", d.lay.genesis(), "--key", d.lay.key(org, "govern"))
		if _, err := d.run.run(d.ctx, sign...); err != nil {
			return err
		}
		hand = append(hand, quoteCommand(sign))
	}
	var shown struct {
		Complete bool     `json:"complete"`
		Signed   []string `json:"signed"`
	}
	if err := d.run.runJSON(d.ctx, &shown, d.meshnode("genesis", "show", d.lay.genesis(), "--json")...); err != nil {
		return err
	}
	if !shown.Complete || len(shown.Signed) != d.plan.seats() {
		return fmt.Errorf("genesis is signed by %v, want every organisation's signature", shown.Signed)
	}
	d.say.step(fmt.Sprintf("genesis signed by %d keys; it allows releases current and older", d.plan.seats()),
		append(hand, d.hand("genesis", "show", d.lay.genesis()))...)
	return nil
}

// enroll starts an enroller for each organisation, with the releases it vouches for and
// the nodes it runs.
func (d *director) enroll() error {
	err := inParallel(len(d.plan.orgs), func(i int) error {
		org := d.plan.orgs[i]
		if err := d.writeReleases(org); err != nil {
			return err
		}
		var ready enrollerReady
		if _, err := d.daemon("enroller "+org, filepath.Join(d.lay.enroller(org), "enroller.log"), d.enrollCommand(org), &ready); err != nil {
			return err
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.enrollers[org] = ready
		return nil
	})
	if err != nil {
		return err
	}
	var hand []string
	for _, org := range d.plan.orgs {
		hand = append(hand, quoteCommand(d.enrollCommand(org)))
	}
	d.say.step(fmt.Sprintf("%d enrollers, each with its own organisation's releases and nodes", d.plan.seats()), hand...)
	return nil
}

func (d *director) enrollCommand(org string) []string {
	return d.meshnode("enroll", "serve", "--genesis", d.lay.genesis(), "--key", d.lay.key(org, "enroll"),
		"--releases", d.lay.releases(org), "--dir", filepath.Join(d.lay.enroller(org), "state"), "--listen", "127.0.0.1:0", "--json")
}

func (d *director) writeReleases(org string) error {
	type nodeLine struct {
		Name  string   `yaml:"name"`
		Roles []string `yaml:"roles"`
	}
	var list struct {
		Releases []entrySpec `yaml:"releases"`
		Nodes    []nodeLine  `yaml:"nodes"`
	}
	for _, release := range d.plan.releases(org) {
		list.Releases = append(list.Releases, entrySpec{"sim", d.measurements[release], d.plan.roles(release)})
	}
	for _, n := range d.plan.of(org) {
		list.Nodes = append(list.Nodes, nodeLine{n.name, n.roles})
	}
	if err := os.MkdirAll(d.lay.enroller(org), 0o700); err != nil {
		return err
	}
	return writeYAML(d.lay.releases(org), list)
}

// splitCommand splits the data over founders and newcomer.
func splitCommand(exe, data string, p plan, out string) []string {
	argv := []string{exe, "job", "split"}
	if data == "" {
		argv = append(argv, "--draw", strconv.Itoa(drawnRows))
	} else {
		argv = append(argv, data)
	}
	return append(argv, "--nodes", strconv.Itoa(len(p.all())), "--alpha", "0.5", "--seed", strconv.Itoa(seed), "--out", out, "--json")
}

// split gives every node its own data, skewed by label.
func (d *director) split() error {
	argv := splitCommand(d.lay.exe(releaseCurrent), d.opts.Data, d.plan, d.lay.data())
	if err := d.run.runJSON(d.ctx, &d.data, argv...); err != nil {
		return err
	}
	rows := make([]string, len(d.data.Nodes))
	total := 0
	for i, n := range d.data.Nodes {
		rows[i] = strconv.Itoa(n.Rows)
		total += n.Rows
	}
	d.job = newJobPlan(d.opts.Rounds, total, len(d.data.Nodes))
	if err := d.writeJob(); err != nil {
		return err
	}
	d.startBaselines()
	d.say.step(fmt.Sprintf("data split by label over %d nodes (%s rows), %d held out", len(rows), strings.Join(rows, " "), d.data.Holdout.Rows),
		quoteCommand(argv))
	return nil
}

// writeConfig writes one node's configuration. Everybody is told the founders' public
// URLs; the newcomer is known to nobody before it dials.
func (d *director) writeConfig(n node) error {
	c := nodeConfig{Genesis: d.lay.genesis(), Organisation: n.org, Node: n.name, Roles: n.roles, Data: d.lay.node(n),
		Listen: []string{d.ports[n.ref()].mesh.multiaddr()}, Public: d.ports[n.ref()].public.address(),
		Enroller: map[string]string{"url": d.enrollers[n.org].URL, "spki": d.enrollers[n.org].SPKI},
		Attester: map[string]string{"sim": d.sim.Socket},
		Training: map[string]string{"data": d.lay.part(n.part), "holdout": d.lay.holdout()}}
	for _, peer := range d.plan.founders {
		if peer.ref() != n.ref() {
			c.Peers = append(c.Peers, d.publicURL(peer))
		}
	}
	if err := os.MkdirAll(d.lay.node(n), 0o700); err != nil {
		return err
	}
	return writeYAML(d.lay.config(n), c)
}

func (d *director) publicURL(n node) string { return "http://" + d.ports[n.ref()].public.address() }

func (d *director) runCommand(n node) []string {
	return []string{d.lay.exe(n.release), "run", "--config", d.lay.config(n), "--json"}
}

// startNode writes one node's configuration and starts it on its reserved ports.
func (d *director) startNode(n node) error {
	if err := d.writeConfig(n); err != nil {
		return err
	}
	ports := d.ports[n.ref()]
	ports.mesh.release()
	ports.public.release()
	var ready nodeReady
	p, err := d.daemon(n.ref(), d.lay.nodeLog(n), d.runCommand(n), &ready)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.procs[n.ref()] = p
	return nil
}

// found starts the founders and waits until each of them says that the mesh stands.
func (d *director) found() error {
	for _, n := range d.plan.all() {
		mesh, err := reservePort()
		if err != nil {
			return err
		}
		public, err := reservePort()
		if err != nil {
			mesh.release()
			return err
		}
		d.ports[n.ref()] = nodePorts{mesh, public}
	}
	if err := inParallel(len(d.plan.founders), func(i int) error { return d.startNode(d.plan.founders[i]) }); err != nil {
		return err
	}
	var hand []string
	for _, n := range d.plan.founders {
		hand = append(hand, quoteCommand(d.runCommand(n)))
	}
	for _, n := range d.plan.founders {
		if err := d.awaitNode(n, "membership, every seat and a published log", foundDeadline, func(v nodeView) (bool, string) {
			return v.Phase == "member" && v.Started && v.published() && v.connected() >= len(d.plan.founders)-1 &&
				(!n.seat || len(v.Raft.Voters) == d.plan.seats()), ""
		}); err != nil {
			return err
		}
	}
	d.say.step(fmt.Sprintf("%d nodes attest each other; Bootstrap, %d seats, log published", len(d.plan.founders), d.plan.seats()),
		append(hand, d.hand("status", "--node", d.lay.socket(d.plan.founders[0])))...)
	return nil
}

// deny starts the newcomer, whose executable nobody approved.
func (d *director) deny() error {
	n := d.plan.newcomer
	if err := d.startNode(n); err != nil {
		return err
	}
	var why reason
	if err := d.awaitNode(n, "its refusal", denyDeadline, func(v nodeView) (bool, string) {
		if v.Phase == "member" {
			return true, ""
		}
		r, ok := v.refusal()
		why = r
		return ok && v.Phase == "refused", ""
	}); err != nil {
		return err
	}
	if want := "measurement_not_allowed"; why.Code != want {
		return fmt.Errorf("%s must be refused with code %s, got %q (%s)", n.ref(), want, why.Code, why)
	}
	for _, f := range d.plan.founders {
		v, err := d.status(d.ctx, f)
		if err != nil {
			return err
		}
		if p, ok := v.peer(n.ref()); ok && p.State == "connected" {
			return fmt.Errorf("%s is refused by others but connected to %s", n.ref(), f.ref())
		}
	}
	d.report.Denied = append(d.report.Denied, Fate{n.ref(), d.measurements[n.release], why.Code, why.Got, why.Want, why.Remedy})
	d.say.step(fmt.Sprintf("%s runs an executable nobody approved and is denied", n.ref()), quoteCommand(d.runCommand(n)))
	d.say.detail("code   %s\ngot    %s\nwant   %s\nremedy %s", why.Code, why.Got, why.Want, why.Remedy)
	d.say.detail("%s", d.hand("status", "--node", d.lay.socket(n)))
	return nil
}
