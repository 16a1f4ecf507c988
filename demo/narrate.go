package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// narrator tells the story: one timed line for each step, the commands that repeat it
// indented below, and on a terminal a line in between that says what is awaited.
type narrator struct {
	started time.Time
	onBreak func(error) // called when lines cannot be written any more

	mu      sync.Mutex
	lines   io.Writer // guarded by mu
	live    io.Writer // guarded by mu; nil without a terminal
	pending bool      // guarded by mu: an unfinished line stands on the terminal
	broken  bool      // guarded by mu
}

const clearLine = "\r\x1b[K"

// step prints that a step is done, and by which commands it is done by hand.
func (n *narrator) step(title string, hand ...string) {
	n.line("%s … ok", title)
	for _, h := range hand {
		n.detail("%s", h)
	}
}

// line prints one timed line.
func (n *narrator) line(format string, args ...any) {
	n.write(fmt.Sprintf("[%5.1fs] ", time.Since(n.started).Seconds()) + fmt.Sprintf(format, args...))
}

// detail prints indented below the last timed line.
func (n *narrator) detail(format string, args ...any) {
	for _, l := range strings.Split(fmt.Sprintf(format, args...), "\n") {
		n.write("          " + l)
	}
}

// plain prints text as it is.
func (n *narrator) plain(text string) { n.write(strings.TrimRight(text, "\n")) }

func (n *narrator) write(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending {
		_, _ = io.WriteString(n.live, clearLine)
		n.pending = false
	}
	if _, err := io.WriteString(n.lines, printable(s)+"\n"); err != nil && !n.broken {
		n.broken = true
		n.onBreak(fmt.Errorf("write the story: %w", err))
	}
}

// waiting shows on a terminal what is awaited; the next line replaces it.
func (n *narrator) waiting(what string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.live == nil {
		return
	}
	const width = 110
	s := fmt.Sprintf("[%5.1fs] %s", time.Since(n.started).Seconds(), what)
	if r := []rune(s); len(r) > width {
		s = string(r[:width])
	}
	_, _ = io.WriteString(n.live, clearLine+printable(s))
	n.pending = true
}

// clear takes the unfinished line away.
func (n *narrator) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending {
		_, _ = io.WriteString(n.live, clearLine)
		n.pending = false
	}
}

// printable replaces control characters: what processes print must not drive a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}
