package vtpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm-tools/client"
	"github.com/google/go-tpm-tools/proto/attest"
	legacy "github.com/google/go-tpm/legacy/tpm2"
	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/vtpm/vtpmtest"
)

// The tests of this file hold each check by itself: behind most of them another one would
// refuse as well, with other words.

// refusals checks that each error says what it should.
func refusals(t *testing.T, errs map[string]struct {
	err  error
	want string
}) {
	t.Helper()
	for name, tc := range errs {
		if tc.err == nil || !strings.Contains(tc.err.Error(), tc.want) {
			t.Errorf("%s: got %v, want an error with %q", name, tc.err, tc.want)
		}
	}
}

type refused = struct {
	err  error
	want string
}

// made is a statement over registers 0 and 1 of SHA-256, and what can be wrong with it.
type made struct {
	nonce          []byte
	reset, restart uint32
	safe           byte
	selections     [][]byte
	digest         []byte
}

var zeros = make([]byte, 32)

func usual() made {
	digest := sha256.Sum256(make([]byte, 64))
	return made{nonce: []byte("nonce"), selections: [][]byte{selects(tpm2.TPMAlgSHA256, 3, 0, 0)}, digest: digest[:]}
}

func selects(bank tpm2.TPMAlgID, bits ...byte) []byte {
	return append(append(binary.BigEndian.AppendUint16(nil, uint16(bank)), byte(len(bits))), bits...)
}

func (m made) bytes() []byte {
	sized := func(out, b []byte) []byte { return append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...) }
	out := binary.BigEndian.AppendUint32(nil, magicGenerated)
	out = binary.BigEndian.AppendUint16(out, tagQuote)
	out = sized(sized(out, []byte("name")), m.nonce)
	out = binary.BigEndian.AppendUint64(out, 7)
	out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(out, m.reset), m.restart)
	out = binary.BigEndian.AppendUint64(append(out, m.safe), 8)
	out = binary.BigEndian.AppendUint32(out, uint32(len(m.selections)))
	for _, s := range m.selections {
		out = append(out, s...)
	}
	return sized(out, m.digest)
}

func TestStatementChecks(t *testing.T) {
	good := usual().bytes()
	if s, err := parseStatement(good); err != nil || s.quoted() != 2 {
		t.Fatalf("%+v, %v", s, err)
	}
	parse := func(raw []byte) error { _, err := parseStatement(raw); return err }
	with := func(edit func(*made)) error { m := usual(); edit(&m); return parse(m.bytes()) }
	end := len(good) - 34 - 6 // of the count of selections
	refusals(t, map[string]refused{
		"three bytes":       {parse(good[:3]), "cut short at byte 3"},
		"half a clock":      {with(func(m *made) { m.safe = 2 }), "clock safe 2"},
		"nine selections":   {with(func(m *made) { m.selections = slices.Repeat(m.selections, 9) }), "9 selections"},
		"a bank twice":      {with(func(m *made) { m.selections = slices.Repeat(m.selections, 2) }), "is selected twice"},
		"no end":            {parse(good[:len(good)-1]), "cut short or"},
		"behind its end":    {parse(append(bytes.Clone(good), 0)), "1 behind its end"},
		"half a selection":  {parse(good[:end+2]), "cut short in a selection"},
		"an unknown bank":   {with(func(m *made) { m.selections[0] = selects(0x12, 3) }), errBank.Error()},
		"the 25th register": {with(func(m *made) { m.selections[0] = selects(tpm2.TPMAlgSHA256, 0, 0, 0, 1) }), "register 24 selected"},
		"another's magic":   {parse(append([]byte{0xff, 0x54, 0x43, 0x48}, good[4:]...)), errMagic.Error()},
		"another's type":    {parse(append(bytes.Clone(good[:5]), append([]byte{0x17}, good[6:]...)...)), errType.Error()},
	})
}

