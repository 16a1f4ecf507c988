package proof

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// maxTail is how many leaves at the end of a log are linked, so that nothing can have been left out
// behind the last that says which policy is in force.
const maxTail = 64

// ErrNoSubject is wrapped by the error of Export if no leaf is the one that is meant.
var ErrNoSubject = errors.New("no such entry")

// Subject names the leaf that a proof is of. Exactly one field is set.
type Subject struct {
	Index  *uint64
	Result *identity.NodeRef // the newest affirming result on this node
	Policy *identity.Epoch   // the change that made the policy of this epoch
	Entry  string            // the change that last added the entry with this id
	Round  *RoundName
}

// RoundName names a committed round.
type RoundName struct {
	Job   federated.JobID
	Round uint32
}

// String says which leaf is meant.
func (s Subject) String() string {
	switch {
	case s.Index != nil:
		return fmt.Sprintf("entry %d", *s.Index)
	case s.Result != nil:
		return "an affirming result on " + s.Result.String()
	case s.Policy != nil:
		return fmt.Sprintf("the policy of epoch %d", *s.Policy)
	case s.Round != nil:
		return fmt.Sprintf("round %d of job %s", s.Round.Round, s.Round.Job)
	}
	return fmt.Sprintf("the change that added the entry %.40q", s.Entry)
}

// ExportOptions of Export. Genesis and At are required.
type ExportOptions struct {
	Genesis  *consensus.Genesis
	At       time.Time
	Progress func(done, size uint64) // may be nil
}

// Export makes the proof file of one leaf from a published log that was audited and found to be
// as it should be, and verifies the file. The error is a *Refused if it does not hold as yet,
// because too few of the seats that count have cosigned.
func Export(ctx context.Context, r *transparency.Reader, subject Subject, opts ExportOptions) ([]byte, *Report, error) {
	signed, err := r.Checkpoint(ctx)
	if err != nil {
		return nil, nil, err
	}
	head, err := transparency.ParseCheckpoint(signed)
	if err != nil {
		return nil, nil, fmt.Errorf("log: %w", err)
	}
	x := &exporter{replay: newReplay(opts.Genesis, true), subject: subject, need: map[uint64]bool{}}
	walked, err := r.Walk(ctx, head, transparency.WalkOptions{Leaf: x.leaf, Progress: opts.Progress})
	if err != nil {
		return nil, nil, err
	}
	if len(walked.Findings) > 0 {
		return nil, nil, &transparency.Tampered{Findings: walked.Findings}
	}
	if x.found == nil {
		return nil, nil, fmt.Errorf("%s: %w in this log of %d", subject, ErrNoSubject, head.Size)
	}
	policy, _ := x.checkpointPolicy(opts.At)
	f := &File{}
	if f.Checkpoint, err = transparency.Trim(signed, policy); err != nil {
		return nil, nil, err
	}
	counted, err := transparency.Verify(f.Checkpoint, policy)
	if err != nil {
		return nil, nil, err
	}
	need := x.link(counted, head.Size)
	prover := r.Prover(head)
	for _, index := range slices.Sorted(maps.Keys(need)) {
		leaf, path, err := prover.Leaf(ctx, index)
		if err != nil {
			return nil, nil, err
		}
		l := Leaf{Index: index, Data: leaf, Path: path}
		if index == x.found.index {
			f.Subject = l
		} else {
			f.Links = append(f.Links, l)
		}
	}
	if len(f.Links) > maxLinks {
		return nil, nil, fmt.Errorf("%d linking leaves, the limit of a proof is %d", len(f.Links), maxLinks)
	}
	out := f.Marshal()
	report, err := Verify(out, Options{Genesis: opts.Genesis, At: opts.At})
	return out, report, err
}

// exporter gathers what a proof links to while a log is read.
type exporter struct {
	*replay
	subject Subject
	need    map[uint64]bool // whatever the subject is
	found   *found
}

// found is the subject with what it rests on.
type found struct {
	index uint64
	need  map[uint64]bool
	// exact is the first leaf behind it that says which policy was in force.
	exact uint64
}

