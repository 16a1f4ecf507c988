package demo

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const childEnv = "MESHNODE_DEMO_CHILD"

// childMain is a child process of the supervisor tests.
func childMain(mode string) int {
	switch mode {
	case "obedient":
		fmt.Println("ready")
		select {}
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		select {}
	case "crash":
		fmt.Fprintln(os.Stderr, "something broke")
		return 7
	case "director": // a supervisor of its own, whose child must not outlive it
		os.Setenv(childEnv, "obedient")
		s := newSupervisor(nil)
		p, err := s.start(spec{name: "grandchild", argv: []string{os.Args[0]}, stdout: &lineWriter{each: func([]byte) {}}})
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(p.pid)
		select {}
	}
	return 1
}

// child starts the test binary in a mode and waits for its first line.
func child(t *testing.T, s *supervisor, mode string, daemon bool) (*process, string) {
	t.Helper()
	t.Setenv(childEnv, mode)
	lines := make(chan string, 4)
	p, err := s.start(spec{name: mode, argv: []string{os.Args[0]}, daemon: daemon,
		stdout: &lineWriter{each: func(l []byte) { lines <- string(l) }}})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case l := <-lines:
		return p, l
	case <-p.done:
		return p, ""
	case <-time.After(30 * time.Second):
		t.Fatalf("%s: no first line", mode)
		return nil, ""
	}
}

func TestStopTerminatesThenKills(t *testing.T) {
	s := newSupervisor(func(p *process) { t.Errorf("%s: its end was asked for", p.name) })
	obedient, _ := child(t, s, "obedient", true)
	stubborn, _ := child(t, s, "stubborn", true)
	started := time.Now()
	const grace = 300 * time.Millisecond
	if left := s.stop(grace); len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
	if took := time.Since(started); took < grace {
		t.Errorf("the stubborn child was killed after %s, want a grace of %s", took, grace)
	}
	if got := obedient.fate(); !strings.Contains(got, "terminated") {
		t.Errorf("obedient child: %s, want ended by SIGTERM", got)
	}
	if got := stubborn.fate(); !strings.Contains(got, "killed") {
		t.Errorf("stubborn child: %s, want ended by SIGKILL", got)
	}
	if _, err := s.start(spec{name: "late", argv: []string{os.Args[0]}}); err == nil {
		t.Error("a process was started after stop")
	}
	s.stop(0) // again: nothing to do
}

func TestUnexpectedDeathIsReportedOnce(t *testing.T) {
	deaths := make(chan *process, 2)
	s := newSupervisor(func(p *process) { deaths <- p })
	defer s.stop(0)
	p, _ := child(t, s, "crash", true)
	select {
	case got := <-deaths:
		if got != p || got.fate() != "exit status 7" {
			t.Errorf("reported %s: %s", got.name, got.fate())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the death of a daemon was not reported")
	}
	killed, _ := child(t, s, "obedient", true)
	killed.kill()
	<-killed.done
	ended, _ := child(t, s, "crash", false)
	<-ended.done
	s.stop(0)
	select {
	case got := <-deaths:
		t.Errorf("reported %s, whose end was no surprise", got.name)
	default:
	}
}

func TestChildHasItsOwnGroup(t *testing.T) {
	s := newSupervisor(nil)
	defer s.stop(0)
	p, _ := child(t, s, "obedient", false)
	if group, err := syscall.Getpgid(p.pid); err != nil || group != p.pid {
		t.Errorf("group %d of process %d (%v): Ctrl-C at the terminal would reach it", group, p.pid, err)
	}
}

func TestNothingOutlivesAKilledDirector(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=director")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the director said %q", line)
	}
	if !processAlive(pid) {
		t.Fatal("the grandchild does not run")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "the end of the grandchild", func() bool { return !processAlive(pid) })
}

// processAlive reports whether a process runs; one that waits to be reaped does not.
func processAlive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(b, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

// eventually polls until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestNice(t *testing.T) {
	t.Setenv(childEnv, "obedient")
	s := newSupervisor(nil)
	defer s.stop(0)
	p, err := s.start(spec{name: "nice", argv: []string{os.Args[0]}, nice: 19})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := syscall.Getpriority(syscall.PRIO_PROCESS, p.pid); err != nil || 20-n != 19 { // the system call returns 20 - nice
		t.Errorf("nice %d (%v), want 19", 20-n, err)
	}
}

func TestLineWriter(t *testing.T) {
	var got []string
	w := &lineWriter{each: func(l []byte) { got = append(got, string(l)) }}
	long := strings.Repeat("x", maxLine+1)
	for _, chunk := range []string{"a", "b\nc\n", "\n", long, long + "\nafter\nrest"} {
		if n, err := w.Write([]byte(chunk)); n != len(chunk) || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	if want := []string{"ab", "c", "", "after"}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("got %d lines %.80q, want %q", len(got), got, want)
	}
}

func TestQuoteCommand(t *testing.T) {
	got := quoteCommand([]string{"/a/b", "", "it's", "--x=1", "a b", "$HOME", "~"})
	if want := `/a/b '' 'it'\''s' --x=1 'a b' '$HOME' '~'`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	out, err := exec.Command("sh", "-c", "printf '%s|' "+got).Output()
	if want := "/a/b||it's|--x=1|a b|$HOME|~|"; err != nil || string(out) != want {
		t.Errorf("the shell reads %q (%v), want %q", out, err, want)
	}
}

func TestReservedPortRefusesAndIsKept(t *testing.T) {
	p, err := reservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	if l, err := net.Listen("tcp", p.address()); err == nil {
		l.Close()
		t.Error("a reserved port could be taken")
	}
	if c, err := net.Dial("tcp", p.address()); err == nil {
		c.Close()
		t.Error("a reserved port accepted a connection")
	}
	p.release()
	p.release()
	l, err := net.Listen("tcp", p.address())
	if err != nil {
		t.Fatalf("a released port cannot be used: %v", err)
	}
	l.Close()
}
