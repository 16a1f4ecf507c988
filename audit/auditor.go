package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Auditor audits a log that grows. Each Extend takes in what was appended since, and requires
// that the log still is the one it was: what it says of the whole is what Log would say, as
// far as leaves are concerned that came before by the time of then. It can be saved and loaded,
// between two calls of Extend and in Options.Progress. It is not safe for concurrent use.
type Auditor struct {
	opts   Options
	once   bool // asked once: nothing is kept to go back to
	claims *claims
	again  *reappraisal // nil where no evidence was disclosed
	watch  func(Seen)   // as Options.After

	held          Head                      // the newest checkpoint that held
	good          []byte                    // as saved there; nil before
	mesh          identity.MeshID           // of leaf 0; zero before
	walker        *transparency.Walker      // reads what comes next
	replay        *replayer                 // of the leaves that were read
	tree          *transparency.Accumulator // of them
	leaves, tiles findingList               // of the replay, and of walks that held

	// Of one Extend.
	at         time.Time
	report     Report
	checkpoint []byte
	signed     bool // the log key has signed the checkpoint
	walked     transparency.Walked
	fresh      findingList            // of the replay
	checks     []transparency.Finding // of the checkpoint
}

// Head is a place in the history of a log.
type Head struct {
	Origin string            `json:"origin"`
	Size   uint64            `json:"size"`
	Root   transparency.Hash `json:"root"`
}

// Extension is what one Extend came to.
type Extension struct {
	// Report is of the whole log.
	Report
	// From is how many entries were audited before.
	From uint64
	// New are those of Report.Findings that this Extend found, of the checkpoint among them.
	New []transparency.Finding
	// Held says that the entries are those of a published checkpoint that goes on from the one
	// before; the Auditor stands there now.
	Held bool
	// Reverted says that what was read since the newest checkpoint that held, and what After was
	// shown of it, counts for nothing: the Auditor stands there again. If neither is true the
	// log could not be read to the end, and the next Extend goes on from where it was read to.
	Reverted bool
}

// ErrOtherLog is wrapped by the error of an Extend that was given the log of another mesh than
// the Auditor has audited so far.
var ErrOtherLog = errors.New("the log of another mesh")

// findingList keeps the first findings and counts the others. Evidence that is withheld makes room: it
// decides nothing, and there may be as much of it as there are results.
type findingList struct {
	list []transparency.Finding
	more int
}

func (l *findingList) add(found ...transparency.Finding) {
	for _, f := range found {
		if len(l.list) < maxFindings {
			l.list = append(l.list, f)
			continue
		}
		l.more++
		if f.Code == CodeEvidenceWithheld {
			continue
		}
		for i := len(l.list) - 1; i >= 0; i-- {
			if l.list[i].Code == CodeEvidenceWithheld {
				l.list = append(slices.Delete(l.list, i, i+1), f)
				break
			}
		}
	}
}

// New returns an auditor that has read nothing yet.
func New(opts Options) *Auditor {
	a := &Auditor{opts: opts, claims: newClaims(nil)}
	a.restart()
	return a
}

// restart makes a what it was when it last held.
func (a *Auditor) restart() {
	a.walker, a.tree = transparency.NewWalker(), transparency.NewAccumulator()
	a.replay = newReplayer(a.opts.Genesis, a.place)
	a.leaves, a.tiles = findingList{}, findingList{}
	if a.good == nil {
		return
	}
	if err := a.load(a.good); err != nil { // then from the beginning, which must lead to a.held
		a.good = nil
		a.restart()
	}
}

// Held returns the newest checkpoint that held; the zero value before the first.
func (a *Auditor) Held() Head { return a.held }

// Entries returns how many entries were read so far, whether or not they have held yet.
func (a *Auditor) Entries() uint64 { return a.walker.Read() }

// State returns that of governance after the leaves that were read; nil before genesis and
// Bootstrap. The next Extend changes it.
func (a *Auditor) State() *consensus.State {
	if !a.replay.started() {
		return nil
	}
	return a.replay.state
}

