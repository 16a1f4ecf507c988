package node

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// States and phases of JobStatus.
const (
	jobDone   = string(federated.StateDone)
	jobFailed = string(federated.StateFailed)

	phaseIdle       = "idle"
	phaseCollecting = "collecting"
	phaseClosed     = "closed"
)

// jobStatuses returns every job as this node sees it.
func (n *Node) jobStatuses() []JobStatus {
	out := []JobStatus{}
	for _, j := range n.jobs() {
		out = append(out, n.describe(j))
	}
	return out
}

func (n *Node) jobStatus(id string) (JobStatus, bool) {
	j, ok := n.job(federated.JobID(id))
	if !ok {
		return JobStatus{}, false
	}
	return n.describe(j), true
}

func (n *Node) describe(j federated.JobStatus) JobStatus {
	out := JobStatus{ID: string(j.Job.ID), Name: j.Job.Spec.Name, State: string(j.State), Phase: phaseIdle,
		Rounds: j.Job.Spec.Rounds, Participants: []string{}, Committed: []CommittedRound{}, Trainings: []Training{}}
	if root := j.ModelRoot(); !root.IsZero() {
		out.ModelRoot, out.Round = root.String(), len(j.Committed)-1
	}
	if o := j.Open; o != nil {
		out.Phase, out.Round, out.Attempt, out.Aggregator = phaseCollecting, int(o.Round), int(o.Attempt), o.Aggregator.Ref.String()
		if o.Closed != nil {
			out.Phase = phaseClosed
		}
		for _, m := range o.Participants {
			out.Participants = append(out.Participants, m.Ref.String())
		}
	}
	n.work.mu.Lock()
	defer n.work.mu.Unlock()
	out.WaitingFor = n.work.waiting[j.Job.ID]
	if j.Failed != nil {
		out.WaitingFor = j.Failed.String()
	}
	for _, c := range j.Committed {
		key := keptKey{j.Job.ID, c.Round}
		r := CommittedRound{Round: int(c.Round), Attempt: int(c.Attempt), Aggregator: c.Aggregator.Ref.String(), Participants: []string{},
			Cause: c.Cause, BaseRoot: c.BaseRoot.String(), ResultRoot: c.ResultRoot.String(), At: n.work.committed[key]}
		for _, a := range c.Closed.Accepted {
			r.Participants = append(r.Participants, a.Node.String())
		}
		for _, x := range c.Closed.Rejected {
			r.Excluded = append(r.Excluded, x.Node.String())
		}
		if a, ok := n.work.accuracy[key]; ok && a >= 0 {
			r.Accuracy = &a
		} else {
			r.Evaluating = !ok && c.Round > 0 && n.evaluates()
		}
		out.Committed = append(out.Committed, r)
	}
	for round, times := range n.work.trainings[j.Job.ID] {
		out.Trainings = append(out.Trainings, Training{int(round), times})
	}
	slices.SortFunc(out.Trainings, func(a, b Training) int { return a.Round - b.Round })
	return out
}

// certificate makes the offline proof of one committed round, with the inclusion of its
// leaf in the newest published checkpoint.
func (n *Node) certificate(ctx context.Context, id string, round int) (*federated.Certificate, error) {
	j, ok := n.job(federated.JobID(id))
	if !ok {
		return nil, fmt.Errorf("no job %q here", id)
	}
	if round < 0 || round >= len(j.Committed) {
		return nil, fmt.Errorf("round %d of job %s is not committed", round, id)
	}
	c := j.Committed[round]
	n.work.mu.Lock()
	openings := n.work.openings[keptKey{j.Job.ID, uint32(round)}]
	n.work.mu.Unlock()
	if openings == nil {
		return nil, fmt.Errorf("this node took no part in round %d and holds no openings of its commitments", round)
	}
	proof, err := n.waitProof(ctx, c.Leaf)
	if err != nil {
		return nil, err
	}
	return federated.NewCertificate(j.Job, c, openings, proof)
}

