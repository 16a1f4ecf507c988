package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/spf13/cobra"
)

// suspendFlags say what is suspended, for how long and by which key.
type suspendFlags struct {
	entry, member, until, cause, key, genesis, chain, out string
	period                                                time.Duration
}

func policySuspendCommand() *cobra.Command {
	var f suspendFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "suspend (--entry ID | --member ORG/NAME) (--for TIME | --until TIME) --key KEY --genesis FILE [-o FILE] | suspend FILE",
		Short: "Withhold the data of a node, or of all that run under an entry, with one organisation's emergency key",
		Long: `Withhold the data of a node, or of all nodes that run under an entry, for at most 24 hours.
One organisation does so by itself, with its emergency key. Every node ends its data streams
with whom it hits and takes it into no round; it goes on hearing the mesh, and a seat votes.
The allowed set stays as it is: removing an entry takes a proposal.

With -o FILE the suspension is signed offline and written; FILE is submitted later. Without
-o it is signed and submitted at once to the node of --node. It ends by itself, or by
meshnode policy lift.`,
		Args: cobra.MaximumNArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().StringVar(&f.entry, "entry", "", "id of an entry, from meshnode policy show")
	cmd.Flags().StringVar(&f.member, "member", "", "organisation/name of a node")
	cmd.Flags().DurationVar(&f.period, "for", 0, "how long, as 2h30m")
	cmd.Flags().StringVar(&f.until, "until", "", "until when, in RFC 3339")
	cmd.Flags().StringVar(&f.cause, "cause", string(consensus.CausePrecaution), "precaution, vulnerable, compromised or misbehaving; the log is public")
	cmd.Flags().StringVar(&f.key, "key", "", keyFlagHelp("an emergency key"))
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the mesh's genesis, which lists the key")
	cmd.Flags().StringVar(&f.chain, "chain", "", chainHelp)
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "file to write the suspension to, in place of submitting it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.MarkFlagsMutuallyExclusive("entry", "member")
	cmd.MarkFlagsMutuallyExclusive("for", "until")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		raw, err := f.suspension(cmd.Context(), args)
		if err != nil {
			return err
		}
		x, _, err := consensus.ParseSuspension(raw)
		if err != nil {
			return usageError("give a file that meshnode policy suspend wrote", "%v", err)
		}
		if !asJSON {
			printLines(cmd.OutOrStdout(), x.Describe())
		}
		if f.out != "" {
			if err := writeNew(f.out, raw, 0o644); err != nil {
				return err
			}
			return printWritten(cmd, asJSON, "suspend", f.out, x.ID())
		}
		return submitStatement(cmd, *socket, "/v1/suspensions", raw, asJSON, "suspension")
	}
	return cmd
}

// suspension reads a signed suspension, or makes and signs one.
func (f *suspendFlags) suspension(ctx context.Context, args []string) ([]byte, error) {
	if len(args) == 1 {
		if f.entry+f.member+f.key+f.out != "" {
			return nil, usageError("give FILE and --node to submit it, or no FILE to make one", "%s: what a signed suspension says cannot be changed", args[0])
		}
		env, err := readSigned(args[0])
		if err != nil {
			return nil, err
		}
		return env.Marshal(), nil
	}
	x, err := f.statement(time.Now())
	if err != nil {
		return nil, err
	}
	if f.genesis == "" || f.key == "" {
		return nil, usageError("name both with --key and --genesis", "a suspension is signed with an emergency key that genesis lists")
	}
	g, err := signedGenesis(f.genesis)
	if err != nil {
		return nil, err
	}
	policy, err := keysInForce(f.chain, g)
	if err != nil {
		return nil, err
	}
	org, s, err := signerIn(ctx, policy, f.key, consensus.KeyEmergency)
	if err != nil {
		return nil, err
	}
	x.MeshID, x.Incarnation, x.Organisation = g.MeshID(), policy.Incarnation(), org
	raw, err := consensus.SignSuspension(s, x)
	if err != nil {
		return nil, usageError("see meshnode policy suspend --help", "%v", err)
	}
	return raw, nil
}

