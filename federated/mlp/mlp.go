// Package mlp is the trainer built into meshnode: a perceptron with one hidden layer,
//
//	z = (x − mean) / std      input.mean, input.std      [features]
//	h = max(0, W z + b)       hidden.weight, hidden.bias [hidden, features], [hidden]
//	p = softmax(V h + c)      output.weight, output.bias [classes, hidden], [classes]
//
// all tensors F32 in one safetensors file. It minimises cross-entropy by stochastic
// gradient descent over mini-batches with momentum. The standardisation is part of the
// model, so that who has the file can use it; training never changes it.
//
// New is exact: every machine makes the same bits from a seed and a standardisation, and
// whoever re-executes a job starts from there. Train and Evaluate are deterministic on one
// build of the program; across processors results may differ in the last bits, which is
// why an update is signed and kept and never re-trained for verification.
package mlp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/attestmesh/meshnode/federated/safetensors"
)

// Names of the tensors.
const (
	InputMean    = "input.mean"
	InputStd     = "input.std"
	HiddenWeight = "hidden.weight"
	HiddenBias   = "hidden.bias"
	OutputWeight = "output.weight"
	OutputBias   = "output.bias"
)

// Shape is the size of a model.
type Shape struct {
	Features, Hidden, Classes int
}

// Model is a perceptron. Its slices are not shared with any other model.
type Model struct {
	Shape
	mean, std []float32
	w, b      []float32 // hidden × features, hidden
	v, c      []float32 // classes × hidden, classes
}

// New returns the model that a seed starts from: zero biases, weights uniform in
// ±sqrt(6/inputs) (He et al. 2015, arXiv 1502.01852), drawn from ChaCha8 (c2sp.org/
// chacha8rand) keyed with the seed as 8 little-endian bytes and zeros, 24 bits a weight,
// hidden layer first.
func New(shape Shape, seed uint64, mean, std []float32) (*Model, error) {
	if shape.Features < 1 || shape.Hidden < 1 || shape.Classes < 2 {
		return nil, fmt.Errorf("mlp: shape %+v, want features, a hidden layer and at least two classes", shape)
	}
	if len(mean) != shape.Features || len(std) != shape.Features {
		return nil, fmt.Errorf("mlp: standardisation of %d features, want %d", len(mean), shape.Features)
	}
	m := &Model{Shape: shape, mean: append([]float32(nil), mean...), std: append([]float32(nil), std...)}
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	rng := rand.NewChaCha8(key)
	m.w = uniform(rng, shape.Hidden*shape.Features, shape.Features)
	m.b = make([]float32, shape.Hidden)
	m.v = uniform(rng, shape.Classes*shape.Hidden, shape.Hidden)
	m.c = make([]float32, shape.Classes)
	return m, nil
}

func uniform(rng *rand.ChaCha8, n, inputs int) []float32 {
	limit := math.Sqrt(6 / float64(inputs))
	out := make([]float32, n)
	for i := range out {
		u := float64(rng.Uint64()>>40)*0x1p-23 - 1 // exact: [-1, 1)
		out[i] = float32(float64(u * limit))
	}
	return out
}

// Tensors returns the model's tensors; they share its memory.
func (m *Model) Tensors() []safetensors.Tensor {
	f32 := func(name string, v []float32, shape ...int) safetensors.Tensor {
		return safetensors.Tensor{Name: name, DType: safetensors.F32, Shape: shape, F32: v}
	}
	return []safetensors.Tensor{
		f32(HiddenBias, m.b, m.Hidden), f32(HiddenWeight, m.w, m.Hidden, m.Features),
		f32(InputMean, m.mean, m.Features), f32(InputStd, m.std, m.Features),
		f32(OutputBias, m.c, m.Classes), f32(OutputWeight, m.v, m.Classes, m.Hidden),
	}
}

// Encode returns the model as a safetensors file.
func (m *Model) Encode() ([]byte, error) { return safetensors.Encode(m.Tensors()) }

// Decode reads a model of that shape from a safetensors file: these six tensors, finite,
// with a positive deviation for every feature.
func Decode(raw []byte, shape Shape) (*Model, error) {
	tensors, err := safetensors.Decode(raw)
	if err != nil {
		return nil, fmt.Errorf("mlp: %w", err)
	}
	m := &Model{Shape: shape}
	want := m.Tensors()
	if len(tensors) != len(want) {
		return nil, fmt.Errorf("mlp: %d tensors, want %d", len(tensors), len(want))
	}
	// Both lists are in name order.
	for i, t := range tensors {
		if t.Name != want[i].Name || t.DType != safetensors.F32 || fmt.Sprint(t.Shape) != fmt.Sprint(want[i].Shape) {
			return nil, fmt.Errorf("mlp: tensor %s %s%v, want %s F32%v", t.Name, t.DType, t.Shape, want[i].Name, want[i].Shape)
		}
	}
	if err := safetensors.CheckFinite(tensors); err != nil {
		return nil, fmt.Errorf("mlp: %w", err)
	}
	m.b, m.w, m.mean, m.std, m.c, m.v = tensors[0].F32, tensors[1].F32, tensors[2].F32, tensors[3].F32, tensors[4].F32, tensors[5].F32
	for i, s := range m.std {
		if s <= 0 {
			return nil, fmt.Errorf("mlp: %s: feature %d has the deviation %v", InputStd, i+1, s)
		}
	}
	return m, nil
}

func (m *Model) clone() *Model {
	c := func(v []float32) []float32 { return append([]float32(nil), v...) }
	return &Model{m.Shape, c(m.mean), c(m.std), c(m.w), c(m.b), c(m.v), c(m.c)}
}

// errDiverged is what a learning rate that is too high ends in.
var errDiverged = errors.New("mlp: training diverged, the loss is not a finite number; lower train.learning_rate")
