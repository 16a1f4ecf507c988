package run

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/service"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// subject is the program of testdata/subject, built once.
var subject = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "subject")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "subject"), "./testdata/subject")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, errors.New(string(out))
	}
	return os.ReadFile(filepath.Join(dir, "subject"))
})

func sandbox(t *testing.T) Sandbox {
	t.Helper()
	s, err := FindSandbox(t.Context())
	if err != nil {
		t.Skipf("programs run in bubblewrap only: %v; apt-get install bubblewrap", err)
	}
	return s
}

func blobOf(data []byte) service.Blob {
	return service.Blob{SHA256: sha256.Sum256(data), Size: int64(len(data))}
}

func hold(t *testing.T, data []byte, executable bool) *Blob {
	t.Helper()
	b, err := Receive(blobOf(data), executable, bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var weights = []byte("the weights of the model")

type recorder struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// started starts subject with args, and stops it at the end of the test.
func started(t *testing.T, log io.Writer, args ...string) *Service {
	t.Helper()
	box := sandbox(t)
	program, err := subject()
	if err != nil {
		t.Fatal(err)
	}
	recorded := false
	s, err := Start(t.Context(), Config{Sandbox: box, Log: slog.New(slog.NewTextHandler(log, nil)), Record: func() error { recorded = true; return nil }},
		Spec{Name: "subject", Args: args, Program: hold(t, program, true), Model: hold(t, weights, false)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	if !recorded {
		t.Fatal("nothing was recorded before the program started")
	}
	return s
}

func ready(t *testing.T, s *Service) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return s.Ready(ctx)
}

func ask(t *testing.T, s *Service, method, path string) ([]byte, error) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.Dial(ctx) }}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://s"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// await polls until the state is one of those, and returns it.
func await(t *testing.T, s *Service, states ...State) Status {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(40 * time.Second); ; <-tick.C {
		if st := s.Status(); slices.Contains(states, st.State) {
			return st
		} else if time.Now().After(end) {
			t.Fatalf("still %+v, want %v", st, states)
		}
	}
}

type sight struct {
	Model, Limits, Status                              string
	Args, Env, Root, Files, Processes, Links, Failures []string
	UID                                                int
}

// A program sees its model and nothing of the machine.
func TestProgramSeesNothingElse(t *testing.T) {
	s := started(t, io.Discard, "-x", "a b")
	if err := ready(t, s); err != nil {
		t.Fatal(err)
	}
	raw, err := ask(t, s, "GET", "/see")
	if err != nil {
		t.Fatal(err)
	}
	var got sight
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(weights); got.Model != hex.EncodeToString(sum[:]) {
		t.Error("descriptor 4 is not the model")
	}
	if !slices.Equal(got.Args, []string{"-x", "a b"}) {
		t.Errorf("arguments %q", got.Args)
	}
	if len(got.Env) > 1 || len(got.Env) == 1 && got.Env[0] != "PWD=/tmp" {
		t.Errorf("environment %q", got.Env)
	}
	if !slices.Equal(got.Root, []string{"dev", "proc", "tmp"}) {
		t.Errorf("/ holds %q", got.Root)
	}
	if len(got.Processes) > 2 {
		t.Errorf("processes %v, want its own and bubblewrap's", got.Processes)
	}
	if len(got.Links) > 1 || len(got.Links) == 1 && got.Links[0] != "lo" {
		t.Errorf("network links %v", got.Links)
	}
	if want := []string{"dial", "write /", "write /dev/shm", "write the model", "write the program", "new namespace"}; !slices.Equal(got.Failures, want) {
		t.Errorf("only these failed: %q, want %q", got.Failures, want)
	}
	if got.UID != 65534 {
		t.Errorf("uid %d", got.UID)
	}
	t.Logf("open files: %q", got.Files)
	for _, f := range got.Files {
		if !regexp.MustCompile(`^(/dev/null|socket:.*|pipe:.*|anon_inode:.*|/memfd:meshnode-service.*|/proc/.*)$`).MatchString(f) {
			t.Errorf("it holds %s open", f)
		}
	}
	for _, want := range []string{
		`Max core file size +1 +1 `, `Max data size +` + strconv.Itoa(memoryBase+memoryPerModel*len(weights)) + ` `,
		`Max processes +` + strconv.Itoa(maxProcesses) + ` `, `Max open files +` + strconv.Itoa(maxFiles) + ` `, `Max locked memory +0 `, `oom_score_adj 1000\n`,
	} {
		if !regexp.MustCompile(want).MatchString(got.Limits) {
			t.Errorf("limits lack %q:\n%s", want, got.Limits)
		}
	}
	for _, want := range []string{`CapEff:\s0+\n`, `CapBnd:\s0+\n`, `NoNewPrivs:\s1`} {
		if !regexp.MustCompile(want).MatchString(got.Status) {
			t.Errorf("status lacks %q:\n%s", want, got.Status)
		}
	}
	if answer, err := ask(t, s, "POST", "/fill"); err != nil || !strings.Contains(string(answer), "no space") && !strings.Contains(string(answer), "too large") {
		t.Errorf("128 MiB in /tmp: %s, %v", answer, err)
	}
}

// What the node's own starter left open does not reach a program.
func TestProgramInheritsNothing(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe(ends[:]); err != nil { // as a starter does, without close-on-exec
		t.Fatal(err)
	}
	defer unix.Close(ends[0])
	defer unix.Close(ends[1])
	secret, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(ends[0]))
	if err != nil {
		t.Fatal(err)
	}
	s := started(t, io.Discard)
	if err := ready(t, s); err != nil {
		t.Fatal(err)
	}
	raw, err := ask(t, s, "GET", "/see")
	if err != nil {
		t.Fatal(err)
	}
	var got sight
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(got.Files, secret) {
		t.Errorf("it holds %s, an open file of the node's starter: %q", secret, got.Files)
	}
}

