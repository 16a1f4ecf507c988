// Command train makes a model for the classifier from a file of examples, one a line: a
// label, a tab, a text.
//
//	train CORPUS.tsv MODEL.safetensors
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/attestmesh/meshnode/examples/inference/bag"
)

const (
	epochs = 60
	rate   = 0.5
	seed   = 1
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "train:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: train CORPUS.tsv MODEL.safetensors")
	}
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	var examples []bag.Example
	s := bufio.NewScanner(f)
	for line := 1; s.Scan(); line++ {
		label, text, ok := strings.Cut(s.Text(), "\t")
		if !ok {
			return fmt.Errorf("%s: line %d has no tab", args[0], line)
		}
		examples = append(examples, bag.Example{Label: label, Text: text})
	}
	if err := s.Err(); err != nil {
		return err
	}
	model, err := bag.Train(examples, epochs, rate, seed)
	if err != nil {
		return err
	}
	right := 0
	for _, e := range examples {
		if model.Classify(e.Text)[0].Label == e.Label {
			right++
		}
	}
	raw, err := model.Encode()
	if err != nil {
		return err
	}
	fmt.Printf("%d of %d examples right, %d bytes\n", right, len(examples), len(raw))
	return os.WriteFile(args[1], raw, 0o600)
}
