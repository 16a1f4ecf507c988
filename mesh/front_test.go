package mesh

import (
	"net"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// Sockets that say nothing take no slot away from those who speak, and are closed.
func TestSilentConnectionsKeepNobodyOut(t *testing.T) {
	t.Parallel()
	w := newLibp2pWorld(t)
	n, peer := w.node("alpha/n1", nil), w.node("beta/n1", nil)
	addr, err := manet.ToNetAddr(ma.StringCast(n.Addrs()[0]))
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, limitHandshakes+8)
	for i := range conns {
		if conns[i], err = net.Dial("tcp", addr.String()); err != nil {
			t.Fatal(err)
		}
		defer conns[i].Close()
	}
	w.dial(peer, n)
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(4 * silentTimeout))
		if got, err := c.Read(make([]byte, 64)); got != 0 || isTimeout(err) {
			t.Fatalf("connection %d: read %d bytes and %v, want it closed in silence", i, got, err)
		}
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// listener hands out the connections that it is given.
type listener struct {
	manet.Listener
	conns chan manet.Conn
}

func (l *listener) Accept() (manet.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l *listener) Close() error { close(l.conns); return nil }

// tcpPair returns the two ends of one connection.
func tcpPair(t *testing.T) (client net.Conn, server manet.Conn) {
	t.Helper()
	l, err := manet.Listen(ma.StringCast("/ip4/127.0.0.1/tcp/0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err == nil {
		server, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client, server
}

func TestFront(t *testing.T) {
	inner := &listener{conns: make(chan manet.Conn)}
	in := newIntake(nil, newIntakeLimits(1<<20))
	f := newFront(inner, in)
	mute, muteServer := tcpPair(t)
	inner.conns <- muteServer
	loud, loudServer := tcpPair(t)
	inner.conns <- loudServer
	if _, err := loud.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got, err := f.Accept()
	if v, ok := got.(*visitor); err != nil || !ok || v.Conn != loudServer {
		t.Fatalf("got %v, %v, want the connection that spoke", got, err)
	}
	defer got.Close()
	if err := got.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 5)
	if _, err := got.Read(first); err != nil || string(first) != "hello" {
		t.Errorf("read %q, %v: its first bytes are gone", first, err)
	}
	// The longest silent one makes room.
	in.strangers.maxSilent = 1
	_, late := tcpPair(t)
	inner.conns <- late
	_ = mute.SetReadDeadline(time.Now().Add(silentTimeout / 2))
	if n, err := mute.Read(first); n != 0 || isTimeout(err) {
		t.Errorf("read %d, %v, want the longest silent connection closed", n, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if _, err := f.Accept(); err == nil {
		t.Error("a closed front accepts")
	}
}
