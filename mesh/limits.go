package mesh

import (
	"time"

	"github.com/attestmesh/meshnode/mesh/exchange"
)

// Limits on peers' bytes and time.
const (
	// OpenTimeout bounds opening a stream whose context has no deadline, and the peer's part
	// in opening one here.
	OpenTimeout = 10 * time.Second
	// DialTimeout bounds one dial over all addresses of a peer, whatever the contexts say.
	DialTimeout = 30 * time.Second
	// FarewellTimeout is how long Close tries to tell the peer its reason.
	FarewellTimeout = 500 * time.Millisecond
	// MaxProtocol bounds a protocol name in bytes.
	MaxProtocol = 128

	// crossingWindow: two links established closer than this may come from crossing dials.
	crossingWindow = exchange.TotalTimeout
	// duplicateGrace is how long the losing link of two stays usable.
	duplicateGrace = 250 * time.Millisecond
	// settleTimeout is how long the end that does not decide waits for the one that does.
	settleTimeout = 5 * time.Second
	// maxLinksPerPeer bounds the live links of one peer, spares included.
	maxLinksPerPeer = 4
	// closeTimeout is how long Mesh.Close waits for handlers that do not return.
	closeTimeout = 5 * time.Second
	// tlsTimeout bounds the TLS handshake before the exchange.
	tlsTimeout = 5 * time.Second
	// addressDelay is how long a dial waits for one address before it tries the next too.
	addressDelay = 3 * time.Second
	// keepAlive is the interval of the muxer's pings, and how long an answer may take: a
	// peer that vanished without a word is noticed after at most twice this.
	keepAlive = 5 * time.Second

	// silentTimeout is how long an accepted connection may say nothing, and maxSilent how
	// many may do so at once: no slot of libp2p is theirs yet.
	silentTimeout = 3 * time.Second
	maxSilent     = 1024
	// limitHandshakes bounds connections from others that have not been attested yet, in
	// place of libp2p's 96: whoever holds them all keeps honest peers out.
	limitHandshakes = 512

	// sourceConns and sourceRate bound connections from one address, and new ones a second.
	sourceConns = 64
	sourceRate  = 4
	// limitMemory and limitFiles size libp2p's resource manager.
	limitMemory = 4 << 30
	limitFiles  = 8 << 10
)

// controlProtocol is the mesh's own; Judge is not asked about it.
const controlProtocol Protocol = "/meshnode/control/1"
