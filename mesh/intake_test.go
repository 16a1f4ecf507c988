package mesh

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"github.com/attestmesh/meshnode/internal/identity"
)

// fakeConn is a connection from an address. Nothing can be said on it.
type fakeConn struct {
	net.Conn
	from   string
	closed int
}

func (c *fakeConn) RemoteMultiaddr() ma.Multiaddr {
	kind := "ip4"
	if a := netip.MustParseAddr(c.from); a.Is6() {
		kind = "ip6"
	}
	return ma.StringCast(fmt.Sprintf("/%s/%s/tcp/1", kind, c.from))
}
func (c *fakeConn) LocalMultiaddr() ma.Multiaddr { return ma.StringCast("/ip4/10.0.0.1/tcp/1") }
func (c *fakeConn) Close() error                 { c.closed++; return nil }

var _ manet.Conn = (*fakeConn)(nil)

// crowd lets visitors in and remembers them.
type crowd struct {
	t  *testing.T
	in *intake
}

func newCrowd(t *testing.T, l intakeLimits, members ...string) *crowd {
	var listed []netip.Prefix
	for _, m := range members {
		listed = append(listed, netip.MustParsePrefix(m))
	}
	return &crowd{t, newIntake(func() []netip.Prefix { return listed }, l)}
}

func (c *crowd) enter(from string) *visitor { return c.in.enter(&fakeConn{from: from}) }

// speak enters and speaks; nil if it was turned away.
func (c *crowd) speak(from string) *visitor {
	if v := c.enter(from); v != nil && c.in.spoke(v) {
		return v
	}
	return nil
}

func subjectOf(name string) Subject {
	org, node, _ := strings.Cut(name, "/")
	return Subject{Peer: identity.PeerID(name), Node: identity.NodeRef{Org: identity.OrgID(org), Name: identity.NodeName(node)}}
}

func closed(v *visitor) bool { return v.Conn.(*fakeConn).closed > 0 }

// settled demands that nothing is counted any more.
func (c *crowd) settled() {
	c.t.Helper()
	for _, k := range []*class{&c.in.strangers, &c.in.members} {
		if k.silent.Len()+k.speaking.Len()+k.proved+len(k.provedBy)+len(k.provedOf) != 0 {
			c.t.Errorf("%d silent, %d speaking, %d proved of %v are left", k.silent.Len(), k.speaking.Len(), k.proved, k.provedOf)
		}
	}
	for p, s := range c.in.sources {
		if s.pending != 0 {
			c.t.Errorf("%d pending of %s are left", s.pending, p)
		}
	}
}

var wide = intakeLimits{silent: 1 << 20, handshakes: 1 << 20, memberSilent: 1 << 20, memberHandshakes: 1 << 20}

func TestIntakeCapsEachSource(t *testing.T) {
	for _, c := range []struct {
		name string
		from func(int) string
		want int
	}{
		{"one address", func(int) string { return "10.1.1.1" }, sourceConns},
		{"one /64", func(i int) string { return fmt.Sprintf("2001:db8::%x", i+1) }, sourceConns},
		{"one /48", func(i int) string { return fmt.Sprintf("2001:db8:0:%x::1", i+1) }, networkScale * sourceConns},
		{"addresses of their own", func(i int) string { return fmt.Sprintf("10.1.%d.%d", i>>8, i&255) }, 1000},
		{"loopback", func(int) string { return "127.0.0.1" }, 1000},
		{"a member", func(int) string { return "10.9.0.1" }, 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			crowd := newCrowd(t, wide, "10.9.0.0/24")
			var in []*visitor
			for i := range 1000 {
				if v := crowd.enter(c.from(i)); v != nil {
					in = append(in, v)
				}
			}
			if len(in) != c.want || crowd.in.counts()[turnedSource] != uint64(1000-c.want) {
				t.Errorf("%d were let in, want %d; turned away: %v", len(in), c.want, crowd.in.counts())
			}
			for _, v := range in {
				_ = v.Close()
				_ = v.Close() // counts once
			}
			crowd.settled()
		})
	}
}

