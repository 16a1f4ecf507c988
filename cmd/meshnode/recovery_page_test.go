package main

import "testing"

// TestRecovery types docs/RECOVERY.md: a planned power-off with a job under way, then a lost
// majority.
func TestRecovery(t *testing.T) { followPage(t, "RECOVERY.md") }
