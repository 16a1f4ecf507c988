package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	bolt "go.etcd.io/bbolt"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
)

func openTest(t *testing.T, kind string, dir *durable.Dir) Store {
	t.Helper()
	s, err := OpenStore(kind, dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func tempDir(t *testing.T) *durable.Dir {
	t.Helper()
	d, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func entries(from, to, term uint64) []*raft.Log {
	var out []*raft.Log
	for i := from; i <= to; i++ {
		out = append(out, &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: fmt.Appendf(nil, "%d/%d", i, term)})
	}
	return out
}

// The contract of Store, over both kinds.
func TestStoreConformance(t *testing.T) {
	for _, kind := range []string{StoreMemory, StoreDisk} {
		t.Run(kind, func(t *testing.T) {
			s := openTest(t, kind, tempDir(t))
			defer s.Close()
			checkEmpty(t, s)
			checkLog(t, s)
			checkStable(t, s)
			checkSnapshots(t, s)
		})
	}
	if _, err := OpenStore("", nil); err == nil {
		t.Error("the zero kind must not open")
	}
	if _, err := OpenStore(StoreDisk, nil); err == nil {
		t.Error("disk without a directory must not open")
	}
}

func checkEmpty(t *testing.T, s Store) {
	t.Helper()
	first, err1 := s.FirstIndex()
	last, err2 := s.LastIndex()
	commit, err3 := s.GetCommitIndex()
	if snapshot, err := s.LoadSnapshot(); snapshot != nil || err != nil {
		t.Fatalf("empty store: snapshot %+v, %v", snapshot, err)
	}
	if first != 0 || last != 0 || commit != 0 || errors.Join(err1, err2, err3) != nil {
		t.Fatalf("empty store: first %d, last %d, commit %d, %v", first, last, commit, errors.Join(err1, err2, err3))
	}
	if err := s.GetLog(1, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("absent entry: %v", err)
	}
}

func checkEdges(t *testing.T, s Store, first, last uint64) {
	t.Helper()
	f, err := s.FirstIndex()
	if err != nil || f != first {
		t.Fatalf("first is %d (%v), want %d", f, err, first)
	}
	l, err := s.LastIndex()
	if err != nil || l != last {
		t.Fatalf("last is %d (%v), want %d", l, err, last)
	}
	for i := first; i <= last && i > 0; i++ {
		var got raft.Log
		if err := s.GetLog(i, &got); err != nil || got.Index != i || !strings.HasPrefix(string(got.Data), fmt.Sprint(i, "/")) {
			t.Fatalf("entry %d is %+v, %v", i, got, err)
		}
	}
	if err := s.GetLog(last+1, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Fatalf("entry behind the last: %v", err)
	}
}

func checkLog(t *testing.T, s Store) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.StageCommitIndex(3))
	must(s.StoreLogs(entries(1, 10, 1)))
	checkEdges(t, s, 1, 10)
	must(s.StageCommitIndex(7))
	if c, err := s.GetCommitIndex(); c != 3 || err != nil {
		t.Fatalf("commit is %d (%v), want 3: 7 is staged only", c, err)
	}
	for _, bad := range [][]*raft.Log{entries(12, 12, 1), entries(10, 10, 2), entries(0, 0, 1), append(entries(11, 11, 1), entries(13, 13, 1)...)} {
		if err := s.StoreLogs(bad); err == nil {
			t.Fatalf("a log that ends at 10 continued with %d", bad[0].Index)
		}
	}
	checkEdges(t, s, 1, 10)
	must(s.DeleteRange(6, 10))
	checkEdges(t, s, 1, 5)
	must(s.StoreLog(entries(6, 6, 2)[0]))
	checkEdges(t, s, 1, 6)
	if c, err := s.GetCommitIndex(); c != 6 || err != nil {
		t.Fatalf("commit is %d (%v), want 6, the end of the log", c, err)
	}
	must(s.DeleteRange(1, 4))
	checkEdges(t, s, 5, 6)
	must(s.StoreLog(&raft.Log{Index: 7, Term: 9, Type: raft.LogNoop}))
	var got raft.Log
	must(s.GetLog(7, &got))
	if got.Type != raft.LogNoop || got.Term != 9 || got.Data != nil {
		t.Fatalf("got %+v", got)
	}
	must(s.DeleteRange(5, 7))
	checkEdges(t, s, 0, 0)
	must(s.StoreLogs(entries(40, 41, 1)))
	checkEdges(t, s, 40, 41)
}

