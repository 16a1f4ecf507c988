package replica

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// errRefused is wrapped by every refusal of the guard.
var errRefused = errors.New("refused")

// view is what the guard must know of this replica's raft when a request arrives.
type view struct {
	self   identity.PeerID
	now    time.Time
	term   uint64
	floor  uint64        // newest index known to be committed, at least foundingIndex
	leads  bool          // this replica leads in term
	leader raft.ServerID // as raft names it: perhaps that of an earlier term
	// entry returns a stored entry.
	entry func(index uint64) (raft.Log, error)
	// before returns the newest stored configuration below index.
	before func(index uint64) (raft.Configuration, bool)
}

// guard decides which requests raft may see. It belongs to the gate of the transport: one
// request at a time. It reads no clock and waits for nothing.
type guard struct {
	termEvery     time.Duration // a peer regains one term
	transferEvery time.Duration
	terms         map[identity.PeerID]*allowance
	transfers     map[identity.PeerID]time.Time
	officeTerm    uint64 // newest term with a known leader …
	officeHolder  identity.PeerID
	distrusted    map[identity.PeerID]distrust
}

// distrust is why nothing is taken from a peer, and until when; for ever if that is zero.
type distrust struct {
	why   error
	until time.Time
}

// distrust takes nothing from a peer until d ends. One that ends later already stays: who was found to
// diverge is not believed again because it then left something out as well.
func (g *guard) distrust(peer identity.PeerID, d distrust) {
	if old, ok := g.distrusted[peer]; !ok || !old.until.IsZero() && (d.until.IsZero() || d.until.After(old.until)) {
		g.distrusted[peer] = d
	}
}

// distrusts refuses a peer that this replica's owner does not believe now.
func (g *guard) distrusts(peer identity.PeerID, now time.Time) error {
	d, ok := g.distrusted[peer]
	if !ok {
		return nil
	}
	if !d.until.IsZero() && !now.Before(d.until) {
		delete(g.distrusted, peer)
		return nil
	}
	return fmt.Errorf("%w: %w", errRefused, d.why)
}

// allowance is how many terms a peer may still raise ours.
type allowance struct {
	left uint64
	at   time.Time
}

func newGuard(heartbeat, election time.Duration) *guard {
	return &guard{
		termEvery:     max(heartbeat/termsPerHeartbeat, 1),
		transferEvery: transferPause * election,
		terms:         map[identity.PeerID]*allowance{},
		transfers:     map[identity.PeerID]time.Time{},
		distrusted:    map[identity.PeerID]distrust{},
	}
}

// admit decides about a request of peer that passed inspect, and may lower the commit
// index it carries.
func (g *guard) admit(v view, peer identity.PeerID, request any) error {
	if err := g.distrusts(peer, v.now); err != nil {
		return err
	}
	switch m := request.(type) {
	case *raft.AppendEntriesRequest:
		return g.admitAppend(v, peer, m)
	case *raft.RequestVoteRequest:
		if err := g.checkTerm(v, peer, m.Term); err != nil {
			return err
		}
		if m.LeadershipTransfer {
			if last, ok := g.transfers[peer]; ok && v.now.Sub(last) < g.transferEvery {
				return fmt.Errorf("%w: second vote of a leadership transfer within %v", errRefused, g.transferEvery)
			}
			g.transfers[peer] = v.now
		}
		g.spend(v, peer, m.Term)
		return nil
	case *raft.RequestPreVoteRequest:
		return g.checkTerm(v, peer, m.Term)
	case *raft.TimeoutNowRequest:
		if string(v.leader) != peer.String() {
			return fmt.Errorf("%w: TimeoutNow from other than the leader", errRefused)
		}
		return nil
	}
	return fmt.Errorf("%w: %T is no request", errRefused, request)
}

