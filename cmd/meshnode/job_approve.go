package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/spf13/cobra"
)

func jobApproveCommand() *cobra.Command {
	var genesis, chain, out string
	var keys []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "approve FILE --genesis FILE --key KEY... [-o FILE]",
		Short: "Show a job and sign it for one's organisation (offline)",
		Long: `Show what a job does and sign it. It needs no node and no network.

FILE is a job (YAML) or a job that others have signed (JSON). A node takes part only in
jobs that its own organisation has signed. With --genesis the keys are compared with those
that genesis lists. The result goes to -o FILE, by default to FILE with .json in place of
.yaml; signatures that a file of the same job holds already are kept.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			env, err := readJob(args[0], genesis)
			if err != nil {
				return err
			}
			job, err := federated.ParseJob(env.Marshal())
			if err != nil {
				return usageError("make the file again from its YAML", "%s: %v", args[0], err)
			}
			if !asJSON {
				printJobTerms(cmd, job)
			}
			if err := signJob(cmd.Context(), env, job, genesis, chain, keys); err != nil {
				return err
			}
			if out == "" {
				out = strings.TrimSuffix(strings.TrimSuffix(args[0], ".yaml"), ".json") + ".json"
			}
			if len(keys) > 0 {
				if env, err = writeJob(env, out); err != nil {
					return err
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"id": job.ID, "signatures": len(env.Signatures), "file": out})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "job %s carries %d signatures\n", job.ID, len(env.Signatures))
			return nil
		},
	}
	cmd.Flags().StringVar(&genesis, "genesis", "", "the mesh's genesis: needed for a job in YAML, else to compare keys with")
	cmd.Flags().StringVar(&chain, "chain", "", chainHelp)
	cmd.Flags().StringArrayVar(&keys, "key", nil, keyFlagHelp("a govern key; may be repeated"))
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write the signed job to")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// signJob signs with each key; where genesis is given, only with govern keys of its mesh.
func signJob(ctx context.Context, env *envelope.Envelope, job federated.Job, genesis, chain string, keys []string) error {
	var policy *consensus.PolicyState
	if genesis != "" {
		g, err := signedGenesis(genesis)
		if err != nil {
			return err
		}
		if policy, err = keysInForce(chain, g); err != nil {
			return err
		}
		if g.MeshID() != job.MeshID {
			return refusedError(string(attest.CodeWrongMesh), "give the genesis of the job's mesh, or make the job again for this one",
				"the job is for mesh %s, %s is of mesh %s", job.MeshID.Short(), genesis, g.MeshID().Short())
		}
	}
	for _, path := range keys {
		s, public, err := openKey(ctx, path)
		if err != nil {
			return err
		}
		if policy != nil {
			if org, role, ok := policy.KeyOwner(public); !ok || role != consensus.KeyGovern {
				return refusedError(string(attest.CodeWrongSigner), "sign with the govern key that genesis lists for your organisation; of one that came in later give the policy's history with --chain",
					"key %s: %s %s", path, listing(policy), listedAs(org, role, ok))
			}
		}
		if err := addSignature(env, s); err != nil {
			return err
		}
	}
	return nil
}

// writeJob writes env and returns what was written. A file that is there already must hold
// the same job: its signatures are kept.
func writeJob(env *envelope.Envelope, out string) (*envelope.Envelope, error) {
	if _, err := os.Lstat(out); err == nil {
		old, err := readSigned(out)
		if err != nil {
			return nil, err
		}
		merged, err := consensus.Merge(old.Marshal(), env.Marshal())
		if err != nil {
			return nil, usageError("choose another file with -o", "%s: holds another job", out)
		}
		if env, err = envelope.Parse(merged); err != nil {
			return nil, err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, usageError("check the path", "%v", err)
	}
	return env, writeOver(out, append(env.Marshal(), '\n'), 0o644)
}

// readJob reads a signed job, or makes one from YAML for the mesh of a genesis file.
func readJob(path, genesis string) (*envelope.Envelope, error) {
	raw, err := readLimited(path, maxSignFile)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(raw, []byte("{")) {
		return readSigned(path)
	}
	spec, err := federated.ParseSpec(path, raw)
	if err != nil {
		return nil, usageError("mend the file", "%v", err)
	}
	if genesis == "" {
		return nil, usageError("name the mesh's genesis with --genesis FILE", "a job is signed for one mesh")
	}
	g, err := signedGenesis(genesis)
	if err != nil {
		return nil, err
	}
	env, err := federated.NewJob(g.MeshID(), spec)
	if err != nil {
		return nil, usageError("mend the file", "%s: %v", path, err)
	}
	return env, nil
}

func printJobTerms(cmd *cobra.Command, job federated.Job) {
	s := job.Spec
	fmt.Fprintf(cmd.OutOrStdout(), "job %s %s for mesh %s\n  %d rounds of a perceptron %d-%d-%d, %d local epochs, rule %s (%s)\n",
		job.ID, printable(s.Name), job.MeshID.Short(), s.Rounds, s.Features, s.Model.Hidden, len(s.Labels), s.Train.Epochs, s.Rule, s.Arithmetic)
	terms := "updates stay with the aggregators"
	if s.Disclosure == federated.DiscloseFull {
		terms = "every participant's updates are disclosed in clear to all members"
	}
	fmt.Fprintf(cmd.OutOrStdout(), "  data-use terms: %s\n", terms)
}
