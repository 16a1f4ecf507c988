package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

// join starts a replica that is none of the founders of c, as number i.
func (c *cluster) join(i int, founders []identity.PeerID) *Replica {
	c.t.Helper()
	id, m := peerOf(i), &kv{values: map[string]string{}}
	c.known.Store(id, true)
	r, err := New(Config{Self: id, Peers: peers{c.net, id}, Machine: m, Servers: founders, Join: true, Store: newMemoryStore(),
		Member: c.member, Learner: c.learner, Fatal: func(err error) { c.fatal <- err }})
	if err != nil {
		c.t.Fatal(err)
	}
	c.net.update(func() { c.net.serve[id] = r.Serve })
	c.joining.Lock()
	c.ids, c.replicas, c.machines = append(c.ids, id), append(c.replicas, r), append(c.machines, m)
	c.joining.Unlock()
	return r
}

func (c *cluster) servers(r *Replica) string {
	var out []string
	for _, s := range r.Servers() {
		kind := "v"
		if !s.Voter {
			kind = "n"
		}
		out = append(out, fmt.Sprint(kind, slices.Index(c.ids, s.Peer)))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// A replica that joins has no vote and no ambition before a leader adds it, gets the whole
// log as a non-voter, and then votes.
func TestJoin(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		founders := slices.Clone(c.ids)
		for i := range 600 { // more than one append holds
			c.commit(fmt.Sprintf("k=%d", i))
		}
		l := c.leader()
		r := c.join(3, founders)
		c.learners.Store(r.cfg.Self, true)
		term := l.Term()
		<-time.After(time.Minute)
		if r.State() != Follower || r.Term() != 1 || l.Term() != term || r.Hears(time.Hour) {
			t.Fatalf("before it was added it is %s in term %d, the leader in %d (was %d)", r.State(), r.Term(), l.Term(), term)
		}
		if err := l.AddVoter(t.Context(), r.cfg.Self); err == nil {
			t.Fatal("a stranger was given a vote")
		}
		for range 2 { // the second finds it done
			if err := l.AddNonvoter(t.Context(), r.cfg.Self); err != nil {
				t.Fatal(err)
			}
		}
		c.agree()
		if got := c.servers(l); got != "n3 v0 v1 v2" || !r.Hears(time.Minute) {
			t.Fatalf("servers are %s", got)
		}
		c.learners.Delete(r.cfg.Self) // its seat is ordered
		for range 2 {
			if err := l.AddVoter(t.Context(), r.cfg.Self); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.servers(l); got != "v0 v1 v2 v3" {
			t.Fatalf("servers are %s", got)
		}
		// Its vote counts: two of the founders are gone, of four three are needed.
		c.net.kill(l.cfg.Self)
		c.commit("last=1", l)
		if c.machines[3].get("last") != "1" {
			eventually(t, "the newest voter executes", func() bool { return c.machines[3].get("last") == "1" })
		}
	})
}

// A learner is sent the log and is not listened to.
func TestLearnersAreNotHeard(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		r := c.join(3, slices.Clone(c.ids))
		c.learners.Store(r.cfg.Self, true)
		if err := l.AddNonvoter(t.Context(), r.cfg.Self); err != nil {
			t.Fatal(err)
		}
		c.agree()
		before := l.refusals.Load()
		here, there := c.net.pipe(r.cfg.Self, l.cfg.Self)
		l.Serve(r.cfg.Self, there) // returns at once
		here.Close()
		if l.refusals.Load() == before {
			t.Fatal("a stream of a learner was served")
		}
	})
}

// A learner that cannot be reached never gets a vote by itself, and holds up nothing (M12).
func TestLearnerThatNeverCatchesUp(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		r := c.join(3, slices.Clone(c.ids))
		c.learners.Store(r.cfg.Self, true)
		c.net.split([]identity.PeerID{r.cfg.Self}, without(c.ids, r.cfg.Self))
		if err := l.AddNonvoter(t.Context(), r.cfg.Self); err != nil {
			t.Fatal(err)
		}
		term := l.Term()
		for i := range 60 {
			c.commit(fmt.Sprintf("a=%d", i), r)
			<-time.After(10 * time.Second)
		}
		if got := c.servers(l); got != "n3 v0 v1 v2" || l.Term() != term {
			t.Fatalf("servers are %s in term %d, was %d", got, l.Term(), term)
		}
	})
}

