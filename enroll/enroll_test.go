package enroll

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/sim"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/sigstore/sigstore/pkg/signature"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		os.Exit(childMain(dir))
	}
	goleak.VerifyTestMain(m)
}

// keyOf derives a key: the same in every process of a test.
func keyOf(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("enroll test " + name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(key ed25519.PrivateKey) envelope.PublicKey {
	return envelope.PublicKey{PublicKey: key.Public()}
}

// testOrgs are the founders; alpha's enroller is the one under test.
var testOrgs = []identity.OrgID{"alpha", "beta", "gamma"}

func enrollKey(org identity.OrgID) ed25519.PrivateKey { return keyOf(string(org) + " enroll") }

func forger() *attesttest.Forger { return attesttest.New("enroll") }

// released runs a release on alpha's list, seatless one that may hold no seat.
var (
	released = attesttest.Measurement("released")
	seatless = attesttest.Measurement("seatless")
)

func testGenesis(t testing.TB) *consensus.Genesis {
	t.Helper()
	g, err := makeGenesis()
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func makeGenesis() (*consensus.Genesis, error) {
	g := &consensus.Genesis{Name: "test", Nonce: "0000000000000000000000000000000000000000000000000000000000000001",
		CreatedAt: testTime(), LogOrigin: "sim.example/test", FSMVersion: consensus.FSMVersion, StoreKind: consensus.StoreMemory, AllowSim: true,
		Kinds:     consensus.Kinds{Member: []string{"sim"}, Seat: []string{"sim"}, Aggregator: []string{"sim"}},
		Roots:     consensus.Roots{Sim: []envelope.PublicKey{}, VTPM: []consensus.RootKey{}},
		Policy:    consensus.FirstPolicy{Entries: []consensus.Entry{}},
		Witnesses: []string{}, Limits: consensus.Limits{Nodes: 8}}
	for _, root := range forger().Roots() {
		g.Roots.Sim = append(g.Roots.Sim, envelope.PublicKey{PublicKey: root})
	}
	var signers []signature.Signer
	for _, org := range testOrgs {
		govern := keyOf(string(org) + " govern")
		g.Organisations = append(g.Organisations, consensus.Organisation{ID: org, Roles: []string{consensus.OrgMember},
			Keys: []consensus.Key{{Role: consensus.KeyGovern, Public: public(govern)}, {Role: consensus.KeyEnroll, Public: public(enrollKey(org))}}})
		s, err := envelope.NewSigner(govern)
		if err != nil {
			return nil, err
		}
		signers = append(signers, s)
	}
	return consensus.SignGenesis(g, signers...)
}

func testTime() time.Time { return time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC) }

func testReleases() Releases {
	return Releases{
		Releases: []Release{
			{Measurement: released, Kind: attest.KindSim, Roles: []string{"seat", "trainer", "aggregator"}},
			{Measurement: seatless, Kind: attest.KindSim, Roles: []string{"trainer"}},
		},
		Nodes: []Node{{Name: "n1", Roles: []string{"seat", "trainer"}}, {Name: "n2"}},
	}
}

// clock is a wall clock that a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// world is one enroller of alpha with its surroundings.
type world struct {
	t       *testing.T
	genesis *consensus.Genesis
	clock   *clock
	dir     string
	options []durable.Option
	change  func(*Config) // what another enroller than usual has, or nil
	server  *Server
	url     string
	stop    func() error
}

func newWorld(t *testing.T, options ...durable.Option) *world {
	t.Helper()
	w := &world{t: t, genesis: testGenesis(t), clock: &clock{now: testTime()}, dir: t.TempDir(), options: options}
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) config() Config {
	w.t.Helper()
	dir, err := durable.Open(w.dir, w.options...)
	if err != nil {
		w.t.Fatal(err)
	}
	return Config{Genesis: w.genesis, Key: enrollKey("alpha"), Releases: testReleases(), Schemes: []attest.Scheme{forger().Scheme()},
		Dir: dir, Now: w.clock.Now}
}

func (w *world) start() {
	w.t.Helper()
	cfg := w.config()
	if w.change != nil {
		w.change(&cfg)
	}
	s, err := NewServer(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln) }()
	w.server, w.url = s, "https://"+ln.Addr().String()
	w.stop = sync.OnceValue(func() error { cancel(); return <-ended })
}

func (w *world) restart() {
	w.t.Helper()
	if err := w.stop(); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

// node is one boot of a node of alpha with an attester of its own.
type node struct {
	*Client
	attester *attesttest.Attester
	prover   Prover
}

// boot returns a new boot of a node; life makes its keys.
func (w *world) boot(name, life string) *node {
	w.t.Helper()
	n := newNode(w.t, w.genesis, name, life)
	n.URL, n.SPKI = w.url, w.server.SPKI()
	return n
}

func newNode(t testing.TB, g *consensus.Genesis, name, life string) *node {
	t.Helper()
	n := &node{
		Client: &Client{EnrollKeys: []crypto.PublicKey{enrollKey("alpha").Public()}, MeshID: g.MeshID(),
			Node: identity.NodeRef{Org: "alpha", Name: identity.NodeName(name)}, PeerKey: keyOf(life + " peer"), CosignerKey: keyOf(life + " cosigner")},
		attester: forger().Attester(released),
	}
	n.prove(t, n.attester)
	return n
}

// prove makes n take its evidence from an attester.
func (n *node) prove(t testing.TB, a attest.Attester) {
	q := attest.NewQuoter(a, n.MeshID, string(n.peer()), func() [32]byte { return [32]byte{} })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); q.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	n.prover = q
}

func (n *node) peer() identity.PeerID {
	return identity.PeerIDFromKey(n.PeerKey.Public().(ed25519.PublicKey))
}

func (n *node) enrol() ([]byte, error) { return n.Credential(context.Background(), n.prover) }

// mustEnrol returns the Credential that the enroller gives, verified as a peer would.
func (w *world) mustEnrol(n *node) *consensus.Credential {
	w.t.Helper()
	raw, err := n.enrol()
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := w.genesis.VerifyCredential(0, raw, w.clock.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	w.clock.advance(time.Second) // refills the rate limit
	return c
}

// wantCode checks that err carries a reason with a code and a remedy.
func wantCode(t *testing.T, what string, err error, code attest.Code) {
	t.Helper()
	var e *attest.Error
	if !errors.As(err, &e) || e.Reason.Code != code {
		t.Errorf("%s: got %v, want code %s", what, err, code)
	} else if e.Reason.Remedy == "" {
		t.Errorf("%s: %v has no remedy", what, err)
	}
}

func TestCredential(t *testing.T) {
	w := newWorld(t)
	n := w.boot("n1", "first")
	n.Roles = []string{"seat", "trainer"}
	c := w.mustEnrol(n)
	if c.Ref().String() != "alpha/n1" || c.Peer != n.peer() || !c.HasRole("seat") || !c.HasRole("member") || c.HasRole("aggregator") {
		t.Errorf("credential %+v", c)
	}
	if c.BootSeq != identity.BootSeq(testTime().UnixMilli()) || c.Expires.Sub(c.Issued) != CredentialLifetime {
		t.Errorf("boot_seq %d, valid %s", c.BootSeq, c.Expires.Sub(c.Issued))
	}

	// The same boot renews under its number, also after the enroller restarts.
	w.restart()
	n.URL = w.url
	w.clock.advance(time.Hour)
	again := w.mustEnrol(n)
	if again.BootSeq != c.BootSeq || !again.Expires.After(c.Expires) {
		t.Errorf("renewed: boot_seq %d until %s, was %d until %s", again.BootSeq, again.Expires, c.BootSeq, c.Expires)
	}

	// A new boot gets a higher number even if the clock stands far back; the old one is
	// retired for ever.
	w.clock.advance(-2 * time.Hour)
	next := w.boot("n1", "second")
	if got := w.mustEnrol(next).BootSeq; got != c.BootSeq+1 {
		t.Errorf("second boot_seq %d, want %d", got, c.BootSeq+1)
	}
	_, err := n.enrol()
	wantCode(t, "retired boot", err, attest.CodeRetired)
	w.restart()
	n.URL = w.url
	_, err = n.enrol()
	wantCode(t, "retired boot after a restart", err, attest.CodeRetired)
}

func TestCredentialRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*node)
		code   attest.Code
	}{
		"unlisted measurement": {func(n *node) { n.attester.Remeasure(attesttest.Measurement("nobody's")) }, attest.CodeMeasurementNotAllowed},
		"unlisted node":        {func(n *node) { n.Node.Name = "n3" }, attest.CodeUnknownEntry},
		"role of the node":     {func(n *node) { n.Roles = []string{"aggregator"} }, attest.CodeUnknownEntry},
		"role of the release":  {func(n *node) { n.attester.Remeasure(seatless); n.Roles = []string{"seat"} }, attest.CodeUnknownEntry},
		"unknown role":         {func(n *node) { n.Roles = []string{"king"} }, attest.CodeMalformed},
		"other mesh":           {func(n *node) { n.MeshID[0] ^= 1 }, attest.CodeWrongMesh},
		"other incarnation":    {func(n *node) { n.Incarnation = 1 }, attest.CodeWrongIncarnation},
		"one key for two uses": {func(n *node) { n.CosignerKey = n.PeerKey }, attest.CodeMalformed},
		"unknown enroller":     {func(n *node) { n.EnrollKeys = []crypto.PublicKey{enrollKey("beta").Public()} }, attest.CodeWrongSigner},
		"other TLS key":        {func(n *node) { n.SPKI = "00" + n.SPKI[2:] }, attest.CodeWrongPeer},
		"no pin":               {func(n *node) { n.SPKI = "" }, attest.CodeMalformed},
		"plain HTTP":           {func(n *node) { n.URL = "http" + n.URL[5:] }, attest.CodeMalformed},
		"nobody there":         {func(n *node) { n.URL = "https://127.0.0.1:1" }, attest.CodeUnavailable},
		"broken attester":      {func(n *node) { n.attester.Fail(attesttest.ErrDevice) }, attest.CodeUnavailable},
		"no keys":              {func(n *node) { n.PeerKey = nil }, attest.CodeMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			n := w.boot("n1", "first")
			tc.change(n)
			raw, err := n.enrol()
			wantCode(t, name, err, tc.code)
			if raw != nil {
				t.Error("a Credential came with the error")
			}
			// Nothing was written: the node's first boot is still to come.
			if w.server.store.nodes["n1"] != nil || w.server.store.nodes["n3"] != nil {
				t.Error("the refusal changed the state")
			}
		})
	}
}