// statement returns what the flags say, without mesh and organisation.
func (f *suspendFlags) statement(now time.Time) (consensus.Suspension, error) {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	x := consensus.Suspension{Nonce: hex.EncodeToString(nonce[:]), Cause: consensus.Cause(f.cause), Issued: now}
	switch {
	case f.entry != "":
		x.Entry = f.entry
	case f.member != "":
		ref, err := identity.ParseNodeRef(f.member)
		if err != nil {
			return x, usageError("name it as meshnode peers does", "--member: %v", err)
		}
		x.Node = &ref
	default:
		return x, usageError("name one with --entry ID or --member ORG/NAME", "nothing to suspend")
	}
	if !slices.Contains(consensus.Causes(), x.Cause) {
		return x, usageError("choose one of them", "--cause %q: want one of %s", f.cause, consensus.Causes())
	}
	switch {
	case f.until != "":
		t, err := time.Parse(time.RFC3339, f.until)
		if err != nil {
			return x, usageError("write it as "+now.UTC().Add(time.Hour).Format(time.RFC3339), "--until: %v", err)
		}
		x.Until = t
	case f.period > 0:
		x.Until = now.Add(f.period)
	default:
		return x, usageError("say how long with --for or --until", "a suspension has an end")
	}
	if life := x.Until.Sub(now); life <= 0 || life > consensus.MaxSuspension {
		return x, usageError("choose an earlier or later end; suspend again when it is over", "until %s is in %s, want at most %s", x.Until.UTC().Format(time.RFC3339),
			life.Round(time.Second), consensus.MaxSuspension)
	}
	return x, nil
}

// chainHelp explains --chain where keys are compared.
const chainHelp = "file of the policy's signed history (/.well-known/meshnode/policy), where the key came in after genesis or the mesh was recovered"

// keysInForce returns the policy that the history at chain leads to; without one it is genesis's.
func keysInForce(chain string, g *consensus.Genesis) (*consensus.PolicyState, error) {
	policy, err := readChain(chain, g)
	if policy == nil && err == nil {
		policy, err = consensus.ReplayPolicy(g, nil)
	}
	return policy, err
}

// signerIn loads a key that a policy lists in a role, and says of whom it is.
func signerIn(ctx context.Context, policy *consensus.PolicyState, path, role string) (identity.OrgID, signature.Signer, error) {
	s, public, err := openKey(ctx, path)
	if err != nil {
		return "", nil, err
	}
	org, has, ok := policy.KeyOwner(public)
	if !ok || has != role {
		return "", nil, refusedError(string(attest.CodeWrongSigner), fmt.Sprintf("sign with the %s key that genesis lists for your organisation; of one that came in later give the policy's history with --chain", role),
			"key %s: %s %s", path, listing(policy), listedAs(org, has, ok))
	}
	return org, s, nil
}

// listing names what lists keys.
func listing(policy *consensus.PolicyState) string {
	if policy.Epoch() == 0 {
		return "genesis"
	}
	return fmt.Sprintf("the policy of epoch %d", policy.Epoch())
}

// liftFlags say who lifts.
type liftFlags struct {
	keys                []string
	genesis, chain, out string
}

func policyLiftCommand() *cobra.Command {
	var f liftFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "lift ID|FILE... [--key KEY]... [-o FILE]",
		Short: "End a suspension before its time, with govern keys",
		Long: `End a suspension before its time. The organisation that suspended does so alone, with its
govern key; so do enough of the others together. An emergency key lifts nothing.

ID is that of a suspension, from meshnode policy show. FILE is a lift of it that others have
signed; several are merged: their signatures are put together, as they all sign the same
bytes. With -o FILE the result is written, offline, beside the signatures that FILE holds
already. Without -o it is submitted to the node of --node.`,
		Args: cobra.MinimumNArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().StringArrayVar(&f.keys, "key", nil, keyFlagHelp("a govern key; may be repeated"))
	cmd.Flags().StringVar(&f.genesis, "genesis", "", "the mesh's genesis: needed for an ID, else to compare keys with")
	cmd.Flags().StringVar(&f.chain, "chain", "", chainHelp)
	cmd.Flags().StringVarP(&f.out, "output", "o", "", "file to write the lift to, in place of submitting it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		env, l, err := f.lift(args)
		if err != nil {
			return err
		}
		if !asJSON {
			fmt.Fprintf(cmd.OutOrStdout(), "lift of suspension %s\nmesh %s incarnation %d\n", l.Suspension, l.MeshID, l.Incarnation)
		}
		if err := f.sign(cmd.Context(), env, l); err != nil {
			return err
		}
		if f.out == "" {
			return submitStatement(cmd, *socket, "/v1/lifts", env.Marshal(), asJSON, "lift of suspension")
		}
		if env, err = writeLift(env, f.out); err != nil {
			return err
		}
		if !asJSON {
			fmt.Fprintf(cmd.OutOrStdout(), "%d signatures\n", len(env.Signatures))
		}
		return printWritten(cmd, asJSON, "lift", f.out, l.Suspension)
	}
	return cmd
}

