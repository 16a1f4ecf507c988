package collect

import (
	"errors"

	"github.com/attestmesh/meshnode/attest"
)

// encoded recognises the evidence that meshnode attest writes: attest.Evidence in its
// canonical encoding. found is false where raw is something else.
func encoded(raw []byte) (kind string, items []attest.Item, found bool, err error) {
	ev, err := attest.DecodeEvidence(raw)
	if err != nil {
		return "", nil, false, nil
	}
	if ev.Kind == attest.KindSim {
		return "", nil, true, errors.New("simulated evidence, which is judged under a genesis, on the node's own address")
	}
	return ev.Kind, ev.Items, true, nil
}
