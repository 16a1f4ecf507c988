package loopback

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestAddress(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		a := Address(t)
		if seen[a] {
			t.Fatalf("%s twice", a)
		}
		seen[a] = true
		l, err := net.Listen("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, port, _ := net.SplitHostPort(a); len(port) != 5 || port >= "32768" {
			t.Errorf("port %s is one that the kernel may choose", port)
		}
	}
}

// A second process, or another test, does not get what is reserved.
func TestReserve(t *testing.T) {
	path := filepath.Join(t.TempDir(), "1")
	first, err := reserve(path)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := reserve(path); err == nil {
		second.Close()
		t.Fatal("reserved twice")
	}
	first.Close()
	again, err := reserve(path)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
