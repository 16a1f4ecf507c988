package mesh

import (
	"container/list"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/internal/identity"
)

// intake keeps account of the connections that others opened and that have not been attested
// yet, over all listeners of a mesh. libp2p hears of a connection when intake has a place for
// it.
//
//	accepted ──► silent ──► speaking ──► proved ──► attested, and counted no longer
//	             3 s        3 s to name the security protocol, 5 s TLS, 2 s HELLO
//
// Members and strangers have places of their own, so that the one cannot fill the other's. A
// member is known by address: Config.Allow names it, or a link from it was attested within
// memberMemory. Strangers are also capped by source, in number and in new ones a second, and
// all strangers together in the handshakes a second that they may begin, since each costs a
// millisecond of a processor. Of those, one member's address may begin half as many.
//
// Where no place is left, the newcomer takes that of the oldest connection of its own
// source, else of the oldest of all: an honest peer speaks at once and is through before it
// is the oldest, a flood pushes out itself. Whoever has shown a valid Credential keeps its
// place, therefore one organisation, which can have as many Credentials as it likes, has only
// its part of the places, and one peer a few.
type intake struct {
	allow   func() []netip.Prefix // nil: nobody
	reserve func(netip.Addr)      // hears once of every address that is a member's; nil: nobody does

	mu         sync.Mutex
	strangers  class
	members    class
	sources    map[netip.Prefix]*source
	starts     bucket                 // handshakes that strangers begin
	begun      map[netip.Addr]*bucket // handshakes that members begin
	allowed    []netip.Prefix
	allowedAt  time.Time
	remembered map[netip.Addr]time.Time // when a link from there was last seen to live
	reserved   map[netip.Addr]struct{}
	turned     map[turnedAway]uint64
}

// intakeLimits sizes the places of one class each.
type intakeLimits struct {
	silent, handshakes, memberSilent, memberHandshakes int
}

// newIntakeLimits fits the limits to the number of files that this process may open: half
// of them stay for whatever is attested and for the node.
func newIntakeLimits(files uint64) intakeLimits {
	l := intakeLimits{maxSilent, limitHandshakes, maxMemberSilent, memberHandshakes}
	if all := uint64(l.silent + l.handshakes + l.memberSilent + l.memberHandshakes); files < 2*all {
		for _, p := range []*int{&l.silent, &l.handshakes, &l.memberSilent, &l.memberHandshakes} {
			*p = max(1, int(uint64(*p)*files/(2*all)))
		}
	}
	return l
}

// openFiles is how many files this process may open.
func openFiles() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024 // the customary default
	}
	return l.Cur
}

func newIntake(allow func() []netip.Prefix, limits intakeLimits) *intake {
	i := &intake{
		allow: allow, sources: map[netip.Prefix]*source{}, remembered: map[netip.Addr]time.Time{},
		reserved: map[netip.Addr]struct{}{}, begun: map[netip.Addr]*bucket{}, starts: newBucket(strangerRate, strangerBurst), turned: map[turnedAway]uint64{},
	}
	i.strangers, i.members = newClass(limits.silent, limits.handshakes), newClass(limits.memberSilent, limits.memberHandshakes)
	return i
}

// class is the places of members or of strangers. Guarded by intake.mu.
type class struct {
	maxSilent, maxHandshakes int

	silent, speaking list.List // *visitor, the oldest first
	proved           int
	provedOf         map[identity.OrgID]int
	provedBy         map[identity.PeerID]int
}

func newClass(silent, handshakes int) class {
	return class{maxSilent: silent, maxHandshakes: handshakes, provedOf: map[identity.OrgID]int{}, provedBy: map[identity.PeerID]int{}}
}

// source is one address, or one network of addresses.
type source struct {
	pending int
	fresh   bucket
}

// stage is how far a visitor has come.
type stage int

const (
	stageSilent stage = iota
	stageSpeaking
	stageProved
	stageGone // attested, or closed
)

