// Package federated runs training jobs in rounds: which nodes take part in a round, who
// adds their updates up, and what proves afterwards that it was done. It is a pure core:
// no network, clock or goroutine; node moves the bytes and owns the timers.
//
// # A job
//
// A Spec is written as YAML and signed as a job Statement {mesh_id, spec} by govern keys
// of organisations. JobID is the first 16 hex characters of the payload's SHA-256. A node
// takes part only if its own organisation signed. Round 0 collects statistics
// (data.Statistics); from their sum and the job's seed everybody derives the same first
// model. Rounds 1 to Spec.Rounds train. A round's result root is the chunk.Root of the
// model it ends in; the base root of a round is the result root of the one before, and 32
// zero bytes in round 0.
//
// # A round
//
//	RoundOpen    by the Raft leader: job, round, attempt, whom to leave out and why.
//	             Derived by every replica: participants, aggregator, base root, epoch.
//	  each participant trains on its own data, signs an Update statement and sends update,
//	  statement, number of examples and salt to the aggregator
//	RoundClose   the aggregator's signed list of accepted updates + the Update statements
//	  the aggregator adds up
//	RoundCommit  the aggregator's signed Round statement, which becomes the log's leaf
//
// Bodies are deterministic CBOR arrays (RFC 8949 §4.2), strictly decoded; each starts with
// the version 1:
//
//	job           [1, envelope]
//	round-open    [1, job, round, attempt, [peer, …], cause]
//	round-close   [1, envelope, [update envelope, …]]
//	round-commit  [1, envelope]
//
// attempt is the fence: whoever speaks for another attempt than the open one is refused
// with stale_round. Every accepted node is looked up in the current epoch at close and
// again at commit. An attempt that cannot end is followed by the next, which leaves out
// whom the leader cannot reach; participants then sign the same update root under the new
// attempt and train nothing again.
//
// The aggregator of an attempt is the member of highest SHA-256(lp("meshnode/v1
// aggregator") lp(job id) lp(u64 round) lp(organisation) lp(node name)) among those with
// the role, with lp and integers as in package attest; more than MaxParticipants trainers
// are cut to those of highest hash under the label "meshnode/v1 participant".
//
// # What is public
//
// The leaf holds roots and, for every participant, a commitment
//
//	SHA-256(lp("meshnode/v1 examples") lp(job id) lp(u64 round) lp(organisation)
//	        lp(node name) lp(salt) lp(u64 n_examples))
//
// with a salt of 32 random bytes. The numbers and the salts stand in the Certificate,
// which belongs to the members. In the subject of an update or a round Statement the
// "sha256" digest is the chunk.Root of the file, which is a SHA-256 tree head.
//
// # The directory of a job
//
//	certificate-N.json              one for each committed round, 0 … Rounds
//	model.safetensors               the model of the last committed round
//	models/N.safetensors            the model that round N ended in
//	updates/N/ORG.NODE.safetensors  what each participant contributed, if the job discloses
//
// ('.' does not occur in names, so two nodes never share a file.) Verify reads such a
// directory, checks every signature, commitment and root, and adds every sum up again.
package federated