func TestSignatureChecks(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parse := func(words ...uint16) error {
		var raw []byte
		for _, w := range words {
			raw = binary.BigEndian.AppendUint16(raw, w)
		}
		_, err := parseSignature(raw)
		return err
	}
	const ssa, sha256id = uint16(tpm2.TPMAlgRSASSA), uint16(tpm2.TPMAlgSHA256)
	digest := sha256.Sum256([]byte("statement"))
	raw, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signedBy(&key.PublicKey, []byte("statement"), raw, true); err != nil {
		t.Fatal(err)
	}
	signed := func(raw []byte, bare bool) error {
		_, err := signedBy(&key.PublicKey, []byte("statement"), raw, bare)
		return err
	}
	refusals(t, map[string]refused{
		"cut short":                    {parse(ssa, sha256id, 4, 0), "cut short"},
		"behind its end":               {parse(ssa, sha256id, 2, 0, 0), "2 behind its end"},
		"an unknown hash":              {parse(ssa, 0x1234, 2, 0), errWeakHash.Error()},
		"SHA-1":                        {parse(ssa, uint16(tpm2.TPMAlgSHA1), 2, 0), errWeakHash.Error()},
		"an unknown scheme":            {parse(0x1234, sha256id, 2, 0), "scheme 0x1234"},
		"a raw one within a message":   {signed(raw, false), "signature: scheme"},
		"what no key of its can make":  {signed([]byte{0, 1, 2, 3, 4}, true), "signature: scheme 0x0001"},
		"a raw one of other statement": {func() error { _, err := signedBy(&key.PublicKey, []byte("another"), raw, true); return err }(), "verifies with no scheme"},
	})
}

func TestRegisterChecks(t *testing.T) {
	h32 := strings.Repeat("00", 32)
	v := values{}
	if err := v.set(crypto.SHA256, 0, zeros); err != nil {
		t.Fatal(err)
	}
	two := statement{selections: []selection{{crypto.SHA256, []int{0, 1}}}}
	digestErr := func() error { _, err := v.digest(two, crypto.SHA256); return err }()
	parse := func(raw string) error { _, err := parsePCRs([]byte(raw), two); return err }
	text := func(raw string) error { _, err := textPCRs([]byte(raw)); return err }
	json := func(raw string) error { _, err := jsonPCRs([]byte(raw)); return err }
	for _, good := range []string{"sha256:\n0: 0x" + h32 + "\n\n1: " + h32, "sha256:0: " + h32 + "\nsha256:1: " + h32,
		`{"sha256":{"0":"` + h32 + `","1":"` + h32 + `"}}`, `{"0":"` + h32 + `","1":"` + h32 + `"}`, string(make([]byte, 64))} {
		if v, err := parsePCRs([]byte(good), two); err != nil || v.count() != 2 {
			t.Errorf("%q: %v", good, err)
		}
	}
	refusals(t, map[string]refused{
		"register -1":        {v.set(crypto.SHA256, -1, zeros), "register -1"},
		"register 24":        {v.set(crypto.SHA256, 24, zeros), "register 24"},
		"31 bytes":           {v.set(crypto.SHA256, 1, zeros[1:]), "has 31 bytes"},
		"given twice":        {v.set(crypto.SHA256, 0, zeros), "given twice"},
		"not given":          {digestErr, "no value of register 1"},
		"too long":           {parse(string(make([]byte, maxPCRs+1))), "the limit is"},
		"long text":          {text(strings.Repeat(" ", maxPCRs+1)), "the limit is"},
		"long JSON":          {json(strings.Repeat(" ", maxPCRs+1)), "the limit is"},
		"too few":            {parse(string(make([]byte, 63))), "fewer than the quote selects"},
		"too many":           {parse(string(make([]byte, 65))), "1 bytes more than"},
		"no bank":            {text("0: " + h32), "registers: line"},
		"an unknown bank":    {text("sha256:\nmd5:\n0: " + h32), "registers: line"},
		"of an unknown bank": {text("md5:0: " + h32), "registers: line"},
		"one word":           {text("sha256:\nword"), "registers: line"},
		"four words":         {text("sha256:\n0: " + h32 + ":1:2"), "registers: line"},
		"a bad line":         {text("sha256:\n0: " + h32 + "\nx: " + h32), "is no register"},
		"no line":            {text("sha256:\n"), "no line"},
		"data behind":        {json(`{"0":"` + h32 + `"} {}`), "data behind"},
		"a list":             {json("[]"), "not a JSON object"},
		"nothing":            {json(""), "not a JSON object"},
		"a number":           {json(`{"sha256":{"0":5}}`), "cannot unmarshal number"},
		"a bad member":       {json(`{"0":"zz","1":"` + h32 + `"}`), "invalid byte"},
		"a leading zero":     {json(`{"00":"` + h32 + `"}`), "is no register"},
		"no number":          {json(`{"x":"` + h32 + `"}`), "is no register"},
		"two bytes":          {json(`{"0":"aabb"}`), "of 2 bytes is of no bank"},
	})
}

