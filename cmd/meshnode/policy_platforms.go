package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/node"
)

// showPlatforms prints what is demanded of hardware, nothing where nothing is.
func showPlatforms(w io.Writer, v node.PolicyView) {
	var lines []string
	for _, f := range v.Platforms.Floors {
		lines = append(lines, strings.TrimPrefix((&consensus.RaiseFloor{Floor: f}).Describe(), "- "))
	}
	for _, d := range v.Platforms.Denied {
		lines = append(lines, "refuse "+d.String())
	}
	for _, l := range v.Platforms.Hardware {
		s := fmt.Sprintf("chips of %s: %d listed", l.HardwareScope, len(l.Listed))
		if l.Any {
			s = fmt.Sprintf("chips of %s: any", l.HardwareScope)
		}
		if len(l.Removed) > 0 {
			s += fmt.Sprintf(", %d removed", len(l.Removed))
		}
		lines = append(lines, s)
	}
	for _, seat := range v.Platforms.Spared {
		lines = append(lines, "! "+seat+" does not meet this by now; it keeps its vote because nothing could be ordered without it")
	}
	if len(lines) > 0 {
		fmt.Fprintln(w, "\nhardware:")
	}
	for _, l := range lines {
		fmt.Fprintln(w, "  "+printable(l))
	}
}

// entryEnd says when an entry ends.
func entryEnd(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return at.Format(time.RFC3339)
}
