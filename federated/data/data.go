// Package data holds what a participant trains on: tables of numeric features with a label.
//
// A Dataset comes from a CSV file (ReadCSV) or is drawn (Digits). Holdout and Dirichlet cut
// it into parts for trials, by seed; in earnest every organisation brings its own file.
// Statistics are what leaves a node before training: {count, sum, sum of squares} of every
// feature, from which all nodes derive the same standardisation.
//
// # CSV
//
// One RFC 4180 record a line, fields separated by commas, UTF-8, an optional byte order mark,
// empty lines skipped. Every record
// has at least one feature and, last, a label: any token of 1 to MaxLabel bytes after
// trimming spaces. Features are finite decimal numbers. The first record is a header if
// not one of its features is a number. Anything else is an error that names file, line,
// field and remedy; nothing is guessed or left out.
package data

import (
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Dataset is a table: Rows × Features numbers and one label for each row. It is not
// modified once made; parts share the labels' strings and nothing else.
type Dataset struct {
	// Source names the origin in errors: a file, or "drawn digits".
	Source   string
	Features int
	// X holds the rows one after the other.
	X []float64
	// Labels holds the token of each row.
	Labels []string
	// lines holds the line of each row in Source; empty if it has none.
	lines []int32
}

// Rows returns the number of rows.
func (d *Dataset) Rows() int { return len(d.Labels) }

// Row returns the features of row i; the caller must not change them.
func (d *Dataset) Row(i int) []float64 { return d.X[i*d.Features : (i+1)*d.Features] }

// At says where row i comes from, for errors: "FILE:LINE".
func (d *Dataset) At(i int) string {
	if len(d.lines) == 0 {
		return fmt.Sprintf("%s: row %d", d.Source, i+1)
	}
	return fmt.Sprintf("%s:%d", d.Source, d.lines[i])
}

// Subset returns the rows of those indices in that order.
func (d *Dataset) Subset(rows []int) *Dataset {
	out := &Dataset{Source: d.Source, Features: d.Features}
	out.X = make([]float64, 0, len(rows)*d.Features)
	for _, i := range rows {
		out.X = append(out.X, d.Row(i)...)
		out.Labels = append(out.Labels, d.Labels[i])
		if len(d.lines) > 0 {
			out.lines = append(out.lines, d.lines[i])
		}
	}
	return out
}

// Classes returns the distinct labels: in numeric order if all of them are integers, else
// in byte order.
func (d *Dataset) Classes() []string {
	out := slices.Clone(d.Labels)
	slices.Sort(out)
	out = slices.Compact(out)
	numbers := make(map[string]*big.Int, len(out))
	for _, s := range out {
		n, ok := new(big.Int).SetString(s, 10)
		if !ok {
			return out
		}
		numbers[s] = n
	}
	slices.SortFunc(out, func(a, b string) int {
		if c := numbers[a].Cmp(numbers[b]); c != 0 {
			return c
		}
		return strings.Compare(a, b) // "1" and "01" are different tokens
	})
	return out
}

// Encode returns each row's position in classes. A label that is not there is an error.
func (d *Dataset) Encode(classes []string) ([]int32, error) {
	index := make(map[string]int32, len(classes))
	for i, c := range classes {
		index[c] = int32(i)
	}
	out := make([]int32, d.Rows())
	for i, l := range d.Labels {
		n, ok := index[l]
		if !ok {
			return nil, fmt.Errorf("%s: label %q is not one of the job's %d labels; correct the row or the job's labels", d.At(i), l, len(classes))
		}
		out[i] = n
	}
	return out, nil
}

// CheckFeatures requires the number of features that a job names.
func (d *Dataset) CheckFeatures(want int) error {
	if d.Features != want {
		return fmt.Errorf("%s: %d features before the label, the job wants %d; use the file that the job was made for", d.Source, d.Features, want)
	}
	return nil
}
