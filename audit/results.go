package audit

import (
	"time"

	"github.com/attestmesh/meshnode/consensus"
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
func (r *replayer) heard(e *entry) {
	res, err := e.Result()
	if err != nil {
		return // it was replayed
	}
	if at := res.At.Add(-consensus.ClockSkew); at.After(r.earliest) && !res.At.After(r.latest) {
		r.earliest = at
	}
}
