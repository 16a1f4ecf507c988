package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// showProgress makes *progress keep one line on stderr up to date, where that is a
// terminal, and returns what removes the line.
func showProgress(cmd *cobra.Command, verb, unit string, progress *func(done, size uint64)) (end func()) {
	stderr := terminalOf(cmd)
	if stderr == nil {
		return func() {}
	}
	const interval = 100 * time.Millisecond
	var shown time.Time
	var p pace
	*progress = func(done, size uint64) {
		if now := time.Now(); now.Sub(shown) >= interval {
			shown = now
			fmt.Fprintf(stderr, "\r\x1b[K%s %d of %d %s%s", verb, done, size, unit, p.at(now, done, size))
		}
	}
	return func() { fmt.Fprint(stderr, "\r\x1b[K") }
}

// pace tells how fast something gets on; the zero value has not begun.
type pace struct {
	began time.Time
	from  uint64
}

// at returns rate and remaining time, or nothing in the first second.
func (p *pace) at(now time.Time, done, size uint64) string {
	if p.began.IsZero() {
		p.began, p.from = now, done
	}
	took := now.Sub(p.began)
	if took < time.Second || done <= p.from || size < done {
		return ""
	}
	rate := float64(done-p.from) / took.Seconds()
	left := time.Duration(float64(size-done) / rate * float64(time.Second))
	return fmt.Sprintf(", %.0f/s, %s left", rate, left.Round(time.Second))
}

// terminalOf returns stderr where that is a terminal, else nil.
func terminalOf(cmd *cobra.Command) *os.File {
	stderr, ok := cmd.ErrOrStderr().(*os.File)
	if !ok || !isTerminal(stderr) {
		return nil
	}
	return stderr
}
