package node

import (
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/internal/throttle"
)

// This file is the node's face to clients outside the mesh, who have HTTPS and genesis:
//
//	TLS 1.3, no tickets ── certificate of package ratls, renewed before its window ends
//	GET  /                               what this is and how to verify it, for people
//	POST /.well-known/meshnode/attest    the challenge (challenge.go)
//	GET  /.well-known/meshnode/node, /.well-known/meshnode/policy, /log/   as in public.go
//	PUT  /.well-known/meshnode/services/NAME, /services/NAME/…             as in service.go
//
// A certificate is a first look: its evidence names its key. What a client should go by is
// her own challenge, whose evidence names her connection.

// Limits of the endpoint.
const (
	maxClients          = 1024 // connections at a time
	maxClientsPerRemote = 64
	maxClientStreams    = 64          // of HTTP/2, on one connection
	clientReads         = time.Minute // an answer has been read
	// challengeRate and challengeBurst bound the challenges of one remote.
	challengeRate  = 5.0 // per second
	challengeBurst = 60.0
	challengers    = 4096 // remotes that are remembered

	certificateSkew  = 30 * time.Second // a certificate is dated back by what clocks may differ
	certificateRetry = 2 * time.Second
)

// endpoint serves clients. Its owner is serveHTTPS.
type endpoint struct {
	n           *Node
	host        string // as configured; in certificates
	certificate atomic.Pointer[tls.Certificate]
	head        [32]byte // in its evidence; renew's alone, as jitter is
	jitter      float64
	heads       *headBatches
	challenges  throttle.Requests
}

// serveHTTPS serves clients on l until ctx ends.
func (n *Node) serveHTTPS(ctx context.Context, l net.Listener) error {
	host, _, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		host = ""
	}
	e := &endpoint{n: n, host: host, heads: newHeadBatches(n.headsOver),
		challenges: throttle.Requests{Rate: challengeRate, Burst: challengeBurst, Remotes: challengers}}
	n.tasks.Go(func() { e.renew(ctx) })
	n.tasks.Go(func() { e.heads.run(ctx) })

	mux := http.NewServeMux()
	n.publicRoutes(mux)
	mux.HandleFunc("GET /{$}", e.page)
	mux.HandleFunc("POST "+ratls.Path, e.challenge)
	n.services.routes(mux)
	s := newServer(ctx, mux, n.strangers)
	s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxClientStreams}
	s.WriteTimeout = clientReads // services give themselves more
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if t, ok := c.(*tls.Conn); ok {
			return context.WithValue(ctx, shownKey{}, t.NetConn())
		}
		return ctx
	}
	return serveUntil(ctx, s, tls.NewListener(shownListener{throttle.NewListener(l, maxClients, maxClientsPerRemote)}, e.tls()))
}

func (e *endpoint) tls() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// A resumed session has another handshake's certificate behind it and evidence of the
		// day it began.
		SessionTicketsDisabled: true,
		CurvePreferences:       []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		NextProtos:             []string{"h2", "http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			cert := e.certificate.Load()
			if cert == nil || e.n.time().After(cert.Leaf.NotAfter) {
				return nil, errors.New("no certificate with fresh evidence: the attester does not answer")
			}
			if c, ok := hello.Conn.(*shownConn); ok {
				c.shown.Store(cert)
			}
			return cert, nil
		},
	}
}

// renew keeps a certificate whose window is open and whose evidence has the present head of
// the runtime log, until ctx ends. Each has a key of its own: one that leaked serves nobody
// longer than a window.
func (e *endpoint) renew(ctx context.Context) {
	for ctx.Err() == nil {
		changed := e.n.changed.wait()
		wait := e.untilRenewal()
		if wait <= 0 {
			err := e.makeCertificate(ctx)
			if err == nil {
				continue
			}
			if ctx.Err() == nil {
				e.n.log.Warn("no certificate for clients", "error", err)
			}
			// A device that fails is not asked at every change of the state.
			wait, changed = certificateRetry, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// untilRenewal is the time left until the present certificate must be replaced: 10 to 20 % of
// its life before its end, so that the nodes of a mesh do not quote in step.
func (e *endpoint) untilRenewal() time.Duration {
	cert := e.certificate.Load()
	if cert == nil || e.head != e.n.runtime.Head() {
		return 0
	}
	life := cert.Leaf.NotAfter.Sub(cert.Leaf.NotBefore)
	return cert.Leaf.NotAfter.Add(-life/10 - time.Duration(e.jitter*float64(life)/10)).Sub(e.n.time())
}

func (e *endpoint) makeCertificate(ctx context.Context) error {
	key, err := ratls.NewKey()
	if err != nil {
		return err
	}
	claimant := e.claimant()
	proof, err := e.n.quoter.Prove(ctx, claimant.CertificateBinder(key.SPKIHash()))
	if err != nil {
		return err
	}
	t := ratls.Template{Claimant: claimant, Node: e.n.ref, Proof: proof, NotBefore: e.n.time().Add(-certificateSkew), Lifetime: ratls.MaxLifetime}
	if ip := net.ParseIP(e.host); e.host != "" && (ip == nil || !ip.IsUnspecified()) {
		t.Names = []string{e.host}
	}
	cert, err := key.Certificate(t)
	if err != nil {
		return err
	}
	e.certificate.Store(&cert)
	e.head, e.jitter = proof.RuntimeHead, rand.Float64()
	return nil
}

func (e *endpoint) claimant() ratls.Claimant {
	return ratls.Claimant{MeshID: e.n.genesis.MeshID(), Incarnation: e.n.incarnation(), Peer: e.n.self}
}

// shownConn remembers which certificate was shown on it.
type shownConn struct {
	net.Conn
	shown atomic.Pointer[tls.Certificate]
}

type shownListener struct{ net.Listener }

// Accept implements net.Listener.
func (l shownListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &shownConn{Conn: c}, nil
}

// shownKey is the context key of a request's shownConn.
type shownKey struct{}

// shownOn returns the DER certificate that was shown on a request's connection.
func shownOn(r *http.Request) []byte {
	c, ok := r.Context().Value(shownKey{}).(*shownConn)
	if !ok {
		return nil
	}
	cert := c.shown.Load()
	if cert == nil {
		return nil
	}
	return cert.Certificate[0]
}

// refuseClient answers with a reason instead of what was asked for.
func refuseClient(w http.ResponseWriter, why attest.Reason) {
	status := http.StatusServiceUnavailable
	switch why.Code {
	case attest.CodeMalformed:
		status = http.StatusBadRequest
	case attest.CodeBusy:
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, status, ratls.Refusal{Error: why})
}

// remote names where a request comes from, for limits.
func remote(r *http.Request) string { return throttle.RemoteHost(r.RemoteAddr) }
