// Package loopback gives tests addresses that stay free until the program they are told to listens
// there. A port that the kernel chose is anybody's again once its listener is closed: the next
// connection that some other test dials may leave from it. So ports come from below the range
// that the kernel takes ports from, and a lock keeps other tests' processes off them.
package loopback

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// lowest is above the ports that services are known by.
const lowest = 12000

// Address returns "127.0.0.1:PORT", which nobody else gets until the test ends.
func Address(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(os.TempDir(), "meshnode-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	end := firstEphemeral()
	for range 1000 {
		port := lowest + rand.N(end-lowest)
		lock, err := reserve(filepath.Join(dir, strconv.Itoa(port)))
		if errors.Is(err, syscall.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", address)
		if err != nil {
			lock.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { lock.Close() })
		return address
	}
	t.Fatalf("no free port from %d to %d", lowest, end)
	return ""
}

// Port is the port of an Address.
func Port(t testing.TB) string {
	t.Helper()
	_, port, err := net.SplitHostPort(Address(t))
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// reserve locks a file for as long as it is open, or as the process lives.
func reserve(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o666)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// firstEphemeral is the first port that the kernel chooses by itself: Linux's default where the
// system does not say.
func firstEphemeral() int {
	first := 32768
	if raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var low int
		if _, err := fmt.Sscan(string(raw), &low); err == nil && low > lowest+1000 {
			first = low
		}
	}
	return first
}
