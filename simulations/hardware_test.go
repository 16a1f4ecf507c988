package simulations

import (
	"context"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
)

// machines is a judge that believes to know the machines of some nodes.
type machines struct {
	mesh.Judge
	of map[string]string
}

func (m machines) Appraise(ctx context.Context, s mesh.Subject, ev attest.Evidence, data attest.ReportData) (attest.Claims, attest.Result) {
	c, r := m.Judge.Appraise(ctx, s, ev, data)
	c.HardwareID = m.of[s.Node.String()]
	return c, r
}

// Two organisations' nodes are on one machine (A11): whoever is linked to both says so, nobody
// is refused for it, and when one of them has gone nothing is said any more.
func TestSharedHardwareIsReportedNotRefused(t *testing.T) {
	chip := strings.Repeat("c4", 64)
	prepare := func(w *world) {
		w.judge = func(_ *host, j mesh.Judge) mesh.Judge {
			return machines{j, map[string]string{"alpha/n1": chip, "beta/n1": chip, "gamma/n1": strings.Repeat("d5", 64)}}
		}
	}
	stage(t, three+"expect linked rest\n", prepare, func(a *actor) {
		warned := func(name string) bool {
			for _, w := range a.status(name).Warnings {
				if strings.Contains(w, "alpha/n1 and beta/n1 show the same hardware") && !strings.Contains(w, chip[:16]) {
					return true
				}
			}
			return false
		}
		a.eventually("gamma sees one machine", func() bool { return warned("gamma/n1") })
		if warned("alpha/n1") || warned("beta/n1") {
			a.Error("a node that is linked to one of them reports both")
		}
		for _, p := range a.peersOf("gamma/n1") {
			if (p.SharedHardware != "") != (p.Node != "gamma/n1") || p.Reason != nil || strings.Contains(chip, p.SharedHardware) {
				a.Errorf("%+v", p)
			}
		}
		a.do("stop beta/n1\n")
		a.eventually("nothing is shared any more", func() bool { return !warned("gamma/n1") })
	})
}
