package replica

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"testing"

	"github.com/hashicorp/raft"
)

func samples() []any {
	return []any{
		&raft.AppendEntriesRequest{Term: 7, Entries: []*raft.Log{}},
		&raft.AppendEntriesRequest{Term: 7, PrevLogEntry: 4, PrevLogTerm: 6, LeaderCommitIndex: 3, Entries: []*raft.Log{
			{Index: 5, Term: 6, Data: []byte("command")}, {Index: 6, Term: 7, Type: raft.LogNoop}}},
		&raft.AppendEntriesResponse{Term: 1, LastLog: 2, Success: true},
		&raft.AppendEntriesResponse{Term: 1, LastLog: 2, NoRetryBackoff: true},
		&raft.RequestVoteRequest{Term: 1, LastLogIndex: 2, LastLogTerm: 3, LeadershipTransfer: true},
		&raft.RequestVoteResponse{Term: 1, Granted: true},
		&raft.RequestPreVoteRequest{Term: 1, LastLogIndex: 2, LastLogTerm: 3},
		&raft.RequestPreVoteResponse{Term: 1},
		&raft.TimeoutNowRequest{},
		&raft.TimeoutNowResponse{},
		refusal("refused: no"),
		&snapshotChunk{Term: 7, Index: 9, LogTerm: 6, ConfigurationIndex: 1, Size: 100, Offset: 90, Configuration: []byte("conf"), Data: []byte("0123456789")},
		&snapshotReply{Term: 7, State: snapshotChecking},
	}
}

func TestCodecRoundTrip(t *testing.T) {
	for _, m := range samples() {
		frame := appendFrame(nil, 99, m)
		h, err := decodeHeader((*[headerSize]byte)(frame))
		if err != nil || h.id != 99 || h.size != len(frame)-headerSize {
			t.Fatalf("%T: header %+v, %v", m, h, err)
		}
		got, err := decodeBody(h.kind, frame[headerSize:])
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("got %+v (%v), want %+v", got, err, m)
		}
	}
}

// Every message has one encoding; anything near it is malformed.
func TestCodecRefuses(t *testing.T) {
	change := func(m any, f func([]byte) []byte) []byte { return f(appendFrame(nil, 1, m)[headerSize:]) }
	longer := func(b []byte) []byte { return append(b, 0) }
	shorter := func(b []byte) []byte { return b[:len(b)-1] }
	lastByte := func(v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[len(b)-1] = v; return b }
	}
	full := samples()[1]
	for name, c := range map[string]struct {
		kind kind
		body []byte
	}{
		"bytes behind the entries": {kindAppend, change(full, longer)},
		"last entry cut off":       {kindAppend, change(full, shorter)},
		"more entries claimed":     {kindAppend, change(full, func(b []byte) []byte { b[33]++; return b })},
		"too many entries":         {kindAppend, change(full, func(b []byte) []byte { b[32] = 0xff; return append(b, make([]byte, maxFrame)...) })},
		"longer data claimed":      {kindAppend, change(full, func(b []byte) []byte { b[appendFixed+9] = 0xff; return b })},
		"index overflow":           {kindAppend, change(full, func(b []byte) []byte { copy(b[8:16], "\xff\xff\xff\xff\xff\xff\xff\xff"); return b })},
		"append reply flags":       {kindAppendReply, change(samples()[2], lastByte(4))},
		"vote flags":               {kindVote, change(samples()[4], lastByte(2))},
		"vote reply flags":         {kindVoteReply, change(samples()[5], lastByte(3))},
		"pre-vote reply flags":     {kindPreVoteReply, change(samples()[7], lastByte(0x80))},
		"refusal in no UTF-8":      {kindRefusal, []byte{0xff}},
		"no kind":                  {0, nil},
		"longer configuration":     {kindSnapshot, change(samples()[11], func(b []byte) []byte { b[49] = 15; return b })},
		"huge configuration":       {kindSnapshot, change(samples()[11], func(b []byte) []byte { b[48] = 0xff; return append(b, make([]byte, 1<<16)...) })},
		"chunk too large":          {kindSnapshot, change(samples()[11], func(b []byte) []byte { return append(b, make([]byte, maxChunk)...) })},
		"unknown snapshot state":   {kindSnapshotReply, change(samples()[12], lastByte(4))},
		"no snapshot state":        {kindSnapshotReply, change(samples()[12], lastByte(0))},
	} {
		if m, err := decodeBody(c.kind, c.body); !errors.Is(err, errMalformed) {
			t.Errorf("%s: got %+v, %v", name, m, err)
		}
	}
}

