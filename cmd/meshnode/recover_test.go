package main

import (
	"cmp"
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
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/loopback"
	"github.com/attestmesh/meshnode/node"
)

// lostMesh is a mesh of real processes that loses its majority: one seat for each
// organisation, with fixed addresses, so that everything can be started again.
type lostMesh struct {
	*trial
	orgs     []string
	platform string
	genesis  map[string]string // other files than genesis.json, by name of the node's directory
	mesh     map[string]string // host:port of the mesh port, by name of the node's directory
	enroll   map[string]string // host:port of the enroller, by organisation
	running  map[string]*exec.Cmd
	stderr   map[string]*lockedBuffer
}

// lockedBuffer collects what a process writes while others read it.
type lockedBuffer struct {
	mu   sync.Mutex
	data []byte
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	return len(p), nil
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}

func newLostMesh(t *testing.T, orgs ...string) *lostMesh {
	t.Helper()
	m := layOut(t, orgs...)
	for _, org := range orgs {
		m.startEnroller(org)
	}
	for _, org := range orgs {
		m.startNode(org, org, "")
	}
	m.awaitMembers(orgs, 0)
	return m
}

// layOut makes keys, genesis and addresses, and starts the platform.
func layOut(t *testing.T, orgs ...string) *lostMesh {
	t.Helper()
	dir, err := os.MkdirTemp("", "lost")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &lostMesh{trial: &trial{t: t, dir: dir, public: map[string]string{}, enrollers: map[string]enrollerReady{}}, orgs: orgs,
		mesh: map[string]string{}, enroll: map[string]string{}, running: map[string]*exec.Cmd{}, stderr: map[string]*lockedBuffer{}}
	var platform struct{ Root, Socket string }
	m.start(&platform, "sim-platform", "--dir", m.path("sim"), "--json")
	m.platform = platform.Socket
	var version struct{ Measurement string }
	m.json(&version, "version", "--json")
	spec := "name: lost\norigin: sim.example.org/lost\nallow_sim: true\norganisations:\n"
	for _, org := range orgs {
		if err := os.Mkdir(m.path(org+"-keys"), 0o700); err != nil { // each has a machine of its own
			t.Fatal(err)
		}
		spec += "  - id: " + org + "\n    keys:\n"
		for _, role := range []string{"govern", "enroll"} {
			var key struct{ Public string }
			m.json(&key, "keygen", "--role", role, "-o", m.key(org, role), "--json")
			spec += fmt.Sprintf("      - {role: %s, public: %s}\n", role, key.Public)
		}
		m.public[org], m.mesh[org], m.enroll[org] = loopback.Address(t), loopback.Address(t), loopback.Address(t)
	}
	spec += fmt.Sprintf("kinds: {member: [sim], seat: [sim], aggregator: [sim]}\nroots: {sim: [%s]}\nentries:\n"+
		"  - {kind: sim, measurement: %s, roles: [member, seat, trainer, aggregator]}\n", platform.Root, version.Measurement)
	m.foundingOf("genesis.json", spec)
	m.write("releases.yaml", fmt.Sprintf("releases:\n  - {kind: sim, measurement: %s, roles: [seat, trainer, aggregator]}\nnodes:\n  - {name: n1, roles: [seat, trainer, aggregator]}\n", version.Measurement))
	return m
}

// foundingOf makes the genesis of a specification, signed by all.
func (m *lostMesh) foundingOf(name, spec string) {
	m.t.Helper()
	m.write("spec.yaml", spec)
	m.run(0, "genesis", "new", m.path("spec.yaml"), "-o", m.path(name))
	for _, org := range m.orgs {
		m.run(0, "genesis", "sign", m.path(name), "--key", m.key(org, "govern"))
	}
}

func (m *lostMesh) key(org, role string) string {
	return filepath.Join(m.path(org+"-keys"), role+".pem")
}

