package mesh

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// carrier is the connection under a link, as an implementation provides it.
type carrier interface {
	// open opens a raw stream and names p to the peer. It obeys ctx.
	open(ctx context.Context, p Protocol) (Stream, error)
	// close drops the connection at once, both ways. It may be called repeatedly.
	close()
}

// link is a Link over any carrier. The implementation calls finish when the carrier is gone.
type link struct {
	hub     *hub
	channel *channel
	carrier carrier
	since   time.Time
	done    chan struct{}

	mu sync.Mutex
	renewal
	closing  bool
	finished bool
	cause    attest.Reason
	telling  bool                 // the epoch is being announced
	told     identity.Epoch       // the newest epoch that the peer has heard from us
	heard    identity.Epoch       // the newest epoch that the peer has announced
	streams  map[*stream]struct{} // open streams; nil once closing
	resets   sync.WaitGroup       // resets of streams under way; added to under mu

	notified bool // guarded by hub.mu
}

func newLink(h *hub, ch *channel, c carrier) *link {
	return &link{hub: h, channel: ch, carrier: c, since: time.Now(), done: make(chan struct{}), renewal: newRenewal(),
		told: ch.session().OwnEpoch, streams: map[*stream]struct{}{}}
}

func (l *link) Peer() identity.PeerID { return l.Session().Peer }
func (l *link) Session() *Session     { return l.channel.session() }
func (l *link) Done() <-chan struct{} { return l.done }

func (l *link) Cause() attest.Reason {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.cause
}

func (l *link) Open(ctx context.Context, p Protocol) (Stream, error) {
	if err := validateProtocol(p); err != nil {
		return nil, err
	}
	if reason := l.permit(p); reason != nil {
		return nil, &Refusal{Peer: l.Peer(), Reasons: []attest.Reason{*reason}}
	}
	s, err := l.openRaw(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("mesh: open %s to %s: %w", p, l.Peer(), err)
	}
	return s, nil
}

// openRaw opens a stream on the link's connection and waits for the peer to admit it.
func (l *link) openRaw(ctx context.Context, p Protocol) (*stream, error) {
	return l.openBy(ctx, p, l.carrier.open)
}

// openBy opens a stream of the link with open and waits for the peer to admit it.
func (l *link) openBy(ctx context.Context, p Protocol, open func(context.Context, Protocol) (Stream, error)) (*stream, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, OpenTimeout)
		defer cancel()
	}
	if err := l.down(); err != nil {
		return nil, err
	}
	raw, err := open(ctx, p)
	if err != nil {
		return nil, l.explain(ctx, err)
	}
	s, err := l.track(p, raw)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	deadline, _ := ctx.Deadline()
	err = raw.SetDeadline(deadline)
	if err == nil {
		_, err = exchange.ReadFrame(raw, exchange.FrameAccept, 0)
	}
	if err == nil {
		err = raw.SetDeadline(time.Time{})
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		// What Permit said may be old by now, and a recheck before track did not see s.
		reason := l.keep(p)
		if reason == nil {
			return s, nil
		}
		l.withdraw(s, *reason)
	}
	l.abandon(s)
	if reason := s.withdrawn.Load(); reason != nil {
		return nil, &Refusal{Peer: l.Peer(), Reasons: []attest.Reason{*reason}}
	}
	var refused *exchange.RefusedError
	if errors.As(err, &refused) {
		r := Refusal{Peer: l.Peer(), Remote: true, Reasons: refused.Reasons}.Normalize()
		return nil, &r
	}
	return nil, l.explain(ctx, err)
}

// explain prefers the cause of a failure over its symptom.
func (l *link) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if down := l.down(); down != nil {
		return down
	}
	return err
}

// down returns why no stream can be opened, or nil while the link lives.
func (l *link) down() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing {
		return l.downLocked()
	}
	return nil
}

func (l *link) downLocked() error { return fmt.Errorf("the link is down: %s", l.cause) }

// track registers a stream so that Close and Recheck can end it; once closing it is refused.
func (l *link) track(p Protocol, raw Stream) (*stream, error) {
	s := &stream{Stream: raw, link: l, protocol: p}
	l.mu.Lock()
	if !l.closing {
		l.streams[s] = struct{}{}
		l.mu.Unlock()
		return s, nil
	}
	cause := l.cause
	l.mu.Unlock()
	_ = raw.Reset()
	return nil, fmt.Errorf("the link is down: %s", cause)
}

// begin marks the link as closing for cause. It reports whether this call was the first;
// afterwards the link is in no table and has no streams.
func (l *link) begin(cause attest.Reason) bool {
	l.mu.Lock()
	if l.closing {
		l.mu.Unlock()
		return false
	}
	l.closing, l.cause = true, cause
	l.disarmLocked()
	// A peer that stopped reading can hold up a reset until its connection is closed; it
	// must hold up neither the next stream's nor the closing itself.
	for s := range l.streams {
		l.resets.Go(func() { _ = s.Stream.Reset() })
	}
	l.streams = nil
	l.mu.Unlock()
	if !peaceful(cause.Code) {
		l.hub.pairs.Drop(l.Peer())
	}
	l.hub.remove(l)
	return true
}

func (l *link) Close(reason attest.Reason) error {
	if !l.begin(reason) {
		<-l.done
		return nil
	}
	l.end(reason)
	return nil
}

// end does what is left after begin.
func (l *link) end(reason attest.Reason) {
	l.farewell(reason)
	l.carrier.close()
	l.finish()
}