// The bytes on the wire, which other releases of meshnode rely on.
func TestCodecGolden(t *testing.T) {
	const want = "0000004d" + "01" + "01" + "0000000000000063" +
		"0000000000000007" + "0000000000000004" + "0000000000000006" + "0000000000000003" + "0002" +
		"0000000000000006" + "00" + "00000007" + "636f6d6d616e64" +
		"0000000000000007" + "01" + "00000000"
	if got := hex.EncodeToString(appendFrame(nil, 99, samples()[1])); got != want {
		t.Errorf("append\n got %s\nwant %s", got, want)
	}
	const chunk = "0000004a" + "01" + "0b" + "0000000000000063" + "0000000000000007" + "0000000000000009" + "0000000000000006" +
		"0000000000000001" + "0000000000000064" + "000000000000005a" + "0004" + "636f6e66" + "30313233343536373839"
	if got := hex.EncodeToString(appendFrame(nil, 99, samples()[11])); got != chunk {
		t.Errorf("chunk\n got %s\nwant %s", got, chunk)
	}
	if got := hex.EncodeToString(appendHello(nil, peerOf(0), peerOf(1))); len(got) != 2*helloSize || got[:6] != "4d5201" {
		t.Errorf("hello %s", got)
	}
}

func TestFitting(t *testing.T) {
	big := &raft.Log{Data: make([]byte, MaxCommand)}
	for _, c := range []struct {
		entries []*raft.Log
		want    int
	}{
		{nil, 0},
		{entries(1, 3, 1), 3},
		{entries(1, maxEntries+1, 1), maxEntries},
		{[]*raft.Log{big, big}, 1},
		{[]*raft.Log{big}, 1},
		{[]*raft.Log{{Data: make([]byte, maxFrame)}}, 0},
	} {
		n := fitting(c.entries)
		if n != c.want {
			t.Errorf("%d of %d entries fit, want %d", n, len(c.entries), c.want)
		}
		appendFrame(nil, 0, &raft.AppendEntriesRequest{Entries: c.entries[:n]}) // panics if not
	}
}

// Whatever a peer sends is refused or is the one encoding of what was decoded.
func FuzzFrame(f *testing.F) {
	for _, m := range samples() {
		f.Add(appendFrame(nil, 1, m))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < headerSize {
			return
		}
		h, err := decodeHeader((*[headerSize]byte)(frame))
		if err != nil || h.size != len(frame)-headerSize {
			return
		}
		m, err := decodeBody(h.kind, frame[headerSize:])
		if err != nil {
			return
		}
		if again := appendFrame(nil, h.id, m); !bytes.Equal(again, frame) {
			t.Fatalf("%x decodes to %+v, which is %x", frame, m, again)
		}
		if chunk, ok := m.(*snapshotChunk); ok && inspectChunk(chunk) == nil {
			newTestGuard().admitChunk(guarded(), peerOf(1), chunk)
		}
		if isRequest(m) && inspect(m, func([]byte) error { return nil }) == nil {
			newTestGuard().admit(guarded(), peerOf(1), m)
		}
	})
}

// raft's decoder of configurations panics; ours must not.
func FuzzConfiguration(f *testing.F) {
	f.Add(raft.EncodeConfiguration(voters(0, 1, 2)))
	f.Add([]byte("\xc1garbage"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := decodeConfiguration(data)
		if err == nil && !bytes.Equal(raft.EncodeConfiguration(c), data) {
			t.Fatalf("%x is not its one encoding", data)
		}
	})
}
