package attest

import (
	"context"
	"fmt"
	"io"
	"time"
)

// Verify opens the second door with s. What is in the evidence for any scheme is taken out
// before: the salt of the chip, from which it adds Claims.Hardware. Nobody signed the salt; a
// wrong one opens no commitment that anybody listed.
func Verify(ctx context.Context, s Scheme, ev Evidence, data *ReportData, at time.Time) (Claims, error) {
	rest := ev
	rest.Items = nil
	var salt []byte
	for _, it := range ev.Items {
		switch {
		case it.Type != TypeHardwareSalt:
			rest.Items = append(rest.Items, it)
		case salt != nil || len(it.Data) != SaltSize:
			return Claims{}, &Error{Reason: NewReason(CodeMalformed, "hardware salt", fmt.Sprintf("%d bytes, or a second one", len(it.Data)), fmt.Sprintf("one of %d bytes", SaltSize))}
		default:
			salt = it.Data
		}
	}
	claims, err := s.Verify(ctx, rest, data, at)
	if err != nil || salt == nil || claims.HardwareID == "" {
		return claims, err
	}
	claims.Hardware, err = HardwareCommitment([SaltSize]byte(salt), HardwareKind(claims.Kind), claims.HardwareID)
	if err != nil {
		return Claims{}, &Error{Reason: NewReason(CodeMalformed, "hardware id", "", "hex"), Err: err}
	}
	return claims, nil
}

// Salted returns an attester whose evidence shows salt, so that verifiers can look for this
// machine's chip on a list of commitments.
func Salted(a Attester, salt [SaltSize]byte) Attester { return salted{a, salt} }

type salted struct {
	Attester
	salt [SaltSize]byte
}

// Attest implements Attester.
func (a salted) Attest(ctx context.Context, data ReportData) (Evidence, error) {
	ev, err := a.Attester.Attest(ctx, data)
	if err == nil {
		ev.Items = append(ev.Items[:len(ev.Items):len(ev.Items)], Item{Type: TypeHardwareSalt, Data: a.salt[:]})
	}
	return ev, err
}

// Close implements io.Closer, where the attester beneath does.
func (a salted) Close() error {
	if c, ok := a.Attester.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Extend implements Extender; it does nothing where the attester beneath has no register.
func (a salted) Extend(ctx context.Context, event []byte) error {
	if e, ok := a.Attester.(Extender); ok {
		return e.Extend(ctx, event)
	}
	return nil
}
