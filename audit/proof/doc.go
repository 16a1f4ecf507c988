// Package proof makes and checks files that prove one leaf of a mesh's log to somebody who holds
// nothing but genesis: offline, years later, without the log.
//
// # File
//
// A proof file is a c2sp.org/tlog-proof@v1 whose extra data are the leaves that lead from genesis to
// the checkpoint, so that whatever reads such proofs reads it:
//
//	"c2sp.org/tlog-proof@v1\n"
//	"extra " base64(extra) "\n"
//	"index " decimal "\n"          the subject's index
//	base64(hash) "\n" …            its proof of inclusion, from the leaf up
//	"\n"
//	checkpoint                     a signed note, as package transparency describes
//
// base64 is that of RFC 4648 §4 with padding. extra is, with big-endian integers:
//
//	"meshnode-proof/v1\n"
//	u16 length, leaf               the subject: its envelope as it stands in the log
//	for each link, by rising index, up to the end:
//	  u64 index
//	  u16 length, leaf
//	  u8 n, n × 32 bytes           its proof of inclusion in the tree of the same checkpoint
//
// A file has at most MaxFile bytes. There is one encoding: whatever does not encode to the same bytes
// again is refused, and the checkpoint holds the log's signature and those of cosigners and outside
// witnesses that count, and no others. So a change of any byte is refused.
//
// # Links
//
//   - Genesis (leaf 0) and its Bootstrap (leaf 1), with the log key and the founders' Credentials, every
//     proposal, and every Recovery with its Bootstrap: the policy chain, which package consensus verifies.
//   - For each cosigner that counts the newest Credential of its boot, the membership leaf by which it
//     took its seat, an affirming result on it by another organisation's node, and that node's Credential.
//   - For a result the Credentials of verifier and subject, and what affirms the verifier. For a round
//     those of aggregator and participants, and affirming results on each by two other organisations
//     (fewer, if there were no more), with what makes these count.
//   - State leaves and membership leaves, as below, and the log's last leaves.
//
// # Verification
//
// Verify checks every proof of inclusion, then replays the leaves by rising index. A Credential has to
// be by an enroll key in force at its index. A result counts if its verifier and its subject are shown to
// be members there, signed it, and what it affirms is allowed there. Whoever is shown to have been put out,
// by a policy that does not allow what it runs, removes its organisation or its enroll key, by a newer
// boot, a retirement, a drain or a removal of its seat, counts no more. The checkpoint has to be of the
// last incarnation's origin, signed by its log key, and cosigned by seats of at least ⌊N/2⌋+1
// organisations, N being all that the policy names at the end. (A log publishes with a majority of those
// that have a seat, which are N or fewer; with fewer, some checkpoints that are published prove nothing
// here, and a later one that more have cosigned does.) None of this can be left out.
//
// # What can be left out of a file
//
// A file shows some leaves of a log, and who made it chose which.
//
// Policy. A state leaf names the epoch and the digest of the policy, chain included, that was in force
// when it was ordered; a membership leaf names the epoch; a Recovery that was not planned names both for the place at
// which it stands. Epochs count the changes. So a change that was left out below such a leaf is found
// (policy_incomplete), and so is one below a result or round that names a later epoch. Report.CompleteTo is
// the size below which the changes are all there for certain: up to the last such leaf and, where all leaves
// behind it are in the file, up to the last of these. Exports hold the first such leaf behind the subject,
// the last one of the log, and all leaves behind that if they are few. Above CompleteTo a change
// may have been left out: one that removed an organisation, an enroll key or software that is
// counted here.
//
// Members. A newer boot, a retirement, a drain or the loss of a seat may have been left out. What that
// could hide is a cosigner that had lost its seat when it signed. Seats order nothing by such a node, and cosign
// nothing under its name; who has its key can do so outside the mesh. For a false proof as many organisations
// have to be betrayed in this way as make a majority, and the log key with them; with those keys
// the whole tree can be forged, and no file could show it. What helps is an outside witness, whose
// cosignature Report.Outside names, another copy of the log, and log audit.
//
// Results. A newer result on the same node, which replaces one that is shown or tells that it had ended, may
// have been left out: that a verifier or a participant had been affirmed is shown, not that it still was.
//
// Who took part in a round while suspended, whose signature on a proposal had been withdrawn, and
// whether anything was ordered before it expired, leaves in the file do not say: the majority that
// ordered it is believed, or the log is audited.
package proof
