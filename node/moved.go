package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
)

// A machine that measures what it runs goes on measuring after its peers have judged it. They
// ask again before their window ends (five minutes), whatever this node does. It need not wait
// for that: as soon as its registers have moved it proves itself again on every link, so that
// a file that nobody listed puts it out within seconds.

const (
	movedEvery  = 2 * time.Second
	movedWithin = 5 * time.Second
	// movedPause is how long registers may go on moving before peers hear of it again: each
	// time costs every one of them a quote.
	movedPause = 15 * time.Second
)

// Watcher is implemented by attesters that can say cheaply whether evidence would show
// something new: State then differs.
type Watcher interface {
	State(ctx context.Context) (string, error)
}

// watchMachine has every link attested again after each change of the attester's state, until
// ctx ends.
func (n *Node) watchMachine(ctx context.Context) {
	w, ok := n.attester.(Watcher)
	if !ok {
		return
	}
	var known string
	var told time.Time
	tick := time.NewTicker(movedEvery)
	defer tick.Stop()
	for {
		state, err := stateOf(ctx, w)
		switch {
		case err != nil: // status says so: runProbes
		case known == "":
			known = state
		case state != known && time.Since(told) >= movedPause:
			known, told = state, time.Now()
			n.log.Info("this machine has measured something new")
			n.reattestAll(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func stateOf(ctx context.Context, w Watcher) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, movedWithin)
	defer cancel()
	return w.State(ctx)
}

// reattestAll proves on every link anew what this machine runs. They share a quote.
func (n *Node) reattestAll(ctx context.Context) {
	var all sync.WaitGroup
	for _, l := range n.links() {
		all.Go(func() {
			err := l.Reattest(ctx)
			var refused *mesh.Refusal
			if errors.As(err, &refused) && refused.Code() != attest.CodeBusy {
				n.log.Warn("no longer believed", "by", l.Session().Node.String(), "reason", refused.Error())
			}
		})
	}
	all.Wait()
}
