// Package mempipe is a bidirectional byte stream in memory, as a muxer's stream or a socket
// behaves: buffered, with half-close, reset and deadlines. Waiting is sync.Cond.Wait, which
// a testing/synctest bubble counts as idle; closing ends blocked calls at once.
package mempipe

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// bufferSize is how many bytes one direction holds before writers wait.
const bufferSize = 256 << 10

// ErrReset is what a reset stream answers.
var ErrReset = errors.New("mempipe: stream reset")

// half is one direction.
type half struct {
	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte
	eof  bool  // the writer is done: readers drain, then io.EOF
	err  error // both sides fail with this, buffered bytes are lost

	read, write timer
}

// timer is a deadline of one side; guarded by half.mu.
type timer struct {
	at time.Time
	t  *time.Timer
}

func (t *timer) passed() bool { return !t.at.IsZero() && !time.Now().Before(t.at) }

func newHalf() *half {
	h := &half{}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) setDeadline(t *timer, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.t != nil {
		t.t.Stop()
		t.t = nil
	}
	t.at = at
	if wait := time.Until(at); !at.IsZero() && wait > 0 && h.err == nil {
		t.t = time.AfterFunc(wait, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.cond.Broadcast()
		})
	}
	h.cond.Broadcast()
}

func (h *half) Read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.err != nil:
			return 0, h.err
		case h.read.passed():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			if h.buf = h.buf[n:]; len(h.buf) == 0 {
				h.buf = nil
			}
			h.cond.Broadcast()
			return n, nil
		case h.eof:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

func (h *half) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	written := 0
	for {
		switch {
		case h.err != nil:
			return written, h.err
		case h.eof:
			return written, io.ErrClosedPipe
		case h.write.passed():
			return written, os.ErrDeadlineExceeded
		case len(p) == 0:
			return written, nil
		case len(h.buf) < bufferSize:
			n := min(len(p), bufferSize-len(h.buf))
			h.buf = append(h.buf, p[:n]...)
			written, p = written+n, p[n:]
			h.cond.Broadcast()
			continue
		}
		h.cond.Wait()
	}
}

// end closes the writing side: err nil lets the reader drain, else both sides fail.
func (h *half) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.eof = true
	} else if h.err == nil {
		h.err, h.buf = err, nil
		for _, t := range []*timer{&h.read, &h.write} {
			if t.t != nil {
				t.t.Stop()
				t.t = nil
			}
		}
	}
	h.cond.Broadcast()
}

// Pipe is one end of a stream.
type Pipe struct{ in, out *half }

// New returns the two ends of a stream.
func New() (*Pipe, *Pipe) {
	a, b := newHalf(), newHalf()
	return &Pipe{in: a, out: b}, &Pipe{in: b, out: a}
}

// Read implements io.Reader.
func (p *Pipe) Read(b []byte) (int, error) { return p.in.Read(b) }

// Write implements io.Writer; it waits while bufferSize bytes are unread.
func (p *Pipe) Write(b []byte) (int, error) { return p.out.Write(b) }

// CloseWrite lets the peer read what was written, then io.EOF.
func (p *Pipe) CloseWrite() error {
	p.out.end(nil)
	return nil
}

// Close is CloseWrite, and what the peer still writes fails.
func (p *Pipe) Close() error {
	p.out.end(nil)
	p.in.end(io.ErrClosedPipe)
	return nil
}

// Reset fails both ends and drops what is on the way.
func (p *Pipe) Reset() error {
	p.Fail(ErrReset)
	return nil
}

// Fail is Reset with another error.
func (p *Pipe) Fail(err error) {
	p.out.end(err)
	p.in.end(err)
}

// SetDeadline sets both deadlines.
func (p *Pipe) SetDeadline(t time.Time) error {
	_ = p.SetReadDeadline(t)
	return p.SetWriteDeadline(t)
}

// SetReadDeadline bounds reads, blocked ones too; a zero t lifts it.
func (p *Pipe) SetReadDeadline(t time.Time) error {
	p.in.setDeadline(&p.in.read, t)
	return nil
}

// SetWriteDeadline bounds writes, blocked ones too; a zero t lifts it.
func (p *Pipe) SetWriteDeadline(t time.Time) error {
	p.out.setDeadline(&p.out.write, t)
	return nil
}
