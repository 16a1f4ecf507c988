package enroll

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// limiter is a token bucket per remote address. Its memory is bounded: when it knows too
// many remotes it forgets those whose buckets are full again, else any one: a stranger
// with many addresses then gets more than his share, but locks nobody out.
type limiter struct {
	mu      sync.Mutex
	remotes map[string]bucket // guarded by mu
}

type bucket struct {
	tokens float64
	at     time.Time
}

// allow takes one token of a remote.
func (l *limiter) allow(remote string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.remotes == nil {
		l.remotes = map[string]bucket{}
	}
	b, known := l.remotes[remote]
	if !known {
		if len(l.remotes) >= maxRemotes {
			l.forget(now)
		}
		b = bucket{requestBurst, now}
	}
	b = b.refilled(now)
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	l.remotes[remote] = b
	return allowed
}

// refilled returns b at now; a clock that goes back refills nothing.
func (b bucket) refilled(now time.Time) bucket {
	if passed := now.Sub(b.at).Seconds(); passed > 0 {
		b.tokens = min(requestBurst, b.tokens+passed*requestRate)
	}
	b.at = now
	return b
}

// forget makes room for one remote; mu is held.
func (l *limiter) forget(now time.Time) {
	any := ""
	for remote, b := range l.remotes {
		if any = remote; b.refilled(now).tokens >= requestBurst {
			delete(l.remotes, remote)
		}
	}
	if len(l.remotes) >= maxRemotes {
		delete(l.remotes, any)
	}
}

// boundedListener closes what comes over the limits at once.
type boundedListener struct {
	net.Listener

	mu     sync.Mutex
	total  int            // guarded by mu
	remote map[string]int // guarded by mu
}

func newBoundedListener(ln net.Listener) *boundedListener {
	return &boundedListener{Listener: ln, remote: map[string]int{}}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := remoteHost(conn.RemoteAddr().String())
		if l.take(host) {
			return &boundedConn{Conn: conn, release: sync.OnceFunc(func() { l.put(host) })}, nil
		}
		conn.Close()
	}
}

func (l *boundedListener) take(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.total >= maxConnections || l.remote[host] >= maxConnectionsPerRemote {
		return false
	}
	l.total++
	l.remote[host]++
	return true
}

func (l *boundedListener) put(host string) {
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

// remoteHost is the address without its port; of IPv6 the /64, which one host owns whole.
func remoteHost(addr string) string {
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
