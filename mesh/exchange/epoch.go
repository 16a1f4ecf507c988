package exchange

import (
	"fmt"

	"github.com/attestmesh/meshnode/internal/identity"
)

// EncodeEpoch returns the body of an EPOCH frame.
func EncodeEpoch(e identity.Epoch) []byte {
	out, err := codec.Encode(uint64(e))
	if err != nil {
		panic(err) // integers always encode
	}
	return out
}

// DecodeEpoch reads the body of an EPOCH frame.
func DecodeEpoch(body []byte) (identity.Epoch, error) {
	if len(body) > MaxEpoch {
		return 0, fmt.Errorf("epoch: %d bytes, the limit is %d", len(body), MaxEpoch)
	}
	var e uint64
	if err := codec.Decode(body, &e); err != nil {
		return 0, fmt.Errorf("epoch: %w", err)
	}
	return identity.Epoch(e), nil
}
