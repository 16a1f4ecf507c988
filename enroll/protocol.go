package enroll

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Paths of the API.
const (
	pathNonce      = "/v1/nonce"
	pathActivation = "/v1/activation"
	pathCredential = "/v1/credential"
	pathBootstrap  = "/v1/bootstrap"
	pathStarted    = "/v1/bootstrap/started"
)

// Labels of what is signed and derived.
const (
	exporterLabel  = "EXPORTER-meshnode-attest-v1"
	peerLabel      = "meshnode-enroll/v1 peer"
	cosignerLabel  = "meshnode-enroll/v1 cosigner"
	bootstrapLabel = "meshnode-enroll/v1 bootstrap"
	startedLabel   = "meshnode-enroll/v1 started"
)

type nonceAnswer struct {
	Nonce       []byte               `json:"nonce"`
	KeyID       string               `json:"key_id"`
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
}

type credentialRequest struct {
	Node          identity.NodeName    `json:"node"`
	Peer          identity.PeerID      `json:"peer"`
	Cosigner      envelope.PublicKey   `json:"cosigner"`
	Roles         []string             `json:"roles"`
	MeshID        identity.MeshID      `json:"mesh_id"`
	Incarnation   identity.Incarnation `json:"incarnation"`
	Nonce         []byte               `json:"nonce"`
	Evidence      []byte               `json:"evidence"`
	RuntimeHead   []byte               `json:"runtime_head"`
	Index         uint64               `json:"index"`
	Size          uint64               `json:"size"`
	Path          [][]byte             `json:"path"`
	PeerProof     []byte               `json:"peer_proof"`
	CosignerProof []byte               `json:"cosigner_proof"`
	Activation    []byte               `json:"activation,omitempty"`
}

type credentialAnswer struct {
	Credential []byte `json:"credential"`
}

type bootstrapRequest struct {
	Payload []byte `json:"payload"`
	Proof   []byte `json:"proof"`
}

type bootstrapAnswer struct {
	Envelope []byte `json:"envelope"`
}

type startedRequest struct {
	Attempt uint32          `json:"attempt"`
	Peer    identity.PeerID `json:"peer"`
	Proof   []byte          `json:"proof"`
}

type refusalAnswer struct {
	Reason attest.Reason `json:"reason"`
}

// scope is what every signature to an enroller is bound to.
type scope struct {
	mesh        identity.MeshID
	incarnation identity.Incarnation
	keyID       string
}

// binder returns the binder of an enrolment on the connection of cs.
func (s scope) binder(cs *tls.ConnectionState, peer identity.PeerID, cosigner ed25519.PublicKey, nonce []byte) ([32]byte, error) {
	if cs == nil || cs.Version != tls.VersionTLS13 {
		return [32]byte{}, errors.New("the connection is not TLS 1.3")
	}
	b := s.enrolment(peer, cosigner, nonce)
	context := exporterContext(b)
	ekm, err := cs.ExportKeyingMaterial(exporterLabel, context[:], ekmSize)
	if err != nil {
		return [32]byte{}, fmt.Errorf("TLS exporter: %w", err)
	}
	b.EKM = ekm
	return b.Sum(), nil
}

// exporterContext is the context of the exporter for the binder b.
func exporterContext(b attest.Binder) [32]byte {
	return sha256.Sum256(attest.LengthPrefixed(attest.LengthPrefixed(nil, b.HelloI), b.HelloR))
}

// enrolment returns the binder of an enrolment on no connection yet.
func (s scope) enrolment(peer identity.PeerID, cosigner ed25519.PublicKey, nonce []byte) attest.Binder {
	return attest.Binder{
		Purpose: attest.PurposeEnrolment, Role: attest.RoleClient,
		MeshID: s.mesh, Incarnation: uint64(s.incarnation),
		Attester: string(peer), Verifier: s.keyID,
		HelloI: nonce, HelloR: attest.LengthPrefixed(attest.LengthPrefixed(nil, []byte(peer)), cosigner),
	}
}

// possession is what a key signs to show that the one who enrols has it.
func possession(label string, bind [32]byte) []byte {
	return attest.LengthPrefixed(attest.LengthPrefixed(nil, []byte(label)), bind[:])
}

// request is what a seat signs to ask for something in its own name.
func (s scope) request(label string, what []byte) []byte {
	var buf []byte
	for _, part := range [][]byte{[]byte(label), s.mesh[:], binary.BigEndian.AppendUint64(nil, uint64(s.incarnation)), []byte(s.keyID), what} {
		buf = attest.LengthPrefixed(buf, part)
	}
	return buf
}

func attemptBytes(attempt uint32) []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(attempt))
}
