package consensus

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// RecoveryFile is what is handed around to be signed, and then given to every founder and
// enroller: a Recovery with the policy chain that leads to the state it goes on from, so
// that whoever holds genesis and this file alone can tell what is recovered and whose
// signatures it takes. Its zero value recovers nothing.
type RecoveryFile struct {
	// Recovery is the statement, Policy the state at its checkpoint as genesis and the
	// chain in the file prove it.
	Recovery *Recovery
	Policy   *PolicyState

	env *envelope.Envelope
}

// MaxRecoveryFile bounds an encoded file: a policy chain in base64, and the envelope.
const MaxRecoveryFile = MaxChainBytes/3*4 + 1<<20

type wireRecoveryFile struct {
	Policy   [][]byte `json:"policy"`
	Recovery string   `json:"recovery"` // the envelope
}

// DraftRecovery makes a file without signatures of a Recovery that goes on from s, the
// state at the checkpoint at. It fills mesh, previous origin, checkpoint and policy of r.
func (s *PolicyState) DraftRecovery(r Recovery, at CheckpointSeen) (*RecoveryFile, error) {
	digest := s.PolicyDigest()
	r.MeshID, r.PreviousOrigin, r.Checkpoint = s.genesis.meshID, s.Origin(), at
	r.Epoch, r.Base, r.Policy = s.epoch, s.base, hex.EncodeToString(digest[:])
	payload, err := r.Payload()
	if err != nil {
		return nil, err
	}
	decoded, err := DecodeRecovery(payload)
	if err != nil {
		return nil, err
	}
	if err := s.CheckRecovery(decoded, at); err != nil {
		return nil, err
	}
	return &RecoveryFile{Recovery: decoded, Policy: s.clone(), env: &envelope.Envelope{Payload: payload}}, nil
}

// ParseRecoveryFile decodes a file and proves its policy from genesis. Signatures of the
// Recovery may still be missing: see Missing.
func ParseRecoveryFile(g *Genesis, raw []byte) (*RecoveryFile, error) {
	if len(raw) > MaxRecoveryFile {
		return nil, fmt.Errorf("recovery file: %d bytes, the limit is %d", len(raw), MaxRecoveryFile)
	}
	var w wireRecoveryFile
	if err := canonical.DecodeJSON(raw, &w); err != nil {
		return nil, fmt.Errorf("recovery file: %w", err)
	}
	r, env, err := ParseRecovery([]byte(w.Recovery))
	if err != nil {
		return nil, fmt.Errorf("recovery file: %w", err)
	}
	p, err := ReplayPolicy(g, w.Policy)
	if err != nil {
		return nil, fmt.Errorf("recovery file: %w", err)
	}
	if err := p.CheckRecovery(r, r.Checkpoint); err != nil {
		return nil, fmt.Errorf("recovery file: %w", err)
	}
	f := &RecoveryFile{r, p, env}
	if len(env.Signatures) > 0 {
		if _, err := p.verify(env, p.orgs.keys(KeyGovern, true, r.Expires), "recovery", r.Expires); err != nil {
			return nil, fmt.Errorf("recovery file: %w", err)
		}
	}
	return f, nil
}

// Encode returns the bytes that ParseRecoveryFile reads.
func (f *RecoveryFile) Encode() ([]byte, error) {
	return canonical.JSON(wireRecoveryFile{Policy: f.Policy.PolicyChain(), Recovery: string(f.env.Marshal())})
}

// Envelope returns the Recovery with the signatures that it has.
func (f *RecoveryFile) Envelope() *envelope.Envelope {
	return &envelope.Envelope{Payload: slices.Clone(f.env.Payload), Signatures: slices.Clone(f.env.Signatures)}
}

// Add puts the signatures of another copy of this Recovery into f.
func (f *RecoveryFile) Add(raw []byte) error {
	merged, err := Merge(f.env.Marshal(), raw)
	if err != nil {
		return err
	}
	f.env, err = envelope.Parse(merged)
	return err
}

// Signed returns the member organisations that have signed, and how many it takes.
func (f *RecoveryFile) Signed() (have []identity.OrgID, need int) {
	if len(f.env.Signatures) > 0 {
		have, _ = f.env.Verify(f.Policy.orgs.keys(KeyGovern, true, f.Recovery.Expires)) // ParseRecoveryFile
	}
	return have, WidenThreshold(f.Policy.N())
}

// Founding returns the policy state in which the enrollers sign its Bootstrap: see
// PolicyState.CheckBootstrap. Where the log goes on from is known for a Recovery that is not
// planned. The error carries a Reason: too few signatures, or not the time.
func (f *RecoveryFile) Founding(now time.Time) (*PolicyState, error) {
	at := f.Recovery.Checkpoint
	if f.Recovery.Planned {
		at = CheckpointSeen{}
	}
	next := f.Policy.clone()
	return next, next.recover(f.env.Marshal(), at, now)
}

// Describe says what the file recovers, for people: the Recovery, and what genesis and the
// chain prove of the policy that it goes on from.
func (f *RecoveryFile) Describe() []string {
	have, need := f.Signed()
	names := make([]string, len(have))
	for i, org := range have {
		names[i] = string(org)
	}
	who := strings.Join(names, ", ")
	if who == "" {
		who = "nobody"
	}
	return append(f.Recovery.Describe(),
		fmt.Sprintf("  policy proved from genesis in %d steps: %d entries allowed, %d revoked", len(f.Policy.chain), len(f.Policy.entries), len(f.Policy.revoked)),
		fmt.Sprintf("  signed by %s: have %d, need %d of %d organisations", who, len(have), need, f.Policy.N()))
}