// startEnroller starts, or starts again, an organisation's enroller at its address.
func (m *lostMesh) startEnroller(org string, more ...string) {
	m.t.Helper()
	m.kill(org + "-enroller")
	var ready enrollerReady
	args := append([]string{"enroll", "serve", "--genesis", m.path("genesis.json"), "--key", m.key(org, "enroll"), "--releases", m.path("releases.yaml"),
		"--dir", m.path(org + "-enroller"), "--listen", m.enroll[org], "--json"}, more...)
	m.running[org+"-enroller"] = m.trial.start(&ready, args...)
	m.enrollers[org] = ready
}

// startNode starts a node of org with a data directory; more is added to its configuration.
// It need not come up: see awaitMembers.
func (m *lostMesh) startNode(org, data, more string, peers ...string) {
	m.t.Helper()
	if len(peers) == 0 {
		peers = m.orgs
	}
	var urls []string
	for _, p := range peers {
		if p != data {
			urls = append(urls, "http://"+m.public[p])
		}
	}
	_, port, _ := net.SplitHostPort(m.mesh[data])
	genesis := cmp.Or(m.genesis[data], "genesis.json")
	m.write(data+".yaml", fmt.Sprintf("genesis: %s\norganisation: %s\nnode: n1\nroles: [seat]\ndata: %s\nlisten: [/ip4/127.0.0.1/tcp/%s]\npublic: %s\n"+
		"peers: [%s]\nenroller: {url: %s, spki: %s}\nattester: {sim: %s}\n%s", genesis, org, data, port, m.public[data], strings.Join(urls, ", "), m.enrollers[org].URL, m.enrollers[org].SPKI, m.platform, more))
	cmd := m.command("run", "--config", m.path(data+".yaml"), "--json")
	errs := &lockedBuffer{}
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.running[data], m.stderr[data] = cmd, errs
	m.t.Cleanup(func() { m.kill(data) })
}

// kill ends a process without a word.
func (m *lostMesh) kill(name string) {
	if cmd := m.running[name]; cmd != nil && cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	delete(m.running, name)
}

func (m *lostMesh) signal(sig syscall.Signal, names ...string) {
	m.t.Helper()
	for _, name := range names {
		if err := m.running[name].Process.Signal(sig); err != nil {
			m.t.Fatal(err)
		}
	}
}

// awaitMembers waits until every node is a member of the incarnation with a strong log.
func (m *lostMesh) awaitMembers(nodes []string, incarnation uint64) {
	m.t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		waits := ""
		for _, data := range nodes {
			s, ok := m.status(data)
			if !ok || s.Incarnation != incarnation || s.Phase != node.PhaseMember || s.Log.Published.Level != "strong" {
				waits += fmt.Sprintf("%s: up %v, incarnation %d, %s (%v), log %s\n", data, ok, s.Incarnation, s.Phase, s.PhaseReason, s.Log.Published.Level)
			}
		}
		if waits == "" {
			return
		}
		if time.Now().After(deadline) {
			for _, data := range nodes {
				lines := strings.Split(m.stderr[data].String(), "\n")
				m.t.Logf("%s says\n%s", data, strings.Join(lines[max(0, len(lines)-25):], "\n"))
			}
			m.t.Fatalf("not all are members:\n%s", waits)
		}
		<-tick.C
	}
}

// order has a proposal signed by organisations and ordered at a node.
func (m *lostMesh) order(at, action string, orgs ...string) {
	m.t.Helper()
	draft := m.run(0, "policy", "show", "--draft", "--node", m.path(at))
	m.write("draft.yaml", strings.Replace(draft, "actions: []", "actions:\n  - "+action, 1))
	file := m.path(fmt.Sprintf("proposal-%d.json", time.Now().UnixNano()))
	for _, org := range orgs {
		m.run(0, "policy", "approve", m.path("draft.yaml"), "--key", m.key(org, "govern"), "-o", file)
	}
	m.run(0, "policy", "propose", file, "--node", m.path(at))
}

// signRecovery has a recovery file signed by organisations.
func (m *lostMesh) signRecovery(file string, orgs ...string) {
	m.t.Helper()
	for _, org := range orgs {
		m.run(0, "recover", "sign", file, "--genesis", m.path("genesis.json"), "--key", m.key(org, "govern"))
	}
}

