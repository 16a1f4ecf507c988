package collect

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"google.golang.org/protobuf/proto"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/eventlog"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/ima"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/tdx"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// recognise says what the bytes of one file are: the kind of evidence they are, or ""
// for a supporting part, and the items in them. It decides by content, never by name. An
// error means that they are nothing we know.
func recognise(raw []byte) (kind string, items []attest.Item, err error) {
	defer func() {
		if p := recover(); p != nil { // parsers of vendors
			kind, items, err = "", nil, fmt.Errorf("a parser failed: %v", p)
		}
	}()
	if len(raw) == 0 {
		return "", nil, errors.New("the file is empty")
	}
	if kind, items, found, err := encoded(raw); found {
		return kind, items, err
	}
	if decoded := fromText(raw); decoded != nil {
		if kind, items, err := recognise(decoded); err == nil {
			return kind, items, nil
		}
	}
	one := func(t string) []attest.Item { return []attest.Item{{Type: t, Data: raw}} }
	if looksLikeReport(raw) {
		items, err := reportAndTable(raw)
		return attest.KindSEVSNP, items, err
	}
	signature, maybeSignature := vtpm.LooksLikeSignature(raw)
	switch {
	case vtpm.LooksLikeStatement(raw):
		return attest.KindVTPM, one(attest.TypeTPMAttest), nil
	case hcl.LooksLike(raw):
		return hcl.KindOf(raw), one(attest.TypeHCLReport), nil
	case signature:
		return "", one(attest.TypeTPMSignature), nil
	case vtpm.LooksLikePCRs(raw):
		return "", one(attest.TypeTPMPCRs), nil
	case tdx.LooksLike(raw):
		return attest.KindTDX, one(attest.TypeTDXQuote), nil
	case eventlog.IsTCG(raw):
		return attest.KindEventLog, one(attest.TypeEventLog), nil
	case bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")):
		items, err := tdx.Collateral(raw)
		return "", items, err
	case bytes.Contains(raw, []byte("-----BEGIN ")):
		items, err := pemItems(raw)
		return "", items, err
	}
	if _, err := ima.Replay(raw); err == nil {
		return attest.KindIMA, one(attest.TypeIMALog), nil
	}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		if _, err := eventlog.Parse(raw); err == nil {
			return attest.KindEventLog, one(attest.TypeEventLog), nil
		}
	}
	if _, err := x509.ParseCertificate(raw); err == nil {
		return "", one(attest.TypeCertificate), nil
	}
	if _, err := x509.ParseRevocationList(raw); err == nil {
		return "", one(attest.TypeCRL), nil
	}
	if items, ok := snpMessage(raw); ok {
		return attest.KindSEVSNP, items, nil
	}
	if _, err := vtpm.Parse(raw); err == nil {
		return attest.KindVTPM, one(attest.TypeTPMQuote), nil
	}
	if vtpm.LooksLikeKey(raw) {
		return "", one(attest.TypeTPMPublic), nil
	}
	if maybeSignature {
		return "", one(attest.TypeTPMSignature), nil
	}
	return "", nil, errors.New("no SEV-SNP report, TDX quote, TPM quote, event log or IMA list")
}

// looksLikeReport reports whether raw begins with most of what every SEV-SNP report has,
// so that one that was tampered with is still refused as a report.
func looksLikeReport(raw []byte) bool {
	if len(raw) < sevsnp.ReportSize {
		return false
	}
	marks := 0
	for _, ok := range []bool{
		binary.LittleEndian.Uint32(raw) <= 16,             // version
		raw[0x0A]&2 != 0,                                  // policy bit 17 is one
		binary.LittleEndian.Uint32(raw[0x30:]) <= 3,       // VMPL
		binary.LittleEndian.Uint32(raw[0x34:]) == 1,       // ECDSA P-384 with SHA-384
		zero(raw[0x4C:0x50]) && zero(raw[0x208:0x2A0]),    // reserved
		zero(raw[0x330:0x4A0]) && !zero(raw[0x2A0:0x2A8]), // R and S, then nothing
	} {
		if ok {
			marks++
		}
	}
	return marks >= 5
}

func zero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// reportAndTable splits a report from the certificate table that SNP_GET_EXT_REPORT
// appends (AMD 56421, GHCB, §4.1.8.1).
func reportAndTable(raw []byte) ([]attest.Item, error) {
	items := []attest.Item{{Type: attest.TypeSEVSNPReport, Data: raw[:sevsnp.ReportSize]}}
	if len(raw) == sevsnp.ReportSize {
		return items, nil
	}
	var table abi.CertTable
	if err := table.Unmarshal(raw[sevsnp.ReportSize:]); err != nil || len(table.Entries) > attest.MaxCertificates {
		return nil, fmt.Errorf("an SEV-SNP report followed by %d bytes that are no certificate table", len(raw)-sevsnp.ReportSize)
	}
	for _, e := range table.Entries {
		switch e.GUID.String() {
		case abi.VcekGUID, abi.VlekGUID, abi.AskGUID, abi.ArkGUID, abi.AsvkGUID:
			if len(e.RawCert) > 0 {
				items = append(items, attest.Item{Type: attest.TypeCertificate, Data: e.RawCert})
			}
		}
	}
	return items, nil
}

// snpMessage reads go-sev-guest's protobuf: a report with its chain.
func snpMessage(raw []byte) ([]attest.Item, bool) {
	msg := new(spb.Attestation)
	if err := proto.Unmarshal(raw, msg); err != nil || len(msg.ProtoReflect().GetUnknown()) > 0 {
		return nil, false
	}
	report, err := abi.ReportToAbiBytes(msg.GetReport()) // not of a message without one
	if err != nil {
		return nil, false
	}
	items := []attest.Item{{Type: attest.TypeSEVSNPReport, Data: report}}
	chain := msg.GetCertificateChain()
	for _, der := range [][]byte{chain.GetVcekCert(), chain.GetVlekCert(), chain.GetAskCert(), chain.GetArkCert()} {
		if len(der) > 0 {
			items = append(items, attest.Item{Type: attest.TypeCertificate, Data: der})
		}
	}
	return items, true
}

// pemItems returns certificates and revocation lists. Certificates of which one signs Intel's
// TCB info are that chain, and stay PEM.
func pemItems(raw []byte) ([]attest.Item, error) {
	var items []attest.Item
	var chain []byte
	signs := false
	for rest := raw; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("PEM: %w", err)
			}
			signs = signs || cert.Subject.CommonName == "Intel SGX TCB Signing"
			chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
			items = append(items, attest.Item{Type: attest.TypeCertificate, Data: block.Bytes})
		case "PUBLIC KEY":
			items = append(items, attest.Item{Type: attest.TypeTPMPublic, Data: block.Bytes})
		case "X509 CRL":
			items = append(items, attest.Item{Type: attest.TypeCRL, Data: block.Bytes})
		}
		if len(items) > attest.MaxCertificates {
			return nil, fmt.Errorf("PEM: more than %d certificates", attest.MaxCertificates)
		}
	}
	if len(items) == 0 {
		return nil, errors.New("PEM without a certificate or public key")
	}
	if signs {
		return []attest.Item{{Type: attest.TypeTDXTCBChain, Data: chain}}, nil
	}
	return items, nil
}
