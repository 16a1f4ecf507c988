package misbehaviour

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Verdict says what a file proves.
type Verdict string

// The verdicts.
const (
	// VerdictMisbehaviour: somebody has cosigned both histories, or both had enough cosigners.
	VerdictMisbehaviour Verdict = "misbehaviour"
	// VerdictLogKeyLeaked: the log key has signed both, and nobody can be told to have done more.
	VerdictLogKeyLeaked Verdict = "log_key_leaked"
)

// ErrOtherMesh is wrapped where a file is well formed and about another mesh than genesis.
var ErrOtherMesh = errors.New("another mesh")

// ErrNothing is wrapped where a file is well formed and proves nothing.
var ErrNothing = errors.New("the file proves no misbehaviour")

// Convicted is one cosigner that has signed both checkpoints.
type Convicted struct {
	Organisation identity.OrgID   `json:"organisation"`
	Node         identity.NodeRef `json:"node"`
	BootSeq      identity.BootSeq `json:"boot_seq"`
	Peer         identity.PeerID  `json:"peer"`
	Cosigner     string           `json:"cosigner"` // the name it has signed under
	// KeyRemoved is set where the enroll key that speaks for it was removed later.
	KeyRemoved bool `json:"enroll_key_removed,omitempty"`
}

// Side is one of the two checkpoints.
type Side struct {
	Size      uint64            `json:"size"`
	Root      transparency.Hash `json:"root"`
	LogKey    bool              `json:"log_key"`             // signed by the log key
	Cosigners []identity.OrgID  `json:"cosigners"`           // organisations that have cosigned, sorted
	Witnesses []string          `json:"witnesses,omitempty"` // of the policy's outside witnesses
}

// Report is what a file proves.
type Report struct {
	Verdict Verdict         `json:"verdict"`
	MeshID  identity.MeshID `json:"mesh_id"`
	Origin  string          `json:"origin"`
	// Convicted have cosigned both, each under one Credential, sorted by name.
	Convicted []Convicted `json:"convicted"`
	// Both are organisations of which different boots have cosigned the two, and that are not among
	// Convicted.
	Both []identity.OrgID `json:"both,omitempty"`
	// Published is set where each of the two has as many cosigners as publish it whoever has a seat.
	Published bool `json:"published"`
	// Witnesses are outside witnesses that have cosigned both.
	Witnesses   []string `json:"witnesses,omitempty"`
	Checkpoints [2]Side  `json:"checkpoints"`
}

