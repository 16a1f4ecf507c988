package replica

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// The attacks are real: each does its harm to a stock raft. (If one does not any more, a
// new release of raft has closed a hole, and the guard may be simplified.)
func TestAttacksHarmStockRaft(t *testing.T) {
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			if a.panics {
				cmd := exec.Command(os.Args[0])
				cmd.Env = append(os.Environ(), controlVariable+"="+a.name)
				out, err := cmd.CombinedOutput()
				if err == nil || !strings.Contains(string(out), "panic:") {
					t.Fatalf("the stock raft did not panic: %v\n%s", err, out)
				}
				return
			}
			s, err := newStock()
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			if err := s.suffer(a); err != nil {
				t.Logf("answer: %v", err)
			}
			eventually(t, "harm", func() bool { return a.harmed(s.victim) })
		})
	}
}

// attacker speaks to a replica on a stream authenticated for id.
type attacker struct {
	rwc io.ReadWriteCloser
	r   *bufio.Reader
}

func (c *cluster) attacker(id identity.PeerID, to *Replica) *attacker {
	here, there := c.net.pipe(id, to.cfg.Self)
	c.net.accepts.Go(func() { to.Serve(id, there) })
	a := &attacker{rwc: here, r: bufio.NewReader(here)}
	a.rwc.Write(appendHello(nil, id, to.cfg.Self))
	return a
}

// send writes one frame and returns the answer, or an error if the stream was closed.
func (a *attacker) send(m any) (any, error) {
	if r, ok := m.(*raft.InstallSnapshotRequest); ok {
		data := kvSnapshot("forged=1")
		m = &snapshotChunk{Term: r.Term, Index: r.LastLogIndex, LogTerm: r.LastLogTerm, ConfigurationIndex: r.ConfigurationIndex,
			Size: uint64(len(data)), Configuration: r.Configuration, Data: data}
	}
	return a.raw(appendFrame(nil, 0, m))
}

func (a *attacker) raw(frame []byte) (any, error) {
	if _, err := a.rwc.Write(frame); err != nil {
		return nil, err
	}
	_, reply, err := readFrame(a.r, a.rwc)
	return reply, err
}

// Against a Replica the same messages do nothing, whether a stranger sends them or a seat,
// to a leader or to a follower, and the mesh goes on committing.
func TestAttacksDoNotHarm(t *testing.T) {
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			bubble(t, 2, 1, func(t *testing.T, c *cluster) {
				for i := range 5 {
					c.commit("a=" + string(rune('0'+i)))
				}
				c.agree()
				senders := []identity.PeerID{peerOf(99)}
				if a.seats {
					senders = append(senders, c.ids[2])
				}
				for i, r := range c.replicas {
					for _, sender := range senders {
						c.assault(t, a, sender, r, c.machines[i])
					}
				}
				c.commit("after=1")
				c.agree()
			})
		})
	}
}

func (c *cluster) assault(t *testing.T, a attack, sender identity.PeerID, r *Replica, m *kv) {
	t.Helper()
	stats := r.Stats()
	var last raft.Log
	if err := r.store.GetLog(stats.LastIndex, &last); err != nil {
		t.Fatal(err)
	}
	v := victim{raft: r.raft, logs: r.store, machine: m, before: standing{stats.Term, stats.LastIndex, last.Term}}
	evil := c.attacker(sender, r)
	defer evil.rwc.Close()
	reply, err := evil.send(a.request(v.before))
	if _, refused := reply.(refusal); err == nil && !refused {
		t.Fatalf("%s, a %s: answered %+v", r.cfg.Self.Short(), stats.State, reply)
	}
	<-time.After(10 * time.Second) // some election timeouts
	now := r.Stats()
	if a.harmed != nil && a.harmed(v) || now.Term != stats.Term || now.Leader != stats.Leader || now.State != stats.State || now.LastIndex != stats.LastIndex {
		t.Fatalf("harmed: %+v, was %+v", now, stats)
	}
	if now.Refused == stats.Refused {
		t.Fatal("nothing was refused")
	}
}

