// Command loggen makes a log as long as one wants, the same bytes in each run, and tries an audit
// of it.
//
//	loggen [-entries N] -o DIR            DIR/genesis.json and DIR/log of N entries
//	loggen [-entries N] -audit MESHNODE   makes one in a directory of its own and has the program
//	                                      MESHNODE audit it: killed with SIGKILL in the middle,
//	                                      and again to the end from what was saved
//
// The log begins with one of every kind of leaf there is (audit/audittest.Complete); the rest are
// attestation results of its seats. The trial fails if the second audit says anything but that the
// log holds, or if either has ever used -limit MiB of memory; it prints entries a second and MiB.
// See "make million".
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/transparency"
)

func main() {
	entries := flag.Int("entries", 1_000_000, "how many")
	out := flag.String("o", "", "directory to write, new or empty")
	program := flag.String("audit", "", "meshnode program to try")
	limit := flag.Int("limit", 300, "MiB that an audit must stay below")
	flag.Parse()
	var err error
	switch {
	case flag.NArg() > 0 || (*out == "") == (*program == ""):
		flag.Usage()
		os.Exit(2)
	case *out != "":
		err = generate(*out, *entries)
	default:
		err = try(*program, *entries, *limit)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "loggen:", err)
		os.Exit(1)
	}
}

// generate writes genesis and log, holding one batch of leaves at a time.
func generate(path string, entries int) error {
	m := audittest.Complete()
	dir, err := durable.Open(path)
	if err != nil {
		return err
	}
	if err := dir.WriteFile("genesis.json", m.Genesis.Raw(), 0o644); err != nil {
		return err
	}
	logs, err := dir.Sub("log")
	if err != nil {
		return err
	}
	tree, err := transparency.NewTree(logs)
	if err != nil {
		return err
	}
	if entries < len(m.Leaves) {
		return fmt.Errorf("%d entries, the log begins with %d", entries, len(m.Leaves))
	}
	if _, err := tree.AppendAll(m.Leaves); err != nil {
		return err
	}
	results := m.Results()
	const batch = 4096
	leaves := make([][]byte, batch)
	for first := len(m.Leaves); first < entries; first += batch {
		n := min(batch, entries-first)
		var all sync.WaitGroup
		workers := runtime.GOMAXPROCS(0)
		for w := range workers {
			all.Go(func() {
				for i := w; i < n; i += workers {
					leaves[i] = results(first - len(m.Leaves) + i)
				}
			})
		}
		all.Wait()
		if _, err := tree.AppendAll(leaves[:n]); err != nil {
			return err
		}
	}
	m.At = m.At.Add(time.Duration(entries-len(m.Leaves)) * time.Second) // of the last result
	return tree.Publish(m.Checkpoint(tree, m.Cosigners()...))
}

// report is what is read of log audit --json.
type report struct {
	OK      bool              `json:"ok"`
	Entries int               `json:"entries"`
	Root    transparency.Hash `json:"root"`
}

func try(program string, entries, limit int) error {
	dir, err := os.MkdirTemp("", "loggen")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	start := time.Now()
	make := exec.Command(self, "-entries", strconv.Itoa(entries), "-o", dir)
	make.Stderr = os.Stderr
	if err := make.Run(); err != nil {
		return fmt.Errorf("generate: %w", err)
	}
	fmt.Printf("generated %d entries in %.0f s\n", entries, time.Since(start).Seconds())
	a := &trial{program: program, dir: dir}
	half, err := a.run(func() bool { return a.saved() >= entries/2 })
	if err != nil {
		return err
	}
	got := a.saved()
	if !half.killed {
		return errors.New("the audit ended before it was half done and saved: make more entries")
	}
	fmt.Printf("killed with %d entries saved after %.1f s: %.0f entries/s, %d MiB\n", got, half.took.Seconds(), float64(got)/half.took.Seconds(), half.peak)
	rest, err := a.run(func() bool { return false })
	if err != nil {
		return err
	}
	fmt.Printf("%d more in %.1f s: %.0f entries/s, %d MiB\n", entries-got, rest.took.Seconds(), float64(entries-got)/rest.took.Seconds(), rest.peak)
	if !rest.said.OK || rest.said.Entries != entries {
		return fmt.Errorf("the audit says %+v of a log of %d entries that holds", rest.said, entries)
	}
	if peak := max(half.peak, rest.peak); peak >= limit || peak == 0 {
		return fmt.Errorf("an audit used %d MiB, want less than %d", peak, limit)
	}
	return nil
}

// trial runs audits of one log that are kept in one file.
type trial struct{ program, dir string }

// outcome is how one audit went.
type outcome struct {
	took   time.Duration
	peak   int // MiB
	killed bool
	said   report
}

// run runs an audit and kills it as soon as enough says so.
func (a *trial) run(enough func() bool) (outcome, error) {
	cmd := exec.Command(a.program, "log", "audit", "--genesis", filepath.Join(a.dir, "genesis.json"), "--state", a.state(), "--save-every", "500ms", "--json", filepath.Join(a.dir, "log"))
	var stdout bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, os.Stderr
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return outcome{}, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var o outcome
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			o.took = time.Since(start)
			if o.killed {
				return o, nil
			}
			if err != nil {
				return o, fmt.Errorf("audit: %w: %.1000s", err, stdout.String())
			}
			return o, json.Unmarshal(stdout.Bytes(), &o.said)
		case <-tick.C:
			o.peak = max(o.peak, highWater(cmd.Process.Pid))
			if !o.killed && enough() {
				o.killed = true
				if err := cmd.Process.Kill(); err != nil {
					return o, err
				}
			}
		}
	}
}

func (a *trial) state() string { return filepath.Join(a.dir, "audit.state") }

// saved returns how many entries the kept audit has come to.
func (a *trial) saved() int {
	f, err := os.Open(a.state())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(os.Stderr, "loggen:", err)
		}
		return 0
	}
	defer f.Close()
	kept, err := audit.Load(f, audit.Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "loggen:", err)
		return 0
	}
	return int(kept.Entries())
}

var peakLine = regexp.MustCompile(`(?m)^VmHWM:\s+([0-9]+) kB$`)

// highWater returns the most memory that a process ever had resident, in MiB; 0 if it has ended.
func highWater(pid int) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	m := peakLine.FindSubmatch(status)
	if m == nil {
		return 0
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		return 0
	}
	return kib >> 10
}
