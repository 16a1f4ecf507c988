package consensus

import (
	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// Leaf is a log leaf that was read once, and what is known of it without any state: what kind
// it is and, of a result, whether its verifier has signed it. It holds the bytes that this is
// known of, so that neither can be taken for those of another leaf. It does not change, and
// can be made on any goroutine.
type Leaf struct {
	raw    []byte
	kind   string
	err    error // why raw is no envelope over a statement
	result *AttestationResult
	wrong  error // with a Reason: why raw is no result that its verifier has signed
}

// ParseLeaf reads a leaf, which must not change any more. A nil or zero Leaf is malformed.
func ParseLeaf(raw []byte) *Leaf {
	l := &Leaf{raw: raw}
	env, err := envelope.Parse(raw)
	if err != nil {
		l.err = err
		return l
	}
	// Of a result the kind is known once it is decoded, which costs as much as to look for it.
	if r, by := scanResult(env.Payload); r != nil {
		l.kind = envelope.TypeAttestationResult
		l.setResult(env, r, by)
		return l
	}
	if l.kind, l.err = envelope.PredicateType(env.Payload); l.err == nil && l.kind == envelope.TypeAttestationResult {
		l.setResult(env, nil, nil)
	}
	return l
}

// setResult decodes the result in env, which scanned is if that is not nil, and by its verifier.
func (l *Leaf) setResult(env *envelope.Envelope, scanned *AttestationResult, by *knownPeer) {
	r, err := resultIn(env, l.raw, scanned)
	if err != nil {
		l.wrong = refuseErr(attest.CodeMalformed, "attestation result", err)
		return
	}
	if by != nil {
		err = env.VerifyKey(by.key, by.keyID)
	} else {
		err = env.VerifyPeer(r.Verifier.Peer)
	}
	if err != nil {
		l.wrong = refuseErr(attest.CodeWrongSigner, "attestation result", err)
		return
	}
	l.result = r
}

// Raw returns the bytes that were read.
func (l *Leaf) Raw() []byte { return l.raw }

// Kind returns the predicate type, empty if the leaf is no envelope over a statement.
func (l *Leaf) Kind() string { return l.kind }

// Result returns the result that the leaf is and its verifier has signed. It is an error with
// a Reason if it is none.
func (l *Leaf) Result() (*AttestationResult, error) {
	switch {
	case l == nil || l.err != nil || l.kind != envelope.TypeAttestationResult:
		return nil, refuse(attest.CodeMalformed, "leaf", "no attestation result", "one")
	case l.wrong != nil:
		return nil, l.wrong
	}
	return l.result, nil
}
