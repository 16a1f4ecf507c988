package inference

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/loopback"
)

// reattest is the period after which Alice believes no proof any more.
const reattest = 10 * time.Second

// story is the world with what its people know.
type story struct {
	*world
	secret   string // a label of Charlie's model: in the weights, and in answers
	canaries []canary
	tap      *tap // in front of Bob's HTTPS port: what his host sees
	proxied  string
	program  string // digests, as Charlie has announced them
	model    string
}

// TestInference is README.md with real processes: Charlie releases program and weights to
// Bob's node, Alice asks, everything that is wrong is refused with its reason, and nothing of
// what they said is anywhere on Bob's disk or network.
func TestInference(t *testing.T) {
	for tool, pkg := range map[string]string{"bwrap": "bubblewrap", "curl": "curl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (apt-get install %s)", tool, pkg)
		}
	}
	runtime.LockOSThread() // and never unlocked: world.start
	s := &story{world: newWorld(t)}
	proxyAddr := loopback.Address(t)
	// Alice's own machine is no part of what Bob's host sees.
	packets := startCapture(t, s.path("packets.pcap"), proxyAddr)
	s.found(s.key("service", s.path("charlie", "owner.pem")))
	if out, _, _ := s.run(s.meshnodeExe(), "doctor", "--config", s.path("bob", "node.yaml")); !strings.Contains(out, "bubblewrap works here") {
		t.Errorf("doctor: %s", out)
	}
	s.tap = newTap(t, strings.TrimPrefix(s.nodes["bob"].ready.HTTPS, "https://"))

	s.charlieReleases()
	s.aliceAsks(proxyAddr)
	s.wrongIsRefused()
	s.programIsSwapped()
	s.meshIsGone()
	s.searchForCanaries(packets)
}

func (s *story) meshnodeExe() string { return filepath.Join(s.bin, "meshnode") }

func (s *story) tapURL() string { return "https://" + s.tap.addr() }

