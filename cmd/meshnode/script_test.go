package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// The test binary is meshnode when a script calls it by that name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"meshnode": func() { os.Exit(run()) }})
}

// exitAtOnce keeps processes with the race detector from waiting a second at their end.
const exitAtOnce = "GORACE=atexit_sleep_ms=0"

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			name, value, _ := strings.Cut(exitAtOnce, "=")
			env.Setenv(name, value)
			// A published log and its genesis, made by the tests of package audit.
			published, err := filepath.Abs("../../audit/testdata/published")
			env.Setenv("PUBLISHED", published)
			if err != nil {
				return err
			}
			// A job with its log and genesis, made by them too.
			certified, err := filepath.Abs("../../audit/testdata/certified")
			env.Setenv("CERTIFIED", certified)
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

// awaitFile is "await FILE": it returns when FILE exists, and fails after a minute.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: await FILE")
	}
	path := ts.MkAbs(args[0])
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		if _, err := os.Stat(path); err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: still absent after a minute", path)
		}
	}
}
