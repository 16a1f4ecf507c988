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

	// silentTimeout is how long an accepted connection may say nothing, and negotiateTimeout
	// how long it may then take to name the security protocol.
	silentTimeout    = 3 * time.Second
	negotiateTimeout = 3 * time.Second
	// maxSilent bounds the silent connections of strangers, which have no slot of libp2p yet,
	// limitHandshakes those that have one and are not attested: in place of libp2p's 96,
	// because whoever holds them all keeps honest peers out. Members have as many as a
	// mesh's nodes need that all start at once.
	maxSilent        = 1024
	limitHandshakes  = 512
	maxMemberSilent  = 256
	memberHandshakes = 256
	// peerHandshakes bounds the handshakes in which one peer has shown its Credential and not
	// yet its evidence: its links and bulk connections at once. One organisation's may be one
	// orgShare-th of the places.
	peerHandshakes = maxLinksPerPeer + maxBulks + 4
	orgShare       = 4

	// sourceConns and sourceRate bound a stranger's pending connections from one address (of
	// IPv6: one /64), and new ones a second; a /48 may have networkScale times as many. An
	// organisation's nodes may share an address.
	sourceConns  = 64
	sourceRate   = 4
	networkScale = 4
	// maxSources bounds the table of sources; pending connections cannot fill it.
	maxSources = 4 * (maxSilent + limitHandshakes)
	// strangerRate and strangerBurst bound the handshakes that all strangers together may
	// begin: an eighth of a processor at a millisecond each.
	strangerRate  = 128
	strangerBurst = 512
	// memberRate and memberBurst bound those of one member's address, which may be many nodes'.
	memberRate  = 64
	memberBurst = 512

	// memberMemory is how long the address of a link that was attested counts as a member's,
	// maxRemembered how many such addresses there are, allowEvery how often Config.Allow is
	// asked.
	memberMemory  = time.Hour
	maxRemembered = 1024
	allowEvery    = time.Second
	// fullRate and fullBurst bound the full attestations that one peer begins, per second and
	// at once: three in 30 s, and as many more as crossing dials, restarts of the mesh and a
	// policy that is being mended take. maxBuckets bounds the peers that are remembered; one
	// organisation's may be one orgShare-th of them.
	fullRate   = 0.1
	fullBurst  = 12
	maxBuckets = 4096
	// maxAppraisals and orgAppraisals bound the evidence that waits to be judged, all of it and
	// one organisation's.
	maxAppraisals = 256
	orgAppraisals = 64

	// bulkDialTimeout bounds one address of a bulk connection, bulkLinger how long a closed one
	// waits for the peer to read what is on its way, and maxBulks how many one peer may have.
	bulkDialTimeout = 10 * time.Second
	bulkLinger      = 10 * time.Second
	maxBulks        = 8

	// limitMemory and limitFiles size libp2p's resource manager.
	limitMemory = 4 << 30
	limitFiles  = 8 << 10
)

// Times of re-attestation, as parts of the window.
const (
	reattestAt     = 0.8 // when it is due, give or take reattestJitter
	reattestJitter = 0.2
	// reattestRetries is how many failed attempts fit into a window.
	reattestRetries = 30
	// reattestPatience is how long one asked for while another ends may wait.
	reattestPatience = 250 * time.Millisecond
	// reattestSoonest is how long a connection lives at least before it is attested again.
	reattestSoonest = time.Second
)

// The mesh's own protocols; Judge is not asked about them.
const (
	controlProtocol  Protocol = "/meshnode/control/1"
	reattestProtocol Protocol = "/meshnode/reattest/1"
)
