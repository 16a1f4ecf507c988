package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func policyDryRunCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "dry-run FILE... --node DATA",
		Short: "Say what a proposal would do if it were ordered now: who goes when and why, and whether the mesh goes on",
		Long: `Say what a proposal would do if it were ordered now, and submit nothing. FILE is a draft
(YAML) or a proposal with some or all of its signatures; several files of one proposal are
put together.

The answer is that of the node: whether the proposal would be refused and with which code,
its class and the signatures that it lacks, which nodes would go at once and which later as
time passes, the seats that remain, what becomes of running rounds. The node also judges the
last claims of every peer that it is linked to; of others it knows what was ordered.

Exit 0: it would take effect, once it is signed. 1: it would be refused, or it leaves no
quorum of the seats. 2: malformed. 3: the node does not answer.`,
		Args: cobra.MinimumNArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		env, own, err := readProposals(args)
		if err != nil {
			return err
		}
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		var raw []byte
		if err := c.call(cmd.Context(), http.MethodPost, "/v1/dry-run", env.Marshal(), &raw); err != nil {
			return err
		}
		var p node.DryRun
		if err := json.Unmarshal(raw, &p); err != nil {
			return unavailableError("unavailable", "run the release of meshnode that the node runs", "the node's answer cannot be read: %v", err)
		}
		if asJSON {
			// As the node said it: it may be of a newer release than this command.
			_, err = cmd.OutOrStdout().Write(raw)
		} else {
			p.ID = own.ID() // a node that refuses another mesh's proposal has none for it
			err = showDryRun(cmd.OutOrStdout(), &p)
		}
		if err == nil && (p.Refused != nil || !p.Seats.Survives) {
			err = exitStatus(exitRefused)
		}
		return err
	}
	return cmd
}

func showDryRun(w io.Writer, p *node.DryRun) error {
	var b strings.Builder
	fmt.Fprintf(&b, "proposal %s\n", p.ID)
	for _, line := range p.Changes {
		fmt.Fprintf(&b, "  %s\n", line)
	}
	if p.Refused != nil {
		fmt.Fprintf(&b, "REFUSED    %s: whoever signs it\n", p.Refused)
		if p.Refused.Remedy != "" {
			fmt.Fprintf(&b, "  try: %s\n", p.Refused.Remedy)
		}
	}
	if p.Class != "" {
		fmt.Fprintf(&b, "signatures %s\n", signaturesText(p.Class, p.Signatures))
		if len(p.Withdrawn) > 0 {
			fmt.Fprintf(&b, "           withdrawn by %s\n", listOrgs(p.Withdrawn))
		}
	}
	if p.Refused == nil || p.Refused.Code == attest.CodeQuorumLoss {
		fmt.Fprintf(&b, "seats      %s\n", seatsText(p.Seats))
	}
	if p.Refused == nil {
		fmt.Fprintf(&b, "then       epoch %d, base %d\n", p.Epoch, p.Base)
	}
	writeDepartures(&b, p.Departures)
	for _, ref := range p.Returns {
		fmt.Fprintf(&b, "returns    %s is allowed again; if it held a seat, without it\n", ref)
	}
	if len(p.Reenrol) > 0 {
		fmt.Fprintf(&b, "enrol anew %s: out until their enroller has signed under another key\n", joinRefs(p.Reenrol))
	}
	for _, c := range p.Refuses {
		when := ""
		if !c.At.IsZero() {
			when = "from " + c.At.Format(time.RFC3339) + " on "
		}
		fmt.Fprintf(&b, "claims     %sthis node would refuse %s: %s\n", when, c.Node, &c.Reason)
	}
	if len(p.Unjudged) > 0 && p.Refused == nil {
		fmt.Fprintf(&b, "not judged by claims, which this node has none of: %s\n", strings.Join(p.Unjudged, ", "))
	}
	for _, r := range p.Rounds {
		fmt.Fprintf(&b, "round      %s\n", roundText(r))
	}
	_, err := io.WriteString(w, printable(b.String()))
	return err
}

func signaturesText(class consensus.Class, s consensus.Signatures) string {
	text := fmt.Sprintf("%s: %d of %d organisations needed, signed by %s", class, s.Want, s.Of, listOrgs(s.Organisations))
	if s.Missing > 0 {
		return fmt.Sprintf("%s; %d more", text, s.Missing)
	}
	return text + "; enough"
}

func seatsText(s consensus.SeatForecast) string {
	text := fmt.Sprintf("%d now, %d after it, %d are needed", s.Before, s.After, s.Quorum)
	if len(s.Lost) > 0 {
		text += "; lost: " + joinRefs(s.Lost)
	}
	if s.Survives {
		return text + ": the mesh goes on"
	}
	return text + ": THE MESH STOPS, nothing can be ordered any more"
}

// writeDepartures lists who goes, first those that go at once.
func writeDepartures(b *strings.Builder, all []consensus.Departure) {
	if len(all) == 0 {
		return
	}
	tw := tabwriter.NewWriter(b, 0, 4, 2, ' ', 0)
	for _, d := range all {
		when := "at once"
		if !d.At.IsZero() {
			when = d.At.Format(time.RFC3339)
		}
		what := "goes"
		switch {
		case d.Held:
			what = "is not allowed any more and stays, since without it there is no quorum"
		case d.Seat:
			what = "goes, with its seat"
		}
		if d.Anyway {
			what += " (without this proposal too)"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\tentry %s\t%s\n", when, d.Node, d.Code, d.Entry, what)
	}
	tw.Flush() // a strings.Builder takes all
}

func roundText(r federated.RoundForecast) string {
	text := fmt.Sprintf("%d of job %s (%s)", r.Round, r.Job, r.Name)
	if len(r.Lost) > 0 {
		text += " loses " + joinRefs(r.Lost)
	}
	switch r.Fate {
	case federated.FateGoesOn:
		return text + ": goes on"
	case federated.FateAgain:
		if r.Attempt == 0 {
			return text + ": can be opened"
		}
		return text + ": this attempt cannot be committed, the next one can be opened"
	}
	return text + fmt.Sprintf(": WAITS, %s", r.Reason)
}

func joinRefs(refs []identity.NodeRef) string {
	var out []string
	for _, r := range refs {
		out = append(out, r.String())
	}
	return strings.Join(out, ", ")
}
