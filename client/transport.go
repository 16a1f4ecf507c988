package client

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/service"
)

// Transport is an http.RoundTripper for https URLs whose servers are nodes of one mesh. Its
// connections are verified before the first byte of a request and again each
// Policy.Reattest. It is safe for concurrent use; Close ends its connections.
type Transport struct {
	cfg      Config
	verifier *Verifier

	mu      sync.Mutex
	conns   map[string][]*Conn       // guarded by mu; verified once, by address
	dialing map[string]chan struct{} // guarded by mu; a token per address: one new connection at a time
	closed  bool                     // guarded by mu
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("client: the transport is closed")

// New checks cfg and returns a Transport. It opens nothing.
func New(cfg Config) (*Transport, error) {
	v, err := NewVerifier(cfg.Genesis, cfg.Policy, cfg.Schemes...)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Transport{cfg: cfg, verifier: v, conns: map[string][]*Conn{}, dialing: map[string]chan struct{}{}}, nil
}

// Verifier is what judges this transport's connections.
func (t *Transport) Verifier() *Verifier { return t.verifier }

// RoundTrip implements http.RoundTripper. A refusal is a *Refusal, and then nothing of req was
// sent.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	address, err := addressOf(req)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	for try := 0; ; try++ {
		c, fresh, err := t.conn(req.Context(), address)
		if err != nil {
			closeBody(req)
			return nil, err
		}
		resp, err := t.send(c, req)
		if again := rewound(req); try == 0 && again != nil && (err != nil && !fresh && c.http.Err() != nil && harmless(req) || changed(resp)) {
			// The server had closed a kept connection, or its node has started something
			// since the proof and gave the request to nobody: once more, with another proof.
			if resp != nil {
				resp.Body.Close()
			}
			req = again
			continue
		}
		return resp, err
	}
}

// send sends req on a verified connection.
func (t *Transport) send(c *Conn, req *http.Request) (*http.Response, error) {
	out := req.Clone(req.Context())
	// What was appraised, and nothing that was started since, may answer: whatever a policy
	// says of services, a receipt under another head would be nobody's.
	head := c.proved().RuntimeHead
	out.Header.Set(service.HeaderRuntimeHead, hex.EncodeToString(head[:]))
	var gate *gatedBody
	if req.Body != nil && req.Body != http.NoBody {
		gate = &gatedBody{ReadCloser: req.Body, t: t, c: c, ctx: req.Context()}
		out.Body, out.GetBody = gate, nil // a second body would go around the gate
	}
	c.touch(t.cfg.Now())
	resp, err := c.http.RoundTrip(out)
	if why := gate.refusal(); why != nil {
		if err == nil { // the answer to half a request
			resp.Body.Close()
		}
		return nil, why
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		// What is written behind it would pass no gate.
		c.Close()
		resp.Body.Close()
		r := refuse(attest.CodeProtocol, "answer", resp.Status, "HTTP, of which each request is let out by itself")
		r.Address = c.address
		return nil, r
	}
	if changed(resp) {
		c.expire()
	}
	return resp, nil
}

// changed reports whether a node says that it has started something since it was appraised.
func changed(resp *http.Response) bool {
	return resp != nil && resp.StatusCode == http.StatusPreconditionFailed && resp.Request != nil && resp.Request.Header.Get(service.HeaderRuntimeHead) != ""
}

