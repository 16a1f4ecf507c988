// Package vtpm decides the authenticity of TPM 2.0 quotes and of the boot log behind them.
//
// Evidence items: one TypeTPMQuote, a go-tpm-tools attest.Attestation in protobuf without
// unknown fields (AK public area, one quote per PCR bank with the PCR values, TCG event
// log, optionally AK certificate and intermediates). TypeCertificate items are further
// intermediates. Any other item type is refused. A TEE report inside the message is
// refused too: composites are evidence of their own kind.
//
// Verify establishes: the AK is a restricted signing key; every quote in the message is
// signed by it, over one nonce, and covers exactly the PCR values given; the event log
// replays to them in every bank, no register of the firmware (0 to 7) that was extended
// being left out of the log. Claims are taken from the strongest bank. The measurement is
// the quoted PCR digest; PCRs are named pcrN. The nonce is SHA-256 of the report data.
//
// Whether the AK belongs to a TPM at all is AKTrust: "certificate" if its certificate
// chains to one of the scheme's roots at the given time, else "", which no policy accepts:
// anybody can make a key. SecureBoot comes from events whose data hash to the digests that
// were replayed; the data of other events is not authenticated and not used.
//
// TPMs protect nothing from their host, and a host-provided vTPM is the host's.
//
// Errors, as codes: malformed, not_genuine, pcr_selection (values of a wrong size),
// replay_mismatch, not_bound.
package vtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm-tools/proto/attest"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	tpmquote "github.com/google/go-tpm-tools/quote"
	"github.com/google/go-tpm-tools/server"
	"github.com/google/go-tpm/legacy/tpm2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/eventlog"
)

// maxQuotes bounds the banks of one message.
const maxQuotes = 5

// Scheme verifies TPM attestations. The zero value trusts no AK certificate.
type Scheme struct {
	roots []*x509.Certificate
}

// New returns a scheme that believes attestation keys certified under roots, which may be
// none.
func New(roots []*x509.Certificate) *Scheme { return &Scheme{roots: slices.Clone(roots)} }

// Kind returns "vtpm".
func (s *Scheme) Kind() string { return mesh.KindVTPM }

// Verify implements attest.Scheme.
func (s *Scheme) Verify(ctx context.Context, ev mesh.Evidence, data *mesh.ReportData, at time.Time) (out mesh.Claims, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = mesh.Claims{}, refuse(mesh.CodeNotGenuine, "attestation", "", "", fmt.Errorf("go-tpm-tools failed: %v", p))
		}
	}()
	if err := ctx.Err(); err != nil {
		return mesh.Claims{}, err
	}
	msg, extra, err := split(ev)
	if err != nil {
		return mesh.Claims{}, refuse(mesh.CodeMalformed, "evidence", "", "", err)
	}
	ak, err := attestationKey(msg)
	if err != nil {
		return mesh.Claims{}, refuse(mesh.CodeNotGenuine, "attestation key", "", "", err)
	}
	best, info, err := quotes(msg, ak)
	if err != nil {
		return mesh.Claims{}, err
	}
	if err := replayed(msg); err != nil {
		return mesh.Claims{}, err
	}
	out, err = claims(msg, best, info, ak)
	if err != nil {
		return mesh.Claims{}, refuse(mesh.CodeNotGenuine, "attestation key", "", "", err)
	}
	out.At = at
	out.VTPM.SecureBoot = secureBoot(msg, best, ak, info.ExtraData)
	if s.certified(msg, extra, ak, at) {
		out.VTPM.AKTrust = mesh.AKTrustCertificate
	}
	if data != nil {
		want := sha256.Sum256(data[:])
		if !bytes.Equal(info.ExtraData, want[:]) {
			return mesh.Claims{}, refuse(mesh.CodeNotBound, "nonce", hex.EncodeToString(info.ExtraData), hex.EncodeToString(want[:]), nil)
		}
		out.Bound, out.VTPM.NonceVerified = true, true
	}
	return out, nil
}

func refuse(code mesh.Code, claim, got, want string, err error) *mesh.Error {
	return &mesh.Error{Reason: mesh.NewReason(code, claim, got, want), Err: err}
}

func split(ev mesh.Evidence) (msg *attest.Attestation, intermediates [][]byte, err error) {
	if err := ev.Check(); err != nil {
		return nil, nil, err
	}
	if ev.Kind != mesh.KindVTPM {
		return nil, nil, fmt.Errorf("kind %q, want %q", ev.Kind, mesh.KindVTPM)
	}
	for _, it := range ev.Items {
		switch {
		case it.Type == mesh.TypeTPMQuote && msg == nil:
			if msg, err = Parse(it.Data); err != nil {
				return nil, nil, err
			}
		case it.Type == mesh.TypeCertificate:
			intermediates = append(intermediates, it.Data)
		default:
			return nil, nil, fmt.Errorf("item %q is not a TPM's, or there are two", it.Type)
		}
	}
	if msg == nil {
		return nil, nil, errors.New("no attestation")
	}
	return msg, intermediates, nil
}

