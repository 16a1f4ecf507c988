package simulations

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/node"
)

// dryRun asks a node what a proposal would do of which it is shown no signature.
func (a *actor) dryRun(at string, signed []byte) node.DryRun {
	a.Helper()
	env, err := envelope.Parse(signed)
	if err != nil {
		a.Fatal(err)
	}
	env.Signatures = nil
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	var out node.DryRun
	if err := a.host(at).call(ctx, http.MethodPost, "/v1/dry-run", env.Marshal(), &out); err != nil {
		a.Fatal(err)
	}
	return out
}

func (a *actor) signed(name string, base uint64, actions ...consensus.Action) []byte {
	a.Helper()
	raw, err := a.p.world.proposal(name, base, []string{"alpha", "beta", "gamma", "delta"}, actions...)
	if err != nil {
		a.Fatal(err)
	}
	return raw
}

func (a *actor) propose(at string, raw []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	_, err := a.host(at).propose(ctx, raw)
	return err
}

func goers(all []consensus.Departure, later bool) (out []string) {
	for _, d := range all {
		if d.At.IsZero() != later {
			out = append(out, d.Node.String())
		}
	}
	return out
}

// What a node says of a change before it is made is what five organisations that train then
// see: who goes at once and at its end, whether rounds go on, and what would stop the mesh.
func TestDryRunAgainstReality(t *testing.T) {
	stage(t, `
		mesh alpha beta gamma delta epsilon
		allow v1 v2
		start alpha/n1 v1 seat trainer aggregator
		start beta/n1 v1 seat trainer aggregator
		start gamma/n1 v1 seat trainer aggregator
		start delta/n1 v1 seat trainer aggregator
		start epsilon/n1 v1 seat trainer aggregator
		start beta/n2 v2 trainer
		expect phase member of rest
	`, nil, func(a *actor) {
		job, err := a.p.startJob("alpha/n1", 60, 4, []string{"alpha", "beta", "gamma", "delta", "epsilon"})
		if err != nil {
			a.Fatal(err)
		}
		committed := func() int {
			s, err := a.host("gamma/n1").job(job)
			if err != nil {
				return -1
			}
			return len(s.Committed)
		}
		a.eventually("the first round", func() bool { return committed() >= 1 })

		// All seats at once: refused, and nothing happens.
		all := a.signed("all", 0, remove("v1"))
		p := a.dryRun("gamma/n1", all)
		if p.Refused == nil || p.Refused.Code != attest.CodeQuorumLoss || p.Seats.Survives || p.Seats.After != 0 || len(goers(p.Departures, false)) != 5 ||
			len(p.Rounds) != 1 || p.Rounds[0].Fate != federated.FateWaits {
			a.Errorf("all seats: %+v", p)
		}
		if err := a.propose("delta/n1", all); err == nil {
			a.Error("a proposal was ordered that its dry run refused")
		}
		a.do("expect phase member of rest")

		// A release with an end: dry-run after it is let in tells when who runs it goes.
		brief, err := entryOf("v3")
		if err != nil {
			a.Fatal(err)
		}
		end := time.Now().Add(90 * time.Second).UTC().Truncate(time.Second)
		brief.ID, brief.NotAfter = "", end
		if brief, err = consensus.NewEntry(brief); err != nil {
			a.Fatal(err)
		}
		letIn := a.signed("brief", 0, consensus.Action{AddEntry: &consensus.AddEntry{Entry: brief}})
		if p = a.dryRun("beta/n1", letIn); p.Refused != nil || p.Class != consensus.ClassWiden || len(p.Departures) != 0 || p.Signatures.Missing != 4 || p.Base != 1 {
			a.Errorf("letting in: %+v", p)
		}
		if err := a.propose("alpha/n1", letIn); err != nil {
			a.Fatal(err)
		}
		a.do("start delta/n2 v3 trainer\nexpect phase member of delta/n2\nexpect linked rest")

		// One that trains goes at once, another at its end, with or without this.
		one := a.signed("one", 1, remove("v2"))
		p = a.dryRun("epsilon/n1", one)
		if p.Refused != nil || !slices.Equal(goers(p.Departures, false), []string{"beta/n2"}) || !slices.Equal(goers(p.Departures, true), []string{"delta/n2"}) ||
			!p.Seats.Survives || p.Seats.After != 5 || len(p.Refuses) != 1 || p.Refuses[0].Node != "beta/n2" || p.Refuses[0].Reason.Code != attest.CodeRevoked {
			a.Fatalf("one: %+v", p)
		}
		if d := p.Departures[1]; !d.At.Equal(end) || !d.Anyway || d.Code != attest.CodeExpired || d.Seat {
			a.Errorf("the end of v3: %+v", d)
		}
		if len(p.Rounds) != 1 || p.Rounds[0].Fate == federated.FateWaits {
			a.Errorf("rounds: %+v", p.Rounds)
		}
		before := committed()
		if err := a.propose("gamma/n1", one); err != nil {
			a.Fatal(err)
		}
		a.do("expect phase refused code revoked of beta/n2\nexpect phase member of alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 delta/n2")
		a.eventually("rounds after it", func() bool { return committed() > before+1 })
		if now := time.Now(); now.After(end) {
			a.Fatalf("it is %s, too late to see v3 end at %s", now, end)
		}
		for time.Now().Before(end) {
			if n := a.status("alpha/n1"); slices.ContainsFunc(n.Closed, func(c node.Closing) bool { return c.Node == "delta/n2" }) {
				a.Fatalf("delta/n2 went before %s", end)
			}
			time.Sleep(pollEvery)
		}
		a.do("expect phase refused code expired of delta/n2\nexpect phase member of alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1")
		a.do("expect voters alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 at alpha/n1 gamma/n1")
	})
}
