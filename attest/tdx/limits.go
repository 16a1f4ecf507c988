package tdx

// Limits inside a quote, whose own size attest.MaxQuote bounds.
const (
	maxAuthData   = 1 << 10  // QE authentication data; Intel's QE uses 32 bytes
	maxChain      = 16 << 10 // PEM of three certificates
	maxTCBLevels  = 256
	maxIdentities = 64
)
