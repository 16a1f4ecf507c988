package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// A snapshot travels in chunks on the stream of all other requests, each answered before the
// next is sent. The receiver holds them in memory. When it has all it checks them
// beside the stream, while heartbeats go on; the sender asks whether that is done. Only then is
// raft told, which stores the snapshot and restores the machine from it. A transfer that is cut
// off leaves nothing behind and begins anew.

// snapshotChunk is a part of a snapshot; one at the end, without data, asks for its installation.
type snapshotChunk struct {
	Term               uint64 // the sender's
	Index, LogTerm     uint64
	ConfigurationIndex uint64
	Size, Offset       uint64
	Configuration      []byte
	Data               []byte
}

// snapshotReply answers a chunk.
type snapshotReply struct {
	Term  uint64
	State snapshotState
}

type snapshotState byte

const (
	snapshotTaken     snapshotState = 1 // go on
	snapshotChecking  snapshotState = 2 // ask again
	snapshotInstalled snapshotState = 3
)

// sameSnapshot reports whether b belongs to the snapshot that a began.
func (a *snapshotChunk) sameSnapshot(b *snapshotChunk) bool {
	return a.Term == b.Term && a.Index == b.Index && a.LogTerm == b.LogTerm && a.ConfigurationIndex == b.ConfigurationIndex &&
		a.Size == b.Size && bytes.Equal(a.Configuration, b.Configuration)
}

// inspectChunk checks what needs nothing but the chunk.
func inspectChunk(m *snapshotChunk) error {
	if m.Index == 0 || m.LogTerm == 0 || m.LogTerm > m.Term || m.ConfigurationIndex == 0 || m.ConfigurationIndex > m.Index {
		return fmt.Errorf("%w: snapshot at entry %d of term %d in term %d with configuration %d", errRefused, m.Index, m.LogTerm, m.Term, m.ConfigurationIndex)
	}
	if m.Size == 0 || m.Size > MaxSnapshot {
		return fmt.Errorf("%w: snapshot of %d bytes, at most %d", errRefused, m.Size, MaxSnapshot)
	}
	if m.Offset > m.Size || uint64(len(m.Data)) > m.Size-m.Offset || (len(m.Data) == 0) != (m.Offset == m.Size) {
		return fmt.Errorf("%w: %d bytes at %d of a snapshot of %d", errRefused, len(m.Data), m.Offset, m.Size)
	}
	_, err := decodeConfiguration(m.Configuration)
	return err
}

// admitChunk decides about a chunk that passed inspectChunk.
func (g *guard) admitChunk(v view, peer identity.PeerID, m *snapshotChunk) error {
	if err := g.distrusts(peer, v.now); err != nil {
		return err
	}
	if err := g.checkTerm(v, peer, m.Term); err != nil {
		return err
	}
	if m.Term < v.term || m.Term == v.term && v.leads || m.Term != g.officeTerm || peer != g.officeHolder {
		return fmt.Errorf("%w: snapshot of other than the leader of term %d", errRefused, v.term)
	}
	if m.Index <= v.floor {
		return fmt.Errorf("%w: snapshot at entry %d, committed are entries up to %d", errRefused, m.Index, v.floor)
	}
	if stored, err := v.entry(m.Index); err == nil && stored.Term == m.LogTerm {
		return fmt.Errorf("%w: snapshot at entry %d, which is in the log", errRefused, m.Index)
	}
	return nil
}

// assembly is the snapshot that comes in on one stream. It belongs to the goroutine that
// answers that stream.
type assembly struct {
	first   *snapshotChunk
	data    []byte
	checked chan error // set once data is whole; has the verdict
	verdict error
	judged  bool
	slot    *slot
}

// slot is held by the one snapshot that may come in at a time, until neither the stream nor the
// check needs it.
type slot struct {
	free chan<- struct{}
	uses int // guarded by the transport's mu
}

func (t *transport) takeSlot() (*slot, bool) {
	select {
	case <-t.snapshotSlot:
		return &slot{free: t.snapshotSlot, uses: 1}, true
	default:
		return nil, false
	}
}

func (t *transport) use(s *slot, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.uses += n; s.uses == 0 {
		s.free <- struct{}{}
	}
}

// dropAssembly forgets what came in so far.
func (t *transport) dropAssembly(a *assembly) {
	if a.slot != nil {
		t.use(a.slot, -1)
	}
	*a = assembly{}
}

// take answers a chunk.
func (t *transport) take(peer identity.PeerID, id []byte, a *assembly, m *snapshotChunk) (any, error) {
	err := inspectChunk(m)
	if err == nil {
		v := t.view()
		t.guard.Lock()
		err = t.guard.admitChunk(v, peer, m)
		t.guard.Unlock()
	}
	if err == nil {
		err = t.addChunk(a, m)
	}
	if err != nil {
		t.dropAssembly(a)
		t.refused(peer, err)
		return refusal(err.Error()), nil
	}
	state := snapshotTaken
	if m.Offset == m.Size {
		state = snapshotChecking
	}
	if m.Offset == m.Size && a.done() {
		if a.verdict == nil {
			return t.install(peer, id, a)
		}
		err := fmt.Errorf("%w: %w", errRefused, a.verdict)
		t.dropAssembly(a)
		t.refused(peer, err)
		return refusal(err.Error()), nil
	}
	return &snapshotReply{t.view().term, state}, nil
}

