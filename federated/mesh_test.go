package federated

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/aggregate"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// fakeNode is one node with its keys, data and what it keeps of a round.
type fakeNode struct {
	Member
	signer signature.Signer
	govern signature.Signer
	public ed25519.PublicKey // govern
	data   *data.Dataset
	// kept is the work of the round in progress, keyed by round; trained counts how often
	// it really worked.
	kept    map[uint32]Work
	trained int
}

func (n *fakeNode) work(t testing.TB, job Job, o *OpenRound, base []byte) Work {
	t.Helper()
	w, ok := n.kept[o.Round]
	if !ok {
		var err error
		if w, err = job.Spec.Participate(job.ID, o.Round, n.Ref, base, n.data); err != nil {
			t.Fatal(err)
		}
		n.trained++
		n.kept[o.Round] = w
	}
	return w
}

func salt(n *fakeNode, round uint32) Digest {
	return Digest(sha256.Sum256(fmt.Appendf(nil, "salt of %s in %d", n.Ref, round)))
}

// fakeMesh is two replicas of a ledger and the membership they are given.
type fakeMesh struct {
	t        testing.TB
	ledger   *Ledger
	follower *Ledger
	epoch    identity.Epoch
	nodes    []*fakeNode
	gone     map[identity.PeerID]bool
	leaves   [][]byte
	// dir is the job's directory as nodes write it.
	dir fstest.MapFS
}

func (m *fakeMesh) Epoch() identity.Epoch { return m.epoch }

func (m *fakeMesh) Node(peer identity.PeerID) (Member, bool) {
	for _, n := range m.nodes {
		if n.Peer == peer && !m.gone[peer] {
			return n.Member, true
		}
	}
	return Member{}, false
}

func (m *fakeMesh) Eligible() []Member {
	var out []Member
	for _, n := range slices.Backward(m.nodes) { // any order
		if !m.gone[n.Peer] {
			out = append(out, n.Member)
		}
	}
	return out
}

func (m *fakeMesh) GovernKeys() []envelope.Key {
	var out []envelope.Key
	for _, n := range m.nodes {
		if n.public != nil {
			out = append(out, envelope.Key{Org: n.Ref.Org, Public: n.public})
		}
	}
	return out
}

// revoke narrows the allowed set: one node is out from now on.
func (m *fakeMesh) revoke(n *fakeNode) {
	m.gone[n.Peer] = true
	m.epoch++
}

var testMeshID = identity.MeshID(sha256.Sum256([]byte("mesh")))

func newSigner(t testing.TB, seed string) (signature.Signer, ed25519.PublicKey) {
	t.Helper()
	sum := sha256.Sum256([]byte(seed))
	key := ed25519.NewKeyFromSeed(sum[:])
	s, err := envelope.NewSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s, key.Public().(ed25519.PublicKey)
}

// newMesh has one node for each name ("org/node"); nodes of one organisation share its
// govern key.
func newMesh(t testing.TB, names ...string) *fakeMesh {
	t.Helper()
	m := &fakeMesh{t: t, ledger: NewLedger(testMeshID), follower: NewLedger(testMeshID), epoch: 1, gone: map[identity.PeerID]bool{}, dir: fstest.MapFS{}}
	seen := map[identity.OrgID]bool{}
	for i, name := range names {
		ref, err := identity.ParseNodeRef(name)
		if err != nil {
			t.Fatal(err)
		}
		n := &fakeNode{kept: map[uint32]Work{}}
		var public ed25519.PublicKey
		n.signer, public = newSigner(t, "peer "+name)
		n.Member = Member{
			Ref: ref, Peer: identity.PeerIDFromKey(public), Roles: []string{RoleTrainer, RoleAggregator}, Measurement: "abcd",
			Kind: attest.KindSim, Affirming: []uint64{uint64(10 + i), uint64(20 + i)},
		}
		if !seen[ref.Org] {
			n.govern, n.public = newSigner(t, "govern "+string(ref.Org))
			seen[ref.Org] = true
		}
		m.nodes = append(m.nodes, n)
	}
	return m
}

func (m *fakeMesh) node(name string) *fakeNode {
	for _, n := range m.nodes {
		if n.Ref.String() == name {
			return n
		}
	}
	m.t.Fatalf("no node %s", name)
	return nil
}

func (m *fakeMesh) nodeOf(peer identity.PeerID) *fakeNode {
	for _, n := range m.nodes {
		if n.Peer == peer {
			return n
		}
	}
	m.t.Fatalf("no peer %s", peer)
	return nil
}

