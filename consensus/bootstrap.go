package consensus

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Bootstrap starts an incarnation: one seat per organisation and the key of the log.
type Bootstrap struct {
	MeshID      identity.MeshID      `json:"mesh_id"`
	Incarnation identity.Incarnation `json:"incarnation"`
	// Attempt counts from 1; a founder that reboots before the start means another.
	Attempt uint32 `json:"attempt"`
	// Credentials are the envelopes of the seats' Credentials, one per organisation, in
	// the order of the organisations.
	Credentials []string `json:"credentials"`
	// LogKey is the Ed25519 key that signs checkpoints of this incarnation.
	LogKey envelope.PublicKey `json:"log_key"`
	// Recovery is the id of the Recovery that it fulfils and Continues the place from which
	// the log goes on; both absent in incarnation 0.
	Recovery  string         `json:"recovery,omitempty"`
	Continues CheckpointSeen `json:"continues,omitzero"`

	seats []*Credential
	raw   []byte
}

// Seats returns the verified Credentials, in the order of the organisations.
func (b *Bootstrap) Seats() []*Credential { return slices.Clone(b.seats) }

// LogPublic returns the log key.
func (b *Bootstrap) LogPublic() ed25519.PublicKey {
	k, _ := b.LogKey.PublicKey.(ed25519.PublicKey)
	return k
}

// Raw returns the envelope that was verified; nil before all have signed.
func (b *Bootstrap) Raw() []byte { return slices.Clone(b.raw) }

// founding is the policy state in which the founders of genesis start an incarnation.
func founding(g *Genesis, inc identity.Incarnation) *PolicyState {
	s := newPolicyState(g)
	s.incarnation = inc
	return s
}

// NewBootstrap returns the payload of a Bootstrap for the enrollers to sign, on a state that
// has not started: that of genesis, or one that Recover made. Credentials may come in any
// order; everything but the signatures is checked, expiry at now.
func (s *PolicyState) NewBootstrap(attempt uint32, credentials [][]byte, logKey ed25519.PublicKey, now time.Time) ([]byte, error) {
	b := Bootstrap{MeshID: s.genesis.meshID, Incarnation: s.incarnation, Attempt: attempt, Credentials: []string{}, LogKey: envelope.PublicKey{PublicKey: logKey}}
	if s.recovery != nil {
		b.Recovery, b.Continues = s.recovery.id.String(), s.continues
	}
	var creds []*Credential
	for _, raw := range credentials {
		c, err := ParseCredential(raw)
		if err != nil {
			return nil, fmt.Errorf("bootstrap: %w", err)
		}
		creds = append(creds, c)
	}
	slices.SortFunc(creds, func(x, y *Credential) int { return strings.Compare(string(x.Organisation), string(y.Organisation)) })
	for _, c := range creds {
		b.Credentials = append(b.Credentials, string(c.raw))
	}
	payload, err := envelope.NewPayload(envelope.TypeBootstrap, meshSubject(s.genesis.meshID), b)
	if err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	if _, err := s.CheckBootstrap(payload, now); err != nil {
		return nil, err
	}
	return payload, nil
}

// NewBootstrap is PolicyState.NewBootstrap on the state of genesis, in incarnation 0.
func NewBootstrap(g *Genesis, attempt uint32, credentials [][]byte, logKey ed25519.PublicKey, now time.Time) ([]byte, error) {
	return newPolicyState(g).NewBootstrap(attempt, credentials, logKey, now)
}

// CheckBootstrap decides everything about a Bootstrap payload but who signed it; an
// enroller calls it before it signs. A zero now does not judge expiry. The error carries
// a Reason.
func (s *PolicyState) CheckBootstrap(payload []byte, now time.Time) (*Bootstrap, error) {
	if len(payload) > envelope.MaxSize {
		return nil, refuse(attest.CodeMalformed, "bootstrap", fmt.Sprintf("%d bytes", len(payload)), fmt.Sprintf("at most %d", envelope.MaxSize))
	}
	st, err := envelope.Decode[Bootstrap](payload, envelope.TypeBootstrap)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "bootstrap", err)
	}
	b := &st.Predicate
	if b.MeshID != s.genesis.meshID {
		return nil, refuse(attest.CodeWrongMesh, "bootstrap mesh_id", b.MeshID.Short(), s.genesis.meshID.Short())
	}
	if err := checkSubject(st.Subject, meshSubject(s.genesis.meshID)); err != nil {
		return nil, refuseErr(attest.CodeMalformed, "bootstrap", err)
	}
	if b.Incarnation != s.incarnation {
		return nil, refuse(attest.CodeWrongIncarnation, "bootstrap incarnation", fmt.Sprint(b.Incarnation), fmt.Sprint(s.incarnation))
	}
	if b.Attempt == 0 {
		return nil, refuse(attest.CodeMalformed, "bootstrap attempt", "0", "1 or more")
	}
	if b.LogPublic() == nil {
		return nil, refuse(attest.CodeMalformed, "bootstrap log_key", "", "an Ed25519 key")
	}
	if err := b.checkRecovered(s); err != nil {
		return nil, err
	}
	if s.recovery != nil {
		if err := s.recovery.inTime(now); err != nil {
			return nil, err
		}
	}
	if want := len(s.Founders()); len(b.Credentials) != want {
		return nil, refuse(attest.CodeMalformed, "bootstrap credentials", fmt.Sprint(len(b.Credentials)), fmt.Sprintf("one of each of the %d organisations", want))
	}
	if err := b.checkSeats(s, now); err != nil {
		return nil, err
	}
	return b, nil
}

