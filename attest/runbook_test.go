package attest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestRunbook: docs/RUNBOOK.md has one section for each code and none for others, and each
// says what it means, how to see it, what to do, and by whom.
func TestRunbook(t *testing.T) {
	page, err := os.ReadFile("../docs/RUNBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	// The last chapter is about a log as a whole: package monitor holds it to its codes.
	reasons, _, _ := strings.Cut(string(page), "\n## Following a log\n")
	sections := map[string]string{}
	for _, section := range strings.Split(reasons, "\n### ")[1:] {
		head, text, _ := strings.Cut(section, "\n")
		text, _, _ = strings.Cut(text, "\n## ")
		code := strings.Trim(head, "`")
		if _, twice := sections[code]; twice {
			t.Errorf("two sections for %s", code)
		}
		sections[code] = text
	}
	labels := regexp.MustCompile(`(?m)^\* \*\*(Means|See|Do|Who)\*\*: \S`)
	for _, code := range Codes() {
		text, ok := sections[string(code)]
		if !ok {
			t.Errorf("no section for %s", code)
			continue
		}
		delete(sections, string(code))
		var got []string
		for _, m := range labels.FindAllStringSubmatch(text, -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(got, []string{"Means", "See", "Do", "Who"}) {
			t.Errorf("%s says %v, want what it means, how to see it, what to do, and by whom", code, got)
		}
	}
	for code := range sections {
		t.Errorf("a section for %q, which is no code", code)
	}
}
