package mlp

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/federated/safetensors"
)

var config = Config{Epochs: 3, Batch: 16, LearningRate: 0.05, Momentum: 0.9, Seed: 1}

func start(t *testing.T, d *data.Dataset, hidden int) *Model {
	t.Helper()
	s, err := d.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	mean, std := s.Standardisation()
	m, err := New(Shape{d.Features, hidden, len(d.Classes())}, 1, mean, std)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// The bits of a first model are fixed: job verify re-executes them years later.
func TestNewGolden(t *testing.T) {
	m, err := New(Shape{3, 4, 2}, 7, []float32{0, 1, 2}, []float32{1, 1, 0.5})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	const want = "c968b66d0a4673f0a59362f920bc19b2b3236ebcb06714f59ead15e09979c406"
	if got := hex.EncodeToString(sum[:]); got != want {
		t.Errorf("got %s", got)
	}
}

// The gradient is compared with finite differences of the loss, tensor by tensor.
func TestGradient(t *testing.T) {
	d := data.Digits(10, 3)
	m := start(t, d, 5)
	x, y, err := m.standardise(d, d.Classes())
	if err != nil {
		t.Fatal(err)
	}
	row, class := x[:m.Features], y[0]
	tr := newTrainer(m, config)
	tr.sample(row, class)
	loss := func() float64 {
		h, p := make([]float32, m.Hidden), make([]float32, m.Classes)
		m.forward(row, h, p)
		return -math.Log(float64(p[class]))
	}
	for k, p := range tr.parts {
		for _, i := range []int{0, len(p.value) / 2, len(p.value) - 1} {
			const step = 1e-2
			was := p.value[i]
			p.value[i] = was + step
			up := loss()
			p.value[i] = was - step
			down := loss()
			p.value[i] = was
			if want := (up - down) / (2 * step); math.Abs(want-float64(p.gradient[i])) > 0.02*(1+math.Abs(want)) {
				t.Errorf("tensor %d element %d: gradient %v, differences say %v", k, i, p.gradient[i], want)
			}
		}
	}
}

func TestTrainLearnsAndIsDeterministic(t *testing.T) {
	train, test, err := data.Digits(800, 1).Holdout(0.25, 1)
	if err != nil {
		t.Fatal(err)
	}
	classes, m := train.Classes(), start(t, train, 32)
	before, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	encode := func(cfg Config) []byte {
		trained, _, err := m.Train(train, classes, cfg)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := trained.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	a, b := encode(config), encode(config)
	other := config
	other.Seed++
	if !bytes.Equal(a, b) || bytes.Equal(a, encode(other)) {
		t.Error("the seed does not decide what is learnt")
	}
	if after, err := m.Encode(); err != nil || !bytes.Equal(before, after) {
		t.Error("training changed the model it started from")
	}
	trained, err := Decode(a, m.Shape)
	if err != nil {
		t.Fatal(err)
	}
	got, err := trained.Evaluate(test, classes)
	if err != nil || got < 0.85 {
		t.Errorf("accuracy %.3f, %v", got, err)
	}
	// Standardisation is the mesh's, not the trainer's.
	for _, name := range []string{InputMean, InputStd} {
		was, _ := safetensors.Find(m.Tensors(), name)
		is, _ := safetensors.Find(trained.Tensors(), name)
		for i := range was.F32 {
			if was.F32[i] != is.F32[i] {
				t.Fatalf("%s changed", name)
			}
		}
	}
}

func TestTrainRefuses(t *testing.T) {
	d := data.Digits(100, 1)
	m, classes := start(t, d, 8), d.Classes()
	for name, cfg := range map[string]Config{
		"zero":     {},
		"rate NaN": {1, 1, math.NaN(), 0, 0},
		"momentum": {1, 1, 0.1, 1, 0},
	} {
		if _, _, err := m.Train(d, classes, cfg); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
	if _, _, err := m.Train(d, classes, Config{20, 4, 1e30, 0.9, 1}); err == nil || !strings.Contains(err.Error(), "learning_rate") {
		t.Errorf("divergence: got %v", err)
	}
	if _, _, err := m.Train(d.Subset(nil), classes, config); err == nil {
		t.Error("no rows accepted")
	}
	if _, _, err := m.Train(d, classes[:9], config); err == nil {
		t.Error("another number of classes accepted")
	}
	if _, err := m.Evaluate(d.Subset(nil), classes); err == nil {
		t.Error("no rows evaluated")
	}
	wide := &data.Dataset{Features: 1, X: []float64{1}, Labels: []string{"0"}}
	if _, err := m.Evaluate(wide, classes); err == nil {
		t.Error("another number of features accepted")
	}
}

func TestDecodeRefuses(t *testing.T) {
	m := start(t, data.Digits(20, 1), 4)
	spoil := func(f func(c *Model, ts []safetensors.Tensor) []safetensors.Tensor) []byte {
		c := m.clone()
		raw, err := safetensors.Encode(f(c, c.Tensors()))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, raw := range map[string][]byte{
		"no file": nil,
		"missing": spoil(func(_ *Model, ts []safetensors.Tensor) []safetensors.Tensor { return ts[1:] }),
		"renamed": spoil(func(_ *Model, ts []safetensors.Tensor) []safetensors.Tensor { ts[0].Name = "hidden.biaz"; return ts }),
		"broadcast": spoil(func(_ *Model, ts []safetensors.Tensor) []safetensors.Tensor {
			ts[0].Shape, ts[0].F32 = []int{1}, ts[0].F32[:1]
			return ts
		}),
		"NaN":    spoil(func(c *Model, ts []safetensors.Tensor) []safetensors.Tensor { c.w[3] = float32(math.NaN()); return ts }),
		"no std": spoil(func(c *Model, ts []safetensors.Tensor) []safetensors.Tensor { c.std[0] = 0; return ts }),
		"other dtype": spoil(func(_ *Model, ts []safetensors.Tensor) []safetensors.Tensor {
			ts[0].DType, ts[0].F32, ts[0].F64 = safetensors.F64, nil, make([]float64, 4)
			return ts
		}),
	} {
		if _, err := Decode(raw, m.Shape); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
}

func BenchmarkTrainEpoch(b *testing.B) {
	d := data.Digits(1000, 1)
	s, err := d.Statistics()
	if err != nil {
		b.Fatal(err)
	}
	mean, std := s.Standardisation()
	m, err := New(Shape{d.Features, 64, 10}, 1, mean, std)
	if err != nil {
		b.Fatal(err)
	}
	cfg := config
	cfg.Epochs = 1
	for b.Loop() {
		if _, _, err := m.Train(d, d.Classes(), cfg); err != nil {
			b.Fatal(err)
		}
	}
}
