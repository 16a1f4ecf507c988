// Package eventlog replays logs of measurements into the registers they claim to explain,
// and says what those registers prove about a boot. A log proves nothing by itself: whoever
// holds a quote compares the replayed registers with the quoted ones.
//
// # Formats
//
// TCG crypto-agile (PC Client Platform Firmware Profile, PFP, §10.2), little endian: a
// header event {u32 register, u32 type EV_NO_ACTION, 20 zero bytes, u32 length, Spec ID
// Event03 with the banks' algorithms and digest sizes}, then events
//
//	u32 register, u32 type, u32 count, count × {u16 algorithm, digest}, u32 length, data
//
// As firmware makes it for a TPM or, with registers 1 to 4 standing for RTMR0 to RTMR3, for
// a TDX guest (CCEL, UEFI 2.10 §38.4.1). A log copied with the memory area it lies in ends
// in 16 or more bytes of 0xff or of 0x00.
//
// TCG of TPM 1.2 and early TPM 2.0 firmware (same, §10.2.1): every event is {u32 register,
// u32 type, 20-byte SHA-1, u32 length, data}; the first may be a Spec ID Event00 or 02.
//
// dstack: a JSON list of {imr, event_type, digest, event, event_payload}; SHA-384.
//
// # Replay
//
// A register begins with zeros and each event makes it hash(register ‖ digest).
// EV_NO_ACTION does not extend; its StartupLocality and an H-CRTM event set the initial
// value of PCR 0. Banks: SHA-1, SHA-256, SHA-384, SHA-512; others are skipped. A register
// with an event that has no digest in a bank is left out of that bank.
//
// Registers are named BANK:pcrN; for CCEL and dstack rtmrN.
//
// # Facts
//
// See Log.Facts.
package eventlog

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/internal/cursor"
)

// Types of events (PFP §10.4.1): those that have a meaning for the replay, those whose data
// are hashed, and the ranges that tell a legacy log from noise.
const (
	evNoAction       = 0x3
	evHCRTM          = 0x80000010
	evVariableConfig = 0x80000001
	evVariableBoot   = 0x80000002
	evGPT            = 0x80000006
	evAction         = 0x80000007
	evVariableAuth   = 0x800000e0
	evFirstEFI       = 0x80000000
	evLastEFI        = 0x800000ff
	evLastPlain      = 0x12
)

// Algorithms of banks (TCG Algorithm Registry).
var algorithms = map[uint16]crypto.Hash{0x4: crypto.SHA1, 0xb: crypto.SHA256, 0xc: crypto.SHA384, 0xd: crypto.SHA512}

const (
	maxAlgorithms = 8
	minPadding    = 16 // bytes; fewer are a damaged event
)

// event is one event; its slices are parts of the log.
type event struct {
	register int // a TPM's register, or an RTMR
	kind     uint32
	digests  digests
	data     []byte
	label    string // of dstack's own events
}

// digests of one event, by bank.
type digests [4][]byte

// banks in the order of digests.
var banks = [4]crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512}

// of returns the digest in one bank, nil if there is none.
func (d *digests) of(bank crypto.Hash) []byte {
	for i, b := range banks {
		if b == bank {
			return d[i]
		}
	}
	return nil
}

func (d *digests) set(bank crypto.Hash, digest []byte) {
	for i, b := range banks {
		if b == bank {
			d[i] = digest
		}
	}
}

var specID = []byte("Spec ID Event03\x00")

// IsTCG reports whether raw is a TCG log: it begins as a crypto-agile one, or is a legacy
// one to its last byte.
func IsTCG(raw []byte) bool {
	if len(raw) >= 48 && bytes.Equal(raw[32:48], specID) {
		return true
	}
	_, err := legacyEvents(raw)
	return err == nil
}

// legacyEvents reads a log with SHA-1 digests only.
func legacyEvents(raw []byte) ([]event, error) {
	r := cursor.Little(raw)
	var out []event
	for r.Len() > 0 {
		if len(out) == MaxEvents {
			return nil, fmt.Errorf("event log: more than %d events", MaxEvents)
		}
		if len(out) > 0 && padding(r.Rest()) {
			break
		}
		register, kind, digest := r.U32(), r.U32(), r.Take(20)
		data := r.Take(uint64(r.U32()))
		if r.Short() {
			return nil, fmt.Errorf("event log: event %d is cut short", len(out))
		}
		if known := kind <= evLastPlain || kind >= evFirstEFI && kind <= evLastEFI; !known || register > maxRegister && kind != evNoAction || len(out) == 0 && kind == 0 {
			return nil, fmt.Errorf("event log: event %d has type %#x in register %d", len(out), kind, register)
		}
		out = append(out, event{register: int(min(register, maxRegister+1)), kind: kind, data: data, digests: digests{digest}})
	}
	if len(out) == 0 {
		return nil, errors.New("event log: no events")
	}
	return out, nil
}

