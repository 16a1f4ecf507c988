package consensus

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Credential says whose node a peer id is, never that it may enter.
type Credential struct {
	MeshID       identity.MeshID      `json:"mesh_id"`
	Incarnation  identity.Incarnation `json:"incarnation"`
	Organisation identity.OrgID       `json:"organisation"`
	Node         identity.NodeName    `json:"node"`
	Peer         identity.PeerID      `json:"peer"`
	// Cosigner is the Ed25519 key that signs checkpoints, never Statements.
	Cosigner   envelope.PublicKey `json:"cosigner"`
	Roles      []string           `json:"roles"`
	BootSeq    identity.BootSeq   `json:"boot_seq"`
	Checkpoint CheckpointSeen     `json:"checkpoint,omitzero"`
	Issued     time.Time          `json:"issued"`
	Expires    time.Time          `json:"expires"`
	// AK is the attestation key that the enroller had activated on a TPM whose endorsement key
	// is certified under roots.vtpm of genesis: the SHA-256 of its SubjectPublicKeyInfo in hex.
	// Empty where evidence needs no such word. From fsm_version 3 on.
	AK string `json:"ak,omitempty"`

	raw    []byte
	key    string            // id of the one key that signed it; empty if there is not exactly one
	packed *packedCredential // of raw, once it was needed
}

// CheckpointSeen is the newest checkpoint that the enroller had seen: a node that knows
// only a smaller log has been rolled back.
type CheckpointSeen struct {
	Size uint64 `json:"size"`
	Root string `json:"root"` // SHA-256 in hex
}

// NamesAttestationKeys reports whether Credentials of this mesh may name attestation keys.
func (g *Genesis) NamesAttestationKeys() bool { return g.FSMVersion >= fsmActivation }

// SeatsReturn reports whether seats of this mesh can be taken again, drained and retired.
func (g *Genesis) SeatsReturn() bool { return g.FSMVersion >= fsmGovernance }

// Ref is the stable name of the node.
func (c *Credential) Ref() identity.NodeRef {
	return identity.NodeRef{Org: c.Organisation, Name: c.Node}
}

// CosignerKey returns the checkpoint key.
func (c *Credential) CosignerKey() ed25519.PublicKey {
	k, _ := c.Cosigner.PublicKey.(ed25519.PublicKey)
	return k
}

// HasRole reports whether the enroller granted role.
func (c *Credential) HasRole(role string) bool { return covers(c.Roles, []string{role}) }

// Raw returns the envelope that was parsed.
func (c *Credential) Raw() []byte { return c.raw }

// SignCredential normalises c (roles, times), signs it with an enroll key and returns the
// envelope.
func SignCredential(s signature.Signer, c Credential) ([]byte, error) {
	c.Roles = NormaliseRoles(c.Roles)
	c.Issued, c.Expires = canonicalTime(c.Issued), canonicalTime(c.Expires)
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	env, err := envelope.SignStatement(s, envelope.TypeCredential, nodeSubject(c.Ref(), c.Peer), c)
	if err != nil {
		return nil, fmt.Errorf("credential: %w", err)
	}
	raw := env.Marshal()
	if len(raw) > MaxCredential {
		return nil, fmt.Errorf("credential: %d bytes, the limit is %d", len(raw), MaxCredential)
	}
	return raw, nil
}

// ParseCredential decodes a Credential without judging who signed it.
func ParseCredential(raw []byte) (*Credential, error) {
	c, _, err := decodeCredential(raw)
	return c, err
}

func decodeCredential(raw []byte) (*Credential, *envelope.Envelope, error) {
	if len(raw) > MaxCredential {
		return nil, nil, fmt.Errorf("credential: %d bytes, the limit is %d", len(raw), MaxCredential)
	}
	env, err := envelope.Parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("credential: %w", err)
	}
	st, err := envelope.Decode[Credential](env.Payload, envelope.TypeCredential)
	if err != nil {
		return nil, nil, fmt.Errorf("credential: %w", err)
	}
	c := &st.Predicate
	if err := c.check(); err != nil {
		return nil, nil, fmt.Errorf("credential: %w", err)
	}
	if err := checkSubject(st.Subject, nodeSubject(c.Ref(), c.Peer)); err != nil {
		return nil, nil, fmt.Errorf("credential: %w", err)
	}
	c.raw = raw
	if len(env.Signatures) == 1 {
		c.key = env.Signatures[0].KeyID
	}
	return c, env, nil
}

