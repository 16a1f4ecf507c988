package consensus

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/envelope"
)

// fuzzPayload seeds a fuzz target with the payload of a good envelope, and demands that
// what the decoder accepts is the one encoding of it.
func fuzzPayload(f *testing.F, seed []byte, decode func(payload []byte) (again []byte, err error)) {
	f.Add(must(envelope.Parse(seed)).Payload)
	f.Fuzz(func(t *testing.T, payload []byte) {
		again, err := decode(payload)
		if err == nil && !bytes.Equal(again, payload) {
			t.Fatalf("accepted %q, which encodes to %q", payload, again)
		}
	})
}

func FuzzGenesis(f *testing.F) {
	fuzzPayload(f, newMesh(f, 2).g.Raw(), func(payload []byte) ([]byte, error) {
		g, err := DecodeGenesis(payload)
		if err != nil {
			return nil, err
		}
		g.payload = nil // encode anew
		return g.Payload()
	})
}

func FuzzProposal(f *testing.F) {
	m := started(f, 2)
	v4 := hardware(f, 2)
	f.Add(v4.payload(v4.propose(platformActions(f, v4))))
	f.Add(m.payload(m.propose(amendments...)))
	for _, change := range amendments {
		f.Add(m.payload(m.propose(change)))
	}
	fuzzPayload(f, m.sign(m.payload(m.propose(add(entry(f, "x")), remove("old"))), "alpha govern"), func(payload []byte) ([]byte, error) {
		p, err := DecodeProposal(payload)
		if err != nil {
			return nil, err
		}
		p.Describe()
		return p.Payload()
	})
}

func FuzzReady(f *testing.F) {
	m := seating(f, 3)
	fuzzPayload(f, m.ready(m.readyOf("beta/n1", 2), boot("beta/n1", 2)), func(payload []byte) ([]byte, error) {
		r, err := DecodeReady(payload)
		if err != nil {
			return nil, err
		}
		return r.Payload()
	})
}

func FuzzBootstrap(f *testing.F) {
	m := newMesh(f, 2)
	fuzzPayload(f, m.bootstrap(1), func(payload []byte) ([]byte, error) {
		b, err := NewPolicyState(m.g).CheckBootstrap(payload, time.Time{})
		if err != nil {
			return nil, err
		}
		return envelope.NewPayload(envelope.TypeBootstrap, meshSubject(b.MeshID), *b)
	})
}

func FuzzEnvelopes(f *testing.F) {
	m := started(f, 2)
	f.Add(m.credential("alpha/n2", 1))
	f.Add(m.result("alpha/n1", "beta/n1", "new"))
	f.Add(m.sample("alpha/n1", 1))
	f.Add(m.g.Raw())
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = m.s.VerifyCredential(raw, m.at)
		_, _ = VerifyResult(raw)
		_, _ = ParseTimeSample(raw)
		_, _ = ParseMembership(raw)
		_, _, _ = ParseDrain(raw)
		_, _, _ = ParseRetirement(raw)
		_, _ = ParseGenesis(raw)
		_, _ = NewPolicyState(m.g).ParseBootstrap(raw, m.at)
		_, _ = Merge(raw, raw)
	})
}

// FuzzStatements mutates payloads below a decoder that does not check signatures.
func FuzzStatements(f *testing.F) {
	m := started(f, 2)
	for _, raw := range [][]byte{m.credential("alpha/n2", 1), m.result("alpha/n1", "beta/n1", "new"), m.sample("alpha/n1", 1)} {
		f.Add(must(envelope.Parse(raw)).Payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) > 32<<10 {
			return
		}
		raw := (&envelope.Envelope{Payload: payload}).Marshal()
		if c, err := ParseCredential(raw); err == nil {
			again := must(envelope.NewPayload(envelope.TypeCredential, nodeSubject(c.Ref(), c.Peer), *c))
			if !bytes.Equal(again, payload) {
				t.Fatalf("a Credential with two encodings: %q", payload)
			}
		}
		if r, err := ParseResult(raw); err == nil {
			again := must(envelope.NewPayload(envelope.TypeAttestationResult, nodeSubject(r.Subject.Node, r.Subject.Peer), *r))
			if !bytes.Equal(again, payload) {
				t.Fatalf("a result with two encodings: %q", payload)
			}
		}
	})
}

// FuzzSuspensions mutates payloads of suspensions and lifts below their decoders.
func FuzzSuspensions(f *testing.F) {
	m := suspending(f, 2)
	raw, id := m.suspend("alpha emergency")
	for _, seed := range [][]byte{raw, must1(m.suspend("alpha emergency", onEntry(f, "new"))), m.lift(id, "beta govern")} {
		f.Add(must(envelope.Parse(seed)).Payload)
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		if len(payload) > 32<<10 {
			return
		}
		raw := (&envelope.Envelope{Payload: payload}).Marshal()
		if x, _, err := ParseSuspension(raw); err == nil {
			if again := must(envelope.NewPayload(envelope.TypeSuspension, meshSubject(x.MeshID), *x)); !bytes.Equal(again, payload) {
				t.Fatalf("a suspension with two encodings: %q", payload)
			}
		}
		if l, _, err := ParseSuspensionLift(raw); err == nil {
			if again := must(l.Payload()); !bytes.Equal(again, payload) {
				t.Fatalf("a lift with two encodings: %q", payload)
			}
		}
	})
}

