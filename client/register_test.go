package client

import (
	"crypto"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/runtimelog"
)

// The runtime log must explain the register that the machine itself keeps of what was started.
func TestRuntimeRegister(t *testing.T) {
	var l, empty runtimelog.Log
	if _, err := l.Append(runtimelog.Event{Type: "service", Name: "inference", Digests: []runtimelog.Digest{{Role: "program", SHA256: [32]byte{1}}}}); err != nil {
		t.Fatal(err)
	}
	log, _ := l.Snapshot()
	none, _ := empty.Snapshot()
	replayed := func(h crypto.Hash) string {
		value, err := runtimelog.ReplayRegister(log, h)
		if err != nil {
			t.Fatal(err)
		}
		return hex.EncodeToString(value)
	}
	zeros := strings.Repeat("00", 32)
	for name, tc := range map[string]struct {
		kind, register, value string
		log                   []byte
		ok                    bool
	}{
		"a TPM's":                       {attest.KindVTPM, "pcr13", replayed(crypto.SHA256), log, true},
		"a TPM's, SHA-384":              {attest.KindVTPM, "pcr13", replayed(crypto.SHA384), log, true},
		"a TD's":                        {attest.KindTDX, "rtmr3", replayed(crypto.SHA384), log, true},
		"started before this process":   {attest.KindVTPM, "pcr13", replayed(crypto.SHA256), none, false},
		"a TD's, before this process":   {attest.KindTDX, "rtmr3", replayed(crypto.SHA384), none, false},
		"something else":                {attest.KindVTPM, "pcr13", strings.Repeat("ab", 32), log, false},
		"no digest":                     {attest.KindVTPM, "pcr13", "abcd", log, false},
		"never extended":                {attest.KindVTPM, "pcr13", zeros, log, true},
		"not quoted":                    {attest.KindVTPM, "pcr4", zeros, log, true},
		"a kind without such registers": {attest.KindSEVSNP, "pcr13", "abcd", log, true},
	} {
		refusal := register(tc.log, attest.Claims{Kind: tc.kind, Registers: map[string]string{tc.register: tc.value}})
		if (refusal == nil) != tc.ok {
			t.Errorf("%s: %v", name, refusal)
		}
		if refusal != nil && refusal.Code() != attest.CodeReplayMismatch {
			t.Errorf("%s: %s", name, refusal.Code())
		}
	}
}
