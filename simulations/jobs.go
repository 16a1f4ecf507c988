package simulations

import (
	"context"
	"net/http"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/node"
)

// examples is what every trainer of a simulation trains on: which of two numbers is larger.
func examples() *data.Dataset {
	d := &data.Dataset{Source: "simulation", Features: 2}
	for i := range 20 {
		a, b := float64(i%5), float64(i*7%5)+0.5
		label := "a"
		if b > a {
			label = "b"
		}
		d.X, d.Labels = append(d.X, a, b), append(d.Labels, label)
	}
	return d
}

// startJob submits a job over examples, signed by organisations, and returns its id. Between
// two rounds interval seconds pass.
func (p *player) startJob(at string, rounds, interval int, orgs []string) (string, error) {
	hosts, err := p.nodes([]string{at})
	if err != nil {
		return "", err
	}
	spec := federated.DefaultSpec()
	spec.Name, spec.Rounds, spec.Features, spec.Labels = "larger", rounds, 2, []string{"a", "b"}
	spec.Model.Hidden, spec.Interval, spec.Deadline = 4, interval, 60
	env, err := federated.NewJob(p.world.genesis.MeshID(), spec)
	if err != nil {
		return "", err
	}
	for _, org := range orgs {
		s, err := envelope.NewSigner(key(org, consensus.KeyGovern))
		if err != nil {
			return "", err
		}
		if err := env.Sign(s); err != nil {
			return "", err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	out, err := hosts[0].submit(ctx, "/v1/jobs", env.Marshal())
	return out.ID, err
}

// job returns a node's view of a job.
func (h *host) job(id string) (node.JobStatus, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statusWithin)
	defer cancel()
	var s node.JobStatus
	return s, h.call(ctx, http.MethodGet, "/v1/jobs/"+id, nil, &s)
}
