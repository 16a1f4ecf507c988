package aggregate

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/safetensors"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
)

func node(s string) identity.NodeRef {
	r, err := identity.ParseNodeRef(s)
	if err != nil {
		panic(err)
	}
	return r
}

func f32(values ...float32) []safetensors.Tensor {
	return []safetensors.Tensor{{Name: "x", DType: safetensors.F32, Shape: []int{len(values)}, F32: values}}
}

func f64(values ...float64) []safetensors.Tensor {
	return []safetensors.Tensor{{Name: "x", DType: safetensors.F64, Shape: []int{len(values)}, F64: values}}
}

// A fused multiply-add keeps the 2⁻⁶⁴ that rounding the product drops. Random data never
// shows that, this vector does.
func TestAccumulateIsNotFused(t *testing.T) {
	acc := []float64{-1}
	w, x := 1+0x1p-40, float32(1-0x1p-24)
	accumulate(acc, w, []float32{x})
	if want := -0x1p-24 + 0x1p-40; acc[0] != want {
		t.Errorf("got %b, want %b", acc[0], want)
	}
	if fused := math.FMA(w, float64(x), -1); fused == acc[0] {
		t.Error("the vector does not tell fused from separate")
	}
}

// The same through the front door: the products cancel to nothing exactly if both are
// rounded; fused, the second keeps the first's rounding error.
func TestMeanIsNotFused(t *testing.T) {
	const a = 1 + 0x1p-23
	got, err := Mean([]Contribution{{node("a/n"), 1, f32(2 * a)}, {node("b/n"), 2, f32(-a)}})
	if err != nil || got[0].F32[0] != 0 {
		t.Fatalf("got %v, %v, want exactly 0", got, err)
	}
	w1, w2 := 1.0/3, 2.0/3
	if float32(math.FMA(w2, -a, w1*2*a)) == 0 {
		t.Error("the vector does not tell fused from separate")
	}
}

