package mesh

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// This file is what keeps a verdict young while its connection lives.
//
//	due (about 80 % of the window) ─┐
//	Link.Reattest ──────────────────┴► stream /meshnode/reattest/1 ─ ACCEPT ─► exchange, purpose 2
//	      ├─ both accept: a new Session at both ends, new pair keys, timers from the start
//	      ├─ busy, unavailable: once more a little later, for as long as the window is open
//	      └─ anything else: the peer's links are closed with the reason, the pair is forgotten
//	window over ─► the link is closed with code stale

// attempt is one call for re-attestation; err is set before done is closed.
type attempt struct {
	done chan struct{}
	err  error
}

// renewal is what a link needs to be attested again. Its fields are guarded by link.mu; slot
// holds one token while an exchange runs, so there is one at a time.
type renewal struct {
	slot    chan struct{}
	waiting bool          // an inbound stream waits for the slot
	calling *attempt      // our own call under way, shared by all who want it
	renewed chan struct{} // closed and replaced when the Session is
	due     *time.Timer
	expiry  *time.Timer
}

func newRenewal() renewal {
	return renewal{slot: make(chan struct{}, 1), renewed: make(chan struct{})}
}

// ownProtocol reports whether p is the mesh's own, so that no Judge is asked about it.
func ownProtocol(p Protocol) bool { return p == controlProtocol || p == reattestProtocol }