// harmless reports whether a request that may have arrived can be sent again.
func harmless(req *http.Request) bool {
	switch req.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// rewound returns req with its body at the beginning, or nil if it cannot be sent again.
func rewound(req *http.Request) *http.Request {
	switch {
	case req.Context().Err() != nil:
		return nil
	case req.Body == nil || req.Body == http.NoBody:
		return req
	case req.GetBody == nil:
		return nil
	}
	body, err := req.GetBody()
	if err != nil {
		return nil
	}
	again := req.Clone(req.Context())
	again.Body = body
	return again
}

// Attest makes sure that a connection to address (host:port) is there, and returns what it
// has proved.
func (t *Transport) Attest(ctx context.Context, address string) (Session, error) {
	c, _, err := t.conn(ctx, address)
	if err != nil {
		return Session{}, err
	}
	c.http.Release()
	return c.proved(), nil
}

// conn returns a kept connection whose proof is believed now, with a reservation for one
// request; fresh says that it was made for it.
func (t *Transport) conn(ctx context.Context, address string) (c *Conn, fresh bool, err error) {
	if c, err = t.believed(ctx, address); c != nil || err != nil {
		return c, false, err
	}
	leave, err := t.enter(ctx, address)
	if err != nil {
		return nil, false, err
	}
	defer leave()
	// Another request may have made one while this one waited.
	if c, err = t.believed(ctx, address); c != nil || err != nil {
		return c, false, err
	}
	if c, err = t.connect(ctx, address); err != nil {
		return nil, false, err
	}
	if err = c.reserve(ctx); err != nil {
		c.Close()
		return nil, false, err
	}
	// Kept before the next one enters, or that one would make another.
	c.touch(t.cfg.Now())
	t.keep(c)
	return c, true, nil
}

// believed returns a kept connection with a reservation and a proof that is believed, or nil.
func (t *Transport) believed(ctx context.Context, address string) (*Conn, error) {
	for {
		c, err := t.kept(address)
		if c == nil || err != nil {
			return nil, err
		}
		switch err := t.refresh(ctx, c); {
		case err == nil:
			return c, nil
		case errors.Is(err, errTaken): // look for another
		default:
			c.Close()
			return nil, err
		}
	}
}

// enter lets one request at a time make a connection to an address: those who wait for it
// can mostly share it.
func (t *Transport) enter(ctx context.Context, address string) (leave func(), err error) {
	t.mu.Lock()
	door := t.dialing[address]
	if door == nil {
		door = make(chan struct{}, 1)
		t.dialing[address] = door
	}
	t.mu.Unlock()
	select {
	case door <- struct{}{}:
		return func() { <-door }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// kept returns a kept connection with a reservation, or nil. Dead and idle ones go.
func (t *Transport) kept(address string) (*Conn, error) {
	now := t.cfg.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	t.conns[address] = slices.DeleteFunc(t.conns[address], func(c *Conn) bool {
		dead := c.http.Err() != nil || c.http.InFlight() == 0 && now.Sub(c.idleSince()) > idleTimeout
		if dead {
			c.Close()
		}
		return dead
	})
	for _, c := range t.conns[address] {
		if c.http.Reserve() == nil {
			return c, nil
		}
	}
	return nil, nil
}

// keep offers c to other requests.
func (t *Transport) keep(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		c.Close()
		return
	}
	list := append(t.conns[c.address], c)
	if len(list) > maxIdle {
		if i := slices.IndexFunc(list, func(c *Conn) bool { return c.http.InFlight() == 0 }); i >= 0 {
			list[i].Close()
			list = slices.Delete(list, i, i+1)
		}
	}
	t.conns[c.address] = list
}

// connect makes and verifies a connection.
func (t *Transport) connect(ctx context.Context, address string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, attestTimeout)
	defer cancel()
	c, err := Connect(ctx, address, t.cfg.Dial)
	if err != nil {
		return nil, err
	}
	if err := t.attest(ctx, c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// refresh asks for another proof where the last is not believed any more. The caller holds a
// reservation, which it still holds where the error is nil.
func (t *Transport) refresh(ctx context.Context, c *Conn) error {
	if c.valid(t.cfg.Now()) {
		return nil
	}
	c.http.Release() // the challenge needs its turn on a connection of HTTP/1.1
	if err := t.renew(ctx, c); err != nil {
		return err
	}
	return c.reserve(ctx)
}

// renew asks for another proof, unless somebody else got one meanwhile.
func (t *Transport) renew(ctx context.Context, c *Conn) error {
	select {
	case c.challenging <- struct{}{}:
		defer func() { <-c.challenging }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if c.valid(t.cfg.Now()) {
		return nil
	}
	return t.attest(ctx, c)
}

// attest challenges a connection and judges the answer.
func (t *Transport) attest(ctx context.Context, c *Conn) error {
	sighting, err := c.Challenge(ctx, t.cfg.Now())
	if err != nil {
		return err
	}
	session, err := t.verifier.Judge(ctx, sighting)
	if err != nil {
		return err
	}
	if got := c.state.CurveID; got != tls.X25519MLKEM768 {
		// Judged last, so that a middlebox is named before its key exchange is.
		r := refuse(attest.CodeProtocol, "key exchange", got.String(), tls.X25519MLKEM768.String())
		r.Address = c.address
		return r
	}
	c.mu.Lock()
	session.Again = c.session != nil
	c.session, c.used = &session, session.AttestedAt
	c.mu.Unlock()
	if t.cfg.OnSession != nil {
		t.cfg.OnSession(session)
	}
	return nil
}

// CloseIdleConnections closes connections without a request.
func (t *Transport) CloseIdleConnections() {
	t.closeIf(func(c *Conn) bool { return c.http.InFlight() == 0 })
}

// Close closes all connections, and refuses to make more.
func (t *Transport) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.closeIf(func(*Conn) bool { return true })
	return nil
}

func (t *Transport) closeIf(which func(*Conn) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for address, list := range t.conns {
		t.conns[address] = slices.DeleteFunc(list, func(c *Conn) bool {
			gone := which(c)
			if gone {
				c.Close()
			}
			return gone
		})
	}
}

// gatedBody lets a request's body out only while the connection's proof is believed.
type gatedBody struct {
	io.ReadCloser
	t   *Transport
	c   *Conn
	ctx context.Context

	mu  sync.Mutex
	why error // guarded by mu
}

// Read implements io.Reader.
func (b *gatedBody) Read(p []byte) (int, error) {
	if b.c.valid(b.t.cfg.Now()) {
		return b.ReadCloser.Read(p)
	}
	if err := b.renew(); err != nil {
		b.mu.Lock()
		b.why = err
		b.mu.Unlock()
		b.c.Close()
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

// renew gets another proof while the request is under way. HTTP/1.1 has no room for a
// challenge before this request has ended.
func (b *gatedBody) renew() error {
	if b.c.Protocol() == "h2" {
		return b.t.renew(b.ctx, b.c)
	}
	r := refuse(attest.CodeStale, "connection", "the proof ended while the request was being sent", "one that is believed; HTTP/2 can renew it meanwhile")
	r.Address = b.c.address
	return r
}

// refusal is why the body was held back, or nil.
func (b *gatedBody) refusal() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.why
}

func addressOf(req *http.Request) (string, error) {
	if req.URL == nil || req.URL.Scheme != "https" || req.URL.Hostname() == "" {
		return "", fmt.Errorf("client: %v is no https URL", req.URL)
	}
	port := req.URL.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(req.URL.Hostname(), port), nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}
