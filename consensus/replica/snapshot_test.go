package replica

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
)

// shortened is a bubble whose replicas keep few entries behind a snapshot.
func shortened(t *testing.T, n, ghosts int, f func(*testing.T, *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, trailing: 10}
		c.start(n, ghosts, 5*time.Millisecond, Timing{}, func(int) Store { return newMemoryStore() })
		defer c.close()
		f(t, c)
	})
}

// snapshot has a replica store a snapshot, once the command after the newest change of its
// configuration allows it.
func (c *cluster) snapshot(r *Replica) {
	c.t.Helper()
	var last error
	eventually(c.t, "snapshot", func() bool { last = r.Snapshot(c.t.(*testing.T).Context()); return last == nil })
}

func (c *cluster) commits(n int, except ...*Replica) {
	c.t.Helper()
	for i := range n {
		c.commit(fmt.Sprintf("k%d=%d", i%7, i), except...)
	}
}

// A voter that was cut off for longer than the log reaches catches up from a snapshot.
func TestSnapshotCatchesUpVoter(t *testing.T) {
	shortened(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commits(5)
		lost := (slices.Index(c.replicas, c.leader()) + 1) % 3
		c.net.split([]identity.PeerID{c.ids[lost]}, without(c.ids, c.ids[lost]))
		c.commits(100, c.replicas[lost])
		l := c.leader(c.replicas[lost])
		c.snapshot(l)
		if first, _ := l.store.FirstIndex(); first < 50 {
			t.Fatalf("the log begins at entry %d", first)
		}
		c.commits(5, c.replicas[lost])
		c.net.heal()
		c.agree()
		m := c.machines[lost]
		if m.restored != 1 {
			t.Fatalf("restored %d times", m.restored)
		}
		if got := c.replicas[lost].Voters(); len(got) != 3 {
			t.Fatalf("its voters are %v", got)
		}
		// It is a full replica again: it can lead and give snapshots itself.
		c.net.kill(l.cfg.Self)
		c.commit("after=1", l)
		c.snapshot(c.replicas[lost])
		c.commit("after=2", l)
	})
}

// A learner is caught up from a snapshot, and then votes.
func TestSnapshotCatchesUpLearner(t *testing.T) {
	shortened(t, 3, 0, func(t *testing.T, c *cluster) {
		founders := slices.Clone(c.ids)
		c.commits(100)
		l := c.leader()
		c.snapshot(l)
		r := c.join(3, founders)
		c.learners.Store(r.cfg.Self, true)
		if err := l.AddNonvoter(t.Context(), r.cfg.Self); err != nil {
			t.Fatal(err)
		}
		c.agree()
		if c.machines[3].restored != 1 {
			t.Fatalf("restored %d times", c.machines[3].restored)
		}
		if err := r.WaitApplied(t.Context(), l.AppliedIndex()); err != nil {
			t.Fatal(err)
		}
		c.learners.Delete(r.cfg.Self)
		if err := l.AddVoter(t.Context(), r.cfg.Self); err != nil {
			t.Fatal(err)
		}
		c.commits(20)
		c.snapshot(r)
		c.agree()
	})
}

// While a follower checks a snapshot its leader's heartbeats are answered: nobody campaigns.
func TestSnapshotCheckHoldsUpNothing(t *testing.T) {
	shortened(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commits(5)
		lost := (slices.Index(c.replicas, c.leader()) + 1) % 3
		c.net.split([]identity.PeerID{c.ids[lost]}, without(c.ids, c.ids[lost]))
		c.commits(100, c.replicas[lost])
		l := c.leader(c.replicas[lost])
		c.snapshot(l)
		c.commit("k=1", c.replicas[lost])
		slow := make(chan struct{})
		c.machines[lost].slow = slow
		c.net.heal()
		eventually(t, "the check begins", func() bool { return c.machines[lost].checked.Load() > 0 })
		<-time.After(2 * time.Second)
		term := c.replicas[lost].Term()
		<-time.After(20 * time.Second)
		if got := c.replicas[lost].Term(); got != term || c.replicas[lost].State() != Follower {
			t.Fatalf("it is %s in term %d, was in %d", c.replicas[lost].State(), got, term)
		}
		if n := c.machines[lost].checked.Load(); n != 1 {
			t.Fatalf("%d checks at once", n)
		}
		close(slow)
		c.agree()
	})
}