// Reattest implements Link.
func (l *link) Reattest(ctx context.Context) error {
	called, before := time.Now(), l.Session()
	for {
		a := l.call()
		select {
		case <-a.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		// Whoever opened the stream, and whatever became of ours: the evidence must be
		// younger than the call.
		if s := l.Session(); s != before && !s.AttestedAt.Before(called) {
			return nil
		}
		if a.err != nil {
			return a.err
		}
	}
}

// call returns the call under way, or begins one.
func (l *link) call() *attempt {
	l.mu.Lock()
	a := l.calling
	began := a == nil
	if began {
		a = &attempt{done: make(chan struct{})}
		l.calling = a
	}
	l.mu.Unlock()
	if !began {
		return a
	}
	end := func(err error) {
		l.mu.Lock()
		l.calling = nil
		l.mu.Unlock()
		a.err = err
		close(a.done)
	}
	if !l.hub.spawn(func() { end(l.openReattest(l.Session().Initiator)) }) {
		end(ErrClosed)
	}
	return a
}

// openReattest opens the stream and runs the exchange on it. If both ends open one at the
// same time, the TLS client's counts: it takes its slot before it opens and so refuses the
// server's with code busy, the server only takes its own when its stream is accepted.
func (l *link) openReattest(client bool) error {
	ctx, cancel := context.WithTimeout(l.hub.ctx, OpenTimeout+exchange.TotalTimeout)
	defer cancel()
	if client && !l.take(ctx) {
		return l.explain(ctx, errors.New("another re-attestation does not end"))
	}
	l.mu.Lock()
	renewed := l.renewed
	l.mu.Unlock()
	opening, stop := context.WithTimeout(ctx, OpenTimeout)
	s, err := l.openRaw(opening, reattestProtocol)
	stop()
	if client && err != nil {
		l.give()
	}
	var refused *Refusal
	switch {
	case errors.As(err, &refused) && refused.Code() == attest.CodeBusy && !client:
		return l.awaitPeers(ctx, renewed, refused)
	case err != nil:
		return l.settleReattest(err)
	}
	if !client && !l.take(ctx) {
		l.abandon(s)
		return l.explain(ctx, errors.New("another re-attestation does not end"))
	}
	return l.attestAgain(ctx, s)
}

// awaitPeers waits for the exchange that the client has begun.
func (l *link) awaitPeers(ctx context.Context, renewed <-chan struct{}, busy error) error {
	timer := time.NewTimer(exchange.HelloTimeout)
	defer timer.Stop()
	select {
	case <-renewed:
		return nil
	case <-timer.C:
	case <-l.done:
		return l.down()
	case <-ctx.Done():
		return ctx.Err()
	}
	// It is slow, or there is none: the peer has had enough of us.
	if l.take(ctx) {
		l.give()
	}
	select {
	case <-renewed:
		return nil
	default:
		return busy
	}
}

// take waits for the slot.
func (l *link) take(ctx context.Context) bool {
	select {
	case l.slot <- struct{}{}:
		return true
	case <-ctx.Done():
	case <-l.done:
	}
	return false
}

func (l *link) give() { <-l.slot }

// takeSoon takes the slot for an inbound stream. The peer may be done with the last exchange a
// moment before we are, so one stream may wait a moment; if a new verdict comes of that, the
// stream has nothing left to ask for.
func (l *link) takeSoon() bool {
	select {
	case l.slot <- struct{}{}:
		return true
	default:
	}
	l.mu.Lock()
	first := !l.waiting
	l.waiting = true
	l.mu.Unlock()
	if !first {
		return false
	}
	before := l.Session()
	ctx, cancel := context.WithTimeout(l.hub.ctx, reattestPatience)
	defer cancel()
	ok := l.take(ctx)
	l.mu.Lock()
	l.waiting = false
	l.mu.Unlock()
	if ok && l.Session() != before {
		l.give()
		ok = false
	}
	return ok
}

// acceptReattest serves a re-attestation that the peer asks for.
func (l *link) acceptReattest(raw Stream) {
	if !l.takeSoon() {
		l.refuse(raw, *busy("re-attestation", "one under way"))
		return
	}
	if !l.hub.attestations.allow(l.Session().Subject, time.Now()) {
		l.give()
		l.refuse(raw, *busy("re-attestations", "too many in a short time"))
		return
	}
	s, err := l.track(reattestProtocol, raw)
	if err != nil {
		l.give()
		return
	}
	if raw.SetDeadline(time.Now().Add(OpenTimeout)) != nil || exchange.WriteFrame(raw, exchange.FrameAccept, nil) != nil {
		l.give()
		_ = s.Reset()
		return
	}
	ctx, cancel := context.WithTimeout(l.hub.ctx, exchange.TotalTimeout)
	defer cancel()
	_ = l.attestAgain(ctx, s)
}

// attestAgain runs the exchange on an accepted stream. The caller has taken the slot, which
// is free when both ends are done: the TLS client, whose frame is the last, waits for the
// server to end the stream, and the server ends it when its own slot is free.
func (l *link) attestAgain(ctx context.Context, s *stream) error {
	old := l.Session()
	next, err := exchange.Run(ctx, s, l.hub.params(attest.PurposeReattest, old.Peer, old.Initiator, l.channel.export))
	if err != nil {
		l.abandon(s)
		l.give()
		return l.settleReattest(err)
	}
	l.renew(next)
	if why := l.overruled(next); why != nil {
		l.abandon(s)
		l.give()
		return l.settleReattest(&Refusal{Peer: l.Peer(), Reasons: []attest.Reason{*why}})
	}
	l.recheck()
	if old.Initiator && s.SetDeadline(time.Now().Add(FarewellTimeout)) == nil && s.CloseWrite() == nil {
		var one [1]byte
		_, _ = s.Read(one[:])
	}
	l.give()
	_ = s.Close()
	return nil
}

// overruled says why a verdict does not hold any more that is the link's by now, or nil. The
// policy may have changed since the evidence was judged, and whoever then judged the links
// again saw the old verdict.
func (l *link) overruled(s *Session) *attest.Reason {
	result := l.hub.cfg.Judge.Rejudge(s.Subject, s.Claims)
	switch {
	case result.Affirming():
		return nil
	case len(result.Reasons) > 0:
		return &result.Reasons[0]
	}
	why := attest.NewReason(attest.CodeUnavailable, "verdict", string(result.Verdict), string(attest.VerdictAffirming))
	return &why
}

// renew puts a new verdict in the place of the old one.
func (l *link) renew(s *Session) {
	l.hub.counters.add(countReattest)
	l.channel.newest.Store(s)
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.renewed)
	l.renewed = make(chan struct{})
	if !l.closing {
		l.armLocked()
	}
}

