package node

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Limits of the record of peers: a flood of strangers must not fill memory.
const (
	maxPeers    = 4096
	maxClosings = 1024
)

// peerBook is this node's record of others, for status and for deciding when to dial. It
// decides nothing about trust.
type peerBook struct {
	mu       sync.Mutex
	byNode   map[identity.NodeRef]*PeerStatus     // guarded by mu
	byURL    map[string]*PeerStatus               // guarded by mu; peers whose name is not known yet
	closings []Closing                            // guarded by mu; newest last
	met      map[identity.PeerID]identity.NodeRef // guarded by mu; whoever showed a valid Credential
	unwanted map[identity.PeerID]unwanted         // guarded by mu; whose measurement our policy refused
}

// unwanted is what our policy said about a peer. Its measurement cannot change
// without a new identity, so until the policy does there is nothing to ask.
type unwanted struct {
	why      attest.Reason
	openings uint64
}

func newPeerBook() *peerBook {
	return &peerBook{byNode: map[identity.NodeRef]*PeerStatus{}, byURL: map[string]*PeerStatus{}, met: map[identity.PeerID]identity.NodeRef{},
		unwanted: map[identity.PeerID]unwanted{}}
}

// update records change for the peer named ref (and reached by url where that is known).
// Since moves only when the state does.
func (b *peerBook) update(ref identity.NodeRef, url string, now time.Time, change func(*PeerStatus)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := b.entry(ref, url)
	if p == nil {
		return
	}
	before := p.State
	change(p)
	if p.State != before {
		p.Since = now
	}
}

func (b *peerBook) entry(ref identity.NodeRef, url string) *PeerStatus {
	if ref == (identity.NodeRef{}) {
		if p, ok := b.byURL[url]; ok {
			return p
		}
		for _, p := range b.byNode {
			if url != "" && p.URL == url {
				return p
			}
		}
		p := &PeerStatus{URL: url}
		b.byURL[url] = p
		return p
	}
	if p, ok := b.byNode[ref]; ok {
		if url != "" {
			p.URL = url
			delete(b.byURL, url)
		}
		return p
	}
	if len(b.byNode) >= maxPeers {
		return nil
	}
	p := b.byURL[url]
	if p == nil || url == "" {
		p = &PeerStatus{URL: url}
	}
	delete(b.byURL, url)
	p.Node = ref.String()
	b.byNode[ref] = p
	return p
}

// meet remembers the name that a peer's valid Credential gives it.
func (b *peerBook) meet(peer identity.PeerID, ref identity.NodeRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.met) < maxPeers {
		b.met[peer] = ref
	}
}

// named returns the name of a peer that was met.
func (b *peerBook) named(peer identity.PeerID) (identity.NodeRef, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ref, ok := b.met[peer]
	return ref, ok
}

// refuse remembers that our policy refuses what a peer runs, or has run since its boot: a new
// one has a new peer id. It holds until the next of the openings (Node.openings). Other reasons
// may pass by themselves and are not remembered.
func (b *peerBook) refuse(peer identity.PeerID, why attest.Reason, openings uint64) {
	switch why.Code {
	case attest.CodeRevoked, attest.CodeMeasurementNotAllowed, attest.CodeIMAUnlisted:
	default:
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.unwanted) >= maxPeers {
		clear(b.unwanted) // the price is one dial for each that is still there
	}
	b.unwanted[peer] = unwanted{why, openings}
}

// accept forgets that a peer was refused: it has shown something else since. Who stole its
// identity key can have shown what was refused in its name.
func (b *peerBook) accept(peer identity.PeerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.unwanted, peer)
}

// refused returns why our policy refuses a peer, as far as it was asked since the last of the
// openings, or nil.
func (b *peerBook) refused(peer identity.PeerID, openings uint64) *attest.Reason {
	b.mu.Lock()
	defer b.mu.Unlock()
	u, ok := b.unwanted[peer]
	if !ok || u.openings != openings {
		delete(b.unwanted, peer)
		return nil
	}
	return &u.why
}

// closed records that this node cut off a peer after an ordered decision.
func (b *peerBook) closed(c Closing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closings = append(b.closings, c)
	if over := len(b.closings) - maxClosings; over > 0 {
		b.closings = slices.Delete(b.closings, 0, over)
	}
}

// snapshot returns copies, sorted by name.
func (b *peerBook) snapshot() ([]PeerStatus, []Closing) {
	b.mu.Lock()
	defer b.mu.Unlock()
	peers := []PeerStatus{}
	for _, p := range b.byNode {
		peers = append(peers, *p)
	}
	for _, p := range b.byURL {
		peers = append(peers, *p)
	}
	slices.SortFunc(peers, func(x, y PeerStatus) int {
		if c := strings.Compare(x.Node, y.Node); c != 0 {
			return c
		}
		return strings.Compare(x.URL, y.URL)
	})
	return peers, slices.Clone(b.closings)
}

// refusal returns the reason that most peers which answer give for refusing this node,
// and whether at least one refuses and none is connected.
func (b *peerBook) refusal() (*attest.Reason, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var reason *attest.Reason
	for _, p := range b.byNode {
		switch p.State {
		case PeerConnected:
			return nil, false
		case PeerRefusesUs:
			if p.Reason != nil {
				reason = p.Reason
			}
		}
	}
	return reason, reason != nil
}

// notifier wakes everybody who waits for a change.
type notifier struct {
	mu sync.Mutex
	ch chan struct{} // guarded by mu; closed and replaced at every change
}

func newNotifier() *notifier { return &notifier{ch: make(chan struct{})} }

// wait returns a channel that is closed at the next change. Take it before looking.
func (n *notifier) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ch
}

// notify wakes all waiters.
func (n *notifier) notify() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.ch)
	n.ch = make(chan struct{})
}
