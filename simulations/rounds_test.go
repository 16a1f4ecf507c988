package simulations

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/node"
)

// someData is enough to train on: two classes that a line parts.
func someData(name string) *node.TrainingData {
	d := &data.Dataset{Source: name, Features: 2}
	for i := range 16 {
		x := float64(i%2)*2 - 1
		d.X = append(d.X, x, float64(i)/16)
		d.Labels = append(d.Labels, []string{"a", "b"}[i%2])
	}
	return &node.TrainingData{Train: d}
}

// job submits a job of two rounds, signed by all organisations, and returns its id.
func (a *actor) job(at string, change func(*federated.Spec)) federated.JobID {
	a.Helper()
	spec := federated.DefaultSpec()
	spec.Name, spec.Features, spec.Labels, spec.Rounds, spec.Train.Epochs = "rounds", 2, []string{"a", "b"}, 2, 1
	change(&spec)
	env, err := federated.NewJob(a.p.world.genesis.MeshID(), spec)
	if err != nil {
		a.Fatal(err)
	}
	for _, o := range a.p.world.genesis.Organisations {
		s, err := envelope.NewSigner(key(string(o.ID), consensus.KeyGovern))
		if err != nil {
			a.Fatal(err)
		}
		if err := env.Sign(s); err != nil {
			a.Fatal(err)
		}
	}
	out, err := a.host(at).submit(a.Context(), "/v1/jobs", env.Marshal())
	if err != nil {
		a.Fatal(err)
	}
	return federated.JobID(out.ID)
}

func (a *actor) jobStatus(at string, id federated.JobID) node.JobStatus {
	a.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), statusWithin)
	defer cancel()
	var s node.JobStatus
	if err := a.host(at).call(ctx, http.MethodGet, "/v1/jobs/"+string(id), nil, &s); err != nil && !strings.Contains(err.Error(), "no job") {
		a.Fatal(err)
	}
	return s // zero where it was not heard of yet
}

// holding keeps one node's updates back while it is set, so that a round stays open.
func holding(name string, hold *atomic.Bool) func(*world) {
	return func(w *world) {
		w.training = someData
		w.judge = func(h *host, j mesh.Judge) mesh.Judge {
			return opinion{j, func(_ *mesh.Session, p mesh.Protocol, answer *attest.Reason) *attest.Reason {
				if h.name == name && hold.Load() && strings.HasSuffix(string(p), "/round/1") {
					r := attest.NewReason(attest.CodeBusy, "round", "the test says no", "")
					return &r
				}
				return answer
			}}
		}
	}
}

// trainers are a mesh of three seats, which aggregate, and four members that train, one of
// them by a release that goes.
const trainers = `
mesh alpha beta gamma
allow new old
start alpha/n1 new seat aggregator
start beta/n1 new seat aggregator
start gamma/n1 new seat aggregator
expect phase member of rest
start alpha/n2 new trainer
start beta/n2 old trainer
start gamma/n2 new trainer
start gamma/n3 new trainer
expect phase member of rest
expect linked rest
expect proof proven of rest at rest
`

// F4: a trainer is put out while a round is open and its update is delivered. The update does
// not count from then on; the round goes on without it and says whom it left out.
func TestRevokedTrainerDoesNotCount(t *testing.T) {
	var hold atomic.Bool
	hold.Store(true)
	stage(t, trainers, holding("gamma/n3", &hold), func(a *actor) {
		id := a.job("alpha/n1", func(*federated.Spec) {})
		a.eventually("a round is open and beta/n2 has delivered", func() bool {
			s := a.jobStatus("beta/n2", id)
			return s.Phase != "" && slices.Contains(s.Participants, "beta/n2") && len(s.Trainings) > 0
		})
		a.do("wait 500ms\n")
		if s := a.jobStatus("alpha/n1", id); len(s.Committed) != 0 {
			a.Fatalf("the round ended by itself: %+v", s.Committed)
		}
		a.do("propose remove old signed alpha beta at gamma/n1\n")
		hold.Store(false)
		a.eventually("the job ends", func() bool { return a.jobStatus("alpha/n1", id).State == "done" })
		s := a.jobStatus("alpha/n1", id)
		if len(s.Committed) != 3 { // the statistics round and two more
			a.Fatalf("%d rounds", len(s.Committed))
		}
		for _, r := range s.Committed {
			if slices.Contains(r.Participants, "beta/n2") {
				a.Errorf("round %d counts the update of a revoked trainer: %v", r.Round, r.Participants)
			}
			if len(r.Participants) < 2 {
				a.Errorf("round %d went on with %v", r.Round, r.Participants)
			}
		}
	})
}

// Where too few are left the round does not end with fewer: the job says what it waits for,
// and goes on when there are enough again.
func TestRoundWithoutEnoughTrainersSaysSo(t *testing.T) {
	var hold atomic.Bool
	hold.Store(true)
	stage(t, trainers, holding("gamma/n3", &hold), func(a *actor) {
		id := a.job("alpha/n1", func(s *federated.Spec) { s.MinParticipants = 4 })
		a.eventually("a round is open", func() bool { return len(a.jobStatus("alpha/n2", id).Trainings) > 0 })
		a.do("propose remove old signed alpha beta at gamma/n1\n")
		began := time.Now()
		a.eventually("the job says what it waits for", func() bool {
			for _, at := range []string{"alpha/n1", "beta/n1", "gamma/n1"} {
				if strings.Contains(a.jobStatus(at, id).WaitingFor, string(attest.CodeBelowMinimum)) {
					return true
				}
			}
			return false
		})
		if took := time.Since(began); took > 5*time.Second {
			a.Errorf("it took %s", took)
		}
		hold.Store(false)
		a.do("start beta/n3 new trainer\nexpect phase member of beta/n3\n")
		a.eventually("the job ends", func() bool { return a.jobStatus("alpha/n1", id).State == "done" })
		for _, r := range a.jobStatus("alpha/n1", id).Committed {
			if got := fmt.Sprint(r.Participants); len(r.Participants) != 4 || strings.Contains(got, "beta/n2") {
				a.Errorf("round %d was made of %s", r.Round, got)
			}
		}
	})
}
