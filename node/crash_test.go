package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// L7: the writer of a log is a process of its own, this test binary again: the real machine under a
// real replica on a bbolt store, a tree in a directory, a published and synced checkpoint after
// each batch. It says which steps are done; that is what it acknowledges. strace makes system call
// number N of one kind fail once, or kills the process there, for every N that there is.

const (
	crashInput = "MESHNODE_CRASH_INPUT" // names the steps' file; makes TestCrashWriter the writer
	crashDir   = "MESHNODE_CRASH_DIR"   // where it writes
	crashAll   = "MESHNODE_CRASH"       // every call, not a sample, and whole hours: make crash
)

// crashStep is one command, and the checkpoint to publish after it, if any.
type crashStep struct{ Command, Checkpoint []byte }

type crashPlan struct {
	Genesis []byte
	Steps   []crashStep
	Sizes   []uint64 // of the log after each step
	Roots   []transparency.Hash
}

type crashPeers struct{}

func (crashPeers) Open(context.Context, identity.PeerID) (io.ReadWriteCloser, error) {
	return nil, errors.New("a single seat")
}

// threadMachine and threadStore keep raft's two goroutines in their threads, by which strace counts.
type threadMachine struct {
	*Machine
	once sync.Once
}

func (m *threadMachine) Apply(index, term uint64, raw []byte) any {
	m.once.Do(runtime.LockOSThread)
	return m.Machine.Apply(index, term, raw)
}

type threadStore struct {
	replica.Store
	once sync.Once
}

func (s *threadStore) StageCommitIndex(index uint64) error {
	s.once.Do(runtime.LockOSThread)
	return s.Store.StageCommitIndex(index)
}

// crashReplica starts the only replica of a machine on the store in dir.
func crashReplica(dir *durable.Dir, m *Machine, failed func(error)) (*replica.Replica, error) {
	store, err := replica.OpenStore(consensus.StoreDisk, dir)
	if err != nil {
		return nil, err
	}
	self := identity.PeerIDFromKey(crowdKey("crash", "seat").Public().(ed25519.PublicKey))
	const short = 20 * time.Millisecond
	return replica.New(replica.Config{Self: self, Peers: crashPeers{}, Member: func(identity.PeerID) bool { return true }, Machine: &threadMachine{Machine: m},
		Store: &threadStore{Store: store}, Servers: []identity.PeerID{self}, Fatal: failed, Timing: replica.Timing{Heartbeat: short, Election: short, Lease: short, Commit: time.Millisecond}})
}

// TestCrashWriter is no test of its own: it is the process that TestL7SystemCalls kills.
func TestCrashWriter(t *testing.T) {
	input := os.Getenv(crashInput)
	if input == "" {
		t.Skip("started by TestL7SystemCalls")
	}
	runtime.LockOSThread()
	if err := crashWriter(input, os.Getenv(crashDir)); err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func crashWriter(input, dir string) error {
	raw, err := os.ReadFile(input)
	if err != nil {
		return err
	}
	var plan crashPlan
	if err := json.Unmarshal(raw, &plan); err != nil {
		return err
	}
	genesis, err := consensus.ParseGenesis(plan.Genesis)
	if err != nil {
		return err
	}
	data, err := durable.Open(dir)
	if err != nil {
		return err
	}
	logDir, err := data.Sub("log")
	if err != nil {
		return err
	}
	raftDir, err := data.Sub("raft")
	if err != nil {
		return err
	}
	tree, err := transparency.NewTree(logDir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), 20*time.Second, errors.New("no step in 20 s"))
	defer cancel()
	ctx, fail := context.WithCancelCause(ctx)
	r, err := crashReplica(raftDir, newMachine(genesis, tree, newNotifier(), time.Now), func(err error) { fail(err) })
	if err != nil {
		return err
	}
	for i, step := range plan.Steps {
		for {
			out, err := r.Apply(ctx, step.Command)
			if errors.Is(err, replica.ErrNotLeader) && ctx.Err() == nil {
				<-time.After(5 * time.Millisecond)
				continue
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				return err
			}
			if applied := out.(Applied); applied.Err != nil || applied.Reason != nil {
				return fmt.Errorf("step %d: %v %v", i, applied.Err, applied.Reason)
			}
			break
		}
		if step.Checkpoint != nil {
			if err := tree.Publish(step.Checkpoint); err != nil {
				return err
			}
			if err := tree.Sync(); err != nil {
				return err
			}
		}
		if _, err := fmt.Printf("ack %d\n", i+1); err != nil {
			return err
		}
	}
	return r.Close()
}