// ended waits for a process to end by itself.
func (m *lostMesh) ended(name string) {
	m.t.Helper()
	done := make(chan error, 1)
	cmd := m.running[name]
	go func() { done <- cmd.Wait() }()
	select {
	case <-done:
		delete(m.running, name)
	case <-time.After(time.Minute):
		m.t.Fatalf("%s runs on; it says\n%s", name, m.stderr[name].String())
	}
}

const otherMeasurement = "cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd"

// A majority freezes. The organisations recover with the rest and new machines, then it
// thaws: it gets no stream, accuses nobody, hears of the higher incarnation and stops.
func TestRecoverThawedMajority(t *testing.T) {
	if testing.Short() || underRace {
		t.Skip("starts 13 processes")
	}
	m := newLostMesh(t, "alpha", "beta", "delta", "epsilon", "gamma")
	m.order("alpha", "add_entry: {kind: sim, measurement: "+otherMeasurement+", roles: [member]}", "alpha", "beta", "delta", "epsilon")
	var before node.Status
	m.await(func() bool {
		s, ok := m.status("alpha")
		before = s
		return ok && s.Epoch == 1 && s.Log.Published.Size == s.Log.Size && s.Log.Published.Level == "strong"
	})
	frozen := []string{"delta", "epsilon", "gamma"}
	m.signal(syscall.SIGSTOP, frozen...)
	m.kill("alpha")
	m.kill("beta")

	// The newest copy of the log, and a Recovery that three sign: one too few.
	file, genesis := m.path("recovery.json"), m.path("genesis.json")
	var kept struct {
		Epoch, Size uint64
		Root        string
		OK          bool
	}
	if err := json.Unmarshal([]byte(m.run(0, "recover", "inspect", m.path("alpha"), "--genesis", genesis, "--json")), &kept); err != nil || !kept.OK || kept.Epoch != 1 || kept.Size < before.Log.Published.Size {
		t.Fatalf("kept %+v, %v; the status was size %d", kept, err, before.Log.Published.Size)
	}
	var draft struct {
		Incarnation uint64
		Have        []string
		Need        int
		File        string
	}
	if out := m.run(0, "recover", "draft", m.path("alpha"), "--genesis", genesis, "-o", file, "--json"); json.Unmarshal([]byte(out), &draft) != nil ||
		draft.Incarnation != 1 || draft.Have == nil || len(draft.Have) != 0 || draft.Need != 4 || draft.File != file {
		t.Errorf("recover draft --json says %s", out)
	}
	m.signRecovery(file, "alpha", "beta", "delta")
	for _, org := range m.orgs { // machines beside the frozen ones
		m.public[org+"2"], m.mesh[org+"2"] = loopback.Address(t), loopback.Address(t)
	}
	m.write("few.yaml", "")
	if out := m.run(exitUsage, "enroll", "serve", "--genesis", genesis, "--recovery", file, "--key", m.key("alpha", "enroll"), "--releases", m.path("releases.yaml"),
		"--dir", m.path("few"), "--listen", loopback.Address(t)); !strings.Contains(out, "have 3 organisations") || !strings.Contains(out, "need 4 of 5") {
		t.Errorf("an enroller with a Recovery that three signed: %s", out)
	}
	m.signRecovery(file, "epsilon")

	nodes := []string{"alpha", "beta", "delta2", "epsilon2", "gamma2"}
	for _, org := range m.orgs {
		m.startEnroller(org, "--recovery", file)
	}
	for i, org := range m.orgs {
		m.startNode(org, nodes[i], "recovery: recovery.json\n", nodes...)
	}
	m.awaitMembers(nodes, 1)
	after, _ := m.status("beta")
	if after.Epoch != before.Epoch+1 || len(after.Raft.Voters) != 5 {
		t.Errorf("epoch %d with voters %v, want %d", after.Epoch, after.Raft.Voters, before.Epoch+1)
	}

	m.signal(syscall.SIGCONT, frozen...)
	for _, name := range frozen {
		m.ended(name)
		if out := m.stderr[name].String(); !strings.Contains(out, "superseded") || !strings.Contains(out, "incarnation") {
			t.Errorf("%s ended with\n%s", name, out)
		}
	}
	m.order("beta", "remove_entry: {measurement: "+otherMeasurement+"}", "alpha", "beta", "gamma")
	for _, name := range nodes {
		if s, ok := m.status(name); !ok || len(s.Closed) > 0 || s.Phase != node.PhaseMember {
			t.Errorf("%s: up %v, %s, closed %+v", name, ok, s.Phase, s.Closed)
		}
	}
	var report struct {
		OK         bool
		Recoveries []struct{ Index, Incarnation uint64 }
	}
	out := m.run(0, "log", "audit", "--genesis", genesis, "--json", "http://"+m.public["gamma2"])
	if err := json.Unmarshal([]byte(out), &report); err != nil || !report.OK || len(report.Recoveries) != 1 || report.Recoveries[0].Index != kept.Size {
		t.Errorf("audit: %s", out)
	}
	if shown := m.run(0, "log", "show", "http://"+m.public["alpha"]); strings.Contains(shown, "misbehaviour") {
		t.Errorf("somebody was convicted:\n%s", shown)
	}
	// A node that was not there finds its way by its peers alone.
	m.kill("epsilon2")
	m.startNode("epsilon", "epsilon2", "", nodes...)
	m.await(func() bool {
		s, ok := m.status("epsilon2")
		return ok && s.Incarnation == 1 && s.Epoch == after.Epoch+1
	})
}

