// Package monitor follows the published log of a mesh for somebody outside: it audits what is new,
// compares what several copies show, and tells what somebody should look at, at least once each,
// whenever it is stopped or killed.
//
// # Rounds
//
// Every Interval a round asks each copy for its checkpoint, for 20 s at most. The largest one is
// audited (package audit) up to its size, or the next smaller one where that does not hold; reading
// is bounded to 30 s a copy and a minute a round, and goes on in the next. What leaves say
// counts only once a checkpoint with a quorum vouches for them: until then their alerts wait in a
// file that is thrown away if it does not hold.
//
// Then each copy's checkpoint is held against the audited log: by the root at the same size, or, of
// another size, by a proof of consistency made from tiles. So a copy may be one that has no tiles, as
// the place where an outside witness shows the checkpoint that it has cosigned. Of two checkpoints
// that contradict each other both are kept as a file of package audit/misbehaviour.
//
// # Alerts
//
// Three kinds have an index: findings of the audit in a leaf (each of its own code, always Error);
// what leaves say that are as they should be (policy_changed, recovered, contraindicated, clock_skew);
// and leaves that a Rule names (match). All others are conditions: they are raised once, also over
// restarts, and cleared once they have ended. A condition that cannot be judged, because a copy cannot
// be read, lasts; one that comes and goes within half a minute is told once.
//
// The ID of an alert is the first 16 bytes, in hex, of the SHA-256 of
//
//	lp("meshnode-alert/v1") lp(mesh id) lp(code) lp(part)…
//
// with lp(x) as everywhere a uint32 length before x. The parts are, of a finding in a leaf, its index in
// decimal and how many of that code the leaf had before; of what leaves say and of matches the index
// and the rule's name; of a finding in files the index and the copy; of a condition its scope and
// subject, the occasion, and raised or cleared. So two monitors give one id to what a leaf says.
//
// Codes are contracts. Where a code is not explained here it is one of package audit, transparency or
// attest; docs/RUNBOOK.md has a section for each.
//
// # What is kept
//
// The state directory belongs to one process (a lock) and one mesh. It holds
//
//	alerts.jsonl    all alerts, one JSON object a line: record, and queue of the outputs
//	state.json      what was audited, shown and told, and how much of alerts.jsonl that covers
//	audit-<size>    the auditor at that size
//	delivered.json  how many bytes of alerts.jsonl each output has taken
//	pending.jsonl   alerts that nobody vouches for yet
//	evidence/       misbehaviour-<hash>.json
//
// A round first appends to alerts.jsonl and syncs it, then replaces state.json, then gives the outputs
// what is new, and notes for each that it has taken it once it is synced, or the hook has exited 0.
// Killed before the second step, the next run finds the same again, and drops those alerts whose id
// stands behind what the state covers. Killed before the last, it gives an output the same lines again.
// So each alert is in alerts.jsonl once, and reaches each output at least once and in order.
//
// An audit is kept when it has come to a checkpoint. A monitor that is killed while it reads a log for the
// first time begins to read anew.
package monitor
