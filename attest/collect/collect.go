// Package collect turns files into evidence: it recognises what a file is by its content,
// finds what belongs to it in the same folder, and puts both into attest.Evidence. It
// verifies nothing; wrong guesses end as refusals of a Scheme.
//
// Recognised: an SEV-SNP report, bare, with a certificate table appended, or as
// go-sev-guest's protobuf; a TDX quote; go-tpm-tools' attestation protobuf; a TPM's quote as
// bare TPMS_ATTEST; the HCL report of Azure's paravisor; a TCG or dstack event log; an IMA
// list; attest.Evidence, as meshnode attest writes it. Beside them: certificates (DER, PEM),
// revocation lists, Intel's TCB info, QE identity and TCB signing chain, each in a file or
// all in one as verifiers keep them (tdx.Collateral); of a bare quote the signature
// (TPMT_SIGNATURE or raw), the register values (JSON, lines of tpm2_pcrread) and the key
// (DER, PEM, TPMT_PUBLIC, TPM2B_PUBLIC). A file may hold any of them in hex or base64.
//
// What belongs to a file: of its siblings by suffix (.der .pem .crt .cer .crl .json .bin) the
// certificates for a report without any, the collateral for a quote. A folder holds one
// sample: each report, quote or attestation in it with everything that supports it; if
// there is none, each log. A bare quote gets the signature, registers and key that fit it,
// an HCL report the quotes beside it, which makes them one piece of evidence of a composite
// kind; a file that is any part of such a piece stands for all of it.
package collect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/internal/regular"
)

// Input is one piece of evidence and where it came from.
type Input struct {
	File     string // the file that holds the report, quote, attestation or log
	Kind     string // also attest.KindEventLog and KindIMA, whose Evidence holds the log
	Evidence attest.Evidence
}

// errNothing is returned by read for files that are not looked at.
var errNothing = errors.New("not a regular file")

// Path collects what is at path, a file or a folder.
func Path(path string) ([]Input, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var inputs []Input
	var parts []part
	if info.IsDir() {
		if inputs, parts, err = folder(path); err != nil {
			return nil, err
		}
		if len(inputs) == 0 {
			return nil, fmt.Errorf("%s: no report, quote, attestation or log in this folder", path)
		}
	} else {
		if inputs, parts, err = file(path); err != nil {
			return nil, err
		}
	}
	for i := range inputs {
		inputs[i].support(parts)
		if inputs[i].Kind == attest.KindEventLog || inputs[i].Kind == attest.KindIMA {
			continue // logs are no kind of evidence that a scheme takes
		}
		if err := inputs[i].Evidence.Check(); err != nil {
			return nil, fmt.Errorf("%s: %w", inputs[i].File, err)
		}
	}
	return inputs, nil
}

// file reads one file that must be evidence or a part of it, and what belongs to it.
func file(path string) ([]Input, []part, error) {
	raw, err := read(path, maxFile)
	if err != nil {
		return nil, nil, err
	}
	kind, found, err := recognise(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	in := Input{File: path, Kind: kind, Evidence: attest.Evidence{Kind: kind, Items: found}}
	if slices.Contains([]string{attest.TypeTPMAttest, attest.TypeHCLReport, attest.TypeTPMSignature, attest.TypeTPMPCRs, attest.TypeTPMPublic}, found[0].Type) {
		return machine(in)
	}
	if kind == "" {
		return nil, nil, fmt.Errorf("%s: certificates or collateral, not evidence", path)
	}
	parts, err := siblings(path, kind)
	if slices.ContainsFunc(parts, func(p part) bool { return p.item.Type == attest.TypeHCLReport }) {
		return machine(in) // a TD's quote beside its paravisor's report
	}
	return []Input{in}, parts, err
}

// machine returns the evidence in the folder of a file that the file is a part of.
func machine(in Input) ([]Input, []part, error) {
	inputs, parts, err := folder(filepath.Dir(in.File))
	if err != nil {
		return nil, nil, err
	}
	whole := slices.DeleteFunc(inputs, func(i Input) bool {
		return i.File != in.File && !slices.ContainsFunc(i.Evidence.Items, func(it attest.Item) bool {
			own := in.Evidence.Items[0] // longer by its padding, perhaps
			return it.Type == own.Type && bytes.HasPrefix(own.Data, it.Data)
		})
	})
	if len(whole) == 0 {
		return nil, nil, fmt.Errorf("%s: part of a TPM's quote, but no quote beside it", in.File)
	}
	for i := range whole {
		whole[i].File = in.File
	}
	return whole, parts, nil
}

// read returns a regular file's bytes within a limit.
func read(path string, limit int64) ([]byte, error) {
	f, err := regular.Open(path)
	if not := new(regular.NotRegularError); errors.As(err, &not) {
		return nil, fmt.Errorf("%s: %w", path, errNothing)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: over the limit of %d bytes", path, limit)
	}
	return raw, nil
}

// folder recognises every file of a folder, without descending.
func folder(dir string) ([]Input, []part, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	if len(entries) > maxFiles {
		return nil, nil, fmt.Errorf("%s: %d files, the limit is %d; give one file", dir, len(entries), maxFiles)
	}
	var quotes, logs []Input
	var parts []part
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		raw, err := read(path, maxFile)
		if errors.Is(err, errNothing) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		kind, items, err := recognise(raw)
		switch {
		case err != nil: // a README, a key, a log of something else
		case kind == "":
			for _, it := range items {
				parts = append(parts, part{path, it})
			}
		case kind == attest.KindEventLog || kind == attest.KindIMA:
			logs = append(logs, Input{File: path, Kind: kind, Evidence: attest.Evidence{Kind: kind, Items: items}})
		default:
			quotes = append(quotes, Input{File: path, Kind: kind, Evidence: attest.Evidence{Kind: kind, Items: items}})
		}
	}
	if quotes = assemble(quotes, parts); len(quotes) == 0 {
		return logs, parts, nil
	}
	// Logs beside a quote support it, if it is the only one or all are of one TPM. Of IMA's
	// list the binary form says more and goes before the ASCII one.
	one := len(quotes) == 1 || !slices.ContainsFunc(quotes, func(q Input) bool { return q.Kind != attest.KindVTPM })
	slices.SortStableFunc(logs, func(a, b Input) int { return b.binary() - a.binary() })
	for _, l := range logs {
		if one {
			parts = append(parts, part{l.File, l.Evidence.Items[0]})
		}
	}
	return quotes, parts, nil
}

