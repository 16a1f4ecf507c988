package consensus

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// What a node's hardware is no leaf says: an edge names kind, measurement and entry. So the
// ordered state cannot tell whom a floor, a denial or a list of chips hits. It takes the word
// of those who can: a node is contradicted while organisations that are a quorum of the seats,
// and enough to narrow, its own not counted, refuse it by their newest findings and none of
// their nodes affirms it. Nodes whose Credentials are void are not heard. Seats that have left must not make it fewer than a majority.
// This needs no clock, so that auditors derive the same. A contradicted node is evicted; a seat's
// node leaves the Raft configuration where the rest is a quorum. A demand that comes due by
// time, as a floor does, is announced by a note (attest.CodeFloorAhead) in the findings before.

// contradict judges the subject of an edge that was just taken, and the seats that could not
// be let go before, and derives the leaves of those that leave.
func (s *State) contradict(out *Outcome, r *AttestationResult) error {
	if s.genesis.FSMVersion < fsmGovernance {
		return nil
	}
	subject := s.nodes[r.Subject.Node]
	before := subject.contradicted
	subject.contradicted = s.contradiction(subject)
	if subject.contradicted != "" && !subject.inRaft() {
		if before == "" {
			out.Evicted = append(out.Evicted, subject.cred.Peer)
		}
		subject.evicted = subject.contradicted
	}
	if !subject.seat || !s.seatContradicted() {
		return nil
	}
	for _, ref := range s.refs() {
		n := s.nodes[ref]
		if !n.inRaft() || n.contradicted == "" || len(s.Seats())-1 < s.Quorum() {
			continue
		}
		if n.contradicted = s.contradiction(n); n.contradicted == "" { // who refused it may be gone
			continue
		}
		if err := s.removeSeat(out, n, n.contradicted, "result "+sha256Hex(r.raw)); err != nil {
			return err
		}
		n.evicted = n.contradicted
		out.Evicted = append(out.Evicted, n.cred.Peer)
	}
	return nil
}

// seatContradicted reports whether a seat is that could not be let go.
func (s *State) seatContradicted() bool {
	for _, n := range s.nodes {
		if n.contradicted != "" && n.inRaft() {
			return true
		}
	}
	return false
}

// refused reports whether anybody's newest finding refuses n.
func (s *State) refused(n *node) bool {
	for _, e := range s.edges[n.cred.Peer] {
		if e.Verdict == attest.VerdictContraindicated {
			return true
		}
	}
	return false
}

// contradiction returns why enough other organisations refuse n, or "".
func (s *State) contradiction(n *node) attest.Code {
	if !s.refused(n) {
		return ""
	}
	refusing := map[identity.OrgID]attest.Code{}
	affirming := map[identity.OrgID]bool{}
	for _, e := range s.Edges(n.cred.Peer) {
		org := e.Verifier.Node.Org
		switch {
		case org == n.cred.Organisation || !s.heard(e):
		case e.Verdict == attest.VerdictAffirming:
			affirming[org] = true
		case e.Verdict == attest.VerdictContraindicated && len(e.Codes) > 0:
			refusing[org] = e.Codes[0]
		}
	}
	maps.DeleteFunc(refusing, func(org identity.OrgID, _ attest.Code) bool { return affirming[org] })
	if len(refusing) == 0 || len(refusing) < max(s.Quorum(), NarrowThreshold(s.N())) {
		return ""
	}
	return refusing[slices.Min(slices.Collect(maps.Keys(refusing)))]
}

// forewarned reports whether a quorum of organisations, or all but its own, find that n will not
// meet what is demanded of it later, or does not meet it now.
func (s *State) forewarned(n *node) bool {
	orgs := map[identity.OrgID]bool{}
	for _, e := range s.edges[n.cred.Peer] {
		org := e.Verifier.Node.Org
		if org != n.cred.Organisation && s.heard(e) && (e.Verdict == attest.VerdictContraindicated || slices.Contains(e.Codes, attest.CodeFloorAhead)) {
			orgs[org] = true
		}
	}
	return len(orgs) >= max(1, min(s.Quorum(), len(s.Seats())-1))
}

// cameDue reports whether a floor came into force or an entry ended since then.
func (s *State) cameDue(then time.Time) bool {
	passed := func(t time.Time) bool { return !t.IsZero() && t.After(then) && !t.After(s.now) }
	if slices.ContainsFunc(s.platforms.floors, func(f attest.Floor) bool { return passed(f.From) }) {
		return true
	}
	for _, e := range s.entries {
		if passed(s.end(&e)) {
			return true
		}
	}
	return false
}

// floorDue reports whether a floor came into force by time.
func (s *State) floorDue() bool {
	return slices.ContainsFunc(s.platforms.floors, func(f attest.Floor) bool { return !f.From.IsZero() && !f.From.After(s.now) })
}

