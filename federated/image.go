package federated

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/fxamacker/cbor/v2"
)

// MaxImage bounds an encoded Ledger: most of it are the statements of participants, 100 KB for a
// round of MaxParticipants.
const MaxImage = 64 << 20

// imageVersion is the first element of an image.
const imageVersion = 1

// wireLedger is the encoding of a Ledger. What statements say is not said again.
type wireLedger struct {
	_       struct{} `cbor:",toarray"`
	Version int
	Mesh    []byte
	Jobs    []wireJobState
	Resumed [][][]byte // the round leaves of each job that Resume took up and nobody has submitted again
}

type wireJobState struct {
	_         struct{} `cbor:",toarray"`
	Envelope  []byte
	Signers   string // joined by ','
	Failed    []string
	Committed []wireCommitted
	Open      []wireOpenRound // one or none
}

type wireOpenRound struct {
	_            struct{} `cbor:",toarray"`
	Attempt      uint32
	Epoch        uint64
	Participants []wireMember
	Aggregator   wireMember
	Exclude      [][]byte
	Cause        string
	Close        []byte // the statement; empty while open
	Updates      [][]byte
}

type wireCommitted struct {
	_            struct{} `cbor:",toarray"`
	Round        wireOpenRound
	Leaf         []byte
	Members      []wireMember
	AggregatorAt wireMember
}

type wireMember struct {
	_           struct{} `cbor:",toarray"`
	Ref         string
	Peer        []byte
	Roles       string // joined by ','
	Measurement string
	Kind        string
	Affirming   []uint64
}

var (
	imageEncode = must(func() (cbor.EncMode, error) {
		o := cbor.CoreDetEncOptions()
		o.NilContainers = cbor.NilContainerAsEmpty
		return o.EncMode()
	}())
	imageDecode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxArrayElements: MaxRounds + 1,
		MaxNestedLevels:  12,
	}.DecMode())
)

// Image encodes l for RestoreLedger.
func (l *Ledger) Image() ([]byte, error) {
	w := wireLedger{Version: imageVersion, Mesh: l.mesh[:]}
	for _, j := range l.jobs {
		wj := wireJobState{Envelope: j.job.Envelope, Signers: joinOrgs(j.job.Signers)}
		if f := j.failed; f != nil {
			wj.Failed = []string{string(f.Code), f.Claim, f.Got, f.Want}
		}
		for _, c := range j.committed {
			wj.Committed = append(wj.Committed, wireCommitted{Round: packRound(&c.OpenRound), Leaf: c.Leaf,
				Members: packMembers(c.Members), AggregatorAt: packMember(c.AggregatorAt)})
		}
		if j.open != nil {
			wj.Open = []wireOpenRound{packRound(j.open)}
		}
		w.Jobs = append(w.Jobs, wj)
	}
	for _, j := range l.resumed {
		var leaves [][]byte
		for _, c := range j.committed {
			leaves = append(leaves, c.Leaf)
		}
		w.Resumed = append(w.Resumed, leaves)
	}
	raw, err := imageEncode.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("ledger image: %w", err)
	}
	if len(raw) > MaxImage {
		return nil, fmt.Errorf("ledger image: %d bytes, the limit is %d", len(raw), MaxImage)
	}
	return raw, nil
}

func joinOrgs(orgs []identity.OrgID) string {
	out := make([]string, len(orgs))
	for i, o := range orgs {
		out[i] = string(o)
	}
	return strings.Join(out, ",")
}

func packRound(o *OpenRound) wireOpenRound {
	w := wireOpenRound{Attempt: o.Attempt, Epoch: uint64(o.Epoch), Participants: packMembers(o.Participants), Aggregator: packMember(o.Aggregator), Cause: o.Cause}
	for _, p := range o.Exclude {
		w.Exclude = append(w.Exclude, []byte(p))
	}
	if o.Closed != nil {
		w.Close, w.Updates = o.Closed.Envelope, o.Closed.Updates
	}
	return w
}

func packMembers(in []Member) []wireMember {
	var out []wireMember
	for _, m := range in {
		out = append(out, packMember(m))
	}
	return out
}

func packMember(m Member) wireMember {
	return wireMember{Ref: m.Ref.String(), Peer: []byte(m.Peer), Roles: strings.Join(m.Roles, ","), Measurement: m.Measurement, Kind: m.Kind, Affirming: m.Affirming}
}

// RestoreLedger decodes an Image of a mesh. It holds jobs, closes and commits against the
// statements in it, whose signatures were judged when they were ordered; whoever restores one holds
// Digest against a digest that a majority of organisations has logged.
func RestoreLedger(mesh identity.MeshID, raw []byte) (*Ledger, error) {
	l, err := restoreLedger(mesh, raw)
	if err != nil {
		return nil, fmt.Errorf("ledger image: %w", err)
	}
	return l, nil
}

func restoreLedger(mesh identity.MeshID, raw []byte) (*Ledger, error) {
	if len(raw) > MaxImage {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(raw), MaxImage)
	}
	var w wireLedger
	if err := imageDecode.Unmarshal(raw, &w); err != nil {
		return nil, err
	}
	if w.Version != imageVersion {
		return nil, fmt.Errorf("version %d, this release reads %d", w.Version, imageVersion)
	}
	if !bytes.Equal(w.Mesh, mesh[:]) {
		return nil, fmt.Errorf("of mesh %x, want %s", w.Mesh, mesh)
	}
	if len(w.Jobs) > MaxJobs {
		return nil, fmt.Errorf("%d jobs, the limit is %d", len(w.Jobs), MaxJobs)
	}
	l := NewLedger(mesh)
	for _, leaf := range slices.Concat(w.Resumed...) {
		if err := l.Resume(leaf); err != nil {
			return nil, err
		}
	}
	for i, wj := range w.Jobs {
		j, err := l.unpackJob(wj)
		if err != nil {
			return nil, fmt.Errorf("job %d: %w", i, err)
		}
		l.jobs = append(l.jobs, j)
	}
	again, err := l.Image()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, raw) {
		return nil, canonical.ErrForm
	}
	return l, nil
}

