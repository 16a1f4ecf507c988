package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// A leader orders what it likes: it can leave out what one organisation submits and look
// healthy. So whoever waits petitions every seat. Each of them passes the command on to the leader
// itself, and to the next one if that changes, so that none can say that it never saw it, and watches
// what is ordered. A seat that has waited censorAfter since then, while that leader ordered other
// commands, complains to the other seats. The leader loses its office once seats of ⌊n/2⌋+1 organisations that all hold the
// command complain: each of them follows and elects it no longer for a while.
//
// Nobody is deposed by one organisation: only what ⌊n/2⌋+1 saw and waited for counts, and a petition
// is a command that passes the check of every seat. A leader that has lost its own majority orders
// nothing at all, and is no censor.

const (
	petitionAfter = 2 * time.Second // a submitter has waited
	censorAfter   = 5 * time.Second
	censorPause   = 30 * time.Second // out of office
	petitionFor   = 30 * time.Second // remembered
	watchEvery    = 500 * time.Millisecond
	// maxPetitions and maxPetitionsOf bound what is held, and of that the part that the nodes of
	// one organisation have brought.
	maxPetitions   = 64
	maxPetitionsOf = 8
	// maxRelayed bounds what a seat passes on for the nodes of other organisations: to the seats that
	// get it, it is this organisation's, of whose part the rest is for its own.
	maxRelayed = maxPetitionsOf / 2
	// recentCommands is how many ordered commands are remembered: a petition may come late.
	recentCommands = 4096
	complainWithin = time.Second
)

type commandID [sha256.Size]byte

// petition is a command that somebody waits for.
type petition struct {
	raw    []byte
	org    identity.OrgID // whose node brought it
	first  time.Time
	since  time.Time       // waiting under leader
	leader identity.PeerID // as this seat knew it
	handed identity.PeerID // the leader that this seat has passed it on to
	seq    uint64          // what had been ordered then
	heard  map[identity.OrgID]complaint
	passed bool // on, for another organisation
}

type complaint struct {
	leader identity.PeerID
	at     time.Time
}

// petitions is what a seat watches. It is pure: time and the state of the mesh are given to it.
type petitions struct {
	mu     sync.Mutex
	open   map[commandID]*petition // guarded by mu
	recent map[commandID]uint64    // guarded by mu; ordered commands and their numbers
	seen   uint64                  // guarded by mu; how far ordered commands were looked at
}

func newPetitions() *petitions {
	return &petitions{open: map[commandID]*petition{}, recent: map[commandID]uint64{}}
}

// add begins to watch a command that is passed on to leader, "" if there is none, unless it was ordered
// or there are too many. It reports whether the command is new here.
func (p *petitions) add(raw []byte, org identity.OrgID, leader identity.PeerID, seq uint64, now time.Time) bool {
	id := commandID(sha256.Sum256(raw))
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ordered := p.recent[id]; ordered || p.open[id] != nil || len(p.open) >= maxPetitions {
		return false
	}
	of := 0
	for _, x := range p.open {
		if x.org == org {
			of++
		}
	}
	if of >= maxPetitionsOf {
		return false
	}
	p.open[id] = &petition{raw: raw, org: org, first: now, since: now, leader: leader, handed: leader, seq: seq, heard: map[identity.OrgID]complaint{}}
	return true
}

// ordered forgets petitions that were granted. commands are those after the first seen ones.
func (p *petitions) ordered(commands [][]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, raw := range commands {
		p.seen++
		id := commandID(sha256.Sum256(raw))
		delete(p.open, id)
		p.recent[id] = p.seen
	}
	if len(p.recent) > 2*recentCommands {
		for id, seq := range p.recent {
			if seq+recentCommands <= p.seen {
				delete(p.recent, id)
			}
		}
	}
}

// hand returns the commands that are still to be passed on to leader, and takes them for passed on.
func (p *petitions) hand(leader identity.PeerID, seq uint64, now time.Time) [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out [][]byte
	for _, x := range p.open {
		if x.handed != leader {
			x.leader, x.handed, x.since, x.seq = leader, leader, now, seq
			out = append(out, x.raw)
		}
	}
	return out
}

