package node

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Strangers can make a node log: every refused exchange is a line. A cap keeps them from
// filling its disk, and says how much it left out.

const (
	// capLines is how many lines strangers cause in one capPeriod.
	capLines  = 60
	capPeriod = time.Minute
)

// capped returns a logger like log that writes at most capLines lines in a capPeriod. All
// loggers made from the returned one share the cap.
func capped(log *slog.Logger) *slog.Logger {
	return slog.New(&cappedHandler{log.Handler(), &capState{}})
}

type cappedHandler struct {
	slog.Handler
	state *capState
}

type capState struct {
	mu    sync.Mutex
	since time.Time // guarded by mu: when the period began
	lines int       // guarded by mu: in this period
}

// Handle implements slog.Handler.
func (h *cappedHandler) Handle(ctx context.Context, r slog.Record) error {
	h.state.mu.Lock()
	left := 0
	if d := r.Time.Sub(h.state.since); d < 0 || d >= capPeriod {
		left = h.state.lines - capLines
		h.state.since, h.state.lines = r.Time, 0
	}
	h.state.lines++
	drop := h.state.lines > capLines
	h.state.mu.Unlock()
	if left > 0 {
		r.AddAttrs(slog.Int("left_out_before", left))
	}
	if drop {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *cappedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &cappedHandler{h.Handler.WithAttrs(attrs), h.state}
}

// WithGroup implements slog.Handler.
func (h *cappedHandler) WithGroup(name string) slog.Handler {
	return &cappedHandler{h.Handler.WithGroup(name), h.state}
}
