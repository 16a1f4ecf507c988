package attest

import "time"

// Verdict is the tier of an appraisal (AR4SI, draft-ietf-rats-ar4si). The zero value is
// VerdictNone: nothing could be decided.
type Verdict string

// The verdicts, from best to worst.
const (
	VerdictAffirming       Verdict = "affirming"
	VerdictWarning         Verdict = "warning"
	VerdictNone            Verdict = "none"
	VerdictContraindicated Verdict = "contraindicated"
)

// Result is an Attestation Result. Only an affirming Result admits; Result{} refuses.
type Result struct {
	Verdict     Verdict   `json:"verdict"`
	Kind        string    `json:"kind"`
	Measurement string    `json:"measurement"`
	Epoch       uint64    `json:"epoch"`
	Reference   string    `json:"reference,omitempty"` // id of the matched reference value
	Vector      Vector    `json:"vector"`
	Reasons     []Reason  `json:"reasons,omitempty"`
	At          time.Time `json:"at"`
}

// Vector is the AR4SI trustworthiness vector. Values: 0 none, 2 affirming, 32 warning,
// 96 contraindicated.
type Vector struct {
	InstanceIdentity int8 `json:"instance-identity"`
	Configuration    int8 `json:"configuration"`
	Executables      int8 `json:"executables"`
	FileSystem       int8 `json:"file-system"`
	Hardware         int8 `json:"hardware"`
	RuntimeOpaque    int8 `json:"runtime-opaque"`
	StorageOpaque    int8 `json:"storage-opaque"`
	SourcedData      int8 `json:"sourced-data"`
}

// Affirming reports whether r admits.
func (r Result) Affirming() bool { return r.Verdict == VerdictAffirming }

// Code returns the first reason's code, or "".
func (r Result) Code() Code {
	if len(r.Reasons) == 0 {
		return ""
	}
	return r.Reasons[0].Code
}

// Refuse returns the contraindicated Result of one reason.
func Refuse(at time.Time, reason Reason) Result {
	return Result{Verdict: VerdictContraindicated, Reasons: []Reason{reason}, At: at}
}