// A program that ends is started again; after too many times it is given up. What it wrote
// is counted and not kept.
func TestRestartAndGiveUp(t *testing.T) {
	log := &recorder{}
	s := started(t, log)
	if err := ready(t, s); err != nil {
		t.Fatal(err)
	}
	_, _ = ask(t, s, "POST", "/exit")
	if st := await(t, s, Restarting); st.Restarts != 1 || !strings.Contains(st.Cause, "exit status 7") {
		t.Errorf("got %+v", st)
	}
	if err := func() error { await(t, s, Running); return ready(t, s) }(); err != nil {
		t.Error(err)
	}
	if _, err := ask(t, s, "GET", "/see"); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	if strings.Contains(log.String(), "secret") || !strings.Contains(log.String(), "stderr_bytes=24") {
		t.Errorf("log: %s", log)
	}

	crashing := started(t, log, "crash")
	if err := ready(t, crashing); err == nil || !strings.Contains(err.Error(), "exit status 7") {
		t.Errorf("a program that crashes is ready: %v", err)
	}
	if st := await(t, crashing, Failed); st.Restarts != maxRestarts {
		t.Errorf("got %+v", st)
	}
	if strings.Contains(log.String(), "secret") {
		t.Errorf("log: %s", log)
	}
	if _, err := crashing.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial: %v", err)
	}
}

// Who has seen that a service was given up can dial it no more, although its owner has not
// released the socket yet.
func TestDialAfterTheLastState(t *testing.T) {
	for _, last := range []State{Failed, Stopped} {
		s := started(t, io.Discard, "sleep")
		s.set(last, "")
		if c, err := s.Dial(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: dial: %v, %v", last, c, err)
		}
	}
}

// Stop leaves no process, also of one that never answers.
func TestStop(t *testing.T) {
	s := started(t, io.Discard, "sleep")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Ready(ctx); err == nil {
		t.Error("a program that sleeps is ready")
	}
	before := processes(t)
	if len(before) == 0 {
		t.Fatal("the program does not run")
	}
	s.Stop()
	if left := processes(t); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if st := s.Status(); st.State != Stopped {
		t.Errorf("got %+v", st)
	}
	s.Stop() // twice is no harm
}

// processes returns the children of this process.
func processes(t *testing.T) []string {
	t.Helper()
	var out []string
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			out = append(out, path)
		}
	}
	return out
}

