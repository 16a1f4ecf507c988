package monitor

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/transparency"
)

// TestRunbook: docs/RUNBOOK.md has a section for each code of an alert, and in its chapter on
// following a log none for others.
func TestRunbook(t *testing.T) {
	page, err := os.ReadFile("../docs/RUNBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	labels := regexp.MustCompile(`(?m)^\* \*\*(Means|See|Do|Who)\*\*: \S`)
	sections := func(text string) map[string]string {
		out := map[string]string{}
		for _, s := range strings.Split(text, "\n### ")[1:] {
			head, body, _ := strings.Cut(s, "\n")
			body, _, _ = strings.Cut(body, "\n## ")
			out[strings.Trim(head, "`")] = body
		}
		return out
	}
	before, own, found := strings.Cut(string(page), "\n## Following a log\n")
	if !found {
		t.Fatal("no chapter on following a log")
	}
	chapter, others := sections(own), sections(before)
	for _, code := range append(Codes(), CodeForked, CodeRolledBack, CodeMisbehaviour, CodeLogKeyLeaked, CodeUnpublished, CodeStale, CodeUnavailable,
		audit.CodeGenesisMismatch, audit.CodeGenesisInvalid, audit.CodeBootstrapInvalid, audit.CodeRecoveryInvalid, audit.CodeCheckpointInvalid,
		audit.CodeCheckpointMissing, audit.CodeAhead, audit.CodeUnknownLeaf, audit.CodeNotDerived, audit.CodeDerivedMissing, audit.CodeMoreFindings,
		transparency.CodeEntryMismatch, transparency.CodeEntriesMissing, transparency.CodeEntriesMalformed, transparency.CodeTileMismatch,
		transparency.CodeTileMissing, transparency.CodeTileMalformed, transparency.CodeRootMismatch,
		transparency.CodeCosignatureInvalid, transparency.CodeCosignatureKey, transparency.CodeCosignatureTime) {
		text, ok := chapter[code]
		if !ok {
			if _, ok := others[code]; !ok {
				t.Errorf("no section for %s", code)
			}
			continue
		}
		delete(chapter, code)
		var got []string
		for _, m := range labels.FindAllStringSubmatch(text, -1) {
			got = append(got, m[1])
		}
		if !slices.Equal(got, []string{"Means", "See", "Do", "Who"}) {
			t.Errorf("%s says %v", code, got)
		}
	}
	for code := range chapter {
		t.Errorf("a section for %q, which is no code", code)
	}
}
