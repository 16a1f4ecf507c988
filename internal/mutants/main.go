// Command mutants shows whether tests notice when a check is left out. For each condition in
// the named packages behind which the code refuses, it leaves out that condition alone (it is
// evaluated, and what it says is ignored) and runs the tests in which it holds; a mutant that
// passes them all survived, and so did one that holds in no test.
//
//	go run ./internal/mutants [-with PACKAGES] [-only TEXT] PACKAGE...
//
// All mutants of all packages are compiled once, into one test binary per package: a variable
// of the environment says which one is left out. Each test runs once by itself to learn which
// conditions hold in it. Nothing in the tree is changed: the compiler gets the mutated files
// as an overlay. GOMAXPROCS mutants are tried at a time.
//
// A line of the file equivalent.txt beside this one excuses a survivor, with the reason: such
// a condition guards what another one guards as well, or only makes an error plainer. It reads
// "FILE: FUNCTION: CONDITION: reason"; one that excuses nothing is an error, once the whole
// file was tried. Exit code 1 if another mutant survived, 2 if the run could not be made.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

const equivalents = "internal/mutants/equivalent.txt"

func main() {
	with := flag.String("with", "", "`PACKAGES`, by commas, whose tests run too")
	only := flag.String("only", "", "only mutants whose line holds `TEXT`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
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

// run tries the mutants of packages by their own tests and those of the packages with, prints
// the survivors and returns their number without the excused.
func run(ctx context.Context, packages, with []string, only string) (survivors int, err error) {
	f, err := os.Open(equivalents)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	excuses, err := readExcuses(f)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", equivalents, err)
	}
	all, err := read(packages)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	t, err := build(ctx, dir, all, slices.Compact(slices.Sorted(slices.Values(append(clean(packages), clean(with)...)))))
	if err != nil {
		return 0, err
	}
	chosen := slices.DeleteFunc(all.mutants(), func(m mutant) bool { return !strings.Contains(m.String(), only) })
	lives, err := t.judge(ctx, chosen)
	if err != nil {
		return 0, err
	}
	used := map[string]bool{}
	for _, m := range lives {
		if _, ok := excuses[m.key()]; ok {
			used[m.key()] = true
			continue
		}
		survivors++
		fmt.Printf("SURVIVED %s\n", m)
	}
	fmt.Printf("%d mutants, %d excused, %d survived\n", len(chosen), len(lives)-survivors, survivors)
	for key := range excuses {
		file, _, _ := strings.Cut(key, ": ")
		if _, tried := all[file]; tried && only == "" && !used[key] {
			err = errors.Join(err, fmt.Errorf("%s: %q excuses no survivor: delete the line", equivalents, key))
		}
	}
	return survivors, err
}

func clean(paths []string) []string {
	out := make([]string, len(paths))
	for i, p := range paths {
		out[i] = filepath.Clean(p)
	}
	return out
}

// readExcuses reads "FILE: FUNCTION: CONDITION: reason" lines: the reason by what it excuses.
func readExcuses(r io.Reader) (map[string]string, error) {
	out := map[string]string{}
	in := bufio.NewScanner(r)
	for in.Scan() {
		line := in.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndex(line, ": ")
		if i < 0 || strings.Count(line, ": ") < 3 {
			return nil, fmt.Errorf("%q: want FILE: FUNCTION: CONDITION: reason", line)
		}
		out[line[:i]] = line[i+2:]
	}
	return out, in.Err()
}
