package main

import (
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/node"
)

// What acts and is not ordered yet stands below what is, and what others wrote cannot move the
// cursor.
func TestPolicyShowsWhatIsNotOrdered(t *testing.T) {
	var out strings.Builder
	showSuspensions(&out, node.PolicyView{Provisional: []node.ProvisionalView{{ID: "5a", Kind: "proposal", Says: "proposal 5a by [alpha beta]: - revoke \x1b[2J"}}})
	got := out.String()
	if !strings.Contains(got, "in force at this node and not ordered yet: proposal 5a by [alpha beta]") || !strings.Contains(got, "id 5a") || strings.Contains(got, "\x1b") {
		t.Errorf("got %q", got)
	}
}
