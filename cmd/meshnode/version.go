package main

import (
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is set by -ldflags "-X main.version=…" in make dist.
var version = "devel"

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version and the measurement of this executable",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			measurement, err := measureSelf()
			if err != nil {
				return unavailableError("unavailable", "", "measure this executable: %v", err)
			}
			v := version
			if info, ok := debug.ReadBuildInfo(); ok && v == "devel" && info.Main.Version != "" {
				v = info.Main.Version
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": v, "go": runtime.Version(), "measurement": measurement})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "meshnode %s (%s)\nmeasurement (sim, SHA-384 of the executable) %s\n", v, runtime.Version(), measurement)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// measureSelf is what a sim platform measures when this executable connects to it.
func measureSelf() (string, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha512.New384()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
