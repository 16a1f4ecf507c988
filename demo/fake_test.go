package demo

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// The fake is a whole mesh as the director sees it: testdata/meshnode hands its arguments
// to a world in the test's own process and prints what that answers. The processes are
// real, so that starting, killing and reaping are; what they claim is scripted, so that each
// claim can be made false.

const fakeEnv = "MESHNODE_DEMO_FAKE"

func TestMain(m *testing.M) {
	if mode := os.Getenv(childEnv); mode != "" {
		os.Exit(childMain(mode))
	}
	code := m.Run()
	if exe, err := fake(); err == nil {
		os.RemoveAll(filepath.Dir(exe))
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

type fakeRequest struct {
	Args []string
	Exe  string
	Pid  int
}

type fakeReply struct {
	Line string // to standard output
	Log  string // to standard error
	Exit *int
}

// fake is the fake meshnode, built once. It is not instrumented for races: starting it would
// take a hundred times as long.
var fake = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fake")
	if err != nil {
		return "", err
	}
	exe := filepath.Join(dir, "meshnode")
	out, err := exec.Command("go", "build", "-race=false", "-o", exe, "./testdata/meshnode").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the fake: %w\n%s", err, out)
	}
	return exe, nil
})

// world is the state of the fake mesh.
type world struct {
	t        *testing.T
	exe      string // the fake
	listener net.Listener
	p        plan
	rounds   int
	fault    string // what is false
	onCall   func(n int, args []string)

	mu       sync.Mutex
	calls    int
	open     map[net.Conn]bool
	pids     map[string]int // nodes alive, by ref
	admitted bool
	revoked  bool
	departed map[string]bool // seats asked since the revocation
	gone     map[string]bool // killed
	job      jobView
	tick     chan struct{} // closed and renewed at every change of the job
	stop     chan struct{}
	served   sync.WaitGroup
}

func newWorld(t *testing.T, nodes, rounds int, fault string) *world {
	t.Helper()
	exe, err := fake()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "fake") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, exe: exe, listener: l, p: newPlan(nodes), rounds: rounds, fault: fault,
		open: map[net.Conn]bool{}, pids: map[string]int{}, gone: map[string]bool{}, departed: map[string]bool{}, tick: make(chan struct{}), stop: make(chan struct{})}
	t.Setenv(fakeEnv, l.Addr().String())
	w.served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.open[c] = true
			w.mu.Unlock()
			w.served.Go(func() { w.serve(c) })
		}
	})
	t.Cleanup(func() {
		close(w.stop)
		l.Close()
		w.mu.Lock()
		for c := range w.open {
			c.Close()
		}
		w.mu.Unlock()
		w.served.Wait()
		os.RemoveAll(dir)
	})
	return w
}

// alive counts processes: each holds its connection for as long as it lives.
func (w *world) alive() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.open)
}

func (w *world) serve(c net.Conn) {
	defer func() {
		c.Close()
		w.mu.Lock()
		delete(w.open, c)
		w.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return
	}
	var r fakeRequest
	if err := json.Unmarshal(line, &r); err != nil {
		w.t.Errorf("request %q: %v", line, err)
		return
	}
	ended := make(chan struct{})
	w.served.Go(func() { // the process says nothing more: the next read ends with it
		_, _ = in.ReadByte()
		close(ended)
	})
	w.mu.Lock()
	w.calls++
	n, onCall := w.calls, w.onCall
	w.mu.Unlock()
	if onCall != nil {
		onCall(n, r.Args)
	}
	w.answer(c, r, ended)
	<-ended
}

func (w *world) send(c net.Conn, r fakeReply) {
	_ = json.NewEncoder(c).Encode(r) // the process may have been killed
}

func (w *world) end(c net.Conn, v any, code int) {
	w.send(c, fakeReply{Line: toLine(v), Exit: &code})
}

func toLine(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // the test's own value
	}
	return string(b)
}

type object = map[string]any

