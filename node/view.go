package node

import (
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/transparency"
)

// Status returns this node's view of itself and the mesh.
func (n *Node) Status() Status {
	s := Status{Node: n.ref.String(), Peer: n.self.String(), MeshID: n.genesis.MeshID().String(), Kind: n.kind,
		Simulated: n.kind == attest.KindSim, Raft: RaftStatus{State: "none", Voters: []string{}},
		Seats: []SeatStatus{}, Peers: []PeerStatus{}, Closed: []Closing{}, Jobs: []JobStatus{}, Warnings: []string{}}
	s.Roles = append([]string{RoleMember}, n.cfg.Roles...)
	var seats []consensus.Node
	var quorum, organisations int
	n.machine.View(func(st *consensus.State, _ *federated.Ledger) {
		s.Incarnation, s.Epoch, s.Base, s.Started = uint64(st.Incarnation()), uint64(st.Epoch()), st.Base(), st.Started()
		seats, quorum, organisations = st.Seats(), st.Quorum(), len(st.Organisations())
		if own, ok := st.Node(n.self); ok {
			s.Measurement = own.Measurement
		}
		if st.Started() {
			s.Seats = seatStatuses(st)
		}
	})
	s.State, s.Log = n.machine.Digest(), n.logStatus()
	s.Provisional = n.provisionalViews()
	s.Peers, s.Closed = n.peers.snapshot()
	s.Closed = notNil(s.Closed)
	n.describeLinks(&s)
	s.Jobs = n.jobStatuses()
	if r := n.raft(); r != nil {
		s.Raft = RaftStatus{State: n.seatState(r), Term: r.Term(), Applied: r.AppliedIndex(), Voters: []string{}}
		if l := r.Leader(); l != "" {
			s.Raft.Leader = n.nameOf(l)
		}
		for _, v := range r.Voters() {
			s.Raft.Voters = append(s.Raft.Voters, n.nameOf(v))
		}
		slices.Sort(s.Raft.Voters)
	}
	s.Phase, s.PhaseReason = n.phaseNow(s.Started)
	if w := consensus.SeatWarning(organisations); w != "" {
		s.Warnings = append(s.Warnings, w)
	}
	n.explain(&s, seats, quorum, organisations)
	n.explainHardware(&s)
	s.Warnings = append(s.Warnings, s.Log.Disk.warnings(n.cfg.Data)...)
	return s
}

func seatStatuses(st *consensus.State) []SeatStatus {
	out := []SeatStatus{}
	for _, o := range st.Organisations() {
		seat := SeatStatus{Organisation: string(o.ID)}
		if holder, held := st.Holder(o.ID); held {
			seat.Node = holder.Ref.String()
		}
		out = append(out, seat)
	}
	return out
}

func (n *Node) logStatus() LogStatus {
	size, root := n.machine.tree.Head()
	out := LogStatus{Size: size, Root: root.String(), Copied: n.machine.SavedSeq(), Published: PublishedStatus{Cosigners: []string{}, Level: transparency.Unpublished.String()}}
	if key := n.checkpointPolicy(); key.LogKey != nil {
		out.Key, _ = transparency.VerifierKey(key.Origin, key.LogKey) // an Ed25519 key since Bootstrap
	}
	if p, _ := n.lastPublished(); p.note != nil {
		out.Published = PublishedStatus{Size: p.Size, Root: p.Root.String(), Cosigners: []string{}, Level: p.Level.String()}
		for _, org := range p.Orgs {
			out.Published.Cosigners = append(out.Published.Cosigners, string(org))
		}
	}
	out.Published.Outside = n.outsideStatus()
	out.Outbox = n.edges.status()
	out.Conflicts, out.Disk = n.conflictStatuses(), n.diskStatus()
	return out
}

// phaseNow derives where this node stands.
func (n *Node) phaseNow(started bool) (Phase, *attest.Reason) {
	n.mu.Lock()
	phase, why := n.phase, n.phaseReason
	n.mu.Unlock()
	if phase == PhaseEnrolling {
		return phase, why
	}
	if n.ctx.Err() != nil {
		return PhaseStopping, nil
	}
	if refusal, refused := n.peers.refusal(); refused {
		return PhaseRefused, refusal
	}
	if !started {
		if why := n.majorityReason(); why != nil {
			return PhaseFounding, why
		}
		if n.isSeat() && !n.meshStarted() {
			return PhaseFounding, reason(attest.CodeNotStarted, "founding", fmt.Sprintf("%d attested links", len(n.links())),
				fmt.Sprintf("a seat of each of the %d organisations", len(n.founding())))
		}
		return PhaseJoining, nil
	}
	if why := n.drained(); why != nil {
		if n.drainDone() {
			return PhaseDrained, why
		}
		return PhaseDraining, why
	}
	if stale := n.stale(); stale != nil {
		return PhaseJoining, stale
	}
	if why := n.putOut(); why != nil {
		return PhaseSuspended, why
	}
	eligible := false
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) { eligible = s.IsEligible(n.self, s.Now()) })
	if !eligible {
		return PhaseJoining, reason(attest.CodeNotEligible, "edges", "too few", "affirming results of other organisations in the log")
	}
	return PhaseMember, nil
}

