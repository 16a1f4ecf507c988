package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/attestmesh/meshnode/measure"
)

const measureImageHelp = `Compute the digests by which evidence names a file.

  sim           SHA-384 of the whole file: the measurement of an executable under a sim
                platform (meshnode version prints it of itself)
  ima           SHA-256 of the whole file, as IMA lists it and as an IMA allow-list names it
  authenticode  SHA-256 and SHA-384 of an EFI application, unified kernel image or kernel with
                EFI stub, as firmware measures them into PCR 4 (or RTMR1) and as an allow-list
                of boot components names them; they stay the same when the file is signed

The Authenticode digests were compared with what OVMF measured of Debian's signed shim, GRUB
and kernel.`

// measuredImage is the outcome of one file: the shape of --json.
type measuredImage struct {
	File         string                `json:"file"`
	Size         int                   `json:"size"`
	Sim          string                `json:"sim"`
	IMA          string                `json:"ima"`
	Authenticode *measuredAuthenticode `json:"authenticode,omitempty"`
}

type measuredAuthenticode struct {
	SHA256 string `json:"sha256"`
	SHA384 string `json:"sha384"`
}

func measureImageCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "image FILE...",
		Short: "Compute the digests by which sim, IMA and measured boot name a file",
		Long:  measureImageHelp,
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, paths []string) error {
			for _, path := range paths {
				m, err := measureImage(path)
				if err != nil {
					return err
				}
				if err := m.print(cmd.OutOrStdout(), asJSON); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return cmd
}

func measureImage(path string) (*measuredImage, error) {
	data, err := (&measureFiles{}).read("image", path, maxMeasured)
	if err != nil {
		return nil, err
	}
	s256, s384 := sha256.Sum256(data), sha512.Sum384(data)
	m := &measuredImage{File: path, Size: len(data), Sim: hex.EncodeToString(s384[:]), IMA: "sha256:" + hex.EncodeToString(s256[:])}
	if measure.IsPE(data) {
		d, err := measure.Authenticode(data)
		if err != nil {
			return nil, usageError("give the image as its build made it", "%s: %v", path, err)
		}
		m.Authenticode = &measuredAuthenticode{hex.EncodeToString(d.SHA256[:]), d.SHA384.String()}
	}
	return m, nil
}

func (m *measuredImage) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, m)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %d bytes\n  %-20s %s\n  %-20s %s\n", m.File, m.Size, "sim", m.Sim, "ima", m.IMA)
	if a := m.Authenticode; a != nil {
		fmt.Fprintf(&b, "  %-20s %s\n  %-20s %s\n", "authenticode sha256", a.SHA256, "authenticode sha384", a.SHA384)
	}
	_, err := io.WriteString(w, printable(b.String()))
	return err
}
