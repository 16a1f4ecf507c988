package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/node"
	"github.com/spf13/cobra"
)

func jobExportCommand() *cobra.Command {
	var out string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "export ID --node DATA -o DIR",
		Short: "Write a job's certificates, models and disclosed updates into a directory that anyone can verify",
		Args:  cobra.ExactArgs(1),
	}
	socket := nodeFlag(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "new or empty directory")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if out == "" {
			return usageError("name a new directory with -o DIR", "no directory")
		}
		if entries, err := os.ReadDir(out); err == nil && len(entries) > 0 {
			return usageError("choose a new directory", "%s is not empty", out)
		}
		c, err := newControl(*socket)
		if err != nil {
			return err
		}
		rounds, err := exportJob(cmd.Context(), c, args[0], out)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(cmd.OutOrStdout(), map[string]any{"id": args[0], "directory": out, "certificates": rounds})
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%d certificates in %s; check them with meshnode job verify %s\n", rounds, out, out)
		return nil
	}
	return cmd
}

// exportJob fetches everything first and writes then, so that a node that cannot serve a
// round leaves no half directory.
func exportJob(ctx context.Context, c *control, id, out string) (int, error) {
	var job node.JobStatus
	if err := c.call(ctx, http.MethodGet, "/v1/jobs/"+id, nil, &job); err != nil {
		return 0, err
	}
	files := map[string][]byte{}
	for _, r := range job.Committed {
		if err := exportRound(ctx, c, id, r, files); err != nil {
			return 0, err
		}
	}
	if last := len(job.Committed) - 1; last >= 0 {
		files[federated.ModelFile] = files[federated.RoundModelFile(uint32(last))]
	}
	dir, err := durable.Open(out)
	if err != nil {
		return 0, usageError("check the path", "%v", err)
	}
	for name, data := range files {
		if err := dir.WriteFile(filepath.ToSlash(name), data, 0o644); err != nil {
			return 0, unavailableError("unavailable", "check the disk", "%v", err)
		}
	}
	return len(job.Committed), nil
}

func exportRound(ctx context.Context, c *control, id string, r node.CommittedRound, files map[string][]byte) error {
	var raw []byte
	if err := c.call(ctx, http.MethodGet, fmt.Sprintf("/v1/jobs/%s/certificates/%d", id, r.Round), nil, &raw); err != nil {
		return err
	}
	certificate, err := federated.ParseCertificate(raw)
	if err != nil {
		return refusedError("malformed", "ask another node", "round %d: %v", r.Round, err)
	}
	if files[federated.CertificateFile(uint32(r.Round))], err = certificate.Marshal(); err != nil {
		return err
	}
	var model []byte
	if err := c.call(ctx, http.MethodGet, "/v1/blobs/"+r.ResultRoot, nil, &model); err != nil {
		return err
	}
	files[federated.RoundModelFile(uint32(r.Round))] = model
	if certificate.Disclosure != federated.DiscloseFull {
		return nil
	}
	for _, m := range certificate.Members {
		var update []byte
		if err := c.call(ctx, http.MethodGet, "/v1/blobs/"+m.UpdateRoot.String(), nil, &update); err != nil {
			return err
		}
		files[federated.UpdateFile(uint32(r.Round), m.Ref)] = update
	}
	return nil
}