// A transfer cut at every chunk leaves nothing behind, and the next one goes through (M17).
func TestSnapshotCutAtEveryChunk(t *testing.T) {
	bubble(t, 1, 2, func(t *testing.T, c *cluster) {
		r, m := c.replicas[0], c.machines[0]
		var commands []string
		for i := range 40 {
			commands = append(commands, fmt.Sprintf("k%d=%s", i, strings.Repeat("x", 30_000)))
		}
		whole := kvSnapshot(commands...)
		first := snapshotChunk{Term: 7, Index: 50, LogTerm: 7, ConfigurationIndex: 1, Size: uint64(len(whole)), Configuration: raft.EncodeConfiguration(voters(0, 1, 2))}
		chunks := (len(whole) + maxChunk - 1) / maxChunk
		if chunks < 4 {
			t.Fatalf("%d chunks are too few", chunks)
		}
		// The leader's part is played here, on one stream after another.
		transfer := func(cut int) (any, error) {
			a := c.attacker(c.ids[1], r)
			defer a.rwc.Close()
			if _, err := a.send(&raft.AppendEntriesRequest{Term: 7}); err != nil { // it leads
				t.Fatal(err)
			}
			part := first
			for i := range min(cut, chunks) {
				part.Offset = uint64(i * maxChunk)
				part.Data = whole[part.Offset:min(len(whole), (i+1)*maxChunk)]
				reply, err := a.send(&part)
				if s, ok := reply.(*snapshotReply); err != nil || !ok || s.State != snapshotTaken {
					t.Fatalf("chunk %d: %+v, %v", i, reply, err)
				}
			}
			part.Offset, part.Data = part.Size, nil
			for end := time.Now().Add(time.Minute); cut > chunks && time.Now().Before(end); <-time.After(10 * time.Millisecond) {
				reply, err := a.send(&part)
				if s, ok := reply.(*snapshotReply); err != nil || !ok || s.State != snapshotChecking {
					return reply, err
				}
			}
			return nil, nil
		}
		for cut := 1; cut <= chunks; cut++ {
			transfer(cut)
			<-time.After(100 * time.Millisecond)
			if s, err := r.store.loadSnapshot(); err != nil || s != nil || m.restored != 0 || r.Stats().LastIndex != 1 || r.State() == None {
				t.Fatalf("a transfer that was cut after %d chunks left %+v, %v", cut, s, err)
			}
		}
		reply, err := transfer(chunks + 1)
		if s, ok := reply.(*snapshotReply); err != nil || !ok || s.State != snapshotInstalled {
			t.Fatalf("answered %+v, %v", reply, err)
		}
		if m.restored != 1 || len(m.history()) != 40 {
			t.Fatalf("restored %d times, %d commands", m.restored, len(m.history()))
		}
	})
}

