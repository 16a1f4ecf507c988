package mlp

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/attestmesh/meshnode/federated/data"
)

// Config says how to train. The zero value is refused.
type Config struct {
	Epochs       int
	Batch        int
	LearningRate float64
	Momentum     float64
	// Seed orders the rows.
	Seed uint64
}

func (c Config) check() error {
	if c.Epochs < 1 || c.Batch < 1 || !(c.LearningRate > 0) || !(c.Momentum >= 0 && c.Momentum < 1) {
		return fmt.Errorf("mlp: config %+v, want epochs, batch and learning rate above 0 and momentum in [0, 1)", c)
	}
	return nil
}

// standardise returns d's rows as the network sees them, and their classes.
func (m *Model) standardise(d *data.Dataset, classes []string) ([]float32, []int32, error) {
	if err := d.CheckFeatures(m.Features); err != nil {
		return nil, nil, err
	}
	if len(classes) != m.Classes {
		return nil, nil, fmt.Errorf("mlp: %d labels for a model of %d classes", len(classes), m.Classes)
	}
	y, err := d.Encode(classes)
	if err != nil {
		return nil, nil, err
	}
	x := make([]float32, len(d.X))
	for i, v := range d.X {
		j := i % m.Features
		// Clamped: one absurd value must not make the whole batch infinite.
		z := (v - float64(m.mean[j])) / float64(m.std[j])
		x[i] = float32(math.Max(-100, math.Min(100, z)))
	}
	return x, y, nil
}

// Train returns the model that training m on d ends in, and the mean loss of the last
// epoch. m is not changed.
func (m *Model) Train(d *data.Dataset, classes []string, cfg Config) (*Model, float64, error) {
	if err := cfg.check(); err != nil {
		return nil, 0, err
	}
	x, y, err := m.standardise(d, classes)
	if err != nil {
		return nil, 0, err
	}
	if len(y) == 0 {
		return nil, 0, fmt.Errorf("%s: no rows to train on", d.Source)
	}
	t := newTrainer(m.clone(), cfg)
	rng := rand.New(rand.NewPCG(cfg.Seed, 0))
	order := make([]int, len(y))
	for i := range order {
		order[i] = i
	}
	var loss float64
	for range cfg.Epochs {
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		loss = 0
		for at := 0; at < len(order); at += cfg.Batch {
			batch := order[at:min(at+cfg.Batch, len(order))]
			for _, i := range batch {
				loss += t.sample(x[i*m.Features:(i+1)*m.Features], y[i])
			}
			t.step(len(batch))
		}
		loss /= float64(len(order))
		if math.IsNaN(loss) || math.IsInf(loss, 0) {
			return nil, 0, errDiverged
		}
	}
	for _, p := range t.parts {
		for _, v := range p.value {
			if v != v || v-v != 0 { // NaN or infinite
				return nil, 0, errDiverged
			}
		}
	}
	return t.m, loss, nil
}

// parameter is one tensor in training.
type parameter struct{ value, gradient, velocity []float32 }

type trainer struct {
	m          *Model
	rate, mass float32
	parts      []parameter // w, b, v, c
	h, dh, p   []float32   // activations and their gradients of one sample
}

func newTrainer(m *Model, cfg Config) *trainer {
	t := &trainer{m: m, rate: float32(cfg.LearningRate), mass: float32(cfg.Momentum)}
	for _, v := range [][]float32{m.w, m.b, m.v, m.c} {
		t.parts = append(t.parts, parameter{v, make([]float32, len(v)), make([]float32, len(v))})
	}
	t.h, t.dh, t.p = make([]float32, m.Hidden), make([]float32, m.Hidden), make([]float32, m.Classes)
	return t
}

// sample adds the gradient of one row and returns its loss.
func (t *trainer) sample(x []float32, class int32) float64 {
	m := t.m
	m.forward(x, t.h, t.p)
	loss := -math.Log(math.Max(float64(t.p[class]), 1e-30))
	if t.p[class] != t.p[class] {
		loss = math.NaN()
	}
	gw, gb, gv, gc := t.parts[0].gradient, t.parts[1].gradient, t.parts[2].gradient, t.parts[3].gradient
	clear(t.dh)
	t.p[class]-- // p − onehot is the gradient of the logits
	for k, d := range t.p {
		gc[k] += d
		axpy(d, t.h, gv[k*m.Hidden:(k+1)*m.Hidden])
		axpy(d, m.v[k*m.Hidden:(k+1)*m.Hidden], t.dh)
	}
	for j, d := range t.dh {
		if t.h[j] > 0 {
			gb[j] += d
			axpy(d, x, gw[j*m.Features:(j+1)*m.Features])
		}
	}
	return loss
}

// step moves the parameters along the mean gradient of a batch of n and clears it.
func (t *trainer) step(n int) {
	scale := 1 / float32(n)
	for _, p := range t.parts {
		for i, g := range p.gradient {
			p.velocity[i] = t.mass*p.velocity[i] + g*scale
			p.value[i] -= t.rate * p.velocity[i]
		}
		clear(p.gradient)
	}
}

// forward sets h to the hidden activations and p to the classes' probabilities.
func (m *Model) forward(x, h, p []float32) {
	for j := range h {
		h[j] = max(0, m.b[j]+dot(m.w[j*m.Features:(j+1)*m.Features], x))
	}
	top := float32(math.Inf(-1))
	for k := range p {
		p[k] = m.c[k] + dot(m.v[k*m.Hidden:(k+1)*m.Hidden], h)
		top = max(top, p[k])
	}
	var sum float32
	for k := range p {
		p[k] = float32(math.Exp(float64(p[k] - top)))
		sum += p[k]
	}
	for k := range p {
		p[k] /= sum
	}
}

// dot has four accumulators, so that additions do not wait for each other.
func dot(a, b []float32) float32 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + (s2 + s3)
}

// axpy adds k·x to y.
func axpy(k float32, x, y []float32) {
	y = y[:len(x)]
	for i, v := range x {
		y[i] += k * v
	}
}

// Evaluate returns the share of rows whose most probable class is their label's.
func (m *Model) Evaluate(d *data.Dataset, classes []string) (float64, error) {
	x, y, err := m.standardise(d, classes)
	if err != nil {
		return 0, err
	}
	if len(y) == 0 {
		return 0, fmt.Errorf("%s: no rows to evaluate on", d.Source)
	}
	h, p, right := make([]float32, m.Hidden), make([]float32, m.Classes), 0
	for i, class := range y {
		m.forward(x[i*m.Features:(i+1)*m.Features], h, p)
		best := 0
		for k := range p {
			if p[k] > p[best] {
				best = k
			}
		}
		if int32(best) == class {
			right++
		}
	}
	return float64(right) / float64(len(y)), nil
}
