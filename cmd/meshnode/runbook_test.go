package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestCommandsOfPages: every command and flag exists that these pages tell a person to give.
func TestCommandsOfPages(t *testing.T) {
	for name, least := range map[string]int{"RUNBOOK.md": 50, "COLLATERAL.md": 6} {
		page, err := os.ReadFile("../../docs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		lines := regexp.MustCompile("(?:`|\\$ )meshnode ([^`\n#]+)").FindAllStringSubmatch(string(page), -1)
		if len(lines) < least {
			t.Errorf("%s: %d commands, want %d or more", name, len(lines), least)
		}
		checkCommands(t, lines)
	}
}

func checkCommands(t *testing.T, lines [][]string) {
	t.Helper()
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
