package client_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
)

// node is a server that behaves like a node's HTTPS endpoint, and as badly as its test
// says. It records every request that is no challenge.
type node struct {
	t        testing.TB
	mesh     *mesh
	seat     seat
	attester *attesttest.Attester
	runtime  *runtimelog.Log
	address  string
	cert     tls.Certificate

	mu        sync.Mutex
	mutate    func(*ratls.Answer, *http.Request, [32]byte) // guarded by mu
	refuse    *attest.Reason                               // guarded by mu
	seats     [][]byte                                     // shown beside the policy
	heads     int                                          // guarded by mu; how many seats sign
	headChain [][]byte                                     // guarded by mu; what they sign; nil: the mesh's
	cosigned  int                                          // guarded by mu
	bodies    []string                                     // guarded by mu
	redirect  string                                       // guarded by mu
	stream    chan string                                  // guarded by mu; gets what is read first, and lets the second half of the answer go

	requests   atomic.Int64
	challenges atomic.Int64
	conns      atomic.Int64
}

// serve starts a node that runs a release. protocols are what it offers by ALPN.
func serve(t testing.TB, m *mesh, ref identity.NodeRef, release string, protocols ...string) *node {
	t.Helper()
	n := &node{t: t, mesh: m, attester: m.forger.Attester(attesttest.Measurement(release)), runtime: &runtimelog.Log{}, heads: len(m.seats), cosigned: len(m.seats)}
	for _, s := range m.seats {
		if s.ref == ref {
			n.seat = s
		}
	}
	if n.seat.peer == nil {
		n.seat = m.enrol(ref, 1, consensus.NormaliseRoles(nil))
	}
	if len(protocols) == 0 {
		protocols = []string{"h2", "http/1.1"}
	}
	n.cert = n.certificate()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = l.Addr().String()
	srv := &http.Server{Handler: n, ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			n.conns.Add(1)
		}
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{n.cert}, MinVersion: tls.VersionTLS13, NextProtos: protocols}))
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	return n
}

func (n *node) claimant() ratls.Claimant {
	return ratls.Claimant{MeshID: n.mesh.genesis.MeshID(), Peer: peerOf(n.seat.peer)}
}

func (n *node) certificate() tls.Certificate {
	n.t.Helper()
	k, err := ratls.NewKey()
	if err != nil {
		n.t.Fatal(err)
	}
	cert, err := k.Certificate(ratls.Template{Claimant: n.claimant(), Node: n.seat.ref, NotBefore: time.Now().Add(-time.Minute), Lifetime: ratls.MaxLifetime,
		Proof: prove(n.t, n.mesh, n.attester, n.seat, n.runtime, n.claimant().CertificateBinder(k.SPKIHash()))})
	if err != nil {
		n.t.Fatal(err)
	}
	return cert
}

// set changes how the node behaves.
func (n *node) set(change func(*node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change(n)
}

// ServeHTTP implements http.Handler.
func (n *node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == ratls.Path {
		n.challenges.Add(1)
		n.challenge(w, r)
		return
	}
	n.requests.Add(1)
	if want := r.Header.Get(service.HeaderRuntimeHead); want != "" && want != fmt.Sprintf("%x", n.runtime.Head()) {
		w.WriteHeader(http.StatusPreconditionFailed)
		return
	}
	var redirect string
	var stream chan string
	n.set(func(n *node) { redirect, stream = n.redirect, n.stream })
	if r.Header.Get("Upgrade") != "" && r.ProtoMajor == 1 {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			n.t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n")
		said, _ := io.ReadAll(conn)
		n.set(func(n *node) { n.bodies = append(n.bodies, string(said)) })
		return
	}
	if redirect != "" {
		w.Header().Set("Alt-Svc", `h3=":443"`)
		w.Header().Set("Location", redirect)
		w.WriteHeader(http.StatusFound)
		return
	}
	if stream != nil {
		first := make([]byte, 5)
		_, _ = io.ReadFull(r.Body, first)
		stream <- string(first)
		rest, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %s%s", first, rest)
		_ = http.NewResponseController(w).Flush()
		<-stream
		fmt.Fprint(w, " and the end")
		return
	}
	body, err := io.ReadAll(r.Body)
	n.set(func(n *node) { n.bodies = append(n.bodies, string(body)) })
	if err != nil {
		return
	}
	w.Header().Set("Trailer", "Sum")
	fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
	w.Header().Set("Sum", "done")
}

func (n *node) challenge(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(ratls.Refusal{Error: *n.refuse})
		return
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	req, err := ratls.DecodeRequest(raw)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	ekm, err := ratls.EKM(r.TLS.ExportKeyingMaterial, req.Nonce)
	if err != nil {
		n.t.Error(err)
		return
	}
	a := n.answer(req.Nonce, ekm)
	if n.mutate != nil {
		n.mutate(&a, r, req.Nonce)
	}
	body, err := a.Encode()
	if err != nil {
		n.t.Error(err)
		return
	}
	_, _ = w.Write(body)
}

// answer is a good answer, as far as mu's fields say; mu is held.
func (n *node) answer(nonce, ekm [32]byte) ratls.Answer {
	n.t.Helper()
	m := n.mesh
	root, inclusions, err := attest.BatchRoot([][32]byte{[32]byte(sum("another client")), ratls.HeadLeaf(nonce)})
	if err != nil {
		n.t.Fatal(err)
	}
	chain := n.headChain
	if chain == nil {
		chain = m.chain
	}
	log, _ := n.runtime.Snapshot()
	a := ratls.Answer{Peer: peerOf(n.seat.peer), Credential: n.seat.credential, RuntimeLog: log, Policy: m.chain, Heads: ratls.Heads{Inclusion: inclusions[1]},
		Proof:      encodeProof(n.t, prove(n.t, m, n.attester, n.seat, n.runtime, n.claimant().ChallengeBinder(nonce, ekm))),
		Checkpoint: m.checkpoint(n.cosigned), Certificate: n.cert.Certificate[0]}
	a.Seats = n.seats
	for _, s := range m.seats[:n.heads] {
		a.Heads.Statements = append(a.Heads.Statements, m.head(s, root, chain, nil))
	}
	return a
}

// transport is a client of a mesh.
func transport(t testing.TB, m *mesh, p client.Policy, change func(*client.Config)) *client.Transport {
	t.Helper()
	cfg := client.Config{Genesis: m.genesis.Raw(), Policy: p}
	if change != nil {
		change(&cfg)
	}
	tr, err := client.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	return tr
}

// ask sends a request with a body that must not leak.
func ask(tr http.RoundTripper, address, body string) (string, *http.Response, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+"/services/x", bytes.NewReader([]byte(body)))
	if err != nil {
		return "", nil, err
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return "", nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	return string(out), resp, err
}

func code(err error) attest.Code {
	var r *client.Refusal
	if !errors.As(err, &r) {
		return ""
	}
	return r.Code()
}

func random32() (b [32]byte) {
	_, _ = rand.Read(b[:])
	return b
}
