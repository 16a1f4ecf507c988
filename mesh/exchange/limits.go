package exchange

import (
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Protocol constants.
const (
	// Version is the only version spoken.
	Version = 1
	// NonceSize is the size of a HELLO's nonce.
	NonceSize = 32
	// ExporterLabel is the TLS exporter label of the binder.
	ExporterLabel = "EXPORTER-meshnode-attest-v1"

	// PairExporterLabel is the TLS exporter label of pair keys.
	PairExporterLabel = "EXPORTER-meshnode-pair-v1"

	transcriptLabel = "meshnode-attest/v1 transcript"
	pairIDLabel     = "meshnode-attest/v1 pair id"
	fastLabel       = "meshnode-attest/v1 fast"
	ekmSize         = 32
)

// Limits on peers' bytes and time.
const (
	// MaxHello bounds a HELLO, Credential included.
	MaxHello = 4 << 10
	// MaxAttestation bounds an ATT: evidence, inclusion path and framing.
	MaxAttestation = attest.MaxEvidence + 8<<10
	// MaxFast bounds a FAST, which has one length only.
	MaxFast = 1 + 3*(2+32)
	// MaxEpoch bounds an EPOCH.
	MaxEpoch = 9
	// MaxRefusal bounds a REFUSAL.
	MaxRefusal = 16 << 10
	// MaxReasons bounds the reasons of one refusal.
	MaxReasons = 16
	// HelloTimeout is how long a peer may take for its HELLO.
	HelloTimeout = 2 * time.Second
	// TotalTimeout bounds the whole exchange, quotes of both sides included.
	TotalTimeout = 10 * time.Second
	// RefusalLinger is how long a refusing side waits for its refusal to be read.
	RefusalLinger = 500 * time.Millisecond

	// DefaultWindow is how long a verdict over evidence counts; MinWindow and MaxWindow bound
	// what may be configured instead.
	DefaultWindow = 5 * time.Minute
	MinWindow     = time.Minute
	MaxWindow     = time.Hour
	// MaxPairs bounds the peers of which verdicts are remembered, and those for which keys are.
	MaxPairs = 1024

	// quoteMargin is what a quote leaves of TotalTimeout: whoever has none in time can still
	// say so to a peer that listens.
	quoteMargin = time.Second

	maxReasonText = 256 // bytes of a claim, got or want: MaxReasons of them fit MaxRefusal
	maxCode       = 64
	refusalDrain  = 64 << 10 // bytes thrown away while a refusal lingers
	growFirst     = 64 << 10 // a frame's buffer grows beyond this only as bytes arrive
)
