// Package collect turns files into evidence: it recognises what a file is by its content,
// finds what belongs to it in the same folder, and puts both into attest.Evidence. It
// verifies nothing; wrong guesses end as refusals of a Scheme.
//
// Recognised: an SEV-SNP report, bare, with a certificate table appended, or as
// go-sev-guest's protobuf; a TDX quote; go-tpm-tools' attestation protobuf; a TCG or
// dstack event log; an IMA list. Beside them: certificates (DER, PEM), revocation lists,
// Intel's TCB info, QE identity and TCB signing chain.
//
// What belongs to a file: of its siblings by suffix (.der .pem .crt .cer .crl .json) the
// certificates for a report without any, the collateral for a quote. A folder holds one
// sample: each report, quote or attestation in it with everything that supports it; if
// there is none, each log.
package collect

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/sevsnp"
)

// Input is one piece of evidence and where it came from.
type Input struct {
	File     string // the file that holds the report, quote, attestation or log
	Kind     string // also attest.KindEventLog and KindIMA, whose Evidence holds the log
	Evidence attest.Evidence
}

// errNothing is returned by read for files that are not looked at.
var errNothing = errors.New("not a regular file")

// Path collects what is at path, a file or a folder. extra are folders with collateral.
func Path(path string, extra ...string) ([]Input, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	var inputs []Input
	var parts []attest.Item
	if info.IsDir() {
		if inputs, parts, err = folder(path); err != nil {
			return nil, err
		}
		if len(inputs) == 0 {
			return nil, fmt.Errorf("%s: no report, quote, attestation or log in this folder", path)
		}
	} else {
		in, err := file(path)
		if err != nil {
			return nil, err
		}
		inputs = []Input{in}
		if parts, err = siblings(path, in.Kind); err != nil {
			return nil, err
		}
	}
	for _, dir := range extra {
		_, more, err := folder(dir)
		if err != nil {
			return nil, err
		}
		parts = append(parts, more...)
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

// file reads one file that must be evidence.
func file(path string) (Input, error) {
	raw, err := read(path, maxFile)
	if err != nil {
		return Input{}, err
	}
	kind, items, err := recognise(raw)
	if err != nil {
		return Input{}, fmt.Errorf("%s: %w", path, err)
	}
	if kind == "" {
		return Input{}, fmt.Errorf("%s: certificates or collateral, not evidence", path)
	}
	return Input{File: path, Kind: kind, Evidence: attest.Evidence{Kind: kind, Items: items}}, nil
}

// read returns a regular file's bytes within a limit.
func read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errNothing)
	}
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
func folder(dir string) ([]Input, []attest.Item, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	if len(entries) > maxFiles {
		return nil, nil, fmt.Errorf("%s: %d files, the limit is %d; give one file", dir, len(entries), maxFiles)
	}
	var quotes, logs []Input
	var parts []attest.Item
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
			parts = append(parts, items...)
		case kind == attest.KindEventLog || kind == attest.KindIMA:
			logs = append(logs, Input{File: path, Kind: kind, Evidence: attest.Evidence{Kind: kind, Items: items}})
		default:
			quotes = append(quotes, Input{File: path, Kind: kind, Evidence: attest.Evidence{Kind: kind, Items: items}})
		}
	}
	if len(quotes) == 0 {
		return logs, parts, nil
	}
	// A log beside a quote supports it, if there is only one of each.
	for _, l := range logs {
		if l.Kind == attest.KindEventLog && len(quotes) == 1 {
			parts = append(parts, l.Evidence.Items...)
		}
	}
	return quotes, parts, nil
}

// siblings recognises certificates and collateral in the folder of a file.
func siblings(path, kind string) ([]attest.Item, error) {
	if kind != attest.KindSEVSNP && kind != attest.KindTDX {
		return nil, nil
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var parts []attest.Item
	looked := 0
	for _, e := range entries {
		suffix := strings.ToLower(filepath.Ext(e.Name()))
		if !slices.Contains([]string{".der", ".pem", ".crt", ".cer", ".crl", ".json"}, suffix) || e.Name() == filepath.Base(path) {
			continue
		}
		if looked++; looked > maxFiles {
			return nil, fmt.Errorf("%s: more than %d files beside it; move it to a folder of its own", path, maxFiles)
		}
		raw, err := read(filepath.Join(filepath.Dir(path), e.Name()), maxPart)
		if err != nil {
			continue // unreadable or too large to be a part of this
		}
		if kind, items, err := recognise(raw); err == nil && kind == "" {
			parts = append(parts, items...)
		}
	}
	return parts, nil
}

// support adds the parts that the evidence of this kind can have and does not have yet.
func (in *Input) support(parts []attest.Item) {
	accepts := map[string][]string{
		attest.KindSEVSNP: {attest.TypeCertificate},
		attest.KindTDX: {attest.TypeTDXTCBInfo, attest.TypeTDXQEIdent, attest.TypeTDXTCBChain, attest.TypeCRL,
			attest.TypeEventLog},
	}[in.Kind]
	if in.Kind == attest.KindSEVSNP && len(in.Evidence.Find(attest.TypeCertificate)) > 0 {
		return // certificates that came with the report are those of its machine
	}
	for _, p := range parts {
		repeatable := p.Type == attest.TypeCertificate || p.Type == attest.TypeCRL
		if !slices.Contains(accepts, p.Type) || slices.ContainsFunc(in.Evidence.Items, func(it attest.Item) bool {
			return it.Type == p.Type && (!repeatable || string(it.Data) == string(p.Data))
		}) {
			continue
		}
		// The chain above is compiled in; certificates of other things are not ours.
		if in.Kind == attest.KindSEVSNP && !sevsnp.IsEndorsement(p.Data) {
			continue
		}
		in.Evidence.Items = append(in.Evidence.Items, p)
	}
}