// binary is 1 if a log begins with something that is no digit, as ASCII lists do.
func (in Input) binary() int {
	if c := in.Evidence.Items[0].Data[0]; c >= '0' && c <= '9' {
		return 0
	}
	return 1
}

// siblings recognises certificates and collateral in the folder of a file.
func siblings(path, kind string) ([]part, error) {
	if kind != attest.KindSEVSNP && kind != attest.KindTDX {
		return nil, nil
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var parts []part
	looked := 0
	for _, e := range entries {
		suffix := strings.ToLower(filepath.Ext(e.Name()))
		if !slices.Contains([]string{".der", ".pem", ".crt", ".cer", ".crl", ".json", ".bin"}, suffix) || e.Name() == filepath.Base(path) {
			continue
		}
		if looked++; looked > maxFiles {
			return nil, fmt.Errorf("%s: more than %d files beside it; move it to a folder of its own", path, maxFiles)
		}
		raw, err := read(filepath.Join(filepath.Dir(path), e.Name()), maxPart)
		if err != nil {
			continue // unreadable or too large to be a part of this
		}
		if found, items, err := recognise(raw); err == nil && (found == "" || kind == attest.KindTDX && items[0].Type == attest.TypeHCLReport) {
			for _, it := range items {
				parts = append(parts, part{e.Name(), it})
			}
		}
	}
	return parts, nil
}

// supports lists what each part of a kind can have beside it.
var supports = map[string][]string{
	attest.KindSEVSNP: {attest.TypeCertificate, attest.TypeCRL},
	attest.KindTDX: {attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent, attest.TypeTDXTCBChain, attest.TypeCRL,
		attest.TypeEventLog},
	attest.KindVTPM: {attest.TypeEventLog, attest.TypeIMALog, attest.TypeCertificate},
}

// support adds the parts that the evidence of this kind can have and does not have yet.
func (in *Input) support(parts []part) {
	var accepts []string
	for k := range strings.SplitSeq(in.Kind, ",") {
		accepts = append(accepts, supports[k]...)
	}
	snp, tpm := slices.Contains(strings.Split(in.Kind, ","), attest.KindSEVSNP), in.Kind == attest.KindVTPM
	for _, p := range parts {
		repeatable := p.item.Type == attest.TypeCertificate || p.item.Type == attest.TypeCRL ||
			p.item.Type == attest.TypeTDXTCBChain && len(in.Evidence.Find(p.item.Type)) < 2
		if !slices.Contains(accepts, p.item.Type) || !repeatable && in.has(p.item.Type) {
			continue
		}
		if p.item.Type == attest.TypeCertificate {
			// The chain above is compiled in; certificates of other things are not ours.
			if snp && !sevsnp.IsEndorsement(p.item.Data) || !snp && !tpm {
				continue
			}
		}
		if p.item.Type == attest.TypeCRL && snp && !sevsnp.IsCRL(p.item.Data) {
			continue
		}
		if p.item.Type == attest.TypeEventLog && in.hasOwnLog() {
			continue
		}
		in.add(p)
	}
}

// hasOwnLog reports whether a TPM's attestation brings the log of its boot.
func (in *Input) hasOwnLog() bool {
	for _, raw := range in.Evidence.Find(attest.TypeTPMQuote) {
		if msg, err := vtpm.Parse(raw); err == nil && len(msg.GetEventLog()) > 0 {
			return true
		}
	}
	return false
}
