package replica

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

var (
	errClosed   = errors.New("raft transport is closed")
	errDeadline = errors.New("no answer within the deadline")
)

// outgoing is a stream this replica opened: its requests go out, replies come in.
type outgoing struct {
	peer  identity.PeerID
	rwc   io.ReadWriteCloser
	admit func(reply any) error

	// write is held while a frame is written. It is a channel because a virtual clock
	// stands still while anybody waits for a mutex.
	write   chan struct{}
	scratch []byte // belongs to the holder of write

	mu      sync.Mutex // held for no I/O
	pending map[uint64]*call
	next    uint64
	err     error
	done    chan struct{} // closed once err is set
}

// call is one request on its way.
type call struct {
	kind  kind
	timer *time.Timer
	reply any
	err   error
	// finished is called once, after reply or err is set, and must not wait.
	finished func(*call)
}

func newOutgoing(peer identity.PeerID, rwc io.ReadWriteCloser, admit func(any) error) *outgoing {
	return &outgoing{
		peer: peer, rwc: rwc, admit: admit,
		write: make(chan struct{}, 1), pending: map[uint64]*call{}, done: make(chan struct{}),
	}
}

// fail ends the stream and every call on it.
func (o *outgoing) fail(err error) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		return
	}
	o.err = err
	calls := o.pending
	o.pending = nil
	close(o.done)
	o.mu.Unlock()
	o.rwc.Close()
	for _, c := range calls {
		c.finish(nil, err)
	}
}

func (c *call) finish(reply any, err error) {
	c.timer.Stop()
	c.reply, c.err = reply, err
	c.finished(c)
}

// send writes a request. Its end is told to finished, unless send returns an error.
func (o *outgoing) send(request any, timeout time.Duration, finished func(*call)) error {
	c := &call{kind: kindOf(request), finished: finished}
	c.timer = time.AfterFunc(timeout, func() { o.fail(errDeadline) })
	select {
	case o.write <- struct{}{}:
	case <-o.done:
		c.timer.Stop()
		return o.err
	}
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		<-o.write
		c.timer.Stop()
		return o.err
	}
	id := o.next
	o.next++
	o.pending[id] = c
	o.mu.Unlock()
	o.scratch = appendFrame(o.scratch[:0], id, request)
	_, err := o.rwc.Write(o.scratch)
	if cap(o.scratch) > keepScratch {
		o.scratch = nil
	}
	<-o.write
	if err != nil {
		o.fail(err)
	}
	return nil
}

// read receives replies until the stream ends.
func (o *outgoing) read() {
	r := bufio.NewReader(o.rwc)
	for {
		h, m, err := readFrame(r, o.rwc)
		if err == nil {
			err = o.receive(h, m)
		}
		if err != nil {
			o.fail(err)
			return
		}
	}
}

func (o *outgoing) receive(h header, m any) error {
	o.mu.Lock()
	c, ok := o.pending[h.id]
	delete(o.pending, h.id)
	o.mu.Unlock()
	if !ok {
		return fmt.Errorf("%w: reply to request %d, which waits for none", errMalformed, h.id)
	}
	if text, refused := m.(refusal); refused {
		c.finish(nil, fmt.Errorf("%s refused: %q", o.peer.Short(), string(text)))
		return nil
	}
	err := error(nil)
	if h.kind != c.kind+1 {
		err = fmt.Errorf("%w: frame kind %d answers kind %d", errMalformed, h.kind, c.kind)
	} else {
		err = o.admit(m)
	}
	if err != nil {
		c.finish(nil, err)
		return err
	}
	c.finish(m, nil)
	return nil
}

// readFrame waits for a frame as long as it takes to begin, and frameTimeout from there.
func readFrame(r *bufio.Reader, c io.Closer) (header, any, error) {
	var raw [headerSize]byte
	if _, err := r.Peek(1); err != nil {
		return header{}, nil, err
	}
	if r.Buffered() < headerSize {
		defer time.AfterFunc(frameTimeout, func() { c.Close() }).Stop()
	}
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return header{}, nil, err
	}
	h, err := decodeHeader(&raw)
	if err != nil {
		return header{}, nil, err
	}
	body := make([]byte, h.size)
	if r.Buffered() < h.size {
		defer time.AfterFunc(frameTimeout, func() { c.Close() }).Stop()
	}
	if _, err := io.ReadFull(r, body); err != nil {
		return header{}, nil, err
	}
	m, err := decodeBody(h.kind, body)
	return h, m, err
}

// dial is one attempt to have an outgoing stream, shared by all who wait for it.
type dial struct {
	done chan struct{}
	out  *outgoing
	err  error
}

// usable reports whether the attempt runs or its stream lives.
func (d *dial) usable() bool {
	select {
	case <-d.done:
	default:
		return true
	}
	if d.err != nil {
		return false
	}
	select {
	case <-d.out.done:
		return false
	default:
		return true
	}
}

// fail ends the stream, if it has come about; if it still comes, open closes it.
func (d *dial) fail(err error) {
	select {
	case <-d.done:
		if d.out != nil {
			d.out.fail(err)
		}
	default:
	}
}

// open makes the attempt.
func (t *transport) open(ctx context.Context, d *dial, peer identity.PeerID) {
	defer close(d.done)
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	rwc, err := t.peers.Open(ctx, peer)
	if err != nil {
		d.err = fmt.Errorf("open a raft stream to %s: %w", peer.Short(), err)
		return
	}
	stop := time.AfterFunc(frameTimeout, func() { rwc.Close() })
	_, err = rwc.Write(appendHello(nil, t.self, peer))
	stop.Stop()
	if err != nil {
		rwc.Close()
		d.err = fmt.Errorf("open a raft stream to %s: %w", peer.Short(), err)
		return
	}
	d.out = newOutgoing(peer, rwc, func(reply any) error { return t.admitReply(peer, reply) })
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.out[peer] != d {
		rwc.Close()
		d.out, d.err = nil, errClosed
		return
	}
	t.wg.Go(d.out.read)
}
