package vtpm

import (
	"bytes"
	"crypto"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"math/bits"
	"slices"

	"github.com/google/go-tpm-tools/proto/attest"
	tpmpb "github.com/google/go-tpm-tools/proto/tpm"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	mesh "github.com/attestmesh/meshnode/attest"
)

// maxQuotes bounds the banks of one message.
const maxQuotes = 5

// bundle is evidence taken apart, of either form. Nothing in it is authentic.
type bundle struct {
	area   []byte // public area of the attestation key, in a message
	public []byte // the key in one of the forms of TypeTPMPublic
	cert   []byte // certificate of the key, in a message
	certs  [][]byte
	quotes []quote
	log    []byte
	ima    []byte
}

// quote is a statement with its signature and the registers it is about.
type quote struct {
	statement, signature []byte
	// bare quotes may have a raw signature, and values of registers that they do not cover.
	bare   bool
	pcrs   []byte // bare
	values values // of a message
}

// split takes evidence apart and refuses what does not belong.
func split(ev mesh.Evidence) (bundle, error) {
	if err := ev.Check(); err != nil {
		return bundle{}, err
	}
	if ev.Kind != mesh.KindVTPM {
		return bundle{}, fmt.Errorf("kind %q, want %q", ev.Kind, mesh.KindVTPM)
	}
	var b bundle
	var message []byte
	bare := quote{bare: true}
	single := map[string]*[]byte{mesh.TypeTPMQuote: &message, mesh.TypeTPMAttest: &bare.statement, mesh.TypeTPMSignature: &bare.signature,
		mesh.TypeTPMPCRs: &bare.pcrs, mesh.TypeTPMPublic: &b.public, mesh.TypeEventLog: &b.log, mesh.TypeIMALog: &b.ima}
	for _, it := range ev.Items {
		slot, known := single[it.Type]
		switch {
		case it.Type == mesh.TypeCertificate:
			b.certs = append(b.certs, it.Data)
		case !known:
			return bundle{}, fmt.Errorf("item %q is not a TPM's", it.Type)
		case *slot != nil:
			return bundle{}, fmt.Errorf("two items %q", it.Type)
		default:
			*slot = it.Data
		}
	}
	switch isBare := bare.statement != nil || bare.signature != nil || bare.pcrs != nil || b.public != nil; {
	case message != nil && isBare:
		return bundle{}, errors.New("an attestation and parts of a bare quote")
	case message != nil:
		return b, b.message(message)
	case bare.statement == nil || bare.signature == nil || bare.pcrs == nil:
		return bundle{}, errors.New("want an attestation, or a quote with its signature and register values")
	}
	b.quotes = []quote{bare}
	return b, nil
}

// message adds what go-tpm-tools put into one protobuf.
func (b *bundle) message(raw []byte) error {
	msg, err := Parse(raw)
	if err != nil {
		return err
	}
	if len(msg.GetEventLog()) > 0 {
		if b.log != nil {
			return errors.New("two event logs")
		}
		b.log = msg.GetEventLog()
	}
	b.area, b.cert, b.certs = msg.GetAkPub(), msg.GetAkCert(), append(b.certs, msg.GetIntermediateCerts()...)
	for _, q := range msg.GetQuotes() {
		bank, ok := protoBanks[q.GetPcrs().GetHash()]
		if !ok {
			return fmt.Errorf("attestation: bank %v", q.GetPcrs().GetHash())
		}
		v := values{}
		for n, value := range q.GetPcrs().GetPcrs() {
			if err := v.set(bank, int(min(n, lastRegister+1)), value); err != nil {
				return fmt.Errorf("attestation: %w", err)
			}
		}
		b.quotes = append(b.quotes, quote{statement: q.GetQuote(), signature: q.GetRawSig(), values: v})
	}
	return nil
}

var protoBanks = map[tpmpb.HashAlgo]crypto.Hash{tpmpb.HashAlgo_SHA1: crypto.SHA1, tpmpb.HashAlgo_SHA256: crypto.SHA256,
	tpmpb.HashAlgo_SHA384: crypto.SHA384, tpmpb.HashAlgo_SHA512: crypto.SHA512}

