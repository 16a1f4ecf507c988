package replica

import (
	"bufio"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// fakeRaft is what a transport asks of raft.
type fakeRaft struct{ term, commit atomic.Uint64 }

func (f *fakeRaft) CurrentTerm() uint64                               { return f.term.Load() }
func (f *fakeRaft) CommitIndex() uint64                               { return f.commit.Load() }
func (f *fakeRaft) State() raft.RaftState                             { return raft.Follower }
func (f *fakeRaft) LeaderWithID() (raft.ServerAddress, raft.ServerID) { return "", "" }

// alone runs a transport of peer 0 without raft, in a bubble, on a network in which peer 1
// is served by serve. It has the log of guarded.
func alone(t *testing.T, serve func(identity.PeerID, io.ReadWriteCloser), f func(*testing.T, *transport, *network, *fakeRaft)) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(time.Millisecond)
		n.update(func() { n.serve[peerOf(1)], n.serve[peerOf(0)] = serve, serve })
		store, err := watch(newMemoryStore(), func(error) {})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(store.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(voters(0, 1, 2))}),
			store.StoreLogs(entries(2, 10, 3))); err != nil {
			t.Fatal(err)
		}
		cfg := Config{Self: peerOf(0), Peers: peers{n, peerOf(0)}, Machine: &kv{},
			Member: func(p identity.PeerID) bool { return p != peerOf(9) }, Store: store}
		if err := cfg.complete(); err != nil {
			t.Fatal(err)
		}
		tr := newTransport(cfg, store, 0, func(identity.PeerID, error) {})
		r := &fakeRaft{}
		r.term.Store(3)
		tr.attach(r)
		defer func() {
			tr.Close()
			tr.wg.Wait()
			n.kill(peerOf(1))
			n.accepts.Wait()
		}()
		f(t, tr, n, r)
	})
}

// silent reads and never answers; it counts its streams.
type silent struct{ streams atomic.Int32 }

func (s *silent) serve(_ identity.PeerID, rwc io.ReadWriteCloser) {
	s.streams.Add(1)
	io.Copy(io.Discard, rwc)
	rwc.Close()
}

func serverID(i int) raft.ServerID { return raft.ServerID(peerOf(i).String()) }

func TestDeadlines(t *testing.T) {
	var s silent
	alone(t, s.serve, func(t *testing.T, tr *transport, _ *network, _ *fakeRaft) {
		id := serverID(1)
		for _, c := range []struct {
			name  string
			limit time.Duration
			call  func() error
		}{
			{"vote", heartbeatTimeout, func() error {
				return tr.RequestVote(id, "", &raft.RequestVoteRequest{Term: 1}, &raft.RequestVoteResponse{})
			}},
			{"pre-vote", heartbeatTimeout, func() error {
				return tr.RequestPreVote(id, "", &raft.RequestPreVoteRequest{Term: 1}, &raft.RequestPreVoteResponse{})
			}},
			{"heartbeat", heartbeatTimeout, func() error {
				return tr.AppendEntries(id, "", &raft.AppendEntriesRequest{Term: 1}, &raft.AppendEntriesResponse{})
			}},
			{"append", bulkFactor * heartbeatTimeout, func() error {
				return tr.AppendEntries(id, "", &raft.AppendEntriesRequest{Term: 1, Entries: entries(1, 1, 1)}, &raft.AppendEntriesResponse{})
			}},
			{"TimeoutNow", heartbeatTimeout, func() error {
				return tr.TimeoutNow(id, "", &raft.TimeoutNowRequest{}, &raft.TimeoutNowResponse{})
			}},
			{"snapshot", bulkFactor * heartbeatTimeout, func() error {
				return tr.InstallSnapshot(id, "", &raft.InstallSnapshotRequest{Term: 1, Size: 1}, &raft.InstallSnapshotResponse{}, strings.NewReader("x"))
			}},
		} {
			before, start := s.streams.Load(), time.Now()
			if err := c.call(); !errors.Is(err, errDeadline) {
				t.Errorf("%s: %v", c.name, err)
			}
			if took := time.Since(start); took > c.limit+time.Millisecond {
				t.Errorf("%s took %v, want %v", c.name, took, c.limit)
			}
			if got := s.streams.Load() - before; got != 1 {
				t.Errorf("%s opened %d streams, want a new one after a deadline", c.name, got)
			}
		}
	})
}