func (c *Credential) check() error {
	if c.MeshID.IsZero() {
		return fmt.Errorf("mesh_id is zero")
	}
	if err := c.Ref().Validate(); err != nil {
		return err
	}
	peerKey, err := c.Peer.PublicKey()
	if err != nil {
		return err
	}
	if c.CosignerKey() == nil {
		return fmt.Errorf("cosigner: want an Ed25519 key")
	}
	if c.CosignerKey().Equal(peerKey) {
		return fmt.Errorf("cosigner: the key of the peer id must not sign checkpoints")
	}
	if err := checkRoles(c.Roles); err != nil {
		return err
	}
	if c.BootSeq == 0 {
		return fmt.Errorf("boot_seq is zero")
	}
	if c.Checkpoint != (CheckpointSeen{}) {
		if err := checkHex("checkpoint root", c.Checkpoint.Root, 32); err != nil {
			return err
		}
	}
	if err := checkTime("issued", c.Issued); err != nil {
		return err
	}
	if err := checkTime("expires", c.Expires); err != nil {
		return err
	}
	if life := c.Expires.Sub(c.Issued); life <= 0 || life > MaxCredentialLifetime {
		return fmt.Errorf("valid for %s, want more than nothing and at most %s", life, MaxCredentialLifetime)
	}
	if c.AK != "" {
		return checkHex("ak", c.AK, sha256.Size)
	}
	return nil
}

// VerifyCredential is PolicyState.VerifyCredential by the founders' enroll keys.
func (g *Genesis) VerifyCredential(inc identity.Incarnation, raw []byte, now time.Time) (*Credential, error) {
	return founding(g, inc).VerifyCredential(raw, now)
}

// VerifyCredential decides whether raw is a Credential of this mesh and incarnation, by an
// enroll key in force of the organisation it names, and valid at now; a zero now does not
// judge validity. State.VerifyCredential also knows newer boots. The error carries a Reason.
// That the bytes are correctly signed by a key never changes, so it is remembered; all else
// is judged each time.
func (s *PolicyState) VerifyCredential(raw []byte, now time.Time) (*Credential, error) {
	c, err := s.signedCredential(raw)
	if err != nil || now.IsZero() {
		return c, err
	}
	if !now.Before(c.Expires) {
		return nil, refuse(attest.CodeCredentialExpired, "credential", c.Expires.Format(time.RFC3339), "later than "+now.UTC().Format(time.RFC3339))
	}
	if c.Issued.After(now.Add(ClockSkew)) {
		return nil, refuse(attest.CodeCredentialExpired, "credential issued", c.Issued.Format(time.RFC3339), "not after "+now.UTC().Format(time.RFC3339))
	}
	return c, nil
}

// stands reports whether c, which was verified once, is by a key that is still in force.
func (s *PolicyState) stands(c *Credential) bool { return s.enrollers[c.key] == c.Organisation }

// signedCredential is VerifyCredential at no time. What it returns is the caller's.
func (s *PolicyState) signedCredential(raw []byte) (*Credential, error) {
	g := s.genesis
	var id [sha256.Size]byte
	if g.signed != nil && len(raw) <= MaxCredential {
		id = sha256.Sum256(raw)
		if c, ok := g.signed.Get(id); ok && c.Incarnation == s.incarnation && s.stands(c) {
			return c.clone(), nil
		}
	}
	c, env, err := decodeCredential(raw)
	if err != nil {
		return nil, refuseErr(attest.CodeNoCredential, "credential", err)
	}
	if err := s.checkSigned(c, env); err != nil {
		return nil, err
	}
	if g.signed != nil {
		g.signed.Add(id, c.clone())
	}
	return c, nil
}

