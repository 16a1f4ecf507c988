package mesh

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// countingScheme counts verifications: nothing else of a node looks at a vendor's
// signature, and its own quotes are counted by its attester.
type countingScheme struct {
	attest.Scheme
	verified atomic.Int64
}

func (s *countingScheme) Verify(ctx context.Context, ev attest.Evidence, data *attest.ReportData, at time.Time) (attest.Claims, error) {
	s.verified.Add(1)
	return s.Scheme.Verify(ctx, ev, data, at)
}

// teeNode is a node under test on a machine of a fake vendor's.
type teeNode struct {
	*node
	scheme   *countingScheme
	attester *attesttest.Attester
}

func (w *world) teeNode(name string, v vendor, change func(*meshtest.Node, *Config)) *teeNode {
	out := &teeNode{}
	out.node = w.node(name, func(n *meshtest.Node, cfg *Config) {
		judge, attester := onTEE(w.t, v, n, cfg)
		out.scheme = &countingScheme{Scheme: judge.scheme}
		judge.scheme, out.attester = out.scheme, attester
		if change != nil {
			change(n, cfg)
		}
	})
	return out
}

// spent returns what strangers have cost n: verifications of evidence and quotes.
func (n *teeNode) spent() [2]int64 {
	return [2]int64{n.scheme.verified.Load(), int64(n.attester.Calls())}
}

// teeVendors are one of each kind.
func teeVendors() map[string]vendor {
	return map[string]vendor{
		"sevsnp": attesttest.NewSEVSNP(sevsnp.Milan, 3), "genoa": attesttest.NewSEVSNP(sevsnp.Genoa, 2), "tdx": attesttest.NewTDX("mesh"),
	}
}

// Two nodes on TEEs of a kind admit each other, at the price of one verification and one
// quote each.
func TestTEEPeers(t *testing.T) {
	for name, v := range teeVendors() {
		t.Run(name, func(t *testing.T) {
			w := newLibp2pWorld(t)
			a, b := w.teeNode("alpha/n1", v, nil), w.teeNode("beta/n1", v, nil)
			l := w.dial(a.node, b.node)
			if c := l.Session().Claims; !c.Genuine || !c.Bound || c.Measurement != attesttest.Measurement("release 1") {
				t.Errorf("claims %+v", c)
			}
			w.linkTo(b.node, a.node)
			if a.spent() != [2]int64{1, 1} || b.spent() != [2]int64{1, 1} {
				t.Errorf("spent %v and %v, want a verification and a quote each", a.spent(), b.spent())
			}
		})
	}
}

// A genuine image on a genuine machine, with the right measurement and without a Credential
// of an organisation of this mesh: whoever dials, it is refused before a vendor's signature is
// looked at (0 of SEV-SNP's P-384 operations) and before a quote is made for it.
func TestGenuineImageOfNoMember(t *testing.T) {
	for name, v := range teeVendors() {
		for what, credential := range map[string]func(*world, *meshtest.Node) []byte{
			"none": func(*world, *meshtest.Node) []byte { return nil },
			"of another organisation": func(w *world, n *meshtest.Node) []byte {
				return meshtest.NewRoot().Credential(w.meshID, n.Peer, "alpha/n1")
			},
			"of another peer": func(w *world, n *meshtest.Node) []byte {
				return w.root.Credential(w.meshID, w.root.NewPeer(), "alpha/n1")
			},
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				w := newLibp2pWorld(t)
				victim := w.teeNode("beta/n1", v, nil)
				stranger := w.teeNode("alpha/n1", v, func(n *meshtest.Node, cfg *Config) {
					raw := credential(w, n)
					cfg.Credential = func() []byte { return raw }
				})
				_, err := stranger.Dial(testContext(t), victim.Self(), victim.Addrs())
				wantRefusal(t, err, true, attest.CodeNoCredential)
				_, err = victim.Dial(testContext(t), stranger.Self(), stranger.Addrs())
				wantRefusal(t, err, false, attest.CodeNoCredential)
				if victim.spent() != [2]int64{} {
					t.Errorf("the stranger cost %d verifications and %d quotes", victim.scheme.verified.Load(), victim.attester.Calls())
				}
				if stranger.attester.Calls() != 0 {
					t.Errorf("the stranger was let to make %d quotes", stranger.attester.Calls())
				}
				victim.wantNoLink(t)
				stranger.wantNoLink(t)
			})
		}
	}
}

// refusedAs adds up how often n refused with one of codes.
func (n *teeNode) refusedAs(codes []attest.Code) (sum uint64) {
	for _, c := range codes {
		sum += n.Counters()["refused/"+string(c)]
	}
	return sum
}

// Every way in which the evidence of a member can be wrong is refused on a live
// connection, in both roles, with its code, counted, and what was refused does not stick: the
// same machine is let in when it tells the truth.
func TestForgeriesOfMembers(t *testing.T) {
	for name, v := range teeVendors() {
		t.Run(name, func(t *testing.T) {
			w := newLibp2pWorld(t)
			everyTime := func(_ *meshtest.Node, cfg *Config) { cfg.FullBurst = 1 << 10 }
			victim, member := w.teeNode("beta/n1", v, everyTime), w.teeNode("alpha/n1", v, everyTime)
			if _, err := member.attester.Attest(testContext(t), attest.ReportData{}); err != nil { // what Stale repeats
				t.Fatal(err)
			}
			for _, forgery := range member.attester.Forgeries() {
				member.attester.Forge(forgery)
				codes := forgery.Codes()
				if forgery == attesttest.WrongKind { // not that of its HELLO
					codes = []attest.Code{attest.CodeProtocol}
				}
				for remote, dial := range map[bool]func() (Link, error){
					true:  func() (Link, error) { return member.Dial(testContext(t), victim.Self(), victim.Addrs()) },
					false: func() (Link, error) { return victim.Dial(testContext(t), member.Self(), member.Addrs()) },
				} {
					before := victim.refusedAs(codes)
					_, err := dial()
					var r *Refusal
					if !errors.As(err, &r) || r.Remote != remote || !slices.Contains(codes, r.Code()) {
						t.Errorf("%s, the member dials %v: got %v, want one of %v", forgery, remote, err, codes)
					}
					// The member may hear of it before the victim has counted it.
					eventually(t, "a count", func() bool { return victim.refusedAs(codes) > before })
					if n := victim.refusedAs(codes) - before; n != 1 {
						t.Errorf("%s, the member dials %v: counted %d times", forgery, remote, n)
					}
				}
				victim.wantNoLink(t)
				if verdicts, _ := victim.Mesh.(*libp2pMesh).hub.pairs.Len(); verdicts != 0 {
					t.Errorf("%s: %d verdicts kept", forgery, verdicts)
				}
			}
			member.attester.Forge(attesttest.Genuine)
			w.dial(member.node, victim.node)
		})
	}
}