// The leader itself cannot have another state, or another configuration, installed (N6).
func TestHostileLeaderSnapshots(t *testing.T) {
	good := kvSnapshot("a=1")
	usurper := raft.EncodeConfiguration(voters(2))
	all := raft.EncodeConfiguration(voters(0, 1, 2))
	for name, c := range map[string]struct {
		alter func(m *snapshotChunk)
		want  string
	}{
		"altered state":              {func(m *snapshotChunk) { m.Data = append(bytes.Clone(good[:len(good)-1]), '2') }, "not the state that was logged"},
		"committed index":            {func(m *snapshotChunk) { m.Index, m.ConfigurationIndex = 2, 1 }, "committed are entries up to"},
		"10 GiB":                     {func(m *snapshotChunk) { m.Size = 10 << 30 }, "at most"},
		"256 GiB":                    {func(m *snapshotChunk) { m.Size = 256 << 30 }, "at most"},
		"nothing":                    {func(m *snapshotChunk) { m.Size, m.Data = 0, nil }, "at most"},
		"more than announced":        {func(m *snapshotChunk) { m.Size-- }, "bytes at"},
		"not from its beginning":     {func(m *snapshotChunk) { m.Offset, m.Data = 4, m.Data[4:] }, "continues no snapshot"},
		"older term":                 {func(m *snapshotChunk) { m.Term, m.LogTerm = m.Term-1, 1 }, "other than the leader"},
		"term of no leader":          {func(m *snapshotChunk) { m.Term++ }, "other than the leader"},
		"term to the maximum":        {func(m *snapshotChunk) { m.Term = 1<<64 - 1 }, "raises the term"},
		"log of a later term":        {func(m *snapshotChunk) { m.LogTerm = m.Term + 1 }, "in term"},
		"configuration later":        {func(m *snapshotChunk) { m.ConfigurationIndex = m.Index + 1 }, "with configuration"},
		"configuration of garbage":   {func(m *snapshotChunk) { m.Configuration = []byte("\xc1garbage") }, "configuration"},
		"configuration of nobody":    {func(m *snapshotChunk) { m.Configuration = raft.EncodeConfiguration(raft.Configuration{}) }, "without voters"},
		"configuration of strangers": {func(m *snapshotChunk) { m.Configuration = usurper }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, 1, 2, func(t *testing.T, cl *cluster) {
				r := cl.replicas[0]
				evil := cl.attacker(cl.ids[1], r)
				defer evil.rwc.Close()
				term := r.Term() + 5
				// It wins an election (we do not know how) and leads.
				if _, err := evil.send(&raft.AppendEntriesRequest{Term: term, PrevLogEntry: 1, PrevLogTerm: 1, LeaderCommitIndex: 3, Entries: []*raft.Log{
					{Index: 2, Term: term, Data: []byte("a=0")}, {Index: 3, Term: term, Data: []byte("a=1")}}}); err != nil {
					t.Fatal(err)
				}
				m := &snapshotChunk{Term: term, Index: 9, LogTerm: term, ConfigurationIndex: 1, Size: uint64(len(good)), Configuration: all, Data: good}
				c.alter(m)
				reply, err := evil.send(m)
				if taken, ok := reply.(*snapshotReply); ok && taken.State == snapshotTaken {
					m.Offset, m.Data = m.Size, nil
					for end := time.Now().Add(time.Minute); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
						if reply, err = evil.send(m); err != nil {
							break
						}
						if s, ok := reply.(*snapshotReply); !ok || s.State != snapshotChecking {
							break
						}
					}
				}
				if c.want == "" { // it is for the machine to know who belongs into a configuration
					if s, ok := reply.(*snapshotReply); err != nil || !ok || s.State != snapshotInstalled {
						t.Fatalf("answered %+v, %v", reply, err)
					}
					return
				}
				why, refused := reply.(refusal)
				if err != nil || !refused || !strings.Contains(string(why), c.want) {
					t.Fatalf("answered %+v, %v, want a refusal with %q", reply, err, c.want)
				}
				if s, err := r.store.loadSnapshot(); err != nil || s != nil || cl.machines[0].restored != 0 {
					t.Fatalf("something has changed: %+v, %v", s, err)
				}
				if r.refusals.Load() == 0 || r.State() == None {
					t.Fatalf("%d refusals, it is %s", r.refusals.Load(), r.State())
				}
			})
		})
	}
}

// Raft gets no snapshot from a machine that has none, and goes on.
func TestNoSnapshotToGive(t *testing.T) {
	shortened(t, 1, 0, func(t *testing.T, c *cluster) {
		c.commits(30)
		c.machines[0].mute.Store(true)
		if err := c.replicas[0].Snapshot(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing to give") {
			t.Fatalf("got %v", err)
		}
		if first, _ := c.replicas[0].store.FirstIndex(); first != 1 {
			t.Fatalf("the log begins at entry %d", first)
		}
		c.machines[0].mute.Store(false)
		c.snapshot(c.replicas[0])
		c.commits(30)
		if err := c.replicas[0].Close(); err != nil {
			t.Fatal(err)
		}
		if err := c.replicas[0].Snapshot(t.Context()); err == nil {
			t.Fatal("a closed replica made a snapshot")
		}
	})
}

