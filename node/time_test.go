package node

import (
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
)

// tickBy orders a tick that some seats have sampled.
func (c *crowd) tickBy(seats ...*Node) {
	c.t.Helper()
	var samples [][]byte
	for _, n := range seats {
		sample, err := n.sampleTime(n.tickSeq() + 1)
		if err != nil {
			c.t.Fatal(err)
		}
		samples = append(samples, sample)
	}
	c.order(consensus.KindTick, samples...)
}

// A tick that less than a majority has signed keeps nobody fresh: one node alone can make it.
func TestTicksOfAMinorityKeepNobodyFresh(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		n := c.nodes[0]
		for range 7 {
			time.Sleep(consensus.TickInterval)
			c.tickBy(c.nodes[:3]...)
		}
		wantStale(t, n.stale(), "")
		time.Sleep(consensus.TickInterval)
		c.tickBy(c.nodes[:3]...)
		wantStale(t, n.stale(), "last tick")
		c.tickBy(c.nodes[:4]...)
		wantStale(t, n.stale(), "start-up proof") // after a gap
		n.completed(n.began())
		wantStale(t, n.stale(), "")
		time.Sleep(maxStaleness)
		c.tickBy() // nobody has signed it
		wantStale(t, n.stale(), "")
		time.Sleep(time.Millisecond)
		wantStale(t, n.stale(), "last tick")
	})
}

// Ticks that are let through slower than they come, so that there is no gap, make a node as
// stale as a gap; a new proof mends it if what it hears is the newest there is.
func TestTicksThatComeSlowlyAreNoticed(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		n, slow := c.nodes[0], time.Now()
		for _, seat := range c.nodes {
			seat.wall = func() time.Time { return slow }
		}
		for i := range 4 {
			time.Sleep(5 * time.Second)
			slow = slow.Add(consensus.TickInterval)
			c.tick()
			if lag := time.Duration(i+1) * 3 * time.Second; n.lags(lag-1) != true || n.lags(lag) != false {
				t.Errorf("after %d slow ticks it does not lag by %s", i+1, lag)
			}
			wantStale(t, n.stale(), "")
		}
		time.Sleep(4 * time.Second)
		wantStale(t, n.stale(), "ordered time")
		slow = slow.Add(consensus.TickInterval)
		c.tick()
		wantStale(t, n.stale(), "")
		time.Sleep(3*time.Second + 1)
		wantStale(t, n.stale(), "ordered time")
		n.completed(n.began())
		wantStale(t, n.stale(), "")
	})
}

// T2: a Credential that has expired stays so, wherever a host sets the clock, whether the node
// is fresh or not; and one that has not is no worse for it.
func TestExpiredCredentialIsNotRevived(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		n, other := c.nodes[0], c.nodes[1]
		off := time.Duration(0)
		n.wall = func() time.Time { return time.Now().Add(off) }
		verdict := func() attest.Code {
			if _, why := (judge{n}).Credential(other.self, other.credential()); why != nil {
				return why.Code
			}
			return ""
		}
		for _, off = range []time.Duration{0, 48 * time.Hour, -48 * time.Hour} {
			if code := verdict(); code != "" {
				t.Errorf("with the clock off by %s a good Credential is refused: %s", off, code)
			}
		}
		time.Sleep(61 * time.Minute) // they live an hour
		off = 0
		c.tick()
		for what, fresh := range map[string]bool{"after a gap": false, "fresh": true} {
			if fresh {
				n.completed(n.began())
			}
			for _, off = range []time.Duration{0, -2 * time.Hour, -48 * time.Hour} {
				if code := verdict(); code != attest.CodeCredentialExpired {
					t.Errorf("%s, with the clock off by %s, an expired Credential: %q", what, off, code)
				}
			}
		}
	})
}