// Of two changes decided on the same configuration one must not happen.
func TestAddComparesConfiguration(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		founders := slices.Clone(c.ids)
		x, y := c.join(3, founders), c.join(4, founders)
		c.learners.Store(x.cfg.Self, true)
		c.learners.Store(y.cfg.Self, true)
		errs := make(chan error, 2)
		for _, r := range []*Replica{x, y} {
			go func() { errs <- l.AddNonvoter(t.Context(), r.cfg.Self) }()
		}
		failed := 0
		for range 2 {
			if err := <-errs; err != nil {
				if !strings.Contains(err.Error(), "configuration changed") {
					t.Errorf("unexpected: %v", err)
				}
				failed++
			}
		}
		if got := len(l.Servers()); got != 5-failed {
			t.Fatalf("%d failed and there are %d servers", failed, got)
		}
	})
}

// Every founder is replaced, one after the other, while commands go on; at no moment have
// two servers of one organisation a vote that is heard (M11).
func TestReplaceAll(t *testing.T) {
	for _, n := range []int{3, 4, 5, 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			bubble(t, n, 0, func(t *testing.T, c *cluster) {
				founders := slices.Clone(c.ids)
				var gone []*Replica
				for i := range n {
					c.commit(fmt.Sprintf("round=%d", i), gone...)
					old := c.replicas[i]
					c.net.kill(old.cfg.Self)
					c.banned.Store(old.cfg.Self, true) // the ordered state knows its newer boot
					gone = append(gone, old)
					r := c.join(n+i, founders)
					c.learners.Store(r.cfg.Self, true)
					change := func(what string, do func(l *Replica) error) {
						t.Helper()
						eventually(t, what, func() bool { return do(c.leader(gone...)) == nil })
					}
					change("non-voter", func(l *Replica) error { return l.AddNonvoter(t.Context(), r.cfg.Self) })
					eventually(t, "it catches up", func() bool { return c.machines[n+i].get("round") == fmt.Sprint(i) })
					c.learners.Delete(r.cfg.Self)
					change("voter", func(l *Replica) error { return l.AddVoter(t.Context(), r.cfg.Self) })
					change("old one out", func(l *Replica) error { return l.RemoveServer(t.Context(), old.cfg.Self) })
				}
				c.commit("end=1", gone...)
				c.agree(c.machines[n:]...)
				if got := len(c.leader(gone...).Voters()); got != n {
					t.Fatalf("%d voters, want %d", got, n)
				}
			})
		})
	}
}

// Handing over costs less than an election, and ends in a follower that goes on.
func TestHandOver(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		start := time.Now()
		if err := l.HandOver(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.commit("a=2", l)
		if took := time.Since(start); took > 1500*time.Millisecond {
			t.Fatalf("it took %v, less than an election is wanted", took)
		}
		if l.State() == None || l.HandOver(t.Context()) != nil {
			t.Fatal("whoever has handed over goes on as a follower, and has nothing more to hand over")
		}
		c.agree()
	})
}

// A leader whose hand-over fails must not stay: it could refuse writes for ever (#696).
func TestAbortedHandOverIsFatal(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		for _, p := range without(c.ids, l.cfg.Self) {
			c.net.cutOneWay(p, l.cfg.Self) // it is heard and hears nothing
		}
		switch err := l.HandOver(t.Context()); {
		case err == nil && l.State() == Leader:
			t.Fatal("it says that it has handed over and leads")
		case err != nil && l.State() != None:
			t.Fatalf("it goes on as a %s: %v", l.State(), err)
		case err != nil:
			if told := <-c.fatal; !strings.Contains(told.Error(), "leadership transfer") {
				t.Fatalf("Fatal is told %v", told)
			}
		}
		c.net.heal()
		c.commit("a=2", l)
		if l.State() == Leader {
			c.commit("a=3") // whoever leads takes commands
		}
	})
}
