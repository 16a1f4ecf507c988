package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func statusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status --node DATA",
		Short: "Show what a node on this machine knows of itself and the mesh",
		Args:  cobra.NoArgs,
	}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := readStatus(cmd, *socket)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), s)
		}
		showStatus(cmd.OutOrStdout(), s)
		return nil
	}
	return cmd
}

func peersCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "peers --node DATA",
		Short: "Show every other node this node knows, and why it is not connected",
		Args:  cobra.NoArgs,
	}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per peer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		s, err := readStatus(cmd, *socket)
		if err != nil {
			return err
		}
		if asJSON {
			for _, p := range s.Peers {
				if err := printJSON(cmd.OutOrStdout(), p); err != nil {
					return err
				}
			}
			return nil
		}
		showPeers(cmd.OutOrStdout(), s)
		return nil
	}
	return cmd
}

func readStatus(cmd *cobra.Command, socket string) (node.Status, error) {
	var s node.Status
	c, err := newControl(socket)
	if err != nil {
		return s, err
	}
	return s, c.call(cmd.Context(), http.MethodGet, "/v1/status", nil, &s)
}

func showStatus(w io.Writer, s node.Status) {
	fmt.Fprintf(w, "%s  %s", s.Node, s.Phase)
	if s.PhaseReason != nil {
		fmt.Fprintf(w, ": %s", printable(s.PhaseReason.String()))
	}
	fmt.Fprintf(w, "\n  peer id      %s\n  mesh         %s, incarnation %d, epoch %d\n", s.Peer, s.MeshID, s.Incarnation, s.Epoch)
	fmt.Fprintf(w, "  measurement  %s (%s)\n", orDash(s.Measurement), s.Kind)
	if s.PhaseReason != nil && s.PhaseReason.Remedy != "" {
		fmt.Fprintf(w, "  try          %s\n", printable(s.PhaseReason.Remedy))
	}
	if s.Raft.State != "none" {
		fmt.Fprintf(w, "  raft         %s of term %d, leader %s, voters %s\n", s.Raft.State, s.Raft.Term, orDash(s.Raft.Leader), strings.Join(s.Raft.Voters, " "))
	}
	if len(s.Seats) > 0 {
		var seats []string
		for _, seat := range s.Seats {
			if seat.Node == "" {
				seat.Node = seat.Organisation + " (vacant)"
			}
			seats = append(seats, seat.Node)
		}
		fmt.Fprintf(w, "  seats        %s\n", strings.Join(seats, " "))
	}
	fmt.Fprintf(w, "  log          %d entries, published %d (%s, cosigned by %s)\n", s.Log.Size, s.Log.Published.Size,
		orDash(s.Log.Published.Level), orDash(strings.Join(s.Log.Published.Cosigners, " ")))
	if d := s.Log.Disk; d != nil {
		fmt.Fprintf(w, "  disk         %d of %d MiB free, logs of %d earlier boots\n", d.Free>>20, d.Size>>20, d.Older)
	}
	fmt.Fprintf(w, "  log key      %s\n", orDash(s.Log.Key))
	for _, o := range s.Log.Published.Outside {
		fmt.Fprintf(w, "  witness      %s: %s\n", printable(o.Name), witnessed(o))
	}
	for _, j := range s.Jobs {
		fmt.Fprintf(w, "  job          %s %s: %s, round %d of %d", j.ID, printable(j.Name), j.State, j.Round, j.Rounds)
		if j.WaitingFor != "" {
			fmt.Fprintf(w, ", waiting for %s", printable(j.WaitingFor))
		}
		fmt.Fprintln(w)
	}
	for _, warning := range s.Warnings {
		fmt.Fprintf(w, "  warning      %s\n", printable(warning))
	}
	if len(s.Peers) > 0 {
		fmt.Fprintln(w)
		showPeers(w, s)
	}
}

// witnessed says in words what an outside witness has done.
func witnessed(o node.OutsideStatus) string {
	switch {
	case o.At != nil && o.Error == "":
		return "cosigned the published log at " + o.At.Format(time.RFC3339)
	case o.Error != "" && o.Since != nil:
		return fmt.Sprintf("not since %s: %s", o.Since.Format(time.RFC3339), printable(o.Error))
	case o.Last != nil:
		return fmt.Sprintf("cosigned size %d at %s; the log has grown since", o.Size, o.Last.Format(time.RFC3339))
	}
	return "has not cosigned the published log"
}

func showPeers(w io.Writer, s node.Status) {
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tw, "PEER\tSTATE\tSINCE\tVERDICT\tPROOF\tNOTE")
	for _, p := range s.Peers {
		note := p.Note
		if p.Reason != nil {
			note = strings.TrimPrefix(note+"; "+p.Reason.String(), "; ")
		}
		if p.SharedHardware != "" {
			note = strings.TrimPrefix(note+"; hardware "+p.SharedHardware+" is another organisation's too", "; ")
		}
		name := p.Node
		if name == "" {
			name = p.URL
		}
		since := "-"
		if !p.Since.IsZero() {
			since = p.Since.Format(time.RFC3339)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\n", printable(name), p.State, since, orDash(string(p.Verdict)), orDash(string(p.Proof)), printable(note))
	}
	tw.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