// crashSteps writes down what the writer orders, and what its log is then.
func crashSteps(t *testing.T) (plan crashPlan, path string) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	m := c.nodes[0].machine
	c.fed = c.nodes[:1]
	plan.Genesis = c.genesis.Raw()
	note := func() {
		commands, _ := m.Since(uint64(len(plan.Steps)), 1<<10)
		for i, raw := range commands {
			step := crashStep{Command: raw}
			if last := i == len(commands)-1; last && len(cosignersOf(m.state)) > len(crowdOrgs)/2 {
				step.Checkpoint = c.checkpointAt(m.tree.Size(), len(crowdOrgs)/2+1)
			}
			size, root := m.tree.Head()
			plan.Steps, plan.Sizes, plan.Roots = append(plan.Steps, step), append(plan.Sizes, size), append(plan.Roots, root)
		}
	}
	c.found()
	note()
	for i := range 3 {
		c.order(consensus.KindResults, c.crashBatch(t, i)...)
		note()
	}
	raw, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "steps")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return plan, path
}

// crashBatch is three findings of every seat about every other, each with news.
func (c *crowd) crashBatch(t *testing.T, number int) (batch [][]byte) {
	at := time.Now().Add(time.Duration(number) * time.Second)
	for i := range 3 {
		for _, v := range c.nodes[:len(crowdOrgs)] {
			for _, s := range c.nodes[:len(crowdOrgs)] {
				if v == s || len(batch) == consensus.MaxResults {
					continue
				}
				r := consensus.AttestationResult{Verifier: consensus.Party{Node: v.ref, Peer: v.self}, Subject: consensus.Party{Node: s.ref, Peer: s.self},
					MeshID: c.genesis.MeshID(), Kind: attest.KindSim, Measurement: attesttest.Measurement("new"), Verdict: attest.VerdictAffirming,
					Reference: c.entry("new").ID, Evidence: consensus.EvidenceCommitment([32]byte{1}, []byte("e")),
					At: at.Add(time.Duration(i) * 100 * time.Millisecond), Expires: at.Add(time.Minute)}
				r.Vector.Executables = int8(2 + number*3 + i)
				raw, err := consensus.SignResult(v.key, r)
				if err != nil {
					t.Fatal(err)
				}
				batch = append(batch, raw)
			}
		}
	}
	return batch
}

// crashCalls are the system calls of which the writer makes its files, and what happens to each:
// strace's error or signal.
var crashCalls = func() map[string][]string {
	all := map[string][]string{}
	for call, failures := range map[string]string{"openat": "EIO ENOSPC", "mkdirat": "EIO ENOSPC", "write": "EIO ENOSPC", "pwrite64": "EIO ENOSPC", "ftruncate": "EIO ENOSPC",
		"fsync": "EIO", "fdatasync": "EIO", "renameat": "EIO", "unlinkat": "EIO", "close": "EIO", "fchmod": "EIO", "flock": "EIO", "pread64": "EIO", "mmap": "ENOMEM"} {
		for _, failure := range strings.Fields(failures) {
			all[call] = append(all[call], "error="+failure)
		}
		all[call] = append(all[call], "signal=KILL")
	}
	return all
}()

// crashRun is one life of the writer.
type crashRun struct {
	inject string // empty: none
	dir    string
	acked  int
	code   int // of its exit; -1 if it was killed
	said   string
	trace  string
}

