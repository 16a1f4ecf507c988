package node

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

// Connections that are held open from one address leave room for those of others.
func TestPublicListenerLeavesRoom(t *testing.T) {
	m, _ := testMachine(t)
	n := &Node{machine: m, genesis: m.state.Genesis(), log: slog.New(slog.DiscardHandler)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- n.servePublic(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)), Timeout: 5 * time.Second}
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(4 * time.Second)) // shorter than the server waits for a header
		return c
	}
	for range maxVisitorsPerRemote {
		dial("127.0.0.1")
	}
	if _, err := dial("127.0.0.1").Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("one more of the same address: %v, want it closed", err)
	}
	c := dial("127.0.0.2")
	if _, err := io.WriteString(c, "GET "+pathPolicy+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("another address: %s", resp.Status)
	}
}
