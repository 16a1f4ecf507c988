package replica

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/attestmesh/meshnode/internal/identity"
)

// seeds of the search for histories that are not linearizable. Faults and clients follow
// the seed; the interleaving does not, since raft draws its own random numbers.
var seeds = flag.Int("seeds", 20, "random fault schedules to run")

// access is one client's operation on one register.
type access struct {
	write bool
	key   string
	value string // written
}

func registers() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, op := range history {
				k := op.Input.(access).key
				byKey[k] = append(byKey[k], op)
			}
			var out [][]porcupine.Operation
			for _, ops := range byKey {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			a := input.(access)
			if a.write {
				return true, a.value
			}
			return output.(string) == state.(string), state
		},
	}
}

// recorder gathers a history.
type recorder struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation
	acked map[string]bool // writes that were acknowledged
}

func (r *recorder) add(client int, a access, output string, from time.Time, to int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: a, Output: output, Call: from.Sub(r.start).Nanoseconds(), Return: to})
	if a.write && to != math.MaxInt64 {
		r.acked[a.key+"="+a.value] = true
	}
}

// client works until ctx ends, mostly at the replica it believes to lead.
func (r *recorder) client(ctx context.Context, c *cluster, id int, rnd *rand.Rand, stale bool) {
	at := rnd.IntN(c.size())
	for n := 0; ctx.Err() == nil; n++ {
		a := access{write: rnd.IntN(2) == 0, key: "k" + strconv.Itoa(rnd.IntN(3)), value: fmt.Sprintf("%d.%d", id, n)}
		next := r.once(ctx, c, id, at, a, stale)
		if next < 0 {
			next = rnd.IntN(c.size())
		}
		at = next
		select {
		case <-time.After(time.Duration(1+rnd.IntN(250)) * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// once makes one access and returns which replica to ask next, -1 for any.
func (r *recorder) once(ctx context.Context, c *cluster, id, at int, a access, stale bool) int {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	from := time.Now()
	to := func() int64 { return time.Since(r.start).Nanoseconds() }
	replica, machine := c.at(at)
	var err error
	if a.write {
		_, err = replica.Apply(ctx, []byte(a.key+"="+a.value))
	} else if !stale {
		err = replica.Barrier(ctx)
	}
	var nl *NotLeaderError
	switch {
	case err == nil && a.write:
		r.add(id, a, "", from, to())
	case err == nil:
		value := machine.get(a.key)
		r.add(id, a, value, from, to())
	case errors.As(err, &nl):
		// Certainly not ordered: a failed operation is no part of the history. Recorded as
		// one of unknown outcome it would make the checker run for ever.
		return c.number(nl.Leader)
	case a.write && errors.Is(err, ErrUnknownOutcome):
		r.add(id, a, "", from, math.MaxInt64)
		return -1
	default:
		return -1
	}
	return at
}

// trouble does one random thing to the network.
func trouble(c *cluster, rnd *rand.Rand) {
	ids := append([]identity.PeerID(nil), c.ids...)
	rnd.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	switch rnd.IntN(5) {
	case 0: // a minority is cut off
		c.net.split(ids[:len(ids)/2], ids[len(ids)/2:])
	case 1, 2: // whoever leads is cut off, wholly or in one direction
		for _, r := range c.replicas {
			if r.State() != Leader {
				continue
			}
			others := without(c.ids, r.cfg.Self)
			if rnd.IntN(2) == 0 {
				c.net.split([]identity.PeerID{r.cfg.Self}, others)
				continue
			}
			in := rnd.IntN(2) == 0
			for _, p := range others {
				if in {
					c.net.cutOneWay(p, r.cfg.Self)
				} else {
					c.net.cutOneWay(r.cfg.Self, p)
				}
			}
		}
	case 3: // random links in random directions
		for range len(ids) {
			c.net.cutOneWay(ids[rnd.IntN(len(ids))], ids[rnd.IntN(len(ids))])
		}
	case 4: // a bridge: the first sees all, the others only their half
		c.net.split(ids[1:len(ids)/2+1], ids[len(ids)/2+1:])
	}
}

// history runs clients against a cluster in trouble, on a virtual clock.
func history(t *testing.T, seed uint64, n int, stale bool) *recorder {
	return historyOf(t, seed, n, stale, func(c *cluster, rnd *rand.Rand) (gone []*Replica) {
		for range 6 {
			<-time.After(time.Duration(1+rnd.IntN(4000)) * time.Millisecond)
			trouble(c, rnd)
			<-time.After(time.Duration(1+rnd.IntN(6000)) * time.Millisecond)
			c.net.heal()
		}
		return nil
	})
}

// historyOf is history with what happens given; it returns the replicas that are gone in the end.
func historyOf(t *testing.T, seed uint64, n int, stale bool, happens func(*cluster, *rand.Rand) []*Replica) *recorder {
	r := &recorder{acked: map[string]bool{}}
	synctest.Test(t, func(t *testing.T) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		r.start = time.Now()
		c := newCluster(t, n, 0, 2*time.Millisecond, Timing{})
		defer c.close()
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		for i := range 5 {
			mine := rand.New(rand.NewPCG(seed, uint64(100+i)))
			clients.Go(func() { r.client(ctx, c, i, mine, stale) })
		}
		gone := happens(c, rnd)
		cancel()
		clients.Wait()
		c.commit("last=1", gone...)
		var live []*kv
		for i, r := range c.replicas {
			if !slices.Contains(gone, r) {
				live = append(live, c.machines[i])
			}
		}
		c.agree(live...)
		have := map[string]bool{}
		for _, command := range live[0].history() {
			have[command] = true
		}
		for w := range r.acked {
			if !have[w] {
				t.Errorf("seed %d: acknowledged command %s is lost", seed, w)
			}
		}
	})
	return r
}

// check runs outside the bubble: its time-out needs a real clock.
func (r *recorder) check() porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(registers(), r.ops, 30*time.Second)
}

// Whatever the network does, clients see registers that change at one moment between call
// and return, nothing acknowledged is lost, and all replicas execute the same commands.
func TestLinearizable(t *testing.T) {
	ops := 0
	for seed := range uint64(*seeds) {
		r := history(t, seed, 3+2*int(seed%2), false)
		if got := r.check(); got != porcupine.Ok {
			t.Fatalf("seed %d: history of %d operations is %s", seed, len(r.ops), got)
		}
		ops += len(r.ops)
	}
	t.Logf("%d seeds, %d operations", *seeds, ops)
	if ops < 100**seeds {
		t.Fatalf("only %d operations: the clients hardly worked", ops)
	}
}

// Of five replicas one is killed for good and, while it is missed, another stands still and
// wakes up: mostly those that lead. Its clients have gone on asking it.
func TestLinearizableWithOneFrozenAndOneKilled(t *testing.T) {
	ops := 0
	for seed := range uint64(*seeds) {
		r := historyOf(t, seed, 5, false, func(c *cluster, rnd *rand.Rand) []*Replica {
			pick := func(but ...*Replica) *Replica {
				if rnd.IntN(4) > 0 {
					return c.leader(but...)
				}
				for {
					if r := c.replicas[rnd.IntN(len(c.replicas))]; !slices.Contains(but, r) {
						return r
					}
				}
			}
			pause := func(most int) { <-time.After(time.Duration(1+rnd.IntN(most)) * time.Millisecond) }
			pause(3000)
			killed := pick()
			c.net.kill(killed.cfg.Self)
			for range 3 {
				pause(5000)
				frozen := pick(killed)
				c.net.split([]identity.PeerID{frozen.cfg.Self}, without(c.ids, frozen.cfg.Self))
				<-time.After(time.Duration(1000+rnd.IntN(14000)) * time.Millisecond)
				c.net.heal()
			}
			pause(5000)
			return []*Replica{killed}
		})
		if got := r.check(); got != porcupine.Ok {
			t.Fatalf("seed %d: history of %d operations is %s", seed, len(r.ops), got)
		}
		ops += len(r.ops)
	}
	t.Logf("%d seeds, %d operations", *seeds, ops)
	if ops < 100**seeds {
		t.Fatalf("only %d operations: the clients hardly worked", ops)
	}
}

// Seats are replaced under load: whoever is killed comes back as another server, is added,
// catches up, gets a vote, and the older server goes. Clients see one history.
func TestLinearizableWhileSeatsAreReplaced(t *testing.T) {
	for seed := range uint64(*seeds) / 2 {
		const n = 5
		r := historyOf(t, seed, n, false, func(c *cluster, rnd *rand.Rand) []*Replica {
			founders := slices.Clone(c.ids)
			var gone []*Replica
			for i := range 3 {
				<-time.After(time.Duration(1+rnd.IntN(3000)) * time.Millisecond)
				old := c.leader(gone...)
				if rnd.IntN(2) == 0 {
					old = c.replicas[slices.IndexFunc(c.replicas, func(r *Replica) bool { return !slices.Contains(gone, r) })]
				}
				c.net.kill(old.cfg.Self)
				c.banned.Store(old.cfg.Self, true)
				gone = append(gone, old)
				next := c.join(n+i, founders)
				c.learners.Store(next.cfg.Self, true)
				eventually(t, "non-voter", func() bool { return c.leader(gone...).AddNonvoter(context.Background(), next.cfg.Self) == nil })
				eventually(t, "it catches up", func() bool {
					return next.Hears(time.Minute) && next.AppliedIndex()+64 > c.leader(gone...).AppliedIndex()
				})
				c.learners.Delete(next.cfg.Self)
				eventually(t, "voter", func() bool { return c.leader(gone...).AddVoter(context.Background(), next.cfg.Self) == nil })
				eventually(t, "removed", func() bool { return c.leader(gone...).RemoveServer(context.Background(), old.cfg.Self) == nil })
			}
			return gone
		})
		if got := r.check(); got != porcupine.Ok {
			t.Fatalf("seed %d: history of %d operations is %s", seed, len(r.ops), got)
		}
	}
}

// The search finds what it looks for: reads that do not ask the leader's peers are stale.
func TestLinearizableFindsStaleReads(t *testing.T) {
	for seed := range uint64(20) {
		if history(t, seed, 3, true).check() == porcupine.Illegal {
			return
		}
	}
	t.Fatal("local reads of any replica passed as linearizable 20 times")
}