func checkStable(t *testing.T, s Store) {
	t.Helper()
	if _, err := s.Get([]byte("absent")); err == nil || err.Error() != "not found" {
		t.Fatalf("absent key: %v; raft compares the text", err)
	}
	if v, err := s.GetUint64([]byte("absent")); v != 0 || err != nil {
		t.Fatalf("absent number: %d, %v", v, err)
	}
	value := []byte("candidate")
	if err := errors.Join(s.Set([]byte("k"), value), s.SetUint64([]byte("n"), 1<<63)); err != nil {
		t.Fatal(err)
	}
	value[0] = 'X'
	if v, err := s.Get([]byte("k")); err != nil || string(v) != "candidate" {
		t.Fatalf("got %q, %v", v, err)
	}
	if v, err := s.GetUint64([]byte("n")); err != nil || v != 1<<63 {
		t.Fatalf("got %d, %v", v, err)
	}
}

// The file as it is on disk at any moment between two writes opens again and holds every
// write that had returned: a copy of it is what a power cut leaves.
func TestDiskStoreSurvivesCrash(t *testing.T) {
	dir := tempDir(t)
	s := openTest(t, StoreDisk, dir)
	defer s.Close()
	crash := func() Store {
		data, err := os.ReadFile(dir.Path(boltFile))
		if err != nil {
			t.Fatal(err)
		}
		copied := tempDir(t)
		if err := copied.WriteFile(boltFile, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return openTest(t, StoreDisk, copied)
	}
	for i := uint64(1); i <= 20; i++ {
		if err := errors.Join(s.StageCommitIndex(i-1), s.StoreLogs(entries(i, i, i)), s.SetUint64([]byte("CurrentTerm"), i)); err != nil {
			t.Fatal(err)
		}
		after := crash()
		checkEdges(t, after, 1, i)
		term, err := after.GetUint64([]byte("CurrentTerm"))
		commit, err2 := after.GetCommitIndex()
		if term != i || commit != i-1 || errors.Join(err, err2) != nil {
			t.Fatalf("after write %d: term %d, commit %d, %v", i, term, commit, errors.Join(err, err2))
		}
		after.Close()
	}
}

func TestDiskStoreRefusesDamage(t *testing.T) {
	dir := tempDir(t)
	s := openTest(t, StoreDisk, dir)
	if _, err := OpenStore(StoreDisk, dir); !errors.Is(err, durable.ErrInUse) {
		t.Fatalf("opened twice: %v", err)
	}
	err := s.(*boltStore).db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketLog()).Put(key64(1), []byte{9, 9})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.GetLog(1, &raft.Log{}); !errors.Is(err, errMalformed) {
		t.Fatalf("damaged entry: %v", err)
	}
	if _, err := watch(s, func(error) {}); err == nil {
		t.Fatal("a replica started on a damaged log")
	}
	s.Close()
	if err := dir.WriteFile(boltFile, bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenStore(StoreDisk, dir); err == nil {
		t.Fatal("opened a file that is no database")
	}
}

// Three replicas on disk are closed and start again from their files, without founding
// servers: they remember what was committed.
func TestRestartFromDisk(t *testing.T) {
	c := &cluster{t: t, net: newNetwork(0)}
	dirs := []*durable.Dir{tempDir(t), tempDir(t), tempDir(t)}
	for i := range dirs {
		c.ids = append(c.ids, peerOf(i))
	}
	start := func(servers []identity.PeerID) {
		c.replicas, c.machines = nil, nil
		for i, dir := range dirs {
			m := &kv{values: map[string]string{}}
			r, err := New(Config{Self: c.ids[i], Peers: peers{c.net, c.ids[i]}, Machine: m, Servers: servers,
				Store: openTest(t, StoreDisk, dir), Member: func(identity.PeerID) bool { return true }, Timing: fast()})
			if err != nil {
				t.Fatal(err)
			}
			c.net.update(func() { c.net.serve[c.ids[i]] = r.Serve })
			c.replicas, c.machines = append(c.replicas, r), append(c.machines, m)
		}
	}
	start(c.ids)
	for i := range 10 {
		c.commit(fmt.Sprintf("a=%d", i))
	}
	c.agree()
	c.close()
	want := strings.Join(c.machines[0].history(), " ")
	start(nil)
	defer c.close()
	for _, r := range c.replicas {
		if r.transport.floor0 < 5 {
			t.Errorf("after the restart only entries up to %d count as committed", r.transport.floor0)
		}
	}
	c.commit("b=1")
	c.agree()
	// b=1 may be there twice: its outcome may have been unknown the first time.
	if got := strings.Join(c.machines[0].history(), " "); strings.ReplaceAll(got, " b=1", "") != want || !strings.HasSuffix(got, " b=1") {
		t.Fatalf("replayed %q, want %q and b=1", got, want)
	}
}

// faultyStore fails or hangs when told to.
type faultyStore struct {
	Store
	fail chan error
	hang chan struct{}
	full bool // for snapshots
}

func (s *faultyStore) SaveSnapshot(snapshot *Snapshot) error {
	if s.full {
		return errors.New("no space left")
	}
	return s.Store.SaveSnapshot(snapshot)
}

func (s *faultyStore) StoreLogs(logs []*raft.Log) error {
	select {
	case err := <-s.fail:
		return err
	default:
	}
	if s.hang != nil && len(logs[0].Data) > 0 && logs[0].Type == raft.LogCommand {
		<-s.hang
	}
	return s.Store.StoreLogs(logs)
}

// faulty starts three replicas of which the first has a faulty store, and makes it lead.
func faulty(t *testing.T, s *faultyStore) *cluster {
	s.Store = newMemoryStore()
	c := newClusterOn(t, 3, 0, time.Millisecond, Timing{}, func(i int) Store {
		if i == 0 {
			return s
		}
		return newMemoryStore()
	})
	eventually(t, "the first leads", func() bool {
		l := c.leader()
		if l == c.replicas[0] {
			return true
		}
		first := c.ids[0].String()
		l.raft.LeadershipTransferToServer(raft.ServerID(first), raft.ServerAddress(first)).Error()
		return false
	})
	return c
}

// A leader whose store fails must not keep winning elections.
func TestFailedStoreIsFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &faultyStore{fail: make(chan error, 1)}
		c := faulty(t, s)
		defer c.close()
		s.fail <- errors.New("no space left on device")
		if _, err := c.replicas[0].Apply(t.Context(), []byte("a=1")); err == nil {
			t.Fatal("a command that was not stored succeeded")
		}
		if err := <-c.fatal; !strings.Contains(err.Error(), "no space left") {
			t.Fatalf("Fatal got %v", err)
		}
		c.commit("a=2", c.replicas[0])
		<-time.After(time.Minute)
		if got := c.replicas[0].State(); got != None {
			t.Fatalf("the failed replica is %s", got)
		}
		c.commit("a=3", c.replicas[0])
	})
}

