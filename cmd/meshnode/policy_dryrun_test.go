package main

import (
	"crypto/ed25519"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
)

// fakeNode answers every request of a control socket with one JSON value.
func fakeNode(t *testing.T, answer any) (socket string, asked func() string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "node") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, node.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan string, 10)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- r.Method + " " + r.URL.Path + " " + string(body)
		_ = json.NewEncoder(w).Encode(answer)
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	return dir, func() string {
		select {
		case r := <-requests:
			return r
		default:
			return ""
		}
	}
}

const dryRunDraft = `mesh_id: 1111111111111111111111111111111111111111111111111111111111111111
incarnation: 0
base: 3
nonce: "00000000000000000000000000000000"
created: 2026-01-01T00:00:00Z
expires: 2026-01-08T00:00:00Z
actions:
  - remove_entry: {id: "0011223344556677"}
`

func nodeRef(t *testing.T, s string) identity.NodeRef {
	t.Helper()
	ref, err := identity.ParseNodeRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestPolicyDryRun(t *testing.T) {
	draft := filepath.Join(t.TempDir(), "draft.yaml")
	if err := os.WriteFile(draft, []byte(dryRunDraft), 0o600); err != nil {
		t.Fatal(err)
	}
	gamma, beta := nodeRef(t, "gamma/n1"), nodeRef(t, "beta/n2")
	lacks := attest.NewReason(attest.CodeThreshold, "proposal", "1 organisations [alpha]", "2 of 3 to narrow")
	tcb := attest.NewReason(attest.CodeTCBBelowFloor, "tcb", "3", "4")
	peer := identity.PeerIDFromKey(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
	answer := node.DryRun{
		Prediction: consensus.Prediction{Changes: []string{"- revoke entry 0011223344556677"}, Class: consensus.ClassNarrow, Epoch: 4, Base: 3, AsIs: &lacks,
			Signatures: consensus.Signatures{Organisations: []identity.OrgID{"alpha"}, Want: 2, Of: 3, Missing: 1},
			Seats:      consensus.SeatForecast{Before: 3, After: 2, Quorum: 2, Lost: []identity.NodeRef{gamma}, Survives: true},
			Departures: []consensus.Departure{
				{Node: gamma, Peer: peer, Entry: "0011223344556677", Code: attest.CodeRevoked, Seat: true},
				{Node: beta, Peer: peer, Entry: "8899aabbccddeeff", Code: attest.CodeExpired, At: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC), Anyway: true}},
			Returns: []identity.NodeRef{beta}},
		Refuses:  []node.ClaimsForecast{{Node: "beta/n3", Reason: tcb}},
		Unjudged: []string{"alpha/n1"},
		Rounds:   []federated.RoundForecast{{Job: "0011", Name: "trial", Round: 2, Attempt: 1, Lost: []identity.NodeRef{gamma}, Fate: federated.FateGoesOn}},
	}
	socket, asked := fakeNode(t, &answer)
	code, out, stderr := meshnode(t, "policy", "dry-run", draft, "--node", socket)
	if code != exitOK {
		t.Fatalf("exit %d: %s%s", code, out, stderr)
	}
	if got := asked(); !strings.HasPrefix(got, `POST /v1/dry-run {"payloadType"`) || !strings.Contains(got, `"signatures":[]`) {
		t.Errorf("asked %s", got)
	}
	for _, want := range []string{
		"  - revoke entry 0011223344556677\n",
		"signatures narrow: 2 of 3 organisations needed, signed by alpha; 1 more\n",
		"seats      3 now, 2 after it, 2 are needed; lost: gamma/n1: the mesh goes on\n",
		"then       epoch 4, base 3\n",
		"at once               gamma/n1  revoked  entry 0011223344556677  goes, with its seat\n",
		"2027-01-01T00:00:00Z  beta/n2   expired  entry 8899aabbccddeeff  goes (without this proposal too)\n",
		"returns    beta/n2 is allowed again",
		"claims     this node would refuse beta/n3: tcb_below_floor: tcb: got 3, want 4\n",
		"none of: alpha/n1\n",
		"round      2 of job 0011 (trial) loses gamma/n1: goes on\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("lacks %q:\n%s", want, out)
		}
	}
	// --json is what the node said.
	code, out, _ = meshnode(t, "policy", "dry-run", draft, "--node", socket, "--json")
	var back node.DryRun
	if err := json.Unmarshal([]byte(out), &back); err != nil || code != exitOK || back.Seats.Lost[0] != gamma || back.Departures[1].At.Year() != 2027 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	// What is refused, or stops the mesh, ends with 1.
	loss := attest.NewReason(attest.CodeQuorumLoss, "proposal", "evicts the seats [gamma/n1]", "2 of 3 seats to remain")
	answer.Refused, answer.AsIs, answer.Seats.Survives, answer.Seats.After = &loss, &loss, false, 1
	if code, out, _ = meshnode(t, "policy", "dry-run", draft, "--node", socket); code != exitRefused ||
		!strings.Contains(out, "REFUSED    quorum_loss: proposal: got evicts the seats [gamma/n1], want 2 of 3 seats to remain: whoever signs it\n  try: ") ||
		!strings.Contains(out, "THE MESH STOPS") {
		t.Errorf("exit %d: %s", code, out)
	}
	answer.Refused = nil
	if code, _, _ = meshnode(t, "policy", "dry-run", draft, "--node", socket); code != exitRefused {
		t.Errorf("a confirmed loss of the quorum: exit %d", code)
	}
	// Without a node, or without a proposal.
	if code, out, _ = meshnode(t, "policy", "dry-run", draft, "--node", t.TempDir(), "--json"); code != exitUnavailable || !strings.Contains(out, `"error":{"code":"unavailable"`) {
		t.Errorf("exit %d: %s", code, out)
	}
	if code, out, _ = meshnode(t, "policy", "dry-run", draft+"x", "--node", socket); code != exitUsage {
		t.Errorf("exit %d: %s", code, out)
	}
}