// Parse decodes the message strictly: no unknown field at any depth, no TEE report, one
// quote per bank, an AK and at least one quote.
func Parse(raw []byte) (*attest.Attestation, error) {
	if len(raw) > mesh.MaxLog {
		return nil, fmt.Errorf("attestation: %d bytes, the limit is %d", len(raw), mesh.MaxLog)
	}
	msg := new(attest.Attestation)
	if err := proto.Unmarshal(raw, msg); err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	if unknown(msg.ProtoReflect()) {
		return nil, errors.New("attestation: unknown fields")
	}
	if msg.GetTeeAttestation() != nil {
		return nil, errors.New("attestation: a TEE report inside a TPM's attestation is not accepted")
	}
	if len(msg.GetAkPub()) == 0 || len(msg.GetQuotes()) == 0 || len(msg.GetQuotes()) > maxQuotes ||
		len(msg.GetIntermediateCerts()) > mesh.MaxCertificates {
		return nil, fmt.Errorf("attestation: key of %d bytes and %d quotes, want a key and 1 to %d", len(msg.GetAkPub()), len(msg.GetQuotes()), maxQuotes)
	}
	banks := map[tpmpb.HashAlgo]bool{}
	for _, q := range msg.GetQuotes() {
		if banks[q.GetPcrs().GetHash()] {
			return nil, fmt.Errorf("attestation: two quotes of bank %v", q.GetPcrs().GetHash())
		}
		banks[q.GetPcrs().GetHash()] = true
	}
	return msg, nil
}

// unknown reports whether m or a message inside it holds fields the library does not know.
func unknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	found := false
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsMap():
		case f.IsList():
			for i := range v.List().Len() {
				found = found || unknown(v.List().Get(i).Message())
			}
		default:
			found = found || unknown(v.Message())
		}
		return !found
	})
	return found
}

// attestationKey reads the public area. A key that is not restricted would sign a quote
// its owner made up; but only the key itself is authenticated by what it signed, so that
// the attributes are a sanity check and trust in the AK comes from whoever certified it.
func attestationKey(msg *attest.Attestation) (crypto.PublicKey, error) {
	area, err := tpm2.DecodePublic(msg.GetAkPub())
	if err != nil {
		return nil, err
	}
	if back, err := area.Encode(); err != nil || !bytes.Equal(back, msg.GetAkPub()) {
		return nil, errors.New("the public area is not in its one encoding")
	}
	if need := tpm2.FlagRestricted | tpm2.FlagSign; area.Attributes&need != need {
		return nil, fmt.Errorf("attributes %#x, want a restricted signing key", uint32(area.Attributes))
	}
	return area.Key()
}

// strength orders banks; what is absent does not count.
func strength(h tpmpb.HashAlgo) int {
	return map[tpmpb.HashAlgo]int{tpmpb.HashAlgo_SHA1: 1, tpmpb.HashAlgo_SHA256: 2, tpmpb.HashAlgo_SHA384: 3, tpmpb.HashAlgo_SHA512: 4}[h]
}

// quotes verifies every quote and returns the one of the strongest bank.
func quotes(msg *attest.Attestation, ak crypto.PublicKey) (best *tpmpb.Quote, info *tpm2.AttestationData, err error) {
	var nonce []byte
	for i, q := range msg.GetQuotes() {
		data, err := tpm2.DecodeAttestationData(q.GetQuote())
		if err != nil {
			return nil, nil, refuse(mesh.CodeNotGenuine, "quote", "", "", err)
		}
		if i == 0 {
			nonce = data.ExtraData
		}
		// All quotes are over the first one's nonce, whether it is the expected one is
		// decided later.
		if err := tpmquote.Verify(q, ak, nonce); err != nil {
			return nil, nil, refuse(mesh.CodeNotGenuine, "quote", "not verified", "a signature by the attestation key over these registers", err)
		}
		// The digest is over the values in a row: without their sizes two registers
		// could lend each other bytes.
		hash, err := tpm2.Algorithm(q.GetPcrs().GetHash()).Hash()
		if err != nil {
			return nil, nil, refuse(mesh.CodePCRSelection, "vtpm.bank", q.GetPcrs().GetHash().String(), "a bank of a known hash", err)
		}
		for n, v := range q.GetPcrs().GetPcrs() {
			if len(v) != hash.Size() || n > 23 {
				return nil, nil, refuse(mesh.CodeNotGenuine, fmt.Sprintf("pcr%d", n), fmt.Sprintf("%d bytes", len(v)), fmt.Sprintf("%d bytes", hash.Size()), nil)
			}
		}
		if best == nil || strength(q.GetPcrs().GetHash()) > strength(best.GetPcrs().GetHash()) {
			best, info = q, data
		}
	}
	return best, info, nil
}