// waitProof waits until a leaf is under a published checkpoint.
func (n *Node) waitProof(ctx context.Context, leaf []byte) (*federated.LogProof, error) {
	index, ok := n.machine.leafIndex(leaf)
	if !ok {
		return nil, errors.New("the leaf is not in the log")
	}
	ctx, cancel := context.WithTimeout(ctx, submitTimeout)
	defer cancel()
	for {
		changed := n.changed.wait()
		p, _ := n.lastPublished()
		if p.Level >= transparency.Published && p.Size > index {
			return n.logProof(index, p)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("leaf %d is not under a published checkpoint yet", index)
		}
	}
}

func (n *Node) logProof(index uint64, p published) (*federated.LogProof, error) {
	hashes, err := n.machine.tree.InclusionProof(index, p.Size)
	if err != nil {
		return nil, err
	}
	out := &federated.LogProof{Origin: p.Origin, Index: index, Checkpoint: string(p.note), Proof: []string{}, Level: p.Level.String(), Cosigners: p.Orgs}
	for _, h := range hashes {
		out.Proof = append(out.Proof, base64.StdEncoding.EncodeToString(h[:]))
	}
	return out, nil
}

// Large says that the asker would rather fetch a large blob over a bulk connection: then it
// is told the size in place of the bytes, and asks again there.
type blobRequest struct {
	Root  chunk.Root `json:"root"`
	Large bool       `json:"large,omitempty"`
}

type blobReply struct {
	Found bool   `json:"found"`          // a frame with the blob follows,
	Size  uint64 `json:"size,omitempty"` // unless this is set
}

// fetchBlob returns a blob from this node or from a linked one. Whatever a peer sends is
// the blob only if it has the root.
func (n *Node) fetchBlob(ctx context.Context, root chunk.Root) ([]byte, error) {
	data, err := n.blobs.Get(root)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return data, err
	}
	for _, l := range n.links() {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		data, err := n.askBlob(ctx, l, root)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				n.log.Warn("blob not fetched", "root", root.String(), "from", n.nameOf(l.Peer()), "error", err)
			}
			continue
		}
		if _, err := n.blobs.Put(data, false); err != nil {
			return nil, err
		}
		return data, nil
	}
	return nil, fmt.Errorf("no linked node has the blob %s", root)
}

// askBlob fetches a blob from the peer of a link.
func (n *Node) askBlob(ctx context.Context, l mesh.Link, root chunk.Root) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardWithin)
	defer cancel()
	data, size, err := n.askBlobOver(root, len(n.addresses.of(l.Peer())) > 0, func() (mesh.Stream, error) {
		return n.open(ctx, l, n.protocols.blob)
	})
	if err == nil && size > 0 {
		data, _, err = n.askBlobOver(root, false, func() (mesh.Stream, error) {
			return n.openLarge(ctx, l, n.protocols.blob, bulkFrom)
		})
	}
	if err != nil {
		return nil, err
	}
	if got, err := chunk.RootOf(data); err != nil || got != root {
		return nil, fmt.Errorf("%s sent another blob", n.nameOf(l.Peer()))
	}
	return data, nil
}

// askBlobOver asks for a blob on a stream. It returns the blob or, if large is set and the
// blob is, its size.
func (n *Node) askBlobOver(root chunk.Root, large bool, open func() (mesh.Stream, error)) ([]byte, uint64, error) {
	s, err := open()
	if err != nil {
		return nil, 0, err
	}
	defer s.Close()
	if err := writeMessage(s, blobRequest{root, large}); err != nil {
		return nil, 0, err
	}
	// Whether it is there is known at once; only the bytes may take their time.
	_ = s.SetDeadline(n.now().Add(headWithin))
	var reply blobReply
	if err := readMessage(s, &reply); err != nil {
		return nil, 0, err
	}
	if !reply.Found {
		return nil, 0, fs.ErrNotExist
	}
	if large && reply.Size > 0 {
		return nil, reply.Size, nil
	}
	_ = s.SetDeadline(n.now().Add(forwardWithin))
	data, err := readFrame(s, federated.MaxModel)
	return data, 0, err
}

