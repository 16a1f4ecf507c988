package consensus

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/attestmesh/meshnode/attest"
)

// MaxChainFile bounds a file of a policy chain: its envelopes in base64.
const MaxChainFile = MaxChainBytes * 3 / 2

// ParseChainFile verifies a policy chain as a file, {"chain":["<base64>",…]}, which is what a
// node serves at /.well-known/meshnode/policy, and returns the policy that it leads to. How
// new it is nobody can tell from it.
func ParseChainFile(g *Genesis, data []byte) (*PolicyState, error) {
	if len(data) > MaxChainFile {
		return nil, refuse(attest.CodeMalformed, "policy chain", fmt.Sprintf("%d bytes", len(data)), fmt.Sprintf("at most %d", MaxChainFile))
	}
	var file struct {
		Chain [][]byte `json:"chain"`
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		return nil, refuseErr(attest.CodeMalformed, "policy chain", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, refuse(attest.CodeMalformed, "policy chain", "more than one JSON value", "one")
	}
	if len(file.Chain) == 0 {
		return nil, refuse(attest.CodeNotStarted, "policy chain", "empty", "genesis, Bootstrap and proposals")
	}
	return ReplayPolicy(g, file.Chain)
}
