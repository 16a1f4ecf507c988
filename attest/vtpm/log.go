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
	// log and list are the logs themselves where they are short: to compare them is cheaper
	// than to hash them.
	log, list []byte
}

// maxCompared bounds the bytes of logs that are kept to be compared, for each machine.
const maxCompared = 64 << 10

// compared reports whether the logs of b are kept as they are.
func (b bundle) compared() bool { return len(b.log)+len(b.ima) <= maxCompared }

// firmwareRegisters are extended by firmware and boot loader alone.
const firmwareRegisters = 8

// explained compares the logs of a bundle with the quoted values.
func (s *Scheme) explained(b bundle, v verified) (logFacts, error) {
	if b.log == nil && b.ima == nil {
		return logFacts{}, nil
	}
	id := v.logID(b)
	now := time.Unix(1, 0) // what a log says does not depend on the time
	if known, ok := s.logs.Recall(id, now); ok && (!b.compared() || bytes.Equal(known.log, b.log) && bytes.Equal(known.list, b.ima)) {
		return known, nil
	}
	var out logFacts
	if b.log != nil {
		log, err := replayed(b.log, v.banks)
		if err != nil {
			return logFacts{}, err
		}
		if out.boot = log.Facts(bankName(v.bank), v.banks[v.bank].numbered()); out.boot == nil { // nothing of this bank
			out.boot = &mesh.BootFacts{Format: log.Format, Bank: bankName(v.bank), Events: log.Entries}
		}
		out.boot.Unexplained = v.unexplained(log)
	}
	if b.ima != nil {
		var err error
		if out.ima, err = measuredFiles(b.ima, v); err != nil {
			return logFacts{}, err
		}
	}
	if b.compared() {
		out.log, out.list = bytes.Clone(b.log), bytes.Clone(b.ima)
	}
	if len(b.log)+len(b.ima) <= maxKnownLog {
		s.logs.Keep(id, chains.Span{From: now, To: now}, out)
	}
	return out, nil
}

// bootRegisters hold what was started and read, with which command line and owner's keys:
// nobody but firmware, boot loaders and the kernel's stub extends them, and all of these log.
var bootRegisters = []int{2, 4, 8, 9, 12, 14}

// unexplained names those that hold what the log does not show: whoever hands it over can
// leave out a register's events, and the register out of the quote.
func (v verified) unexplained(log eventlog.Log) (out []string) {
	logged := log.Banks[bankName(v.bank)]
	for _, n := range bootRegisters {
		quoted := v.banks[v.bank][n]
		if quoted == nil || logged[n] == nil && !zero(quoted) {
			out = append(out, registerNames[n])
		}
	}
	return out
}

func zero(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b) }

// measuredFiles finds how much of an IMA list the quote covers.
func measuredFiles(raw []byte, v verified) (*mesh.IMAFacts, error) {
	if v.banks.get(v.bank, ima.Register) == nil {
		return nil, refuse(mesh.CodePCRSelection, "quote.selection", "without "+registerNames[ima.Register], "the register of the IMA list", nil)
	}
	facts, err := ima.Explain(raw, bankName(v.bank), v.banks[v.bank].numbered())
	var mismatch *ima.Mismatch
	switch {
	case errors.As(err, &mismatch):
		return nil, refuse(mesh.CodeReplayMismatch, registerNames[ima.Register], mismatch.Got+" by replay", mismatch.Want+" in the quote", err)
	case err != nil:
		return nil, refuse(mesh.CodeReplayMismatch, "ima list", "unreadable", "the list of this boot", err)
	}
	return facts, nil
}

// logID is over all values that logs are compared with, and over logs that are not kept.
func (v verified) logID(b bundle) chains.Key {
	buf := make([]byte, 0, 8<<10) // all that a TPM has fits
	buf = append(buf, byte(v.bank))
	for _, bank := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		for n := range lastRegister + 1 {
			value := v.banks.get(bank, n) // of the bank's size, or nothing
			buf = append(append(buf, byte(len(value))), value...)
		}
	}
	if b.compared() {
		return sha256.Sum256(buf)
	}
	buf = binary.BigEndian.AppendUint64(append(buf, 0xff), uint64(len(b.log))) // no value has 255 bytes
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
		for n, quoted := range quotedBank.numbered() {
			// IMA and the operating system extend registers 8 and up without the log.
			got, logged := bank[n]
			if !logged && (n >= firmwareRegisters || zero(quoted)) {
				continue
			}
			if !bytes.Equal(got, quoted) {
				return log, refuse(mesh.CodeReplayMismatch, registerNames[n], hex.EncodeToString(got)+" by replay", hex.EncodeToString(quoted)+" in the quote", nil)
			}
		}
	}
	return log, nil
}