// explain adds what a person would otherwise have to work out.
func (n *Node) explain(s *Status, seats []consensus.Node, quorum, organisations int) {
	if s.Simulated {
		s.Warnings = append(s.Warnings, "evidence is simulated: it protects nothing from its host")
	}
	if len(n.cfg.Services) > 0 {
		s.Warnings = append(s.Warnings, serviceWarnings()...)
	}
	var silent []consensus.Node
	for _, seat := range seats {
		if seat.Peer != n.self && !n.hasLink(seat.Peer) {
			silent = append(silent, seat)
		}
	}
	for i, p := range s.Peers { // what Credentials ask for ends where the ordered state begins
		if s.Started {
			s.Peers[i].Seat = slices.ContainsFunc(seats, func(seat consensus.Node) bool { return seat.Peer.String() == p.Peer })
		}
	}
	if s.Phase == PhaseRefused {
		s.Warnings = append(s.Warnings, "this node is refused: what it shows of seats, log and jobs is of the time before; ask the status of a member")
	} else {
		if s.Raft.State != "none" && s.Started && s.Raft.Leader == "" {
			s.Warnings = append(s.Warnings, "the seats have no leader: nothing can be ordered until a majority of voters answers")
		}
		explainSeats(s, silent, len(seats), quorum, organisations)
	}
	if r := n.raft(); r != nil && r.State() == replica.None && s.Started && s.Phase != PhaseStopping && s.Phase != PhaseDraining && s.Phase != PhaseDrained {
		s.Warnings = append(s.Warnings, "this node has left the Raft configuration: an ordered decision put it out, or it failed")
	}
	if c, err := consensus.ParseCredential(n.credential()); err == nil {
		s.Warnings = append(s.Warnings, n.outageWarnings(c.Expires)...)
		if warning := n.clockWarning(c.Issued); warning != "" {
			s.Warnings = append(s.Warnings, warning)
		}
	}
	s.Warnings = append(s.Warnings, provisionalWarnings(s.Provisional)...)
	s.Warnings = append(s.Warnings, n.platformWarnings()...)
	s.Warnings = append(s.Warnings, n.outsideWarnings()...)
	s.Warnings = append(s.Warnings, n.outboxWarnings()...)
	s.Warnings = append(s.Warnings, conflictWarnings(s.Log.Conflicts)...)
	s.Warnings = append(s.Warnings, n.strongWarnings()...)
	if err := n.machine.Halted(); err != nil {
		s.Warnings = append(s.Warnings, err.Error())
	}
}

// explainSeats says which votes cannot be cast now, why, and whether the rest are enough.
func explainSeats(s *Status, silent []consensus.Node, seats, quorum, organisations int) {
	answering := seats - len(silent)
	count := fmt.Sprintf("%d of %d seats answer, %d are needed", answering, seats, quorum)
	for _, seat := range silent {
		i := slices.IndexFunc(s.Peers, func(p PeerStatus) bool { return p.Node == seat.Ref.String() })
		switch {
		case i < 0:
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s holds a seat and has never answered; %s", seat.Ref, count))
		case s.Peers[i].State == PeerConnected:
			s.Peers[i].Note = "started anew; the vote of its earlier boot cannot be cast"
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s was started anew and has not taken its seat again yet; %s", seat.Ref, count))
		case s.Peers[i].State == PeerRefusesUs:
			s.Peers[i].Note = "holds a seat and refuses this node"
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s holds a seat and refuses this node (%s); %s", seat.Ref, s.Peers[i].Code, count))
		default:
			s.Peers[i].Note = "holds a seat and does not answer; " + count
			s.Warnings = append(s.Warnings, fmt.Sprintf("%s holds a seat and has not answered since %s; %s. "+
				"A restarted process takes the seat again under a new identity", seat.Ref, s.Peers[i].Since.Format("15:04:05"), count))
		}
	}
	if s.Started && len(silent) == 0 && seats == quorum && organisations > 2 { // of two that is always so: SeatWarning
		s.Warnings = append(s.Warnings, fmt.Sprintf("all %d seats are needed: without any one of them nothing can be ordered. Stop none of them before the others are back; if its process has ended, a majority must recover the mesh", seats))
	}
	if s.Started && answering < quorum {
		s.Warnings = append(s.Warnings, "too few seats answer: nothing can be ordered until they are reachable again. "+
			"If their processes have ended, the organisations must recover it: meshnode recover --help")
	}
}

func notNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
