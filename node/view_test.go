package node

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
)

// TestExplainSeats: an operator reads which vote is missing, why, and whether it matters.
func TestExplainSeats(t *testing.T) {
	ref := func(org identity.OrgID) identity.NodeRef { return identity.NodeRef{Org: org, Name: "n1"} }
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	beta, gamma := consensus.Node{Ref: ref("beta")}, consensus.Node{Ref: ref("gamma")}
	for _, tc := range []struct {
		name   string
		beta   PeerState
		silent []consensus.Node
		want   []string // one warning each
	}{
		{"all answer", PeerConnected, nil, nil},
		{"one is gone", PeerUnreachable, []consensus.Node{beta}, []string{"beta/n1 holds a seat and has not answered since 03:04:05; 2 of 3 seats answer, 2 are needed"}},
		{"one came back", PeerConnected, []consensus.Node{beta}, []string{"beta/n1 was started anew and has not taken its seat again yet; 2 of 3 seats"}},
		{"one was never met", PeerUnreachable, []consensus.Node{gamma}, []string{"gamma/n1 holds a seat and has never answered; 2 of 3"}},
		{"one refuses us", PeerRefusesUs, []consensus.Node{beta}, []string{"beta/n1 holds a seat and refuses this node (revoked); 2 of 3 seats answer"}},
		{"a majority is lost", PeerConnected, []consensus.Node{beta, gamma}, []string{"beta/n1 was started anew", "gamma/n1", "too few seats answer: nothing can be ordered"}},
	} {
		s := &Status{Started: true, Peers: []PeerStatus{{Node: "beta/n1", State: tc.beta, Since: since, Code: attest.CodeRevoked}}}
		explainSeats(s, tc.silent, 3, 2, 3)
		if len(s.Warnings) != len(tc.want) {
			t.Errorf("%s: %q", tc.name, s.Warnings)
			continue
		}
		for i, want := range tc.want {
			if !strings.Contains(s.Warnings[i], want) {
				t.Errorf("%s: got %q, want %q", tc.name, s.Warnings[i], want)
			}
		}
		if before := (&Status{}); len(tc.silent) == 0 {
			if explainSeats(before, nil, 0, 2, 3); len(before.Warnings) > 0 {
				t.Errorf("before the start: %q", before.Warnings)
			}
		}
		if noted := s.Peers[0].Note != ""; noted != (len(tc.silent) > 0 && tc.silent[0].Ref == beta.Ref) {
			t.Errorf("%s: note %q", tc.name, s.Peers[0].Note)
		}
	}
}

func TestExplainSeatsSaysWhenNoneCanBeLost(t *testing.T) {
	s := &Status{Started: true}
	if explainSeats(s, nil, 2, 2, 3); len(s.Warnings) != 1 || !strings.Contains(s.Warnings[0], "all 2 seats are needed") {
		t.Errorf("got %q", s.Warnings)
	}
	s = &Status{Started: true} // of two that is always so, and said of the mesh
	if explainSeats(s, nil, 2, 2, 2); len(s.Warnings) != 0 {
		t.Errorf("a mesh of two: %q", s.Warnings)
	}
}
