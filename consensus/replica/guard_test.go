package replica

import (
	"context"
	"errors"
	"math"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

func context5() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 5*time.Second)
}

func config(suffrage map[int]raft.ServerSuffrage) raft.Configuration {
	var c raft.Configuration
	for i := range 10 {
		if s, ok := suffrage[i]; ok {
			id := peerOf(i).String()
			c.Servers = append(c.Servers, raft.Server{Suffrage: s, ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		}
	}
	return c
}

func voters(ids ...int) raft.Configuration {
	m := map[int]raft.ServerSuffrage{}
	for _, i := range ids {
		m[i] = raft.Voter
	}
	return config(m)
}

// guarded is a replica's log for the pure guard: configuration at 1, commands 2 to 10 of
// term 3, committed up to 7.
func guarded() view {
	logs := newMemoryStore()
	logs.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(voters(0, 1, 2))})
	logs.StoreLogs(entries(2, 10, 3))
	return view{
		self: peerOf(0), now: time.Unix(1000, 0), term: 3, floor: 7, leader: raft.ServerID(peerOf(1).String()),
		entry: func(i uint64) (l raft.Log, err error) {
			err = logs.GetLog(i, &l)
			return l, err
		},
		before: func(i uint64) (raft.Configuration, bool) { return voters(0, 1, 2), i > 1 },
	}
}

func newTestGuard() *guard { return newGuard(heartbeatTimeout, electionTimeout) }

