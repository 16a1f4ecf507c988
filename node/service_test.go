package node

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
	"github.com/attestmesh/meshnode/service/run"
)

// program is the one that the tests of package run describe, built once.
var program = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "program")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "p"), "../service/run/testdata/subject")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.New(string(out))
	}
	return os.ReadFile(filepath.Join(dir, "p"))
})

// host is a node that serves, reduced to what services need, behind real HTTPS.
type host struct {
	*Node
	register *registered
	t        *testing.T
	url      string
	client   *http.Client
	owner    ed25519.PrivateKey
	log      *bytes.Buffer
}

func newHost(t *testing.T, http2 bool) *host {
	t.Helper()
	if _, err := run.FindSandbox(t.Context()); err != nil {
		t.Skipf("programs run in bubblewrap only: %v; apt-get install bubblewrap", err)
	}
	ownerPublic, owner, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := envelope.PublicKey{PublicKey: ownerPublic}.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	m, _ := testMachine(t)
	m.tickAt = time.Now()
	log := &bytes.Buffer{}
	ctx, stop := context.WithCancelCause(t.Context())
	n := &Node{ctx: ctx, stop: stop, machine: m, genesis: m.state.Genesis(), key: key, self: identity.PeerIDFromKey(public),
		ref: identity.NodeRef{Org: "bob", Name: "n1"}, runtime: &runtimelog.Log{}, changed: newNotifier(), fresh: freshness{boot: true, at: time.Now()}, wall: time.Now, asleep: func() time.Duration { return 0 },
		kind: attest.KindSim, log: slog.New(slog.NewTextHandler(log, nil))}
	register := &registered{}
	n.quoter = attest.NewQuoter(register, m.state.MeshID(), string(n.self), n.runtime.Head)
	if n.services, err = newServices(n, []ServiceConfig{{"inference", string(text)}, {"other", string(text)}}); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	n.services.routes(mux)
	server := httptest.NewUnstartedServer(mux)
	server.EnableHTTP2 = http2
	server.Config.WriteTimeout = 1500 * time.Millisecond // what takes longer must have given itself more
	server.StartTLS()
	t.Cleanup(func() { server.Close(); stop(nil); n.services.stop() })
	return &host{Node: n, register: register, t: t, url: server.URL, client: server.Client(), owner: owner, log: log}
}

// registered is an attester with a register that runtime events are extended into.
type registered struct {
	attest.Attester
	mu     sync.Mutex
	events [][]byte // guarded by mu
	err    error    // guarded by mu
}

// Extend implements attest.Extender.
func (r *registered) Extend(_ context.Context, event []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.events = append(r.events, slices.Clone(event))
	}
	return r.err
}

func (r *registered) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

// What a program is goes into the attester's register before it runs; where that fails it
// does not run, and nothing is logged that the register does not hold.
func TestProgramIsInTheRegister(t *testing.T) {
	h := newHost(t, false)
	if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, raw)
	}
	log, head := h.runtime.Snapshot()
	want, err := runtimelog.ReplayRegister(log, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, sha256.Size)
	for _, event := range h.register.events {
		digest := sha256.Sum256(event)
		next := sha256.Sum256(append(got, digest[:]...))
		got = next[:]
	}
	if len(h.register.events) != 1 || !bytes.Equal(got, want) {
		t.Errorf("%d events give %x, the log %x", len(h.register.events), got, want)
	}
	h.register.fail(errors.New("no answer"))
	if resp, raw := h.deploy(2, nil); resp.StatusCode != 503 || code(raw) != "unavailable" {
		t.Errorf("started without its event in the register: %d %s", resp.StatusCode, raw)
	}
	if h.runtime.Head() != head {
		t.Error("the log holds what the register does not")
	}
	if resp, raw := h.do("GET", "/services/inference/echo", nil); resp.StatusCode != 503 {
		t.Errorf("and it answers: %d %s", resp.StatusCode, raw)
	}
}

var model = []byte("weights that nobody may see")

// deployment returns the body of a deployment after change.
func (h *host) deployment(version uint64, change func(*service.Manifest)) []byte {
	h.t.Helper()
	p, err := program()
	if err != nil {
		h.t.Fatal(err)
	}
	m := service.Manifest{MeshID: h.genesis.MeshID(), Service: "inference", Version: version, Args: []string{},
		Program: service.Blob{SHA256: sha256.Sum256(p), Size: int64(len(p))}, Model: service.Blob{SHA256: sha256.Sum256(model), Size: int64(len(model))}}
	if change != nil {
		change(&m)
	}
	signer, err := envelope.NewSigner(h.owner)
	if err != nil {
		h.t.Fatal(err)
	}
	raw, err := service.SignManifest(signer, m)
	if err != nil {
		h.t.Fatal(err)
	}
	return append(append(append(binary.BigEndian.AppendUint32(nil, uint32(len(raw))), raw...), p...), model...)
}