func TestKeyChecks(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	area := func(edit func(*tpm2.TPMTPublic)) []byte {
		p := tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: tpm2.TPMAObject{Restricted: true, SignEncrypt: true},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}}),
			Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})}
		if edit != nil {
			edit(&p)
		}
		return tpm2.Marshal(p)
	}
	read := func(raw []byte) error { _, err := areaKey(raw); return err }
	if err := read(area(nil)); err != nil {
		t.Fatal(err)
	}
	hashed := area(func(p *tpm2.TPMTPublic) {
		p.Type = tpm2.TPMAlgKeyedHash
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: zeros})
	})
	ofBits := func(bits uint) error {
		_, err := newKey(&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), bits-1), E: 65537})
		return err
	}
	if err := errors.Join(ofBits(2048), ofBits(8192)); err != nil {
		t.Error(err)
	}
	cert := func(public any, edit func(*x509.Certificate)) []byte {
		c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now()}
		if edit != nil {
			edit(c)
		}
		der, err := x509.CreateCertificate(rand.Reader, c, c, public, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := cert(&key.PublicKey, nil)
	given := func(b bundle) error { _, err := b.givenKey(); return err }
	if err := given(bundle{certs: [][]byte{leaf, cert(&key.PublicKey, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true })}}); err != nil {
		t.Errorf("one certificate and its issuer's: %v", err)
	}
	refusals(t, map[string]refused{
		"another encoding": {read(append(area(nil), 0)), "one encoding"},
		"not restricted":   {read(area(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false })), "restricted signing key"},
		"signs not":        {read(area(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false })), "restricted signing key"},
		"decrypts":         {read(area(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true })), "restricted signing key"},
		"off the curve": {read(area(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: zeros}, Y: tpm2.TPM2BECCParameter{Buffer: zeros}})
		})), "attestation key: "},
		"a keyed hash":       {read(hashed), "public area: "},
		"2047 bits":          {ofBits(2047), "RSA of 2047 bits"},
		"8193 bits":          {ofBits(8193), "RSA of 8193 bits"},
		"no area":            {given(bundle{area: []byte{1}}), "attestation key"},
		"no key":             {given(bundle{public: []byte{1}}), "attestation key"},
		"two certificates":   {given(bundle{certs: [][]byte{leaf, leaf}}), "several certificates"},
		"a key of no TPM's":  {given(bundle{certs: [][]byte{cert(edwards, nil)}}), "want RSA or ECDSA"},
		"nothing that names": {given(bundle{}), "the key, its certificate"},
	})
	if certifiesAttestation(&x509.Certificate{IsCA: true}) || !certifiesAttestation(&x509.Certificate{}) {
		t.Error("an authority's certificate is an attestation key's, or none is")
	}
}

