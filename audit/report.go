package audit

import (
	"fmt"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Codes of findings that belong to a log as a whole. Those of single leaves are codes of
// packages transparency and attest.
const (
	CodeGenesisMismatch   = "genesis_mismatch"   // leaf 0 is another mesh than the auditor's genesis
	CodeGenesisInvalid    = "genesis_invalid"    // leaf 0 is no genesis signed by all founders
	CodeBootstrapInvalid  = "bootstrap_invalid"  // leaf 1 is no Bootstrap signed by all founders
	CodeRecoveryInvalid   = "recovery_invalid"   // a Recovery or its Bootstrap that does not hold
	CodeCheckpointInvalid = "checkpoint_invalid" // malformed, of another origin or not by the log key
	CodeCheckpointMissing = "checkpoint_missing" // there are tiles, but no checkpoint
	CodeUnpublished       = "unpublished"        // too few organisations have cosigned
	CodeStale             = "stale"              // the quorum's cosignatures are too old
	CodeUnavailable       = "unavailable"        // the rest of the log could not be read
	CodeAhead             = "ahead"              // a result of a time to come, or after the checkpoint was cosigned
	CodeUnknownLeaf       = "unknown_leaf"       // a kind of leaf that this release does not know
	CodeNotDerived        = "not_derived"        // an unsigned leaf that does not follow from those before
	CodeDerivedMissing    = "derived_missing"    // a leaf that follows from those before is not there
	CodeRolledBack        = "rolled_back"        // the checkpoint is older than one that was audited before
	CodeForked            = "forked"             // the log is not the one that was audited before
	CodeMoreFindings      = "more_findings"      // the list is cut here
)

// Report is the outcome of an audit of a log.
type Report struct {
	OK        bool                   `json:"ok"`
	Entries   uint64                 `json:"entries"` // leaves that could be read
	Root      transparency.Hash      `json:"root"`    // of the checkpoint
	Cosigners []identity.OrgID       `json:"cosigners"`
	Level     transparency.Level     `json:"level"`
	Findings  []transparency.Finding `json:"findings"`
	// Recoveries are the places at which the log goes on in a higher incarnation.
	Recoveries []Recovered `json:"recoveries,omitempty"`
	// Disclosed is what disclosed evidence says; nil where none was given.
	Disclosed *Reappraised `json:"disclosed,omitempty"`

	// State is what the leaves lead to; nil where they do not hold.
	State *consensus.State `json:"-"`
	// Outside are the witnesses of no organisation that have cosigned the checkpoint, of Witnesses
	// that the policy names.
	Outside   []transparency.Witnessed `json:"outside,omitempty"`
	Witnesses int                      `json:"-"`

	Origin       string    `json:"-"` // of the checkpoint
	Size         uint64    `json:"-"` // of the checkpoint
	Fresh        time.Time `json:"-"` // when the published quorum last cosigned
	Simulated    bool      `json:"-"` // genesis admits simulated evidence
	GenesisGiven bool      `json:"-"`
	Members      int       `json:"-"` // nodes with a Credential at the end
	Results      int       `json:"-"` // attestation results among the leaves
	Policies     int       `json:"-"` // policy changes among the leaves
	Rounds       int       `json:"-"` // committed training rounds among the leaves
	Suspensions  int       `json:"-"` // suspensions and lifts among the leaves
	Claims       []Claimed `json:"-"` // one for each of Options.Claims, in their order
	// GovernKeys are all govern keys that were in force at some place in the log.
	GovernKeys []envelope.Key `json:"-"`
}

// Undecided reports whether the findings, if there are any, say no more than that the log
// is too old or could not be read, or that evidence was withheld that was asked for.
func (r *Report) Undecided() bool {
	for _, f := range r.Findings {
		if f.Code == CodeMoreFindings {
			continue // they begin with what decides, if any of them does
		}
		// A result that was ordered after it had expired is stale too, and stands before the end.
		if f.Code != CodeUnavailable && f.Code != CodeEvidenceWithheld && (f.Code != CodeStale || f.Index < r.Size) {
			return false
		}
	}
	return len(r.Findings) > 0
}

// Proves says in words what the report proves.
func (r *Report) Proves() []string {
	if !r.OK {
		return []string{"nothing: see the findings"}
	}
	out := []string{
		fmt.Sprintf("these are the %d entries, in this order, of %s at root %s", r.Entries, r.Origin, r.Root),
		fmt.Sprintf("%d organisations have each computed that root themselves: another history of that size needs signatures that convict them", len(r.Cosigners)),
		fmt.Sprintf("each of the %d changes to the allowed software, or to who decides about it, had the signatures of enough organisations of its time", r.Policies),
		fmt.Sprintf("each of the %d attestation results was signed by a member of its time and, if affirming, named software allowed at its place in the log", r.Results),
	}
	if d := r.Disclosed; d != nil && d.Confirmed > 0 {
		out = append(out, fmt.Sprintf("%d of the %d attestation results say what the evidence behind them says, verified anew under the roots in genesis and the policy of their place", d.Confirmed, d.Results))
	}
	for _, x := range r.Recoveries {
		out = append(out, fmt.Sprintf("incarnation %d goes on from exactly the %d entries before it: its Recovery had the signatures of %v, its Bootstrap those of the enrollers of %v", x.Incarnation, x.Index, x.Signers, x.Founders))
	}
	if r.Suspensions > 0 {
		out = append(out, fmt.Sprintf("each of the %d suspensions and lifts was signed by the organisations whose keys it takes", r.Suspensions))
	}
	if r.Rounds > 0 {
		out = append(out, fmt.Sprintf("each of the %d training rounds was signed by a member that could aggregate it, over updates of members that could take part, and continues the round before", r.Rounds))
	}
	for _, w := range r.Outside {
		out = append(out, fmt.Sprintf("%s, which belongs to no organisation of the mesh, had seen this history and no other by %s", w.Name, w.At.Format(time.RFC3339)))
	}
	if !r.GenesisGiven {
		out = append(out, "the organisations are those that the log itself names: compare its mesh id, or give --genesis")
	}
	return out
}

// ProvesNot says in words what no audit of the log alone can prove.
func (r *Report) ProvesNot() []string {
	out := append(r.unseen(),
		"that everything that happened was logged, or that nothing was logged after this checkpoint",
		"that allowed software is good, or that the hardware of an affirmed node was not broken",
	)
	if len(r.Recoveries) > 0 {
		out = append(out, "that nothing was ordered between a recovered checkpoint and the end of its incarnation: that is given up, by the organisations that signed the Recovery")
	}
	if len(r.Outside) == 0 {
		why := "the policy names no outside witness"
		if r.Witnesses > 0 {
			why = fmt.Sprintf("none of the %d outside witnesses has cosigned it", r.Witnesses)
		}
		out = append(out, "that a majority of the organisations has not shown somebody else another history together: "+why)
	}
	if r.Rounds > 0 {
		out = append(out, "that the training sums are right: job verify adds them up again from the job's certificates")
	}
	if r.Simulated {
		out = append(out, "anything about hardware: this mesh admits SIMULATED evidence, which its host can forge")
	}
	return out
}

// unseen says which results rest on their verifiers' word.
func (r *Report) unseen() []string {
	d := r.Disclosed
	if d == nil {
		return []string{"that the results are true: the evidence behind them is not in the log, only commitments to it"}
	}
	out := []string{"that disclosed evidence was shown on the connection that its result is about: what it was bound to died with that"}
	if d.Withheld > 0 {
		out = append(out, fmt.Sprintf("that the %d affirming results whose evidence was not disclosed are true", d.Withheld))
	}
	if d.Undecided > 0 {
		out = append(out, fmt.Sprintf("that the %d results are true that disclosed evidence does not decide", d.Undecided))
	}
	return out
}
