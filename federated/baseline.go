package federated

import (
	"fmt"

	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/identity"
)

// baselineJob stands in for the job id where there is no job: it seeds training.
const baselineJob JobID = "0000000000000000"

// Federate runs a whole job in this process, one participant for each part, with the same
// Participate and Combine that nodes use. after is called with every round's model.
func Federate(spec Spec, parts []*data.Dataset, after func(round uint32, model []byte) error) error {
	var base []byte
	for round := range uint32(spec.Rounds + 1) {
		var in []Contribution
		for i, p := range parts {
			node := identity.NodeRef{Org: "baseline", Name: identity.NodeName(fmt.Sprintf("n%d", i+1))}
			w, err := spec.Participate(baselineJob, round, node, base, p)
			if err != nil {
				return err
			}
			in = append(in, Contribution{node, w.Examples, w.Update})
		}
		model, err := spec.Combine(round, base, in)
		if err != nil {
			return err
		}
		if err := after(round, model); err != nil {
			return err
		}
		base = model
	}
	return nil
}

// FederatedAccuracy returns the held-out accuracy after each training round of Federate.
func FederatedAccuracy(spec Spec, parts []*data.Dataset, holdout *data.Dataset) ([]float64, error) {
	var out []float64
	err := Federate(spec, parts, func(round uint32, model []byte) error {
		if round == 0 {
			return nil
		}
		a, err := spec.Evaluate(model, holdout)
		out = append(out, a)
		return err
	})
	return out, err
}

// LocalAccuracy returns the held-out accuracy that each part reaches alone, with its own
// standardisation and as many epochs as the federated job trains in all its rounds.
func LocalAccuracy(spec Spec, parts []*data.Dataset, holdout *data.Dataset) ([]float64, error) {
	alone := spec
	alone.Rounds, alone.Train.Epochs = 1, spec.Rounds*spec.Train.Epochs
	out := make([]float64, len(parts))
	for i, p := range parts {
		accuracy, err := FederatedAccuracy(alone, []*data.Dataset{p}, holdout)
		if err != nil {
			return nil, err
		}
		out[i] = accuracy[0]
	}
	return out, nil
}
