package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// kind of a frame; even kinds up to timeoutNowReply answer the odd kind below them.
type kind byte

const (
	kindAppend kind = 1 + iota
	kindAppendReply
	kindVote
	kindVoteReply
	kindPreVote
	kindPreVoteReply
	kindTimeoutNow
	kindTimeoutNowReply
	kindRefusal
	_
	kindSnapshot
	kindSnapshotReply
)

const (
	wireVersion = 1
	headerSize  = 4 + 1 + 1 + 8
	entryHeader = 8 + 1 + 4
	appendFixed = 4*8 + 2
	chunkFixed  = 6*8 + 2
	peerIDSize  = 38
	helloSize   = 2 + 1 + 2*peerIDSize

	flagSuccess = 1
	flagNoWait  = 2
)

// errMalformed is wrapped by every decoding error: the stream it came from is closed.
var errMalformed = errors.New("malformed")

// refusal is a peer's answer instead of a reply.
type refusal string

// header begins a frame.
type header struct {
	kind kind
	id   uint64
	size int // of the body
}

// appendHello encodes the first bytes of a stream.
func appendHello(b []byte, from, to identity.PeerID) []byte {
	b = append(b, 'M', 'R', wireVersion)
	b = append(b, from...)
	return append(b, to...)
}

// checkHello refuses a hello that does not name the authenticated opener and us.
func checkHello(b []byte, from, to identity.PeerID) error {
	if len(b) != helloSize || b[0] != 'M' || b[1] != 'R' {
		return fmt.Errorf("%w: no hello", errMalformed)
	}
	if b[2] != wireVersion {
		return fmt.Errorf("raft stream of version %d, want %d: upgrade the older of the two nodes", b[2], wireVersion)
	}
	if got := identity.PeerID(b[3 : 3+peerIDSize]); got != from {
		return fmt.Errorf("hello names %q as its sender, the stream belongs to %s", got.String(), from)
	}
	if got := identity.PeerID(b[3+peerIDSize:]); got != to {
		return fmt.Errorf("hello is for %q, this is %s", got.String(), to)
	}
	return nil
}

// bodyLimit returns the least and greatest size of a kind's body.
func bodyLimit(k kind) (least, most int, ok bool) {
	switch k {
	case kindAppend:
		return appendFixed, maxFrame, true
	case kindAppendReply:
		return 17, 17, true
	case kindVote:
		return 25, 25, true
	case kindPreVote:
		return 24, 24, true
	case kindVoteReply, kindPreVoteReply:
		return 9, 9, true
	case kindTimeoutNow, kindTimeoutNowReply:
		return 0, 0, true
	case kindRefusal:
		return 0, maxRefusal, true
	case kindSnapshot:
		return chunkFixed, chunkFixed + maxConfiguration + maxChunk, true
	case kindSnapshotReply:
		return 9, 9, true
	}
	return 0, 0, false
}

// decodeHeader reads a frame's header and refuses sizes before anybody allocates them.
func decodeHeader(b *[headerSize]byte) (header, error) {
	h := header{kind: kind(b[5]), id: binary.BigEndian.Uint64(b[6:])}
	length := binary.BigEndian.Uint32(b[:])
	if b[4] != wireVersion {
		return header{}, fmt.Errorf("%w: frame of version %d, want %d", errMalformed, b[4], wireVersion)
	}
	least, most, ok := bodyLimit(h.kind)
	if !ok {
		return header{}, fmt.Errorf("%w: unknown frame kind %d", errMalformed, b[5])
	}
	if length < headerSize-4 || length-(headerSize-4) < uint32(least) || length-(headerSize-4) > uint32(most) {
		return header{}, fmt.Errorf("%w: frame kind %d of %d bytes, want a body of %d to %d", errMalformed, h.kind, length, least, most)
	}
	h.size = int(length) - (headerSize - 4)
	return h, nil
}

// appendFrame appends the frame of message m, one of raft's requests or responses or a
// refusal, to b. A message beyond the limits is a mistake of ours and panics.
func appendFrame(b []byte, id uint64, m any) []byte {
	start := len(b)
	b = append(b, 0, 0, 0, 0, wireVersion, byte(kindOf(m)))
	b = binary.BigEndian.AppendUint64(b, id)
	b = appendBody(b, m)
	size := len(b) - start - headerSize
	if _, most, _ := bodyLimit(kindOf(m)); size > most {
		panic(fmt.Sprintf("replica: frame of %d bytes over the limit of %d", size, most))
	}
	binary.BigEndian.PutUint32(b[start:], uint32(len(b)-start-4))
	return b
}

