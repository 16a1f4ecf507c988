package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/strictyaml"
	"github.com/spf13/cobra"
)

func genesisCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "genesis",
		Short: "Write, sign and show the constitution of a mesh",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(genesisNewCommand(), genesisSignCommand(), genesisShowCommand())
	return cmd
}

func genesisNewCommand() *cobra.Command {
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "new SPEC.yaml -o FILE",
		Short: "Make an unsigned genesis from a description",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return usageError("add -o FILE", "no file for the genesis")
			}
			spec, err := readLimited(args[0], strictyaml.MaxSize)
			if err != nil {
				return err
			}
			nonce := make([]byte, 32)
			if _, err := rand.Read(nonce); err != nil {
				return err
			}
			g, err := consensus.NewGenesis(args[0], spec, nonce, time.Now())
			if err != nil {
				return usageError("mend "+args[0], "%v", err)
			}
			payload, err := g.Payload()
			if err != nil {
				return err
			}
			env := &envelope.Envelope{Payload: payload}
			if err := writeNew(out, env.Marshal(), 0o644); err != nil {
				return err
			}
			return printGenesis(cmd.OutOrStdout(), g, env, asJSON)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write; it must not exist")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func genesisSignCommand() *cobra.Command {
	var keys []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "sign FILE --key KEY...",
		Short: "Show a genesis as its bytes say it and add signatures",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(keys) == 0 {
				return usageError("add --key KEY", "no key to sign with")
			}
			env, g, err := readGenesis(args[0])
			if err != nil {
				return err
			}
			for _, path := range keys {
				if err := signGenesis(cmd.Context(), env, g, path); err != nil {
					return err
				}
			}
			if err := writeOver(args[0], env.Marshal(), 0o644); err != nil {
				return err
			}
			return printGenesis(cmd.OutOrStdout(), g, env, asJSON)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, keyFlagHelp("a govern key; may be repeated"))
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func signGenesis(ctx context.Context, env *envelope.Envelope, g *consensus.Genesis, path string) error {
	s, public, err := openKey(ctx, path)
	if err != nil {
		return err
	}
	org, role, ok := g.KeyOwner(public)
	if !ok || role != consensus.KeyGovern {
		return refusedError(string(attest.CodeWrongSigner), "sign with the govern key that the genesis lists for your organisation", "key %s: genesis %s", path, listedAs(org, role, ok))
	}
	return addSignature(env, s)
}

// listedAs says what genesis knows of a key that may not sign.
func listedAs(org identity.OrgID, role string, ok bool) string {
	if !ok {
		return "does not list it"
	}
	return fmt.Sprintf("lists it as %q of %q", role, org)
}

func genesisShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show FILE",
		Short: "Show a genesis and who has signed it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, g, err := readGenesis(args[0])
			if err != nil {
				return err
			}
			return printGenesis(cmd.OutOrStdout(), g, env, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// readGenesis reads a genesis, signed by all, some or none; a signature that does not
// verify is refused.
func readGenesis(path string) (*envelope.Envelope, *consensus.Genesis, error) {
	env, err := readSigned(path)
	if err != nil {
		return nil, nil, err
	}
	g, err := consensus.DecodeGenesis(env.Payload)
	if err != nil {
		return nil, nil, usageError("make it again with meshnode genesis new", "%s: %v", path, err)
	}
	if _, _, err := g.SignedBy(env); err != nil {
		return nil, nil, refusedError("bad_signature", "get the file again from whoever made it", "%s: %v", path, err)
	}
	return env, g, nil
}

type genesisView struct {
	MeshID     identity.MeshID   `json:"mesh_id"`
	Origin     string            `json:"log_origin"`
	Complete   bool              `json:"complete"`
	Signed     []identity.OrgID  `json:"signed"`
	Missing    []identity.OrgID  `json:"missing"`
	Thresholds map[string]int    `json:"thresholds"`
	Tolerance  int               `json:"tolerance"` // seats that may fail at the same time
	Warnings   []string          `json:"warnings"`
	Genesis    consensus.Genesis `json:"genesis"`
}

func printGenesis(w io.Writer, g *consensus.Genesis, env *envelope.Envelope, asJSON bool) error {
	signed, missing, err := g.SignedBy(env)
	if err != nil {
		return err
	}
	n, seats := g.N(), len(g.Organisations)
	warnings := []string{}
	if w := consensus.SeatWarning(seats); w != "" {
		warnings = append(warnings, w)
	}
	if asJSON {
		return printJSON(w, genesisView{g.MeshID(), g.Origin(0), len(missing) == 0, append([]identity.OrgID{}, signed...), append([]identity.OrgID{}, missing...),
			map[string]int{"narrow": consensus.NarrowThreshold(n), "widen": consensus.WidenThreshold(n)}, consensus.Tolerance(seats), warnings, *g})
	}
	fmt.Fprintf(w, "mesh %s\n  id          %s\n  log origin  %s\n  created     %s\n  store       %s\n", g.Name, g.MeshID(), g.Origin(0), g.CreatedAt.Format(time.RFC3339), storeWords(g.StoreKind))
	if g.AllowSim {
		fmt.Fprintf(w, "  SIMULATED evidence is allowed: nothing here is protected from its host\n")
	}
	fmt.Fprintf(w, "  proposals   %d of %d organisations narrow, %d widen\n", consensus.NarrowThreshold(n), n, consensus.WidenThreshold(n))
	fmt.Fprintf(w, "  seats       %d, of which %d may fail at the same time\n", seats, consensus.Tolerance(seats))
	for _, warning := range warnings {
		fmt.Fprintf(w, "  WARNING     %s\n", warning)
	}
	fmt.Fprintf(w, "  kinds       member %s; seat %s; aggregator %s\n", strings.Join(g.Kinds.Member, " "), strings.Join(g.Kinds.Seat, " "), strings.Join(g.Kinds.Aggregator, " "))
	for _, o := range g.Organisations {
		fmt.Fprintf(w, "organisation %s (%s)\n", o.ID, o.Roles[0])
		for _, k := range o.Keys {
			id, err := envelope.KeyID(k.Public.PublicKey)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "  %-9s %s\n", k.Role, id)
		}
	}
	for _, e := range g.Policy.Entries {
		fmt.Fprintf(w, "allows %s\n", e.Describe())
	}
	fmt.Fprintf(w, "signed by %s; missing %s\n", listOrgs(signed), listOrgs(missing))
	return nil
}

func storeWords(kind string) string {
	if kind == consensus.StoreDisk {
		return "disk: no rollback protection"
	}
	return kind
}

func listOrgs(orgs []identity.OrgID) string {
	if len(orgs) == 0 {
		return "nobody"
	}
	var s []string
	for _, o := range orgs {
		s = append(s, string(o))
	}
	return strings.Join(s, ", ")
}

// signedGenesis reads a genesis that every founding organisation has signed.
func signedGenesis(path string) (*consensus.Genesis, error) {
	raw, err := readLimited(path, maxSignFile)
	if err != nil {
		return nil, err
	}
	g, err := consensus.ParseGenesis(bytes.TrimSuffix(raw, []byte("\n")))
	if err != nil {
		return nil, usageError("give the genesis that all organisations have signed (meshnode genesis show FILE lists who has)", "%s: %v", path, err)
	}
	return g, nil
}
