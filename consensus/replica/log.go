package replica

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// quietLogger passes raft's log on to slog. Raft repeats its complaints several times a
// second while a peer is away; here its errors come as warnings, each text once per
// logPause, and everything else is for debugging.
type quietLogger struct {
	to   *slog.Logger
	args []any
	last *lastSaid
}

// lastSaid remembers when a text was passed on. Texts are constants of raft's code.
type lastSaid struct {
	sync.Mutex
	at map[string]time.Time
}

func newQuietLogger(to *slog.Logger) *quietLogger {
	return &quietLogger{to: to, last: &lastSaid{at: map[string]time.Time{}}}
}

// due reports whether text may be passed on again.
func (s *lastSaid) due(text string, now time.Time) bool {
	s.Lock()
	defer s.Unlock()
	if at, ok := s.at[text]; ok && now.Sub(at) < logPause {
		return false
	}
	s.at[text] = now
	return true
}

// Log implements hclog.Logger.
func (l *quietLogger) Log(level hclog.Level, msg string, args ...any) {
	to := slog.LevelDebug
	if level >= hclog.Error && l.last.due(msg, time.Now()) {
		to = slog.LevelWarn
	}
	if !l.to.Enabled(context.Background(), to) {
		return
	}
	all := append(append([]any(nil), l.args...), args...)
	for i, a := range all {
		if f, ok := a.(hclog.Format); ok && len(f) > 0 {
			if format, ok := f[0].(string); ok {
				all[i] = fmt.Sprintf(format, f[1:]...)
			}
		}
	}
	l.to.Log(context.Background(), to, "raft: "+msg, all...)
}

// The rest of hclog.Logger.

func (l *quietLogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *quietLogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *quietLogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *quietLogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *quietLogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }
func (l *quietLogger) IsTrace() bool                 { return false }
func (l *quietLogger) IsDebug() bool                 { return l.to.Enabled(context.Background(), slog.LevelDebug) }
func (l *quietLogger) IsInfo() bool                  { return l.IsDebug() }
func (l *quietLogger) IsWarn() bool                  { return l.IsDebug() }
func (l *quietLogger) IsError() bool                 { return true }
func (l *quietLogger) ImpliedArgs() []any            { return l.args }
func (l *quietLogger) Name() string                  { return "raft" }
func (l *quietLogger) Named(string) hclog.Logger     { return l }
func (l *quietLogger) ResetNamed(string) hclog.Logger {
	return l
}
func (l *quietLogger) SetLevel(hclog.Level)  {}
func (l *quietLogger) GetLevel() hclog.Level { return hclog.Debug }
func (l *quietLogger) With(args ...any) hclog.Logger {
	return &quietLogger{to: l.to, args: append(append([]any(nil), l.args...), args...), last: l.last}
}
func (l *quietLogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return io.Discard }
func (l *quietLogger) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return log.New(io.Discard, "", 0)
}
