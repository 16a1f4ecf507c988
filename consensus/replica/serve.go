package replica

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// incoming is a stream that a peer opened.
type incoming struct{ io.Closer }

// serve answers the requests of a stream that peer opened.
func (t *transport) serve(peer identity.PeerID, rwc io.ReadWriteCloser) {
	defer rwc.Close()
	if peer == t.self || !t.member(peer) {
		t.refused(peer, fmt.Errorf("%w: raft stream of a peer that is not in the allowed set", errRefused))
		return
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	in := &incoming{rwc}
	t.wg.Add(1)
	older := t.in[peer]
	t.in[peer] = in
	t.mu.Unlock()
	defer t.wg.Done()
	if older != nil {
		older.Close()
	}
	err := t.answer(peer, rwc)
	t.mu.Lock()
	if t.in[peer] == in {
		delete(t.in, peer)
	}
	t.mu.Unlock()
	if errors.Is(err, errMalformed) || errors.Is(err, errRefused) {
		t.refused(peer, err)
	}
}

// answer reads requests and writes replies until the stream ends.
func (t *transport) answer(peer identity.PeerID, rwc io.ReadWriteCloser) error {
	select {
	case <-t.ready:
	case <-t.ctx.Done():
		return errClosed
	}
	r := bufio.NewReader(rwc)
	if err := readHello(r, rwc, peer, t.self); err != nil {
		return err
	}
	id := []byte(peer.String())
	var snapshot assembly
	defer func() { t.dropAssembly(&snapshot) }()
	var scratch []byte
	for {
		h, m, err := readFrame(r, rwc)
		if err != nil {
			return err
		}
		reply, err := t.handle(peer, id, m, &snapshot)
		if err != nil {
			return err
		}
		scratch = appendFrame(scratch[:0], h.id, reply)
		stop := time.AfterFunc(frameTimeout, func() { rwc.Close() })
		_, err = rwc.Write(scratch)
		stop.Stop()
		if err != nil {
			return err
		}
	}
}

func readHello(r *bufio.Reader, c io.Closer, from, to identity.PeerID) error {
	defer time.AfterFunc(frameTimeout, func() { c.Close() }).Stop()
	hello := make([]byte, helloSize)
	if _, err := io.ReadFull(r, hello); err != nil {
		return err
	}
	if err := checkHello(hello, from, to); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return nil
}

// handle returns the answer to a request. An error ends the stream.
func (t *transport) handle(peer identity.PeerID, id []byte, m any, snapshot *assembly) (reply any, err error) {
	if !t.member(peer) {
		return nil, fmt.Errorf("%w: not in the allowed set any more", errRefused)
	}
	if chunk, ok := m.(*snapshotChunk); ok {
		return t.take(peer, id, snapshot, chunk)
	}
	if !isRequest(m) {
		return nil, fmt.Errorf("%w: %T is no request", errMalformed, m)
	}
	sign(m, id)
	if err := inspect(m, t.check); err != nil {
		t.refused(peer, err)
		return refusal(err.Error()), nil
	}
	select {
	case t.gate <- struct{}{}:
		defer func() { <-t.gate }()
	case <-t.ctx.Done():
		return nil, errClosed
	}
	v := t.view()
	t.guard.Lock()
	err = t.guard.admit(v, peer, m)
	t.guard.Unlock()
	if err != nil {
		t.refused(peer, err)
		return refusal(err.Error()), nil
	}
	return t.ask(m, nil)
}

func isRequest(m any) bool {
	switch m.(type) {
	case *raft.AppendEntriesRequest, *raft.RequestVoteRequest, *raft.RequestPreVoteRequest, *raft.TimeoutNowRequest:
		return true
	}
	return false
}

// sign fills in the sender, which is never what a message says but whom the stream was
// authenticated for.
func sign(m any, id []byte) {
	h := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: id, Addr: id}
	switch m := m.(type) {
	case *raft.AppendEntriesRequest:
		m.RPCHeader = h
	case *raft.RequestVoteRequest:
		m.RPCHeader = h
	case *raft.RequestPreVoteRequest:
		m.RPCHeader = h
	case *raft.TimeoutNowRequest:
		m.RPCHeader = h
	}
}

// ask hands a request to raft's main loop.
func (t *transport) ask(m any, data io.Reader) (any, error) {
	answer := make(chan raft.RPCResponse, 1)
	select {
	case t.rpcs <- raft.RPC{Command: m, Reader: data, RespChan: answer}:
	case <-t.ctx.Done():
		return nil, errClosed
	}
	select {
	case a := <-answer:
		if a.Error != nil {
			return refusal(a.Error.Error()), nil
		}
		return a.Response, nil
	case <-t.ctx.Done():
		return nil, errClosed
	}
}
