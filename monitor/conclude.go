package monitor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/transparency"
)

const timeFormat = time.RFC3339

// point is how large the log was at a time, by its cosignatures.
type point struct {
	At   time.Time `json:"at"`
	Size uint64    `json:"size"`
}

const (
	growthWindow = time.Hour
	// growthEvery is how far apart points are that are kept.
	growthEvery = time.Minute
	// growthFree is how many leaves an hour are left to what is no heartbeat.
	growthFree = 1000
)

// grown notes how large the log was at a time.
func (m *Monitor) grown(at time.Time, size uint64) {
	g := m.kept.Growth
	if n := len(g); n > 1 && at.Sub(g[n-2].At) < growthEvery {
		g = g[:n-1]
	}
	g = append(g, point{at, size})
	for len(g) > 1 && at.Sub(g[0].At) > growthWindow {
		g = g[1:]
	}
	m.kept.Growth = g
}

// conclude settles all conditions and returns the alerts of this round that are not in the spool.
func (m *Monitor) conclude(ctx context.Context) []Alert {
	alerts := m.extra
	origin := m.kept.Audited.Origin
	settle := func(scope string, present []condition) {
		alerts = append(alerts, m.conds.settle(m.mesh, origin, m.now, scope, present, m.away())...)
	}
	reached := false
	for _, c := range m.copies {
		var problem []condition
		if c.problem != nil {
			problem = append(problem, *c.problem)
		} else {
			m.judgeCosigned(c)
			reached = true
		}
		if c.problem != nil || len(c.found) > 0 {
			m.metrics.failures.WithLabelValues(c.location).Inc()
		}
		for _, list := range [][]condition{problem, c.found} {
			for i := range list {
				if list[i].Code == CodeUnavailable {
					list[i].grace = m.patience()
				}
			}
		}
		settle("reach "+c.location, problem)
		if c.problem == nil && !c.unsure {
			settle("copy "+c.location, c.found)
		} else if c.problem == nil {
			// What was found before may hold still; what is new is told.
			alerts = append(alerts, m.conds.add(m.mesh, origin, m.now, "copy "+c.location, c.found)...)
		}
	}
	if m.kept.Audited.none() || !reached {
		return alerts
	}
	settle("log", append(m.silent(), m.growth()...))
	settle("receipts", m.omitted(ctx))
	return alerts
}

// patience is how long a copy may be unavailable before that is told.
func (m *Monitor) patience() time.Duration {
	if m.once {
		return 0
	}
	return unavailableFor
}

// away is how long a condition must not hold before it has ended.
func (m *Monitor) away() time.Duration {
	if m.once {
		return 0
	}
	return m.limits.away
}

// unavailableFor is longer than a node takes to start again.
const unavailableFor = 30 * time.Second

// silent finds seats and outside witnesses whose cosignatures are missing. They are held against
// the quorum's newest one and not against the clock: where nobody cosigns the log is stale.
func (m *Monitor) silent() []condition {
	s := m.state()
	if s == nil {
		return nil
	}
	var out []condition
	names := map[string]bool{}
	hear := func(name string, at time.Time) {
		names[name] = true
		if old, ok := m.kept.Seen[name]; at.After(old) {
			m.kept.Seen[name] = at
		} else if !ok {
			m.kept.Seen[name] = m.kept.Fresh // watched from now on
		}
	}
	quiet := func(name, code, subject, what string) {
		if seen := m.kept.Seen[name]; m.kept.Fresh.Sub(seen) > m.cfg.Silent {
			out = append(out, condition{Code: code, Subject: subject, Severity: Warning, At: seen.UTC().Format(timeFormat),
				Message: fmt.Sprintf("%s has not cosigned since %s; a quorum did so last at %s", what, seen.UTC().Format(timeFormat), m.kept.Fresh.UTC().Format(timeFormat))})
		}
	}
	for _, by := range seats(s) {
		alone := m.policy(s, []transparency.Cosigner{by})
		alone.Quorum, alone.Outside = transparency.Quorum{Published: 1, Strong: 1}, nil
		var at time.Time
		for _, c := range m.copies {
			if c.problem == nil && c.head.Origin == s.Origin() {
				if v, err := transparency.Verify([]byte(c.head.Note), alone); err == nil && v.Fresh.After(at) {
					at = v.Fresh
				}
			}
		}
		hear(by.Name, at)
		node := strings.TrimPrefix(by.Name, s.Origin()+"/")
		node = node[:strings.LastIndexByte(node, '/')]
		quiet(by.Name, CodeCosignerSilent, node, "the seat "+node)
	}
	for _, w := range transparency.OutsideOf(s.Witnesses()) {
		var at time.Time
		for _, c := range m.copies {
			if c.problem != nil || c.head.Origin != s.Origin() {
				continue
			}
			v, err := transparency.Verify([]byte(c.head.Note), m.policy(s, nil))
			if err != nil {
				continue
			}
			for _, o := range v.Outside {
				if o.Name == w.Name() && o.At.After(at) {
					at = o.At
				}
			}
		}
		hear(w.Name(), at)
		quiet(w.Name(), CodeWitnessSilent, w.Name(), "the outside witness "+w.Name())
	}
	for name := range m.kept.Seen {
		if !names[name] {
			delete(m.kept.Seen, name)
		}
	}
	return out
}