// farewell tells the peer why. Closing the carrier first would destroy the message, so it
// waits for the answer, but not for long. The stream ends with the carrier.
func (l *link) farewell(reason attest.Reason) {
	_, _ = l.say(exchange.FrameClose, exchange.EncodeReasons([]attest.Reason{reason}), FarewellTimeout)
}

// say sends one frame on the mesh's own protocol and waits for the peer's ACCEPT. It
// returns the stream, which is nil if it could not be opened.
func (l *link) say(kind exchange.FrameType, body []byte, within time.Duration) (Stream, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	raw, err := l.carrier.open(ctx, controlProtocol)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := raw.SetDeadline(deadline); err != nil {
		return raw, err
	}
	if err := exchange.WriteFrame(raw, kind, body); err != nil {
		return raw, err
	}
	_, err = exchange.ReadFrame(raw, exchange.FrameAccept, 0)
	return raw, err
}

// hear reads what the peer says on the mesh's own protocol: its epoch or its farewell.
func (l *link) hear(raw Stream) {
	defer raw.Reset()
	if raw.SetDeadline(time.Now().Add(OpenTimeout)) != nil {
		return
	}
	kind, body, err := exchange.ReadFrameOf(raw, exchange.Expected{Type: exchange.FrameClose, Limit: exchange.MaxRefusal},
		exchange.Expected{Type: exchange.FrameEpoch, Limit: exchange.MaxEpoch})
	switch {
	case err != nil:
	case kind == exchange.FrameEpoch:
		l.hearEpoch(raw, body)
	default:
		l.hearFarewell(raw, body)
	}
}

// hearFarewell notes the peer's reason and closes the carrier if the peer does not.
func (l *link) hearFarewell(raw Stream, body []byte) {
	cause := attest.NewReason(attest.CodeProtocol, "farewell", "no reason", "a reason")
	if reasons, err := exchange.DecodeReasons(body); err == nil && len(reasons) > 0 {
		cause = reasons[0]
	}
	l.begin(cause)
	_ = exchange.WriteFrame(raw, exchange.FrameAccept, nil)
	timer := time.NewTimer(FarewellTimeout)
	defer timer.Stop()
	select {
	case <-l.done:
	case <-timer.C:
		l.carrier.close()
		l.finish()
	}
}

// finish records that the carrier is gone.
func (l *link) finish() {
	l.begin(attest.NewReason(attest.CodeUnavailable, "connection", "lost", "a live connection"))
	l.hub.forget(l)
	l.mu.Lock()
	first := !l.finished
	l.finished = true
	l.mu.Unlock()
	if first {
		l.resets.Wait() // ends at once: there is no connection to send a reset on
		close(l.done)
	}
}

// abandon resets a stream that nobody waits for any more.
func (l *link) abandon(s Stream) {
	if !l.hub.spawn(func() { _ = s.Reset() }) {
		_ = s.Reset()
	}
}

// accept runs an inbound stream: refuse or admit it, then hand it to its handler.
func (l *link) accept(p Protocol, raw Stream) {
	switch p {
	case controlProtocol:
		l.hear(raw)
		return
	case reattestProtocol:
		l.acceptReattest(raw)
		return
	}
	handler, reason := l.hub.handler(p), l.permit(p)
	if handler == nil && reason == nil {
		r := attest.NewReason(attest.CodeProtocol, "protocol", string(p), "a protocol this node speaks")
		reason = &r
	}
	_ = raw.SetDeadline(time.Now().Add(OpenTimeout))
	if reason != nil {
		l.refuse(raw, *reason)
		return
	}
	s, err := l.track(p, raw)
	if err != nil {
		return
	}
	// A recheck between Permit and track did not see the stream.
	if reason := l.keep(p); reason != nil {
		s.forget()
		l.refuse(raw, *reason)
		return
	}
	if exchange.WriteFrame(raw, exchange.FrameAccept, nil) != nil || raw.SetDeadline(time.Time{}) != nil {
		_ = s.Reset()
		return
	}
	handler(l, s)
}

// refuseStream tells the opener why and resets the stream once that was read.
func refuseStream(raw Stream, reason attest.Reason) {
	defer raw.Reset()
	if raw.SetDeadline(time.Now().Add(FarewellTimeout)) != nil {
		return
	}
	if exchange.WriteFrame(raw, exchange.FrameRefusal, exchange.EncodeReasons([]attest.Reason{reason})) == nil && raw.CloseWrite() == nil {
		var one [1]byte
		_, _ = raw.Read(one[:]) // ends when the opener resets, or at the deadline
	}
}

// stream is a tracked stream of a link.
type stream struct {
	Stream
	link      *link
	protocol  Protocol
	withdrawn atomic.Pointer[attest.Reason] // why a recheck ended it
}

func (s *stream) forget() {
	s.link.mu.Lock()
	delete(s.link.streams, s)
	s.link.mu.Unlock()
}

// Close ends both directions.
func (s *stream) Close() error {
	s.forget()
	return s.Stream.Close()
}

// Reset ends both directions with an error.
func (s *stream) Reset() error {
	s.forget()
	return s.Stream.Reset()
}

func validateProtocol(p Protocol) error {
	if len(p) < 2 || len(p) > MaxProtocol || p[0] != '/' {
		return fmt.Errorf("mesh: protocol %.32q: want '/' and at most %d bytes", string(p), MaxProtocol)
	}
	if ownProtocol(p) {
		return fmt.Errorf("mesh: protocol %s is the mesh's own", p)
	}
	return nil
}
