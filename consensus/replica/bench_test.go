package replica

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/ratio"
)

// loopback connects replicas by TCP on the loopback interface.
type loopback struct {
	mu        sync.Mutex
	listeners map[identity.PeerID]net.Listener
	wg        sync.WaitGroup
}

type loopbackPeers struct {
	l    *loopback
	self identity.PeerID
}

// Open dials; the first bytes say who does, which stands in for authentication.
func (p loopbackPeers) Open(ctx context.Context, to identity.PeerID) (io.ReadWriteCloser, error) {
	p.l.mu.Lock()
	listener := p.l.listeners[to]
	p.l.mu.Unlock()
	if listener == nil {
		return nil, fmt.Errorf("%s does not listen yet", to.Short())
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return nil, err
	}
	_, err = c.Write([]byte(p.self))
	return c, err
}

func (l *loopback) listen(b *testing.B, self identity.PeerID, serve func(identity.PeerID, io.ReadWriteCloser)) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	l.mu.Lock()
	l.listeners[self] = listener
	l.mu.Unlock()
	l.wg.Go(func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() {
				id := make([]byte, peerIDSize)
				if _, err := io.ReadFull(c, id); err == nil {
					serve(identity.PeerID(id), c)
				}
				c.Close()
			})
		}
	})
}

// newEcho returns one byte's round trip over loopback TCP, and what ends it.
func newEcho(b *testing.B) (trip func(), stop func()) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if c, err := listener.Accept(); err == nil {
			io.Copy(c, c)
			c.Close()
		}
	})
	c, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 1)
	trip = func() {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	return trip, func() { c.Close(); listener.Close(); wg.Wait() }
}

// newLoopbackCluster returns the leader of n replicas that reach each other by loopback TCP.
func newLoopbackCluster(b *testing.B, n int, store func(i int) Store) (leader *Replica, stop func()) {
	leader, _, stop = startLoopback(b, n, store, func(int) Machine { return &kv{values: map[string]string{}} })
	return leader, stop
}

// startLoopback starts n replicas of machines that take the commands of a kv too.
func startLoopback(b *testing.B, n int, store func(i int) Store, machine func(i int) Machine) (leader *Replica, all []*Replica, stop func()) {
	l := &loopback{listeners: map[identity.PeerID]net.Listener{}}
	var ids []identity.PeerID
	for i := range n {
		ids = append(ids, peerOf(i))
	}
	c := &cluster{t: b, ids: ids, net: newNetwork(0)}
	for i, id := range ids {
		r, err := New(Config{Self: id, Peers: loopbackPeers{l, id}, Machine: machine(i),
			Member: func(identity.PeerID) bool { return true }, Servers: ids, Store: store(i)})
		if err != nil {
			b.Fatal(err)
		}
		l.listen(b, id, r.Serve)
		c.replicas = append(c.replicas, r)
	}
	leader = c.leader()
	c.commit("k=warm")
	return leader, c.replicas, func() {
		c.close()
		for _, listener := range l.listeners {
			listener.Close()
		}
		l.wg.Wait()
	}
}

// medianOf returns the median time of n calls of f.
func medianOf(n int, f func()) time.Duration {
	took := make([]time.Duration, n)
	for i := range took {
		start := time.Now()
		f()
		took[i] = time.Since(start)
	}
	return ratio.Median(took)
}

func benchmarkCommit(b *testing.B, n, size int, store func(i int) Store) {
	leader, stop := newLoopbackCluster(b, n, store)
	defer stop()
	command := append([]byte("k="), make([]byte, size-2)...)
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		start := time.Now()
		if _, err := leader.Apply(context.Background(), command); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "p99-ns")
}

// BenchmarkRatioCommit is the median latency of one client's command of 1 KiB among three
// replicas on memory stores, against one round trip on the same loopback.
func BenchmarkRatioCommit(b *testing.B) {
	leader, stop := newLoopbackCluster(b, 3, func(int) Store { return newMemoryStore() })
	defer stop()
	trip, hangUp := newEcho(b)
	defer hangUp()
	command := append([]byte("k="), make([]byte, 1022)...)
	commit := func() {
		if _, err := leader.Apply(context.Background(), command); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		ratio.Print("raft.commit_mem_vs_rtt", ratio.Of(15,
			func() time.Duration { return medianOf(300, commit) }, func() time.Duration { return medianOf(300, trip) }))
	}
}

