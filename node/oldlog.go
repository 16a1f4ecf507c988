package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

// An incarnation above 0 goes on from the log of the one before. This file reads that log,
// from this node's own earlier boots or from peers, and rebuilds the state that its leaves
// lead to. Where it is read from does not matter: its root is in a Recovery.

// oldLog is a log up to a size, with the state that it leads to.
type oldLog struct {
	from   string
	leaves *spool
	at     consensus.CheckpointSeen
	note   []byte // the checkpoint of that size, if one was read
	state  *consensus.State
	ledger *federated.Ledger
}

// close gives up the leaves; l may be nil.
func (l *oldLog) close() {
	if l != nil {
		l.leaves.close()
	}
}

// readLog reads the log at location up to a size with a root and replays it as it comes. What does
// not follow from the leaves before ends it, so that who serves it cannot make it longer than what
// members have signed; the leaves wait outside of memory.
func readLog(ctx context.Context, g *consensus.Genesis, location string, at transparency.Checkpoint) (out *oldLog, err error) {
	r, err := transparency.OpenReader(location)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out = &oldLog{from: location, at: consensus.CheckpointSeen{Size: at.Size, Root: at.Root.String()}}
	if out.leaves, err = newSpool(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			out.close()
			out = nil
		}
	}()
	replay := newLeafReplay(g)
	walked, err := r.Walk(ctx, at, transparency.WalkOptions{Leaf: func(_ uint64, leaf []byte) error {
		if err := replay.leaf(leaf); err != nil {
			return fmt.Errorf("%s: %w", location, err)
		}
		return out.leaves.append(leaf)
	}})
	if err != nil {
		return nil, err
	}
	if walked.Root != at.Root || out.leaves.count != at.Size {
		why := "the entries give another root"
		if len(walked.Findings) > 0 {
			why = fmt.Sprintf("entry %d: %s", walked.Findings[0].Index, walked.Findings[0].Message)
		}
		return nil, fmt.Errorf("%s at size %d: %s", location, at.Size, why)
	}
	out.state, out.ledger, err = replay.done()
	return out, err
}

// readNote reads the checkpoint that is published at location.
func readNote(ctx context.Context, location string) ([]byte, transparency.Checkpoint, error) {
	r, err := transparency.OpenReader(location)
	if err != nil {
		return nil, transparency.Checkpoint{}, err
	}
	defer r.Close()
	note, err := r.Checkpoint(ctx)
	if err != nil {
		return nil, transparency.Checkpoint{}, err
	}
	c, err := transparency.ParseCheckpoint(note)
	return note, c, err
}

// readPublished reads the log at location up to its newest checkpoint, and demands that a
// quorum of its own members has cosigned that.
func readPublished(ctx context.Context, g *consensus.Genesis, location string, now time.Time) (*oldLog, error) {
	note, c, err := readNote(ctx, location)
	if err != nil {
		return nil, err
	}
	l, err := readLog(ctx, g, location, c)
	if err != nil {
		return nil, err
	}
	l.note = note
	v, err := l.verify(note, now)
	if err != nil {
		l.close()
		return nil, err
	}
	if v.Level < transparency.Published {
		l.close()
		return nil, fmt.Errorf("%s at size %d is cosigned by %v only", location, c.Size, v.Orgs)
	}
	return l, nil
}

// errEnough ends the reading of a spool.
var errEnough = errors.New("enough")

