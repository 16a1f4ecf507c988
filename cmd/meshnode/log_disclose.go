package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
)

// disclosedName is the list that log disclose writes beside the files.
const disclosedName = "disclosed.json"

func logDiscloseCommand() *cobra.Command {
	var out string
	var all, asJSON bool
	cmd := &cobra.Command{
		Use:   "disclose (INDEX... | --all) -o DIR",
		Short: "Hand out the evidence behind results of this node, for an auditor",
		Long: `Write the evidence behind attestation results that this node made, with the salts that open
the commitments in the log, into a directory: one file for each result, named by its
commitment, and a list of them, disclosed.json. An auditor gives the directory to log audit
--disclosed.

It is what the log keeps from the public: chip ids, certificates, command lines, the files
that were run. Hand out what was asked for, to whom may have it.

Exit 1: it was erased, or is older than it is kept. 2: not an entry of this node's. 3: not here.`,
	}
	socket := nodeFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if all && len(args) > 0 {
			return usageError("name entries of the log (meshnode log show), or give --all", "--all, and %d entries by their numbers", len(args))
		}
		if !all && len(args) == 0 {
			return usageError("name entries of the log (meshnode log show), or give --all", "neither an entry nor --all")
		}
		if out == "" {
			return usageError("name a directory with -o DIR", "nowhere to write to")
		}
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		var paths []string
		for _, arg := range args {
			if _, err := strconv.ParseUint(arg, 10, 63); err != nil {
				return usageError("an entry is named by its number, from 0", "%q is no index", arg)
			}
			paths = append(paths, "/v1/leaves/"+arg+"/evidence")
		}
		if all {
			var kept []node.KeptEvidence
			if err := c.call(cmd.Context(), http.MethodGet, "/v1/evidence", nil, &kept); err != nil {
				return err
			}
			for _, k := range kept {
				paths = append(paths, "/v1/evidence/"+k.Commitment)
			}
		}
		written, err := writeDisclosed(cmd, c, paths, out)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]any{"files": written, "directory": out})
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d files of evidence in %s: they name chips and what ran on them\n", written, out)
		return nil
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "directory to write to, made where absent")
	cmd.Flags().BoolVar(&all, "all", false, "all evidence that the node keeps")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// disclosedFile is one line of disclosed.json; of a file that was not asked for by its entry, that
// and what the log says of it are left out.
type disclosedFile struct {
	Leaf       *uint64           `json:"leaf,omitempty"`
	Commitment string            `json:"commitment"`
	Verifier   *identity.NodeRef `json:"verifier,omitempty"`
	Subject    *identity.NodeRef `json:"subject,omitempty"`
	At         time.Time         `json:"at,omitzero"`
}

// writeDisclosed fetches and writes files of evidence, the list last.
func writeDisclosed(cmd *cobra.Command, c *control, paths []string, out string) (int, error) {
	dir, err := durable.Open(out)
	if err != nil {
		return 0, usageError("name a directory that can be written", "%v", err)
	}
	list := []disclosedFile{}
	for _, path := range paths {
		var d node.Disclosure
		if err := c.call(cmd.Context(), http.MethodGet, path, nil, &d); err != nil {
			return len(list), err
		}
		if err := dir.WriteFile(d.Commitment, d.File, 0o600); err != nil {
			return len(list), unavailableError("unavailable", "look at the directory's permissions and the disk", "%v", err)
		}
		f := disclosedFile{Commitment: d.Commitment, At: d.At}
		if !d.At.IsZero() {
			f.Leaf, f.Verifier, f.Subject = &d.Leaf, &d.Verifier, &d.Subject
		}
		list = append(list, f)
	}
	raw, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return len(list), err
	}
	if err := dir.WriteFile(disclosedName, append(raw, '\n'), 0o600); err != nil {
		return len(list), unavailableError("unavailable", "look at the directory's permissions and the disk", "%v", err)
	}
	return len(list), nil
}

// erased is the output of log erase --json.
type erased struct {
	node.Erasure
	Files int `json:"files"` // 0 is said too
}

func logEraseCommand() *cobra.Command {
	var subject, before string
	var yes, asJSON bool
	cmd := &cobra.Command{
		Use:   "erase (--subject ORG/NODE | --before TIME | both)",
		Short: "Erase evidence that this node keeps, for good",
		Long: `Erase the evidence behind this node's results, and the salts with it: what one node showed, or
what is behind results of before a time. The log stays as it is and audits as before; its
commitments say nothing any more, and log disclose refuses. An advisory or a suspicion can
then not be followed into that time.

A node that is linked shows new evidence when it connects anew; that is kept again. Evidence
older than keep_evidence in the configuration is deleted without an order.

It asks first; where nobody is at a terminal it needs --yes. Exit 0: it is erased, also if there
was nothing. 1: the answer was not yes. 2: usage, a time to come too. 3: no node answers, or it
could not write.`,
		Args: cobra.NoArgs,
	}
	socket := nodeFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var order node.Erasure
		if subject != "" {
			ref, err := identity.ParseNodeRef(subject)
			if err != nil {
				return usageError("name it as meshnode peers does, organisation/name", "--subject: %v", err)
			}
			order.Subject = &ref
		}
		if before != "" {
			at, err := time.Parse(time.RFC3339, before)
			if err != nil {
				return usageError("give a time such as 2026-01-31T00:00:00Z", "--before %.40q is no time", before)
			}
			order.Before = at
		}
		if subject == "" && before == "" {
			return usageError("name whose evidence, with --subject, or of before when, with --before", "nothing to erase")
		}
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		ask := approval{yes: yes}
		if !yes && !ask.asks(cmd) {
			return usageError("give --yes", "nobody is at a terminal to be asked, and nothing was erased: what is erased cannot be had again")
		}
		if err := ask.confirmed(cmd, "erase evidence for good?", "erase", "nothing was erased"); err != nil {
			return err
		}
		raw, err := json.Marshal(order)
		if err != nil {
			return err
		}
		if err := c.call(cmd.Context(), http.MethodPost, "/v1/erasures", raw, &order); err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), erased{order, order.Files})
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d files of evidence erased, of before %s\n", order.Files, order.Before.Format(time.RFC3339))
		return nil
	}
	cmd.Flags().StringVar(&subject, "subject", "", "what the node `ORG/NODE` showed")
	cmd.Flags().StringVar(&before, "before", "", "behind results of before `TIME` (RFC 3339); with --subject alone, of before now")
	cmd.Flags().BoolVar(&yes, "yes", false, "erase without asking")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
