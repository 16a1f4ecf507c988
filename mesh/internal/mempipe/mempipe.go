// Package mempipe is a bidirectional byte stream in memory, as a muxer's stream or a socket
// behaves: buffered, with half-close, reset and deadlines. Waiting is sync.Cond.Wait, which
// a testing/synctest bubble counts as idle; closing ends blocked calls at once.
//
// A stream may have a distance: what is written arrives later, and while the stream is
// held nothing arrives at all. One's own Close takes effect at once even then, the other
// end learns of it as of data.
package mempipe

import (
	"errors"
	"io"
	"os"
	"slices"
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
	shut bool  // the writer is done
	eof  bool  // and the reader may know: it drains, then io.EOF
	gone error // the reader is done: its reads fail with this
	err  error // both sides fail with this, buffered bytes are lost

	delay  time.Duration
	held   bool
	flight []segment // on the way, oldest first; only where there is a delay
	flying int       // bytes of flight

	read, write timer
}

// segment is something on the way to the other end.
type segment struct {
	at   time.Time
	data []byte
	fin  bool  // after data: the writer is done
	stop error // the reader is done: writes fail with this
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
		case h.gone != nil:
			return 0, h.gone
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
		case h.shut:
			return written, io.ErrClosedPipe
		case h.write.passed():
			return written, os.ErrDeadlineExceeded
		case len(p) == 0:
			return written, nil
		case len(h.buf)+h.flying < bufferSize:
			n := min(len(p), bufferSize-len(h.buf)-h.flying)
			h.send(segment{data: p[:n]})
			written, p = written+n, p[n:]
			continue
		}
		h.cond.Wait()
	}
}

// send lets s arrive now, or after the delay; mu is held.
func (h *half) send(s segment) {
	if h.delay == 0 {
		h.arrive(s)
		return
	}
	s.at, s.data = time.Now().Add(h.delay), slices.Clone(s.data)
	h.flight, h.flying = append(h.flight, s), h.flying+len(s.data)
	time.AfterFunc(h.delay, h.land)
}

// land lets everything arrive that is due.
func (h *half) land() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for !h.held && len(h.flight) > 0 && !time.Now().Before(h.flight[0].at) {
		s := h.flight[0]
		h.flight, h.flying = h.flight[1:], h.flying-len(s.data)
		h.arrive(s)
	}
}

// arrive is the end of s's way; mu is held.
func (h *half) arrive(s segment) {
	h.buf = append(h.buf, s.data...)
	h.eof = h.eof || s.fin
	if s.stop != nil {
		h.fail(s.stop)
	}
	h.cond.Broadcast()
}

// finish ends the writing: the reader drains what was written.
func (h *half) finish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.shut {
		h.shut = true
		h.send(segment{fin: true})
	}
}

// leave ends the reading: what the other end still writes fails once it knows.
func (h *half) leave(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gone == nil {
		h.gone, h.buf = err, nil
		h.send(segment{stop: err})
		h.cond.Broadcast()
	}
}

// end fails both sides at once, whatever the delay.
func (h *half) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail(err)
	h.cond.Broadcast()
}

// fail is end while mu is held.
func (h *half) fail(err error) {
	if h.err == nil {
		h.err, h.buf = err, nil
		h.flight, h.flying = nil, 0
		for _, t := range []*timer{&h.read, &h.write} {
			if t.t != nil {
				t.t.Stop()
				t.t = nil
			}
		}
	}
}

// Pipe is one end of a stream.
type Pipe struct{ in, out *half }

// New returns the two ends of a stream without a distance.
func New() (*Pipe, *Pipe) { return NewDistant(0) }

// NewDistant returns the two ends of a stream on which everything takes delay to arrive.
func NewDistant(delay time.Duration) (*Pipe, *Pipe) {
	a, b := newHalf(), newHalf()
	a.delay, b.delay = delay, delay
	return &Pipe{in: a, out: b}, &Pipe{in: b, out: a}
}

// Hold stops everything that is on the way, in both directions, or lets it arrive again,
// in order: a network that loses packets for a while and then sends them again. Without a
// delay it does nothing.
func (p *Pipe) Hold(on bool) {
	for _, h := range []*half{p.in, p.out} {
		h.mu.Lock()
		h.held = on
		h.mu.Unlock()
		h.land()
	}
}

// Read implements io.Reader.
func (p *Pipe) Read(b []byte) (int, error) { return p.in.Read(b) }

// Write implements io.Writer; it waits while bufferSize bytes are unread.
func (p *Pipe) Write(b []byte) (int, error) { return p.out.Write(b) }

// CloseWrite lets the peer read what was written, then io.EOF.
func (p *Pipe) CloseWrite() error {
	p.out.finish()
	return nil
}

// Close is CloseWrite, and what the peer still writes fails. Blocked calls on this end
// return at once.
func (p *Pipe) Close() error {
	p.out.finish()
	p.in.leave(io.ErrClosedPipe)
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