func runCrash(t *testing.T, input, inject string) crashRun {
	run := crashRun{inject: inject, dir: filepath.Join(t.TempDir(), "data")}
	trace := run.dir + ".trace"
	args := []string{"-f", "-y", "-qq", "-o", trace, "-e", "trace=" + strings.Join(slices.Sorted(maps.Keys(crashCalls)), ",")}
	if inject != "" {
		args = append(args, "-e", "inject="+inject)
	}
	if !strings.Contains(inject, "signal=") { // strace 6.1 then sends none
		args = append(args, "--seccomp-bpf")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "strace", append(args, os.Args[0], "-test.run=^TestCrashWriter$")...)
	// One processor: what happens in which thread differs less from run to run.
	cmd.Env = append(os.Environ(), crashInput+"="+input, crashDir+"="+run.dir, "GOMAXPROCS=1", "GOGC=off", "GOTRACEBACK=none", "GODEBUG=asyncpreemptoff=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", inject, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%s: the writer does not end: %s", inject, stderr.String())
	}
	run.code = cmd.ProcessState.ExitCode()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		run.code = -1 // strace ends as what it traces did
	}
	for lines := bufio.NewScanner(&stdout); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "ack "); ok {
			if run.acked, err = strconv.Atoi(n); err != nil {
				t.Fatalf("%s: %q", inject, lines.Text())
			}
		}
	}
	raw, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	run.said, run.trace = stderr.String(), string(raw)
	return run
}