// checkSigned demands that a decoded Credential is of this mesh and incarnation and signed by
// an enroll key in force of its organisation.
func (s *PolicyState) checkSigned(c *Credential, env *envelope.Envelope) error {
	g := s.genesis
	if c.MeshID != g.meshID {
		return refuse(attest.CodeWrongMesh, "credential mesh_id", c.MeshID.Short(), g.meshID.Short())
	}
	if c.Incarnation != s.incarnation {
		return refuse(attest.CodeWrongIncarnation, "credential incarnation", fmt.Sprint(c.Incarnation), fmt.Sprint(s.incarnation))
	}
	if c.AK != "" && g.FSMVersion < fsmActivation {
		return g.tooEarly("credential ak", fsmActivation) // older releases cannot read it
	}
	if len(env.Signatures) != 1 {
		return refuse(attest.CodeNoCredential, "credential", fmt.Sprintf("%d signatures", len(env.Signatures)), "one, by an enroll key")
	}
	keys := s.orgs.orgKeys(c.Organisation, KeyEnroll, c.Expires)
	if f, ok := s.formerKey(c.key); ok && len(keys) == 0 {
		return refuse(attest.CodeOrganisationRemoved, "credential organisation", string(f.Organisation), "an organisation of this mesh")
	} else if ok {
		return refuse(attest.CodeNoCredential, "credential signature", s.describeKey(c.key, c.Expires), "an enroll key in force; enrol anew")
	}
	if len(keys) == 0 {
		return refuse(attest.CodeNoCredential, "credential organisation", string(c.Organisation), "an organisation of this mesh, with an enroll key that outlives what it signs")
	}
	if _, err := env.Verify(keys); err != nil {
		return refuseErr(attest.CodeNoCredential, "credential signature", err)
	}
	return nil
}

// checkOrdered is checkSigned for one that was ordered before, perhaps by a key that was removed
// since: it is in the state, whatever stands of it.
func (s *PolicyState) checkOrdered(c *Credential, env *envelope.Envelope) error {
	if f, ok := s.formerKey(c.key); !ok || f.Role != KeyEnroll || c.MeshID != s.genesis.meshID || c.Incarnation != s.incarnation || len(env.Signatures) != 1 {
		return s.checkSigned(c, env)
	}
	if _, err := env.Verify(s.everKeys(c.Organisation, KeyEnroll)); err != nil {
		return refuseErr(attest.CodeNoCredential, "credential signature", err)
	}
	return nil
}

// EnrolledCredential decides whether raw is a Credential of this mesh and incarnation by a key that is,
// or was once, an enroll key of the organisation it names: for those who judge, at whatever time, what
// was signed under it. stands is false where that key was removed since.
func (s *PolicyState) EnrolledCredential(raw []byte) (c *Credential, stands bool, err error) {
	c, env, err := decodeCredential(raw)
	if err != nil {
		return nil, false, refuseErr(attest.CodeNoCredential, "credential", err)
	}
	if err := s.checkOrdered(c, env); err != nil {
		return nil, false, err
	}
	return c, s.stands(c), nil
}

// Vouch returns claims as they are to be judged for the node of c, which was verified: an
// attestation key that it names is believed. Evidence by another key, or by none, is refused;
// what a Credential says nothing about stays as the scheme left it.
func (c *Credential) Vouch(claims attest.Claims) (attest.Claims, *attest.Reason) {
	if c.AK == "" {
		return claims, nil
	}
	got := "evidence without a TPM"
	if claims.VTPM != nil {
		got = claims.VTPM.AKDigest
	}
	if got != c.AK {
		why := attest.NewReason(attest.CodeWrongAttestationKey, "vtpm.ak_digest", got, c.AK)
		return attest.Claims{}, &why
	}
	return claims.Activated(c.AK), nil
}

// clone returns a copy that shares nothing that anybody could change.
func (c *Credential) clone() *Credential {
	out := *c
	out.Roles, out.raw = slices.Clone(c.Roles), slices.Clone(c.raw)
	return &out
}
