package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/service"
	"github.com/attestmesh/meshnode/service/run"
)

// This file lets owners run programs on this node; serve.go asks them. Both are routes of
// the HTTPS listener, whose clients appraise this node on their own connection first.
//
//	PUT /.well-known/meshnode/services/NAME    manifest ──► signed by NAME's owner? version above the last?
//	     program, model ──► sealed memory, digests as the manifest says
//	     runtime log ──► event, a new head: every quote names it from now on, and so does the
//	                     attester's register (RTMR3, PCR 13), where it has one
//	     sandbox ──► exec, only now
//	/services/NAME/…                           not stale? client's head = this head? ──► program
//	     answer ──► receipt, signed by the peer key
//
// Weights, requests and answers are in memory only; nothing of them is logged. An update
// stops the program before it: a receipt always names the newest event of its service.

// Limits of services.
const (
	maxDeployments = 1                // at the same time, of the whole node: memory is counted once
	manifestWithin = 10 * time.Second // before anybody has shown that he owns a service
	uploadWithin   = 15 * time.Minute // a whole deployment
	uploadStall    = 30 * time.Second // between two reads of one
	answerWithin   = 60 * time.Second // a program answers for the first time
	recordWithin   = 30 * time.Second // the attester's register is extended
	maxAsked       = 32               // requests at the same time; each may hold service.MaxRequest
	requestWithin  = 5 * time.Minute
	requestRead    = 30 * time.Second // a request's body has come
	answerStall    = 30 * time.Second // between two writes of an answer
)

// services is what this node serves, by name.
type services struct {
	n       *Node
	slots   map[string]*slot // never changed after newServices
	uploads chan struct{}    // holds a token while there is a deployment
	asked   places

	requestWithin, requestRead, answerStall time.Duration
}

// slot is one name of the configuration.
type slot struct {
	name   string
	owner  ed25519.PublicKey
	number int

	mu      sync.Mutex
	version uint64    // guarded by mu; the newest that was ever started here
	starts  int       // guarded by mu; its events in the runtime log
	current *deployed // guarded by mu; nil while nothing runs or something is being started
}

// deployed is one program with what its owner signed.
type deployed struct {
	manifest  *service.Manifest
	program   *run.Service
	transport *http.Transport
	at        time.Time
}

func newServices(n *Node, configured []ServiceConfig) (*services, error) {
	s := &services{n: n, slots: map[string]*slot{}, uploads: make(chan struct{}, maxDeployments),
		asked: places{max: maxAsked, remotes: map[string]int{}}, requestWithin: requestWithin, requestRead: requestRead, answerStall: answerStall}
	for i, c := range configured {
		owner, err := c.owner()
		if err != nil {
			return nil, &ConfigError{Field: "services", Err: err, Remedy: "give the public key that meshnode keygen --role service printed"}
		}
		s.slots[c.Name] = &slot{name: c.Name, owner: owner, number: i}
	}
	return s, nil
}

// routes adds the two routes to the HTTPS listener's.
func (s *services) routes(mux *http.ServeMux) {
	mux.HandleFunc("PUT "+service.PathDeploy+"{name}", s.handleDeploy)
	mux.HandleFunc(service.PathServices+"{name}/", s.handleAsk)
}

// stop ends every program.
func (s *services) stop() {
	s.uploads <- struct{}{} // whoever gets it after this finds the node stopping
	defer func() { <-s.uploads }()
	for _, sl := range s.slots {
		sl.replace(nil)
	}
}

// replace stops what runs and puts d in its place.
func (sl *slot) replace(d *deployed) {
	sl.mu.Lock()
	old := sl.current
	sl.current = d
	if d != nil {
		sl.version = d.manifest.Version
	}
	sl.mu.Unlock()
	if old != nil {
		old.program.Stop()
		old.transport.CloseIdleConnections()
	}
}

// Deployment is the answer to a deployment, and an element of what service list shows.
type Deployment struct {
	Service string `json:"service"`
	Owner   string `json:"owner"` // key id
	// State is "none" where nothing was deployed.
	State       string     `json:"state"`
	Version     uint64     `json:"version,omitempty"`
	Manifest    string     `json:"manifest,omitempty"`
	Program     string     `json:"program,omitempty"`
	Model       string     `json:"model,omitempty"`
	RuntimeHead string     `json:"runtime_head"`
	Deployed    *time.Time `json:"deployed,omitempty"`
	Since       *time.Time `json:"since,omitempty"`
	Restarts    int        `json:"restarts"`
	Cause       string     `json:"cause,omitempty"`
	StderrBytes int64      `json:"stderr_bytes"`
}

