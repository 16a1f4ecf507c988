package consensus

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

var keptMeshes atomic.Int64

// maxForced bounds how many refused envelopes of one mesh are kept.
const maxForced = 20

// keep writes what a mesh's commands came to into the directory named by MESHNODE_KEEP_LEAVES, for
// python/test_audit.py: the leaves, and each refused envelope with how many leaves came before it.
// Does nothing where the variable is not set.
func keep(t testing.TB, m *mesh) {
	dir := os.Getenv("MESHNODE_KEEP_LEAVES")
	if dir == "" {
		return
	}
	t.Cleanup(func() {
		type forced struct {
			After int    `json:"after"`
			Leaf  string `json:"leaf"`
		}
		out := struct {
			Test   string   `json:"test"`
			Leaves []string `json:"leaves"`
			Forced []forced `json:"forced"`
		}{Test: t.Name()}
		s := NewState(m.g)
		for _, c := range m.log {
			got := s.Apply(c)
			for _, leaf := range got.Leaves {
				out.Leaves = append(out.Leaves, string(leaf))
			}
			lo, hi, known := envelopeCount(c.Kind)
			if got.Reason == nil || !known || c.Kind == KindTick || len(out.Forced) == maxForced {
				continue
			}
			if raws, err := c.envelopes(lo, hi); err == nil && len(raws) > 0 {
				out.Forced = append(out.Forced, forced{len(out.Leaves), string(raws[0])})
			}
		}
		raw, err := json.Marshal(out)
		if err == nil && len(out.Leaves) > 0 {
			err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("%05d.json", keptMeshes.Add(1))), raw, 0o644)
		}
		if err != nil {
			t.Error(err)
		}
	})
}
