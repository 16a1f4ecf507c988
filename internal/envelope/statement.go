package envelope

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	intoto "github.com/in-toto/attestation/go/v1"

	"github.com/attestmesh/meshnode/internal/canonical"
)

// Predicate types of everything meshnode signs. A type is never re-used for another
// purpose, so no statement can be passed off as one of another kind.
const (
	TypeGenesis           = "https://attestmesh.github.io/meshnode/genesis/v1"
	TypeBootstrap         = "https://attestmesh.github.io/meshnode/bootstrap/v1"
	TypeRecovery          = "https://attestmesh.github.io/meshnode/recovery/v1"
	TypeCredential        = "https://attestmesh.github.io/meshnode/credential/v1"
	TypeProposal          = "https://attestmesh.github.io/meshnode/proposal/v1"
	TypeAttestationResult = "https://attestmesh.github.io/meshnode/attestation-result/v1"
	TypeSuspension        = "https://attestmesh.github.io/meshnode/suspension/v1"
	TypeSuspensionLift    = "https://attestmesh.github.io/meshnode/suspension-lift/v1"
	TypeReady             = "https://attestmesh.github.io/meshnode/ready/v1"
	TypeDrain             = "https://attestmesh.github.io/meshnode/drain/v1"
	TypeRetirement        = "https://attestmesh.github.io/meshnode/retirement/v1"
	TypeWithdrawal        = "https://attestmesh.github.io/meshnode/withdrawal/v1"
	TypeMembership        = "https://attestmesh.github.io/meshnode/membership/v1"
	TypeJob               = "https://attestmesh.github.io/meshnode/job/v1"
	TypeUpdate            = "https://attestmesh.github.io/meshnode/update/v1"
	TypeRoundClose        = "https://attestmesh.github.io/meshnode/round-close/v1"
	TypeRound             = "https://attestmesh.github.io/meshnode/round/v1"
	TypeHead              = "https://attestmesh.github.io/meshnode/head/v1"
	TypeTimeSample        = "https://attestmesh.github.io/meshnode/time-sample/v1"
	TypeServiceManifest   = "https://attestmesh.github.io/meshnode/service-manifest/v1"
	TypeServiceReceipt    = "https://attestmesh.github.io/meshnode/service-receipt/v1"
	TypeState             = "https://attestmesh.github.io/meshnode/state/v1"
	TypeStateDigest       = "https://attestmesh.github.io/meshnode/state-digest/v1"
)

// Subject names what a Statement is about.
type Subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// SubjectOf returns the subject of data: its name and SHA-256.
func SubjectOf(name string, data []byte) Subject {
	sum := sha256.Sum256(data)
	return Subject{name, map[string]string{"sha256": hex.EncodeToString(sum[:])}}
}

// Statement is an in-toto Statement v1 whose predicate has the Go type P.
type Statement[P any] struct {
	Type          string    `json:"_type"`
	Subject       []Subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     P         `json:"predicate"`
}

// NewPayload encodes the payload of a Statement: the bytes that get signed.
func NewPayload[P any](predicateType string, subject Subject, predicate P) ([]byte, error) {
	return canonical.JSON(Statement[P]{intoto.StatementTypeUri, []Subject{subject}, predicateType, predicate})
}

// Decode decodes a payload of the expected predicate type. The payload must be in
// canonical form and have exactly one subject with a sha256 digest.
func Decode[P any](payload []byte, predicateType string) (Statement[P], error) {
	var st, zero Statement[P]
	if err := canonical.DecodeJSON(payload, &st); err != nil {
		if other, loose := PredicateType(payload); loose == nil && other != predicateType {
			return zero, fmt.Errorf("statement: predicate type %.100q, want %q", other, predicateType)
		}
		return zero, fmt.Errorf("statement: %w", err)
	}
	if st.Type != intoto.StatementTypeUri {
		return zero, fmt.Errorf("statement: type %q, want %q", st.Type, intoto.StatementTypeUri)
	}
	if st.PredicateType != predicateType {
		return zero, fmt.Errorf("statement: predicate type %q, want %q", st.PredicateType, predicateType)
	}
	if len(st.Subject) != 1 || len(st.Subject[0].Digest["sha256"]) != 64 {
		return zero, fmt.Errorf("statement: want exactly one subject with a sha256 digest")
	}
	return st, nil
}

// PredicateType returns the predicate type of a payload without deciding anything else:
// for dispatch, before Decode.
func PredicateType(payload []byte) (string, error) {
	st, err := decodeLoose(payload)
	if err != nil {
		return "", err
	}
	return st.PredicateType, nil
}

// SubjectName returns the name of a payload's first subject without deciding anything
// else: for listings.
func SubjectName(payload []byte) (string, error) {
	st, err := decodeLoose(payload)
	if err != nil {
		return "", err
	}
	if len(st.Subject) == 0 {
		return "", fmt.Errorf("statement: no subject")
	}
	return st.Subject[0].Name, nil
}