func TestIntakeCapsTheRateOfASource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crowd := newCrowd(t, wide)
		attempts := func(n int) (in int) {
			for range n {
				if v := crowd.enter("10.1.1.1"); v != nil {
					in++
					_ = v.Close()
				}
			}
			return in
		}
		if got := attempts(1000); got != 2*sourceConns {
			t.Errorf("%d at once, want the burst", got)
		}
		time.Sleep(10 * time.Second)
		if got := attempts(1000); got != 10*sourceRate {
			t.Errorf("%d after ten seconds, want %d", got, 10*sourceRate)
		}
		crowd.settled()
	})
}

func TestIntakeBoundsItsTable(t *testing.T) {
	crowd := newCrowd(t, wide)
	held := crowd.enter("10.255.0.1")
	for i := range 3 * maxSources {
		v := crowd.enter(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
		if v == nil {
			t.Fatalf("connection %d was turned away", i)
		}
		_ = v.Close()
	}
	if n := len(crowd.in.sources); n > maxSources {
		t.Errorf("%d sources, want at most %d", n, maxSources)
	}
	_ = held.Close() // its source was not forgotten
	crowd.settled()
}

func TestIntakeMakesRoom(t *testing.T) {
	crowd := newCrowd(t, intakeLimits{2, 2, 2, 2}, "10.9.0.0/24")
	t.Run("silent", func(t *testing.T) {
		a, b := crowd.enter("10.1.0.1"), crowd.enter("10.1.0.2")
		member := crowd.enter("10.9.0.1")
		c := crowd.enter("10.1.0.2") // its own source gives way, though another is older
		if closed(a) || !closed(b) || closed(c) || closed(member) {
			t.Errorf("closed: %v %v %v, member %v", closed(a), closed(b), closed(c), closed(member))
		}
		d := crowd.enter("10.1.0.3") // a new source takes the oldest place
		if !closed(a) || closed(c) || closed(d) || closed(member) {
			t.Errorf("closed: %v %v %v, member %v", closed(a), closed(c), closed(d), closed(member))
		}
		for _, v := range []*visitor{c, d, member} {
			_ = v.Close()
		}
		crowd.settled()
	})
	t.Run("speaking", func(t *testing.T) {
		a, b := crowd.speak("10.1.0.1"), crowd.speak("10.1.0.2")
		a.proved(subjectOf("alpha/n1"))
		c := crowd.speak("10.1.0.3")
		if closed(a) || !closed(b) || closed(c) {
			t.Errorf("closed: %v %v %v, want only the oldest that has shown nothing", closed(a), closed(b), closed(c))
		}
		c.proved(subjectOf("beta/n1"))
		if crowd.speak("10.1.0.4") != nil {
			t.Error("there was room although all had proved themselves")
		}
		member := crowd.speak("10.9.0.1")
		if member == nil {
			t.Fatal("a member found no place")
		}
		a.attested()
		if d := crowd.speak("10.1.0.5"); d == nil {
			t.Error("an attested connection still takes a place")
		} else {
			_ = d.Close()
		}
		for _, v := range []*visitor{a, c, member} {
			_ = v.Close()
		}
		crowd.settled()
	})
}

// An organisation that shows Credentials and then nothing holds its part of the places, with
// one Credential a few of them; the others' peers find theirs.
func TestIntakeSharesPlacesAmongOrganisations(t *testing.T) {
	const places = orgShare * peerHandshakes * 2
	for name, c := range map[string]struct {
		hostile func(i int) string
		want    int
	}{
		"one peer":                 {func(int) string { return "mallory/n1" }, peerHandshakes},
		"peers of an organisation": {func(i int) string { return fmt.Sprintf("mallory/n%d", i) }, places / orgShare},
	} {
		t.Run(name, func(t *testing.T) {
			crowd := newCrowd(t, intakeLimits{1 << 20, 1 << 20, 1 << 20, places}, "10.9.0.0/24")
			var held []*visitor
			for i := range 2 * places {
				if v := crowd.speak("10.9.0.1"); v != nil && v.proved(subjectOf(c.hostile(i))) {
					held = append(held, v)
				}
			}
			if len(held) != c.want {
				t.Errorf("%d places are held, want %d", len(held), c.want)
			}
			for i := range places / orgShare {
				v := crowd.speak(fmt.Sprintf("10.9.0.%d", 2+i))
				if v == nil || !v.proved(subjectOf(fmt.Sprintf("beta/n%d", i))) {
					t.Fatalf("peer %d of another organisation finds no place", i)
				}
				held = append(held, v)
			}
			for e := crowd.in.members.speaking.Front(); e != nil; e = crowd.in.members.speaking.Front() {
				_ = e.Value.(*visitor).Close()
			}
			for _, v := range held {
				_ = v.Close()
			}
			crowd.settled()
		})
	}
}

func TestIntakeExpelsWhoNamesNoProtocol(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crowd := newCrowd(t, wide, "10.9.0.0/24")
		slow, member, quick := crowd.speak("10.1.0.1"), crowd.speak("10.9.0.1"), crowd.speak("10.1.0.2")
		quick.negotiated()
		time.Sleep(negotiateTimeout + time.Second)
		synctest.Wait()
		if !closed(slow) || !closed(member) || closed(quick) {
			t.Errorf("closed: slow %v, a slow member %v, quick %v", closed(slow), closed(member), closed(quick))
		}
		_ = quick.Close()
		crowd.settled()
	})
}

