package replica

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

// peerOf returns the i-th peer of a test.
func peerOf(i int) identity.PeerID {
	seed := sha256.Sum256(fmt.Appendf(nil, "replica test peer %d", i))
	return identity.PeerIDFromKey(ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey))
}

// network connects replicas by in-memory streams that can be delayed, cut in one direction,
// healed and reset. A cut direction keeps what is written until it is healed, as TCP does.
type network struct {
	latency time.Duration
	accepts sync.WaitGroup

	mu      sync.Mutex
	cut     map[[2]identity.PeerID]bool
	serve   map[identity.PeerID]func(identity.PeerID, io.ReadWriteCloser)
	wires   map[*wire]bool
	changed chan struct{} // closed at every change
}

func newNetwork(latency time.Duration) *network {
	return &network{
		latency: latency, cut: map[[2]identity.PeerID]bool{}, changed: make(chan struct{}),
		serve: map[identity.PeerID]func(identity.PeerID, io.ReadWriteCloser){}, wires: map[*wire]bool{},
	}
}

// update changes the network under its lock and wakes all who wait for it.
func (n *network) update(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.changed)
	n.changed = make(chan struct{})
	for w := range n.wires {
		w.poke()
	}
}

// split cuts every direction between two groups.
func (n *network) split(a, b []identity.PeerID) {
	n.update(func() {
		for _, p := range a {
			for _, q := range b {
				n.cut[[2]identity.PeerID{p, q}], n.cut[[2]identity.PeerID{q, p}] = true, true
			}
		}
	})
}

func (n *network) cutOneWay(from, to identity.PeerID) {
	n.update(func() { n.cut[[2]identity.PeerID{from, to}] = true })
}

func (n *network) heal() { n.update(func() { clear(n.cut) }) }

// kill resets all streams of a peer and lets it accept no more.
func (n *network) kill(p identity.PeerID) {
	n.update(func() { delete(n.serve, p) })
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.wires {
		if w.from == p || w.to == p {
			w.end()
		}
	}
}

func (n *network) isCut(from, to identity.PeerID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cut[[2]identity.PeerID{from, to}]
}

// peers is Peers of one replica.
type peers struct {
	n    *network
	self identity.PeerID
}

func (p peers) Open(ctx context.Context, to identity.PeerID) (io.ReadWriteCloser, error) {
	for {
		p.n.mu.Lock()
		blocked := p.n.cut[[2]identity.PeerID{p.self, to}] || p.n.cut[[2]identity.PeerID{to, p.self}]
		serve, changed := p.n.serve[to], p.n.changed
		if p.n.serve[p.self] == nil {
			serve = nil // the dead do not dial
		}
		p.n.mu.Unlock()
		if !blocked {
			if serve == nil {
				return nil, errors.New("connection refused")
			}
			here, there := p.n.pipe(p.self, to)
			p.n.accepts.Go(func() { serve(p.self, there) })
			return here, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// pipe returns the two ends of a stream.
func (n *network) pipe(a, b identity.PeerID) (*end, *end) {
	ab, ba := n.wire(a, b), n.wire(b, a)
	return &end{in: ba, out: ab}, &end{in: ab, out: ba}
}

func (n *network) wire(from, to identity.PeerID) *wire {
	w := &wire{n: n, from: from, to: to, wake: make(chan struct{}, 1)}
	n.mu.Lock()
	n.wires[w] = true
	n.mu.Unlock()
	return w
}

type end struct{ in, out *wire }

func (e *end) Read(p []byte) (int, error)  { return e.in.read(p) }
func (e *end) Write(p []byte) (int, error) { return e.out.write(p) }
func (e *end) Close() error {
	e.in.end()
	e.out.end()
	return nil
}

// wire is one direction of a stream.
type wire struct {
	n        *network
	from, to identity.PeerID
	wake     chan struct{}

	mu     sync.Mutex
	chunks []chunk
	ended  bool
}

type chunk struct {
	at   time.Time
	data []byte
}

func (w *wire) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *wire) end() {
	w.mu.Lock()
	w.ended = true
	w.mu.Unlock()
	w.poke()
	go func() { // kill iterates with the network's lock held
		w.n.mu.Lock()
		delete(w.n.wires, w)
		w.n.mu.Unlock()
	}()
}

func (w *wire) write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return 0, io.ErrClosedPipe
	}
	w.chunks = append(w.chunks, chunk{time.Now().Add(w.n.latency), append([]byte(nil), p...)})
	w.poke()
	return len(p), nil
}

