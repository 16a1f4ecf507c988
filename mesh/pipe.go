package mesh

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// pipeBuffer is how many bytes one direction of an in-memory stream holds before writers wait.
const pipeBuffer = 256 << 10

// errReset is what a reset in-memory stream answers.
var errReset = errors.New("stream reset")

// half is one direction of an in-memory stream. Waiting is sync.Cond.Wait, which a
// testing/synctest bubble counts as idle.
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
		case len(h.buf) < pipeBuffer:
			n := min(len(p), pipeBuffer-len(h.buf))
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

// pipe is one end of an in-memory stream.
type pipe struct{ in, out *half }

func newPipe() (*pipe, *pipe) {
	a, b := newHalf(), newHalf()
	return &pipe{in: a, out: b}, &pipe{in: b, out: a}
}

func (p *pipe) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }

// CloseWrite lets the peer read what was written, then io.EOF.
func (p *pipe) CloseWrite() error {
	p.out.end(nil)
	return nil
}

// Close is CloseWrite, and what the peer still writes fails.
func (p *pipe) Close() error {
	p.out.end(nil)
	p.in.end(io.ErrClosedPipe)
	return nil
}

// Reset fails both ends and drops what is on the way.
func (p *pipe) Reset() error {
	p.fail(errReset)
	return nil
}

func (p *pipe) fail(err error) {
	p.out.end(err)
	p.in.end(err)
}

func (p *pipe) SetDeadline(t time.Time) error {
	p.in.setDeadline(&p.in.read, t)
	p.out.setDeadline(&p.out.write, t)
	return nil
}
