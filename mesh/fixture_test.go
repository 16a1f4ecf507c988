package mesh

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(floodRole); role != "" {
		os.Exit(playFlood(role))
	}
	goleak.VerifyTestMain(m)
}

const echo Protocol = "/meshnode/test/echo/1"

// world makes meshes of one implementation.
type world struct {
	t      *testing.T
	root   *meshtest.Root
	meshID identity.MeshID
	start  func(Config) (Mesh, error)
	listen []string
}

// node is a mesh under test with the pretended node behind it.
type node struct {
	Mesh
	*meshtest.Node
	incarnation atomic.Uint64
	refusals    chan Refusal
}

// conformance runs f over both implementations, the memory one with virtual time.
func conformance(t *testing.T, f func(*testing.T, *world)) {
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			network := &MemoryNetwork{}
			f(t, &world{t: t, root: meshtest.NewRoot(), meshID: identity.MeshID{7},
				start: func(c Config) (Mesh, error) { return NewMemory(network, c) }})
		})
	})
	t.Run("libp2p", func(t *testing.T) {
		f(t, newLibp2pWorld(t))
	})
}

func newLibp2pWorld(t *testing.T) *world {
	return &world{t: t, root: meshtest.NewRoot(), meshID: identity.MeshID{7}, start: NewLibp2p, listen: []string{"/ip4/127.0.0.1/tcp/0"}}
}

// node starts a node; change may alter the pretended node and the configuration first.
func (w *world) node(name string, change func(*meshtest.Node, *Config)) *node {
	w.t.Helper()
	n := &node{Node: w.root.NewNode(w.meshID, name), refusals: make(chan Refusal, 64)}
	cfg := Config{
		Key: n.Key, MeshID: w.meshID, Quoter: n.Quoter, Judge: n.Judge, Listen: w.listen,
		Incarnation: func() identity.Incarnation { return identity.Incarnation(n.incarnation.Load()) },
		Epoch:       func() identity.Epoch { return 3 },
		Credential:  func() []byte { return n.Credential },
		OnRefusal:   func(r Refusal) { n.refusals <- r },
	}
	if change != nil {
		change(n.Node, &cfg)
	}
	m, err := w.start(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	n.Mesh = m
	m.Handle(echo, func(_ Link, s Stream) {
		defer s.Close()
		_, _ = io.Copy(s, s)
	})
	w.t.Cleanup(func() {
		if err := m.Close(); err != nil {
			w.t.Error(err)
		}
		n.Node.Close()
	})
	return n
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (w *world) dial(from, to *node) Link {
	w.t.Helper()
	l, err := from.Dial(testContext(w.t), to.Self(), to.Addrs())
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// eventually polls: what it waits for happens in another goroutine without a signal.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func (w *world) linkTo(n, peer *node) Link {
	w.t.Helper()
	var l Link
	eventually(w.t, "a link", func() (ok bool) { l, ok = n.Link(peer.Self()); return ok })
	return l
}

func await(t *testing.T, what string, done <-chan struct{}, within time.Duration) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(within):
		t.Fatalf("not within %s: %s", within, what)
	}
}

func wantRefusal(t *testing.T, err error, remote bool, code attest.Code) *Refusal {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Remote != remote || r.Code() != code {
		t.Fatalf("got %v, want a refusal (remote %v) with code %s", err, remote, code)
	}
	return r
}

func (n *node) wantNoLink(t *testing.T) {
	t.Helper()
	if ls := n.Links(); len(ls) != 0 {
		t.Fatalf("%d links, want none", len(ls))
	}
}
