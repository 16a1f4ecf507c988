package inference

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/loopback"
)

// Deadlines; the machine may be slow and busy.
const (
	readyWithin   = 60 * time.Second
	commandWithin = 2 * time.Minute
	meshWithin    = 3 * time.Minute
	askAgain      = 100 * time.Millisecond
)

// organisations of the mesh. Alice and Charlie are in none of them.
var organisations = []string{"alpha", "bob", "gamma"}

// world is a directory with everybody's files, and their processes.
type world struct {
	t     *testing.T
	dir   string
	bin   string // directory of the executables
	nodes map[string]*meshNode
	sim   struct{ Socket, Root string }
	env   []string
	procs []*process
}

type meshNode struct {
	dir   string
	ready struct{ Peer, Socket, Public, HTTPS string }
	proc  *process
}

type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
}

// newWorld builds the executables. Everything that any process writes goes below one
// directory: temporary files too.
func newWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "inf") // not t.TempDir: a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, bin: filepath.Join(dir, "bin"), nodes: map[string]*meshNode{}}
	t.Cleanup(func() { os.RemoveAll(dir) })
	t.Cleanup(w.stopAll)
	for _, d := range []string{"bin", "tmp", "home", "charlie", "alice"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.env = append(os.Environ(), "HOME="+filepath.Join(dir, "home"), "TMPDIR="+filepath.Join(dir, "tmp"))
	for name, pkg := range map[string]string{"meshnode": "../../cmd/meshnode", "classifier": "./classifier", "train": "./train"} {
		cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(w.bin, name), pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return w
}

// path joins a path below the world's directory.
func (w *world) path(elem ...string) string {
	return filepath.Join(append([]string{w.dir}, elem...)...)
}

func (w *world) write(path, text string) string {
	w.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

// run runs a command and returns its output and exit code.
func (w *world) run(argv ...string) (stdout, stderr string, exit int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), commandWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = &out, &errs, w.env, w.dir
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		w.t.Fatalf("%s: %v", strings.Join(argv, " "), err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// meshnode runs a command that must succeed and decodes its JSON into v.
func (w *world) meshnode(v any, args ...string) {
	w.t.Helper()
	out, errs, exit := w.run(append([]string{filepath.Join(w.bin, "meshnode")}, args...)...)
	if exit != 0 {
		w.t.Fatalf("meshnode %s: exit %d\n%s%s", strings.Join(args, " "), exit, out, errs)
	}
	if v != nil {
		if err := json.Unmarshal([]byte(out), v); err != nil {
			w.t.Fatalf("meshnode %s: %v in %s", strings.Join(args, " "), err, out)
		}
	}
}

// start starts a process that says on a line of its output that it is ready: the first that
// is no event of another kind. It must be
// called from the test's own goroutine, which keeps its thread: the kernel kills the
// process with it.
func (w *world) start(name, log string, ready any, argv ...string) *process {
	w.t.Helper()
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.Stderr, cmd.WaitDelay = w.env, w.dir, f, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	w.procs = append(w.procs, p)
	line := make(chan string, 1)
	go func() {
		r := bufio.NewReader(out)
		first, err := r.ReadString('\n')
		for err == nil && strings.Contains(first, `"event":"attested"`) {
			first, err = r.ReadString('\n')
		}
		line <- first
		_, _ = io.Copy(io.Discard, r)
		_ = cmd.Wait()
		close(p.done)
	}()
	select {
	case first := <-line:
		if ready != nil {
			if err := json.Unmarshal([]byte(first), ready); err != nil {
				raw, _ := os.ReadFile(log)
				w.t.Fatalf("%s: its first line is %q; its log:\n%s", name, first, raw)
			}
		}
	case <-time.After(readyWithin):
		w.t.Fatalf("%s is not ready within %s", name, readyWithin)
	}
	return p
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
}

func (w *world) stopAll() {
	var all sync.WaitGroup
	for _, p := range w.procs {
		all.Go(p.stop)
	}
	all.Wait()
}

// until polls until f is satisfied; f returns what it still sees.
func (w *world) until(what string, within time.Duration, f func() (bool, string)) {
	w.t.Helper()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for end := time.Now().Add(within); ; <-tick.C {
		ok, sees := f()
		if ok {
			return
		}
		if time.Now().After(end) {
			w.t.Fatalf("waited %s for %s; last seen: %s", within, what, sees)
		}
	}
}

// key makes a key and returns its public half.
func (w *world) key(role, file string) string {
	w.t.Helper()
	var v struct{ Public string }
	w.meshnode(&v, "keygen", "--role", role, "-o", file, "--json")
	return v.Public
}

// found makes a mesh of three organisations with one seat each, on simulated evidence. bob
// serves Charlie's program over HTTPS, for owner; alpha has an endpoint too.
func (w *world) found(owner string) {
	w.t.Helper()
	w.start("sim-platform", w.path("sim.log"), &w.sim, filepath.Join(w.bin, "meshnode"), "sim-platform", "--dir", w.path("sim"), "--json")
	var version struct{ Measurement string }
	w.meshnode(&version, "version", "--json")
	spec := "name: inference\norigin: sim.example.org/inference\nallow_sim: true\norganisations:\n"
	for _, org := range organisations {
		w.nodes[org] = &meshNode{dir: w.path(org)}
		if err := os.MkdirAll(w.path(org), 0o700); err != nil {
			w.t.Fatal(err)
		}
		spec += fmt.Sprintf("  - id: %s\n    keys:\n      - {role: govern, public: %s}\n      - {role: enroll, public: %s}\n", org,
			w.key("govern", w.path(org, "govern.pem")), w.key("enroll", w.path(org, "enroll.pem")))
	}
	spec += fmt.Sprintf("kinds: {member: [sim], seat: [sim], aggregator: [sim]}\nroots: {sim: [%s]}\nentries:\n  - {kind: sim, measurement: %s, roles: [member, seat]}\n", w.sim.Root, version.Measurement)
	w.write(w.path("spec.yaml"), spec)
	w.meshnode(nil, "genesis", "new", w.path("spec.yaml"), "-o", w.genesis())
	for _, org := range organisations {
		w.meshnode(nil, "genesis", "sign", w.genesis(), "--key", w.path(org, "govern.pem"))
	}
	releases := fmt.Sprintf("releases:\n  - {kind: sim, measurement: %s, roles: [seat]}\nnodes:\n  - {name: n1, roles: [seat]}\n", version.Measurement)
	public := map[string]string{}
	for _, org := range organisations {
		public[org] = loopback.Address(w.t)
	}
	for _, org := range organisations {
		n := w.nodes[org]
		w.write(w.path(org, "releases.yaml"), releases)
		var enroller struct{ URL, SPKI string }
		w.start("enroller "+org, w.path(org, "enroller.log"), &enroller, filepath.Join(w.bin, "meshnode"), "enroll", "serve", "--genesis", w.genesis(),
			"--key", w.path(org, "enroll.pem"), "--releases", w.path(org, "releases.yaml"), "--dir", w.path(org, "enroller"), "--listen", "127.0.0.1:0", "--json")
		config := fmt.Sprintf("genesis: %s\norganisation: %s\nnode: n1\nroles: [seat]\ndata: %s\nlisten: [/ip4/127.0.0.1/tcp/0]\npublic: %s\nenroller: {url: %q, spki: %s}\nattester: {sim: %s}\npeers:\n",
			w.genesis(), org, w.path(org, "data"), public[org], enroller.URL, enroller.SPKI, w.sim.Socket)
		for _, other := range organisations {
			if other != org {
				config += "  - http://" + public[other] + "\n"
			}
		}
		if org != "gamma" {
			config += "https: 127.0.0.1:0\n"
		}
		if org == "bob" {
			config += fmt.Sprintf("services:\n  - {name: triage, owner: %s}\n", owner)
		}
		w.write(w.path(org, "node.yaml"), config)
		n.proc = w.start("node "+org, w.path(org, "node.log"), &n.ready, filepath.Join(w.bin, "meshnode"), "run", "--config", w.path(org, "node.yaml"), "--json")
	}
	for _, org := range organisations {
		w.until(org+" to be a member with a published log", meshWithin, func() (bool, string) {
			out, errs, _ := w.run(filepath.Join(w.bin, "meshnode"), "status", "--node", w.path(org, "data"), "--json")
			return strings.Contains(out, `"phase":"member"`) && strings.Contains(out, `"level":"strong"`), out + errs
		})
	}
}

func (w *world) genesis() string { return w.path("genesis.json") }
