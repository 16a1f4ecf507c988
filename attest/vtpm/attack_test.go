package vtpm_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/vtpm"
)

var now = time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)

// bare returns the evidence of a quote, of which a test may replace parts.
func bare(t testing.TB, tpm *attesttest.SoftTPM, s attesttest.Statement, with crypto.Hash) attest.Evidence {
	t.Helper()
	statement, signature := tpm.Quote(s, with)
	spki, err := x509.MarshalPKIXPublicKey(tpm.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return attest.Evidence{Kind: attest.KindVTPM, Items: []attest.Item{{Type: attest.TypeTPMAttest, Data: statement},
		{Type: attest.TypeTPMSignature, Data: signature}, {Type: attest.TypeTPMPCRs, Data: tpm.PCRs(s.Bank)}, {Type: attest.TypeTPMPublic, Data: spki}}}
}

func verdict(t testing.TB, ev attest.Evidence) (attest.Claims, attest.Code) {
	t.Helper()
	c, err := vtpm.New(nil).Verify(context.Background(), ev, nil, now)
	var refusal *attest.Error
	if err != nil && !errors.As(err, &refusal) {
		t.Fatalf("got %v, want an *attest.Error", err)
	}
	if err == nil != c.Genuine {
		t.Errorf("%v with claims %+v", err, c)
	}
	if err != nil {
		return c, refusal.Reason.Code
	}
	return c, ""
}

func tpm() *attesttest.SoftTPM {
	t := attesttest.NewSoftTPM(false)
	t.Boot([]byte("loader"), true)
	return t
}

var allRegisters = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23}

// A13: quotes over nothing, over a bank nobody should trust, and values that the quote is not
// over.
func TestA13Selection(t *testing.T) {
	m := tpm()
	good := attesttest.Statement{Nonce: []byte("nonce"), Bank: crypto.SHA256, Registers: []int{0, 4, 7}}
	c, code := verdict(t, bare(t, m, good, crypto.SHA256))
	if code != "" || !slices.Equal(c.VTPM.PCRs, []int{0, 4, 7}) || len(c.Registers) != 3 {
		t.Errorf("values of registers that are not quoted became claims: %s %v %v", code, c.VTPM, c.Registers)
	}
	if r := attest.Appraise(c, attest.StrictPolicy(), now); r.Code() != attest.CodePCRSelection {
		t.Errorf("registers missing: got %v", r.Reasons)
	}
	none := good
	none.Registers = nil
	if _, code := verdict(t, bare(t, m, none, crypto.SHA256)); code != attest.CodePCRSelection {
		t.Errorf("no register: got %q", code)
	}
	weak := good
	weak.Bank, weak.Registers = crypto.SHA1, allRegisters
	c, _ = verdict(t, bare(t, m, weak, crypto.SHA256))
	if r := attest.Appraise(c, attest.StrictPolicy(), now); r.Code() != attest.CodePCRSelection {
		t.Errorf("SHA-1 bank: got %v", r.Reasons)
	}
	ev := bare(t, m, good, crypto.SHA256)
	ev.Items[2].Data = []byte(`{"sha256":{"0":"` + c.Registers["pcr0"] + `"}}`)
	if _, code := verdict(t, ev); code == "" {
		t.Error("a value of another size, others missing: accepted")
	}
	if _, code := verdict(t, bare(t, m, good, crypto.SHA1)); code != attest.CodeNotGenuine {
		t.Errorf("signed with SHA-1: got %q", code)
	}
}

// A14: a key that nobody vouches for, and one that is not the named one.
func TestA14KeyBinding(t *testing.T) {
	m := tpm()
	ev := bare(t, m, attesttest.Statement{Bank: crypto.SHA256, Registers: allRegisters}, crypto.SHA256)
	c, _ := verdict(t, ev)
	if r := attest.Appraise(c, attest.StrictPolicy(), now); c.VTPM.AKTrust != "" || r.Verdict != attest.VerdictNone && r.Verdict != attest.VerdictContraindicated {
		t.Errorf("trust %q, %v", c.VTPM.AKTrust, r.Reasons)
	}
	if got := c.Activated(c.VTPM.AKDigest).VTPM.AKTrust; got != attest.AKTrustActivation {
		t.Errorf("activated: trust %q", got)
	}
	s := vtpm.New(nil)
	named, err := s.VerifyNamed(context.Background(), ev, m.Key.Public(), nil, now)
	if err != nil || named.VTPM.AKTrust != attest.AKTrustReport {
		t.Errorf("named: %v %v", named.VTPM, err)
	}
	var refusal *attest.Error
	for what, key := range map[string]crypto.PublicKey{"another key": tpm().Key.Public(), "no key": nil} {
		if _, err := s.VerifyNamed(context.Background(), ev, key, nil, now); !errors.As(err, &refusal) || refusal.Reason.Code != attest.CodeAKBinding {
			t.Errorf("%s: got %v", what, err)
		}
	}
	ev.Items = ev.Items[:3] // without the key
	if _, code := verdict(t, ev); code != attest.CodeNoEndorsement {
		t.Errorf("no key at all: got %q", code)
	}
	if _, err := s.VerifyNamed(context.Background(), ev, m.Key.Public(), nil, now); err != nil {
		t.Errorf("named, the key not given: %v", err)
	}
}

