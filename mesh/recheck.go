package mesh

import (
	"errors"
	"io"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// This file is what a change of mind does to connections that are up: streams that are not
// permitted any more are reset while their link stays, and the peer hears under which epoch
// this node judges. Neither costs a quote.

// everyLink returns the live links, spares included: a verdict must hold on all of them.
func (h *hub) everyLink() []*link {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]*link, 0, len(h.peers))
	for _, ls := range h.peers {
		out = append(out, ls...)
	}
	return out
}

// Recheck implements Mesh.
func (h *hub) Recheck() {
	for _, l := range h.everyLink() {
		l.recheck()
	}
}

func (l *link) recheck() {
	l.mu.Lock()
	open := make([]*stream, 0, len(l.streams))
	for s := range l.streams {
		open = append(open, s)
	}
	l.mu.Unlock()
	for _, s := range open {
		if reason := l.keep(s.protocol); reason != nil {
			l.withdraw(s, *reason)
		}
	}
}

// withdraw resets a stream that is not permitted any more. A peer that stopped reading can
// hold up a reset; it must not hold up the others.
func (l *link) withdraw(s *stream, reason attest.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, open := l.streams[s]; !open {
		return // it has ended, or the link is going down with all of them
	}
	delete(l.streams, s)
	s.withdrawn.Store(&reason)
	l.resets.Go(func() { _ = s.Stream.Reset() })
}

// explain prefers the reason why a recheck ended the stream over the symptom.
func (s *stream) explain(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if reason := s.withdrawn.Load(); reason != nil {
		return &Refusal{Peer: s.link.Peer(), Reasons: []attest.Reason{*reason}}
	}
	return err
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	return n, s.explain(err)
}

// Write implements io.Writer.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.Stream.Write(p)
	return n, s.explain(err)
}

// AnnounceEpoch implements Mesh.
func (h *hub) AnnounceEpoch() {
	for _, l := range h.everyLink() {
		l.announce()
	}
}

// PeerEpoch implements Link.
func (l *link) PeerEpoch() identity.Epoch {
	session := l.Session().PeerEpoch
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(session, l.heard)
}

// announce tells the peer our epoch if it has not heard it yet. One announcement is under
// way at a time; it goes on while the epoch rises.
func (l *link) announce() {
	epoch := l.hub.cfg.Epoch()
	l.mu.Lock()
	due := !l.closing && !l.telling && epoch > l.told
	l.telling = l.telling || due
	l.mu.Unlock()
	if due {
		l.hub.spawn(l.tell)
	}
}

// tell makes one announcement. One that fails is made again by the next AnnounceEpoch.
func (l *link) tell() {
	epoch := l.hub.cfg.Epoch()
	raw, err := l.say(exchange.FrameEpoch, exchange.EncodeEpoch(epoch), OpenTimeout)
	if raw != nil {
		_ = raw.Reset()
	}
	l.mu.Lock()
	l.telling = false
	if err == nil {
		l.told = max(l.told, epoch)
	}
	l.mu.Unlock()
	if err == nil {
		l.announce() // it may have risen meanwhile
	}
}

// hearEpoch notes the peer's epoch, which never falls, and answers.
func (l *link) hearEpoch(raw Stream, body []byte) {
	epoch, err := exchange.DecodeEpoch(body)
	if err != nil {
		return
	}
	known := l.PeerEpoch()
	l.mu.Lock()
	newer := epoch > max(l.heard, known)
	l.heard = max(l.heard, epoch)
	l.mu.Unlock()
	if newer && l.hub.cfg.OnEpoch != nil {
		l.hub.cfg.OnEpoch(l)
	}
	if exchange.WriteFrame(raw, exchange.FrameAccept, nil) == nil && raw.CloseWrite() == nil {
		var one [1]byte
		_, _ = raw.Read(one[:]) // the reset must not overtake the answer
	}
}
