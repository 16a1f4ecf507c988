package attest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// MaxEAR bounds an encoded EAR.
const MaxEAR = 64 << 10

// EARProfile is the profile stock readers of draft-ietf-rats-ear implement.
const EARProfile = "tag:github.com,2023:veraison/ear"

// earDeveloper names who makes the verifier.
const earDeveloper = "https://github.com/attestmesh/meshnode"

// EAR is an EAT Attestation Result (draft-ietf-rats-ear) as JSON claims. Signing is the
// envelope's business. It holds one appraisal, named by its kind. What is meshnode's own
// rides in the policy claims extension, which stock readers carry along unread.
type EAR struct {
	Profile  string                  `json:"eat_profile"`
	IssuedAt int64                   `json:"iat"`
	Verifier EARVerifier             `json:"ear.verifier-id"`
	Submods  map[string]EARAppraisal `json:"submods"`
}

// EARVerifier says which software appraised.
type EARVerifier struct {
	Build     string `json:"build"`
	Developer string `json:"developer"`
}

// EARAppraisal is one appraisal within an EAR.
type EARAppraisal struct {
	Status       Verdict   `json:"ear.status"`
	Vector       Vector    `json:"ear.trustworthiness-vector"`
	PolicyID     string    `json:"ear.appraisal-policy-id"`
	PolicyClaims EARClaims `json:"ear.veraison.policy-claims"`
}

// EARClaims are meshnode's private claims.
type EARClaims struct {
	Measurement string   `json:"meshnode.measurement"`
	Reference   string   `json:"meshnode.reference,omitempty"`
	Reasons     []Reason `json:"meshnode.reasons,omitempty"`
}

// EAR returns r as an EAR made by the given build of meshnode.
func (r Result) EAR(build string) EAR {
	status, kind := r.Verdict, r.Kind
	if status == "" {
		status = VerdictNone
	}
	if kind == "" {
		kind = "unknown"
	}
	return EAR{
		Profile: EARProfile, IssuedAt: r.At.Unix(),
		Verifier: EARVerifier{Build: build, Developer: earDeveloper},
		Submods: map[string]EARAppraisal{kind: {
			Status: status, Vector: r.Vector, PolicyID: "urn:meshnode:policy:epoch:" + strconv.FormatUint(r.Epoch, 10),
			PolicyClaims: EARClaims{Measurement: r.Measurement, Reference: r.Reference, Reasons: r.Reasons},
		}},
	}
}

// ParseEAR decodes an EAR of meshnode's and returns it with its Result. It refuses unknown
// fields, other profiles, more or fewer than one appraisal, and a status better than the
// vector it stands on.
func ParseEAR(raw []byte) (EAR, Result, error) {
	var e EAR
	if len(raw) > MaxEAR {
		return e, Result{}, fmt.Errorf("ear: %d bytes, the limit is %d", len(raw), MaxEAR)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&e); err != nil {
		return EAR{}, Result{}, fmt.Errorf("ear: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return EAR{}, Result{}, fmt.Errorf("ear: trailing data")
	}
	if e.Profile != EARProfile || len(e.Submods) != 1 {
		return EAR{}, Result{}, fmt.Errorf("ear: profile %q with %d appraisals, want %q with 1", e.Profile, len(e.Submods), EARProfile)
	}
	var r Result
	for kind, a := range e.Submods {
		const policy = "urn:meshnode:policy:epoch:"
		epoch, _ := strconv.ParseUint(strings.TrimPrefix(a.PolicyID, policy), 10, 64) // what is no number is not its text
		if a.PolicyID != policy+strconv.FormatUint(epoch, 10) {
			return EAR{}, Result{}, fmt.Errorf("ear: policy id %q", a.PolicyID)
		}
		r = Result{Verdict: a.Status, Kind: kind, Measurement: a.PolicyClaims.Measurement, Epoch: epoch,
			Reference: a.PolicyClaims.Reference, Vector: a.Vector, Reasons: a.PolicyClaims.Reasons,
			At: time.Unix(e.IssuedAt, 0).UTC()}
		if !a.Vector.bears(a.Status) {
			return EAR{}, Result{}, fmt.Errorf("ear: status %q does not follow from the vector", a.Status)
		}
	}
	return e, r, nil
}

// bears reports whether a status is known and no better than each component of v.
func (v Vector) bears(status Verdict) bool {
	rank := map[Verdict]int8{VerdictAffirming: vectorAffirming, VerdictWarning: vectorWarning,
		VerdictNone: vectorWarning, VerdictContraindicated: vectorContraindicated}
	most, known := rank[status]
	for _, c := range []int8{v.InstanceIdentity, v.Configuration, v.Executables, v.FileSystem,
		v.Hardware, v.RuntimeOpaque, v.StorageOpaque, v.SourcedData} {
		known = known && (c == 0 || c == vectorAffirming || c == vectorWarning || c == vectorContraindicated) && c <= most
	}
	return known
}
