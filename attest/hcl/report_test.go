package hcl

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

// td is a scheme of kind tdx that is never asked.
type td struct{ attest.Scheme }

func (td) Kind() string { return attest.KindTDX }

// machine is a TPM without a register for events.
type machine struct{ Machine }

func code(err error) attest.Code {
	var refused *attest.Error
	if errors.As(err, &refused) {
		return refused.Reason.Code
	}
	return ""
}

// TestVouches: the report must carry the hash, and be the paravisor's own, of VMPL 0: one of a
// guest below it can carry the same.
func TestVouches(t *testing.T) {
	var r Report
	r.ReportData[0] = 1
	claims := func(vmpl uint32) attest.Claims {
		return attest.Claims{ReportData: hex.EncodeToString(r.ReportData[:]), SEVSNP: &attest.SEVSNPClaims{VMPL: vmpl}}
	}
	if err := vouches(claims(0), r); err != nil {
		t.Fatal(err)
	}
	for vmpl := range uint32(3) {
		if err := vouches(claims(vmpl+1), r); code(err) != attest.CodeAKBinding {
			t.Errorf("VMPL %d: %v", vmpl+1, err)
		}
	}
	if err := vouches(claims(0), Report{}); code(err) != attest.CodeAKBinding {
		t.Errorf("other data: %v", err)
	}
}

// report is one of a TEE of a type, over a key of its own.
func report(t *testing.T, tee byte) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes() // 4, X, Y
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString
	runtime := fmt.Appendf(nil, `{"keys":[{"kid":"HCLAkPub","kty":"EC","crv":"P-256","x":%q,"y":%q}]}`, text(point[1:33]), text(point[33:]))
	out := append([]byte("HCLA\x01"), make([]byte, claimsAt-5)...)
	for _, word := range []uint32{uint32(len(runtime) + claimsHeader), 1, uint32(tee), 1, uint32(len(runtime))} {
		out = binary.LittleEndian.AppendUint32(out, word)
	}
	return append(out, runtime...)
}

// TestSplit: one report, of this scheme's TEE, and a quote of a TPM.
func TestSplit(t *testing.T) {
	s := &Scheme{tee: td{}}
	ours := attest.Item{Type: attest.TypeHCLReport, Data: report(t, typeTDX)}
	theirs := attest.Item{Type: attest.TypeHCLReport, Data: report(t, typeSEVSNP)}
	item := func(kind string) attest.Item { return attest.Item{Type: kind, Data: []byte{1}} }
	tpm, quote := item(attest.TypeTPMQuote), item(attest.TypeTDXQuote)
	if _, err := s.split(attest.Evidence{Kind: s.Kind(), Items: []attest.Item{ours, tpm, quote}}); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		kind  string
		items []attest.Item
		want  string
	}{
		"an empty item":    {s.Kind(), []attest.Item{ours, tpm, quote, {Type: attest.TypeCRL}}, "has 0 bytes"},
		"another kind":     {"sevsnp,vtpm", []attest.Item{ours, tpm, quote}, `kind "sevsnp,vtpm", want`},
		"two reports":      {s.Kind(), []attest.Item{ours, ours, tpm, quote}, "two HCL reports"},
		"no report":        {s.Kind(), []attest.Item{item(attest.TypeHCLReport), tpm, quote}, "HCL report: 1 bytes"},
		"of another TEE":   {s.Kind(), []attest.Item{theirs, tpm, quote}, "a report of kind sevsnp, want tdx"},
		"no quote of TPMs": {s.Kind(), []attest.Item{ours, quote}, "no quote of a TPM"},
	} {
		if _, err := s.split(attest.Evidence{Kind: tc.kind, Items: tc.items}); code(err) != attest.CodeMalformed || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// TestTDWithoutQuote: a TD's report is evidence for nobody but its own machine.
func TestTDWithoutQuote(t *testing.T) {
	s := &Scheme{tee: td{}}
	if _, err := s.split(attest.Evidence{Kind: s.Kind(), Items: []attest.Item{{Type: attest.TypeTPMQuote, Data: []byte{1}}}}); code(err) != attest.CodeNoEndorsement {
		t.Errorf("got %v", err)
	}
}

// TestCannotExtend: a TPM that has no way to says so.
func TestCannotExtend(t *testing.T) {
	if err := NewAttester(machine{}).Extend(context.Background(), []byte("event")); err == nil {
		t.Error("extended")
	}
}
