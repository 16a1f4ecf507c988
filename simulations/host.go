package simulations

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/node"
)

// host is a machine with one node. Its name is the node's, with a prime for each newer boot
// that was started on another machine.
type host struct {
	name     string
	machine  string // on the wire; the name changes when a newer boot takes it, beside clients that ask this one
	release  string
	ip       string
	attester *attesttest.Attester
	console  *http.Client              // reaches the control listener from the same machine
	mesh     atomic.Pointer[mesh.Mesh] // the node's, once it has one

	cancel context.CancelFunc
	done   chan struct{} // closed when the node has ended
	err    error         // set before done is closed
}

// up reports whether the node runs.
func (h *host) up() bool {
	select {
	case <-h.done:
		return false
	default:
		return true
	}
}

// stop ends the node and waits for its end.
func (h *host) stop() error {
	h.cancel()
	<-h.done
	return h.err
}

// client returns an HTTP client of a machine. Connections are not kept: an idle one would
// outlive its bubble.
func (w *world) client(machine string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return w.wire.Dial(ctx, machine, addr)
		},
	}}
}

// start runs a node of a release. Its configuration names all nodes that exist so far and
// all founders' first nodes, as an operator's would.
func (w *world) start(name, release string, roles []string) error {
	ref, err := identity.ParseNodeRef(name)
	if err != nil {
		return err
	}
	e, ok := w.enrollers[ref.Org]
	if !ok {
		return fmt.Errorf("%s is no organisation of this mesh", ref.Org)
	}
	if _, err := w.host(name); err == nil {
		return fmt.Errorf("%s was started before", name)
	}
	machine := w.address(len(w.hosts))
	h := &host{name: name, machine: machine, release: release, ip: machine, console: w.client(machine), done: make(chan struct{}),
		attester: w.hardware.attester(name, attesttest.Measurement(release))}
	cfg := node.Config{Organisation: ref.Org, Node: ref.Name, Roles: roles, Listen: []string{"/ip4/" + h.ip + "/tcp/4001"}}
	for i := range max(len(w.hosts), len(w.genesis.Organisations)) {
		if i != len(w.hosts) {
			cfg.Peers = append(cfg.Peers, "http://"+w.address(i)+":80")
		}
	}
	deps := node.Deps{
		Genesis: w.genesis, Policy: w.policy, Attester: h.attester, Schemes: w.hardware.schemes,
		Enroller:  func(k node.Keys) node.Enroller { return &desk{enroller: e, name: ref.Name, roles: roles, keys: k} },
		Directory: node.NewHTTPDirectory(w.client(machine).Transport), NewMesh: w.meshOf(h), InMemory: true, Keep: w.keep,
		Log: w.watch.logger(name, w.opts.NodeLog),
	}
	if w.clock != nil {
		deps.Clock = w.clock(name)
	}
	switch {
	case w.training != nil:
		deps.Data = w.training(name)
	case slices.Contains(roles, node.RoleTrainer):
		deps.Data = &node.TrainingData{Train: examples()}
	}
	if deps.Public, err = w.wire.Listen(machine, h.ip+":80"); err != nil {
		return err
	}
	if deps.Control, err = w.wire.Listen(machine, h.ip+":81"); err != nil {
		return err
	}
	var ctx context.Context
	ctx, h.cancel = context.WithCancel(context.Background())
	w.hosts = append(w.hosts, h)
	go func() { // stop waits for it
		defer close(h.done)
		h.err = node.Run(ctx, cfg, deps)
	}()
	return nil
}

// reboot starts a newer boot of a node on another machine while the older one runs on: the
// host that keeps it is called by the node's name and a prime from now on.
func (w *world) reboot(name, release string, roles []string) error {
	var boots []*host
	for called := name; ; called += "'" {
		h, err := w.host(called)
		if err != nil && len(boots) == 0 {
			return err
		}
		if err != nil {
			break
		}
		boots = append(boots, h)
	}
	for _, h := range boots {
		h.name += "'"
	}
	return w.start(name, release, roles)
}

// meshOf makes the libp2p mesh of a machine on the wire in memory.
func (w *world) meshOf(h *host) func(mesh.Config) (mesh.Mesh, error) {
	return func(cfg mesh.Config) (mesh.Mesh, error) {
		if w.beforeMesh != nil {
			w.beforeMesh(h)
		}
		cfg.Transport = w.wire.Host(h.machine)
		if w.judge != nil {
			cfg.Judge = w.judge(h, cfg.Judge)
		}
		m, err := mesh.NewLibp2p(cfg)
		if err == nil {
			h.mesh.Store(&m)
		}
		return m, err
	}
}

// address is the address of the i-th machine.
func (w *world) address(i int) string { return fmt.Sprintf("10.0.0.%d", i+1) }

// refusedError is a command that a node refused with a code.
type refusedError struct{ code, message string }

func (e *refusedError) Error() string { return e.message }

// errNoOutcome is an answer that leaves open whether the command was or will be ordered.
var errNoOutcome = errors.New("no outcome")

// call asks the node's control listener, as an operator on its machine would.
func (h *host) call(ctx context.Context, method, path string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, "http://"+h.ip+":81"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := h.console.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errNoOutcome, h.machine, err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errNoOutcome, h.machine, err)
	}
	if resp.StatusCode == http.StatusOK {
		return json.Unmarshal(data, into)
	}
	var failed struct{ Error node.ControlError }
	if err := json.Unmarshal(data, &failed); err != nil {
		return fmt.Errorf("%s: %s: %w", h.machine, resp.Status, err)
	}
	switch resp.StatusCode {
	case http.StatusForbidden:
		return &refusedError{failed.Error.Code, failed.Error.Message}
	case http.StatusServiceUnavailable:
		return fmt.Errorf("%w: %s: %s", errNoOutcome, h.machine, failed.Error.Message)
	}
	return fmt.Errorf("%s: %s: %s", h.machine, resp.Status, failed.Error.Message)
}

// statusWithin bounds the wait for a node's own view.
const statusWithin = time.Second

func (h *host) status() (node.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statusWithin)
	defer cancel()
	var s node.Status
	return s, h.call(ctx, http.MethodGet, "/v1/status", nil, &s)
}

func (h *host) policy(ctx context.Context) (node.PolicyView, error) {
	var v node.PolicyView
	return v, h.call(ctx, http.MethodGet, "/v1/policy", nil, &v)
}

// submit hands in a signed statement at a route of the control listener.
func (h *host) submit(ctx context.Context, route string, raw []byte) (node.Submission, error) {
	var s node.Submission
	return s, h.call(ctx, http.MethodPost, route, raw, &s)
}

func (h *host) propose(ctx context.Context, raw []byte) (node.Submission, error) {
	return h.submit(ctx, "/v1/proposals", raw)
}