// Parse decodes the message strictly: no unknown field at any depth, none twice, no TEE
// report, one quote per bank, an AK and at least one quote.
func Parse(raw []byte) (*attest.Attestation, error) {
	if len(raw) > mesh.MaxLog {
		return nil, fmt.Errorf("attestation: %d bytes, the limit is %d", len(raw), mesh.MaxLog)
	}
	log, rest, err := takeLog(raw)
	if err != nil {
		return nil, err
	}
	msg := new(attest.Attestation)
	if err := proto.Unmarshal(rest, msg); err != nil {
		return nil, fmt.Errorf("attestation: %w", err)
	}
	// The size tells fields that are there twice, of which the last would count.
	if unknown(msg.ProtoReflect()) || proto.Size(msg) != len(rest) {
		return nil, errors.New("attestation: unknown or repeated fields")
	}
	msg.EventLog = log
	if msg.GetTeeAttestation() != nil {
		return nil, errors.New("attestation: a TEE report inside a TPM's attestation is not accepted")
	}
	if len(msg.GetAkPub()) == 0 || len(msg.GetQuotes()) == 0 || len(msg.GetQuotes()) > maxQuotes ||
		len(msg.GetIntermediateCerts()) > mesh.MaxCertificates {
		return nil, fmt.Errorf("attestation: key of %d bytes and %d quotes, want a key and 1 to %d", len(msg.GetAkPub()), len(msg.GetQuotes()), maxQuotes)
	}
	if slices.ContainsFunc(msg.GetIntermediateCerts(), func(c []byte) bool { return len(c) == 0 }) {
		return nil, errors.New("attestation: an empty certificate")
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

// logField is the number of Attestation.event_log.
const logField = 3

// takeLog takes the event log, most of a message, out of it without a copy.
func takeLog(raw []byte) (log, rest []byte, err error) {
	rest = make([]byte, 0, 4<<10)
	for len(raw) > 0 {
		number, kind, n := protowire.ConsumeTag(raw)
		size := protowire.ConsumeFieldValue(number, kind, raw[max(n, 0):])
		if n < 0 || size < 0 {
			return nil, nil, fmt.Errorf("attestation: %w", protowire.ParseError(min(n, size)))
		}
		if number != logField || kind != protowire.BytesType {
			rest = append(rest, raw[:n+size]...)
			raw = raw[n+size:]
			continue
		}
		value, _ := protowire.ConsumeBytes(raw[n:])
		if log != nil || len(value) == 0 || n+size != protowire.SizeTag(logField)+protowire.SizeBytes(len(value)) {
			return nil, nil, errors.New("attestation: an empty event log, two, or one in no minimal form")
		}
		log, raw = value, raw[n+size:]
	}
	return log, rest, nil
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

// LooksLikeStatement reports whether raw begins as a TPMS_ATTEST, but for some bits: one
// that was tampered with is still refused as a quote.
func LooksLikeStatement(raw []byte) bool {
	const least, most = 60, 1 << 10
	return len(raw) >= least && len(raw) <= most && bits.OnesCount32(binary.BigEndian.Uint32(raw)^magicGenerated) <= 2
}

// LooksLikeSignature reports whether raw is a TPMT_SIGNATURE, or of a size and form that a
// TPM's signature has without its header: for somebody who holds a quote and looks for it.
func LooksLikeSignature(raw []byte) (certain, possible bool) {
	if len(raw) > 8 {
		if _, err := parseSignature(raw); err == nil || errors.Is(err, errWeakHash) {
			return true, true
		}
	}
	switch len(raw) {
	case 64, 96, 256, 384, 512: // r and s; RSA of 2048 to 4096 bits
		return false, true
	}
	var der struct{ R, S *big.Int }
	rest, err := asn1.Unmarshal(raw, &der)
	return false, err == nil && len(rest) == 0
}

// Fits reports whether a signature is a key's over a statement, each in any of the forms
// that their items have: which of several files belong together. It says nothing of trust.
func Fits(statement, signature, public []byte) bool {
	key, err := publicKey(public)
	if err != nil {
		return false
	}
	_, err = signedBy(key.public, statement, signature, true)
	return err == nil
}

// Explains reports whether register values are those of a statement.
func Explains(statement, pcrs []byte) bool {
	st, err := parseStatement(statement)
	if err != nil {
		return false
	}
	given, err := parsePCRs(pcrs, st)
	if err != nil {
		return false
	}
	for _, h := range strongHashes {
		if digest, err := given.digest(st, h); err == nil && bytes.Equal(digest, st.digest) {
			return true
		}
	}
	return false
}
