package data

import (
	"math"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/federated/safetensors"
)

func TestStandardisation(t *testing.T) {
	d, err := ReadCSV("f.csv", strings.NewReader("1,5,1000000001,a\n3,5,1000000003,a\n2,5,1000000002,a\n"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Statistics()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseStatistics(s.Tensors(), 3)
	if err != nil {
		t.Fatal(err)
	}
	mean, std := back.Standardisation()
	if mean[0] != 2 || std[0] != float32(math.Sqrt(2.0/3)) || mean[1] != 5 || std[1] != 1 || std[2] != 1 {
		t.Errorf("got %v, %v", mean, std)
	}
	large, err := ReadCSV("f.csv", strings.NewReader("1,a\n1e200,a\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := large.Statistics(); err == nil || !strings.Contains(err.Error(), "f.csv:2: field 1") {
		t.Errorf("got %v", err)
	}
}

func TestParseStatisticsRefuses(t *testing.T) {
	good := func() []safetensors.Tensor {
		return Statistics{2, []float64{3}, []float64{5}}.Tensors()
	}
	if _, err := ParseStatistics(good(), 1); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(ts []safetensors.Tensor) []safetensors.Tensor{
		"missing":        func(ts []safetensors.Tensor) []safetensors.Tensor { return ts[:2] },
		"renamed":        func(ts []safetensors.Tensor) []safetensors.Tensor { ts[0].Name = "n"; return ts },
		"shape":          func(ts []safetensors.Tensor) []safetensors.Tensor { ts[1].Shape = []int{1, 1}; return ts },
		"NaN":            func(ts []safetensors.Tensor) []safetensors.Tensor { ts[1].F64[0] = math.NaN(); return ts },
		"no rows":        func(ts []safetensors.Tensor) []safetensors.Tensor { ts[0].F64[0] = 0; return ts },
		"negative rows":  func(ts []safetensors.Tensor) []safetensors.Tensor { ts[0].F64[0] = -1; return ts },
		"half a row":     func(ts []safetensors.Tensor) []safetensors.Tensor { ts[0].F64[0] = 1.5; return ts },
		"impossible sum": func(ts []safetensors.Tensor) []safetensors.Tensor { ts[1].F64[0] = 4; return ts },
		"F32": func(ts []safetensors.Tensor) []safetensors.Tensor {
			ts[0] = safetensors.Tensor{Name: TensorCount, DType: safetensors.F32, Shape: []int{1}, F32: []float32{2}}
			return ts
		},
	} {
		if s, err := ParseStatistics(spoil(good()), 1); err == nil {
			t.Errorf("%s: accepted as %+v", name, s)
		}
	}
	if _, err := ParseStatistics(good(), 2); err == nil {
		t.Error("another number of features accepted")
	}
}
