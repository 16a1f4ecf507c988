package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
	"github.com/attestmesh/meshnode/attest/collect"
)

func collateralCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "collateral",
		Short: "Fetch and keep what AMD and Intel publish about their platforms",
		Long: `Fetch and keep what AMD and Intel publish about their platforms: endorsement certificates,
TCB info, QE identity, revocation lists. A store is a folder of such files, each under the
SHA-256 of its content. Evidence is made and judged with what is in a store; only fetch asks
the vendors, and only when it is run, by a person or a timer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(collateralFetchCommand(), collateralShowCommand(), collateralImportCommand())
	return cmd
}

// openStore opens the store at dir, which must be there unless it is to be filled.
func openStore(dir string, fill bool) (*collateral.Store, error) {
	if dir == "" {
		return nil, usageError("name the store with --dir DIR", "no store")
	}
	if !fill && !collateral.IsStore(dir) {
		return nil, usageError("fill it with meshnode collateral fetch or import", "%s is no store of collateral", dir)
	}
	s, err := collateral.Open(dir)
	if err != nil {
		return nil, usageError("give a folder that can be read and, to fill it, written", "%v", err)
	}
	return s, nil
}

// readCollateral reads a store, or any folder with certificates and collateral.
func readCollateral(dir string) (collateral.Index, error) {
	if collateral.IsStore(dir) {
		s, err := openStore(dir, false)
		if err != nil {
			return collateral.Index{}, err
		}
		return s.Index()
	}
	items, err := partsOf(dir)
	if err != nil {
		return collateral.Index{}, err
	}
	return collateral.IndexOf(items), nil
}

// partsOf reads everything in a file, a folder or a store.
func partsOf(path string) ([]attest.Item, error) {
	if collateral.IsStore(path) {
		index, err := readCollateral(path)
		if err != nil {
			return nil, err
		}
		var items []attest.Item
		for _, e := range index.Entries() {
			items = append(items, e.Item())
		}
		return items, nil
	}
	items, err := collect.Parts(path)
	if err != nil {
		return nil, usageError("give files, folders or stores with certificates and collateral", "%v", err)
	}
	return items, nil
}

// shownObject is one object of collateral show.
type shownObject struct {
	collateral.Entry
	State string `json:"state"`
}

func collateralShowCommand() *cobra.Command {
	var dir, at string
	var within time.Duration
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show --dir DIR",
		Short: "List what a store holds and what expires when",
		Long: `List what a store holds: name, state, times of issue and expiry. Of several objects of one
name, that counts which has the highest evaluation number and then was issued last; the
others are superseded and kept for old verdicts.

Exit 0 if all that counts is current, and stays so for another --within; 3 if not, or if a
file is damaged.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			now := time.Now().UTC()
			if at != "" {
				var err error
				if now, err = time.Parse(time.RFC3339, at); err != nil {
					return usageError("give a time like 2026-03-01T00:00:00Z", "--at %q is no RFC 3339 time", at)
				}
			}
			s, err := openStore(dir, false)
			if err != nil {
				return err
			}
			return showCollateral(cmd, s, dir, now, within, asJSON)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the store, a folder `DIR`")
	cmd.Flags().StringVar(&at, "at", "", "show as of `TIME` (RFC 3339), default now")
	cmd.Flags().DurationVar(&within, "within", 0, "exit 3 also for what expires within this `DURATION`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func showCollateral(cmd *cobra.Command, s *collateral.Store, dir string, now time.Time, within time.Duration, asJSON bool) error {
	index, err := s.Index()
	if err != nil {
		return err
	}
	shown := []shownObject{}
	damaged := s.Damaged()
	exit := exitOK
	if len(damaged) > 0 {
		exit = exitUnavailable
	}
	for _, e := range index.Entries() {
		o := shownObject{e, index.State(e, now)}
		if o.State == collateral.StateExpired || o.State == collateral.StateCurrent && !e.Holds(now.Add(within)) {
			exit = exitUnavailable
		}
		shown = append(shown, o)
	}
	out := cmd.OutOrStdout()
	if asJSON {
		if damaged == nil {
			damaged = []collateral.Damage{}
		}
		if err := printJSON(out, map[string]any{"dir": dir, "at": now.Format(time.RFC3339), "objects": shown, "damaged": damaged}); err != nil {
			return err
		}
	} else {
		var b strings.Builder
		for _, o := range shown {
			fmt.Fprintf(&b, "%-13s %s\n              issued %s, expires %s%s\n", o.State, o.Name, o.Issued.UTC().Format(time.RFC3339),
				o.Expires.UTC().Format(time.RFC3339), evaluationText(o.Evaluation))
		}
		for _, d := range damaged {
			fmt.Fprintf(&b, "damaged       %s\n              %s; fetch or import it again\n", d.File, d.Why)
		}
		if len(shown)+len(damaged) == 0 {
			b.WriteString("the store is empty\n")
		}
		if _, err := fmt.Fprint(out, printable(b.String())); err != nil {
			return err
		}
	}
	if exit != exitOK {
		return exitStatus(exit)
	}
	return nil
}

