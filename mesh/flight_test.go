package mesh

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
)

// recorded is a connection that keeps each write apart.
type recorded struct {
	net.Conn
	writes [][]byte
	err    error
	answer io.Reader
}

func (c *recorded) Write(p []byte) (int, error) {
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), c.err
}

func (c *recorded) Read(p []byte) (int, error) { return c.answer.Read(p) }

func TestFlightSendsWhenItWaits(t *testing.T) {
	below := &recorded{answer: bytes.NewReader([]byte("ab"))}
	f := &flight{Conn: below}
	for _, s := range []string{"Finished ", "HELLO_I"} {
		if n, err := f.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if len(below.writes) != 0 {
		t.Fatalf("sent %q before anything was waited for", below.writes)
	}
	var one [1]byte
	for range 2 {
		if _, err := f.Read(one[:]); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = f.Write([]byte("ACK"))
	if err := f.land(); err != nil {
		t.Fatal(err)
	}
	_, _ = f.Write([]byte("SYN"))
	if want := [][]byte{[]byte("Finished HELLO_I"), []byte("ACK"), []byte("SYN")}; !equalWrites(below.writes, want) {
		t.Errorf("sent %q, want %q", below.writes, want)
	}
}

func equalWrites(a, b [][]byte) bool {
	return bytes.Equal(bytes.Join(a, []byte("|")), bytes.Join(b, []byte("|")))
}

// What the peer said before it hung up is read although our write fails; a write that
// nothing is read after fails by land.
func TestFlightThatFails(t *testing.T) {
	broken := errors.New("broken pipe")
	f := &flight{Conn: &recorded{err: broken, answer: bytes.NewReader([]byte("REFUSAL"))}}
	_, _ = f.Write([]byte("HELLO_I"))
	var buf [16]byte
	if n, err := f.Read(buf[:]); err != nil || string(buf[:n]) != "REFUSAL" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	_, _ = f.Write([]byte("ACK"))
	if err := f.land(); !errors.Is(err, broken) {
		t.Errorf("landed: %v", err)
	}
}
