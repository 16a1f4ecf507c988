// Package transparency is the append-only log of a mesh: the Merkle tree that every seat
// builds in its state machine, the checkpoints that seats cosign, the proofs that travel
// with results, and the reader with which a stranger checks a published log.
//
// It knows bytes and signatures, not what a leaf means: package audit replays leaves.
//
// # Tree
//
// Leaf i is the i-th string of at most 65,535 bytes that was appended. The tree is the one
// of RFC 6962 §2.1: leaf hash SHA-256(0x00 ‖ leaf), node hash SHA-256(0x01 ‖ left ‖ right),
// and SHA-256("") for the empty tree. The root at a size depends on the order of the
// leaves alone; when partial tiles are written depends on when they were asked for.
//
// # Files
//
// A log is a directory of static files laid out by c2sp.org/tlog-tiles:
//
//	checkpoint                    the newest published checkpoint, a signed note
//	tile/<L>/<N>[.p/<W>]          up to 256 hashes of 32 bytes: the hashes of the subtrees of
//	                              256^L leaves, number 256·N and following
//	tile/entries/<N>[.p/<W>]      up to 256 entries, each its length (big-endian uint16) and
//	                              its bytes: leaves 256·N and following
//
// <N> is written in groups of three digits, all but the last with a leading x
// (1234067 is x001/x234/067). A tile of W < 256 is partial and has the suffix .p/<W>. The
// partial tiles of every published size stay until the published size has passed the full
// tile; a reader that does not find a partial tile takes the prefix of the full one.
// (golang.org/x/mod/sumdb/tlog hashes; its own Tile.Path is another layout and not used.)
//
// # Checkpoint
//
// A checkpoint is a c2sp.org/tlog-checkpoint without extension lines, in a
// c2sp.org/signed-note:
//
//	<origin>\n<size, decimal>\n<root, base64>\n\n
//	— <origin> <base64(key hash ‖ Ed25519 signature)>\n
//	— <cosigner> <base64(key hash ‖ timestamp ‖ Ed25519 signature)>\n …
//
// The first signature is the log key's and is named by the origin. The others are
// cosignature/v1 (c2sp.org/tlog-cosignature) of seats: each cosigner is named
// <origin>/<organisation>/<node>/<boot_seq> and has signed that it computed this root
// itself, at a time in Unix seconds. Safety rests on the cosignatures; the log key alone
// proves nothing.
//
// What counts is how many distinct organisations have cosigned: with n seats, ⌊n/2⌋+1
// make a checkpoint published, ⌊2n/3⌋+1 make it strong. Signatures of unknown names are
// ignored, those of a known name that do not hold are reported and not counted.
//
// Further lines may be cosignatures of witnesses outside the mesh (Outside), which have seen one
// append-only history and know no more. They count towards neither; whether one is there, and how new it
// is, is for whoever reads. They are kept when a checkpoint of the same text is replaced (KeepOutside).
//
// # Edge
//
// A tree goes on from its right edge alone, the unfinished tiles and bundle (Edge, Resume). What lies
// before is missing then: proofs that need it fail until Fill was given each full file, from anybody,
// upper levels first, so that each is held against a hash that its parent or the edge has.
//
// # Proof
//
// A proof that a leaf is in the log is a c2sp.org/tlog-proof@v1 without extra data:
// "c2sp.org/tlog-proof@v1\nindex <i>\n", one base64 hash a line, an empty line and the
// checkpoint. A Prover makes them from published files; who keeps one for years keeps a checkpoint
// in which every signature counts (Trim, VerifyExact).
//
// # Reading
//
// Reader reads a log from a directory or over http(s) with bounded sizes and a time limit
// per request. Its Walk recomputes the tree from the entries with an implementation
// (transparency-dev/merkle) that shares no code with the writer's, compares every tile of
// every level, and names what is wrong as Findings of index, code and message. Bundles are read ahead
// on all cores, a bounded number. A Walker goes on where its last Walk ended, be that at a
// checkpoint or at a bundle before, and can be saved; RootAt tells by the tiles what root the
// log of a checkpoint had at a smaller size.
package transparency
