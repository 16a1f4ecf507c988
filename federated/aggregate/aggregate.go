// Package aggregate combines the participants' tensors into one result that everybody who
// repeats it gets bit by bit.
//
// An arithmetic id names the exact operations and their order; it stands in the job, in
// the round's leaf and in the certificate. Node order is by organisation name, then node
// name, both as bytes.
//
// # f64-ordered-v1
//
// For every element, with n_i the participants' numbers of examples and N their sum:
//
//	w_i = float64(n_i) / float64(N)            one rounding
//	acc = 0; for i in node order: acc = acc + float64(w_i * float64(x_i))
//	result = float32(acc)
//
// in IEEE 754 binary64, every product rounded before it is added (never fused), to nearest
// even. Tensors are F32.
//
// # sum-f64-ordered-v1
//
//	acc = 0; for i in node order: acc = acc + x_i
//
// in binary64 for F64 tensors, without weights: the statistics of round 0.
package aggregate

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/safetensors"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The arithmetic ids.
const (
	F64OrderedV1    = "f64-ordered-v1"
	SumF64OrderedV1 = "sum-f64-ordered-v1"
)

// Contribution is what one participant brings to a round.
type Contribution struct {
	Node     identity.NodeRef
	Examples uint64
	Tensors  []safetensors.Tensor
}

// CompareNodes is node order.
func CompareNodes(a, b identity.NodeRef) int {
	return cmp.Or(cmp.Compare(a.Org, b.Org), cmp.Compare(a.Name, b.Name))
}

// ordered returns the contributions in node order and refuses none, and two of one node.
func ordered(in []Contribution) ([]Contribution, error) {
	if len(in) == 0 {
		return nil, fmt.Errorf("aggregate: no contributions")
	}
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b Contribution) int { return CompareNodes(a.Node, b.Node) })
	for i := 1; i < len(out); i++ {
		if out[i].Node == out[i-1].Node {
			return nil, fmt.Errorf("aggregate: two contributions of %s", out[i].Node)
		}
		if reason := Schema(out[0].Tensors, out[i].Tensors); reason != nil {
			return nil, fmt.Errorf("aggregate: %s: %s", out[i].Node, reason)
		}
	}
	return out, nil
}

// Mean is f64-ordered-v1. The contributions may come in any order; all must have the same
// tensors, F32, and at least one example.
func Mean(in []Contribution) ([]safetensors.Tensor, error) {
	parts, err := ordered(in)
	if err != nil {
		return nil, err
	}
	weights, err := weights(parts)
	if err != nil {
		return nil, err
	}
	out := make([]safetensors.Tensor, len(parts[0].Tensors))
	for t, first := range parts[0].Tensors {
		if first.DType != safetensors.F32 {
			return nil, fmt.Errorf("aggregate: tensor %q is %s, %s is over F32", first.Name, first.DType, F64OrderedV1)
		}
		streams := make([][]float32, len(parts))
		for i, p := range parts {
			streams[i] = p.Tensors[t].F32
		}
		out[t] = safetensors.Tensor{Name: first.Name, DType: first.DType, Shape: first.Shape, F32: mean(weights, streams)}
	}
	return out, nil
}

func weights(parts []Contribution) ([]float64, error) {
	var total uint64
	for _, p := range parts {
		// The sum stays an integer that float64 holds.
		if p.Examples == 0 || p.Examples > 1<<40 || total > 1<<52 {
			return nil, fmt.Errorf("aggregate: %s has %d examples", p.Node, p.Examples)
		}
		total += p.Examples
	}
	out := make([]float64, len(parts))
	for i, p := range parts {
		out[i] = float64(p.Examples) / float64(total)
	}
	return out, nil
}

// block is how many elements are accumulated at a time: 16 KiB of float64 stay in the
// first-level cache while every stream passes by.
const block = 2048

// workers bounds the goroutines of one mean; memory bandwidth is used up by few.
const workers = 4

func mean(weights []float64, streams [][]float32) []float32 {
	out := make([]float32, len(streams[0]))
	// Elements are independent: how they are shared out changes no bit.
	share := max(block, (len(out)/workers/block+1)*block)
	var wg sync.WaitGroup
	for from := 0; from < len(out); from += share {
		to := min(from+share, len(out))
		if to == len(out) { // the last, or only, share is ours
			meanRange(weights, streams, out, from, to)
			break
		}
		wg.Go(func() { meanRange(weights, streams, out, from, to) })
	}
	wg.Wait()
	return out
}

func meanRange(weights []float64, streams [][]float32, out []float32, from, to int) {
	var acc [block]float64
	for ; from < to; from += block {
		n := min(block, to-from)
		clear(acc[:n])
		for i, x := range streams {
			accumulate(acc[:n], weights[i], x[from:from+n])
		}
		for j, a := range acc[:n] {
			out[from+j] = float32(a)
		}
	}
}

// accumulate adds w·x to acc. The conversion forbids a fused multiply-add (Go
// specification, "Floating-point operators").
func accumulate(acc []float64, w float64, x []float32) {
	acc = acc[:len(x)]
	for j, v := range x {
		acc[j] += float64(w * float64(v))
	}
}

// Sum is sum-f64-ordered-v1.
func Sum(in []Contribution) ([]safetensors.Tensor, error) {
	parts, err := ordered(in)
	if err != nil {
		return nil, err
	}
	out := make([]safetensors.Tensor, len(parts[0].Tensors))
	for t, first := range parts[0].Tensors {
		if first.DType != safetensors.F64 {
			return nil, fmt.Errorf("aggregate: tensor %q is %s, %s is over F64", first.Name, first.DType, SumF64OrderedV1)
		}
		acc := make([]float64, first.Len())
		for _, p := range parts {
			for j, v := range p.Tensors[t].F64 {
				acc[j] += v
			}
		}
		out[t] = safetensors.Tensor{Name: first.Name, DType: first.DType, Shape: first.Shape, F64: acc}
	}
	return out, nil
}

// Schema reports how got's tensors differ from want's in number, name, type or shape: nil
// if they do not. Both are in name order, as Decode and Encode have them.
func Schema(want, got []safetensors.Tensor) *attest.Reason {
	if len(want) != len(got) {
		r := attest.NewReason(attest.CodeSchema, "tensors", fmt.Sprint(len(got)), fmt.Sprint(len(want)))
		return &r
	}
	for i, w := range want {
		if g := got[i]; describe(g) != describe(w) || g.Len() != w.Len() {
			r := attest.NewReason(attest.CodeSchema, "tensor", describe(g), describe(w))
			return &r
		}
	}
	return nil
}

func describe(t safetensors.Tensor) string { return fmt.Sprintf("%s %s%v", t.Name, t.DType, t.Shape) }

// Finite reports the first element that is NaN or infinite.
func Finite(tensors []safetensors.Tensor) *attest.Reason {
	if err := safetensors.CheckFinite(tensors); err != nil {
		nf := err.(*safetensors.NonFinite)
		r := attest.NewReason(attest.CodeNonFinite, fmt.Sprintf("%s[%d]", nf.Tensor, nf.Index), fmt.Sprint(nf.Value), "a finite number")
		return &r
	}
	return nil
}

// Examples reports a number of examples outside [1, limit]: a weight that would silence
// others.
func Examples(n, limit uint64) *attest.Reason {
	if n >= 1 && n <= limit {
		return nil
	}
	r := attest.NewReason(attest.CodeWeight, "n_examples", fmt.Sprint(n), fmt.Sprintf("1 to %d", limit))
	return &r
}
