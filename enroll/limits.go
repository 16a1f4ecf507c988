package enroll

import "time"

// Limits of an enroller. Its callers are an organisation's own nodes, so all of them are
// small; they bound what a stranger who reaches the port can cost.
const (
	// maxCredentialRequest holds attest.MaxEvidence in base64 and the fields around it.
	maxCredentialRequest = 3 << 20
	// maxRequest holds a Bootstrap payload (below envelope.MaxSize) in base64.
	maxRequest = 128 << 10
	// maxAnswer bounds what a client reads: an envelope in base64.
	maxAnswer = 128 << 10
	maxHeader = 8 << 10
	// maxConnections in all, and of one remote address.
	maxConnections          = 64
	maxConnectionsPerRemote = 16
	// maxNonces of one connection that wait for their request.
	maxNonces = 4
	// maxAppraisals at once: the bodies and the chains of P-384 that are in work.
	maxAppraisals = 4
	// requestRate and requestBurst bound the requests of one remote address.
	requestRate  = 5.0 // per second
	requestBurst = 40.0
	// maxRemotes that the rate limiter remembers.
	maxRemotes = 4096
	// maxStateFile bounds a file of the enroller's own state: 150,000 boots of a node.
	maxStateFile = 32 << 20
	// maxEntries of each list in the releases file.
	maxEntries = 4096

	handshakeTimeout = 5 * time.Second
	requestTimeout   = 15 * time.Second
	// idleTimeout is also how long a TPM may take to answer a challenge.
	idleTimeout     = activationTimeout
	shutdownTimeout = 5 * time.Second
	// clientTimeout bounds each call of a Client, quote included, where the caller's
	// context ends no earlier.
	clientTimeout = time.Minute
	// activationTimeout is what a TPM gets besides: hardware makes an RSA endorsement key in
	// tens of seconds.
	activationTimeout = 2 * time.Minute
)

// CredentialLifetime is how long a Credential is valid. A node renews its own at half of
// that.
const CredentialLifetime = 24 * time.Hour

// Sizes of fields.
const (
	nonceSize = 32
	ekmSize   = 32
)