func FuzzCommand(f *testing.F) {
	m := started(f, 2)
	for _, c := range m.log {
		f.Add(must(EncodeCommand(c)))
	}
	f.Add(must(EncodeCommand(must(NewCommand(KindResults, m.result("alpha/n1", "beta/n1", "new"))))))
	v2 := suspending(f, 2)
	raw, id := v2.suspend("alpha emergency")
	f.Add(must(EncodeCommand(must(NewCommand(KindSuspension, raw)))))
	v4 := seating(f, 3)
	v4.reboots("beta/n1", 2)
	f.Add(must(EncodeCommand(must(NewCommand(KindReady, v4.ready(v4.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1"))))))
	f.Add(must(EncodeCommand(must(NewCommand(KindDrain, v4.drain("alpha/n1", 1))))))
	f.Add(must(EncodeCommand(must(NewCommand(KindRetirement, v4.retirement("alpha/n1", 1, "alpha govern"))))))
	f.Add(must(EncodeCommand(must(NewCommand(KindLift, v2.lift(id, "beta govern"))))))
	v4 = hardware(f, 2)
	f.Add(must(EncodeCommand(must(NewCommand(KindProposal, v4.sign(v4.payload(v4.propose(platformActions(f, v4))), v4.governors(2)...))))))
	f.Add(must(EncodeCommand(must(NewCommand(KindProposal, m.sign(m.payload(m.propose(remove("old"))), m.governors(2)...))))))
	v4 = governing(f, 2)
	for _, change := range amendments {
		f.Add(must(EncodeCommand(must(NewCommand(KindProposal, v4.sign(v4.payload(v4.propose(change)), by("alpha", "beta")...))))))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := DecodeCommand(raw)
		if err != nil {
			if !errors.Is(err, ErrUnknownCommand) {
				t.Fatalf("an error that does not halt: %v", err)
			}
			return
		}
		if again := must(EncodeCommand(c)); !bytes.Equal(again, raw) {
			t.Fatal("a command with two encodings")
		}
		_ = CheckResults(c)
		a, b := NewState(m.g), NewState(m.g)
		for _, s := range []*State{a, b} {
			s.Apply(m.log[0])
			s.Apply(m.log[1])
			s.Apply(c)
		}
		if a.Digest() != b.Digest() {
			t.Fatal("two replicas differ")
		}
		whole := NewState(v4.g)
		for _, first := range v4.log[:2] {
			whole.Apply(first)
		}
		_ = whole.OverQuota(c)
		before := whole.Digest()
		if out := whole.Apply(c); out.Reason != nil && whole.Digest() != before {
			t.Fatalf("a refused command had an effect: %v", out.Reason)
		}
	})
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte(specText))
	f.Add([]byte(draftText))
	f.Add([]byte(platformDraft))
	f.Add([]byte(amendText))
	f.Fuzz(func(t *testing.T, text []byte) {
		if g, err := NewGenesis("f", text, make([]byte, 32), start); err == nil {
			if _, err := DecodeGenesis(must(g.Payload())); err != nil {
				t.Fatalf("made a genesis that does not decode: %v", err)
			}
		}
		if payload, err := ParseDraft("f", text); err == nil {
			if _, err := DecodeProposal(payload); err != nil {
				t.Fatalf("made a proposal that does not decode: %v", err)
			}
		}
	})
}

// FuzzChainFile mutates files of a policy's history.
func FuzzChainFile(f *testing.F) {
	m := governing(f, 2)
	m.ok(m.vote(m.propose(addKey("alpha govern 9")), append(by("alpha", "beta"), "alpha govern 9")...))
	f.Add(must(json.Marshal(map[string]any{"chain": m.s.PolicyChain()})))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := ParseChainFile(m.g, data); err == nil && (!s.Started() || s.MeshID() != m.g.MeshID()) {
			t.Fatal("a chain that leads nowhere")
		}
	})
}

// FuzzHeard hands whatever bytes to what acts before it is ordered: nothing that was not signed
// may act, and the ordered state stays as it is.
func FuzzHeard(f *testing.F) {
	m := suspending(f, 5)
	narrowing := m.approved(m.propose(remove("old")), 3)
	suspension, id := m.suspend("alpha emergency")
	good := map[string]bool{}
	for _, raw := range [][]byte{narrowing, suspension, m.lift(id, "alpha govern")} {
		f.Add(raw)
		good[string(must(envelope.Parse(raw)).Payload)] = true
	}
	f.Add(m.approved(m.propose(add(entry(f, "third"))), 5))
	f.Add(m.credential("beta/n2", 1))
	before := m.s.Digest()
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p Provisional
		if _, _, err := p.Hear(m.s, suspension); err != nil {
			t.Fatal(err)
		}
		if h, _, err := p.Hear(m.s, raw); err == nil && !good[string(must(envelope.Parse(h.Raw)).Payload)] {
			t.Fatalf("%q acts", raw)
		}
		p.Over(m.s)
		p.Settle(m.s)
		if m.s.Digest() != before {
			t.Fatalf("%q changed the ordered state", raw)
		}
	})
}