// While a stream is being opened its users wait no longer than their own deadline, and
// share the attempt.
func TestSlowOpening(t *testing.T) {
	var s silent
	alone(t, s.serve, func(t *testing.T, tr *transport, n *network, _ *fakeRaft) {
		n.split([]identity.PeerID{peerOf(0)}, []identity.PeerID{peerOf(1)})
		start := time.Now()
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := tr.TimeoutNow(serverID(1), "", &raft.TimeoutNowRequest{}, nil); !errors.Is(err, errDeadline) {
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		if took := time.Since(start); took != heartbeatTimeout {
			t.Errorf("took %v", took)
		}
		n.heal()
		synctest.Wait()
		if got := s.streams.Load(); got != 1 {
			t.Errorf("%d streams, want one", got)
		}
	})
}

// Nothing is sent to who may not take part, and what is open to them is closed.
func TestNothingForStrangers(t *testing.T) {
	var s silent
	alone(t, s.serve, func(t *testing.T, tr *transport, n *network, _ *fakeRaft) {
		n.update(func() { n.serve[peerOf(9)] = s.serve })
		if err := tr.TimeoutNow(serverID(9), "", &raft.TimeoutNowRequest{}, nil); err == nil {
			t.Error("sent to a stranger")
		}
		if got := s.streams.Load(); got != 0 {
			t.Errorf("%d streams to a stranger", got)
		}
		o, err := tr.stream(serverID(1), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		tr.member = func(identity.PeerID) bool { return false }
		if _, err := tr.stream(serverID(1), time.Second); err == nil {
			t.Error("a stream to an evicted peer")
		}
		<-o.done
	})
}

// A refused append ends its pipeline: raft must hear nothing of it, neither as success nor
// as a sign of life.
func TestPipelineEndsAtARefusal(t *testing.T) {
	answers := make(chan any, 4)
	serve := func(_ identity.PeerID, rwc io.ReadWriteCloser) {
		defer rwc.Close()
		r := bufio.NewReader(rwc)
		if _, err := io.ReadFull(r, make([]byte, helloSize)); err != nil {
			return
		}
		for {
			h, _, err := readFrame(r, rwc)
			if err != nil {
				return
			}
			if _, err := rwc.Write(appendFrame(nil, h.id, <-answers)); err != nil {
				return
			}
		}
	}
	alone(t, serve, func(t *testing.T, tr *transport, _ *network, _ *fakeRaft) {
		p, err := tr.AppendEntriesPipeline(serverID(1), "")
		if err != nil {
			t.Fatal(err)
		}
		answers <- &raft.AppendEntriesResponse{Term: 3, LastLog: 11, Success: true}
		answers <- refusal("no")
		for i := range uint64(2) {
			if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 3, Entries: entries(11+i, 11+i, 3)}, &raft.AppendEntriesResponse{}); err != nil {
				t.Fatal(err)
			}
		}
		f := <-p.Consumer()
		if err := f.Error(); err != nil || !f.Response().Success || f.Request().Entries[0].Index != 11 {
			t.Fatalf("got %+v, %v", f.Response(), err)
		}
		<-time.After(time.Second)
		select {
		case f := <-p.Consumer():
			t.Fatalf("a refused append came out as %+v", f.Response())
		default:
		}
		if _, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 3}, &raft.AppendEntriesResponse{}); !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Fatalf("got %v", err)
		}
		if o, err := tr.stream(serverID(1), time.Second); err != nil || o != p.(*pipeline).out {
			t.Fatalf("the stream did not survive a refusal: %v", err)
		}
	})
}