// settleReattest draws the conclusions from a failed re-attestation and returns why it
// failed. A peer or attester that is busy gets another chance within the window.
func (l *link) settleReattest(err error) error {
	var refused *Refusal
	heard := errors.As(err, &refused) // whatever has become of the link meanwhile
	if l.hub.ctx.Err() != nil || !heard && l.down() != nil {
		return l.explain(l.hub.ctx, err)
	}
	why := attest.NewReason(attest.CodeUnavailable, "re-attestation", "no answer", "fresh evidence in time")
	switch {
	case heard:
		why = refused.Normalize().Reasons[0]
		if why.Code == attest.CodeBusy || why.Code == attest.CodeUnavailable {
			return l.hub.report(l.Peer(), err)
		}
	case errors.Is(err, exchange.ErrNoQuote):
		return l.hub.report(l.Peer(), err)
	}
	l.hub.pairs.Drop(l.Peer())
	// Off the tables first: whoever hears of the refusal then finds no link, also none that was
	// a spare of this one and has a verdict as old as its.
	for _, spare := range l.hub.others(l) {
		if spare.begin(why) && !l.hub.spawn(func() { spare.end(why) }) {
			spare.end(why)
		}
	}
	closing := l.begin(why)
	err = l.hub.report(l.Peer(), err)
	if closing {
		l.end(why)
	}
	return err
}

// arm sets the timers of the present verdict.
func (l *link) arm() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closing {
		l.armLocked()
	}
}

func (l *link) armLocked() {
	s, now := l.Session(), time.Now()
	window := l.hub.pairs.Window()
	at := s.AttestedAt.Add(spread(time.Duration(reattestAt * float64(window))))
	// A fast connection may begin late in its window; then both ends would call at once.
	l.setLocked(&l.due, max(at.Sub(now), spread(reattestSoonest)), l.renewDue)
	l.setLocked(&l.expiry, s.NotAfter.Sub(now), l.expire)
}

// setLocked makes or resets one of the link's timers; mu is held. The function runs in a
// goroutine of the hub.
func (l *link) setLocked(t **time.Timer, in time.Duration, f func()) {
	if *t == nil {
		*t = time.AfterFunc(in, func() { l.hub.spawn(f) })
		return
	}
	(*t).Reset(in)
}

// disarmLocked stops the timers; mu is held.
func (l *link) disarmLocked() {
	for _, t := range []*time.Timer{l.due, l.expiry} {
		if t != nil {
			t.Stop()
		}
	}
}

// spread returns d, up to a fifth shorter or longer.
func spread(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (1 - reattestJitter + 2*reattestJitter*rand.Float64()))
}

// renewDue is called when it is time; it tries again until the window is over.
func (l *link) renewDue() {
	before := l.Session()
	a := l.call()
	<-a.done
	if a.err == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closing && l.Session() == before {
		l.setLocked(&l.due, spread(l.hub.pairs.Window()/reattestRetries), l.renewDue)
	}
}

// expire closes the link if its verdict is still the one that has outlived its window.
func (l *link) expire() {
	if !l.Session().Expired(time.Now()) {
		return
	}
	why := l.stale()
	if l.begin(*why) {
		l.hub.counters.refusal(false, why.Code)
		l.end(*why)
	}
}

// stale is the reason of a verdict that is too old.
func (l *link) stale() *attest.Reason {
	r := attest.NewReason(attest.CodeStale, "verdict", "older than "+l.hub.pairs.Window().String(), "an attestation within the window")
	return &r
}

// permit decides about a stream that is to be opened or accepted.
func (l *link) permit(p Protocol) *attest.Reason {
	s := l.Session()
	if s.Expired(time.Now()) {
		return l.stale() // its timer is late
	}
	return l.hub.cfg.Judge.Permit(s, p)
}

// keep decides about a stream that is open.
func (l *link) keep(p Protocol) *attest.Reason {
	if ownProtocol(p) {
		return nil
	}
	return l.hub.cfg.Judge.Keep(l.Session(), p)
}

// refuse counts and tells why an inbound stream is refused.
func (l *link) refuse(raw Stream, why attest.Reason) {
	l.hub.counters.refusal(false, why.Code)
	refuseStream(raw, why)
}

// peaceful reports whether a link that ends for code leaves the verdict about its peer as
// it was.
func peaceful(code attest.Code) bool {
	return slices.Contains([]attest.Code{attest.CodeDuplicate, attest.CodeUnavailable, attest.CodeShutdown, attest.CodeBusy}, code)
}