func TestForgedEvidence(t *testing.T) {
	w := newWorld(t)
	n := w.boot("n1", "first")
	first := w.mustEnrol(n).BootSeq
	for _, forgery := range attesttest.Forgeries() {
		n.attester.Forge(forgery)
		_, err := n.enrol()
		var e *attest.Error
		if !errors.As(err, &e) {
			t.Errorf("%s: got %v", forgery, err)
		}
		w.clock.advance(time.Second)
	}
	n.attester.Forge(attesttest.Genuine)
	if got := w.mustEnrol(n).BootSeq; got != first {
		t.Errorf("boot_seq %d after refusals, want %d", got, first)
	}
}

// A boot has one cosigner key: another would let it sign two histories under one number.
func TestCosignerKeyIsFixed(t *testing.T) {
	w := newWorld(t)
	n := w.boot("n1", "first")
	w.mustEnrol(n)
	n.CosignerKey = keyOf("another")
	_, err := n.enrol()
	wantCode(t, "another cosigner key", err, attest.CodeDuplicate)
}

// A peer id belongs to one name.
func TestPeerHasOneName(t *testing.T) {
	w := newWorld(t)
	w.mustEnrol(w.boot("n1", "first"))
	_, err := w.boot("n2", "first").enrol()
	wantCode(t, "the same peer under another name", err, attest.CodeWrongPeer)
}