func kindOf(m any) kind {
	switch m.(type) {
	case *raft.AppendEntriesRequest:
		return kindAppend
	case *raft.AppendEntriesResponse:
		return kindAppendReply
	case *raft.RequestVoteRequest:
		return kindVote
	case *raft.RequestVoteResponse:
		return kindVoteReply
	case *raft.RequestPreVoteRequest:
		return kindPreVote
	case *raft.RequestPreVoteResponse:
		return kindPreVoteReply
	case *raft.TimeoutNowRequest:
		return kindTimeoutNow
	case *raft.TimeoutNowResponse:
		return kindTimeoutNowReply
	case refusal:
		return kindRefusal
	case *snapshotChunk:
		return kindSnapshot
	case *snapshotReply:
		return kindSnapshotReply
	}
	panic(fmt.Sprintf("replica: no frame for %T", m))
}

func appendBody(b []byte, m any) []byte {
	be := binary.BigEndian
	switch m := m.(type) {
	case *raft.AppendEntriesRequest:
		b = be.AppendUint64(be.AppendUint64(b, m.Term), m.PrevLogEntry)
		b = be.AppendUint64(be.AppendUint64(b, m.PrevLogTerm), m.LeaderCommitIndex)
		b = be.AppendUint16(b, uint16(len(m.Entries)))
		for _, e := range m.Entries {
			b = append(be.AppendUint64(b, e.Term), byte(e.Type))
			b = append(be.AppendUint32(b, uint32(len(e.Data))), e.Data...)
		}
	case *raft.AppendEntriesResponse:
		b = be.AppendUint64(be.AppendUint64(b, m.Term), m.LastLog)
		b = append(b, bit(m.Success, flagSuccess)|bit(m.NoRetryBackoff, flagNoWait))
	case *raft.RequestVoteRequest:
		b = be.AppendUint64(be.AppendUint64(be.AppendUint64(b, m.Term), m.LastLogIndex), m.LastLogTerm)
		b = append(b, bit(m.LeadershipTransfer, flagSuccess))
	case *raft.RequestPreVoteRequest:
		b = be.AppendUint64(be.AppendUint64(be.AppendUint64(b, m.Term), m.LastLogIndex), m.LastLogTerm)
	case *raft.RequestVoteResponse:
		b = append(be.AppendUint64(b, m.Term), bit(m.Granted, flagSuccess))
	case *raft.RequestPreVoteResponse:
		b = append(be.AppendUint64(b, m.Term), bit(m.Granted, flagSuccess))
	case *snapshotChunk:
		for _, v := range []uint64{m.Term, m.Index, m.LogTerm, m.ConfigurationIndex, m.Size, m.Offset} {
			b = be.AppendUint64(b, v)
		}
		b = append(be.AppendUint16(b, uint16(len(m.Configuration))), m.Configuration...)
		b = append(b, m.Data...)
	case *snapshotReply:
		b = append(be.AppendUint64(b, m.Term), byte(m.State))
	case refusal:
		if len(m) > maxRefusal {
			m = m[:maxRefusal]
		}
		b = append(b, strings.ToValidUTF8(string(m), "")...)
	}
	return b
}

func bit(set bool, mask byte) byte {
	if set {
		return mask
	}
	return 0
}