func TestBundleChecks(t *testing.T) {
	const name = "secureboot-on-ecc.pb"
	raw := sample(t, name)
	parse := func(raw []byte) error { _, err := Parse(raw); return err }
	parsed := func(edit func(*attest.Attestation)) error { return parse(edited(t, name, edit)) }
	in := func(items ...mesh.Item) error {
		_, err := split(mesh.Evidence{Kind: mesh.KindVTPM, Items: items})
		return err
	}
	item := func(kind string) mesh.Item { return mesh.Item{Type: kind, Data: []byte{1}} }
	whole := mesh.Item{Type: mesh.TypeTPMQuote, Data: raw}
	message := func(edit func(*attest.Attestation)) error {
		return in(mesh.Item{Type: mesh.TypeTPMQuote, Data: edited(t, name, edit)})
	}
	tdx := func() error {
		_, err := split(mesh.Evidence{Kind: mesh.KindTDX, Items: []mesh.Item{whole}})
		return err
	}()
	if err := in(whole); err != nil {
		t.Fatal(err)
	}
	statement, signature, pcrs := item(mesh.TypeTPMAttest), item(mesh.TypeTPMSignature), item(mesh.TypeTPMPCRs)
	log := func(b ...byte) []byte {
		return append(edited(t, name, func(m *attest.Attestation) { m.EventLog = nil }), b...)
	}
	refusals(t, map[string]refused{
		"no items":        {in(), "0 items"},
		"another kind":    {tdx, `kind "tdx"`},
		"two messages":    {in(whole, whole), "two items"},
		"of another TEE":  {in(whole, item(mesh.TypeTDXQuote)), "is not a TPM's"},
		"both forms":      {in(whole, item(mesh.TypeTPMPublic)), "parts of a bare quote"},
		"no statement":    {in(signature, pcrs), "want an attestation, or a quote"},
		"no signature":    {in(statement, pcrs), "want an attestation, or a quote"},
		"no values":       {in(statement, signature), "want an attestation, or a quote"},
		"two event logs":  {in(whole, item(mesh.TypeEventLog)), "two event logs"},
		"no bank's":       {message(func(m *attest.Attestation) { m.Quotes[0].Pcrs.Hash = 0 }), "attestation: bank"},
		"a short value":   {message(func(m *attest.Attestation) { m.Quotes[0].Pcrs.Pcrs[0] = []byte{1} }), "has 1 bytes"},
		"register 2^32-1": {message(func(m *attest.Attestation) { m.Quotes[0].Pcrs.Pcrs[1<<32-1] = m.Quotes[0].Pcrs.Pcrs[0] }), "register 24"},
		"over the limit":  {parse(make([]byte, mesh.MaxLog+1)), "the limit is"},
		"no message":      {parse([]byte{0x12, 1, 0xff}), "proto"},
		"a field 0":       {parse([]byte{0, 1}), "attestation: "},
		"a field twice":   {parse(append(bytes.Clone(raw), 0x0a, 1, 1)), "repeated fields"},
		"a TEE's report":  {parsed(func(m *attest.Attestation) { m.TeeAttestation = &attest.Attestation_SevSnpAttestation{} }), "TEE report inside"},
		"no key":          {parsed(func(m *attest.Attestation) { m.AkPub = nil }), "key of 0 bytes"},
		"no quote":        {parsed(func(m *attest.Attestation) { m.Quotes = nil }), "0 quotes"},
		"six quotes":      {parsed(func(m *attest.Attestation) { m.Quotes = slices.Repeat(m.Quotes[:1], 6) }), "6 quotes"},
		"33 certificates": {parsed(func(m *attest.Attestation) {
			m.IntermediateCerts = slices.Repeat([][]byte{{1}}, mesh.MaxCertificates+1)
		}), "want a key and"},
		"an empty certificate": {parsed(func(m *attest.Attestation) { m.IntermediateCerts = [][]byte{{}} }), "an empty certificate"},
		"a bank twice":         {parsed(func(m *attest.Attestation) { m.Quotes = append(m.Quotes, proto.CloneOf(m.Quotes[0])) }), "two quotes of bank"},
		"two logs inside":      {parse(log(0x1a, 1, 7, 0x1a, 1, 7)), "an empty event log, two"},
		"an empty log":         {parse(log(0x1a, 0)), "an empty event log, two"},
		"a long form":          {parse(log(0x1a, 0x81, 0, 7)), "an empty event log, two"},
		"a log cut short":      {parse(log(0x1a, 2, 7)), "attestation: "},
	})
	if err := parse(log(0x1a, 1, 7)); err != nil {
		t.Errorf("a log of one byte: %v", err)
	}
}

// signed makes quotes with a key of its own.
func signed(t *testing.T) (attestationKey, func(made, values) quote) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return key, func(m made, v values) quote {
		raw := m.bytes()
		digest := sha256.Sum256(raw)
		r, s, err := ecdsa.Sign(rand.Reader, private, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		sig := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMAlgECDSA)), uint16(tpm2.TPMAlgSHA256))
		for _, x := range []*big.Int{r, s} {
			sig = append(binary.BigEndian.AppendUint16(sig, 32), x.FillBytes(make([]byte, 32))...)
		}
		return quote{statement: raw, signature: sig, values: v}
	}
}

