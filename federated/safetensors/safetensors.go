// Package safetensors reads and writes the safetensors format, strictly: a file that is
// accepted has exactly one spelling, so that its digest names its content.
//
// # Format
//
//	u64 little-endian   length of the header in bytes
//	header              one JSON object, padded with spaces to a multiple of 8
//	data                the tensors' elements, little-endian, without gaps
//
// (huggingface/safetensors, README "Format".) The header maps each tensor's name to
//
//	{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}
//
// with offsets into the data part. This package accepts F32, and F64 for statistics, and
// of the many headers that describe the same tensors only one: compact JSON, names in
// ascending byte order, tensors laid out in that order from offset 0, each beginning where
// the one before it ends, padding of fewer than 8 spaces, nothing after the last tensor,
// no "__metadata__". The reference implementation writes the same bytes for tensors of
// one dtype. Names are 1 to MaxName characters of A-Z, a-z, 0-9, '_', '-', '.' and '/'.
// Every dimension is at least 1; a shape of no dimensions is one element.
//
// Decode does not look at the values: CheckFinite is a door of its own, because whoever
// keeps a bad update as evidence must be able to read it.
package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// DType names an element type.
type DType string

// The element types. Statistics are F64; weights are F32.
const (
	F32 DType = "F32"
	F64 DType = "F64"
)

func (d DType) size() int64 {
	switch d {
	case F32:
		return 4
	case F64:
		return 8
	}
	return 0
}

// Info describes one tensor of a header.
type Info struct {
	Name  string
	DType DType
	Shape []int
	// Begin and End are byte offsets into the data part.
	Begin, End int64
}

// Len returns the number of elements.
func (i Info) Len() int { return int((i.End - i.Begin) / i.DType.size()) }

// Header describes all tensors of a file in their order.
type Header []Info

// DataSize returns how many bytes follow the header.
func (h Header) DataSize() int64 {
	if len(h) == 0 {
		return 0
	}
	return h[len(h)-1].End
}

// Tensor is a named array. Exactly the slice of its DType is set.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	F32   []float32
	F64   []float64
}

// Len returns the number of elements.
func (t Tensor) Len() int {
	if t.DType == F64 {
		return len(t.F64)
	}
	return len(t.F32)
}

// Find returns the tensor of that name.
func Find(tensors []Tensor, name string) (Tensor, bool) {
	for _, t := range tensors {
		if t.Name == name {
			return t, true
		}
	}
	return Tensor{}, false
}

