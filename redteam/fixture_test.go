package redteam

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testMesh = identity.MeshID{7}

const seatProtocol = "/meshnode/test/seat/1"

// world is one pretended mesh with an attacker in it.
type world struct {
	t                  *testing.T
	root               *meshtest.Root
	victim             *meshtest.Node
	self, other, older *meshtest.Node
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, root: meshtest.NewRoot()}
	for name, n := range map[string]**meshtest.Node{"alpha/n1": &w.victim, "alpha/redteam": &w.self, "alpha/other": &w.other, "alpha/older": &w.older} {
		*n = w.node(name)
	}
	return w
}

func asIdentity(n *meshtest.Node) *Identity {
	return &Identity{Key: n.Key, Credential: n.Credential, Attester: n.Attester}
}

func (w *world) arsenal() Arsenal {
	forger := meshtest.NewRoot()
	return Arsenal{Self: asIdentity(w.self), Other: asIdentity(w.other), Older: asIdentity(w.older),
		Fresh: func(context.Context) (*Identity, error) { return asIdentity(w.node("alpha/redteam")), nil },
		Forge: func(p identity.PeerID) ([]byte, error) {
			return forger.Credential(testMesh, p, "alpha/redteam"), nil
		},
		SeatProtocols: []string{seatProtocol}, Started: true}
}

func (w *world) node(name string) *meshtest.Node {
	n := w.root.NewNode(testMesh, name)
	w.t.Cleanup(n.Close)
	return n
}

func (w *world) target(addrs ...string) Target {
	return Target{Peer: w.victim.Peer, MeshID: testMesh, Credential: w.victim.Credential, Addresses: addrs}
}

// soundJudge is meshtest's, and knows that a newer boot was seen.
type soundJudge struct {
	*meshtest.Judge
	w *world
}

func (j soundJudge) Credential(p identity.PeerID, raw []byte) (exchange.Subject, *attest.Reason) {
	s, reason := j.Judge.Credential(p, raw)
	if reason == nil && p == j.w.older.Peer {
		r := attest.NewReason(attest.CodeRetired, "boot", "1", "2")
		return exchange.Subject{}, &r
	}
	return s, reason
}

func (j soundJudge) Permit(_ *exchange.Session, p exchange.Protocol) *attest.Reason {
	if p == seatProtocol {
		r := attest.NewReason(attest.CodeNotSeat, string(p), "member", "seat")
		return &r
	}
	return nil
}

// sound starts the victim as it should be, or with another judge. Nothing of an attack may
// make a link but the honest attempts, which are Self's, or run a handler.
func (w *world) sound(judge exchange.Judge) mesh.Mesh {
	w.t.Helper()
	if judge == nil {
		judge = soundJudge{w.victim.Judge, w}
	}
	m, err := mesh.NewLibp2p(mesh.Config{Key: w.victim.Key, MeshID: testMesh, Quoter: w.victim.Quoter, Judge: judge,
		Listen:      []string{"/ip4/127.0.0.1/tcp/0"},
		Incarnation: func() identity.Incarnation { return 0 }, Epoch: func() identity.Epoch { return 1 },
		Credential: func() []byte { return w.victim.Credential }})
	if err != nil {
		w.t.Fatal(err)
	}
	m.Handle(seatProtocol, func(_ mesh.Link, s mesh.Stream) {
		defer s.Close()
		_, _ = io.Copy(io.Discard, s)
	})
	w.t.Cleanup(func() { _ = m.Close() })
	return m
}

// publicRoutes serves files below a directory as a node serves its log.
func publicRoutes(t *testing.T) http.Handler {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "checkpoint"), []byte("log\n0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/meshnode/node", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "{}") })
	mux.Handle("GET /log/", http.StripPrefix("/log/", http.FileServerFS(os.DirFS(dir))))
	return mux
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// campaign opens a campaign that has made its honest attempt.
func (w *world) campaign(t *testing.T, target Target, a Arsenal) *Campaign {
	t.Helper()
	c, err := NewCampaign(testContext(t), target, a)
	if err != nil {
		t.Fatal(err)
	}
	c.Run(testContext(t), nil, nil)
	return c
}

func attackNamed(t *testing.T, name string) Attack {
	t.Helper()
	for _, a := range Attacks() {
		if a.Name == name {
			return a
		}
	}
	t.Fatalf("no attack %s", name)
	return Attack{}
}