// A leader whose store hangs still sends heartbeats; somebody must take its office away.
func TestHungStoreIsFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &faultyStore{fail: make(chan error), hang: make(chan struct{})}
		c := faulty(t, s)
		defer c.close()
		defer close(s.hang)
		ctx, cancel := context5()
		defer cancel()
		start := time.Now()
		if _, err := c.replicas[0].Apply(ctx, []byte("a=1")); !errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("got %v, want ErrUnknownOutcome", err)
		}
		if err := <-c.fatal; !strings.Contains(err.Error(), "has not returned") {
			t.Fatalf("Fatal got %v", err)
		}
		c.commit("a=2", c.replicas[0])
		if took := time.Since(start); took > storeTimeout+10*time.Second {
			t.Fatalf("another leader took %v", took)
		}
	})
}

// A leader whose followers refuse what it orders must give up office.
func TestStalledLeaderIsFatal(t *testing.T) {
	bubble(t, 3, 0, func(t *testing.T, c *cluster) {
		c.commit("a=1")
		l := c.leader()
		l.cfg.Machine = machineWithoutCheck{l.cfg.Machine}
		ctx, cancel := context5()
		defer cancel()
		if _, err := l.Apply(ctx, []byte("bad=1")); !errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("got %v, want ErrUnknownOutcome", err)
		}
		if err := <-c.fatal; !strings.Contains(err.Error(), "committed nothing") {
			t.Fatalf("Fatal got %v", err)
		}
		c.commit("a=2", l)
		for i, r := range c.replicas {
			if r != l && strings.Contains(strings.Join(c.machines[i].history(), " "), "bad") {
				t.Fatal("a refused command was executed")
			}
			if r != l && r.Stats().Refused == 0 {
				t.Error("the refusal was not counted")
			}
		}
	})
}

type machineWithoutCheck struct{ Machine }

func (machineWithoutCheck) Check([]byte) error { return nil }

