package throttle

import (
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	l := Requests{Rate: 5, Burst: 40, Remotes: 4096}
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range 2 * l.Remotes {
		if !l.Allow(time.Duration(i).String(), now) {
			t.Fatalf("remote %d is locked out", i)
		}
	}
	if len(l.remotes) > l.Remotes {
		t.Errorf("%d remotes remembered", len(l.remotes))
	}
	now = now.Add(time.Hour)
	l.Allow("one", now)
	if len(l.remotes) != 1 {
		t.Errorf("%d remotes remembered after an hour", len(l.remotes))
	}
	var zero Requests
	if zero.Allow("x", now) {
		t.Error("the zero value allows")
	}
	// A clock that goes back gives nothing away.
	back := Requests{Rate: 5, Burst: 40, Remotes: 4096}
	for range int(back.Burst) {
		back.Allow("x", now)
	}
	for range 2 {
		if back.Allow("x", now.Add(-time.Hour)) {
			t.Error("a clock that went back refilled the bucket")
		}
	}
}

func TestRemoteHost(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:80":               "192.0.2.1",
		"[::ffff:192.0.2.1]:80":      "192.0.2.1",
		"[2001:db8:1:2:3:4:5:6]:80":  "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::1]:443": "2001:db8:1:2::/64",
		"pipe":                       "pipe",
	} {
		if got := RemoteHost(in); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func TestListenerBoundsConnections(t *testing.T) {
	const maxConnections, maxConnectionsPerRemote = 64, 16
	l := NewListener(nil, maxConnections, maxConnectionsPerRemote)
	for range maxConnectionsPerRemote {
		if !l.take("a") {
			t.Fatal("refused below the limit")
		}
	}
	if l.take("a") {
		t.Error("one remote took more than its share")
	}
	taken := maxConnectionsPerRemote
	for i := 0; l.take(time.Duration(i / maxConnectionsPerRemote).String()); i++ {
		taken++
	}
	if taken != maxConnections {
		t.Errorf("%d connections, want %d", taken, maxConnections)
	}
	l.put("a")
	if !l.take("a") {
		t.Error("a closed connection still counts")
	}
}
