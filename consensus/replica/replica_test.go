package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/attestmesh/meshnode/internal/identity"
)

func TestMain(m *testing.M) {
	if runControl() {
		return
	}
	goleak.VerifyTestMain(m)
}

// bubble runs a cluster at raft's real times on a virtual clock.
func bubble(t *testing.T, n, ghosts int, f func(*testing.T, *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, n, ghosts, 5*time.Millisecond, Timing{})
		defer c.close()
		f(t, c)
	})
}

func TestClusterCommits(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5, 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			bubble(t, n, 0, func(t *testing.T, c *cluster) {
				for i := range 20 {
					c.commit(fmt.Sprintf("k%d=%d", i%3, i))
				}
				c.agree()
				l := c.leader()
				if got, err := l.Apply(t.Context(), []byte("a=b")); err != nil || got != "b" {
					t.Fatalf("Apply = %v, %v, want the machine's result", got, err)
				}
				if err := l.Barrier(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := l.Voters(); len(got) != n {
					t.Fatalf("%d voters, want %d", len(got), n)
				}
				for i, r := range c.replicas {
					if err := r.WaitApplied(t.Context(), l.AppliedIndex()); err != nil {
						t.Fatal(err)
					}
					if c.machines[i].get("a") != "b" {
						t.Fatalf("replica %d: WaitApplied returned too early", i)
					}
					if r.Leader() != l.cfg.Self {
						t.Fatalf("replica %d follows %s", i, r.Leader())
					}
				}
			})
		})
	}
}

// Founders list each other in any order; the founding entry must be the same bytes.
func TestFoundingConfigurationIsOne(t *testing.T) {
	a := Config{Self: peerOf(0), Servers: []identity.PeerID{peerOf(0), peerOf(1), peerOf(2)}}
	b := Config{Self: peerOf(1), Servers: []identity.PeerID{peerOf(2), peerOf(1), peerOf(0)}}
	ca, err := a.founding()
	if err != nil {
		t.Fatal(err)
	}
	cb, err := b.founding()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(ca.Servers, cb.Servers) {
		t.Fatalf("%v and %v", ca, cb)
	}
	for _, bad := range []Config{
		{Self: peerOf(0)},
		{Self: peerOf(0), Servers: []identity.PeerID{peerOf(1)}},
		{Self: peerOf(0), Servers: []identity.PeerID{peerOf(0), peerOf(0)}},
		{Self: peerOf(0), Servers: []identity.PeerID{peerOf(0), ""}},
	} {
		if got, err := bad.founding(); err == nil {
			t.Errorf("servers %v accepted as %v", bad.Servers, got)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("the zero Config must not start")
	}
}

func TestNotLeader(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		for _, r := range c.replicas {
			if r == l {
				continue
			}
			_, err := r.Apply(t.Context(), []byte("b=1"))
			var nl *NotLeaderError
			if !errors.Is(err, ErrNotLeader) || !errors.As(err, &nl) || nl.Leader != l.cfg.Self {
				t.Fatalf("got %v, want ErrNotLeader that names %s", err, l.cfg.Self)
			}
		}
		if _, err := l.Apply(t.Context(), []byte("bad=1")); err == nil || errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("got %v, want the machine's refusal", err)
		}
		if _, err := l.Apply(t.Context(), make([]byte, MaxCommand+1)); err == nil {
			t.Fatal("an oversized command was accepted")
		}
		c.agree()
		if h := c.machines[0].history(); len(h) != 1 {
			t.Fatalf("refused commands were executed: %v", h)
		}
	})
}

// A leader cut off in the middle of a command cannot know its fate and says so.
func TestUnknownOutcome(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		others := without(c.ids, l.cfg.Self)
		c.net.split([]identity.PeerID{l.cfg.Self}, others)
		_, err := l.Apply(t.Context(), []byte("lost=1"))
		if !errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("got %v, want ErrUnknownOutcome", err)
		}
		c.commit("a=2", l)
		c.net.heal()
		c.commit("a=3")
		c.agree()
		if h := c.machines[0].history(); slices.Contains(h, "lost=1") {
			t.Fatalf("a command of a deposed leader without majority was executed: %v", h)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := c.leader().Apply(ctx, []byte("x=1")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("got %v, want a plain cancellation: nothing was ordered", err)
		}
	})
}

func without(ids []identity.PeerID, out ...identity.PeerID) []identity.PeerID {
	return slices.DeleteFunc(slices.Clone(ids), func(p identity.PeerID) bool { return slices.Contains(out, p) })
}

func TestLeaderKillAndFailover(t *testing.T) {
	bubble(t, 5, 0, func(t *testing.T, c *cluster) {
		var gone []*Replica
		for i := range 2 {
			c.commit(fmt.Sprintf("a=%d", i), gone...)
			l := c.leader(gone...)
			c.net.kill(l.cfg.Self)
			gone = append(gone, l)
			start := time.Now()
			c.commit(fmt.Sprintf("b=%d", i), gone...)
			if took := time.Since(start); took > 15*time.Second {
				t.Fatalf("failover took %v", took)
			}
		}
		var live []*kv
		for i, r := range c.replicas {
			if !slices.Contains(gone, r) {
				live = append(live, c.machines[i])
			}
		}
		c.agree(live...)
	})
}

// Closing a leader hands its office over: nobody waits for an election timeout.
func TestCloseTransfersLeadership(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		start := time.Now()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		c.commit("a=2", l)
		if took := time.Since(start); took > 1500*time.Millisecond {
			t.Fatalf("hand-over took %v, want less than an election", took)
		}
		if _, err := l.Apply(t.Context(), []byte("a=3")); !errors.Is(err, ErrClosed) {
			t.Fatalf("got %v, want ErrClosed", err)
		}
		if l.State() != None {
			t.Fatalf("a closed replica is %s", l.State())
		}
	})
}