func (g *guard) admitAppend(v view, peer identity.PeerID, m *raft.AppendEntriesRequest) error {
	if m.Term < v.term {
		m.Entries = nil // raft answers with our term, which is all an old leader needs
		return nil
	}
	if err := g.checkTerm(v, peer, m.Term); err != nil {
		return err
	}
	holder := identity.PeerID("")
	switch {
	case m.Term == g.officeTerm:
		holder = g.officeHolder
	case m.Term == v.term && v.leads:
		holder = v.self
	}
	if holder != "" && holder != peer {
		return fmt.Errorf("%w: term %d has the leader %s", errRefused, m.Term, holder)
	}
	if err := checkEntries(v, m); err != nil {
		return err
	}
	m.LeaderCommitIndex = min(m.LeaderCommitIndex, m.PrevLogEntry+uint64(len(m.Entries)))
	g.spend(v, peer, m.Term)
	g.officeTerm, g.officeHolder = m.Term, peer
	return nil
}

// checkEntries compares entries with what is stored and committed.
func checkEntries(v view, m *raft.AppendEntriesRequest) error {
	for _, e := range m.Entries {
		if e.Index <= v.floor {
			stored, err := v.entry(e.Index)
			if err != nil {
				return fmt.Errorf("%w: entry %d is committed and cannot be compared: %v", errRefused, e.Index, err)
			}
			if stored.Term != e.Term || stored.Type != e.Type || !bytes.Equal(stored.Data, e.Data) {
				return fmt.Errorf("%w: rewrites entry %d, committed are entries up to %d", errRefused, e.Index, v.floor)
			}
			continue
		}
		if e.Type != raft.LogConfiguration {
			continue
		}
		next, err := decodeConfiguration(e.Data)
		if err != nil {
			return err
		}
		base, ok := configurationBefore(v, m, e.Index)
		if !ok {
			return fmt.Errorf("%w: configuration %d has none before it", errRefused, e.Index)
		}
		if n := distance(base, next); n > 1 {
			return fmt.Errorf("%w: configuration %d changes %d servers at once, want one", errRefused, e.Index, n)
		}
	}
	return nil
}

// configurationBefore returns the configuration that holds at index once m's entries are
// stored.
func configurationBefore(v view, m *raft.AppendEntriesRequest, index uint64) (raft.Configuration, bool) {
	for i := len(m.Entries) - 1; i >= 0; i-- {
		if e := m.Entries[i]; e.Index < index && e.Type == raft.LogConfiguration {
			c, err := decodeConfiguration(e.Data)
			return c, err == nil
		}
	}
	return v.before(min(index, m.PrevLogEntry+1))
}

// checkTerm refuses a peer's claim of a term too far above ours.
func (g *guard) checkTerm(v view, peer identity.PeerID, term uint64) error {
	if term <= v.term {
		return nil
	}
	if left := g.left(v.now, peer); term-v.term > left {
		return fmt.Errorf("%w: raises the term from %d to %d, at most %d more now", errRefused, v.term, term, left)
	}
	return nil
}

// left returns how many terms peer may raise ours now.
func (g *guard) left(now time.Time, peer identity.PeerID) uint64 {
	a := g.terms[peer]
	if a == nil {
		a = &allowance{left: termBurst, at: now}
		g.terms[peer] = a
	}
	if gained := now.Sub(a.at) / g.termEvery; gained > 0 {
		a.left = min(termBurst, a.left+uint64(min(gained, termBurst)))
		a.at = a.at.Add(gained * g.termEvery)
	}
	return a.left
}

// spend charges peer with raising our term. Only checkTerm's sums are charged.
func (g *guard) spend(v view, peer identity.PeerID, term uint64) {
	if term > v.term {
		g.left(v.now, peer)
		g.terms[peer].left -= term - v.term
	}
}

// admitReply refuses a reply whose term is too far above ours. Replies raise our term too.
func (g *guard) admitReply(v view, peer identity.PeerID, reply any) error {
	var term uint64
	switch m := reply.(type) {
	case *raft.AppendEntriesResponse:
		term = m.Term
	case *raft.RequestVoteResponse:
		term = m.Term
	case *raft.RequestPreVoteResponse:
		term = m.Term
	case *snapshotReply:
		term = m.Term
	}
	return g.checkTerm(v, peer, term)
}

