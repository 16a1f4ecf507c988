package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// limits bound one round, whatever servers do.
type limits struct {
	look  time.Duration // the checkpoints of all copies
	audit time.Duration // the entries of one copy; what is left is the next round's
	round time.Duration // the entries of all copies together, and as much for comparing them
	away  time.Duration // how long a condition must not hold before it has ended
}

func defaultLimits() limits {
	return limits{20 * time.Second, 30 * time.Second, time.Minute, 30 * time.Second}
}

// Output is where alerts go, in order. An alert counts as given once Sync has returned.
type Output interface {
	Alert(line []byte) error // one JSON object and a newline
	Heartbeat(Heartbeat) error
	Sync() error
}

// Deps are what a Monitor is given from outside.
type Deps struct {
	// Genesis is the mesh that is meant; nil takes the log's own.
	Genesis *consensus.Genesis
	Out     Output
	// Warn is told what is no alert: a hook that fails, a kept audit that has to be made again.
	Warn func(string)
	Now  func() time.Time
	// Open opens a copy of a log.
	Open func(ctx context.Context, location string) (*transparency.Reader, error)
	// Store are options of the state directory, for tests.
	Store []durable.Option
}

// Heartbeat says that a monitor is alive, and where it is.
type Heartbeat struct {
	Type   string    `json:"type"` // "heartbeat"
	Time   time.Time `json:"time"`
	Origin string    `json:"origin"`
	// Size and Root are what was audited and told; Shown is the largest size that a copy shows.
	Size     uint64            `json:"size"`
	Root     transparency.Hash `json:"root"`
	Shown    uint64            `json:"shown"`
	Cosigned time.Time         `json:"cosigned,omitzero"`
	// Open are the codes of conditions that were told and last, the worst first.
	Open []string `json:"open"`
}

// Monitor follows the copies of one log. It is made by Open and for one goroutine.
type Monitor struct {
	cfg      Config
	deps     Deps
	limits   limits
	level    transparency.Level
	receipts []Receipt
	copies   []*logCopy

	store   *store
	kept    kept
	conds   conditions
	auditor *audit.Auditor
	// told is the size below which leaves were told before: where an audit had to be made again,
	// they are not told twice.
	told  uint64
	judge *leafJudge
	spool *spool
	mesh  identity.MeshID
	// pending says that an audit ended before its checkpoint: entries were read that are not told.
	// again says that it only ran out of time.
	pending, again bool
	once           bool             // there is no next round: nothing is waited for
	begun          bool             // a copy of the right mesh has answered
	frozen         *consensus.State // that of what was audited, while the auditor is ahead of it
	shown          uint64

	// Of one round.
	now      time.Time
	extra    []Alert                       // of leaves, besides those in the spool
	replayed map[transparency.Finding]bool // told with their leaf
	spoolErr error

	metrics  *metrics
	covered  atomic.Int64 // bytes of the journal that the state covers
	wake     chan struct{}
	given    delivered // guarded by mu
	mu       sync.Mutex
	lastBeat time.Time
}

// logCopy is one copy of the log, or the place where an outside witness shows its checkpoint.
type logCopy struct {
	location string
	witness  bool
	reader   *transparency.Reader

	// Of one round.
	head    head
	problem *condition // why there is no head
	found   []condition
	unsure  bool // what was found before cannot be judged now
	slow    int  // how often its entries took too long
}

