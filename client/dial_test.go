package client_test

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/client"
)

// A stock transport that is given the dialler sends nothing to a node that is not verified.
func TestStockTransport(t *testing.T) {
	for name, tc := range refusals() {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, "stock", orgs...)
			n := serve(t, m, bob, "one")
			if tc.spoil != nil {
				tc.spoil(t, n)
			}
			stock := &http.Transport{DialTLSContext: transport(t, m, tc.policy, nil).DialTLSContext}
			defer stock.CloseIdleConnections()
			if _, _, err := ask(stock, n.address, "a secret"); code(err) != tc.want || n.requests.Load() != 0 {
				t.Errorf("got %v and %d requests, want %s", err, n.requests.Load(), tc.want)
			}
		})
	}
	m := newMesh(t, "stock", orgs...)
	n := serve(t, m, bob, "one")
	clk := &clock{}
	tr := transport(t, m, client.Policy{MaxAge: time.Hour}, func(c *client.Config) { c.Now = clk.now })
	stock := &http.Transport{DialTLSContext: tr.DialTLSContext}
	defer stock.CloseIdleConnections()
	for range 2 {
		if out, resp, err := ask(stock, n.address, "prompt"); err != nil || out != "POST /services/x prompt" || resp.ProtoMajor != 1 {
			t.Fatalf("got %q, %v", out, err)
		}
	}
	if n.conns.Load() != 1 || n.challenges.Load() != 1 {
		t.Errorf("%d challenges on %d connections, want 1 on 1", n.challenges.Load(), n.conns.Load())
	}
	// When the proof has ended the transport gets another connection, with another proof.
	clk.advance(client.DefaultReattest)
	if _, _, err := ask(stock, n.address, "prompt"); err != nil || n.conns.Load() != 2 || n.challenges.Load() != 2 {
		t.Errorf("got %v after %d challenges on %d connections", err, n.challenges.Load(), n.conns.Load())
	}
	conn, err := tr.DialTLSContext(t.Context(), "tcp", n.address)
	if err != nil {
		t.Fatal(err)
	}
	clk.advance(client.DefaultReattest)
	var r *client.Refusal
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\n")); !errors.As(err, &r) || r.Code() != attest.CodeStale {
		t.Errorf("got %v", err)
	}
	if _, err := tr.DialTLSContext(t.Context(), "tcp", "127.0.0.1:1"); err == nil {
		t.Error("a closed port answered")
	}
}