// handleBlobRequest sends a blob or its size, or says that it is not here.
func (n *Node) handleBlobRequest(_ mesh.Link, s mesh.Stream) {
	defer s.Close()
	_ = s.SetDeadline(n.now().Add(forwardWithin))
	var req blobRequest
	if readMessage(s, &req) != nil {
		return
	}
	data, err := n.blobs.Get(req.Root)
	reply := blobReply{Found: err == nil}
	if req.Large && len(data) >= bulkFrom {
		reply.Size = uint64(len(data))
	}
	if writeMessage(s, reply) == nil && reply.Found && reply.Size == 0 {
		_ = writeFrame(s, data)
	}
}

// policyView is what GET /v1/policy answers. The draft's nonce is fresh each time.
func (n *Node) policyView() PolicyView {
	var nonce [16]byte
	_, _ = rand.Read(nonce[:])
	var v PolicyView
	now := n.time()
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		v = PolicyView{MeshID: s.MeshID().String(), Incarnation: uint64(s.Incarnation()), Epoch: uint64(s.Epoch()), Base: s.Base(),
			Entries: s.Entries(), Revoked: s.Revoked(), Ends: s.EntryEnds(), Platforms: platformsView(s),
			Thresholds:  Thresholds{consensus.NarrowThreshold(s.N()), consensus.WidenThreshold(s.N()), consensus.LiftThreshold(s.N())},
			Suspensions: suspensionViews(s.Suspensions(s.Now())), Withdrawals: s.Withdrawals(),
			Draft: string(s.NewDraft(nonce, now)), Time: s.Now()}
		v.Parties, v.Limits, v.Witnesses = partyViews(s.Organisations()), s.Limits().WithDefaults(), s.Witnesses()
		for _, o := range s.Organisations() {
			if o.IsMember() {
				v.Organisations = append(v.Organisations, string(o.ID))
			}
		}
	})
	v.Provisional = n.provisionalViews()
	return v
}

// PolicyView is the allowed set in force, for people.
type PolicyView struct {
	MeshID        string            `json:"mesh_id"`
	Incarnation   uint64            `json:"incarnation"`
	Epoch         uint64            `json:"epoch"`
	Base          uint64            `json:"base"`
	Entries       []consensus.Entry `json:"entries"`
	Revoked       []consensus.Entry `json:"revoked"`
	Organisations []string          `json:"organisations"`
	Thresholds    Thresholds        `json:"thresholds"`
	// Parties are all organisations in force, neutral seats too, with their keys.
	Parties   []PartyView      `json:"parties"`
	Limits    consensus.Limits `json:"limits"`
	Witnesses []string         `json:"witnesses"`
	// Suspensions are those in force.
	Suspensions []SuspensionView `json:"suspensions"`
	// Withdrawals are those from proposals that have not expired.
	Withdrawals []consensus.Withdrawn `json:"withdrawals"`
	// Ends says of the entries that end when: their not_after, or earlier what an entry that
	// supersedes them set.
	Ends      map[string]time.Time `json:"ends"`
	Platforms PlatformsView        `json:"platforms"`
	// Provisional is what acts at this node and was not ordered yet.
	Provisional []ProvisionalView `json:"provisional"`
	Draft       string            `json:"draft"` // the frame of a proposal on this base, in YAML
	Time        time.Time         `json:"time"`
}

// Thresholds are how many organisations must sign.
type Thresholds struct {
	Narrow int `json:"narrow"`
	Widen  int `json:"widen"`
	// Lift counts the organisations besides the one that suspended, whose own word is enough.
	Lift int `json:"lift"`
}
