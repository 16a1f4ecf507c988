package main

import "testing"

// TestRecovery types docs/RECOVERY.md: a planned power-off with a job under way, then a lost
// majority.
func TestRecovery(t *testing.T) {
	if underRace {
		t.Skip("starts a dozen processes; TestOperations does, too")
	}
	followPage(t, "RECOVERY.md")
}
