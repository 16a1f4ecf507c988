package data

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ReadFile reads the CSV file at path.
func ReadFile(path string) (*Dataset, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return ReadCSV(path, f)
}

// ReadCSV reads a table called name from r. See the package comment for what it accepts.
func ReadCSV(name string, r io.Reader) (*Dataset, error) {
	limited := &io.LimitedReader{R: r, N: MaxFile + 1}
	lines := bufio.NewScanner(limited)
	lines.Buffer(nil, MaxLine)
	p := &parser{d: &Dataset{Source: name}, classes: map[string]string{}}
	for line := 1; lines.Scan(); line++ {
		text := lines.Text()
		if line == 1 {
			text = strings.TrimPrefix(text, "\ufeff")
		}
		if text == "" {
			continue
		}
		fields, err := split(name, line, text)
		if err != nil {
			return nil, err
		}
		if err := p.record(line, fields); err != nil {
			return nil, err
		}
		p.last = line
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return nil, fmt.Errorf("%s:%d: the line is over the limit of %d KiB; is this a CSV file?", name, p.last+1, MaxLine>>10)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case limited.N <= 0:
		return nil, fmt.Errorf("%s: over the limit of %d MiB; train on a part of it", name, MaxFile>>20)
	case p.d.Rows() == 0:
		return nil, fmt.Errorf("%s: no rows of data; give a CSV file of numeric features with the label last", name)
	}
	return p.d, nil
}

// split cuts one line into fields. A quoted field ends on its line: no feature and no
// label holds a line break.
func split(name string, line int, text string) ([]string, error) {
	if !strings.Contains(text, `"`) {
		return strings.Split(text, ","), nil
	}
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	var pe *csv.ParseError
	if errors.As(err, &pe) {
		return nil, fmt.Errorf("%s:%d: field at column %d: %w; quote fields as RFC 4180 does", name, line, pe.Column, pe.Err)
	}
	return fields, err
}

type parser struct {
	d       *Dataset
	width   int // fields of the first record
	last    int // line of the last record
	classes map[string]string
}

func (p *parser) record(line int, fields []string) error {
	if p.width == 0 {
		if err := p.first(line, fields); err != nil {
			return err
		}
		if isHeader(fields) {
			return nil
		}
	}
	if len(fields) != p.width {
		return fmt.Errorf("%s:%d: %d fields, the rows before it have %d; complete or remove the row", p.d.Source, line, len(fields), p.width)
	}
	if (p.d.Rows()+1)*p.d.Features > MaxValues {
		return fmt.Errorf("%s:%d: more than %d numbers; train on a part of the file", p.d.Source, line, MaxValues)
	}
	for i, f := range fields[:p.width-1] {
		v, err := strconv.ParseFloat(strings.TrimSpace(f), 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return p.badFeature(line, i+1, f, err)
		}
		p.d.X = append(p.d.X, v)
	}
	label, err := p.label(line, fields[p.width-1])
	if err != nil {
		return err
	}
	p.d.Labels = append(p.d.Labels, label)
	p.d.lines = append(p.d.lines, int32(line))
	return nil
}

func (p *parser) first(line int, fields []string) error {
	if len(fields) < 2 {
		return fmt.Errorf("%s:%d: one field, want features and a label separated by commas", p.d.Source, line)
	}
	if len(fields)-1 > MaxFeatures {
		return fmt.Errorf("%s:%d: %d features, the limit is %d; leave some columns out", p.d.Source, line, len(fields)-1, MaxFeatures)
	}
	p.width, p.d.Features = len(fields), len(fields)-1
	return nil
}

// isHeader reports whether no feature of a first record is a number. "nan" and "inf" parse
// as numbers, so that a first row of them is refused as a row and not skipped as a header.
func isHeader(fields []string) bool {
	for _, f := range fields[:len(fields)-1] {
		f = strings.TrimSpace(f)
		if _, err := strconv.ParseFloat(f, 64); err == nil || errors.Is(err, strconv.ErrRange) || f == "" {
			return false
		}
	}
	return true
}

func (p *parser) badFeature(line, field int, got string, err error) error {
	what := "is not a number"
	switch {
	case strings.TrimSpace(got) == "":
		what = "is empty"
	case err == nil, errors.Is(err, strconv.ErrRange):
		what = "is not a finite number"
	}
	return fmt.Errorf("%s:%d: field %d: %.40q %s; features must be finite numbers and only the last field a label: encode, fill in or remove it",
		p.d.Source, line, field, got, what)
}

func (p *parser) label(line int, field string) (string, error) {
	s := strings.TrimSpace(field)
	if known, ok := p.classes[s]; ok {
		return known, nil
	}
	switch {
	case s == "":
		return "", fmt.Errorf("%s:%d: field %d: the label is empty; fill it in or remove the row", p.d.Source, line, p.width)
	case len(s) > MaxLabel || !utf8.ValidString(s) || !printable(s):
		return "", fmt.Errorf("%s:%d: field %d: label %.40q: want at most %d bytes of printable UTF-8", p.d.Source, line, p.width, s, MaxLabel)
	case len(p.classes) == MaxLabels:
		return "", fmt.Errorf("%s:%d: field %d: more than %d different labels; is the label the last column?", p.d.Source, line, p.width, MaxLabels)
	}
	s = strings.Clone(s) // not a window on the whole record
	p.classes[s] = s
	return s, nil
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) })
}

// WriteCSV writes d without a header, numbers in their shortest form.
func (d *Dataset) WriteCSV(w io.Writer) error {
	cw := csv.NewWriter(w)
	record := make([]string, d.Features+1)
	for i := range d.Rows() {
		for j, v := range d.Row(i) {
			record[j] = strconv.FormatFloat(v, 'g', -1, 64)
		}
		record[d.Features] = d.Labels[i]
		if err := cw.Write(record); err != nil {
			return err
		}
	}
	cw.Flush()
	return cw.Error()
}