func (h *host) do(method, path string, body io.Reader, header ...string) (*http.Response, []byte) {
	h.t.Helper()
	req, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, body)
	if err != nil {
		h.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := h.client.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp, raw
}

func (h *host) deploy(version uint64, change func(*service.Manifest)) (*http.Response, []byte) {
	h.t.Helper()
	return h.do("PUT", service.PathDeploy+"inference", bytes.NewReader(h.deployment(version, change)))
}

// code returns the code of an error's body.
func code(raw []byte) string {
	var body struct {
		Error ControlError `json:"error"`
	}
	if json.Unmarshal(raw, &body) != nil {
		return ""
	}
	return body.Error.Code
}

func receiptOf(t *testing.T, h http.Header) *service.Receipt {
	t.Helper()
	raw, err := service.DecodeHeader(h.Get(service.HeaderReceipt))
	if err != nil {
		t.Fatal(err)
	}
	r, err := service.ParseReceipt(raw)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestServiceAnswersWithReceipt(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			h := newHost(t, http2)
			if resp, raw := h.do("GET", "/services/inference/echo", nil); resp.StatusCode != 503 || code(raw) != "unavailable" {
				t.Errorf("before anything was deployed: %d %s", resp.StatusCode, raw)
			}
			resp, raw := h.deploy(1, nil)
			var d Deployment
			if err := json.Unmarshal(raw, &d); resp.StatusCode != 200 || err != nil || d.State != "running" || d.Version != 1 {
				t.Fatalf("%d %s", resp.StatusCode, raw)
			}
			head := service.Digest(h.runtime.Head())
			if d.RuntimeHead != head.String() || head == (service.Digest{}) {
				t.Errorf("head %s, answer %s", head, d.RuntimeHead)
			}
			nonce := strings.Repeat("ab", 32)
			resp, raw = h.do("POST", "/services/inference/echo?q=a%20b", strings.NewReader("a secret question"),
				service.HeaderNonce, nonce, service.HeaderRuntimeHead, head.String(), "X-Mine", "1")
			if resp.StatusCode != http.StatusTeapot || string(raw) != "a secret question" {
				t.Fatalf("%d %s", resp.StatusCode, raw)
			}
			if got := resp.Header.Get("X-Request"); got != `POST /echo?q=a%20b ["1"] []` {
				t.Errorf("the program saw %s", got)
			}
			log, _ := h.runtime.Snapshot()
			events, _, err := runtimelog.Replay(log)
			if err != nil {
				t.Fatal(err)
			}
			for where, header := range map[string]http.Header{"header": resp.Header, "trailer": resp.Trailer} {
				r := receiptOf(t, header)
				if err := r.Matches(service.Answered{MeshID: h.genesis.MeshID(), Peer: h.self, RuntimeHead: head, Service: "inference",
					Method: "POST", Path: "/echo?q=a%20b", RequestBody: sha256.Sum256([]byte("a secret question")),
					Status: http.StatusTeapot, Body: sha256.Sum256(raw), Nonce: nonce}); err != nil {
					t.Errorf("%s: %v", where, err)
				}
				if err := r.Runs(events); err != nil {
					t.Errorf("%s: %v", where, err)
				}
			}
			if strings.Contains(h.log.String(), "secret") || strings.Contains(h.log.String(), "weights") {
				t.Errorf("log: %s", h.log)
			}
			// Streams and long answers have their receipt behind them.
			for path, size := range map[string]int{"/stream": 21, "/long": 2 << 20} {
				resp, raw = h.do("GET", "/services/inference"+path, nil)
				if len(raw) != size || resp.Header.Get(service.HeaderReceipt) != "" {
					t.Errorf("%s: %d bytes, receipt %q", path, len(raw), resp.Header.Get(service.HeaderReceipt))
				}
				if r := receiptOf(t, resp.Trailer); r.Response.SHA256 != sha256.Sum256(raw) || r.Request.Path != path || r.Nonce != "" {
					t.Errorf("%s: %+v", path, r)
				}
			}
			if resp, _ = h.do("HEAD", "/services/inference/long", nil); receiptOf(t, resp.Header).Response.SHA256 != sha256.Sum256(nil) {
				t.Error("HEAD: the receipt is of another body")
			}
			req, _ := http.NewRequestWithContext(t.Context(), "GET", h.url+"/services/inference/half", nil)
			if resp, err = h.client.Do(req); err == nil {
				defer resp.Body.Close()
				if _, err = io.ReadAll(resp.Body); err == nil || resp.Trailer.Get(service.HeaderReceipt) != "" {
					t.Errorf("half an answer passes for a whole one")
				}
			}
		})
	}
}

