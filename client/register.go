package client

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/runtimelog"
)

// runtimeRegisters are those into which nodes extend every event, by kind.
var runtimeRegisters = map[string]string{attest.KindTDX: "rtmr3", attest.KindVTPM: "pcr13",
	attest.KindSEVSNP + "," + attest.KindVTPM: "pcr13", attest.KindTDX + "," + attest.KindVTPM: "pcr13"}

// register demands that the machine's own register, where it has one and it was ever extended,
// holds the events of log and no others: those of a process before this one, too. Which
// registers of a TPM are quoted is the node's choice: one that leaves this one out hides it.
func register(log []byte, claims attest.Claims) *Refusal {
	name := runtimeRegisters[claims.Kind]
	if name == "" {
		return nil // the head alone binds the log
	}
	got, err := hex.DecodeString(claims.Registers[name])
	if err != nil || len(got) == 0 {
		return refuse(attest.CodePCRSelection, name, "not quoted", "the register of the runtime log")
	}
	if bytes.Count(got, []byte{0}) == len(got) {
		return nil // never extended: the head alone binds the log
	}
	hash, known := map[int]crypto.Hash{sha256.Size: crypto.SHA256, sha512.Size384: crypto.SHA384, sha512.Size: crypto.SHA512}[len(got)]
	if !known {
		return refuse(attest.CodeReplayMismatch, name, fmt.Sprintf("%d bytes", len(got)), "a digest")
	}
	want, err := runtimelog.ReplayRegister(log, hash)
	if err != nil {
		return refuse(attest.CodeMalformed, "runtime log", err.Error(), "a canonical log")
	}
	if !bytes.Equal(got, want) {
		r := refuse(attest.CodeReplayMismatch, name, claims.Registers[name], hex.EncodeToString(want)+" by the runtime log")
		r.Reasons[0].Remedy = "reboot the machine: something else was started on it since its boot, perhaps by an earlier process of the node"
		return r
	}
	return nil
}