// checkSeats verifies each Credential and that no key of the ceremony has two uses.
func (b *Bootstrap) checkSeats(s *PolicyState, now time.Time) error {
	founders := s.Founders()
	used := map[string]string{}
	claim := func(key ed25519.PublicKey, what string) error {
		if other, ok := used[string(key)]; ok {
			return refuse(attest.CodeMalformed, "bootstrap", what+" is "+other, "distinct keys")
		}
		if org, role, ok := s.KeyOwner(key); ok {
			return refuse(attest.CodeMalformed, "bootstrap", fmt.Sprintf("%s is the %s key of %s", what, role, org), "distinct keys")
		}
		used[string(key)] = what
		return nil
	}
	if err := claim(b.LogPublic(), "the log key"); err != nil {
		return err
	}
	for i, raw := range b.Credentials {
		c, err := s.VerifyCredential([]byte(raw), now)
		if err != nil {
			return err
		}
		if want := founders[i]; c.Organisation != want {
			return refuse(attest.CodeMalformed, fmt.Sprintf("bootstrap credential %d", i), string(c.Organisation), string(want))
		}
		if !c.HasRole(RoleSeat) {
			return refuse(attest.CodeNotSeat, "bootstrap credential of "+c.Ref().String(), fmt.Sprint(c.Roles), RoleSeat)
		}
		peerKey, err := c.Peer.PublicKey()
		if err != nil {
			return refuseErr(attest.CodeMalformed, "bootstrap", err)
		}
		if err := claim(peerKey, "the peer key of "+c.Ref().String()); err != nil {
			return err
		}
		if err := claim(c.CosignerKey(), "the cosigner key of "+c.Ref().String()); err != nil {
			return err
		}
		b.seats = append(b.seats, c)
	}
	return nil
}

// ParseBootstrap verifies a Bootstrap: CheckBootstrap, and signatures by an enroll key of
// every organisation. A zero now does not judge expiry. The error carries a
// Reason.
func (s *PolicyState) ParseBootstrap(raw []byte, now time.Time) (*Bootstrap, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, refuseErr(attest.CodeMalformed, "bootstrap", err)
	}
	b, err := s.CheckBootstrap(env.Payload, now)
	if err != nil {
		return nil, err
	}
	signed, err := env.Verify(s.orgs.all(KeyEnroll))
	if err != nil {
		return nil, refuseErr(attest.CodeWrongSigner, "bootstrap", err)
	}
	missing := slices.DeleteFunc(s.Founders(), func(org identity.OrgID) bool { return slices.Contains(signed, org) })
	if len(missing) > 0 {
		return nil, refuse(attest.CodeThreshold, "bootstrap", fmt.Sprintf("no signature by %s", missing), "an enroll key of every founding organisation")
	}
	b.raw = raw
	return b, nil
}

// Sign returns an envelope over payload with one signature: one organisation's part of a
// joint statement, to be put together by Merge.
func Sign(payload []byte, s signature.Signer) ([]byte, error) {
	env := &envelope.Envelope{Payload: payload}
	if err := env.Sign(s); err != nil {
		return nil, err
	}
	return env.Marshal(), nil
}

// Merge puts together the signatures of envelopes over one payload, ordered by key id. Of
// several signatures by one key the first is kept. No signature is verified.
func Merge(raws ...[]byte) ([]byte, error) {
	var out envelope.Envelope
	for i, raw := range raws {
		env, err := envelope.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("merge: part %d: %w", i, err)
		}
		if i == 0 {
			out.Payload = env.Payload
		}
		if !bytes.Equal(env.Payload, out.Payload) {
			return nil, fmt.Errorf("merge: part %d has another payload (SHA-256 %s, want %s)", i, sha256Hex(env.Payload)[:16], sha256Hex(out.Payload)[:16])
		}
		for _, s := range env.Signatures {
			if !slices.ContainsFunc(out.Signatures, func(o envelope.Signature) bool { return o.KeyID == s.KeyID }) {
				out.Signatures = append(out.Signatures, s)
			}
		}
	}
	if len(raws) == 0 {
		return nil, fmt.Errorf("merge: nothing given")
	}
	if len(out.Signatures) > envelope.MaxSignatures {
		return nil, fmt.Errorf("merge: %d signatures, the limit is %d", len(out.Signatures), envelope.MaxSignatures)
	}
	slices.SortFunc(out.Signatures, func(a, b envelope.Signature) int { return strings.Compare(a.KeyID, b.KeyID) })
	return out.Marshal(), nil
}