// Nothing starts unrecorded, unconfined or unmeasured.
func TestStartRefuses(t *testing.T) {
	program, err := subject()
	if err != nil {
		t.Fatal(err)
	}
	box := Sandbox{"/usr/bin/bwrap", "/usr/bin/prlimit"}
	log := slog.New(slog.DiscardHandler)
	ok := func() error { return nil }
	refused := errors.New("the log is full")
	for name, tc := range map[string]struct {
		cfg  Config
		want string
	}{
		"no sandbox":     {Config{Log: log, Record: ok}, "no sandbox"},
		"no record":      {Config{Log: log, Sandbox: box}, "record"},
		"refused record": {Config{Log: log, Sandbox: box, Record: func() error { return refused }}, "the log is full"},
	} {
		s, err := Start(t.Context(), tc.cfg, Spec{Name: "s", Program: hold(t, program, true), Model: hold(t, weights, false)})
		if err == nil {
			s.Stop()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Start(t.Context(), Config{}, Spec{}); err == nil {
		t.Error("the zero value was started")
	}
	if _, err := Start(t.Context(), Config{Log: log, Sandbox: box, Record: ok},
		Spec{Name: "s", Program: hold(t, program, false), Model: hold(t, weights, false)}); err == nil {
		t.Error("what was not received as a program was started")
	}
	for name, bad := range map[string][]byte{"a script": []byte("#!/bin/sh\n"), "another machine": otherMachine(program)} {
		if _, err := Receive(blobOf(bad), true, bytes.NewReader(bad)); err == nil {
			t.Errorf("%s passes for a program", name)
		}
	}
}

func otherMachine(program []byte) []byte {
	p := bytes.Clone(program)
	p[18]++
	return p
}

func TestCheckStatic(t *testing.T) {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program, err := subject()
	if err != nil {
		t.Fatal(err)
	}
	if err := checkStatic(bytes.NewReader(program)); err != nil {
		t.Error(err)
	}
	for _, dynamic := range []string{"/bin/ls", "/usr/bin/env"} {
		if raw, err := os.ReadFile(dynamic); err == nil {
			if err := checkStatic(bytes.NewReader(raw)); err == nil || !strings.Contains(err.Error(), "static") {
				t.Errorf("%s: %v", dynamic, err)
			}
		}
	}
	for n := range min(len(self), 4096) {
		_ = checkStatic(bytes.NewReader(self[:n]))
	}
	if checkStatic(bytes.NewReader(program[:80])) == nil {
		t.Error("cut headers were taken")
	}
}

// Whatever the machine, a sandbox that cannot be made is an error with bubblewrap's words.
func TestSandboxThatFails(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "bwrap")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for p := dir; p != "/" && p != "."; p = filepath.Dir(p) { // run as another user where this is root
		_ = os.Chmod(p, 0o755)
		if p == os.TempDir() {
			_ = os.Chmod(p, 0o1777)
			break
		}
	}
	program, err := subject()
	if err != nil {
		t.Fatal(err)
	}
	if err := (Sandbox{fake, "/usr/bin/prlimit"}).Try(t.Context()); err == nil || !strings.Contains(err.Error(), "No permissions") {
		t.Errorf("tried: %v", err)
	}
	if err := sandbox(t).Try(t.Context()); err != nil {
		t.Error(err)
	}
	s, err := Start(t.Context(), Config{Sandbox: Sandbox{fake, "/usr/bin/prlimit"}, Log: slog.New(slog.DiscardHandler), Record: func() error { return nil }},
		Spec{Name: "s", Program: hold(t, program, true), Model: hold(t, weights, false)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if err := ready(t, s); err == nil || !strings.Contains(err.Error(), "No permissions to create new namespace") {
		t.Errorf("got %v", err)
	}
	if st := s.Status(); st.State != Failed || st.Restarts != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestReceive(t *testing.T) {
	data := []byte("0123456789")
	rest := bytes.NewReader(append(bytes.Clone(data), "beyond"...))
	b, err := Receive(blobOf(data), false, rest)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if rest.Len() != len("beyond") {
		t.Errorf("%d bytes are left", rest.Len())
	}
	seals, err := unix.FcntlInt(b.file.Fd(), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE; err != nil || seals&want != want {
		t.Errorf("seals %x, %v", seals, err)
	}
	if f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(b.file.Fd())), os.O_RDWR, 0); err == nil {
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("sealed memory was written")
		}
		f.Close()
	}
	for name, tc := range map[string]struct {
		want service.Blob
		data string
	}{
		"the zero value": {service.Blob{}, "x"},
		"too short":      {blobOf(data), "012345678"},
		"another":        {blobOf(data), "0123456780"},
		"shorter digest": {service.Blob{SHA256: blobOf(data).SHA256, Size: 5}, "0123456789"},
	} {
		if b, err := Receive(tc.want, true, strings.NewReader(tc.data)); err == nil {
			b.Close()
			t.Errorf("%s was taken", name)
		}
	}
}

func TestMachine(t *testing.T) {
	areas, err := swapAreas(strings.NewReader("Filename\t\t\t\tType\t\tSize\n/dev/zram0 partition 1 0 100\n/dev/vda2                               partition\t1\n/swap.img file 1\n"))
	if err != nil || !slices.Equal(areas, []string{"/dev/vda2", "/swap.img"}) {
		t.Errorf("%q, %v", areas, err)
	}
	if n, err := memAvailable(strings.NewReader("MemTotal: 9 kB\nMemAvailable:    1024 kB\n")); n != 1<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := memAvailable(strings.NewReader("MemTotal: 9 kB\n")); err == nil {
		t.Error("no figure was taken")
	}
	if err := CheckMemory(&service.Manifest{Program: service.Blob{Size: 1}, Model: service.Blob{Size: 1 << 50}}); err == nil {
		t.Error("a PiB fits")
	}
	for table, want := range map[string]bool{"         0          0 4294967295\n": true, "0 1000 1\n1 100000 65536\n": false, "": false, "x\n": false} {
		if maps(table, firstUID) != want {
			t.Errorf("%q: %v", table, !want)
		}
	}
	for _, tc := range []struct {
		version string
		ok      bool
	}{{"0.8.0", true}, {"0.11.0", true}, {"1.0.0", true}, {"0.7.9", false}, {"0.8", false}, {"x.y.z", false}, {"", false}} {
		if got := atLeast(tc.version, oldest); got != tc.ok {
			t.Errorf("%q: %v", tc.version, got)
		}
	}
}

func FuzzCheckStatic(f *testing.F) {
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Fuzz(func(_ *testing.T, raw []byte) { _ = checkStatic(bytes.NewReader(raw)) })
}