// done reports whether the check is.
func (a *assembly) done() bool {
	if a.judged {
		return true
	}
	select {
	case a.verdict = <-a.checked:
		a.judged = true
	default:
	}
	return a.judged
}

// addChunk adds a chunk to the snapshot that it continues. Memory grows by what has come, not by what was
// announced.
func (t *transport) addChunk(a *assembly, m *snapshotChunk) error {
	if m.Offset == 0 {
		t.dropAssembly(a)
		s, ok := t.takeSlot()
		if !ok {
			return fmt.Errorf("%w: another snapshot is on its way", errRefused)
		}
		first := *m
		first.Data = nil
		*a = assembly{first: &first, slot: s}
	}
	if a.first == nil || !a.first.sameSnapshot(m) || m.Offset != uint64(len(a.data)) {
		return fmt.Errorf("%w: chunk at %d continues no snapshot", errRefused, m.Offset)
	}
	a.data = append(a.data, m.Data...)
	if uint64(len(a.data)) == m.Size && a.checked == nil {
		a.checked = make(chan error, 1)
		t.judge(a)
	}
	return nil
}

// judge has the machine look at the whole snapshot, beside the stream.
func (t *transport) judge(a *assembly) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		a.checked <- errClosed
		return
	}
	a.slot.uses++
	data, verdict, s := a.data, a.checked, a.slot
	c, err := decodeConfiguration(a.first.Configuration)
	t.wg.Go(func() {
		defer t.use(s, -1)
		if err != nil {
			verdict <- err
			return
		}
		var servers []identity.PeerID
		for _, server := range c.Servers {
			p, err := identity.ParsePeerID(string(server.ID))
			if err != nil {
				verdict <- err
				return
			}
			servers = append(servers, p)
		}
		verdict <- t.checkSnapshot(data, servers)
	})
}

// install hands a checked snapshot to raft.
func (t *transport) install(peer identity.PeerID, id []byte, a *assembly) (any, error) {
	m, data := a.first, a.data
	t.dropAssembly(a)
	select {
	case t.gate <- struct{}{}:
		defer func() { <-t.gate }()
	case <-t.ctx.Done():
		return nil, errClosed
	}
	v := t.view()
	t.guard.Lock()
	err := t.guard.admitChunk(v, peer, m)
	if err == nil {
		t.guard.spend(v, peer, m.Term)
	}
	t.guard.Unlock()
	if err != nil {
		t.refused(peer, err)
		return refusal(err.Error()), nil
	}
	reply, err := t.ask(&raft.InstallSnapshotRequest{
		RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: id, Addr: id},
		SnapshotVersion: 1, Term: m.Term, Leader: id, LastLogIndex: m.Index, LastLogTerm: m.LogTerm,
		Configuration: m.Configuration, ConfigurationIndex: m.ConfigurationIndex, Size: int64(len(data)),
	}, bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	r, ok := reply.(*raft.InstallSnapshotResponse)
	if !ok {
		return reply, nil // a refusal
	}
	if !r.Success {
		return refusal("raft did not take the snapshot"), nil
	}
	return &snapshotReply{r.Term, snapshotInstalled}, nil
}

// InstallSnapshot implements raft.Transport.
func (t *transport) InstallSnapshot(id raft.ServerID, _ raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	m := &snapshotChunk{Term: args.Term, Index: args.LastLogIndex, LogTerm: args.LastLogTerm, ConfigurationIndex: args.ConfigurationIndex,
		Size: uint64(args.Size), Configuration: args.Configuration}
	buf := make([]byte, maxChunk)
	for m.Offset < m.Size {
		n, err := io.ReadFull(data, buf[:min(maxChunk, m.Size-m.Offset)])
		if err != nil {
			return err
		}
		m.Data = buf[:n]
		if _, err := t.sendChunk(id, m); err != nil {
			return err
		}
		m.Offset += uint64(n)
	}
	m.Data = nil
	deadline := time.NewTimer(checkTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		reply, err := t.sendChunk(id, m)
		if err != nil {
			return err
		}
		if resp.Term = reply.Term; reply.State == snapshotInstalled {
			resp.Success = true
			return nil
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Errorf("%s has not checked the snapshot within %v", id, checkTimeout)
		case <-t.ctx.Done():
			return errClosed
		}
	}
}

var errOutOfStep = errors.New("an answer to another request")

func (t *transport) sendChunk(id raft.ServerID, m *snapshotChunk) (*snapshotReply, error) {
	reply, err := t.call(id, m, bulkFactor*t.heartbeat)
	if err != nil {
		return nil, err
	}
	r, ok := reply.(*snapshotReply)
	if !ok || (r.State == snapshotTaken) == (m.Offset == m.Size) {
		return nil, errOutOfStep
	}
	return r, nil
}
