package main

import (
	"fmt"
	"net/http"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func nodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node",
		Short: "Take one of your own nodes out of the mesh",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(nodeDrainCommand(), nodeRetireCommand())
	return cmd
}

// drainPoll is how often a drain is asked how far it has come.
const drainPoll = 300 * time.Millisecond

func nodeDrainCommand() *cobra.Command {
	var asJSON bool
	var within time.Duration
	cmd := &cobra.Command{
		Use:   "drain ORG/NAME --node DATA",
		Short: "Take a node out of rounds, services and its seat, so that it can be stopped",
		Long: `Take a running node out of everything, so that nobody misses it when it is stopped: its
services answer nobody new, it hands over leadership, no new round includes it, its seat is
vacant and its vote counts no more, and the rounds and requests that it is in come to their
end. It waits for all of that. ORG/NAME must be the node behind --node.

There is no way back but to stop the node and start it again; it then takes its seat under its
new identity. A drain that would leave too few seats is refused and changes nothing; of two
seats one may go.`,
		Args: cobra.ExactArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().DurationVar(&within, "within", 10*time.Minute, "how long to wait; the drain goes on by itself")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := nodeArgument(args[0])
		if err != nil {
			return err
		}
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		said := ""
		for end := time.Now().Add(within); ; {
			var d node.Drain
			if err := c.call(cmd.Context(), http.MethodPost, "/v1/nodes/"+ref.String()+"/drain", nil, &d); err != nil {
				return err
			}
			if d.State == node.DrainDone {
				if asJSON {
					return printJSON(cmd.OutOrStdout(), d)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s is drained: it can be stopped\n", ref)
				return nil
			}
			if !asJSON && d.Waiting != said {
				fmt.Fprintf(cmd.ErrOrStderr(), "waiting for %s\n", printable(d.Waiting))
				said = d.Waiting
			}
			if time.Now().After(end) {
				return unavailableError("unavailable", "run the command again: it goes on waiting", "%s is not drained within %s: it waits for %s", ref, within, d.Waiting)
			}
			select {
			case <-time.After(drainPoll):
			case <-cmd.Context().Done():
				return cmd.Context().Err()
			}
		}
	}
	return cmd
}

// nodeArgument reads ORG/NAME.
func nodeArgument(arg string) (identity.NodeRef, error) {
	ref, err := identity.ParseNodeRef(arg)
	if err != nil {
		return ref, usageError("name it as meshnode peers does", "%v", err)
	}
	return ref, nil
}

// retireFlags say what is retired and by whom.
type retireFlags struct {
	key, genesis, chain, peer, out string
	incarnation                    uint64
}

func nodeRetireCommand() *cobra.Command {
	var f retireFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "retire ORG/NAME --key KEY --genesis FILE [--peer ID] [-o FILE] | retire FILE",
		Short: "Void the Credential of a node whose machine is lost, for ever",
		Long: `Void one boot of a node of your own organisation for ever, with an enroll or govern key of the
organisation: its machine is lost, or in other hands. Every node closes its links to it, and
its seat is vacant. Another node of the organisation with the role seat takes the seat, or the
same node after its next start, which needs a new Credential.

The boot is the one that the node of --node knows; --peer ID names it where there is no node
to ask. With -o FILE the retirement is signed and written; FILE is submitted later.`,
		Args: cobra.ExactArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().StringVar(&f.key, "key", "", "file of an enroll or govern key")
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the mesh's genesis, which lists the key")
	cmd.Flags().StringVar(&f.chain, "chain", "", chainHelp)
	cmd.Flags().StringVar(&f.peer, "peer", "", "peer id of the boot, from meshnode peers")
	cmd.Flags().Uint64Var(&f.incarnation, "incarnation", 0, "incarnation of the mesh, with --peer")
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "file to write the retirement to, in place of submitting it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		raw, err := f.retirement(cmd, *socket, args[0])
		if err != nil {
			return err
		}
		r, _, err := consensus.ParseRetirement(raw)
		if err != nil {
			return usageError("give a file that meshnode node retire wrote", "%v", err)
		}
		if !asJSON {
			fmt.Fprintf(cmd.OutOrStdout(), "- %s, boot %s, for ever\n  mesh %s incarnation %d\n", r.Node, r.Peer, r.MeshID, r.Incarnation)
		}
		if f.out == "" {
			return submitStatement(cmd, *socket, "/v1/retirements", raw, asJSON, "retirement of")
		}
		if err := writeNew(f.out, raw, 0o644); err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]any{"peer": r.Peer, "file": f.out})
		}
		fmt.Fprintf(cmd.OutOrStdout(), "written to %s; submit it with meshnode node retire %s\n", f.out, f.out)
		return nil
	}
	return cmd
}

// retirement reads a signed retirement, or makes and signs one.
func (f *retireFlags) retirement(cmd *cobra.Command, socket, arg string) ([]byte, error) {
	ref, err := identity.ParseNodeRef(arg)
	if f.key == "" && f.genesis == "" {
		if env, readErr := readSigned(arg); readErr == nil {
			return env.Marshal(), nil
		} else if err != nil {
			return nil, readErr
		}
		return nil, usageError("name both with --key and --genesis", "a retirement is signed with an enroll or govern key that genesis lists")
	}
	if err != nil {
		return nil, usageError("name it as meshnode peers does", "%v", err)
	}
	if f.key == "" || f.genesis == "" {
		return nil, usageError("name both with --key and --genesis", "a retirement is signed with an enroll or govern key that genesis lists")
	}
	g, err := signedGenesis(f.genesis)
	if err != nil {
		return nil, err
	}
	key, err := loadKey(f.key)
	if err != nil {
		return nil, err
	}
	policy, err := keysInForce(f.chain, g)
	if err != nil {
		return nil, err
	}
	org, role, ok := policy.KeyOwner(key.Public())
	if !ok || org != ref.Org || role != consensus.KeyEnroll && role != consensus.KeyGovern {
		return nil, refusedError(string(attest.CodeWrongSigner), "sign with an enroll or govern key of "+string(ref.Org), "key %s: %s %s", f.key, listing(policy), listedAs(org, role, ok))
	}
	r := consensus.Retirement{MeshID: g.MeshID(), Incarnation: identity.Incarnation(f.incarnation), Node: ref}
	if f.peer == "" {
		if err := f.ask(cmd, socket, &r); err != nil {
			return nil, err
		}
	} else if r.Peer, err = identity.ParsePeerID(f.peer); err != nil {
		return nil, usageError("take the peer id from meshnode peers --json", "--peer: %v", err)
	}
	s, err := signerOf(key)
	if err != nil {
		return nil, err
	}
	return consensus.SignRetirement(s, r)
}

// ask completes r by what a running node knows of the node.
func (f *retireFlags) ask(cmd *cobra.Command, socket string, r *consensus.Retirement) error {
	c, err := newControl(socket)
	if err != nil {
		return err
	}
	var v node.NodeView
	if err := c.call(cmd.Context(), http.MethodGet, "/v1/nodes/"+r.Node.String(), nil, &v); err != nil {
		return err
	}
	if v.MeshID != r.MeshID.String() {
		return refusedError(string(attest.CodeWrongMesh), "give the genesis of the node's mesh", "the node is of mesh %.16s, %s of mesh %s", v.MeshID, f.genesis, r.MeshID.Short())
	}
	r.Incarnation = identity.Incarnation(v.Incarnation)
	if r.Peer, err = identity.ParsePeerID(v.Peer); err != nil {
		return unavailableError("unavailable", "", "the node answers the peer id %.80q", v.Peer)
	}
	return nil
}
