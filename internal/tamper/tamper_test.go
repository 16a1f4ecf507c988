package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// auditWithin is how long an audit of some hundred entries may take on a busy machine: one that
// hangs fails (transparency-dev/tessera#1098 is one that did).
const auditWithin = time.Minute

// programs are the two under test, as processes: they share nothing but files.
type programs struct{ tamper, meshnode, log string }

func build(t *testing.T) programs {
	t.Helper()
	dir := t.TempDir()
	p := programs{filepath.Join(dir, "tamper"), filepath.Join(dir, "meshnode"), filepath.Join(dir, "untouched")}
	for name, pkg := range map[string]string{p.tamper: ".", p.meshnode: "../../cmd/meshnode"} {
		if out, err := exec.Command("go", "build", "-race=false", "-o", name, pkg).CombinedOutput(); err != nil {
			t.Fatalf("go build %s: %v\n%s", pkg, err, out)
		}
	}
	p.run(t, p.tamper, 0, "log", p.log)
	return p
}

// run runs a program and returns what it printed; it must end with an exit code.
func (p programs) run(t *testing.T, name string, want int, args ...string) string {
	t.Helper()
	out, code := p.exit(t, name, args...)
	if code != want {
		t.Fatalf("%s %v: exit %d, want %d\n%s", filepath.Base(name), args, code, want, out)
	}
	return out
}

func (p programs) exit(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), auditWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if ctx.Err() != nil {
		t.Fatalf("%s %v: not done within %s", filepath.Base(name), args, auditWithin)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out) + errs.String(), cmd.ProcessState.ExitCode()
}

type report struct {
	OK       bool
	Entries  uint64
	Findings []struct {
		Index         uint64
		Code, Message string
	}
}

func (p programs) audit(t *testing.T, dir string, args ...string) (report, int) {
	t.Helper()
	all := append([]string{"log", "audit", "--json", "--genesis", filepath.Join(p.log, "genesis.json")}, args...)
	out, code := p.exit(t, p.meshnode, append(all, filepath.Join(dir, "log"))...)
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("exit %d, %v: %s", code, err, out)
	}
	return r, code
}

// Every case of the note's §5a, each in several forms: the audit names entry and cause, exits as it
// should, and ends.
func TestTamperCases(t *testing.T) {
	p := build(t)
	if r, code := p.audit(t, p.log); code != 0 || !r.OK || r.Entries != size || len(r.Findings) > 0 {
		t.Fatalf("the untouched log: exit %d, %+v", code, r)
	}
	numbers := map[int]int{}
	for line := range strings.Lines(p.run(t, p.tamper, 0, "list")) {
		name, _, _ := strings.Cut(line, "\t")
		number, _, _ := strings.Cut(name, "-")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Fatalf("%q has no number", line)
		}
		numbers[n]++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dst := t.TempDir()
			p.run(t, p.tamper, 0, name, p.log, dst)
			raw, err := os.ReadFile(filepath.Join(dst, "expected.json"))
			if err != nil {
				t.Fatal(err)
			}
			var want expected
			if err := json.Unmarshal(raw, &want); err != nil || want.Case != name {
				t.Fatalf("%v: %s", err, raw)
			}
			for i, a := range want.Args {
				if file, ok := strings.CutPrefix(a, "@"); ok {
					want.Args[i] = filepath.Join(dst, file)
				}
			}
			r, code := p.audit(t, dst, want.Args...)
			if r.OK || len(r.Findings) == 0 {
				t.Fatalf("%s: nothing found, exit %d", want.What, code)
			}
			got := verdict{r.OK, r.Findings[0].Index, r.Findings[0].Code, code}
			if got != want.Verdict {
				t.Errorf("%s: got %+v, want %+v\n%+v", want.What, got, want.Verdict, r.Findings[:min(4, len(r.Findings))])
			}
		})
	}
	for n := range 20 {
		if numbers[n+1] == 0 && !elsewhere[n+1] {
			t.Errorf("no case %d", n+1)
		}
	}
}

// elsewhere are the cases that one directory alone cannot show.
var elsewhere = map[int]bool{}

// What the program does not know it says; it is run by hand too.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"list", "x"}, {"no-case", "a", t.TempDir()}, {"1-entry-byte", "nowhere", t.TempDir()}} {
		if err := run(args); err == nil || regexp.MustCompile(`goroutine`).MatchString(err.Error()) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
