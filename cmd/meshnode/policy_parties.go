package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/attestmesh/meshnode/node"
)

// showParties lists who decides: the organisations in force with their keys, what each may
// have ordered, and the outside witnesses.
func showParties(w io.Writer, v node.PolicyView) error {
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "ORGANISATION\tROLE\tKEY\tID\tENDS")
	for _, p := range v.Parties {
		for _, k := range p.Keys {
			ends := "never"
			if !k.NotAfter.IsZero() {
				ends = k.NotAfter.Format(time.RFC3339)
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\n", p.ID, strings.Join(p.Roles, " "), k.Role, k.ID, ends)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "\neach organisation: %s\n", v.Limits.Describe())
	for _, witness := range v.Witnesses {
		fmt.Fprintf(w, "witness %s\n", printable(witness))
	}
	return nil
}