// overdue returns the commands that leader has left out for censorAfter while it ordered others, and
// while nothing excused that: quotas oblige a leader to leave commands out.
func (p *petitions) overdue(leader identity.PeerID, seq uint64, now time.Time, excused func(raw []byte) bool) []commandID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []commandID
	for id, x := range p.open {
		switch {
		case now.Sub(x.first) > petitionFor:
			delete(p.open, id)
		case leader == "" || x.leader != leader || x.handed != leader || excused(x.raw):
			x.leader, x.since, x.seq = leader, now, seq // it has its time, too
		case now.Sub(x.since) >= censorAfter && seq > x.seq+1:
			out = append(out, id)
		}
	}
	return out
}

// complain notes the complaint of an organisation's seat, and reports whether so many complain about
// leader now. A complaint about a command that is not held here counts nothing.
func (p *petitions) complain(id commandID, org identity.OrgID, leader identity.PeerID, quorum int, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.open[id]
	if x == nil || leader == "" {
		return false
	}
	x.heard[org] = complaint{leader, now}
	n := 0
	for _, c := range x.heard {
		if c.leader == leader && now.Sub(c.at) < 2*censorAfter {
			n++
		}
	}
	return quorum > 0 && n >= quorum
}

// petition gives a command to every linked seat once it has waited for petitionAfter, unless ctx ends.
func (n *Node) petition(ctx context.Context, raw []byte) {
	select {
	case <-time.After(petitionAfter):
	case <-ctx.Done():
		return
	}
	if n.holdsSeat(n.self) {
		n.takePetition(raw, n.ref.Org, func() {})
	}
	n.petitionSeats(ctx, raw)
}

func (n *Node) petitionSeats(ctx context.Context, raw []byte) {
	gather(ctx, n.seatLinks(), complainWithin, func(ctx context.Context, l mesh.Link) (struct{}, error) {
		s, err := n.open(ctx, l, n.protocols.petition)
		if err != nil {
			return struct{}{}, err
		}
		defer s.Close()
		return struct{}{}, writeFrame(s, raw)
	})
}

// handlePetition takes a command that a node waits for. What it has had refused costs an organisation as
// much as what it submits (backpressure.go): or junk would come this way.
func (n *Node) handlePetition(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(forwardWithin))
	raw, err := readFrame(s, maxCommand)
	if err != nil {
		return
	}
	fromSeat, org := slices.Contains(link.Session().Roles, RoleSeat), link.Session().Node.Org
	if n.refusals.over(org, fromSeat, n.now()) != nil {
		return
	}
	refused := func() { n.refusals.note(org, fromSeat, len(raw), n.now()) }
	if n.machine.Check(raw) != nil {
		refused()
		return
	}
	if n.takePetition(raw, org, refused) && !n.holdsSeat(link.Peer()) && n.petitions.passOn(sha256.Sum256(raw), n.ref.Org) {
		n.petitionSeats(n.ctx, raw) // a member may be linked to no other seat
	}
}

// takePetition watches a command and passes it on to the leader; refused is called if that is refused.
// It reports whether it was new.
func (n *Node) takePetition(raw []byte, org identity.OrgID, refused func()) bool {
	r := n.raft()
	c, err := consensus.DecodeCommand(raw)
	if r == nil || err != nil || c.Kind == consensus.KindTick || c.Kind == consensus.KindDigest || c.Kind == consensus.KindBootstrap {
		return false // those are the leader's own
	}
	n.lookAtOrdered()
	leader := r.Leader()
	if _, linked := n.linkTo(leader); !linked {
		leader = ""
	}
	if !n.petitions.add(raw, org, leader, n.machine.Seq(), n.now()) {
		return false
	}
	n.passToLeader(raw, refused)
	return true
}

// passToLeader gives a command to the leader, if there is one at present.
func (n *Node) passToLeader(raw []byte, refused func()) {
	n.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(n.ctx, forwardWithin)
		defer cancel()
		if _, err := n.order(ctx, raw, true, false); isRefused(err) {
			refused()
		}
	})
}

