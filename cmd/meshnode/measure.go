package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/internal/regular"
	"github.com/attestmesh/meshnode/measure"
)

const measureHelp = `Compute, from the files of a release, what evidence of it will carry.

The figure goes into a proposal (add_entry) or an appraisal policy (references) before any
node runs the release; whoever approves it computes it again from the same files. A wrong
figure lets nobody in who should not be: it keeps the release out.`

// maxMeasured bounds each file that is read into memory.
const maxMeasured = 1 << 30

func measureCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "measure snp|tdx|image",
		Short: "Compute the measurement that a release will have, from its files",
		Long:  measureHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(measureSNPCommand(), measureTDXCommand(), measureImageCommand())
	return cmd
}

// measuredInput names a file that went into a measurement, so that others can tell whether
// they have the same.
type measuredInput struct {
	Name   string `json:"name"`
	File   string `json:"file"`
	Size   int    `json:"size"`
	SHA256 string `json:"sha256"`
}

// measureFiles reads the files of one measurement.
type measureFiles struct{ inputs []measuredInput }

// read returns the contents of a file, which may not be empty; nil for no path.
func (m *measureFiles) read(name, path string, limit int64) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	f, err := regular.Open(path)
	if err != nil {
		return nil, usageError("give the path of a file", "%s: %v", name, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, usageError("give the path of a file", "%s: %v", name, err)
	case int64(len(data)) > limit:
		return nil, usageError("give the file itself, not a disk", "%s: %s: more than %d bytes", name, path, limit)
	case len(data) == 0:
		return nil, usageError("leave the option out if there is none", "%s: %s is empty", name, path)
	}
	sum := sha256.Sum256(data)
	m.inputs = append(m.inputs, measuredInput{Name: name, File: filepath.Base(path), Size: len(data), SHA256: hex.EncodeToString(sum[:])})
	return data, nil
}

// bootFlags are the options of a direct boot.
type bootFlags struct{ kernel, initrd, append string }

func (b *bootFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&b.kernel, "kernel", "", "kernel `FILE`, as for QEMU's -kernel")
	cmd.Flags().StringVar(&b.initrd, "initrd", "", "initrd `FILE`, as for QEMU's -initrd")
	cmd.Flags().StringVar(&b.append, "append", "", "kernel command line, as for QEMU's -append: `TEXT` to the letter")
}

// boot reads the files of a direct boot; nil without a kernel.
func (b *bootFlags) boot(cmd *cobra.Command, files *measureFiles) (*measure.Boot, error) {
	if b.kernel == "" {
		for _, name := range []string{"kernel", "initrd", "append"} {
			if cmd.Flags().Changed(name) {
				return nil, usageError("name the kernel, or leave all three out", "--%s without a --kernel", name)
			}
		}
		return nil, nil
	}
	kernel, err := files.read("kernel", b.kernel, maxMeasured)
	if err != nil {
		return nil, err
	}
	initrd, err := files.read("initrd", b.initrd, maxMeasured)
	return &measure.Boot{Kernel: kernel, Initrd: initrd, CommandLine: b.append}, err
}

// measured is what all of the commands print: the shape of --json.
type measured struct {
	Kind        string            `json:"kind"`
	Measurement string            `json:"measurement"`
	Registers   map[string]string `json:"registers,omitempty"`
	Events      []measure.Event   `json:"events,omitempty"`
	// Covers names what the measurement and registers depend on.
	Covers []string `json:"covers"`
	// Parameters are what was chosen on the command line or by default.
	Parameters map[string]string `json:"parameters"`
	Inputs     []measuredInput   `json:"inputs"`
	// Notes say what this figure does not show, and what it was never compared with.
	Notes []string `json:"notes"`
}

// entry is the action of a policy draft that would allow the release.
func (m *measured) entry() string {
	registers := ""
	if len(m.Registers) > 0 {
		registers = ", registers: {" + strings.Join(sortedPairs(m.Registers, ": "), ", ") + "}"
	}
	return fmt.Sprintf("- add_entry: {kind: %s, measurement: %s%s, roles: [member]}", m.Kind, m.Measurement, registers)
}

func (m *measured) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, m)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-12s %s\n", "measurement", m.Measurement)
	for _, r := range sortedPairs(m.Registers, " ") {
		name, value, _ := strings.Cut(r, " ")
		fmt.Fprintf(&b, "%-12s %s\n", name, value)
	}
	fmt.Fprintf(&b, "%-12s %s\n", "covers", strings.Join(m.Covers, ", "))
	for _, in := range m.Inputs {
		fmt.Fprintf(&b, "%-12s %s, %d bytes, SHA-256 %s\n", in.Name, in.File, in.Size, in.SHA256)
	}
	if p := sortedPairs(m.Parameters, " "); len(p) > 0 {
		fmt.Fprintf(&b, "%-12s %s\n", "with", strings.Join(p, ", "))
	}
	for _, n := range m.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	// What does not cover the kernel is no release, and no line to copy.
	if slices.Contains(m.Covers, "kernel") {
		fmt.Fprintf(&b, "in a draft (meshnode policy show --draft), with the roles that it may have:\n  %s\n", m.entry())
	}
	_, err := io.WriteString(w, printable(b.String()))
	return err
}

// sortedPairs joins keys and values, ordered by key.
func sortedPairs(m map[string]string, sep string) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, k+sep+m[k])
	}
	return out
}
