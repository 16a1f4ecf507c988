package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
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
)

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