// Before the first commit nothing counts as committed but the founding configuration.
func TestFoundingWindow(t *testing.T) {
	bubble(t, 1, 2, func(t *testing.T, c *cluster) {
		r := c.replicas[0]
		if s := r.Stats(); s.CommitIndex != 0 || s.LastIndex != 1 {
			t.Fatalf("not founding any more: %+v", s)
		}
		for _, l := range []raft.Log{
			{Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(voters(1, 2))},
			{Type: raft.LogNoop},
		} {
			evil := c.attacker(c.ids[1], r)
			l.Index, l.Term = 1, r.Term()+1
			reply, err := evil.send(&raft.AppendEntriesRequest{Term: r.Term() + 1, Entries: []*raft.Log{&l}})
			if _, refused := reply.(refusal); err != nil || !refused {
				t.Fatalf("%s: answered %+v, %v", l.Type, reply, err)
			}
			evil.rwc.Close()
		}
		if got := r.Voters(); len(got) != 3 {
			t.Fatalf("voters are %v", got)
		}
	})
}

// A peer may lie in replies, too. A stock raft takes over any term it is told.
func TestHostileReplies(t *testing.T) {
	t.Run("stock", func(t *testing.T) {
		liar, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Second, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		defer liar.Close()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for {
				select {
				case rpc := <-liar.Consumer():
					rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: evil("evil"), Term: math.MaxUint64}, nil)
				case <-stop:
					return
				}
			}
		}()
		s, err := newStock(raft.Server{ID: "evil", Address: liar.LocalAddr()})
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		eventually(t, "harm", func() bool { return s.raft.CurrentTerm() == math.MaxUint64 })
	})
	bubble(t, 2, 1, func(t *testing.T, c *cluster) {
		c.net.update(func() { c.net.serve[c.ids[2]] = lie })
		c.commit("a=1")
		<-time.After(time.Minute)
		c.commit("a=2")
		c.agree()
		if l := c.leader(); l.Term() > 10 || l.Stats().Refused == 0 {
			t.Fatalf("stats are %+v", l.Stats())
		}
	})
}

// lie answers every request with the greatest term.
func lie(_ identity.PeerID, rwc io.ReadWriteCloser) {
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
		var reply any
		switch h.kind {
		case kindAppend:
			reply = &raft.AppendEntriesResponse{Term: math.MaxUint64, LastLog: math.MaxUint64}
		case kindVote:
			reply = &raft.RequestVoteResponse{Term: math.MaxUint64}
		case kindPreVote:
			reply = &raft.RequestPreVoteResponse{Term: math.MaxUint64}
		default:
			reply = &raft.TimeoutNowResponse{}
		}
		if _, err := rwc.Write(appendFrame(nil, h.id, reply)); err != nil {
			return
		}
	}
}

// Streams end at the first malformed byte, and nothing a header claims is allocated.
func TestMalformedStreams(t *testing.T) {
	heartbeat := func(change func([]byte) []byte) []byte {
		return change(appendFrame(nil, 0, &raft.AppendEntriesRequest{Term: 1}))
	}
	cases := map[string][]byte{
		"oversized":       heartbeat(func(b []byte) []byte { binary.BigEndian.PutUint32(b, math.MaxUint32); return b }),
		"undersized":      heartbeat(func(b []byte) []byte { binary.BigEndian.PutUint32(b, 3); return b }),
		"version":         heartbeat(func(b []byte) []byte { b[4] = 2; return b }),
		"kind 0":          heartbeat(func(b []byte) []byte { b[5] = 0; return b }),
		"entries missing": heartbeat(func(b []byte) []byte { b[len(b)-1] = 1; return b }),
		"reply":           appendFrame(nil, 0, &raft.AppendEntriesResponse{Term: 1}),
	}
	bubble(t, 2, 1, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		for name, frame := range cases {
			a := c.attacker(c.ids[2], l)
			if reply, err := a.raw(frame); err == nil {
				t.Errorf("%s: answered %+v", name, reply)
			}
			a.rwc.Close()
		}
		// A frame that never ends.
		a := c.attacker(c.ids[2], l)
		start := time.Now()
		if reply, err := a.raw(heartbeat(func(b []byte) []byte { return b[:20] })); err == nil {
			t.Errorf("half a frame: answered %+v", reply)
		}
		if took := time.Since(start); took > 2*frameTimeout {
			t.Errorf("half a frame held the stream for %v", took)
		}
		a.rwc.Close()
		c.commit("a=2")
	})
}