// inspect checks what needs nothing but the request: it runs beside the gate.
func inspect(request any, check func([]byte) error) error {
	switch m := request.(type) {
	case *raft.AppendEntriesRequest:
		return inspectAppend(m, check)
	case *raft.RequestVoteRequest:
		if m.Term == 0 || m.LastLogTerm > m.Term {
			return fmt.Errorf("%w: vote in term %d for a log of term %d", errRefused, m.Term, m.LastLogTerm)
		}
	}
	return nil
}

func inspectAppend(m *raft.AppendEntriesRequest, check func([]byte) error) error {
	if m.PrevLogEntry == 0 && m.PrevLogTerm != 0 {
		return fmt.Errorf("%w: term %d before the first entry", errRefused, m.PrevLogTerm)
	}
	last := m.PrevLogTerm
	for _, e := range m.Entries {
		if e.Term < last || e.Term > m.Term || e.Term == 0 {
			return fmt.Errorf("%w: entry %d of term %d after %d in a message of term %d", errRefused, e.Index, e.Term, last, m.Term)
		}
		last = e.Term
		if err := inspectEntry(e, check); err != nil {
			return err
		}
	}
	return nil
}

func inspectEntry(e *raft.Log, check func([]byte) error) error {
	switch e.Type {
	case raft.LogCommand:
		if len(e.Data) == 0 || len(e.Data) > MaxCommand {
			return fmt.Errorf("%w: entry %d is a command of %d bytes, want 1 to %d", errRefused, e.Index, len(e.Data), MaxCommand)
		}
		if err := check(e.Data); err != nil {
			return fmt.Errorf("%w: entry %d: %w", errRefused, e.Index, err)
		}
	case raft.LogNoop, raft.LogBarrier:
		if len(e.Data) != 0 {
			return fmt.Errorf("%w: entry %d is a %s with data", errRefused, e.Index, e.Type)
		}
	case raft.LogConfiguration:
		_, err := decodeConfiguration(e.Data)
		return err
	default:
		return fmt.Errorf("%w: entry %d is of the unknown type %d", errRefused, e.Index, e.Type)
	}
	return nil
}

// decodeConfiguration reads a membership strictly; raft's own decoder panics.
func decodeConfiguration(data []byte) (c raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			c, err = raft.Configuration{}, fmt.Errorf("%w: malformed configuration: %v", errRefused, p)
		}
	}()
	if len(data) > maxConfiguration {
		return c, fmt.Errorf("%w: configuration of %d bytes, at most %d", errRefused, len(data), maxConfiguration)
	}
	c = raft.DecodeConfiguration(data)
	if !bytes.Equal(raft.EncodeConfiguration(c), data) {
		return raft.Configuration{}, fmt.Errorf("%w: configuration is not in its one encoding", errRefused)
	}
	return c, checkConfiguration(c)
}

func checkConfiguration(c raft.Configuration) error {
	if len(c.Servers) > maxServers {
		return fmt.Errorf("%w: configuration of %d servers, at most %d", errRefused, len(c.Servers), maxServers)
	}
	seen, voters := map[raft.ServerID]bool{}, 0
	for _, s := range c.Servers {
		if _, err := identity.ParsePeerID(string(s.ID)); err != nil {
			return fmt.Errorf("%w: configuration: %v", errRefused, err)
		}
		if string(s.Address) != string(s.ID) || seen[s.ID] {
			return fmt.Errorf("%w: configuration names %s twice or under another address", errRefused, s.ID)
		}
		seen[s.ID] = true
		switch s.Suffrage {
		case raft.Voter:
			voters++
		case raft.Nonvoter:
		default:
			return fmt.Errorf("%w: configuration gives %s the suffrage %d", errRefused, s.ID, s.Suffrage)
		}
	}
	if voters == 0 {
		return fmt.Errorf("%w: configuration without voters", errRefused)
	}
	return nil
}

// distance counts the servers in which two memberships differ.
func distance(a, b raft.Configuration) int {
	left := map[raft.ServerID]raft.ServerSuffrage{}
	for _, s := range a.Servers {
		left[s.ID] = s.Suffrage
	}
	n := 0
	for _, s := range b.Servers {
		if suffrage, ok := left[s.ID]; !ok || suffrage != s.Suffrage {
			n++
		}
		delete(left, s.ID)
	}
	return n + len(left)
}