func evaluationText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", evaluation number %d", n)
}

// imported is what became of one object of collateral import.
type imported struct {
	Name    string    `json:"name"`
	File    string    `json:"file"`
	Result  string    `json:"result"` // stored, unchanged, skipped or failed
	Expires time.Time `json:"expires,omitzero"`
	Why     string    `json:"why,omitempty"`
}

func collateralImportCommand() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "import --dir DIR FILE|FOLDER|STORE...",
		Short: "Put files with certificates and collateral into a store",
		Long: `Put files into a store: certificates (DER, PEM), revocation lists, Intel's TCB info and QE
identity with their signing chain, single, in folders, or in another store. Each is verified
under AMD's or Intel's root as of the day it was issued; what has expired since is taken too,
for old verdicts. A quote among the files brings the certificate of its PCK CA.

Exit 0 if all were taken or there already, 1 if one does not verify, 2 if there was none.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, paths []string) error {
			results, err := importCollateral(dir, paths)
			if err != nil {
				return err
			}
			return showImported(cmd, dir, results, asJSON)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the store, a folder `DIR`; made where it is absent")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func importCollateral(dir string, paths []string) ([]imported, error) {
	verifier, err := collateral.NewVerifier()
	if err != nil {
		return nil, err
	}
	given := map[string][]attest.Item{}
	var beside []attest.Item
	for _, path := range paths {
		items, err := partsOf(path)
		if err != nil {
			return nil, err
		}
		items = append(items, collateral.PlatformOf(attest.Evidence{Items: items}).PCKCAs...)
		given[path] = items
		beside = append(beside, items...)
	}
	s, err := openStore(dir, true)
	if err != nil {
		return nil, err
	}
	release, err := lockStore(s, dir)
	if err != nil {
		return nil, err
	}
	defer release()
	index, err := s.Index()
	if err != nil {
		return nil, err
	}
	for _, e := range index.Entries() {
		beside = append(beside, e.Item())
	}
	var results []imported
	for _, path := range paths {
		for _, item := range given[path] {
			r, err := importOne(s, verifier, item, beside)
			if err != nil {
				return results, err
			}
			r.File = path
			results = append(results, r)
		}
	}
	return results, nil
}

// importOne verifies and puts one item. The error is the disk's.
func importOne(s *collateral.Store, verifier collateral.Verifier, item attest.Item, beside []attest.Item) (imported, error) {
	e, err := collateral.Read(item)
	if err != nil {
		return imported{Name: item.Type, Result: "skipped", Why: err.Error()}, nil
	}
	r := imported{Name: e.Name, Expires: e.Expires, Result: "unchanged"}
	v, err := verifier.Verify(item, beside)
	if err != nil {
		r.Result, r.Why = "failed", err.Error()
		return r, nil
	}
	added, err := s.Put(v)
	if added {
		r.Result = "stored"
	}
	return r, err
}

func lockStore(s *collateral.Store, dir string) (release func(), err error) {
	release, err = s.Lock()
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, os.ErrPermission) {
		return nil, usageError("give a folder that can be written", "%v", err)
	}
	if err != nil {
		return nil, unavailableError("busy", "wait until the other meshnode collateral has ended", "%s: %v", dir, err)
	}
	return release, nil
}

func showImported(cmd *cobra.Command, dir string, results []imported, asJSON bool) error {
	exit, taken := exitOK, 0
	for _, r := range results {
		if r.Result != "skipped" {
			taken++
		}
		if r.Result == "failed" {
			exit = exitRefused
		}
	}
	if taken == 0 {
		return usageError("give files with AMD's certificates, Intel's collateral, or revocation lists", "no collateral in what was given")
	}
	if asJSON {
		if err := printJSON(cmd.OutOrStdout(), map[string]any{"dir": dir, "objects": results}); err != nil {
			return err
		}
	} else {
		for _, r := range results {
			line := fmt.Sprintf("%-10s %s", r.Result, r.Name)
			if r.Why != "" {
				line += "\n           " + r.Why
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), printable(line)); err != nil {
				return err
			}
		}
	}
	if exit != exitOK {
		return exitStatus(exit)
	}
	return nil
}