// list describes every service, in order of their names.
func (s *services) list() []Deployment {
	out := []Deployment{}
	for _, sl := range s.slots {
		out = append(out, s.describe(sl))
	}
	slices.SortFunc(out, func(a, b Deployment) int { return strings.Compare(a.Service, b.Service) })
	return out
}

func (s *services) describe(sl *slot) Deployment {
	id, err := envelope.KeyID(sl.owner)
	if err != nil {
		id = "" // checked with the configuration
	}
	out := Deployment{Service: sl.name, Owner: id, State: "none", RuntimeHead: service.Digest(s.n.runtime.Head()).String()}
	sl.mu.Lock()
	d := sl.current
	sl.mu.Unlock()
	if d == nil {
		return out
	}
	st := d.program.Status()
	out.State, out.Since, out.Restarts, out.Cause, out.StderrBytes = string(st.State), &st.Since, st.Restarts, st.Cause, st.StderrBytes
	out.Version, out.Manifest, out.Deployed = d.manifest.Version, d.manifest.Digest().String(), &d.at
	out.Program, out.Model = d.manifest.Program.SHA256.String(), d.manifest.Model.SHA256.String()
	return out
}

// declined is why a service does not do what is asked, with its HTTP status.
type declined struct {
	status int
	reason attest.Reason
}

func (r *declined) Error() string { return r.reason.String() }

func decline(status int, code attest.Code, claim, got, want string) *declined {
	return &declined{status, attest.NewReason(code, claim, got, want)}
}

// try replaces the code's remedy, which is for members of a mesh, by one for an owner or a
// client.
func (r *declined) try(remedy string) *declined {
	r.reason.Remedy = remedy
	return r
}

func writeDeclined(w http.ResponseWriter, err error) {
	var r *declined
	if !errors.As(err, &r) {
		r = decline(http.StatusServiceUnavailable, attest.CodeUnavailable, "service", err.Error(), "")
	}
	writeControlError(w, r.status, &ControlError{string(r.reason.Code), r.reason.String(), r.reason.Remedy})
}

// slotOf returns the slot of a request, if this node may serve data now.
func (s *services) slotOf(r *http.Request) (*slot, error) {
	sl := s.slots[r.PathValue("name")]
	if sl == nil {
		return nil, decline(http.StatusNotFound, attest.CodeUnknownService, "service", fmt.Sprintf("%.40q", r.PathValue("name")), "a service of this node")
	}
	if why := s.n.unserved(); why != nil {
		return nil, &declined{http.StatusServiceUnavailable, *why}
	}
	return sl, nil
}

func (s *services) handleDeploy(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(manifestWithin + uploadWithin + answerWithin + clientReads))
	sl, err := s.slotOf(r)
	if err == nil {
		err = s.deploy(w, r, sl)
	}
	if err != nil {
		// What was not read is not read any more: a body may be gigabytes long.
		w.Header().Set("Connection", "close")
		s.n.log.Warn("service not deployed", "service", r.PathValue("name"), "error", err)
		writeDeclined(w, err)
		return
	}
	writeJSON(w, http.StatusOK, s.describe(sl))
}

