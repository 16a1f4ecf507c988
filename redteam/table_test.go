package redteam

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/ATTACKS.md names tests and attacks: each of them exists, each attack of the
// catalogue stands in it, and no number is left out.
func TestTableOfAttacks(t *testing.T) {
	page, err := os.ReadFile("../docs/ATTACKS.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(page)) {
		if cells := strings.Split(line, " | "); strings.HasPrefix(line, "| ") && len(cells) == 4 {
			rows[strings.TrimPrefix(cells[0], "| ")] = line
		}
	}
	for prefix, n := range map[string]int{"": 30, "C": 14, "K": 5, "A": 5, "F": 5, "R": 13, "L": 13, "X": 20} {
		for i := range n {
			id := fmt.Sprintf("%s%d", prefix, i+1)
			row, ok := rows[id]
			switch {
			case !ok:
				t.Errorf("no row %s", id)
			case !strings.Contains(row, ".Test") && !strings.Contains(row, "`attack:") && !strings.Contains(row, "not tested: "):
				t.Errorf("row %s names no test and does not say so", id)
			}
		}
	}
	known := map[string]bool{}
	for _, a := range Attacks() {
		known[a.Name] = true
		if !strings.Contains(string(page), "`attack:"+a.Name+"`") {
			t.Errorf("%s stands in no row", a.Name)
		}
	}
	for _, m := range regexp.MustCompile("`attack:([a-z0-9-]+)`").FindAllStringSubmatch(string(page), -1) {
		if !known[m[1]] {
			t.Errorf("%s is no attack", m[1])
		}
	}
	evidenceRows(t, string(page))
	checked := 0
	for _, m := range regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(string(page), -1) {
		checked++
		if !declares(t, m[1], m[2]) {
			t.Errorf("package %s has no %s", m[1], m[2])
		}
	}
	if checked < 100 {
		t.Errorf("%d tests named", checked)
	}
}

// declares reports whether a package's tests have a function of that name.
func declares(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(data), "\nfunc "+name+"(") {
			return true
		}
	}
	return false
}

// evidenceRows demands a row with a test for each attack on evidence (E) and its appraisal
// (A), in one of the sections about them: others use these letters for attacks of their own.
func evidenceRows(t *testing.T, page string) {
	t.Helper()
	found := map[string]bool{}
	for section := range strings.SplitSeq(page, "\n## ") {
		title, rows, _ := strings.Cut(section, "\n")
		if !strings.Contains(strings.ToLower(title), "evidence") && title != "Collateral" {
			continue
		}
		for row := range strings.Lines(rows) {
			if cells := strings.Split(row, " | "); len(cells) == 4 && strings.Contains(cells[2], ".Test") {
				for id := range strings.SplitSeq(strings.TrimPrefix(cells[0], "| "), ", ") {
					found[id] = true
				}
			}
		}
	}
	for prefix, n := range map[string]int{"E": 15, "A": 24} {
		for i := range n {
			if id := fmt.Sprintf("%s%d", prefix, i+1); !found[id] {
				t.Errorf("no section about evidence has a test for %s", id)
			}
		}
	}
}
