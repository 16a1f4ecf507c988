package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/loopback"
	"github.com/attestmesh/meshnode/node"
)

// docs/OPERATIONS.md is a program: TestOperations runs every shell block of it, in order,
// with real processes. The conventions, which the page explains to its readers:
//
//	```sh alpha             the block is typed into the terminal called alpha: one bash that
//	                        lives from its first block to the end; any failing command ends it
//	<!-- until: REGEXP -->  before a block of one command: type it again until it prints that
//	<!-- exit: N -->        before a block of one command: it ends with N
//	<!-- shows: REGEXP -->  before a block: its output holds that
//
// Ports behind 127.0.0.1: and /tcp/ are replaced by free ones, and HOME is a fresh
// directory. Blocks of another language are not run and must not look like commands.

const (
	blockWithin = 30 * time.Second // one block, or all repetitions of one
	pageWithin  = 2 * time.Minute
	askAgain    = 200 * time.Millisecond
)

// block is one fenced block with what stands before it.
type block struct {
	line     int
	terminal string
	text     string
	until    *regexp.Regexp
	shows    []*regexp.Regexp
	exit     int
}

func TestOperations(t *testing.T) { followPage(t, "OPERATIONS.md") }

// followPage types a page of docs.
func followPage(t *testing.T, name string) {
	t.Helper()
	page, err := os.ReadFile("../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	blocks := parsePage(t, freePorts(t, string(page)))
	// Not t.TempDir: a socket's path must be short.
	home, err := os.MkdirTemp("", "ops")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	terminals := map[string]*terminal{}
	start := time.Now()
	for _, b := range blocks {
		if time.Since(start) > pageWithin {
			t.Fatalf("line %d: not reached within %s", b.line, pageWithin)
		}
		term := terminals[b.terminal]
		if term == nil {
			term = openTerminal(t, b.terminal, home)
			terminals[b.terminal] = term
		}
		began := time.Now()
		term.follow(t, b)
		if took := time.Since(began); took > 2*time.Second {
			t.Logf("line %d took %s", b.line, took.Round(100*time.Millisecond))
		}
	}
	// The page ends by stopping everything: whoever follows it has no process left.
	for name, term := range terminals {
		term.stdin.Close()
		if err := term.cmd.Wait(); err != nil {
			t.Errorf("terminal %s: %v", name, err)
		}
		if err := syscall.Kill(-term.cmd.Process.Pid, 0); err != syscall.ESRCH {
			t.Errorf("terminal %s: processes are left at the end of the page", name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(home, "trial", "*", "*", "*.sock")); len(left) > 0 {
		t.Errorf("sockets are left at the end of the page: %v", left)
	}
	t.Logf("%d blocks in %s", len(blocks), time.Since(start).Round(time.Second))
}

// TestOperationsNamesEverything holds the tables of the page to the code.
func TestOperationsNamesEverything(t *testing.T) {
	page, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{}
	for _, p := range []node.Phase{node.PhaseEnrolling, node.PhaseFounding, node.PhaseJoining, node.PhaseMember, node.PhaseSuspended, node.PhaseRefused, node.PhaseDraining, node.PhaseDrained, node.PhaseStopping} {
		words = append(words, string(p))
	}
	for _, p := range []node.PeerState{node.PeerConnected, node.PeerUnreachable, node.PeerRefused, node.PeerRefusesUs, node.PeerEvicted, node.PeerRetired} {
		words = append(words, string(p))
	}
	for _, e := range []int{exitOK, exitRefused, exitUsage, exitUnavailable, exitInterrupted} {
		words = append(words, strconv.Itoa(e))
	}
	for _, w := range words {
		if !bytes.Contains(page, []byte("| `"+w+"` |")) {
			t.Errorf("no row for %s", w)
		}
	}
	// Codes in the table of refusals exist.
	_, table, ok := strings.Cut(string(page), "## When a node is refused")
	if !ok {
		t.Fatal("no section on refusals")
	}
	table, _, _ = strings.Cut(table, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(table, -1)
	if len(rows) < 10 {
		t.Errorf("%d codes explained", len(rows))
	}
	for _, row := range rows {
		if !slices.Contains(attest.Codes(), attest.Code(row[1])) {
			t.Errorf("%s is no code", row[1])
		}
	}
}

// freePorts replaces every port of the page by a free one, the same everywhere.
func freePorts(t *testing.T, page string) string {
	t.Helper()
	ports := map[string]string{}
	return regexp.MustCompile(`(127\.0\.0\.1:|/tcp/)([0-9]+)`).ReplaceAllStringFunc(page, func(s string) string {
		i := strings.LastIndexAny(s, ":/") + 1
		if ports[s[i:]] == "" {
			ports[s[i:]] = loopback.Port(t)
		}
		return s[:i] + ports[s[i:]]
	})
}

var directive = regexp.MustCompile(`^<!-- (until|exit|shows): (.*) -->$`)

// parsePage returns the shell blocks of the page in order.
func parsePage(t *testing.T, page string) []block {
	t.Helper()
	var blocks []block
	next := block{}
	lines := strings.Split(page, "\n")
	for i := 0; i < len(lines); i++ {
		if m := directive.FindStringSubmatch(lines[i]); m != nil {
			next.direct(t, i+1, m[1], m[2])
			continue
		}
		if !strings.HasPrefix(lines[i], "```") {
			if strings.TrimSpace(lines[i]) != "" && (next.until != nil || next.shows != nil || next.exit != 0) {
				t.Fatalf("line %d: a directive stands before no block", i+1)
			}
			continue
		}
		info := strings.Fields(strings.TrimPrefix(lines[i], "```"))
		next.line = i + 1
		var text []string
		for i++; i < len(lines) && lines[i] != "```"; i++ {
			text = append(text, lines[i])
		}
		if len(info) == 2 && info[0] == "sh" {
			next.terminal, next.text = info[1], strings.Join(text, "\n")+"\n"
			blocks = append(blocks, next)
		} else if looksLikeCommands(info, text) {
			t.Fatalf("line %d: commands that are not run; mark the block sh TERMINAL", next.line)
		}
		next = block{}
	}
	if len(blocks) < 20 {
		t.Fatalf("%d blocks", len(blocks))
	}
	return blocks
}

func (b *block) direct(t *testing.T, line int, name, value string) {
	t.Helper()
	if name == "exit" {
		n, err := strconv.Atoi(value)
		if err != nil {
			t.Fatalf("line %d: %v", line, err)
		}
		b.exit = n
		return
	}
	re, err := regexp.Compile(value)
	if err != nil {
		t.Fatalf("line %d: %v", line, err)
	}
	if name == "until" {
		b.until = re
		return
	}
	b.shows = append(b.shows, re)
}

func looksLikeCommands(info, text []string) bool {
	return len(info) > 0 && (info[0] == "sh" || info[0] == "bash" || info[0] == "console") ||
		slices.ContainsFunc(text, func(s string) bool { return strings.HasPrefix(strings.TrimPrefix(s, "$ "), "meshnode ") })
}

// terminal is one bash. Its processes are a group of their own.
type terminal struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	lines  chan string // what it prints; closed when it has ended
	dir    string
	blocks int
}

func openTerminal(t *testing.T, name, home string) *terminal {
	t.Helper()
	term := &terminal{name: name, cmd: exec.Command("bash", "--noprofile", "--norc"), lines: make(chan string, 1024), dir: t.TempDir()}
	term.cmd.Dir = home
	term.cmd.Env = append(os.Environ(), "HOME="+home, exitAtOnce)
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	term.cmd.Stdout, term.cmd.Stderr = w, w
	if term.stdin, err = term.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		if t.Failed() {
			_ = syscall.Kill(-term.cmd.Process.Pid, syscall.SIGKILL) // the group this test made
		}
		term.stdin.Close()
		r.Close()
	})
	go func() {
		defer close(term.lines)
		scan := bufio.NewScanner(r)
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			term.lines <- scan.Text()
		}
	}()
	return term
}