// Every attack is tried at a sound mesh, none is skipped, and every one is held. What the
// node itself remembers afterwards is what the honest attempts have left.
func TestSoundNodeHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.sound(nil)
	var mu sync.Mutex
	linked := map[string]int{}
	m.Notify(func(l mesh.Link) {
		mu.Lock()
		defer mu.Unlock()
		linked[l.Session().Node.String()]++
	})
	target := w.target(m.Addrs()...)
	target.URL = (&clientEndpoint{w: w}).serve(t, publicRoutes(t))
	a := w.arsenal()
	a.Genuine = w.genuine
	c, err := NewCampaign(testContext(t), target, a)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range c.Run(testContext(t), Attacks(), func(o Outcome) {
		t.Logf("%-8s %-20s %5.1fs %.200s", o.Status, o.Attack, time.Duration(o.Took).Seconds(), o.Evidence)
	}) {
		if o.Status != Held {
			t.Errorf("%s: %s: %s", o.Attack, o.Status, o.Evidence)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	for node, n := range linked {
		// The honest attempts: one before the campaign, one for each attack on streams.
		if node != "alpha/redteam" || n != 3 {
			t.Errorf("%d links to %s were announced", n, node)
		}
	}
}

// A stranger with no Credential still runs what needs none, and is told why the rest is not.
func TestStrangerSkips(t *testing.T) {
	w := newWorld(t)
	m := w.sound(nil)
	c := w.campaign(t, w.target(m.Addrs()...), Arsenal{Missing: "pass --config FILE"})
	for _, o := range c.Run(testContext(t), []Attack{attackNamed(t, "quote-oracle"), attackNamed(t, "replay"), attackNamed(t, "http-body")}, nil) {
		want := map[string]Status{"quote-oracle": Held, "replay": Skipped, "http-body": Skipped}[o.Attack]
		if o.Status != want {
			t.Errorf("%s: %s %s", o.Attack, o.Status, o.Evidence)
		}
		if o.Attack == "replay" && o.Evidence != "pass --config FILE" {
			t.Errorf("replay: %q", o.Evidence)
		}
	}
	if w.victim.Attester.Quotes.Load() != 0 {
		t.Error("the victim made a quote for a stranger")
	}
}

// A lie shows nothing where the truth is refused, too.
func TestRefusedIdentitySkips(t *testing.T) {
	w := newWorld(t)
	m := w.sound(nil)
	a := w.arsenal()
	a.Self = asIdentity(w.older)
	c := w.campaign(t, w.target(m.Addrs()...), a)
	o := c.Run(testContext(t), []Attack{attackNamed(t, "wrong-role")}, nil)[0]
	if o.Status != Skipped || !strings.Contains(o.Evidence, "did not recognise the Credential") {
		t.Errorf("%s: %s", o.Status, o.Evidence)
	}
}

func TestTargetMustBeOurs(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]struct {
		addrs []string
		own   bool
		ok    []string
	}{
		"loopback":              {[]string{"/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"}, false, []string{"/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1"}},
		"elsewhere":             {[]string{"/ip4/192.0.2.1/tcp/1"}, false, nil},
		"both":                  {[]string{"/ip4/192.0.2.1/tcp/1", "/ip4/127.0.0.1/tcp/1"}, false, []string{"/ip4/127.0.0.1/tcp/1"}},
		"elsewhere, own":        {[]string{"/ip4/192.0.2.1/tcp/1"}, true, []string{"/ip4/192.0.2.1/tcp/1"}},
		"names are no address":  {[]string{"/dns4/localhost/tcp/1"}, true, nil},
		"mapped loopback":       {[]string{"/ip6/::ffff:127.0.0.1/tcp/1"}, false, []string{"/ip6/::ffff:127.0.0.1/tcp/1"}},
		"mapped elsewhere":      {[]string{"/ip6/::ffff:192.0.2.1/tcp/1"}, false, nil},
		"multicast, unspecific": {[]string{"/ip4/224.0.0.1/tcp/1", "/ip4/0.0.0.0/tcp/1"}, true, nil},
		"UDP alone":             {[]string{"/ip4/127.0.0.1/udp/1/quic-v1"}, true, nil},
		"relayed":               {[]string{"/ip4/127.0.0.1/tcp/1/p2p/" + w.other.Peer.String() + "/p2p-circuit"}, true, nil},
		"nonsense":              {[]string{"x"}, true, nil},
	} {
		target := w.target(c.addrs...)
		target.Own = c.own
		got, err := target.allowed()
		if strings.Join(got, " ") != strings.Join(c.ok, " ") || (err == nil) != (c.ok != nil) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	target := w.target()
	for url, want := range map[string]bool{"http://127.0.0.1:1": true, "http://[::1]:1": true, "http://localhost:1": true, "http://192.0.2.7:1": true,
		"http://192.0.2.8:1": false, "http://example.org:1": false, "https://127.0.0.1:1": true, "ftp://127.0.0.1:1": false, "": false} {
		target.URL = url
		if err := target.httpAllowed([]string{"/ip4/192.0.2.7/tcp/4001"}); (err == nil) != want {
			t.Errorf("%s: %v", url, err)
		}
	}
}

// An address where somebody else answers is not attacked.
func TestTargetMustProveItself(t *testing.T) {
	w := newWorld(t)
	m := w.sound(nil)
	target := w.target(m.Addrs()...)
	target.Peer = w.other.Peer
	if _, err := NewCampaign(testContext(t), target, Arsenal{}); err == nil || !strings.Contains(err.Error(), ErrUnreachable.Error()) {
		t.Errorf("another peer: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := "/ip4/127.0.0.1/tcp/" + strings.TrimPrefix(l.Addr().String(), "127.0.0.1:")
	l.Close()
	if _, err := NewCampaign(testContext(t), w.target(addr), Arsenal{}); err == nil || !strings.Contains(err.Error(), ErrUnreachable.Error()) {
		t.Errorf("nobody: %v", err)
	}
}