func (l *Ledger) unpackJob(w wireJobState) (*jobState, error) {
	job, err := ParseJob(w.Envelope)
	if err != nil {
		return nil, err
	}
	if job.MeshID != l.mesh || l.find(job.ID) != nil {
		return nil, fmt.Errorf("%s of mesh %s, or twice", job.ID, job.MeshID.Short())
	}
	for _, org := range strings.Split(w.Signers, ",") {
		if err := identity.OrgID(org).Validate(); err != nil {
			return nil, fmt.Errorf("signers: %w", err)
		}
		job.Signers = append(job.Signers, identity.OrgID(org))
	}
	j := &jobState{job: job}
	if len(w.Failed) > 0 {
		if len(w.Failed) != 4 || !validCode(attest.Code(w.Failed[0])) {
			return nil, fmt.Errorf("failed: %d fields", len(w.Failed))
		}
		j.failed = reason(attest.Code(w.Failed[0]), w.Failed[1], w.Failed[2], w.Failed[3])
	}
	base := chunk.Root{}
	for i, wc := range w.Committed {
		c, err := l.unpackCommitted(job, uint32(i), base, wc)
		if err != nil {
			return nil, fmt.Errorf("round %d: %w", i, err)
		}
		j.committed, base = append(j.committed, c), c.ResultRoot
	}
	if len(w.Open) > 0 {
		if len(w.Open) > 1 || j.failed != nil || len(j.committed) > job.Spec.Rounds {
			return nil, fmt.Errorf("%d open rounds of a job that cannot have them", len(w.Open))
		}
		if j.open, err = l.unpackRound(job, uint32(len(j.committed)), base, w.Open[0]); err != nil {
			return nil, fmt.Errorf("open round: %w", err)
		}
	}
	return j, nil
}

func (l *Ledger) unpackRound(job Job, round uint32, base chunk.Root, w wireOpenRound) (*OpenRound, error) {
	o := &OpenRound{Turn: Turn{MeshID: l.mesh, Job: job.ID, Round: round, Attempt: w.Attempt, BaseRoot: base}, Epoch: identity.Epoch(w.Epoch), Cause: w.Cause}
	if err := o.check(); err != nil {
		return nil, err
	}
	var err error
	if o.Participants, err = unpackMembers(w.Participants); err != nil {
		return nil, err
	}
	if o.Aggregator, err = unpackMember(w.Aggregator); err != nil {
		return nil, err
	}
	for _, p := range w.Exclude {
		peer := identity.PeerID(p)
		if err := peer.Validate(); err != nil {
			return nil, fmt.Errorf("exclude: %w", err)
		}
		o.Exclude = append(o.Exclude, peer)
	}
	if len(w.Close) == 0 {
		if len(w.Updates) > 0 {
			return nil, fmt.Errorf("%d updates without a close", len(w.Updates))
		}
		return o, nil
	}
	body, err := CloseCommand(w.Close, w.Updates)
	if err != nil {
		return nil, err
	}
	c, err := decodeClose(body)
	if err != nil {
		return nil, err
	}
	if c.predicate.Turn != o.Turn {
		return nil, fmt.Errorf("the close is of %s, want %s", c.predicate.name(), o.name())
	}
	o.Closed = &ClosedRound{Accepted: c.predicate.Accepted, Rejected: c.predicate.Rejected, Envelope: c.raw, Updates: c.rawUpds}
	return o, nil
}

func (l *Ledger) unpackCommitted(job Job, round uint32, base chunk.Root, w wireCommitted) (CommittedRound, error) {
	o, err := l.unpackRound(job, round, base, w.Round)
	if err != nil {
		return CommittedRound{}, err
	}
	st, err := parseRound(w.Leaf)
	if err != nil {
		return CommittedRound{}, err
	}
	if st.predicate.Turn != o.Turn {
		return CommittedRound{}, fmt.Errorf("the leaf is of %s, want %s", st.predicate.name(), o.name())
	}
	if o.Closed == nil { // of a log that Resume took up, which holds no closes
		o.Closed = &ClosedRound{Accepted: st.predicate.Accepted, Rejected: st.predicate.Rejected}
	}
	if why := (&jobState{job: job, open: o}).checkLeaf(st.predicate); why != nil {
		return CommittedRound{}, fmt.Errorf("leaf: %s", why)
	}
	c := CommittedRound{OpenRound: *o, ResultRoot: st.predicate.ResultRoot, Leaf: w.Leaf}
	if c.Members, err = unpackMembers(w.Members); err != nil {
		return CommittedRound{}, err
	}
	c.AggregatorAt, err = unpackMember(w.AggregatorAt)
	return c, err
}

func unpackMembers(in []wireMember) ([]Member, error) {
	if len(in) > MaxParticipants {
		return nil, fmt.Errorf("%d members, the limit is %d", len(in), MaxParticipants)
	}
	var out []Member
	for _, w := range in {
		m, err := unpackMember(w)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func unpackMember(w wireMember) (Member, error) {
	ref, err := identity.ParseNodeRef(w.Ref)
	if err != nil {
		return Member{}, err
	}
	m := Member{Ref: ref, Peer: identity.PeerID(w.Peer), Roles: []string{}, Measurement: w.Measurement, Kind: w.Kind, Affirming: notNil(w.Affirming)}
	if w.Roles != "" {
		m.Roles = strings.Split(w.Roles, ",")
	}
	return m, m.Peer.Validate()
}
