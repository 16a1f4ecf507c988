package main

import (
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/attestmesh/meshnode/audit"
	"github.com/spf13/cobra"
)

// disclosedFlags are those of log audit about disclosed evidence.
type disclosedFlags struct {
	dirs     []string
	required bool
}

func (f *disclosedFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&f.dirs, "disclosed", nil, "directory of disclosed evidence, to be verified anew; may be repeated")
	cmd.Flags().BoolVar(&f.required, "require-disclosed", false, "exit 3 if evidence behind an affirming result is not there")
}

func (f *disclosedFlags) apply(opts *audit.Options) (err error) {
	if f.required && len(f.dirs) == 0 {
		return usageError("name with --disclosed DIR what members have disclosed", "--require-disclosed without --disclosed")
	}
	if len(f.dirs) > 0 {
		opts.Disclosed, err = openEvidence("--disclosed", f.dirs)
		opts.RequireDisclosed = f.required
	}
	return err
}

// openEvidence opens directories that the flag names.
func openEvidence(flag string, paths []string) (*audit.Evidence, error) {
	var dirs []fs.FS
	for _, path := range paths {
		if st, err := os.Stat(path); err != nil || !st.IsDir() {
			return nil, usageError("name what log disclose wrote, a node's data directory, or its evidence directory", "%s %s: is no directory", flag, path)
		}
		dirs = append(dirs, os.DirFS(path))
	}
	return audit.NewEvidence(dirs...), nil
}

func disclosedText(d *audit.Reappraised) string {
	var b strings.Builder
	fmt.Fprintf(&b, "disclosed  %d of %d results are what their evidence says, %d withheld, %d undecided\n", d.Confirmed, d.Results, d.Withheld, d.Undecided)
	if d.Withheld > 0 {
		fmt.Fprintf(&b, "  withheld: %s\n", listed(d.WithheldLeaves, d.Withheld))
	}
	for _, u := range d.UndecidedList {
		fmt.Fprintf(&b, "  undecided: entry %d: %s\n", u.Leaf, u.Message)
	}
	return b.String()
}

// listed prints the first of all indices.
func listed(indices []uint64, all int) string {
	s := "entries " + strings.Trim(fmt.Sprint(indices), "[]")
	if more := all - len(indices); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}
