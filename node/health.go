package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
)

// What a node depends on but is not a peer: its attester and its enroller. They are asked
// now and then, so that status can say that one is gone before its answer is missed.

const (
	probeEvery  = 3 * time.Second
	probeWithin = 2 * time.Second
)

// Prober is implemented by attesters and enrollers that can say cheaply whether they
// answer. Probe makes nothing that anybody would accept: no evidence, no Credential.
type Prober interface {
	Probe(ctx context.Context) error
}

// outage is something that does not answer, and since when.
type outage struct {
	err   error
	since time.Time
}

// runProbes keeps the outages of attester and enroller until ctx ends.
func (n *Node) runProbes(ctx context.Context) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		for what, dependency := range map[string]any{"attester": n.attester, "enroller": n.enroller} {
			p, ok := dependency.(Prober)
			if !ok {
				continue
			}
			probeCtx, cancel := context.WithTimeout(ctx, probeWithin)
			err := p.Probe(probeCtx)
			cancel()
			if ctx.Err() == nil {
				n.noteProbe(what, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (n *Node) noteProbe(what string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old, down := n.outages[what]
	switch {
	case err == nil:
		delete(n.outages, what)
	case down:
		n.outages[what] = outage{err, old.since}
	default:
		n.outages[what] = outage{err, n.now()}
		n.log.Warn("does not answer", "what", what, "error", err)
	}
}

// newerWithin is for how long a command that this release does not know is remembered.
const newerWithin = time.Minute

// noteNewer notes that a peer sent a command that this release does not know. It is not
// stored, whoever sent it: a seat with bad intentions must not stop others by it. If the mesh
// has ordered it, this node is behind from now on, and only its operator can help.
func (n *Node) noteNewer(peer identity.PeerID, err error) {
	if !errors.Is(err, consensus.ErrUnknownCommand) {
		return
	}
	name := n.nameOf(peer)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.newer = outage{fmt.Errorf("%s sends commands that this release does not know, and this node cannot go on without them if the mesh has ordered them: start a newer release (%w)",
		name, err), n.now()}
}

// outageWarnings says in words what is missing and what follows from it.
func (n *Node) outageWarnings(credentialEnds time.Time) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	if n.newer.err != nil && n.now().Sub(n.newer.since) < newerWithin {
		out = append(out, n.newer.err.Error())
	}
	if o, down := n.outages["attester"]; down {
		out = append(out, fmt.Sprintf("the attester has not answered since %s: links that are up stay, no new one can be made: %v", o.since.Format(time.TimeOnly), o.err))
	}
	if o, down := n.outages["enroller"]; down {
		out = append(out, fmt.Sprintf("the enroller has not answered since %s: this boot's Credential ends at %s and cannot be renewed meanwhile: %v",
			o.since.Format(time.TimeOnly), credentialEnds.Format(time.RFC3339), o.err))
	}
	return out
}