// New opens the state directory and prepares to follow. cfg is valid. Errors wrap ErrOtherMesh,
// ErrStart, ErrBroken or durable.ErrInUse where the operator can do something about them.
func New(cfg Config, receipts []Receipt, deps Deps) (*Monitor, error) {
	level, err := cfg.level()
	if err != nil {
		return nil, err
	}
	rules, err := compileRules(cfg.Rules)
	if err != nil {
		return nil, err
	}
	st, k, err := openStore(cfg.State, deps.Store...)
	if err != nil {
		return nil, err
	}
	m := &Monitor{cfg: cfg, deps: deps, limits: defaultLimits(), level: level, receipts: receipts, store: st, kept: k, metrics: newMetrics(), wake: make(chan struct{}, 1)}
	for _, r := range rules {
		m.metrics.alerts.WithLabelValues(CodeMatch, string(r.Severity)) // without it Prometheus does not see the first as an increase
	}
	m.judge = &leafJudge{rules: rules, start: cfg.Start, end: cfg.end(), skew: cfg.Skew}
	for _, l := range cfg.Logs {
		m.copies = append(m.copies, &logCopy{location: l})
	}
	for _, l := range cfg.Witnesses {
		m.copies = append(m.copies, &logCopy{location: l, witness: true})
	}
	if err := m.resume(); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// resume takes up where the state says that the last run was.
func (m *Monitor) resume() error {
	k := &m.kept
	first := k.MeshID.IsZero() && k.Audited.none() && len(k.Copies) == 0
	if !first && (k.Start != m.cfg.Start || k.End != m.cfg.End) {
		return fmt.Errorf("%s: %w: start %d and end %d, not %d and %d", m.cfg.State, ErrStart, k.Start, k.End, m.cfg.Start, m.cfg.End)
	}
	k.Start, k.End = m.cfg.Start, m.cfg.End
	if g := m.deps.Genesis; g != nil {
		if !k.MeshID.IsZero() && k.MeshID != g.MeshID() {
			return fmt.Errorf("%s: %w: %s, the given genesis is of %s", m.cfg.State, ErrOtherMesh, k.MeshID, g.MeshID())
		}
		k.MeshID = g.MeshID()
	}
	m.mesh, m.judge.mesh = k.MeshID, k.MeshID
	for _, r := range m.receipts {
		if _, ok := k.Receipts[r.key()]; !ok {
			k.Receipts[r.key()] = waiting{Since: m.deps.Now().UTC(), Scanned: k.Audited.none()}
		}
	}
	m.conds = fromList(k.Conditions)
	var err error
	if m.spool, err = openSpool(m.store.dir.Path(pendingName)); err != nil {
		return err
	}
	if err := m.loadAuditor(); err != nil {
		return err
	}
	return m.startOutputs()
}

func (m *Monitor) auditOptions() audit.Options {
	return audit.Options{Genesis: m.deps.Genesis, After: m.leaf}
}

// loadAuditor makes the auditor what it was when the state was kept. One that this release cannot
// read is made again from the log, which must lead to the same place.
func (m *Monitor) loadAuditor() error {
	raw, err := m.store.auditor(&m.kept)
	if err != nil {
		return err
	}
	m.told, m.judge.before = m.kept.Audited.Size, m.kept.Fresh
	if raw != nil {
		m.auditor, err = audit.Load(bytes.NewReader(raw), m.auditOptions())
		if err == nil {
			return nil
		}
		m.deps.Warn(fmt.Sprintf("the log is audited again from its beginning: %v", err))
	}
	m.auditor = audit.New(m.auditOptions())
	return nil
}

// state is that of governance at the size that was audited; nil if it is not known.
func (m *Monitor) state() *consensus.State {
	if !m.pending {
		return m.auditor.State()
	}
	// The auditor has read on, and nobody vouches for that yet.
	if m.frozen == nil {
		raw, err := m.store.auditor(&m.kept)
		if err != nil || raw == nil {
			return nil
		}
		a, err := audit.Load(bytes.NewReader(raw), audit.Options{Genesis: m.deps.Genesis})
		if err != nil {
			return nil
		}
		m.frozen = a.State()
	}
	return m.frozen
}

// Close lets go of the state directory. What was not committed will be found again.
func (m *Monitor) Close() {
	for _, c := range m.copies {
		c.close()
	}
	if m.spool != nil {
		m.spool.Close()
	}
	m.store.Close()
}

// round asks all copies once and tells what is new. An error means that the monitor cannot go on:
// its directory cannot be written, or is of another mesh; or it is the context's.
func (m *Monitor) round(ctx context.Context) error {
	m.now, m.extra, m.replayed = m.deps.Now().UTC().Truncate(time.Millisecond), nil, map[transparency.Finding]bool{}
	m.look(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := m.sameMesh(); err != nil {
		return err
	}
	held, err := m.catchUp(ctx)
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	m.compare(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	alerts := m.conclude(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return m.finish(held, alerts)
}

// look fetches the checkpoint of every copy.
func (m *Monitor) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.limits.look)
	defer cancel()
	var all sync.WaitGroup
	for _, c := range m.copies {
		all.Go(func() { c.look(ctx, m.deps.Open) })
	}
	all.Wait()
	m.shown = m.kept.Audited.Size
	for _, c := range m.copies {
		if c.problem == nil && !c.witness {
			m.shown = max(m.shown, c.head.Size)
			m.metrics.shown.WithLabelValues(c.location).Set(float64(c.head.Size))
		}
	}
}

func (c *logCopy) look(ctx context.Context, open func(context.Context, string) (*transparency.Reader, error)) {
	c.head, c.problem, c.found, c.unsure = head{}, nil, nil, false
	problem := func(severity Severity, code, format string, args ...any) {
		c.problem = &condition{Code: code, Subject: c.location, Severity: severity, Message: fmt.Sprintf(format, args...)}
	}
	if c.reader == nil {
		r, err := open(ctx, c.location)
		if err != nil {
			problem(Warning, CodeUnavailable, "%v", err)
			return
		}
		c.reader = r
	}
	note, err := c.reader.Checkpoint(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		problem(Warning, CodeUnavailable, "no published log there yet")
		c.close() // it may appear where it is looked for next
		return
	case err != nil && (ctx.Err() != nil || errors.Is(err, transparency.ErrUnavailable)):
		problem(Warning, CodeUnavailable, "%v", err)
		return
	case err == nil:
		c.head, err = headOf(note)
	}
	switch {
	case err != nil:
		problem(Error, audit.CodeCheckpointInvalid, "%v", err)
	case c.head.Size == 0:
		c.head = head{}
		problem(Warning, CodeUnavailable, "the log is empty")
	}
}

func (c *logCopy) close() {
	if c.reader != nil {
		c.reader.Close()
		c.reader = nil
	}
}

func (c *logCopy) find(severity Severity, code, at, format string, args ...any) {
	c.found = append(c.found, condition{Code: code, Subject: c.location, Severity: severity, Message: fmt.Sprintf(format, args...), At: at})
}

// sameMesh refuses to begin where every copy is of another mesh than the state. One that turns into
// another mesh's later is a condition.
func (m *Monitor) sameMesh() error {
	if m.begun || m.kept.Audited.none() {
		m.begun = true
		return nil
	}
	answered := 0
	for _, c := range m.copies {
		switch {
		case c.problem != nil:
		case meshOf(c.head.Origin) == meshOf(m.kept.Audited.Origin):
			m.begun = true
			return nil
		default:
			answered++
		}
	}
	if answered == 0 || answered < len(m.copies) {
		return nil
	}
	return fmt.Errorf("%s: %w: it followed %s, and %s is %s", m.cfg.State, ErrOtherMesh, m.kept.Audited.Origin, m.copies[0].location, m.copies[0].head.Origin)
}

// finish tells what was found and makes the state say so, in this order.
func (m *Monitor) finish(held bool, alerts []Alert) error {
	if held {
		told, err := m.spool.take()
		if err != nil {
			return err
		}
		if err := m.store.journal.add(io.TeeReader(told, &counter{m: m.metrics})); err != nil {
			return err
		}
	}
	var lines bytes.Buffer
	for _, a := range alerts {
		a.Time = m.now
		line, err := encodeAlert(a)
		if err != nil {
			return err
		}
		lines.Write(line)
		m.metrics.alerts.WithLabelValues(a.Code, string(a.Severity)).Inc()
	}
	if err := m.store.journal.add(&lines); err != nil {
		return err
	}
	if err := m.commit(held); err != nil {
		return err
	}
	if held { // what is in the journal now
		if err := m.spool.reset(); err != nil {
			return err
		}
	}
	m.covered.Store(m.store.journal.size)
	select {
	case m.wake <- struct{}{}:
	default:
	}
	m.count()
	return m.giveOut()
}

// commit makes the state what this round has come to.
func (m *Monitor) commit(held bool) error {
	m.kept.Conditions = m.conds.list()
	var auditor []byte
	if held {
		var buf bytes.Buffer
		if err := m.auditor.Save(&buf); err != nil {
			m.deps.Warn(fmt.Sprintf("the audit cannot be kept, and will be made again after a restart: %v", err))
		} else {
			auditor = buf.Bytes()
		}
	}
	return m.store.commit(&m.kept, held, auditor)
}

// meshOf returns an origin without the incarnation.
func meshOf(origin string) string {
	for i := len(origin) - 1; i >= 0; i-- {
		if origin[i] == '/' {
			return origin[:i]
		}
	}
	return origin
}