func TestGuardAdmitsWhatRaftSends(t *testing.T) {
	add := raft.EncodeConfiguration(config(map[int]raft.ServerSuffrage{0: raft.Voter, 1: raft.Voter, 2: raft.Voter, 3: raft.Nonvoter}))
	promote := raft.EncodeConfiguration(voters(0, 1, 2, 3))
	for name, m := range map[string]any{
		"heartbeat":            &raft.AppendEntriesRequest{Term: 3},
		"heartbeat, next term": &raft.AppendEntriesRequest{Term: 4},
		"append":               &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 10, PrevLogTerm: 3, Entries: entries(11, 12, 3)},
		"repeated append":      &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 4, PrevLogTerm: 3, Entries: entries(5, 12, 3)},
		"replaced uncommitted": &raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 7, PrevLogTerm: 3, Entries: entries(8, 8, 4)},
		"old leader":           &raft.AppendEntriesRequest{Term: 2, PrevLogEntry: 2, PrevLogTerm: 2, Entries: entries(3, 3, 2)},
		"probe of another log": &raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 900, PrevLogTerm: 4},
		"vote":                 &raft.RequestVoteRequest{Term: 4, LastLogIndex: 10, LastLogTerm: 3},
		"pre-vote":             &raft.RequestPreVoteRequest{Term: 4, LastLogIndex: 10, LastLogTerm: 3},
		"vote in a transfer":   &raft.RequestVoteRequest{Term: 4, LastLogIndex: 10, LastLogTerm: 3, LeadershipTransfer: true},
		"TimeoutNow":           &raft.TimeoutNowRequest{},
		"two configurations": &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 10, PrevLogTerm: 3, Entries: []*raft.Log{
			{Index: 11, Term: 3, Type: raft.LogConfiguration, Data: add},
			{Index: 12, Term: 3, Type: raft.LogConfiguration, Data: promote}}},
		"a thousand terms later": &raft.AppendEntriesRequest{Term: 1003},
	} {
		if err := inspect(m, func([]byte) error { return nil }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := newTestGuard().admit(guarded(), peerOf(1), m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestGuardRefuses(t *testing.T) {
	config := func(c raft.Configuration) *raft.AppendEntriesRequest {
		return &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 10, PrevLogTerm: 3, Entries: []*raft.Log{
			{Index: 11, Term: 3, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(c)}}}
	}
	one := func(l raft.Log) *raft.AppendEntriesRequest {
		l.Index = 11
		return &raft.AppendEntriesRequest{Term: 3, PrevLogEntry: 10, PrevLogTerm: 3, Entries: []*raft.Log{&l}}
	}
	twice, foreign, alias, staging := voters(0, 1, 2), voters(0, 1, 2), voters(0, 1, 2), voters(0, 1, 2)
	twice.Servers = append(twice.Servers, twice.Servers[0])
	foreign.Servers[0].ID, foreign.Servers[0].Address = "10.0.0.1:80", "10.0.0.1:80"
	alias.Servers[0].Address = alias.Servers[1].Address
	staging.Servers[0].Suffrage = raft.Staging
	sameTerm := entries(5, 5, 3)
	sameTerm[0].Data = []byte("other content under the same index and term")
	for name, m := range map[string]any{
		"term too far":              &raft.AppendEntriesRequest{Term: 1004},
		"term overflow":             &raft.RequestVoteRequest{Term: math.MaxUint64},
		"pre-vote overflow":         &raft.RequestPreVoteRequest{Term: math.MaxUint64},
		"rewrite committed":         &raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 6, PrevLogTerm: 3, Entries: entries(7, 8, 4)},
		"rewrite under same term":   &raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 4, PrevLogTerm: 3, Entries: sameTerm},
		"terms that fall":           &raft.AppendEntriesRequest{Term: 5, PrevLogEntry: 10, PrevLogTerm: 3, Entries: append(entries(11, 11, 5), entries(12, 12, 4)...)},
		"entry of a future term":    &raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 10, PrevLogTerm: 3, Entries: entries(11, 11, 5)},
		"entry older than previous": &raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 10, PrevLogTerm: 3, Entries: entries(11, 11, 2)},
		"term before the first":     &raft.AppendEntriesRequest{Term: 4, PrevLogTerm: 3},
		"unknown type":              one(raft.Log{Term: 3, Type: 99}),
		"deprecated type":           one(raft.Log{Term: 3, Type: raft.LogAddPeerDeprecated, Data: []byte("x")}),
		"noop with data":            one(raft.Log{Term: 3, Type: raft.LogNoop, Data: []byte("x")}),
		"empty command":             one(raft.Log{Term: 3}),
		"oversized command":         one(raft.Log{Term: 3, Data: make([]byte, MaxCommand+1)}),
		"refused command":           one(raft.Log{Term: 3, Data: []byte("bad")}),
		"garbage configuration":     one(raft.Log{Term: 3, Type: raft.LogConfiguration, Data: []byte("garbage")}),
		"padded configuration":      one(raft.Log{Term: 3, Type: raft.LogConfiguration, Data: append(raft.EncodeConfiguration(voters(0, 1)), 0)}),
		"oversized configuration":   one(raft.Log{Term: 3, Type: raft.LogConfiguration, Data: make([]byte, maxConfiguration+1)}),
		"no voters":                 config(raft.Configuration{}),
		"server named twice":        config(twice),
		"server that is no peer":    config(foreign),
		"address of another":        config(alias),
		"unknown suffrage":          config(staging),
		"two servers at once":       config(voters(0, 1, 2, 3, 4)),
		"exchange of a server":      config(voters(0, 1, 3)),
		"vote of a future log":      &raft.RequestVoteRequest{Term: 4, LastLogTerm: 5},
		"vote in term 0":            &raft.RequestVoteRequest{},
		"reply as request":          &raft.AppendEntriesResponse{},
	} {
		check := func(b []byte) error {
			if string(b) == "bad" {
				return errors.New("bad signature")
			}
			return nil
		}
		err := inspect(m, check)
		if err == nil {
			err = newTestGuard().admit(guarded(), peerOf(1), m)
		}
		if !errors.Is(err, errRefused) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

func TestGuardOffices(t *testing.T) {
	heartbeat := func(term uint64) any { return &raft.AppendEntriesRequest{Term: term} }
	g, v := newTestGuard(), guarded()
	v.leads = true
	if err := g.admit(v, peerOf(1), heartbeat(3)); !errors.Is(err, errRefused) {
		t.Errorf("a second leader beside this one: %v", err)
	}
	v.leads = false
	steps := []struct {
		peer identity.PeerID
		m    any
		ok   bool
	}{
		{peerOf(1), heartbeat(4), true},
		{peerOf(1), heartbeat(4), true},
		{peerOf(2), heartbeat(4), false},
		{peerOf(2), heartbeat(5), true},
		{peerOf(1), heartbeat(5), false},
		{peerOf(2), &raft.TimeoutNowRequest{}, false}, // raft's leader is peer 1
		{peerOf(1), &raft.TimeoutNowRequest{}, true},
	}
	for i, s := range steps {
		if err := g.admit(v, s.peer, s.m); (err == nil) != s.ok {
			t.Errorf("step %d: got %v", i, err)
		}
	}
	v.leader = ""
	if err := g.admit(v, peerOf(1), &raft.TimeoutNowRequest{}); err == nil {
		t.Error("TimeoutNow without a leader")
	}
}

// A peer that climbs is slowed down; one that was away for long is let in again.
func TestGuardTermRate(t *testing.T) {
	g, v := newTestGuard(), guarded()
	climb := func() (n int) {
		for g.admit(v, peerOf(1), &raft.RequestVoteRequest{Term: v.term + 1}) == nil {
			v.term++
			n++
		}
		return n
	}
	if n := climb(); n != termBurst {
		t.Fatalf("climbed %d terms at once, want %d", n, termBurst)
	}
	if err := g.admit(v, peerOf(2), &raft.RequestVoteRequest{Term: v.term + 1}); err != nil {
		t.Fatalf("another peer pays for it: %v", err)
	}
	v.now = v.now.Add(10 * heartbeatTimeout)
	if n := climb(); n != 10*termsPerHeartbeat {
		t.Fatalf("climbed %d terms in ten heartbeat timeouts, want %d", n, 10*termsPerHeartbeat)
	}
	v.now = v.now.Add(time.Hour * 24 * 365)
	if n := climb(); n != termBurst {
		t.Fatalf("climbed %d terms after a year, want %d", n, termBurst)
	}
	if err := g.admitReply(v, peerOf(3), &raft.RequestVoteResponse{Term: v.term + termBurst + 1}); !errors.Is(err, errRefused) {
		t.Fatalf("reply of a far term: %v", err)
	}
	if err := g.admitReply(v, peerOf(3), &raft.AppendEntriesResponse{Term: v.term + 1}); err != nil {
		t.Fatal(err)
	}
}

// A pause does not end what is for ever, and what is for ever ends a pause.
func TestGuardDistrust(t *testing.T) {
	g, v := newTestGuard(), guarded()
	vote := func() error { return g.admit(v, peerOf(3), &raft.RequestVoteRequest{Term: v.term}) }
	pause := func() { g.distrust(peerOf(3), distrust{errors.New("censors"), v.now.Add(time.Minute)}) }
	pause()
	if err := vote(); !errors.Is(err, errRefused) {
		t.Fatalf("got %v", err)
	}
	v.now = v.now.Add(time.Minute)
	if err := vote(); err != nil {
		t.Fatalf("after the pause: %v", err)
	}
	pause()
	g.distrust(peerOf(3), distrust{errors.New("diverges"), time.Time{}})
	pause()
	v.now = v.now.Add(time.Hour)
	if err := vote(); !errors.Is(err, errRefused) {
		t.Fatalf("what diverged is heard again: %v", err)
	}
}

func TestGuardTransfers(t *testing.T) {
	g, v := newTestGuard(), guarded()
	vote := func(p identity.PeerID) error {
		return g.admit(v, p, &raft.RequestVoteRequest{Term: 4, LeadershipTransfer: true})
	}
	if err := vote(peerOf(1)); err != nil {
		t.Fatal(err)
	}
	if err := vote(peerOf(1)); !errors.Is(err, errRefused) {
		t.Fatalf("second transfer: %v", err)
	}
	if err := vote(peerOf(2)); err != nil {
		t.Fatal(err)
	}
	v.now = v.now.Add(transferPause * electionTimeout)
	if err := vote(peerOf(1)); err != nil {
		t.Fatal(err)
	}
}

// A commit index counts as far as the message itself proves the logs equal: our last
// entries may be leftovers of a deposed leader.
func TestGuardClampsCommit(t *testing.T) {
	for _, c := range []struct {
		m    raft.AppendEntriesRequest
		want uint64
	}{
		{raft.AppendEntriesRequest{Term: 4, LeaderCommitIndex: 10}, 0},
		{raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 7, PrevLogTerm: 3, LeaderCommitIndex: 10}, 7},
		{raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 7, PrevLogTerm: 3, LeaderCommitIndex: 10, Entries: entries(8, 8, 4)}, 8},
		{raft.AppendEntriesRequest{Term: 4, PrevLogEntry: 7, PrevLogTerm: 3, LeaderCommitIndex: 5}, 5},
	} {
		if err := newTestGuard().admit(guarded(), peerOf(1), &c.m); err != nil || c.m.LeaderCommitIndex != c.want {
			t.Errorf("commit index %d (%v), want %d", c.m.LeaderCommitIndex, err, c.want)
		}
	}
}

