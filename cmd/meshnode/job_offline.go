package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/strictyaml"
	"github.com/spf13/cobra"
)

// baselineReport is the output of job baseline --json.
type baselineReport struct {
	// BestLocal and Local are left out with --shuffle-labels.
	BestLocal *float64  `json:"best_local,omitempty"`
	Local     []float64 `json:"local,omitempty"`
	// Federated is the accuracy after the last of Rounds.
	Federated float64   `json:"federated"`
	Rounds    []float64 `json:"rounds"`
	Shuffled  bool      `json:"shuffled"`
	Holdout   int       `json:"holdout"`
	// Chance is the share of the most frequent label in the held-out part.
	Chance float64 `json:"chance"`
}

func jobBaselineCommand() *cobra.Command {
	var train []string
	var holdout string
	var shuffle, asJSON bool
	cmd := &cobra.Command{
		Use:   "baseline JOB.yaml --train FILE.csv... --holdout FILE.csv [--shuffle-labels]",
		Short: "Say what a job's data gives without a mesh: each file alone, and all in one process",
		Long: `Train what a job would train, in this process and without a mesh: once on each file alone,
with as many epochs as the whole job has, and once federated over all of them. With
--shuffle-labels the training labels are permuted first and only the federated run is
made: its accuracy is what chance gives. Further files may follow --train as arguments.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := baseline(args[0], append(train, args[1:]...), holdout, shuffle)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), report)
			}
			if report.BestLocal != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "alone       best %.3f of %.3f\n", *report.BestLocal, report.Local)
			}
			label := "federated"
			if shuffle {
				label = "shuffled"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%-11s %.3f by round %.3f\nchance      %.3f on %d rows held out\n",
				label, report.Federated, report.Rounds, report.Chance, report.Holdout)
			return nil
		},
	}
	cmd.Flags().StringArrayVar(&train, "train", nil, "training data of one participant; may be repeated")
	cmd.Flags().StringVar(&holdout, "holdout", "", "data to measure accuracy on")
	cmd.Flags().BoolVar(&shuffle, "shuffle-labels", false, "permute the training labels first")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func baseline(job string, train []string, holdout string, shuffle bool) (*baselineReport, error) {
	raw, err := readLimited(job, strictyaml.MaxSize)
	if err != nil {
		return nil, err
	}
	spec, err := federated.ParseSpec(job, raw)
	if err != nil {
		return nil, usageError("mend the file", "%v", err)
	}
	if len(train) == 0 || holdout == "" {
		return nil, usageError("give --train FILE.csv for each participant and --holdout FILE.csv", "no training data or no held-out data")
	}
	var parts []*data.Dataset
	for _, path := range append(slices.Clone(train), holdout) {
		d, err := readDataset(path)
		if err != nil {
			return nil, err
		}
		if err := d.CheckFeatures(spec.Features); err != nil {
			return nil, usageError("compare the file with the job's features", "%v", err)
		}
		if _, err := d.Encode(spec.Labels); err != nil {
			return nil, usageError("compare the file with the job's labels", "%v", err)
		}
		parts = append(parts, d)
	}
	test, parts := parts[len(parts)-1], parts[:len(parts)-1]
	report := &baselineReport{Shuffled: shuffle, Holdout: test.Rows(), Chance: chance(test)}
	if shuffle {
		parts = data.ShuffleLabels(parts, spec.Seed)
	} else {
		if report.Local, err = federated.LocalAccuracy(spec, parts, test); err != nil {
			return nil, refusedError("training", "change the job's train section or the data", "train alone: %v", err)
		}
		best := slices.Max(report.Local)
		report.BestLocal = &best
	}
	if report.Rounds, err = federated.FederatedAccuracy(spec, parts, test); err != nil {
		return nil, refusedError("training", "change the job's train section or the data", "train federated: %v", err)
	}
	report.Federated = report.Rounds[len(report.Rounds)-1]
	return report, nil
}

func readDataset(path string) (*data.Dataset, error) {
	d, err := data.ReadFile(path)
	var missing *fs.PathError
	switch {
	case errors.As(err, &missing):
		return nil, usageError("check the path", "%v", err)
	case err != nil:
		return nil, usageError("mend the file: finite numbers, the label last", "%v", err)
	}
	return d, nil
}

// chance is what guessing the most frequent label gives.
func chance(d *data.Dataset) float64 {
	count, most := map[string]int{}, 0
	for _, l := range d.Labels {
		count[l]++
		most = max(most, count[l])
	}
	return float64(most) / float64(d.Rows())
}

// splitReport is the output of job split --json.
type splitReport struct {
	Features int         `json:"features"`
	Labels   []string    `json:"labels"`
	Nodes    []splitPart `json:"nodes"`
	Holdout  splitPart   `json:"holdout"`
	Job      string      `json:"job"`
}

type splitPart struct {
	File string `json:"file"`
	Rows int    `json:"rows"`
	// Counts holds the number of rows of each label.
	Counts map[string]int `json:"counts"`
}

// splitOptions are the flags of job split.
type splitOptions struct {
	draw, nodes    int
	alpha, holdout float64
	seed           uint64
	out            string
}

// minSplitRows is how many rows every node gets at least.
const minSplitRows = 8

func jobSplitCommand() *cobra.Command {
	var o splitOptions
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "split DATA.csv|--draw N --nodes N --out DIR",
		Short: "Deal one data set to nodes for a trial, skewed by label, and write a job for it",
		Long: `Deal a CSV file (numeric features, label last, header optional), or N drawn digit images,
to nodes for a trial. Every node gets its own mixture of labels: a draw of a Dirichlet
distribution with concentration alpha (small means strong skew). DIR, which must be new
or empty, gets node-0.csv …, holdout.csv and job.yaml. Equal seeds give equal files.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := split(args, o)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), report)
			}
			for _, p := range append(report.Nodes, report.Holdout) {
				fmt.Fprintf(cmd.OutOrStdout(), "%-12s %6d rows ", p.File, p.Rows)
				for _, l := range report.Labels {
					fmt.Fprintf(cmd.OutOrStdout(), " %s:%d", printable(l), p.Counts[l])
				}
				fmt.Fprintln(cmd.OutOrStdout())
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&o.draw, "draw", 0, "draw this many digit images instead of reading a file")
	cmd.Flags().IntVar(&o.nodes, "nodes", 0, "number of nodes")
	cmd.Flags().Float64Var(&o.alpha, "alpha", 0.5, "concentration of the label skew")
	cmd.Flags().Float64Var(&o.holdout, "holdout", 0.2, "fraction of the rows to hold out")
	cmd.Flags().Uint64Var(&o.seed, "seed", 1, "seed of everything that is random")
	cmd.Flags().StringVar(&o.out, "out", "", "new or empty directory")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// maxDraw bounds --draw: half a minute of drawing.
