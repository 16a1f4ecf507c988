// Command mutants shows whether tests notice when a check is left out. For each condition in
// the named packages behind which the code refuses, it leaves out that condition alone and
// runs the package's tests, and then those that the flag -with names; a mutant that passes
// them all survived. Nothing in the tree is changed: the compiler gets the mutated file as an
// overlay.
//
//	go run ./internal/mutants [-with PACKAGES] [-only TEXT] PACKAGE...
//
// A line of the file equivalent.txt beside this one excuses a survivor, with the reason: such
// a condition guards what another one guards as well, or only makes an error plainer. It
// reads "FILE: CONDITION: reason". Exit code 1 if
// another mutant survived.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// within bounds the tests of one mutant: one that makes them hang is caught.
const within = 90 * time.Second

func main() {
	with := flag.String("with", "", "`PACKAGES`, by commas, whose tests run if those of the package pass")
	only := flag.String("only", "", "only mutants whose line holds `TEXT`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	survivors, err := run(ctx, flag.Args(), strings.FieldsFunc(*with, func(r rune) bool { return r == ',' }), *only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(2)
	}
	if survivors > 0 {
		os.Exit(1)
	}
}

func run(ctx context.Context, packages, with []string, only string) (int, error) {
	excused, err := readExcuses("internal/mutants/equivalent.txt")
	if err != nil {
		return 0, err
	}
	var all []mutant
	for _, pkg := range packages {
		files, err := filepath.Glob(filepath.Join(pkg, "*.go"))
		if err != nil || len(files) == 0 {
			return 0, fmt.Errorf("%s: no Go files", pkg)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			src, err := os.ReadFile(file)
			if err != nil {
				return 0, err
			}
			m, err := mutantsOf(file, src)
			if err != nil {
				return 0, err
			}
			all = append(all, m...)
		}
	}
	all = slices.DeleteFunc(all, func(m mutant) bool { return !strings.Contains(m.String(), only) })
	return judge(ctx, all, with, excused)
}

// judge tries all mutants, as many at a time as there are processors, and prints those that
// survive.
func judge(ctx context.Context, all []mutant, with []string, excused map[string]bool) (survivors int, err error) {
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	queue := make(chan int)
	var (
		mu   sync.Mutex
		wg   sync.WaitGroup
		done int
	)
	for range runtime.NumCPU() {
		wg.Go(func() {
			for i := range queue {
				lives, tryErr := survives(ctx, filepath.Join(dir, fmt.Sprint(i)), all[i], with)
				mu.Lock()
				done++
				switch key := all[i].file + ": " + all[i].what; {
				case tryErr != nil:
					err = errors.Join(err, tryErr)
				case lives && excused[key]:
					fmt.Printf("excused  %s\n", all[i])
				case lives:
					survivors++
					fmt.Printf("SURVIVED %s\n", all[i])
				}
				if done%20 == 0 {
					fmt.Fprintf(os.Stderr, "%d of %d\n", done, len(all))
				}
				mu.Unlock()
			}
		})
	}
	for i := range all {
		select {
		case queue <- i:
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	close(queue)
	wg.Wait()
	fmt.Printf("%d mutants, %d survived\n", len(all), survivors)
	return survivors, err
}

// survives reports whether all tests pass with m in place of its file. A mutant that does
// not compile counts as an error of this program's.
func survives(ctx context.Context, dir string, m mutant, with []string) (bool, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return false, err
	}
	path, err := filepath.Abs(m.file)
	if err != nil {
		return false, err
	}
	mutated, overlay := filepath.Join(dir, "mutated.go"), filepath.Join(dir, "overlay.json")
	spec, err := json.Marshal(map[string]map[string]string{"Replace": {path: mutated}})
	if err == nil {
		err = errors.Join(os.WriteFile(mutated, m.src, 0o600), os.WriteFile(overlay, spec, 0o600))
	}
	if err != nil {
		return false, err
	}
	for _, pkg := range append([]string{"./" + filepath.Dir(m.file)}, with...) {
		ctx, cancel := context.WithTimeout(ctx, within+10*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "go", "test", "-overlay", overlay, "-short", "-failfast", "-vet=off",
			"-timeout", within.String(), pkg).CombinedOutput()
		if strings.Contains(string(out), "[build failed]") {
			return false, fmt.Errorf("%s: %s", m, out)
		}
		if err != nil {
			return false, nil
		}
	}
	return true, nil
}

// readExcuses reads "FILE: CONDITION: reason" lines.
func readExcuses(path string) (map[string]bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]bool{}
	for in := bufio.NewScanner(f); in.Scan(); {
		line := in.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndex(line, ": ")
		if i < 0 || strings.Count(line, ": ") < 2 {
			return nil, fmt.Errorf("%s: %q: want FILE: CONDITION: reason", path, line)
		}
		out[line[:i]] = true
	}
	return out, nil
}