// A15: signed by the key, but not made inside a TPM, or no quote.
func TestA15StatementType(t *testing.T) {
	m := tpm()
	good := attesttest.Statement{Bank: crypto.SHA256, Registers: allRegisters}
	for what, s := range map[string]attesttest.Statement{
		"magic": {Magic: 0xff544346, Bank: good.Bank, Registers: good.Registers},
		"type":  {Type: 0x8017, Bank: good.Bank, Registers: good.Registers},
	} {
		if _, code := verdict(t, bare(t, m, s, crypto.SHA256)); code != attest.CodeNotGenuine {
			t.Errorf("%s: got %q", what, code)
		}
	}
	if _, code := verdict(t, bare(t, m, good, crypto.SHA256)); code != "" {
		t.Errorf("genuine: got %q", code)
	}
}

// Signatures come with TPMT_SIGNATURE's header or without, register values in several forms.
func TestForms(t *testing.T) {
	for _, useRSA := range []bool{true, false} {
		m := attesttest.NewSoftTPM(useRSA)
		m.Boot([]byte("loader"), true)
		ev := bare(t, m, attesttest.Statement{Bank: crypto.SHA256, Registers: allRegisters}, crypto.SHA256)
		want, code := verdict(t, ev)
		if code != "" {
			t.Fatalf("RSA %v: %s", useRSA, code)
		}
		raw := ev.Items[1].Data
		if useRSA {
			raw = raw[6:]
		} else {
			raw = slices.Concat(raw[6:38], raw[40:])
		}
		ev.Items[1].Data = raw
		if got, code := verdict(t, ev); code != "" || !reflect.DeepEqual(got, want) {
			t.Errorf("RSA %v, raw signature: %s", useRSA, code)
		}
		if useRSA {
			continue
		}
		ev.Items[1].Data = raw[1:]
		if _, code := verdict(t, ev); code == "" {
			t.Error("a signature cut short was accepted")
		}
	}
}

// The same item twice, a foreign one, one of the parts missing.
func TestParts(t *testing.T) {
	whole := bare(t, tpm(), attesttest.Statement{Bank: crypto.SHA256, Registers: allRegisters}, crypto.SHA256)
	for i, it := range whole.Items {
		ev := whole
		ev.Items = append(slices.Clone(whole.Items), it)
		if _, code := verdict(t, ev); code != attest.CodeMalformed {
			t.Errorf("%s twice: got %q", it.Type, code)
		}
		ev.Items = slices.Delete(slices.Clone(whole.Items), i, i+1)
		if _, code := verdict(t, ev); code != attest.CodeMalformed && code != attest.CodeNoEndorsement {
			t.Errorf("without %s: got %q", it.Type, code)
		}
	}
	ev := whole
	ev.Items = append(slices.Clone(whole.Items), attest.Item{Type: attest.TypeHCLReport, Data: []byte{1}})
	if _, code := verdict(t, ev); code != attest.CodeMalformed {
		t.Errorf("a paravisor's report: got %q", code)
	}
}

// A16: logs of another boot explain nothing, and the quote must cover what a list explains.
func TestA16Logs(t *testing.T) {
	m, other := tpm(), attesttest.NewSoftTPM(false)
	other.Boot([]byte("another loader"), true)
	other.Run("/bin/other", []byte("other"))
	all := attesttest.Statement{Bank: crypto.SHA256, Registers: allRegisters}
	with := func(s attesttest.Statement, itemType string, log []byte) attest.Code {
		ev := bare(t, m, s, crypto.SHA256)
		ev.Items = append(ev.Items, attest.Item{Type: itemType, Data: log})
		_, code := verdict(t, ev)
		return code
	}
	for what, tc := range map[string]struct {
		itemType string
		log      []byte
		want     attest.Code
	}{
		"the log":            {attest.TypeEventLog, m.Log(), ""},
		"another boot's log": {attest.TypeEventLog, other.Log(), attest.CodeReplayMismatch},
		"no log":             {attest.TypeEventLog, []byte("[]"), attest.CodeReplayMismatch},
		"the list":           {attest.TypeIMALog, m.IMA(), ""},
		"another's list":     {attest.TypeIMALog, other.IMA(), attest.CodeReplayMismatch},
		"no list":            {attest.TypeIMALog, []byte("hello"), attest.CodeReplayMismatch},
	} {
		if got := with(all, tc.itemType, tc.log); got != tc.want {
			t.Errorf("%s: got %q, want %q", what, got, tc.want)
		}
	}
	few := attesttest.Statement{Bank: crypto.SHA256, Registers: []int{0, 7}}
	if got := with(few, attest.TypeIMALog, m.IMA()); got != attest.CodePCRSelection {
		t.Errorf("register 10 is not quoted: got %q", got)
	}
}

