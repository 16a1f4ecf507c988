package audit

import (
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

// latestResult is how new the results in a log can be. Seats order none that is more than
// ClockSkew ahead of their time, and none of them can have cosigned it before. The times in a checkpoint
// are taken unverified: whoever adds a line with a later one is not believed about anything, and
// hides what only seats can have written. Without one it is the auditor's time.
func latestResult(checkpoint []byte, origin string, at time.Time) time.Time {
	if t := transparency.NewestCosignature(checkpoint, origin); !t.IsZero() {
		at = t
	}
	return at.Add(consensus.ClockSkew)
}

// heard draws what follows from a result that holds.
func (r *replayer) heard(index uint64, e *entry) []transparency.Finding {
	res, err := e.Result()
	if err != nil {
		return nil // it was replayed
	}
	if at := res.At.Add(-consensus.ClockSkew); at.After(r.earliest) && !res.At.After(r.latest) {
		r.earliest = at
	}
	if res.Verdict == attest.VerdictAffirming && !r.known.has(r, res) {
		return []transparency.Finding{finding(index, string(attest.CodeUnknownEntry), fmt.Sprintf("affirmed by entry %s, and no policy so far had an entry of that id for %s %.24s…", res.Reference, res.Kind, res.Measurement))}
	}
	return nil
}

// knownEntries are all entries that were ever in force, as far as somebody asked.
type knownEntries struct {
	links  int    // of the policy chain that were read
	policy uint64 // the leaf of the last of them
	all    map[string]measured
}

type measured struct{ kind, measurement string }

// has reports whether the entry that a result names allowed, now or before, what it is about:
// a node may have judged under an epoch before.
func (k *knownEntries) has(r *replayer, res *consensus.AttestationResult) bool {
	want := measured{res.Kind, res.Measurement}
	if k.all[res.Reference] == want {
		return true
	}
	if k.all != nil && k.policy == r.policy {
		return false
	}
	if k.all == nil {
		k.all = map[string]measured{}
	}
	chain := r.state.PolicyChain()
	for _, link := range chain[min(k.links, len(chain)):] {
		k.learn(link)
	}
	k.links, k.policy = len(chain), r.policy
	return k.all[res.Reference] == want
}

func (k *knownEntries) learn(link []byte) {
	var entries []consensus.Entry
	switch consensus.ParseLeaf(link).Kind() {
	case envelope.TypeGenesis:
		if g, err := consensus.ParseGenesis(link); err == nil {
			entries = g.Policy.Entries
		}
	case envelope.TypeProposal:
		if p, _, err := consensus.ParseProposal(link); err == nil {
			for _, a := range p.Actions {
				if a.AddEntry != nil {
					entries = append(entries, a.AddEntry.Entry)
				}
			}
		}
	}
	for _, e := range entries {
		k.all[e.ID] = measured{e.Kind, e.Measurement}
	}
}
