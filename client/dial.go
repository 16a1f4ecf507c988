package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// DialTLSContext returns a connection over which a node has proved itself, for programs that
// bring an HTTP/1.1 client of their own: it is the DialTLSContext of an http.Transport. It is
// not renewed. Once its proof has ended nothing can be written to it; an http.Transport then
// dials again, and the next connection has a proof of its own. Of t only Config is used.
func (t *Transport) DialTLSContext(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, attestTimeout)
	defer cancel()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	dial := t.cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	raw, err := dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	conn, err := t.prove(ctx, raw, host, address)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func (t *Transport) prove(ctx context.Context, raw net.Conn, host, address string) (net.Conn, error) {
	cfg := tlsConfig(host)
	cfg.NextProtos = []string{"http/1.1"}
	conn := tls.Client(raw, cfg)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	c := &Conn{address: address, state: conn.ConnectionState(), post: func(r *http.Request) (*http.Response, error) { return exchange(conn, r) }}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := t.attest(ctx, c); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, ctx.Err()
	}
	s := c.proved()
	return &provedConn{Conn: conn, address: address, notAfter: s.NotAfter, now: t.cfg.Now}, nil
}

// exchange sends one request on a connection that nothing else uses and returns the answer,
// whose body ends with the answer: what came after it would be nobody's.
func exchange(conn net.Conn, r *http.Request) (*http.Response, error) {
	if err := r.Write(conn); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, r)
	if err != nil {
		return nil, err
	}
	if resp.Close {
		resp.Body.Close()
		return nil, errors.New("the server ends the connection with its answer")
	}
	resp.Body = exactBody{resp.Body, reader}
	return resp, nil
}

type exactBody struct {
	body   io.ReadCloser
	reader *bufio.Reader
}

// Read implements io.Reader.
func (b exactBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if err != nil && b.reader.Buffered() > 0 {
		return n, errors.New("bytes after the answer that nobody asked for")
	}
	return n, err
}

// Close implements io.Closer.
func (b exactBody) Close() error { return b.body.Close() }

// provedConn takes nothing to send once its proof has ended.
type provedConn struct {
	net.Conn
	address  string
	notAfter time.Time
	now      func() time.Time
}

// Write implements net.Conn.
func (c *provedConn) Write(p []byte) (int, error) {
	if !c.now().Before(c.notAfter) {
		c.Conn.Close()
		r := refuse(attest.CodeStale, "connection", "its proof ended at "+c.notAfter.UTC().Format(time.RFC3339), "one that is believed; dial again")
		r.Address = c.address
		return 0, r
	}
	return c.Conn.Write(p)
}
