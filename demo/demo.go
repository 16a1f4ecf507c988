// Package demo is the director of meshnode demo: it lets a newcomer watch the whole
// product work on one machine, with a process for every part and nothing simulated but
// the TEE platform.
//
// # What it does
//
// The director starts processes of its own executable and reads the JSON they print. It
// is linked with no room of the mesh (internal/layering holds that), so everything it shows
// can be repeated with the commands it prints beside each step, and no claim rests on
// anything but a command's output or the life of a process.
//
// The story, in order: releases and keys; genesis signed by every organisation; one
// enroller for each; the founders attest each other, Bootstrap, seats; a newcomer that
// runs an executable nobody approved is denied; it is proposed, approved and the same
// process admitted; a federated job trains; the older release is revoked by vote while
// rounds go on, and the node that runs it cut off; the aggregator of a later round is
// killed with SIGKILL and the round commits without anybody training again; the published
// log is audited and the certificates re-executed by separate processes.
//
// Every claim is checked; the first that does not hold ends the story with a [StepError].
//
// # Who takes part
//
// Five or seven nodes are as many organisations with one seat each. Six nodes are five
// organisations, of which the first also founds with a trainer without a seat: six voters
// bear no more failures than five. The newcomer is the second organisation's second
// node, the older release is the fourth organisation's.
//
// # Processes
//
// Each process is a group of its own and carries a parent-death signal; stopping is
// SIGTERM, five seconds, SIGKILL. A process that ends unasked fails the demo at once;
// only while --serve holds the mesh up is that merely reported, since killing nodes and
// asking the others is what it is for. Every wait has a deadline, and its error says what was
// awaited, what was last seen and how the log of the process concerned ends.
//
// # Directory
//
//	genesis.json                 signed by every founding organisation (genesis.yaml: its text)
//	log/                         the published log: checkpoint, tile/…
//	job/                         certificate-N.json, model.safetensors, updates/…
//	nodes/ORG-NODE/              config.yaml, node.log, status.json, and what the node writes
//	keys/ enrollers/ sim/        the organisations' keys, enrollers and the simulated platform
//	data/ bin/ policy/           CSV parts, the three executables, drafts and proposals
//	demo.log                     every short command with its standard error
//
// It is a new temporary directory, removed at the end, unless --dir or --keep say
// otherwise or a step failed: then it stays, since the logs are in it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Options are the flags of meshnode demo and what its caller alone knows.
type Options struct {
	Nodes  int    // founding nodes, 5 to 7
	Rounds int    // at least 3
	Data   string // CSV file; "" draws digit images
	Dir    string // new or empty directory to use and keep; "" for a temporary one
	Keep   bool   // keep the temporary directory
	Serve  bool   // after the story, leave the mesh up until ctx ends
	JSON   bool   // Stdout gets one Report and nothing else

	Executable string    // this program
	Stdout     io.Writer // the story, or the report
	Progress   io.Writer // a terminal for progress; nil without one
}

// UsageError is a mistake in the options or in the data file: nothing was started, nothing
// is left behind.
type UsageError struct {
	Message string
	Remedy  string
}

// Error returns the message.
func (e *UsageError) Error() string { return e.Message }

// StepError is the step whose claim did not hold.
type StepError struct {
	Step string
	Dir  string // where the logs are
	Err  error
}

// Error names the step, the cause and where the logs are.
func (e *StepError) Error() string {
	return fmt.Sprintf("step %q failed: %v\nlogs are in %s", e.Step, e.Err, e.Dir)
}

// Unwrap returns the cause.
func (e *StepError) Unwrap() error { return e.Err }