// Extend audits the entries up to the reader's present checkpoint. at is the auditor's time.
//
// A checkpoint that is smaller than the one that held before (rolled_back), or that does not
// contain it (forked), is a finding; so is everything that Log finds. An error is ErrNoLog,
// ErrOtherLog or the context's. What was read by then is kept, and the next Extend goes on from
// it, as after the finding unavailable.
func (a *Auditor) Extend(ctx context.Context, r *transparency.Reader, at time.Time) (Extension, error) {
	if at.IsZero() {
		return Extension{}, errors.New("audit: no time given")
	}
	a.at, a.replay.at = at, at
	a.report = Report{Cosigners: []identity.OrgID{}, Findings: []transparency.Finding{}, GenesisGiven: a.opts.Genesis != nil}
	a.checkpoint, a.signed, a.walked, a.fresh, a.checks = nil, false, transparency.Walked{}, findingList{}, nil
	e := Extension{From: a.walker.Read()}
	state, err := a.extend(ctx, r)
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, transparency.ErrUnavailable):
		a.found(a.walker.Read(), CodeUnavailable, err.Error())
		err = nil
	}
	a.finish(&e)
	switch state {
	case stepHeld:
		e.Held = true
		a.keep()
	case stepRefused:
		if e.Reverted = true; !a.once {
			a.restart()
		}
	}
	return e, err
}

// step says what an Extend leaves behind.
type step int

const (
	stepPending step = iota // what was read is kept: the rest may come
	stepHeld
	stepRefused
)

func (a *Auditor) extend(ctx context.Context, r *transparency.Reader) (step, error) {
	head, err := a.readCheckpoint(ctx, r)
	if err != nil || a.checkpoint == nil {
		return stepPending, err
	}
	if ok, err := a.goesOn(ctx, r, head); err != nil || !ok {
		return stepPending, err
	}
	if head.Size < a.walker.At() { // beyond what held: under a checkpoint that did not, yet
		a.restart()
		a.replay.at = a.at
	}
	a.replay.latest = latestResult(a.checkpoint, head.Origin, a.at)
	walked, err := a.walker.Walk(ctx, r, head, transparency.WalkOptions{Prepare: func(leaf []byte) any { return readEntry(leaf) }, Each: a.leaf, Progress: a.opts.Progress})
	a.report.Entries = walked.Read
	if errors.Is(err, errStop) { // what the tree has to say hangs on a checkpoint that nobody signed
		return stepRefused, nil
	}
	if err == nil && a.replay.started() && !a.signed {
		a.checkSigned() // it is of an incarnation that these leaves do not come to
		return stepRefused, nil
	}
	a.walked = walked
	if err != nil {
		return stepPending, err
	}
	if walked.Held { // the walker goes on without these
		a.tiles.add(walked.Findings...)
		a.tiles.more += walked.More
	}
	a.judgeCheckpoint(head)
	if err := a.judgeParts(ctx, r, head); err != nil {
		return stepPending, err
	}
	if !walked.Held || a.report.Level < transparency.Published {
		return stepRefused, nil
	}
	return stepHeld, nil
}

// goesOn decides whether the checkpoint can be one of the log that held before.
func (a *Auditor) goesOn(ctx context.Context, r *transparency.Reader, head transparency.Checkpoint) (bool, error) {
	if a.held.Size > 0 && meshOf(head.Origin) != meshOf(a.held.Origin) {
		return false, fmt.Errorf("%s: %w: its origin is %.200q, what was audited before is %s", r.Location(), ErrOtherLog, head.Origin, a.held.Origin)
	}
	if a.replay.started() {
		if own := a.replay.state.Origin(); meshOf(head.Origin) != meshOf(own) && a.held.Size == 0 {
			return false, fmt.Errorf("%s: %w: its origin is %.200q, what was audited before is %s", r.Location(), ErrOtherLog, head.Origin, own)
		}
		if inc, ok := a.incarnationOf(head.Origin); ok && inc < a.replay.state.Incarnation() && a.held.Size > 0 {
			a.found(head.Size, CodeRolledBack, fmt.Sprintf("the checkpoint is of incarnation %d, one of incarnation %d was audited before", inc, a.replay.state.Incarnation()))
			return false, nil
		}
		if !a.laterIncarnation() && !a.checkSigned() {
			return false, nil
		}
	}
	held := a.held
	if head.Size < held.Size {
		a.found(head.Size, CodeRolledBack, fmt.Sprintf("the checkpoint has size %d, one of size %d was audited before", head.Size, held.Size))
		return false, nil
	}
	if held.Size == 0 {
		return true, nil
	}
	root := head.Root
	var err error
	if head.Size > held.Size {
		root, err = r.RootAt(ctx, head, held.Size)
	}
	if ctx.Err() != nil || errors.Is(err, transparency.ErrUnavailable) {
		return false, err
	}
	if err != nil { // a damaged tile, which the walk will name
		return true, nil
	}
	if root != held.Root {
		a.foundFork(root)
	}
	return root == held.Root, nil
}

func (a *Auditor) foundFork(root transparency.Hash) {
	a.found(a.held.Size, CodeForked, fmt.Sprintf("size %d has root %s in this log, and had root %s in the one that was audited before: two histories", a.held.Size, root, a.held.Root))
}

