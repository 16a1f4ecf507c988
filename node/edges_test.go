package node

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

func testSubject(t *testing.T, seed byte) mesh.Subject {
	t.Helper()
	key := ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))
	return mesh.Subject{Peer: identity.PeerIDFromKey(key.Public().(ed25519.PublicKey)), Node: identity.NodeRef{Org: "beta", Name: "n1"}}
}

func affirming(at time.Time) attest.Result {
	return attest.Result{Verdict: attest.VerdictAffirming, Kind: attest.KindSim, Measurement: "aa", Reference: "0011223344556677", At: at}
}

// taken empties the outbox, as if all in it had been ordered.
func (e *edges) taken() (out []edge) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.box.queue) > 0 {
		out = append(out, e.box.queue[0].edge)
		e.box.remove(e.box.queue[0])
	}
	return out
}

// Only changes are logged, and a heartbeat before a result expires.
func TestEdgesRecordChanges(t *testing.T) {
	e, s, at := newEdges(nil), testSubject(t, 1), time.Unix(1000, 0)
	e.record(s, []byte("evidence"), affirming(at))
	if got := e.taken(); len(got) != 1 {
		t.Fatalf("%d findings, want the first", len(got))
	}
	e.record(s, []byte("newer evidence"), affirming(at.Add(time.Minute)))
	if got := e.taken(); len(got) != 0 {
		t.Errorf("%d findings, want none: it says the same", len(got))
	}
	e.record(s, nil, affirming(at.Add(consensus.HeartbeatAfter)))
	if got := e.taken(); len(got) != 1 || string(got[0].evidence) != "evidence" {
		t.Errorf("got %v, want a heartbeat over the evidence shown last", got)
	}
	// What changes while nothing is ordered waits in its order, and nothing replaces it.
	e.record(s, nil, attest.Refuse(at.Add(consensus.HeartbeatAfter), attest.NewReason(attest.CodeRevoked, "measurement", "aa", "another")))
	e.record(s, nil, affirming(at.Add(time.Hour)))
	got := e.taken()
	if len(got) != 2 || got[0].result.Code() != attest.CodeRevoked || !got[1].result.Affirming() {
		t.Errorf("got %v, want both findings in their order", got)
	}
}

// A node whose clock was hours ahead until it proved itself to be fresh says again, by the mesh's time, what
// it found before: what it said then the log takes from nobody, and it holds up nothing.
func TestFindingsOfAClockThatWasAhead(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	n, s := c.nodes[0], testSubject(t, 1)
	now := n.time()
	n.edges.record(s, []byte("evidence"), affirming(now.Add(3*time.Hour)))
	n.edges.signWaiting()
	n.edges.record(s, nil, affirming(now))
	if got := n.edges.status().Waiting; got != 2 {
		t.Fatalf("%d findings wait, want both", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n.edges.head(ctx)
	if got := n.edges.taken(); len(got) != 1 || !got[0].result.At.Equal(now) {
		t.Errorf("%d findings wait, want that of now", len(got))
	}
	n.edges.record(s, nil, affirming(now.Add(-time.Second)))
	if got := n.edges.taken(); len(got) != 0 {
		t.Error("one that was overtaken by another says something new")
	}
}

// Before anything is signed a heartbeat takes the place of what says the same.
func TestUnsignedHeartbeatsReplaceEachOther(t *testing.T) {
	e, s, at := newEdges(nil), testSubject(t, 1), time.Unix(1000, 0)
	for i := range 10 {
		e.record(s, []byte("evidence"), affirming(at.Add(time.Duration(i)*consensus.HeartbeatAfter)))
	}
	if held := e.box.held["beta"]; held != len("evidence") {
		t.Errorf("%d bytes of evidence counted", held)
	}
	if got := e.taken(); len(got) != 1 || !got[0].result.At.Equal(at.Add(9*consensus.HeartbeatAfter)) {
		t.Errorf("got %v, want the newest alone", got)
	}
	e.record(s, nil, affirming(at.Add(10*consensus.HeartbeatAfter)))
	e.box.sign(e.box.queue[0], []byte("signed"))
	e.record(s, nil, affirming(at.Add(11*consensus.HeartbeatAfter)))
	if got := e.taken(); len(got) != 2 {
		t.Errorf("got %v, want what was signed to stay", got)
	}
	if len(e.box.held)+len(e.box.ofOrg)+len(e.box.ofPeer) != 0 {
		t.Errorf("an empty outbox counts %v, %v, %v", e.box.held, e.box.ofOrg, e.box.ofPeer)
	}
}

// An organisation whose peers show ever more evidence is remembered up to its part, while the
// findings about others find their places.
func TestEdgesBoundEachOrganisation(t *testing.T) {
	e, at := newEdges(nil), time.Unix(1000, 0)
	subject := func(org identity.OrgID, i int) mesh.Subject {
		s := testSubject(t, 1)
		s.Peer, s.Node.Org = identity.PeerID(fmt.Sprint(org, i)), org
		return s
	}
	large := make([]byte, attest.MaxEvidence)
	for i := range 2 * maxPendingEdges {
		e.record(subject("mallory", i), large, attest.Refuse(at, attest.NewReason(attest.CodeNotGenuine, "", "", "")))
		if i%100 == 0 {
			e.taken()
		}
	}
	for i := range 2 * maxPendingEdges {
		e.record(subject("mallory", -1-i), nil, affirming(at))
	}
	last, waits := 0, 0
	for _, ed := range e.last {
		last += len(ed.evidence)
	}
	for _, f := range e.box.queue {
		waits += len(f.evidence)
	}
	if last != e.held["mallory"] || waits != e.box.held["mallory"] || last+waits > edgeEvidence {
		t.Errorf("%d and %d MiB of evidence are held, %d and %d counted", last>>20, waits>>20, e.held["mallory"]>>20, e.box.held["mallory"]>>20)
	}
	if got := e.box.ofOrg["mallory"]; got > maxPendingEdges/edgeShare {
		t.Errorf("%d findings about one organisation wait", got)
	}
	for i := range maxPendingEdges / edgeShare {
		s := subject("beta", i)
		e.record(s, large[:1<<10], affirming(at))
		if e.box.ofPeer[s.Peer] == 0 {
			t.Fatalf("finding %d about another organisation's peers is lost", i)
		}
	}
}

// The log commits to the evidence; the opening is a file of this node alone.
func TestSignEdgeKeepsTheOpening(t *testing.T) {
	m, _ := testMachine(t)
	dir, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{machine: m, genesis: m.state.Genesis(), key: key, self: identity.PeerIDFromKey(public),
		ref: identity.NodeRef{Org: "alpha", Name: "n1"}, evidence: &evidenceStore{data: dir, here: "boot-1/evidence"}}
	raw, err := n.signEdge(edge{testSubject(t, 2), []byte("the evidence"), affirming(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	r, err := consensus.VerifyResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	opening, err := n.evidence.read(r.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	if got := consensus.EvidenceCommitment([32]byte(opening[:32]), opening[32:]); got != r.Evidence || string(opening[32:]) != "the evidence" {
		t.Errorf("the file does not open the commitment %s", r.Evidence)
	}
	if st, err := os.Stat(dir.Path("boot-1", "evidence", "beta", "n1", r.Evidence)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: the opening is private", st.Mode(), err)
	}
}
