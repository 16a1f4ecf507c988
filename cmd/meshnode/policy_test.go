package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
)

// TestShowPolicy: whoever signs a change sees what an entry lets a machine run.
func TestShowPolicy(t *testing.T) {
	var out bytes.Buffer
	err := showEntries(&out, []consensus.Entry{
		{ID: "e1", Kind: "sevsnp", Measurement: "aa", Roles: []string{"seat"}},
		{ID: "e2", Kind: "vtpm", Measurement: "bb", Roles: []string{"trainer"}, IMA: []string{"sha256:01", "sha256:02"}},
	}, []consensus.Entry{{ID: "e0", Kind: "vtpm", Measurement: "cc", IMA: []string{"sha256:03"}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := out.String(); !strings.Contains(got, "\n  file sha256:01\n  file sha256:02\n") || strings.Contains(got, "sha256:03") {
		t.Errorf("got\n%s", got)
	}
}
