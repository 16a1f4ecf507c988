// Package vtpm decides the authenticity of TPM 2.0 quotes and of the logs behind them.
//
// Evidence items, in one of two forms:
//
//   - TypeTPMQuote: a go-tpm-tools attest.Attestation in protobuf without unknown or
//     repeated fields: AK public area, one quote per PCR bank with the PCR values, optionally
//     TCG event log, AK certificate and intermediates. A TEE report inside it is refused:
//     composites are evidence of their own kind.
//   - a bare quote: TypeTPMAttest, the TPMS_ATTEST that the TPM signed; TypeTPMSignature,
//     a TPMT_SIGNATURE or, as tpm2-tools' "plain" format and Azure's agents have it, the
//     signature alone; TypeTPMPCRs, the register values in JSON or in a row; TypeTPMPublic,
//     the attestation key. Without that, the key is the one that a certificate names or,
//     in composites, a TEE report.
//
// Both may come with TypeEventLog (TCG) and TypeIMALog, one each, and TypeCertificate: of
// the key or intermediates. Any other item is refused.
//
// Verify establishes: each statement was made inside a TPM, is a quote, is signed by the
// AK with RSASSA, RSAPSS or ECDSA over SHA-256 or stronger, and its digest is that of the
// register values given; several quotes are over one nonce and of one boot; the event log
// replays to the registers in every bank, no register of the firmware (0 to 7) that was
// extended being left out of it; a prefix of the IMA list replays to register 10. Claims are taken from the strongest bank. Values that a
// bare quote does not cover are not authentic and not used.
//
// The measurement is that bank's hash over those quoted registers, in ascending order, that
// stay as they are once the machine has booted: 0 to 9, 12 and 14. (10 is IMA's, 11 and 15
// are systemd's, 13 is meshnode's runtime log, 16 to 23 can be reset.) Where not all of these
// are quoted, the numbers of those that are, a byte each, are hashed before them: a register
// that the machine can extend at will must not stand for one that is left out. Every quoted
// register is a claim, pcrN. The nonce is SHA-256 of the report data.
//
// Whether the AK belongs to a TPM at all is AKTrust: "certificate" if its certificate
// chains to one of the scheme's roots at the given time and is for such a key, "report" where a TEE report named
// it (VerifyNamed), else "", which no policy accepts: anybody can make a key. Callers that
// hold a Credential naming the key apply Claims.Activated. What is claimed of the boot is what
// package eventlog finds authenticated by the replayed digests; the data of other events is
// not used.
//
// What was established of a key and of logs of usual size is remembered, by all the bytes it
// was established from, so that the next quote of the machine costs its signature.
//
// TPMs protect nothing from their host, and a host-provided vTPM is the host's.
//
// Errors, as codes: malformed (form of any part), not_genuine (not a TPM's, not a quote, not
// signed, another digest), pcr_selection (nothing quoted, or an unknown bank),
// replay_mismatch, ak_binding (not the key a report names), no_endorsement (no key given),
// not_bound.
package vtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
)

// Scheme verifies TPM attestations. The zero value trusts no AK certificate.
type Scheme struct {
	roots []*x509.Certificate
	keys  *chains.Memory[endorsedKey]
	logs  *chains.Memory[logFacts]
}

// New returns a scheme that believes attestation keys certified under roots, which may be
// none.
func New(roots []*x509.Certificate) *Scheme {
	return &Scheme{slices.Clone(roots), chains.New[endorsedKey](maxKnown), chains.New[logFacts](maxKnownLogs)}
}

// Kind returns "vtpm".
func (s *Scheme) Kind() string { return mesh.KindVTPM }

// Verify implements attest.Scheme.
func (s *Scheme) Verify(ctx context.Context, ev mesh.Evidence, data *mesh.ReportData, at time.Time) (mesh.Claims, error) {
	return s.contained(ctx, ev, nil, data, at)
}

