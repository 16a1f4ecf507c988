package simulations

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/node"
)

const year = 365 * 24 * time.Hour

// clocks set the clocks of hosts wrong, by what they hold.
type clocks map[string]*atomic.Int64

func newClocks(names ...string) clocks {
	c := clocks{}
	for _, name := range names {
		c[name] = &atomic.Int64{}
	}
	return c
}

func (c clocks) set(off time.Duration, names ...string) {
	for _, name := range names {
		c[name].Store(int64(off))
	}
}

func (c clocks) prepare(w *world) {
	w.clock = func(name string) func() time.Time {
		off, wrong := c[name]
		if !wrong {
			return nil
		}
		return func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
	}
}

// meshTime demands that ordered time is what honest clocks show, but for the age of a tick.
func (a *actor) meshTime(at string) {
	a.Helper()
	v, err := a.host(at).policy(a.Context())
	if err != nil {
		a.Fatal(err)
	}
	if off := time.Since(v.Time); off < 0 || off > 5*time.Second {
		a.Errorf("ordered time is %s behind", off)
	}
}

func (a *actor) warns(name, what string) bool {
	a.Helper()
	return strings.Contains(strings.Join(a.status(name).Warnings, "\n"), what)
}

// T1: a machine whose clock is wrong by years when it starts gets nowhere and serves nothing,
// and says why. When its clock is right it joins, without a restart.
func TestWrongClockAtStartIsRefused(t *testing.T) {
	for name, off := range map[string]time.Duration{"ten years ahead": 10 * year, "a year behind": -year} {
		t.Run(name, func(t *testing.T) {
			c := newClocks("alpha/n2")
			c.set(off, "alpha/n2")
			stage(t, three, c.prepare, func(a *actor) {
				a.do("start alpha/n2 new\nwait 30s\nexpect phase joining of alpha/n2 within 1s\nexpect unlinked alpha/n2 from rest within 1s\n")
				refused := false
				for _, p := range a.status("alpha/n2").Peers {
					refused = refused || p.State == node.PeerRefused && p.Code == attest.CodeCredentialExpired
				}
				if !refused || !a.warns("alpha/n2", "clock is off by") {
					a.Errorf("it does not say why: %v", a.status("alpha/n2").Warnings)
				}
				a.meshTime("alpha/n1")
				c.set(0, "alpha/n2")
				a.do("expect phase member of alpha/n2\n")
				if a.warns("alpha/n2", "clock is off by") {
					a.Error("it still warns")
				}
			})
		})
	}
}

// A founder with a wrong clock founds no mesh, and does not end the ceremony of the others.
func TestFounderWithAWrongClock(t *testing.T) {
	c := newClocks("gamma/n1")
	c.set(10*year, "gamma/n1")
	stage(t, strings.TrimSuffix(three, "expect phase member of rest\n"), c.prepare, func(a *actor) {
		a.do("wait 20s\nexpect phase founding of rest within 1s\n")
		if !a.warns("gamma/n1", "clock is off by") || a.warns("alpha/n1", "clock is off by") {
			a.Error("who has the wrong clock, and only he, is to be told")
		}
		c.set(0, "gamma/n1")
		a.do("expect phase member of rest\n")
	})
}

// T2: clocks of running machines jump ahead and back by more than Credentials and links live.
// Nothing expires, nobody is put out, no leader changes, and the mesh's time stays right.
func TestClockJumpsWhileRunning(t *testing.T) {
	long(t)
	c := newClocks("beta/n1", "alpha/n2")
	stage(t, five+"start alpha/n2 new\nexpect phase member of rest\nexpect linked rest\nexpect proof proven of rest at rest\npropose add r0 signed alpha beta delta gamma at alpha/n1\n", c.prepare, func(a *actor) {
		term := a.status("alpha/n1").Raft.Term
		for _, off := range []time.Duration{25 * time.Hour, -25 * time.Hour, time.Hour, 10 * year} {
			c.set(off, "beta/n1", "alpha/n2")
			a.do("wait 6m\nexpect kept rest within 1s\nexpect phase member of rest within 1s\n") // longer than a verdict counts
			a.meshTime("alpha/n1")
			if !a.warns("alpha/n2", "clock is off by") || a.warns("gamma/n1", "clock is off by") {
				a.Errorf("off by %s: who is off, and only he, is to be told", off)
			}
		}
		if now := a.status("alpha/n1").Raft.Term; now != term {
			a.Errorf("term %d became %d", term, now)
		}
		a.do("start gamma/n2 new\nexpect phase member of rest\n") // and they still judge newcomers rightly
	})
}

// T3: the clocks of all seats strobe by five seconds, once a second. Nobody is elected, and
// nobody stops serving.
func TestStrobingClocksElectNobody(t *testing.T) {
	long(t)
	seats := []string{"alpha/n1", "beta/n1", "gamma/n1", "delta/n1", "epsilon/n1"}
	c := newClocks(seats...)
	stage(t, five+"propose add r0 signed alpha beta delta gamma at alpha/n1\nexpect linked rest\n", c.prepare, func(a *actor) {
		term := a.status("alpha/n1").Raft.Term
		for i := range 180 {
			c.set([]time.Duration{5 * time.Second, -5 * time.Second}[i%2], seats...)
			a.do("wait 1s\n")
			for _, name := range seats[:2] {
				if s := a.status(name); s.Phase != node.PhaseMember || s.Raft.Term != term {
					a.Fatalf("after %ds %s is %s in term %d", i, name, s.Phase, s.Raft.Term)
				}
			}
		}
		a.do("expect kept rest within 1s\nexpect equal rest\n")
	})
}

// T4: a seat that lies about time changes nothing, nor do two of five while all answer. When
// most lie, time goes with them, and whose clock is right is told that it is not the mesh's.
func TestLyingClocks(t *testing.T) {
	long(t)
	c := newClocks("beta/n1", "gamma/n1", "delta/n1")
	stage(t, five+"expect linked rest\n", c.prepare, func(a *actor) {
		for _, off := range []time.Duration{24 * time.Hour, -24 * time.Hour, 10 * year, -10 * year} {
			c.set(off, "beta/n1")
			a.do("wait 20s\nexpect phase member of rest within 1s\n")
			a.meshTime("alpha/n1")
			c.set(off, "beta/n1", "gamma/n1")
			a.do("wait 20s\nexpect phase member of rest within 1s\n")
			a.meshTime("alpha/n1")
		}
		c.set(time.Hour, "beta/n1", "gamma/n1", "delta/n1")
		a.do("wait 10s\n")
		if !a.warns("alpha/n1", "clock is off by -1h0m") || a.warns("beta/n1", "clock is off by") {
			a.Errorf("alpha/n1 is told %v, beta/n1 %v", a.status("alpha/n1").Warnings, a.status("beta/n1").Warnings)
		}
	})
}
