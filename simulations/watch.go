package simulations

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
)

// watch is where the nodes of a world log. Whatever one of them logs as an error fails the
// scenario: net/http, for one, turns a panic into a line of its log, and a client that asks
// again would never tell.
type watch struct {
	mu     sync.Mutex
	errors []string // guarded by mu
}

// err returns the first error that was logged.
func (w *watch) err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errors) == 0 {
		return nil
	}
	return fmt.Errorf("a node logged %d errors, first: %s", len(w.errors), w.errors[0])
}

// logger returns the log of one node, which goes on to next where that is set.
func (w *watch) logger(node string, next *slog.Logger) *slog.Logger {
	var h slog.Handler = slog.DiscardHandler
	if next != nil {
		h = next.With("at", node).Handler()
	}
	return slog.New(&watcher{Handler: h, watch: w, node: node})
}

// watcher is the handler of one node's log.
type watcher struct {
	slog.Handler
	watch *watch
	node  string
}

// Enabled implements slog.Handler.
func (h *watcher) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelError || h.Handler.Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (h *watcher) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		text := h.node + ": " + r.Message
		r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
		h.watch.mu.Lock()
		h.watch.errors = append(h.watch.errors, text)
		h.watch.mu.Unlock()
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *watcher) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &watcher{h.Handler.WithAttrs(attrs), h.watch, h.node}
}

// WithGroup implements slog.Handler.
func (h *watcher) WithGroup(name string) slog.Handler {
	return &watcher{h.Handler.WithGroup(name), h.watch, h.node}
}
