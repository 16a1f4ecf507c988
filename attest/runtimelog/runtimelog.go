// Package runtimelog is the runtime event log: what a node started after it was measured at
// launch. Launch measurements say which meshnode runs; this log says which programs, models
// and trainers it has loaded since. Its head goes into the report data of every quote, for
// every kind of evidence, so that nobody can show another log without the quote giving it
// away (SEV-SNP has no runtime register that could do this).
//
// # Layout
//
//	event  = [type tstr, name tstr, [+[role tstr, digest bstr32]]]     deterministic CBOR
//	log    = [*bstr event]                                             deterministic CBOR
//	head 0 = 32 zero bytes
//	head n = SHA-256( lp("meshnode-attest/v1 runtime event") lp(head n-1) lp(event n) )
//
// lp(x) is u32 big-endian length, then x (RFC 8949 §4.2 for the encoding). Digests are
// SHA-256 over the bytes that were loaded; roles are in order and distinct. Types, names and
// roles match [a-z0-9-]{1,32}.
//
// Where the machine has a register for it (RTMR3, PCR 13), each event is also extended there,
// before it is appended: ReplayRegister says what the register holds then.
//
// An event is appended before the thing it names may run. Nothing is ever taken out: that a
// program ended is no reason to forget that it was here. A full log refuses, and what was
// to be started must not start.
package runtimelog

import (
	"crypto"
	"crypto/sha256"
	_ "crypto/sha512" // SHA-384, the hash of RTMRs
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
)

// Limits of a log. A log of MaxEvents events of the largest size stays below attest.MaxLog.
const (
	MaxEvents  = 1024
	MaxDigests = 8
	maxName    = 32
)

const eventLabel = "meshnode-attest/v1 runtime event"

// Digest is what was loaded in one role, as "program" or "model".
type Digest struct {
	_      struct{} `cbor:",toarray"`
	Role   string
	SHA256 [32]byte
}

// Event is one thing that was loaded.
type Event struct {
	_       struct{} `cbor:",toarray"`
	Type    string   // what kind of thing, as "service"
	Name    string   // which of them, as "inference"
	Digests []Digest // sorted by role, at least one
}

// Find returns the digest of a role.
func (e Event) Find(role string) ([32]byte, bool) {
	for _, d := range e.Digests {
		if d.Role == role {
			return d.SHA256, true
		}
	}
	return [32]byte{}, false
}

func (e Event) check() error {
	if !validName(e.Type) || !validName(e.Name) {
		return fmt.Errorf("runtime event: type %.40q, name %.40q: want 1 to %d of a-z, 0-9 and '-'", e.Type, e.Name, maxName)
	}
	if len(e.Digests) == 0 || len(e.Digests) > MaxDigests {
		return fmt.Errorf("runtime event %s %s: %d digests, want 1 to %d", e.Type, e.Name, len(e.Digests), MaxDigests)
	}
	for i, d := range e.Digests {
		if !validName(d.Role) {
			return fmt.Errorf("runtime event %s %s: role %.40q: want 1 to %d of a-z, 0-9 and '-'", e.Type, e.Name, d.Role, maxName)
		}
		if i > 0 && e.Digests[i-1].Role >= d.Role {
			return fmt.Errorf("runtime event %s %s: role %s after %s, want distinct roles in order", e.Type, e.Name, d.Role, e.Digests[i-1].Role)
		}
	}
	return nil
}

func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// ErrFull is returned by Append when no event can be added any more.
var ErrFull = errors.New("runtime log: full; nothing more can be started before the node is restarted")

// Log is the log of one boot. Its zero value is an empty log, ready for use. Methods are
// safe for concurrent use.
type Log struct {
	recording sync.Mutex // one Record at a time; readers need not wait for its extend

	mu     sync.Mutex
	events [][]byte // guarded by mu; encoded
	head   [32]byte // guarded by mu
}

// Append adds e and returns the new head.
func (l *Log) Append(e Event) ([32]byte, error) { return l.Record(e, nil) }

