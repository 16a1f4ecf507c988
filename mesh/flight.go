package mesh

import (
	"net"
	"sync"
)

// flight is the dialler's raw connection while it is secured and attested. It sends what is
// written when an answer is waited for, so that the last flight of the TLS handshake and
// HELLO_I are one segment: one system call here and one wake-up there, instead of two. TLS
// has nothing to wait for between them, since the server says nothing after Finished.
type flight struct {
	net.Conn

	mu   sync.Mutex
	held []byte // guarded by mu
	open bool   // guarded by mu; nothing is held any more
}

// Write implements io.Writer. What it holds back fails, if it does, by what is read next.
func (f *flight) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open {
		return f.Conn.Write(p)
	}
	f.held = append(f.held, p...)
	return len(p), nil
}

// Read implements io.Reader. The error of a write is not its error: a peer that has hung up
// may have said why before.
func (f *flight) Read(p []byte) (int, error) {
	f.mu.Lock()
	_ = f.sendLocked()
	f.mu.Unlock()
	return f.Conn.Read(p)
}

// land sends what is held; from now on every write is sent at once.
func (f *flight) land() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = true
	return f.sendLocked()
}

func (f *flight) sendLocked() error {
	if len(f.held) == 0 {
		return nil
	}
	_, err := f.Conn.Write(f.held)
	f.held = nil
	return err
}

// SetLinger is net.TCPConn's, where there is a socket.
func (f *flight) SetLinger(seconds int) error {
	if c, ok := f.Conn.(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(seconds)
	}
	return nil
}
