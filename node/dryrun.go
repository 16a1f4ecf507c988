package node

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// A dry run asks three rooms what a proposal would do, and changes nothing:
//
//	draft ──► State.DryRun    on a copy: refusal, class, seats, who goes when
//	          attest.Appraise the last claims of every linked peer under the candidate: an entry
//	                          or a floor that demands more than a measurement is met or not
//	                          by claims, which are not ordered
//	          Ledger.Forecast the rounds that run, without those who go for either reason

// DryRun is the answer: what would happen if the proposal were ordered now.
type DryRun struct {
	consensus.Prediction
	// Refuses are linked peers whose last claims this node affirms now and would refuse, at
	// once or from a time on: it would close its link to them and say so in the log. Other
	// verifiers have other claims of the same nodes; where they agree the node is in no round
	// any more. Those that the present policy will refuse by then as well are left out.
	Refuses []ClaimsForecast `json:"refuses"`
	// Unjudged are nodes of which this node has no claims, itself among them: what is said
	// of them follows from what others found them to run. Ask a node that is linked to them.
	Unjudged []string                  `json:"unjudged"`
	Rounds   []federated.RoundForecast `json:"rounds"`
	Time     time.Time                 `json:"time"` // ordered, of the prediction
}

// ClaimsForecast is the verdict on one linked peer under the candidate policy.
type ClaimsForecast struct {
	Node   string        `json:"node"`
	Peer   string        `json:"peer"`
	Reason attest.Reason `json:"reason"`
	At     time.Time     `json:"at,omitzero"` // zero is at once
}

// dryRun predicts what the proposal in raw would do.
func (n *Node) dryRun(raw []byte) (DryRun, error) {
	if _, _, err := consensus.ParseProposal(raw); err != nil {
		return DryRun{}, malformed(err)
	}
	out := DryRun{Refuses: []ClaimsForecast{}, Unjudged: []string{}, Rounds: []federated.RoundForecast{}}
	var sessions []*mesh.Session
	judged := map[identity.PeerID]bool{}
	for _, l := range n.links() {
		sessions = append(sessions, l.Session())
		judged[l.Peer()] = true
	}
	var nodes []consensus.Node
	var was []stage
	n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
		out.Prediction, out.Time, nodes = s.DryRun(raw), s.Now(), s.Nodes()
		if out.After() != nil {
			was = stages(s, sessions)
		}
	})
	after := out.After()
	if after == nil {
		return out, nil
	}
	out.Refuses = refuses(n.now(), sessions, was, stages(after, sessions))
	for _, v := range nodes {
		if !judged[v.Peer] {
			out.Unjudged = append(out.Unjudged, v.Ref.String())
		}
	}
	n.machine.View(func(_ *consensus.State, l *federated.Ledger) {
		out.Rounds = l.Forecast(without{n.machine.members(after), out.Refuses})
	})
	return out, nil
}

// stage is what a state demands of each of some subjects from a time on.
type stage struct {
	from     time.Time
	policies []attest.Policy
}

// stages returns what s demands of the subjects of sessions, now and later.
func stages(s *consensus.State, sessions []*mesh.Session) []stage {
	var out []stage
	s.Ahead(func(later *consensus.State) {
		st := stage{from: later.Now()}
		for _, x := range sessions {
			st.policies = append(st.policies, later.AttestPolicy(x.Node, x.Roles...))
		}
		out = append(out, st)
	})
	return out
}

// refuses returns of which sessions the claims are affirmed under the stages of was, and
// refused under those of will from some time on. now is that of the claims' age.
func refuses(now time.Time, sessions []*mesh.Session, was, will []stage) []ClaimsForecast {
	out := []ClaimsForecast{}
	for i, s := range sessions {
		for k, st := range will {
			at := now
			if k > 0 {
				at = later(now, st.from)
			}
			before := was[0]
			for _, b := range was[1:] {
				if !b.from.After(at) {
					before = b
				}
			}
			if !attest.Appraise(s.Claims, before.policies[i], at).Affirming() {
				break // without the proposal too
			}
			if r := attest.Appraise(s.Claims, st.policies[i], at); !r.Affirming() && len(r.Reasons) > 0 {
				c := ClaimsForecast{Node: s.Node.String(), Peer: s.Peer.String(), Reason: r.Reasons[0]}
				if k > 0 {
					c.At = at
				}
				out = append(out, c)
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b ClaimsForecast) int { return strings.Compare(a.Node, b.Node) })
	return out
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// without is a membership less those whose claims would be refused at once.
type without struct {
	memberView
	refused []ClaimsForecast
}

func (w without) lost(peer identity.PeerID) bool {
	return slices.ContainsFunc(w.refused, func(c ClaimsForecast) bool { return c.At.IsZero() && c.Peer == peer.String() })
}

// Node implements federated.Members.
func (w without) Node(peer identity.PeerID) (federated.Member, bool) {
	m, ok := w.memberView.Node(peer)
	return m, ok && !w.lost(peer)
}

// Eligible implements federated.Members.
func (w without) Eligible() []federated.Member {
	return slices.DeleteFunc(w.memberView.Eligible(), func(m federated.Member) bool { return w.lost(m.Peer) })
}

// withdraw submits a signed withdrawal from a proposal.
func (n *Node) withdraw(ctx context.Context, raw []byte) (Submission, error) {
	w, _, err := consensus.ParseWithdrawal(raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	command, err := consensus.NewCommand(consensus.KindWithdrawal, raw)
	if err != nil {
		return Submission{}, malformed(err)
	}
	out, err := n.submit(ctx, command)
	if err != nil {
		return Submission{}, err
	}
	return Submission{ID: w.Proposal.String(), Epoch: uint64(n.machine.Epoch()), Organisations: []string{string(w.Organisation)}, LeafIndex: out.First}, nil
}

func (n *Node) handleDryRun(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxCommand))
	var out DryRun
	if err != nil {
		err = malformed(err)
	} else {
		out, err = n.dryRun(raw)
	}
	if err != nil {
		writeControlError(w, http.StatusBadRequest, &ControlError{"usage", err.Error(), "give a draft or a proposal that meshnode policy approve reads"})
		return
	}
	writeJSON(w, http.StatusOK, out)
}
