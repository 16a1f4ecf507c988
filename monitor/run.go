package monitor

import (
	"context"
	"net"
	"sync"
	"time"
)

// beat says that the monitor is alive, if that is due.
func (m *Monitor) beat() error {
	now := m.deps.Now().UTC()
	if m.cfg.Heartbeat == 0 || !m.lastBeat.IsZero() && now.Sub(m.lastBeat) < m.cfg.Heartbeat {
		return nil
	}
	m.lastBeat = now
	return m.deps.Out.Heartbeat(m.heartbeat(now))
}

func (m *Monitor) heartbeat(now time.Time) Heartbeat {
	h := Heartbeat{Type: "heartbeat", Time: now.Truncate(time.Millisecond), Origin: m.kept.Audited.Origin, Size: m.kept.Audited.Size, Root: m.kept.Audited.Root,
		Shown: m.shown, Cosigned: m.kept.Fresh, Open: []string{}}
	for _, c := range m.conds.open() {
		h.Open = append(h.Open, c.Code)
	}
	return h
}

// Run follows until ctx ends, whose error it returns. The hook runs meanwhile, and GET /metrics is
// answered at ln, which it closes; nil for nowhere.
func (m *Monitor) Run(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel(nil)
	beside := func(f func(context.Context) error) {
		all.Go(func() {
			if err := f(ctx); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	if len(m.cfg.Hook) > 0 {
		beside(m.runHook)
	}
	if ln != nil {
		beside(func(ctx context.Context) error { return serveMetrics(ctx, ln, m.metrics) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
		if err := m.round(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return err
		}
		if err := m.beat(); err != nil {
			return err
		}
		wait := m.cfg.Interval
		if m.again {
			wait = 0
		}
		timer.Reset(wait)
	}
}

// Outcome is what a run of Once came to.
type Outcome struct {
	Heartbeat
	// Failed says that an alert of severity error was given, or that such a condition lasts.
	Failed bool
	// Undecided says that the log is stale, could not be read, or that the hook has not taken all.
	Undecided bool
}

// Once does what is to be done now and returns what it came to.
func (m *Monitor) Once(ctx context.Context) (Outcome, error) {
	var o Outcome
	m.once = true
	before := m.covered.Load()
	for {
		if err := m.round(ctx); err != nil {
			return o, err
		}
		if !m.again {
			break
		}
	}
	if len(m.cfg.Hook) > 0 {
		if err := m.drainHook(ctx); err != nil {
			if ctx.Err() != nil {
				return o, ctx.Err()
			}
			m.deps.Warn(err.Error())
			o.Undecided = true
		}
	}
	worst, err := m.store.journal.worst(before, m.covered.Load())
	if err != nil {
		return o, err
	}
	o.Failed = worst == Error
	for _, c := range m.conds.open() {
		o.Failed = o.Failed || c.Severity == Error
		o.Undecided = o.Undecided || undecided(c.Code)
	}
	o.Undecided = o.Undecided || m.kept.Audited.none()
	o.Heartbeat = m.heartbeat(m.deps.Now().UTC())
	return o, m.deps.Out.Heartbeat(o.Heartbeat)
}