// firmwareRegisters are extended by firmware and boot loader alone.
const firmwareRegisters = 8

// replayed compares the log with the quoted values of every bank.
func replayed(msg *attest.Attestation) error {
	if len(msg.GetEventLog()) == 0 {
		return nil
	}
	log, err := eventlog.Parse(msg.GetEventLog())
	if err != nil {
		return refuse(mesh.CodeReplayMismatch, "event log", "unreadable", "the log of this boot", err)
	}
	names := map[tpmpb.HashAlgo]string{tpmpb.HashAlgo_SHA1: "sha1", tpmpb.HashAlgo_SHA256: "sha256", tpmpb.HashAlgo_SHA384: "sha384"}
	for _, q := range msg.GetQuotes() {
		bank := log.Banks[names[q.GetPcrs().GetHash()]]
		for n, quoted := range q.GetPcrs().GetPcrs() {
			// IMA and the operating system extend registers 8 and up without the log.
			got, logged := bank[int(n)]
			if !logged && (n >= firmwareRegisters || bytes.Count(quoted, []byte{0}) == len(quoted)) {
				continue
			}
			if !bytes.Equal(got, quoted) {
				return refuse(mesh.CodeReplayMismatch, fmt.Sprintf("pcr%d", n), hex.EncodeToString(got)+" by replay", hex.EncodeToString(quoted)+" in the quote", nil)
			}
		}
	}
	return nil
}

// secureBoot is what go-tpm-tools extracts from the log, nil if it cannot.
func secureBoot(msg *attest.Attestation, best *tpmpb.Quote, ak crypto.PublicKey, nonce []byte) *bool {
	if len(msg.GetEventLog()) == 0 {
		return nil
	}
	state, err := server.VerifyAttestation(msg, server.VerifyOpts{
		Nonce: nonce, TrustedAKs: []crypto.PublicKey{ak}, HashAlgo: tpm2.Algorithm(best.GetPcrs().GetHash()),
		Loader: server.UnsupportedLoader,
	})
	if err != nil || state.GetSecureBoot() == nil {
		return nil
	}
	on := state.GetSecureBoot().GetEnabled()
	return &on
}

// certified reports whether the AK's certificate chains to a root of ours at the time.
// go-tpm-tools would use the clock.
func (s *Scheme) certified(msg *attest.Attestation, extra [][]byte, ak crypto.PublicKey, at time.Time) bool {
	if len(s.roots) == 0 || len(msg.GetAkCert()) == 0 || at.IsZero() {
		return false
	}
	cert, err := x509.ParseCertificate(msg.GetAkCert())
	if err != nil {
		return false
	}
	if pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(ak) || cert.IsCA {
		return false
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range s.roots {
		roots.AddCert(r)
	}
	for _, der := range append(slices.Clone(msg.GetIntermediateCerts()), extra...) {
		if c, err := x509.ParseCertificate(der); err == nil {
			intermediates.AddCert(c)
		}
	}
	// crypto/x509 does not read the TPM's directory names and calls the extension unhandled.
	san := asn1.ObjectIdentifier{2, 5, 29, 17}
	cert.UnhandledCriticalExtensions = slices.DeleteFunc(cert.UnhandledCriticalExtensions, san.Equal)
	_, err = cert.Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

func claims(msg *attest.Attestation, best *tpmpb.Quote, info *tpm2.AttestationData, key crypto.PublicKey) (mesh.Claims, error) {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return mesh.Claims{}, err
	}
	hash, err := tpm2.Algorithm(best.GetPcrs().GetHash()).Hash()
	if err != nil {
		return mesh.Claims{}, err
	}
	ak := sha256.Sum256(spki)
	c := mesh.Claims{
		Kind: mesh.KindVTPM, Genuine: true, Measurement: hex.EncodeToString(info.AttestedQuoteInfo.PCRDigest),
		ReportData: hex.EncodeToString(info.ExtraData), Registers: map[string]string{},
		VTPM: &mesh.VTPMClaims{
			AKDigest: hex.EncodeToString(ak[:]), Bank: bankName(hash), LogReplayed: len(msg.GetEventLog()) > 0,
			ResetCount: info.ClockInfo.ResetCount, RestartCount: info.ClockInfo.RestartCount,
		},
	}
	for n, v := range best.GetPcrs().GetPcrs() {
		c.VTPM.PCRs = append(c.VTPM.PCRs, int(n))
		c.Registers[fmt.Sprintf("pcr%d", n)] = hex.EncodeToString(v)
	}
	slices.Sort(c.VTPM.PCRs)
	return c, nil
}

func bankName(h crypto.Hash) string {
	return map[crypto.Hash]string{crypto.SHA1: "sha1", crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}[h]
}
