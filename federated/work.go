package federated

import (
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/aggregate"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/federated/mlp"
	"github.com/attestmesh/meshnode/federated/safetensors"
	"github.com/attestmesh/meshnode/internal/identity"
)

// RuleStatistics is the rule of round 0: the sum of all statistics, from which the first
// model follows by the job's seed.
const RuleStatistics = "statistics"

// arithmetic returns the arithmetic id and the rule of a round.
func (s Spec) arithmetic(round uint32) (arithmetic, rule string) {
	if round == 0 {
		return aggregate.SumF64OrderedV1, RuleStatistics
	}
	return s.Arithmetic, s.Rule
}

// Work is what a participant made in a round. Update is kept until the round is
// committed, so that another attempt needs a signature and no training.
type Work struct {
	Update   []byte
	Root     chunk.Root
	Examples uint64
	// Loss is the mean loss of the last epoch; 0 in round 0.
	Loss float64
}

// Participate does a participant's share of a round: statistics in round 0, training on
// base from then on. Equal arguments make equal bytes on one build of the program.
func (s Spec) Participate(job JobID, round uint32, node identity.NodeRef, base []byte, d *data.Dataset) (Work, error) {
	w := Work{Examples: uint64(d.Rows())}
	if err := d.CheckFeatures(s.Features); err != nil {
		return Work{}, err
	}
	if _, err := d.Encode(s.Labels); err != nil { // in round 0 already, not after it
		return Work{}, err
	}
	if why := aggregate.Examples(w.Examples, s.MaxExamples); why != nil {
		return Work{}, fmt.Errorf("%s: %s", d.Source, why)
	}
	tensors, err := s.produce(&w, job, round, node, base, d)
	if err != nil {
		return Work{}, err
	}
	if w.Update, err = safetensors.Encode(tensors); err != nil {
		return Work{}, err
	}
	w.Root, err = chunk.RootOf(w.Update)
	return w, err
}

func (s Spec) produce(w *Work, job JobID, round uint32, node identity.NodeRef, base []byte, d *data.Dataset) ([]safetensors.Tensor, error) {
	if round == 0 {
		st, err := d.Statistics()
		return st.Tensors(), err
	}
	m, err := mlp.Decode(base, s.shape())
	if err != nil {
		return nil, fmt.Errorf("base model of round %d: %w", round, err)
	}
	trained, loss, err := m.Train(d, s.Labels, s.config(job, round, node))
	if err != nil {
		return nil, err
	}
	w.Loss = loss
	return trained.Tensors(), nil
}

// config seeds every node and round differently, whoever trains it.
func (s Spec) config(job JobID, round uint32, node identity.NodeRef) mlp.Config {
	h := hashParts("meshnode/v1 train", u64(s.Seed), []byte(job), u64(uint64(round)), []byte(node.Org), []byte(node.Name))
	var seed uint64
	for _, b := range h[:8] {
		seed = seed<<8 | uint64(b)
	}
	return mlp.Config{
		Epochs: s.Train.Epochs, Batch: s.Train.Batch, LearningRate: s.Train.LearningRate, Momentum: s.Train.Momentum, Seed: seed,
	}
}

// Contribution is a participant's update as its aggregator, or an auditor, has it.
type Contribution struct {
	Node     identity.NodeRef
	Examples uint64
	Update   []byte
}

// CheckUpdate validates one contribution to a round: size, format, schema, finite numbers,
// the number of examples, and that what training must not change is what it was. The same
// check runs at the participant, at the aggregator and at the auditor.
func (s Spec) CheckUpdate(round uint32, base []byte, c Contribution) *attest.Reason {
	_, why := s.open(round, base, c)
	return why
}

// open is CheckUpdate, returning the tensors.
func (s Spec) open(round uint32, base []byte, c Contribution) ([]safetensors.Tensor, *attest.Reason) {
	if why := aggregate.Examples(c.Examples, s.MaxExamples); why != nil {
		return nil, why
	}
	if len(c.Update) > MaxModel {
		return nil, reason(attest.CodeMalformed, "update", fmt.Sprintf("%d bytes", len(c.Update)), fmt.Sprintf("at most %d", MaxModel))
	}
	got, err := safetensors.Decode(c.Update)
	if err != nil {
		return nil, reason(attest.CodeMalformed, "update", err.Error(), "a canonical safetensors file")
	}
	if round == 0 {
		return got, s.checkStatistics(got, c.Examples)
	}
	want, err := safetensors.Decode(base)
	if err != nil {
		return nil, reason(attest.CodeMalformed, "base model", err.Error(), "a canonical safetensors file")
	}
	if why := aggregate.Schema(want, got); why != nil {
		return nil, why
	}
	if why := aggregate.Finite(got); why != nil {
		return nil, why
	}
	for i, t := range got {
		if (t.Name == mlp.InputMean || t.Name == mlp.InputStd) && !slices.Equal(t.F32, want[i].F32) {
			return nil, reason(attest.CodeSchema, t.Name, "changed values", "the base model's, which training leaves alone")
		}
	}
	return got, nil
}

func (s Spec) checkStatistics(got []safetensors.Tensor, examples uint64) *attest.Reason {
	if why := aggregate.Finite(got); why != nil {
		return why
	}
	st, err := data.ParseStatistics(got, s.Features)
	if err != nil {
		return reason(attest.CodeSchema, "statistics", err.Error(), "count, sum and sum_squares")
	}
	if st.Count != float64(examples) {
		return reason(attest.CodeWeight, "count", fmt.Sprint(st.Count), fmt.Sprintf("the %d examples committed to", examples))
	}
	return nil
}

// Combine checks the contributions to a round and returns the model it ends in: the same
// bytes for everybody, in whatever order the contributions come.
func (s Spec) Combine(round uint32, base []byte, contributions []Contribution) ([]byte, error) {
	in := make([]aggregate.Contribution, len(contributions))
	for i, c := range contributions {
		tensors, why := s.open(round, base, c)
		if why != nil {
			return nil, fmt.Errorf("round %d: update of %s: %s", round, c.Node, why)
		}
		in[i] = aggregate.Contribution{Node: c.Node, Examples: c.Examples, Tensors: tensors}
	}
	if round > 0 {
		mean, err := aggregate.Mean(in)
		if err != nil {
			return nil, fmt.Errorf("round %d: %w", round, err)
		}
		return safetensors.Encode(mean)
	}
	sum, err := aggregate.Sum(in)
	if err != nil {
		return nil, fmt.Errorf("round 0: %w", err)
	}
	st, err := data.ParseStatistics(sum, s.Features)
	if err != nil {
		return nil, fmt.Errorf("round 0: %w", err)
	}
	mean, std := st.Standardisation()
	first, err := mlp.New(s.shape(), s.Seed, mean, std)
	if err != nil {
		return nil, fmt.Errorf("round 0: %w", err)
	}
	return first.Encode()
}

// Evaluate returns the accuracy of a model on d.
func (s Spec) Evaluate(model []byte, d *data.Dataset) (float64, error) {
	m, err := mlp.Decode(model, s.shape())
	if err != nil {
		return 0, err
	}
	return m.Evaluate(d, s.Labels)
}
