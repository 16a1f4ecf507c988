package attest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
)

// TestSaltedEvidence: the salt rides along, opens the commitment to the chip that the hardware
// names and to no other, and a scheme by itself knows nothing of it.
func TestSaltedEvidence(t *testing.T) {
	snp, td := attesttest.NewSEVSNP("Milan", 3), attesttest.NewTDX("salt")
	salt := [attest.SaltSize]byte{7}
	data := attest.ReportData{1}
	now := time.Now()
	seen := map[string]bool{}
	for _, m := range []struct {
		kind     string
		scheme   attest.Scheme
		attester *attesttest.Attester
	}{
		{attest.KindSEVSNP, snp.Scheme(), snp.Attester(attesttest.Measurement("x"))},
		{attest.KindSEVSNP, snp.Scheme(), snp.Attester(attesttest.Measurement("x"))}, // another chip
		{attest.KindTDX, td.Scheme(), td.Attester(attesttest.Measurement("x"))},
	} {
		ev, err := attest.Salted(m.attester, salt).Attest(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := ev.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if ev, err = attest.DecodeEvidence(raw); err != nil {
			t.Fatal(err)
		}
		c, err := attest.Verify(t.Context(), m.scheme, ev, &data, now)
		if err != nil {
			t.Fatal(err)
		}
		want, err := attest.HardwareCommitment(salt, m.kind, c.HardwareID)
		if err != nil || c.Hardware != want || !c.Bound || seen[want] {
			t.Errorf("%s: %q, want %q (%v)", m.kind, c.Hardware, want, err)
		}
		seen[want] = true
		if _, err := m.scheme.Verify(t.Context(), ev, &data, now); code(err) != attest.CodeMalformed {
			t.Errorf("%s: the scheme alone: %v", m.kind, err)
		}
		plain, err := m.attester.Attest(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := attest.Verify(t.Context(), m.scheme, plain, &data, now); err != nil || c.Hardware != "" || c.HardwareID == "" {
			t.Errorf("%s without a salt: %q %v", m.kind, c.Hardware, err)
		}
		for name, extra := range map[string][]attest.Item{
			"two":   {{Type: attest.TypeHardwareSalt, Data: salt[:]}, {Type: attest.TypeHardwareSalt, Data: salt[:]}},
			"short": {{Type: attest.TypeHardwareSalt, Data: salt[:31]}},
			"long":  {{Type: attest.TypeHardwareSalt, Data: append(salt[:], 0)}},
		} {
			bad := plain
			bad.Items = append(bad.Items[:len(bad.Items):len(bad.Items)], extra...)
			if _, err := attest.Verify(t.Context(), m.scheme, bad, &data, now); code(err) != attest.CodeMalformed {
				t.Errorf("%s: %s salts: %v", m.kind, name, err)
			}
		}
	}
	masked := snp.Attester(attesttest.Measurement("x"))
	masked.Forge(attesttest.MaskedChip)
	ev, err := attest.Salted(masked, salt).Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := attest.Verify(t.Context(), snp.Scheme(), ev, &data, now); err != nil || c.Hardware != "" {
		t.Errorf("a masked chip: %q %v", c.Hardware, err)
	}
}

func code(err error) attest.Code {
	var e *attest.Error
	if errors.As(err, &e) {
		return e.Reason.Code
	}
	return ""
}

// register is an attester with a register and something to close.
type register struct {
	attest.Attester
	events, closed int
}

func (r *register) Extend(context.Context, []byte) error { r.events++; return nil }
func (r *register) Close() error                         { r.closed++; return nil }

// TestSaltedAttester: what else an attester can do, it still can.
func TestSaltedAttester(t *testing.T) {
	plain := attesttest.NewSEVSNP("Milan", 3).Attester(attesttest.Measurement("x"))
	r := &register{Attester: plain}
	a := attest.Salted(r, [attest.SaltSize]byte{})
	if err := a.(attest.Extender).Extend(t.Context(), []byte("e")); err != nil || r.events != 1 {
		t.Errorf("%d events, %v", r.events, err)
	}
	if err := a.(interface{ Close() error }).Close(); err != nil || r.closed != 1 || a.Kind() != attest.KindSEVSNP {
		t.Errorf("closed %d times, %v", r.closed, err)
	}
	without := attest.Salted(plain, [attest.SaltSize]byte{})
	if err := without.(attest.Extender).Extend(t.Context(), []byte("e")); err != nil {
		t.Error(err)
	}
	plain.Fail(attesttest.ErrDevice)
	if _, err := without.Attest(t.Context(), attest.ReportData{}); !errors.Is(err, attesttest.ErrDevice) {
		t.Errorf("got %v", err)
	}
}
