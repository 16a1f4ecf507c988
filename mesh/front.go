package mesh

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/sys/unix"
)

// front stands before libp2p and hands over a connection when its first byte is there. A
// socket that is opened and left silent costs an attacker nothing, while libp2p would keep
// one of its few slots for handshakes for it until the accept timeout, and honest peers out.
type front struct {
	manet.Listener
	ready chan accepted
	done  chan struct{} // closed by Close
	tasks sync.WaitGroup

	mu     sync.Mutex
	silent *list.List // guarded by mu: manet.Conn, the longest silent first
	closed bool       // guarded by mu
}

type accepted struct {
	conn manet.Conn
	err  error
}

func newFront(l manet.Listener) *front {
	f := &front{Listener: l, ready: make(chan accepted), done: make(chan struct{}), silent: list.New()}
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
			f.hold(conn)
		}
	}
}

// hold waits for conn's first byte beside the other silent connections. If they are too
// many the longest silent one goes: an honest peer speaks at once.
func (f *front) hold(conn manet.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		_ = conn.Close()
		return
	}
	if f.silent.Len() >= maxSilent {
		_ = f.silent.Remove(f.silent.Front()).(manet.Conn).Close()
	}
	place := f.silent.PushBack(conn)
	f.tasks.Go(func() {
		ok := spoke(conn)
		f.mu.Lock()
		f.silent.Remove(place) // nothing if it had to go
		f.mu.Unlock()
		if !ok || !f.hand(accepted{conn: conn}) {
			_ = conn.Close()
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
	for e := f.silent.Front(); e != nil; e = e.Next() {
		_ = e.Value.(manet.Conn).Close()
	}
	f.mu.Unlock()
	err := f.Listener.Close()
	f.tasks.Wait()
	return err
}