// meshOf returns an origin without the incarnation.
func meshOf(origin string) string {
	if i := strings.LastIndexByte(origin, '/'); i >= 0 {
		return origin[:i]
	}
	return origin
}

// checkSigned requires that the log key has signed the checkpoint.
func (a *Auditor) checkSigned() bool {
	if _, err := transparency.Verify(a.checkpoint, a.policy(nil)); err != nil {
		a.found(a.report.Size, CodeCheckpointInvalid, err.Error())
		return false
	}
	a.signed = true
	return true
}

// place is the size and root of the leaves replayed so far.
func (a *Auditor) place() (consensus.CheckpointSeen, error) {
	root, err := a.tree.Root()
	return consensus.CheckpointSeen{Size: a.tree.Size(), Root: root.String()}, err
}

// leaf replays one leaf. After the Bootstrap of the checkpoint's incarnation, as soon as the
// log key is known, the checkpoint must be signed by it, or the walk ends.
func (a *Auditor) leaf(e transparency.Entry) error {
	read, ok := e.Prepared.(*entry)
	if !ok {
		return fmt.Errorf("audit: leaf %d was not read", e.Index)
	}
	seen := Seen{Index: e.Index, Leaf: read.Raw(), Hash: e.Hash, Kind: read.Kind(), read: read}
	if a.opts.Before != nil {
		a.opts.Before(a.seen(seen))
	}
	seen.Findings = a.replay.leaf(e.Index, read)
	if len(seen.Findings) == 0 {
		seen.Findings = a.again.leaf(a.seen(seen))
	}
	a.leaves.add(seen.Findings...)
	a.fresh.add(seen.Findings...)
	if e.Index == 0 && a.replay.state != nil {
		a.mesh = a.replay.state.MeshID()
	}
	for _, show := range []func(Seen){a.watch, a.opts.After} {
		if show != nil {
			show(a.seen(seen))
		}
	}
	if err := a.tree.AppendHash(e.Hash); err != nil {
		return err
	}
	a.claims.leaf(e.Index, read.Raw(), a)
	if e.Index+1 == a.held.Size {
		if root, err := a.tree.Root(); err != nil || root != a.held.Root {
			a.foundFork(root)
			return errStop
		}
	}
	if a.signed || !a.replay.started() || a.laterIncarnation() || a.checkSigned() {
		return nil
	}
	return errStop
}

func (a *Auditor) seen(s Seen) Seen {
	s.State, s.Earliest, s.Policy = a.State(), a.replay.earliest, a.replay.policy
	return s
}

// keep remembers that the log held here.
func (a *Auditor) keep() {
	a.held = Head{a.report.Origin, a.report.Size, a.report.Root}
	if a.once {
		return
	}
	good, err := a.encode()
	if err != nil { // too large a state: it would be read again from the beginning
		good = nil
	}
	a.good = good
}

// finish puts the findings of tree, replay and checkpoint together.
func (a *Auditor) finish(e *Extension) {
	all := findingList{more: a.tiles.more + a.leaves.more}
	all.add(a.tiles.list...)
	foreign := uint64(math.MaxUint64)
	if !a.walked.Held { // of one that has, they are among a.tiles
		all.add(a.walked.Findings...)
		all.more += a.walked.More
		foreign = firstForeign(a.walked.Findings)
	}
	all.add(before(a.leaves.list, foreign)...)
	all.add(a.checks...)
	a.report.Findings = append(a.report.Findings, all.list...)
	transparency.SortFindings(a.report.Findings)
	if all.more > 0 {
		a.report.Findings = append(a.report.Findings, finding(a.report.Size, CodeMoreFindings, fmt.Sprintf("%d more findings are not listed", all.more)))
	}
	a.report.OK = len(a.report.Findings) == 0
	e.Report = a.report
	e.New = slices.Concat(a.walked.Findings, before(a.fresh.list, foreign), a.checks)
	transparency.SortFindings(e.New)
}

// firstForeign returns the index of the first entry that is not the one in the tree: from there
// on, what the replay finds is a consequence and left out.
func firstForeign(found []transparency.Finding) uint64 {
	first := uint64(math.MaxUint64)
	for _, f := range found {
		if f.Code == transparency.CodeEntryMismatch {
			first = min(first, f.Index)
		}
	}
	return first
}

// before returns the findings below an index.
func before(found []transparency.Finding, index uint64) []transparency.Finding {
	return slices.DeleteFunc(slices.Clone(found), func(f transparency.Finding) bool { return f.Index >= index })
}
