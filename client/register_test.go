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
		want                  attest.Code // "" accepts
	}{
		"a TPM's":                       {attest.KindVTPM, "pcr13", replayed(crypto.SHA256), log, ""},
		"a TPM's, SHA-384":              {attest.KindVTPM, "pcr13", replayed(crypto.SHA384), log, ""},
		"a TD's":                        {attest.KindTDX, "rtmr3", replayed(crypto.SHA384), log, ""},
		"started before this process":   {attest.KindVTPM, "pcr13", replayed(crypto.SHA256), none, attest.CodeReplayMismatch},
		"a TD's, before this process":   {attest.KindTDX, "rtmr3", replayed(crypto.SHA384), none, attest.CodeReplayMismatch},
		"something else":                {attest.KindVTPM, "pcr13", strings.Repeat("ab", 32), log, attest.CodeReplayMismatch},
		"no digest":                     {attest.KindVTPM, "pcr13", "abcd", log, attest.CodeReplayMismatch},
		"never extended":                {attest.KindVTPM, "pcr13", zeros, log, ""},
		"not quoted":                    {attest.KindVTPM, "pcr4", zeros, log, attest.CodePCRSelection},
		"a TD's, not quoted":            {attest.KindTDX, "rtmr2", zeros, log, attest.CodePCRSelection},
		"beside a TEE":                  {attest.KindSEVSNP + "," + attest.KindVTPM, "pcr13", replayed(crypto.SHA256), log, ""},
		"beside a TEE, something else":  {attest.KindTDX + "," + attest.KindVTPM, "pcr13", strings.Repeat("ab", 32), log, attest.CodeReplayMismatch},
		"a kind without such registers": {attest.KindSEVSNP, "pcr13", "abcd", log, ""},
	} {
		refusal := register(tc.log, attest.Claims{Kind: tc.kind, Registers: map[string]string{tc.register: tc.value}})
		if (refusal == nil) != (tc.want == "") {
			t.Errorf("%s: %v", name, refusal)
		}
		if refusal != nil && refusal.Code() != tc.want {
			t.Errorf("%s: %s", name, refusal.Code())
		}
	}
}