// The store is the second door: raft may commit between the guard's look and its write.
func TestStoreKeepsWhatIsCommitted(t *testing.T) {
	w, err := watch(newMemoryStore(), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.StoreLog(&raft.Log{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(voters(0))}), w.StoreLogs(entries(2, 9, 1)),
		w.StoreLog(&raft.Log{Index: 10, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(voters(0, 1))})); err != nil {
		t.Fatal(err)
	}
	w.commit = func() uint64 { return 7 }
	for _, first := range []uint64{1, 2, 7} {
		if err := w.DeleteRange(first, 10); !errors.Is(err, errRefused) {
			t.Errorf("deleted entries from %d: %v", first, err)
		}
	}
	if m, ok := w.latest(); !ok || m.index != 10 {
		t.Fatalf("latest configuration at %d", m.index)
	}
	if err := w.DeleteRange(8, 10); err != nil {
		t.Fatal(err)
	}
	if m, ok := w.latest(); !ok || m.index != 1 {
		t.Fatalf("latest configuration at %d, want 1: that of 10 is gone", m.index)
	}
}

// A short configuration that claims four billion servers must not cost their memory.
func TestConfigurationAllocatesWhatItHolds(t *testing.T) {
	data := append([]byte("\x81\xa7Servers\xdd\xff\xff\xff\xff"), make([]byte, 100)...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := decodeConfiguration(data); err == nil {
		t.Fatal("accepted")
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Fatalf("allocated %d bytes for %d", grown, len(data))
	}
}