// passOn reports whether a petition may go on to the other seats in the name of the organisation self.
func (p *petitions) passOn(id commandID, self identity.OrgID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.open[id]
	if x == nil || x.org == self {
		return x != nil
	}
	relayed := 0
	for _, o := range p.open {
		if o.passed {
			relayed++
		}
	}
	x.passed = relayed < maxRelayed
	return x.passed
}

// lookAtOrdered forgets the petitions that were granted.
func (n *Node) lookAtOrdered() {
	n.petitions.mu.Lock()
	seen := n.petitions.seen
	n.petitions.mu.Unlock()
	for {
		commands, kept := n.machine.Since(seen, followBatch)
		if !kept {
			// A snapshot has skipped them: whoever still waits petitions again.
			n.petitions.skip(n.machine.Seq())
			return
		}
		if len(commands) == 0 {
			return
		}
		n.petitions.orderedFrom(seen, commands)
		seen += uint64(len(commands))
	}
}

// skip forgets everything, after commands that are not to be had.
func (p *petitions) skip(seq uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = seq
	clear(p.open)
}

// orderedFrom is ordered unless somebody else has looked at these commands meanwhile.
func (p *petitions) orderedFrom(seen uint64, commands [][]byte) {
	p.mu.Lock()
	same := p.seen == seen
	p.mu.Unlock()
	if same {
		p.ordered(commands)
	}
}

type complaintMessage struct {
	Command string          `json:"command"` // SHA-256 in hex
	Leader  identity.PeerID `json:"leader"`
}

// runPetitions watches whether petitions are granted, until ctx ends.
func (n *Node) runPetitions(ctx context.Context) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		n.lookAtOrdered()
		leader := n.raft().Leader()
		if leader == n.self {
			continue
		}
		if _, linked := n.linkTo(leader); linked { // or it would not get them
			for _, raw := range n.petitions.hand(leader, n.machine.Seq(), n.now()) {
				n.passToLeader(raw, func() {})
			}
		}
		for _, id := range n.petitions.overdue(leader, n.machine.Seq(), n.now(), n.overQuota) {
			n.tellComplaint(ctx, id, leader)
		}
	}
}

// overQuota reports whether a quota keeps a leader from ordering raw at this moment. It is asked
// twice a second: an organisation that floods is over its quota at some of these moments.
func (n *Node) overQuota(raw []byte) bool { return n.machine.overQuota(raw) != nil }

// tellComplaint tells the other seats that leader leaves a command out.
func (n *Node) tellComplaint(ctx context.Context, id commandID, leader identity.PeerID) {
	n.log.Warn("a command is not ordered", "command", hex.EncodeToString(id[:8]), "leader", n.nameOf(leader))
	n.count(id, n.ref.Org, leader)
	message := complaintMessage{hex.EncodeToString(id[:]), leader}
	gather(ctx, n.seatLinks(), complainWithin, func(ctx context.Context, l mesh.Link) (struct{}, error) {
		s, err := n.open(ctx, l, n.protocols.complain)
		if err != nil {
			return struct{}{}, err
		}
		defer s.Close()
		return struct{}{}, writeMessage(s, message)
	})
}

// handleComplaint counts another seat's complaint.
func (n *Node) handleComplaint(link mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(complainWithin))
	var m complaintMessage
	if readMessage(s, &m) != nil || !n.holdsSeat(link.Peer()) {
		return
	}
	raw, err := hex.DecodeString(m.Command)
	if err != nil || len(raw) != sha256.Size {
		return
	}
	n.count(commandID(raw), link.Session().Node.Org, m.Leader)
}

// count takes the leader its office here once enough organisations complain, this one among them.
func (n *Node) count(id commandID, org identity.OrgID, leader identity.PeerID) {
	r := n.raft()
	if r == nil || !n.petitions.complain(id, org, leader, n.quorum(), n.now()) || leader != r.Leader() || leader == n.self || !n.petitions.own(id, n.ref.Org) {
		return
	}
	r.Distrust(leader, censorPause, fmt.Errorf("it leaves out command %x, which seats of a majority hold", id[:8]))
}

// own reports whether this organisation complains, too: its seat has seen the command and waited.
func (p *petitions) own(id commandID, org identity.OrgID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	x := p.open[id]
	return x != nil && x.heard[org].leader != ""
}
