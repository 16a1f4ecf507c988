package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// auditWithin is how long an audit of some hundred entries may take on a busy machine: one that
// hangs fails (transparency-dev/tessera#1098 is one that did).
const auditWithin = time.Minute

// programs are the processes of a test, which share nothing but files. second is the verifier in
// Python, with its arguments; nil where it cannot run or is not asked.
type programs struct {
	tamper, meshnode, log string
	second                []string
}

func build(t *testing.T) programs {
	t.Helper()
	dir := t.TempDir()
	p := programs{tamper: filepath.Join(dir, "tamper"), meshnode: filepath.Join(dir, "meshnode"), log: filepath.Join(dir, "untouched")}
	for name, pkg := range map[string]string{p.tamper: ".", p.meshnode: "../../cmd/meshnode"} {
		if out, err := exec.Command("go", "build", "-race=false", "-o", name, pkg).CombinedOutput(); err != nil {
			t.Fatalf("go build %s: %v\n%s", pkg, err, out)
		}
	}
	p.run(t, p.tamper, 0, "log", p.log)
	if *all && exec.Command("python3", "-c", "import cryptography").Run() == nil {
		p.second = []string{"../../python/meshnode_audit.py", "--json", "--genesis", filepath.Join(p.log, "genesis.json")}
	}
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

// said is what an audit, or the verification of a proof, prints; or the first alert of a monitor
// that says that something is wrong.
type said struct {
	Type     string
	Severity string
	OK       bool
	Entries  uint64
	Code     string
	Findings []struct {
		Index         uint64
		Code, Message string
	}
}

// meshnodeOn runs meshnode with SRC and DST for directories.
func (p programs) meshnodeOn(t *testing.T, dst string, args []string) (said, int) {
	t.Helper()
	args = slices.Clone(args)
	for i, a := range args {
		if rest, ok := strings.CutPrefix(a, "SRC/"); ok {
			args[i] = filepath.Join(p.log, rest)
		} else if rest, ok := strings.CutPrefix(a, "DST/"); ok {
			args[i] = filepath.Join(dst, rest)
		}
	}
	out, code := p.exit(t, p.meshnode, args...)
	lines := json.NewDecoder(strings.NewReader(out))
	for {
		var s said
		if err := lines.Decode(&s); err != nil {
			t.Fatalf("%v: exit %d, %v: %s", args, code, err, out)
		}
		if s.Type == "" || s.Severity == "error" { // not one of a monitor's, or the one
			return s, code
		}
	}
}

// first is what was found first.
func (s said) first(code int) verdict {
	v := verdict{OK: s.OK, Code: s.Code, Exit: code}
	if len(s.Findings) > 0 {
		v.Index, v.Code = s.Findings[0].Index, s.Findings[0].Code
	}
	return v
}

var all = flag.Bool("all", false, "try every form of every case, and not one in five")

// Every case X1 to X20 of docs/ATTACKS.md, each in several forms: meshnode names entry and cause, exits as it
// should, and ends. With the flag -all (make tamper) it is every form, else the first of each case
// and one in five of the others.
func TestTamperCases(t *testing.T) {
	p := build(t)
	p.run(t, p.meshnode, 0, "log", "prove", "-o", filepath.Join(p.log, "result.proof"), filepath.Join(p.log, "log"), strconv.Itoa(inFull))
	if s, code := p.meshnodeOn(t, "", audits("SRC/log")); code != 0 || !s.OK || s.Entries != size || len(s.Findings) > 0 {
		t.Fatalf("the untouched log: exit %d, %+v", code, s)
	}
	if s, code := p.meshnodeOn(t, "", []string{"log", "verify", "--json", "--genesis", "SRC/genesis.json", "SRC/result.proof"}); code != 0 || !s.OK {
		t.Fatalf("the untouched proof: exit %d, %+v", code, s)
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
		if numbers[n]%5 != 1 && !*all {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p.spoil(t, name)
		})
	}
	for n := range 20 {
		if numbers[n+1] == 0 {
			t.Errorf("no case %d", n+1)
		}
	}
}

func (p programs) spoil(t *testing.T, name string) {
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
	for _, args := range want.Before {
		if s, code := p.meshnodeOn(t, dst, args); code != 0 {
			t.Fatalf("%v: exit %d, %+v", args, code, s)
		}
	}
	s, code := p.meshnodeOn(t, dst, want.Run)
	if got := s.first(code); got != want.Verdict {
		t.Errorf("%s: got %+v, want %+v\n%+v", want.What, got, want.Verdict, s.Findings[:min(4, len(s.Findings))])
	}
	if p.second == nil || !slices.Equal(want.Run, audits("DST/log")) {
		return
	}
	out, code := p.exit(t, "python3", append(slices.Clone(p.second), filepath.Join(dst, "log"))...)
	var second said
	if err := json.Unmarshal([]byte(out), &second); err != nil {
		t.Fatalf("the second verifier: exit %d, %v: %s", code, err, out)
	}
	if got := second.first(code); got != want.Verdict {
		t.Errorf("%s: the second verifier got %+v, want %+v", want.What, got, want.Verdict)
	}
}

// What the program does not know it says; it is run by hand too.
func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"list", "x"}, {"no-case", "a", t.TempDir()}, {"1-entry-byte", "nowhere", t.TempDir()}} {
		if err := run(args); err == nil || regexp.MustCompile(`goroutine`).MatchString(err.Error()) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
