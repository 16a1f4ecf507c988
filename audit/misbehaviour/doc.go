// Package misbehaviour makes and verifies the file that convicts who signed two histories of one
// log. Whoever holds it and the mesh's genesis can verify it, offline and years later; it does not
// matter who wrote it or where it was found.
//
// # What convicts
//
// One seat in one boot has one cosigner key, which its Credential names and its organisation's
// enroller signed. It cosigns roots that it computed itself, so that two checkpoints of one origin
// which it has both cosigned belong to one tree, or it lied:
//
//   - of one size, they have one root;
//   - of two sizes, the larger tree has at the smaller size the smaller one's root. Which root that
//     is follows from a consistency proof (RFC 6962 §2.1.2), which can lead to one root alone.
//
// The log's own key convicts nobody: every seat has it, some program may have lost it, and safety
// does not rest on it. Two checkpoints that it has signed and that nobody has cosigned twice show
// that it is in the wrong hands (VerdictLogKeyLeaked), whichever. So a thief of the log key, alone or
// with any number of organisations, can write no file that convicts another one.
//
// A key speaks for an organisation if an enroll key says so that genesis, or a later step of the
// policy chain, gave it: whoever has stolen an enroll key and a seat's cosigner name can be taken for
// it, as everywhere in a mesh. Convicted.KeyRemoved says that the organisation has had that key removed since.
//
// Cosignatures of an organisation under two Credentials, of two boots, do not convict it: a node that
// was started anew may have been shown another history by others, and believed it. Report.Both
// names it.
//
// A file is no leaf of the log: where there are two histories there is nobody to order it for all, and it
// says to whoever holds it all that a leaf could.
//
// # Format
//
// One JSON object without white space, in the one form of package canonical, of at most MaxFile
// bytes:
//
//	{"meshnode":"misbehaviour/v1",       tells it from other files
//	 "mesh_id":"<64 hex>",               SHA-256 of genesis' payload
//	 "chain":["<envelope>",…],           the policy chain from Bootstrap on (genesis is the reader's),
//	                                     in the incarnation of the checkpoints: at least Bootstrap
//	 "credentials":["<envelope>",…],     Credentials of cosigners, at most MaxCredentials
//	 "checkpoints":["<note>","<note>"],  two signed checkpoints of one origin, the smaller first
//	 "root":"<64 hex>","proof":["<64 hex>",…]}
//
// root is that of the first checkpoint's size in the second one's tree, and proof leads from there to the second one's
// root; both are absent where the sizes are equal. Credentials are in no order and may repeat
// Bootstrap's.
package misbehaviour
