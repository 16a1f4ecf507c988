package federated

import (
	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Fate says what becomes of a round.
type Fate string

// The fates.
const (
	// FateGoesOn: the open attempt can still be committed, without those who are lost.
	FateGoesOn Fate = "goes_on"
	// FateAgain: the attempt cannot, and the next one can be opened at once.
	FateAgain Fate = "again"
	// FateWaits: no attempt can be opened; RoundForecast.Reason says why.
	FateWaits Fate = "waits"
)

// RoundForecast is what would become of a job's open round, or of its next one, under another
// membership.
type RoundForecast struct {
	Job   JobID  `json:"job"`
	Name  string `json:"name"`
	Round uint32 `json:"round"`
	// Attempt is the open one, zero between rounds.
	Attempt      uint32             `json:"attempt"`
	Participants []identity.NodeRef `json:"participants"`
	Lost         []identity.NodeRef `json:"lost"` // participants that could not take part any more
	Fate         Fate               `json:"fate"`
	Reason       *attest.Reason     `json:"reason,omitempty"`
}

// Forecast returns what would become of every job that runs if the membership were members,
// by the rules of close, commit and open. An aggregator leaves out whom it may not add up; what is
// closed is added up as it was closed or not at all.
func (l *Ledger) Forecast(members Members) []RoundForecast {
	out := []RoundForecast{}
	for _, j := range l.jobs {
		next, runs := j.status().Next()
		if !runs {
			continue
		}
		f := RoundForecast{Job: j.job.ID, Name: j.job.Spec.Name, Round: next.Round, Participants: []identity.NodeRef{}, Lost: []identity.NodeRef{}}
		var why *attest.Reason
		if j.open != nil {
			f.Attempt = j.open.Attempt
			for _, m := range j.open.Participants {
				f.Participants = append(f.Participants, m.Ref)
				if _, lost := eligible(m.Ref, m.Peer, RoleTrainer, members); lost != nil {
					f.Lost = append(f.Lost, m.Ref)
				}
			}
			if why = j.fatal(members); why == nil {
				f.Fate = FateGoesOn
				out = append(out, f)
				continue
			}
			next.Exclude = append(next.Exclude, j.open.Aggregator.Peer) // as whoever drives the job does
		}
		f.Fate, f.Reason = FateAgain, why
		if _, no := l.Plan(next, members); no != nil {
			f.Fate, f.Reason = FateWaits, no
		}
		out = append(out, f)
	}
	return out
}

// fatal says why the open attempt could not be committed under members, or nil.
func (j *jobState) fatal(members Members) *attest.Reason {
	o := j.open
	if _, why := o.checkAggregator(o.Aggregator.Ref, o.Aggregator.Peer, members); why != nil {
		return why
	}
	if o.Closed != nil {
		_, why := j.checkAccepted(o.Closed.Accepted, members)
		return why
	}
	var stay []Accepted
	for _, m := range o.Participants {
		if _, lost := eligible(m.Ref, m.Peer, RoleTrainer, members); lost == nil {
			stay = append(stay, Accepted{Node: m.Ref, Peer: m.Peer})
		}
	}
	_, why := j.checkAccepted(stay, members)
	return why
}