func (w *wire) read(p []byte) (int, error) {
	for {
		cut := w.n.isCut(w.from, w.to)
		w.mu.Lock()
		if w.ended {
			w.mu.Unlock()
			w.poke()
			return 0, io.EOF
		}
		var wait <-chan time.Time
		if len(w.chunks) > 0 && !cut {
			if d := time.Until(w.chunks[0].at); d > 0 {
				wait = time.After(d)
			} else {
				n := copy(p, w.chunks[0].data)
				if w.chunks[0].data = w.chunks[0].data[n:]; len(w.chunks[0].data) == 0 {
					w.chunks = w.chunks[1:]
				}
				w.mu.Unlock()
				return n, nil
			}
		}
		w.mu.Unlock()
		select {
		case <-w.wake:
		case <-wait:
		}
	}
}

// kv is a machine of "key=value" commands, which it all remembers.
type kv struct {
	mu       sync.Mutex
	values   map[string]string
	commands []string
	restored int

	mute    atomic.Bool   // gives no snapshot
	checked atomic.Int64  // counts CheckSnapshot
	slow    chan struct{} // if set, CheckSnapshot waits for it
}

func (m *kv) Apply(_, _ uint64, command []byte) any {
	if string(command) == "panic" {
		panic("told to")
	}
	k, v, _ := strings.Cut(string(command), "=")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[k] = v
	m.commands = append(m.commands, string(command))
	return v
}

func (m *kv) Check(command []byte) error {
	if strings.HasPrefix(string(command), "bad") {
		return errors.New("bad signature")
	}
	return nil
}

// Snapshot gives all commands, under their SHA-256.
func (m *kv) Snapshot() (func() ([]byte, error), error) {
	commands := m.history()
	if m.mute.Load() {
		return nil, errors.New("nothing to give")
	}
	return func() ([]byte, error) { return kvSnapshot(commands...), nil }, nil
}

func kvSnapshot(commands ...string) []byte {
	raw := []byte(strings.Join(commands, "\x00"))
	sum := sha256.Sum256(raw)
	return append(sum[:], raw...)
}

func (m *kv) CheckSnapshot(raw []byte, servers []identity.PeerID) error {
	m.checked.Add(1)
	if m.slow != nil {
		<-m.slow
	}
	if len(servers) == 0 || len(raw) < sha256.Size || sha256.Sum256(raw[sha256.Size:]) != [sha256.Size]byte(raw) {
		return errors.New("not the state that was logged")
	}
	return nil
}

func (m *kv) Restore(raw []byte) error {
	if err := m.CheckSnapshot(raw, []identity.PeerID{peerOf(0)}); err != nil {
		return err
	}
	commands := strings.Split(string(raw[sha256.Size:]), "\x00")
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commands, m.values = commands, map[string]string{}
	for _, c := range commands {
		k, v, _ := strings.Cut(c, "=")
		m.values[k] = v
	}
	m.restored++
	return nil
}

func (m *kv) get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[key]
}

func (m *kv) history() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string(nil), m.commands...)
}

// cluster is a set of replicas on one network.
type cluster struct {
	t        testing.TB
	net      *network
	ids      []identity.PeerID
	replicas []*Replica
	machines []*kv
	fatal    chan error
	joining  sync.RWMutex // held while ids, replicas and machines grow beside clients
	known    sync.Map     // of PeerID
	banned   sync.Map     // of PeerID
	learners sync.Map     // of PeerID
	trailing uint64
}

// size, at and number are for clients, which work while replicas join.
func (c *cluster) size() int {
	c.joining.RLock()
	defer c.joining.RUnlock()
	return len(c.replicas)
}

