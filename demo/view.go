package demo

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The views hold what the director reads of the JSON that meshnode's reading commands
// print; fields it has no use for are left out.

type reason struct {
	Code   string `json:"code"`
	Claim  string `json:"claim"`
	Got    string `json:"got"`
	Want   string `json:"want"`
	Remedy string `json:"remedy"`
}

type nodeView struct {
	Node        string      `json:"node"`
	Peer        string      `json:"peer"`
	Started     bool        `json:"started"`
	Phase       string      `json:"phase"`
	PhaseReason *reason     `json:"phase_reason"`
	Epoch       uint64      `json:"epoch"`
	Measurement string      `json:"measurement"`
	Raft        raftView    `json:"raft"`
	Log         logView     `json:"log"`
	Peers       []peerView  `json:"peers"`
	Closed      []closeView `json:"closed"`
	Jobs        []jobView   `json:"jobs"`
}

type raftView struct {
	State  string   `json:"state"`
	Leader string   `json:"leader"`
	Voters []string `json:"voters"`
}

type logView struct {
	Size      uint64 `json:"size"`
	Root      string `json:"root"`
	Published struct {
		Size      uint64   `json:"size"`
		Root      string   `json:"root"`
		Cosigners []string `json:"cosigners"`
		Level     string   `json:"level"`
	} `json:"published"`
}

type peerView struct {
	Node        string    `json:"node"`
	State       string    `json:"state"`
	Code        string    `json:"code"`
	Reason      *reason   `json:"reason"`
	Measurement string    `json:"measurement"`
	Verdict     string    `json:"verdict"`
	Since       time.Time `json:"since"`
	Note        string    `json:"note"`
}

type closeView struct {
	Node    string    `json:"node"`
	Code    string    `json:"code"`
	Decided time.Time `json:"decided"`
	Closed  time.Time `json:"closed"`
}

type jobView struct {
	ID           string          `json:"id"`
	State        string          `json:"state"`
	Round        int             `json:"round"`
	Rounds       int             `json:"rounds"`
	Attempt      int             `json:"attempt"`
	Phase        string          `json:"phase"`
	Aggregator   string          `json:"aggregator"`
	Participants []string        `json:"participants"`
	Committed    []committedView `json:"committed"`
	Trainings    []trainingView  `json:"trainings"`
	ModelRoot    string          `json:"model_root"`
	WaitingFor   string          `json:"waiting_for"`
}

type committedView struct {
	Round        int      `json:"round"`
	Attempt      int      `json:"attempt"`
	Aggregator   string   `json:"aggregator"`
	Participants []string `json:"participants"`
	Accuracy     *float64 `json:"accuracy"`
	Cause        string   `json:"cause"`
	Excluded     []string `json:"excluded"`
}

type trainingView struct {
	Round int `json:"round"`
	Times int `json:"times"`
}

type auditView struct {
	OK        bool            `json:"ok"`
	Entries   uint64          `json:"entries"`
	Root      string          `json:"root"`
	Cosigners json.RawMessage `json:"cosigners"`
	Level     string          `json:"level"`
	Findings  []struct {
		Index   uint64 `json:"index"`
		Code    string `json:"code"`
		Message string `json:"message"`
	} `json:"findings"`
}

// peer returns what this node says of another.
func (v nodeView) peer(ref string) (peerView, bool) {
	i := slices.IndexFunc(v.Peers, func(p peerView) bool { return p.Node == ref })
	if i < 0 {
		return peerView{}, false
	}
	return v.Peers[i], true
}

// connected counts the peers this node has an attested connection with.
func (v nodeView) connected() int {
	n := 0
	for _, p := range v.Peers {
		if p.State == "connected" {
			n++
		}
	}
	return n
}

// published reports whether the newest checkpoint stands and covers everything.
func (v nodeView) published() bool {
	return v.Log.Published.Size > 0 && v.Log.Published.Size >= v.Log.Size &&
		(v.Log.Published.Level == "published" || v.Log.Published.Level == "strong")
}

// closing returns this node's record of having cut another off.
func (v nodeView) closing(ref string) (closeView, bool) {
	i := slices.IndexFunc(v.Closed, func(c closeView) bool { return c.Node == ref })
	if i < 0 {
		return closeView{}, false
	}
	return v.Closed[i], true
}

// refusal returns why this node is not let in, in its own words: the reason of its phase,
// else that of the first peer that refuses it.
func (v nodeView) refusal() (reason, bool) {
	if v.PhaseReason != nil && v.PhaseReason.Code != "" {
		return *v.PhaseReason, true
	}
	for _, p := range v.Peers {
		if p.State == "refuses_us" && p.Reason != nil && p.Reason.Code != "" {
			return *p.Reason, true
		}
	}
	return reason{}, false
}

// summary is one line for errors: what this node was last seen doing.
func (v nodeView) summary() string {
	s := fmt.Sprintf("%s is %s, %d peers connected, %d voters, log %d, published %d (%s)", v.Node, v.Phase,
		v.connected(), len(v.Raft.Voters), v.Log.Size, v.Log.Published.Size, v.Log.Published.Level)
	if r, ok := v.refusal(); ok {
		s += ", refused: " + r.String()
	}
	return s
}

func (r reason) String() string {
	s := r.Code
	if r.Claim != "" {
		s += ": " + r.Claim
	}
	if r.Got != "" || r.Want != "" {
		s += fmt.Sprintf(": got %s, want %s", r.Got, r.Want)
	}
	return s
}

// committed returns the record of a round.
func (j jobView) committed(round int) (committedView, bool) {
	i := slices.IndexFunc(j.Committed, func(c committedView) bool { return c.Round == round })
	if i < 0 {
		return committedView{}, false
	}
	return j.Committed[i], true
}

// lastCommitted returns the highest committed round, -1 for none.
func (j jobView) lastCommitted() int {
	last := -1
	for _, c := range j.Committed {
		last = max(last, c.Round)
	}
	return last
}

// times returns how often the node that was asked trained for a round.
func (j jobView) times(round int) int {
	for _, t := range j.Trainings {
		if t.Round == round {
			return t.Times
		}
	}
	return 0
}

// accuracies returns the held-out accuracy of each training round, in order.
func (j jobView) accuracies() []float64 {
	out := []float64{}
	for _, c := range j.Committed {
		if c.Accuracy != nil {
			out = append(out, *c.Accuracy)
		}
	}
	return out
}

func (j jobView) summary() string {
	s := fmt.Sprintf("job %s, round %d of %d, attempt %d, %s, aggregator %s, participants %s",
		j.State, j.Round, j.Rounds, j.Attempt, j.Phase, j.Aggregator, strings.Join(j.Participants, " "))
	if len(j.Committed) > 0 {
		s += fmt.Sprintf(", %d rounds committed, %d accuracies", max(0, j.lastCommitted()), len(j.accuracies()))
	}
	if j.WaitingFor != "" {
		s += ", waiting for " + j.WaitingFor
	}
	return s
}

// missing returns the wanted that are not in got.
func missing(want, got []string) []string {
	return slices.DeleteFunc(slices.Clone(want), func(s string) bool { return slices.Contains(got, s) })
}
