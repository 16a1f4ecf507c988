package ratls

import (
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
)

type wireProof struct {
	_           struct{} `cbor:",toarray"`
	Evidence    []byte
	RuntimeHead []byte
	Inclusion   attest.Inclusion
}

type wireRecord struct {
	_         struct{} `cbor:",toarray"`
	Type      string
	Value     []byte
	Indicator uint64
}

// EncodeProof returns the canonical bytes of a proof.
func EncodeProof(p attest.Proof) ([]byte, error) {
	if err := p.Evidence.Check(); err != nil {
		return nil, err
	}
	evidence, err := p.Evidence.Encode()
	if err != nil {
		return nil, fmt.Errorf("proof: %w", err)
	}
	raw, err := codec.Encode(wireProof{Evidence: evidence, RuntimeHead: p.RuntimeHead[:], Inclusion: p.Inclusion})
	if err != nil {
		return nil, fmt.Errorf("proof: %w", err)
	}
	if len(raw) > MaxProof {
		return nil, fmt.Errorf("proof: %d bytes, the limit is %d", len(raw), MaxProof)
	}
	return raw, nil
}

// DecodeProof reads a proof strictly. Nothing of it may be believed before a Scheme has
// verified the evidence against its report data.
func DecodeProof(raw []byte) (attest.Proof, error) {
	if len(raw) > MaxProof {
		return attest.Proof{}, fmt.Errorf("proof: %d bytes, the limit is %d", len(raw), MaxProof)
	}
	var w wireProof
	if err := codec.Decode(raw, &w); err != nil {
		return attest.Proof{}, fmt.Errorf("proof: %w", err)
	}
	if len(w.RuntimeHead) != 32 {
		return attest.Proof{}, fmt.Errorf("proof: runtime head of %d bytes, want 32", len(w.RuntimeHead))
	}
	evidence, err := attest.DecodeEvidence(w.Evidence)
	if err != nil {
		return attest.Proof{}, err
	}
	return attest.Proof{Evidence: evidence, RuntimeHead: [32]byte(w.RuntimeHead), Inclusion: w.Inclusion}, nil
}

// encodeRecord wraps a proof as a CBOR CMW record.
func encodeRecord(proof []byte) ([]byte, error) {
	return codec.Encode(wireRecord{Type: ProofType, Value: proof, Indicator: cmwEvidence})
}

func decodeRecord(raw []byte) ([]byte, error) {
	var w wireRecord
	if err := codec.Decode(raw, &w); err != nil {
		return nil, fmt.Errorf("conceptual message: %w", err)
	}
	if w.Type != ProofType || w.Indicator != cmwEvidence {
		return nil, fmt.Errorf("conceptual message: type %.80q with indicator %d, want %q with %d", w.Type, w.Indicator, ProofType, cmwEvidence)
	}
	return w.Value, nil
}

var codec = canonical.NewCBOR(attest.MaxPath) // no array is longer than a path