func checkSnapshots(t *testing.T, s Store) {
	t.Helper()
	for i := range uint64(3) {
		want := &Snapshot{Index: i + 5, Term: 2, Configuration: raft.EncodeConfiguration(voters(0)), ConfigurationIndex: i + 1, Data: fmt.Appendf(nil, "state %d", i)}
		if err := s.SaveSnapshot(want); err != nil {
			t.Fatal(err)
		}
		got, err := s.LoadSnapshot()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

// Every bit of every value on disk: what is not what was written is never returned (D5). A replica
// whose store says so does not start, or ends.
func TestBoltBitFlips(t *testing.T) {
	dir := tempDir(t)
	s := openTest(t, StoreDisk, dir).(*boltStore)
	defer s.Close()
	if err := errors.Join(s.StageCommitIndex(2), s.StoreLogs(entries(1, 3, 1)), s.SetUint64([]byte("CurrentTerm"), 7), s.Set([]byte("LastVoteCand"), []byte("x"))); err != nil {
		t.Fatal(err)
	}
	checkSnapshots(t, s)
	values := map[string]map[string][]byte{}
	if err := s.db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			values[string(name)] = map[string][]byte{}
			return b.ForEach(func(k, v []byte) error {
				values[string(name)][string(k)] = bytes.Clone(v)
				return nil
			})
		})
	}); err != nil {
		t.Fatal(err)
	}
	put := func(bucket, key string, v []byte) {
		if err := s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), v) }); err != nil {
			t.Fatal(err)
		}
	}
	s.db.NoSync = true
	read := map[string]func(key string) error{
		"log": func(key string) error {
			return s.GetLog(binary.BigEndian.Uint64([]byte(key)), &raft.Log{})
		},
		"stable": func(key string) error {
			_, err := s.Get([]byte(key))
			return err
		},
		"snapshot": func(string) error {
			_, err := s.LoadSnapshot()
			return err
		},
	}
	for bucket, keys := range values {
		for key, v := range keys {
			for i := range len(v) * 8 {
				flipped := bytes.Clone(v)
				flipped[i/8] ^= 1 << (i % 8)
				put(bucket, key, flipped)
				if err := read[bucket](key); err == nil || !strings.Contains(err.Error(), boltFile) {
					t.Fatalf("%s %q: bit %d may be flipped: %v", bucket, key, i, err)
				}
			}
			for n := range v {
				put(bucket, key, v[:n])
				if err := read[bucket](key); err == nil {
					t.Fatalf("%s %q: may be cut to %d bytes", bucket, key, n)
				}
			}
			put(bucket, key, v)
		}
	}
	flipped := bytes.Clone(values["snapshot"][snapshotID])
	flipped[len(flipped)-1] ^= 1
	put("snapshot", snapshotID, flipped)
	if _, err := New(Config{Self: peerOf(0), Peers: peers{newNetwork(0), peerOf(0)}, Machine: &kv{}, Store: s, Servers: []identity.PeerID{peerOf(0)},
		Member: func(identity.PeerID) bool { return true }}); err == nil || !strings.Contains(err.Error(), "not what was written") {
		t.Fatalf("a replica started on a damaged snapshot: %v", err)
	}
}

// A crash between the snapshot and the log that it replaces: the log goes when the store is opened.
func TestLogBehindSnapshotGoes(t *testing.T) {
	for name, c := range map[string]struct {
		last, term uint64
		kept       bool
	}{
		"ends before it":        {10, 1, false},
		"is of another history": {30, 1, false},
		"goes on":               {30, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newMemoryStore()
			log := append([]*raft.Log{{Index: 1, Term: 1, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(voters(0))}}, entries(2, c.last, c.term)...)
			if err := errors.Join(s.StoreLogs(log), s.SaveSnapshot(&Snapshot{Index: 20, Term: 2, Configuration: raft.EncodeConfiguration(voters(0, 1)), ConfigurationIndex: 19, Data: []byte("x")})); err != nil {
				t.Fatal(err)
			}
			w, err := watch(s, func(err error) { t.Error(err) })
			if err != nil {
				t.Fatal(err)
			}
			if last, _ := s.LastIndex(); (last == c.last) != c.kept || w.snapshotIndex() != 20 {
				t.Fatalf("the log ends at %d", last)
			}
			if got, _ := w.latest(); got.index != 19 || len(got.configuration.Servers) != 2 {
				t.Fatalf("the configuration is %+v", got)
			}
		})
	}
}
