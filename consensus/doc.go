// Package consensus is the governance core of a mesh: who the organisations are, which
// nodes are theirs, which software they allow, and what each of them has found out about
// the others. It is pure. Nothing here reads a clock, the network or randomness, and no
// goroutine is started; State is a function of the commands it was given, in order.
//
// # Signed things
//
// Each is one DSSE envelope over an in-toto Statement (package envelope), and the envelope
// as ordered is the log leaf. The subject of those about the mesh is "mesh" with the mesh id, of
// those about a node org/node with the SHA-256 of its peer id, of genesis its name with the
// SHA-256 of the nonce:
//
//	genesis             mesh  every founding organisation's govern key
//	bootstrap           mesh  every founding organisation's enroll key
//	recovery            mesh  govern keys of as many as widen
//	credential          node  one enroll key of the node's organisation
//	proposal            mesh  govern keys of enough member organisations
//	withdrawal          mesh  a govern key of one member organisation
//	suspension          mesh  an emergency key of one member organisation
//	suspension-lift     mesh  govern keys of enough others, or its own
//	attestation-result  node  the verifier's peer key
//	time-sample         mesh  a seat's peer key
//	ready               node  the node's peer key and those of enough seats
//	drain               node  the node's peer key
//	retirement          node  an enroll or govern key of its organisation
//	membership          node  nobody: derived by Apply, checked by replay
//	state               mesh  nobody: derived by Apply, checked by replay
//	head                mesh  a seat's peer key; never ordered
//	state-digest        node  a seat's peer key; never ordered
//
// The mesh id is the SHA-256 of the genesis payload. Approvals of a proposal are signatures
// over the same payload bytes, gathered before it is submitted; its id is the SHA-256 of
// the payload. Decoders check sizes first, demand the one canonical encoding, and never
// panic. Times are UTC with at most milliseconds. Optional fields are absent when unset.
//
// # Commands
//
// What Raft orders is deterministic CBOR (RFC 8949 §4.2): the array [1, kind, body]. The
// body of the kinds of this package is an array of envelopes as byte strings:
//
//	bootstrap        [genesis, bootstrap]   leaves: both, as leaf 0 and 1
//	recovery         [recovery, bootstrap]  leaves: both; the first command of an incarnation above 0
//	credential       [credential]           leaf: itself; a removed seat adds a membership leaf
//	proposal         [proposal]             leaf: itself, then one membership leaf per removed seat
//	withdrawal       [withdrawal]           leaf: itself
//	suspension       [suspension]           leaf: itself
//	suspension-lift  [suspension-lift]      leaf: itself
//	results          [result, …]            leaves: those accepted, each followed by one membership
//	                                        leaf per seat that it lets go
//	tick             [time-sample, …]       leaves: one membership leaf per removed seat
//	ready            [ready]                leaves: itself, then one membership leaf
//	drain            [drain]                leaf: itself; a seat's adds a membership leaf
//	retirement       [retirement]           leaf: itself; a seat's adds a membership leaf
//	digest           []                     leaf: one state leaf
//
// An unknown version or kind is ErrUnknownCommand: the replica must halt, on every node
// alike, because skipping a removal would fail open. A command that Apply refuses changes
// nothing and has no leaf. Apply checks every signature except those of results, which
// CheckResults checks before an entry is stored, so that they can be verified in parallel.
//
// New action or command kinds and new fields need a higher fsm_version in genesis; suspensions
// came with 2, ak and ima with 3, and with 4 all that changes more than entries: the constitution,
// demands on platforms, an entry's supersede_at, keys that end, seats that move, logged states,
// recovery, and withdrawals. In a mesh of an older version they are refused on every node.
//
// # Time
//
// A tick carries samples that seats signed for the next tick number. With samples of
// ⌊2n/3⌋+1 seats the time becomes their lower median. With fewer, every missing seat is
// counted as having sampled the present time and the step is at most TickInterval, so
// that a lone leader cannot run the clock ahead. Time never falls. Before the first tick
// the time is zero: proposals are refused, expiries of credentials are not judged.
//
// # Classes of proposals
//
// N is the number of member organisations. The class is computed from the policy before and
// after, never declared. Narrow is what leaves every entry an entry before, none of which lasts
// longer, and accepts no hardware that was not; it needs ⌊N/2⌋+1 organisations. A change of the
// constitution is of a class of its own (below). Anything else widens and needs
// max(⌊N/2⌋+1, ⌈2N/3⌉). An entry that some other entry happens to cover is still an
// addition: otherwise two narrowings would not commute. A widening binds the base it was
// signed on and raises it; a narrowing names its target absolutely and never goes stale.
// Both raise the epoch. Adding back a revoked measurement takes an explicit readmit, so
// that a widening signed earlier cannot undo a removal that was ordered meanwhile.
//
// # Entries
//
// An Entry allows one measurement, of one kind of evidence, to hold a set of roles. Its id
// is computed: the first 16 hex characters of the SHA-256 of its compact JSON without the
// id. A file may state the id; it is then checked. Every entry has the role "member".
// Entry.Supersedes names the entries it is meant to replace, for people and for audits: both
// are in force until the old one is removed or passes its not_after, or until SupersedeAt. That
// is an ordered time in the signed bytes, so that who replays the policy needs no ticks. It
// stays the old entry's end when the new one is removed.
//
// An entry for a measured boot may list, as ima, the digests of all files that the kernel's
// IMA list may show. The list is part of the signed bytes and of the id, so that whoever
// replays the policy needs nothing else to judge a node. A node that was found under one
// entry is allowed by another with a list exactly if that names all files of the first.
//
// # Attestation keys
//
// Anybody can make a key and sign a quote with it. That a vtpm's key is a TPM's is said by a
// certificate of its own or, mostly, by activation: the enroller has the TPM open a secret that
// only the endorsement key certified under roots.vtpm of genesis can, and only beside that very
// attestation key. The Credential then names the key as ak, the SHA-256 of its
// SubjectPublicKeyInfo, and every verifier believes evidence by that key and no other. The
// quote itself covers the peer id.
//
// # Platforms
//
// The organisations decide about hardware, too, beside what every verifier demands anyway
// (attest.StrictPolicy), which no field of a proposal weakens. Floors (RaiseFloor) are least TCBs,
// from a time on. They never fall: of floors of which one covers another the higher counts, of
// others all do, whatever the order. A proposal of nothing but floors that are covered is refused;
// one that does something besides is not. Products are denied (DenyProduct) until a widening
// allows them. Lists of chips bind the nodes of an organisation, or of an entry; what remains is
// listed by every LimitHardware and named by no RemoveHardware, until a widening adds it, by an
// explicit readmit where it was removed.
//
// Lists hold commitments (attest.HardwareCommitment), SHA-256 over lp("meshnode-hardware/v1")
// lp(salt) lp(kind) lp(chip id), with 32 bytes of salt for each machine. The opening travels
// with the machine's evidence on the attested channel, as an item of no scheme, and is
// nowhere in the log: results name neither a chip nor a commitment. So a list says how many
// chips an organisation has and nothing else, and whoever has seen one machine's salt can look
// for that machine alone.
//
// No leaf says what hardware a node has, so that the ordered state cannot tell whom a demand hits.
// Verifiers can (PolicyState.AttestPolicy), from the claims they hold, and refuse at once. A node
// is contradicted while organisations that are a quorum of the seats, and enough to narrow, its
// own not counted, refuse it by their newest edges and affirm it by none; it is then evicted
// whatever it runs, and its seat leaves the Raft configuration where the rest is a quorum. That is
// derived from edges alone, without a clock. A floor whose time has not come is a note in edges
// (tcb_floor_ahead). If at its time the seats that a quorum finds below it are so many that the
// rest is none, all of them are spared, as are seats whose entry ends: verifiers overlook for them
// what came due by time. A spared seat has its vote and takes part in no round.
//
// # Constitution
//
// Organisations, their keys, limits and witnesses are policy, which genesis begins
// (constitution.go). A change of them is of class constitution, whatever else the proposal
// does: it needs the widen threshold of the member organisations before it, by their govern
// keys before it, and that of those after it, by their keys after it (the rule of TUF for root
// keys). It binds the base and raises it. Every govern key that it brings in signs it too. An
// organisation that replaces keys of its own, does nothing else, and signs with one of its keys
// before, needs ⌊N/2⌋+1 on both sides in place of the widen threshold: who decides stays the
// same. Without its own signature, as when its key is lost, it takes what any other change takes.
//
// A key has one role under one organisation, and one life: a key that was removed signs nothing
// new, in whatever role, and never comes back; what it had signed when that was ordered stays.
// Of a narrowing that was signed before, its signature is passed over and the others are
// counted. A key with a not_after signs nothing that ends later: compared are the times in the
// signed bytes (a proposal's expires, a Credential's, a suspension's until), so that a replay
// needs no clock. Credentials by a removed enroll key are void: their nodes are neither
// eligible nor heard as verifiers, and their links are closed, until they are enrolled under
// another key, which may be the same boot. They keep their names and seats meanwhile. To change
// an enroll key without that, the new one is added, all nodes are enrolled anew, and the old one
// is removed.
//
// An organisation that comes in has a vote at once and a vacant seat. One that goes takes
// its vote, its seat and its nodes along; their peer ids are retired for ever, and it comes back
// with new keys alone. What it suspended ends by itself or is lifted by others. There are always
// two members at least, and a change that would leave fewer seats than a quorum, of those that
// are or of those that are to be, is refused unless it is confirmed.
//
// # Withdrawals
//
// Approvals are gathered outside, so that nobody knows who holds which. An organisation takes
// its own back, or forbids its use beforehand, by a withdrawal that names the proposal and its
// expiry: once ordered, none of its signatures counts on that proposal, in Apply and in audits.
// A policy chain alone does not show it, as it does not show expiry: the seats that ordered a
// step are believed that it had enough others.
//
// # Suspensions
//
// One member organisation alone can withhold data: that of one node, by name, or that of
// every node that runs what an entry allows, for at most MaxSuspension, with a quota. It
// changes nothing else: not the allowed set, the epoch, edges or the Raft configuration, so
// that seats go on voting and a lift can be ordered even if everything is suspended. Who is
// suspended is not eligible. An entry that was suspended stays so under whatever other entry
// allows the same measurement, unless its registers tell them apart. A suspension ends by a
// tick, at its until and at most MaxSuspension after it was ordered.
//
// Its own organisation lifts it, or min(⌊N/2⌋+1, N−1) others do. Lifts are signed by govern
// keys: an emergency key takes away and gives nothing back, so that whoever steals one can
// neither undo what its owner suspended nor keep it from lifting what the thief did.
//
// # Quotas
//
// Between two ticks an organisation has so many results, Credentials (and retirements of boots
// without one), proposals (counted for all who have signed) and suspensions ordered as the limits
// in force say (quota.go). More is refused without a trace, with code quota, and may come after
// the next tick.
//
// # Nodes and edges
//
// The newest boot of a node wins; older peer ids are retired for ever, with the edges they
// gave and got. A node's own measurement is the one that most distinct other
// organisations' affirming edges name, a tie keeping the older finding. A node whose measurement
// leaves the allowed set is evicted; a seat's node then leaves the Raft configuration for
// good, while its organisation keeps its seat and its vote on proposals. A proposal that would evict
// so many seats that the rest is no quorum is refused unless it is confirmed in its signed bytes; a
// tick that would (an entry passing its end) evicts no seat.
//
// # Seats
//
// An organisation has one seat, held by one boot of one of its nodes or vacant. The founders
// hold theirs from Bootstrap on. A holder leaves it by a newer boot of its node, by eviction,
// by a Drain, which it signs itself before it is stopped, or by a Retirement, by which its
// organisation voids one boot for ever. Whoever has left never holds a seat again under that
// peer id.
//
// A node with the role seat, a measurement that others affirmed, and an organisation whose
// seat is vacant is a candidate: a non-voter that catches up. It takes the seat by a Ready
// {seq, digest}, signed by itself and by the holders of the seats of ⌊n/2⌋+1 other
// organisations (of all there are, if fewer) that had the same digest after the same command.
// A drain must leave ⌊N/2⌋+1 seats, except that one of two may go; the only seat that is held
// can neither be drained nor retired, nor replaced by a newer boot.
//
// # Policy chain
//
// Genesis, Bootstrap and the proposals in their order are the policy chain, and where the mesh was
// recovered each Recovery with its Bootstrap in its place. It replays without anything else
// (ReplayPolicy), and so whoever holds genesis needs no word of anybody about the policy; only how
// new it is, seats say in heads. Members hear its steps by gossip, and act on narrowings,
// suspensions and lifts before these are ordered (Provisional): what only takes away, or gives
// back what a suspension took, needs no order. The ordered state knows nothing of that.
//
// # Incarnations
//
// The state of an incarnation above 0 begins with the replay of the leaves of the log before
// it, up to the place where the log goes on (State.Replay, State.Recover), so that auditors
// and replicas come to the same. Then the Recovery voids every node, Credential, edge and
// retired peer, and the samples and proposals of before, which bind their incarnation. The
// policy, what was revoked and what is suspended stay; a suspension whose end depended on
// the clock lasts to its until. Epoch and base rise by one. Time is unknown until the first
// tick. The Bootstrap that follows names the Recovery and the place in the log, and has the
// signatures of the enrollers of every organisation in Recovery.Organisations: with fewer,
// two disjoint halves could both begin. A signer signs one Recovery for an incarnation; the
// cure of one that got stuck is a higher incarnation from the same log.
//
// # Logged states
//
// Every DigestEvery commands, at most once in DigestPause of ordered time, a digest command derives a
// state leaf: the digest of the whole machine just before it, which its owner hands in. Under a
// published checkpoint that is the word of a majority of organisations, so that a copy (State.Image,
// Restore) may come from anybody: Restore verifies the policy chain in it from genesis, and the
// digest decides the rest. Seats sign their own digest for each other (StateDigest).
//
// # Dry run
//
// State.DryRun says what a proposal would do if it were ordered next, whoever has signed it so
// far: it runs the code of Apply on a copy. What is known of nodes beside the ordered state,
// their claims above all, has to be judged by whoever knows it under Prediction.After.
//
// Sources: DESIGN §7, §8, §13; TUF's threshold rules (theupdateframework.io, §5.3) for
// counting organisations and not keys.
package consensus
