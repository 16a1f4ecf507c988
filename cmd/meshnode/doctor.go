package main

import (
	"fmt"
	"io"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func doctorCommand() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor --config FILE",
		Short: "Look at this machine and say whether a node could start and be let in",
		Long: `Look at a node's configuration, at this machine and at whom the configuration names: files,
data directory, ports, sim platform, enroller, peers, clock, allowed measurement, and the
devices that give evidence. It enrols nothing and changes nothing, so it may be run beside
a node that runs. Without --config it says what this machine could attest with.

Exit 0: all is well. 2: meshnode run would refuse to start (configuration, files, data
directory, ports). 1: the node would start and be refused (another key, mesh, root or
measurement than expected, or a clock that is off). 3: somebody does not answer, so that it
cannot be said. The worst of them by 2, 1, 3.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var d node.Diagnosis
			if config == "" {
				d = node.DiagnoseMachine(cmd.Context())
			} else {
				d = node.Diagnose(cmd.Context(), config)
			}
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), d); err != nil {
					return err
				}
			} else {
				showDiagnosis(cmd.OutOrStdout(), d)
			}
			if exit := diagnosisExit(d); exit != exitOK {
				return exitStatus(exit)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "the node's configuration (YAML); without it only this machine is looked at")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// diagnosisExit is the worst finding, by 2 > 1 > 3 > 0.
func diagnosisExit(d node.Diagnosis) int {
	rank := map[int]int{exitOK: 0, exitUnavailable: 1, exitRefused: 2, exitUsage: 3}
	worst := exitOK
	for _, c := range d.Checks {
		exit := exitRefused
		switch {
		case c.OK:
			exit = exitOK
		case c.Code == node.CodeUsage:
			exit = exitUsage
		case c.Code == attest.CodeUnavailable:
			exit = exitUnavailable
		}
		if rank[exit] > rank[worst] {
			worst = exit
		}
	}
	return worst
}

func showDiagnosis(w io.Writer, d node.Diagnosis) {
	for _, c := range d.Checks {
		if c.OK {
			fmt.Fprintf(w, "ok    %-29s %s\n", printable(c.Check), printable(c.Got))
			continue
		}
		word := "BAD "
		if c.Code == attest.CodeUnavailable {
			word = "?   "
		}
		fmt.Fprintf(w, "%s  %-29s %s\n      %-29s want %s\n", word, printable(c.Check), printable(c.Got), "", printable(c.Want))
		if c.Remedy != "" {
			fmt.Fprintf(w, "      %-29s try  %s\n", "", printable(c.Remedy))
		}
	}
	switch diagnosisExit(d) {
	case exitOK:
		if d.Node != "" {
			fmt.Fprintf(w, "%s: all is well\n", d.Node)
		}
	case exitUsage:
		fmt.Fprintln(w, "meshnode run would refuse to start")
	case exitRefused:
		fmt.Fprintf(w, "%s would start and not be let in\n", d.Node)
	default:
		fmt.Fprintf(w, "%s: cannot say, somebody does not answer\n", d.Node)
	}
}