// answer plays one process.
func (w *world) answer(c net.Conn, r fakeRequest, ended chan struct{}) {
	a := r.Args
	two := a[0]
	if len(a) > 1 && !strings.HasPrefix(a[1], "-") {
		two += " " + a[1]
	}
	switch two {
	case "version":
		w.end(c, object{"measurement": "m-" + filepath.Base(filepath.Dir(r.Exe))}, 0)
	case "sim-platform":
		w.send(c, fakeReply{Line: toLine(object{"socket": flag(a, "--dir") + "/sim.sock", "root": "root"})})
	case "keygen":
		w.end(c, object{"public": "public"}, 0)
	case "genesis show":
		w.end(c, object{"complete": true, "signed": w.p.orgs}, 0)
	case "genesis new", "genesis sign", "policy approve", "job approve", "log export", "job export":
		w.end(c, object{}, 0)
	case "enroll serve":
		w.send(c, fakeReply{Line: toLine(object{"url": "https://127.0.0.1:1", "spki": "00"})})
	case "job split":
		w.split(c, a)
	case "job baseline":
		local := 0.5
		if w.fault == "local is better" {
			local = 0.99
		}
		w.end(c, object{"best_local": local, "federated": 0.1}, 0)
	case "run":
		w.run(c, r, ended)
	case "status":
		w.status(c, flag(a, "--node"))
	case "policy show":
		w.policy(c, a)
	case "policy propose":
		w.propose(c, a)
	case "job submit":
		w.served.Go(w.train)
		w.end(c, object{"id": "j1"}, 0)
	default:
		w.answerLate(c, a, ended)
	}
}

func (w *world) answerLate(c net.Conn, a []string, ended chan struct{}) {
	switch a[0] + " " + a[1] {
	case "job show":
		w.show(c, a, ended)
	case "job verify":
		w.end(c, object{"ok": w.fault != "wrong sum", "findings": []string{}}, 0)
	case "log audit":
		findings := []object{}
		if w.fault == "audit finding" {
			findings = append(findings, object{"index": 3, "code": "replay_mismatch", "message": "no"})
		}
		w.end(c, object{"ok": true, "entries": 30, "root": "aa", "cosigners": []string{"alpha", "beta", "gamma"}, "level": "strong", "findings": findings}, 0)
	default:
		w.t.Errorf("the fake does not know %q", a)
		w.end(c, object{}, 2)
	}
}

func flag(args []string, name string) string {
	i := slices.Index(args, name)
	if i < 0 || i+1 == len(args) {
		return ""
	}
	return args[i+1]
}

func (w *world) split(c net.Conn, a []string) {
	if data, err := os.ReadFile(a[2]); err == nil && strings.Contains(string(data), "text") {
		w.end(c, object{"error": object{"code": "usage", "message": "d.csv line 1: field 2 is no number", "remedy": "mend it"}}, 2)
		return
	}
	labels := []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}
	parts := make([]object, len(w.p.all()))
	for i := range parts {
		parts[i] = object{"file": "f", "rows": 100}
	}
	w.end(c, object{"features": 64, "labels": labels, "nodes": parts, "holdout": object{"rows": 10}}, 0)
}

// of returns the node whose directory holds path.
func (w *world) of(path string) node {
	dir := filepath.Base(filepath.Dir(path))
	i := slices.IndexFunc(w.p.all(), func(n node) bool { return n.org+"-"+n.name == dir })
	if i < 0 {
		w.t.Errorf("%s belongs to no node", path)
		return node{}
	}
	return w.p.all()[i]
}

func (w *world) run(c net.Conn, r fakeRequest, ended chan struct{}) {
	n := w.of(flag(r.Args, "--config"))
	if w.fault == "founder dies" && n.org == "gamma" {
		w.send(c, fakeReply{Line: toLine(object{"node": n.ref()}), Log: "the disk is on fire", Exit: new(int)})
		return
	}
	w.mu.Lock()
	w.pids[n.ref()] = r.Pid
	w.mu.Unlock()
	w.send(c, fakeReply{Line: toLine(object{"node": n.ref(), "public": "http://127.0.0.1:1"})})
	<-ended
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.pids, n.ref())
	w.gone[n.ref()] = true
}

func (w *world) policy(c net.Conn, a []string) {
	if slices.Contains(a, "--draft") {
		w.end(c, "mesh_id: 00\ncreated: 2026-01-01T00:00:00Z\nactions: []", 0)
		return
	}
	narrow := len(w.p.orgs)/2 + 1
	w.end(c, object{"thresholds": object{"narrow": narrow, "widen": max(narrow, (2*len(w.p.orgs)+2)/3)}}, 0)
}

func (w *world) propose(c net.Conn, a []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	class := "widen"
	if strings.HasSuffix(a[2], "revoke.json") {
		class = "narrow"
		w.revoked = true
		if w.fault == "evicted dies" {
			_ = syscall.Kill(w.pids[w.p.evicted], syscall.SIGKILL)
		}
	} else {
		w.admitted = true
	}
	w.end(c, object{"id": "p1", "class": class, "epoch": 1, "organisations": w.p.orgs[:len(w.p.orgs)-1]}, 0)
}

// kill kills those of the nodes that run, from outside the demo.
func (w *world) kill(refs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ref := range refs {
		if pid := w.pids[ref]; pid != 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