// E2, E7, E8 for a bare quote: each bit flipped, each byte cut off, each byte appended.
func TestBareQuoteTampered(t *testing.T) {
	ev := bare(t, tpm(), attesttest.Statement{Nonce: []byte("nonce"), Bank: crypto.SHA256, Registers: allRegisters}, crypto.SHA256)
	want, code := verdict(t, ev)
	if code != "" {
		t.Fatal(code)
	}
	for i := range 2 { // statement and signature
		part := ev.Items[i].Data
		for bit := 0; bit < 8*len(part); bit++ {
			ev.Items[i].Data = slices.Clone(part)
			ev.Items[i].Data[bit/8] ^= 1 << (bit % 8)
			if c, _ := verdict(t, ev); c.Genuine {
				t.Errorf("item %d, bit %d: accepted", i, bit)
			}
		}
		for n := range part {
			ev.Items[i].Data = part[:n]
			if c, _ := verdict(t, ev); c.Genuine {
				t.Errorf("item %d, %d bytes: accepted", i, n)
			}
		}
		for _, b := range []byte{0, 1, 0xff} {
			ev.Items[i].Data = append(slices.Clone(part), b)
			if c, _ := verdict(t, ev); c.Genuine {
				t.Errorf("item %d with %#x behind it: accepted", i, b)
			}
		}
		ev.Items[i].Data = part
	}
	part := ev.Items[2].Data
	for bit := 0; bit < 8*len(part); bit++ {
		ev.Items[2].Data = slices.Clone(part)
		ev.Items[2].Data[bit/8] ^= 1 << (bit % 8)
		if c, _ := verdict(t, ev); c.Genuine && !reflect.DeepEqual(c, want) {
			t.Errorf("registers, bit %d: other claims", bit)
		}
	}
	if !bytes.Equal(ev.Items[0].Data[:4], []byte{0xff, 'T', 'C', 'G'}) {
		t.Error("the statement was changed")
	}
}

// Binding: only the evidence over this very report data is bound.
func TestBareNonce(t *testing.T) {
	data := attest.ReportData{1, 2, 3}
	nonce := sha256.Sum256(data[:])
	ev := bare(t, tpm(), attesttest.Statement{Nonce: nonce[:], Bank: crypto.SHA256, Registers: allRegisters}, crypto.SHA256)
	if c, err := vtpm.New(nil).Verify(context.Background(), ev, &data, now); err != nil || !c.Bound || !c.VTPM.NonceVerified {
		t.Errorf("got %+v %v", c, err)
	}
	data[0] ^= 1
	var refusal *attest.Error
	if _, err := vtpm.New(nil).Verify(context.Background(), ev, &data, now); !errors.As(err, &refusal) || refusal.Reason.Code != attest.CodeNotBound {
		t.Errorf("got %v", err)
	}
}

func FuzzBareQuote(f *testing.F) {
	ev := bare(f, tpm(), attesttest.Statement{Nonce: []byte("n"), Bank: crypto.SHA256, Registers: []int{0, 7}}, crypto.SHA256)
	f.Add(ev.Items[0].Data, ev.Items[1].Data, ev.Items[2].Data, ev.Items[3].Data)
	f.Add([]byte("\xffTCG\x80\x18"), []byte{0, 0x18, 0, 0x0b}, []byte("sha256:\n 0 : 0x00\n"), []byte{0x30, 0})
	f.Fuzz(func(t *testing.T, statement, signature, pcrs, public []byte) {
		vtpm.LooksLikeStatement(statement)
		vtpm.LooksLikeSignature(signature)
		vtpm.LooksLikePCRs(pcrs)
		vtpm.LooksLikeKey(public)
		vtpm.Fits(statement, signature, public)
		vtpm.Explains(statement, pcrs)
		c, err := vtpm.New(nil).Verify(context.Background(), attest.Evidence{Kind: attest.KindVTPM, Items: []attest.Item{
			{Type: attest.TypeTPMAttest, Data: statement}, {Type: attest.TypeTPMSignature, Data: signature},
			{Type: attest.TypeTPMPCRs, Data: pcrs}, {Type: attest.TypeTPMPublic, Data: public}}}, nil, now)
		if err == nil != c.Genuine || c.VTPM != nil && c.VTPM.AKTrust != "" {
			t.Error("neither refused nor genuine")
		}
	})
}
