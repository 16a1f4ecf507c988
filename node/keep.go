package node

import (
	"context"
	"slices"
	"time"
)

// Between two rounds the newest model of a job is in the memory of those who were in the last
// one, and nowhere else where its terms do not disclose it. Nodes that are started anew, one
// after the other, must have it before the last of those is stopped: so every node that may be
// in a round fetches it as soon as it may.

const (
	keepEvery  = 2 * time.Second
	keepWithin = time.Minute
)

// runKeeper fetches the newest model of every job that goes on and that this node does not have, until
// ctx ends.
func (n *Node) runKeeper(ctx context.Context) {
	if !slices.ContainsFunc(n.cfg.Roles, func(r string) bool { return r == RoleTrainer || r == RoleAggregator }) {
		return
	}
	for ; ctx.Err() == nil; n.rest(ctx, keepEvery) {
		if n.withdrawn() != nil {
			continue
		}
		for _, job := range n.jobs() {
			root := job.ModelRoot()
			if _, goesOn := job.Next(); goesOn && !root.IsZero() && !n.blobs.Has(root) {
				fetch, cancel := context.WithTimeout(ctx, keepWithin)
				if _, err := n.fetchBlob(fetch, root); err != nil {
					n.log.Debug("newest model not here yet", "job", job.Job.ID, "error", err)
				}
				cancel()
			}
		}
	}
}

// rest returns after d or with ctx.
func (n *Node) rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