// A leader that cannot read its snapshot ends, so that another leads (hashicorp/raft#522).
func TestUnreadableSnapshotIsFatal(t *testing.T) {
	shortened(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commits(5)
		lost := (slices.Index(c.replicas, c.leader()) + 1) % 3
		c.net.split([]identity.PeerID{c.ids[lost]}, without(c.ids, c.ids[lost]))
		c.commits(100, c.replicas[lost])
		l := c.leader(c.replicas[lost])
		for _, r := range c.replicas {
			if r != c.replicas[lost] {
				c.snapshot(r)
			}
		}
		store := l.cfg.Store.(*memoryStore)
		store.mu.Lock()
		broken := *store.saved
		broken.Configuration = []byte("rot")
		store.saved = &broken
		store.mu.Unlock()
		c.net.heal()
		if err := <-c.fatal; !strings.Contains(err.Error(), "snapshot") {
			t.Fatalf("got %v", err)
		}
		c.commit("after=1", l)
		eventually(t, "the follower catches up from another", func() bool { return c.machines[lost].get("after") == "1" })
	})
}

// A replica on disk that starts again goes on from its snapshot and the log behind it.
func TestSnapshotSurvivesRestart(t *testing.T) {
	dir := t.TempDir()
	open := func() (Store, error) {
		d, err := durable.Open(dir)
		if err != nil {
			return nil, err
		}
		return OpenStore(StoreDisk, d)
	}
	start := func() (*Replica, *kv) {
		s, err := open()
		if err != nil {
			t.Fatal(err)
		}
		m := &kv{values: map[string]string{}}
		r, err := New(Config{Self: peerOf(0), Peers: peers{newNetwork(0), peerOf(0)}, Machine: m, Store: s, Servers: []identity.PeerID{peerOf(0)},
			Member: func(identity.PeerID) bool { return true }, Timing: fast(), Trailing: 5})
		if err != nil {
			t.Fatal(err)
		}
		return r, m
	}
	apply := func(r *Replica, from, to int) {
		for i := from; i < to; {
			if _, err := r.Apply(t.Context(), fmt.Appendf(nil, "k%d=%d", i, i)); err == nil {
				i++
			} else {
				<-time.After(5 * time.Millisecond)
			}
		}
	}
	r, _ := start()
	apply(r, 0, 50)
	if err := r.Snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	apply(r, 50, 60)
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r, m := start()
	apply(r, 60, 61)
	if got := m.history(); len(got) != 61 || got[0] != "k0=0" || got[60] != "k60=60" || m.restored != 1 {
		t.Fatalf("%d commands after %d restores", len(got), m.restored)
	}
	if got := r.Voters(); len(got) != 1 {
		t.Fatalf("voters are %v", got)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// A leader that a majority distrusts loses its office, and gets none while that lasts.
func TestDistrustedLeader(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		var others []*Replica
		for _, r := range c.replicas {
			if r != l {
				others = append(others, r)
			}
		}
		// One alone changes nothing.
		others[0].Distrust(l.cfg.Self, time.Minute, fmt.Errorf("test"))
		term := l.Term()
		<-time.After(20 * time.Second)
		c.commit("a=2")
		if l.State() != Leader || l.Term() != term {
			t.Fatalf("one seat deposed the leader: %s in term %d", l.State(), l.Term())
		}
		others[1].Distrust(l.cfg.Self, time.Minute, fmt.Errorf("test"))
		eventually(t, "another leads", func() bool { return others[0].State() == Leader || others[1].State() == Leader })
		for end := time.Now().Add(35 * time.Second); time.Now().Before(end); <-time.After(time.Second) {
			c.commit(fmt.Sprintf("b=%d", end.Unix()), l)
			if l.State() == Leader {
				t.Fatal("it leads again")
			}
		}
		c.agree()
		// Afterwards it counts again: without the present leader a majority needs it.
		<-time.After(time.Minute)
		next := c.leader(l)
		c.net.kill(next.cfg.Self)
		c.commit("c=1", next)
	})
}
