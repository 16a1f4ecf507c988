// Package audit is what a stranger runs: it checks after the fact, from published files
// alone, what the members of a mesh did. It has no clock of its own, starts no node and
// believes nobody; it needs the network only where a log is given as a URL.
//
// # Log
//
// Log reads a whole transparency log, recomputes its tree (package transparency), and
// replays its leaves through the rules of governance (package consensus):
//
//   - Leaf 0 is a genesis that all founding organisations signed; it is the one the auditor
//     holds, if one is given. Leaf 1 is a Bootstrap signed by all of them.
//   - A log may go on in a higher incarnation: by a Recovery that govern keys of enough
//     organisations signed, for exactly the size, root and policy that stand before it (a
//     planned one, for a part of them), and a Bootstrap by the enrollers of all organisations
//     that it names. Nodes and cosigners of a lower incarnation count for nothing after it.
//   - The checkpoint is of that origin and signed by the log key that Bootstrap names.
//   - Every Credential is signed by an enroll key of its organisation; every proposal by
//     enough organisations, on the right base; every attestation result by the node it
//     names, which is a member at that index, judges another member, names no future
//     epoch and, if affirming, a measurement that is allowed at that index. It is no newer than the
//     checkpoint's cosignatures.
//   - Every committed round is signed by an eligible aggregator over updates of eligible
//     trainers of that index, and continues the round before it.
//   - Every suspension is signed by an emergency key of its organisation, on a target of that
//     index, within its quota; every lift by govern keys of enough organisations. Who took
//     part in a round while suspended for certain is found.
//   - Every withdrawal is signed by a govern key of its organisation, whose signatures then
//     do not count on that proposal.
//   - Statements that nobody signs are those that follow from the leaves before them. Of a
//     state leaf that is mesh, epoch, policy and the pace; the digest of the whole state, which
//     covers the ordered time, only the seats that cosigned it can have computed.
//   - The checkpoint's cosigners are seats whose Credential and affirming result are in
//     the log below its size. Distinct organisations are counted.
//
// A log does not hold the clock by which members judged expiry. What the times in results
// rule out is found; in between, the seats that ordered a leaf are believed.
//
// Bundles are read, hashed and parsed, and the signatures of results and rounds verified, on all
// cores and ahead; the replay takes what was read in order (consensus.Leaf) and looks at no byte again.
// Memory is that of a few bundles and of the state of governance, whatever the log's size.
//
// # Going on
//
// An Auditor goes on with a log that grows, or from where it was stopped, and can be saved
// (state.go): all that the replay knows, the right edge of the tree, and the newest checkpoint that
// held. A log that has fewer entries than that (rolled_back), or does not contain it (forked), is
// another one than was audited, whoever has signed it. What a checkpoint brings counts once it is
// published and its tree holds; else the Auditor goes back to where it last held. A saved audit is of one
// mesh, and refused with a log or genesis of another.
//
// # Claims
//
// A claim is a leaf with the proof of inclusion that came with it, as a certificate of a
// round holds it. It holds if the log does, that leaf stands at the named index, the
// proof leads from it to the root in the proof's checkpoint, enough organisations had
// cosigned that by the membership at its size, and the log had that root at that size. Of
// a checkpoint that is newer than the log that was read, the last is left to its
// cosigners, who are then those at the log's end.
//
// # Disclosed evidence
//
// Of what members have disclosed (Options.Disclosed) each result is held against the evidence that
// it commits to: the commitment, the evidence's authenticity under the roots in genesis, and, of an
// affirming result, its kind, measurement and entry under the policy at that place in the log. So a
// result is found that says what its evidence does not, by whatever number of verifiers it was signed
// (disclosed_judge.go). Evidence that was not disclosed is counted, and no finding unless it is
// asked for. That disclosed evidence was shown on the connection which the result is about, nobody can
// check afterwards.
//
// # Impact
//
// An impact (ImpactOf) asks what, in the log that is audited meanwhile, relied on an entry, a
// measurement, an advisory, a chip or a product, from a time on. An admission is an affirming
// result that did: by what the leaf says, or, where that says nothing (chips, product lines, a vendor's
// advisories), by evidence that a member has disclosed, held against the commitment in the result and
// verified anew under the roots of genesis. Without it the result is counted as undecided, never as
// clean. A committed round is touched if its aggregator or a participant was admitted by such a
// result that still counted there (took_part), or only with the word of a verifier that was
// (vouched), or if it goes on from a touched model (inherits). Told are also each job's newest model that is
// not, and where the log stood before the first admission.
//
// # Matrix
//
// A matrix (MatrixOf) is who had verified whom at one place of a log, under which policy, whether that
// counts, and who could take part in rounds. matrix.go says what a time means where no leaf has one.
//
// # Volume
//
// A log holds changes and one heartbeat for each lifetime of a result, within quotas. What one boot says of
// another too often is found by the replay. Quotas are counted between ticks, which are no leaves: found is
// what is more than all ticks between two state leaves can have allowed (volume.go).
//
// # Findings
//
// Everything wrong is a finding of index, code and message. Codes are those of packages
// transparency and attest, and the constants of this package. A report is ok if it has no
// finding; "stale", "unavailable" and "evidence_withheld" alone mean that it could not be decided.
package audit