// The mesh lives: a Recovery from a part of its log is refused, and one from all of it waits
// until the majority is gone. What an organisation signed once it does not sign otherwise.
func TestRecoverHoldsBack(t *testing.T) {
	if testing.Short() || underRace {
		t.Skip("starts ten processes")
	}
	m := newLostMesh(t, "alpha", "beta", "gamma")
	genesis := m.path("genesis.json")
	m.run(0, "recover", "draft", "http://"+m.public["beta"], "--genesis", genesis, "-o", m.path("old.json"))
	m.signRecovery(m.path("old.json"), "alpha", "beta")
	m.order("alpha", "add_entry: {kind: sim, measurement: "+otherMeasurement+", roles: [member]}", "alpha", "gamma")
	m.await(func() bool {
		s, ok := m.status("gamma")
		return ok && s.Epoch == 1 && s.Log.Published.Size == s.Log.Size && s.Log.Published.Level == "strong"
	})
	nodes := []string{"alpha2", "beta2", "gamma2"}
	peers := append([]string{"alpha", "beta", "gamma"}, nodes...)
	for _, name := range nodes {
		m.public[name], m.mesh[name] = loopback.Address(t), loopback.Address(t)
	}
	m.startNode("alpha", "alpha2", "recovery: old.json\n", peers...)
	m.ended("alpha2")
	if out := m.stderr["alpha2"].String(); !strings.Contains(out, "rolled_back") || !strings.Contains(out, "which a quorum has cosigned") {
		t.Errorf("a founder with a Recovery from a part of the log says\n%s", out)
	}

	// Alpha signed for incarnation 1; gamma has approved what the first draft does not hold.
	m.run(0, "recover", "draft", m.path("gamma"), "--genesis", genesis, "-o", m.path("new.json"))
	for org, want := range map[string]string{"alpha": "draft one to incarnation 2", "gamma": ""} {
		exit := exitOK
		if want != "" {
			exit = exitRefused
		}
		if out := m.run(exit, "recover", "sign", m.path("new.json"), "--genesis", genesis, "--key", m.key(org, "govern"), "-o", m.path(org+"-signed.json")); !strings.Contains(out, want) {
			t.Errorf("%s: %s", org, out)
		}
	}
	if out := m.run(exitRefused, "recover", "sign", m.path("old.json"), "--genesis", genesis, "--key", m.key("gamma", "govern")); !strings.Contains(out, "this organisation has seen") {
		t.Errorf("gamma signs the older one: %s", out)
	}
	file := m.path("recovery.json")
	m.run(0, "recover", "draft", m.path("gamma"), "--genesis", genesis, "--incarnation", "2", "-o", file)
	m.signRecovery(file, "alpha", "gamma")
	for _, org := range m.orgs {
		m.startEnroller(org, "--recovery", file)
	}
	for i, org := range m.orgs {
		m.startNode(org, nodes[i], "recovery: recovery.json\n", peers...)
	}
	m.await(func() bool {
		s, ok := m.status("alpha2")
		return ok && s.Phase == node.PhaseFounding && s.PhaseReason != nil && s.PhaseReason.Code == attest.CodeLiveMajority
	})
	if s, ok := m.status("beta"); !ok || s.Incarnation != 0 || s.Phase != node.PhaseMember {
		t.Errorf("the living mesh: up %v, incarnation %d, %s", ok, s.Incarnation, s.Phase)
	}
	m.kill("alpha")
	m.kill("beta")
	m.awaitMembers(nodes, 2)
	// The last of the old ones knows no address of the new: it has no link, and orders nothing.
	if s, ok := m.status("gamma"); !ok || s.Incarnation != 0 || slices.ContainsFunc(s.Peers, func(p node.PeerStatus) bool { return p.State == node.PeerConnected }) {
		t.Errorf("the last of the old ones: up %v, incarnation %d, peers %+v", ok, s.Incarnation, s.Peers)
	}
	// An enroller never goes back.
	m.kill("beta-enroller")
	if out := m.run(exitUsage, "enroll", "serve", "--genesis", genesis, "--key", m.key("beta", "enroll"), "--releases", m.path("releases.yaml"),
		"--dir", m.path("beta-enroller"), "--listen", m.enroll["beta"]); !strings.Contains(out, "this enroller serves incarnation 2") {
		t.Errorf("beta's enroller in incarnation 0: %s", out)
	}
}

