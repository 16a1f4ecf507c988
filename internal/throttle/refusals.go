package throttle

import (
	"sync"
	"time"
)

// Refusals bounds what somebody may have refused: each refusal costs, a debt wears off at Rate,
// and who owes Burst is told to wait before anything is looked at. What is good costs nothing.
// It keeps one debt for each name, so names must be of a bounded set. The zero value of Burst
// lets nobody in.
type Refusals struct {
	Rate  float64 // a second
	Burst float64

	mu    sync.Mutex
	debts map[string]debt // guarded by mu
}

type debt struct {
	amount float64
	at     time.Time
}

// owed is what is left of a debt; mu is held. A clock that goes back wears nothing off.
func (r *Refusals) owed(name string, now time.Time) float64 {
	d := r.debts[name]
	return max(0, d.amount-max(0, now.Sub(d.at).Seconds())*r.Rate)
}

// Wait returns how long name has to wait; zero if it may come.
func (r *Refusals) Wait(name string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	over := r.owed(name, now) - r.Burst
	if over < 0 {
		return 0
	}
	return max(time.Millisecond, time.Duration(over/max(r.Rate, 1e-9)*float64(time.Second)))
}

// Note adds the cost of one refusal.
func (r *Refusals) Note(name string, cost float64, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.debts == nil {
		r.debts = map[string]debt{}
	}
	r.debts[name] = debt{r.owed(name, now) + cost, now}
}
