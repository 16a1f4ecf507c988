package redteam

import (
	"context"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// evidenceAttacks lie about evidence with everything else genuine: Credential, attester,
// transcript.
func evidenceAttacks() []Attack {
	const needs = NeedSelf | NeedAccepted
	binder := func(change func(*attest.Binder)) func(context.Context, *Campaign) Outcome {
		return func(ctx context.Context, c *Campaign) Outcome {
			return c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{binder: change}).outcome(attest.CodeNotBound)
		}
	}
	return []Attack{
		{Name: "replay", Tries: "send evidence recorded on an earlier connection, with this connection's transcript",
			Flaw: "accept evidence that is not bound to this connection", Needs: needs, run: replay},
		{Name: "stale-evidence", Tries: "send evidence made before the connection: right peers, no nonce and no exporter",
			Flaw: "accept evidence of any age, as RA-TLS without a nonce does", Needs: needs,
			run: binder(func(b *attest.Binder) { b.HelloI, b.HelloR, b.EKM = nil, nil, nil })},
		{Name: "static-report-data", Tries: "send genuine evidence over fixed report data", Flaw: "check the signature and not what was signed", Needs: needs,
			run: staticReportData},
		{Name: "forged-evidence", Tries: "send evidence that no root has signed: made up, and genuine with one bit changed", Flaw: "not verify evidence at all", Needs: needs, run: forgedEvidence},
		{Name: "splice", Tries: "send another genuine node's evidence, made for this very connection",
			Flaw: "accept any genuine node's evidence for the peer of the connection", Needs: needs | NeedOther, run: splice},
		{Name: "splice-path", Tries: "send evidence whose Merkle path leads to another leaf, is empty, or too long", Flaw: "not check the inclusion", Needs: needs, run: splicePath},
		{Name: "wrong-role", Tries: "send evidence made in the responder's role", Flaw: "let evidence of one direction serve in the other", Needs: needs,
			run: binder(func(b *attest.Binder) { b.Role = attest.RoleServer })},
		{Name: "wrong-purpose", Tries: "send evidence made for a re-attestation, a certificate, a client or an enroller",
			Flaw: "let evidence of one purpose serve another", Needs: needs, run: wrongPurpose},
		{Name: "wrong-verifier", Tries: "send evidence made for another verifier", Flaw: "accept evidence that was addressed to somebody else", Needs: needs,
			run: binder(func(b *attest.Binder) { b.Verifier = b.Attester })},
		{Name: "wrong-mesh-binding", Tries: "send evidence bound to another mesh", Flaw: "let evidence of one mesh serve in another", Needs: needs,
			run: binder(func(b *attest.Binder) { b.MeshID[0] ^= 1 })},
		{Name: "no-exporter", Tries: "send evidence with both nonces right and no TLS exporter", Flaw: "bind evidence to nonces only, so that it can be relayed", Needs: needs,
			run: binder(func(b *attest.Binder) { b.EKM = nil })},
		{Name: "no-nonce", Tries: "send evidence bound to the exporter and to no HELLO", Flaw: "not bind evidence to what was said", Needs: needs,
			run: binder(func(b *attest.Binder) { b.HelloI, b.HelloR = nil, nil })},
		{Name: "wrong-transcript", Tries: "send right evidence with another conversation's transcript", Flaw: "not notice that frames were changed", Needs: needs,
			run: func(ctx context.Context, c *Campaign) Outcome {
				return c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{att: func(a *exchange.Attestation) { a.Transcript[0] ^= 1 }}).outcome(attest.CodeNotBound)
			}},
		{Name: "reflect-evidence", Tries: "send the target's own evidence of an earlier connection back", Flaw: "take its own evidence for a peer's", Needs: needs,
			run: reflectEvidence},
	}
}

func replay(ctx context.Context, c *Campaign) Outcome {
	var recorded exchange.Attestation
	first := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{att: func(a *exchange.Attestation) { recorded = *a }})
	first.close()
	if first.err != nil {
		return skipped("nothing to replay: %v", first.err)
	}
	return c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{att: func(a *exchange.Attestation) {
		recorded.Transcript = a.Transcript
		*a = recorded
	}}).outcome(attest.CodeNotBound)
}

func staticReportData(ctx context.Context, c *Campaign) Outcome {
	ev, err := c.arsenal.Self.Attester.Attest(ctx, attest.ReportData{1, 2, 3})
	if err != nil {
		return skipped("own attester: %v", err)
	}
	return c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{proof: func(p *attest.Proof) { p.Evidence = ev }}).outcome(attest.CodeNotBound)
}

func forgedEvidence(ctx context.Context, c *Campaign) Outcome {
	flip := func(p *attest.Proof) {
		for i := range p.Evidence.Items {
			data := append([]byte{}, p.Evidence.Items[i].Data...)
			data[len(data)/2] ^= 1
			p.Evidence.Items[i].Data = data
		}
	}
	return worst(map[string]Outcome{
		"made up": c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{maker: &Identity{Key: c.arsenal.Self.Key, Attester: noAttester{c.arsenal.Self.Attester.Kind()}}}).
			outcome(attest.CodeNotGenuine, attest.CodeMalformed),
		"one bit": c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{proof: flip}).outcome(attest.CodeNotGenuine, attest.CodeMalformed, attest.CodeNotBound,
			attest.CodeCertificateMismatch, attest.CodeUnsupported),
	})
}

// splice has the other node make evidence about this connection in its own name: as a node
// would that was tricked into quoting for somebody.
func splice(ctx context.Context, c *Campaign) Outcome {
	other := c.arsenal.Other
	return c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{maker: other,
		binder: func(b *attest.Binder) { b.Attester = string(other.Peer()) }}).outcome(attest.CodeNotBound)
}

func splicePath(ctx context.Context, c *Campaign) Outcome {
	tries := map[string]Outcome{}
	for name, in := range map[string]attest.Inclusion{
		"another leaf": {Index: 1, Size: 2, Path: [][]byte{make([]byte, 32)}},
		"empty tree":   {},
		"long path":    {Size: 1 << attest.MaxPath, Path: paths(attest.MaxPath)},
	} {
		tries[name] = c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{att: func(a *exchange.Attestation) { a.Inclusion = in }}).
			outcome(attest.CodeNotBound, attest.CodeMalformed)
	}
	return worst(tries)
}

func paths(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, 32)
	}
	return out
}

func wrongPurpose(ctx context.Context, c *Campaign) Outcome {
	tries := map[string]Outcome{}
	for name, purpose := range map[string]attest.Purpose{"re-attestation": attest.PurposeReattest, "certificate": attest.PurposeRATLS,
		"client": attest.PurposeClientChallenge, "enrolment": attest.PurposeEnrolment} {
		tries[name] = c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{binder: func(b *attest.Binder) { b.Purpose = purpose }}).outcome(attest.CodeNotBound)
	}
	return worst(tries)
}

func reflectEvidence(ctx context.Context, c *Campaign) Outcome {
	first := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{})
	first.close()
	theirs, err := exchange.DecodeAttestation(first.attR)
	if err != nil {
		return skipped("no evidence to reflect: %v", first.err)
	}
	return c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{
		hello: func(h *exchange.Hello) { h.Kinds = kindOf(theirs.Evidence, h.Kinds) },
		att: func(a *exchange.Attestation) {
			theirs.Transcript = a.Transcript
			*a = theirs
		}}).outcome(attest.CodeNotBound)
}

// kindOf is the kind of encoded evidence.
func kindOf(raw []byte, otherwise string) string {
	if ev, err := attest.DecodeEvidence(raw); err == nil {
		return ev.Kind
	}
	return otherwise
}