// growth finds that the log has grown by more than the members' rule of what is logged lets it: each
// edge is logged when it changes, and else once in half the lifetime of a result.
func (m *Monitor) growth() []condition {
	g := m.kept.Growth
	if len(g) < 2 {
		return nil
	}
	limit := m.cfg.MaxGrowth
	if limit == 0 {
		n := uint64(0)
		if s := m.state(); s != nil {
			n = uint64(len(s.Nodes()))
		}
		limit = 4*n*n + growthFree
	}
	first, last := g[0], g[len(g)-1]
	if last.Size-first.Size <= limit {
		return nil
	}
	return []condition{{Code: CodeGrowth, Severity: Warning, Message: fmt.Sprintf("%d entries within %s, expected are %d an hour at most", last.Size-first.Size, last.At.Sub(first.At).Round(time.Second), limit)}}
}

// omitted finds receipts whose leaf is not in the log.
func (m *Monitor) omitted(ctx context.Context) []condition {
	ctx, cancel := context.WithTimeout(ctx, m.limits.round)
	defer cancel()
	var out []condition
	for _, r := range m.receipts {
		w := m.kept.Receipts[r.key()]
		missing, why := !w.Found, ""
		if missing {
			missing, why = m.missing(ctx, r, &w)
		}
		m.kept.Receipts[r.key()] = w
		if missing {
			out = append(out, condition{Code: CodeOmission, Subject: r.Name, Severity: Error, At: r.key(), Message: why})
		}
	}
	return out
}

// missing looks for the leaf of a receipt. It is missing once the log was cosigned later than it
// would have to be in it.
func (m *Monitor) missing(ctx context.Context, r Receipt, w *waiting) (bool, string) {
	own := m.kept.Audited
	late := m.kept.Fresh.Sub(w.Since) > m.cfg.ReceiptWithin
	if r.Head.none() {
		if !m.scan(ctx, r, w) {
			return false, ""
		}
		return !w.Found && late, fmt.Sprintf("leaf %s is none of the %d entries that a quorum cosigned at %s", r.Hash, own.Size, m.kept.Fresh.UTC().Format(timeFormat))
	}
	if meshOf(r.Head.Origin) != meshOf(own.Origin) {
		return true, fmt.Sprintf("the receipt is of %s, the log of %s", r.Head.Origin, own.Origin)
	}
	if r.Head.Size > own.Size {
		return late, fmt.Sprintf("leaf %s is entry %d of a log of %d entries; a quorum cosigned %d at %s", r.Hash, r.Index, r.Head.Size, own.Size, m.kept.Fresh.UTC().Format(timeFormat))
	}
	at := &earlier{root: own.Root}
	if r.Head.Size < own.Size {
		var err error
		if at, err = m.earlier(ctx, r.Head.Size); err != nil {
			return false, ""
		}
	}
	w.Found = at.root == r.Head.Root
	return !w.Found, fmt.Sprintf("leaf %s is entry %d of a log of %d entries with root %s; this log had root %s there", r.Hash, r.Index, r.Head.Size, r.Head.Root, at.root)
}

// scan compares the entries that were audited before a receipt was given with its leaf, once, and
// reports whether it could.
func (m *Monitor) scan(ctx context.Context, r Receipt, w *waiting) bool {
	if w.Scanned {
		return true
	}
	head := m.kept.Audited.checkpoint()
	for _, c := range m.copies {
		if c.witness || c.reader == nil {
			continue
		}
		found := false
		walked, err := c.reader.Walk(ctx, head, transparency.WalkOptions{Each: func(e transparency.Entry) error {
			found = found || e.Hash.String() == r.Hash
			return nil
		}})
		if err == nil && walked.Held {
			w.Found, w.Scanned = found, true
			return true
		}
	}
	return false
}

// key is what a receipt is known by: one leaf may have been proven at two places.
func (r *Receipt) key() string {
	if r.Head.none() {
		return r.Hash
	}
	return fmt.Sprintf("%s %d %d %s", r.Hash, r.Index, r.Head.Size, r.Head.Root)
}

// count brings the metrics up to date.
func (m *Monitor) count() {
	m.metrics.checks.Inc()
	m.metrics.lastCheck.Set(float64(m.now.Unix()))
	m.metrics.size.Set(float64(m.kept.Audited.Size))
	m.metrics.lag.Set(float64(m.shown - m.kept.Audited.Size))
	if !m.kept.Fresh.IsZero() {
		m.metrics.fresh.Set(float64(m.kept.Fresh.Unix()))
	}
	m.metrics.open.Reset()
	for _, c := range m.conds.open() {
		m.metrics.open.WithLabelValues(c.Code, string(c.Severity)).Inc()
	}
}
