// Package eventlog replays logs of measurements into the registers they claim to explain.
// A log proves nothing by itself: whoever holds a quote compares the replayed registers
// with the quoted ones. Nothing here is ever "genuine".
//
// Formats:
//
//   - TCG: the crypto-agile event log of the TCG PC Client Platform Firmware Profile
//     (Spec ID Event03), as firmware makes it for a TPM or, with registers 1 to 4 standing
//     for RTMR0 to RTMR3, for a TDX guest (CCEL, UEFI 2.10 §38.4.1). Parsed by go-eventlog,
//     replayed here: EV_NO_ACTION does not extend, StartupLocality and H-CRTM events set
//     the initial value of PCR 0.
//   - dstack: a JSON list of {imr, event_type, digest, event, event_payload}; SHA-384.
//
// Registers are named BANK:pcrN; for CCEL and dstack rtmrN.
package eventlog

import (
	"bytes"
	"crypto"
	_ "crypto/sha1" // banks of the formats above
	_ "crypto/sha256"
	_ "crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-eventlog/register"
	"github.com/google/go-eventlog/tcg"
)

// Log is a replayed log.
type Log struct {
	Format  string // "tcg", "ccel", "dstack"
	Entries int
	Banks   map[string]map[int][]byte // bank name, register number, value
}

// bankNames of the hashes that logs use.
var bankNames = map[crypto.Hash]string{crypto.SHA1: "sha1", crypto.SHA256: "sha256", crypto.SHA384: "sha384"}

// Registers returns all replayed registers under the names of the package comment.
func (l Log) Registers() map[string]string {
	out := map[string]string{}
	for bank, regs := range l.Banks {
		for n, v := range regs {
			switch l.Format {
			case "ccel", "dstack":
				out[fmt.Sprintf("rtmr%d", n)] = hex.EncodeToString(v)
			default:
				out[fmt.Sprintf("%s:pcr%d", bank, n)] = hex.EncodeToString(v)
			}
		}
	}
	return out
}

// IsTCG reports whether raw begins as a crypto-agile TCG log.
func IsTCG(raw []byte) bool {
	return len(raw) > 48 && bytes.Equal(raw[32:48], []byte("Spec ID Event03\x00"))
}

// Parse replays a TCG or dstack log.
func Parse(raw []byte) (Log, error) {
	if len(raw) > MaxLog {
		return Log{}, fmt.Errorf("event log: %d bytes, the limit is %d", len(raw), MaxLog)
	}
	if IsTCG(raw) {
		return parseTCG(raw)
	}
	return parseDstack(raw)
}

func parseTCG(raw []byte) (out Log, err error) {
	defer contain(&err)
	parsed, err := tcg.ParseEventLog(raw, tcg.ParseOpts{AllowPadding: true})
	if err != nil {
		return Log{}, fmt.Errorf("event log: %w", err)
	}
	out = Log{Format: "tcg", Banks: map[string]map[int][]byte{}}
	highest := 0
	for _, alg := range parsed.Algs {
		hash := register.HashAlg(alg).CryptoHash()
		name, ok := bankNames[hash]
		if !ok {
			continue
		}
		events := parsed.Events(alg)
		if len(events) > MaxEvents {
			return Log{}, fmt.Errorf("event log: %d events, the limit is %d", len(events), MaxEvents)
		}
		out.Entries = len(events)
		regs, err := replay(events, hash)
		if err != nil {
			return Log{}, err
		}
		for n := range regs {
			highest = max(highest, n)
		}
		out.Banks[name] = regs
	}
	// Only a CC log has SHA-384 alone and nothing beyond register 4; register 0, MRTD, is
	// never extended.
	if sha384 := out.Banks["sha384"]; len(out.Banks) == 1 && sha384 != nil && sha384[0] == nil && highest <= 4 {
		out.Format = "ccel"
		rtmrs := map[int][]byte{}
		for n, v := range sha384 {
			rtmrs[n-1] = v
		}
		out.Banks["sha384"] = rtmrs
	}
	return out, nil
}

// replay extends the events of one bank in order.
func replay(events []tcg.Event, hash crypto.Hash) (map[int][]byte, error) {
	const noAction, hcrtm = 0x3, 0x80000010
	regs := map[int][]byte{}
	locality := byte(0)
	for i, e := range events {
		if e.Index < 0 || e.Index > 23 {
			if e.Type == noAction {
				continue
			}
			return nil, fmt.Errorf("event log: event %d extends register %d, want 0 to 23", i, e.Index)
		}
		if e.Type == noAction {
			if e.Index == 0 && len(e.Data) == 17 && strings.HasPrefix(string(e.Data), "StartupLocality") {
				locality = e.Data[16]
			}
			continue
		}
		if len(e.Digest) != hash.Size() {
			return nil, fmt.Errorf("event log: event %d has no %s digest", i, bankNames[hash])
		}
		value, begun := regs[e.Index]
		if !begun {
			value = make([]byte, hash.Size())
			if e.Index == 0 {
				value[len(value)-1] = locality
			}
		}
		if uint32(e.Type) == hcrtm {
			if begun {
				return nil, fmt.Errorf("event log: event %d is an H-CRTM event that is not first", i)
			}
			value[len(value)-1] = 4
		}
		regs[e.Index] = extend(hash, value, e.Digest)
	}
	return regs, nil
}

func extend(hash crypto.Hash, value, digest []byte) []byte {
	h := hash.New()
	h.Write(value)
	h.Write(digest)
	return h.Sum(nil)
}

// contain turns a panic of a vendor's parser into an error.
func contain(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("event log: the parser failed: %v", r)
	}
}

type dstackEvent struct {
	IMR     int    `json:"imr"`
	Type    uint32 `json:"event_type"`
	Digest  string `json:"digest"`
	Event   string `json:"event"`
	Payload string `json:"event_payload"`
}

func parseDstack(raw []byte) (Log, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var events []dstackEvent
	if err := dec.Decode(&events); err != nil {
		return Log{}, fmt.Errorf("event log: neither a TCG log nor dstack's JSON: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Log{}, fmt.Errorf("event log: data after the list of events")
	}
	if len(events) == 0 || len(events) > MaxEvents {
		return Log{}, fmt.Errorf("event log: %d events, want 1 to %d", len(events), MaxEvents)
	}
	regs := map[int][]byte{}
	for i, e := range events {
		digest, err := hex.DecodeString(e.Digest)
		if err != nil || len(digest) != crypto.SHA384.Size() || e.IMR < 0 || e.IMR > 3 {
			return Log{}, fmt.Errorf("event log: event %d: want a SHA-384 digest for RTMR 0 to 3", i)
		}
		if regs[e.IMR] == nil {
			regs[e.IMR] = make([]byte, crypto.SHA384.Size())
		}
		regs[e.IMR] = extend(crypto.SHA384, regs[e.IMR], digest)
	}
	return Log{Format: "dstack", Entries: len(events), Banks: map[string]map[int][]byte{"sha384": regs}}, nil
}