// A pipeline holds as many unanswered appends as its window, and its Close lets go who
// waits for more.
func TestPipelineWindow(t *testing.T) {
	var s silent
	alone(t, s.serve, func(t *testing.T, tr *transport, _ *network, _ *fakeRaft) {
		p, err := tr.AppendEntriesPipeline(serverID(1), "")
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 10)
		go func() {
			for i := range uint64(pipelineWindow + 1) {
				_, err := p.AppendEntries(&raft.AppendEntriesRequest{Term: 3, Entries: entries(1+i, 1+i, 3)}, &raft.AppendEntriesResponse{})
				sent <- err
			}
		}()
		synctest.Wait()
		if len(sent) != pipelineWindow {
			t.Fatalf("%d appends went out, want %d", len(sent), pipelineWindow)
		}
		p.Close()
		for range pipelineWindow {
			if err := <-sent; err != nil {
				t.Fatal(err)
			}
		}
		if err := <-sent; !errors.Is(err, raft.ErrPipelineShutdown) {
			t.Fatalf("got %v", err)
		}
	})
}

// A peer has one incoming stream. The newest counts: an older one may be half dead.
func TestNewestStreamReplaces(t *testing.T) {
	var s silent
	alone(t, s.serve, func(t *testing.T, tr *transport, n *network, _ *fakeRaft) {
		open := func() *end {
			here, there := n.pipe(peerOf(1), peerOf(0))
			n.accepts.Go(func() { tr.serve(peerOf(1), there) })
			synctest.Wait()
			return here
		}
		first, second := open(), open()
		start := time.Now()
		if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(start) > 0 {
			t.Fatalf("the older stream lives: %v after %v", err, time.Since(start))
		}
		go func() {
			rpc := <-tr.Consumer()
			rpc.Respond(&raft.RequestPreVoteResponse{Term: 3}, nil)
		}()
		a := &attacker{rwc: second, r: bufio.NewReader(second)}
		a.rwc.Write(appendHello(nil, peerOf(1), peerOf(0)))
		if _, err := a.send(&raft.RequestPreVoteRequest{Term: 3}); err != nil {
			t.Fatalf("the newer stream: %v", err)
		}
		second.Close()
	})
}

// A request is judged by the state that it will meet: not before raft has answered the one
// ahead of it, whoever sent that.
func TestGateKeepsOrder(t *testing.T) {
	var s silent
	alone(t, s.serve, func(t *testing.T, tr *transport, _ *network, r *fakeRaft) {
		committing := &raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 10, PrevLogTerm: 3, LeaderCommitIndex: 10}
		rewriting := &raft.AppendEntriesRequest{Term: 5, PrevLogEntry: 8, PrevLogTerm: 3, Entries: entries(9, 9, 5)}
		answers := make(chan any, 2)
		handle := func(i int, m any) {
			reply, err := tr.handle(peerOf(i), []byte(peerOf(i).String()), m, &assembly{})
			if err != nil {
				t.Error(err)
			}
			answers <- reply
		}
		go handle(1, committing)
		rpc := <-tr.Consumer()
		go handle(2, rewriting)
		synctest.Wait()
		r.commit.Store(10)
		rpc.Respond(&raft.AppendEntriesResponse{Term: 4, Success: true}, nil)
		<-answers
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		select {
		case reply := <-answers:
			if _, refused := reply.(refusal); !refused {
				t.Fatalf("answered %+v", reply)
			}
		case rpc := <-tr.Consumer():
			rpc.Respond(&raft.AppendEntriesResponse{}, nil)
			t.Fatal("raft was given a request that rewrites what had just been committed")
		case <-ctx.Done():
			t.Fatal("no answer")
		}
	})
}
