package proof

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Report is what a proof file that holds says.
type Report struct {
	Kind  string            `json:"kind"`  // of the leaf: "attestation-result", "proposal", "round", …
	Index uint64            `json:"index"` // of the leaf
	Leaf  transparency.Hash `json:"leaf"`  // its hash in the tree

	MeshID      identity.MeshID      `json:"mesh_id"`
	Origin      string               `json:"origin"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Size        uint64               `json:"size"` // of the tree
	Root        transparency.Hash    `json:"root"`

	Level     transparency.Level       `json:"level"`     // published or strong
	Cosigners []identity.OrgID         `json:"cosigners"` // distinct organisations
	Fresh     time.Time                `json:"cosigned"`  // when the quorum was complete
	Outside   []transparency.Witnessed `json:"outside,omitempty"`
	Witnesses int                      `json:"-"` // that the policy names
	// Organisations is how many the policy at the checkpoint names: what the quorum is of.
	Organisations int `json:"organisations"`

	// Epoch is that of the policy after the leaf, PolicyLeaf the leaf that it came with.
	Epoch      identity.Epoch `json:"epoch"`
	PolicyLeaf uint64         `json:"policy_leaf"`
	// LastEpoch is that of the last change shown. Below CompleteTo no change of the policy was left
	// out of the file.
	LastEpoch  identity.Epoch `json:"last_epoch"`
	CompleteTo uint64         `json:"complete_to"`
	Leaves     int            `json:"leaves"` // in the file
	Simulated  bool           `json:"simulated"`

	Result *ResultFacts `json:"result,omitempty"`
	Policy *PolicyFacts `json:"policy,omitempty"`
	Round  *RoundFacts  `json:"round,omitempty"`
}

// Affirmed names an affirming result: by whom, and its leaf.
type Affirmed struct {
	By   identity.NodeRef `json:"by"`
	Leaf uint64           `json:"leaf"`
}

// ResultFacts is a proven attestation result.
type ResultFacts struct {
	Verifier           identity.NodeRef `json:"verifier"`
	VerifierPeer       identity.PeerID  `json:"verifier_peer"`
	VerifierCredential uint64           `json:"verifier_credential"` // leaf
	// VerifierAffirmedBy is the last affirming result on the verifier itself; nil if none is shown.
	VerifierAffirmedBy *Affirmed        `json:"verifier_affirmed_by"`
	Subject            identity.NodeRef `json:"subject"`
	SubjectPeer        identity.PeerID  `json:"subject_peer"`
	SubjectCredential  uint64           `json:"subject_credential"` // leaf
	Roles              []string         `json:"roles"`
	Verdict            attest.Verdict   `json:"verdict"`
	Codes              []attest.Code    `json:"codes"`
	Kind               string           `json:"evidence_kind"`
	Measurement        string           `json:"measurement"`
	// Entry is the id of the entry that matched, EntryLeaf the leaf that added it to the allowed set;
	// nil if the result is not affirming, or the entry had been replaced by then.
	Entry     string         `json:"entry,omitempty"`
	EntryLeaf *uint64        `json:"entry_leaf,omitempty"`
	Epoch     identity.Epoch `json:"epoch"` // that the verifier judged under
	At        time.Time      `json:"at"`
	Expires   time.Time      `json:"expires"`
	Evidence  string         `json:"evidence"` // salted commitment
}

// PolicyFacts is a proven change of the policy.
type PolicyFacts struct{ consensus.Step }

// RoundFacts is a proven training round.
type RoundFacts struct {
	Job          string `json:"job"`
	Round        uint32 `json:"round"`
	Attempt      uint32 `json:"attempt"`
	Rule         string `json:"rule"`
	Base         string `json:"base_root"`
	Result       string `json:"result_root"`
	Aggregator   Part   `json:"aggregator"`
	Participants []Part `json:"participants"`
	Rejected     int    `json:"rejected"`
	// Needed is how many other organisations' verifiers make a node eligible, at most.
	Needed int `json:"needed"`
}

// Part is one node's part in a round.
type Part struct {
	Node        identity.NodeRef `json:"node"`
	Peer        identity.PeerID  `json:"peer"`
	Role        string           `json:"role"`
	Measurement string           `json:"measurement,omitempty"`
	AffirmedBy  []Affirmed       `json:"affirmed_by"` // one for each organisation
}

// Eligible reports whether a part was shown to be eligible, but for suspensions.
func (r *RoundFacts) Eligible(p Part) bool { return len(p.AffirmedBy) >= r.Needed }

// short is a predicate type without what all have in common.
func short(kind string) string {
	rest, ok := strings.CutPrefix(kind, "https://attestmesh.github.io/meshnode/")
	if !ok {
		return fmt.Sprintf("%.80q", kind)
	}
	return strings.TrimSuffix(rest, "/v1")
}

// Says tells the proven leaf in one paragraph of lines.
func (r *Report) Says() []string {
	switch {
	case r.Result != nil:
		x := r.Result
		out := []string{fmt.Sprintf("%s found %s %s at %s, until %s", x.Verifier, x.Subject, x.Verdict, x.At.Format(time.RFC3339), x.Expires.Format(time.RFC3339))}
		if x.Measurement != "" {
			out = append(out, fmt.Sprintf("it ran %s measurement %s, with roles %s", x.Kind, x.Measurement, strings.Join(x.Roles, ", ")))
		}
		if len(x.Codes) > 0 {
			out = append(out, fmt.Sprintf("with codes %v", x.Codes))
		}
		if x.EntryLeaf != nil {
			out = append(out, fmt.Sprintf("allowed by entry %s, which log entry %d had added", x.Entry, *x.EntryLeaf))
		}
		shown := ""
		if !r.Settled() {
			shown = ", as far as the file shows"
		}
		return append(out, fmt.Sprintf("judged under epoch %d; the policy in force there was that of epoch %d, from log entry %d%s", x.Epoch, r.Epoch, r.PolicyLeaf, shown))
	case r.Policy != nil:
		x := r.Policy
		out := []string{fmt.Sprintf("%s made the policy of epoch %d (base %d)", x.Cause, x.Epoch, x.Base)}
		if x.Class != "" {
			out[0] += ", class " + string(x.Class)
		}
		out = append(out, fmt.Sprintf("signed by %v", x.Organisations))
		if !x.Created.IsZero() {
			out = append(out, "made at "+x.Created.Format(time.RFC3339)+", by its maker's clock")
		}
		return append(out, x.Changes...)
	case r.Round != nil:
		x := r.Round
		out := []string{fmt.Sprintf("round %d of job %s (attempt %d, %s) took model %s to %s", x.Round, x.Job, x.Attempt, x.Rule, orNone(x.Base), x.Result),
			fmt.Sprintf("added up by %s: %s", x.Aggregator.Node, x.standing(x.Aggregator))}
		for _, p := range x.Participants {
			out = append(out, fmt.Sprintf("from %s: %s", p.Node, x.standing(p)))
		}
		return out
	}
	return []string{"an entry of kind " + r.Kind + "; what it says is for an audit of the log to judge"}
}

func orNone(root string) string {
	if strings.Trim(root, "0") == "" {
		return "none"
	}
	return root
}

func (r *RoundFacts) standing(p Part) string {
	var by []string
	for _, a := range p.AffirmedBy {
		by = append(by, fmt.Sprintf("%s (entry %d)", a.By, a.Leaf))
	}
	switch {
	case len(by) == 0:
		return "no counting affirmation is shown"
	case !r.Eligible(p):
		return fmt.Sprintf("affirmed by %s; up to %d organisations were needed", strings.Join(by, ", "), r.Needed)
	}
	return "eligible, affirmed by " + strings.Join(by, ", ")
}

// Proves says in words what the proof proves, to whoever holds genesis.
func (r *Report) Proves() []string {
	out := []string{fmt.Sprintf("entry %d of the log %s is exactly this one, in the tree of %d entries with root %s", r.Index, r.Origin, r.Size, r.Root),
		fmt.Sprintf("%d of %d organisations (%s) had each computed that root themselves by %s: it was %s", len(r.Cosigners), r.Organisations, names(r.Cosigners), r.Fresh.Format(time.RFC3339), r.Level),
		fmt.Sprintf("each change of the policy up to epoch %d had the signatures of enough organisations of its time, and leads from genesis to the log key and the members that are counted here", r.LastEpoch)}
	switch {
	case r.Result != nil:
		out = append(out, fmt.Sprintf("%s, a member by its Credential (entry %d), signed it about the member %s (entry %d)", r.Result.Verifier, r.Result.VerifierCredential, r.Result.Subject, r.Result.SubjectCredential))
		if r.Result.Verdict == attest.VerdictAffirming {
			out = append(out, fmt.Sprintf("the policy of epoch %d allowed what it names", r.Epoch))
		}
		if a := r.Result.VerifierAffirmedBy; a != nil {
			out = append(out, fmt.Sprintf("the verifier itself had been affirmed by %s (entry %d)", a.By, a.Leaf))
		}
	case r.Round != nil:
		out = append(out, "the aggregator signed the list of participants; each was a member in that role")
		if r.Round.allEligible() {
			out = append(out, "the aggregator and every participant had been affirmed by enough other organisations, in software that was allowed")
		}
	}
	if r.Settled() {
		out = append(out, fmt.Sprintf("no change of the policy before entry %d was left out", r.CompleteTo))
	}
	for _, w := range r.Outside {
		out = append(out, fmt.Sprintf("%s, which belongs to no organisation of the mesh, had seen this history and no other by %s", w.Name, w.At.Format(time.RFC3339)))
	}
	return out
}

// Settled reports whether the policy at the leaf is known for certain: the file holds every change of it up
// to there.
func (r *Report) Settled() bool { return r.CompleteTo > r.Index }

func (r *RoundFacts) allEligible() bool {
	return r.Eligible(r.Aggregator) && !slices.ContainsFunc(r.Participants, func(p Part) bool { return !r.Eligible(p) })
}

func names(orgs []identity.OrgID) string {
	var out []string
	for _, o := range orgs {
		out = append(out, string(o))
	}
	return strings.Join(out, ", ")
}

// ProvesNot says in words what the file leaves open.
func (r *Report) ProvesNot() []string {
	var out []string
	if r.CompleteTo < r.Size {
		out = append(out, fmt.Sprintf("that no change of the policy was ordered between entries %d and %d, which the maker of the file may have left out: it could have added an organisation, or removed one, or software, that is counted here", r.CompleteTo, r.Size))
	}
	out = append(out, "that no boot counted here had been replaced, drained, retired or refused meanwhile, which the maker of the file may have left out: an honest majority of organisations did not order its statements or cosign under its name after that")
	switch {
	case r.Result != nil:
		out = append(out, "that the result is true: the evidence behind it is not in the log, only a commitment to it; ask a member to disclose it",
			"that it was the only word on "+r.Result.Subject.String()+": log matrix shows what the others found")
	case r.Round != nil:
		if !r.Round.allEligible() {
			out = append(out, "that those were eligible for whom too few affirmations are shown")
		}
		out = append(out, "that these affirmations still held when the round was committed: newer results, which replace them or show that they had ended, may have been left out; the seats that ordered the round are believed",
			"that nobody who took part was suspended, and that the sums are right: log audit and job verify tell")
	case r.Policy != nil:
		out = append(out, "that it was ordered before it expired, or that no signature on it had been withdrawn: the seats that ordered it are believed; log audit tells")
	default:
		out = append(out, "that what the entry says is right: log audit judges it by all entries before it")
	}
	out = append(out, "that the rest of the log is as it should be: log audit tells")
	if len(r.Outside) == 0 {
		why := "the policy names no outside witness"
		if r.Witnesses > 0 {
			why = fmt.Sprintf("none of the %d outside witnesses has cosigned this checkpoint", r.Witnesses)
		}
		out = append(out, "that a majority of the organisations has not shown somebody else another history together: "+why)
	}
	if r.Simulated {
		out = append(out, "anything about hardware: this mesh admits SIMULATED evidence, which its host can forge")
	}
	return out
}
