package tdx

// Limits inside a quote, whose own size attest.MaxQuote bounds.
const (
	maxAuthData   = 1 << 10  // QE authentication data; Intel's QE uses 32 bytes
	maxChain      = 16 << 10 // PEM of three certificates
	maxTCBLevels  = 256
	maxIdentities = 64
)

// Bounds of what is remembered. A mesh has one platform key for each machine, of about
// 10 KiB parsed; collateral takes a few times that and is remembered for each PCK chain.
const (
	maxKnown      = 1024
	maxCollateral = 256
)
