package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Recovered is a place at which a log goes on in a higher incarnation.
type Recovered struct {
	Index       uint64               `json:"index"` // of the Recovery; as many entries stand before it
	Incarnation identity.Incarnation `json:"incarnation"`
	Planned     bool                 `json:"planned,omitempty"`
	Created     time.Time            `json:"created"`
	// Signers are the organisations whose govern keys signed the Recovery, Founders those
	// whose enrollers signed the Bootstrap.
	Signers  []identity.OrgID `json:"signers"`
	Founders []identity.OrgID `json:"founders"`
}

// part is a tree that a planned Recovery says its log contains.
type part struct {
	index uint64 // of the Recovery
	at    consensus.CheckpointSeen
}

// judgeParts looks whether the log contains the trees that planned Recoveries name.
func (a *Auditor) judgeParts(ctx context.Context, r *transparency.Reader, head transparency.Checkpoint) error {
	for len(a.replay.parts) > 0 {
		p := a.replay.parts[0]
		root, err := rootAt(ctx, r, head, p.at.Size)
		if err != nil {
			return err
		}
		if root.String() != p.at.Root {
			f := finding(p.index, CodeRecoveryInvalid, fmt.Sprintf("the Recovery goes on from no older a log than size %d with root %s; here that size has root %s", p.at.Size, p.at.Root, root))
			a.leaves.add(f)
			a.fresh.add(f)
		}
		a.replay.parts = a.replay.parts[1:]
	}
	return nil
}

// rootAt returns the root at a smaller size by the tiles, or where these are damaged by the
// entries; the zero value if they are not there.
func rootAt(ctx context.Context, r *transparency.Reader, head transparency.Checkpoint, size uint64) (transparency.Hash, error) {
	root, err := r.RootAt(ctx, head, size)
	if err == nil || ctx.Err() != nil || errors.Is(err, transparency.ErrUnavailable) {
		return root, err
	}
	tree := transparency.NewAccumulator()
	_, err = r.Walk(ctx, head, transparency.WalkOptions{Each: func(e transparency.Entry) error {
		if e.Index == size {
			return errStop
		}
		return tree.AppendHash(e.Hash)
	}})
	if err != nil && !errors.Is(err, errStop) || tree.Size() != size {
		return transparency.Hash{}, err
	}
	return tree.Root()
}

// recovery replays the two leaves that an incarnation above 0 begins with. Where they do not
// hold there is no membership to judge what follows by.
func (r *replayer) recovery(index uint64, kind string, leaf []byte) []transparency.Finding {
	fail := func(err error) []transparency.Finding {
		r.broken = true
		return []transparency.Finding{finding(index, CodeRecoveryInvalid, consensus.ReasonOf(err).String())}
	}
	at, err := r.place()
	if err != nil {
		return fail(err)
	}
	if kind == envelope.TypeRecovery {
		if len(r.derived) > 0 {
			return fail(fmt.Errorf("a Recovery in place of what follows from the leaves before it"))
		}
		_, env, err := consensus.ParseRecovery(leaf)
		if err != nil {
			return fail(err)
		}
		signers, err := r.state.RecoverySigners(env)
		if err != nil {
			return fail(err)
		}
		if err := r.state.Recover(leaf, at, time.Time{}); err != nil {
			return fail(err)
		}
		r.volume = volume{}
		x := r.state.Recovery()
		if x.Planned {
			r.parts = append(r.parts, part{index, x.Checkpoint})
		}
		r.recoveries = append(r.recoveries, Recovered{Index: index, Incarnation: x.Incarnation, Planned: x.Planned, Created: x.Created, Signers: signers, Founders: x.Organisations})
		return nil
	}
	if _, err := r.state.Replay(leaf); err != nil {
		return fail(err)
	}
	r.policy = index
	return nil
}
