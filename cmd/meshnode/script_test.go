package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The test binary is meshnode when a script calls it by that name, and a plug-in for a key
// service when meshnode does.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshnode": func() { os.Exit(run()) }, "sigstore-kms-trial": func() { os.Exit(trialKMS()) }})
}

// exitAtOnce keeps processes with the race detector from waiting a second at their end.
const exitAtOnce = "GORACE=atexit_sleep_ms=0"

// scriptsWithin bounds all scripts together.
const scriptsWithin = 3 * time.Minute

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Deadline: time.Now().Add(scriptsWithin), // a command that should refuse and serves instead would stay
		Dir:      "testdata",
		Setup: func(env *testscript.Env) error {
			name, value, _ := strings.Cut(exitAtOnce, "=")
			env.Setenv(name, value)
			// A published log and its genesis, made by the tests of package audit.
			published, err := filepath.Abs("../../audit/testdata/published")
			env.Setenv("PUBLISHED", published)
			if err != nil {
				return err
			}
			// A receipt of a service, made by real processes for the tests of package client.
			kept, err := filepath.Abs("../../client/testdata/kept")
			env.Setenv("KEPT", kept)
			if err != nil {
				return err
			}
			// A job with its log and genesis, made by them too.
			certified, err := filepath.Abs("../../audit/testdata/certified")
			env.Setenv("CERTIFIED", certified)
			if err != nil {
				return err
			}
			// Who has signed two histories, made by the tests of package misbehaviour.
			misbehaviour, err := filepath.Abs("../../audit/misbehaviour/testdata")
			env.Setenv("MISBEHAVIOUR", misbehaviour)
			if err != nil {
				return err
			}
			// A job of three organisations, made by the tests of package federated.
			job, err := filepath.Abs("../../federated/testdata/job")
			env.Setenv("JOB", job)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"await": awaitFile,
		},
	})
}

// awaitFile is "await FILE [REGEXP]": it returns when FILE exists, and holds REGEXP, and
// fails after a minute.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: await FILE [REGEXP]")
	}
	path, want := ts.MkAbs(args[0]), ""
	if len(args) == 2 {
		want = args[1]
	}
	re, err := regexp.Compile(want)
	ts.Check(err)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		if there(path, re) {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: still absent, or without %q, after a minute", path, want)
		}
	}
}

// there reports whether path exists and, if it must hold something, holds it.
func there(path string, re *regexp.Regexp) bool {
	if re.String() == "" {
		_, err := os.Stat(path) // a socket cannot be read
		return err == nil
	}
	data, err := os.ReadFile(path)
	return err == nil && re.Match(data)
}
