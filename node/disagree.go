package node

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// Seats watch each other's state. Every digest command makes each seat sign the digest that its
// own machine had just before, and ask the others for theirs. Two that differ mean that one
// machine is broken, by a fault or by somebody. A seat whose leader says something else follows it
// no longer; since all that are right do the same, a wrong leader loses its office. Only a
// seat that ⌊n/2⌋+1 organisations contradict with one voice ends: it comes back with a new
// identity and the state of the others. Differences are in the log of the mesh as well:
// the state leaf, and every root after it, is another.

const (
	compareEvery  = 250 * time.Millisecond
	compareWithin = 2 * time.Second
	// compareFor is how long a seat that has not answered is asked about one digest.
	compareFor = time.Minute
)

type digestRequest struct {
	Seq uint64 `json:"seq"`
}

type digestReply struct {
	Digest []byte `json:"digest"` // a StateDigest
}

// handleDigest signs what this seat's machine was before a digest command.
func (n *Node) handleDigest(_ mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(compareWithin))
	var req digestRequest
	if readMessage(s, &req) != nil {
		return
	}
	digest, ok := n.machine.digestAt(req.Seq)
	if !ok {
		return // not there yet, or long past
	}
	raw, err := consensus.SignStateDigest(n.key, consensus.StateDigest{
		MeshID: n.genesis.MeshID(), Incarnation: n.incarnation(), Node: n.ref, Peer: n.self, Seq: req.Seq, Digest: digest})
	if err != nil {
		n.log.Error("state digest", "error", err)
		return
	}
	_ = writeMessage(s, digestReply{raw})
}

// digestAt returns the digest that the machine had before the newest digest command, if that came
// after seq others.
func (m *Machine) digestAt(seq uint64) (string, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.saved == nil || m.saved.seq != seq {
		return "", false
	}
	return hex.EncodeToString(m.saved.digest[:]), true
}

// newestDigest returns what digestAt knows.
func (m *Machine) newestDigest() (seq uint64, digest string, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.saved == nil {
		return 0, "", false
	}
	return m.saved.seq, hex.EncodeToString(m.saved.digest[:]), true
}

// comparison is what seats have said about the state after seq commands.
type comparison struct {
	seq     uint64
	own     string
	digests map[identity.PeerID]string
	raw     map[identity.PeerID][]byte // as signed
	orgs    map[identity.PeerID]identity.OrgID
	refused identity.PeerID // the leader that is not followed any more for it
}

func newComparison(seq uint64, own string) *comparison {
	return &comparison{seq: seq, own: own, digests: map[identity.PeerID]string{}, raw: map[identity.PeerID][]byte{}, orgs: map[identity.PeerID]identity.OrgID{}}
}

// contradicted returns the organisations that have another digest in common, if they are quorum.
func (c *comparison) contradicted(quorum int) (string, []identity.OrgID) {
	by := map[string]map[identity.OrgID]bool{}
	for peer, digest := range c.digests {
		if digest == c.own {
			continue
		}
		if by[digest] == nil {
			by[digest] = map[identity.OrgID]bool{}
		}
		by[digest][c.orgs[peer]] = true
	}
	for digest, orgs := range by {
		if quorum > 0 && len(orgs) >= quorum {
			return digest, sortedOrgs(orgs)
		}
	}
	return "", nil
}

// differs reports whether peer has said something else.
func (c *comparison) differs(peer identity.PeerID) bool {
	d, said := c.digests[peer]
	return said && d != c.own
}

// runComparison compares each new digest with the other seats' until ctx ends.
func (n *Node) runComparison(ctx context.Context) {
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	var c *comparison
	var began time.Time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		seq, own, ok := n.machine.newestDigest()
		if !ok {
			continue
		}
		if c == nil || c.seq != seq {
			c, began = newComparison(seq, own), n.now()
		}
		if n.now().Sub(began) < compareFor {
			n.compare(ctx, c)
		}
		if err := n.judgeDigests(c); err != nil {
			n.fail(err)
			return
		}
	}
}

// compare asks every linked seat that has not answered.
func (n *Node) compare(ctx context.Context, c *comparison) {
	type answer struct {
		d   *consensus.StateDigest
		raw []byte
		org identity.OrgID
	}
	var ask []mesh.Link
	for _, l := range n.seatLinks() {
		if _, said := c.digests[l.Peer()]; !said {
			ask = append(ask, l)
		}
	}
	for _, a := range gather(ctx, ask, compareWithin, func(ctx context.Context, l mesh.Link) (answer, error) {
		d, raw, err := n.askDigest(ctx, l, c.seq)
		return answer{d, raw, l.Session().Node.Org}, err
	}) {
		c.digests[a.d.Peer], c.raw[a.d.Peer], c.orgs[a.d.Peer] = a.d.Digest, a.raw, a.org
		if a.d.Digest != c.own {
			// Both are signed: whoever reads the two logs has the proof.
			n.log.Error("another state", "node", a.d.Node.String(), "commands", c.seq, "own", c.own, "theirs", a.d.Digest, "signed", string(a.raw))
		}
	}
}

func (n *Node) askDigest(ctx context.Context, l mesh.Link, seq uint64) (*consensus.StateDigest, []byte, error) {
	s, err := n.open(ctx, l, n.protocols.digest)
	if err != nil {
		return nil, nil, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := writeMessage(s, digestRequest{seq}); err != nil {
		return nil, nil, err
	}
	var reply digestReply
	if err := readMessage(s, &reply); err != nil {
		return nil, nil, err
	}
	d, err := consensus.ParseStateDigest(reply.Digest)
	if err != nil {
		return nil, nil, err
	}
	if d.Peer != l.Peer() || d.MeshID != n.genesis.MeshID() || d.Incarnation != n.incarnation() || d.Seq != seq {
		return nil, nil, errors.New("a state digest of another seat, mesh or command")
	}
	return d, reply.Digest, nil
}

// judgeDigests draws the consequences. An error ends this node.
func (n *Node) judgeDigests(c *comparison) error {
	quorum := n.quorum()
	if digest, orgs := c.contradicted(quorum); orgs != nil {
		return fmt.Errorf("the state after %d commands has digest %s here, %s at %v: this machine is not theirs", c.seq, c.own, digest, orgs)
	}
	r := n.raft()
	if r == nil {
		return nil
	}
	if leader := r.Leader(); leader != n.self && leader != c.refused && c.differs(leader) {
		c.refused = leader
		r.Distrust(leader, 0, fmt.Errorf("its state after %d commands differs from ours", c.seq))
	}
	return nil
}

func sortedOrgs(set map[identity.OrgID]bool) []identity.OrgID {
	var out []identity.OrgID
	for org := range set {
		out = append(out, org)
	}
	slices.Sort(out)
	return out
}