// holds reports whether the log at an earlier size had a root.
func (l *oldLog) holds(at consensus.CheckpointSeen) error {
	if at.Size > l.leaves.count {
		return fmt.Errorf("%s has %d entries, want %d or more", l.from, l.leaves.count, at.Size)
	}
	tree := transparency.NewAccumulator()
	err := l.leaves.each(func(i uint64, leaf []byte) error {
		if i == at.Size {
			return errEnough
		}
		return tree.Append(leaf)
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if root, err := tree.Root(); err != nil || root.String() != at.Root {
		return fmt.Errorf("%s has root %s at size %d, want %s: two histories", l.from, root, at.Size, at.Root)
	}
	return nil
}

// verify holds a checkpoint against the members of the log.
func (l *oldLog) verify(note []byte, now time.Time) (transparency.Verified, error) {
	s := l.state
	p := transparency.Policy{Origin: s.Origin(), LogKey: s.LogKey(), At: now,
		Quorum: transparency.Quorum{Published: s.Quorum(), Strong: s.StrongQuorum()}}
	for _, seat := range s.Seats() {
		if c := seat.Credential; seat.Standing == consensus.StandingMeasured {
			p.Cosigners = append(p.Cosigners, transparency.Cosigner{Name: s.CosignerName(c.Ref(), c.BootSeq), Org: c.Organisation, Key: c.CosignerKey()})
		}
	}
	return transparency.Verify(note, p)
}

// leafReplay rebuilds a state and a ledger from the leaves of a log.
type leafReplay struct {
	state   *consensus.State
	ledger  *federated.Ledger
	genesis []byte
	count   uint64
	derived [][]byte // leaves that the one before has led to
}

func newLeafReplay(g *consensus.Genesis) *leafReplay {
	return &leafReplay{state: consensus.NewState(g), ledger: federated.NewLedger(g.MeshID())}
}

// leaf replays the next leaf.
func (r *leafReplay) leaf(leaf []byte) error {
	i := r.count
	r.count++
	switch {
	case i == 0:
		r.genesis = leaf
		return nil
	case i == 1:
		c, err := consensus.NewCommand(consensus.KindBootstrap, r.genesis, leaf)
		if err != nil {
			return err
		}
		if out := r.state.Apply(c); out.Reason != nil {
			return &RefusedError{*out.Reason}
		}
		return nil
	case len(r.derived) > 0 && bytes.Equal(r.derived[0], leaf):
		r.derived = r.derived[1:]
		return nil
	}
	env, err := envelope.Parse(leaf)
	if err != nil {
		return fmt.Errorf("leaf %d: %w", i, err)
	}
	predicate, err := envelope.PredicateType(env.Payload)
	if err == nil && predicate == envelope.TypeRound {
		err = r.ledger.Resume(leaf)
	} else if err == nil {
		var out consensus.Outcome
		if out, err = r.state.Replay(leaf); err == nil && len(out.Leaves) > 1 {
			r.derived = append(r.derived, out.Leaves[1:]...)
		}
	}
	if err != nil {
		return fmt.Errorf("leaf %d: %w", i, err)
	}
	return nil
}

// done returns what the leaves lead to.
func (r *leafReplay) done() (*consensus.State, *federated.Ledger, error) {
	if r.count < 2 {
		return nil, nil, fmt.Errorf("a log of %d leaves, without genesis or Bootstrap", r.count)
	}
	return r.state, r.ledger, nil
}

// keptLogs returns where older logs may be: those of this node's earlier boots, newest
// first, then those that peers serve.
func (n *Node) keptLogs() []string {
	var out []string
	if n.cfg.Data != "" && n.logDir != "" {
		own, _ := filepath.Glob(filepath.Join(n.cfg.Data, "boot-*", "log"))
		slices.SortFunc(own, func(a, b string) int { return strings.Compare(b, a) })
		out = slices.DeleteFunc(own, func(dir string) bool { return dir == n.logDir })
	}
	return append(out, n.peerLogs()...)
}

// peerLogs returns the addresses of the logs that peers serve; none in simulations, whose
// peers have no sockets.
func (n *Node) peerLogs() []string {
	var out []string
	if n.logDir != "" {
		for _, url := range n.cfg.Peers {
			out = append(out, url+strings.TrimSuffix(pathLog, "/"))
		}
	}
	return out
}

// keptWithin is how long a peer has to show its checkpoint: a frozen one takes connections
// and says nothing.
const keptWithin = 3 * time.Second

// keptLog is a log that answers; head is zero where it has no checkpoint.
type keptLog struct {
	location string
	head     transparency.Checkpoint
}

// answering returns the logs that can be read now, in their order.
func answering(ctx context.Context, locations []string) []keptLog {
	ctx, cancel := context.WithTimeout(ctx, keptWithin)
	defer cancel()
	found := make([]*keptLog, len(locations))
	var all sync.WaitGroup
	for i, location := range locations {
		all.Go(func() {
			_, c, err := readNote(ctx, location)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				found[i] = &keptLog{location, c}
			}
		})
	}
	all.Wait()
	var out []keptLog
	for _, k := range found {
		if k != nil {
			out = append(out, *k)
		}
	}
	return out
}

// inTurn is ctx for one of left readings, so that a peer whose log trickles leaves the others time.
func inTurn(ctx context.Context, left int) (context.Context, context.CancelFunc) {
	if end, ok := ctx.Deadline(); ok {
		return context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
	}
	return context.WithCancel(ctx)
}

// findLog returns the first kept log that has the given size and root.
func (n *Node) findLog(ctx context.Context, at consensus.CheckpointSeen) (*oldLog, error) {
	var root transparency.Hash
	err := root.UnmarshalText([]byte(at.Root))
	if err != nil {
		return nil, err
	}
	last := errors.New("nobody answers")
	kept := answering(ctx, n.keptLogs())
	for i, k := range kept {
		turn, cancel := inTurn(ctx, len(kept)-i)
		l, err := readLog(turn, n.genesis, k.location, transparency.Checkpoint{Size: at.Size, Root: root})
		cancel()
		if err == nil {
			return l, nil
		}
		n.log.Debug("not the log to go on from", "log", k.location, "error", err)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		last = err
	}
	return nil, fmt.Errorf("no log of size %d with root %.16s in %s/boot-*/log or at a peer (%w)", at.Size, at.Root, n.cfg.Data, last)
}

// newestLog returns the longest published log of an origin that is longer than size.
func (n *Node) newestLog(ctx context.Context, origin string, size uint64, locations []string) *oldLog {
	var best *oldLog
	kept := answering(ctx, locations)
	for i, k := range kept {
		if best != nil {
			size = best.at.Size
		}
		if k.head.Origin != origin || k.head.Size <= size {
			continue
		}
		turn, cancel := inTurn(ctx, len(kept)-i)
		l, err := readPublished(turn, n.genesis, k.location, n.now())
		cancel()
		if err != nil {
			n.log.Warn("a longer log is not believed", "log", k.location, "error", err)
			continue
		}
		best.close()
		best = l
	}
	return best
}
