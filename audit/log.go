package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Options of Log. At is required.
type Options struct {
	// Genesis is the mesh that the auditor means; nil takes the log's own.
	Genesis *consensus.Genesis
	// At is the auditor's time: for ages, and for timestamps that lie ahead of it.
	At time.Time
	// MaxAge is how old the quorum's cosignatures may be; zero does not judge age.
	MaxAge time.Duration
	// Claims are leaves that are said to be in the log; what they are worth is in
	// Report.Claims.
	Claims []Claim
	// Progress is called as entries are read; it may be nil.
	Progress func(done, size uint64)
}

// ErrNoLog is returned where there is neither a checkpoint nor a tile.
var ErrNoLog = errors.New("no published log here")

// errStop ends a walk whose further leaves nobody vouches for.
var errStop = errors.New("stop")

// Log audits the log that r reads. What is wrong with the log, or keeps it from being
// read, is in the Report; an error is ErrNoLog, the context's or a mistake in opts.
func Log(ctx context.Context, r *transparency.Reader, opts Options) (Report, error) {
	return newAuditor(opts).audit(ctx, r)
}

func newAuditor(opts Options) *auditor {
	return &auditor{opts: opts, report: Report{Cosigners: []identity.OrgID{}, Findings: []transparency.Finding{}, GenesisGiven: opts.Genesis != nil}}
}

func (a *auditor) audit(ctx context.Context, r *transparency.Reader) (Report, error) {
	opts := a.opts
	if opts.At.IsZero() {
		return a.report, errors.New("audit: no time given")
	}
	a.tree = transparency.NewAccumulator()
	a.claims = newClaims(opts.Claims)
	err := a.run(ctx, r)
	if ctx.Err() != nil {
		return a.report, ctx.Err()
	}
	if errors.Is(err, transparency.ErrUnavailable) {
		a.found(a.report.Entries, CodeUnavailable, err.Error())
		err = nil
	}
	a.finish()
	a.report.Claims = a.claims.judged(a)
	return a.report, err
}

// auditor collects the report of one log.
type auditor struct {
	opts       Options
	report     Report
	checkpoint []byte
	replay     *replayer
	more       int
	leaves     []transparency.Finding // of the replay; added after those of the tree
	claims     *claims
	tree       *transparency.Accumulator // of the leaves that were replayed
	signed     bool                      // the log key has signed the checkpoint
	// watch is shown every leaf after its replay, and whether that found it as it should be; it
	// may be nil.
	watch func(index uint64, leaf []byte, ok bool)
}

// maxFindings bounds a report; the rest is counted.
const maxFindings = 100

func (a *auditor) found(index uint64, code, message string) {
	if len(a.report.Findings) >= maxFindings {
		a.more++
		return
	}
	a.report.Findings = append(a.report.Findings, transparency.Finding{Index: index, Code: code, Message: message})
}

func (a *auditor) run(ctx context.Context, r *transparency.Reader) error {
	head, err := a.readCheckpoint(ctx, r)
	if err != nil || a.checkpoint == nil {
		return err
	}
	a.replay = newReplayer(a.opts, a.place)
	walked, err := r.Walk(ctx, head, transparency.WalkOptions{Leaf: a.leaf, Progress: a.opts.Progress})
	a.report.Entries = walked.Read
	stopped := errors.Is(err, errStop)
	if stopped {
		// What the tree has to say hangs on a checkpoint that nobody signed.
		err, walked.Findings, walked.More = nil, nil, 0
	}
	a.merge(walked)
	if err != nil || stopped {
		return err
	}
	a.judgeCheckpoint(head)
	return a.judgeParts(ctx, r, head)
}

// readCheckpoint fetches the checkpoint and decodes it unverified: the log key is in leaf 1.
func (a *auditor) readCheckpoint(ctx context.Context, r *transparency.Reader) (transparency.Checkpoint, error) {
	raw, err := r.Checkpoint(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		if !r.HasTiles() {
			return transparency.Checkpoint{}, fmt.Errorf("%s: %w", r.Location(), ErrNoLog)
		}
		a.found(0, CodeCheckpointMissing, "there are tiles, but no checkpoint says which of them count")
		return transparency.Checkpoint{}, nil
	}
	if errors.Is(err, transparency.ErrUnavailable) || ctx.Err() != nil {
		return transparency.Checkpoint{}, err
	}
	var head transparency.Checkpoint
	if err == nil {
		head, err = transparency.ParseCheckpoint(raw)
	}
	if err != nil {
		a.found(0, CodeCheckpointInvalid, err.Error())
		return transparency.Checkpoint{}, nil
	}
	a.checkpoint = raw
	a.report.Origin, a.report.Size, a.report.Root = head.Origin, head.Size, head.Root
	return head, nil
}

// place is the size and root of the leaves replayed so far.
func (a *auditor) place() (consensus.CheckpointSeen, error) {
	root, err := a.tree.Root()
	return consensus.CheckpointSeen{Size: a.tree.Size(), Root: root.String()}, err
}

