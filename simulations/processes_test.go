package simulations

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/node"
)

// processes is a mesh of real processes of the real binary, on loopback, in real time: what a
// bubble cannot show is what a stopped process, a killed one and a disk do.
type processes struct {
	*testing.T
	dir    string
	world  *world // for its genesis and keys
	hosts  map[string]*host
	cmds   map[string]*exec.Cmd
	public map[string]string
	sim    string // socket of the sim platform
	binary string
}

// processWithin bounds one wait: machines that run all tests at once are slow.
const processWithin = 90 * time.Second

func (p *processes) path(name string) string { return filepath.Join(p.dir, name) }

func (p *processes) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// run runs a command to its end and returns what it prints.
func (p *processes) run(args ...string) []byte {
	p.Helper()
	out, err := exec.CommandContext(p.Context(), p.binary, args...).Output()
	if err != nil {
		if ended, ok := err.(*exec.ExitError); ok {
			p.Fatalf("%v: %v: %s", args, err, ended.Stderr)
		}
		p.Fatal(err)
	}
	return out
}

// start starts a process that runs on, and reads its ready line into ready.
func (p *processes) start(binary string, ready any, args ...string) *exec.Cmd {
	p.Helper()
	cmd := exec.Command(binary, args...)
	log, err := os.CreateTemp(p.dir, "log-*")
	p.must(err)
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	p.must(err)
	p.must(cmd.Start())
	p.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), ready)
	}
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		p.Fatalf("%v: %v: %s", args, err, text)
	}
	return cmd
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// found makes everything that people make, and starts one seat of each organisation.
func found(t *testing.T, orgs []string) *processes {
	dir, err := os.MkdirTemp("", "seats") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &processes{T: t, dir: dir, hosts: map[string]*host{}, cmds: map[string]*exec.Cmd{}, public: map[string]string{}, binary: filepath.Join(dir, "v1")}
	build := exec.Command("go", "build", "-o", p.binary, "../cmd/meshnode")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	nextRelease(t, p.path("v2"))
	var platform struct{ Root, Socket string }
	p.start(p.binary, &platform, "sim-platform", "--dir", p.path("sim"), "--json")
	p.sim = platform.Socket

	spec := "name: processes\norigin: sim.example.org/processes\nallow_sim: true\norganisations:\n"
	for _, org := range orgs {
		spec += "  - id: " + org + "\n    keys:\n"
		for _, role := range []string{consensus.KeyGovern, consensus.KeyEnroll} {
			der, err := x509.MarshalPKCS8PrivateKey(key(org, role))
			p.must(err)
			p.must(os.WriteFile(p.path(org+"-"+role+".pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
			public, err := x509.MarshalPKIXPublicKey(key(org, role).Public())
			p.must(err)
			spec += fmt.Sprintf("      - {role: %s, public: %s}\n", role, encode64(public))
		}
	}
	spec += fmt.Sprintf("kinds: {member: [sim], seat: [sim], aggregator: [sim]}\nroots: {sim: [%s]}\nentries:\n  - {kind: sim, measurement: %s, roles: [member, seat]}\n",
		platform.Root, p.measurement("v1"))
	p.must(os.WriteFile(p.path("spec.yaml"), []byte(spec), 0o600))
	p.run("genesis", "new", p.path("spec.yaml"), "-o", p.path("genesis.json"))
	for _, org := range orgs {
		p.run("genesis", "sign", p.path("genesis.json"), "--key", p.path(org+"-govern.pem"))
		p.public[org] = freePort(t)
	}
	raw, err := os.ReadFile(p.path("genesis.json"))
	p.must(err)
	g, err := consensus.ParseGenesis([]byte(strings.TrimSuffix(string(raw), "\n")))
	p.must(err)
	p.world = &world{genesis: g, rnd: rand.New(rand.NewPCG(1, 1))}
	releases := "releases:\n"
	for _, v := range []string{"v1", "v2"} {
		releases += fmt.Sprintf("  - {kind: sim, measurement: %s, roles: [seat]}\n", p.measurement(v))
	}
	p.must(os.WriteFile(p.path("releases.yaml"), []byte(releases+"nodes:\n  - {name: n1, roles: [seat]}\n"), 0o600))
	for _, org := range orgs {
		var enroller struct{ URL, SPKI string }
		p.start(p.binary, &enroller, "enroll", "serve", "--genesis", p.path("genesis.json"), "--key", p.path(org+"-enroll.pem"),
			"--releases", p.path("releases.yaml"), "--dir", p.path(org+"-enroller"), "--listen", "127.0.0.1:0", "--json")
		var peers []string
		for _, other := range orgs {
			if other != org {
				peers = append(peers, "http://"+p.public[other])
			}
		}
		_, port, _ := net.SplitHostPort(freePort(t))
		p.must(os.WriteFile(p.path(org+".yaml"), fmt.Appendf(nil, "genesis: genesis.json\norganisation: %s\nnode: n1\nroles: [seat]\ndata: %s\nlisten: [/ip4/127.0.0.1/tcp/%s]\n"+
			"public: %s\npeers: [%s]\nenroller: {url: %s, spki: %s}\nattester: {sim: %s}\n",
			org, org, port, p.public[org], strings.Join(peers, ", "), enroller.URL, enroller.SPKI, p.sim), 0o600))
		p.boot(org, "v1")
	}
	return p
}

func encode64(b []byte) string {
	text, _ := json.Marshal(b)
	return strings.Trim(string(text), `"`)
}

func (p *processes) measurement(version string) string {
	p.Helper()
	var m struct{ Sim string }
	p.must(json.Unmarshal(p.run("measure", "image", p.path(version), "--json"), &m))
	return m.Sim
}

// boot starts the node of an organisation on a version; clients know it by one host for ever.
func (p *processes) boot(org, version string) {
	p.Helper()
	var ready node.Ready
	p.cmds[org] = p.start(p.path(version), &ready, "run", "--config", p.path(org+".yaml"), "--json")
	if p.hosts[org] == nil {
		socket := p.path(org + "/" + node.SocketName)
		p.hosts[org] = &host{name: org + "/n1", ip: "node", done: make(chan struct{}), console: &http.Client{Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		}}}
		p.world.hosts = append(p.world.hosts, p.hosts[org])
	}
}

func (p *processes) signal(org string, s syscall.Signal) {
	p.Helper()
	p.must(p.cmds[org].Process.Signal(s))
}

// end ends the node of an organisation by a signal and waits for its end.
func (p *processes) end(org string, s syscall.Signal) {
	p.Helper()
	p.signal(org, s)
	_ = p.cmds[org].Wait()
}

func (p *processes) await(what string, ok func() bool) {
	p.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(processWithin); !ok(); <-tick.C {
		if time.Now().After(end) {
			for org, h := range p.hosts {
				s, err := h.status()
				p.Logf("%s: %v %s %v %+v %q", org, err, s.Phase, s.PhaseReason, s.Raft, s.Warnings)
			}
			p.Fatalf("not within %s: %s", processWithin, what)
		}
	}
	p.Logf("%s", what)
}

// votes reports whether a node is a member and a voter among n.
func (p *processes) votes(n int, orgs ...string) bool {
	for _, org := range orgs {
		s, err := p.hosts[org].status()
		if err != nil || s.Phase != node.PhaseMember || s.Raft.State != "leader" && s.Raft.State != "follower" || s.Raft.Leader == "" || len(s.Raft.Voters) != n {
			return false
		}
	}
	return true
}

// leader returns the organisation that leads by the words of those that are asked.
func (p *processes) leader(orgs ...string) string {
	for _, org := range orgs {
		if s, err := p.hosts[org].status(); err == nil && s.Raft.State == "leader" {
			return org
		}
	}
	return ""
}

// Five real processes under load: whoever leads stands still for ten seconds, one is killed,
// one is killed and gets an old copy of its disk, and then all move to the next release, one by
// one, so that two releases are one mesh for a while. Clients see one history, nothing that was acknowledged is lost, and whoever was gone
// votes again.
func TestProcesses(t *testing.T) {
	if underRace {
		t.Skip("the race detector does not see other processes")
	}
	t.Parallel() // it mostly waits
	orgs := []string{"alpha", "beta", "delta", "epsilon", "gamma"}
	p := found(t, orgs)
	n := len(orgs)
	p.await("all are members", func() bool { return p.votes(n, orgs...) })
	disk, err := filepath.Glob(p.path("gamma/boot-*"))
	p.must(err)
	p.must(os.CopyFS(p.path("old"), os.DirFS(disk[0])))

	history := newHistory(time.Now())
	clients := startClients(p.world, history, 4)
	defer func() {
		if clients != nil {
			clients.stop()
		}
	}()
	frozen := p.leader(orgs...)
	rest := slices.DeleteFunc(slices.Clone(orgs), func(o string) bool { return o == frozen })
	began := time.Now()
	p.signal(frozen, syscall.SIGSTOP)
	p.await("another leads", func() bool { return p.leader(rest...) != "" })
	p.Logf("after %s", time.Since(began).Round(100*time.Millisecond))
	for killed := false; time.Since(began) < 10*time.Second; {
		if !killed && time.Since(began) > 5*time.Second {
			killed = true
			p.end(rest[0], syscall.SIGKILL) // two of five are away now
		}
		<-time.After(100 * time.Millisecond)
	}
	p.signal(frozen, syscall.SIGCONT)
	p.boot(rest[0], "v1")
	p.await("the frozen and the killed vote again", func() bool { return p.votes(n, orgs...) })

	p.end("gamma", syscall.SIGKILL)
	p.must(os.RemoveAll(disk[0]))
	p.must(os.Rename(p.path("old"), disk[0]))
	p.boot("gamma", "v1")
	p.await("the one with an old disk votes again", func() bool { return p.votes(n, orgs...) })

	clients.stop() // the base is theirs while they work
	clients = nil
	p.widen(history, orgs[:4], p.measurement("v2"))
	clients = startClients(p.world, history, 2)
	for i, org := range orgs {
		p.run("node", "drain", org+"/n1", "--node", p.path(org))
		p.end(org, syscall.SIGTERM)
		p.boot(org, "v2")
		p.await(org+" votes on the next release", func() bool { return p.votes(n, orgs...) })
		if i == 1 || i == 2 { // a majority on either
			p.novelty(orgs[0], orgs)
			p.novelty(orgs[n-1], orgs)
		}
	}
	clients.stop()
	clients = nil
	p.apart(p.path("spec.yaml"), p.path("v2"))
	if err := history.Check(); err != nil {
		t.Error(err)
	}
	ops, open := history.Len()
	t.Logf("%d operations, %d without outcome", ops, open)
	if ops < 20 {
		t.Errorf("only %d operations", ops)
	}
	p.nothingLost(history)
	p.audited()
}

// widen has a measurement allowed to seats: one more operation of the history.
func (p *processes) widen(h *History, orgs []string, measurement string) {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	view, err := p.hosts[orgs[0]].policy(ctx)
	p.must(err)
	e, err := consensus.NewEntry(consensus.Entry{Kind: attest.KindSim, Measurement: measurement, Roles: []string{consensus.RoleMember, consensus.RoleSeat}})
	p.must(err)
	const name = "next build"
	noted, err := add(name)
	p.must(err)
	raw, err := p.world.proposal(name, view.Base, orgs, noted, consensus.Action{AddEntry: &consensus.AddEntry{Entry: e}})
	p.must(err)
	from := time.Now()
	_, err = p.hosts[orgs[0]].propose(ctx, raw)
	p.must(err)
	h.add(len(p.hosts), access{swap: true, base: view.Base, release: name}, answer{accepted: true}, from, time.Now())
}

// nothingLost looks for every acknowledged swap at every node, and for one history.
func (p *processes) nothingLost(h *History) {
	p.Helper()
	have := map[string]bool{}
	view, err := p.hosts["alpha"].policy(context.Background())
	p.must(err)
	for _, e := range slices.Concat(view.Entries, view.Revoked) {
		have[e.Measurement] = true
	}
	for _, release := range h.acknowledged() {
		if e, err := entryOf(release); err != nil || !have[e.Measurement] {
			p.Errorf("acknowledged release %s is in no policy", release)
		}
	}
	p.await("all have one state", func() bool {
		var first node.Status
		for i, org := range slices.Sorted(maps.Keys(p.hosts)) {
			s, err := p.hosts[org].status()
			if err != nil {
				return false
			}
			if i == 0 {
				first = s
			}
			if s.State.Commands == first.State.Commands && s.State.Digest != first.State.Digest {
				p.Fatalf("%s and %s have two states after command %d", org, first.Node, s.State.Commands)
			}
			if s.State != first.State {
				return false
			}
		}
		return true
	})
}

// audited has a stranger audit what a node published: all of it, boots and seats included.
func (p *processes) audited() {
	p.Helper()
	boots, err := filepath.Glob(p.path("alpha/boot-*/log"))
	p.must(err)
	slices.Sort(boots)
	p.run("log", "audit", "--genesis", p.path("genesis.json"), boots[len(boots)-1])
}
