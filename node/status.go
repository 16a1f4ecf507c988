package node

import (
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Status is what meshnode status prints: one node's own view of itself, its peers and the
// mesh. Field names are a contract.
type Status struct {
	Node        string         `json:"node"`
	Peer        string         `json:"peer"`
	MeshID      string         `json:"mesh_id"`
	Incarnation uint64         `json:"incarnation"`
	Epoch       uint64         `json:"epoch"`
	Base        uint64         `json:"base"`
	Started     bool           `json:"started"`
	Phase       Phase          `json:"phase"`
	PhaseReason *attest.Reason `json:"phase_reason"`
	Roles       []string       `json:"roles"`
	Kind        string         `json:"kind"`
	Measurement string         `json:"measurement"`
	Simulated   bool           `json:"simulated"`
	Raft        RaftStatus     `json:"raft"`
	Seats       []SeatStatus   `json:"seats"`
	State       StateStatus    `json:"state"`
	Log         LogStatus      `json:"log"`
	// Provisional is what acts at this node and was not ordered yet.
	Provisional []ProvisionalView `json:"provisional"`
	Peers       []PeerStatus      `json:"peers"`
	Closed      []Closing         `json:"closed"`
	Jobs        []JobStatus       `json:"jobs"`
	Warnings    []string          `json:"warnings"`
	// Counters are mesh.Mesh.Counters: refusals by code, verdicts by mode.
	Counters map[string]uint64 `json:"counters"`
}

// Phase is where a node stands on its way into the mesh.
type Phase string

// The phases.
const (
	PhaseEnrolling Phase = "enrolling" // no Credential yet
	PhaseFounding  Phase = "founding"  // a seat before Bootstrap is committed
	PhaseJoining   Phase = "joining"   // no peer has admitted it yet, or it is catching up
	PhaseMember    Phase = "member"    // admitted and fresh
	PhaseSuspended Phase = "suspended" // linked and voting, but no data: suspended, or about to be evicted
	PhaseRefused   Phase = "refused"   // every peer that answers refuses it
	PhaseDraining  Phase = "draining"  // on its operator's word; it cannot be stopped yet
	PhaseDrained   Phase = "drained"   // it can be stopped without anybody missing it
	PhaseStopping  Phase = "stopping"
)

// RaftStatus is a seat's place in consensus; State is "none" on other members.
type RaftStatus struct {
	State   string   `json:"state"`
	Term    uint64   `json:"term"`
	Leader  string   `json:"leader"`
	Voters  []string `json:"voters"`
	Applied uint64   `json:"applied"`
}

// SeatStatus is one organisation's seat in the ordered state; Node is empty while it is vacant.
type SeatStatus struct {
	Organisation string `json:"organisation"`
	Node         string `json:"node"`
}

// StateStatus names the ordered state: nodes that have applied equally many commands have
// equal digests, or two histories.
type StateStatus struct {
	Commands uint64 `json:"commands"`
	Digest   string `json:"digest"`
}

// LogStatus is the transparency log as this node built it and as it was last published.
type LogStatus struct {
	Size uint64 `json:"size"`
	Root string `json:"root"`
	// Copied is how many commands came before the newest published copy of the state that this
	// node holds; it can start others from there.
	Copied uint64 `json:"copied,omitempty"`
	// Key is the log's verifier key (c2sp.org/signed-note): what an outside witness is told.
	Key       string          `json:"key"`
	Published PublishedStatus `json:"published"`
	// Outbox is what this node has found and the log does not hold yet.
	Outbox OutboxStatus `json:"outbox"`
	// Conflicts are other histories of the log that this node was shown.
	Conflicts []ConflictStatus `json:"conflicts"`
	// Disk is the room that is left for it.
	Disk *DiskStatus `json:"disk,omitempty"`
}

// PublishedStatus is the newest checkpoint that this node has verified.
type PublishedStatus struct {
	Size      uint64   `json:"size"`
	Root      string   `json:"root"`
	Cosigners []string `json:"cosigners"`
	Level     string   `json:"level"`
	// Outside says what the outside witnesses that the policy names have cosigned of it.
	Outside []OutsideStatus `json:"outside"`
}

// OutsideStatus is one outside witness: At is when it cosigned the newest published checkpoint, if
// it has; Size and Last name the newest one that it is known to have cosigned, and when; Error is why this
// node, as leader, could not show it one, since when.
type OutsideStatus struct {
	Name  string     `json:"name"`
	At    *time.Time `json:"at"`
	Size  uint64     `json:"size,omitempty"`
	Last  *time.Time `json:"last,omitempty"`
	Error string     `json:"error,omitempty"`
	Since *time.Time `json:"since,omitempty"`
}

// PeerStatus is one other node as this node sees it.
type PeerStatus struct {
	Node        string         `json:"node"`
	Peer        string         `json:"peer,omitempty"`
	URL         string         `json:"url,omitempty"`
	State       PeerState      `json:"state"`
	Code        attest.Code    `json:"code,omitempty"`
	Reason      *attest.Reason `json:"reason"`
	Kind        string         `json:"kind,omitempty"`
	Measurement string         `json:"measurement,omitempty"`
	Verdict     attest.Verdict `json:"verdict,omitempty"`
	// Proof says whether the log holds this node's verdict, and Epoch what the peer judges
	// under; both only while it is connected.
	Proof Proof          `json:"proof,omitempty"`
	Epoch identity.Epoch `json:"epoch,omitempty"`
	// SharedHardware names the machine that a connected peer shares with another organisation's.
	SharedHardware string    `json:"shared_hardware,omitempty"`
	Seat           bool      `json:"seat"`
	Since          time.Time `json:"since"`
	Note           string    `json:"note,omitempty"`
	AttestationStatus
}

// PeerState is what connects, or does not, two nodes.
type PeerState string

// The peer states.
const (
	PeerConnected   PeerState = "connected"
	PeerUnreachable PeerState = "unreachable"
	PeerRefused     PeerState = "refused"    // we refuse it
	PeerRefusesUs   PeerState = "refuses_us" // it refuses us
	PeerEvicted     PeerState = "evicted"    // an ordered decision put it out
	PeerRetired     PeerState = "retired"    // a newer boot of the node is known
)

// Closing is this node's own record of cutting off a peer after an ordered decision.
type Closing struct {
	Node    string      `json:"node"`
	Peer    string      `json:"peer"`
	Code    attest.Code `json:"code"`
	Decided time.Time   `json:"decided"` // when the decision was applied here
	Closed  time.Time   `json:"closed"`  // when the link was down
}

// JobStatus is one federated job as this node sees it.
type JobStatus struct {
	ID           string           `json:"id"`
	Name         string           `json:"name"`
	State        string           `json:"state"`
	Phase        string           `json:"phase"`
	Round        int              `json:"round"`
	Rounds       int              `json:"rounds"`
	Attempt      int              `json:"attempt"`
	Aggregator   string           `json:"aggregator"`
	Participants []string         `json:"participants"`
	Committed    []CommittedRound `json:"committed"`
	Trainings    []Training       `json:"trainings"`
	ModelRoot    string           `json:"model_root"`
	WaitingFor   string           `json:"waiting_for,omitempty"`
}

// ended reports whether nothing about the job changes any more.
func (j JobStatus) ended() bool {
	return j.State == jobFailed || j.State == jobDone && !slices.ContainsFunc(j.Committed, func(r CommittedRound) bool { return r.Evaluating })
}

// CommittedRound is one finished round. Accuracy is on this node's own hold-out data and
// absent where it has none; round 0 is the statistics round and has none either.
type CommittedRound struct {
	Round        int       `json:"round"`
	Attempt      int       `json:"attempt"`
	Aggregator   string    `json:"aggregator"`
	Participants []string  `json:"participants"`
	Excluded     []string  `json:"excluded,omitempty"`
	Cause        string    `json:"cause,omitempty"`
	BaseRoot     string    `json:"base_root"`
	ResultRoot   string    `json:"result_root"`
	Accuracy     *float64  `json:"accuracy,omitempty"`
	Evaluating   bool      `json:"evaluating,omitempty"` // the accuracy is still to come
	At           time.Time `json:"at"`
}

// Training counts how often this node trained for one round: more than once means that
// work was done again.
type Training struct {
	Round int `json:"round"`
	Times int `json:"times"`
}