func usage(remedy, format string, args ...any) error {
	return &UsageError{Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Run plays the story. It returns nil only if every claim held; a *UsageError before
// anything was started; ctx's error when it was interrupted, a *StepError otherwise.
// Whatever it returns, no process is left and, unless it is to be kept, no directory.
func Run(ctx context.Context, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	p := newPlan(o.Nodes)
	lay, err := o.directory(p)
	if err != nil {
		return err
	}
	if err := o.checkData(ctx, p); err != nil {
		return err
	}
	if lay, err = o.makeDirectory(lay); err != nil {
		return err
	}
	d, err := newDirector(ctx, o, p, lay)
	if err != nil {
		return errors.Join(err, o.discard(lay))
	}
	return d.finish(d.play())
}

// check refuses what can be refused without touching anything.
func (o Options) check() error {
	switch {
	case o.Nodes < minNodes || o.Nodes > maxNodes:
		return usage(fmt.Sprintf("use --nodes %d to %d", minNodes, maxNodes), "--nodes %d: the demo founds %d to %d nodes", o.Nodes, minNodes, maxNodes)
	case o.Rounds < minRounds:
		return usage(fmt.Sprintf("use --rounds %d or more", minRounds),
			"--rounds %d: the story needs at least %d (train, revoke, lose an aggregator)", o.Rounds, minRounds)
	case o.Rounds > maxRounds:
		return usage(fmt.Sprintf("use --rounds %d or fewer", maxRounds), "--rounds %d: want at most %d", o.Rounds, maxRounds)
	}
	if o.Data == "" {
		return nil
	}
	st, err := os.Stat(o.Data)
	if err != nil {
		return usage("name a CSV file of numeric features with the label last, or leave --data away", "--data: %v", err)
	}
	if !st.Mode().IsRegular() {
		return usage("name a CSV file", "--data %s: is not a file", o.Data)
	}
	return nil
}

// directory says where the demo will live and refuses a place that will not do. Nothing is
// made yet; without --dir the layout is that of a temporary directory still to be named.
func (o Options) directory(p plan) (layout, error) {
	if o.Dir == "" {
		parent, err := filepath.Abs(os.TempDir())
		if err != nil {
			return layout{}, err
		}
		lay := layout{filepath.Join(parent, tempPrefix+"4294967295")} // as long as MkdirTemp's names get
		return lay, checkSockets(lay, p, "set TMPDIR=/tmp or give a shorter --dir")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return layout{}, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return layout{}, usage("name a directory", "--dir: %v", err)
	}
	if len(entries) > 0 {
		return layout{}, usage("name a new or empty directory", "--dir %s: is not empty (it holds %s)", dir, entries[0].Name())
	}
	return layout{dir}, checkSockets(layout{dir}, p, "give a shorter --dir")
}

const tempPrefix = "meshnode-demo-"

// makeDirectory makes the directory, readable by its owner alone since it holds keys.
func (o Options) makeDirectory(lay layout) (layout, error) {
	if o.Dir != "" {
		if err := os.MkdirAll(lay.dir, 0o700); err != nil {
			return layout{}, usage("name a directory that can be made", "--dir: %v", err)
		}
		return lay, nil
	}
	dir, err := os.MkdirTemp(filepath.Dir(lay.dir), tempPrefix)
	if err != nil {
		return layout{}, usage("make it writable, set TMPDIR or give --dir", "make a temporary directory: %v", err)
	}
	return layout{dir}, nil
}

// discard removes the temporary directory; one that was named stays.
func (o Options) discard(lay layout) error {
	if o.Dir != "" {
		return nil
	}
	return os.RemoveAll(lay.dir)
}

// checkSockets refuses a directory in which a node could not make its control socket.
func checkSockets(lay layout, p plan, remedy string) error {
	if s := lay.longestSocket(p); len(s) > maxSocketPath {
		return usage(remedy, "the path of a unix socket would be %d bytes long, the system takes %d: %s", len(s), maxSocketPath, s)
	}
	return nil
}

// checkData splits the data file as the story will, in a place of its own, so that a file
// that will not do is refused before anything is started.
func (o Options) checkData(ctx context.Context, p plan) error {
	if o.Data == "" {
		return nil
	}
	dir, err := os.MkdirTemp("", "meshnode-split-")
	if err != nil {
		return usage("make it writable or set TMPDIR", "make a temporary directory: %v", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	sup := newSupervisor(nil)
	defer sup.stop(0)
	run := &runner{sup: sup, log: io.Discard}
	_, err = run.run(ctx, splitCommand(o.Executable, o.Data, p, filepath.Join(dir, "data"))...)
	var failed *commandError
	if errors.As(err, &failed) && failed.exit == exitUsage {
		return usage(failed.remedy, "--data: %s", failed.message)
	}
	if err != nil {
		return fmt.Errorf("split the data file: %w", err)
	}
	return nil
}

// exitUsage is what meshnode's commands end with on malformed input (DESIGN §10).
const exitUsage = 2
