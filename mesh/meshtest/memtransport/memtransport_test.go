package memtransport

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

const latency = 20 * time.Millisecond

// connect returns both ends of a plain connection from host a to host b.
func connect(t *testing.T, n *Network) (ours, theirs net.Conn) {
	t.Helper()
	l, err := n.Listen("b", "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	ours, err = n.Dial(t.Context(), "a", "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	theirs = <-accepted
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

// receive reads exactly want from c and returns how long that took.
func receive(t *testing.T, c net.Conn, want string) time.Duration {
	t.Helper()
	start := time.Now()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("got %q, %v, want %q", got, err, want)
	}
	return time.Since(start)
}

func send(t *testing.T, c net.Conn, what string) {
	t.Helper()
	if _, err := c.Write([]byte(what)); err != nil {
		t.Fatal(err)
	}
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ours, theirs := connect(t, &Network{Latency: latency})
		if d := time.Since(start); d != 2*latency {
			t.Errorf("connecting took %s, want %s", d, 2*latency)
		}
		send(t, ours, "one")
		send(t, ours, "two")
		if d := receive(t, theirs, "onetwo"); d != latency {
			t.Errorf("arrived after %s, want %s", d, latency)
		}
		ours.Close()
		start = time.Now()
		if _, err := theirs.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != latency {
			t.Errorf("after the other's Close: %v after %s, want EOF after %s", err, time.Since(start), latency)
		}
	})
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{Latency: latency}
		ours, theirs := connect(t, n)
		send(t, ours, "on the way, ")
		n.Silence("a", "b")
		send(t, ours, "lost at first")
		_ = theirs.SetReadDeadline(time.Now().Add(time.Hour))
		if k, err := theirs.Read(make([]byte, 1)); k != 0 || err == nil {
			t.Fatalf("read %d bytes through silence, %v", k, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.Dial(ctx, "a", "10.0.0.2:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a dial into silence: %v, want a time-out", err)
		}
		_ = theirs.SetReadDeadline(time.Time{})
		n.Heal("a", "b")
		if d := receive(t, theirs, "on the way, lost at first"); d > latency {
			t.Errorf("arrived %s after healing", d)
		}
	})
}

// A Close that waited for its blocked Read would stop the clock of a bubble for ever.
func TestCloseDuringSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{Latency: latency}
		ours, theirs := connect(t, n)
		n.Silence("a", "b")
		read := make(chan error, 1)
		go func() {
			_, err := ours.Read(make([]byte, 1))
			read <- err
		}()
		synctest.Wait()
		start := time.Now()
		ours.Close()
		if err := <-read; err == nil || time.Since(start) != 0 {
			t.Errorf("the blocked Read returned %v after %s", err, time.Since(start))
		}
		time.Sleep(time.Hour)
		send(t, theirs, "the peer cannot know yet")
		n.Heal("a", "b")
		if rest, err := io.ReadAll(theirs); err != nil || len(rest) > 0 {
			t.Errorf("after Heal the peer read %q, %v, want EOF", rest, err)
		}
		if _, err := theirs.Write([]byte("x")); err == nil {
			t.Error("the peer wrote on after Heal as if nothing had happened")
		}
	})
}

func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{Latency: latency}
		ours, theirs := connect(t, n)
		n.Cut("b", "a")
		for _, c := range []net.Conn{ours, theirs} {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, errUnreachable) {
				t.Errorf("read from a cut connection: %v", err)
			}
		}
		if _, err := n.Dial(t.Context(), "a", "10.0.0.2:80"); !errors.Is(err, errUnreachable) {
			t.Errorf("dialled through a cut: %v", err)
		}
		n.Heal("a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dial(ctx, "a", "10.0.0.2:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after Heal: %v, want a wait for somebody to accept", err)
		}
	})
}