// BenchmarkRatioFailover is the median time, in seconds at the times that all meshes run with,
// from a leader's death to the first command that the others commit: nine meshes of three at
// once, which mostly wait.
func BenchmarkRatioFailover(b *testing.B) {
	const meshes = 9
	for b.Loop() {
		took := make([]time.Duration, meshes)
		var wg sync.WaitGroup
		for i := range took {
			wg.Go(func() {
				leader, others, stop := newLoopbackMesh(b, 3)
				defer stop()
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				start := time.Now()
				leader.fallSilent() // its streams break, as those of a process that is killed
				for committed := false; !committed && ctx.Err() == nil; {
					for _, r := range others {
						_, err := r.Apply(ctx, []byte("k=after"))
						committed = committed || err == nil
					}
					<-time.After(time.Millisecond)
				}
				took[i] = time.Since(start)
			})
		}
		wg.Wait()
		ratio.Print("raft.failover_p50_s", ratio.Median(took).Seconds())
	}
}

// newLoopbackMesh is newLoopbackCluster with the followers.
func newLoopbackMesh(b *testing.B, n int) (leader *Replica, others []*Replica, stop func()) {
	leader, all, stop := startLoopback(b, n, func(int) Store { return newMemoryStore() }, func(int) Machine { return &kv{values: map[string]string{}} })
	return leader, slices.DeleteFunc(slices.Clone(all), func(r *Replica) bool { return r == leader }), stop
}

// BenchmarkCommitMemory is the latency of one client's command among three replicas on
// memory stores.
func BenchmarkCommitMemory(b *testing.B) {
	benchmarkCommit(b, 3, 1024, func(int) Store { return newMemoryStore() })
}

// BenchmarkCommitDisk is the same on bbolt stores, two fsyncs a write.
func BenchmarkCommitDisk(b *testing.B) {
	dir := b.TempDir()
	benchmarkCommit(b, 3, 1024, func(i int) Store {
		d, err := durable.Open(fmt.Sprintf("%s/%d", dir, i))
		if err != nil {
			b.Fatal(err)
		}
		s, err := OpenStore(StoreDisk, d)
		if err != nil {
			b.Fatal(err)
		}
		return s
	})
}

// BenchmarkRatioCommitDisk is the median latency of one client's command of 1 KiB among three
// replicas on bbolt stores, against what the same disk and loopback need at least: the two
// fsyncs of a bbolt transaction on the leader, one round trip, and the two on a follower.
func BenchmarkRatioCommitDisk(b *testing.B) {
	dir := b.TempDir()
	leader, stop := newLoopbackCluster(b, 3, func(i int) Store {
		d, err := durable.Open(fmt.Sprintf("%s/%d", dir, i))
		if err != nil {
			b.Fatal(err)
		}
		s, err := OpenStore(StoreDisk, d)
		if err != nil {
			b.Fatal(err)
		}
		return s
	})
	defer stop()
	trip, hangUp := newEcho(b)
	defer hangUp()
	f, err := os.Create(dir + "/floor")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 8<<10)
	if _, err := f.WriteAt(page, 0); err != nil {
		b.Fatal(err)
	}
	command := append([]byte("k="), make([]byte, 1022)...)
	commit := func() {
		if _, err := leader.Apply(context.Background(), command); err != nil {
			b.Fatal(err)
		}
	}
	floor := func() {
		for i := range 4 {
			n := len(page) // pages of the tree, then the meta page
			if i%2 == 1 {
				n /= 2
			}
			if _, err := f.WriteAt(page[:n], 0); err != nil {
				b.Fatal(err)
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
		}
		trip()
	}
	for b.Loop() {
		ratio.Print("raft.commit_disk_vs_floor", ratio.Of(15,
			func() time.Duration { return medianOf(60, commit) }, func() time.Duration { return medianOf(60, floor) }))
	}
}
