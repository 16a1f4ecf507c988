package replica

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

// A follower that was cut off for long executes what it missed as soon as it can be reached:
// raft alone would let it wait for ten seconds while it hears heartbeats.
func TestHealedFollowerCatchesUpAtOnce(t *testing.T) {
	for name, part := range map[string]func(c *cluster, lost int) (back func()){
		"silent": func(c *cluster, lost int) func() {
			c.net.split([]identity.PeerID{c.ids[lost]}, without(c.ids, c.ids[lost]))
			return c.net.heal
		},
		"unreachable": func(c *cluster, lost int) func() {
			c.net.kill(c.ids[lost])
			return func() {
				c.net.update(func() { c.net.serve[c.ids[lost]] = c.replicas[lost].Serve })
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 3, 0, func(t *testing.T, c *cluster) {
				lost := (slices.Index(c.replicas, c.leader()) + 1) % len(c.ids)
				back := part(c, lost)
				last := ""
				for i := range 120 {
					last = fmt.Sprint(i)
					c.commit("k="+last, c.replicas[lost])
					<-time.After(time.Second)
				}
				back()
				start := time.Now()
				eventually(t, "the follower executes the last command", func() bool { return c.machines[lost].get("k") == last })
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("caught up %s after it could be reached again", took)
				}
			})
		})
	}
}