// leaf replays a leaf and keeps what a proof needs of it.
func (x *exporter) leaf(index uint64, leaf []byte) error {
	kind := kindOf(leaf)
	// What the subject rests on is what stands before it, and so the newest before its own replay;
	// but a change of the policy is found by what it leads to.
	var f *found
	if !changesPolicy(kind) && x.policy != nil && x.means(index, kind, leaf) {
		f = x.rests(index, kind, leaf)
	}
	exact := x.exact
	if err := x.replay.leaf(index, kind, leaf, false); err != nil {
		return err
	}
	if changesPolicy(kind) {
		x.need[index] = true
		if at, ok := x.meansChange(index); ok {
			f = &found{index: at}
		}
	}
	if f != nil {
		x.found = f
	} else if x.found != nil && x.found.exact == 0 && x.exact != exact {
		x.found.exact = x.exact
	}
	return nil
}

// means reports whether a leaf that is no change of the policy is the subject.
func (x *exporter) means(index uint64, kind string, leaf []byte) bool {
	switch s := x.subject; {
	case s.Index != nil:
		return index == *s.Index
	case s.Result != nil && kind == envelope.TypeAttestationResult:
		r, err := consensus.ParseResult(leaf)
		return err == nil && r.Subject.Node == *s.Result && r.Verdict == attest.VerdictAffirming
	case s.Round != nil && kind == envelope.TypeRound:
		r, err := federated.ParseRound(leaf)
		return err == nil && r.Job == s.Round.Job && r.Round == s.Round.Round
	}
	return false
}

// meansChange reports whether a change of the policy is the subject, and where that stands, once the
// leaf at index was replayed.
func (x *exporter) meansChange(index uint64) (uint64, bool) {
	switch s := x.subject; {
	case s.Index != nil:
		return index, index == *s.Index
	case x.policy == nil || x.stepAt != index:
	case s.Policy != nil:
		return index, x.policy.Epoch() == *s.Policy
	case s.Entry != "":
		at, ok := x.entries[s.Entry]
		return at, ok && (at == index || at == 0 && index == 1)
	}
	return 0, false
}

// rests returns a subject with the leaves before it that it rests on.
func (x *exporter) rests(index uint64, kind string, leaf []byte) *found {
	f := &found{index: index, need: map[uint64]bool{}}
	switch kind {
	case envelope.TypeAttestationResult:
		if r, err := consensus.ParseResult(leaf); err == nil {
			x.member(f.need, r.Verifier.Node)
			x.affirmed(f.need, r.Verifier.Node)
			x.member(f.need, r.Subject.Node)
		}
	case envelope.TypeRound:
		if r, err := federated.ParseRound(leaf); err == nil {
			x.part(f.need, r.Aggregator)
			for _, a := range r.Accepted {
				x.part(f.need, a.Node)
			}
		}
	}
	return f
}

// member links a node's Credential.
func (x *exporter) member(need map[uint64]bool, ref identity.NodeRef) {
	if n := x.nodes[ref]; n != nil {
		need[n.credAt] = true
	}
}

// affirmed links the newest affirming result on a node, and its verifier's Credential of then.
func (x *exporter) affirmed(need map[uint64]bool, ref identity.NodeRef) {
	if n := x.nodes[ref]; n != nil && n.run != nil {
		need[n.runAt], need[n.runBy] = true, true
	}
}

// part links what makes a node eligible for a round.
func (x *exporter) part(need map[uint64]bool, ref identity.NodeRef) {
	n := x.nodes[ref]
	if n == nil {
		return
	}
	x.member(need, ref)
	x.affirmed(need, ref)
	edges := x.affirming(n, x.clock())
	for _, e := range edges[:min(2, len(edges))] {
		need[e.at] = true
		x.member(need, e.result.Verifier.Node)
		x.affirmed(need, e.result.Verifier.Node)
	}
}

// link returns all leaves that the file holds: the policy chain, what the subject rests on, what
// makes each counted cosigner count, the leaves that say which policy was in force behind the subject
// and last, and the log's end.
func (x *exporter) link(counted transparency.Verified, size uint64) map[uint64]bool {
	need := maps.Clone(x.need)
	maps.Copy(need, x.found.need)
	need[x.found.index] = true
	cosigners, _ := x.cosigners()
	for _, c := range cosigners {
		if !slices.Contains(counted.Orgs, c.Org) {
			continue
		}
		for ref, n := range x.nodes {
			if x.policy.CosignerName(ref, n.cred.BootSeq) == c.Name {
				x.member(need, ref)
				need[n.seatAt] = true
				x.affirmed(need, ref)
			}
		}
	}
	if x.found.exact != 0 {
		need[x.found.exact] = true
	}
	need[x.exact] = true
	if size-x.exact <= maxTail {
		for i := x.exact; i < size; i++ {
			need[i] = true
		}
	}
	return need
}
