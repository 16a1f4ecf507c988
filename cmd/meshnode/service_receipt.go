package main

import (
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/client"
	"github.com/spf13/cobra"
)

func serviceReceiptCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "receipt", Short: "Check what services answered", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(serviceReceiptVerifyCommand())
	return cmd
}

func serviceReceiptVerifyCommand() *cobra.Command {
	var genesis, policy string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify FILE --genesis FILE [--policy FILE]",
		Short: "Verify a receipt that meshnode proxy kept, offline",
		Long: `Verify a receipt that meshnode proxy kept, offline and years later.

The file holds the receipt and the evidence that the node showed when it was asked. Verified
are the evidence, under genesis and the mesh's policy of that day, that its runtime log names
program and model, and that the receipt is signed by that very node. It proves what was
asked and answered, by digest; it says nothing about today.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if genesis == "" {
				return usageError("name the mesh's signed genesis file with --genesis FILE", "no genesis")
			}
			g, err := signedGenesis(genesis)
			if err != nil {
				return err
			}
			p := client.Policy{}
			if policy != "" {
				if p, err = readClientPolicy(policy); err != nil {
					return err
				}
			}
			file, err := readLimited(args[0], client.MaxKept)
			if err != nil {
				return err
			}
			kept, err := client.DecodeKept(file)
			if err != nil {
				return usageError("give a file that meshnode proxy --receipts wrote", "%s: %v", args[0], err)
			}
			v, err := client.NewVerifier(g.Raw(), p)
			if err != nil {
				return usageError("compare policy and genesis", "%v", err)
			}
			r, s, err := v.VerifyKept(cmd.Context(), kept)
			if err != nil {
				return receiptFailure(cmd, args[0], err)
			}
			return showReceipt(cmd, shownReceipt{OK: true, MeshID: g.MeshID().String(), Node: r.Node.String(), Organisation: string(r.Node.Org), Peer: r.Peer.String(),
				Kind: s.Claims.Kind, Measurement: s.Claims.Measurement, Simulated: s.Simulated(), Epoch: uint64(s.Epoch), Service: r.Service, Version: r.Version,
				Program: r.Program.String(), Model: r.Model.String(), Manifest: r.Manifest.String(), Method: r.Request.Method, Path: r.Request.Path,
				Request: r.Request.SHA256.String(), Status: r.Response.Status, Response: r.Response.SHA256.String(), Nonce: r.Nonce, Time: r.Time}, asJSON)
		},
	}
	cmd.Flags().StringVar(&genesis, "genesis", "", "the mesh's signed genesis file")
	cmd.Flags().StringVar(&policy, "policy", "", "what you demanded of the node (YAML; meshnode proxy --help shows its form)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// receiptFailure is a receipt that does not hold, or whose evidence does not.
func receiptFailure(cmd *cobra.Command, file string, err error) error {
	failed := clientFailure(cmd.Context(), err)
	if f, ok := failed.(*failure); ok && f.code != string(attest.CodeUnavailable) {
		f.message = file + ": " + f.message
		f.exit = exitRefused // nothing here can be tried again later
		return f
	}
	return refusedError(string(attest.CodeBadSignature), "ask whoever gave you the file for the receipt as it was kept", "%s: %v", file, err)
}

// shownReceipt is what service receipt verify prints.
type shownReceipt struct {
	OK           bool      `json:"ok"`
	MeshID       string    `json:"mesh_id"`
	Node         string    `json:"node"`
	Organisation string    `json:"organisation"`
	Peer         string    `json:"peer"`
	Kind         string    `json:"kind"`
	Measurement  string    `json:"measurement"`
	Simulated    bool      `json:"simulated"`
	Epoch        uint64    `json:"epoch"`
	Service      string    `json:"service"`
	Version      uint64    `json:"version"`
	Program      string    `json:"program"`
	Model        string    `json:"model"`
	Manifest     string    `json:"manifest"`
	Method       string    `json:"method"`
	Path         string    `json:"path"`
	Request      string    `json:"request"`
	Status       int       `json:"status"`
	Response     string    `json:"response"`
	Nonce        string    `json:"nonce"`
	Time         time.Time `json:"time"`
}

func showReceipt(cmd *cobra.Command, r shownReceipt, asJSON bool) error {
	if asJSON {
		return printJSON(cmd.OutOrStdout(), r)
	}
	w := cmd.OutOrStdout()
	fmt.Fprintf(w, "%s answered %d to %s %s of service %s at %s\n", r.Node, r.Status, r.Method, printable(r.Path), r.Service, r.Time.Format(time.RFC3339))
	fmt.Fprintf(w, "  request      %s\n  response     %s\n  program      %s\n  model        %s\n  manifest     %s (version %d)\n  measurement  %s (%s), allowed at epoch %d\n",
		r.Request, r.Response, r.Program, r.Model, r.Manifest, r.Version, r.Measurement, r.Kind, r.Epoch)
	if r.Simulated {
		fmt.Fprintln(w, "  warning      evidence is simulated: it protects nothing from its host")
	}
	return nil
}