// charlieReleases trains a model with a secret in it, appraises Bob's node and releases both.
func (s *story) charlieReleases() {
	t := s.t
	t.Helper()
	corpus, err := os.ReadFile("corpus.tsv")
	if err != nil {
		t.Fatal(err)
	}
	s.secret = word(t)
	s.write(s.path("charlie", "corpus.tsv"), strings.ReplaceAll(string(corpus), "billing\t", "billing-"+s.secret+"\t"))
	if out, errs, exit := s.run(filepath.Join(s.bin, "train"), s.path("charlie", "corpus.tsv"), s.path("charlie", "model.safetensors")); exit != 0 {
		t.Fatal(out, errs)
	}
	weights, err := os.ReadFile(s.path("charlie", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	s.canaries = append(s.canaries, newCanary("a label of the model", []byte(s.secret)))
	for i := range 4 {
		at := len(weights) * (2*i + 1) / 8
		s.canaries = append(s.canaries, newCanary(fmt.Sprintf("weights at %d", at), weights[at:at+24]))
	}
	s.write(s.path("charlie", "policy.yaml"), "organisations: [bob]\n")

	// A node of another organisation gets nothing.
	if code := s.failing(1, s.deploy(s.nodes["alpha"].ready.HTTPS, "classifier", "1")...); code != "wrong_organisation" {
		t.Errorf("alpha's node: refused with %s", code)
	}
	// Nor does Bob's node take a program from anybody but Charlie.
	s.key("service", s.path("charlie", "other.pem"))
	other := s.deploy(s.tapURL(), "classifier", "1")
	for i, arg := range other {
		other[i] = strings.Replace(arg, "owner.pem", "other.pem", 1)
	}
	if code := s.failing(1, other...); code != "wrong_signer" {
		t.Errorf("a stranger's program: refused with %s", code)
	}
	var d struct {
		Node, Program, Model, State string
		Simulated                   bool
	}
	s.meshnode(&d, s.deploy(s.tapURL(), "classifier", "1")...)
	if d.Node != "bob/n1" || d.State != "running" || !d.Simulated {
		t.Fatalf("deployed: %+v", d)
	}
	s.program, s.model = d.Program, d.Model
	t.Logf("Charlie released program %.16s and model %.16s to %s", d.Program, d.Model, d.Node)
}

func (s *story) deploy(to, program, version string) []string {
	return []string{"service", "deploy", "--to", to, "--genesis", s.genesis(), "--policy", s.path("charlie", "policy.yaml"),
		"--key", s.path("charlie", "owner.pem"), "--name", "triage", "--program", filepath.Join(s.bin, program),
		"--model", s.path("charlie", "model.safetensors"), "--version", version, "--json"}
}

// failing runs a command that must fail with exit and returns the code of its JSON error.
func (s *story) failing(exit int, args ...string) string {
	s.t.Helper()
	out, errs, got := s.run(append([]string{s.meshnodeExe()}, args...)...)
	var v struct {
		Error struct{ Code, Message, Remedy string }
	}
	if err := json.Unmarshal([]byte(out), &v); err != nil || got != exit || v.Error.Message == "" || v.Error.Remedy == "" {
		s.t.Errorf("meshnode %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, exit, out, errs)
	}
	return v.Error.Code
}

// alicePolicy writes what Alice demands; more is added to it.
func (s *story) alicePolicy(name, program, more string) string {
	return s.write(s.path("alice", name), fmt.Sprintf("organisations: [bob]\nservices:\n  triage: {programs: [%s], models: [%s]}\nreattest: %s\n%s", program, s.model, reattest, more))
}

// proxyCommand is how Alice starts her proxy.
func (s *story) proxyCommand(listen, to, policy string) []string {
	return []string{"proxy", "--to", to, "--listen", listen, "--genesis", s.genesis(), "--policy", policy, "--receipts", s.path("alice", "receipts"), "--json"}
}

// ask is what Alice types: curl, which knows nothing of attestation.
func (s *story) ask(url, text string) (body string, status int) {
	s.t.Helper()
	out, errs, exit := s.run("curl", "-sS", "--max-time", "30", "-w", "\n%{http_code}", "--data-binary", text, url+"/services/triage/classify")
	at := strings.LastIndexByte(out, '\n')
	if exit != 0 || at < 0 {
		s.t.Fatalf("curl: exit %d: %s%s", exit, out, errs)
	}
	if _, err := fmt.Sscan(out[at:], &status); err != nil {
		s.t.Fatal(err)
	}
	return out[:at], status
}

// aliceAsks gets an answer with a receipt that names program, model and node.
func (s *story) aliceAsks(listen string) {
	t := s.t
	t.Helper()
	var ready struct{ Listen string }
	s.start("proxy", s.path("alice", "proxy.log"), &ready, append([]string{s.meshnodeExe()}, s.proxyCommand(listen, s.tapURL(), s.alicePolicy("policy.yaml", s.program, ""))...)...)
	s.proxied = ready.Listen
	prompt := word(t) + " please refund the payment on my credit card"
	body, status := s.ask(s.proxied, prompt)
	var answer struct{ Label, Reference string }
	if err := json.Unmarshal([]byte(body), &answer); err != nil || status != 200 || answer.Label != "billing-"+s.secret {
		t.Fatalf("%d %s", status, body)
	}
	s.canaries = append(s.canaries, newCanary("the prompt", []byte(prompt[:30])), newCanary("the answer", []byte(answer.Reference)))
	receipts, _ := filepath.Glob(s.path("alice", "receipts", "*"))
	if len(receipts) != 1 {
		t.Fatalf("%d receipts", len(receipts))
	}
	var r struct {
		OK                           bool
		Node, Program, Model, Method string
		Status                       int
	}
	s.meshnode(&r, "service", "receipt", "verify", receipts[0], "--genesis", s.genesis(), "--policy", s.path("alice", "policy.yaml"), "--json")
	if !r.OK || r.Node != "bob/n1" || r.Program != s.program || r.Model != s.model || r.Method != "POST" || r.Status != 200 {
		t.Errorf("%+v", r)
	}
	raw, err := os.ReadFile(receipts[0])
	if err != nil {
		t.Fatal(err)
	}
	forged := s.write(s.path("alice", "forged.json"), strings.Replace(string(raw), `"nonce":"`+string(raw[bytes.Index(raw, []byte(`"nonce":"`))+9]), `"nonce":"`+flip(raw[bytes.Index(raw, []byte(`"nonce":"`))+9]), 1))
	if code := s.failing(1, "service", "receipt", "verify", forged, "--genesis", s.genesis(), "--json"); code == "" {
		t.Error("a forged receipt passes")
	}
	t.Logf("Alice got %q with a receipt", strings.TrimSpace(strings.ReplaceAll(body, s.secret, "…")))
}

// flip returns another hex digit.
func flip(b byte) string {
	if b == '0' {
		return "1"
	}
	return "0"
}

// wrongIsRefused: program, measurement, organisation.
func (s *story) wrongIsRefused() {
	t := s.t
	t.Helper()
	zeros := strings.Repeat("0", 64)
	for _, tc := range []struct{ name, to, policy, code string }{
		{"program", s.tapURL(), s.alicePolicy("program.yaml", zeros, ""), "program_not_allowed"},
		{"measurement", s.tapURL(), s.alicePolicy("measurement.yaml", s.program, "measurements: ["+zeros+"]\n"), "measurement_not_allowed"},
		{"organisation", s.nodes["alpha"].ready.HTTPS, s.alicePolicy("organisation.yaml", s.program, ""), "wrong_organisation"},
	} {
		if code := s.failing(1, s.proxyCommand("127.0.0.1:0", tc.to, tc.policy)...); code != tc.code {
			t.Errorf("wrong %s: refused with %s, want %s", tc.name, code, tc.code)
		} else {
			t.Logf("wrong %s: refused: %s", tc.name, code)
		}
	}
}

// programIsSwapped: another program after admission answers nothing.
func (s *story) programIsSwapped() {
	t := s.t
	t.Helper()
	if _, status := s.ask(s.proxied, "the app crashes"); status != 200 {
		t.Fatalf("before the swap: %d", status)
	}
	program, err := os.ReadFile(filepath.Join(s.bin, "classifier"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.bin, "swapped"), append(program, "another program"...), 0o700); err != nil {
		t.Fatal(err)
	}
	before, _ := filepath.Glob(s.path("alice", "receipts", "*"))
	s.meshnode(nil, s.deploy(s.tapURL(), "swapped", "2")...)
	swapped := time.Now()
	body, status := s.ask(s.proxied, "the app crashes")
	if took := time.Since(swapped); status < 500 || !strings.Contains(body, "program_not_allowed") || took > reattest {
		t.Errorf("after the swap: %d %s after %s", status, body, took)
	} else {
		t.Logf("swapped program: refused after %s, the period is %s", took.Round(time.Millisecond), reattest)
	}
	if after, _ := filepath.Glob(s.path("alice", "receipts", "*")); len(after) != len(before) {
		t.Errorf("%d answers after the swap", len(after)-len(before))
	}
	// The program that she knows is back, as a newer version; an old one is never taken.
	if code := s.failing(1, s.deploy(s.tapURL(), "classifier", "1")...); code != "replayed" {
		t.Errorf("an older version: %s", code)
	}
	s.meshnode(nil, s.deploy(s.tapURL(), "classifier", "3")...)
	if body, status := s.ask(s.proxied, "the app crashes"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}

// meshIsGone: a node that does not hear the mesh proves nothing any more.
func (s *story) meshIsGone() {
	t := s.t
	t.Helper()
	for _, org := range []string{"alpha", "gamma"} {
		if err := s.nodes[org].proc.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	var last string
	s.until("a refusal because Bob's node is stale", time.Minute, func() (bool, string) {
		body, status := s.ask(s.proxied, "the app crashes")
		last = body
		return status >= 500 && strings.Contains(body, "stale"), fmt.Sprint(status, body)
	})
	for _, org := range []string{"alpha", "gamma"} {
		_ = s.nodes[org].proc.cmd.Process.Signal(syscall.SIGCONT)
	}
	t.Logf("mesh gone: refused: %s", strings.TrimSpace(last))
}

// searchForCanaries looks for what nobody but the parties may hold, in everything that Bob's
// host can see but memory: files, and bytes on sockets.
func (s *story) searchForCanaries(packets *capture) {
	t := s.t
	t.Helper()
	s.filesOpen()
	var found searched
	packets.search(t, &found, s.canaries)
	s.tap.search(&found, "Bob's HTTPS port", s.canaries)
	s.stopAll() // whatever they still wrote is there now
	found.searchTree(t, s.dir, s.canaries, s.path("charlie"), s.path("alice"), s.path("packets.pcap"))
	for _, hit := range found.hits {
		t.Errorf("leaked: %s", hit)
	}
	t.Logf("searched %d files and %d bytes for %d canaries: %d hits", found.files, found.bytes, len(s.canaries), len(found.hits))
	if found.files < 20 || found.bytes < 1<<20 {
		t.Error("there was too little to search")
	}
	s.control()
}

// filesOpen demands that Bob's node has no file open for writing but below the world's
// directory, which is searched.
func (s *story) filesOpen() {
	proc := fmt.Sprintf("/proc/%d", s.nodes["bob"].proc.cmd.Process.Pid)
	fds, _ := filepath.Glob(proc + "/fd/*")
	if len(fds) == 0 {
		s.t.Error("Bob's node does not run")
	}
	for _, fd := range fds {
		path, err := os.Readlink(fd)
		info, ierr := os.ReadFile(proc + "/fdinfo/" + filepath.Base(fd))
		if err != nil || ierr != nil || !filepath.IsAbs(path) || strings.HasPrefix(path, "/memfd:") || strings.HasPrefix(path, "/dev/") {
			continue
		}
		var flags int
		for line := range strings.Lines(string(info)) {
			_, _ = fmt.Sscanf(line, "flags: %o", &flags)
		}
		if flags&(os.O_WRONLY|os.O_RDWR) != 0 && !strings.HasPrefix(path, s.dir) {
			s.t.Errorf("Bob's node has %s open for writing", path)
		}
	}
}

// control serves the same program as everybody else does, over plain HTTP from files, and
// demands that the same search finds all canaries.
func (s *story) control() {
	t := s.t
	t.Helper()
	dir := s.path("control")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	weights, err := os.ReadFile(s.path("charlie", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	s.write(filepath.Join(dir, "model.safetensors"), string(weights))
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	model, err := os.Open(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer model.Close()
	packets := startCapture(t, s.path("control.pcap"), "")
	cmd := exec.Command(filepath.Join(s.bin, "classifier"))
	cmd.ExtraFiles = []*os.File{file, model}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	plain := newTap(t, listener.Addr().String())
	listener.Close()
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	prompt := string(s.canaries[5].forms[0]) + " please refund the payment on my credit card"
	out, errs, exit := s.run("curl", "-sS", "--max-time", "30", "--data-binary", prompt, "http://"+plain.addr()+"/classify")
	if exit != 0 || !strings.Contains(out, s.secret) {
		t.Fatalf("control: %d %s%s", exit, out, errs)
	}
	var network, disk searched
	plain.search(&network, "a plain port", s.canaries)
	disk.searchTree(t, dir, s.canaries)
	for _, want := range []string{"the prompt", "a label of the model", "the answer"} {
		if !strings.Contains(strings.Join(network.hits, "\n"), want+" in ") {
			t.Errorf("control: %s is not found on a plain port: the search is worth nothing", want)
		}
	}
	if len(disk.hits) < 5 {
		t.Errorf("control: weights on a disk are not found: %v", disk.hits)
	}
	if packets != nil {
		var wire searched
		packets.search(t, &wire, s.canaries)
		if len(wire.hits) < 3 {
			t.Errorf("control: tcpdump's packets do not show what is plain: %v", wire.hits)
		}
	}
	t.Logf("control: the same search finds %d on a plain port and %d on a disk", len(network.hits), len(disk.hits))
}
