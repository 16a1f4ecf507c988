package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

func sample() []Tensor {
	return []Tensor{
		{Name: "b", DType: F64, Shape: []int{}, F64: []float64{1.5}},
		{Name: "a.weight", DType: F32, Shape: []int{1, 2}, F32: []float32{1, -2}},
	}
}

// The bytes are what update and model roots are made of.
func TestGolden(t *testing.T) {
	got, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	const head = `{"a.weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"F64","shape":[],"data_offsets":[8,16]}}`
	want := "7800000000000000" + hex.EncodeToString([]byte(head+strings.Repeat(" ", 120-len(head)))) +
		"0000803f" + "000000c0" + "000000000000f83f"
	if hex.EncodeToString(got) != want {
		t.Errorf("got  %x\nwant %s", got, want)
	}
	back, err := Decode(got)
	if err != nil {
		t.Fatal(err)
	}
	if back[0].Name != "a.weight" || !reflect.DeepEqual(back[0].F32, []float32{1, -2}) || back[1].F64[0] != 1.5 {
		t.Errorf("got %+v", back)
	}
}

// file makes a file from a header as somebody else might write it.
func file(header, data string) []byte {
	for len(header)%8 != 0 {
		header += " "
	}
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(out, header+data...)
}

func TestDecodeRefuses(t *testing.T) {
	const eight = "12345678"
	if _, err := Decode(file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight)); err != nil {
		t.Fatal("the plain case:", err)
	}
	if _, err := Decode(file(`{"a":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}`, eight)); err != nil {
		t.Fatal("the plain case:", err)
	}
	huge := binary.LittleEndian.AppendUint64(nil, 1<<63)
	for name, raw := range map[string][]byte{
		"empty":             nil,
		"huge header":       append(huge, "{}"...),
		"header cut":        binary.LittleEndian.AppendUint64(nil, 64),
		"no tensors":        file(`{}`, ""),
		"array":             file(`[]`, ""),
		"gap":               file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, eight),
		"overlap":           file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight),
		"trailing":          file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight+"x"),
		"data cut":          file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight[1:]),
		"shape and offsets": file(`{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}`, eight),
		"negative":          file(`{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}`, eight),
		"zero":              file(`{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}`, ""),
		"overflow":          file(`{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}`, ""),
		"over the limit":    file(`{"a":{"dtype":"F32","shape":[2147483648],"data_offsets":[0,8589934592]}}`, ""),
		"dtype":             file(`{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}`, eight),
		"no dtype":          file(`{"a":{"shape":[2],"data_offsets":[0,8]}}`, eight),
		"no shape":          file(`{"a":{"dtype":"F32","data_offsets":[0,8]}}`, eight),
		"null shape":        file(`{"a":{"dtype":"F64","shape":null,"data_offsets":[0,8]}}`, eight),
		"unknown field":     file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"x":1}}`, eight),
		"other field order": file(`{"a":{"shape":[2],"dtype":"F32","data_offsets":[0,8]}}`, eight),
		"duplicate field":   file(`{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight),
		"white space":       file(`{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight),
		"too much padding":  file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`+strings.Repeat(" ", 10), eight),
		"after the object":  file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}{}`, eight),
		"three offsets":     file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8,9]}}`, eight),
		"unsorted":          file(`{"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, eight),
		"duplicate name":    file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, eight),
		"metadata":          file(`{"__metadata__":{"a":"b"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight),
		"bad UTF-8":         file("{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", eight),
		"escaped name":      file(`{"\u0061":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight),
		"control in name":   file(`{"\u0007":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, eight),
	} {
		if got, err := Decode(raw); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, ts := range map[string][]Tensor{
		"none":           nil,
		"length":         {{Name: "a", DType: F32, Shape: []int{3}, F32: []float32{1}}},
		"other slice":    {{Name: "a", DType: F32, Shape: []int{1}, F64: []float64{1}}},
		"both slices":    {{Name: "a", DType: F32, Shape: []int{1}, F32: []float32{1}, F64: []float64{1}}},
		"name":           {{Name: "a b", DType: F32, Shape: []int{1}, F32: []float32{1}}},
		"no name":        {{DType: F32, Shape: []int{1}, F32: []float32{1}}},
		"duplicate name": {{Name: "a", DType: F32, Shape: []int{1}, F32: []float32{1}}, {Name: "a", DType: F32, Shape: []int{1}, F32: []float32{1}}},
		"zero value":     {{}},
	} {
		if _, err := Encode(ts); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCheckFinite(t *testing.T) {
	for _, bad := range []float64{math.NaN(), math.Inf(1), math.Inf(-1)} {
		for _, ts := range [][]Tensor{
			{{Name: "x", DType: F32, F32: []float32{0, float32(bad)}}},
			{{Name: "x", DType: F64, F64: []float64{0, bad}}},
		} {
			var nf *NonFinite
			if err := CheckFinite(ts); !errors.As(err, &nf) || nf.Tensor != "x" || nf.Index != 1 {
				t.Errorf("%v: got %v", bad, err)
			}
		}
	}
	if err := CheckFinite([]Tensor{{F32: []float32{math.MaxFloat32, 1e-45}, F64: []float64{-math.MaxFloat64}}}); err != nil {
		t.Error(err)
	}
}

// A reader that stops after the header must have consumed no data.
func TestReadHeaderStreams(t *testing.T) {
	raw, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	r := bytes.NewReader(raw)
	h, err := ReadHeader(r)
	if err != nil || h.DataSize() != 16 || r.Len() != 16 || h[0].Len() != 2 {
		t.Fatalf("got %+v, %v with %d bytes left", h, err, r.Len())
	}
}

func FuzzDecode(f *testing.F) {
	raw, err := Encode(sample())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}`, "12345678"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		ts, err := Decode(raw)
		if err != nil {
			return
		}
		back, err := Encode(ts)
		if err != nil || !bytes.Equal(back, raw) {
			t.Fatalf("accepted bytes that encode differently: %v", err)
		}
	})
}