func TestQuoteChecks(t *testing.T) {
	key, sign := signed(t)
	of := func(hash crypto.Hash, registers int) values {
		v := values{}
		for n := range registers {
			if err := v.set(hash, n, make([]byte, hash.Size())); err != nil {
				t.Fatal(err)
			}
		}
		return v
	}
	in384 := usual()
	in384.selections = [][]byte{selects(tpm2.TPMAlgSHA384, 3, 0, 0)}
	digest := sha256.Sum256(make([]byte, 96)) // by the signature's hash
	in384.digest = digest[:]
	two := func(edit func(*made)) (mesh.Code, error) {
		m := in384
		edit(&m)
		_, err := bundle{quotes: []quote{sign(usual(), of(crypto.SHA256, 2)), sign(m, of(crypto.SHA384, 2))}}.verified(key)
		var refused *mesh.Error
		if errors.As(err, &refused) {
			return refused.Reason.Code, err
		}
		return "", err
	}
	if c, err := two(func(*made) {}); c != "" || err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(*made){"nonce": func(m *made) { m.nonce = []byte("other") },
		"reset count": func(m *made) { m.reset++ }, "restart count": func(m *made) { m.restart++ }} {
		if c, err := two(edit); c != mesh.CodeNotGenuine {
			t.Errorf("two quotes of different %s: %v", name, err)
		}
	}
	unknown := usual()
	unknown.selections = [][]byte{selects(0x12, 3)}
	none := usual()
	none.selections = nil
	half := sign(usual(), of(crypto.SHA256, 2))
	half.statement = half.statement[:len(half.statement)-1]
	bare := sign(usual(), nil)
	bare.bare, bare.pcrs = true, make([]byte, 63)
	for name, tc := range map[string]struct {
		quotes []quote
		want   mesh.Code
	}{
		"unknown bank":         {[]quote{sign(unknown, of(crypto.SHA256, 2))}, mesh.CodePCRSelection},
		"no register":          {[]quote{sign(none, of(crypto.SHA256, 0))}, mesh.CodePCRSelection},
		"cut short":            {[]quote{half}, mesh.CodeMalformed},
		"values of one":        {[]quote{sign(usual(), of(crypto.SHA256, 1))}, mesh.CodePCRSelection},
		"values of three":      {[]quote{sign(usual(), of(crypto.SHA256, 3))}, mesh.CodePCRSelection},
		"unreadable values":    {[]quote{bare}, mesh.CodeMalformed},
		"the same bank, twice": {slices.Repeat([]quote{sign(usual(), of(crypto.SHA256, 2))}, 2), mesh.CodeMalformed},
	} {
		if _, err := (bundle{quotes: tc.quotes}).verified(key); code(t, err) != tc.want {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
	}
	ended, end := context.WithCancel(context.Background())
	end()
	if _, err := New(nil).Verify(ended, evidence(sample(t, "secureboot-on-ecc.pb")), nil, at); !errors.Is(err, context.Canceled) {
		t.Errorf("a verification that is not wanted any more: %v", err)
	}
}

func TestLogChecks(t *testing.T) {
	dstack := []byte(`[{"imr":0,"event_type":1,"digest":"` + strings.Repeat("00", 48) + `","event":"","event_payload":""}]`)
	if _, err := replayed(dstack, values{}); err == nil || !strings.Contains(err.Error(), "dstack") {
		t.Errorf("the log of another machine: %v", err)
	}
	v := verified{banks: values{}, bank: crypto.SHA256}
	if err := v.banks.set(crypto.SHA256, 10, bytes.Repeat([]byte{7}, 32)); err != nil {
		t.Fatal(err)
	}
	ng := append([]byte("sha256:\x00"), zeros...)
	field := func(out, b []byte) []byte { return append(binary.LittleEndian.AppendUint32(out, uint32(len(b))), b...) }
	hash := sha256.Sum256(field(field(nil, ng), []byte("boot_aggregate\x00")))
	list := fmt.Sprintf("10 %x ima-ng sha256:%x boot_aggregate\n", hash[:20], zeros)
	if _, err := measuredFiles([]byte(list), v); err == nil || !strings.Contains(err.Error(), hex.EncodeToString(bytes.Repeat([]byte{7}, 32))+" in the quote") {
		t.Errorf("another machine's list: %v", err)
	}
}

func TestSequence(t *testing.T) {
	good := append([]byte{0x30, 0x82, 0, 3}, 1, 2, 3, 0xff)
	if der, err := sequence(good); err != nil || len(der) != 7 {
		t.Errorf("%x, %v", der, err)
	}
	for _, bad := range [][]byte{nil, good[:3], append([]byte{0x31}, good[1:]...), append([]byte{0x30, 0x81}, good[2:]...), good[:6]} {
		if der, err := sequence(bad); err == nil {
			t.Errorf("%x: %x", bad, der)
		}
	}
}

// TestChannelOfABrokenFile: what a file says is told, and no command is given too late.
func TestChannelOfABrokenFile(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	late := &channel{fd: fds[0]} // its deadline is long past
	defer late.Close()
	if n, err := late.Write([]byte("command")); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%d bytes written too late, %v", n, err)
	}
	late.until = time.Now().Add(time.Minute) // too late: half a command may have gone, and its answer may come yet
	if n, err := late.Write([]byte("command")); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("%d bytes written after a failure, %v", n, err)
	}
	if _, err := unix.Write(fds[1], []byte("0123456789")); err != nil {
		t.Fatal(err)
	}
	if n, err := late.Read(make([]byte, 64)); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("%d bytes read after a failure, %v", n, err)
	}
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	folder := &channel{fd: dir, until: time.Now().Add(time.Minute)}
	defer folder.Close()
	if _, err := folder.Read(make([]byte, 64)); !errors.Is(err, unix.EISDIR) {
		t.Errorf("read from a folder: %v", err)
	}
}

