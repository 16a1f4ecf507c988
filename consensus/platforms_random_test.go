package consensus

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// randomNarrow and randomWiden are actions over a small world, so that they meet.
func randomNarrow(rng *rand.Rand, entries []Entry) Action {
	names := []string{"a", "b", "c", "d"}
	scope := alphas
	if rng.IntN(3) == 0 && len(entries) > 0 {
		scope = HardwareScope{Entry: entries[rng.IntN(len(entries))].ID}
	}
	some := func() []string {
		rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		return names[:1+rng.IntN(3)]
	}
	var from time.Time
	if rng.IntN(3) == 0 {
		from = start.Add(time.Duration(rng.IntN(5)) * time.Hour)
	}
	switch rng.IntN(6) {
	case 0:
		f := attest.Floor{Product: "Milan", SEVSNP: &attest.TCB{BootLoader: uint8(rng.IntN(4)), SNP: 1 + uint8(rng.IntN(9)), Microcode: uint8(rng.IntN(3))}, From: from}
		return Action{RaiseFloor: &RaiseFloor{f}}
	case 1:
		d := attest.TDXDemand{MinimumTCBEvaluation: 16 + rng.IntN(4)}
		if rng.IntN(2) == 0 {
			d.TCBStatuses = []string{"UpToDate"}
		}
		return Action{RaiseFloor: &RaiseFloor{attest.Floor{TDX: &d, From: from}}}
	case 2:
		return deny([]attest.Product{{Line: "Genoa"}, {CPUID: &attest.CPUID{Family: 0x19, Model: 1, Stepping: uint8(rng.IntN(3))}}, {FMSPC: fmt.Sprintf("00806f05000%d", rng.IntN(3))}}[rng.IntN(3)])
	case 3:
		return limit(scope, some()...)
	case 4:
		return removeChips(scope, some()...)
	}
	if len(entries) == 0 {
		return removeChips(scope, some()...)
	}
	return Action{RemoveEntry: &RemoveEntry{ID: entries[rng.IntN(len(entries))].ID}}
}

func randomWiden(rng *rand.Rand, t testing.TB, s *PolicyState) Action {
	denied, entries := s.Denied(), s.Entries()
	switch rng.IntN(5) {
	case 0:
		if len(denied) > 0 {
			return allow(denied[rng.IntN(len(denied))])
		}
	case 1:
		a := addChips(alphas, []string{"a", "b", "c", "d"}[rng.IntN(4)])
		a.AddHardware.Readmit = true
		return a
	case 2:
		return Action{UnlimitHardware: &UnlimitHardware{alphas}}
	}
	kind, name := attest.KindSEVSNP, "snp"
	if rng.IntN(2) == 0 {
		kind, name = attest.KindTDX, "td"
	}
	e := hardEntry(t, kind, name, func(e *Entry) {
		if kind == attest.KindSEVSNP && rng.IntN(2) == 0 {
			e.MinimumTCB = map[string]attest.TCB{"Milan": {SNP: uint8(rng.IntN(10))}}
		}
		if kind == attest.KindTDX && rng.IntN(2) == 0 {
			e.TDX = &attest.TDXDemand{TCBStatuses: []string{"OutOfDate", "SWHardeningNeeded", "UpToDate"}[rng.IntN(3):]}
		}
		e.NotAfter = start.Add(time.Duration(1+rng.IntN(1000)) * time.Hour)
		if rng.IntN(2) == 0 && len(entries) > 0 {
			e.Supersedes, e.SupersedeAt = []string{entries[rng.IntN(len(entries))].ID}, start.Add(time.Duration(rng.IntN(6))*time.Hour)
		}
	})
	return Action{AddEntry: &AddEntry{Entry: e, Readmit: true}}
}

// randomClaims is a world of attesters around the thresholds of the actions above. Some run
// with a debugger: nothing that anybody proposes may let them in.
func randomClaims(rng *rand.Rand, n int) (out []attest.Claims) {
	for range n {
		if rng.IntN(3) == 0 {
			out = append(out, tdxClaims(func(d *attest.TDXClaims) {
				d.TCBStatus = []string{"UpToDate", "SWHardeningNeeded", "OutOfDate", "Revoked", ""}[rng.IntN(5)]
				d.TCBEvaluation, d.QEEvaluation = 16+rng.IntN(4), 16+rng.IntN(4)
				d.FMSPC = fmt.Sprintf("00806f05000%d", rng.IntN(4))
				if rng.IntN(5) == 0 {
					d.Debug, d.TDAttributes = true, "0100001000000000"
				}
			}))
			continue
		}
		out = append(out, snpClaims(func(c *attest.Claims) {
			c.Hardware = []string{"", chip("a"), chip("b"), chip("c"), chip("d"), chip("e")}[rng.IntN(6)]
			s := c.SEVSNP
			s.Debug = rng.IntN(5) == 0
			s.CPUID.Stepping = uint8(rng.IntN(4))
			if rng.IntN(4) == 0 {
				s.CPUID = nil
			}
			if rng.IntN(4) == 0 {
				s.Product = "Genoa"
			}
			for _, tcb := range []*attest.TCB{&s.ReportedTCB, &s.CommittedTCB, &s.LaunchTCB} {
				*tcb = attest.TCB{BootLoader: uint8(rng.IntN(5)), SNP: uint8(rng.IntN(11)), Microcode: uint8(rng.IntN(4))}
			}
		}))
	}
	return out
}