// leaf replays one leaf. After the Bootstrap of the checkpoint's incarnation, as soon as the
// log key is known, the checkpoint must be signed by it, or the walk ends.
func (a *auditor) leaf(index uint64, leaf []byte) error {
	found := a.replay.leaf(index, leaf)
	if a.watch != nil {
		a.watch(index, leaf, len(found) == 0)
	}
	a.leaves = append(a.leaves, found...)
	if len(a.leaves) > maxFindings {
		a.more += len(a.leaves) - maxFindings
		a.leaves = a.leaves[:maxFindings]
	}
	if err := a.tree.Append(leaf); err != nil {
		return err
	}
	a.claims.leaf(index, leaf, a)
	if a.signed || !a.replay.started() || a.laterIncarnation() {
		return nil
	}
	a.signed = true
	if _, err := transparency.Verify(a.checkpoint, a.policy(nil)); err != nil {
		a.found(a.report.Size, CodeCheckpointInvalid, err.Error())
		return errStop
	}
	return nil
}

// laterIncarnation reports whether the checkpoint is of an incarnation of this mesh that the
// leaves so far have not come to.
func (a *auditor) laterIncarnation() bool {
	s := a.replay.state
	own, _ := strings.CutSuffix(s.Origin(), fmt.Sprint(s.Incarnation()))
	digits, ok := strings.CutPrefix(a.report.Origin, own)
	inc, err := strconv.ParseUint(digits, 10, 64)
	return ok && err == nil && inc > uint64(s.Incarnation())
}

// policy is what the checkpoint is held against, in the state that the leaves lead to.
func (a *auditor) policy(cosigners []transparency.Cosigner) transparency.Policy {
	s := a.replay.state
	p := transparency.Policy{Origin: s.Origin(), LogKey: s.LogKey(), Cosigners: cosigners,
		Quorum: transparency.Quorum{Published: s.Quorum(), Strong: s.StrongQuorum()}, At: a.opts.At}
	p.Outside = transparency.OutsideOf(s.Witnesses())
	return p
}

// cosigners are the seats whose Credential and affirming result the leaves so far hold.
func (a *auditor) cosigners() []transparency.Cosigner {
	var out []transparency.Cosigner
	s := a.replay.state
	for _, n := range s.Seats() {
		if n.Standing == consensus.StandingMeasured {
			out = append(out, transparency.Cosigner{Name: s.CosignerName(n.Ref, n.BootSeq), Org: n.Ref.Org, Key: n.Credential.CosignerKey()})
		}
	}
	return out
}

// merge puts the findings of the tree and of the replay together. From the first entry on
// that is not the one in the tree, what the replay finds is a consequence and left out.
func (a *auditor) merge(w transparency.Walked) {
	a.more += w.More
	foreign := uint64(math.MaxUint64)
	for _, f := range w.Findings {
		a.found(f.Index, f.Code, f.Message)
		if f.Code == transparency.CodeEntryMismatch {
			foreign = min(foreign, f.Index)
		}
	}
	for _, f := range a.leaves {
		if f.Index < foreign {
			a.found(f.Index, f.Code, f.Message)
		}
	}
}

// judgeCheckpoint counts the cosigners against the membership at the checkpoint's size.
func (a *auditor) judgeCheckpoint(head transparency.Checkpoint) {
	if !a.replay.started() {
		if len(a.report.Findings) > 0 { // which say why
			return
		}
		a.found(head.Size, CodeUnpublished, "without a valid genesis and Bootstrap nobody can be counted as a cosigner")
		return
	}
	s := a.replay.state
	a.report.State = s
	a.report.Simulated = s.Genesis().AllowSim
	a.report.Members = len(s.Nodes())
	a.report.Recoveries = a.replay.recoveries
	a.report.Results, a.report.Policies, a.report.Rounds = a.replay.results, int(s.Epoch())-len(a.report.Recoveries), a.replay.rounds
	a.report.Suspensions, a.report.GovernKeys = a.replay.suspensions, a.replay.governors
	v, err := transparency.Verify(a.checkpoint, a.policy(a.cosigners()))
	if err != nil {
		a.found(head.Size, CodeCheckpointInvalid, err.Error())
		return
	}
	for _, p := range v.Problems {
		a.found(head.Size, p.Code, p.Name+": "+p.Message)
	}
	a.report.Cosigners = append(a.report.Cosigners, v.Orgs...)
	a.report.Level, a.report.Fresh = v.Level, v.Fresh
	a.report.Outside, a.report.Witnesses = append(a.report.Outside, v.Outside...), len(a.replay.state.Witnesses())
	if v.Level == transparency.Unpublished {
		a.found(head.Size, CodeUnpublished, fmt.Sprintf("cosigned by %d organisations with an affirmed seat in the log, want %d; %d signatures by others do not count", len(v.Orgs), s.Quorum(), v.Strangers))
		return
	}
	if age := a.opts.At.Sub(v.Fresh); a.opts.MaxAge > 0 && age > a.opts.MaxAge {
		a.found(head.Size, CodeStale, fmt.Sprintf("the quorum last cosigned at %s, %s ago; the limit is %s", v.Fresh.Format(time.RFC3339), age.Round(time.Second), a.opts.MaxAge))
	}
}

func (a *auditor) finish() {
	transparency.SortFindings(a.report.Findings)
	if a.more > 0 {
		a.report.Findings = append(a.report.Findings, transparency.Finding{Index: a.report.Size, Code: CodeMoreFindings, Message: fmt.Sprintf("%d more findings are not listed", a.more)})
	}
	a.report.OK = len(a.report.Findings) == 0
}

// sameGenesis reports whether two genesis are one mesh: signatures may differ, the signed
// bytes may not.
func sameGenesis(a, b *consensus.Genesis) bool {
	pa, err1 := a.Payload()
	pb, err2 := b.Payload()
	return err1 == nil && err2 == nil && bytes.Equal(pa, pb)
}
