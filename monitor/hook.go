package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const (
	// hookWithin bounds one run of the hook; then its whole process group is killed.
	hookWithin = 30 * time.Second
	// A hook that fails is tried again after hookFirst, then later and later.
	hookFirst   = time.Second
	hookSlowest = 5 * time.Minute
	// hookSays is how much of what a failing hook prints is told.
	hookSays = 2 << 10
	// hookGrace is how long a killed hook may hold its pipes.
	hookGrace = 2 * time.Second
)

// runHook gives an alert to a command: its line on stdin. No shell takes part. A command that
// exits 0 has taken it; every other outcome is an error.
func runHook(ctx context.Context, argv []string, line []byte) error {
	ctx, cancel := context.WithTimeout(ctx, hookWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(line)
	said := &tail{max: hookSays}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = hookGrace
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		err = fmt.Errorf("did not end within %s", hookWithin)
	}
	if text := strings.TrimSpace(said.String()); text != "" {
		err = fmt.Errorf("%w; it says %q", err, text)
	}
	return fmt.Errorf("hook %s: %w", argv[0], err)
}

// tail keeps the end of what is written to it.
type tail struct {
	buf []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.max; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.buf) }
