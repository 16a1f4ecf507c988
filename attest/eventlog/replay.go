package eventlog

import (
	"bytes"
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"strings"
)

// Formats of logs.
const (
	FormatTCG    = "tcg"    // a TPM's, crypto-agile
	FormatLegacy = "sha1"   // a TPM's, with SHA-1 digests only
	FormatCCEL   = "ccel"   // a TD's
	FormatDstack = "dstack" // a TD's, in JSON
)

// Log is a replayed log.
type Log struct {
	Format  string
	Entries int
	Banks   map[string]map[int][]byte // bank name, register number, value
	events  []event
}

// bankNames of the hashes that logs use.
var bankNames = map[crypto.Hash]string{crypto.SHA1: "sha1", crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}

// Registers returns all replayed registers under the names of the package comment.
func (l Log) Registers() map[string]string {
	out := map[string]string{}
	for bank, regs := range l.Banks {
		for n, v := range regs {
			if l.confidential() {
				out[fmt.Sprintf("rtmr%d", n)] = hex.EncodeToString(v)
			} else {
				out[fmt.Sprintf("%s:pcr%d", bank, n)] = hex.EncodeToString(v)
			}
		}
	}
	return out
}

// confidential reports whether the registers are RTMRs.
func (l Log) confidential() bool { return l.Format == FormatCCEL || l.Format == FormatDstack }

// Parse replays a TCG or dstack log.
func Parse(raw []byte) (Log, error) {
	if len(raw) > MaxLog {
		return Log{}, fmt.Errorf("event log: %d bytes, the limit is %d", len(raw), MaxLog)
	}
	if len(raw) >= 48 && bytes.Equal(raw[32:48], specID) {
		events, banks, err := agileEvents(raw)
		if err != nil {
			return Log{}, err
		}
		return replayed(FormatTCG, events, banks)
	}
	if events, err := legacyEvents(raw); err == nil {
		return replayed(FormatLegacy, events, []crypto.Hash{crypto.SHA1})
	}
	return parseDstack(raw)
}

func replayed(format string, events []event, banks []crypto.Hash) (Log, error) {
	out := Log{Format: format, Entries: len(events), events: events, Banks: map[string]map[int][]byte{}}
	for _, bank := range banks {
		regs, err := replay(events, bank)
		if err != nil {
			return Log{}, err
		}
		out.Banks[bankNames[bank]] = regs
	}
	// Only a CC log has SHA-384 alone and nothing beyond register 4; register 0, MRTD, is
	// never extended, whereas every firmware extends PCR 0.
	if sha384 := out.Banks["sha384"]; len(banks) == 1 && sha384 != nil && format == FormatTCG && onlyRTMRs(sha384) {
		out.Format = FormatCCEL
		rtmrs := map[int][]byte{}
		for n, v := range sha384 {
			rtmrs[n-1] = v
		}
		out.Banks["sha384"] = rtmrs
		for i := range events {
			events[i].register--
		}
	}
	return out, nil
}

func onlyRTMRs(regs map[int][]byte) bool {
	for n := range regs {
		if n < 1 || n > 4 {
			return false
		}
	}
	return true
}

// replay extends the events of one bank in order.
func replay(events []event, hash crypto.Hash) (map[int][]byte, error) {
	regs, holes := map[int][]byte{}, map[int]bool{}
	locality := byte(0)
	for i, e := range events {
		if e.kind == evNoAction {
			if e.register == 0 && len(e.data) == 17 && strings.HasPrefix(string(e.data), "StartupLocality\x00") {
				locality = e.data[16]
			}
			continue
		}
		digest := e.digests.of(hash)
		if digest == nil {
			holes[e.register] = true
			continue
		}
		value, begun := regs[e.register]
		if !begun {
			value = make([]byte, hash.Size())
			if e.register == 0 {
				value[len(value)-1] = locality
			}
		}
		if e.kind == evHCRTM {
			if begun {
				return nil, fmt.Errorf("event log: event %d is an H-CRTM event that is not first", i)
			}
			value[len(value)-1] = 4
		}
		regs[e.register] = extend(hash, value, digest)
	}
	for n := range holes {
		delete(regs, n)
	}
	return regs, nil
}

func extend(hash crypto.Hash, value, digest []byte) []byte {
	var buffer [128]byte
	return sum(hash, append(append(buffer[:0], value...), digest...))
}

// sum is hash's digest of data.
func sum(hash crypto.Hash, data []byte) []byte {
	switch hash { // without the memory that hash.Hash takes
	case crypto.SHA1:
		s := sha1.Sum(data)
		return s[:]
	case crypto.SHA256:
		s := sha256.Sum256(data)
		return s[:]
	case crypto.SHA384:
		s := sha512.Sum384(data)
		return s[:]
	}
	s := sha512.Sum512(data)
	return s[:]
}