// deploy takes one deployment: from its first byte to the program's first answer. Nothing is
// held for a stranger: what the owner has signed comes first, and soon.
func (s *services) deploy(w http.ResponseWriter, r *http.Request, sl *slot) error {
	ctx, cancel := context.WithTimeout(r.Context(), manifestWithin)
	defer cancel()
	m, err := s.readManifest(pacedReader{ctx, r.Body, http.NewResponseController(w)}, r.ContentLength, sl)
	if err != nil {
		return err
	}
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	default:
		return decline(http.StatusServiceUnavailable, attest.CodeBusy, "deployment", "another one goes on", "one at a time")
	}
	if newest := sl.newest(); m.Version <= newest {
		return decline(http.StatusForbidden, attest.CodeReplayed, "version", fmt.Sprint(m.Version), fmt.Sprintf("above %d, which ran before", newest)).
			try("deploy with a higher --version")
	}
	if share := runtimelog.MaxEvents / len(s.slots); sl.events() >= share {
		return decline(http.StatusInsufficientStorage, attest.CodeLimit, "runtime log", fmt.Sprintf("%d starts of %s", share, sl.name), "fewer since the node started").
			try("have the node restarted; its runtime log is never cut")
	}
	ctx, cancel = context.WithTimeout(r.Context(), uploadWithin)
	defer cancel()
	box, err := s.ableTo(ctx, m)
	if err != nil {
		return err
	}
	spec, err := receive(pacedReader{ctx, r.Body, http.NewResponseController(w)}, m)
	if err != nil {
		return err
	}
	d, err := s.start(sl, m, box, spec)
	if err != nil {
		return err
	}
	ctx, cancel = context.WithTimeout(s.n.ctx, answerWithin)
	defer cancel()
	if err := d.program.Ready(ctx); err != nil {
		if errors.Is(err, run.ErrNoSandbox) {
			return decline(http.StatusServiceUnavailable, attest.CodeNoSandbox, "sandbox", err.Error(), "a sandbox around every program")
		}
		return decline(http.StatusBadGateway, attest.CodeUnavailable, "program", err.Error(), "an answer to GET /healthz").
			try("see that it serves HTTP on descriptor 3, reads its model from descriptor 4 and needs no network and no files; deploy it again under a higher --version")
	}
	return nil
}

// newest is the highest version that was started since the node's boot.
func (sl *slot) newest() uint64 {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.version
}

// events is how many of the runtime log are this service's. The log is never cut: each
// service has a share of it, so that no owner uses up the others'.
func (sl *slot) events() int {
	sl.mu.Lock()
	defer sl.mu.Unlock()
	return sl.starts
}

