package consensus

import (
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Head is what a seat signs with its peer key over somebody's nonce: how far the mesh has
// come. It is never ordered.
type Head struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Nonce       string               `json:"nonce"` // hex
	Epoch       identity.Epoch       `json:"epoch"`
	// Policy is the digest of the policy chain: a chain replays without a clock, so only
	// the seats can say that no step of it was refused as expired.
	Policy string `json:"policy"`
	Tick   uint64 `json:"tick"`
	Size   uint64 `json:"size"`
	Root   string `json:"root"`
}

// MaxHead bounds an encoded Head.
const MaxHead = 4 << 10

// VerifyHead decides that raw is a Head of this mesh and incarnation, over nonce (hex), and
// signed by one of the seats of Bootstrap whose organisation is in force, or one of others,
// whose Credential it returns. Others are verified Credentials, of seats that the policy does
// not name: an organisation says there which nodes may have its seat, and whoever counts heads
// counts organisations. A seat that was voted out since is still one of those; the count wants
// ⌊n/2⌋+1 of all n organisations in force. The error carries a Reason.
func (s *PolicyState) VerifyHead(raw []byte, nonce string, others ...*Credential) (Head, *Credential, error) {
	if len(raw) > MaxHead {
		return Head{}, nil, refuse(attest.CodeMalformed, "head", fmt.Sprintf("%d bytes", len(raw)), fmt.Sprintf("at most %d", MaxHead))
	}
	if s.bootstrap == nil {
		return Head{}, nil, refuse(attest.CodeNotStarted, "head", "no Bootstrap", "seats to sign heads")
	}
	env, err := envelope.Parse(raw)
	if err != nil {
		return Head{}, nil, refuseErr(attest.CodeMalformed, "head", err)
	}
	st, err := envelope.Decode[Head](env.Payload, envelope.TypeHead)
	if err != nil {
		return Head{}, nil, refuseErr(attest.CodeMalformed, "head", err)
	}
	h := st.Predicate
	switch {
	case h.MeshID != s.genesis.meshID:
		return Head{}, nil, refuse(attest.CodeWrongMesh, "head mesh_id", h.MeshID.Short(), s.genesis.meshID.Short())
	case h.Incarnation != s.incarnation:
		return Head{}, nil, refuse(attest.CodeWrongIncarnation, "head incarnation", fmt.Sprint(h.Incarnation), fmt.Sprint(s.incarnation))
	case h.Nonce != nonce:
		return Head{}, nil, refuse(attest.CodeStale, "head nonce", fmt.Sprintf("%.64s", h.Nonce), nonce)
	}
	for _, seat := range slices.Concat(s.bootstrap.seats, others) {
		if _, in := s.orgs.find(seat.Organisation); !in || !seat.HasRole(RoleSeat) {
			continue
		}
		if checkSubject(st.Subject, nodeSubject(seat.Ref(), seat.Peer)) != nil {
			continue
		}
		if err := env.VerifyPeer(seat.Peer); err != nil {
			return Head{}, nil, refuseErr(attest.CodeBadSignature, "head of "+seat.Ref().String(), err)
		}
		return h, seat, nil
	}
	return Head{}, nil, refuse(attest.CodeNotSeat, "head", fmt.Sprintf("of %.80q", st.Subject[0].Name), "a seat of Bootstrap, or one whose Credential is shown")
}
