package consensus

import (
	"fmt"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/ratio"
)

// crowded returns a mesh of 5 organisations with so many nodes, each affirmed by the two seats
// next to its own, and 200 entries.
func crowded(t testing.TB, nodes int) *mesh {
	t.Helper()
	g := genesisOf(t, 5)
	g.FSMVersion, g.Limits.Nodes = fsmGovernance, MaxNodes
	m := newMeshOf(t, g)
	m.start()
	for i := len(m.g.Policy.Entries); i < MaxEntries; i += 20 {
		var changes []func(*Proposal)
		for j := i; j < min(i+20, MaxEntries); j++ {
			changes = append(changes, add(entry(t, fmt.Sprintf("e%d", j))))
		}
		m.ok(m.order(m.propose(changes...), 4))
	}
	orgs := m.orgs()
	for i := range nodes {
		if i%len(orgs) == 0 { // no organisation has more ordered than its quota of a tick
			m.tick(time.Millisecond)
		}
		org := orgs[i%len(orgs)]
		name := string(org) + "/n1"
		if i >= len(orgs) {
			name = fmt.Sprintf("%s/node-%d", org, i)
			m.put(m.credential(name, 1, func(c *Credential) {
				c.Checkpoint = CheckpointSeen{uint64(7 * i), sha256Hex([]byte(name))}
			}))
		}
		for k := 1; k <= 2; k++ {
			verifier := string(orgs[(i+k)%len(orgs)]) + "/n1"
			m.put(m.result(verifier, name, "new", func(r *AttestationResult) {
				r.Evidence = EvidenceCommitment([32]byte{byte(k)}, []byte(name))
			}))
		}
	}
	return m
}

// put orders a Credential or an edge without the checks of the tests' apply.
func (m *mesh) put(raw []byte) {
	m.t.Helper()
	kind := KindResults
	if _, err := ParseCredential(raw); err == nil {
		kind = KindCredential
	}
	c, err := NewCommand(kind, raw)
	if err != nil {
		m.t.Fatal(err)
	}
	m.ok(m.s.Apply(c))
}

// BenchmarkRatioSnapshot is the size of the state of 5,000 nodes with 10,000 edges and 200
// entries.
func BenchmarkRatioSnapshot(b *testing.B) {
	m := crowded(b, 5000)
	for b.Loop() {
		raw := imageOf(b, m.s)
		ratio.Print("consensus.snapshot_mb", float64(len(raw))/1e6)
	}
}

// BenchmarkRestore is what a node spends to restore that state, with all signatures.
func BenchmarkRestore(b *testing.B) {
	m := crowded(b, 5000)
	raw := imageOf(b, m.s)
	fresh := func() *Genesis { // one that remembers no signature
		g, err := ParseGenesis(m.g.Raw())
		if err != nil {
			b.Fatal(err)
		}
		return g
	}
	b.ResetTimer()
	for b.Loop() {
		b.StopTimer()
		g := fresh()
		b.StartTimer()
		s, err := Restore(g, raw)
		if err != nil || s.Digest() != m.s.Digest() {
			b.Fatal(err)
		}
	}
}

// BenchmarkImage is what a seat spends on the state at each digest command.
func BenchmarkImage(b *testing.B) {
	m := crowded(b, 5000)
	b.ResetTimer()
	for b.Loop() {
		imageOf(b, m.s)
		_ = m.s.Digest()
	}
}