// follow does what the page says.
func (term *terminal) follow(t *testing.T, b block) {
	t.Helper()
	if one := strings.Count(strings.ReplaceAll(b.text, "\\\n", ""), "\n") == 1; !one && (b.until != nil || b.exit != 0) {
		t.Fatalf("line %d: until and exit are for blocks of one command", b.line)
	}
	deadline := time.Now().Add(blockWithin)
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		out, status := term.typed(t, b, deadline)
		if b.until != nil && !b.until.MatchString(out) {
			if time.Now().After(deadline) {
				t.Fatalf("line %d: after %s still not %q:\n%s%s", b.line, blockWithin, b.until, b.text, out)
			}
			<-tick.C
			continue
		}
		if status != b.exit && b.until == nil {
			t.Fatalf("line %d: ended with %d, the page says %d:\n%s%s", b.line, status, b.exit, b.text, out)
		}
		for _, re := range b.shows {
			if !re.MatchString(out) {
				t.Fatalf("line %d: does not show %q:\n%s%s", b.line, re, b.text, out)
			}
		}
		return
	}
}

// typed runs the block once and returns what it printed and the status of its last
// command, or of the first that failed.
func (term *terminal) typed(t *testing.T, b block, deadline time.Time) (string, int) {
	t.Helper()
	term.blocks++
	file := filepath.Join(term.dir, fmt.Sprintf("line-%d-%d", b.line, term.blocks))
	if err := os.WriteFile(file, []byte(b.text), 0o600); err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprintf("=== block %d of %s: ", term.blocks, term.name)
	// Where failure is expected or asked about again, the terminal must outlive it.
	safe := "set -e"
	if b.until != nil || b.exit != 0 {
		safe = "set +e"
	}
	fmt.Fprintf(term.stdin, "%s; source %s; printf '\\n%s%%d\\n' $?; set -e\n", safe, file, mark)
	var out strings.Builder
	timeout := time.NewTimer(time.Until(deadline.Add(askAgain)))
	defer timeout.Stop()
	for {
		select {
		case line, ok := <-term.lines:
			if !ok {
				t.Fatalf("line %d: a command failed:\n%s%s", b.line, b.text, out.String())
			}
			if status, found := strings.CutPrefix(line, mark); found {
				n, err := strconv.Atoi(status)
				if err != nil {
					t.Fatal(err)
				}
				return out.String(), n
			}
			out.WriteString(line + "\n")
		case <-timeout.C:
			t.Fatalf("line %d: no end after %s:\n%s%s", b.line, blockWithin, b.text, out.String())
		}
	}
}
