// Package enroll is an organisation's enroller and the client by which its nodes reach
// it. The enroller stands outside every TEE and holds the organisation's enroll key. It
// says whose node a peer id is, by a Credential, and it signs the Bootstrap that starts
// the mesh with its organisation's seat. It never says that a node may enter: that is the
// allowed set's.
//
// # Connection
//
// HTTPS with HTTP/1.1 over TLS 1.3 only, without resumption. The certificate is
// self-signed and means nothing; clients pin the lower-case hex SHA-256 of its
// SubjectPublicKeyInfo. Requests and answers are JSON objects of known fields; byte
// strings are base64. A refusal has a status of 400 and above and the body
//
//	{"reason":{"code":…,"claim":…,"got":…,"want":…,"remedy":…}}
//
// with the codes of package attest. 400 is malformed, 403 a decision, 429 busy, 503
// unavailable.
//
// # POST /v1/nonce
//
// Request {}. Answer {"nonce","key_id","mesh_id","incarnation"}: 32 fresh bytes that only
// this connection may use, once, and what the enroller is. The client must know the key id
// as one of its organisation's enroll keys.
//
// # POST /v1/credential
//
// Request {"node","peer","cosigner","roles","mesh_id","incarnation","nonce","evidence",
// "runtime_head","index","size","path","peer_proof","cosigner_proof"}, and "activation" where
// there is one (below), on the connection of the nonce. Evidence is attest's encoding; its report data covers the binder
//
//	purpose 5, role client, mesh id, incarnation, attester = binary peer id,
//	verifier = enroll key id (64 hex characters), HELLO_I = nonce,
//	HELLO_R = lp(binary peer id) lp(32 bytes of the cosigner key), SPKI hash empty,
//	EKM = TLS exporter "EXPORTER-meshnode-attest-v1" of 32 bytes with
//	      context SHA-256(lp(HELLO_I) lp(HELLO_R))
//
// by the given inclusion (index, size, path) and runtime head. The proofs of possession
// are Ed25519 signatures by the two keys over lp(label) lp(binder) with the labels
// "meshnode-enroll/v1 peer" and "meshnode-enroll/v1 cosigner". Answer {"credential"}: the
// envelope. It is granted if the name is on the organisation's list of nodes, the evidence
// is genuine and bound, its kind and measurement are on the organisation's list of
// releases, and both lists hold every role asked for.
//
// A peer id that was never seen gets boot_seq = max(last + 1, Unix milliseconds) and
// retires all earlier ones of its name for ever; the newest may renew, with the same
// cosigner key and boot_seq.
//
// # POST /v1/activation
//
// For evidence of a TPM whose attestation key nobody else vouches for. Request
// {"endorsement"}, on the connection of the nonce and before the request for the Credential:
// what the attestation CA judges (Config.Activate; package attest/vtpm has the layout: EK
// certificate and chain, AK, proof of its creation). Answer {"challenge"}: a secret encrypted
// to the endorsement key for that attestation key (TPM 2.0 Library, Part 1, §24), if the EK is
// certified under roots.vtpm of genesis. The secret, which TPM2_ActivateCredential gives, is
// "activation" in the request for the Credential. It counts once and on this connection, the
// evidence must be by that very key (wrong_attestation_key), and the Credential then names its
// digest as ak. Evidence of a TPM by a key that is neither activated nor otherwise believed
// gets no Credential (not_activated). What ties the key to the peer id is the quote, whose
// report data cover it and the connection.
//
// # POST /v1/bootstrap
//
// Request {"payload","proof"}: a Bootstrap payload and an Ed25519 signature by the peer key
// of the organisation's own seat in it over
//
//	lp("meshnode-enroll/v1 bootstrap") lp(mesh id) lp(u64 incarnation) lp(key id) lp(payload)
//
// Answer {"envelope"}: the payload with the enroller's signature alone. It is given if
// every Credential in it verifies, the organisation's own is of the newest boot of its
// node, and the attempt is the one signed last, with the same payload, or a higher one
// while the seat has not started. What is signed is recorded durably before.
//
// # POST /v1/bootstrap/started
//
// Request {"attempt","peer","proof"}, the proof over
//
//	lp("meshnode-enroll/v1 started") lp(mesh id) lp(u64 incarnation) lp(key id) lp(u64 attempt)
//
// Answer {}. A seat asks before it starts Raft and starts only if granted: the attempt must
// be the last one signed. From then on the enroller signs no other.
//
// # Recovery
//
// After a Recovery the enroller is given the recovery file (Config.Recovery). It verifies its
// signatures from genesis, serves that incarnation and no lower one ever after, and signs a
// Bootstrap only of that Recovery and only before it expires. The first Recovery that it is
// given for an incarnation is the only one. With Config.Seen it signs none that goes on from
// an older log than its organisation has seen: after a planned power-off nobody else can tell
// if all disks were rolled back to a moment after the Recovery was signed.
//
// # State
//
// The directory holds enroller.json (whose it is), nodes/NAME.json (every boot that got a
// Credential), bootstrap.json (the attempt signed last, and whether the seat started),
// incarnation.json (which one is served, and by which Recovery) and tls.key. All are durable before the answer that depends on them. One enroller holds a
// directory at a time.
package enroll
