package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Sandbox is the bubblewrap that programs run in. Its zero value runs nothing.
type Sandbox struct{ bwrap, prlimit string }

// ErrNoSandbox is wrapped where a program cannot be confined: it is then not started.
var ErrNoSandbox = errors.New("no sandbox for programs")

// oldest is the first release with every option that is used here.
const oldest = "0.8.0"

// FindSandbox returns the machine's bubblewrap. It looks in fixed places: a search path is
// configuration.
func FindSandbox(ctx context.Context) (Sandbox, error) {
	s := Sandbox{bwrap: firstFile("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap"), prlimit: firstFile("/usr/bin/prlimit", "/bin/prlimit")}
	switch {
	case s.bwrap == "":
		return Sandbox{}, fmt.Errorf("%w: bwrap is not installed (package bubblewrap)", ErrNoSandbox)
	case s.prlimit == "":
		return Sandbox{}, fmt.Errorf("%w: prlimit is not installed (package util-linux)", ErrNoSandbox)
	}
	out, err := exec.CommandContext(ctx, s.bwrap, "--version").Output()
	if err != nil {
		return Sandbox{}, fmt.Errorf("%w: %s --version: %w", ErrNoSandbox, s.bwrap, err)
	}
	if version := strings.TrimPrefix(strings.TrimSpace(string(out)), "bubblewrap "); !atLeast(version, oldest) {
		return Sandbox{}, fmt.Errorf("%w: bubblewrap %.20q, want %s or newer", ErrNoSandbox, version, oldest)
	}
	return s, nil
}

