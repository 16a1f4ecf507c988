package main

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Look at the allowed set and change it with the organisations' signatures", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(policyShowCommand(), policyApproveCommand(), policyDryRunCommand(), policyProposeCommand(), policySuspendCommand(), policyLiftCommand(),
		policyHistoryCommand(), policyRebaseCommand(), policyHardwareCommand(), policyRejectCommand(), policyImpactCommand())
	return cmd
}

func policyShowCommand() *cobra.Command {
	var asJSON, draft bool
	var at uint64
	cmd := &cobra.Command{
		Use:   "show --node DATA | show --at EPOCH (--node DATA | --log DIR|URL | --chain FILE)",
		Short: "Show the allowed set in force, and what is suspended; or that of an earlier epoch",
		Args:  cobra.NoArgs,
	}
	f := policyFlags(cmd, true)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&draft, "draft", false, "print the frame of a proposal on the present base, to be filled with actions")
	cmd.Flags().Uint64Var(&at, "at", 0, "epoch, from meshnode policy history; the history is verified from genesis on")
	cmd.MarkFlagsMutuallyExclusive("at", "draft")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("at") {
			return showPolicyAt(cmd, f, at, asJSON)
		}
		if f.log != "" || f.chain != "" || f.genesis != "" {
			return usageError("add --at EPOCH; meshnode policy history lists the epochs", "what is in force now is what a node says")
		}
		c, err := newControl(f.node)
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
		if err := showEntries(cmd.OutOrStdout(), v.Entries, v.Revoked, v.Ends); err != nil {
			return err
		}
		showPlatforms(cmd.OutOrStdout(), v)
		showSuspensions(cmd.OutOrStdout(), v)
		for _, w := range v.Withdrawals {
			fmt.Fprintf(cmd.OutOrStdout(), "\n%s has withdrawn from proposal %s, which expires %s\n", w.Organisation, w.Proposal, w.Expires.Format(time.RFC3339))
		}
		return showParties(cmd.OutOrStdout(), v)
	}
	return cmd
}

// showEntries lists the allowed set and what was removed from it.
func showEntries(w io.Writer, entries, revoked []consensus.Entry, ends map[string]time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "ENTRY\tKIND\tROLES\tMEASUREMENT\tENDS\tPROVENANCE")
	for _, e := range entries {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", e.ID, e.Kind, strings.Join(e.Roles, " "), e.Measurement, entryEnd(ends[e.ID]), printable(e.DescribeProvenance()))
	}
	for _, e := range revoked {
		fmt.Fprintf(tw, "%s\t%s\trevoked\t%s\n", e.ID, e.Kind, e.Measurement)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	// Whatever else an entry demands is in its description.
	for _, e := range entries {
		plain := consensus.Entry{ID: e.ID, Kind: e.Kind, Measurement: e.Measurement, Roles: e.Roles}
		if text := e.Describe(); text != plain.Describe() {
			fmt.Fprintf(w, "\n%s\n", printable(text))
			for _, file := range e.IMA {
				fmt.Fprintf(w, "  file %s\n", file)
			}
		}
	}
	return nil
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
	if ext := filepath.Ext(path); ext == ".yaml" || ext == ".yml" {
		return out, usageError("sign it first with meshnode policy approve "+path+" --key KEY", "%s: a draft, which nobody has signed", path)
	}
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
