// Package bag is a small text classifier: a bag of hashed words and one linear unit for each
// class, trained by logistic regression. It is enough to be useful on a few hundred lines of
// text, and small enough to be read by whoever is asked to trust it.
//
//	model = safetensors; for each class two F32 tensors, "CLASS.bias" [1] and "CLASS.weight" [Buckets]
//
// A class is named by letters, digits and '-'. Words are runs of letters and digits in lower
// case; a word's bucket is the FNV-1a hash of its UTF-8 modulo Buckets.
package bag

import (
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"unicode"

	"github.com/attestmesh/meshnode/federated/safetensors"
)

// Buckets is the number of hashed features.
const Buckets = 4096

// maxClasses bounds a model.
const maxClasses = 64

// Model is a trained classifier.
type Model struct {
	classes []class // in order of their names
}

type class struct {
	name   string
	bias   float32
	weight []float32
}

// Example is one labelled text.
type Example struct{ Label, Text string }

// Score is the probability of one class.
type Score struct {
	Label       string  `json:"label"`
	Probability float64 `json:"probability"`
}

// Words returns the words of a text.
func Words(text string) []string {
	return strings.FieldsFunc(strings.ToLower(text), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) })
}

// features returns how often each bucket is hit, scaled to length 1.
func features(text string) map[int]float32 {
	x := map[int]float32{}
	for _, w := range Words(text) {
		h := fnv.New32a()
		h.Write([]byte(w))
		x[int(h.Sum32()%Buckets)]++
	}
	var sum float64
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	for k := range x {
		x[k] /= float32(math.Sqrt(sum))
	}
	return x
}

// Classify returns the classes with their probabilities, the most probable first.
func (m *Model) Classify(text string) []Score {
	p := m.probabilities(features(text))
	out := make([]Score, len(p))
	for i := range p {
		out[i] = Score{m.classes[i].name, p[i]}
	}
	slices.SortStableFunc(out, func(a, b Score) int {
		switch {
		case a.Probability > b.Probability:
			return -1
		case a.Probability < b.Probability:
			return 1
		}
		return 0
	})
	return out
}

func (m *Model) probabilities(x map[int]float32) []float64 {
	p, top := make([]float64, len(m.classes)), math.Inf(-1)
	for i, c := range m.classes {
		p[i] = float64(c.bias)
		for k, v := range x {
			p[i] += float64(c.weight[k]) * float64(v)
		}
		top = max(top, p[i])
	}
	var sum float64
	for i := range p {
		p[i] = math.Exp(p[i] - top)
		sum += p[i]
	}
	for i := range p {
		p[i] /= sum
	}
	return p
}

// Train fits a model to examples by stochastic gradient descent.
func Train(examples []Example, epochs int, rate float64, seed uint64) (*Model, error) {
	rng := rand.New(rand.NewPCG(seed, seed))
	m := &Model{}
	for _, e := range examples {
		if err := checkLabel(e.Label); err != nil {
			return nil, err
		}
		if m.index(e.Label) < 0 {
			c := class{name: e.Label, weight: make([]float32, Buckets)}
			for i := range c.weight {
				c.weight[i] = float32(0.01 * rng.NormFloat64())
			}
			m.classes = append(m.classes, c)
		}
	}
	if len(m.classes) < 2 || len(m.classes) > maxClasses {
		return nil, fmt.Errorf("%d labels, want 2 to %d", len(m.classes), maxClasses)
	}
	slices.SortFunc(m.classes, func(a, b class) int { return strings.Compare(a.name, b.name) })
	order := make([]int, len(examples))
	for i := range order {
		order[i] = i
	}
	for range epochs {
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for _, at := range order {
			x, right := features(examples[at].Text), m.index(examples[at].Label)
			for i, p := range m.probabilities(x) {
				step := -p
				if i == right {
					step++
				}
				m.classes[i].bias += float32(rate * step)
				for k, v := range x {
					m.classes[i].weight[k] += float32(rate * step * float64(v))
				}
			}
		}
	}
	return m, nil
}

func (m *Model) index(label string) int {
	return slices.IndexFunc(m.classes, func(c class) bool { return c.name == label })
}

func checkLabel(label string) error {
	if label == "" || len(label) > 64 || strings.ContainsFunc(label, func(r rune) bool {
		return r != '-' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9')
	}) {
		return fmt.Errorf("label %.70q, want 1 to 64 letters, digits and '-'", label)
	}
	return nil
}

// Encode returns the model as a safetensors file.
func (m *Model) Encode() ([]byte, error) {
	var tensors []safetensors.Tensor
	for _, c := range m.classes {
		tensors = append(tensors,
			safetensors.Tensor{Name: c.name + ".bias", DType: safetensors.F32, Shape: []int{1}, F32: []float32{c.bias}},
			safetensors.Tensor{Name: c.name + ".weight", DType: safetensors.F32, Shape: []int{Buckets}, F32: c.weight})
	}
	slices.SortFunc(tensors, func(a, b safetensors.Tensor) int { return strings.Compare(a.Name, b.Name) })
	return safetensors.Encode(tensors)
}

// Decode reads a model.
func Decode(raw []byte) (*Model, error) {
	tensors, err := safetensors.Decode(raw)
	if err != nil {
		return nil, err
	}
	if err := safetensors.CheckFinite(tensors); err != nil {
		return nil, err
	}
	m := &Model{}
	for _, t := range tensors {
		label, ok := strings.CutSuffix(t.Name, ".weight")
		if !ok {
			continue
		}
		bias, found := safetensors.Find(tensors, label+".bias")
		if err := checkLabel(label); err != nil || !found || t.DType != safetensors.F32 || bias.DType != safetensors.F32 || t.Len() != Buckets || bias.Len() != 1 {
			return nil, fmt.Errorf("tensor %s: want F32 [%d] with a bias", t.Name, Buckets)
		}
		m.classes = append(m.classes, class{label, bias.F32[0], t.F32})
	}
	if len(m.classes) < 2 || len(m.classes) > maxClasses || 2*len(m.classes) != len(tensors) {
		return nil, errors.New("the file is no model of this classifier")
	}
	return m, nil
}