// Organisations returns the convicted organisations, sorted.
func (r Report) Organisations() []identity.OrgID {
	var out []identity.OrgID
	for _, c := range r.Convicted {
		out = append(out, c.Organisation)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Verify decides what a file proves about the mesh of a genesis. The error wraps ErrMalformed where
// the bytes are no such file, ErrNothing where the checkpoints do not contradict each other or
// nobody can be told to have signed both, and says else what does not hold.
func Verify(data []byte, g *consensus.Genesis) (Report, error) {
	f, err := parse(data)
	if err != nil {
		return Report{}, err
	}
	if f.MeshID != g.MeshID() {
		return Report{}, fmt.Errorf("%w: the file is about mesh %s, the genesis of %s", ErrOtherMesh, f.MeshID, g.MeshID())
	}
	chain := [][]byte{g.Raw()}
	for _, step := range f.Chain {
		chain = append(chain, []byte(step))
	}
	policy, err := consensus.ReplayPolicy(g, chain)
	if err != nil {
		return Report{}, err
	}
	if !policy.Started() {
		return Report{}, fmt.Errorf("%w: a policy chain without Bootstrap", ErrMalformed)
	}
	cosigners, by, err := f.cosigners(policy)
	if err != nil {
		return Report{}, err
	}
	var sides [2]transparency.Signed
	for i, note := range f.Checkpoints {
		if sides[i], err = transparency.Signers([]byte(note), policy.LogKey(), cosigners, transparency.OutsideOf(policy.Witnesses())); err != nil {
			return Report{}, err
		}
		if sides[i].Origin != policy.Origin() {
			return Report{}, fmt.Errorf("a checkpoint of %.120q, the policy chain is of %q", sides[i].Origin, policy.Origin())
		}
	}
	if err := f.contradict(sides[0].Checkpoint, sides[1].Checkpoint); err != nil {
		return Report{}, err
	}
	return judge(policy, sides, by)
}

// cosigners returns the keys that the file's Credentials and Bootstrap's speak for. A Credential that
// does not hold ends it: a file says nothing that it does not prove.
func (f *file) cosigners(policy *consensus.PolicyState) ([]transparency.Cosigner, map[string]*enrolled, error) {
	var raws [][]byte
	for _, c := range policy.Bootstrap().Seats() {
		raws = append(raws, c.Raw())
	}
	for _, raw := range f.Credentials {
		raws = append(raws, []byte(raw))
	}
	var out []transparency.Cosigner
	by := map[string]*enrolled{}
	for _, raw := range raws {
		cosigner, c, err := cosignerOf(policy, raw)
		if err != nil {
			return nil, nil, err
		}
		id := cosigner.Name + " " + string(cosigner.Key) // a renewed Credential names the same
		if by[id] == nil {
			out = append(out, cosigner)
		}
		if by[id] == nil || c.stands {
			by[id] = c
		}
	}
	return out, by, nil
}

// contradict demands that no tree has both checkpoints.
func (f *file) contradict(a, b transparency.Checkpoint) error {
	if a.Size == 0 || a.Size > b.Size {
		return fmt.Errorf("%w: sizes %d and %d, want the smaller first and none empty", ErrMalformed, a.Size, b.Size)
	}
	if a.Size == b.Size {
		if f.Root != nil || f.Proof != nil {
			return fmt.Errorf("%w: a proof between checkpoints of one size", ErrMalformed)
		}
		if a.Root == b.Root {
			return fmt.Errorf("%w: size %d has one root in both", ErrNothing, a.Size)
		}
		return nil
	}
	if f.Root == nil {
		return fmt.Errorf("%w: two sizes, and no root of the smaller in the larger tree", ErrMalformed)
	}
	if *f.Root == a.Root {
		return fmt.Errorf("%w: the tree of size %d goes on from that of %d", ErrNothing, b.Size, a.Size)
	}
	then := transparency.Checkpoint{Origin: a.Origin, Size: a.Size, Root: *f.Root}
	if err := transparency.VerifyConsistency(then, b, f.Proof); err != nil {
		return fmt.Errorf("the root that the larger tree is said to have at size %d: %w", a.Size, err)
	}
	return nil
}

// judge says who has signed both.
func judge(policy *consensus.PolicyState, sides [2]transparency.Signed, by map[string]*enrolled) (Report, error) {
	r := Report{MeshID: policy.MeshID(), Origin: policy.Origin(), Convicted: []Convicted{}}
	for i, s := range sides {
		r.Checkpoints[i] = Side{Size: s.Size, Root: s.Root, LogKey: s.LogKey, Cosigners: orgsOf(s.Cosigners), Witnesses: s.Outside}
	}
	for _, c := range sides[0].Cosigners {
		if !slices.ContainsFunc(sides[1].Cosigners, func(o transparency.Cosigner) bool { return o.Name == c.Name && o.Key.Equal(c.Key) }) {
			continue
		}
		e := by[c.Name+" "+string(c.Key)]
		r.Convicted = append(r.Convicted, Convicted{Organisation: c.Org, Node: e.Ref(), BootSeq: e.BootSeq, Peer: e.Peer, Cosigner: c.Name, KeyRemoved: !e.stands})
	}
	slices.SortFunc(r.Convicted, func(a, b Convicted) int { return strings.Compare(a.Cosigner, b.Cosigner) })
	for _, org := range r.Checkpoints[0].Cosigners {
		if slices.Contains(r.Checkpoints[1].Cosigners, org) && !slices.Contains(r.Organisations(), org) {
			r.Both = append(r.Both, org)
		}
	}
	for _, w := range sides[0].Outside {
		if slices.Contains(sides[1].Outside, w) {
			r.Witnesses = append(r.Witnesses, w)
		}
	}
	quorum := policy.SnapshotQuorum()
	r.Published = len(r.Checkpoints[0].Cosigners) >= quorum && len(r.Checkpoints[1].Cosigners) >= quorum
	switch {
	case len(r.Convicted) > 0 || r.Published || len(r.Witnesses) > 0:
		r.Verdict = VerdictMisbehaviour
	case sides[0].LogKey && sides[1].LogKey:
		r.Verdict = VerdictLogKeyLeaked
	default:
		return Report{}, fmt.Errorf("%w: nobody has signed both", ErrNothing)
	}
	return r, nil
}

func orgsOf(cosigners []transparency.Cosigner) []identity.OrgID {
	out := []identity.OrgID{}
	for _, c := range cosigners {
		out = append(out, c.Org)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Proves says in words what the file proves.
func (r Report) Proves() []string {
	a, b := r.Checkpoints[0], r.Checkpoints[1]
	out := []string{fmt.Sprintf("no log has both root %s at size %d and root %s at size %d: there were two histories of %s", a.Root, a.Size, b.Root, b.Size, r.Origin)}
	for _, c := range r.Convicted {
		out = append(out, fmt.Sprintf("%s has cosigned both, as %s: its organisation's enroller signed the Credential of that key", c.Organisation, c.Cosigner))
	}
	if r.Published {
		out = append(out, fmt.Sprintf("each was cosigned by enough organisations to be published: %v and %v", a.Cosigners, b.Cosigners))
	}
	for _, w := range r.Witnesses {
		out = append(out, fmt.Sprintf("the outside witness %s has cosigned both", w))
	}
	if r.Verdict == VerdictLogKeyLeaked {
		out = append(out, "somebody has signed another history with the log's key, which every seat has: it convicts no organisation")
	}
	return out
}

// ProvesNot says in words what the file does not prove.
func (r Report) ProvesNot() []string {
	out := []string{"which of the two histories is the right one, or who was shown which"}
	if len(r.Convicted) > 0 {
		out = append(out, "that an organisation's enroll key, or its node's memory, was not in somebody else's hands")
	}
	for _, c := range r.Convicted {
		if c.KeyRemoved {
			out = append(out, fmt.Sprintf("that it was %s itself: the enroll key that speaks for %s was removed later, as one is that was stolen", c.Organisation, c.Node))
		}
	}
	for _, org := range r.Both {
		out = append(out, fmt.Sprintf("that %s lied: two of its boots have cosigned one history each, as a node does that was shown another one after a restart", org))
	}
	if len(r.Convicted) == 0 {
		out = append(out, "that any organisation has broken its word")
	}
	return out
}
