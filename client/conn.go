package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
)

// Conn is one HTTPS connection whose TLS state is known, so that challenges can be bound to
// it. Close ends it.
type Conn struct {
	address string
	http    *http.ClientConn
	post    func(*http.Request) (*http.Response, error) // a challenge; http's, or the dialler's
	state   tls.ConnectionState

	challenging chan struct{} // holds a token while a challenge is out
	moved       chan struct{} // a token when a request has ended, or the connection has

	mu      sync.Mutex
	session *Session  // guarded by mu; nil until verified
	used    time.Time // guarded by mu
}

// tlsConfig is what every connection is made with. No name is verified and no authority
// asked: evidence stands in for both, once the connection is up.
func tlsConfig(host string) *tls.Config {
	return &tls.Config{
		ServerName:         host,
		MinVersion:         tls.VersionTLS13,
		CurvePreferences:   []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256},
		NextProtos:         []string{"h2", "http/1.1"},
		InsecureSkipVerify: true,
		// No ClientSessionCache: a resumed connection would skip what VerifyConnection sees.
		VerifyConnection: checkConnection,
	}
}

func checkConnection(cs tls.ConnectionState) error {
	switch {
	case cs.Version != tls.VersionTLS13:
		return refuse(attest.CodeProtocol, "connection", tls.VersionName(cs.Version), "TLS 1.3")
	case cs.DidResume:
		return refuse(attest.CodeProtocol, "connection", "resumed", "a full handshake")
	case len(cs.PeerCertificates) == 0:
		return refuse(attest.CodeProtocol, "connection", "no certificate", "one")
	}
	return nil
}

// Connect makes a connection to address, host:port, that has proved nothing yet. dial may be
// nil.
func Connect(ctx context.Context, address string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (*Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	c := &Conn{address: address, challenging: make(chan struct{}, 1), moved: make(chan struct{}, 1)}
	// One http.Transport per connection: it makes one, keeps none, and asks no proxy.
	t := &http.Transport{
		ForceAttemptHTTP2: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		DialTLSContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			raw, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, tlsConfig(host))
			if err := conn.HandshakeContext(ctx); err != nil {
				raw.Close()
				return nil, err
			}
			c.state = conn.ConnectionState()
			return conn, nil
		},
	}
	c.http, err = t.NewClientConn(ctx, "https", address)
	if err != nil {
		var refusal *Refusal
		if errors.As(err, &refusal) {
			refusal.Address = address
			return nil, refusal
		}
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	c.post = c.http.RoundTrip
	c.http.SetStateHook(func(*http.ClientConn) {
		select {
		case c.moved <- struct{}{}:
		default:
		}
	})
	return c, nil
}

// errTaken is a connection that another request has.
var errTaken = errors.New("the connection is taken by another request")

// reserve takes the next turn on the connection. After a challenge over HTTP/1.1 it takes a
// moment until the connection is ready again; another request may come first.
func (c *Conn) reserve(ctx context.Context) error {
	timer := time.NewTimer(reserveWithin)
	defer timer.Stop()
	for {
		if c.http.Reserve() == nil {
			return nil
		}
		if err := c.http.Err(); err != nil {
			return fmt.Errorf("%s: %w", c.address, err)
		}
		select {
		case <-c.moved:
		case <-timer.C:
			return errTaken
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close closes the connection; requests on it fail.
func (c *Conn) Close() error { return c.http.Close() }

// Protocol is the application protocol that was negotiated.
func (c *Conn) Protocol() string {
	if c.state.NegotiatedProtocol == "" {
		return "http/1.1"
	}
	return c.state.NegotiatedProtocol
}

// TLS is the state of the connection.
func (c *Conn) TLS() tls.ConnectionState { return c.state }

// Challenge asks for a fresh answer on this connection, and judges nothing but its form.
func (c *Conn) Challenge(ctx context.Context, now time.Time) (Sighting, error) {
	s := Sighting{Address: c.address, Protocol: c.Protocol(), Leaf: c.state.PeerCertificates[0], At: now}
	_, _ = rand.Read(s.Nonce[:])
	var err error
	if s.EKM, err = ratls.EKM(c.state.ExportKeyingMaterial, s.Nonce); err != nil {
		return Sighting{}, fmt.Errorf("%s: %w", c.address, err)
	}
	raw, err := c.ask(ctx, ratls.Request{Nonce: s.Nonce}.Encode())
	if err != nil {
		return Sighting{}, err
	}
	if s.Answer, err = ratls.DecodeAnswer(raw); err != nil {
		return Sighting{}, c.refusal(attest.CodeMalformed, "answer", err.Error(), "a canonical answer")
	}
	return s, nil
}

// ask posts a challenge and returns the body of the answer.
func (c *Conn) ask(ctx context.Context, challenge []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, challengeTimeout)
	defer cancel()
	u := url.URL{Scheme: "https", Host: c.address, Path: ratls.Path}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(challenge))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.post(req)
	if err != nil {
		return nil, fmt.Errorf("challenge to %s: %w", c.address, err)
	}
	defer resp.Body.Close()
	limit := int64(ratls.MaxAnswer)
	if resp.StatusCode != http.StatusOK {
		limit = ratls.MaxRefusal
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("challenge to %s: %w", c.address, err)
	}
	if resp.StatusCode != http.StatusOK {
		if why, ok := ratls.DecodeRefusal(raw); ok {
			return nil, (&Refusal{Address: c.address, Reasons: []attest.Reason{why}, Node: true}).forClients()
		}
		return nil, c.refusal(attest.CodeProtocol, "challenge", "status "+resp.Status, "an answer: is this the https address of a node?")
	}
	if int64(len(raw)) > limit {
		return nil, c.refusal(attest.CodeMalformed, "answer", fmt.Sprintf("over %d bytes", limit), "an answer")
	}
	return raw, nil
}

// refusal is of an answer that is none. Where the certificate holds no evidence either, a
// middlebox or another server is the likeliest cause, and is named.
func (c *Conn) refusal(code attest.Code, claim, got, want string) *Refusal {
	r := refuse(code, claim, got, want)
	r.Address = c.address
	if leaf := c.state.PeerCertificates[0]; !ratls.HasProof(leaf) {
		why := attest.NewReason(attest.CodeNotBound, "connection", "it ends at "+describe(leaf, ratls.SPKIHash(leaf)), "a certificate whose evidence names its key")
		why.Remedy = "give the https address of a node; if this is one, something between you and it terminates TLS"
		r.Reasons = append(r.Reasons, why)
	}
	return r
}

// valid reports whether the connection's proof is still believed.
func (c *Conn) valid(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session != nil && now.Before(c.session.NotAfter)
}

func (c *Conn) proved() Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return Session{}
	}
	return *c.session
}

// expire voids the proof: the next request asks for another.
func (c *Conn) expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session != nil {
		c.session.NotAfter = c.session.AttestedAt
	}
}

func (c *Conn) touch(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used = now
}

func (c *Conn) idleSince() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}