const maxDraw = 200_000

func split(args []string, o splitOptions) (*splitReport, error) {
	if o.nodes < 1 || o.nodes > federated.MaxParticipants {
		return nil, usageError(fmt.Sprintf("give --nodes 1 to %d", federated.MaxParticipants), "--nodes %d", o.nodes)
	}
	if o.out == "" {
		return nil, usageError("name a new directory with --out DIR", "no directory")
	}
	if (len(args) == 1) == (o.draw != 0) {
		return nil, usageError("give either DATA.csv or --draw N", "want one source of data")
	}
	var all *data.Dataset
	var err error
	switch {
	case len(args) == 1:
		if all, err = readDataset(args[0]); err != nil {
			return nil, err
		}
	case o.draw < 1 || o.draw > maxDraw:
		return nil, usageError(fmt.Sprintf("give --draw 1 to %d", maxDraw), "--draw %d", o.draw)
	default:
		all = data.Digits(o.draw, o.seed)
	}
	train, test, err := all.Holdout(o.holdout, o.seed)
	if err != nil {
		return nil, usageError("give --holdout a fraction such as 0.2, and enough rows", "%v", err)
	}
	parts, err := train.Dirichlet(o.nodes, o.alpha, minSplitRows, o.seed)
	if err != nil {
		return nil, usageError("use fewer nodes, more data, or an alpha above 0", "%v", err)
	}
	spec := federated.DefaultSpec()
	spec.Name, spec.Seed, spec.Features, spec.Labels, spec.Disclosure = "trial", o.seed, all.Features, all.Classes(), federated.DiscloseFull
	if err := spec.Validate(); err != nil {
		return nil, usageError("train on data with at least two labels", "%s: %v", all.Source, err)
	}
	return writeSplit(o.out, spec, parts, test)
}

// writeSplit writes everything that was split; all input has been judged before.
func writeSplit(out string, spec federated.Spec, parts []*data.Dataset, test *data.Dataset) (*splitReport, error) {
	if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
		return nil, usageError("choose a new directory", "%s is not empty", out)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, usageError("choose a new directory", "%v", err)
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return nil, usageError("check the path", "%v", err)
	}
	report := &splitReport{Features: spec.Features, Labels: spec.Labels, Job: "job.yaml"}
	write := func(name string, d *data.Dataset) (splitPart, error) {
		part := splitPart{File: name, Rows: d.Rows(), Counts: map[string]int{}}
		for _, l := range d.Labels {
			part.Counts[l]++
		}
		var buf bytes.Buffer
		if err := d.WriteCSV(&buf); err != nil {
			return part, err
		}
		return part, writeOver(filepath.Join(out, name), buf.Bytes(), 0o644)
	}
	for i, p := range parts {
		part, err := write(fmt.Sprintf("node-%d.csv", i), p)
		if err != nil {
			return nil, err
		}
		report.Nodes = append(report.Nodes, part)
	}
	var err error
	if report.Holdout, err = write("holdout.csv", test); err != nil {
		return nil, err
	}
	text, err := spec.YAML()
	if err != nil {
		return nil, err
	}
	return report, writeOver(filepath.Join(out, report.Job), text, 0o644)
}
