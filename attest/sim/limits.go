package sim

import "time"

// Limits of the protocol between a node and its platform.
const (
	// MaxReport bounds an encoded report; a genuine one has 218 bytes.
	MaxReport = 1 << 10
	// maxRequest and maxAnswer bound the two frames.
	maxRequest = 1 + 64
	maxAnswer  = 1 + MaxReport
	// maxRefusal bounds the text of a refusal.
	maxRefusal = 512
	// maxExecutable bounds what a platform hashes: our binary is below 100 MB even with
	// the race detector, and hashing 1 GiB takes some seconds.
	maxExecutable = 1 << 30
	// maxConnections at one platform: every node of a machine holds one.
	maxConnections = 64

	// frameTimeout bounds the arrival or departure of one frame once it has begun.
	frameTimeout = 5 * time.Second
	// idleTimeout closes connections that ask for nothing; a node that comes back later
	// is measured again.
	idleTimeout = 10 * time.Minute
	// attestTimeout bounds a request where the caller's context sets no earlier end. It
	// covers the hashing of the executable on a machine that is busy.
	attestTimeout = 30 * time.Second
)
