package node

import (
	"crypto/ed25519"
	"fmt"
	"log/slog"
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

// Only changes are logged, and a heartbeat before a result expires.
func TestEdgesRecordChanges(t *testing.T) {
	e, s, at := newEdges(nil), testSubject(t, 1), time.Unix(1000, 0)
	e.record(s, []byte("evidence"), affirming(at))
	if got := e.take(); len(got) != 1 {
		t.Fatalf("%d findings, want the first", len(got))
	}
	e.record(s, []byte("newer evidence"), affirming(at.Add(time.Minute)))
	if got := e.take(); len(got) != 0 {
		t.Errorf("%d findings, want none: it says the same", len(got))
	}
	e.record(s, nil, affirming(at.Add(consensus.HeartbeatAfter)))
	if got := e.take(); len(got) != 1 || string(got[s.Peer].evidence) != "evidence" {
		t.Errorf("got %v, want a heartbeat over the evidence shown last", got)
	}
	e.record(s, nil, attest.Refuse(at.Add(consensus.HeartbeatAfter), attest.NewReason(attest.CodeRevoked, "measurement", "aa", "another")))
	batch := e.take()
	if len(batch) != 1 || batch[s.Peer].result.Code() != attest.CodeRevoked {
		t.Fatalf("got %v, want the new finding", batch)
	}
	// What was not ordered comes back, unless there is something newer by then.
	if e.giveBack(batch) != 1 {
		t.Error("a finding was lost")
	}
	newest := affirming(at.Add(time.Hour))
	e.record(s, nil, newest)
	e.giveBack(batch)
	if got := e.take(); got[s.Peer].result.Verdict != attest.VerdictAffirming {
		t.Errorf("an older finding replaced a newer one: %v", got)
	}
}

func TestEdgesAreBounded(t *testing.T) {
	e := newEdges(nil)
	for i := range maxPendingEdges + 10 {
		s := testSubject(t, 1)
		s.Peer += identity.PeerID(rune(i))
		e.record(s, nil, affirming(time.Unix(1000, 0)))
	}
	if len(e.pending) > maxPendingEdges {
		t.Errorf("%d pending findings", len(e.pending))
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
	held := func(m map[identity.PeerID]edge) (bytes int) {
		for _, ed := range m {
			bytes += len(ed.evidence)
		}
		return bytes
	}
	large := make([]byte, attest.MaxEvidence)
	for i := range 2 * maxPendingEdges {
		e.record(subject("mallory", i), large, attest.Refuse(at, attest.NewReason(attest.CodeNotGenuine, "", "", "")))
		if i%100 == 0 {
			e.take()
		}
	}
	for i := range 2 * maxPendingEdges {
		e.record(subject("mallory", -1-i), nil, affirming(at))
	}
	if got := held(e.last); got > edgeEvidence || got != e.held["mallory"] {
		t.Errorf("%d MiB of evidence are held, %d counted", got>>20, e.held["mallory"]>>20)
	}
	if got := held(e.pending); got > edgeEvidence {
		t.Errorf("%d MiB of evidence wait", got>>20)
	}
	for i := range maxPendingEdges / edgeShare {
		s := subject("beta", i)
		e.record(s, large[:1<<10], affirming(at))
		if _, waits := e.pending[s.Peer]; !waits {
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
		ref: identity.NodeRef{Org: "alpha", Name: "n1"}, evidenceDir: dir}
	raw, err := n.signEdge(edge{testSubject(t, 2), []byte("the evidence"), affirming(time.Now())})
	if err != nil {
		t.Fatal(err)
	}
	r, err := consensus.VerifyResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	opening, err := dir.ReadFile(r.Evidence, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if got := consensus.EvidenceCommitment([32]byte(opening[:32]), opening[32:]); got != r.Evidence || string(opening[32:]) != "the evidence" {
		t.Errorf("the file does not open the commitment %s", r.Evidence)
	}
	if st, err := os.Stat(dir.Path(r.Evidence)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: the opening is private", st.Mode(), err)
	}
}

// A finding about a peer whose Credential the machine refuses fills no disk.
func TestRefusedCredentialLeavesNoEvidence(t *testing.T) {
	m, _ := testMachine(t)
	at := t.TempDir()
	dir, err := durable.Open(at)
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	refused, unknown := testSubject(t, 2), testSubject(t, 3)
	n := &Node{machine: m, genesis: m.state.Genesis(), key: key, self: identity.PeerIDFromKey(public), log: slog.New(slog.DiscardHandler),
		ref: identity.NodeRef{Org: "alpha", Name: "n1"}, evidenceDir: dir, badCredentials: map[identity.PeerID]error{refused.Peer: errMalformed}}
	files := func() int {
		entries, err := os.ReadDir(at)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := files()
	if got := n.signEdges(t.Context(), map[identity.PeerID]edge{refused.Peer: {refused, []byte("evidence"), affirming(time.Now())}}); len(got) != 0 || files() != before {
		t.Errorf("%d statements, %d files", len(got), files()-before)
	}
	if got := n.signEdges(t.Context(), map[identity.PeerID]edge{unknown.Peer: {unknown, []byte("evidence"), affirming(time.Now())}}); len(got) != 1 || files() != before+1 {
		t.Errorf("of one whose Credential may still come: %d statements, %d files", len(got), files()-before)
	}
}
