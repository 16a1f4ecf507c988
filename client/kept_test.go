package client

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
)

// kept is a receipt that a proxy kept, with the genesis of its mesh: real processes made them.
func keptFiles(t testing.TB) (genesis, raw []byte) {
	t.Helper()
	genesis, err := os.ReadFile(filepath.Join("testdata", "kept", "genesis.json"))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile(filepath.Join("testdata", "kept", "receipt.json")); err != nil {
		t.Fatal(err)
	}
	return genesis, raw
}

// A receipt that was kept is verified for ever, without a network and whatever the time.
func TestKeptReceipt(t *testing.T) {
	genesis, raw := keptFiles(t)
	v, err := NewVerifier(genesis, Policy{Organisations: []identity.OrgID{"bob"}})
	if err != nil {
		t.Fatal(err)
	}
	k, err := DecodeKept(raw)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := k.Encode(); err != nil || !bytes.Equal(back, raw) {
		t.Errorf("encodes differently: %v", err)
	}
	r, s, err := v.VerifyKept(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	if r.Service != "triage" || r.Node.String() != "bob/n1" || r.Request.Path != "/classify" || !s.Simulated() || s.Claims.Measurement == "" {
		t.Errorf("%+v", r)
	}
	if other, err := NewVerifier(genesis, Policy{Organisations: []identity.OrgID{"alpha"}}); err != nil {
		t.Fatal(err)
	} else if _, _, err := other.VerifyKept(t.Context(), k); err == nil || !strings.Contains(err.Error(), "wrong_organisation") {
		t.Errorf("a policy that wants another organisation: %v", err)
	}
	known := Policy{Services: map[string]Service{"triage": {Programs: []service.Digest{{1}}}}}
	if other, err := NewVerifier(genesis, known); err != nil {
		t.Fatal(err)
	} else if _, _, err := other.VerifyKept(t.Context(), k); err == nil || !strings.Contains(err.Error(), "program_not_allowed") {
		t.Errorf("a policy that wants another program: %v", err)
	}
}

// Each part of the file carries the verdict: with any of them changed there is none.
func TestKeptReceiptIsWhole(t *testing.T) {
	genesis, raw := keptFiles(t)
	for name, change := range map[string]func(*Kept){
		"the receipt":        func(k *Kept) { k.Receipt = bytes.Replace(k.Receipt, []byte(`"payload":"e`), []byte(`"payload":"f`), 1) },
		"the nonce":          func(k *Kept) { k.Sighting.Nonce[0]++ },
		"the exporter":       func(k *Kept) { k.Sighting.EKM[0]++ },
		"a day later":        func(k *Kept) { k.Sighting.At = k.Sighting.At.Add(24 * time.Hour) },
		"minutes later":      func(k *Kept) { k.Sighting.At = k.Sighting.At.Add(6 * time.Minute) },
		"a day earlier":      func(k *Kept) { k.Sighting.At = k.Sighting.At.Add(-24 * time.Hour) },
		"no runtime log":     func(k *Kept) { k.Sighting.Answer.RuntimeLog = []byte{0x80} },
		"no heads":           func(k *Kept) { k.Sighting.Answer.Heads.Statements = k.Sighting.Answer.Heads.Statements[:1] },
		"a cut chain":        func(k *Kept) { k.Sighting.Answer.Policy = k.Sighting.Answer.Policy[:1] },
		"another's name":     func(k *Kept) { k.Sighting.Answer.Peer = k.Sighting.Answer.Peer[:len(k.Sighting.Answer.Peer)-1] + "x" },
		"flipped evidence":   func(k *Kept) { k.Sighting.Answer.Proof[len(k.Sighting.Answer.Proof)/2] ^= 1 },
		"no Credential":      func(k *Kept) { k.Sighting.Answer.Credential = []byte("{}") },
		"another checkpoint": func(k *Kept) { k.Sighting.Answer.Checkpoint = []byte("x") },
	} {
		k, err := DecodeKept(raw)
		if err != nil {
			t.Fatal(err)
		}
		change(&k)
		v, err := NewVerifier(genesis, Policy{})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := v.VerifyKept(t.Context(), k); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	for name, bad := range map[string][]byte{
		"white space": append([]byte(" "), raw...), "trailing": append(bytes.Clone(raw), '\n'), "cut": raw[:len(raw)-3],
		"unknown field": bytes.Replace(raw, []byte(`{"receipt"`), []byte(`{"x":1,"receipt"`), 1), "too large": make([]byte, MaxKept+1),
	} {
		if _, err := DecodeKept(bad); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}
