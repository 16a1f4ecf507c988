package main

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/node"
)

// TestShowPlatforms: policy show names every demand on hardware, and no heading where there is
// none.
func TestShowPlatforms(t *testing.T) {
	var b strings.Builder
	showPlatforms(&b, node.PolicyView{})
	if b.Len() != 0 {
		t.Errorf("nothing is demanded: %q", b.String())
	}
	from := time.Date(2026, 10, 1, 0, 0, 0, 0, time.UTC)
	showPlatforms(&b, node.PolicyView{Platforms: node.PlatformsView{
		Floors: []attest.Floor{{Product: "Milan", SEVSNP: &attest.TCB{SNP: 24}, From: from}, {TDX: &attest.TDXDemand{MinimumTCBEvaluation: 18}}},
		Denied: []attest.Product{{Line: "Genoa"}},
		Hardware: []consensus.HardwareList{{HardwareScope: consensus.HardwareScope{Organisation: "alpha"}, Listed: []string{"a", "b"}, Removed: []string{"c"}},
			{HardwareScope: consensus.HardwareScope{Entry: "00"}, Any: true, Removed: []string{"c"}}},
		Spared: []string{"beta/n1"},
	}})
	const want = `
hardware:
  demand of every Milan platform a TCB of at least bl=0 tee=0 snp=24 ucode=0, from 2026-10-01T00:00:00Z
  demand of every TDX platform to be one by collateral of evaluation number 18 or more, at once
  refuse SEV-SNP product Genoa
  chips of organisation alpha: 2 listed, 1 removed
  chips of entry 00: any, 1 removed
  ! beta/n1 does not meet this by now; it keeps its vote because nothing could be ordered without it
`
	if b.String() != want {
		t.Errorf("got %s\nwant %s", b.String(), want)
	}
	if entryEnd(time.Time{}) != "-" || entryEnd(from) != "2026-10-01T00:00:00Z" {
		t.Error("the ends of entries")
	}
}
