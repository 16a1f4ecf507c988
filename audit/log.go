package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Options of an audit.
type Options struct {
	// Genesis is the mesh that the auditor means; nil takes the log's own.
	Genesis *consensus.Genesis
	// At is the auditor's time: for ages, and for timestamps that lie ahead of it. Log requires
	// it, Extend is given its own.
	At time.Time
	// MaxAge is how old the quorum's cosignatures may be; zero does not judge age.
	MaxAge time.Duration
	// Claims are leaves that are said to be in the log; what they are worth is in
	// Report.Claims. They are for Log alone.
	Claims []Claim
	// Disclosed is evidence that members have disclosed; results are held against it, and what comes of
	// that is in Report.Disclosed. Nil appraises nothing anew. It is for Log alone.
	Disclosed *Evidence
	// RequireDisclosed finds affirming results whose evidence was not disclosed.
	RequireDisclosed bool
	// Progress is called as entries are read; it may be nil. An Auditor can be saved then.
	Progress func(done, size uint64)
	// Before and After are shown every leaf in order, before and after its replay; they may be
	// nil. Whether the tree holds it is not known yet: that Extension.Held says.
	Before, After func(Seen)
}

// Seen is one leaf of a log as an auditor meets it.
type Seen struct {
	Index uint64
	Leaf  []byte
	Hash  transparency.Hash
	// Kind is the predicate type, empty if the leaf is no envelope. Nothing of it was verified
	// if there are Findings.
	Kind string
	// Findings are what the replay of the leaf found, in it or, by what it says, in leaves
	// before. Only After has them.
	Findings []transparency.Finding
	// State is that of governance, before or after the leaf; nil as long as no genesis and
	// Bootstrap that hold were read. It goes on changing when the call has returned.
	State *consensus.State
	// Earliest is a time that the members' clock had passed when the leaf was ordered; zero
	// where the leaves before it do not say.
	Earliest time.Time
	// Policy is the leaf that the policy in force was last changed by: the Bootstrap, a
	// Recovery's Bootstrap or a proposal.
	Policy uint64

	read *entry
}

// Result returns the result that the leaf is, if its verifier has signed it; else nil.
func (s *Seen) Result() *consensus.AttestationResult {
	r, _ := s.read.Result()
	return r
}

// Round returns the committed round that the leaf is, if its aggregator has signed it; else nil.
func (s *Seen) Round() *federated.Round {
	if s.Kind != envelope.TypeRound || s.read.roundErr != nil {
		return nil
	}
	return &s.read.round
}

// ErrNoLog is returned where there is neither a checkpoint nor a tile.
var ErrNoLog = errors.New("no published log here")

// errStop ends a walk whose further leaves nobody vouches for.
var errStop = errors.New("stop")

// Log audits the log that r reads. What is wrong with the log, or keeps it from being
// read, is in the Report; an error is ErrNoLog, the context's or a mistake in opts.
func Log(ctx context.Context, r *transparency.Reader, opts Options) (Report, error) {
	return newOnce(opts).audit(ctx, r)
}

// newOnce returns an auditor that is asked once.
func newOnce(opts Options) *Auditor {
	a := New(opts)
	a.once, a.claims, a.again = true, newClaims(opts.Claims), newReappraisal(opts)
	return a
}

func (a *Auditor) audit(ctx context.Context, r *transparency.Reader) (Report, error) {
	if a.opts.At.IsZero() {
		return a.report, errors.New("audit: no time given")
	}
	e, err := a.Extend(ctx, r, a.opts.At)
	if ctx.Err() == nil {
		e.Report.Claims, e.Report.Disclosed = a.claims.judged(a), a.again.report()
	}
	return e.Report, err
}

// maxFindings bounds a report; the rest is counted.
const maxFindings = 100

func (a *Auditor) found(index uint64, code, message string) {
	a.checks = append(a.checks, finding(index, code, message))
}

// readCheckpoint fetches the checkpoint and decodes it unverified: the log key is in leaf 1.
func (a *Auditor) readCheckpoint(ctx context.Context, r *transparency.Reader) (transparency.Checkpoint, error) {
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

// laterIncarnation reports whether the checkpoint is of an incarnation of this mesh that the
// leaves so far have not come to.
func (a *Auditor) laterIncarnation() bool {
	inc, ok := a.incarnationOf(a.report.Origin)
	return ok && inc > a.replay.state.Incarnation()
}

// incarnationOf returns the incarnation of this mesh whose log an origin names.
func (a *Auditor) incarnationOf(origin string) (identity.Incarnation, bool) {
	digits, ok := strings.CutPrefix(origin, meshOf(a.replay.state.Origin())+"/")
	inc, err := strconv.ParseUint(digits, 10, 64)
	return identity.Incarnation(inc), ok && err == nil
}

// policy is what the checkpoint is held against, in the state that the leaves lead to.
func (a *Auditor) policy(cosigners []transparency.Cosigner) transparency.Policy {
	s := a.replay.state
	p := transparency.Policy{Origin: s.Origin(), LogKey: s.LogKey(), Cosigners: cosigners,
		Quorum: transparency.Quorum{Published: s.Quorum(), Strong: s.StrongQuorum()}, At: a.at}
	p.Outside = transparency.OutsideOf(s.Witnesses())
	return p
}

// cosigners are the seats whose Credential and affirming result the leaves so far hold.
func (a *Auditor) cosigners() []transparency.Cosigner {
	var out []transparency.Cosigner
	s := a.replay.state
	for _, n := range s.Seats() {
		if n.Standing == consensus.StandingMeasured {
			out = append(out, transparency.Cosigner{Name: s.CosignerName(n.Ref, n.BootSeq), Org: n.Ref.Org, Key: n.Credential.CosignerKey()})
		}
	}
	return out
}

// judgeCheckpoint counts the cosigners against the membership at the checkpoint's size.
func (a *Auditor) judgeCheckpoint(head transparency.Checkpoint) {
	if !a.replay.started() {
		if len(a.checks)+len(a.leaves.list)+len(a.walked.Findings) > 0 { // which say why
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
	if age := a.at.Sub(v.Fresh); a.opts.MaxAge > 0 && age > a.opts.MaxAge {
		a.found(head.Size, CodeStale, fmt.Sprintf("the quorum last cosigned at %s, %s ago; the limit is %s", v.Fresh.Format(time.RFC3339), age.Round(time.Second), a.opts.MaxAge))
	}
}

// sameGenesis reports whether two genesis are one mesh: signatures may differ, the signed
// bytes may not.
func sameGenesis(a, b *consensus.Genesis) bool {
	pa, err1 := a.Payload()
	pb, err2 := b.Payload()
	return err1 == nil && err2 == nil && bytes.Equal(pa, pb)
}