func firstFile(paths ...string) string {
	for _, p := range paths {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

// atLeast compares versions of three numbers.
func atLeast(got, want string) bool {
	g, w := strings.Split(got, "."), strings.Split(want, ".")
	for i := range w {
		if i >= len(g) {
			return false
		}
		a, err := strconv.Atoi(g[i])
		if err != nil {
			return false
		}
		if b, _ := strconv.Atoi(w[i]); a != b {
			return a > b
		}
	}
	return true
}

// Descriptors in the sandbox. The program is told of the first two.
const (
	fdListener = 3
	fdModel    = 4
	fdProgram  = 5
	fdBlock    = 6 // bubblewrap waits here until the limits are set
	fdStatus   = 7 // bubblewrap says here which process is the program's, and how it ended
)

// Ids on the machine of what runs in a sandbox, where the node is root: above all ranges
// that systems hand out, so that nothing else is theirs, and one for each service, so that
// limits on processes count one service. Where the node is not root it is the node's own.
const (
	firstUID = 0x7ffe0000
	lastUID  = 0x7ffeffff
)

// nobody is every program's id within its sandbox.
const nobody = "65534"

// arguments returns the command line of the sandbox: no network, no file of the machine, no
// other process, no capability, nothing writable but /tmp, which is memory.
func (s Sandbox) arguments(args []string) []string {
	fd := func(n int) string { return strconv.Itoa(n) }
	argv := append(s.empty(), "--block-fd", fd(fdBlock), "--json-status-fd", fd(fdStatus), "--", "/proc/self/fd/"+fd(fdProgram))
	return append(argv, args...)
}

// empty returns the command line up to what runs.
func (s Sandbox) empty() []string {
	return []string{s.bwrap,
		"--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
		"--disable-userns", "--uid", nobody, "--gid", nobody, "--hostname", "service", "--cap-drop", "ALL",
		"--die-with-parent", "--new-session", "--clearenv",
		"--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev",
		"--size", strconv.Itoa(maxScratch), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"}
}

// confined is one running sandbox.
type confined struct {
	cmd    *exec.Cmd
	words  *meter
	status *os.File // of bubblewrap, JSON
}

// start starts a program in the sandbox. It must be called from a goroutine that stays
// locked to its thread until the sandbox is reaped: the kernel ends the sandbox with the
// thread that made it.
func (s Sandbox) start(spec *Spec, listener *os.File, slot int) (*confined, error) {
	if s.bwrap == "" || s.prlimit == "" {
		return nil, ErrNoSandbox
	}
	// A program before this one may have changed it; the flag is the socket's, not its own.
	if err := unix.SetNonblock(int(listener.Fd()), false); err != nil {
		return nil, err
	}
	var files closers
	defer files.close()
	model, err := reopen(spec.Model.file)
	if err != nil {
		return nil, err
	}
	files.add(model)
	blockRead, blockWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	files.add(blockRead, blockWrite)
	statusRead, statusWrite, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	files.add(statusWrite)
	// What this process was started with, and does not know of, is not for the program.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("%w: keep this node's files from it: %w", ErrNoSandbox, err)
	}
	argv := s.arguments(spec.Args)
	c := &confined{cmd: exec.Command(argv[0], argv[1:]...), words: &meter{}, status: statusRead}
	c.cmd.ExtraFiles = []*os.File{listener, model, spec.Program.file, blockRead, statusWrite}
	c.cmd.Env, c.cmd.Dir, c.cmd.Stderr, c.cmd.WaitDelay = []string{}, "/", c.words, reapWithin
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: identityOf(slot)}
	if err := c.cmd.Start(); err != nil {
		statusRead.Close()
		return nil, fmt.Errorf("%w: %w", ErrNoSandbox, err)
	}
	statusWrite.Close() // so that its end can be seen
	if err := s.release(c, blockWrite, spec, slot); err != nil {
		c.kill()
		if end := c.wait(); errors.Is(end, ErrNoSandbox) {
			return nil, end // it knows more
		}
		return nil, fmt.Errorf("%w: %w", ErrNoSandbox, err)
	}
	return c, nil
}

type closers []*os.File

func (c *closers) add(f ...*os.File) { *c = append(*c, f...) }
func (c *closers) close() {
	for _, f := range *c {
		f.Close()
	}
}

// identityOf is who the sandbox is on the machine; nil: who the node is, where it is not root
// or only root of a namespace that has no such id.
func identityOf(slot int) *syscall.Credential {
	id := uint32(firstUID + slot%(lastUID-firstUID+1))
	users, err := os.ReadFile("/proc/self/uid_map")
	if os.Geteuid() != 0 || err != nil || !maps(string(users), id) {
		return nil
	}
	return &syscall.Credential{Uid: id, Gid: id}
}

// maps reports whether an id map (user_namespaces(7): inside, outside, count) has id inside.
func maps(table string, id uint32) bool {
	for line := range strings.Lines(table) {
		var inside, outside, count uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err == nil && uint64(id) >= inside && uint64(id)-inside < count {
			return true
		}
	}
	return false
}

// release waits until bubblewrap has made the process that will become the program, limits
// it, and lets it go on. The limits come after the namespace is made, so that the processes
// of the same user outside it do not count.
func (s Sandbox) release(c *confined, block *os.File, spec *Spec, slot int) error {
	_ = c.status.SetReadDeadline(time.Now().Add(setupWithin))
	line := make([]byte, 0, maxSetupText)
	for len(line) < maxSetupText && !strings.HasSuffix(string(line), "\n") {
		var b [1]byte // no more than this line: the rest is read at the end
		if _, err := io.ReadFull(c.status, b[:]); err != nil {
			return fmt.Errorf("bubblewrap does not start a process: %w", err)
		}
		line = append(line, b[0])
	}
	var answer struct {
		Child int `json:"child-pid"`
	}
	if err := json.Unmarshal(line, &answer); err != nil || answer.Child < 2 {
		return fmt.Errorf("bubblewrap names no process: %.100q", line)
	}
	// Not all memory counts towards the limit (shared memory, files without a name): where it
	// runs out, the kernel ends the program and not the node.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", answer.Child), []byte("1000"), 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), setupWithin)
	defer cancel()
	limit := exec.CommandContext(ctx, s.prlimit, append([]string{"--pid", strconv.Itoa(answer.Child)}, limitsFor(spec)...)...)
	limit.Env, limit.Dir = []string{}, "/"
	limit.SysProcAttr = &syscall.SysProcAttr{Credential: identityOf(slot)} // nobody else may, without CAP_SYS_RESOURCE
	if out, err := limit.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.200s", s.prlimit, err, out)
	}
	_, err := block.Write([]byte{1})
	return err
}

