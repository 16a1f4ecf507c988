package redteam

import "time"

// Bounds of an attack.
const (
	// AttackTimeout bounds one attack, whatever the target does.
	AttackTimeout = 45 * time.Second
	// answerTimeout is how long an honest attempt may take at a node that serves: two quotes
	// of a slow device, and the exchange around them.
	answerTimeout = 10 * time.Second
	// aliveTries is how often somebody honest tries to connect during or after an attack.
	aliveTries = 3
	// cutTimeout is how long a node may keep a connection that makes no progress. libp2p
	// gives up after 15 s whatever the stage.
	cutTimeout = 17 * time.Second
	// dialTimeout bounds a TCP connect and a TLS handshake.
	dialTimeout = 5 * time.Second
	// stockTimeout bounds the dial of one stock host.
	stockTimeout = 5 * time.Second
	// promptly is how soon a frame that can be refused by its header is refused.
	promptly = 3 * time.Second
	// probeTimeout is how long a UDP port may stay silent to be called so.
	probeTimeout = 700 * time.Millisecond
	// strangers is how often the quote oracle is asked.
	strangers = 16
	// spentAt is after how many attempts an identity is replaced, and maxFresh how often.
	spentAt  = 3
	maxFresh = 24
	// challenges is how many clients challenge at once: more than one source may have.
	challenges = 96
	// slowConns is how many slow or half-open connections stand at once.
	slowConns = 12
	// nonces is how many of the target's nonces are compared.
	nonces = 8
	// maxAnswer bounds what is read of an HTTP answer.
	maxAnswer = 1 << 20
	// bigBody is what an oversize request announces; at most bodySent bytes of it are sent.
	bigBody  = 1 << 30
	bodySent = 8 << 20
	// bigHeader is the size of an oversize header.
	bigHeader = 256 << 10
	// retireWait is how long an older boot may still be accepted after a newer one was
	// linked: the newer Credential has to be ordered first.
	retireWait = 20 * time.Second
)
