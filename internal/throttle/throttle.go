// Package throttle bounds what strangers who reach a port can cost: requests by a token
// bucket per remote address (Requests), connections by a number in all and of one remote
// (Listener). Of IPv6 a remote is the /64, which one host owns whole. What those who are known by
// name may have refused is bounded by a debt for each (Refusals). Time is given by the caller, but
// for connections, which have none; every zero value lets nobody in.
package throttle

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Requests is a token bucket per remote address. Its memory is bounded: when it knows too
// many remotes it forgets those whose buckets are full again, else any one: a stranger
// with many addresses then gets more than his share, but locks nobody out. The zero value
// allows nothing.
type Requests struct {
	Rate    float64 // tokens a second
	Burst   float64 // tokens at first, and never more
	Remotes int     // how many remotes are remembered

	mu      sync.Mutex
	remotes map[string]bucket // guarded by mu
}

type bucket struct {
	tokens float64
	at     time.Time
}

// Allow takes one token of a remote.
func (l *Requests) Allow(remote string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.remotes == nil {
		l.remotes = map[string]bucket{}
	}
	b, known := l.remotes[remote]
	if !known {
		if len(l.remotes) >= l.Remotes {
			l.forget(now)
		}
		b = bucket{l.Burst, now}
	}
	b = l.refilled(b, now)
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	l.remotes[remote] = b
	return allowed
}

// refilled returns b at now; a clock that goes back refills nothing.
func (l *Requests) refilled(b bucket, now time.Time) bucket {
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.tokens = min(l.Burst, b.tokens+passed*l.Rate)
	}
	b.at = now
	return b
}

// forget makes room for one remote; mu is held.
func (l *Requests) forget(now time.Time) {
	any := ""
	for remote, b := range l.remotes {
		if any = remote; l.refilled(b, now).tokens >= l.Burst {
			delete(l.remotes, remote)
		}
	}
	if len(l.remotes) >= l.Remotes {
		delete(l.remotes, any)
	}
}

// Listener closes what comes over the limits at once.
type Listener struct {
	net.Listener
	max, maxRemote int

	mu     sync.Mutex
	total  int            // guarded by mu
	remote map[string]int // guarded by mu
}

// NewListener bounds ln to max connections at a time, and maxRemote of one remote.
func NewListener(ln net.Listener, max, maxRemote int) *Listener {
	return &Listener{Listener: ln, max: max, maxRemote: maxRemote, remote: map[string]int{}}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := RemoteHost(conn.RemoteAddr().String())
		if l.take(host) {
			return &boundedConn{Conn: conn, release: sync.OnceFunc(func() { l.put(host) })}, nil
		}
		conn.Close()
	}
}

func (l *Listener) take(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= l.max || l.remote[host] >= l.maxRemote {
		return false
	}
	l.total++
	l.remote[host]++
	return true
}

func (l *Listener) put(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.remote[host]--; l.remote[host] == 0 {
		delete(l.remote, host)
	}
}

type boundedConn struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// RemoteHost is the address without its port; of IPv6 the /64, which one host owns whole.
func RemoteHost(addr string) string {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return addr
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(64)
	if err != nil {
		return ip.String()
	}
	return prefix.String()
}