// VerifyNamed verifies evidence whose attestation key an authentic TEE report names. The
// evidence need not hold the key; if it does, it must be that one. Claims have AKTrust
// "report" and are of kind "vtpm": composing them is the caller's business.
func (s *Scheme) VerifyNamed(ctx context.Context, ev mesh.Evidence, named crypto.PublicKey, data *mesh.ReportData, at time.Time) (mesh.Claims, error) {
	if named == nil {
		return mesh.Claims{}, refuse(mesh.CodeAKBinding, "vtpm.ak_digest", "", "the key that the TEE report names", nil)
	}
	return s.contained(ctx, ev, named, data, at)
}

// contained turns a panic of a vendor's parser into a refusal.
func (s *Scheme) contained(ctx context.Context, ev mesh.Evidence, named crypto.PublicKey, data *mesh.ReportData, at time.Time) (out mesh.Claims, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = mesh.Claims{}, refuse(mesh.CodeNotGenuine, "attestation", "", "", fmt.Errorf("a parser failed: %v", p))
		}
	}()
	if err := ctx.Err(); err != nil {
		return mesh.Claims{}, err
	}
	return s.verify(ev, named, data, at)
}

func (s *Scheme) verify(ev mesh.Evidence, named crypto.PublicKey, data *mesh.ReportData, at time.Time) (mesh.Claims, error) {
	b, err := split(ev)
	if err != nil {
		return mesh.Claims{}, refuse(mesh.CodeMalformed, "evidence", "", "", err)
	}
	key, err := s.key(b, named, at)
	if err != nil {
		return mesh.Claims{}, err
	}
	v, err := b.verified(key.attestationKey)
	if err != nil {
		return mesh.Claims{}, err
	}
	logs, err := s.explained(b, v)
	if err != nil {
		return mesh.Claims{}, err
	}
	out := v.claims(key, logs)
	out.At = at
	if data != nil {
		want := sha256.Sum256(data[:])
		if !bytes.Equal(v.best.nonce, want[:]) {
			return mesh.Claims{}, refuse(mesh.CodeNotBound, "nonce", hex.EncodeToString(v.best.nonce), hex.EncodeToString(want[:]), nil)
		}
		out.Bound, out.VTPM.NonceVerified = true, true
	}
	return out, nil
}

func refuse(code mesh.Code, claim, got, want string, err error) *mesh.Error {
	return &mesh.Error{Reason: mesh.NewReason(code, claim, got, want), Err: err}
}

// verified is what all quotes of a bundle establish together.
type verified struct {
	banks values // every value that a quote covers
	best  statement
	bank  crypto.Hash // the strongest
}

// verified checks every quote under the key.
func (b bundle) verified(key attestationKey) (verified, error) {
	out := verified{banks: values{}}
	var first statement
	for i, q := range b.quotes {
		st, err := q.verified(key, out.banks)
		if err != nil {
			return verified{}, err
		}
		if i == 0 {
			first = st
		}
		// Whether the nonce is the expected one is decided later.
		if !bytes.Equal(st.nonce, first.nonce) || st.resetCount != first.resetCount || st.restartCount != first.restartCount {
			return verified{}, refuse(mesh.CodeNotGenuine, "quote", "quotes over different nonces or of different boots", "quotes made together", nil)
		}
		for _, sel := range st.selections {
			if len(sel.registers) > 0 && (out.bank == 0 || sel.bank > out.bank) { // crypto.Hash is in order of strength
				out.bank, out.best = sel.bank, st
			}
		}
	}
	return out, nil
}

