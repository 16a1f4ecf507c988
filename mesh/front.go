package mesh

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sys/unix"
)

// front stands before libp2p and hands over a connection when its first byte is there and
// intake has a place for it. A socket that is opened and left silent costs an attacker
// nothing, while libp2p would keep one of its few slots for handshakes for it until the
// accept timeout, and honest peers out.
type front struct {
	manet.Listener
	intake *intake
	ready  chan accepted
	done   chan struct{} // closed by Close
	tasks  sync.WaitGroup

	mu     sync.Mutex
	silent map[*visitor]struct{} // guarded by mu
	closed bool                  // guarded by mu
}

type accepted struct {
	conn manet.Conn
	err  error
}

func newFront(l manet.Listener, i *intake) *front {
	f := &front{Listener: l, intake: i, ready: make(chan accepted), done: make(chan struct{}), silent: map[*visitor]struct{}{}}
	f.tasks.Go(f.run)
	return f
}

func (f *front) run() {
	for {
		conn, err := f.Listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			f.hand(accepted{err: err})
			return
		case err != nil:
			if !f.hand(accepted{err: err}) {
				return
			}
		default:
			if v := f.intake.enter(conn); v != nil {
				f.hold(v)
			}
		}
	}
}

// hold waits for v's first byte beside the other silent connections.
func (f *front) hold(v *visitor) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		_ = v.Close()
		return
	}
	f.silent[v] = struct{}{}
	f.tasks.Go(func() {
		ok := spoke(v.Conn)
		f.mu.Lock()
		delete(f.silent, v)
		f.mu.Unlock()
		switch {
		case !ok:
			f.intake.expel(v, turnedSilent)
		case !f.intake.spoke(v):
		case !f.hand(accepted{conn: v}):
			_ = v.Close()
		}
	})
}

// spoke waits for the first byte of conn and leaves it there. Connections that are no
// sockets pass.
func spoke(conn manet.Conn) bool {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil || conn.SetReadDeadline(time.Now().Add(silentTimeout)) != nil {
		return false
	}
	var n int
	var peek error
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, peek = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if !errors.Is(peek, unix.EINTR) {
				return !errors.Is(peek, unix.EAGAIN)
			}
		}
	})
	return err == nil && peek == nil && n > 0 && conn.SetReadDeadline(time.Time{}) == nil
}

func (f *front) hand(a accepted) bool {
	select {
	case f.ready <- a:
		return true
	case <-f.done:
		return false
	}
}

// Accept implements manet.Listener.
func (f *front) Accept() (manet.Conn, error) {
	select {
	case a := <-f.ready:
		return a.conn, a.err
	case <-f.done:
		return nil, net.ErrClosed
	}
}

// Close implements manet.Listener; silent connections go with it.
func (f *front) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	close(f.done)
	for v := range f.silent {
		_ = v.Close()
	}
	f.mu.Unlock()
	err := f.Listener.Close()
	f.tasks.Wait()
	return err
}
