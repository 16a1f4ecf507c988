package consensus

import (
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// State is the replicated state of governance: a function of genesis and the commands
// applied, in order. It is not safe for concurrent use; whoever owns it lets Apply run
// alone.
type State struct {
	*PolicyState
	now     time.Time
	tickSeq uint64
	nodes   map[identity.NodeRef]*node
	peers   map[identity.PeerID]identity.NodeRef // current peers of nodes
	retired map[identity.PeerID]identity.NodeRef
	// edges[subject][verifier] is the newest edge between two current peers.
	edges map[identity.PeerID]map[identity.PeerID]*AttestationResult
	// spared are the seats that a demand which came due by time would put out, were the rest a
	// quorum.
	spared map[identity.NodeRef]struct{}
	// suspensions are those that still decide something.
	suspensions map[SuspensionID]*suspended
	// used is what organisations have had ordered since the newest tick.
	used map[identity.OrgID]usage
	// logged says when the state was last logged.
	logged logged
	// voided are the nodes whose newest boot was retired by their organisation: a later one
	// must have a higher number.
	voided map[identity.NodeRef]identity.BootSeq
	// withdrawals are those from proposals that could still be ordered, with their expiry.
	withdrawals map[withdrawn]time.Time
}

// node is the newest boot of one node.
type node struct {
	cred *Credential
	run  *measured
	// evicted is set while run is not allowed, or the node contradicted.
	evicted attest.Code
	// contradicted is why enough other organisations refuse the node, whatever it runs.
	contradicted attest.Code
	// seat is set for the nodes of Bootstrap and those that became ready; removed says why
	// one has left the Raft configuration, for good.
	seat    bool
	removed attest.Code
	// drained is set once its operator has taken it out of rounds and its seat.
	drained bool
}

// NewState returns the state before the first command. g must come from ParseGenesis.
func NewState(g *Genesis) *State {
	return &State{PolicyState: newPolicyState(g), nodes: map[identity.NodeRef]*node{}, peers: map[identity.PeerID]identity.NodeRef{},
		retired: map[identity.PeerID]identity.NodeRef{}, edges: map[identity.PeerID]map[identity.PeerID]*AttestationResult{},
		suspensions: map[SuspensionID]*suspended{}, used: map[identity.OrgID]usage{}, voided: map[identity.NodeRef]identity.BootSeq{}, spared: map[identity.NodeRef]struct{}{}, withdrawals: map[withdrawn]time.Time{}}
}

// Outcome is what one command did.
type Outcome struct {
	// Reason is why the command was refused; it then had no effect and no leaf.
	Reason *attest.Reason
	// Leaves are to be appended to the log, in order.
	Leaves       [][]byte
	EpochChanged bool
	// Evicted are peers whose measurement is not allowed any more, Retired peers that a
	// newer boot replaced or their organisation retired. Connections to both are to be closed.
	Evicted []identity.PeerID
	Retired []identity.PeerID
	// SeatsChanged says that Seats is another list than before.
	SeatsChanged bool
	// DemandsChanged says that time alone changed what is demanded of nodes, or of whom.
	DemandsChanged bool
	// SuspensionsChanged says that something else is suspended than before.
	SuspensionsChanged bool
	// Sampled is how many seats have signed the tick.
	Sampled int
	// Skipped are the results of a batch that were left out.
	Skipped []Skip
	// Proposal describes the proposal that took effect.
	Proposal *Accepted
}

// Skip is one result that was left out, and why.
type Skip struct {
	Index  int
	Reason attest.Reason
}

// Accepted is a proposal that took effect.
type Accepted struct {
	ID            ProposalID       `json:"id"`
	Class         Class            `json:"class"`
	Epoch         identity.Epoch   `json:"epoch"`
	Base          uint64           `json:"base"`
	Organisations []identity.OrgID `json:"organisations"`
}

// Apply executes one command. Equal states give equal outcomes for equal commands.
func (s *State) Apply(c Command) Outcome {
	out, err := s.apply(c)
	if err != nil {
		return Outcome{Reason: ReasonOf(err)}
	}
	return out
}

func (s *State) apply(c Command) (Outcome, error) {
	lo, hi, ok := envelopeCount(c.Kind)
	if c.V != CommandVersion || !ok {
		return Outcome{}, refuse(attest.CodeWrongVersion, "command", fmt.Sprintf("version %d kind %.20q", c.V, c.Kind), "a command of governance")
	}
	envelopes, err := c.envelopes(lo, hi)
	if err != nil {
		return Outcome{}, refuseErr(attest.CodeMalformed, string(c.Kind), err)
	}
	switch c.Kind {
	case KindBootstrap:
		return s.applyBootstrap(envelopes[0], envelopes[1])
	case KindRecovery:
		return s.applyRecovery(envelopes[0], envelopes[1])
	}
	if !s.Started() {
		return Outcome{}, refuse(attest.CodeNotStarted, string(c.Kind), "before Bootstrap", "after Bootstrap")
	}
	switch c.Kind {
	case KindDigest:
		return Outcome{}, refuse(attest.CodeMalformed, string(c.Kind), "no digest of the whole machine", "its owner to call LogState")
	case KindCredential:
		return s.applyCredential(envelopes[0])
	case KindResults:
		return s.applyResults(envelopes)
	case KindProposal:
		return s.applyProposal(envelopes[0])
	case KindSuspension, KindLift:
		return s.applySuspension(c.Kind, envelopes[0])
	case KindReady:
		return s.applyReady(envelopes[0])
	case KindDrain:
		return s.applyDrain(envelopes[0])
	case KindRetirement:
		return s.applyRetirement(envelopes[0])
	case KindWithdrawal:
		return s.applyWithdrawal(envelopes[0])
	default: // KindTick: envelopeCount knows no other
		return s.applyTick(envelopes)
	}
}

func (s *State) applyBootstrap(genesisRaw, bootstrapRaw []byte) (Outcome, error) {
	if err := s.start(genesisRaw, bootstrapRaw); err != nil {
		return Outcome{}, err
	}
	s.seatFounders()
	return Outcome{Leaves: [][]byte{genesisRaw, bootstrapRaw}, SeatsChanged: true}, nil
}

func (s *State) applyProposal(raw []byte) (Outcome, error) {
	if s.now.IsZero() {
		return Outcome{}, refuse(attest.CodeNotStarted, "proposal", "before the first tick", "a known time, to judge expiry")
	}
	return s.orderProposal(raw)
}

// applySuspension executes a suspension or a lift.
func (s *State) applySuspension(kind Kind, raw []byte) (Outcome, error) {
	if s.now.IsZero() {
		return Outcome{}, refuse(attest.CodeNotStarted, string(kind), "before the first tick", "a known time, to judge when it ends")
	}
	if kind == KindLift {
		return s.orderLift(raw)
	}
	return s.orderSuspension(raw)
}

func (s *State) applyWithdrawal(raw []byte) (Outcome, error) {
	if s.now.IsZero() {
		return Outcome{}, refuse(attest.CodeNotStarted, "withdrawal", "before the first tick", "a known time, to judge expiry")
	}
	return s.orderWithdrawal(raw)
}

// orderProposal is applyProposal whether or not the time is known; without, nothing
// counts as expired.
func (s *State) orderProposal(raw []byte) (Outcome, error) {
	c, err := s.judgeCounting(raw)
	if err != nil {
		return Outcome{}, err
	}
	if err := s.checkProposalQuota(c); err != nil {
		return Outcome{}, err
	}
	return s.enact(c)
}

// checkProposalQuota refuses a proposal by whom has had too many ordered since the last tick.
func (s *State) checkProposalQuota(c *change) error {
	for _, org := range c.orgs {
		if err := s.checkQuota(quotaProposals, org); err != nil {
			return err
		}
	}
	return nil
}

// enact has a proposal take effect that was judged on s, unless it would stop the mesh
// without saying so.
func (s *State) enact(c *change) (Outcome, error) {
	safe, err := s.keepsQuorum(c)
	if err != nil {
		return Outcome{}, err
	}
	if err := s.checkOrganisationKeys(c.next); err != nil {
		return Outcome{}, err
	}
	s.PolicyState = new(PolicyState)
	s.commit(c)
	for _, org := range c.orgs {
		s.spend(quotaProposals, org)
	}
	out := Outcome{Leaves: [][]byte{c.proposal.raw}, EpochChanged: true,
		Proposal: &Accepted{ID: c.proposal.id, Class: c.class, Epoch: s.epoch, Base: s.base, Organisations: c.orgs}}
	cause := "proposal " + c.proposal.id.String()
	if err := s.dropOrganisations(&out, cause); err != nil {
		return out, err
	}
	err = s.reevaluate(&out, cause, safe)
	return out, err
}

// keepsQuorum demands that a change, judged on s, leaves a quorum of seats, unless it confirms
// otherwise: of the seats there are, and of the organisations that there are to be. Seats that
// time alone would put out stay where that is not safe, which is reported, and hold up nothing
// else.
func (s *State) keepsQuorum(c *change) (safe bool, err error) {
	if c.proposal.ConfirmQuorumLoss {
		return true, nil
	}
	trial := s.WithPolicy(c.next)
	lost, before := trial.seatsLost(), s.seatsLost()
	have := len(s.Seats())
	left := have - len(lost)
	safe = left >= s.Quorum()
	maps.DeleteFunc(lost, func(ref identity.NodeRef, code attest.Code) bool { return before[ref] == code })
	if len(lost) > 0 && !safe {
		return false, s.quorumLoss(sortedRefs(lost))
	}
	if short := s.broughtForward(c.next); len(short) > 0 && have-len(lost)-len(short) < s.Quorum() {
		return false, s.quorumLoss(short)
	}
	n := max(left, floorHalf(trial.N()))
	if want := floorHalf(n); c.class == ClassConstitution && left < want && want > s.Quorum() {
		return false, refuse(attest.CodeQuorumLoss, "proposal", fmt.Sprintf("%d organisations, of which %d have a seat that votes", trial.N(), left), fmt.Sprintf("%d seats that vote", want))
	}
	return safe, nil
}

func (s *State) quorumLoss(seats []identity.NodeRef) error {
	return refuse(attest.CodeQuorumLoss, "proposal", fmt.Sprintf("evicts the seats %s", seats), fmt.Sprintf("%d of %d seats to remain", s.Quorum(), len(s.Seats())))
}

func (s *State) applyTick(envelopes [][]byte) (Outcome, error) {
	next, err := s.sampledTime(envelopes)
	if err != nil {
		return Outcome{}, err
	}
	out, err := s.pass(next)
	out.Sampled = len(envelopes)
	return out, err
}

// pass makes next the ordered time.
func (s *State) pass(next time.Time) (Outcome, error) {
	then := s.now
	s.now = next
	s.tickSeq++
	clear(s.used)
	// Time alone must not stop the mesh: see the package comment.
	evictSeats := len(s.Seats())-len(s.seatsLost()) >= s.Quorum()
	out := Outcome{SuspensionsChanged: s.expireSuspensions(then)}
	s.expireWithdrawals()
	err := s.reevaluate(&out, fmt.Sprintf("tick %d", s.tickSeq), evictSeats)
	spared := s.spare()
	out.DemandsChanged = s.cameDue(then) || spared
	return out, err
}

// seatsLost returns the seats whose measurement is not allowed under s, or whose organisation
// is not in it, and why.
func (s *State) seatsLost() map[identity.NodeRef]attest.Code {
	lost := map[identity.NodeRef]attest.Code{}
	for ref, n := range s.nodes {
		if !n.inRaft() {
			continue
		}
		if _, in := s.orgs.find(ref.Org); !in {
			lost[ref] = attest.CodeOrganisationRemoved
		} else if n.run == nil {
			continue
		} else if code := s.allows(*n.run, n.cred.Roles, s.now); code != "" {
			lost[ref] = code
		}
	}
	return lost
}

// reevaluate judges every node under the present policy and time, and adds evictions and
// membership leaves to out.
func (s *State) reevaluate(out *Outcome, cause string, evictSeats bool) error {
	for _, ref := range s.refs() {
		n := s.nodes[ref]
		if n.run == nil {
			continue
		}
		code := s.allows(*n.run, n.cred.Roles, s.now)
		if code != "" && n.inRaft() && !evictSeats {
			continue
		}
		if code == "" && !n.inRaft() {
			code = n.contradicted // a seat's end is derived where the findings are ordered
		}
		if code != "" && n.evicted == "" {
			out.Evicted = append(out.Evicted, n.cred.Peer)
		}
		n.evicted = code
		if code != "" && n.inRaft() {
			if err := s.removeSeat(out, n, code, cause); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *State) removeSeat(out *Outcome, n *node, code attest.Code, cause string) error {
	leaf, err := membershipLeaf(Membership{MeshID: s.genesis.meshID, Incarnation: s.incarnation, Epoch: s.epoch, Change: ChangeSeatRemoved,
		Node: n.cred.Ref(), Peer: n.cred.Peer, Code: code, Cause: cause})
	if err != nil {
		return err
	}
	n.removed = code
	out.SeatsChanged = true
	out.Leaves = append(out.Leaves, leaf)
	return nil
}

func (n *node) inRaft() bool { return n.seat && n.removed == "" }

// refs returns the names of all nodes in order.
func (s *State) refs() []identity.NodeRef {
	return sortedRefs(s.nodes)
}

func compareRefs(a, b identity.NodeRef) int {
	if c := strings.Compare(string(a.Org), string(b.Org)); c != 0 {
		return c
	}
	return strings.Compare(string(a.Name), string(b.Name))
}

// seatOf returns the organisation whose seat peer holds now.
func (s *State) seatOf(peer identity.PeerID) (identity.OrgID, bool) {
	ref, ok := s.peers[peer]
	if !ok || !s.nodes[ref].inRaft() {
		return "", false
	}
	return ref.Org, true
}
