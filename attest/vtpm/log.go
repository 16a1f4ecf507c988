package vtpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/attest/eventlog"
	"github.com/attestmesh/meshnode/attest/ima"
)

// logFacts are what logs that explain the quoted registers say, nil without such a log. They
// are shared between claims and never changed.
type logFacts struct {
	boot *mesh.BootFacts
	ima  *mesh.IMAFacts
}

// firmwareRegisters are extended by firmware and boot loader alone.
const firmwareRegisters = 8

// explained compares the logs of a bundle with the quoted values.
func (s *Scheme) explained(b bundle, v verified) (logFacts, error) {
	if b.log == nil && b.ima == nil {
		return logFacts{}, nil
	}
	id := v.logID(b)
	now := time.Unix(1, 0) // what a log says does not depend on the time
	if known, ok := s.logs.Recall(id, now); ok {
		return known, nil
	}
	var out logFacts
	if b.log != nil {
		log, err := replayed(b.log, v.banks)
		if err != nil {
			return logFacts{}, err
		}
		if out.boot = log.Facts(bankName(v.bank), v.banks[v.bank]); out.boot == nil { // nothing of this bank
			out.boot = &mesh.BootFacts{Format: log.Format, Bank: bankName(v.bank), Events: log.Entries}
		}
	}
	if b.ima != nil {
		var err error
		if out.ima, err = measuredFiles(b.ima, v); err != nil {
			return logFacts{}, err
		}
	}
	s.logs.Keep(id, chains.Span{From: now, To: now}, out)
	return out, nil
}

// measuredFiles finds how much of an IMA list the quote covers.
func measuredFiles(raw []byte, v verified) (*mesh.IMAFacts, error) {
	if v.banks[v.bank][ima.Register] == nil {
		return nil, refuse(mesh.CodePCRSelection, "quote.selection", "without "+registerNames[ima.Register], "the register of the IMA list", nil)
	}
	facts, err := ima.Explain(raw, bankName(v.bank), v.banks[v.bank])
	var mismatch *ima.Mismatch
	switch {
	case errors.As(err, &mismatch):
		return nil, refuse(mesh.CodeReplayMismatch, registerNames[ima.Register], mismatch.Got+" by replay", mismatch.Want+" in the quote", err)
	case err != nil:
		return nil, refuse(mesh.CodeReplayMismatch, "ima list", "unreadable", "the list of this boot", err)
	}
	return facts, nil
}

// logID is over the logs and all values they are compared with.
func (v verified) logID(b bundle) chains.Key {
	buf := make([]byte, 0, 8<<10) // all that a TPM has fits
	buf = append(buf, byte(v.bank))
	for _, bank := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		for n := range lastRegister + 1 {
			value := v.banks[bank][n] // of the bank's size, or nothing
			buf = append(append(buf, byte(len(value))), value...)
		}
	}
	buf = binary.BigEndian.AppendUint64(buf, uint64(len(b.log)))
	h := sha256.New()
	h.Write(buf)
	h.Write(b.log)
	h.Write(b.ima)
	return chains.Key(h.Sum(nil))
}

// replayed compares a log with quoted values.
func replayed(raw []byte, banks values) (eventlog.Log, error) {
	log, err := eventlog.Parse(raw)
	if err != nil {
		return log, refuse(mesh.CodeReplayMismatch, "event log", "unreadable", "the log of this boot", err)
	}
	if log.Format != eventlog.FormatTCG {
		return log, refuse(mesh.CodeReplayMismatch, "event log", log.Format, "the log of a TPM's machine", nil)
	}
	for hash, quotedBank := range banks {
		bank := log.Banks[bankName(hash)]
		for n, quoted := range quotedBank {
			// IMA and the operating system extend registers 8 and up without the log.
			got, logged := bank[n]
			if !logged && (n >= firmwareRegisters || bytes.Count(quoted, []byte{0}) == len(quoted)) {
				continue
			}
			if !bytes.Equal(got, quoted) {
				return log, refuse(mesh.CodeReplayMismatch, registerNames[n], hex.EncodeToString(got)+" by replay", hex.EncodeToString(quoted)+" in the quote", nil)
			}
		}
	}
	return log, nil
}
