package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/internal/durable"
)

func logExportCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "export URL|DIR TARGET",
		Short: "Copy a published log into a directory, to keep it and to audit it offline",
		Long: `Copy a published log into a directory: entries and tiles, and last the checkpoint. The
copy's tree is checked against the checkpoint; its signatures are what log audit checks.

TARGET is new, empty, or an earlier export of the same log, which is then brought up to date.

Exit 0: the copy is whole. 1: the log contradicts itself; no new checkpoint was written. 2: no log, or
TARGET holds something else. 3: it could not be read.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			reader, _, raw, err := openHead(ctx, args[0])
			if err != nil {
				return err
			}
			defer reader.Close()
			dir, err := durable.Open(args[1], durable.Public())
			if err != nil {
				return usageError("name a directory that can be written", "%v", err)
			}
			var progress func(done, size uint64)
			done := showProgress(cmd, "copied", "entries", &progress)
			head, err := reader.Export(ctx, raw, dir, progress)
			done()
			if err != nil {
				return logFailure(ctx, args[0], err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"origin": head.Origin, "size": head.Size, "root": head.Root})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d entries of %s, root %s\n", head.Size, printable(head.Origin), head.Root)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