// lift reads lifts that others have signed, or makes one.
func (f *liftFlags) lift(args []string) (*envelope.Envelope, *consensus.SuspensionLift, error) {
	var parts [][]byte
	for _, arg := range args {
		var id consensus.SuspensionID
		if id.UnmarshalText([]byte(arg)) == nil {
			if f.genesis == "" {
				return nil, nil, usageError("name the mesh's genesis with --genesis FILE", "a lift is signed for one mesh")
			}
			g, err := signedGenesis(f.genesis)
			if err != nil {
				return nil, nil, err
			}
			policy, err := keysInForce(f.chain, g)
			if err != nil {
				return nil, nil, err
			}
			payload, err := consensus.SuspensionLift{MeshID: g.MeshID(), Incarnation: policy.Incarnation(), Suspension: id}.Payload()
			if err != nil {
				return nil, nil, usageError("take the id from meshnode policy show", "%v", err)
			}
			parts = append(parts, (&envelope.Envelope{Payload: payload}).Marshal())
			continue
		}
		env, err := readSigned(arg)
		if err != nil {
			return nil, nil, err
		}
		parts = append(parts, env.Marshal())
	}
	merged, err := consensus.Merge(parts...)
	if err != nil {
		return nil, nil, refusedError("other_lift", "lift each suspension by itself", "%s: %v", strings.Join(args, ", "), err)
	}
	l, env, err := consensus.ParseSuspensionLift(merged)
	if err != nil {
		return nil, nil, usageError("give files that meshnode policy lift wrote", "%s: %v", strings.Join(args, ", "), err)
	}
	return env, l, nil
}

// sign adds the signatures of all keys.
func (f *liftFlags) sign(ctx context.Context, env *envelope.Envelope, l *consensus.SuspensionLift) error {
	var policy *consensus.PolicyState
	if f.genesis != "" {
		g, err := signedGenesis(f.genesis)
		if err != nil {
			return err
		}
		if policy, err = keysInForce(f.chain, g); err != nil {
			return err
		}
		if g.MeshID() != l.MeshID {
			return refusedError(string(attest.CodeWrongMesh), "give the genesis of the suspension's mesh", "the lift is for mesh %s, %s is of mesh %s", l.MeshID.Short(), f.genesis, g.MeshID().Short())
		}
	}
	for _, path := range f.keys {
		var s signature.Signer
		var err error
		if policy != nil {
			_, s, err = signerIn(ctx, policy, path, consensus.KeyGovern)
		} else {
			s, _, err = openKey(ctx, path)
		}
		if err == nil {
			err = addSignature(env, s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeLift writes env and returns what was written. A file that is there already must hold
// the same lift: its signatures are kept.
func writeLift(env *envelope.Envelope, out string) (*envelope.Envelope, error) {
	data := env.Marshal()
	if _, err := os.Lstat(out); err == nil {
		old, err := readSigned(out)
		if err != nil {
			return nil, err
		}
		if data, err = consensus.Merge(old.Marshal(), data); err != nil {
			return nil, usageError("choose another file with -o", "%s: holds something else", out)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, usageError("check the path", "%v", err)
	}
	env, err := envelope.Parse(data)
	if err != nil {
		return nil, err
	}
	return env, writeOver(out, data, 0o644)
}

// submitStatement has the node order a signed statement, and says so.
func submitStatement(cmd *cobra.Command, socket, route string, raw []byte, asJSON bool, what string) error {
	c, err := newControl(socket)
	if err != nil {
		return err
	}
	var out node.Submission
	if err := c.call(cmd.Context(), http.MethodPost, route, raw, &out); err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), out)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s %s is ordered, as leaf %d\n", what, out.ID, out.LeafIndex)
	return nil
}

func printWritten(cmd *cobra.Command, asJSON bool, command, path string, id fmt.Stringer) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), map[string]any{"id": id.String(), "file": path})
	}
	fmt.Fprintf(cmd.OutOrStdout(), "written to %s; submit it with meshnode policy %s %s\n", path, command, path)
	return nil
}

func printLines(w io.Writer, lines []string) {
	for _, line := range lines {
		fmt.Fprintln(w, printable(line))
	}
}

// showSuspensions lists what is in force, and what acts before it is ordered.
func showSuspensions(w io.Writer, v node.PolicyView) {
	for _, x := range v.Suspensions {
		what := "node " + x.Node
		if x.Entry != "" {
			what = "entry " + x.Entry
		}
		fmt.Fprintf(w, "\n%s is suspended by %s until %s (%s): no data; lifted by %s, or %d others\n  id %s\n", printable(what), x.Organisation,
			x.Until.Format(time.RFC3339), printable(string(x.Cause)), x.Organisation, v.Thresholds.Lift, x.ID)
	}
	for _, x := range v.Provisional {
		fmt.Fprintf(w, "\nin force at this node and not ordered yet: %s\n  id %s\n", printable(x.Says), x.ID)
	}
}