// Order is by organisation, then node, whatever order the contributions arrive in, and it
// is not the order of the joined strings ('-' sorts before '/').
func TestOrderDecides(t *testing.T) {
	big, one := float32(0x1p70), float32(1)
	parts := []Contribution{{node("a/n"), 1, f32(big)}, {node("a-b/n"), 1, f32(-big)}, {node("b/n"), 1, f32(one)}}
	third := float32(1.0 / 3)
	for range 20 {
		rand.Shuffle(3, func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		got, err := Mean(parts)
		if err != nil || got[0].F32[0] != third {
			t.Fatalf("got %v, %v, want %v", got, err, third)
		}
	}
	swapped := []Contribution{{node("a/n"), 1, f32(big)}, {node("a-b/n"), 1, f32(one)}, {node("b/n"), 1, f32(-big)}}
	if got, err := Mean(swapped); err != nil || got[0].F32[0] != 0 {
		t.Errorf("got %v, %v: this order loses the one", got, err)
	}
	for _, tc := range [][]string{{"a/z", "a-b/a"}, {"a/1", "a/2"}} {
		if CompareNodes(node(tc[0]), node(tc[1])) >= 0 {
			t.Errorf("%s comes before %s", tc[0], tc[1])
		}
	}
}

// Against exact rational arithmetic: two roundings of float64 for each term and one to
// float32 stay within one float32 ulp of the mathematical mean; sizes cover block and
// worker boundaries.
func TestMeanIsAMean(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{1, 7, block - 1, block, block + 1, 4*block*workers + 3} {
		var parts []Contribution
		var total uint64
		for i := range 5 {
			values := make([]float32, size)
			for j := range values {
				values[j] = float32(rng.NormFloat64())
			}
			n := uint64(rng.IntN(1000) + 1)
			total += n
			parts = append(parts, Contribution{node(fmt.Sprintf("o%d/n", i)), n, f32(values...)})
		}
		got, err := Mean(parts)
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range []int{0, size / 2, size - 1} {
			sum := new(big.Rat)
			for _, p := range parts {
				x := new(big.Rat).SetFloat64(float64(p.Tensors[0].F32[j]))
				sum.Add(sum, x.Mul(x, new(big.Rat).SetFrac64(int64(p.Examples), int64(total))))
			}
			want, _ := sum.Float32()
			g := got[0].F32[j]
			if g != want && math.Nextafter32(g, want) != want {
				t.Errorf("size %d element %d: got %v, want %v", size, j, g, want)
			}
		}
	}
}

// What is equal in all updates stays what it is: the frozen standardisation survives.
func TestMeanKeepsEqualValues(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for range 2000 {
		v := math.Float32frombits(rng.Uint32())
		if v != v || math.IsInf(float64(v), 0) {
			continue
		}
		var parts []Contribution
		for i := range 1 + rng.IntN(9) {
			parts = append(parts, Contribution{node(fmt.Sprintf("o%d/n", i)), uint64(rng.IntN(5000) + 1), f32(v)})
		}
		if got, err := Mean(parts); err != nil || got[0].F32[0] != v {
			t.Fatalf("%v became %v, %v", v, got, err)
		}
	}
}

func TestSum(t *testing.T) {
	got, err := Sum([]Contribution{
		{Node: node("c/n"), Tensors: f64(1, 3)}, {Node: node("a/n"), Tensors: f64(0x1p80, 1)}, {Node: node("b/n"), Tensors: f64(-0x1p80, 2)},
	})
	if err != nil || got[0].F64[0] != 1 || got[0].F64[1] != 6 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := Sum([]Contribution{{Node: node("a/n"), Tensors: f32(1)}}); err == nil {
		t.Error("F32 summed as statistics")
	}
}

func TestMeanRefuses(t *testing.T) {
	ok := Contribution{node("a/n"), 1, f32(1, 2)}
	for name, in := range map[string][]Contribution{
		"none":      nil,
		"twice":     {ok, ok},
		"no weight": {ok, {node("b/n"), 0, f32(1, 2)}},
		"too heavy": {ok, {node("b/n"), 1 << 41, f32(1, 2)}},
		"shape":     {ok, {node("b/n"), 1, f32(1)}},
		"dtype":     {{node("a/n"), 1, f64(1)}},
	} {
		if got, err := Mean(in); err == nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestValidation(t *testing.T) {
	if r := Schema(f32(1, 2), f32(3, 4)); r != nil {
		t.Error(r)
	}
	for name, got := range map[string][]safetensors.Tensor{
		"broadcast": f32(1),
		"dtype":     f64(1, 2),
		"extra":     append(f32(1, 2), f32(1, 2)...),
		"none":      nil,
		"rank":      {{Name: "x", DType: safetensors.F32, Shape: []int{1, 2}, F32: []float32{1, 2}}},
		"name":      {{Name: "y", DType: safetensors.F32, Shape: []int{2}, F32: []float32{1, 2}}},
	} {
		if r := Schema(f32(1, 2), got); r == nil || r.Code != attest.CodeSchema {
			t.Errorf("%s: got %v", name, r)
		}
	}
	if r := Finite(f32(1, float32(math.NaN()))); r == nil || r.Code != attest.CodeNonFinite || r.Claim != "x[1]" {
		t.Errorf("got %v", r)
	}
	if r := Finite(f32(1)); r != nil {
		t.Error(r)
	}
	for n, want := range map[uint64]bool{0: false, 1: true, 10: true, 11: false, math.MaxUint64: false} {
		if got := Examples(n, 10) == nil; got != want {
			t.Errorf("%d examples of at most 10: accepted %v", n, got)
		}
	}
}

func BenchmarkMean10x1Mi(b *testing.B) {
	var parts []Contribution
	for i := range 10 {
		parts = append(parts, Contribution{node(fmt.Sprintf("o%d/n", i)), uint64(i + 1), f32(make([]float32, 1<<20)...)})
	}
	b.SetBytes(10 * 4 << 20)
	for b.Loop() {
		if _, err := Mean(parts); err != nil {
			b.Fatal(err)
		}
	}
}

// scan reads every byte of the streams in 64-bit words, in as many goroutines as a mean
// has: what memory alone costs.
func scan(streams [][]uint64) uint64 {
	var sums [workers]uint64
	var wg sync.WaitGroup
	for w := range sums {
		wg.Go(func() {
			var a, b, c, d uint64
			for _, s := range streams {
				for s := s[w*len(s)/workers : (w+1)*len(s)/workers]; len(s) >= 4; s = s[4:] {
					a, b, c, d = a+s[0], b+s[1], c+s[2], d+s[3]
				}
			}
			sums[w] = a + b + c + d
		})
	}
	wg.Wait()
	return sums[0] + sums[1] + sums[2] + sums[3]
}

// BenchmarkRatioMean is the exact mean of 10 updates of 4 Mi float32 against a plain read
// of the same bytes, in processor time, waits for memory included: 1 would be as fast as
// memory.
func BenchmarkRatioMean(b *testing.B) {
	const n = 4 << 20
	var parts []Contribution
	var words [][]uint64
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range 10 {
		values := make([]float32, n)
		for j := range values {
			values[j] = rng.Float32()
		}
		parts = append(parts, Contribution{node(fmt.Sprintf("o%d/n", i)), uint64(i + 1), f32(values...)})
		words = append(words, unsafe.Slice((*uint64)(unsafe.Pointer(&parts[i].Tensors[0].F32[0])), n/2))
	}
	mean := func() {
		if _, err := Mean(parts); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		read := func() {
			if scan(words) == 0 {
				b.Fatal("nothing was read")
			}
		}
		ratio.Print("fl.mean_vs_memory", ratio.Of(25, ratio.CPU(1, read), ratio.CPU(1, mean)))
	}
}
