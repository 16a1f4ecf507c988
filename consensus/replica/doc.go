// Package replica orders meshnode's commands with hashicorp/raft among the seats of a
// mesh, over streams that somebody else has authenticated.
//
// A Replica is one seat's copy. It knows a Machine, to which it hands committed commands
// in their order, and Peers, which opens authenticated byte streams to other seats. Server
// id and server address are both the text form of the seat's peer id: addresses belong to
// whoever binds Peers. Nothing here speaks to a network.
//
// # Streams
//
// Between two seats A and B run at most two streams: one that A opened, for A's requests
// and B's replies, and one that B opened. The newest stream of a peer replaces its older
// one. All integers are big-endian. The opener begins with a hello of 79 bytes:
//
//	"MR" | version u8 = 1 | opener's peer id [38] | acceptor's peer id [38]
//
// Both ids must be those that the stream was authenticated for; the acceptor answers
// nothing and closes the stream where they are not. After it, frames:
//
//	length u32 | version u8 = 1 | kind u8 | request id u64 | body
//
// length counts everything behind itself. Kind fixes the size of the body, or for kinds 1,
// 9 and 11 its limit, which is compared before a byte is allocated. A body of other than the
// one possible encoding of its message is malformed. Bodies:
//
//	1 append entries        term u64 | previous index u64 | previous term u64 |
//	                        leader's commit index u64 | count u16 | count entries
//	  entry                 term u64 | type u8 | length u32 | data
//	2 append reply          term u64 | last index u64 | flags u8: 1 success, 2 retry at once
//	3 request vote          term u64 | last index u64 | last term u64 | flags u8: 1 transfer
//	4 vote reply            term u64 | flags u8: 1 granted
//	5 request pre-vote      term u64 | last index u64 | last term u64
//	6 pre-vote reply        term u64 | flags u8: 1 granted
//	7 timeout now           empty
//	8 timeout now reply     empty
//	9 refusal               reason, UTF-8, at most 512 bytes
//	11 snapshot chunk       term u64 | last index u64 | last term u64 | configuration index u64 |
//	                        size u64 | offset u64 | configuration length u16 | configuration | data
//	12 snapshot reply       term u64 | state u8: 1 go on, 2 being checked, 3 installed
//
// Entries of one append are consecutive from previous index + 1, so their index is not on
// the wire. Nor is the sender of a message: raft's RPC header is filled in from the
// authenticated peer, so that there is no field to lie in. Requests are answered in their order; several may be under way. A malformed
// frame, a reply to nothing, or a deadline that passes closes the stream; a request that
// the guard refuses is answered with a refusal.
//
// # Guard
//
// hashicorp/raft v1.8.0 believes whoever reaches its transport: one message of a stranger
// sets its term to the maximum, rewrites committed entries, replaces state and membership,
// or makes it panic now and at every later start. So each request passes the guard before
// raft sees it:
//
//   - the sender is in the allowed set at this moment (Config.Member); a learner
//     (Config.Learner) is sent the log and is not heard;
//   - a peer may raise our term by 1,000 at once and by ten per heartbeat timeout in the
//     long run, in requests as in replies; honest clusters stay far below, and a replica
//     that was cut off for long catches up at that rate;
//   - a term has one leader, the first whose entries were accepted in it;
//   - entries are of a known type, their terms rise, and no entry at or below the commit
//     index (or at index 1, the founding configuration) differs from the stored one;
//   - configurations decode, name peer ids only, and differ from the configuration before
//     them by one server at most;
//   - commands pass Machine.Check before they are stored;
//   - the commit index of a message counts only as far as its own entries prove the logs
//     equal (Raft §5.3; raft v1.8.0 takes our last index instead);
//   - a snapshot comes in chunks, each from the leader of the term, ends above all that is
//     committed or in the log, and is checked by Machine.CheckSnapshot as a whole before raft
//     hears of it; no second one comes in meanwhile;
//   - TimeoutNow comes from the leader only, and votes that set the transfer flag, which
//     makes raft ignore a living leader, are admitted once per peer and ten election
//     timeouts.
//
// The log store refuses in addition to delete what is committed, as raft commits between
// guard and storing. What the guard does not stop: Raft is not Byzantine fault tolerant. A
// hostile *seat* can claim to have won an election, vote twice, and acknowledge what it did
// not store; it can stop progress, and as leader withhold or order, not forge: commands
// carry signatures that Machine verifies.
//
// SetHeartbeatHandler is ignored: raft's fast path for heartbeats runs beside the main
// loop and lets a deposed leader store a command under its successor's term
// (hashicorp/raft#695). Heartbeats queue with everything else.
//
// # Membership
//
// The founding voters are the first entry of every log. A replica that is none of them
// (Config.Join) begins with that entry, votes in nothing and waits: a leader adds it as a
// non-voter, replicates the log to it, and gives it a vote when its owner says so
// (AddNonvoter, AddVoter, RemoveServer; hashicorp/raft's AddVoter alone would make a voter of
// whoever has not caught up). Each change compares the configuration it was decided on.
//
// A leader gives its office away only when it ends (Close, HandOver): a transfer that fails
// ends it for good.
//
// # Failures
//
// A store that returns an error or does not return within 5 s, a Machine that panics, and
// a leader that commits nothing for 10 s while entries wait, are final: the replica falls
// silent, so that it neither votes nor campaigns, and calls Config.Fatal once. Term and
// vote that cannot be stored make raft panic; that is the same fate, less politely. Seats
// are replaced, not repaired.
//
// So is a snapshot that cannot be read, and one that was checked and that Machine does not take.
//
// # Snapshots
//
// The owner of the machine says when there is a state to store (Replica.Snapshot); raft's own timer is
// off. The store keeps the newest, and Config.Trailing entries of the log behind it. Followers
// that need older entries are sent it. A replica that starts again restores it and replays
// the rest of the log; where a crash came between a snapshot and the log it replaces, that log goes
// then.
//
// An owner that does not believe a seat any more (its state differs, or as leader it leaves out
// what others submit) calls Distrust. Raft then elects another, once a majority has done so.
//
// # Outcomes
//
// Apply fails with ErrNotLeader when the command was certainly not ordered, and with
// ErrUnknownOutcome when it may be ordered now or later: repeat only commands that are
// idempotent.
package replica
