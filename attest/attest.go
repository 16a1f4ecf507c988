// Package attest is the vocabulary of remote attestation as meshnode speaks it, and the
// appraisal of authentic claims. The words are RFC 9334's: an Attester makes Evidence, a
// Verifier checks it and issues an Attestation Result, a Relying Party decides by it.
//
// # Three doors
//
//	Evidence  --Scheme.Verify-->  Claims  --Appraise-->  Result
//	(well-formed)                 (authentic, bound)     (acceptable or not, with reasons)
//
// DecodeEvidence opens the first door: size limits, one canonical encoding. A Scheme opens
// the second: the report chains to its vendor's root, agrees with its certificates and
// carries the expected report data. Appraise opens the third and is a pure function of
// values: no clock, no network, no goroutine. No function reads a field of Evidence that
// has not passed the second door, and every zero value refuses: Result{} is "none",
// Policy{} admits nothing, Claims{} is not genuine.
//
// # Binding
//
// A binder ties evidence to one purpose, one connection and both ends of it:
//
//	bind = SHA-256( lp("meshnode-attest/v1 binder") lp(u8 purpose) lp(u8 role) lp(mesh id)
//	       lp(u64 incarnation) lp(attester id) lp(verifier id) lp(HELLO_I) lp(HELLO_R)
//	       lp(SPKI hash) lp(EKM) )
//
// with lp(x) = u32 length, then x; integers big-endian; absent fields are empty. Binders
// waiting at the same time share one quote: they are the leaves of an RFC 6962 tree
// (leaf SHA-256(0x00 bind), node SHA-256(0x01 left right)) and
//
//	report data = SHA-512( lp("meshnode-attest/v1 report") lp(kinds) lp(mesh id)
//	              lp(attester id) lp(runtime log head) lp(tree root) )
//
// where kinds is the sorted list joined by ',' and an empty runtime log has 32 zero bytes
// as its head. TPM quotes carry SHA-256 of the report data.
package attest

import (
	"context"
	"time"
)

// The kinds of evidence. A composite's kind is the sorted list of its parts joined by ','.
const (
	KindSEVSNP = "sevsnp"
	KindTDX    = "tdx"
	KindVTPM   = "vtpm"
	KindSim    = "sim"
	// KindEventLog and KindIMA name inputs of meshnode appraise that are logs without a
	// quote: they can be replayed, never be genuine.
	KindEventLog = "eventlog"
	KindIMA      = "ima"
)

// ReportDataSize is the size of the report data field of SEV-SNP and TDX reports.
const ReportDataSize = 64

// ReportData is what a report must carry to be bound to a purpose.
type ReportData [ReportDataSize]byte

// Attester makes evidence on this machine. Attest may take as long as the device does; it
// returns when ctx ends. One call runs at a time: a Quoter batches and serialises.
type Attester interface {
	// Kind is the kind of all evidence this attester makes.
	Kind() string
	// Attest returns fresh evidence over data.
	Attest(ctx context.Context, data ReportData) (Evidence, error)
}

// Extender is an Attester with a register for the runtime event log: RTMR3 of a TD, PCR 13
// of a TPM. Extend extends it by the digest of event in the register's own hash; nothing
// takes that back. Use it through Quoter.Record.
type Extender interface {
	Attester
	Extend(ctx context.Context, event []byte) error
}

// Scheme decides the authenticity of one kind of evidence. Verify returns claims only if
// the evidence is genuine under its vendor's root at time at and carries data; a nil data
// skips the comparison (offline appraisal of a sample) and leaves Claims.Bound false.
// Errors are *Error: not genuine, malformed, or cannot decide for want of collateral.
// Verify never reads a clock or the network, is safe for concurrent use, bounds memory
// and time, and contains panics of vendor parsers.
type Scheme interface {
	Kind() string
	Verify(ctx context.Context, ev Evidence, data *ReportData, at time.Time) (Claims, error)
}

// Error is a refusal at the second door: why Claims could not be established.
type Error struct {
	Reason Reason
	Err    error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Reason.String() + ": " + e.Err.Error()
	}
	return e.Reason.String()
}

// Unwrap returns the underlying error.
func (e *Error) Unwrap() error { return e.Err }