// decodeBody reads the body of a frame whose header passed decodeHeader. Entries alias
// body, which the caller gives away.
func decodeBody(k kind, body []byte) (any, error) {
	be := binary.BigEndian
	switch k {
	case kindAppend:
		return decodeAppend(body)
	case kindAppendReply:
		f := body[16]
		return &raft.AppendEntriesResponse{
			Term: be.Uint64(body), LastLog: be.Uint64(body[8:]),
			Success: f&flagSuccess != 0, NoRetryBackoff: f&flagNoWait != 0,
		}, onlyFlags(f, flagSuccess|flagNoWait)
	case kindVote:
		return &raft.RequestVoteRequest{
			Term: be.Uint64(body), LastLogIndex: be.Uint64(body[8:]), LastLogTerm: be.Uint64(body[16:]),
			LeadershipTransfer: body[24]&flagSuccess != 0,
		}, onlyFlags(body[24], flagSuccess)
	case kindPreVote:
		return &raft.RequestPreVoteRequest{
			Term: be.Uint64(body), LastLogIndex: be.Uint64(body[8:]), LastLogTerm: be.Uint64(body[16:]),
		}, nil
	case kindVoteReply:
		return &raft.RequestVoteResponse{Term: be.Uint64(body), Granted: body[8] != 0}, onlyFlags(body[8], flagSuccess)
	case kindPreVoteReply:
		return &raft.RequestPreVoteResponse{Term: be.Uint64(body), Granted: body[8] != 0}, onlyFlags(body[8], flagSuccess)
	case kindTimeoutNow:
		return &raft.TimeoutNowRequest{}, nil
	case kindTimeoutNowReply:
		return &raft.TimeoutNowResponse{}, nil
	case kindSnapshot:
		return decodeChunk(body)
	case kindSnapshotReply:
		s := snapshotState(body[8])
		if s < snapshotTaken || s > snapshotInstalled {
			return nil, fmt.Errorf("%w: snapshot state %d", errMalformed, s)
		}
		return &snapshotReply{be.Uint64(body), s}, nil
	case kindRefusal:
		if !utf8.Valid(body) {
			return nil, fmt.Errorf("%w: refusal is no UTF-8", errMalformed)
		}
		return refusal(body), nil
	}
	return nil, fmt.Errorf("%w: unknown frame kind %d", errMalformed, k)
}

func decodeChunk(body []byte) (*snapshotChunk, error) {
	be := binary.BigEndian
	m := &snapshotChunk{Term: be.Uint64(body), Index: be.Uint64(body[8:]), LogTerm: be.Uint64(body[16:]),
		ConfigurationIndex: be.Uint64(body[24:]), Size: be.Uint64(body[32:]), Offset: be.Uint64(body[40:])}
	n, rest := int(be.Uint16(body[48:])), body[chunkFixed:]
	if n > maxConfiguration || n > len(rest) || len(rest)-n > maxChunk {
		return nil, fmt.Errorf("%w: chunk with a configuration of %d bytes in %d", errMalformed, n, len(rest))
	}
	m.Configuration, m.Data = rest[:n:n], rest[n:]
	return m, nil
}

func onlyFlags(got, known byte) error {
	if got&^known != 0 {
		return fmt.Errorf("%w: flags %#x, known are %#x", errMalformed, got, known)
	}
	return nil
}

func decodeAppend(body []byte) (*raft.AppendEntriesRequest, error) {
	be := binary.BigEndian
	m := &raft.AppendEntriesRequest{
		Term: be.Uint64(body), PrevLogEntry: be.Uint64(body[8:]),
		PrevLogTerm: be.Uint64(body[16:]), LeaderCommitIndex: be.Uint64(body[24:]),
	}
	count := int(be.Uint16(body[32:]))
	body = body[appendFixed:]
	if count > maxEntries || count*entryHeader > len(body) {
		return nil, fmt.Errorf("%w: %d entries in %d bytes, at most %d allowed", errMalformed, count, len(body), maxEntries)
	}
	if m.PrevLogEntry+uint64(count) < m.PrevLogEntry {
		return nil, fmt.Errorf("%w: entries from index %d overflow", errMalformed, m.PrevLogEntry)
	}
	logs := make([]raft.Log, count)
	m.Entries = make([]*raft.Log, count)
	for i := range logs {
		if len(body) < entryHeader {
			return nil, fmt.Errorf("%w: entry %d of %d is cut off", errMalformed, i, count)
		}
		size := int64(be.Uint32(body[9:]))
		if size > int64(len(body)-entryHeader) {
			return nil, fmt.Errorf("%w: entry %d of %d claims %d bytes, %d are left", errMalformed, i, count, size, len(body)-entryHeader)
		}
		logs[i] = raft.Log{Index: m.PrevLogEntry + uint64(i) + 1, Term: be.Uint64(body), Type: raft.LogType(body[8])}
		if size > 0 {
			logs[i].Data = body[entryHeader : entryHeader+size : entryHeader+size]
		}
		m.Entries[i] = &logs[i]
		body = body[entryHeader+size:]
	}
	if len(body) != 0 {
		return nil, fmt.Errorf("%w: %d bytes behind the last entry", errMalformed, len(body))
	}
	return m, nil
}

// fitting returns how many entries of a request go into one frame.
func fitting(entries []*raft.Log) int {
	size := appendFixed
	for i, e := range entries {
		size += entryHeader + len(e.Data)
		if size > maxFrame || i == maxEntries {
			return i
		}
	}
	return len(entries)
}