// Genesis fixes the store. A founder that would keep its votes elsewhere holds another genesis,
// and with it another mesh: nobody founds with it. And identity is on no disk: one node's
// data directory in another's place makes nobody of it (D9, D12).
func TestFounderWithAnotherStore(t *testing.T) {
	if testing.Short() || underRace {
		t.Skip("starts seven processes")
	}
	m := layOut(t, "alpha", "beta", "gamma")
	spec, err := os.ReadFile(m.path("spec.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	m.foundingOf("disk.json", string(spec)+"store: disk\n")
	for _, org := range []string{"alpha", "beta"} {
		m.startEnroller(org)
		m.startNode(org, org, "")
	}
	// Gamma's host puts the other genesis in the place of the right one, for enroller and node.
	gamma := func(genesis string) {
		m.genesis = map[string]string{"gamma": genesis}
		m.startEnroller("gamma", "--genesis", m.path(genesis), "--dir", m.path("gamma-enroller-"+genesis)) // of one mesh
		m.startNode("gamma", "gamma", "")
	}
	gamma("disk.json")
	m.await(func() bool {
		s, ok := m.status("alpha")
		return ok && s.Phase == node.PhaseFounding && slices.ContainsFunc(s.Peers, func(p node.PeerStatus) bool {
			return p.Code == attest.CodeWrongMesh && strings.Contains(p.URL, m.public["gamma"])
		})
	})
	if s, ok := m.status("gamma"); !ok || s.Started {
		t.Errorf("gamma: up %v, started %v", ok, s.Started)
	}
	// With the right one it founds, on its old data directory.
	m.kill("gamma")
	gamma("genesis.json")
	m.awaitMembers(m.orgs, 0)

	// Alpha's disk in gamma's place.
	m.kill("gamma")
	if err := os.Rename(m.path("gamma"), m.path("gamma-old")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(m.path("gamma"), 0o700); err != nil {
		t.Fatal(err)
	}
	boots, err := filepath.Glob(filepath.Join(m.path("alpha"), "boot-*"))
	if err != nil || len(boots) != 1 {
		t.Fatalf("%v %v", boots, err)
	}
	if err := os.CopyFS(filepath.Join(m.path("gamma"), filepath.Base(boots[0])), os.DirFS(boots[0])); err != nil {
		t.Fatal(err)
	}
	m.startNode("gamma", "gamma", "")
	m.await(func() bool {
		a, ok1 := m.status("alpha")
		g, ok2 := m.status("gamma")
		return ok1 && ok2 && g.Node == "gamma/n1" && g.Started && g.Peer != a.Peer && a.Phase == node.PhaseMember && g.Log.Size >= a.Log.Published.Size
	})
}
