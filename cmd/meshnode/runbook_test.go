package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestRunbookCommands: every command and flag that docs/RUNBOOK.md tells a person to give
// exists.
func TestRunbookCommands(t *testing.T) {
	page, err := os.ReadFile("../../docs/RUNBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	lines := regexp.MustCompile("`meshnode ([^`]+)`").FindAllStringSubmatch(string(page), -1)
	if len(lines) < 50 {
		t.Errorf("%d commands, want more than 50", len(lines))
	}
	for _, line := range lines {
		words := strings.Fields(line[1])
		cmd, rest, err := newRoot().Find(words)
		if err != nil || cmd == cmd.Root() {
			t.Errorf("meshnode %s: no such command: %v", line[1], err)
			continue
		}
		for _, word := range rest {
			if name, flag := strings.CutPrefix(word, "--"); flag && cmd.Flags().Lookup(name) == nil {
				t.Errorf("meshnode %s: no flag --%s", line[1], name)
			}
			if cmd.HasSubCommands() && !strings.HasPrefix(word, "--") {
				t.Errorf("meshnode %s: %q is no subcommand", line[1], word)
			}
		}
	}
}
