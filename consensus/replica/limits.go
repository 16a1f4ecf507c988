package replica

import "time"

// Sizes of what peers send.
const (
	// MaxCommand bounds one command. Log leaves are below 64 KiB, batches of them below
	// 128 KiB; a Bootstrap of seven seats is of the order of 20 KiB.
	MaxCommand = 512 << 10
	// maxFrame bounds the body of an append, and so what a peer can make us allocate. It
	// must exceed MaxCommand by the frame's own fields.
	maxFrame = 1 << 20
	// maxEntries bounds the entries of an append; raft is told the same number.
	maxEntries = 256
	// maxChunk bounds the data of one chunk of a snapshot.
	maxChunk = 256 << 10
	// maxRefusal bounds the text of a refusal.
	maxRefusal = 512
	// maxConfiguration bounds an encoded membership: 32 servers take 4 KiB.
	maxConfiguration = 8 << 10
	// maxServers bounds a membership. Seats are at most 7, learners at most 10.
	maxServers = 32
	// pipelineWindow is the number of unanswered appends of one pipeline.
	pipelineWindow = 2
	// pipelineBacklog is the number of answers raft may leave unread before the pipeline
	// is given up.
	pipelineBacklog = 64
	// keepScratch is the capacity up to which a stream keeps its buffer between frames.
	keepScratch = 64 << 10
)

// trailingLogs are the entries kept behind a snapshot, for followers that are a little behind:
// more than are written while one of them restores the snapshot before.
const trailingLogs = 20_000

// Terms.
const (
	// termBurst is how far one peer may raise our term at once.
	termBurst = 1000
	// termsPerHeartbeat is how many terms a peer regains per heartbeat timeout. Elections
	// of an honest cluster take longer than one heartbeat timeout each.
	termsPerHeartbeat = 10
	// transferPause, in election timeouts, passes between two votes of one peer that
	// claim a leadership transfer.
	transferPause = 10
	// foundingIndex holds the founding configuration, which nobody may rewrite even
	// before the first commit.
	foundingIndex = 1
)

// Times.
const (
	// heartbeatTimeout is the least time for which a follower may hear nothing before it
	// campaigns; raft draws up to twice as much. Of three, both followers must have given their
	// leader up, so that the next command is committed about 1.8 of it after a leader's death.
	// Below a second a busy host would look dead.
	heartbeatTimeout = 1200 * time.Millisecond
	electionTimeout  = 1200 * time.Millisecond
	leaseTimeout     = 1000 * time.Millisecond
	commitTimeout    = 50 * time.Millisecond

	// bulkFactor, in heartbeat timeouts, is the deadline of an append that carries
	// entries; all other requests have one heartbeat timeout.
	bulkFactor = 4
	// openTimeout bounds the opening of a stream, a dial and an attestation included.
	openTimeout = 10 * time.Second
	// frameTimeout bounds the arrival of a frame once begun, of the hello, and the
	// departure of a reply.
	frameTimeout = 10 * time.Second
	// storeTimeout is how long a write may take before the store counts as hung.
	storeTimeout = 5 * time.Second
	// commitStall is how long a leader may have uncommitted entries without progress.
	commitStall = 10 * time.Second
	// watchInterval is how often that is looked at.
	watchInterval = time.Second
	// closeTimeout bounds each of the three waits of Close.
	closeTimeout = 5 * time.Second
	// reachEvery is how often a leader tries to reach a follower to which it has no stream.
	reachEvery = 100 * time.Millisecond
	// checkTimeout is how long a leader waits for a follower to check a snapshot, askEvery how
	// often it asks.
	checkTimeout = time.Minute
	askEvery     = 50 * time.Millisecond
	// acceptTimeout is how long raft may take to accept a command from its caller.
	acceptTimeout = 5 * time.Second
	// logPause is how often one message of raft's own log is repeated as a warning.
	logPause = 30 * time.Second
)
