package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/attestmesh/meshnode/attest/sim"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/spf13/cobra"
)

func simPlatformCommand() *cobra.Command {
	var dir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "sim-platform --dir DIR",
		Short: "Measure and vouch for simulated nodes on this machine, for trials only",
		Long: `Measure and vouch for simulated nodes on this machine, for trials only.

The platform measures every process that connects to DIR/sim.sock by hashing its executable
and signs reports with the root key that it keeps in DIR. Name DIR/root.pub when making a
genesis that allows simulated nodes, and the socket in each node's configuration. It
protects nothing from this machine. It runs until it gets SIGINT or SIGTERM.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if dir == "" {
				return usageError("give --dir a directory for the platform's key and socket", "--dir is missing")
			}
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			p, err := sim.Listen(dir, log)
			if errors.Is(err, durable.ErrInUse) {
				return usageError("use the platform that runs there, or another --dir", "%v", err)
			}
			if err != nil {
				return usageError("give --dir a directory of your own that only you can write", "%v", err)
			}
			if err := printPlatform(cmd, p, dir, asJSON); err != nil {
				return errors.Join(err, p.Close())
			}
			if err := p.Run(cmd.Context()); err != nil {
				return unavailableError("unavailable", "start the platform again; it keeps its root", "%v", err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the platform's key and socket, made if absent")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object once it listens")
	return cmd
}

// printPlatform prints the line that tells whoever waits that the platform listens.
func printPlatform(cmd *cobra.Command, p *sim.Platform, dir string, asJSON bool) error {
	der, err := envelope.MarshalPublic(p.Root())
	if err != nil {
		return err
	}
	root := base64.StdEncoding.EncodeToString(der)
	socket, err := filepath.Abs(p.Socket()) // configurations elsewhere name it
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(cmd.OutOrStdout(), struct {
			Socket string `json:"socket"`
			Root   string `json:"root"`
		}{socket, root})
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "listening on %s\nroot %s (%s/%s)\nsimulated evidence protects nothing from this machine\n",
		socket, root, dir, sim.RootName)
	return err
}
