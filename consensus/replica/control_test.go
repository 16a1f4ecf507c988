package replica

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/hashicorp/raft"
)

// attack is one thing a hostile peer sends. It is sent to a stock raft, where it does harm,
// and to a Replica, where it must not.
type attack struct {
	name string
	// request makes the message from what the victim's log looks like.
	request func(s standing) any
	// panics says that the stock raft dies of it; otherwise harmed sees the harm.
	panics bool
	harmed func(v victim) bool
	// seats says that a member of the mesh must not succeed either.
	seats bool
}

// standing is the end of a victim's log.
type standing struct{ term, last, lastTerm uint64 }

// victim is what an attack may have changed.
type victim struct {
	raft    *raft.Raft
	logs    raft.LogStore
	machine *kv
	before  standing
}

func (v victim) entry(i uint64) string {
	var l raft.Log
	if err := v.logs.GetLog(i, &l); err != nil {
		return err.Error()
	}
	return string(l.Data)
}

// evil signs a message for a stock raft, which believes it.
func evil(id string) raft.RPCHeader {
	return raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(id), Addr: []byte(id)}
}

// appending makes an append in the next term of one entry behind the victim's last.
func appending(s standing, kind raft.LogType, data []byte) *raft.AppendEntriesRequest {
	return &raft.AppendEntriesRequest{RPCHeader: evil("evil"), Term: s.term + 1, PrevLogEntry: s.last, PrevLogTerm: s.lastTerm,
		LeaderCommitIndex: s.last + 1,
		Entries:           []*raft.Log{{Index: s.last + 1, Term: s.term + 1, Type: kind, Data: data}}}
}

func attacks() []attack {
	usurper := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
		{ID: raft.ServerID(peerOf(2).String()), Address: raft.ServerAddress(peerOf(2).String())}}})
	return []attack{
		{name: "term overflow", seats: true,
			request: func(standing) any {
				return &raft.AppendEntriesRequest{RPCHeader: evil("evil"), Term: math.MaxUint64}
			},
			harmed: func(v victim) bool { return v.raft.CurrentTerm() > 1<<62 }},
		{name: "rewrite of a committed entry", seats: true,
			request: func(s standing) any {
				return &raft.AppendEntriesRequest{RPCHeader: evil("evil"), Term: s.term + 1, PrevLogEntry: 2, PrevLogTerm: s.lastTerm,
					Entries: []*raft.Log{{Index: 3, Term: s.term + 1, Data: []byte("forged=1")}}}
			},
			harmed: func(v victim) bool { return v.entry(3) == "forged=1" }},
		{name: "rewrite of the founding configuration", seats: true,
			request: func(s standing) any {
				return &raft.AppendEntriesRequest{RPCHeader: evil("evil"), Term: s.term + 1,
					Entries: []*raft.Log{{Index: 1, Term: s.term + 1, Type: raft.LogConfiguration, Data: usurper}}}
			},
			harmed: func(v victim) bool { return v.entry(1) == string(usurper) }},
		{name: "replaced configuration", seats: true,
			request: func(s standing) any { return appending(s, raft.LogConfiguration, usurper) },
			harmed: func(v victim) bool {
				return len(v.raft.GetConfiguration().Configuration().Servers) == 1 && v.entry(1) != v.entry(v.raft.LastIndex()) && v.entry(v.raft.LastIndex()) == string(usurper)
			}},
		{name: "malformed configuration", seats: true, panics: true,
			request: func(s standing) any { return appending(s, raft.LogConfiguration, []byte("\xc1garbage")) }},
		{name: "unknown log type", seats: true, panics: true,
			request: func(s standing) any { return appending(s, 99, []byte("x")) }},
		{name: "forged command", seats: true,
			request: func(s standing) any { return appending(s, raft.LogCommand, []byte("bad=1")) },
			harmed:  func(v victim) bool { return v.machine.get("bad") == "1" }},
		{name: "claim of office by a stranger",
			request: func(s standing) any {
				return &raft.AppendEntriesRequest{RPCHeader: evil("evil"), Term: s.term + 1}
			},
			harmed: func(v victim) bool { return v.raft.CurrentTerm() > v.before.term }},
		{name: "second leader of a term", seats: true,
			request: func(s standing) any {
				return &raft.AppendEntriesRequest{RPCHeader: evil("evil"), Term: s.term}
			},
			harmed: func(v victim) bool {
				_, id := v.raft.LeaderWithID()
				return id == "evil" || v.raft.CurrentTerm() > v.before.term
			}},
		{name: "TimeoutNow", seats: true,
			request: func(standing) any { return &raft.TimeoutNowRequest{RPCHeader: evil("evil")} },
			harmed:  func(v victim) bool { return v.raft.CurrentTerm() > v.before.term }},
		{name: "vote that raises the term", seats: true,
			// Without an id raft v1.8.0 takes the sender for an old version and lets it be.
			request: func(standing) any {
				return &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte("evil")},
					Term: math.MaxUint64 - 1, LeadershipTransfer: true}
			},
			harmed: func(v victim) bool { return v.raft.CurrentTerm() > 1<<62 }},
		{name: "snapshot", seats: true,
			request: func(s standing) any {
				return &raft.InstallSnapshotRequest{RPCHeader: evil("evil"), SnapshotVersion: 1, Term: s.term + 1, LastLogIndex: 999,
					LastLogTerm: s.term, Configuration: usurper, ConfigurationIndex: 999}
			},
			harmed: func(v victim) bool { return v.raft.AppliedIndex() == 999 }},
	}
}

