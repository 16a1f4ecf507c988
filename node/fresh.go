package node

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/attestmesh/meshnode/attest"
)

// A node is fresh while it hears ticks of the mesh and has proved, after its start and after
// every gap, that what it hears is the newest there is (follow.go). A gap is maxStaleness
// without a tick, or a machine that stood still for that long: what the mesh decided
// meanwhile, a host can keep from a node that wakes up. Clocks are monotonic, so that nobody
// makes or hides a gap by setting one.
//
// A host can also let the ticks through slower than they come, so that there is never a gap
// and what the node hears grows old. Ordered time would then fall behind the node's own: by
// more than maxStaleness since the newest proof, and the proof is void; by a third of that, and
// a new one is looked for. Where ordered time itself is slow, for want of seats, it succeeds.

// freshness is when a node proved that it is fresh. The zero value is that it never did.
type freshness struct {
	boot   bool          // proven since this boot; a founder by the order of its Bootstrap
	gaps   uint64        // how many gaps the machine had seen before the proof began
	asleep time.Duration // how long the machine had stood still by then
	at     time.Time     // when the proof began, and what time was ordered when it was complete
	time   time.Time     // zero: before the first tick
}

// began returns what a proof that begins now is worth once it is complete.
func (n *Node) began() freshness {
	return freshness{boot: true, gaps: n.machine.Gaps(), asleep: n.asleep(), at: n.now()}
}

// completed notes a proof.
func (n *Node) completed(f freshness) {
	f.time, _ = n.machine.Now()
	n.mu.Lock()
	n.fresh = f
	n.mu.Unlock()
	n.machine.vouched()
	n.changed.notify()
}

// provenOnce reports whether this node has proved since its boot that it is fresh. It then
// knows the mesh it belongs to, though perhaps not its newest state.
func (n *Node) provenOnce() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fresh.boot
}

// proven reports whether this node has its start-up proof, and no gap since.
func (n *Node) proven() bool {
	now := n.began()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fresh.boot && n.fresh.gaps == now.gaps && now.asleep-n.fresh.asleep <= maxStaleness
}

// lags reports whether ordered time has fallen behind by more than limit since the newest proof.
// A proof from before the first tick, a founder's, measures nothing: it is as old as it lags.
func (n *Node) lags(limit time.Duration) bool {
	n.mu.Lock()
	f := n.fresh
	n.mu.Unlock()
	ordered, _ := n.machine.Now()
	if ordered.IsZero() {
		return false
	}
	passed := n.now().Sub(f.at)
	if f.time.IsZero() {
		return passed > limit
	}
	return f.time.Add(passed).Sub(ordered) > limit
}

// silent says that this node has not heard a tick for maxStaleness, or nil.
func (n *Node) silent() *attest.Reason {
	at := n.machine.TickAt()
	if at.IsZero() {
		return reason(attest.CodeStale, "last tick", "none yet", "at most "+maxStaleness.String()+" ago")
	}
	if age := n.now().Sub(at); age > maxStaleness {
		return reason(attest.CodeStale, "last tick", age.Round(time.Second).String()+" ago", "at most "+maxStaleness.String())
	}
	return nil
}

// stale says why this node must not serve data now, or nil.
func (n *Node) stale() *attest.Reason {
	if !n.provenOnce() {
		return reason(attest.CodeStale, "start-up proof", "none yet", "heads signed over our nonce by a majority of organisations")
	}
	if why := n.silent(); why != nil {
		return why
	}
	if !n.proven() {
		return reason(attest.CodeStale, "start-up proof", "of before a gap of more than "+maxStaleness.String(), "heads signed over a new nonce by a majority of organisations")
	}
	if n.lags(maxStaleness) {
		return reason(attest.CodeStale, "ordered time", "behind by more than "+maxStaleness.String()+" since the last proof", "heads signed over a new nonce by a majority of organisations")
	}
	return nil
}

// stoodStill returns for how long this machine was suspended since it booted: the clock
// that counts suspension minus the one that does not.
func stoodStill() time.Duration {
	var with, without unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &without) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &with) != nil {
		return 0 // a kernel without the clock: only missing ticks are noticed
	}
	return max(0, time.Duration(with.Nano()-without.Nano())) // read one after the other
}