// Each wrong deployment is refused with its code, leaves the runtime log alone and the
// program before it running.
func TestDeploymentRefused(t *testing.T) {
	h := newHost(t, false)
	if resp, raw := h.deploy(5, nil); resp.StatusCode != 200 {
		t.Fatalf("%s", raw)
	}
	head, good := h.runtime.Head(), h.deployment(6, nil)
	stranger := *h
	_, stranger.owner, _ = ed25519.GenerateKey(rand.Reader)
	flipped := func(at int) []byte { b := bytes.Clone(good); b[at] ^= 1; return b }
	for name, tc := range map[string]struct {
		name, body string
		status     int
		code       attest.Code
	}{
		"another service":    {"nothing", string(good), 404, attest.CodeUnknownService},
		"a name not its own": {"other", string(good), 403, attest.CodeMalformed},
		"an older version":   {"inference", string(h.deployment(4, nil)), 403, attest.CodeReplayed},
		"the same version":   {"inference", string(h.deployment(5, nil)), 403, attest.CodeReplayed},
		"a stranger's key":   {"inference", string(stranger.deployment(7, nil)), 403, attest.CodeWrongSigner},
		"another mesh":       {"inference", string(h.deployment(7, func(m *service.Manifest) { m.MeshID[0]++ })), 403, attest.CodeWrongSigner},
		"no body":            {"inference", "", 400, attest.CodeMalformed},
		"a huge manifest":    {"inference", "\xff\xff\xff\xff", 400, attest.CodeMalformed},
		"no envelope":        {"inference", "\x00\x00\x00\x02{}", 400, attest.CodeMalformed},
		"a flipped program":  {"inference", string(flipped(len(good) - len(model) - 10)), 400, attest.CodeRootMismatch},
		"a flipped model":    {"inference", string(flipped(len(good) - 1)), 400, attest.CodeRootMismatch},
		"cut off":            {"inference", string(good[:len(good)-1]), 400, attest.CodeMalformed},
		"more behind it":     {"inference", string(good) + "x", 400, attest.CodeMalformed},
		"more than memory":   {"inference", string(h.deployment(7, func(m *service.Manifest) { m.Model.Size = service.MaxModel })), 400, attest.CodeMalformed},
	} {
		resp, raw := h.do("PUT", service.PathDeploy+tc.name, strings.NewReader(tc.body))
		if resp.StatusCode != tc.status || code(raw) != string(tc.code) {
			t.Errorf("%s: %d %s, want %d %s", name, resp.StatusCode, raw, tc.status, tc.code)
		}
		switch tc.code { // whose remedies in the table are for other statements than manifests
		case attest.CodeReplayed, attest.CodeWrongSigner, attest.CodeRootMismatch:
			if strings.Contains(string(raw), attest.NewReason(tc.code, "", "", "").Remedy) {
				t.Errorf("%s: the remedy is not for an owner: %s", name, raw)
			}
		}
	}
	if h.runtime.Head() != head {
		t.Error("a refused deployment is in the runtime log")
	}
	if resp, _ := h.do("POST", "/services/inference/echo", nil); resp.StatusCode != http.StatusTeapot {
		t.Errorf("the program before it: %d", resp.StatusCode)
	}
	// What was refused may still come rightly.
	if resp, raw := h.do("PUT", service.PathDeploy+"inference", bytes.NewReader(good)); resp.StatusCode != 200 {
		t.Errorf("%s", raw)
	}
}

// Who has not shown that he owns a service keeps nobody from deploying.
func TestStrangerHoldsNothing(t *testing.T) {
	h := newHost(t, false)
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", h.url+service.PathDeploy+"inference", r)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 1 << 30
	stalled := make(chan struct{})
	go func() {
		defer close(stalled)
		if resp, err := h.client.Do(req); err == nil {
			resp.Body.Close()
		}
	}()
	if _, err := w.Write([]byte{0, 0}); err != nil {
		t.Fatal(err)
	}
	if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, raw)
	}
	w.CloseWithError(io.ErrUnexpectedEOF)
	<-stalled
}