// check holds what the writer left against what it acknowledged.
func (run crashRun) check(t *testing.T, plan crashPlan) {
	genesis, err := consensus.ParseGenesis(plan.Genesis)
	if err != nil {
		t.Fatal(err)
	}
	bad := func(format string, args ...any) {
		t.Errorf("%s: exit %d after %d acknowledged steps, %q: %s", run.inject, run.code, run.acked, run.said, fmt.Sprintf(format, args...))
	}
	switch {
	case run.code == 0 && run.acked != len(plan.Steps):
		bad("it ends well before it has done everything")
	case run.code > 0 && run.said == "":
		bad("it refuses without a word")
	}
	// The published log: whole up to what was acknowledged, or there is none yet.
	published := uint64(0) // at least so much
	for i, step := range plan.Steps[:run.acked] {
		if step.Checkpoint != nil {
			published = plan.Sizes[i]
		}
	}
	var report audit.Report
	reader, err := transparency.OpenReader(filepath.Join(run.dir, "log"))
	if err == nil {
		defer reader.Close()
		report, err = audit.Log(t.Context(), reader, audit.Options{Genesis: genesis, At: time.Now()})
	}
	switch {
	case err != nil && published > 0:
		bad("no log of %d acknowledged entries: %v", published, err)
	case err != nil: // nothing was published, so nothing is claimed
	case published == 0 && report.Size == 0:
	case !report.OK || report.Size < published:
		bad("audit of %d entries, %d are acknowledged: %+v", report.Size, published, report.Findings)
	}
	// The store: a replica that starts again has every acknowledged command.
	if run.acked == 0 {
		return
	}
	raftDir, err := durable.Open(filepath.Join(run.dir, "raft"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := transparency.NewTree(nil)
	if err != nil {
		t.Fatal(err)
	}
	m := newMachine(genesis, tree, newNotifier(), time.Now)
	r, err := crashReplica(raftDir, m, func(err error) { t.Errorf("%s: started again: %v", run.inject, err) })
	if err != nil {
		bad("it does not start again: %v", err)
		return
	}
	defer r.Close()
	want, root := plan.Sizes[run.acked-1], plan.Roots[run.acked-1]
	for end := time.Now().Add(20 * time.Second); tree.Size() < want && time.Now().Before(end); {
		<-time.After(2 * time.Millisecond)
	}
	if got, err := tree.RootAt(want); err != nil || got != root {
		bad("started again it has %d entries of %d, root %s, %v", tree.Size(), want, got, err)
	}
}

var tracedCall = regexp.MustCompile(`^(\d+) +(?:<\.\.\. )?(\w+)[( ]`)

// calls returns for each system call which of those of one kind that some thread makes are made on
// the writer's files, and its neighbours, since no two runs are quite the same. strace counts by thread.
func (run crashRun) calls() map[string]map[int]bool {
	count, out := map[[2]string]int{}, map[string]map[int]bool{}
	for line := range strings.Lines(run.trace) {
		f := tracedCall.FindStringSubmatch(line)
		if f == nil || strings.Contains(line, "resumed>") {
			continue
		}
		count[[2]string(f[1:3])]++
		if n := count[[2]string(f[1:3])]; strings.Contains(line, run.dir) {
			if out[f[2]] == nil {
				out[f[2]] = map[int]bool{}
			}
			for _, near := range []int{max(1, n-1), n, n + 1} {
				out[f[2]][near] = true
			}
		}
	}
	return out
}

// crashTargets say what a call was made on, by the path or the descriptor that strace shows.
var crashTargets = map[string]*regexp.Regexp{
	"tile":       regexp.MustCompile(`/log/tile/.*`),
	"checkpoint": regexp.MustCompile(`/log/\.?checkpoint`),
	"log":        regexp.MustCompile(`/data/log>`),
	"raft.db":    regexp.MustCompile(`/raft/raft\.db`),
}

// TestL7SystemCalls fails each system call once and kills the process at each. Without
// MESHNODE_CRASH it takes a sample.
func TestL7SystemCalls(t *testing.T) {
	if os.Getenv(crashInput) != "" {
		t.Skip("this is the writer")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed (Debian: strace)")
	}
	if out, err := exec.Command("strace", "-f", "-o", os.DevNull, "true").CombinedOutput(); err != nil {
		t.Skipf("processes cannot be traced here: %v: %s", err, out)
	}
	if raceDetector {
		t.Skip("the writer is the same without the race detector, and ten times faster")
	}
	plan, input := crashSteps(t)
	pilot := runCrash(t, input, "")
	pilot.check(t, plan)
	if pilot.code != 0 || t.Failed() {
		t.Fatalf("without a fault: exit %d, %s", pilot.code, pilot.said)
	}
	calls := pilot.calls()
	var injections []string
	for _, call := range slices.Sorted(maps.Keys(crashCalls)) {
		for _, fault := range crashCalls[call] {
			for _, n := range slices.Sorted(maps.Keys(calls[call])) {
				injections = append(injections, fmt.Sprintf("%s:%s:when=%d", call, fault, n))
			}
		}
	}
	if os.Getenv(crashAll) == "" {
		var sample []string
		for i := 0; i < len(injections); i += len(injections)/12 + 1 {
			sample = append(sample, injections[i])
		}
		injections = sample
	}
	var mu sync.Mutex
	hit, refused, killed, unharmed := map[string]int{}, 0, 0, 0
	var all sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for _, inject := range injections {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			run := runCrash(t, input, inject)
			run.check(t, plan)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case run.code < 0:
				killed++
			case run.code > 0:
				refused++
			default:
				unharmed++
			}
			call, fault, _ := strings.Cut(inject, ":")
			fault, _, _ = strings.Cut(fault, ":")
			for line := range strings.Lines(run.trace) {
				if died := run.code < 0 && strings.Contains(line, " "+call+"(") && (strings.Contains(line, "= ?") || strings.Contains(line, "<unfinished")); !died && !strings.Contains(line, "(INJECTED)") {
					continue
				}
				for target, is := range crashTargets {
					if is.MatchString(line) {
						hit[call+" "+target+" "+fault]++
					}
				}
			}
			if !t.Failed() {
				os.RemoveAll(filepath.Dir(run.dir))
			}
		})
	}
	all.Wait()
	t.Logf("%d runs: %d killed, %d refused, %d unharmed", len(injections), killed, refused, unharmed)
	if os.Getenv(crashAll) == "" {
		return
	}
	for _, what := range slices.Sorted(maps.Keys(hit)) {
		t.Logf("%-40s %d", what, hit[what])
	}
	for _, want := range []string{"openat tile", "mkdirat tile", "write tile", "fsync tile", "close tile", "renameat tile", "openat checkpoint", "write checkpoint",
		"renameat checkpoint", "fsync checkpoint", "fsync log", "pwrite64 raft.db", "fdatasync raft.db", "openat raft.db"} {
		if hit[want+" error=EIO"] == 0 || hit[want+" signal=KILL"] == 0 {
			t.Errorf("no %s failed, or none was killed: the sweep does not reach it", want)
		}
	}
}
