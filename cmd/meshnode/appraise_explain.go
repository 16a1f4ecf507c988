package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
)

// byNumber orders names of registers by what stands before their number, then by the number.
func byNumber(a, b string) int {
	x, y := strings.TrimRight(a, "0123456789"), strings.TrimRight(b, "0123456789")
	if x != y {
		return strings.Compare(x, y)
	}
	return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b))
}

// explain lists registers, all claims of the kind and the vector.
func explain(b *strings.Builder, r appraised) {
	for _, name := range slices.SortedFunc(maps.Keys(r.claims.Registers), byNumber) {
		fmt.Fprintf(b, "  %-13s %s\n", name, r.claims.Registers[name])
	}
	for _, section := range []struct {
		name string
		v    any
	}{{"sevsnp", r.claims.SEVSNP}, {"tdx", r.claims.TDX}, {"vtpm", r.claims.VTPM}, {"sim", r.claims.Sim}} {
		for _, line := range fields(section.v) {
			fmt.Fprintf(b, "  %s.%s\n", section.name, line)
		}
	}
	if c := r.claims.TDX; c != nil {
		fmt.Fprintf(b, "  tdx.%-20s %s\n", "td_attributes bits", orDash(strings.Join(c.AttributeNames(), " ")))
	}
	if r.EAR != nil {
		b.WriteString("  trustworthiness vector (2 affirming, 32 warning, 96 contraindicated, 0 no claim):\n")
		for _, line := range fields(r.result.Vector) {
			fmt.Fprintf(b, "    %s\n", line)
		}
	}
}

// fields lists the members of a JSON object as "name value", in their order.
func fields(v any) []string {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil // a nil section
	}
	var out []string
	for dec.More() {
		name, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			break
		}
		out = append(out, fmt.Sprintf("%-20v %s", name, value))
	}
	return out
}

func (a *appraiser) print(w io.Writer, r appraised) error {
	if a.flags.json {
		return printJSON(w, r)
	}
	genuine := "not genuine"
	switch {
	case r.Genuine == nil:
		genuine = "nothing to be genuine: a log without a quote"
		if r.EAR != nil {
			genuine = "not decided by this release"
		}
		if r.Verdict == attest.VerdictContraindicated {
			genuine = "refused for what follows"
		}
	case *r.Genuine && r.claims.VTPM != nil && r.claims.VTPM.AKTrust == "":
		genuine = "consistent, under a key nobody vouches for"
	case *r.Genuine:
		genuine = "genuine"
	case r.Verdict == attest.VerdictNone:
		genuine = "not shown to be genuine"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s (%s, %s)\n", r.File, r.Verdict, r.Kind, genuine)
	r.Connection.print(&b)
	if r.claims.Measurement != "" {
		fmt.Fprintf(&b, "  measurement %s\n", r.claims.Measurement)
	}
	if r.claims.Genuine && !r.claims.Bound {
		fmt.Fprintf(&b, "  carries %s, compared with nothing (--report-data)\n", r.claims.ReportData)
	}
	for _, reason := range r.Reasons {
		fmt.Fprintf(&b, "  %s\n", reason)
		if r.detail != "" {
			fmt.Fprintf(&b, "    because: %s\n", r.detail)
		}
		if reason.Remedy != "" {
			fmt.Fprintf(&b, "    try: %s\n", reason.Remedy)
		}
	}
	r.Forecast.print(&b)
	if r.EAR == nil || a.flags.explain {
		explain(&b, r)
	}
	_, err := io.WriteString(w, printable(b.String()))
	return err
}

// printFailure reports one of several inputs that came to no verdict.
func (a *appraiser) printFailure(out, errOut io.Writer, file string, f *failure) error {
	if a.flags.json {
		return printJSON(out, map[string]any{"file": file, "error": map[string]string{
			"code": f.code, "message": f.message, "remedy": f.remedy}})
	}
	_, err := fmt.Fprintf(errOut, "meshnode: %s\n  try: %s\n", printable(f.message), printable(f.remedy))
	return err
}