// maxRegister is the last that an event may extend.
const maxRegister = 23

// padding reports whether rest is what fills the memory area that a log was copied from.
func padding(rest []byte) bool {
	return len(rest) >= minPadding && (rest[0] == 0 || rest[0] == 0xff) && bytes.Count(rest, rest[:1]) == len(rest)
}

// banksOf reads the header's Spec ID event: algorithms and the sizes of their digests.
func banksOf(r *cursor.Cursor) (sizes map[uint16]uint32, err error) {
	register, kind := r.U32(), r.U32()
	r.Take(20)
	spec := cursor.Little(r.Take(uint64(r.U32())))
	if r.Short() || register > 1 || kind != evNoAction {
		return nil, errors.New("event log: the header is no Spec ID event")
	}
	spec.Take(16) // specID: by it Parse knew the format
	spec.U32()    // platform class
	minor, major := spec.U8(), spec.U8()
	spec.U16()          // errata, size of UINTN
	count := spec.U32() // 0 if the event is too short
	if major != 2 || minor != 0 || count == 0 || count > maxAlgorithms {
		return nil, fmt.Errorf("event log: version %d.%d with %d algorithms, want 2.0 with 1 to %d", major, minor, count, maxAlgorithms)
	}
	sizes = map[uint16]uint32{}
	for range count {
		id, size := spec.U16(), spec.U16()
		if hash, ok := algorithms[id]; ok && int(size) != hash.Size() || size == 0 || size > 64 {
			return nil, fmt.Errorf("event log: digests of algorithm %#x have %d bytes", id, size)
		}
		if _, twice := sizes[id]; twice {
			return nil, fmt.Errorf("event log: algorithm %#x is listed twice", id)
		}
		sizes[id] = uint32(size)
	}
	if vendor := spec.U8(); spec.Short() || int(vendor) != spec.Len() {
		return nil, errors.New("event log: the Spec ID event does not end where it says")
	}
	return sizes, nil
}

// agileEvents reads a crypto-agile log.
func agileEvents(raw []byte) (events []event, banks []crypto.Hash, err error) {
	r := cursor.Little(raw)
	sizes, err := banksOf(&r)
	if err != nil {
		return nil, nil, err
	}
	for id := range sizes {
		if hash, ok := algorithms[id]; ok {
			banks = append(banks, hash)
		}
	}
	if len(banks) == 0 {
		return nil, nil, errors.New("event log: no bank of SHA-1 or SHA-2")
	}
	for r.Len() > 0 && !padding(r.Rest()) { // 16 bytes or more each: no more than MaxEvents
		e, err := agileEvent(&r, sizes)
		if err != nil {
			return nil, nil, fmt.Errorf("event log: event %d: %w", len(events), err)
		}
		events = append(events, e)
	}
	return events, banks, nil
}

func agileEvent(r *cursor.Cursor, sizes map[uint16]uint32) (event, error) {
	register, kind, count := r.U32(), r.U32(), r.U32()
	if count > maxAlgorithms {
		return event{}, fmt.Errorf("%d digests, want at most %d", count, maxAlgorithms)
	}
	e := event{kind: kind}
	for range count {
		id := r.U16()
		size, ok := sizes[id]
		if !ok && !r.Short() {
			return event{}, fmt.Errorf("a digest of algorithm %#x, which the header does not list", id)
		}
		digest := r.Take(uint64(size))
		hash, known := algorithms[id]
		if !known {
			continue
		}
		if e.digests.of(hash) != nil {
			return event{}, fmt.Errorf("two digests of algorithm %#x", id)
		}
		e.digests.set(hash, digest)
	}
	e.data = r.Take(uint64(r.U32()))
	if r.Short() {
		return event{}, errors.New("cut short")
	}
	if register > maxRegister && kind != evNoAction {
		return event{}, fmt.Errorf("extends register %d, want 0 to %d", register, maxRegister)
	}
	e.register = int(min(register, maxRegister+1))
	return e, nil
}