// Record adds e after extend, if any, has extended a register by its encoding. Where extend
// fails nothing is added. Whoever quotes that register meanwhile gets one that the log does
// not explain: see attest.Quoter.Record.
func (l *Log) Record(e Event, extend func(event []byte) error) ([32]byte, error) {
	raw, err := e.encode()
	if err != nil {
		return [32]byte{}, err
	}
	l.recording.Lock()
	defer l.recording.Unlock()
	l.mu.Lock()
	full := len(l.events) >= MaxEvents
	l.mu.Unlock()
	if full {
		return [32]byte{}, ErrFull
	}
	if extend != nil {
		if err := extend(raw); err != nil {
			return [32]byte{}, err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, raw)
	l.head = next(l.head, raw)
	return l.head, nil
}

// Head returns the present head; 32 zero bytes while the log is empty.
func (l *Log) Head() [32]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Snapshot returns the encoded log and the head that it replays to.
func (l *Log) Snapshot() ([]byte, [32]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	raw, err := codec.Encode(l.events)
	if err != nil {
		panic(err) // byte strings always encode
	}
	return raw, l.head
}

// Replay decodes an encoded log and returns its events and head. A verifier compares the
// head with the one that the quote's report data covers; without that the events are only
// what somebody says.
func Replay(raw []byte) ([]Event, [32]byte, error) {
	events, encoded, err := read(raw)
	var head [32]byte
	for _, item := range encoded {
		head = next(head, item)
	}
	return events, head, err
}

// read decodes a log; it returns its events as they are encoded, too.
func read(raw []byte) (events []Event, encoded [][]byte, err error) {
	if len(raw) > attest.MaxLog {
		return nil, nil, fmt.Errorf("runtime log: %d bytes, the limit is %d", len(raw), attest.MaxLog)
	}
	if err := codec.Decode(raw, &encoded); err != nil { // also of more than MaxEvents
		return nil, nil, fmt.Errorf("runtime log: %w", err)
	}
	events = make([]Event, 0, len(encoded))
	for i, item := range encoded {
		e, err := decode(item)
		if err != nil {
			return nil, nil, fmt.Errorf("runtime log: event %d: %w", i, err)
		}
		events = append(events, e)
	}
	return events, encoded, nil
}

// ReplayRegister returns what a register that began as zeros holds after every event of an
// encoded log was extended into it: for each event value = H(value || H(event)), with the
// event as it is encoded in the log. The hash is that of the register: SHA-384 for RTMR3,
// the bank's for PCR 13. The log is one that Replay accepts.
func ReplayRegister(raw []byte, hash crypto.Hash) ([]byte, error) {
	_, encoded, err := read(raw)
	if err != nil {
		return nil, err
	}
	if !hash.Available() {
		return nil, fmt.Errorf("runtime log: hash %d is not linked", uint(hash))
	}
	value := make([]byte, hash.Size())
	for _, event := range encoded {
		h := hash.New()
		h.Write(event)
		digest := h.Sum(nil)
		h.Reset()
		h.Write(value)
		h.Write(digest)
		value = h.Sum(value[:0])
	}
	return value, nil
}

// Newest returns the last event of a type and name: what runs there now, if anything.
func Newest(events []Event, eventType, name string) (Event, bool) {
	for _, e := range slices.Backward(events) {
		if e.Type == eventType && e.Name == name {
			return e, true
		}
	}
	return Event{}, false
}

func next(head [32]byte, event []byte) [32]byte {
	buf := attest.LengthPrefixed(nil, []byte(eventLabel))
	buf = attest.LengthPrefixed(buf, head[:])
	return sha256.Sum256(attest.LengthPrefixed(buf, event))
}

type wireDigest struct {
	_      struct{} `cbor:",toarray"`
	Role   string
	SHA256 []byte
}

type wireEvent struct {
	_       struct{} `cbor:",toarray"`
	Type    string
	Name    string
	Digests []wireDigest
}

func (e Event) encode() ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	w := wireEvent{Type: e.Type, Name: e.Name}
	for _, d := range e.Digests {
		w.Digests = append(w.Digests, wireDigest{Role: d.Role, SHA256: d.SHA256[:]})
	}
	return codec.Encode(w)
}

func decode(raw []byte) (Event, error) {
	var w wireEvent
	if err := codec.Decode(raw, &w); err != nil {
		return Event{}, err
	}
	e := Event{Type: w.Type, Name: w.Name}
	for _, d := range w.Digests {
		if len(d.SHA256) != sha256.Size {
			return Event{}, fmt.Errorf("a digest of %d bytes, want %d", len(d.SHA256), sha256.Size)
		}
		e.Digests = append(e.Digests, Digest{Role: d.Role, SHA256: [32]byte(d.SHA256)})
	}
	return e, e.check()
}

var codec = canonical.NewCBOR(MaxEvents)