func TestNewServerRefuses(t *testing.T) {
	w := newWorld(t)
	if _, err := NewServer(w.config()); !errors.Is(err, durable.ErrInUse) {
		t.Errorf("a second enroller: got %v", err)
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"govern key":     func(c *Config) { c.Key = keyOf("alpha govern") },
		"foreign key":    func(c *Config) { c.Key = keyOf("nobody") },
		"no key":         func(c *Config) { c.Key = nil },
		"no genesis":     func(c *Config) { c.Genesis = nil },
		"no clock":       func(c *Config) { c.Now = nil },
		"no directory":   func(c *Config) { c.Dir = nil },
		"no releases":    func(c *Config) { c.Releases = Releases{} },
		"no scheme":      func(c *Config) { c.Schemes = nil },
		"other org":      func(c *Config) { c.Key = enrollKey("beta") },
		"unknown kind":   func(c *Config) { c.Releases.Releases[0].Kind = "abacus" },
		"readable TLS":   func(c *Config) { os.Chmod(c.Dir.Path(tlsKeyName), 0o644) },
		"no TLS key":     func(c *Config) { os.WriteFile(c.Dir.Path(tlsKeyName), []byte("x"), 0o600) },
		"damaged record": func(c *Config) { os.WriteFile(c.Dir.Path(metaName), []byte(`{"version":1`), 0o600) },
	} {
		// Each begins with the directory of a sound enroller.
		s, err := NewServer(w.config())
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
		cfg := w.config()
		change(&cfg)
		if s, err := NewServer(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			s.Close()
		} else if errors.Is(err, durable.ErrInUse) {
			t.Errorf("%s: %v: an earlier refusal kept the directory", name, err)
		}
		if err := os.RemoveAll(w.dir); err != nil {
			t.Fatal(err)
		}
	}
}

