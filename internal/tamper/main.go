// Command tamper writes spoiled copies of a transparency log, each with what an audit of it must
// say. It is no part of meshnode: hashes, tiles, notes and envelopes are made here with the C2SP
// libraries and raw bytes (golang.org/x/mod/sumdb/tlog and note, filippo.io/torchwood), so that it
// shares nothing with what is tested. Of package audittest it has the private keys, and leaves to
// spoil.
//
//	tamper log DIR             writes the log that the cases spoil: DIR/log and DIR/genesis.json. Cases
//	                           15 also want DIR/result.proof, by "meshnode log prove" of leaf 300
//	tamper list                lists the cases, one a line: name, what is done
//	tamper CASE SRC DST        writes DST/log, and DST/expected.json, from the log in SRC
//
// The numbers of the cases are those of docs/ATTACKS.md, X1 to X20.
//
// expected.json is {"case","what","before":[[…],…],"run":[…],"verdict":{"ok":false,"index","code","exit"}}:
// the arguments of meshnode, whose exit code it is and which must find that first, and those of
// runs that come before, all of which exit 0. SRC/ and DST/ begin the names of files. Most run
// "log audit --json --genesis SRC/genesis.json DST/log"; where one directory alone cannot show what is
// wrong the audit remembers the untouched log, or evidence is disclosed, or it is "log verify" of a
// proof or "log monitor" with a receipt, whose first alert of severity error counts: these name no index.
//
// Who forges is said in each case: an outsider edits files; the log key alone ("leaked") signs
// checkpoints; "all" means that every seat cosigns a history whose leaves do not hold.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// verdict is what an audit must say: its first finding, and its exit code.
type verdict struct {
	OK    bool   `json:"ok"`
	Index uint64 `json:"index"`
	Code  string `json:"code"`
	Exit  int    `json:"exit"`
}

type expected struct {
	Case    string     `json:"case"`
	What    string     `json:"what"`
	Before  [][]string `json:"before"`
	Run     []string   `json:"run"`
	Verdict verdict    `json:"verdict"`
}

// audits are the arguments of an audit.
func audits(log string, more ...string) []string {
	return append([]string{"log", "audit", "--json", "--genesis", "SRC/genesis.json", log}, more...)
}

// tamperCase spoils a log.
type tamperCase struct {
	name, what string
	do         func(*spoiled) verdict
}

// found is the verdict of an audit that finds something wrong.
func found(index int, code string) verdict { return verdict{Index: uint64(index), Code: code, Exit: 1} }

// undecided is the verdict of an audit that cannot tell.
func undecided(index int, code string) verdict {
	return verdict{Index: uint64(index), Code: code, Exit: 3}
}

func cases() []tamperCase {
	var out []tamperCase
	for _, group := range [][]tamperCase{entryCases(), fileCases(), checkpointCases(), cosignerCases(), envelopeCases(), resultCases(), policyCases(), recoveryCases(), historyCases(), proofCases(), evidenceCases(), omissionCases()} {
		out = append(out, group...)
	}
	return out
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "tamper:", err)
		os.Exit(2)
	}
}

func run(args []string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v: %v", args, r)
		}
	}()
	switch {
	case len(args) == 2 && args[0] == "log":
		return untouched(args[1])
	case len(args) == 1 && args[0] == "list":
		for _, c := range cases() {
			fmt.Printf("%s\t%s\n", c.name, c.what)
		}
		return nil
	case len(args) == 3:
		for _, c := range cases() {
			if c.name == args[0] {
				return c.write(args[1], args[2])
			}
		}
		return fmt.Errorf("no case %q", args[0])
	}
	return fmt.Errorf("want: log DIR, list, or CASE SRC DST")
}

func (c tamperCase) write(src, dst string) error {
	src, dst = filepath.Clean(src), filepath.Clean(dst)
	if err := os.MkdirAll(dst, 0o755); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(dst, "log"), os.DirFS(filepath.Join(src, "log"))); err != nil {
		return err
	}
	s := open(src, filepath.Join(dst, "log"))
	out := expected{Case: c.name, What: c.what, Verdict: c.do(s), Before: s.before, Run: s.run}
	if out.Before == nil {
		out.Before = [][]string{}
	}
	raw, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dst, "expected.json"), append(raw, '\n'), 0o644)
}

func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
