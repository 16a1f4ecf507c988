package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
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

// TestAlice takes the part of somebody outside a mesh of real processes.
func TestAlice(t *testing.T) {
	m := startTrial(t)
	t.Run("curl", m.curl)
	t.Run("stock TLS", m.stockTLS)
	t.Run("proxy", m.proxy)
	t.Run("proxy refuses", m.proxyRefuses)
	t.Run("middlebox", m.middlebox)
	t.Run("appraise", m.appraise)
	t.Run("browser", m.browser)
	t.Run("flood", m.flood)
	t.Run("cut off", m.cutOff)
}

// curl knows nothing of attestation: it gets what is public.
func (m *trial) curl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	get := func(args ...string) (string, error) {
		out, err := exec.Command(curl, append([]string{"-sk", "--max-time", "10"}, args...)...).CombinedOutput()
		return string(out), err
	}
	base := "https://" + m.https["beta"]
	if out, err := get("-w", "\n%{http_code} %{http_version}", base+"/"); err != nil || !strings.Contains(out, "\n200 2") || !strings.Contains(out, "meshnode appraise") || !strings.Contains(out, "beta/n1") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := get("--http1.1", base+"/.well-known/meshnode/node"); err != nil || !strings.Contains(out, `"credential"`) {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := get("--tls-max", "1.2", base+"/"); err == nil {
		t.Errorf("TLS 1.2: %s", out)
	}
	for body, want := range map[string]string{
		`{"nonce":"` + strings.Repeat("ab", 32) + `"}`: `"peer"`, `{"nonce":"` + strings.Repeat("00", 32) + `"}`: `"malformed"`,
		"{}": `"malformed"`, strings.Repeat("x", 10_000): `"malformed"`,
	} {
		if out, err := get("-d", body, base+ratls.Path); err != nil || !strings.Contains(out, want) {
			t.Errorf("%.20s: %v: %.200s", body, err, out)
		}
	}
}

// stockTLS looks at the handshakes themselves.
func (m *trial) stockTLS(t *testing.T) {
	cache := tls.NewLRUClientSessionCache(4)
	for _, protocol := range []string{"h2", "http/1.1"} {
		for range 2 {
			conn, err := tls.Dial("tcp", m.https["beta"], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol}, ClientSessionCache: cache})
			if err != nil {
				t.Fatal(err)
			}
			cs := conn.ConnectionState()
			conn.Close()
			if cs.DidResume || cs.Version != tls.VersionTLS13 || cs.CurveID != tls.X25519MLKEM768 || cs.NegotiatedProtocol != protocol {
				t.Errorf("resumed %v, %s, %s, %s", cs.DidResume, tls.VersionName(cs.Version), cs.CurveID, cs.NegotiatedProtocol)
			}
			c, err := ratls.ParseCertificate(cs.PeerCertificates[0], time.Now())
			if err != nil || time.Until(c.NotAfter) > ratls.MaxLifetime {
				t.Errorf("certificate: %v, until %s", err, c.NotAfter)
			}
		}
	}
	if conn, err := tls.Dial("tcp", m.https["beta"], &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
}

type proxyLine struct {
	Event, Listen, Node, Measurement, Code string
	Again, Simulated                       bool
	Heads                                  []string
}

