package transparency

import (
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// MaxLeaf is the size of the largest leaf: a C2SP entry's length is a uint16.
const MaxLeaf = 1<<16 - 1

const (
	// maxLogSize is the largest size a checkpoint may name: 2^40 leaves are more than a
	// mesh writes in a thousand years at a thousand a second, and indices of stored
	// hashes stay far below 2^63.
	maxLogSize = 1 << 40
	// maxNote bounds a signed checkpoint: the note package stops at 100 signatures of
	// some 250 bytes.
	maxNote = 64 << 10
	// maxProof bounds a tlog-proof: 40 hashes of 45 bytes and a checkpoint.
	maxProof = maxNote + 4<<10
	// maxHashTile is a full tile of hashes.
	maxHashTile = torchwood.TileWidth * tlog.HashSize
	// maxBundle is a full bundle of the largest entries.
	maxBundle = torchwood.TileWidth * (2 + MaxLeaf)
	// maxFindings bounds what one Walk reports: the rest is counted.
	maxFindings = 100
	// maxMissing is how many files in a row may be missing before a Walk gives up: a
	// checkpoint that names a size no file backs must not keep an auditor busy.
	maxMissing = 16
	// maxSkew is how far ahead of the verifier's clock a cosigner's may be.
	maxSkew = 2 * time.Minute
	// requestTimeout bounds one HTTP request, its body included.
	requestTimeout = 15 * time.Second
	// requestTries and retryPause bound how often a failing request is repeated,
	// after pauses of 1 and 2 times retryPause.
	requestTries = 3
	retryPause   = 250 * time.Millisecond
	// likelyBody is as much memory as a server gets for what it announces before it comes.
	likelyBody = 1 << 20
	// maxRedirects bounds how far a server can send a reader about.
	maxRedirects = 3
)
