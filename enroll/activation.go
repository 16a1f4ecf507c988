package enroll

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
)

// Activate is an attestation CA: it judges what a node shows of its TPM (the endorsement
// key's certificate, the attestation key, proof of its creation) and makes a challenge that
// only the TPM with both keys can answer. Errors are *attest.Error.
type Activate func(endorsement []byte, at time.Time) (*Activation, error)

// Activation is a challenge that waits for its answer.
type Activation struct {
	Challenge []byte
	// AK and EK are the SHA-256 of the keys' SubjectPublicKeyInfo in hex: what the node says,
	// until Confirm has returned true.
	AK, EK string
	// Confirm reports whether answer proves that one TPM holds both; it does so once.
	Confirm func(answer []byte) bool
}

// Activator is a node's TPM as an enroller wants to know it.
type Activator interface {
	// Endorse returns what Activate judges.
	Endorse(ctx context.Context) ([]byte, error)
	// Activate returns the answer to a challenge.
	Activate(ctx context.Context, challenge []byte) ([]byte, error)
}

type activationRequest struct {
	Endorsement []byte `json:"endorsement"`
}

type activationAnswer struct {
	Challenge []byte `json:"challenge"`
}

// activation challenges the TPM of a node. The challenge waits on this connection, where the
// evidence that it is for has to come too; a newer one takes its place.
func (s *Server) activation(r *http.Request, req *activationRequest) (*activationAnswer, *attest.Reason) {
	if s.cfg.Activate == nil {
		return nil, refusal(attest.CodeKindNotAllowed, "endorsement", "of a TPM", "a mesh whose genesis names roots for TPMs and has fsm_version 3")
	}
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	leave, reason := s.enter(ctx)
	if reason != nil {
		return nil, reason
	}
	defer leave()
	pending, err := s.cfg.Activate(req.Endorsement, s.cfg.Now())
	if err != nil {
		return nil, consensus.ReasonOf(err)
	}
	connectionState(r.Context()).expect(pending)
	return &activationAnswer{pending.Challenge}, nil
}

// enter waits for a place among those whose evidence is looked at, and returns how to leave.
func (s *Server) enter(ctx context.Context) (leave func(), reason *attest.Reason) {
	select {
	case s.slots <- struct{}{}:
		return func() { <-s.slots }, nil
	case <-ctx.Done():
		return nil, refusal(attest.CodeBusy, "appraisals", fmt.Sprintf("%d at once", maxAppraisals), "a free place")
	}
}

// vouch decides whether the key that signed the evidence of a TPM is one. It returns the
// claims with what they are believed for, and the key that the Credential has to name, if
// only this enroller's word stands for it.
func vouch(claims attest.Claims, pending *Activation, answer []byte) (attest.Claims, string, *attest.Reason) {
	if len(answer) > 0 {
		const want = "the answer to this connection's challenge"
		switch {
		case pending == nil:
			return claims, "", refusal(attest.CodeNotActivated, "activation", "no challenge on this connection", want)
		case !pending.Confirm(answer):
			return claims, "", refusal(attest.CodeNotActivated, "activation", "another answer", want)
		case claims.VTPM == nil:
			return claims, "", refusal(attest.CodeWrongAttestationKey, "vtpm.ak_digest", "evidence without a TPM", pending.AK)
		case claims.VTPM.AKDigest != pending.AK:
			return claims, "", refusal(attest.CodeWrongAttestationKey, "vtpm.ak_digest", claims.VTPM.AKDigest, pending.AK)
		}
		claims = claims.Activated(pending.AK)
	}
	switch {
	case claims.VTPM == nil:
		return claims, "", nil
	case claims.VTPM.AKTrust == "":
		return claims, "", refusal(attest.CodeNotActivated, "vtpm.ak_trust", "an attestation key nobody vouches for", "its activation by this enroller, or a certificate")
	case claims.VTPM.AKTrust == attest.AKTrustActivation:
		return claims, pending.AK, nil
	}
	return claims, "", nil
}

// activate has the TPM of this machine answer the enroller's challenge.
func (conn *connection) activate(ctx context.Context) ([]byte, error) {
	c := conn.client
	if c.Activator == nil {
		return nil, nil
	}
	endorsement, err := c.Activator.Endorse(ctx)
	if err != nil {
		return nil, c.fail(attest.CodeUnavailable, "evidence", fmt.Errorf("this machine's TPM: %w", err))
	}
	var challenge activationAnswer
	if err := conn.post(ctx, pathActivation, activationRequest{endorsement}, &challenge); err != nil {
		return nil, err
	}
	answer, err := c.Activator.Activate(ctx, challenge.Challenge)
	if err != nil {
		return nil, c.fail(attest.CodeNotActivated, "activation", fmt.Errorf("this machine's TPM: %w", err))
	}
	return answer, nil
}
