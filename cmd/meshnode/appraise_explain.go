package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// explain lists registers, all claims of the kind and the vector.
func explain(b *strings.Builder, r appraised) {
	for _, name := range slices.Sorted(maps.Keys(r.claims.Registers)) {
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
