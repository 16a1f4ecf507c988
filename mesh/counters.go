package mesh

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The names of counters. Refusals have one for each code: what this node refused, and what
// refused this node.
const (
	countFull       = "attested/full"
	countFast       = "attested/fast"
	countReattest   = "attested/again"
	countRefused    = "refused/"
	countRefusedUs  = "refused_us/"
	countTurnedAway = "turned_away/"
	countOther      = "other" // in place of a code that this release does not know
)

// counters count events by name. Their number is bounded: a peer cannot invent names.
type counters struct {
	mu     sync.Mutex
	counts map[string]uint64 // guarded by mu
	codes  []attest.Code
}

func newCounters() *counters { return &counters{counts: map[string]uint64{}, codes: attest.Codes()} }

func (c *counters) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[name]++
}

// refusal counts a refusal by its first code.
func (c *counters) refusal(remote bool, code attest.Code) {
	name := countRefused
	if remote {
		name = countRefusedUs
	}
	if !slices.Contains(c.codes, code) {
		code = countOther
	}
	c.add(name + string(code))
}

// session counts a verdict by how it came about.
func (c *counters) session(s *Session) {
	if s.Fast {
		c.add(countFast)
		return
	}
	c.add(countFull)
}

// Counters implements Mesh.
func (h *hub) Counters() map[string]uint64 {
	h.counters.mu.Lock()
	defer h.counters.mu.Unlock()
	return maps.Clone(h.counters.counts)
}

// report counts why an exchange failed, tells log and owner and returns the error for the
// caller. What ended without a word of either side counts as unavailable, for a peer that
// falls silent is refused too.
func (h *hub) report(peer identity.PeerID, err error) error {
	if err == nil {
		return nil
	}
	h.cfg.Log.Debug("exchange failed", "peer", peer.String(), "error", err)
	var r *Refusal
	if !errors.As(err, &r) {
		if h.ctx.Err() == nil {
			h.counters.refusal(false, attest.CodeUnavailable)
		}
		return err
	}
	told := r.Normalize()
	h.counters.refusal(told.Remote, told.Code())
	if h.cfg.OnRefusal != nil {
		h.cfg.OnRefusal(told)
	}
	return &told
}
