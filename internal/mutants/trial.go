package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
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
	"time"
)

// A mutant that makes tests hang is caught: they get tenfold the time they took, and this.
const patience = 20 * time.Second

// trial is what was compiled: the test binaries with every mutant in them.
type trial struct {
	dir      string
	binaries []binary
}

type binary struct {
	pkg, path string
	tests     []test
}

// test is one top-level test, fuzz target (by its corpus) or example.
type test struct {
	name  string
	took  time.Duration
	holds map[int]bool // the mutants whose conditions hold in it
}

// build compiles the tests of packages with all mutants in place, and runs each test once.
func build(ctx context.Context, dir string, all sources, packages []string) (*trial, error) {
	replace := map[string]string{}
	put := func(path string, src []byte) error {
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		replace[abs] = filepath.Join(dir, fmt.Sprint(len(replace), ".go"))
		return os.WriteFile(replace[abs], src, 0o600)
	}
	names := map[string]string{} // package clauses by folder
	for path, s := range all {
		names[filepath.Dir(path)] = s.pkg
		if err := put(path, s.instrumented()); err != nil {
			return nil, err
		}
	}
	for folder, name := range names {
		if err := put(filepath.Join(folder, "mutants_chosen.go"), chooser(name, all.count())); err != nil {
			return nil, err
		}
	}
	spec, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	overlay := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, spec, 0o600); err != nil {
		return nil, err
	}
	t := &trial{dir: dir}
	for i, pkg := range packages {
		b := binary{pkg: pkg, path: filepath.Join(dir, fmt.Sprint("test", i))}
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", b.path, "./"+pkg)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", pkg, err, out)
		}
		if _, err := os.Stat(b.path); err != nil {
			continue // a package without tests
		}
		if err := b.learn(ctx, dir); err != nil {
			return nil, err
		}
		t.binaries = append(t.binaries, b)
	}
	return t, nil
}

// learn lists the tests and runs each by itself.
func (b *binary) learn(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, b.path, "-test.list", "^(Test|Fuzz|Example)")
	cmd.Dir = b.pkg
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", b.pkg, err, out)
	}
	for name := range strings.Lines(string(out)) {
		t := test{name: strings.TrimSpace(name), holds: map[int]bool{}}
		log := filepath.Join(dir, "holds")
		if err := os.WriteFile(log, nil, 0o600); err != nil {
			return err
		}
		begin := time.Now()
		if out, err := b.run(ctx, []test{t}, 5*time.Minute, "MUTANTS_LOG="+log); err != nil {
			return fmt.Errorf("%s: %s fails by itself, with every check in place: %w\n%s", b.pkg, t.name, err, out)
		}
		t.took = time.Since(begin)
		held, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		for id := range bytes.Lines(held) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(id)))
			if err != nil {
				return err
			}
			t.holds[n] = true
		}
		b.tests = append(b.tests, t)
	}
	slices.SortStableFunc(b.tests, func(x, y test) int { return int(x.took - y.took) })
	return nil
}

// run runs the tests in the package's directory; what they start ends with them.
func (b *binary) run(ctx context.Context, tests []test, within time.Duration, env string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	names := make([]string, len(tests))
	for i, t := range tests {
		names[i] = regexp.QuoteMeta(t.name)
	}
	cmd := exec.CommandContext(ctx, b.path, "-test.short", "-test.failfast", "-test.run", "^("+strings.Join(names, "|")+")$")
	cmd.Dir, cmd.Env = b.pkg, append(os.Environ(), env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd.CombinedOutput()
}

// judge returns the mutants that no test catches, in order.
func (t *trial) judge(ctx context.Context, chosen []mutant) ([]mutant, error) {
	var (
		wg    sync.WaitGroup
		queue = make(chan int)
		lives = make([]bool, len(chosen))
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range queue {
				lives[i] = t.survives(ctx, chosen[i])
			}
		})
	}
	for i := range chosen {
		if i%100 == 99 {
			fmt.Fprintf(os.Stderr, "%d of %d\n", i+1, len(chosen))
		}
		select {
		case queue <- i:
		case <-ctx.Done():
		}
	}
	close(queue)
	wg.Wait()
	var out []mutant
	for i, m := range chosen {
		if lives[i] {
			out = append(out, m)
		}
	}
	return out, ctx.Err()
}

// survives runs the tests in which the condition of m holds, without it: the quick ones
// first, then batches that each take twice the time of the one before.
func (t *trial) survives(ctx context.Context, m mutant) bool {
	for _, b := range t.binaries {
		var batch []test
		var took time.Duration
		limit := time.Second
		try := func() bool {
			if len(batch) == 0 {
				return true
			}
			_, err := b.run(ctx, batch, patience+10*took, "MUTANT="+strconv.Itoa(m.id))
			batch, took, limit = nil, 0, 2*limit
			return err == nil
		}
		for _, test := range b.tests {
			if !test.holds[m.id] {
				continue
			}
			if took+test.took > limit && !try() {
				return false
			}
			batch, took = append(batch, test), took+test.took
		}
		if !try() {
			return false
		}
	}
	return true
}
