package node

import (
	"errors"
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/throttle"
)

// Ordering costs every seat something, whether or not the command takes effect. What does is
// bounded by the quotas of the ordered state (consensus, quota.go): a leader does not order
// what is over one, and the submitter tries again after the next tick. What does not leaves no
// trace there, so whoever orders for others counts it itself: the size of what one organisation
// has had refused, in KiB, each at least one, in a bucket that refills. Many nodes that submit
// one peer's Credential at once are honest, so the bucket is deep.
const (
	refusalRate  = 128 // KiB a second
	refusalBurst = 4096
	// seatShare is how much more a seat may have refused, which passes on what others submit.
	seatShare = 8
)

// refusals counts what was refused of organisations of verified Credentials, of which there are
// few; what seats pass on by itself.
type refusals struct{ members, seats throttle.Refusals }

func newRefusals() *refusals {
	return &refusals{throttle.Refusals{Rate: refusalRate, Burst: refusalBurst}, throttle.Refusals{Rate: seatShare * refusalRate, Burst: seatShare * refusalBurst}}
}

func (r *refusals) of(seat bool) *throttle.Refusals {
	if seat {
		return &r.seats
	}
	return &r.members
}

// over says that an organisation has had too much refused lately, or nil.
func (r *refusals) over(org identity.OrgID, seat bool, now time.Time) *attest.Reason {
	wait := r.of(seat).Wait(string(org), now)
	if wait == 0 {
		return nil
	}
	return reason(attest.CodeBusy, "commands of "+string(org), "too many that were refused", fmt.Sprintf("fewer; again in %s", max(wait, time.Second).Round(time.Second)))
}

// note counts the refusal of a command of so many bytes.
func (r *refusals) note(org identity.OrgID, seat bool, size int, now time.Time) {
	r.of(seat).Note(string(org), 1+float64(size>>10), now)
}

// overQuota says that the leader need not order raw, since a quota is used up, or nil.
func (m *Machine) overQuota(raw []byte) *attest.Reason {
	c, err := consensus.DecodeCommand(raw)
	if err != nil {
		return nil
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.OverQuota(c)
}

// passes reports whether a refusal passes by itself, so that the same command may be tried again.
func passes(err error) bool {
	code := refusedAs(err)
	return code == attest.CodeQuota || code == attest.CodeBusy
}

// refusedAs returns the code of a refusal, empty for another error.
func refusedAs(err error) attest.Code {
	var refused *RefusedError
	if !errors.As(err, &refused) {
		return ""
	}
	return refused.Reason.Code
}