// A hello must name the peer that the stream belongs to, and us.
func TestHelloIsChecked(t *testing.T) {
	bubble(t, 2, 1, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		for _, hello := range [][]byte{
			appendHello(nil, c.ids[0], l.cfg.Self),                                     // another seat's name
			appendHello(nil, c.ids[2], c.ids[2]),                                       // for another seat
			append([]byte{'M', 'R', 2}, appendHello(nil, c.ids[2], l.cfg.Self)[3:]...), // another version
			make([]byte, helloSize),
		} {
			here, there := c.net.pipe(c.ids[2], l.cfg.Self)
			c.net.accepts.Go(func() { l.Serve(c.ids[2], there) })
			a := &attacker{rwc: here, r: bufio.NewReader(here)}
			a.rwc.Write(hello)
			if reply, err := a.send(&raft.AppendEntriesRequest{Term: 1}); err == nil {
				t.Errorf("hello %x: answered %+v", hello, reply)
			}
			a.rwc.Close()
		}
	})
}

// Eviction acts on streams that are open: at the next message.
func TestEvictedPeerLosesItsStream(t *testing.T) {
	bubble(t, 2, 1, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		a := c.attacker(c.ids[2], l)
		if _, err := a.send(&raft.RequestPreVoteRequest{Term: l.Term()}); err != nil {
			t.Fatal(err)
		}
		c.banned.Store(c.ids[2], true)
		if reply, err := a.send(&raft.RequestPreVoteRequest{Term: l.Term()}); !errors.Is(err, io.EOF) {
			t.Fatalf("got %+v, %v, want the end of the stream", reply, err)
		}
		a.rwc.Close()
	})
}

// A stranger's stream ends before a byte of it is read, and so does one of ourselves.
func TestStrangersGetNoStream(t *testing.T) {
	bubble(t, 2, 1, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		for _, id := range []identity.PeerID{peerOf(99), l.cfg.Self} {
			here, there := c.net.pipe(id, l.cfg.Self)
			c.net.accepts.Go(func() { l.Serve(id, there) })
			start := time.Now()
			if n, err := here.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read %d bytes, %v", n, err)
			}
			if took := time.Since(start); took > 0 {
				t.Errorf("the stream was kept for %v", took)
			}
		}
	})
}

// The heartbeat fast path of raft (hashicorp/raft#695) must stay off: heartbeats queue
// with everything else.
func TestHeartbeatsTakeTheMainLoop(t *testing.T) {
	tr := newTransport(Config{Self: peerOf(0), Machine: &kv{}, Timing: fast()}, nil, 0, nil)
	defer tr.Close()
	tr.SetHeartbeatHandler(func(raft.RPC) { t.Error("the fast path was taken") })
	go func() {
		rpc := <-tr.Consumer()
		rpc.Respond(&raft.AppendEntriesResponse{Success: true}, nil)
	}()
	reply, err := tr.ask(&raft.AppendEntriesRequest{Term: 1}, nil)
	if err != nil || !reply.(*raft.AppendEntriesResponse).Success {
		t.Fatalf("got %v, %v", reply, err)
	}
}
