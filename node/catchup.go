package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// How nodes that are far behind catch up. The leader has the state logged now and then; every
// node keeps a copy of it once that is published (snapshot.go), and lets go of the commands
// long before it. Seats hand their copies to Raft, which sends them to voters and learners. A
// member asks whomever it follows for one when its next command is not kept any more. Either
// way the tiles of the log, which no snapshot holds, come afterwards, from anybody.

const (
	stateEvery     = time.Second // looked whether it is time
	snapshotWithin = time.Minute
	snapshotFrame  = 256 << 10
	maxGivers      = 4 // snapshots given at a time
	tileWithin     = 10 * time.Second
	tileSoon       = 2 * time.Second // who takes longer is not asked for the next one
	tilePause      = time.Second     // after one that nobody gave
	maxTile        = 17 << 20        // 256 entries of 64 KiB
)

// errNotKept says that a peer has let go of the commands that we need.
var errNotKept = errors.New("the next command is not kept there any more")

// runStateLog has the leader order digest commands.
func (n *Node) runStateLog(ctx context.Context) {
	tick := time.NewTicker(stateEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !n.leads() || !n.stateDue() {
			continue
		}
		command, err := consensus.NewCommand(consensus.KindDigest)
		if err != nil {
			n.log.Error("digest", "error", err)
			return
		}
		within, cancel := context.WithTimeout(ctx, submitTimeout)
		if _, err := n.submit(within, command); err != nil {
			n.log.Warn("state not logged", "error", err)
		}
		cancel()
	}
}

func (n *Node) stateDue() (due bool) {
	seq := n.machine.Seq()
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { due = s.LogStateDue(seq) })
	return due
}

// runSnapshots has this seat's Raft replica store each published copy.
func (n *Node) runSnapshots(ctx context.Context) {
	tick := time.NewTicker(stateEvery)
	defer tick.Stop()
	var last uint64
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		saved := n.machine.SavedSeq()
		if saved == last {
			continue
		}
		within, cancel := context.WithTimeout(ctx, snapshotWithin)
		if err := n.raft().Snapshot(within); err != nil {
			n.log.Debug("no raft snapshot yet", "error", err) // after a change of seats: the next tick
		} else {
			last = saved
			n.log.Info("state stored", "commands", saved)
		}
		cancel()
	}
}

type snapshotHead struct {
	Size int `json:"size"`
}

// givers are the snapshots that are being given: maxGivers, of which one peer has one.
type givers struct {
	mu sync.Mutex
	to map[identity.PeerID]bool // guarded by mu
}

// enter takes a place for a peer, which leave gives back; false if there is none for it.
func (g *givers) enter(peer identity.PeerID) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.to[peer] || len(g.to) >= maxGivers {
		return nil, false
	}
	if g.to == nil {
		g.to = map[identity.PeerID]bool{}
	}
	g.to[peer] = true
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.to, peer)
	}, true
}

// handleSnapshot gives a peer the snapshot of this moment, in no more time than catchUp takes for it.
func (n *Node) handleSnapshot(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	leave, ok := n.givers.enter(link.Peer())
	if !ok {
		return // it asks again, or somebody else
	}
	defer leave()
	encode, err := n.machine.Give()
	if err != nil {
		return
	}
	raw, err := encode()
	if err != nil {
		n.log.Error("snapshot", "error", err)
		return
	}
	end := n.now().Add(snapshotWithin)
	extend := func() {
		next := n.now().Add(forwardWithin)
		if next.After(end) {
			next = end
		}
		_ = s.SetDeadline(next)
	}
	extend()
	if writeMessage(s, snapshotHead{len(raw)}) != nil {
		return
	}
	for len(raw) > 0 {
		part := raw[:min(len(raw), snapshotFrame)]
		extend()
		if writeFrame(s, part) != nil {
			return
		}
		raw = raw[len(part):]
	}
}

// catchUp starts this node's machine from a peer's snapshot. One that is cut off leaves nothing
// behind.
func (n *Node) catchUp(ctx context.Context, link mesh.Link) error {
	select {
	case n.catching <- struct{}{}:
		defer func() { <-n.catching }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotWithin)
	defer cancel()
	s, err := n.open(ctx, link, n.protocols.snapshot)
	if err != nil {
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	raw, err := readSnapshot(s, func() { _ = s.SetDeadline(n.now().Add(forwardWithin)) })
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := n.machine.CatchUp(raw); err != nil {
		return err
	}
	n.log.Info("started from a copy of the state", "of", n.nameOf(link.Peer()), "bytes", len(raw), "commands", n.machine.Seq())
	return nil
}

// readSnapshot receives what handleSnapshot sends. Memory grows with what comes, not with what is
// announced.
func readSnapshot(s mesh.Stream, extend func()) ([]byte, error) {
	var head snapshotHead
	extend()
	if err := readMessage(s, &head); err != nil {
		return nil, err
	}
	if head.Size <= 0 || head.Size > replica.MaxSnapshot {
		return nil, fmt.Errorf("%d bytes, want 1 to %d", head.Size, replica.MaxSnapshot)
	}
	var raw []byte
	for len(raw) < head.Size {
		extend()
		part, err := readFrame(s, snapshotFrame)
		if err != nil {
			return nil, err
		}
		if len(part) == 0 || len(part) > head.Size-len(raw) {
			return nil, fmt.Errorf("a part of %d bytes, %d are left", len(part), head.Size-len(raw))
		}
		raw = append(raw, part...)
	}
	return raw, nil
}

type tileRequest struct {
	Name string `json:"name"`
}

// handleTile gives a file of the log.
func (n *Node) handleTile(_ mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(tileWithin))
	var req tileRequest
	if readMessage(s, &req) != nil {
		return
	}
	if data, err := n.machine.tree.ReadFile(req.Name); err == nil {
		_ = writeFrame(s, data)
	}
}

// runTiles gets the tiles that a snapshot has left out, from one linked node as long as it gives them
// soon, else from the next.
func (n *Node) runTiles(ctx context.Context) {
	for next := 0; ; {
		changed := n.changed.wait()
		name := n.machine.tree.Missing()
		if name == "" {
			if err := n.machine.checkBefore(); err != nil {
				n.fail(err)
				return
			}
		}
		links := n.links()
		var pause <-chan time.Time
		if name != "" && len(links) > 0 {
			slices.SortFunc(links, func(a, b mesh.Link) int { return strings.Compare(string(a.Peer()), string(b.Peer())) })
			link, began := links[next%len(links)], n.now()
			err := n.fillFrom(ctx, link, name)
			if err != nil || n.now().Sub(began) > tileSoon {
				next++
			}
			if err == nil {
				continue
			}
			level := n.log.Debug
			if errors.Is(err, transparency.ErrForeignTile) {
				level = n.log.Warn
			}
			level("no tile", "of", n.nameOf(link.Peer()), "error", err)
		}
		if name != "" {
			pause = time.After(tilePause / time.Duration(1+len(links)))
			changed = nil
		}
		select {
		case <-changed:
		case <-pause:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) fillFrom(ctx context.Context, link mesh.Link, name string) error {
	ctx, cancel := context.WithTimeout(ctx, tileWithin)
	defer cancel()
	s, err := n.open(ctx, link, n.protocols.tile)
	if err != nil {
		return err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { _ = s.Reset() })
	defer stop()
	if err := writeMessage(s, tileRequest{name}); err != nil {
		return err
	}
	data, err := readFrame(s, maxTile)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return n.machine.fill(name, data)
}
