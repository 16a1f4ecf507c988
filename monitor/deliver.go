package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Names of the outputs in the file that says how far each has taken the journal.
const (
	outputLines = "output"
	outputHook  = "hook"
)

// startOutputs gives an output that is new the place from which it is given alerts: the end of what
// was told to others before.
func (m *Monitor) startOutputs() error {
	var err error
	if m.given, err = m.store.readDelivered(); err != nil {
		return err
	}
	m.covered.Store(m.store.journal.size)
	outputs := []string{outputLines}
	if len(m.cfg.Hook) > 0 {
		outputs = append(outputs, outputHook)
	}
	for _, o := range outputs {
		if at, ok := m.given[o]; !ok || at > m.store.journal.size {
			m.given[o] = m.store.journal.size
		}
	}
	return m.store.writeDelivered(m.given)
}

// took notes that an output has taken the journal up to a place.
func (m *Monitor) took(output string, at int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.given[output] = at
	if hook, ok := m.given[outputHook]; ok {
		m.metrics.waiting.Set(float64(m.covered.Load() - hook))
	}
	return m.store.writeDelivered(m.given)
}

func (m *Monitor) taken(output string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.given[output]
}

// giveOut writes what is new to the output.
func (m *Monitor) giveOut() error {
	at, limit := m.taken(outputLines), m.covered.Load()
	if at == limit {
		return nil
	}
	for at < limit {
		line, next, err := m.store.journal.line(at, limit)
		if err != nil {
			return err
		}
		if err := m.deps.Out.Alert(line); err != nil {
			return fmt.Errorf("output: %w", err)
		}
		at = next
	}
	if err := m.deps.Out.Sync(); err != nil {
		return fmt.Errorf("output: %w", err)
	}
	return m.took(outputLines, at)
}

// runHook gives the hook one alert after the other until ctx ends. An alert that it does not take
// is given again, and those behind it wait: they stay in order.
func (m *Monitor) runHook(ctx context.Context) error {
	pause := hookFirst
	for {
		err := m.giveHook(ctx)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errNotTaken):
			m.deps.Warn(fmt.Sprintf("%v; it is given the alert again in %s", err, pause))
		case err != nil:
			return err
		default:
			pause = hookFirst
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-m.wake:
			}
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
		pause = min(2*pause, hookSlowest)
	}
}

// errNotTaken is wrapped where the hook has not taken an alert.
var errNotTaken = errors.New("an alert was not taken")

// giveHook gives the hook all that waits.
func (m *Monitor) giveHook(ctx context.Context) error {
	for {
		line, next, err := m.store.journal.line(m.taken(outputHook), m.covered.Load())
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		if err := runHook(ctx, m.cfg.Hook, line); err != nil {
			m.metrics.hookErrors.Inc()
			return fmt.Errorf("%w: %w", errNotTaken, err)
		}
		if err := m.took(outputHook, next); err != nil {
			return err
		}
	}
}

// drainHook is runHook until nothing waits, with one repetition of what fails.
func (m *Monitor) drainHook(ctx context.Context) error {
	err := m.giveHook(ctx)
	if errors.Is(err, errNotTaken) && ctx.Err() == nil {
		err = m.giveHook(ctx)
	}
	return err
}

// worst returns the highest severity among the alerts between two places, empty if there is none.
func (j *journal) worst(from, to int64) (Severity, error) {
	worst := Severity("")
	for at := from; at < to; {
		line, next, err := j.line(at, to)
		if err != nil {
			return worst, err
		}
		var a Alert
		if err := json.Unmarshal(line, &a); err != nil {
			return worst, err
		}
		if a.Severity == Error || worst == "" || worst == Notice {
			worst = a.Severity
		}
		at = next
	}
	return worst, nil
}

// counter counts the alerts that go through it.
type counter struct {
	m    *metrics
	rest []byte
}

func (c *counter) Write(p []byte) (int, error) {
	c.rest = append(c.rest, p...)
	for {
		line, rest, ok := bytes.Cut(c.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		var a Alert
		if json.Unmarshal(line, &a) == nil {
			c.m.alerts.WithLabelValues(a.Code, string(a.Severity)).Inc()
		}
		c.rest = rest
	}
}
