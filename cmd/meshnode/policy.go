package main

import (
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Look at the allowed set and change it with the organisations' signatures", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(policyShowCommand(), policyApproveCommand(), policyDryRunCommand(), policyProposeCommand(), policySuspendCommand(), policyLiftCommand())
	return cmd
}

func policyShowCommand() *cobra.Command {
	var asJSON, draft bool
	cmd := &cobra.Command{
		Use:   "show --node DATA",
		Short: "Show the allowed set in force, and what is suspended",
		Args:  cobra.NoArgs,
	}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&draft, "draft", false, "print the frame of a proposal on the present base, to be filled with actions")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		var v node.PolicyView
		if err := c.call(cmd.Context(), http.MethodGet, "/v1/policy", nil, &v); err != nil {
			return err
		}
		switch {
		case draft:
			fmt.Fprint(cmd.OutOrStdout(), v.Draft)
			return nil
		case asJSON:
			return printJSON(cmd.OutOrStdout(), v)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "epoch %d, base %d; %d of %d organisations narrow, %d widen\n\n",
			v.Epoch, v.Base, v.Thresholds.Narrow, len(v.Organisations), v.Thresholds.Widen)
		tw := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
		fmt.Fprintln(tw, "ENTRY\tKIND\tROLES\tMEASUREMENT")
		for _, e := range v.Entries {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", e.ID, e.Kind, strings.Join(e.Roles, " "), e.Measurement)
		}
		for _, e := range v.Revoked {
			fmt.Fprintf(tw, "%s\t%s\trevoked\t%s\n", e.ID, e.Kind, e.Measurement)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		showSuspensions(cmd.OutOrStdout(), v)
		return nil
	}
	return cmd
}

func policyProposeCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "propose FILE --node DATA",
		Short: "Submit a proposal that carries enough organisations' signatures, and wait until it is ordered",
		Args:  cobra.ExactArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out, err := submitFile(cmd, *socket, args[0], "/v1/proposals")
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), out)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "proposal %s is ordered: %s, signed by %s, in force from epoch %d\n",
			out.ID, out.Class, strings.Join(out.Organisations, " "), out.Epoch)
		return nil
	}
	return cmd
}

// submitFile sends a signed envelope to the node and returns the outcome.
func submitFile(cmd *cobra.Command, socket, path, route string) (node.Submission, error) {
	var out node.Submission
	env, err := readSigned(path)
	if err != nil {
		return out, err
	}
	c, err := newControl(socket)
	if err != nil {
		return out, err
	}
	return out, c.call(cmd.Context(), http.MethodPost, route, env.Marshal(), &out)
}