// broughtForward returns the seats that are known to be below a floor which next puts in force at
// once: those that were warned of one no higher, which is still ahead. Of other floors, and of
// what else is demanded at once, nobody has said yet whom they hit. Auditors, who do not know
// what was ahead, take the word of the seats.
func (s *State) broughtForward(next *PolicyState) (short []identity.NodeRef) {
	announced := func(f attest.Floor) bool {
		return slices.ContainsFunc(s.platforms.floors, func(g attest.Floor) bool {
			return g.From.After(s.now) && attest.Covered([]attest.Floor{f}, g)
		})
	}
	if s.now.IsZero() || !slices.ContainsFunc(next.platforms.floors, func(f attest.Floor) bool { return !f.From.After(s.now) && announced(f) }) {
		return nil
	}
	for _, seat := range s.Seats() {
		if s.forewarned(s.nodes[seat.Ref]) {
			short = append(short, seat.Ref)
		}
	}
	return short
}

// spare settles which seats stay though a demand came due that they do not meet: all those that
// would go together, where the rest would be no quorum. It reports whether they are others than
// before.
func (s *State) spare() bool {
	spared := map[identity.NodeRef]struct{}{}
	ended := s.seatsLost() // those that the tick would have evicted, had it been safe
	for ref := range ended {
		spared[ref] = struct{}{}
	}
	if s.genesis.FSMVersion >= fsmGovernance && s.floorDue() {
		var short []identity.NodeRef
		for _, seat := range s.Seats() {
			if _, already := spared[seat.Ref]; !already && s.forewarned(s.nodes[seat.Ref]) {
				short = append(short, seat.Ref)
			}
		}
		if len(s.Seats())-len(ended)-len(short) < s.Quorum() {
			for _, ref := range short {
				spared[ref] = struct{}{}
			}
		}
	}
	changed := !maps.Equal(s.spared, spared)
	s.spared = spared
	return changed
}

// Spared returns the seats that would be out but for the quorum, sorted by name: their entry
// has ended or a floor came into force that they do not meet, and without them nothing could
// be ordered. They keep their vote and nothing else; the organisations must replace them.
func (s *State) Spared() []identity.NodeRef { return sortedRefs(s.spared) }

// dueWithin is how long verifiers wait for the tick that settles whom a demand puts out which
// has come due by their own clocks.
const dueWithin = 3 * TickInterval

// AttestPolicy is PolicyState.AttestPolicy, but that time puts out no seat whose loss would
// stop the mesh: for a spared one nothing ends and no floor comes into force by time. Who is
// spared is settled by the tick that passes the time; until it is ordered nothing is due.
func (s *State) AttestPolicy(of identity.NodeRef, roles ...string) attest.Policy {
	p := s.PolicyState.AttestPolicy(of, roles...)
	_, spared := s.spared[of]
	due := func(t time.Time) time.Time {
		switch {
		case spared:
			return endOfTime
		case t.After(s.now) && !s.now.IsZero():
			return t.Add(dueWithin)
		}
		return t
	}
	for i, r := range p.References {
		if !r.NotAfter.IsZero() {
			p.References[i].NotAfter = due(r.NotAfter)
		}
	}
	for i, f := range p.Platforms.Floors {
		if !f.From.IsZero() {
			p.Platforms.Floors[i].Wait = due(f.From).Sub(f.From)
		}
	}
	return p
}

type contradictedImage struct {
	_    struct{} `cbor:",toarray"`
	Ref  string
	Code string
}

type contradictionsImage struct {
	_            struct{} `cbor:",toarray"`
	Contradicted []contradictedImage
	Spared       []string
}

func (s *State) contradictedImage() contradictionsImage {
	im := contradictionsImage{Contradicted: []contradictedImage{}, Spared: []string{}}
	for _, ref := range s.refs() {
		if code := s.nodes[ref].contradicted; code != "" {
			im.Contradicted = append(im.Contradicted, contradictedImage{Ref: ref.String(), Code: string(code)})
		}
	}
	for _, ref := range s.Spared() {
		im.Spared = append(im.Spared, ref.String())
	}
	return im
}

// contradictedPart is the same in an encoded state.
func contradictedPart() part {
	return part{"contradicted",
		func(s *State) any { return s.contradictedImage() },
		func(s *State, raw []byte) error {
			var im contradictionsImage
			if err := images.decode(raw, &im); err != nil {
				return err
			}
			for _, c := range im.Contradicted {
				ref, err := identity.ParseNodeRef(c.Ref)
				if err != nil || s.nodes[ref] == nil || !codePattern.MatchString(c.Code) {
					return fmt.Errorf("contradicted: %.80q is no node, or %.40q no code", c.Ref, c.Code)
				}
				s.nodes[ref].contradicted = attest.Code(c.Code)
			}
			for _, name := range im.Spared {
				ref, err := identity.ParseNodeRef(name)
				if err != nil || s.nodes[ref] == nil {
					return fmt.Errorf("spared: %.80q is no node", name)
				}
				s.spared[ref] = struct{}{}
			}
			return nil
		}}
}
