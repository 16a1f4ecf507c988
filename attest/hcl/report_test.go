package hcl

import (
	"context"
	"encoding/hex"
	"errors"
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