// Close under load answers everybody, and at once.
func TestCloseUnderLoad(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Go(func() {
				for j := range 20 {
					if _, err := l.Apply(t.Context(), fmt.Appendf(nil, "k%d=%d", i, j)); err != nil {
						return
					}
				}
			})
		}
		<-time.After(7 * time.Millisecond)
		start := time.Now()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if took := time.Since(start); took > closeTimeout {
			t.Fatalf("Close took %v", took)
		}
	})
}

func TestRemoveFollower(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		victim := without(c.ids, l.cfg.Self)[0]
		// As eviction goes: the gate closes first, then the configuration changes.
		c.banned.Store(victim, true)
		if err := l.RemoveServer(t.Context(), victim); err != nil {
			t.Fatal(err)
		}
		if got := l.Voters(); len(got) != 2 || slices.Contains(got, victim) {
			t.Fatalf("voters are %v", got)
		}
		if err := l.RemoveServer(t.Context(), victim); err != nil {
			t.Fatalf("removing what is not there: %v", err)
		}
		term := l.Term()
		<-time.After(time.Minute) // forty election timeouts in which it may try to disturb
		c.commit("a=2")
		if l.State() != Leader || l.Term() != term {
			t.Fatalf("the removed server disturbed: %s in term %d, was leader in %d", l.State(), l.Term(), term)
		}
	})
}

// A follower that was cut off when it was removed does not learn of it and campaigns.
func TestRemovedServerDoesNotDisturb(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		others := without(c.ids, l.cfg.Self)
		victim := others[0]
		c.net.split([]identity.PeerID{victim}, without(c.ids, victim))
		if err := l.RemoveServer(t.Context(), victim); err != nil {
			t.Fatal(err)
		}
		c.net.heal()
		term := l.Term()
		<-time.After(time.Minute)
		c.commit("a=2")
		if l.State() != Leader || l.Term() != term {
			t.Fatalf("the removed server disturbed: %s in term %d, was leader in %d", l.State(), l.Term(), term)
		}
	})
}

func TestRemoveLeader(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		if err := l.RemoveServer(t.Context(), l.cfg.Self); err != nil {
			t.Fatal(err)
		}
		c.commit("a=2", l)
		eventually(t, "the removed leader rests", func() bool { return l.State() == None })
		if _, err := l.Apply(t.Context(), []byte("a=3")); !errors.Is(err, ErrClosed) {
			t.Fatalf("got %v, want ErrClosed", err)
		}
		if got := c.leader(l).Voters(); len(got) != 2 {
			t.Fatalf("voters are %v", got)
		}
	})
}

// Of two removals decided on the same configuration one must not happen. Raft's main loop
// is held in the store while both are decided.
func TestRemoveServerComparesConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &faultyStore{fail: make(chan error), hang: make(chan struct{})}
		c := faulty(t, s)
		defer c.close()
		l := c.replicas[0]
		errs := make(chan error, 3)
		go func() {
			_, err := l.Apply(t.Context(), []byte("a=1"))
			errs <- err
		}()
		synctest.Wait()
		for _, p := range c.ids[1:] {
			go func() { errs <- l.RemoveServer(t.Context(), p) }()
		}
		synctest.Wait()
		close(s.hang)
		stale := 0
		for range 3 {
			switch err := <-errs; {
			case err == nil:
			case strings.Contains(err.Error(), "configuration changed") && !errors.Is(err, ErrUnknownOutcome):
				stale++
			default:
				t.Errorf("unexpected: %v", err)
			}
		}
		if stale != 1 || len(l.Voters()) != 2 {
			t.Fatalf("%d removals were stale, %d voters are left; want 1 and 2", stale, len(l.Voters()))
		}
	})
}

func TestLeaderChTellsChanges(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		eventually(t, "news of office", func() bool {
			select {
			case news := <-l.LeaderCh():
				return news.State == Leader && news.Leader == l.cfg.Self && news.Term == l.Term()
			default:
				return false
			}
		})
		c.net.split([]identity.PeerID{l.cfg.Self}, without(c.ids, l.cfg.Self))
		eventually(t, "news of its loss", func() bool {
			select {
			case news := <-l.LeaderCh():
				return news.State != Leader
			default:
				return false
			}
		})
		if s := l.Stats(); s.State == Leader || len(s.Voters) != 3 || s.CommitIndex == 0 {
			t.Fatalf("stats are %+v", s)
		}
	})
}

// A machine that panics has an unknown state. The replica must not go on with it.
func TestMachinePanicIsFatal(t *testing.T) {
	bubble(t, 1, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		_, err := c.leader().Apply(t.Context(), []byte("panic"))
		if err == nil || !strings.Contains(err.Error(), "machine panics at command") {
			t.Fatalf("got %v", err)
		}
		if err := <-c.fatal; !strings.Contains(err.Error(), "told to") {
			t.Fatalf("Fatal got %v", err)
		}
		if c.replicas[0].State() != None {
			t.Fatalf("a failed replica is %s", c.replicas[0].State())
		}
	})
}

// More commands than one frame holds, in one append: raft must not believe that all of
// them went out.
func TestBatchesOverOneFrame(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		lagging := without(c.ids, l.cfg.Self)[0]
		c.net.split([]identity.PeerID{lagging}, without(c.ids, lagging))
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				command := fmt.Sprintf("k%d=%s", i, strings.Repeat("x", MaxCommand-10))
				if _, err := l.Apply(t.Context(), []byte(command)); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		c.net.heal()
		c.agree()
	})
}
