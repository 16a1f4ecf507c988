package consensus

import (
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Prediction is what a proposal would do if it were ordered next: made by the code that Apply
// runs, on a copy of the state.
type Prediction struct {
	ID ProposalID `json:"id"`
	// Changes says what the actions do, for people, one line each.
	Changes []string `json:"changes"`
	// Class is computed from the state before and after; empty where the proposal is refused
	// before that.
	Class Class `json:"class,omitempty"`
	// Epoch and Base are those after it; as they are now where it is refused.
	Epoch identity.Epoch `json:"epoch"`
	Base  uint64         `json:"base"`
	// AsIs is why Apply refuses these very bytes, with the signatures that they carry; nil if
	// it would order them.
	AsIs *attest.Reason `json:"as_is,omitempty"`
	// Refused is why it refuses the proposal whoever else signs it, be it that too many have
	// withdrawn; nil if enough signatures are all that it can lack.
	Refused    *attest.Reason `json:"refused,omitempty"`
	Signatures Signatures     `json:"signatures"`
	// Withdrawn are organisations whose signatures do not count on it, whether it has them.
	Withdrawn []identity.OrgID `json:"withdrawn"`
	Seats     SeatForecast     `json:"seats"`
	// Departures are the nodes that go, by time and name: at once, and as ordered time passes
	// what the policy says. Where the proposal is refused for the loss of a quorum they are
	// those of the same proposal with confirm_quorum_loss; where for anything else, empty.
	Departures []Departure `json:"departures"`
	// Returns are evicted nodes that are allowed again. A seat does not return.
	Returns []identity.NodeRef `json:"returns"`
	// Reenrol are the nodes whose Credentials are void: they are out until their enroller, under
	// another key, has signed new ones. A seat keeps its vote meanwhile and cannot cast it.
	Reenrol []identity.NodeRef `json:"reenrol"`

	after *State
}

// Signatures are those that a proposal carries and needs.
type Signatures struct {
	Organisations []identity.OrgID `json:"organisations"` // distinct, that have signed
	Want          int              `json:"want"`          // how many its class needs; zero where that is unknown
	Of            int              `json:"of"`
	// Missing is how many more have to sign, at least: AsIs says it in words.
	Missing int `json:"missing"`
}

// SeatForecast counts seats at the moment after the proposal.
type SeatForecast struct {
	Before int                `json:"before"`
	After  int                `json:"after"`
	Quorum int                `json:"quorum"` // that the seats before need
	Lost   []identity.NodeRef `json:"lost"`
	// Survives says that those that stay are a quorum of those before.
	Survives bool `json:"survives"`
}

// Departure is one node that would go.
type Departure struct {
	Node        identity.NodeRef `json:"node"`
	Peer        identity.PeerID  `json:"peer"`
	Measurement string           `json:"measurement"`
	// Entry is what its verifiers matched; empty where nobody has found anything yet.
	Entry string      `json:"entry"`
	Code  attest.Code `json:"code"`
	// At is zero for at once; else the first tick that is not before it decides.
	At   time.Time `json:"at,omitzero"`
	Seat bool      `json:"seat"`
	// Held says that a seat is not allowed any more and stays nevertheless, since time alone
	// evicts no seat where the rest is no quorum.
	Held bool `json:"held,omitempty"`
	// Anyway says that it goes no later without the proposal.
	Anyway bool `json:"anyway,omitempty"`
}

// After returns the state right after the proposal, for whoever knows more of the nodes than
// what is ordered; nil if there is none because it is refused. It is the caller's own.
func (p *Prediction) After() *State { return p.after }

// DryRun predicts what Apply would do with the proposal in raw, which may lack some or all
// signatures. s stays as it is. Time is taken to pass in ticks that meet every moment at
// which something ends: two ends within one tick may be decided in one go.
func (s *State) DryRun(raw []byte) Prediction {
	out := Prediction{Epoch: s.epoch, Base: s.base, Changes: []string{}, Signatures: Signatures{Organisations: []identity.OrgID{}}, Withdrawn: []identity.OrgID{},
		Departures: []Departure{}, Returns: []identity.NodeRef{}, Reenrol: []identity.NodeRef{}}
	seats := s.Seats()
	out.Seats = SeatForecast{Before: len(seats), After: len(seats), Quorum: s.Quorum(), Lost: []identity.NodeRef{}, Survives: len(seats) >= s.Quorum()}
	if !s.Started() || s.now.IsZero() {
		return out.refuse(refuse(attest.CodeNotStarted, "proposal", "before the first tick", "a known time, to judge expiry"))
	}
	c, err := s.judgeCounting(raw)
	if c == nil {
		return out.refuse(err)
	}
	out.ID, out.Changes, out.Class = c.proposal.id, c.proposal.changes(), c.class
	out.Signatures = s.signatures(c, err)
	out.Withdrawn = s.withdrawnFrom(c.proposal)
	if err != nil {
		if !lacksSignatures(raw, err) {
			return out.refuse(err)
		}
		out.AsIs = ReasonOf(err)
		if gone := out.Withdrawn; s.N()-len(gone) < out.Signatures.Want {
			return out.refuse(refuse(attest.CodeThreshold, "proposal", fmt.Sprintf("%d of %d organisations have withdrawn", len(gone), s.N()), fmt.Sprintf("%d to %s", out.Signatures.Want, c.class)))
		}
	}
	if err := s.checkProposalQuota(c); err != nil && out.AsIs == nil {
		out.AsIs = ReasonOf(err) // until the next tick: no property of the proposal
	}
	after := s.clone()
	if !s.enactFor(&out, after, c) {
		return out
	}
	out.Epoch, out.Base, out.after = after.epoch, after.base, after
	out.compare(s, after)
	return out
}

// enactFor has c take effect on after, whether or not it costs the quorum, and reports
// whether it did.
func (s *State) enactFor(out *Prediction, after *State, c *change) bool {
	_, err := after.enact(c)
	if err == nil {
		return true
	}
	*out = out.refuse(err)
	if ReasonOf(err).Code != attest.CodeQuorumLoss {
		return false
	}
	confirmed := *c.proposal
	confirmed.ConfirmQuorumLoss = true
	c.proposal = &confirmed
	_, err = after.enact(c)
	return err == nil
}

// refuse notes why the proposal would be refused. What is said already comes first in Apply.
func (p Prediction) refuse(err error) Prediction {
	p.Refused = ReasonOf(err)
	if p.AsIs == nil {
		p.AsIs = p.Refused
	}
	return p
}

// lacksSignatures reports whether err, of judging raw, is nothing that more signatures cannot
// mend.
func lacksSignatures(raw []byte, err error) bool {
	env, broken := envelope.Parse(raw)
	return broken == nil && len(env.Signatures) == 0 || ReasonOf(err).Code == attest.CodeThreshold
}

// signatures says what c carries and needs; err is that of judging it.
func (s *PolicyState) signatures(c *change, err error) Signatures {
	out := Signatures{Organisations: append([]identity.OrgID{}, c.orgs...), Of: s.N(), Want: WidenThreshold(s.N())}
	if own, ok := c.proposal.rotates(); c.class == ClassNarrow || ok && slices.Contains(c.orgs, own) {
		out.Want = NarrowThreshold(s.N())
	}
	if err != nil { // of a constitution those after the change may be what is missing
		out.Missing = max(1, out.Want-len(c.orgs))
	}
	return out
}

// compare says what differs between s, where the proposal was not ordered, and after.
func (p *Prediction) compare(s, after *State) {
	anyway := map[identity.PeerID]time.Time{}
	for _, d := range s.clone().forecast() {
		if !d.Held {
			anyway[d.Peer] = d.At
		}
	}
	for _, ref := range s.refs() {
		was, is := s.nodes[ref], after.nodes[ref]
		switch {
		case is == nil:
			gone := departing(was, time.Time{}, was.inRaft())
			gone.Code = attest.CodeOrganisationRemoved
			p.Departures = append(p.Departures, gone)
			if was.inRaft() {
				p.Seats.Lost = append(p.Seats.Lost, ref)
			}
			continue
		case was.evicted == "" && is.evicted != "":
			p.Departures = append(p.Departures, departing(is, time.Time{}, was.inRaft()))
		case was.evicted != "" && is.evicted == "":
			p.Returns = append(p.Returns, ref)
		}
		if s.stands(was.cred) && !after.stands(is.cred) {
			p.Reenrol = append(p.Reenrol, ref)
		}
		if was.inRaft() && !is.inRaft() {
			p.Seats.Lost = append(p.Seats.Lost, ref)
		}
	}
	p.Seats.After = len(after.Seats())
	p.Seats.Survives = p.Seats.After >= p.Seats.Quorum
	p.Departures = append(p.Departures, after.clone().forecast()...)
	for i, d := range p.Departures {
		end, ends := anyway[d.Peer]
		p.Departures[i].Anyway = ends && !d.At.IsZero() && !end.After(d.At)
	}
}

func departing(n *node, at time.Time, seat bool) Departure {
	d := Departure{Node: n.cred.Ref(), Peer: n.cred.Peer, Code: n.evicted, At: at, Seat: seat}
	if n.run != nil {
		d.Measurement, d.Entry = n.run.Measurement, n.run.Reference
	}
	return d
}

// forecast lets ordered time pass on s, which it changes, over every moment at which
// something in the policy ends, and returns who goes.
func (s *State) forecast() []Departure {
	var out []Departure
	held := map[identity.NodeRef]bool{}
	for _, at := range s.moments() {
		seats := map[identity.PeerID]bool{}
		for _, seat := range s.Seats() {
			seats[seat.Peer] = true
		}
		passed, err := s.pass(at)
		if err != nil {
			return out // a leaf that cannot be encoded: Apply would fail as well
		}
		for _, peer := range passed.Evicted {
			out = append(out, departing(s.nodes[s.peers[peer]], at, seats[peer]))
		}
		for _, ref := range sortedRefs(s.seatsLost()) {
			if n := s.nodes[ref]; !held[ref] {
				held[ref] = true
				d := departing(n, at, true)
				d.Held, d.Code = true, s.allows(*n.run, n.cred.Roles, at)
				out = append(out, d)
			}
		}
	}
	return out
}

// Ahead shows visit the state as it is now and at every moment to come at which something in
// the policy begins or ends, if nothing but time passes. visit must not keep what it is shown;
// s stays as it is.
func (s *State) Ahead(visit func(*State)) {
	later := s.clone()
	visit(later)
	for _, at := range s.moments() {
		if _, err := later.pass(at); err != nil {
			return
		}
		visit(later)
	}
}

// moments returns the times to come at which something in the policy begins or ends, in order.
func (s *State) moments() []time.Time {
	var out []time.Time
	for _, e := range s.entries {
		out = append(out, e.NotBefore, s.end(&e))
	}
	for _, f := range s.platforms.floors {
		out = append(out, f.From)
	}
	out = slices.DeleteFunc(out, func(t time.Time) bool { return !t.After(s.now) })
	slices.SortFunc(out, time.Time.Compare)
	return slices.CompactFunc(out, time.Time.Equal)
}

// changes says what the actions do.
func (p *Proposal) changes() []string {
	out := []string{}
	for _, a := range p.Actions {
		if change, err := a.change(); err == nil {
			out = append(out, change.describe())
		}
	}
	return out
}
