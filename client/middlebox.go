package client

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/ratls"
)

// Evidence that is genuine and carries another exporter than this connection's was made for
// somebody else's connection. Who that is shows in the certificates: the node says which one
// it showed, with evidence that names its key, and this side knows which one it saw.
//
//	keys differ   something between the two ends TLS and begins it again: a corporate
//	              inspection box, a load balancer, an attacker
//	keys agree    the answer is that of another connection to the node: replayed, or
//	              forwarded by whoever has the certificate's key
//
// This only words the refusal; the connection is refused in each case.

// nameRelay says in r who stands between, as far as the certificates tell.
func nameRelay(ctx context.Context, r *Refusal, scheme attest.Scheme, claimant ratls.Claimant, s Sighting) *Refusal {
	if s.Leaf == nil {
		return r
	}
	seen := ratls.SPKIHash(s.Leaf)
	shown, ok := shownCertificate(ctx, scheme, claimant, s)
	if !ok {
		if ratls.HasProof(s.Leaf) {
			return r
		}
		why := attest.NewReason(attest.CodeNotBound, "connection", "it ends at "+describe(s.Leaf, seen), "a certificate whose evidence names its key")
		why.Remedy = "something between you and the node terminates TLS; connect without it"
		return &Refusal{Reasons: append([]attest.Reason{why}, r.Reasons...), Err: r.Err}
	}
	var why attest.Reason
	if shown.SPKIHash == seen {
		why = attest.NewReason(attest.CodeNotBound, "connection", "an answer that the node gave on another connection", "one for this connection")
	} else {
		why = attest.NewReason(attest.CodeNotBound, "connection", "it ends at "+describe(s.Leaf, seen),
			"key "+short(shown.SPKIHash)+", which the node's evidence names")
		why.Remedy = "something between you and the node terminates TLS (a proxy, an inspection box, an attacker); connect without it"
	}
	return &Refusal{Reasons: append([]attest.Reason{why}, r.Reasons...), Err: r.Err}
}

// shownCertificate returns the certificate that the node says it showed, if its evidence is
// genuine and the node's.
func shownCertificate(ctx context.Context, scheme attest.Scheme, claimant ratls.Claimant, s Sighting) (ratls.Certificate, bool) {
	cert, err := x509.ParseCertificate(s.Answer.Certificate)
	if err != nil {
		return ratls.Certificate{}, false
	}
	c, err := ratls.ParseCertificate(cert, s.At)
	if err != nil || c.Claimant != claimant || c.Proof.Evidence.Kind != scheme.Kind() {
		return ratls.Certificate{}, false
	}
	data, err := c.ReportData()
	if err != nil {
		return ratls.Certificate{}, false
	}
	_, err = attest.Verify(ctx, scheme, c.Proof.Evidence, &data, s.At)
	return c, err == nil
}

func describe(c *x509.Certificate, spki [32]byte) string {
	return fmt.Sprintf("key %s of certificate %.80q, issued by %.80q", short(spki), c.Subject, c.Issuer)
}

func short(spki [32]byte) string { return hex.EncodeToString(spki[:8]) }
