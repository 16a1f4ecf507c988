package audit

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

// Change is one step of the policy with where it stands in the log.
type Change struct {
	consensus.Step
	Leaf uint64 `json:"leaf"` // of the last of its envelopes
	// After is a time that the members' clock had passed when it was ordered; zero where the
	// leaves before it do not say.
	After time.Time `json:"after,omitzero"`
}

// Changes audits a log as Log does and returns the history of its policy: its steps and the
// chain of envelopes that they were computed from. What the report finds wrong with the log the
// history may not tell.
func Changes(ctx context.Context, r *transparency.Reader, opts Options) (Report, []Change, [][]byte, error) {
	a := newOnce(opts)
	type place struct {
		index uint64
		after time.Time
	}
	at := map[[sha256.Size]byte]place{}
	a.watch = func(s Seen) {
		if s.Index < 2 || s.Kind == envelope.TypeProposal || s.Kind == envelope.TypeBootstrap {
			at[sha256.Sum256(s.Leaf)] = place{s.Index, s.Earliest}
		}
	}
	report, err := a.audit(ctx, r)
	if err != nil || !a.replay.started() {
		return report, []Change{}, nil, err
	}
	chain := a.replay.state.PolicyChain()
	steps, err := consensus.History(a.replay.state.Genesis(), chain, nil)
	if err != nil {
		return report, []Change{}, nil, err // it was replayed from the same envelopes
	}
	out := []Change{}
	for _, s := range steps {
		p := at[sha256.Sum256(chain[s.Links[len(s.Links)-1]])]
		out = append(out, Change{s, p.index, p.after})
	}
	return report, out, chain, nil
}
