package node

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Ordering costs every seat something, whether or not the command takes effect. What does is
// bounded by the quotas of the ordered state (consensus, quota.go): a leader does not order
// what is over one, and the submitter tries again after the next tick. What does not leaves no
// trace there, so whoever orders for others counts it itself: refusals of one organisation,
// in a bucket that refills. Many nodes that submit one peer's Credential at once are honest,
// so the bucket is deep.
const (
	refusalRate  = 32
	refusalBurst = 1024
	// seatShare is how much more a seat may have refused, which passes on what others submit.
	seatShare = 8
)

// refusals counts the commands of each organisation that were ordered or judged in vain. Its
// keys are organisations of verified Credentials, of which there are few.
type refusals struct {
	mu sync.Mutex
	by map[refusalKey]refused // guarded by mu
}

type refusalKey struct {
	org  identity.OrgID
	seat bool
}

type refused struct {
	count float64
	at    time.Time
}

func (k refusalKey) share() float64 {
	if k.seat {
		return seatShare
	}
	return 1
}

// left returns what of k's count has not been worn off yet; mu is held.
func (r *refusals) left(k refusalKey, now time.Time) float64 {
	c := r.by[k]
	return max(0, c.count-max(0, now.Sub(c.at).Seconds())*refusalRate*k.share())
}

// over says that an organisation has had too much refused lately, or nil.
func (r *refusals) over(org identity.OrgID, seat bool, now time.Time) *attest.Reason {
	k := refusalKey{org, seat}
	r.mu.Lock()
	defer r.mu.Unlock()
	over := r.left(k, now) - refusalBurst*k.share()
	if over < 0 {
		return nil
	}
	pause := time.Duration((over + 1) / (refusalRate * k.share()) * float64(time.Second))
	return reason(attest.CodeBusy, "commands of "+string(org), "too many that were refused", fmt.Sprintf("fewer; again in %s", max(pause, time.Second).Round(time.Second)))
}

// note counts one refusal.
func (r *refusals) note(org identity.OrgID, seat bool, now time.Time) {
	k := refusalKey{org, seat}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil {
		r.by = map[refusalKey]refused{}
	}
	r.by[k] = refused{r.left(k, now) + 1, now}
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