func (c *cluster) at(i int) (*Replica, *kv) {
	c.joining.RLock()
	defer c.joining.RUnlock()
	return c.replicas[i], c.machines[i]
}

// number returns which replica has an id, or -1.
func (c *cluster) number(id identity.PeerID) int {
	c.joining.RLock()
	defer c.joining.RUnlock()
	return min(slices.Index(c.ids, id), len(c.replicas)-1)
}

// member is who may take part: all but the banned and those that learn.
func (c *cluster) member(p identity.PeerID) bool {
	_, banned := c.banned.Load(p)
	_, known := c.known.Load(p)
	return known && !banned && !c.learner(p)
}

func (c *cluster) learner(p identity.PeerID) bool {
	_, learns := c.learners.Load(p)
	return learns
}

// fast are times for tests against the real clock.
func fast() Timing {
	return Timing{Heartbeat: 150 * time.Millisecond, Election: 150 * time.Millisecond, Lease: 100 * time.Millisecond, Commit: 10 * time.Millisecond}
}

// newCluster starts n replicas; ghosts more are in the configuration and do not exist.
func newCluster(t testing.TB, n, ghosts int, latency time.Duration, timing Timing) *cluster {
	return newClusterOn(t, n, ghosts, latency, timing, func(int) Store { return newMemoryStore() })
}

// newClusterOn is newCluster with the stores given.
func newClusterOn(t testing.TB, n, ghosts int, latency time.Duration, timing Timing, store func(i int) Store) *cluster {
	c := &cluster{t: t}
	c.start(n, ghosts, latency, timing, store)
	return c
}

func (c *cluster) start(n, ghosts int, latency time.Duration, timing Timing, store func(i int) Store) {
	t := c.t
	c.net, c.fatal = newNetwork(latency), make(chan error, 2*n+4)
	for i := range n + ghosts {
		c.ids = append(c.ids, peerOf(i))
		c.known.Store(peerOf(i), true)
	}
	for i := range n {
		m := &kv{values: map[string]string{}}
		cfg := Config{
			Self: c.ids[i], Peers: peers{c.net, c.ids[i]}, Machine: m, Servers: c.ids, Store: store(i),
			Member: c.member, Learner: c.learner,
			Fatal: func(err error) { c.fatal <- err }, Timing: timing, Trailing: c.trailing,
		}
		r, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.net.update(func() { c.net.serve[c.ids[i]] = r.Serve })
		c.replicas, c.machines = append(c.replicas, r), append(c.machines, m)
	}
}

// close stops all replicas and waits for their streams.
func (c *cluster) close() {
	c.net.heal()
	var wg sync.WaitGroup
	for _, r := range c.replicas {
		wg.Go(func() {
			if err := r.Close(); err != nil {
				c.t.Errorf("close: %v", err)
			}
		})
	}
	wg.Wait()
	for _, id := range c.ids {
		c.net.kill(id)
	}
	c.net.accepts.Wait()
}

// eventually polls until f holds.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 40 s", what)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// leader waits until a replica other than those excepted leads.
func (c *cluster) leader(except ...*Replica) *Replica {
	c.t.Helper()
	var found *Replica
	eventually(c.t, "leader", func() bool {
	next:
		for _, r := range c.replicas {
			for _, e := range except {
				if r == e {
					continue next
				}
			}
			if r.State() == Leader {
				found = r
				return true
			}
		}
		return false
	})
	return found
}

// commit has a command ordered by whoever leads, skipping the excepted.
func (c *cluster) commit(command string, except ...*Replica) {
	c.t.Helper()
	var last error
	eventually(c.t, "commit "+command, func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, last = c.leader(except...).Apply(ctx, []byte(command))
		return last == nil
	})
}

// agree waits until the replicas have executed the same commands.
func (c *cluster) agree(machines ...*kv) {
	c.t.Helper()
	if len(machines) == 0 {
		machines = c.machines
	}
	eventually(c.t, "agreement", func() bool {
		first := machines[0].history()
		for _, m := range machines[1:] {
			if !slices.Equal(m.history(), first) {
				return false
			}
		}
		return true
	})
}