// entry is the JSON of one tensor, in the order in which the fields are written.
type entry struct {
	DType   DType    `json:"dtype"`
	Shape   []int    `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// ReadHeader reads the length and the header from r and nothing after it. What follows is
// exactly DataSize bytes of data.
func ReadHeader(r io.Reader) (Header, error) {
	var size [8]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, fmt.Errorf("safetensors: header length: %w", noEOF(err))
	}
	n := binary.LittleEndian.Uint64(size[:])
	if n < 2 || n > MaxHeader || n%8 != 0 {
		return nil, fmt.Errorf("safetensors: header of %d bytes, want a multiple of 8 of at most %d", n, MaxHeader)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, fmt.Errorf("safetensors: header: %w", noEOF(err))
	}
	h, err := parseHeader(raw)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	return h, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseHeader decodes a padded header and requires that it is the canonical one.
func parseHeader(raw []byte) (Header, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("header: want a JSON object")
	}
	var h Header
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		name, _ := tok.(string)
		var e entry
		if err := dec.Decode(&e); err != nil {
			return nil, fmt.Errorf("header: tensor %q: %w", name, err)
		}
		if len(h) == MaxTensors {
			return nil, fmt.Errorf("header: more than %d tensors", MaxTensors)
		}
		h = append(h, Info{name, e.DType, e.Shape, e.Offsets[0], e.Offsets[1]})
	}
	if err := h.check(); err != nil {
		return nil, err
	}
	want, err := h.marshal()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(want, raw) {
		return nil, errors.New("header: not in canonical form")
	}
	return h, nil
}

// check enforces names, order, shapes and contiguous offsets.
func (h Header) check() error {
	if len(h) == 0 || len(h) > MaxTensors {
		return fmt.Errorf("header: %d tensors, want 1 to %d", len(h), MaxTensors)
	}
	var at int64
	for i, t := range h {
		if err := checkName(t.Name); err != nil {
			return err
		}
		if i > 0 && h[i-1].Name >= t.Name {
			return fmt.Errorf("header: tensor %q comes after %q, want ascending distinct names", t.Name, h[i-1].Name)
		}
		n, err := elements(t.Name, t.DType, t.Shape)
		if err != nil {
			return err
		}
		if t.Begin != at || t.End != at+n*t.DType.size() {
			return fmt.Errorf("header: tensor %q: offsets %d to %d, want %d to %d",
				t.Name, t.Begin, t.End, at, at+n*t.DType.size())
		}
		if at = t.End; at > MaxData {
			return fmt.Errorf("header: more than %d bytes of data", int64(MaxData))
		}
	}
	return nil
}

func checkName(name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("header: tensor name of %d characters, want 1 to %d", len(name), MaxName)
	}
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("_-./", c) {
			return fmt.Errorf("header: tensor name %q: character %q", name, c)
		}
	}
	return nil
}

// elements multiplies a shape without overflow.
func elements(name string, d DType, shape []int) (int64, error) {
	if d.size() == 0 {
		return 0, fmt.Errorf("header: tensor %q: dtype %q, want F32 or F64", name, d)
	}
	if shape == nil || len(shape) > MaxDims {
		return 0, fmt.Errorf("header: tensor %q: %d dimensions, want a list of at most %d", name, len(shape), MaxDims)
	}
	n := int64(1)
	for _, s := range shape {
		if s < 1 || int64(s) > MaxData/n {
			return 0, fmt.Errorf("header: tensor %q: shape %v", name, shape)
		}
		n *= int64(s)
	}
	if n > MaxData/d.size() {
		return 0, fmt.Errorf("header: tensor %q: shape %v is over %d bytes", name, shape, int64(MaxData))
	}
	return n, nil
}

// marshal returns the canonical padded header.
func (h Header) marshal() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, t := range h {
		if i > 0 {
			b.WriteByte(',')
		}
		e, err := json.Marshal(entry{t.DType, t.Shape, [2]int64{t.Begin, t.End}})
		if err != nil {
			return nil, fmt.Errorf("header: %w", err)
		}
		// Names hold nothing that JSON escapes.
		fmt.Fprintf(&b, "\"%s\":%s", t.Name, e)
	}
	b.WriteByte('}')
	for b.Len()%8 != 0 {
		b.WriteByte(' ')
	}
	if b.Len() > MaxHeader {
		return nil, fmt.Errorf("header: %d bytes, the limit is %d", b.Len(), MaxHeader)
	}
	return b.Bytes(), nil
}

// Decode reads a whole file. The result shares no memory with raw.
func Decode(raw []byte) ([]Tensor, error) {
	r := bytes.NewReader(raw)
	h, err := ReadHeader(r)
	if err != nil {
		return nil, err
	}
	if int64(r.Len()) != h.DataSize() {
		return nil, fmt.Errorf("safetensors: %d bytes of data, the header says %d", r.Len(), h.DataSize())
	}
	data := raw[len(raw)-r.Len():]
	out := make([]Tensor, len(h))
	for i, info := range h {
		t := Tensor{Name: info.Name, DType: info.DType, Shape: info.Shape}
		part := data[info.Begin:info.End]
		if t.DType == F32 {
			t.F32 = make([]float32, info.Len())
			for j := range t.F32 {
				t.F32[j] = math.Float32frombits(binary.LittleEndian.Uint32(part[4*j:]))
			}
		} else {
			t.F64 = make([]float64, info.Len())
			for j := range t.F64 {
				t.F64[j] = math.Float64frombits(binary.LittleEndian.Uint64(part[8*j:]))
			}
		}
		out[i] = t
	}
	return out, nil
}

// Encode returns the only file that holds these tensors; their order does not matter.
func Encode(tensors []Tensor) ([]byte, error) {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) })
	h := make(Header, len(sorted))
	var at int64
	for i, t := range sorted {
		n, err := elements(t.Name, t.DType, t.Shape)
		if err != nil {
			return nil, fmt.Errorf("safetensors: %w", err)
		}
		if int64(t.Len()) != n || (t.F32 != nil && t.F64 != nil) {
			return nil, fmt.Errorf("safetensors: tensor %q: %d elements for shape %v of %s", t.Name, t.Len(), t.Shape, t.DType)
		}
		h[i] = Info{t.Name, t.DType, t.Shape, at, at + n*t.DType.size()}
		at = h[i].End
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	head, err := h.marshal()
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	out := make([]byte, 0, 8+int64(len(head))+at)
	out = binary.LittleEndian.AppendUint64(out, uint64(len(head)))
	out = append(out, head...)
	for _, t := range sorted {
		for _, v := range t.F32 {
			out = binary.LittleEndian.AppendUint32(out, math.Float32bits(v))
		}
		for _, v := range t.F64 {
			out = binary.LittleEndian.AppendUint64(out, math.Float64bits(v))
		}
	}
	return out, nil
}

// NonFinite is the first NaN or infinity of a file.
type NonFinite struct {
	Tensor string
	Index  int
	Value  float64
}

// Error names tensor and index.
func (e *NonFinite) Error() string {
	return fmt.Sprintf("safetensors: tensor %q: element %d is %v, want a finite number", e.Tensor, e.Index, e.Value)
}

// CheckFinite returns a *NonFinite for the first element that is NaN or infinite.
func CheckFinite(tensors []Tensor) error {
	for _, t := range tensors {
		for i, v := range t.F32 {
			// All exponent bits set: NaN or infinity.
			if math.Float32bits(v)&0x7f800000 == 0x7f800000 {
				return &NonFinite{t.Name, i, float64(v)}
			}
		}
		for i, v := range t.F64 {
			if math.Float64bits(v)&0x7ff0000000000000 == 0x7ff0000000000000 {
				return &NonFinite{t.Name, i, v}
			}
		}
	}
	return nil
}
