package fetch

import (
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Limits on answers and on waiting.
const (
	maxHeader = 64 << 10 // an issuer chain takes 4 KiB
	maxBody   = attest.MaxLog
	maxState  = 64 << 10 // bytes of the memory of servers
	maxAway   = 24 * time.Hour

	firstDelay = 2 * time.Second  // after one failure; AMD's service wants about 10 s between
	rateDelay  = 10 * time.Second // after 429 without Retry-After
	lastDelay  = time.Hour
	clockSkew  = 5 * time.Minute // a vendor's clock may be ahead of ours
)