func TestIntakeBoundsHandshakes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crowd := newCrowd(t, wide, "10.9.0.0/16")
		begin := func(n int, from func(int) string) (in int) {
			for i := range n {
				if v := crowd.speak(from(i)); v != nil {
					in++
					_ = v.Close()
				}
			}
			return in
		}
		stranger := func(i int) string { return fmt.Sprintf("10.1.%d.%d", i>>8, i&255) }
		if got := begin(2000, stranger); got != strangerBurst {
			t.Errorf("strangers began %d handshakes, want %d", got, strangerBurst)
		}
		if got := begin(2000, func(int) string { return "10.9.0.1" }); got != memberBurst {
			t.Errorf("a member began %d handshakes, want %d", got, memberBurst)
		}
		if crowd.speak("10.9.0.2") == nil {
			t.Error("another member has to wait for it")
		}
		for i := range 4 * maxRemembered {
			if v := crowd.speak(fmt.Sprintf("10.9.%d.%d", 1+i>>8, i&255)); v == nil {
				t.Fatalf("member %d has to wait", i)
			}
		}
		if n := len(crowd.in.begun); n > maxRemembered {
			t.Errorf("%d members' rates are kept", n)
		}
		time.Sleep(2 * time.Second)
		if got := begin(2000, stranger); got != 2*strangerRate {
			t.Errorf("strangers began %d handshakes after two seconds, want %d", got, 2*strangerRate)
		}
	})
}

func TestIntakeRemembersMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		crowd := newCrowd(t, wide)
		var told []netip.Addr
		crowd.in.reserve = func(a netip.Addr) { told = append(told, a) }
		addr := netip.MustParseAddr("10.1.0.1")
		crowd.in.met(addr)
		for range 2 {
			if v := crowd.enter("10.1.0.1"); v.class != &crowd.in.members {
				t.Error("an attested peer's address is a stranger's")
			}
		}
		if len(told) != 1 || told[0] != addr {
			t.Errorf("reserved for %v", told)
		}
		time.Sleep(memberMemory)
		if v := crowd.enter("10.1.0.1"); v.class != &crowd.in.strangers {
			t.Error("the address is remembered for ever")
		}
		for i := range 2 * maxRemembered {
			crowd.in.met(netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)}))
		}
		if n := len(crowd.in.remembered); n > maxRemembered {
			t.Errorf("%d addresses are remembered", n)
		}
	})
}

func TestIntakeFitsTheProcess(t *testing.T) {
	for _, c := range []struct {
		files uint64
		want  intakeLimits
	}{
		{1 << 20, intakeLimits{maxSilent, limitHandshakes, maxMemberSilent, memberHandshakes}},
		{1024, intakeLimits{256, 128, 64, 64}},
		{1, intakeLimits{1, 1, 1, 1}},
	} {
		if got := newIntakeLimits(c.files); got != c.want {
			t.Errorf("%d files: %+v, want %+v", c.files, got, c.want)
		}
	}
}
