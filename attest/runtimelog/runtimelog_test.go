package runtimelog

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
)

func digest(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func service(name, program string) Event {
	return Event{Type: "service", Name: name, Digests: []Digest{{Role: "model", SHA256: digest("weights")}, {Role: "program", SHA256: digest(program)}}}
}

func TestReplayGivesWhatWasAppended(t *testing.T) {
	var l Log
	if l.Head() != [32]byte{} {
		t.Error("an empty log has a head")
	}
	want := []Event{service("inference", "v1"), {Type: "trainer", Name: "digits", Digests: []Digest{{Role: "bundle", SHA256: digest("b")}}}, service("inference", "v2")}
	heads := map[[32]byte]bool{{}: true}
	for _, e := range want {
		head, err := l.Append(e)
		if err != nil {
			t.Fatal(err)
		}
		if heads[head] {
			t.Error("an event did not change the head")
		}
		heads[head] = true
	}
	raw, head := l.Snapshot()
	got, replayed, err := Replay(raw)
	if err != nil || replayed != head || head != l.Head() || !reflect.DeepEqual(got, want) {
		t.Fatalf("replayed %v to %x, %v; want %v and %x", got, replayed, err, want, head)
	}
	newest, ok := Newest(got, "service", "inference")
	if program, _ := newest.Find("program"); !ok || program != digest("v2") {
		t.Errorf("the newest program is %x", program)
	}
	if _, ok := Newest(got, "service", "digits"); ok {
		t.Error("a trainer passes for a service")
	}
}

// Each part of an event, and the order of events, is in the head.
func TestHeadCoversEverything(t *testing.T) {
	heads := map[[32]byte]string{}
	for name, events := range map[string][]Event{
		"nothing":       nil,
		"one":           {service("a", "p")},
		"another name":  {service("b", "p")},
		"another type":  {{Type: "trainer", Name: "a", Digests: service("a", "p").Digests}},
		"other program": {service("a", "q")},
		"one role":      {{Type: "service", Name: "a", Digests: service("a", "p").Digests[1:]}},
		"two":           {service("a", "p"), service("b", "p")},
		"two reversed":  {service("b", "p"), service("a", "p")},
		"twice":         {service("a", "p"), service("a", "p")},
	} {
		var l Log
		for _, e := range events {
			if _, err := l.Append(e); err != nil {
				t.Fatal(err)
			}
		}
		if other, ok := heads[l.Head()]; ok {
			t.Errorf("%s and %s have one head", name, other)
		}
		heads[l.Head()] = name
	}
}

func TestGoldenHead(t *testing.T) {
	var l Log
	head, err := l.Append(Event{Type: "service", Name: "inference", Digests: []Digest{{Role: "program", SHA256: digest("program")}}})
	if err != nil {
		t.Fatal(err)
	}
	raw, _ := l.Snapshot()
	program := digest("program")
	event := append([]byte("\x83\x67service\x69inference\x81\x82\x67program\x58\x20"), program[:]...)
	if want := append([]byte{0x81, 0x58, byte(len(event))}, event...); !bytes.Equal(raw, want) {
		t.Errorf("log\n got %x\nwant %x", raw, want)
	}
	buf := append([]byte{0, 0, 0, 32}, eventLabel...)
	buf = append(append(buf, 0, 0, 0, 32), make([]byte, 32)...)
	buf = append(append(buf, 0, 0, 0, byte(len(event))), event...)
	if want := sha256.Sum256(buf); head != want {
		t.Errorf("head %x, want %x", head, want)
	}
}

func TestAppendRefuses(t *testing.T) {
	d := []Digest{{Role: "program", SHA256: digest("p")}}
	for name, e := range map[string]Event{
		"the zero value": {},
		"no type":        {Name: "a", Digests: d},
		"no name":        {Type: "service", Digests: d},
		"long name":      {Type: "service", Name: strings.Repeat("a", maxName+1), Digests: d},
		"upper case":     {Type: "service", Name: "A", Digests: d},
		"a path":         {Type: "service", Name: "../a", Digests: d},
		"no digest":      {Type: "service", Name: "a"},
		"bad role":       {Type: "service", Name: "a", Digests: []Digest{{Role: "Program"}}},
		"role twice":     {Type: "service", Name: "a", Digests: append(d, d...)},
		"out of order":   {Type: "service", Name: "a", Digests: append(d, Digest{Role: "model"})},
		"too many":       {Type: "service", Name: "a", Digests: make([]Digest, MaxDigests+1)},
	} {
		var l Log
		if _, err := l.Append(e); err == nil || l.Head() != [32]byte{} {
			t.Errorf("%s was appended", name)
		}
	}
	roles := Event{Type: "service", Name: "a"}
	for i := range MaxDigests + 1 {
		roles.Digests = append(roles.Digests, Digest{Role: fmt.Sprintf("r%02d", i)})
	}
	if _, err := new(Log).Append(roles); err == nil || !strings.Contains(err.Error(), "digests, want 1 to") {
		t.Errorf("%d digests: %v", len(roles.Digests), err)
	}
}

func TestFullLogRefuses(t *testing.T) {
	var l Log
	largest := Event{Type: strings.Repeat("t", maxName), Name: strings.Repeat("n", maxName)}
	for i := range MaxDigests {
		largest.Digests = append(largest.Digests, Digest{Role: fmt.Sprintf("%s%d", strings.Repeat("r", maxName-1), i)})
	}
	for range MaxEvents {
		if _, err := l.Append(largest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Append(largest); !errors.Is(err, ErrFull) {
		t.Errorf("event %d: %v", MaxEvents+1, err)
	}
	raw, head := l.Snapshot()
	if len(raw) > attest.MaxLog {
		t.Errorf("a full log has %d bytes, the limit is %d", len(raw), attest.MaxLog)
	}
	if _, replayed, err := Replay(raw); err != nil || replayed != head {
		t.Errorf("a full log does not replay: %v", err)
	}
}

// TestEventsAreStrict: each check on what stands in a log that is well-formed itself.
func TestEventsAreStrict(t *testing.T) {
	item := func(digests ...[]byte) []byte {
		w := wireEvent{Type: "service", Name: "a"}
		for i, d := range digests {
			w.Digests = append(w.Digests, wireDigest{Role: fmt.Sprintf("r%d", i), SHA256: d})
		}
		raw, err := codec.Encode(w)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	log := func(items ...[]byte) []byte {
		raw, err := canonical.NewCBOR(2 * MaxEvents).Encode(items)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := item(make([]byte, 32))
	if _, _, err := Replay(log(good)); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want string
	}{
		"a byte behind an event": {log(append(bytes.Clone(good), 0)), "event 0: cbor"},
		"a digest of 33 bytes":   {log(good, item(make([]byte, 33))), "event 1: a digest of 33 bytes"},
		"of 31":                  {log(item(make([]byte, 31))), "a digest of 31 bytes"},
		"without a digest":       {log(item()), "0 digests"},
		"too many events":        {log(slices.Repeat([][]byte{good}, MaxEvents+1)...), "runtime log: "},
		"too long":               {make([]byte, attest.MaxLog+1), "the limit is"},
	} {
		if events, head, err := Replay(tc.raw); err == nil || events != nil || head != [32]byte{} || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %d events, %v, want %q", name, len(events), err, tc.want)
		}
		if value, err := ReplayRegister(tc.raw, crypto.SHA384); err == nil || value != nil {
			t.Errorf("%s: register %x", name, value)
		}
	}
}

func TestReplayIsStrict(t *testing.T) {
	var l Log
	if _, err := l.Append(service("a", "p")); err != nil {
		t.Fatal(err)
	}
	good, _ := l.Snapshot()
	for name, raw := range map[string][]byte{
		"nothing":       {},
		"null":          {0xf6},
		"trailing":      append(bytes.Clone(good), 0),
		"cut":           good[:len(good)-1],
		"indefinite":    append(append([]byte{0x9f}, good[1:]...), 0xff),
		"long length":   append([]byte{0x98, 1}, good[1:]...),
		"event as text": bytes.Replace(good, []byte{0x58, good[2]}, []byte{0x78, good[2]}, 1),
		"empty event":   {0x81, 0x40},
		"oversize":      make([]byte, attest.MaxLog+1),
	} {
		if events, _, err := Replay(raw); err == nil {
			t.Errorf("%s: replayed %v", name, events)
		}
	}
	for bit := range len(good) * 8 {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, head, err := Replay(bad); err == nil && head == l.Head() {
			t.Errorf("bit %d flipped and the head is the same", bit)
		}
	}
}

func FuzzReplay(f *testing.F) {
	var l Log
	for _, e := range []Event{service("a", "p"), service("b", "q")} {
		if _, err := l.Append(e); err != nil {
			f.Fatal(err)
		}
	}
	good, _ := l.Snapshot()
	f.Add(good)
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, raw []byte) {
		events, head, err := Replay(raw)
		if err != nil {
			return
		}
		var again Log
		for _, e := range events {
			if _, err := again.Append(e); err != nil {
				t.Fatalf("replayed %v, which cannot be appended: %v", e, err)
			}
		}
		if back, h := again.Snapshot(); h != head || !bytes.Equal(back, raw) {
			t.Errorf("%s replays to %x, appended again %x", hex.EncodeToString(raw), head, h)
		}
	})
}

// A register extended by every event holds what ReplayRegister says, in any hash.
func TestRegisterFollowsTheLog(t *testing.T) {
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384} {
		var l Log
		register := make([]byte, hash.Size())
		extend := func(event []byte) error {
			h := hash.New()
			h.Write(event)
			h2 := hash.New()
			h2.Write(append(bytes.Clone(register), h.Sum(nil)...))
			register = h2.Sum(nil)
			return nil
		}
		for i := range 3 {
			raw, _ := l.Snapshot()
			if got, err := ReplayRegister(raw, hash); err != nil || !bytes.Equal(got, register) {
				t.Errorf("%v after %d events: got %x, %v, want %x", hash, i, got, err, register)
			}
			if _, err := l.Record(service("inference", fmt.Sprint(i)), extend); err != nil {
				t.Fatal(err)
			}
		}
		before, head := l.Snapshot()
		broken := errors.New("broken")
		if _, err := l.Record(service("inference", "v4"), func([]byte) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("got %v, want the register's error", err)
		}
		if after, same := l.Snapshot(); !bytes.Equal(after, before) || same != head {
			t.Error("an event that is in no register is in the log")
		}
	}
	var l Log
	for i := range MaxEvents {
		if _, err := l.Append(service("inference", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	extended := false
	if _, err := l.Record(service("inference", "last"), func([]byte) error { extended = true; return nil }); !errors.Is(err, ErrFull) || extended {
		t.Errorf("full: got %v, extended: %v", err, extended)
	}
	if _, err := ReplayRegister([]byte{0xff}, crypto.SHA256); err == nil {
		t.Error("a register from a malformed log")
	}
	if _, err := ReplayRegister([]byte{0x80}, crypto.MD4); err == nil {
		t.Error("a register in an unknown hash")
	}
}
