// Command logjudge lets another verifier's tests ask for our verdict on many logs in one process.
//
//	logjudge write DIR [LEAVES]   writes into DIR, which must be new: log/, the complete log of
//	                              package audittest, grown to LEAVES, and genesis.json
//	logjudge < LINES              judges one log a line
//
// A line is a JSON object: {"dir", "genesis", "at", "max_age_ms"}, a directory, a genesis file or
// none, the auditor's time in Unix ms, and how old cosignatures may be. Each is answered by a
// line, in order: {"report"}, as meshnode log audit --json prints it, or {"error"} where there is
// no log.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "logjudge:", err)
		os.Exit(2)
	}
}

func run(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	if len(args) == 0 {
		return judgeLines(ctx, in, out)
	}
	if args[0] != "write" || len(args) < 2 || len(args) > 3 {
		return fmt.Errorf("want no argument, or write DIR [LEAVES]")
	}
	leaves := 0
	if len(args) == 3 {
		var err error
		if leaves, err = strconv.Atoi(args[2]); err != nil {
			return err
		}
	}
	return write(args[1], leaves)
}

func write(dir string, leaves int) error {
	m := audittest.Complete()
	m.Grow(leaves)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	m.Publish(filepath.Join(dir, "log"), append(m.Cosigners(), audittest.Witness)...)
	return os.WriteFile(filepath.Join(dir, "genesis.json"), m.Genesis.Raw(), 0o644)
}

type request struct {
	Dir     string `json:"dir"`
	Genesis string `json:"genesis"`
	At      int64  `json:"at"`
	MaxAge  int64  `json:"max_age_ms"`
}

type answer struct {
	Report *audit.Report `json:"report,omitempty"`
	Error  string        `json:"error,omitempty"`
}

func judgeLines(ctx context.Context, in io.Reader, out io.Writer) error {
	lines, flush := bufio.NewScanner(in), bufio.NewWriter(out)
	enc := json.NewEncoder(flush)
	for lines.Scan() {
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("line %.100q: %w", lines.Text(), err)
		}
		var a answer
		if report, err := judge(ctx, r); err != nil {
			a.Error = err.Error()
		} else {
			a.Report = &report
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
		if err := flush.Flush(); err != nil {
			return err
		}
	}
	return lines.Err()
}

func judge(ctx context.Context, r request) (audit.Report, error) {
	opts := audit.Options{At: time.UnixMilli(r.At).UTC(), MaxAge: time.Duration(r.MaxAge) * time.Millisecond}
	if r.Genesis != "" {
		raw, err := os.ReadFile(r.Genesis)
		if err != nil {
			return audit.Report{}, err
		}
		if opts.Genesis, err = consensus.ParseGenesis(raw); err != nil {
			return audit.Report{}, err
		}
	}
	reader, err := transparency.OpenReader(r.Dir)
	if err != nil {
		return audit.Report{}, err
	}
	defer reader.Close()
	return audit.Log(ctx, reader, opts)
}
