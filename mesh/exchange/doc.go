// Package exchange is the mutual attestation handshake: what two peers say to each other on
// a freshly secured connection before it may carry anything else, and again on that
// connection while it lives. It needs an ordered byte stream, the peer id that the
// connection authenticated and the connection's keying-material exporter; it knows no
// libp2p, opens nothing and starts no goroutine of its own.
//
// # Frames
//
//	frame = type u8 | length u32 big-endian | body
//
//	 1 HELLO_I   2 HELLO_R   ≤ 4 KiB                      in order; the initiator
//	 3 ATT_I     4 ATT_R     ≤ attest.MaxEvidence + 8 KiB  (the TLS client) proves
//	 9 FAST_I   10 FAST_R    103 bytes, in place of ATT    itself first
//	 5 ACK                   32 bytes
//	 6 REFUSAL               ≤ 16 KiB, instead of any frame, then the connection ends
//
// and on streams of an attested connection, as package mesh says:
//
//	 7 ACCEPT    empty
//	 8 CLOSE     a REFUSAL body with one reason
//	11 EPOCH     ≤ 9 bytes
//
// Bodies are deterministic CBOR (RFC 8949 §4.2); a decoder re-encodes what it read and
// refuses what is not byte for byte the same, so trailing bytes, other widths and other
// orders do not exist. A length above the limit is refused before anything is allocated.
// Frames are read exactly: the byte after ACK belongs to whatever follows.
//
//	HELLO   = [version uint, mesh id bstr32, incarnation uint, epoch uint, nonce bstr32,
//	           kinds tstr, want bstr, credential bstr]
//	ATT     = [transcript bstr32, evidence bstr, runtime head bstr32, [index, size, [*bstr32]]]
//	FAST    = [transcript bstr32, mac bstr32, runtime head bstr32]
//	ACK     = transcript, raw
//	REFUSAL = [*[code tstr, claim tstr, got tstr, want tstr]], at most 16
//	EPOCH   = uint
//
// version is exactly 1: there is no negotiation, so there is nothing to downgrade. epoch
// never refuses: each side judges under its own newest policy. want is what the sender, as
// verifier, demands of the receiver: empty for evidence, or the id of a pair key.
//
// # Binding
//
//	hellos     = SHA-256( lp(HELLO_I) lp(HELLO_R) )
//	EKM        = exporter("EXPORTER-meshnode-attest-v1", hellos, 32)
//	transcript = SHA-256( lp("meshnode-attest/v1 transcript") lp(EKM) lp(body)… ) over the
//	             bodies of all frames before this one, both directions, in order
//
// lp(x) is u32 big-endian length, then x. The binder over these is attest.Binder, with the
// exchange's purpose: 1 on a fresh connection, 2 when a live one is attested again; the role
// is the attester's in the TLS handshake. Evidence carries the report data of attest.Proof.
// The transcript is no evidence: it tells an honest peer that its last frame was received
// and judged as sent, so that ATT_R is R's acceptance of I, and ACK is I's acceptance of R,
// sent by nobody in advance. The initiator returns after sending ACK, the responder after
// receiving it; so no side has a usable connection before both have accepted.
//
// # Pair keys and the fast exchange
//
// The two directions are independent: in each, one side is the attester X and the other the
// verifier V. Where X showed evidence, both sides can derive
//
//	K = exporter("EXPORTER-meshnode-pair-v1", SHA-256( lp(role of X, u8) lp(hellos) ), 32)
//	id of K = SHA-256( lp("meshnode-attest/v1 pair id") lp(K) )
//
// V remembers K with its verdict about X, X remembers K with the runtime head that it
// showed; both in memory only, both only after the whole exchange succeeded, both for one
// mesh and incarnation. The window (DefaultWindow) begins when V drew the nonce under the
// evidence, and X counts alike from its own nonce. On a later connection V may put the id
// of K into its HELLO's want, if its verdict is in the window and Judge.Rejudge of the
// stored claims is affirming at that moment. X then sends FAST in place of ATT, if that id
// names the key it holds towards V, within the window, and its runtime head has not moved:
//
//	mac = HMAC-SHA-256( K, lp("meshnode-attest/v1 fast") lp(binder) lp(runtime head) )
//
// over the binder, purpose 1, of the new connection. In every other case X sends ATT, which
// V always takes. V accepts FAST if it asked for it, the transcript and the MAC are right (in
// constant time), the runtime head and kinds are those of the stored verdict, the window is
// still open and Rejudge, with the Credential of this HELLO, is still affirming. A FAST
// nobody asked for is refused with code protocol: only the verifier can choose the shorter
// form. FAST makes no new key and moves no end of a window.
//
// Re-attestation (purpose 2) is never fast: a want that is not empty is refused. It makes new
// keys like every exchange with evidence, and they replace the old.
//
// What is remembered is bounded by MaxPairs peers; the oldest goes first. A verdict is
// dropped when it expires, when the peer shows genuine evidence that is not acceptable, when
// Rejudge refuses, and when the peer's runtime head has moved. A key is dropped when it
// expires, when the own runtime head has moved, and when the peer refuses us. Package mesh
// drops both with every link that does not end in peace. Evidence or a MAC that proves
// nothing changes nothing, or whoever stole an identity key could cost its owner a quote.
//
// Windows are measured by the monotonic clock (on Linux CLOCK_MONOTONIC): setting the wall
// clock neither lengthens nor shortens one. That clock stands still while the whole
// machine is suspended.
//
// # Refusals
//
// A peer's Credential is judged, by one signature check, before its evidence is even read
// and before a quote is made for it. Whoever has no valid Credential (another mesh,
// another incarnation, another version: nothing of theirs can be verified) gets a REFUSAL
// with an empty list. Afterwards a refusal names its reasons. The remedy is not on the
// wire: the reader looks it up by code, so no peer can put words into an operator's
// mouth.
//
// Errors: *Refusal if either side refused, else what the connection or the context said.
// The caller closes the connection on any error. HELLO must arrive within 2 s, everything
// within 10 s; a refusal lingers up to 500 ms so that it is read before the reset.
package exchange