// TestDeviceThatGoes: a device that is lost on a command and is not there again is told.
func TestDeviceThatGoes(t *testing.T) {
	a := NewAttester(Options{Device: filepath.Join(t.TempDir(), "none")})
	if digest, err := a.AKDigest(t.Context()); digest != "" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no TPM has the key %q, %v", digest, err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	a.channel = &channel{fd: fds[0]}
	_, err = do(t.Context(), a, "lose", again, func(ch *channel) (struct{}, error) {
		ch.broken = true
		return struct{}{}, errors.New("lost")
	})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

// TestKeysThatAreNotThere: a provisioned key is one with its certificate, an endorsement key
// the one that its certificate is of.
func TestKeysThatAreNotThere(t *testing.T) {
	tpm := vtpmtest.Start(t)
	tpm.ProvisionAK(t)
	ch, err := openChannel(tpm.Socket, time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	ch.until = time.Now().Add(time.Minute)
	const none = 0x01c1fff0
	for _, tc := range []struct {
		ak   ProvisionedAK
		want bool
	}{
		{ProvisionedAK{Handle: vtpmtest.ProvisionedAK, CertificateIndex: vtpmtest.ProvisionedAKIndex}, true},
		{ProvisionedAK{Handle: vtpmtest.ProvisionedAK, CertificateIndex: none}, false},
		{ProvisionedAK{Handle: 0x8100fff0, CertificateIndex: vtpmtest.ProvisionedAKIndex}, false},
		{ProvisionedAK{TemplateIndex: none, CertificateIndex: vtpmtest.ProvisionedAKIndex}, false},
	} {
		if got := hasKey(ch, tc.ak); got != tc.want {
			t.Errorf("%s: %v", tc.ak, got)
		}
	}
	if key, err := endorsementKey(ch); err != nil {
		t.Fatal(err)
	} else {
		key.Close()
	}
	usual := endorsementKinds
	defer func() { endorsementKinds = usual }()
	endorsementKinds = slices.Clone(usual[:1])
	endorsementKinds[0].handle, endorsementKinds[0].template = client.EKECCReservedHandle, func() legacy.Public { return client.DefaultEKTemplateECC() }
	if key, err := endorsementKey(ch); err == nil || !strings.Contains(err.Error(), "is not that of the endorsement key") {
		t.Errorf("the certificate of another key: %v, %v", key, err)
	}
}