// apply passes a command through the guard and both replicas, which must agree.
func (m *fakeMesh) apply(kind string, body []byte, err error) Outcome {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := CheckCommand(kind, body); err != nil {
		m.t.Fatalf("%s: the guard refuses: %v", kind, err)
	}
	before := m.ledger.Digest()
	out := m.ledger.Apply(kind, body, m)
	m.follower = m.restart(m.follower)
	m.follower.Apply(kind, bytes.Clone(body), m)
	if m.ledger.Digest() != m.follower.Digest() {
		m.t.Fatalf("%s: replicas differ", kind)
	}
	if changed := m.ledger.Digest() != before; changed == (out.Reason != nil) || changed != (out.Job != "") {
		m.t.Fatalf("%s: state changed %v with outcome %+v", kind, changed, out)
	}
	m.leaves = append(m.leaves, out.Leaves...)
	return out
}

// restart returns what somebody makes of l who has it from an image.
func (m *fakeMesh) restart(l *Ledger) *Ledger {
	m.t.Helper()
	raw, err := l.Image()
	if err != nil {
		m.t.Fatal(err)
	}
	again, err := RestoreLedger(testMeshID, raw)
	if err != nil {
		m.t.Fatal(err)
	}
	if again.Digest() != l.Digest() {
		m.t.Fatal("the restored ledger is another")
	}
	return again
}

// must applies a command that has to be accepted.
func (m *fakeMesh) must(kind string, body []byte, err error) {
	m.t.Helper()
	if out := m.apply(kind, body, err); out.Reason != nil {
		m.t.Fatalf("%s refused: %s", kind, out.Reason)
	}
}

// refuse applies a command that has to be refused with a code.
func (m *fakeMesh) refuse(code attest.Code, kind string, body []byte, err error) *attest.Reason {
	m.t.Helper()
	out := m.apply(kind, body, err)
	if out.Reason == nil || out.Reason.Code != code || out.Reason.Remedy == "" {
		m.t.Fatalf("%s: got %v, want a refusal with %s and a remedy", kind, out.Reason, code)
	}
	return out.Reason
}