// turnedAway is why a connection was closed before anybody knew whose it was.
type turnedAway string

const (
	turnedSource     turnedAway = "source"     // too many of one source, or too fast
	turnedRate       turnedAway = "rate"       // too many strangers' handshakes a second
	turnedSilent     turnedAway = "silent"     // said nothing in time
	turnedCrowded    turnedAway = "crowded"    // its place was needed
	turnedSlow       turnedAway = "slow"       // named no security protocol in time
	turnedUnfinished turnedAway = "unfinished" // was let in and closed before the exchange, by either end
)

// visitor is a raw connection while, and after, intake has it. Its methods may be called on
// nil, for a connection that came by no front.
type visitor struct {
	manet.Conn
	intake  *intake
	addr    netip.Addr // invalid where the network has no addresses
	sources []netip.Prefix
	class   *class

	stage stage         // guarded by intake.mu
	place *list.Element // guarded by intake.mu; in silent or speaking
	timer *time.Timer   // guarded by intake.mu; while the security protocol is negotiated
	whose Subject       // guarded by intake.mu; of stageProved

	exchanging bool // guarded by intake.mu; the exchange has begun, and counts how it ends
}

// enter makes conn a visitor; nil if its source has too many, and then conn is closed.
func (i *intake) enter(conn manet.Conn) *visitor {
	v := &visitor{Conn: conn, intake: i, addr: remoteAddr(conn)}
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	if i.listed(v.addr, now) {
		v.class = &i.members
		i.tell(v.addr)
	} else {
		v.class, v.sources = &i.strangers, sourcesOf(v.addr)
		if !i.charge(v.sources, now) {
			i.drop(v, turnedSource)
			return nil
		}
	}
	c := v.class
	if c.silent.Len() >= c.maxSilent {
		i.drop(c.oldest(&c.silent, v), turnedCrowded)
	}
	v.place = c.silent.PushBack(v)
	return v
}

// spoke gives v a place among those that talk to libp2p; false if it has none any more.
func (i *intake) spoke(v *visitor) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if v.stage != stageSilent {
		return false
	}
	c := v.class
	if !i.begin(v, time.Now()) {
		i.drop(v, turnedRate)
		return false
	}
	if c.speaking.Len()+c.proved >= c.maxHandshakes {
		if c.speaking.Len() == 0 {
			i.drop(v, turnedCrowded)
			return false
		}
		i.drop(c.oldest(&c.speaking, v), turnedCrowded)
	}
	c.silent.Remove(v.place)
	v.stage, v.place = stageSpeaking, c.speaking.PushBack(v)
	v.timer = time.AfterFunc(negotiateTimeout, func() { i.expel(v, turnedSlow) })
	return true
}

// begin reports whether v may begin a handshake now; mu is held.
func (i *intake) begin(v *visitor, now time.Time) bool {
	if v.class == &i.strangers {
		return i.starts.take(now)
	}
	if v.addr.IsLoopback() {
		return true
	}
	b := i.begun[v.addr]
	if b == nil {
		if len(i.begun) >= maxRemembered {
			maps.DeleteFunc(i.begun, func(_ netip.Addr, b *bucket) bool { return b.full(now) })
		}
		if len(i.begun) >= maxRemembered {
			clear(i.begun) // that many at once are no mesh, but nobody is locked out
		}
		fresh := newBucket(memberRate, memberBurst)
		b = &fresh
		i.begun[v.addr] = b
	}
	return b.take(now)
}

// oldest returns the oldest connection in places of v's source, else the oldest of all.
func (c *class) oldest(places *list.List, v *visitor) *visitor {
	for e := places.Front(); e != nil; e = e.Next() {
		if old := e.Value.(*visitor); old.addr == v.addr {
			return old
		}
	}
	return places.Front().Value.(*visitor)
}

// negotiated is called when v has named the security protocol, which has its own deadlines.
func (v *visitor) negotiated() {
	if v == nil {
		return
	}
	v.intake.mu.Lock()
	defer v.intake.mu.Unlock()
	if v.timer != nil {
		v.timer.Stop()
	}
}

