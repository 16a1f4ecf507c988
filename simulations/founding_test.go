package simulations

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
)

// Every founder, the coordinator among them, is rebooted between its enroller's signature and
// the start, in a random order: each time the ceremony begins anew with a higher attempt,
// signed by all, and the boots that it names in the end are the newest ones.
func TestFoundersRebootBeforeStart(t *testing.T) {
	text := strings.Replace(five, "expect phase member of rest\n", "", 1)
	order := []identity.OrgID{"alpha", "beta", "gamma", "delta", "epsilon"}
	rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	t.Logf("rebooted in the order %v", order)
	var mu sync.Mutex
	next, last := 0, uint32(0)   // last is the newest attempt in which a founder died
	var dies chan identity.OrgID // made in the bubble, so that waiting for it lets time pass
	prepare := func(w *world) {
		dies = make(chan identity.OrgID, 1)
		for _, e := range w.enrollers {
			e.signed = func(ctx context.Context, org identity.OrgID, attempt uint32) {
				mu.Lock()
				due := next < len(order) && order[next] == org
				if due {
					next, last = next+1, max(last, attempt)
				}
				mu.Unlock()
				if due {
					dies <- org
					<-ctx.Done() // its seat is gone
				}
			}
		}
	}
	stage(t, text, prepare, func(a *actor) {
		w := a.p.world
		for range order {
			name := string(<-dies) + "/n1"
			if err := a.host(name).stop(); err != nil {
				a.Fatal(err)
			}
			if err := w.reboot(name, "new", []string{"seat"}); err != nil {
				a.Fatal(err)
			}
		}
		a.do("expect phase member of alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1")
		h := a.host("gamma/n1")
		doc, err := node.NewHTTPDirectory(w.client(h.machine).Transport).Policy(context.Background(), "http://"+h.ip+":80")
		if err != nil {
			a.Fatal(err)
		}
		p, err := consensus.ReplayPolicy(w.genesis, doc.Chain)
		if err != nil {
			a.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if b := p.Bootstrap(); b.Attempt <= last || last < 2 {
			a.Errorf("started under attempt %d; a founder that had signed attempt %d was gone", b.Attempt, last)
		}
		var running []string
		for _, name := range []string{"alpha/n1", "beta/n1", "gamma/n1", "delta/n1", "epsilon/n1"} {
			s, err := a.host(name).status()
			if err != nil {
				a.Fatal(err)
			}
			running = append(running, s.Peer)
		}
		for _, seat := range p.Bootstrap().Seats() {
			if !slices.Contains(running, seat.Peer.String()) {
				a.Errorf("Bootstrap names %s of %s, which is an older boot", seat.Peer, seat.Ref())
			}
		}
	})
}
