package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/loopback"
	"github.com/attestmesh/meshnode/node"
)

// trial is a mesh of three organisations, each with a seat that has an HTTPS endpoint: real
// processes, made by hand as an operator would.
type trial struct {
	t         *testing.T
	dir       string
	https     map[string]string // by organisation
	public    map[string]string
	enrollers map[string]enrollerReady
	nodes     map[string]*exec.Cmd
}

// enrollerReady is the ready line of an enroller.
type enrollerReady struct{ URL, SPKI string }

var trialOrgs = []string{"alpha", "beta", "gamma"}

// admitted is what a trial admits besides simulated seats: lines of its genesis and of its
// enrollers' lists.
type admitted struct {
	kinds    string // ", vtpm"
	roots    string // ", vtpm: […]"
	entries  string
	releases string
	nodes    string
	witness  string // verifier key of an outside witness
	config   string // of every seat
}

// startTrial founds a mesh and waits until it is published.
func startTrial(t *testing.T) *trial {
	t.Helper()
	return startTrialOf(t, admitted{})
}

func startTrialOf(t *testing.T, also admitted) *trial {
	t.Helper()
	dir, err := os.MkdirTemp("", "alice") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &trial{t: t, dir: dir, https: map[string]string{}, public: map[string]string{}, enrollers: map[string]enrollerReady{}, nodes: map[string]*exec.Cmd{}}
	var platform struct{ Root, Socket string }
	m.start(&platform, "sim-platform", "--dir", m.path("sim"), "--json")
	var version struct{ Measurement string }
	m.json(&version, "version", "--json")
	spec := "name: trial\norigin: sim.example.org/trial\nallow_sim: true\norganisations:\n"
	for _, org := range trialOrgs {
		spec += "  - id: " + org + "\n    keys:\n"
		for _, role := range []string{"govern", "enroll"} {
			var key struct{ Public string }
			m.json(&key, "keygen", "--role", role, "-o", m.path(org+"-"+role+".pem"), "--json")
			spec += fmt.Sprintf("      - {role: %s, public: %s}\n", role, key.Public)
		}
	}
	if also.witness != "" {
		spec += fmt.Sprintf("witnesses: [%q]\n", also.witness)
	}
	spec += fmt.Sprintf("kinds: {member: [sim%s], seat: [sim], aggregator: [sim]}\nroots: {sim: [%s]%s}\nentries:\n"+
		"  - {kind: sim, measurement: %s, roles: [member, seat]}\n%s", also.kinds, platform.Root, also.roots, version.Measurement, also.entries)
	m.write("spec.yaml", spec)
	m.run(0, "genesis", "new", m.path("spec.yaml"), "-o", m.path("genesis.json"))
	for _, org := range trialOrgs {
		m.run(0, "genesis", "sign", m.path("genesis.json"), "--key", m.path(org+"-govern.pem"))
	}
	m.write("releases.yaml", fmt.Sprintf("releases:\n  - {kind: sim, measurement: %s, roles: [seat]}\n%snodes:\n  - {name: n1, roles: [seat]}\n%s",
		version.Measurement, also.releases, also.nodes))
	for _, org := range trialOrgs {
		m.public[org], m.https[org] = loopback.Address(t), loopback.Address(t)
	}
	for _, org := range trialOrgs {
		m.startSeat(org, platform.Socket, also.config)
	}
	m.await(func() bool {
		for _, org := range trialOrgs {
			if s, ok := m.status(org); !ok || s.Phase != node.PhaseMember || s.Log.Published.Level != "strong" {
				return false
			}
		}
		return true
	})
	return m
}

// status asks the node with a data directory.
func (m *trial) status(dir string) (s node.Status, ok bool) {
	out, err := exec.Command("meshnode", "status", "--node", m.path(dir), "--json").Output()
	return s, err == nil && json.Unmarshal(out, &s) == nil
}

func (m *trial) startSeat(org, platform, more string) {
	m.t.Helper()
	var enroller enrollerReady
	m.start(&enroller, "enroll", "serve", "--genesis", m.path("genesis.json"), "--key", m.path(org+"-enroll.pem"), "--releases", m.path("releases.yaml"),
		"--dir", m.path(org+"-enroller"), "--listen", "127.0.0.1:0", "--json")
	m.enrollers[org] = enroller
	var peers []string
	for _, other := range trialOrgs {
		if other != org {
			peers = append(peers, "http://"+m.public[other])
		}
	}
	port := loopback.Port(m.t)
	m.write(org+".yaml", fmt.Sprintf("genesis: genesis.json\norganisation: %s\nnode: n1\nroles: [seat]\ndata: %s\nlisten: [/ip4/127.0.0.1/tcp/%s]\npublic: %s\nhttps: %s\n"+
		"peers: [%s]\nenroller: {url: %s, spki: %s}\nattester: {sim: %s}\n%s", org, org, port, m.public[org], m.https[org], strings.Join(peers, ", "), enroller.URL, enroller.SPKI, platform, more))
	var ready struct{ HTTPS string }
	m.nodes[org] = m.start(&ready, "run", "--config", m.path(org+".yaml"), "--json")
	if ready.HTTPS != "https://"+m.https[org] {
		m.t.Fatalf("ready line says %q", ready.HTTPS)
	}
}

func (m *trial) path(name string) string { return filepath.Join(m.dir, name) }

func (m *trial) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// await polls, with an end.
func (m *trial) await(done func() bool) {
	m.t.Helper()
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); !done(); <-tick.C {
		if time.Now().After(end) {
			m.t.Fatal("the mesh is not up after a minute")
		}
	}
}

// command is meshnode in its own process, which ends with the test.
func (m *trial) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(m.t.Context(), "meshnode", args...)
	cmd.Env = append(os.Environ(), exitAtOnce)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// start starts a command that runs on, and reads its ready line.
func (m *trial) start(ready any, args ...string) *exec.Cmd {
	m.t.Helper()
	cmd, lines := m.stream(args...)
	line := lines()
	var failed struct{ Error json.RawMessage }
	if err := json.Unmarshal([]byte(line), &failed); err != nil || failed.Error != nil {
		m.t.Fatalf("%v: %s", args, line)
	}
	if err := json.Unmarshal([]byte(line), ready); err != nil {
		m.t.Fatalf("%v: %v", args, err)
	}
	return cmd
}

// stream starts a command that runs on and prints lines; lines waits for the next.
func (m *trial) stream(args ...string) (*exec.Cmd, func() string) {
	m.t.Helper()
	cmd := m.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	lines := make(chan string, 64)
	go func() { // ends with the process
		defer close(lines)
		for scan := bufio.NewScanner(out); scan.Scan(); {
			lines <- scan.Text()
		}
	}()
	return cmd, func() string {
		m.t.Helper()
		select {
		case line, ok := <-lines:
			if !ok {
				_ = cmd.Wait()
				m.t.Fatalf("%v ended: %s", args, stderr.String())
			}
			return line
		case <-time.After(blockWithin):
			m.t.Fatalf("%v prints nothing", args)
		}
		return ""
	}
}

// run runs a command to its end and demands an exit code.
func (m *trial) run(exit int, args ...string) string {
	m.t.Helper()
	var out, errOut bytes.Buffer
	cmd := m.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var ended *exec.ExitError
	if err != nil && !errors.As(err, &ended) {
		m.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != exit {
		m.t.Errorf("%v ended with %d, want %d:\n%s%s", args, got, exit, &out, &errOut)
	}
	return out.String() + errOut.String()
}

func (m *trial) json(v any, args ...string) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.run(0, args...)), v); err != nil {
		m.t.Fatal(err)
	}
}
