package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
)

// envelopeCases spoil the DSSE envelope or the statement of one result; all seats cosign.
func envelopeCases() []tamperCase {
	const stranger = "stranger"
	// The envelope in its parts, another spelling of its bytes, and another spelling of what is signed.
	part := func(f func(leaf) leaf) func(*spoiled) { return func(s *spoiled) { s.change(inFull, f) } }
	spelt := func(f func(string) string) func(*spoiled) {
		return func(s *spoiled) { s.Leaves[inFull] = []byte(f(string(s.Leaves[inFull]))) }
	}
	statement := func(old, new string) func(*spoiled) {
		return part(func(l leaf) leaf { node := l.field("node"); return l.set(old, new).sign(node + " reborn peer") })
	}
	replaced := func(old, new string) func(*spoiled) {
		return spelt(func(s string) string {
			if !strings.Contains(s, old) {
				panic(old + " is not there")
			}
			return strings.Replace(s, old, new, 1)
		})
	}
	signed := func(f func(s *spoiled) []byte) func(*spoiled) {
		return func(s *spoiled) { s.Leaves[inFull] = f(s) }
	}
	var out []tamperCase
	for _, c := range []struct {
		name, what string
		do         func(*spoiled)
		code       string
	}{
		{"bad-signature", "a bit of a signature is flipped", part(func(l leaf) leaf {
			raw := must(base64.StdEncoding.DecodeString(l.Signatures[0].Sig))
			raw[9] ^= 1
			l.Signatures[0].Sig = base64.StdEncoding.EncodeToString(raw)
			return l
		}), "wrong_signer"},
		{"statement-edited", "what a signature is over is edited", part(func(l leaf) leaf { return l.set(`"executables":2`, `"executables":3`) }), "wrong_signer"},
		{"payload-type", "the payload type is another", replaced("in-toto+json", "in-toto+cbor"), "malformed"},
		{"payload-type-signed", "the payload type is another, and signed", part(func(l leaf) leaf { l.PayloadType = "text/plain"; return l.signBoot() }), "malformed"},
		{"predicate-type", "a result is called a proposal, and signed", statement("attestation-result/v1", "proposal/v1"), "malformed"},
		{"predicate-type-unknown", "a result is called what nobody knows, and signed", statement("attestation-result/v1", "attestation-result/v9"), "unknown_leaf"},
		{"extra-signature", "a stranger has signed too", part(func(l leaf) leaf { l.Signatures = append(l.Signatures, l.by(audittest.Key(stranger))); return l }), "wrong_signer"},
		{"extra-empty-signature", "an empty signature besides", part(func(l leaf) leaf { l.Signatures = append(l.Signatures, sig{}); return l }), "wrong_signer"},
		{"signature-twice", "the signature stands there twice", part(func(l leaf) leaf { l.Signatures = append(l.Signatures, l.Signatures[0]); return l }), "wrong_signer"},
		{"no-signature", "nobody has signed", part(func(l leaf) leaf { l.Signatures = nil; return l }), "wrong_signer"},
		{"no-key-id", "the signature names no key", part(func(l leaf) leaf { l.Signatures[0].KeyID = ""; return l }), "wrong_signer"},
		{"key-id", "the signature names another key", part(func(l leaf) leaf { l.Signatures[0].KeyID = l.by(audittest.Key(stranger)).KeyID; return l }), "wrong_signer"},
		{"signed-by-subject", "the subject has signed in place of the verifier", part(func(l leaf) leaf {
			_, subject, _ := strings.Cut(l.json(), `"subject":{"node":"`)
			subject, _, _ = strings.Cut(subject, `"`)
			return l.sign(subject + " reborn peer")
		}), "wrong_signer"},
		{"signed-by-organisation", "the verifier's organisation has signed in its place", part(func(l leaf) leaf { return l.sign("alpha enroll") }), "wrong_signer"},
		{"signer-unknown", "the verifier has no Credential", signed(func(s *spoiled) []byte { return s.Result("alpha/n9", "beta/n1 reborn", "new") }), "no_credential"},
		{"signer-later", "the verifier's Credential comes after its result", func(s *spoiled) {
			s.Tick(0)
			c := s.Credential("beta/n3")
			s.Command(consensus.KindCredential, c)
			s.Leaves[inFull], s.Leaves[inFull+1] = s.Result("beta/n3", "alpha/n1 reborn", "new"), c
			s.Leaves = s.Leaves[:size]
		}, "no_credential"},
		{"signer-former", "the verifier is a boot of the incarnation before", signed(func(s *spoiled) []byte { return s.Result("alpha/n1", "beta/n1 reborn", "new") }), "retired"},
		{"signer-removed", "the verifier is of an organisation that left", signed(func(s *spoiled) []byte { return s.Result("delta/n1", "beta/n1 reborn", "new") }), "no_credential"},
		{"base64-loose-bits", "the payload is in base64 with loose bits", func(s *spoiled) {
			s.change(inFull, func(l leaf) leaf {
				for n := 1; !strings.HasSuffix(l.Payload, "="); n++ { // until it is no multiple of three bytes
					l = parse(s.Leaves[inFull]).set(`"codes":[]`, `"codes":["`+strings.Repeat("a", n)+`"]`)
				}
				l = l.signBoot()
				l.Payload = loosened(l.Payload)
				return l
			})
		}, "malformed"},
		{"signature-loose-bits", "a signature is in base64 with loose bits", part(func(l leaf) leaf { l.Signatures[0].Sig = loosened(l.Signatures[0].Sig); return l }), "malformed"},
		{"base64-url", "a signature is in base64 for URLs", func(s *spoiled) {
			s.change(inFull, func(l leaf) leaf {
				for i := 0; !strings.ContainsAny(l.Signatures[0].Sig, "+/"); i++ {
					l = l.set(l.field("evidence"), fmt.Sprintf("%064d", i)).signBoot()
				}
				l.Signatures[0].Sig = strings.NewReplacer("+", "-", "/", "_").Replace(l.Signatures[0].Sig)
				return l
			})
		}, "malformed"},
		{"base64-lines", "the payload's base64 is on two lines", part(func(l leaf) leaf { l.Payload = l.Payload[:76] + `\n` + l.Payload[76:]; return l }), "malformed"},
		{"base64-unpadded", "a signature's base64 has no padding", part(func(l leaf) leaf {
			l.Signatures[0].Sig = strings.TrimRight(l.Signatures[0].Sig, "=")
			return l
		}), "malformed"},
		{"duplicate-key", "the envelope has two payloads", func(s *spoiled) {
			l := parse(s.Leaves[inFull])
			first := parse(s.other(inFull)).Payload
			s.Leaves[inFull] = bytes.Replace(s.Leaves[inFull], []byte(`"payload":"`+l.Payload), []byte(`"payload":"`+first+`","payload":"`+l.Payload), 1)
		}, "malformed"},
		{"duplicate-key-signed", "the statement has two verdicts, and is signed", statement(`"verdict":"`, `"verdict":"contraindicated","verdict":"`), "malformed"},
		{"key-order", "fields of the statement in another order, and signed", statement(`"instance-identity":0,"configuration":0`, `"configuration":0,"instance-identity":0`), "malformed"},
		{"key-case", "a field is spelt with a capital, and signed", statement(`"verdict":`, `"Verdict":`), "malformed"},
		{"unknown-field", "a field that nobody knows, and signed", statement(`"verdict":`, `"note":"x","verdict":`), "malformed"},
		{"escape", "a letter of the statement is escaped, and signed", statement(`"affirming"`, `"\u0061ffirming"`), "malformed"},
		{"number-spelt", "a number is spelt as 2.0, and signed", statement(`"executables":2`, `"executables":2.0`), "malformed"},
		{"space-signed", "white space in the statement, and signed", statement(`"verdict":"`, `"verdict": "`), "malformed"},
		{"space", "white space in the envelope", replaced(`","payload"`, `", "payload"`), "malformed"},
		{"trailing-byte", "a newline after the envelope", spelt(func(s string) string { return s + "\n" }), "malformed"},
		{"second-envelope", "a second envelope after the first", spelt(func(s string) string { return s + s }), "malformed"},
		{"upper-case-key-id", "a key id in capitals", part(func(l leaf) leaf { l.Signatures[0].KeyID = strings.ToUpper(l.Signatures[0].KeyID); return l }), "wrong_signer"},
		{"signatures-null", "no list of signatures", spelt(func(s string) string { return s[:strings.Index(s, `"signatures":`)] + `"signatures":null}` }), "malformed"},
		{"empty", "an entry without a byte", spelt(func(string) string { return "" }), "malformed"},
		{"rubbish", "65,535 zeros", spelt(func(string) string { return strings.Repeat("\x00", 65535) }), "malformed"},
		{"nested", "lists in lists without end", spelt(func(string) string { return strings.Repeat("[", 65535) }), "malformed"},
		{"nested-signed", "lists in lists in the statement, and signed", func(s *spoiled) {
			s.change(inFull, func(l leaf) leaf {
				return l.set(`"codes":[]`, `"codes":[`+strings.Repeat("[", 20000)+strings.Repeat("]", 20001)).signBoot()
			})
		}, "malformed"},
		{"not-utf-8", "bytes that are no UTF-8 in the statement, and signed", statement(`"affirming"`, "\"affirm\xffing\""), "malformed"},
		{"another-spelling-of-all", "the statement in readable JSON, and signed", func(s *spoiled) {
			s.change(inFull, func(l leaf) leaf {
				l.Payload = base64.StdEncoding.EncodeToString([]byte(strings.NewReplacer(`{`, "{\n  ", `,"`, ",\n  \"").Replace(l.json())))
				return l.signBoot()
			})
		}, "malformed"},
	} {
		out = append(out, tamperCase{"14-" + c.name, c.what, func(s *spoiled) verdict {
			c.do(s)
			s.sealAll()
			return found(inFull, c.code)
		}})
	}
	return out
}

// loosened is padded base64 whose last digit has bits that say nothing.
func loosened(b64 string) string {
	digits := strings.TrimRight(b64, "=")
	if len(digits) == len(b64) {
		panic("no loose bits in " + b64)
	}
	return digits[:len(digits)-1] + string(digits[len(digits)-1]+1) + b64[len(digits):]
}