// verified checks one quote and adds the values that it covers to banks.
func (q quote) verified(key attestationKey, banks values) (statement, error) {
	st, err := parseStatement(q.statement)
	switch {
	case errors.Is(err, errMagic):
		return st, refuse(mesh.CodeNotGenuine, "quote.magic", "not TPM_GENERATED", "a statement made inside a TPM", err)
	case errors.Is(err, errType):
		return st, refuse(mesh.CodeNotGenuine, "quote.type", "no TPM_ST_ATTEST_QUOTE", "a quote", err)
	case errors.Is(err, errBank):
		return st, refuse(mesh.CodePCRSelection, "quote.selection", "an unknown bank", "sha256, sha384 or sha512", err)
	case err != nil:
		return st, refuse(mesh.CodeMalformed, "quote", "", "", err)
	case st.quoted() == 0:
		return st, refuse(mesh.CodePCRSelection, "quote.selection", "no register", "the registers of this boot", nil)
	}
	hash, err := signedBy(key.public, q.statement, q.signature, q.bare)
	if err != nil {
		return st, refuse(mesh.CodeNotGenuine, "quote.signature", "not verified", "a signature by the attestation key, over SHA-256 or stronger", err)
	}
	given := q.values
	if q.bare {
		if given, err = parsePCRs(q.pcrs, st); err != nil {
			return st, refuse(mesh.CodeMalformed, "pcrs", "", "", err)
		}
	} else if given.count() != st.quoted() {
		return st, refuse(mesh.CodePCRSelection, "quote.selection", fmt.Sprintf("%d registers", st.quoted()), fmt.Sprintf("the %d whose values are given", given.count()), nil)
	}
	digest, err := given.digest(st, hash)
	if err != nil {
		return st, refuse(mesh.CodePCRSelection, "quote.selection", "registers without values", "values of all quoted registers", err)
	}
	if !bytes.Equal(digest, st.digest) {
		return st, refuse(mesh.CodeNotGenuine, "quote.pcr_digest", hex.EncodeToString(digest)+" of the values", hex.EncodeToString(st.digest), nil)
	}
	return st, covered(st, given, banks)
}

// covered moves the values that a statement selects into banks.
func covered(st statement, given, banks values) error {
	for _, sel := range st.selections {
		for _, n := range sel.registers {
			if err := banks.set(sel.bank, n, given.get(sel.bank, n)); err != nil {
				return refuse(mesh.CodeMalformed, "pcrs", "", "", err)
			}
		}
	}
	return nil
}

// stable are the registers that nothing extends once the machine has booted.
var stable = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14}

// claims are taken from the strongest bank.
func (v verified) claims(key endorsedKey, logs logFacts) mesh.Claims {
	c := mesh.Claims{
		Kind: mesh.KindVTPM, Genuine: true, ReportData: hex.EncodeToString(v.best.nonce), Registers: make(map[string]string, lastRegister+1),
		VTPM: &mesh.VTPMClaims{
			AKTrust: key.trust, AKDigest: key.digest, Nonce: hex.EncodeToString(v.best.nonce), Bank: bankName(v.bank),
			PCRs: make([]int, 0, lastRegister+1), ResetCount: v.best.resetCount, RestartCount: v.best.restartCount, ClockSafe: v.best.clockSafe,
			FirmwareVersion: hex.EncodeToString(binary.BigEndian.AppendUint64(nil, v.best.firmware)),
		},
	}
	// One string holds all values in hex; each claim is a part of it.
	all, size := make([]byte, 0, (lastRegister+1)*v.bank.Size()), 2*v.bank.Size()
	h := v.bank.New()
	h.Write(v.selected())
	for n := range lastRegister + 1 {
		value := v.banks.get(v.bank, n)
		if value == nil {
			continue
		}
		c.VTPM.PCRs = append(c.VTPM.PCRs, n)
		all = append(all, value...)
		if slices.Contains(stable, n) {
			h.Write(value)
		}
	}
	text := hex.EncodeToString(all)
	for i, n := range c.VTPM.PCRs {
		c.Registers[registerNames[n]] = text[i*size : (i+1)*size]
	}
	c.Measurement = hex.EncodeToString(h.Sum(nil))
	c.VTPM.Boot, c.VTPM.IMA = logs.boot, logs.ima
	if logs.boot != nil {
		c.VTPM.LogReplayed, c.VTPM.SecureBoot = true, logs.boot.SecureBoot
	}
	return c
}

// selected are the numbers of the stable registers that are quoted, nothing where all are.
// What is hashed with them has another length than without, and for every count of registers.
func (v verified) selected() (numbers []byte) {
	for _, n := range stable {
		if v.banks[v.bank][n] != nil {
			numbers = append(numbers, byte(n))
		}
	}
	if len(numbers) == len(stable) {
		return nil
	}
	return numbers
}

// registerNames are those of claims.
var registerNames = func() (names [lastRegister + 1]string) {
	for n := range names {
		names[n] = fmt.Sprintf("pcr%d", n)
	}
	return names
}()