// A newer program is in the log before it answers, and a client that has appraised the one
// before it gets nothing from the new one.
func TestUpdateIsSeen(t *testing.T) {
	h := newHost(t, true)
	h.deploy(1, nil)
	before := service.Digest(h.runtime.Head())
	ask := func(head service.Digest) (*http.Response, []byte) {
		return h.do("POST", "/services/inference/echo", strings.NewReader("x"), service.HeaderRuntimeHead, head.String())
	}
	if resp, _ := ask(before); resp.StatusCode != http.StatusTeapot {
		t.Fatalf("%d", resp.StatusCode)
	}
	if resp, raw := h.deploy(2, func(m *service.Manifest) { m.Args = []string{"-evil"} }); resp.StatusCode != 200 {
		t.Fatalf("%s", raw)
	}
	after := service.Digest(h.runtime.Head())
	if resp, raw := ask(before); resp.StatusCode != 412 || code(raw) != string(attest.CodeRuntimeChanged) {
		t.Errorf("under the old head: %d %s", resp.StatusCode, raw)
	}
	resp, _ := ask(after)
	if r := receiptOf(t, resp.Header); r.Version != 2 || r.RuntimeHead != after {
		t.Errorf("%+v", r)
	}
	// A program that crashes is told to its owner, and is in the log all the same.
	if resp, raw := h.deploy(3, func(m *service.Manifest) { m.Args = []string{"crash"} }); resp.StatusCode != 502 || !strings.Contains(string(raw), "exit status 7") {
		t.Errorf("%d %s", resp.StatusCode, raw)
	}
	if h.runtime.Head() == [32]byte(after) {
		t.Error("what ran is not in the log")
	}
	if got := h.services.list(); len(got) != 2 || got[0].Service != "inference" || got[0].Version != 3 || got[1].State != "none" {
		t.Errorf("%+v", got)
	}
}

func TestServiceRefuses(t *testing.T) {
	h := newHost(t, false)
	h.deploy(1, nil)
	for name, tc := range map[string]struct {
		method, path, body string
		header             []string
		status             int
		code               attest.Code
	}{
		"another service": {"GET", "/services/nothing/", "", nil, 404, attest.CodeUnknownService},
		"short nonce":     {"GET", "/services/inference/echo", "", []string{service.HeaderNonce, "ab"}, 400, attest.CodeMalformed},
		"two nonces":      {"GET", "/services/inference/echo", "", []string{service.HeaderNonce, strings.Repeat("ab", 32), service.HeaderNonce, strings.Repeat("ab", 32)}, 400, attest.CodeMalformed},
		"odd method":      {"TRACE", "/services/inference/echo", "", nil, 400, attest.CodeMalformed},
		"long path":       {"GET", "/services/inference/" + strings.Repeat("a", service.MaxTarget), "", nil, 400, attest.CodeMalformed},
		"large body":      {"POST", "/services/inference/echo", strings.Repeat("a", service.MaxRequest+1), nil, 413, attest.CodeLimit},
		"another head":    {"GET", "/services/inference/echo", "", []string{service.HeaderRuntimeHead, ""}, 412, attest.CodeRuntimeChanged},
	} {
		resp, raw := h.do(tc.method, tc.path, strings.NewReader(tc.body), tc.header...)
		if resp.StatusCode != tc.status || code(raw) != string(tc.code) {
			t.Errorf("%s: %d %s, want %d %s", name, resp.StatusCode, raw, tc.status, tc.code)
		}
	}
	// Who does not hear the mesh serves nobody and takes no weights.
	h.machine.mu.Lock()
	h.machine.tickAt = time.Now().Add(-2 * maxStaleness)
	h.machine.mu.Unlock()
	if resp, raw := h.do("GET", "/services/inference/echo", nil); resp.StatusCode != 503 || code(raw) != string(attest.CodeStale) {
		t.Errorf("%d %s", resp.StatusCode, raw)
	}
	if resp, raw := h.deploy(2, nil); resp.StatusCode != 503 || code(raw) != string(attest.CodeStale) {
		t.Errorf("%d %s", resp.StatusCode, raw)
	}
}

func TestServiceConfig(t *testing.T) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	text, err := envelope.PublicKey{PublicKey: public}.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	many := []ServiceConfig{}
	for i := range maxServices + 1 {
		many = append(many, ServiceConfig{fmt.Sprintf("s%d", i), string(text)})
	}
	for name, services := range map[string][]ServiceConfig{
		"no owner": {{Name: "a"}}, "bad owner": {{"a", "xx"}}, "bad name": {{"A/", string(text)}},
		"twice": {{"a", string(text)}, {"a", string(text)}}, "too many": many,
	} {
		if (&Config{HTTPS: "127.0.0.1:0", Services: services}).checkServices() == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if err := (&Config{HTTPS: "127.0.0.1:0", Services: many[:maxServices]}).checkServices(); err != nil {
		t.Error(err)
	}
	if (&Config{Services: many[:1]}).checkServices() == nil {
		t.Error("a service without an endpoint was taken")
	}
	for kind, want := range map[string]bool{"sim": false, "vtpm": false, "sevsnp": true, "tdx": true, "sevsnp,vtpm": true, "": false} {
		if resistsHost(kind) != want {
			t.Errorf("%q: %v", kind, !want)
		}
	}
}
