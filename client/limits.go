package client

import "time"

const (
	// DefaultReattest is how long a proof is believed where the Policy says nothing.
	DefaultReattest = 5 * time.Minute
	minReattest     = time.Second
	maxReattest     = time.Hour
	// DefaultMaxAge is how old the newest checkpoint's cosignatures may be.
	DefaultMaxAge = 5 * time.Minute
	minMaxAge     = 10 * time.Second
	maxMaxAge     = 24 * time.Hour

	// attestTimeout bounds dial, handshake and challenge; challengeTimeout the last alone.
	attestTimeout    = 30 * time.Second
	challengeTimeout = 15 * time.Second
	// reserveWithin is how long a request waits for its turn after a challenge.
	reserveWithin = time.Second
	// idleTimeout is how long a connection without a request is kept: not as long as a
	// node keeps it, so that none is used that the node is just closing.
	idleTimeout = 45 * time.Second
	// maxIdle bounds the connections kept to one address.
	maxIdle = 16

	maxHeader = 64 << 10
	// Limits of a policy file.
	maxListed   = 256
	maxServices = 64
)
