package consensus

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// headOf signs a Head as one seat of a mesh does.
func headOf(t testing.TB, m *mesh, seat *Credential, by ed25519.PrivateKey, change func(*Head)) []byte {
	t.Helper()
	h := Head{MeshID: m.g.MeshID(), Nonce: hex.EncodeToString(bytes.Repeat([]byte{7}, 32)), Policy: fmt.Sprintf("%x", m.s.PolicyDigest()), Root: hex.EncodeToString(make([]byte, 32))}
	if change != nil {
		change(&h)
	}
	sig, err := envelope.NewSigner(by)
	if err != nil {
		t.Fatal(err)
	}
	env, err := envelope.SignStatement(sig, envelope.TypeHead, nodeSubject(seat.Ref(), seat.Peer), h)
	if err != nil {
		t.Fatal(err)
	}
	return env.Marshal()
}

func TestVerifyHead(t *testing.T) {
	m := started(t, 3)
	seats := m.s.Bootstrap().Seats()
	own := boot(seats[1].Ref().String(), 1)
	nonce := hex.EncodeToString(bytes.Repeat([]byte{7}, 32))
	h, by, err := m.s.VerifyHead(headOf(t, m, seats[1], own, nil), nonce)
	if err != nil || by.Ref() != seats[1].Ref() || h.Policy != fmt.Sprintf("%x", m.s.PolicyDigest()) {
		t.Fatalf("got %+v by %v, %v", h, by, err)
	}
	stranger := *seats[1]
	stranger.Node = "elsewhere"
	for name, tc := range map[string]struct {
		raw  []byte
		want attest.Code
	}{
		"nothing":             {nil, attest.CodeMalformed},
		"too long":            {make([]byte, MaxHead+1), attest.CodeMalformed},
		"another statement":   {m.s.Bootstrap().Seats()[0].Raw(), attest.CodeMalformed},
		"another mesh":        {headOf(t, m, seats[1], own, func(h *Head) { h.MeshID[0] ^= 1 }), attest.CodeWrongMesh},
		"another incarnation": {headOf(t, m, seats[1], own, func(h *Head) { h.Incarnation++ }), attest.CodeWrongIncarnation},
		"another nonce":       {headOf(t, m, seats[1], own, func(h *Head) { h.Nonce = hex.EncodeToString(make([]byte, 32)) }), attest.CodeStale},
		"no seat":             {headOf(t, m, &stranger, own, nil), attest.CodeNotSeat},
		"another seat's name": {headOf(t, m, seats[0], own, nil), attest.CodeBadSignature},
		"an enroller's key":   {headOf(t, m, seats[1], key("alpha enroll"), nil), attest.CodeBadSignature},
	} {
		if _, _, err := m.s.VerifyHead(tc.raw, nonce); ReasonOf(err) == nil || ReasonOf(err).Code != tc.want || err == nil {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
	if _, _, err := newMesh(t, 3).s.VerifyHead(headOf(t, m, seats[1], own, nil), nonce); ReasonOf(err).Code != attest.CodeNotStarted {
		t.Errorf("before the start: %v", err)
	}
}

func FuzzVerifyHead(f *testing.F) {
	m := started(f, 3)
	seat := m.s.Bootstrap().Seats()[0]
	f.Add(headOf(f, m, seat, boot(seat.Ref().String(), 1), nil))
	f.Add([]byte(`{"payloadType":"application/vnd.in-toto+json","payload":"","signatures":[]}`))
	nonce := hex.EncodeToString(bytes.Repeat([]byte{7}, 32))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if h, by, err := m.s.VerifyHead(raw, nonce); err == nil && (by == nil || h.Nonce != nonce || h.MeshID != m.g.MeshID()) {
			t.Errorf("accepted %+v", h)
		}
	})
}