func (m *trial) proxy(t *testing.T) {
	m.write("policy.yaml", "organisations: [beta]\nreattest: 1s\n")
	cmd, lines := m.stream("proxy", "--to", m.https["beta"], "--genesis", m.path("genesis.json"), "--policy", m.path("policy.yaml"), "--json")
	next := func() (l proxyLine) {
		t.Helper()
		if err := json.Unmarshal([]byte(lines()), &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	if l := next(); l.Event != "attested" || l.Node != "beta/n1" || len(l.Heads) < 2 || l.Again || !l.Simulated {
		t.Errorf("got %+v", l)
	}
	ready := next()
	for range 3 {
		resp, err := http.Get(ready.Listen + "/.well-known/meshnode/node")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("credential")) {
			t.Errorf("%s %.100s %v", resp.Status, body, err)
		}
	}
	// After a second the same connection is challenged again, before the next request.
	for end := time.Now().Add(1100 * time.Millisecond); time.Now().Before(end); {
		resp, err := http.Get(ready.Listen + "/")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	if l := next(); l.Event != "attested" || !l.Again {
		t.Errorf("got %+v", l)
	}
	req, err := http.NewRequest(http.MethodGet, ready.Listen, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "evil.example"
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a rebound name: %v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after Ctrl-C: %v", err)
	}
}

func (m *trial) proxyRefuses(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	for name, tc := range map[string]struct{ policy, want string }{
		"organisation": {"organisations: [alpha]\n", "wrong_organisation"},
		"measurement":  {"measurements: [" + strings.Repeat("cd", 48) + "]\n", "measurement_not_allowed"},
		"program":      {"services: {inference: {programs: [" + digest + "]}}\n", "program_not_allowed"},
	} {
		m.write("refuses.yaml", tc.policy)
		out := m.run(exitRefused, "proxy", "--to", "https://"+m.https["beta"], "--genesis", m.path("genesis.json"), "--policy", m.path("refuses.yaml"), "--json")
		if !strings.Contains(out, `"code":"`+tc.want+`"`) {
			t.Errorf("%s: %s", name, out)
		}
	}
	m.run(exitUnavailable, "proxy", "--to", loopback.Address(t), "--genesis", m.path("genesis.json"))
}

// middlebox is a box that ends TLS between Alice and the node.
func (m *trial) middlebox(t *testing.T) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "inspection.corp.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	var requests atomic.Int64
	behind := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: &httputil.ReverseProxy{Transport: behind, Rewrite: func(r *httputil.ProxyRequest) {
		if r.In.URL.Path != ratls.Path {
			requests.Add(1)
		}
		r.SetURL(&url.URL{Scheme: "https", Host: m.https["beta"]})
	}}}
	go srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k}}, NextProtos: []string{"h2"}}))
	defer behind.CloseIdleConnections()
	defer srv.Close()
	for _, args := range [][]string{{"proxy", "--to", l.Addr().String()}, {"appraise", "https://" + l.Addr().String()}} {
		out := m.run(exitRefused, append(args, "--genesis", m.path("genesis.json"))...)
		if !strings.Contains(out, "not_bound") || !strings.Contains(out, "inspection.corp.example") || !strings.Contains(out, "terminates TLS") {
			t.Errorf("%v does not name the box: %s", args, out)
		}
	}
	if requests.Load() != 0 {
		t.Errorf("the box saw %d requests", requests.Load())
	}
}

func (m *trial) appraise(t *testing.T) {
	type line struct {
		File, Kind string
		Verdict    attest.Verdict
		Genuine    *bool
		Bound      bool
		Reasons    []attest.Reason
		Connection nodeConnection
	}
	address := "https://" + m.https["gamma"]
	var l line
	m.json(&l, "appraise", "--json", "--genesis", m.path("genesis.json"), address)
	c := l.Connection
	if l.File != address || l.Verdict != attest.VerdictAffirming || l.Kind != attest.KindSim || l.Genuine == nil || !*l.Genuine || !l.Bound ||
		!c.Verified || c.Node != "gamma/n1" || c.KeyExchange != "X25519MLKEM768" || c.Certificate.Verdict != attest.VerdictAffirming || !c.Certificate.Bound {
		t.Errorf("got %+v", l)
	}
	// Simulated evidence is believed under genesis only.
	if err := json.Unmarshal([]byte(m.run(exitUnavailable, "appraise", "--json", address)), &l); err != nil || l.Verdict != attest.VerdictNone || l.Connection.Verified {
		t.Errorf("got %+v, %v", l, err)
	}
	if out := m.run(exitUnavailable, "appraise", "--json", "https://"+loopback.Address(t)); !strings.Contains(out, `"error":{"code":"unavailable"`) {
		t.Error(out)
	}
	m.run(exitUsage, "appraise", "--at", "2026-01-01T00:00:00Z", address)
	// A genesis of other people.
	other := filepath.Join("..", "..", "audit", "testdata", "published", "genesis.json")
	if out := m.run(exitRefused, "appraise", "--genesis", other, address); !strings.Contains(out, "contraindicated (sim, refused for what follows)") ||
		!strings.Contains(out, "wrong_mesh") || strings.Contains(out, "kind_not_allowed") {
		t.Error(out)
	}
}

