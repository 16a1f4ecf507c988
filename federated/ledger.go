package federated

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Ledger is the replicated state of all jobs: a pure function of the commands applied.
//
//	       job            round-open          round-close          round-commit
//	(none) ---> running ------------> open ---------------> closed ------------> running
//	               |   ^               | round-open, attempt+1 |                   | last round
//	               |   +---------------+-----------------------+                   v
//	               +--> failed (more than MaxAttempts)                            done
//
// It belongs to the goroutine that applies commands; the values it returns are never
// modified afterwards and may be kept.
type Ledger struct {
	mesh    identity.MeshID
	jobs    []*jobState
	resumed []resumed // see Resume
}

type jobState struct {
	job       Job
	open      *OpenRound // nil between rounds
	committed []CommittedRound
	failed    *attest.Reason
}

// OpenRound is an attempt at a round, as every replica derived it.
type OpenRound struct {
	Turn
	Epoch        identity.Epoch
	Participants []Member // in node order
	Aggregator   Member
	Exclude      []identity.PeerID
	Cause        string
	// Closed is nil until the aggregator has closed the attempt.
	Closed *ClosedRound
}

// Participant returns the participant that peer is.
func (o *OpenRound) Participant(peer identity.PeerID) (Member, bool) {
	i := slices.IndexFunc(o.Participants, func(m Member) bool { return m.Peer == peer })
	if i < 0 {
		return Member{}, false
	}
	return o.Participants[i], true
}

// ClosedRound is what the aggregator will add up.
type ClosedRound struct {
	Accepted []Accepted
	Rejected []Rejected
	// Envelope is the close statement, Updates the update statements of Accepted.
	Envelope []byte
	Updates  [][]byte
}

// CommittedRound is a round that is in the log.
type CommittedRound struct {
	OpenRound
	ResultRoot chunk.Root
	// Leaf is the round statement.
	Leaf []byte
	// Members are the accepted participants as of the commit, in node order, and
	// AggregatorAt the aggregator.
	Members      []Member
	AggregatorAt Member
}

// State is where a job stands.
type State string

// The states. A job is waiting while no attempt is open.
const (
	StateWaiting State = "waiting"
	StateRunning State = "running"
	StateDone    State = "done"
	StateFailed  State = "failed"
)

// JobStatus is a view of one job.
type JobStatus struct {
	Job   Job
	State State
	// Open is nil unless State is running.
	Open      *OpenRound
	Committed []CommittedRound
	// Failed says why, if State is failed.
	Failed *attest.Reason
}

// ModelRoot returns the root of the newest model; zero before round 0 is committed.
func (s JobStatus) ModelRoot() chunk.Root {
	if len(s.Committed) == 0 {
		return chunk.Root{}
	}
	return s.Committed[len(s.Committed)-1].ResultRoot
}

// Next returns the round-open that would come next, without exclusions: the next round,
// or the next attempt at the open one. It is false for jobs that have ended.
func (s JobStatus) Next() (RoundOpen, bool) {
	if s.State == StateDone || s.State == StateFailed {
		return RoundOpen{}, false
	}
	o := RoundOpen{Job: s.Job.ID, Round: uint32(len(s.Committed)), Attempt: 1}
	if s.Open != nil {
		o.Attempt = s.Open.Attempt + 1
	}
	return o, true
}

// NewLedger returns the empty ledger of a mesh.
func NewLedger(mesh identity.MeshID) *Ledger { return &Ledger{mesh: mesh} }

func (l *Ledger) find(id JobID) *jobState {
	for _, j := range l.jobs {
		if j.job.ID == id {
			return j
		}
	}
	return nil
}

func (j *jobState) status() JobStatus {
	s := JobStatus{Job: j.job, State: StateWaiting, Open: j.open, Committed: slices.Clip(j.committed), Failed: j.failed}
	switch {
	case j.failed != nil:
		s.State = StateFailed
	case len(j.committed) > j.job.Spec.Rounds:
		s.State = StateDone
	case j.open != nil:
		s.State = StateRunning
	}
	return s
}

// Jobs returns every job in the order of submission.
func (l *Ledger) Jobs() []JobStatus {
	out := make([]JobStatus, len(l.jobs))
	for i, j := range l.jobs {
		out[i] = j.status()
	}
	return out
}

// Job returns one job.
func (l *Ledger) Job(id JobID) (JobStatus, bool) {
	j := l.find(id)
	if j == nil {
		return JobStatus{}, false
	}
	return j.status(), true
}

