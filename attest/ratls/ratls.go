// Package ratls is how somebody outside a mesh, with HTTPS and nothing else, finds out what
// is at the other end of her connection: the RA-TLS certificate for a first look and the
// challenge that binds evidence to one connection. It holds bytes only: it opens no
// connection, judges no policy and reads no clock.
//
// # Certificate (purpose 3)
//
// A self-signed X.509 certificate of a P-256 key that was made in the node's memory, valid
// for at most MaxLifetime. Two extensions speak of attestation:
//
//	subject alternative name  URI "urn:meshnode:<mesh id, 64 hex>:<incarnation>:<peer id>"
//	1.3.6.1.5.5.7.1.35        id-pe-cmw (draft-ietf-rats-msg-wrap), not critical: the DER
//	                          OCTET STRING of a CBOR CMW record
//
//	record = ["application/vnd.meshnode.proof+cbor", bstr proof, 4]      4: evidence
//	proof  = [evidence bstr, runtime head bstr32, [index, size, [*bstr32]]]
//
// CBOR is deterministic (RFC 8949 §4.2) and refused where it is not. The binder has purpose
// 3, role 2 (server), mesh id, incarnation and attester as in the URI, and the SHA-256 of
// the key's SubjectPublicKeyInfo; verifier, both HELLOs and EKM are empty. So the evidence
// names the key, and whoever finishes a TLS 1.3 handshake under the certificate talks to who
// holds it: for as long as that key did not leave the node. The challenge does not need that.
//
// # Challenge (purpose 4)
//
//	POST /.well-known/meshnode/attest   {"nonce":"<64 hex>"}
//
// answered on the same connection with an Answer. Its proof has the binder of purpose 4,
// role 2, HELLO_I = the nonce's 32 bytes, HELLO_R, verifier and SPKI hash empty, and
//
//	EKM = exporter("EXPORTER-meshnode-attest-v1", SHA-256( lp(nonce) lp("") ), 32)
//
// of this very connection (RFC 8446 §7.5): whoever ends the TLS connection between a node
// and a client has two connections with two exporters, and no evidence for the client's.
//
// JSON is compact, in the order of the fields, without HTML escapes; bytes are base64
// (RFC 4648 §4). Request and Answer are refused where encoding what was read gives other
// bytes.
//
// # Heads
//
// An Answer also says how far the mesh has come: statements of seats over a batch nonce, the
// RFC 6962 root over the leaves of all clients that waited at the same time,
//
//	leaf = SHA-256( lp("meshnode-attest/v1 client head") lp(nonce) )
//
// with the inclusion of the client's own. lp(x) is u32 big-endian length, then x.
package ratls

import (
	"crypto/sha256"
	"encoding/asn1"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Protocol constants.
const (
	// Path is where challenges are posted.
	Path = "/.well-known/meshnode/attest"
	// NonceSize is the size of a client's nonce.
	NonceSize = 32
	// ExporterLabel and EKMSize are the exporter's, as on the mesh's own channels.
	ExporterLabel = "EXPORTER-meshnode-attest-v1"
	EKMSize       = 32
	// ProofType is the media type of a proof.
	ProofType = "application/vnd.meshnode.proof+cbor"

	cmwEvidence = 1 << 2 // bit of the CMW indicator
	headLabel   = "meshnode-attest/v1 client head"
	urnPrefix   = "urn:meshnode:"
)

// OIDConceptualMessage is id-pe-cmw.
func OIDConceptualMessage() asn1.ObjectIdentifier {
	return asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 35}
}

// Claimant is who a proof speaks of: one boot of a node, in one life of a mesh.
type Claimant struct {
	MeshID      identity.MeshID
	Incarnation identity.Incarnation
	Peer        identity.PeerID
}

// CertificateBinder is the binder of purpose 3.
func (c Claimant) CertificateBinder(spkiHash [32]byte) [32]byte {
	return attest.Binder{Purpose: attest.PurposeRATLS, Role: attest.RoleServer, MeshID: c.MeshID,
		Incarnation: uint64(c.Incarnation), Attester: string(c.Peer), SPKIHash: spkiHash[:]}.Sum()
}

// ChallengeBinder is the binder of purpose 4.
func (c Claimant) ChallengeBinder(nonce [NonceSize]byte, ekm [EKMSize]byte) [32]byte {
	return attest.Binder{Purpose: attest.PurposeClientChallenge, Role: attest.RoleServer, MeshID: c.MeshID,
		Incarnation: uint64(c.Incarnation), Attester: string(c.Peer), HelloI: nonce[:], EKM: ekm[:]}.Sum()
}

// ExporterContext is the context of the exporter under ExporterLabel for a nonce.
func ExporterContext(nonce [NonceSize]byte) [32]byte {
	return sha256.Sum256(attest.LengthPrefixed(attest.LengthPrefixed(nil, nonce[:]), nil))
}

// Exporter derives keying material of a TLS connection; tls.ConnectionState has it.
type Exporter func(label string, context []byte, length int) ([]byte, error)

// EKM returns the exporter value that a challenge of nonce is bound to.
func EKM(export Exporter, nonce [NonceSize]byte) ([EKMSize]byte, error) {
	context := ExporterContext(nonce)
	raw, err := export(ExporterLabel, context[:], EKMSize)
	if err != nil {
		return [EKMSize]byte{}, err
	}
	if len(raw) != EKMSize {
		return [EKMSize]byte{}, fmt.Errorf("exporter: got %d bytes, want %d", len(raw), EKMSize)
	}
	return [EKMSize]byte(raw), nil
}

// HeadLeaf is what of a client's nonce goes into the batch that seats sign.
func HeadLeaf(nonce [NonceSize]byte) [32]byte {
	return sha256.Sum256(attest.LengthPrefixed(attest.LengthPrefixed(nil, []byte(headLabel)), nonce[:]))
}
