package node

import (
	"testing"
)

// A Ready names a command that Raft has delivered to the candidate, and is compared with what
// a seat had after that very command, or not at all.
func TestMarks(t *testing.T) {
	m, _ := testMachine(t)
	m.history = make([][]byte, 9)
	m.marks = []mark{{3, "three"}, {5, "five"}, {8, "eight"}}
	if _, ok := m.newestMark(); ok {
		t.Error("a mark that Raft has not delivered yet")
	}
	m.ordered = 6
	if k, ok := m.newestMark(); !ok || k.seq != 5 {
		t.Errorf("got %+v, want that of command 5", k)
	}
	for seq, want := range map[uint64]struct {
		digest     string
		ok, passed bool
	}{3: {"three", true, false}, 8: {"eight", true, false}, 7: {"", false, true}, 9: {"", false, true}, 10: {"", false, false}} {
		if digest, ok, passed := m.markAt(seq); digest != want.digest || ok != want.ok || passed != want.passed {
			t.Errorf("command %d: %q, %v, %v", seq, digest, ok, passed)
		}
	}
}

// The digest of a Ready covers state, rounds and log.
func TestReadyDigestCoversTheLog(t *testing.T) {
	m, bootstrap := testMachine(t)
	seen := map[string]bool{m.readyDigest(): true}
	if out := m.apply(bootstrap); out.Err != nil {
		t.Fatal(out.Err)
	}
	if d := m.readyDigest(); seen[d] {
		t.Error("the same after a command")
	} else {
		seen[d] = true
	}
	if _, err := m.tree.AppendAll([][]byte{[]byte("a leaf that no command made")}); err != nil {
		t.Fatal(err)
	}
	if seen[m.readyDigest()] {
		t.Error("the same with another log")
	}
}