// browser opens the page as people do.
func (m *trial) browser(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("chromium is not installed")
	}
	shot := m.path("page.png")
	cmd := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", "--hide-scrollbars",
		"--user-data-dir="+m.path("chromium"), "--window-size=900,1100", "--screenshot="+shot, "https://"+m.https["beta"]+"/")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if st, err := os.Stat(shot); err != nil || st.Size() < 10_000 {
		t.Errorf("no screenshot worth the name: %v", err)
	}
	dom, err := exec.CommandContext(t.Context(), chromium, "--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors",
		"--user-data-dir="+m.path("chromium"), "--dump-dom", "https://"+m.https["beta"]+"/").Output()
	if err != nil || !bytes.Contains(dom, []byte("meshnode appraise --genesis genesis.json https://"+m.https["beta"])) {
		t.Errorf("%v: %.300s", err, dom)
	}
}

// flood is one client with more challenges than anybody needs: those within its share are
// answered together, the rest is told to wait, and a well-behaved one is answered afterwards.
func (m *trial) flood(t *testing.T) {
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}}
	defer c.CloseIdleConnections()
	var mu sync.Mutex
	statuses := map[int]int{}
	challenge := func() {
		var r ratls.Request
		_, _ = rand.Read(r.Nonce[:])
		resp, err := c.Post("https://"+m.https["gamma"]+ratls.Path, "application/json", bytes.NewReader(r.Encode()))
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		raw, err := io.ReadAll(resp.Body)
		if a, malformed := ratls.DecodeAnswer(raw); resp.StatusCode == http.StatusOK && (malformed != nil || len(a.Heads.Statements) < 2) {
			t.Errorf("%v, %v", err, malformed)
		}
		if why, ok := ratls.DecodeRefusal(raw); resp.StatusCode != http.StatusOK && (!ok || why.Code != attest.CodeBusy) {
			t.Errorf("%s: %+v", resp.Status, why)
		}
		mu.Lock()
		defer mu.Unlock()
		statuses[resp.StatusCode]++
	}
	challenge() // on a connection that the others share: one source may not have a hundred
	var wg sync.WaitGroup
	for range 99 {
		wg.Go(challenge)
	}
	wg.Wait()
	if statuses[http.StatusOK] < 40 || statuses[http.StatusTooManyRequests] < 1 || len(statuses) != 2 {
		t.Errorf("statuses %v, want a share answered and the rest told to wait", statuses)
	}
	m.await(func() bool {
		return exec.Command("meshnode", "appraise", "--genesis", m.path("genesis.json"), "https://"+m.https["gamma"]).Run() == nil
	})
}

// cutOff stops two of three seats: the third vouches for nothing any more.
func (m *trial) cutOff(t *testing.T) {
	for _, org := range []string{"alpha", "gamma"} {
		if err := m.nodes[org].Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	m.await(func() bool {
		out, err := exec.Command("meshnode", "appraise", "--json", "--genesis", m.path("genesis.json"), "https://"+m.https["beta"]).Output()
		var ended *exec.ExitError
		return errors.As(err, &ended) && ended.ExitCode() == exitUnavailable && bytes.Contains(out, []byte(`"code":"stale"`))
	})
}
