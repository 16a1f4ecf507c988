package monitor

import (
	"crypto/sha256"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Severity says who has to look at an alert, and when.
type Severity string

// The severities in rising order.
const (
	Notice  Severity = "notice"  // happened as it may; somebody wanted to know
	Warning Severity = "warning" // may become wrong, or cannot be decided
	Error   Severity = "error"   // the log, or who writes it, is not as it should be
)

// Codes of alerts of this package. Others are those of package audit and of the packages that it
// names: each finding of an audit is an alert of its own code.
const (
	CodePolicyChanged   = "policy_changed"   // a proposal, a suspension or its lift took effect
	CodeRecovered       = "recovered"        // the log goes on in a higher incarnation
	CodeContraindicated = "contraindicated"  // a member found another one not to be what it should be
	CodeUnknownVerifier = "unknown_verifier" // a result by somebody who was no member there
	CodeClockSkew       = "clock_skew"       // times in results and in cosignatures do not fit
	CodeMatch           = "match"            // a leaf that a rule of the operator's names

	CodeForked         = audit.CodeForked                // two histories
	CodeMisbehaviour   = string(attest.CodeMisbehaviour) // two histories, and who has cosigned both
	CodeLogKeyLeaked   = string(attest.CodeLogKeyLeaked) // two histories, which convict nobody but the log key
	CodeRolledBack     = audit.CodeRolledBack            // a copy shows an older log than it did
	CodeBehind         = "behind"                        // a size is shown whose entries could not be audited
	CodeBelowStrong    = "below_strong"                  // published, but by no more organisations than that
	CodeCosignerSilent = "cosigner_silent"               // a seat's cosignatures are missing
	CodeWitnessSilent  = "witness_silent"                // those of an outside witness
	CodeOmission       = "omission"                      // a leaf that a receipt proves is not in the log
	CodeGrowth         = "growth"                        // more leaves than such a mesh writes
	CodeUnpublished    = audit.CodeUnpublished
	CodeStale          = audit.CodeStale
	CodeUnavailable    = audit.CodeUnavailable
)

// Codes returns the codes that no other package names.
func Codes() []string {
	return []string{CodePolicyChanged, CodeRecovered, CodeContraindicated, CodeUnknownVerifier, CodeClockSkew, CodeMatch, CodeBehind, CodeBelowStrong, CodeCosignerSilent, CodeWitnessSilent, CodeOmission, CodeGrowth}
}

// undecided are the codes that say no more than that the log is too old or could not be read.
func undecided(code string) bool {
	return code == CodeStale || code == CodeUnavailable || code == CodeBehind
}

// Change says whether a condition begins or ends with an alert. Alerts about leaves have none.
type Change string

// The changes of a condition.
const (
	Raised  Change = "raised"
	Cleared Change = "cleared"
)

// Alert is one line of output. Everything in it but Time follows from the log, so that an alert
// that is given twice, because the monitor was killed between, has the same ID.
type Alert struct {
	Type     string    `json:"type"` // "alert"
	ID       string    `json:"id"`   // 32 hex digits, see the package comment
	Time     time.Time `json:"time"` // the monitor's
	Severity Severity  `json:"severity"`
	Code     string    `json:"code"`
	Rule     string    `json:"rule,omitempty"`   // name of the operator's rule that matched
	Change   Change    `json:"change,omitempty"` // of a condition
	Origin   string    `json:"origin"`
	Index    *uint64   `json:"index,omitempty"`
	Leaf     string    `json:"leaf,omitempty"` // its RFC 6962 hash in hex
	Kind     string    `json:"kind,omitempty"` // of the leaf
	// Subject is whom it is about: a node, a copy of the log, a witness, a receipt.
	Subject string `json:"subject,omitempty"`
	Message string `json:"message"`
	// Evidence is a file in the state directory that proves it to others.
	Evidence string `json:"evidence,omitempty"`
}

// alertID names an occasion: the same one has the same id in every run and every monitor.
func alertID(mesh identity.MeshID, rule string, parts ...string) string {
	buf := attest.LengthPrefixed(nil, []byte("meshnode-alert/v1"))
	buf = attest.LengthPrefixed(buf, mesh[:])
	buf = attest.LengthPrefixed(buf, []byte(rule))
	for _, p := range parts {
		buf = attest.LengthPrefixed(buf, []byte(p))
	}
	sum := sha256.Sum256(buf)
	return hex.EncodeToString(sum[:16])
}

func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
