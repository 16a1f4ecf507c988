package simulations

import (
	"slices"
	"testing"

	"github.com/attestmesh/meshnode/node"
)

// A verdict lets its peer in at once and is pending; under the cosignatures of three of five it is
// published, which admits, and not strong; when the two others are back they cosign what is there, and
// nothing new has to be logged for that.
func TestLevels(t *testing.T) {
	stage(t, five, nil, func(a *actor) {
		level := func(name string) (string, int) {
			p := a.status(name).Log.Published
			return p.Level, len(p.Cosigners)
		}
		whole := func(name, want string) func() bool {
			return func() bool {
				s := a.status(name)
				return s.Log.Published.Size == s.Log.Size && s.Log.Published.Level == want
			}
		}
		a.eventually("a strong checkpoint of five", whole("alpha/n1", "strong"))
		a.do("silence delta/n1 epsilon/n1 | rest\nexpect leader among alpha/n1 beta/n1 gamma/n1 within 15s\nstart alpha/n2 new\n")
		peer := func() (proof node.Proof) {
			peers := a.status("beta/n1").Peers
			if i := slices.IndexFunc(peers, func(p node.PeerStatus) bool { return p.Node == "alpha/n2" }); i >= 0 {
				proof = peers[i].Proof
			}
			return proof
		}
		a.eventually("a verdict on the newcomer", func() bool { return peer() != "" })
		if got := peer(); got != node.ProofPending {
			t.Errorf("a verdict is %q before any checkpoint covers it", got)
		}
		a.do("expect proof proven of alpha/n2 at alpha/n1 beta/n1 gamma/n1 within 10s\nexpect phase member of alpha/n2 within 15s\n")
		a.eventually("a published checkpoint of three", whole("alpha/n1", "published"))
		if got, n := level("alpha/n1"); got != "published" || n != 3 {
			t.Errorf("%s by %d of five", got, n)
		}
		a.do("heal\n")
		a.eventually("that the others' cosignatures make it strong", whole("alpha/n1", "strong"))
		a.do("expect phase member of rest\nexpect proof proven of rest at rest within 15s\nexpect published rest\n")
	})
}