// limitsFor returns what is set before the program runs. No core: 1 and not 0, because
// only 1 keeps the kernel from handing a core to a program as well (core_pattern "|…").
func limitsFor(spec *Spec) []string {
	return []string{
		"--core=1", "--memlock=0",
		"--data=" + strconv.FormatInt(memoryBase+memoryPerModel*spec.Model.size, 10),
		"--nproc=" + strconv.Itoa(maxProcesses),
		"--nofile=" + strconv.Itoa(maxFiles),
		"--fsize=" + strconv.Itoa(maxScratch),
	}
}

// wait waits until nothing in the sandbox runs and says how it ended. If bubblewrap ended by
// itself and tells of no program's end, the program never ran: what was said is then
// bubblewrap's word and says what the machine lacks.
func (c *confined) wait() error {
	err := c.cmd.Wait()
	_ = c.status.SetReadDeadline(time.Now().Add(reapWithin))
	rest, _ := io.ReadAll(io.LimitReader(c.status, maxSetupText))
	c.status.Close()
	if c.cmd.ProcessState.ExitCode() == 1 && !strings.Contains(string(rest), `"exit-code"`) {
		return fmt.Errorf("%w: it cannot be made here: %s", ErrNoSandbox, c.words.said())
	}
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// kill ends the sandbox and everything in it: its first process is the parent of all others
// in their process namespace, and dies with it.
func (c *confined) kill() { _ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) }

// meter takes what a sandbox and then a program write to their standard error. It counts,
// and holds the first words in memory for the case that the program never ran: they are then
// the sandbox's own. A program's words are given to nobody, they may hold what somebody asked.
type meter struct {
	mu    sync.Mutex
	first []byte // guarded by mu
	size  int64  // guarded by mu
}

// Write implements io.Writer.
func (m *meter) Write(p []byte) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size += int64(len(p))
	m.first = append(m.first, p[:min(len(p), maxSetupText-len(m.first))]...)
	return len(p), nil
}

// said returns the first words. It is for wait alone.
func (m *meter) said() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.first) == 0 {
		return "bubblewrap says nothing"
	}
	return strings.Join(strings.Fields(string(m.first)), " ")
}

// bytes returns how much was written.
func (m *meter) bytes() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size
}

// endpoint is a listening unix socket without a name in any file system: who holds the
// endpoint can connect, nobody else.
type endpoint struct {
	listener *os.File // the listening end, for the program
	inode    *os.File // the way to it
}

// newEndpoint makes the socket in a directory of its own and removes both at once.
func newEndpoint() (e *endpoint, err error) {
	dir, err := os.MkdirTemp("", "meshnode-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	e = &endpoint{listener: os.NewFile(uintptr(fd), "listener")}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	path := filepath.Join(dir, "s")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return e, err
	}
	if err := unix.Listen(fd, maxFiles); err != nil {
		return e, err
	}
	inode, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return e, err
	}
	e.inode = os.NewFile(uintptr(inode), "endpoint")
	return e, nil
}

// address is a path by which this process alone reaches the socket.
func (e *endpoint) address() string { return "/proc/self/fd/" + strconv.Itoa(int(e.inode.Fd())) }

func (e *endpoint) close() {
	for _, f := range []*os.File{e.listener, e.inode} {
		if f != nil {
			f.Close()
		}
	}
}

// Try makes a sandbox as a program's and runs nothing in it: whether this machine allows
// one at all is known before somebody deploys.
func (s Sandbox) Try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setupWithin)
	defer cancel()
	argv := append(s.empty(), "--", "/proc/self/fd/none")
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = []string{}, "/", &syscall.SysProcAttr{Credential: identityOf(0)}
	out, err := cmd.CombinedOutput()
	// It ends where it would start the program, which is not there: everything before that
	// was done.
	if err != nil && strings.Contains(string(out), "execvp /proc/self/fd/none") {
		return nil
	}
	return fmt.Errorf("%w: it cannot be made here: %.300s", ErrNoSandbox, strings.Join(strings.Fields(string(out)), " "))
}
