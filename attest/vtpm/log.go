package vtpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"time"

	"github.com/google/go-eventlog/extract"
	"github.com/google/go-eventlog/proto/state"
	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tpmeventlog"

	mesh "github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/chains"
	"github.com/attestmesh/meshnode/attest/eventlog"
)

// bootLog is what an event log that explains the quoted registers says.
type bootLog struct {
	secureBoot *bool // nil: not said by an event whose data are authentic
}

// firmwareRegisters are extended by firmware and boot loader alone.
const firmwareRegisters = 8

// explained compares an event log with the quoted values of every bank; nil for no log.
func (s *Scheme) explained(raw []byte, v verified) (*bootLog, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	id := v.logID(raw)
	now := time.Unix(1, 0) // what a log says does not depend on the time
	if known, ok := s.logs.Recall(id, now); ok {
		return &known, nil
	}
	if err := replayed(raw, v.banks); err != nil {
		return nil, err
	}
	out := bootLog{secureBoot: secureBoot(raw, v)}
	s.logs.Keep(id, chains.Span{From: now, To: now}, out)
	return &out, nil
}

// logID is over the log and all values it is compared with.
func (v verified) logID(raw []byte) chains.Key {
	h := sha256.New()
	h.Write(mesh.LengthPrefixed(nil, []byte(bankName(v.bank))))
	for _, bank := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		for n := range lastRegister + 1 {
			h.Write(mesh.LengthPrefixed(nil, v.banks[bank][n]))
		}
	}
	h.Write(raw)
	return chains.Key(h.Sum(nil))
}

// replayed compares a log with quoted values.
func replayed(raw []byte, banks values) error {
	log, err := eventlog.Parse(raw)
	if err != nil {
		return refuse(mesh.CodeReplayMismatch, "event log", "unreadable", "the log of this boot", err)
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
				return refuse(mesh.CodeReplayMismatch, registerNames[n], hex.EncodeToString(got)+" by replay", hex.EncodeToString(quoted)+" in the quote", nil)
			}
		}
	}
	return nil
}

var stateBanks = map[crypto.Hash]state.HashAlgo{crypto.SHA1: state.HashAlgo_SHA1, crypto.SHA256: state.HashAlgo_SHA256,
	crypto.SHA384: state.HashAlgo_SHA384, crypto.SHA512: state.HashAlgo_SHA512}

// secureBoot is what go-eventlog extracts from the log, nil if it cannot. The library looks
// at data only where they hash to the replayed digest.
func secureBoot(raw []byte, v verified) *bool {
	bank := register.PCRBank{TCGHashAlgo: stateBanks[v.bank]}
	for n, value := range v.banks[v.bank] {
		bank.PCRs = append(bank.PCRs, register.PCR{Index: n, Digest: value, DigestAlg: v.bank})
	}
	slices.SortFunc(bank.PCRs, func(a, b register.PCR) int { return a.Index - b.Index })
	found, err := tpmeventlog.ReplayAndExtract(raw, bank, extract.Opts{Loader: extract.UnsupportedLoader})
	if err != nil || found.GetSecureBoot() == nil {
		return nil
	}
	on := found.GetSecureBoot().GetEnabled()
	return &on
}
