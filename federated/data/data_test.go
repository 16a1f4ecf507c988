package data

import (
	"bytes"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestReadCSV(t *testing.T) {
	for name, tc := range map[string]struct {
		in     string
		rows   int
		labels []string
	}{
		"plain":            {"1,2,a\n3,4,b\n", 2, []string{"a", "b"}},
		"header":           {"x,y,label\n1,2,a\n", 1, []string{"a"}},
		"mark and CRLF":    {"\xef\xbb\xbf1,2,a\r\n3,4,b\r\n", 2, []string{"a", "b"}},
		"spaces, exponent": {" 1e3 , -2.5E-1 , two words \n", 1, []string{"two words"}},
		"numeric labels":   {"1,10\n2,9\n3,-1\n", 3, []string{"-1", "9", "10"}},
		"quoted label":     {"1,\"a,b\"\n", 1, []string{"a,b"}},
		"no end of line":   {"1,a", 1, []string{"a"}},
		"empty lines":      {"1,a\n\n2,b\n\n", 2, []string{"a", "b"}},
	} {
		d, err := ReadCSV("f.csv", strings.NewReader(tc.in))
		if err != nil || d.Rows() != tc.rows || !slices.Equal(d.Classes(), tc.labels) {
			t.Errorf("%s: got %+v, %v", name, d, err)
		}
	}
}

// One error, which names file, line, field and remedy.
func TestReadCSVRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"empty":           {"", "f.csv: no rows of data"},
		"header only":     {"x,y,label\n", "f.csv: no rows of data"},
		"one column":      {"1\n2\n", "f.csv:1: one field"},
		"semicolons":      {"1;2;a\n", "f.csv:1: one field"},
		"text":            {"1,2,a\n3,four,b\n", `f.csv:2: field 2: "four" is not a number`},
		"text under head": {"x,y,label\n1,2,a\nu,2,a\n", `f.csv:3: field 1: "u" is not a number`},
		"half a header":   {"x,2,a\n", `f.csv:1: field 1: "x" is not a number`},
		"ragged short":    {"1,2,a\n1,a\n", "f.csv:2: 2 fields, the rows before it have 3"},
		"ragged long":     {"1,2,a\n1,2,3,a\n", "f.csv:2: 4 fields, the rows before it have 3"},
		"ragged header":   {"x,label\n1,2,a\n", "f.csv:2: 3 fields, the rows before it have 2"},
		"NaN":             {"1,2,a\nNaN,2,a\n", "f.csv:2: field 1: \"NaN\" is not a finite number"},
		"NaN first":       {"nan,nan,a\n", "is not a finite number"},
		"Inf":             {"1,-inf,a\n", "f.csv:1: field 2: \"-inf\" is not a finite number"},
		"range":           {"1,1e999,a\n", "is not a finite number"},
		"range first":     {"1e999,a\n", "is not a finite number"},
		"missing":         {"1,,a\n", "f.csv:1: field 2: \"\" is empty"},
		"missing first":   {",a\n", "f.csv:1: field 1: \"\" is empty"},
		"no label":        {"1,2,\n", "f.csv:1: field 3: the label is empty"},
		"label bytes":     {"1,2,\x01\n", "f.csv:1: field 3: label"},
		"long label":      {"1," + strings.Repeat("x", MaxLabel+1), "f.csv:1: field 2: label"},
		"bare quote":      {"1,2,a\n1,\"2\"x,a\n", "f.csv:2: field at column"},
		"quoted break":    {"1,\"a\nb\"\n", "f.csv:1: field at column"},
		"too wide":        {strings.Repeat("1,", MaxFeatures+1) + "a", "the limit is"},
	} {
		_, err := ReadCSV("f.csv", strings.NewReader(tc.in))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: more than one line: %v", name, err)
		}
	}
	var many strings.Builder
	for i := range MaxLabels + 1 {
		fmt.Fprintf(&many, "1,l%d\n", i)
	}
	if _, err := ReadCSV("f.csv", strings.NewReader(many.String())); err == nil || !strings.Contains(err.Error(), "different labels") {
		t.Errorf("got %v", err)
	}
	if _, err := ReadCSV("f.csv", endless{}); err == nil || !strings.Contains(err.Error(), "f.csv:1: the line is over the limit") {
		t.Errorf("got %v", err)
	}
}

// endless is a file that never ends and has one field.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '#'
	}
	return len(p), nil
}

func TestCSVRoundTrip(t *testing.T) {
	d := &Dataset{Features: 2, X: []float64{0.1, -1e-300, math.MaxFloat64, 3}, Labels: []string{"a,b", `"q"`}}
	var buf bytes.Buffer
	if err := d.WriteCSV(&buf); err != nil {
		t.Fatal(err)
	}
	back, err := ReadCSV("f", &buf)
	if err != nil || !slices.Equal(back.X, d.X) || !slices.Equal(back.Labels, d.Labels) {
		t.Errorf("got %+v, %v", back, err)
	}
}