// submit signs spec with the govern keys of those organisations and submits it.
func (m *fakeMesh) submit(spec Spec, orgs ...string) Job {
	m.t.Helper()
	env, err := NewJob(testMeshID, spec)
	if err != nil {
		m.t.Fatal(err)
	}
	for _, n := range m.nodes {
		if n.govern != nil && (len(orgs) == 0 || slices.Contains(orgs, string(n.Ref.Org))) {
			if err := env.Sign(n.govern); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	body, err := JobCommand(env.Marshal())
	m.must(KindJob, body, err)
	jobs := m.ledger.Jobs()
	return jobs[len(jobs)-1].Job
}

func (m *fakeMesh) status(id JobID) JobStatus {
	m.t.Helper()
	st, ok := m.ledger.Job(id)
	if !ok {
		m.t.Fatalf("no job %s", id)
	}
	return st
}

// open opens the next attempt, leaving out nodes for a cause.
func (m *fakeMesh) open(id JobID, cause string, without ...*fakeNode) *OpenRound {
	m.t.Helper()
	o, ok := m.status(id).Next()
	if !ok {
		m.t.Fatal("the job has ended")
	}
	o.Cause = cause
	for _, n := range without {
		o.Exclude = append(o.Exclude, n.Peer)
	}
	slices.Sort(o.Exclude)
	body, err := OpenCommand(o)
	m.must(KindRoundOpen, body, err)
	return m.status(id).Open
}

// base returns the model that an attempt starts from.
func (m *fakeMesh) base(o *OpenRound) []byte {
	if o.Round == 0 {
		return nil
	}
	return m.dir[RoundModelFile(o.Round-1)].Data
}

// attempt is what the nodes of an open attempt have done.
type attempt struct {
	open       *OpenRound
	deliveries map[identity.NodeRef]Delivery
	accepted   []Accepted
	statements [][]byte
}

// deliver makes every participant train (or find what it kept) and deliver; the
// aggregator admits them.
func (m *fakeMesh) deliver(job Job, o *OpenRound) *attempt {
	m.t.Helper()
	a := &attempt{open: o, deliveries: map[identity.NodeRef]Delivery{}}
	for _, p := range o.Participants {
		n := m.nodeOf(p.Peer)
		w := n.work(m.t, job, o, m.base(o))
		d := m.delivery(n, o, w)
		acc, why := o.Admit(job.Spec, n.Peer, m.base(o), d)
		if why != nil {
			m.t.Fatalf("%s: %s", n.Ref, why)
		}
		a.deliveries[n.Ref] = d
		a.accepted = append(a.accepted, acc)
		a.statements = append(a.statements, d.Statement)
	}
	return a
}

func (m *fakeMesh) delivery(n *fakeNode, o *OpenRound, w Work) Delivery {
	m.t.Helper()
	s := salt(n, o.Round)
	env, err := SignUpdate(n.signer, o.UpdateStatement(n.Member, w, s))
	if err != nil {
		m.t.Fatal(err)
	}
	return Delivery{env.Marshal(), Opening{w.Examples, s}, w.Update}
}

// closeCommand is the aggregator's close of what it admitted.
func (m *fakeMesh) closeCommand(a *attempt) ([]byte, error) {
	m.t.Helper()
	env, err := SignClose(m.nodeOf(a.open.Aggregator.Peer).signer, a.open.CloseStatement(a.accepted, nil))
	if err != nil {
		m.t.Fatal(err)
	}
	return CloseCommand(env.Marshal(), a.statements)
}

// result is what the aggregator computes.
func (m *fakeMesh) result(job Job, a *attempt) []byte {
	m.t.Helper()
	var in []Contribution
	for _, acc := range a.accepted {
		d := a.deliveries[acc.Node]
		in = append(in, Contribution{acc.Node, d.Opening.Examples, d.Update})
	}
	slices.Reverse(in) // arrival order is nobody's business
	model, err := job.Spec.Combine(a.open.Round, m.base(a.open), in)
	if err != nil {
		m.t.Fatal(err)
	}
	return model
}

func (m *fakeMesh) commitCommand(id JobID, model []byte) ([]byte, error) {
	m.t.Helper()
	st := m.status(id)
	root, err := chunk.RootOf(model)
	if err != nil {
		m.t.Fatal(err)
	}
	r, err := st.RoundStatement(root)
	if err != nil {
		m.t.Fatal(err)
	}
	env, err := SignRound(m.nodeOf(st.Open.Aggregator.Peer).signer, r)
	if err != nil {
		m.t.Fatal(err)
	}
	return CommitCommand(env.Marshal())
}

// finish closes and commits an attempt and writes the job's directory.
func (m *fakeMesh) finish(job Job, a *attempt) {
	m.t.Helper()
	body, err := m.closeCommand(a)
	m.must(KindRoundClose, body, err)
	model := m.result(job, a)
	body, err = m.commitCommand(job.ID, model)
	m.must(KindRoundCommit, body, err)
	m.write(job, a, model)
}

func (m *fakeMesh) write(job Job, a *attempt, model []byte) {
	m.t.Helper()
	st := m.status(job.ID)
	c := st.Committed[len(st.Committed)-1]
	openings := map[identity.NodeRef]Opening{}
	for ref, d := range a.deliveries {
		openings[ref] = d.Opening
		if job.Spec.Disclosure == DiscloseFull {
			m.dir[UpdateFile(c.Round, ref)] = &fstest.MapFile{Data: d.Update}
		}
	}
	cert, err := NewCertificate(job, c, openings, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	raw, err := cert.Marshal()
	if err != nil {
		m.t.Fatal(err)
	}
	m.dir[CertificateFile(c.Round)] = &fstest.MapFile{Data: raw}
	m.dir[RoundModelFile(c.Round)] = &fstest.MapFile{Data: model}
	m.dir[ModelFile] = &fstest.MapFile{Data: model}
}

// round runs one undisturbed round.
func (m *fakeMesh) round(job Job) {
	m.t.Helper()
	m.finish(job, m.deliver(job, m.open(job.ID, "")))
}

// give deals d to the nodes and returns the job's spec for it.
func (m *fakeMesh) give(d *data.Dataset, rounds int) Spec {
	m.t.Helper()
	parts, err := d.Dirichlet(len(m.nodes), 0.5, 8, 1)
	if err != nil {
		m.t.Fatal(err)
	}
	for i, n := range m.nodes {
		n.data = parts[i]
	}
	spec := DefaultSpec()
	spec.Name, spec.Features, spec.Labels, spec.Rounds = "digits", d.Features, d.Classes(), rounds
	spec.MinParticipants, spec.Disclosure, spec.Train.Epochs, spec.Model.Hidden = 3, DiscloseFull, 1, 8
	return spec
}

// small is data that trains in no time.
func small() *data.Dataset { return data.Digits(120, 4) }

func five() []string { return []string{"alpha/n1", "beta/n1", "gamma/n1", "delta/n1", "epsilon/n1"} }

// aggregatorOf predicts an attempt's aggregator the slow way.
func aggregatorOf(job Job, round uint32, members []Member) Member {
	best := members[0]
	score := func(m Member) string {
		h := hashParts("meshnode/v1 aggregator", []byte(job.ID), u64(uint64(round)), []byte(m.Ref.Org), []byte(m.Ref.Name))
		return string(h[:])
	}
	for _, m := range members[1:] {
		if strings.Compare(score(m), score(best)) > 0 {
			best = m
		}
	}
	return best
}

func refs(members []Member) string {
	var out []string
	for _, m := range members {
		out = append(out, m.Ref.String())
	}
	if !slices.IsSortedFunc(members, func(a, b Member) int { return aggregate.CompareNodes(a.Ref, b.Ref) }) {
		return "unordered"
	}
	return strings.Join(out, " ")
}