// readManifest reads the first part of a deployment: nothing else is read for a stranger.
func (s *services) readManifest(body io.Reader, length int64, sl *slot) (*service.Manifest, error) {
	malformed := func(claim string, err error, want string) error {
		return decline(http.StatusBadRequest, attest.CodeMalformed, claim, err.Error(), want)
	}
	var size [4]byte
	if _, err := io.ReadFull(body, size[:]); err != nil {
		return nil, malformed("body", err, "a manifest's length")
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > envelope.MaxSize {
		return nil, malformed("manifest", fmt.Errorf("%d bytes", n), fmt.Sprintf("at most %d", envelope.MaxSize))
	}
	var buf bytes.Buffer // grows with what comes: strangers can say a length on many streams
	if _, err := io.CopyN(&buf, body, int64(n)); err != nil {
		return nil, malformed("manifest", err, fmt.Sprintf("%d bytes", n))
	}
	raw := buf.Bytes()
	if _, err := envelope.Parse(raw); err != nil {
		return nil, malformed("manifest", err, "an envelope")
	}
	m, err := service.ParseManifest(raw, sl.owner, s.n.genesis.MeshID())
	if err != nil {
		return nil, decline(http.StatusForbidden, attest.CodeWrongSigner, "manifest", strings.TrimPrefix(err.Error(), "manifest: "), "one signed by the owner of "+sl.name+" for this mesh").
			try("sign with the key whose public half the node's configuration lists for this service, or have yours listed there")
	}
	if m.Service != sl.name {
		return nil, decline(http.StatusForbidden, attest.CodeMalformed, "manifest", "one of "+m.Service, "one of "+sl.name)
	}
	if want := int64(len(size)) + int64(n) + m.Program.Size + m.Model.Size; length != want {
		return nil, malformed("Content-Length", fmt.Errorf("%d", length), fmt.Sprint(want))
	}
	return m, nil
}

// ableTo reports whether this machine can hold and confine what m names, before any of it
// is read.
func (s *services) ableTo(ctx context.Context, m *service.Manifest) (run.Sandbox, error) {
	box, err := run.FindSandbox(ctx)
	if err != nil {
		return box, decline(http.StatusServiceUnavailable, attest.CodeNoSandbox, "sandbox", err.Error(), "a sandbox around every program")
	}
	if err := run.CheckMemory(m); err != nil {
		return box, decline(http.StatusInsufficientStorage, attest.CodeLimit, "memory", err.Error(), "room for program and model in memory").
			try("deploy a smaller model, or to a larger machine")
	}
	areas, err := run.Swap()
	if err != nil {
		return box, err
	}
	if len(areas) > 0 && resistsHost(s.n.kind) {
		return box, decline(http.StatusServiceUnavailable, attest.CodeSwap, "swap", strings.Join(areas, " "), "no swap on a machine that serves")
	}
	return box, nil
}

// resistsHost reports whether memory is safe from the machine's owner under this kind of
// evidence. Where it is not, a disk gives away nothing more, and only a warning is given.
func resistsHost(kind string) bool {
	return slices.ContainsFunc(strings.Split(kind, ","), func(k string) bool { return k == attest.KindSEVSNP || k == attest.KindTDX })
}

// serviceWarnings is what an operator who serves should mend on this machine.
func serviceWarnings() (out []string) {
	if areas, err := run.Swap(); err != nil || len(areas) > 0 {
		out = append(out, "swap is on ("+strings.Join(areas, " ")+"): what services hold in memory could be written to a disk; swapoff -a")
	}
	return out
}

// receive reads program and model into memory and demands that nothing follows.
func receive(body io.Reader, m *service.Manifest) (run.Spec, error) {
	spec := run.Spec{Name: m.Service, Args: m.Args}
	var err error
	if spec.Program, err = run.Receive(m.Program, true, body); err != nil {
		return spec, decline(http.StatusBadRequest, attest.CodeRootMismatch, "program", err.Error(), "the program that the manifest names").
			try("deploy again; the program is one static executable of the node's kind of machine (Go: CGO_ENABLED=0; C: -static)")
	}
	if spec.Model, err = run.Receive(m.Model, false, body); err != nil {
		spec.Program.Close()
		return spec, decline(http.StatusBadRequest, attest.CodeRootMismatch, "model", err.Error(), "the model that the manifest names").
			try("deploy again; leave the file alone meanwhile")
	}
	if n, err := io.CopyN(io.Discard, body, 1); n != 0 || !errors.Is(err, io.EOF) {
		spec.Program.Close()
		spec.Model.Close()
		return spec, decline(http.StatusBadRequest, attest.CodeMalformed, "body", "more than the manifest names", "nothing behind the model")
	}
	return spec, nil
}

// start puts a new program in the place of the one before it.
func (s *services) start(sl *slot, m *service.Manifest, box run.Sandbox, spec run.Spec) (*deployed, error) {
	if err := s.n.ctx.Err(); err != nil {
		spec.Program.Close()
		spec.Model.Close()
		return nil, decline(http.StatusServiceUnavailable, attest.CodeShutdown, "node", "stopping", "one that goes on")
	}
	sl.replace(nil) // before the event: no receipt names a program that is not the newest
	var head [32]byte
	program, err := run.Start(s.n.ctx, run.Config{Sandbox: box, Slot: sl.number, Log: s.n.log, Record: func() (err error) {
		ctx, cancel := context.WithTimeout(s.n.ctx, recordWithin)
		defer cancel()
		// Between two quotes: each shows the head and the attester's register of one moment.
		err = s.n.quoter.Record(ctx, func(extend func([]byte) error) error {
			head, err = s.n.runtime.Record(m.Event(), extend)
			return err
		})
		if err == nil {
			sl.mu.Lock()
			sl.starts++
			sl.mu.Unlock()
		}
		return err
	}}, spec)
	if err != nil {
		return nil, decline(http.StatusServiceUnavailable, attest.CodeUnavailable, "start", err.Error(), "a program that runs")
	}
	d := &deployed{manifest: m, program: program, at: s.n.now().UTC(), transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return program.Dial(ctx) },
		MaxIdleConnsPerHost: maxAsked, IdleConnTimeout: time.Minute, DisableCompression: true,
		MaxResponseHeaderBytes: 64 << 10,
	}}
	sl.replace(d)
	s.n.log.Info("service started", "service", sl.name, "version", m.Version, "program", m.Program.SHA256.String(),
		"model", m.Model.SHA256.String(), "runtime_head", service.Digest(head).String())
	s.n.changed.notify()
	return d, nil
}

// pacedReader ends a body that stalls or takes too long as a whole.
type pacedReader struct {
	ctx     context.Context
	r       io.Reader
	control *http.ResponseController
}

// Read implements io.Reader.
func (p pacedReader) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	until := time.Now().Add(uploadStall)
	if end, ok := p.ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	if err := p.control.SetReadDeadline(until); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}
