package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/mesh"
)

// What a node judges under is not only what was ordered:
//
//	Agreed    the ordered state, or under the longest policy chain that verifies, should that
//	          be ahead of it: a step of it takes effect without waiting for its command
//	Present   Agreed with all that was heard and not ordered yet (consensus.Provisional)
//
// Links and data are judged by Present. The link of a seat is judged by Agreed: what nobody
// has ordered withholds its data and leaves it its vote, by which it will be ordered. What is
// ordered is judged by the ordered state alone, on every node alike.

// basis is the state that what was heard is judged on. m.mu is held.
func (m *Machine) basis() *consensus.State {
	if m.pulled == nil || m.pulled.Epoch() < m.state.Epoch() || m.pulled.Steps() <= m.state.Steps() {
		return m.state
	}
	return m.state.WithPolicy(m.pulled)
}

// Agreed runs f on the state under the longest policy chain that this node has verified. f
// must not keep what it is given nor block.
func (m *Machine) Agreed(f func(*consensus.State)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.basis())
}

// Present runs f on the state as this node acts on it: Agreed, with what it has heard. f must
// not keep what it is given nor block.
func (m *Machine) Present(f func(*consensus.State)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.heard.Over(m.basis()))
}

// Hear judges a signed statement that may act before it is ordered, and has it act if it is
// good. It reports whether it was not known before.
func (m *Machine) Hear(raw []byte) (*consensus.Heard, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h, fresh, err := m.heard.Hear(m.basis(), raw)
	if fresh {
		m.moved++
		m.changes++
		m.changed.notify()
		m.news.notify()
	}
	return h, fresh, err
}

// Heard returns what acts and is not ordered yet.
func (m *Machine) Heard() []*consensus.Heard {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.heard.All()
}

// Hears reports whether anything acts that is not ordered yet.
func (m *Machine) Hears() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return !m.heard.Empty()
}

// Openings counts what may let in again whom the policy refused: widenings, when they are ordered and
// when they are strong, and what was heard and ended without having been ordered. A narrowing lets in nobody.
func (m *Machine) Openings() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.basis().Base() + m.lapsed + m.opened
}

func (n *Node) openings() uint64 { return n.machine.Openings() }

// settle judges anew what does not come from the ordered history, after a command. m.mu is held.
func (m *Machine) settle(changed bool) {
	if changed && m.pulled != nil && (m.pulled.Steps() <= m.state.Steps() || !m.pulled.BeginsWith(m.state.PolicyState)) {
		m.pulled = nil // what the seats ordered is another history, or as long
	}
	if changed {
		m.news.notify()
	}
	if !changed && !m.heard.Ended(m.state.Now()) {
		return
	}
	m.resettle()
}

var (
	errAnotherChain       = errors.New("another policy chain than the one verified here")
	errAnotherIncarnation = errors.New("a policy chain of another incarnation")
)

// Pulled returns the policy chain of this incarnation that is ahead of the ordered one, or nil.
func (m *Machine) Pulled() *consensus.PolicyState {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pulled
}

// Extend verifies steps of the policy chain, of which the first is number from, and keeps them
// if they lead further than what this node has. It reports whether they did.
func (m *Machine) Extend(from int, steps [][]byte) (bool, error) {
	have, known, err := m.continuing(from, len(steps))
	if have == nil || err != nil {
		return false, err
	}
	for i, raw := range known {
		if !bytes.Equal(raw, steps[i]) {
			return false, errAnotherChain
		}
	}
	next, err := have.Append(steps[len(known):]) // takes a while: nobody waits for it
	if err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if next.Incarnation() != m.state.Incarnation() {
		return false, errAnotherIncarnation // it decides nothing here: see recover.go
	}
	if now := m.basis().PolicyState; now.Steps() >= next.Steps() || !next.BeginsWith(now) {
		return false, nil // somebody was faster
	}
	m.pulled = next
	m.resettle()
	m.moved++
	m.changed.notify()
	m.news.notify()
	return true, nil
}