func TestEncodeNamesTheRow(t *testing.T) {
	d, err := ReadCSV("f.csv", strings.NewReader("h,l\n1,a\n2,zz\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := d.Encode([]string{"zz", "a"}); err != nil || !slices.Equal(got, []int32{1, 0}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := d.Subset([]int{1}).Encode([]string{"a"}); err == nil || !strings.HasPrefix(err.Error(), `f.csv:3: label "zz"`) {
		t.Errorf("got %v", err)
	}
	if err := d.CheckFeatures(2); err == nil {
		t.Error("another number of features was accepted")
	}
}

// key identifies a row wherever it ends up.
func keys(ds ...*Dataset) []string {
	var out []string
	for _, d := range ds {
		for i := range d.Rows() {
			out = append(out, fmt.Sprint(d.Row(i), d.Labels[i]))
		}
	}
	slices.Sort(out)
	return out
}

// Splits lose and invent no row, give every node enough, and depend on the seed alone.
func TestSplitsPartition(t *testing.T) {
	all := Digits(600, 3)
	for i := range all.Rows() { // make every row distinct
		all.X[i*all.Features] = float64(i)
	}
	for seed := range uint64(6) {
		train, test, err := all.Holdout(0.2, seed)
		if err != nil {
			t.Fatal(err)
		}
		if test.Rows() < 110 || test.Rows() > 130 || len(test.Classes()) != 10 {
			t.Errorf("seed %d: %d rows of %d classes held out", seed, test.Rows(), len(test.Classes()))
		}
		for _, nodes := range []int{1, 2, 7, 30} {
			parts, err := train.Dirichlet(nodes, 0.5, 8, seed)
			if err != nil {
				t.Fatal(err)
			}
			for n, p := range parts {
				if p.Rows() < 8 {
					t.Errorf("seed %d: node %d of %d has %d rows", seed, n, nodes, p.Rows())
				}
			}
			if !slices.Equal(keys(append(parts, test)...), keys(all)) {
				t.Errorf("seed %d: the parts are not a partition", seed)
			}
			again, err := train.Dirichlet(nodes, 0.5, 8, seed)
			if err != nil || !reflect.DeepEqual(parts, again) {
				t.Errorf("seed %d: not deterministic, %v", seed, err)
			}
		}
	}
}

// The skew must be real, or the demo shows nothing: at 0.5 a node's largest class holds
// far more than the even tenth, at 1000 it does not.
func TestDirichletSkews(t *testing.T) {
	all := Digits(2000, 1)
	largest := func(alpha float64) float64 {
		var sum float64
		parts, err := all.Dirichlet(5, alpha, 8, 9)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range parts {
			count := map[string]int{}
			for _, l := range p.Labels {
				count[l]++
			}
			most := 0
			for _, c := range count {
				most = max(most, c)
			}
			sum += float64(most) / float64(p.Rows())
		}
		return sum / float64(len(parts))
	}
	if skewed, even := largest(0.5), largest(1000); skewed < 0.2 || even > 0.13 {
		t.Errorf("mean share of the largest class: %.3f at 0.5, %.3f at 1000", skewed, even)
	}
	if parts, err := all.Dirichlet(3, 1e-9, 1, 1); err != nil || len(parts) != 3 {
		t.Errorf("a tiny alpha: %v", err)
	}
}

func TestSplitsRefuse(t *testing.T) {
	d := Digits(10, 1)
	for _, fraction := range []float64{0, 1, -1, math.NaN()} {
		if _, _, err := d.Holdout(fraction, 1); err == nil {
			t.Errorf("held-out fraction %v accepted", fraction)
		}
	}
	if _, _, err := Digits(1, 1).Holdout(0.5, 1); err == nil {
		t.Error("one row was split")
	}
	if _, err := d.Dirichlet(2, 0.5, 6, 1); err == nil {
		t.Error("too few rows accepted")
	}
	if _, err := d.Dirichlet(0, 0.5, 1, 1); err == nil {
		t.Error("no nodes accepted")
	}
	if _, err := d.Dirichlet(2, math.NaN(), 1, 1); err == nil {
		t.Error("alpha NaN accepted")
	}
}

func TestShuffleLabels(t *testing.T) {
	d := Digits(300, 1)
	parts, err := d.Dirichlet(3, 0.5, 5, 1)
	if err != nil {
		t.Fatal(err)
	}
	before := keys(parts...)
	shuffled := ShuffleLabels(parts, 7)
	var was, is []string
	for i := range parts {
		if !slices.Equal(parts[i].X, shuffled[i].X) {
			t.Error("features moved")
		}
		was, is = append(was, parts[i].Labels...), append(is, shuffled[i].Labels...)
	}
	same := 0
	for i := range was {
		if was[i] == is[i] {
			same++
		}
	}
	slices.Sort(was)
	slices.Sort(is)
	if !slices.Equal(was, is) || same > 100 || !slices.Equal(before, keys(parts...)) {
		t.Errorf("%d of 300 labels stayed, or labels were lost, or the input changed", same)
	}
}

func TestDigitsAreDeterministic(t *testing.T) {
	a, b, c := Digits(50, 1), Digits(50, 1), Digits(50, 2)
	if !reflect.DeepEqual(a, b) || reflect.DeepEqual(a, c) {
		t.Error("the seed does not decide")
	}
	for _, v := range a.X {
		if v < 0 || v > DigitInk || v != math.Trunc(v) {
			t.Fatalf("pixel %v", v)
		}
	}
}

func FuzzReadCSV(f *testing.F) {
	f.Add("x,y,l\n1,2,a\n")
	f.Add("1,\"a\"\"b\"\n\xef\xbb\xbf,2\n")
	f.Fuzz(func(t *testing.T, in string) {
		d, err := ReadCSV("f", strings.NewReader(in))
		if err != nil {
			return
		}
		if len(d.X) != d.Rows()*d.Features || d.Rows() == 0 {
			t.Fatalf("%d numbers, %d rows of %d", len(d.X), d.Rows(), d.Features)
		}
		var buf bytes.Buffer
		if err := d.WriteCSV(&buf); err != nil {
			t.Fatal(err)
		}
		back, err := ReadCSV("f", &buf)
		if err != nil || !slices.Equal(back.X, d.X) || !slices.Equal(back.Labels, d.Labels) {
			t.Fatalf("does not come back: %v", err)
		}
	})
}