// The pinned key stays over restarts.
func TestPinStays(t *testing.T) {
	w := newWorld(t)
	before := w.server.SPKI()
	w.restart()
	if got := w.server.SPKI(); got != before {
		t.Errorf("pin %s after the restart, was %s", got, before)
	}
	if id, err := envelope.KeyID(enrollKey("alpha").Public()); err != nil || w.server.KeyID() != id || w.server.Organisation() != "alpha" {
		t.Errorf("key id %s of %s, want %s, %v", w.server.KeyID(), w.server.Organisation(), id, err)
	}
}

// The whole way with a real platform: this process is measured by its executable, and its
// enroller, which lists that measurement, believes it.
func TestRealPlatform(t *testing.T) {
	platform, err := sim.Listen(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- platform.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	scheme, err := sim.NewScheme(platform.Root())
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum384(binary)

	w := newWorld(t)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	w.change = func(c *Config) {
		c.Schemes = []attest.Scheme{scheme}
		c.Releases.Releases[0].Measurement = hex.EncodeToString(digest[:])
	}
	w.start()
	attester := sim.NewAttester(platform.Socket())
	defer attester.Close()
	n := w.boot("n1", "first")
	n.Roles = []string{"seat"}
	n.prove(t, attester)
	if c := w.mustEnrol(n); !c.HasRole("seat") {
		t.Errorf("credential %+v", c)
	}
	// The forger's evidence, genuine under its own root, means nothing to this enroller.
	forged := w.boot("n1", "second")
	_, err = forged.enrol()
	wantCode(t, "another platform", err, attest.CodeNotGenuine)
}
