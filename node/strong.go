package node

import (
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// What Raft has ordered here, a leader may have ordered otherwise elsewhere: it is safe against
// crashes, not against a leader that lies. So a change that does more than narrow lets nobody in
// before a strong checkpoint holds it: one that ⌊2n/3⌋+1 organisations have cosigned, of which two
// for different histories share more than a third of all, each of them convicted by that; or one that a
// majority and an outside witness of the policy before have. What narrows acts at once (heard.go).
//
//	ordered here ──► awaited: peers are judged by the policy before it, too ──► strong: in force
//
// Who holds a seat is judged by what was ordered: its vote and its cosignature are needed to get
// there. A node that starts takes the policy in force from its start-up proof: heads of a majority of
// organisations.

// maxAwaited bounds the changes that wait one by one.
const maxAwaited = 64

// awaited is a change of the policy that is ordered and not strong yet.
type awaited struct {
	before *consensus.PolicyState // what was in force until then
	leaf   uint64
	since  time.Time
}

// vouched begins the wait: what this node has applied so far it takes from its first start-up proof.
func (m *Machine) vouched() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gated = true
}

// notInForce notes what the policy was before a change of leaf. m.mu is held.
func (m *Machine) notInForce(before *consensus.PolicyState, leaf uint64) {
	if !m.gated || before == nil || !before.Started() || m.state.Base() <= before.Base() {
		return
	}
	if last := len(m.awaited) - 1; last+1 >= maxAwaited {
		m.awaited[last].leaf = leaf // the last waits for all that come
		return
	}
	m.awaited = append(m.awaited, awaited{before, leaf, m.now()})
}

// strengthen puts in force what is among the first size leaves.
func (m *Machine) strengthen(size uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.awaited) > 0 && m.awaited[0].leaf < size {
		m.awaited = m.awaited[1:]
		m.opened++
		m.moved++
		m.changed.notify()
	}
}

// Awaiting returns the policy that what was widened since must not go beyond, or nil: that before
// the oldest change that is not strong, or the ordered one where a longer chain was heard of.
func (m *Machine) Awaiting() *consensus.PolicyState {
	m.mu.RLock()
	defer m.mu.RUnlock()
	switch {
	case !m.gated:
		return nil
	case len(m.awaited) > 0:
		return m.awaited[0].before
	case m.pulled != nil && m.pulled.Base() > m.state.Base() && m.state.Started():
		return m.state.PolicyState
	}
	return nil
}

// awaits returns the oldest change that is not strong.
func (m *Machine) awaits() (awaited, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if len(m.awaited) == 0 {
		return awaited{}, false
	}
	return m.awaited[0], true
}

// strong reports whether a checkpoint puts in force what it holds. A witness counts that was named
// before, too: else a change could name its own.
func (n *Node) strong(v transparency.Verified) bool {
	if v.Level != transparency.Published {
		return v.Level == transparency.Strong
	}
	before := n.machine.Awaiting()
	for _, w := range n.outsideKeys() {
		if before != nil && !slices.Contains(before.Witnesses(), w.Key()) {
			continue
		}
		if slices.ContainsFunc(v.Outside, func(by transparency.Witnessed) bool { return by.Name == w.Name() }) {
			return true
		}
	}
	return false
}

// notStrong says that only a change which is not strong yet lets a subject in, or nil.
func (n *Node) notStrong(s mesh.Subject, c attest.Claims) *attest.Reason {
	before := n.machine.Awaiting()
	if before == nil || n.holdsSeat(s.Peer) {
		return nil
	}
	if r := attest.Appraise(c, before.AttestPolicy(s.Node, s.Roles...), n.time()); r.Affirming() {
		return nil
	}
	return n.awaitedReason("measurement", c.Measurement)
}

// notStrongCredential is notStrong of who signed a Credential.
func (n *Node) notStrongCredential(raw []byte, c *consensus.Credential) *attest.Reason {
	before := n.machine.Awaiting()
	if before == nil || n.holdsSeat(c.Peer) {
		return nil
	}
	if _, err := before.VerifyCredential(raw, n.time()); err == nil {
		return nil
	}
	return n.awaitedReason("credential organisation", string(c.Organisation))
}

func (n *Node) awaitedReason(claim, got string) *attest.Reason {
	where := "that is not ordered here yet"
	if a, ok := n.machine.awaits(); ok {
		where = fmt.Sprintf("of leaf %d or later", a.leaf)
	}
	return reason(attest.CodeNotStrong, claim, got, "a change of the policy "+where+", in a strong checkpoint")
}

// notStrongAfter is how long a change may wait before status says so.
const notStrongAfter = 10 * time.Second

// strongWarnings says that a change is ordered and does not let anybody in yet.
func (n *Node) strongWarnings() []string {
	a, ok := n.machine.awaits()
	if !ok || n.now().Sub(a.since) < notStrongAfter {
		return nil
	}
	newest, _ := n.lastPublished()
	need := n.checkpointPolicy().Quorum.Strong
	return []string{fmt.Sprintf("the change of the policy at leaf %d is ordered and lets nobody in yet: the newest checkpoint is cosigned by %d organisations, %d are needed, or an outside witness; bring the seats back, or retire those that are gone", a.leaf, len(newest.Orgs), need)}
}
