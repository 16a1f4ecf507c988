package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	// maxOutput bounds what is kept of one command's output: the largest is the follow-up
	// of a job, some hundred bytes for each node and round.
	maxOutput = 8 << 20
	// maxLine bounds one line of a stream.
	maxLine = 1 << 20
	// commandDeadline bounds one command that only computes or asks; those that wait for
	// the mesh bring their own deadline.
	commandDeadline = 60 * time.Second
	// tailBytes is how much of a log an error quotes.
	tailBytes = 1500
)

// commandError is a command that ended with another status than 0. Where the command
// explained itself in JSON (the error object of every --json command), so does this.
type commandError struct {
	argv    []string
	fate    string
	exit    int // -1 when it was killed
	code    string
	message string
	remedy  string
}

func (e *commandError) Error() string {
	s := fmt.Sprintf("%s: %s", quoteCommand(e.argv), e.fate)
	if e.message != "" {
		s += ": " + e.message
	}
	if e.remedy != "" {
		s += " (try: " + e.remedy + ")"
	}
	return s
}

// runner runs the short commands of the story: meshnode subcommands that end by
// themselves. Each is recorded in the demo's own log.
type runner struct {
	sup *supervisor
	log io.Writer // serialised by logWriter
}

// run runs argv to its end and returns its standard output. The process is killed when
// ctx ends or the deadline has passed.
func (r *runner) run(ctx context.Context, argv ...string) ([]byte, error) {
	return r.runFor(ctx, commandDeadline, 0, argv...)
}

// background runs argv at the lowest priority.
func (r *runner) background(ctx context.Context, argv ...string) ([]byte, error) {
	const lowest = 19
	return r.runFor(ctx, baselineDeadline, lowest, argv...)
}

func (r *runner) runFor(ctx context.Context, within time.Duration, nice int, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("%s: no end after %s", quoteCommand(argv), within))
	defer cancel()
	stdout, stderr := &boundedBuffer{limit: maxOutput}, &boundedBuffer{limit: maxOutput}
	started := time.Now()
	p, err := r.sup.start(spec{name: "command", argv: argv, stdout: stdout, stderr: stderr, nice: nice})
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		<-p.done
		fmt.Fprintf(r.log, "$ %s\n# killed after %s: %v\n", quoteCommand(argv), since(started), context.Cause(ctx))
		return nil, context.Cause(ctx)
	}
	fmt.Fprintf(r.log, "$ %s\n# %s after %s\n%s", quoteCommand(argv), p.fate(), since(started), stderr.Bytes())
	if p.err == nil {
		return stdout.Bytes(), nil
	}
	return stdout.Bytes(), explain(p, argv, stdout.Bytes(), stderr.Bytes())
}

// explain makes the error of a command that failed.
func explain(p *process, argv []string, stdout, stderr []byte) error {
	e := &commandError{argv: argv, fate: p.fate(), exit: p.cmd.ProcessState.ExitCode()}
	var object struct {
		Error struct{ Code, Message, Remedy string } `json:"error"`
	}
	if json.Unmarshal(lastLine(stdout), &object) == nil && object.Error.Message != "" {
		e.code, e.message, e.remedy = object.Error.Code, object.Error.Message, object.Error.Remedy
		return e
	}
	e.message = strings.TrimSpace(string(tail(stderr, tailBytes)))
	return e
}

// runJSON runs argv and decodes its output into v.
func (r *runner) runJSON(ctx context.Context, v any, argv ...string) error {
	out, err := r.run(ctx, argv...)
	if err != nil {
		return err
	}
	return decodeOutput(argv, out, v)
}

func decodeOutput(argv []string, out []byte, v any) error {
	if err := json.Unmarshal(bytes.TrimSpace(out), v); err != nil {
		return fmt.Errorf("%s: got output %q, want one JSON object: %w", quoteCommand(argv), tail(out, 200), err)
	}
	return nil
}

// exitCode returns the status a command ended with, -1 for anything else.
func exitCode(err error) int {
	var e *commandError
	if errors.As(err, &e) {
		return e.exit
	}
	return -1
}

// boundedBuffer keeps the first limit bytes and counts the rest as written.
type boundedBuffer struct {
	mu    sync.Mutex
	buf   bytes.Buffer // guarded by mu
	limit int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p[:min(len(p), b.limit-b.buf.Len())])
	return len(p), nil
}

// Bytes returns a copy of what was kept.
func (b *boundedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.buf.Bytes())
}

// lineWriter calls each for every complete line written to it, without the newline. A
// line over maxLine is dropped.
type lineWriter struct {
	rest []byte
	skip bool
	each func(line []byte)
}

func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			break
		}
		if !w.skip {
			w.each(append(w.rest, p[:i]...))
		}
		w.rest, w.skip, p = nil, false, p[i+1:]
	}
	if len(w.rest)+len(p) > maxLine {
		w.rest, w.skip, p = nil, true, nil
	}
	w.rest = append(w.rest, p...)
	return n, nil
}

// lockedWriter serialises writers from several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// logTail returns the end of a log file for an error message.
func logTail(path string) string {
	if path == "" {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Sprintf("(%v)", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > tailBytes {
		_, _ = f.Seek(-tailBytes, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, tailBytes))
	return strings.TrimSpace(string(b))
}

func tail(b []byte, n int) []byte {
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return b
}

func lastLine(b []byte) []byte {
	b = bytes.TrimSpace(b)
	return b[bytes.LastIndexByte(b, '\n')+1:]
}

func since(t time.Time) string { return time.Since(t).Round(time.Millisecond).String() }

// quoteCommand writes argv as a line to paste into a POSIX shell.
func quoteCommand(argv []string) string {
	out := make([]string, len(argv))
	for i, a := range argv {
		out[i] = quote(a)
	}
	return strings.Join(out, " ")
}

// quote quotes one word for a POSIX shell where it needs it.
func quote(s string) string {
	plain := s != ""
	for _, c := range s {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.ContainsRune("-_./:=,+@%", c):
		default:
			plain = false
		}
	}
	if plain {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
