package simulations

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/node"
)

// Five organisations move from one release to the next while they train: the new one is allowed
// beside the old, each node is drained, stopped and started on it, takes its seat again, and
// the old release is put out. Every round is committed at its first attempt, by at least the
// four that are there, and nobody is evicted. (Who has just come back may be named in a round
// that begins before it has proved that it is fresh; that goes on without it.)
func TestRollingUpgrade(t *testing.T) {
	long(t)
	orgs := []string{"alpha", "beta", "gamma", "delta", "epsilon"}
	text := "mesh alpha beta gamma delta epsilon\nallow v1\n"
	for _, o := range orgs {
		text += "start " + o + "/n1 v1 seat trainer aggregator\n"
	}
	stage(t, text+"expect phase member of rest\n", nil, func(a *actor) {
		job, err := a.p.startJob("alpha/n1", 24, 2, orgs)
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
		a.eventually("the first rounds", func() bool { return committed() >= 2 })

		old, err := entryOf("v1")
		if err != nil {
			a.Fatal(err)
		}
		next, err := entryOf("v2")
		if err != nil {
			a.Fatal(err)
		}
		next.ID, next.Supersedes = "", []string{old.ID}
		if next, err = consensus.NewEntry(next); err != nil {
			a.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), callWithin)
		defer cancel()
		raw, err := a.p.world.proposal("upgrade", 0, orgs[:4], consensus.Action{AddEntry: &consensus.AddEntry{Entry: next}})
		if err == nil {
			_, err = a.host("beta/n1").propose(ctx, raw)
		}
		if err != nil {
			a.Fatal(err)
		}
		for _, o := range orgs {
			n := o + "/n1"
			a.do(fmt.Sprintf("drain %s\nexpect phase drained of %s\nstop %s\nwait 1s-10s\nreboot %s v2 seat trainer aggregator", n, n, n, n))
			a.do("expect voting rest\nexpect phase member of rest\nexpect voters alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 at rest")
		}
		a.do("propose remove v1 signed alpha beta gamma at delta/n1\nexpect phase member of rest")
		a.eventually("the last round", func() bool { return committed() > 24 })

		s, err := a.host("alpha/n1").job(job)
		if err != nil {
			a.Fatal(err)
		}
		for _, r := range s.Committed {
			if r.Attempt != 1 || len(r.Participants) < 4 {
				a.Errorf("round %d: attempt %d by %v without %v: %s", r.Round, r.Attempt, r.Participants, r.Excluded, r.Cause)
			}
		}
		for _, o := range orgs {
			st := a.status(o + "/n1")
			if st.Measurement != attesttest.Measurement("v2") || st.Phase != node.PhaseMember {
				a.Errorf("%s is %s and runs %.16s", st.Node, st.Phase, st.Measurement)
			}
			for _, c := range st.Closed {
				if c.Code != "retired" {
					a.Errorf("%s closed a link to %s: %s", st.Node, c.Node, c.Code)
				}
			}
		}
		a.do("expect equal rest\nexpect published rest")
	})
}

// What a rolling upgrade without draining costs: rounds that wait for whoever was killed, and
// no seat. The rounds go on, since whoever comes back fetches the newest model.
func TestUpgradeByKilling(t *testing.T) {
	orgs := []string{"alpha", "beta", "gamma"}
	text := "mesh alpha beta gamma\nallow v1 v2\n"
	for _, o := range orgs {
		text += "start " + o + "/n1 v1 seat trainer aggregator\n"
	}
	stage(t, text+"expect phase member of rest\n", nil, func(a *actor) {
		job, err := a.p.startJob("alpha/n1", 6, 2, orgs)
		if err != nil {
			a.Fatal(err)
		}
		for _, o := range orgs {
			n := o + "/n1"
			a.do(fmt.Sprintf("crash %s\nexpect leader among rest\nreboot %s v2 seat trainer aggregator\nexpect voting rest\nexpect phase member of rest\nwait 5s-8s", n, n))
		}
		a.do("propose remove v1 signed alpha beta at gamma/n1\nexpect phase member of rest")
		end := time.Now().Add(5 * time.Minute)
		for {
			s, err := a.host("beta/n1").job(job)
			if err == nil && len(s.Committed) > 6 {
				break
			}
			if time.Now().After(end) {
				for _, o := range orgs {
					st := a.status(o + "/n1")
					j, _ := a.host(o + "/n1").job(job)
					a.Logf("%s %s %v raft %+v warnings %q job %+v", st.Node, st.Phase, st.PhaseReason, st.Raft, st.Warnings, j)
				}
				a.Fatalf("%d rounds: %v", len(s.Committed), err)
			}
			time.Sleep(pollEvery)
		}
		a.do("expect equal rest")
	})
}

// All nodes are replaced between two rounds: the model that only the old ones had has come to
// the new ones by then.
func TestModelOutlivesNodes(t *testing.T) {
	orgs := []string{"alpha", "beta", "gamma"}
	text := "mesh alpha beta gamma\nallow v1\n"
	for _, o := range orgs {
		text += "start " + o + "/n1 v1 seat trainer aggregator\n"
	}
	stage(t, text+"expect phase member of rest\n", nil, func(a *actor) {
		job, err := a.p.startJob("alpha/n1", 2, 120, orgs)
		if err != nil {
			a.Fatal(err)
		}
		committed := func(want int) func() bool {
			return func() bool {
				s, err := a.host("beta/n1").job(job)
				return err == nil && len(s.Committed) == want
			}
		}
		a.eventually("round 0", committed(1))
		a.do("wait 100s")
		a.eventually("round 1", committed(2))
		for _, o := range orgs {
			n := o + "/n1"
			a.do(fmt.Sprintf("drain %s\nstop %s\nreboot %s v1 seat trainer aggregator\nexpect voting rest\nexpect phase member of rest\nwait 5s", n, n, n))
		}
		a.do("wait 110s")
		a.eventually("round 2", committed(3))
		if s, err := a.host("alpha/n1").job(job); err != nil || s.Committed[2].Attempt != 1 {
			a.Errorf("%v: %+v", err, s.Committed)
		}
	})
}
