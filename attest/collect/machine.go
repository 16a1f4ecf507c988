package collect

import (
	"encoding/binary"
	"path/filepath"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

// part is an item that supports evidence, and the file it came from.
type part struct {
	file string
	item attest.Item
}

// bareParts are what a bare quote of a TPM has beside the statement.
var bareParts = []string{attest.TypeTPMSignature, attest.TypeTPMPCRs, attest.TypeTPMPublic}

// has reports whether the input holds an item of a type.
func (in Input) has(itemType string) bool { return len(in.Evidence.Find(itemType)) > 0 }

// add appends a part unless the same bytes are there.
func (in *Input) add(p part) {
	if !slices.ContainsFunc(in.Evidence.Items, func(it attest.Item) bool {
		return it.Type == p.item.Type && string(it.Data) == string(p.item.Data)
	}) {
		in.Evidence.Items = append(in.Evidence.Items, p.item)
	}
}

// assemble puts together what several files of one machine are: a statement with its
// signature, registers and key, and a paravisor's report with the quotes it vouches for.
func assemble(inputs []Input, parts []part) []Input {
	var out, reports, quotes []Input
	for _, in := range inputs {
		switch {
		case in.has(attest.TypeHCLReport):
			reports = append(reports, in)
		case in.has(attest.TypeTPMAttest):
			in.bare(parts)
			quotes = append(quotes, in)
		case in.Kind == attest.KindVTPM:
			quotes = append(quotes, in)
		default:
			out = append(out, in)
		}
	}
	if len(reports) == 0 {
		return append(out, quotes...)
	}
	orphans := slices.ContainsFunc(parts, func(p part) bool { return slices.Contains(bareParts, p.item.Type) })
	for _, report := range reports {
		out = report.compose(out, quotes, len(quotes) == 0 && !orphans)
	}
	return out
}

// bare adds to a statement what belongs to it: the signature and key that fit each other,
// else those that are named like it, else the first; of register values those it explains.
func (in *Input) bare(parts []part) {
	of := func(itemType string) (out []part) {
		for _, p := range parts {
			if p.item.Type == itemType {
				out = append(out, p)
			}
		}
		// Those named like the statement come first.
		slices.SortStableFunc(out, func(a, b part) int { return rank(in.File, a.file) - rank(in.File, b.file) })
		return out
	}
	statement := in.Evidence.Items[0].Data
	signatures, keys, registers := of(attest.TypeTPMSignature), of(attest.TypeTPMPublic), of(attest.TypeTPMPCRs)
	chosen := false
	for _, s := range signatures {
		for _, k := range keys {
			if !chosen && vtpm.Fits(statement, s.item.Data, k.item.Data) {
				in.add(s)
				in.add(k)
				chosen = true
			}
		}
	}
	if !chosen && len(signatures) > 0 {
		in.add(signatures[0])
	}
	if !chosen && len(keys) == 1 {
		in.add(keys[0])
	}
	if i := slices.IndexFunc(registers, func(p part) bool { return vtpm.Explains(statement, p.item.Data) }); i >= 0 {
		in.add(registers[i])
	} else if len(registers) > 0 {
		in.add(registers[0])
	}
}

// rank is lower the more two files' names have in common.
func rank(a, b string) int {
	stem := func(s string) string { s, _, _ = strings.Cut(filepath.Base(s), "."); return s }
	if filepath.Dir(a) == filepath.Dir(b) && stem(a) == stem(b) {
		return 0
	}
	return 1
}

// compose makes composite evidence of a paravisor's report, each quote of a TPM, and of a
// TD the TD's quote, which then is no input of its own. A report without any part of a TPM's
// quote is, for SEV-SNP, the report of the guest alone.
func (in Input) compose(others, quotes []Input, alone bool) []Input {
	raw := in.Evidence.Items[0].Data
	tee, err := hcl.Parse(raw)
	var out []Input
	var td []attest.Item
	for _, o := range others {
		switch {
		case !alone && in.Kind == attest.KindTDX+","+attest.KindVTPM && o.Kind == attest.KindTDX:
			for _, it := range o.Evidence.Items {
				if it.Type == attest.TypeTDXQuote {
					it.Data = unpadded(it.Data)
				}
				td = append(td, it)
			}
		case err == nil && o.Kind == attest.KindSEVSNP && string(o.Evidence.Items[0].Data) == string(tee.Hardware):
			// The same report, taken out already.
		default:
			out = append(out, o)
		}
	}
	if alone {
		if err == nil && tee.TEE == attest.KindSEVSNP {
			return append(out, Input{File: in.File, Kind: tee.TEE, Evidence: attest.Evidence{Kind: tee.TEE,
				Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: tee.Hardware}}}})
		}
		if len(out) > 0 {
			return out // the TD's quote is evidence without it
		}
	}
	if len(quotes) == 0 {
		quotes = []Input{{}} // the scheme says what is missing
	}
	for _, q := range quotes {
		whole := Input{File: in.File, Kind: in.Kind, Evidence: attest.Evidence{Kind: in.Kind}}
		whole.Evidence.Items = append(whole.Evidence.Items, in.Evidence.Items...)
		whole.Evidence.Items = append(whole.Evidence.Items, q.Evidence.Items...)
		whole.Evidence.Items = append(whole.Evidence.Items, td...)
		out = append(out, whole)
	}
	return out
}

// unpadded returns a TDX quote without the zeros behind it: Azure's metadata service answers
// with its whole buffer. What is not such padding stays, for the scheme to refuse.
func unpadded(raw []byte) []byte {
	const header, body4, mostPadding = 48, 584, 1 << 10
	at := uint64(header + body4)
	if len(raw) < header+body4+4 {
		return raw
	}
	if binary.LittleEndian.Uint16(raw) == 5 { // u16 type and u32 size of the body
		at = header + 6 + uint64(binary.LittleEndian.Uint32(raw[header+2:]))
	}
	if at+4 > uint64(len(raw)) {
		return raw
	}
	end := at + 4 + uint64(binary.LittleEndian.Uint32(raw[at:]))
	if end > uint64(len(raw)) || uint64(len(raw))-end > mostPadding || !zero(raw[end:]) {
		return raw
	}
	return raw[:end]
}
