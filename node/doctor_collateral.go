package node

import (
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/collateral"
)

// collateral says whether evidence of a guest brings what peers judge its platform by.
func (d *doctor) collateral(ev attest.Evidence, now time.Time) {
	const check, want = "collateral", "current collateral of this platform with its evidence"
	if p := collateral.PlatformOf(ev); p.Report == nil && p.FMSPC == "" {
		return
	}
	_, lacks := collateral.Index{}.Complete(ev, now)
	if len(lacks) == 0 {
		d.good(check, "current", want)
		return
	}
	code, names := attest.CodeCollateralStale, make([]string, len(lacks))
	for i, l := range lacks {
		names[i] = l.Name + " expired " + l.Expired.UTC().Format(time.RFC3339)
		if l.Expired.IsZero() {
			code, names[i] = attest.CodeCollateralMissing, l.Name+" is missing"
		}
	}
	d.bad(check, code, strings.Join(names, ", "), want, "fill a store (meshnode collateral fetch, with evidence of meshnode attest) and name it in attester.collateral")
}
