package eventlog

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// dstackEvent is one event as dstack-attest serialises it. Events of RTMR3 are dstack's
// own: their digest is SHA-384 of u32 event_type ":" event ":" payload.
type dstackEvent struct {
	IMR     int    `json:"imr"`
	Type    uint32 `json:"event_type"`
	Digest  string `json:"digest"`
	Event   string `json:"event"`
	Payload string `json:"event_payload"`
}

// dstackRuntime is the type of dstack's own events.
const dstackRuntime = 0x08000001

// runtimeData is what the digest of one of dstack's own events is over.
func runtimeData(kind uint32, name string, payload []byte) []byte {
	out := append(binary.LittleEndian.AppendUint32(nil, kind), ':')
	return append(append(append(out, name...), ':'), payload...)
}

func parseDstack(raw []byte) (Log, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	var list []dstackEvent
	if err := dec.Decode(&list); err != nil {
		return Log{}, fmt.Errorf("event log: neither a TCG log nor dstack's JSON: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Log{}, errors.New("event log: data after the list of events")
	}
	if len(list) == 0 || len(list) > MaxEvents {
		return Log{}, fmt.Errorf("event log: %d events, want 1 to %d", len(list), MaxEvents)
	}
	events := make([]event, len(list))
	for i, e := range list {
		payload, err := hex.DecodeString(e.Payload)
		if err != nil {
			return Log{}, fmt.Errorf("event log: event %d: the payload is not hex", i)
		}
		digest, err := hex.DecodeString(e.Digest)
		if err == nil && len(digest) == 0 && e.IMR == 3 && e.Type == dstackRuntime { // left out by newer releases
			digest = sum(crypto.SHA384, runtimeData(e.Type, e.Event, payload))
		}
		if err != nil || len(digest) != crypto.SHA384.Size() || e.IMR < 0 || e.IMR > 3 {
			return Log{}, fmt.Errorf("event log: event %d: want a SHA-384 digest for RTMR 0 to 3", i)
		}
		events[i] = event{register: e.IMR, kind: e.Type, data: payload, label: e.Event, digests: digests{2: digest}}
	}
	banks := map[string]map[int][]byte{"sha384": extendAll(events)}
	return Log{Format: FormatDstack, Entries: len(events), Banks: banks, events: events}, nil
}

// extendAll extends every event, whatever its type: the list holds those alone that
// were extended.
func extendAll(events []event) map[int][]byte {
	regs := map[int][]byte{}
	for _, e := range events {
		if regs[e.register] == nil {
			regs[e.register] = make([]byte, crypto.SHA384.Size())
		}
		regs[e.register] = extend(crypto.SHA384, regs[e.register], e.digests.of(crypto.SHA384))
	}
	return regs
}
