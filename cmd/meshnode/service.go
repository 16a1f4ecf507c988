package main

import (
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func serviceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "service", Short: "Run programs on somebody's node, and check what they answered", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(serviceDeployCommand(), serviceListCommand(), serviceReceiptCommand())
	return cmd
}

func serviceListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list --node DATA",
		Short: "Show the services of a node on this machine and what runs under their names",
		Args:  cobra.NoArgs,
	}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per service")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		var list []node.Deployment
		if err := c.call(cmd.Context(), http.MethodGet, "/v1/services", nil, &list); err != nil {
			return err
		}
		if asJSON {
			for _, d := range list {
				if err := printJSON(cmd.OutOrStdout(), d); err != nil {
					return err
				}
			}
			return nil
		}
		showServices(cmd.OutOrStdout(), list)
		return nil
	}
	return cmd
}

func showServices(w io.Writer, list []node.Deployment) {
	if len(list) == 0 {
		fmt.Fprintln(w, "this node serves nobody: its configuration lists no services")
		return
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "SERVICE\tSTATE\tVERSION\tPROGRAM\tMODEL\tSINCE\tNOTE")
	for _, d := range list {
		since, note := "-", d.Cause
		if d.Since != nil {
			since = d.Since.Format(time.RFC3339)
		}
		if d.Restarts > 0 {
			note = fmt.Sprintf("%d restarts; %s", d.Restarts, note)
		}
		fmt.Fprintf(tw, "%s\t%s\t%d\t%.16s\t%.16s\t%s\t%s\n", d.Service, d.State, d.Version, orDash(d.Program), orDash(d.Model), since, printable(note))
	}
	tw.Flush()
	fmt.Fprintf(w, "runtime log head %s\n", list[0].RuntimeHead)
}
