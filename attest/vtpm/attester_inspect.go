package vtpm

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpmutil"

	"github.com/attestmesh/meshnode/attest/device"
)

// Facts are what a TPM says of itself, unproven.
type Facts struct {
	Manufacturer string   // the vendor id, as "IBM" or "STM"
	Banks        []string // allocated PCR banks
	// EKIssuer is the issuer in the endorsement key's certificate, and "" where the TPM has
	// none: no Attestation CA can then know it.
	EKIssuer string
	// AK is an attestation key that came with the machine and has a certificate, or nil.
	AK *ProvisionedAK
	// HCLReport says that the TPM is a paravisor's and holds the report of its TEE (package
	// hcl).
	HCLReport bool
}

// hclReportIndex is that of Azure's paravisor.
const hclReportIndex = 0x01400001

// knownAKs are where clouds put attestation keys with certificates.
var knownAKs = []ProvisionedAK{
	{Handle: 0x81000003, CertificateIndex: 0x01C101D0},                                            // Azure
	{TemplateIndex: client.GceAKTemplateNVIndexECC, CertificateIndex: client.GceAKCertNVIndexECC}, // Google Cloud
	{TemplateIndex: client.GceAKTemplateNVIndexRSA, CertificateIndex: client.GceAKCertNVIndexRSA},
}

// Inspect looks at the TPM at path. It makes no key and changes nothing.
func Inspect(ctx context.Context, path string) (Facts, error) {
	return device.Do(ctx, device.New(path), "inspect", commandWithin, func(until time.Time) (f Facts, err error) {
		ch, err := openChannel(path, until)
		if err != nil {
			return Facts{}, err
		}
		defer ch.Close()
		ch.until = until
		id, err := tpm2.GetManufacturer(ch)
		if err != nil {
			return Facts{}, err
		}
		f.Manufacturer = strings.TrimRight(string(id), "\x00 ")
		allocated, err := client.AllocatedPCRs(ch)
		if err != nil {
			return Facts{}, err
		}
		for _, bank := range allocated {
			h, err := bank.Hash.Hash()
			if err != nil {
				f.Banks = append(f.Banks, fmt.Sprintf("%#x", uint16(bank.Hash)))
				continue
			}
			f.Banks = append(f.Banks, strings.ToLower(strings.ReplaceAll(h.String(), "-", "")))
		}
		for _, kind := range endorsementKinds {
			if der, err := readIndex(ch, kind.index); err == nil {
				if cert, err := parseEndorsement(der); err == nil {
					f.EKIssuer = cert.Issuer.String()
					break
				}
			}
		}
		for _, known := range knownAKs {
			if hasKey(ch, known) {
				f.AK = &known
				break
			}
		}
		_, err = tpm2.NVReadPublic(ch, hclReportIndex)
		f.HCLReport = err == nil
		return f, nil
	})
}

// hasKey reports whether the TPM has the key or its template, and the certificate.
func hasKey(ch *channel, p ProvisionedAK) bool {
	if _, err := tpm2.NVReadPublic(ch, tpmutil.Handle(p.CertificateIndex)); err != nil {
		return false
	}
	if p.TemplateIndex != 0 {
		_, err := tpm2.NVReadPublic(ch, tpmutil.Handle(p.TemplateIndex))
		return err == nil
	}
	_, _, _, err := tpm2.ReadPublic(ch, tpmutil.Handle(p.Handle))
	return err == nil
}
