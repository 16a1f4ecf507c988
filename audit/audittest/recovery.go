package audittest

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Again returns the boots of the founding nodes in a later life.
func Again(life string) []string {
	out := Seats()
	for i := range out {
		out[i] += " " + life
	}
	return out
}

// Replayed returns the state that leaves lead to.
func (m *Mesh) Replayed(leaves [][]byte) *consensus.State {
	s := consensus.NewState(m.Genesis)
	if out := s.Apply(must(consensus.NewCommand(consensus.KindBootstrap, leaves[0], leaves[1]))); out.Reason != nil {
		panic(fmt.Sprintf("audittest: Bootstrap refused: %v", out.Reason))
	}
	for i := 2; i < len(leaves); i++ {
		kind := must(envelope.PredicateType(must(envelope.Parse(leaves[i])).Payload))
		if kind == envelope.TypeRecovery {
			check(s.Recover(leaves[i], Place(leaves[:i]), time.Time{}))
			continue
		}
		if kind != envelope.TypeRound {
			i += len(must(s.Replay(leaves[i])).Leaves) - 1 // what follows from it is there
		}
	}
	return s
}

// Recover goes on in a higher incarnation from the first leaves, with the boots Again(life) as
// seats, all of which run "new". The Recovery was drafted on as many leaves as drafted; one that
// is changed is signed by alpha and beta like any other.
func (m *Mesh) Recover(inc identity.Incarnation, life string, drafted, from int, change ...func(*consensus.Recovery)) {
	draft := consensus.Recovery{Incarnation: inc, Organisations: []identity.OrgID{"alpha", "beta", "gamma"}, Nonce: strings.Repeat("cd", 16),
		Planned: drafted < from, Created: m.At, Expires: m.At.Add(time.Hour)}
	file := must(m.Replayed(m.Leaves[:drafted]).DraftRecovery(draft, Place(m.Leaves[:drafted])))
	r := *file.Recovery
	for _, f := range change {
		f(&r)
	}
	m.RecoverBy(Sign(must(r.Payload()), "alpha govern", "beta govern"), life, from)
}

// RecoverBy goes on from the first leaves by a Recovery that is signed.
func (m *Mesh) RecoverBy(recovery []byte, life string, from int) {
	m.Leaves = slices.Clip(m.Leaves[:from])
	m.State = m.Replayed(m.Leaves)
	check(m.State.Recover(recovery, Place(m.Leaves), m.At))
	var creds [][]byte
	var boots, labels []string
	for _, org := range m.State.Founders() {
		boot := string(org) + "/n1 " + life
		creds = append(creds, m.Credential(boot))
		boots, labels = append(boots, boot), append(labels, string(org)+" enroll")
	}
	payload := must(m.State.NewBootstrap(1, creds, m.LogKey().Public().(ed25519.PublicKey), m.At))
	m.Command(consensus.KindRecovery, recovery, Sign(payload, labels...))
	m.attest("new", boots)
}
