package data

import (
	"fmt"
	"math"

	"github.com/attestmesh/meshnode/federated/safetensors"
)

// Names of the tensors of a statistics file.
const (
	TensorCount      = "count"
	TensorSum        = "sum"
	TensorSumSquares = "sum_squares"
)

// Statistics is what a node tells of its data before training: how many rows, and for each
// feature the sum and the sum of squares. On the wire it is a safetensors file of F64.
type Statistics struct {
	Count      float64
	Sum        []float64
	SumSquares []float64
}

// Statistics adds up d's rows in their order. Numbers too large to square are an error.
func (d *Dataset) Statistics() (Statistics, error) {
	s := Statistics{Count: float64(d.Rows()), Sum: make([]float64, d.Features), SumSquares: make([]float64, d.Features)}
	for i := range d.Rows() {
		for j, v := range d.Row(i) {
			s.Sum[j] += v
			s.SumSquares[j] += float64(v * v)
			if math.IsInf(s.SumSquares[j], 0) {
				return s, fmt.Errorf("%s: field %d: %v is too large to be standardised; rescale the column", d.At(i), j+1, v)
			}
		}
	}
	return s, nil
}

// Tensors returns s as tensors.
func (s Statistics) Tensors() []safetensors.Tensor {
	n := []int{len(s.Sum)}
	return []safetensors.Tensor{
		{Name: TensorCount, DType: safetensors.F64, Shape: []int{1}, F64: []float64{s.Count}},
		{Name: TensorSum, DType: safetensors.F64, Shape: n, F64: s.Sum},
		{Name: TensorSumSquares, DType: safetensors.F64, Shape: n, F64: s.SumSquares},
	}
}

// ParseStatistics reads the tensors of s for a number of features. Anything that no table
// of finite numbers has is refused.
func ParseStatistics(tensors []safetensors.Tensor, features int) (Statistics, error) {
	var s Statistics
	if len(tensors) != 3 {
		return s, fmt.Errorf("statistics: %d tensors, want %s, %s and %s", len(tensors), TensorCount, TensorSum, TensorSumSquares)
	}
	for _, want := range []struct {
		name string
		n    int
		to   *[]float64
	}{{TensorCount, 1, new([]float64)}, {TensorSum, features, &s.Sum}, {TensorSumSquares, features, &s.SumSquares}} {
		t, ok := safetensors.Find(tensors, want.name)
		if !ok || t.DType != safetensors.F64 || len(t.Shape) != 1 || t.Shape[0] != want.n {
			return Statistics{}, fmt.Errorf("statistics: want tensor %q of shape [%d] and F64", want.name, want.n)
		}
		*want.to = t.F64
		if want.name == TensorCount {
			s.Count = t.F64[0]
		}
	}
	if err := safetensors.CheckFinite(tensors); err != nil {
		return Statistics{}, fmt.Errorf("statistics: %w", err)
	}
	if s.Count < 1 || s.Count != math.Trunc(s.Count) {
		return Statistics{}, fmt.Errorf("statistics: count %v, want a positive whole number", s.Count)
	}
	for i := range s.Sum {
		// (Σx)² ≤ n Σx² for all real x; the margin is for rounding.
		if mean := s.Sum[i] / s.Count; float64(mean*mean) > s.SumSquares[i]/s.Count*(1+1e-9) {
			return Statistics{}, fmt.Errorf("statistics: feature %d: sum %v and sum of squares %v of %v numbers contradict each other",
				i+1, s.Sum[i], s.SumSquares[i], s.Count)
		}
	}
	return s, nil
}

// Standardisation returns mean and standard deviation of every feature. All nodes compute
// the same bits: products are rounded before they are subtracted (no fused operation). A
// feature that does not vary, as far as these sums can tell, gets the deviation 1.
func (s Statistics) Standardisation() (mean, std []float32) {
	mean, std = make([]float32, len(s.Sum)), make([]float32, len(s.Sum))
	for i := range s.Sum {
		m := s.Sum[i] / s.Count
		square := s.SumSquares[i] / s.Count
		variance := square - float64(m*m)
		mean[i] = float32(m)
		std[i] = float32(math.Sqrt(max(variance, 0)))
		// Below 2⁻⁴⁰ of the mean square the difference is rounding error.
		if variance <= square*0x1p-40 || std[i] == 0 {
			std[i] = 1
		}
	}
	return mean, std
}