// The class of a proposal is never lower than the truth: what is allowed after a narrow one,
// of whatever claims and at whatever time, was allowed before it. And no proposal at all lets
// a guest in that its host may debug.
func TestNarrowIsSubset(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 1))
	var narrowed, widened, affirmed int
	for range 40 {
		m := hardware(t, 3)
		s := m.s.PolicyState
		for range 12 {
			p := m.propose()
			for range 1 + rng.IntN(3) {
				if rng.IntN(2) == 0 {
					p.Actions = append(p.Actions, randomNarrow(rng, append(s.Entries(), s.Revoked()...)))
				} else {
					p.Actions = append(p.Actions, randomWiden(rng, t, s))
				}
			}
			m.payload(p) // well-formed
			next, err := s.after(p)
			if err != nil {
				continue
			}
			class := widest(p.Class(), classify(s, next))
			for _, e := range append(next.Entries(), next.Revoked()...) {
				at := start.Add(time.Duration(rng.IntN(7)) * time.Hour)
				run := measured{e.Kind, e.Measurement, e.ID}
				if class == ClassNarrow && next.allows(run, allRoles, at) == "" && s.allows(run, allRoles, at) != "" {
					t.Fatalf("narrow, but the state allows %+v only after:\n%s", run, strings.Join(p.Describe(), "\n"))
				}
			}
			for _, c := range randomClaims(rng, 40) {
				of := identity.NodeRef{Org: []identity.OrgID{"alpha", "beta"}[rng.IntN(2)], Name: "n1"}
				at := start.Add(time.Duration(rng.IntN(7)) * time.Hour)
				before, after := attest.Appraise(c, s.AttestPolicy(of, allRoles...), at), attest.Appraise(c, next.AttestPolicy(of, allRoles...), at)
				if after.Affirming() && (c.SEVSNP != nil && c.SEVSNP.Debug || c.TDX != nil && (c.TDX.Debug || c.TDX.TCBStatus == "Revoked")) {
					t.Fatalf("%v let in %+v", p.Describe(), c)
				}
				switch {
				case after.Affirming() && !before.Affirming():
					widened++
					if class == ClassNarrow {
						t.Fatalf("narrow, but it lets in what was %s %v before:\n%s\n%+v", before.Verdict, before.Reasons, strings.Join(p.Describe(), "\n"), c)
					}
				case before.Affirming() && !after.Affirming():
					narrowed++
				case after.Affirming():
					affirmed++
				}
			}
			s = next
		}
	}
	if narrowed < 100 || widened < 100 || affirmed < 100 {
		t.Errorf("%d narrowed, %d widened, %d stayed: the worlds do not meet", narrowed, widened, affirmed)
	}
}

// Narrowings commute: whatever their order, the same is demanded and allowed.
func TestPlatformNarrowingsCommute(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 1))
	for round := range 30 {
		a, b := hardware(t, 3), hardware(t, 3)
		entries := a.s.Entries()
		var cuts []*Proposal
		for i := range 8 {
			p := a.propose(func(p *Proposal) { p.Nonce, p.ConfirmQuorumLoss = fmt.Sprintf("%032x", i), true })
			for range 1 + rng.IntN(3) {
				p.Actions = append(p.Actions, randomNarrow(rng, entries))
			}
			p.Actions = append(p.Actions, deny(attest.Product{FMSPC: fmt.Sprintf("ffffffffff%02x", i)})) // each does something
			cuts = append(cuts, p)
		}
		for _, p := range cuts {
			if out := a.ok(a.order(p, 2)); out.Proposal.Class != ClassNarrow {
				t.Fatalf("class %s", out.Proposal.Class)
			}
		}
		for _, i := range rng.Perm(len(cuts)) {
			b.ok(b.order(cuts[i], 2))
		}
		if x, y := a.s.platforms.image(), b.s.platforms.image(); !reflect.DeepEqual(x, y) {
			t.Fatalf("round %d: two orders differ:\n%+v\n%+v", round, x, y)
		}
		if !reflect.DeepEqual(a.s.AttestPolicy(alphaNode, RoleSeat), b.s.AttestPolicy(alphaNode, RoleSeat)) || a.s.Epoch() != b.s.Epoch() || a.s.Base() != b.s.Base() {
			t.Fatalf("round %d: two orders of the same narrowings give other policies", round)
		}
	}
}