// resettle judges again what was heard. m.mu is held.
func (m *Machine) resettle() {
	gone, lapsed := m.heard.Settle(m.basis())
	if gone > 0 {
		m.moved++
		m.changes++
	}
	m.lapsed += uint64(lapsed)
}

// continuing returns a copy of the policy for count steps from number from on to continue, and
// those of them that it has already; nil if they lead no further.
func (m *Machine) continuing(from, count int) (*consensus.PolicyState, [][]byte, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	have := m.basis().PolicyState
	if from < 0 || from > have.Steps() || from+count <= have.Steps() {
		return nil, nil, nil
	}
	known := have.StepsFrom(from, consensus.MaxChainBytes)
	next, err := have.Append(nil)
	return next, known, err
}

// disallowed says that this node itself is not allowed any more, or nil.
func (n *Node) disallowed() (why *attest.Reason) {
	n.machine.Present(func(s *consensus.State) {
		if code := s.Disallowed(n.ref); code != "" {
			own, _ := s.NodeByRef(n.ref)
			why = reason(code, "measurement", own.Measurement, "an allowed measurement")
		}
	})
	return why
}

// revokedPeer says that a peer whose link stays is not allowed any more by what was heard, or nil.
func (n *Node) revokedPeer(s *mesh.Session) *attest.Reason {
	if !n.machine.Hears() {
		return nil
	}
	var p attest.Policy
	n.machine.Present(func(st *consensus.State) { p = st.AttestPolicy(s.Node, s.Roles...) })
	if r := attest.Appraise(s.Claims, p, n.time()); !r.Affirming() {
		if len(r.Reasons) > 0 {
			return &r.Reasons[0]
		}
		return reason(attest.CodeRevoked, "measurement", s.Claims.Measurement, "an allowed measurement")
	}
	return nil
}

// submitHeard has a statement that this node was handed act at once and be passed on, if it is
// one that may, and submits it.
func (n *Node) submitHeard(ctx context.Context, kind consensus.Kind, raw []byte) (Applied, error) {
	command, err := consensus.NewCommand(kind, raw)
	if err != nil {
		return Applied{}, malformed(err)
	}
	h, fresh, err := n.machine.Hear(raw) // that it may not act says nothing: that is said when it is ordered
	acts := err == nil
	if fresh {
		n.log.Info("in force before it is ordered", "kind", h.Kind, "id", h.ID.String(), "says", h.Says)
	}
	out, err := n.submit(ctx, command)
	var refused *RefusedError
	switch {
	case err == nil || !acts:
		return out, err
	case errors.As(err, &refused) && refused.Reason.Code == attest.CodeReplayed:
		out.First, _ = n.machine.leafIndex(raw) // it acted, and somebody who heard it was faster
		return out, nil
	case refused != nil:
		return out, err
	}
	return out, fmt.Errorf("in force at every node that hears of it, and not ordered yet: %w", err)
}

// ProvisionalView is one statement that acts here and is not ordered yet.
type ProvisionalView struct {
	ID   string         `json:"id"`
	Kind consensus.Kind `json:"kind"`
	Says string         `json:"says"`
	Ends string         `json:"ends"` // by ordered time, unless it is ordered before
}

func (n *Node) provisionalViews() []ProvisionalView {
	out := []ProvisionalView{}
	for _, h := range n.machine.Heard() {
		out = append(out, ProvisionalView{h.ID.String(), h.Kind, h.Says, h.Ends.Format(time.RFC3339)})
	}
	return out
}

// provisionalWarnings says in words what is in force and not ordered.
func provisionalWarnings(all []ProvisionalView) (out []string) {
	for _, v := range all {
		out = append(out, fmt.Sprintf("in force here and not ordered yet: %s", v.Says))
	}
	return out
}
