package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func jobCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "job", Short: "Run federated training jobs and check what they made", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(jobApproveCommand(), jobSubmitCommand(), jobListCommand(), jobShowCommand(), jobExportCommand(),
		jobVerifyCommand(), jobBaselineCommand(), jobSplitCommand())
	return cmd
}

func jobSubmitCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "submit FILE --node DATA",
		Short: "Submit a job that organisations have signed, and wait until it is ordered",
		Args:  cobra.ExactArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out, err := submitFile(cmd, *socket, args[0], "/v1/jobs")
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), out)
		}
		fmt.Fprintf(cmd.OutOrStdout(), "job %s is ordered; nodes of %s take part\n", out.ID, strings.Join(out.Organisations, " "))
		return nil
	}
	return cmd
}

func jobListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{Use: "list --node DATA", Short: "List the jobs", Args: cobra.NoArgs}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per job")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		var jobs []node.JobStatus
		if err := c.call(cmd.Context(), http.MethodGet, "/v1/jobs", nil, &jobs); err != nil {
			return err
		}
		if len(jobs) == 0 && !asJSON {
			fmt.Fprintln(cmd.OutOrStdout(), "no jobs")
		}
		for _, j := range jobs {
			if asJSON {
				if err := printJSON(cmd.OutOrStdout(), j); err != nil {
					return err
				}
				continue
			}
			showJob(cmd.OutOrStdout(), j)
		}
		return nil
	}
	return cmd
}

func jobShowCommand() *cobra.Command {
	var asJSON, follow bool
	cmd := &cobra.Command{Use: "show ID --node DATA", Short: "Show one job, round by round", Args: cobra.ExactArgs(1)}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object, or one per change with --follow")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until the job ends")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		path := "/v1/jobs/" + args[0]
		if !follow {
			var j node.JobStatus
			if err := c.call(cmd.Context(), http.MethodGet, path, nil, &j); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), j)
			}
			showJob(cmd.OutOrStdout(), j)
			return nil
		}
		return followJob(cmd.Context(), c, path+"?follow=1", asJSON, cmd.OutOrStdout())
	}
	return cmd
}

// followJob prints every change of a job until it is done; exit 1 where it failed.
func followJob(ctx context.Context, c *control, path string, asJSON bool, w io.Writer) error {
	body, err := c.open(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, 4<<20)
	var j node.JobStatus
	shown := -1
	for lines.Scan() {
		if err := json.Unmarshal(lines.Bytes(), &j); err != nil {
			return err
		}
		if asJSON {
			fmt.Fprintf(w, "%s\n", lines.Bytes())
			continue
		}
		for _, r := range j.Committed {
			if r.Round > shown && !r.Evaluating {
				showRound(w, r)
				shown = r.Round
			}
		}
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case j.State == "failed":
		return refusedError("job_failed", "look at the participants' logs", "job %s failed: %s", j.ID, j.WaitingFor)
	case j.State != "done":
		return unavailableError("unavailable", "is the node running?", "the node stopped answering: %v", errors.Join(lines.Err(), io.ErrUnexpectedEOF))
	}
	return nil
}

func showJob(w io.Writer, j node.JobStatus) {
	fmt.Fprintf(w, "%s  %s: %s, round %d of %d", j.ID, printable(j.Name), j.State, j.Round, j.Rounds)
	if j.Aggregator != "" {
		fmt.Fprintf(w, ", attempt %d at %s", j.Attempt, j.Aggregator)
	}
	if j.WaitingFor != "" {
		fmt.Fprintf(w, ", waiting for %s", printable(j.WaitingFor))
	}
	fmt.Fprintln(w)
	for _, r := range j.Committed {
		showRound(w, r)
	}
}

func showRound(w io.Writer, r node.CommittedRound) {
	accuracy := "no hold-out data"
	if r.Accuracy != nil {
		accuracy = fmt.Sprintf("accuracy %.3f", *r.Accuracy)
	}
	if r.Evaluating {
		accuracy = "not evaluated yet"
	}
	if r.Round == 0 {
		accuracy = "statistics"
	}
	fmt.Fprintf(w, "  round %d: %s, %d participants, added up by %s (attempt %d), model %.16s\n",
		r.Round, accuracy, len(r.Participants), r.Aggregator, r.Attempt, r.ResultRoot)
}
