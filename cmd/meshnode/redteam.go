package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/attestmesh/meshnode/redteam"
	"github.com/spf13/cobra"
)

type redteamFlags struct {
	config  string
	as      string
	attacks []string
	list    bool
	asJSON  bool
}

func redteamCommand() *cobra.Command {
	var f redteamFlags
	cmd := &cobra.Command{
		Use:   "redteam TARGET",
		Short: "Attack a node of your own and say whether it held",
		Long: `Attack one live node, your own, as an outsider would, and report each attack as held,
broken or skipped. TARGET is the node's public URL, http://HOST:PORT, or its endpoint for
clients, https://HOST:PORT, which is then attacked in place of the public listener.

Whom it attacks. A node on a loopback address, or, with --config, one whose Credential an
enroll key of your own organisation signed. Each address must first prove in an honest
handshake that it is that node. Nobody else's node is attacked.

What it needs. Without --config it is a stranger. With the --config of a node of yours it
enrols as another node of your organisation, named by --as, which your enroller's releases
file must list under nodes; a member of the mesh will remember that it has seen it. Give it
a name that no real node has: a newer boot of a name retires the older one.

Exit 0: all that ran held. 1: at least one broke the node. 2: usage. 3: the target does not
answer, or nothing could be tried.`,
		Args: cobra.MaximumNArgs(1),
	}
	cmd.Flags().StringVar(&f.config, "config", "", "configuration of a node of yours (YAML), for genesis, enroller and attester")
	cmd.Flags().StringVar(&f.as, "as", "redteam", "name to enrol under, listed by the enroller")
	cmd.Flags().StringArrayVar(&f.attacks, "attack", nil, "run only this attack (repeatable)")
	cmd.Flags().BoolVar(&f.list, "list", false, "list the attacks and run none")
	cmd.Flags().BoolVar(&f.asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		attacks, err := chosenAttacks(f.attacks)
		if err != nil {
			return err
		}
		if f.list {
			return listAttacks(cmd.OutOrStdout(), attacks, f.asJSON)
		}
		if len(args) != 1 {
			return usageError("meshnode redteam http://127.0.0.1:PORT", "name one target by its public URL")
		}
		return runRedteam(cmd.Context(), cmd.OutOrStdout(), args[0], attacks, f)
	}
	return cmd
}

// chosenAttacks returns the named attacks in the order of the catalogue; all for none.
func chosenAttacks(names []string) ([]redteam.Attack, error) {
	all := redteam.Attacks()
	if len(names) == 0 {
		return all, nil
	}
	for _, n := range names {
		if !slices.ContainsFunc(all, func(a redteam.Attack) bool { return a.Name == n }) {
			return nil, usageError("meshnode redteam --list", "no attack is called %.64q", n)
		}
	}
	return slices.DeleteFunc(all, func(a redteam.Attack) bool { return !slices.Contains(names, a.Name) }), nil
}

func listAttacks(w io.Writer, attacks []redteam.Attack, asJSON bool) error {
	type line struct {
		Name  string `json:"name"`
		Tries string `json:"tries"`
		Flaw  string `json:"flaw"`
		Needs string `json:"needs"`
	}
	tw := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, a := range attacks {
		if asJSON {
			if err := printJSON(w, line{a.Name, a.Tries, a.Flaw, a.Precondition()}); err != nil {
				return err
			}
			continue
		}
		fmt.Fprintf(tw, "%s\ttries to %s\n\ta flawed node would %s\n\tneeds %s\n", a.Name, a.Tries, a.Flaw, a.Precondition())
	}
	return tw.Flush()
}

// redteamReport is what --json prints.
type redteamReport struct {
	Target    string            `json:"target"`
	Node      string            `json:"node"`
	Peer      string            `json:"peer"`
	Addresses []string          `json:"addresses"`
	Held      int               `json:"held"`
	Broken    int               `json:"broken"`
	Skipped   int               `json:"skipped"`
	Outcomes  []redteam.Outcome `json:"outcomes"`
}

func runRedteam(ctx context.Context, out io.Writer, url string, attacks []redteam.Attack, f redteamFlags) error {
	run, err := prepareRedteam(ctx, url, attacks, f)
	if err != nil {
		return err
	}
	defer run.close()
	campaign, err := redteam.NewCampaign(ctx, run.target, run.arsenal)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, redteam.ErrNotOurs):
		return usageError("attack a node on this machine, or pass --config of a node of the same organisation", "%v", err)
	case err != nil:
		return unavailableError("unavailable", "look whether the node runs: meshnode status --node DATA", "%v", err)
	}
	r := redteamReport{Target: url, Node: run.node, Peer: run.target.Peer.String(), Addresses: campaign.Addresses()}
	progress := func(redteam.Outcome) {}
	if !f.asJSON {
		fmt.Fprintf(out, "%d attacks on %s, peer %s, at %s\n", len(attacks), run.node, r.Peer, strings.Join(r.Addresses, " "))
		progress = func(o redteam.Outcome) { showOutcome(out, o) }
	}
	r.Outcomes = campaign.Run(ctx, attacks, progress)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.count()
	if f.asJSON {
		if err := printJSON(out, r); err != nil {
			return err
		}
	} else {
		showRedteam(out, r, attacks)
	}
	switch {
	case r.Broken > 0:
		return exitStatus(exitRefused)
	case r.Held == 0:
		return exitStatus(exitUnavailable)
	}
	return nil
}

func (r *redteamReport) count() {
	for _, o := range r.Outcomes {
		switch o.Status {
		case redteam.Held:
			r.Held++
		case redteam.Broken:
			r.Broken++
		default:
			r.Skipped++
		}
	}
}

func showOutcome(w io.Writer, o redteam.Outcome) {
	word := map[redteam.Status]string{redteam.Held: "held", redteam.Broken: "BROKEN", redteam.Skipped: "skip"}[o.Status]
	fmt.Fprintf(w, "%-7s %-20s %5.1fs  %s\n", word, o.Attack, time.Duration(o.Took).Seconds(), printable(o.Evidence))
}

// showRedteam closes the report with what broke and what it means.
func showRedteam(w io.Writer, r redteamReport, attacks []redteam.Attack) {
	for _, o := range r.Outcomes {
		if o.Status != redteam.Broken {
			continue
		}
		for _, a := range attacks {
			if a.Name == o.Attack {
				fmt.Fprintf(w, "\n%s broke the node. It tries to %s; a flawed node would %s.\n", a.Name, a.Tries, a.Flaw)
			}
		}
	}
	fmt.Fprintf(w, "\n%s: %d held, %d broken, %d skipped\n", r.Node, r.Held, r.Broken, r.Skipped)
}