// Plan returns the attempt that o would open under these members, or the reason why it
// cannot: what a leader asks before it proposes, and what status shows a person who waits.
func (l *Ledger) Plan(o RoundOpen, members Members) (*OpenRound, *attest.Reason) {
	j := l.find(o.Job)
	if j == nil {
		return nil, reason(attest.CodeUnknownJob, "job", string(o.Job), "a submitted job")
	}
	st := j.status()
	want, ok := st.Next()
	if !ok {
		return nil, reason(attest.CodeJobEnded, "job", string(st.State), string(StateRunning))
	}
	if o.Round != want.Round || o.Attempt != want.Attempt {
		return nil, staleTurn(o.Round, o.Attempt, want.Round, want.Attempt)
	}
	if o.Attempt > MaxAttempts {
		return nil, reason(attest.CodeRoundFailed, fmt.Sprintf("round %d", o.Round), fmt.Sprintf("attempt %d", o.Attempt), fmt.Sprintf("at most %d", MaxAttempts))
	}
	eligible := members.Eligible()
	trainers, aggregators := candidates(j.job, o.Round, o.Exclude, eligible)
	if least := j.job.Spec.MinParticipants; len(trainers) < least {
		return nil, reason(attest.CodeBelowMinimum, "participants", count(trainers, "trainer"),
			fmt.Sprintf("at least %d of the organisations that signed the job (%s)", least, join(j.job.Signers)))
	}
	if len(aggregators) == 0 {
		return nil, reason(attest.CodeBelowMinimum, "aggregator", count(eligible, "eligible node")+", none of them an aggregator",
			fmt.Sprintf("a node with the role %s of an organisation that signed the job (%s)", RoleAggregator, join(j.job.Signers)))
	}
	return &OpenRound{
		Turn:  Turn{MeshID: l.mesh, Job: o.Job, Round: o.Round, Attempt: o.Attempt, BaseRoot: st.ModelRoot()},
		Epoch: members.Epoch(), Participants: trainers, Aggregator: aggregators[0],
		Exclude: slices.Clone(o.Exclude), Cause: o.Cause,
	}, nil
}

func reason(code attest.Code, claim, got, want string) *attest.Reason {
	r := attest.NewReason(code, claim, got, want)
	return &r
}

func staleTurn(round, attempt, wantRound, wantAttempt uint32) *attest.Reason {
	return reason(attest.CodeStaleRound, "round", fmt.Sprintf("round %d attempt %d", round, attempt),
		fmt.Sprintf("round %d attempt %d", wantRound, wantAttempt))
}

func count(members []Member, noun string) string {
	names := make([]string, len(members))
	for i, m := range members {
		names[i] = m.Ref.String()
	}
	slices.Sort(names)
	if len(names) != 1 {
		noun += "s"
	}
	if len(names) == 0 {
		return "0 " + noun
	}
	return fmt.Sprintf("%d %s (%s)", len(names), noun, strings.Join(names, ", "))
}

func join(orgs []identity.OrgID) string {
	out := make([]string, len(orgs))
	for i, o := range orgs {
		out[i] = string(o)
	}
	return strings.Join(out, ", ")
}

// Digest is equal on replicas that applied the same commands.
func (l *Ledger) Digest() [32]byte {
	var buf []byte
	add := func(parts ...[]byte) {
		for _, p := range parts {
			buf = attest.LengthPrefixed(buf, p)
		}
	}
	add([]byte("meshnode/v1 ledger"), l.mesh[:])
	for _, j := range l.jobs {
		add([]byte("job"), j.job.Envelope, []byte(joinOrgs(j.job.Signers)))
		if j.failed != nil {
			add([]byte("failed"), []byte(j.failed.String()))
		}
		for _, c := range j.committed {
			add([]byte("committed"), c.Leaf, openBytes(&c.OpenRound), memberBytes(append(slices.Clone(c.Members), c.AggregatorAt)))
		}
		if j.open != nil {
			add([]byte("open"), openBytes(j.open))
		}
	}
	if len(l.resumed) > 0 {
		add([]byte("resumed"), l.resumedBytes())
	}
	return sha256.Sum256(buf)
}

func openBytes(o *OpenRound) []byte {
	var buf []byte
	add := func(p []byte) { buf = attest.LengthPrefixed(buf, p) }
	add(u64(uint64(o.Round)))
	add(u64(uint64(o.Attempt)))
	add(u64(uint64(o.Epoch)))
	add(o.BaseRoot[:])
	add(memberBytes(append(slices.Clone(o.Participants), o.Aggregator)))
	for _, p := range o.Exclude {
		add([]byte(p))
	}
	add([]byte(o.Cause))
	if o.Closed != nil {
		add(o.Closed.Envelope)
		for _, u := range o.Closed.Updates {
			add(u)
		}
	}
	return buf
}

func memberBytes(members []Member) []byte {
	var buf []byte
	for _, m := range members {
		for _, p := range []string{m.Ref.String(), string(m.Peer), strings.Join(m.Roles, ","), m.Measurement, m.Kind} {
			buf = attest.LengthPrefixed(buf, []byte(p))
		}
		for _, i := range m.Affirming {
			buf = attest.LengthPrefixed(buf, u64(i))
		}
	}
	return buf
}
