package redteam

import (
	"context"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// helloAttacks lie in HELLO_I with a Credential that is otherwise accepted.
func helloAttacks() []Attack {
	const needs = NeedSelf | NeedAccepted
	hello := func(change func(*exchange.Hello)) func(context.Context, *Campaign) Outcome {
		return func(ctx context.Context, c *Campaign) Outcome {
			return c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{hello: change}).outcome("", attest.CodeWrongVersion, attest.CodeWrongMesh,
				attest.CodeWrongIncarnation, attest.CodeProtocol, attest.CodeKindNotAllowed)
		}
	}
	return []Attack{
		{Name: "version-zero", Tries: "ask for version 0", Flaw: "negotiate down", Needs: needs, run: hello(func(h *exchange.Hello) { h.Version = 0 })},
		{Name: "version-next", Tries: "ask for a version that does not exist yet", Flaw: "agree to what it does not know", Needs: needs,
			run: hello(func(h *exchange.Hello) { h.Version = exchange.Version + 1 })},
		{Name: "wrong-mesh", Tries: "name another mesh in HELLO", Flaw: "accept members of any mesh", Needs: needs,
			run: hello(func(h *exchange.Hello) { h.MeshID[0] ^= 1 })},
		{Name: "wrong-incarnation", Tries: "name another incarnation in HELLO", Flaw: "accept what a recovery has voided", Needs: needs,
			run: hello(func(h *exchange.Hello) { h.Incarnation++ })},
		{Name: "kind-downgrade", Tries: "declare kinds of evidence that are unknown, none, or not those that follow",
			Flaw: "judge evidence under another kind's rules", Needs: needs, run: kindDowngrade},
		{Name: "want-malformed", Tries: "ask for the fast mode in a malformed way", Flaw: "skip the full exchange", Needs: needs, run: wantMalformed},
		{Name: "zero-nonce", Tries: "send an all-zero nonce", Flaw: "take a nonce that is none", Needs: needs,
			run: hello(func(h *exchange.Hello) { h.Nonce = [exchange.NonceSize]byte{} })},
		{Name: "nonce-reuse", Tries: fmt.Sprintf("look for a repetition in %d nonces of the target", nonces),
			Flaw: "reuse nonces, so that recorded evidence fits again", Needs: needs, run: nonceReuse},
		{Name: "forged-credential", Tries: "present a Credential for the right organisation, signed by a key outside genesis",
			Flaw: "believe whoever signs", Needs: needs, run: forgedCredential},
		{Name: "tampered-credential", Tries: "change one byte in each sixteenth of a genuine Credential", Flaw: "check something else than what it uses", Needs: needs,
			run: tamperedCredential},
		{Name: "older-boot", Tries: "come back as an earlier boot of a node whose newer boot is known",
			Flaw: "accept an identity that was left behind, from a copied disk or a snapshot", Needs: NeedSelf | NeedAccepted | NeedOlder, run: olderBoot},
	}
}

func kindDowngrade(ctx context.Context, c *Campaign) Outcome {
	own := c.arsenal.Self.Attester.Kind()
	tries := map[string]Outcome{}
	for name, kind := range map[string]string{"none": "", "unknown": "unknown", "unsorted": "vtpm,sevsnp", "another": otherKind(own)} {
		a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{hello: func(h *exchange.Hello) { h.Kinds = kind }})
		tries[name] = a.outcome("", attest.CodeKindNotAllowed, attest.CodeProtocol)
	}
	return worst(tries)
}

func otherKind(own string) string {
	if own == attest.KindTDX {
		return attest.KindSEVSNP
	}
	return attest.KindTDX
}

// wantMalformed: want is empty or 32 bytes; nothing else may be understood as anything.
func wantMalformed(ctx context.Context, c *Campaign) Outcome {
	tries := map[string]Outcome{}
	for _, n := range []int{1, 31, 33} {
		a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{rawHI: func(body []byte) []byte { return withWant(body, make([]byte, n)) }})
		tries[fmt.Sprintf("%d bytes", n)] = a.outcome("", attest.CodeProtocol, attest.CodeMalformed)
	}
	return worst(tries)
}

// wantField is the place of want in HELLO.
const wantField = 6

// withWant returns an encoded HELLO with another want.
func withWant(body, want []byte) []byte {
	var fields []any
	if err := cbor.Unmarshal(body, &fields); err != nil || len(fields) <= wantField {
		return nil
	}
	fields[wantField] = want
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil
	}
	out, _ := mode.Marshal(fields)
	return out
}

func nonceReuse(ctx context.Context, c *Campaign) Outcome {
	seen := map[[exchange.NonceSize]byte]bool{}
	for range nonces {
		// HELLO_R comes before any evidence is asked for: no quote is spent.
		a := c.attempt(ctx, c.addrs[0], c.arsenal.Self, lies{instead: func(*speaker) (exchange.FrameType, []byte) { return exchange.FrameAck, nil }})
		a.close()
		h, reason := exchange.DecodeHello(a.helloR)
		if reason != nil {
			return skipped("no HELLO_R: %v", a.err)
		}
		if seen[h.Nonce] || h.Nonce == [exchange.NonceSize]byte{} {
			return broken("nonce %x… came twice or is zero", h.Nonce[:4])
		}
		seen[h.Nonce] = true
	}
	return held("%d nonces, all different", len(seen))
}

func forgedCredential(ctx context.Context, c *Campaign) Outcome {
	if c.arsenal.Forge == nil {
		return skipped("no forger was given")
	}
	raw, err := c.arsenal.Forge(c.arsenal.Self.Peer())
	if err != nil {
		return skipped("forger: %v", err)
	}
	return c.as(ctx, raw)
}

// as attempts with another Credential than Self's own.
func (c *Campaign) as(ctx context.Context, credential []byte) Outcome {
	id := *c.arsenal.Self
	id.Credential = credential
	a := c.attempt(ctx, c.addrs[0], &id, lies{})
	if a.err != nil && a.heard == exchange.FrameHelloR {
		a.close()
		return broken("the target answered HELLO_R and refused only the evidence: %v", a.err)
	}
	return a.outcome("")
}

func tamperedCredential(ctx context.Context, c *Campaign) Outcome {
	own := c.arsenal.Self.Credential
	tries := map[string]Outcome{}
	for i := range 16 {
		changed := append([]byte{}, own...)
		at := len(changed) * (2*i + 1) / 32
		changed[at] ^= 1
		tries[fmt.Sprintf("byte %d", at)] = c.as(ctx, changed)
	}
	return summary(tries)
}

// olderBoot waits until the newer boot's Credential has been ordered.
func olderBoot(ctx context.Context, c *Campaign) Outcome {
	ctx, cancel := context.WithTimeout(ctx, retireWait)
	defer cancel()
	for {
		a := c.attempt(ctx, c.addrs[0], c.arsenal.Older, lies{})
		o := a.outcome("", attest.CodeRetired)
		if o.Status != Broken || !pause(ctx, dialTimeout/2) {
			return o
		}
	}
}
