package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func runCommand() *cobra.Command {
	var config string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run a node until it is stopped",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if config == "" {
				return usageError("name the node's configuration with --config FILE", "no configuration")
			}
			cfg, err := node.LoadConfig(config)
			if err != nil {
				return configFailure(config, err)
			}
			deps, err := node.SystemDeps(cfg)
			if err != nil {
				return configFailure(config, err)
			}
			deps.Log = slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelDebug}))
			deps.Ready = func(r node.Ready) {
				if asJSON {
					_ = printJSON(cmd.OutOrStdout(), r)
					return
				}
				fmt.Fprintf(cmd.OutOrStdout(), "node %s is up as %s\n  control socket %s\n  public %s\n", r.Node, r.Peer, r.Socket, r.Public)
			}
			return configFailure(config, node.Run(cmd.Context(), cfg, deps))
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "the node's configuration (YAML)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON line when the node is up")
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Look after configurations", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var asJSON bool
	check := &cobra.Command{
		Use:   "check FILE",
		Short: "Check a node's configuration without starting it",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := node.LoadConfig(args[0])
			if err != nil {
				return configFailure(args[0], err)
			}
			deps, err := node.SystemDeps(cfg)
			if err != nil {
				return configFailure(args[0], err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]any{"ok": true, "node": cfg.Ref().String(), "mesh_id": deps.Genesis.MeshID().String()})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is well-formed: node %s of mesh %s\n", args[0], cfg.Ref(), deps.Genesis.MeshID())
			return nil
		},
	}
	check.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.AddCommand(check)
	return cmd
}

// configFailure turns the mistakes that an operator can mend in the configuration file, or
// in what it names, into exit 2 with the remedy.
func configFailure(file string, err error) error {
	var mistake *node.ConfigError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &mistake):
		if mistake.File == "" && mistake.Field != "" {
			mistake.File = file
		}
		return usageError(mistake.Remedy, "%v", mistake)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, os.ErrPermission):
		return usageError("check the path and its permissions", "%v", err)
	}
	var refused *node.RefusedError
	if errors.As(err, &refused) {
		return refusedError(string(refused.Reason.Code), refused.Reason.Remedy, "%v", err)
	}
	return unavailableError("unavailable", "look at the node's log", "%v", err)
}