// stock is a raft as its documentation proposes it: on its own transport, over TCP.
type stock struct {
	victim
	transport *raft.NetworkTransport
}

func newStock(others ...raft.Server) (*stock, error) {
	transport, err := raft.NewTCPTransport("127.0.0.1:0", nil, 2, time.Second, io.Discard)
	if err != nil {
		return nil, err
	}
	conf := raft.DefaultConfig()
	conf.LocalID = "victim"
	conf.LogOutput = io.Discard
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = 50*time.Millisecond, 50*time.Millisecond, 50*time.Millisecond
	store, snapshots := raft.NewInmemStore(), raft.NewInmemSnapshotStore()
	m := &kv{values: map[string]string{}}
	servers := append([]raft.Server{{ID: conf.LocalID, Address: transport.LocalAddr()}}, others...)
	if err := raft.BootstrapCluster(conf, store, store, snapshots, transport, raft.Configuration{Servers: servers}); err != nil {
		return nil, err
	}
	r, err := raft.NewRaft(conf, stockFSM{m}, store, store, snapshots, transport)
	return &stock{victim: victim{raft: r, logs: store, machine: m}, transport: transport}, err
}

// stockFSM accepts snapshots, as machines do.
type stockFSM struct{ *kv }

func (f stockFSM) Apply(l *raft.Log) any             { return f.kv.Apply(l.Index, l.Term, l.Data) }
func (stockFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }
func (stockFSM) Restore(r io.ReadCloser) error       { _, err := io.Copy(io.Discard, r); return err }
func (s *stock) close()                              { s.raft.Shutdown().Error(); s.transport.Close() }
func (s *stock) standing() (st standing) {
	st.term, st.last = s.raft.CurrentTerm(), s.raft.LastIndex()
	var l raft.Log
	if s.logs.GetLog(st.last, &l) == nil {
		st.lastTerm = l.Term
	}
	return st
}

// suffer sends the attack from a peer that is in no configuration.
func (s *stock) suffer(a attack) error {
	deadline := time.Now().Add(20 * time.Second)
	for i := 0; i < 5; {
		if s.raft.Apply(fmt.Appendf(nil, "a=%d", i), time.Second).Error() == nil {
			i++
		} else if time.Now().After(deadline) {
			return errors.New("the stock raft does not commit")
		}
	}
	attacker, err := raft.NewTCPTransport("127.0.0.1:0", nil, 1, time.Second, io.Discard)
	if err != nil {
		return err
	}
	defer attacker.Close()
	s.before = s.standing()
	to := s.transport.LocalAddr()
	switch m := a.request(s.before).(type) {
	case *raft.AppendEntriesRequest:
		return attacker.AppendEntries("victim", to, m, &raft.AppendEntriesResponse{})
	case *raft.RequestVoteRequest:
		return attacker.RequestVote("victim", to, m, &raft.RequestVoteResponse{})
	case *raft.TimeoutNowRequest:
		return attacker.TimeoutNow("victim", to, m, &raft.TimeoutNowResponse{})
	case *raft.InstallSnapshotRequest:
		m.Size = 5
		return attacker.InstallSnapshot("victim", to, m, &raft.InstallSnapshotResponse{}, bytes.NewReader([]byte("state")))
	}
	return errors.New("no such message")
}

// controlVariable makes the test binary a stock raft that suffers one attack and, if it
// lives, says so.
const controlVariable = "MESHNODE_REPLICA_CONTROL"

const survived = "survived\n"

// runControl reports whether this process was such a raft.
func runControl() bool {
	name := os.Getenv(controlVariable)
	if name == "" {
		return false
	}
	s, err := newStock()
	if err != nil {
		fmt.Print(err)
		return true
	}
	for _, a := range attacks() {
		if a.name == name {
			err = s.suffer(a)
		}
	}
	<-time.After(2 * time.Second)
	fmt.Print(err, " ", survived)
	return true
}
