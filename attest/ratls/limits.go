package ratls

import (
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Limits on certificates and on others' bytes, checked before anything is parsed.
const (
	// MaxLifetime is the longest validity of a certificate: what it proves is as old as it.
	MaxLifetime = 5 * time.Minute
	// MaxCertificateProof bounds the proof in a certificate: common TLS stacks refuse
	// handshakes with certificates of 100 KiB.
	MaxCertificateProof = 64 << 10
	// MaxProof bounds a proof in an Answer.
	MaxProof = attest.MaxEvidence + 4<<10
	// MaxRequest bounds an encoded Request.
	MaxRequest = 256
	// MaxAnswer bounds an encoded Answer.
	MaxAnswer = 24 << 20
	// MaxRefusal bounds an encoded Refusal.
	MaxRefusal = 16 << 10
	// MaxHeads bounds the statements of seats: seven organisations, and room.
	MaxHeads = 16
	// MaxStatement bounds one such statement, a Credential and a checkpoint each.
	MaxStatement = 64 << 10
	// MaxChain and MaxChainBytes bound the policy chain of an Answer.
	MaxChain      = 1 << 14
	MaxChainBytes = 8 << 20

	maxReasonText = 512
)