// exchanged is called when v's exchange begins: whatever it says of v is counted there.
func (v *visitor) exchanged() {
	if v == nil {
		return
	}
	v.intake.mu.Lock()
	defer v.intake.mu.Unlock()
	v.exchanging = true
}

// proved is called when v has shown a valid Credential. It reports whether v has a place that
// nobody takes from it: not where its peer or organisation has too many of them already.
func (v *visitor) proved(whose Subject) bool {
	if v == nil {
		return true
	}
	v.intake.mu.Lock()
	defer v.intake.mu.Unlock()
	if v.stage != stageSpeaking {
		return v.stage == stageProved
	}
	c := v.class
	if c.provedBy[whose.Peer] >= peerHandshakes || c.provedOf[whose.Node.Org] >= max(1, c.maxHandshakes/orgShare) {
		return false
	}
	c.speaking.Remove(v.place)
	v.stage, v.place, v.whose = stageProved, nil, whose
	c.proved++
	c.provedBy[whose.Peer]++
	c.provedOf[whose.Node.Org]++
	return true
}

// unproved takes one proved connection of whose off the account.
func (c *class) unproved(whose Subject) {
	c.proved--
	if c.provedBy[whose.Peer]--; c.provedBy[whose.Peer] == 0 {
		delete(c.provedBy, whose.Peer)
	}
	if c.provedOf[whose.Node.Org]--; c.provedOf[whose.Node.Org] == 0 {
		delete(c.provedOf, whose.Node.Org)
	}
}

// attested is called when v is a peer's attested connection.
func (v *visitor) attested() {
	if v == nil {
		return
	}
	v.intake.mu.Lock()
	defer v.intake.mu.Unlock()
	v.intake.leave(v)
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	v.intake.mu.Lock()
	if v.stage != stageGone {
		if !v.exchanging {
			v.intake.turned[turnedUnfinished]++
		}
		v.intake.leave(v)
	}
	v.intake.mu.Unlock()
	return v.Conn.Close()
}

// SetLinger, SetKeepAlive and SetKeepAlivePeriod are what libp2p asks of a TCP connection.
func (v *visitor) SetLinger(seconds int) error {
	if c, ok := v.Conn.(interface{ SetLinger(int) error }); ok {
		return c.SetLinger(seconds)
	}
	return nil
}

// SetKeepAlive is as of net.TCPConn.
func (v *visitor) SetKeepAlive(on bool) error {
	if c, ok := v.Conn.(interface{ SetKeepAlive(bool) error }); ok {
		return c.SetKeepAlive(on)
	}
	return nil
}

// SetKeepAlivePeriod is as of net.TCPConn.
func (v *visitor) SetKeepAlivePeriod(d time.Duration) error {
	if c, ok := v.Conn.(interface{ SetKeepAlivePeriod(time.Duration) error }); ok {
		return c.SetKeepAlivePeriod(d)
	}
	return nil
}

// expel closes v unless it has been attested meanwhile.
func (i *intake) expel(v *visitor, why turnedAway) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if v.stage != stageGone {
		i.drop(v, why)
	}
}

// drop closes v without a word; mu is held. A reset leaves no TIME_WAIT of ours behind, of
// which a flood would leave many.
func (i *intake) drop(v *visitor, why turnedAway) {
	i.turned[why]++
	i.leave(v)
	_ = v.SetLinger(0)
	_ = v.Conn.Close()
}

// leave ends the account of v; mu is held.
func (i *intake) leave(v *visitor) {
	switch v.stage {
	case stageGone:
		return
	case stageSilent:
		if v.place != nil {
			v.class.silent.Remove(v.place)
		}
	case stageSpeaking:
		v.class.speaking.Remove(v.place)
	case stageProved:
		v.class.unproved(v.whose)
	}
	if v.timer != nil {
		v.timer.Stop()
	}
	if v.place != nil || v.stage == stageProved {
		for _, p := range v.sources {
			i.sources[p].pending--
		}
	}
	v.stage, v.place = stageGone, nil
}

// charge counts a new connection against every one of its sources, or against none if one
// of them has too many; mu is held.
func (i *intake) charge(sources []netip.Prefix, now time.Time) bool {
	i.makeRoom(len(sources), now)
	for k, p := range sources {
		scale := 1
		if k > 0 {
			scale = networkScale
		}
		s := i.sources[p]
		if s == nil {
			s = &source{fresh: newBucket(float64(sourceRate*scale), 2*sourceConns*scale)}
			i.sources[p] = s
		}
		if s.pending >= sourceConns*scale || !s.fresh.take(now) {
			return false
		}
	}
	for _, p := range sources {
		i.sources[p].pending++
	}
	return true
}

// makeRoom bounds the table of sources, with n to come; mu is held. A source without pending
// connections can be forgotten: at once if it has been quiet, and at any time if it must be.
func (i *intake) makeRoom(n int, now time.Time) {
	if len(i.sources)+n <= maxSources {
		return
	}
	maps.DeleteFunc(i.sources, func(_ netip.Prefix, s *source) bool { return s.pending == 0 && s.fresh.full(now) })
	for p, s := range i.sources {
		if len(i.sources)+n <= maxSources {
			return
		}
		if s.pending == 0 {
			delete(i.sources, p)
		}
	}
}

// listed reports whether addr is a member's; mu is held.
func (i *intake) listed(addr netip.Addr, now time.Time) bool {
	if !addr.IsValid() {
		return false
	}
	if at, ok := i.remembered[addr]; ok && now.Sub(at) < memberMemory {
		return true
	}
	if i.allow != nil && now.Sub(i.allowedAt) >= allowEvery {
		i.allowed, i.allowedAt = i.allow(), now
	}
	return slices.ContainsFunc(i.allowed, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// tell reserves for addr, once; mu is held.
func (i *intake) tell(addr netip.Addr) {
	if _, ok := i.reserved[addr]; ok || i.reserve == nil || len(i.reserved) >= maxRemembered {
		return
	}
	i.reserved[addr] = struct{}{}
	i.reserve(addr)
}

// met remembers the address of a link, for which it was asked outside of the front.
func (i *intake) met(addr netip.Addr) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.remember(addr, time.Now())
}

// remember notes that a link from addr lives; mu is held.
func (i *intake) remember(addr netip.Addr, now time.Time) {
	if !addr.IsValid() {
		return
	}
	if _, ok := i.remembered[addr]; !ok && len(i.remembered) >= maxRemembered {
		var oldest netip.Addr
		for a, at := range i.remembered {
			if !oldest.IsValid() || at.Before(i.remembered[oldest]) {
				oldest = a
			}
		}
		delete(i.remembered, oldest)
	}
	i.remembered[addr] = now
}

// counts returns how many were turned away, by reason.
func (i *intake) counts() map[turnedAway]uint64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.turned)
}

// sourcesOf returns what a stranger's connection counts against: its address or, of IPv6,
// where one customer has many, its /64 and its /48. Loopback counts against nothing:
// whoever is there is on this machine already.
func sourcesOf(addr netip.Addr) []netip.Prefix {
	if !addr.IsValid() || addr.IsLoopback() {
		return nil
	}
	if addr.Is4() {
		return []netip.Prefix{netip.PrefixFrom(addr, 32)}
	}
	near, _ := addr.Prefix(64)
	far, _ := addr.Prefix(48)
	return []netip.Prefix{near, far}
}

// remoteAddr returns where conn comes from.
func remoteAddr(conn interface{ RemoteMultiaddr() ma.Multiaddr }) netip.Addr {
	ip, err := manet.ToIP(conn.RemoteMultiaddr())
	if err != nil {
		return netip.Addr{}
	}
	addr, _ := netip.AddrFromSlice(ip)
	return addr.Unmap()
}
