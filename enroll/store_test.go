package enroll

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// credentialOf signs a Credential as another organisation's enroller would.
func (w *world) credentialOf(org identity.OrgID, life string, seq identity.BootSeq, roles ...string) []byte {
	w.t.Helper()
	s, err := envelope.NewSigner(enrollKey(org))
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := consensus.SignCredential(s, consensus.Credential{MeshID: w.genesis.MeshID(), Organisation: org, Node: "n1",
		Peer: peerOf(life), Cosigner: public(keyOf(life + " cosigner")), Roles: roles, BootSeq: seq,
		Issued: w.clock.Now(), Expires: w.clock.Now().Add(time.Hour)})
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

func peerOf(life string) identity.PeerID {
	return identity.PeerIDFromKey(keyOf(life + " peer").Public().(ed25519.PublicKey))
}

// payload is a Bootstrap with alpha's Credential given and a log key by name.
func (w *world) payload(attempt uint32, own []byte, logKey string) []byte {
	w.t.Helper()
	payload, err := consensus.NewBootstrap(w.genesis, attempt,
		[][]byte{own, w.credentialOf("beta", "beta", 1, "seat"), w.credentialOf("gamma", "gamma", 1, "seat")},
		keyOf(logKey).Public().(ed25519.PublicKey), w.clock.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	return payload
}

// seat enrols a boot of alpha's seat.
func (w *world) seat(life string) (*node, []byte) {
	w.t.Helper()
	n := w.boot("n1", life)
	n.Roles = []string{"seat"}
	w.clock.advance(time.Second)
	raw, err := n.enrol()
	if err != nil {
		w.t.Fatal(err)
	}
	return n, raw
}

func (w *world) sign(n *node, payload []byte) error {
	w.clock.advance(time.Second)
	n.URL = w.url
	_, err := n.SignBootstrap(context.Background(), payload)
	return err
}

func (w *world) startedUnder(n *node, attempt uint32) error {
	w.clock.advance(time.Second)
	n.URL = w.url
	return n.Started(context.Background(), attempt)
}

func TestBootstrap(t *testing.T) {
	w := newWorld(t)
	first, cred1 := w.seat("first")
	one := w.payload(1, cred1, "log")
	raw, err := first.SignBootstrap(context.Background(), one)
	if err != nil {
		t.Fatal(err)
	}
	// With the others' signatures it is a Bootstrap.
	parts := [][]byte{raw}
	for _, org := range []identity.OrgID{"beta", "gamma"} {
		s, _ := envelope.NewSigner(enrollKey(org))
		part, err := consensus.Sign(one, s)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	merged, err := consensus.Merge(parts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := consensus.NewPolicyState(w.genesis).ParseBootstrap(merged, w.clock.Now()); err != nil {
		t.Error(err)
	}

	if err := w.sign(first, one); err != nil {
		t.Errorf("the same payload again: %v", err)
	}
	wantCode(t, "another payload of the attempt", w.sign(first, w.payload(1, cred1, "other log")), attest.CodeReplayed)

	// The seat reboots before it started: attempt 2 with its new Credential.
	second, cred2 := w.seat("second")
	wantCode(t, "the retired boot starts", w.startedUnder(first, 1), attest.CodeRetired)
	wantCode(t, "a payload with the retired boot", w.sign(first, w.payload(2, cred1, "log")), attest.CodeRetired)
	wantCode(t, "an attempt not signed", w.startedUnder(second, 2), attest.CodeRetired)
	two := w.payload(2, cred2, "log")
	if err := w.sign(second, two); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "an earlier attempt", w.sign(second, w.payload(1, cred2, "log")), attest.CodeReplayed)
	wantCode(t, "start under an earlier attempt", w.startedUnder(second, 1), attest.CodeRetired)

	w.restart()
	if err := w.startedUnder(second, 2); err != nil {
		t.Fatal(err)
	}
	if err := w.startedUnder(second, 2); err != nil {
		t.Errorf("asked again: %v", err)
	}
	w.restart()
	wantCode(t, "a later attempt after the start", w.sign(second, w.payload(3, cred2, "log")), attest.CodeReplayed)
	if err := w.sign(second, two); err != nil {
		t.Errorf("the started payload again: %v", err)
	}
	third, cred3 := w.seat("third")
	wantCode(t, "a reboot after the start", w.sign(third, w.payload(3, cred3, "log")), attest.CodeReplayed)
}

func TestBootstrapRefusals(t *testing.T) {
	w := newWorld(t)
	n, cred := w.seat("first")
	good := w.payload(1, cred, "log")
	other := w.boot("n1", "other")
	unenrolled := w.boot("n1", "unenrolled")
	forged := w.credentialOf("alpha", "unenrolled", 1, "seat")
	n2 := w.boot("n2", "n2 life")
	member := w.mustEnrol(n2).Raw()

	wantCode(t, "start before any signature", w.startedUnder(n, 1), attest.CodeUnknownEntry)
	wantCode(t, "asked by another peer", w.sign(other, good), attest.CodeWrongSigner)
	wantCode(t, "a boot not in the records", w.sign(unenrolled, w.payload(1, forged, "log")), attest.CodeRetired)
	wantCode(t, "no payload", w.sign(n, nil), attest.CodeMalformed)
	wantCode(t, "a flipped payload", w.sign(n, flip(good)), attest.CodeMalformed)

	stranger := w.payload(1, cred, "log")
	stranger = []byte(strings.Replace(string(stranger), w.genesis.MeshID().String()[:8], "00000000", 1))
	if err := w.sign(n, stranger); err == nil {
		t.Error("a payload of another mesh was signed")
	}
	if _, err := consensus.NewBootstrap(w.genesis, 1, [][]byte{member, w.credentialOf("beta", "beta", 1, "seat"), w.credentialOf("gamma", "gamma", 1, "seat")},
		keyOf("log").Public().(ed25519.PublicKey), w.clock.Now()); err == nil {
		t.Error("a Bootstrap with a node that has no seat was made")
	}
	if w.server.store.signed != nil {
		t.Error("a refusal was recorded as a signature")
	}

	w.clock.advance(2 * time.Hour) // the others' Credentials have expired
	wantCode(t, "expired Credentials", w.sign(n, good), attest.CodeCredentialExpired)
	wantCode(t, "start asked by another peer", w.startedUnder(other, 1), attest.CodeUnknownEntry)
}

func flip(b []byte) []byte {
	out := append([]byte{}, b...)
	out[len(out)-1] ^= 1
	return out
}

func TestStartedNeedsTheKey(t *testing.T) {
	w := newWorld(t)
	n, cred := w.seat("first")
	if err := w.sign(n, w.payload(1, cred, "log")); err != nil {
		t.Fatal(err)
	}
	conn, err := n.connect(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.close()
	for name, proof := range map[string][]byte{
		"none":          nil,
		"other key":     ed25519.Sign(keyOf("x"), conn.scope.request(startedLabel, attemptBytes(1))),
		"other attempt": ed25519.Sign(n.PeerKey, conn.scope.request(startedLabel, attemptBytes(2))),
		"other label":   ed25519.Sign(n.PeerKey, conn.scope.request(bootstrapLabel, attemptBytes(1))),
		"other mesh":    ed25519.Sign(n.PeerKey, scope{keyID: conn.scope.keyID}.request(startedLabel, attemptBytes(1))),
	} {
		err := conn.post(context.Background(), pathStarted, startedRequest{Attempt: 1, Peer: n.peer(), Proof: proof}, &struct{}{})
		wantCode(t, name, err, attest.CodeWrongSigner)
	}
	if w.server.store.signed.Started {
		t.Error("a stranger started the seat")
	}
}

// A write that fails at any step is refused, ends the enroller, and whatever the disk then
// holds, no promise is broken after the restart.
func TestFailedWrites(t *testing.T) {
	for _, op := range []durable.Op{durable.OpCreate, durable.OpWrite, durable.OpSync, durable.OpRename, durable.OpDirSync} {
		t.Run(string(op), func(t *testing.T) {
			failing := ""
			w := newWorld(t, durable.WithFault(func(o durable.Op, path string) error {
				if o == op && failing != "" && strings.Contains(path, failing) {
					return errors.New("injected")
				}
				return nil
			}))
			n, cred := w.seat("first")
			last := newestSeq(t, w)
			payload := w.payload(1, cred, "log")

			failing = nodesName
			next := w.boot("n1", "second")
			next.Roles = []string{"seat"}
			_, err := next.enrol()
			wantCode(t, "enrol", err, attest.CodeUnavailable)
			if err := w.stop(); err == nil || !strings.Contains(err.Error(), "injected") {
				t.Errorf("the enroller ended with %v", err)
			}
			failing = ""
			w.start()
			next.URL = w.url
			w.clock.advance(-time.Minute)
			if _, err := next.enrol(); err != nil {
				t.Fatal(err)
			}
			if got := newestSeq(t, w); got <= last {
				t.Errorf("boot_seq %d after %d", got, last)
			}
			wantCode(t, "the first boot", w.sign(n, payload), attest.CodeRetired)

			failing = bootstrapName
			if op == durable.OpDirSync {
				failing = w.dir // what is synced then is the directory
			}
			_, cred2 := w.seat("second")
			wantCode(t, "sign", w.sign(next, w.payload(1, cred2, "log")), attest.CodeUnavailable)
			w.stop()
			failing = ""
			w.start()
			if err := w.sign(next, w.payload(2, cred2, "log")); err != nil {
				t.Errorf("attempt 2 after a failed attempt 1: %v", err)
			}
		})
	}
}

func newestSeq(t *testing.T, w *world) identity.BootSeq {
	t.Helper()
	f := w.server.store.nodes["n1"]
	if f == nil {
		t.Fatal("n1 has no record")
	}
	return f.Boots[len(f.Boots)-1].BootSeq
}

func TestOpenStoreRefuses(t *testing.T) {
	mesh := identity.MeshID{1}
	boots := func(bs ...boot) string {
		raw, err := json.Marshal(nodeFile{storeVersion, "n1", bs})
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	a, b := boot{BootSeq: 5, Peer: peerOf("a"), Cosigner: []byte{1}}, boot{BootSeq: 6, Peer: peerOf("b"), Cosigner: []byte{1}}
	for name, files := range map[string]map[string]string{
		"another mesh":      {metaName: fmt.Sprintf(`{"version":1,"mesh_id":"%s","organisation":"alpha"}`, identity.MeshID{2})},
		"another org":       {metaName: fmt.Sprintf(`{"version":1,"mesh_id":"%s","organisation":"beta"}`, mesh)},
		"another version":   {metaName: fmt.Sprintf(`{"version":2,"mesh_id":"%s","organisation":"alpha"}`, mesh)},
		"no JSON":           {"nodes/n1.json": "hello"},
		"another name":      {"nodes/n2.json": boots(a)},
		"no boots":          {"nodes/n1.json": boots()},
		"falling boot_seq":  {"nodes/n1.json": boots(b, boot{BootSeq: 5, Peer: peerOf("a")})},
		"one peer twice":    {"nodes/n1.json": boots(a, boot{BootSeq: 7, Peer: a.Peer})},
		"a stray file":      {"nodes/notes": "hello"},
		"half a bootstrap":  {bootstrapName: `{"version":1,`},
		"another bootstrap": {bootstrapName: `{"version":9,"incarnation":0,"attempt":1,"payload_sha256":"","node":"","peer":"` + a.Peer.String() + `","started":false}`},
	} {
		dir, err := durable.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for file, content := range files {
			if err := dir.WriteFile(file, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := openStore(dir, mesh, "alpha"); err == nil || !strings.Contains(err.Error(), dir.Path()) {
			t.Errorf("%s: got %v, want a refusal that names the file", name, err)
		}
	}
	// What an interrupted write leaves is no obstacle.
	dir, _ := durable.Open(t.TempDir())
	dir.WriteFile("nodes/n1.json", []byte(boots(a, b)), 0o600)
	os.WriteFile(dir.Path("nodes", ".n1.json.tmp123"), []byte("half"), 0o600)
	s, err := openStore(dir, mesh, "alpha")
	if err != nil {
		t.Fatal(err)
	}
	if seq, reason := s.enrol("n1", b.Peer, b.Cosigner, time.UnixMilli(1)); reason != nil || seq != b.BootSeq {
		t.Errorf("got %d, %v", seq, reason)
	}
}

// An enroller serves an incarnation by one Recovery, and none that it has left.
func TestIncarnationsAreEnteredOnce(t *testing.T) {
	dir, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		incarnation identity.Incarnation
		recovery    string
		ok          bool
	}{
		{0, "", true}, {0, "", true}, {2, "a", true}, {2, "a", true}, {2, "b", false}, {2, "", false}, {1, "c", false}, {0, "", false}, {3, "b", true}, {2, "a", false},
	} {
		s, err := openStore(dir, identity.MeshID{1}, "alpha") // as after a restart
		if err != nil {
			t.Fatal(err)
		}
		if err := s.enter(step.incarnation, step.recovery); (err == nil) != step.ok {
			t.Errorf("incarnation %d by %q: %v", step.incarnation, step.recovery, err)
		}
	}
	// A Bootstrap that was signed says as much.
	signed, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	raw := `{"version":1,"incarnation":4,"attempt":1,"payload_sha256":"","node":"n1","peer":"` + peerOf("a").String() + `","started":false}`
	if err := signed.WriteFile(bootstrapName, []byte(raw), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := openStore(signed, identity.MeshID{1}, "alpha")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.enter(3, "c"); err == nil {
		t.Error("an incarnation below the one whose Bootstrap was signed")
	}
	if err := s.enter(5, "c"); err != nil {
		t.Error(err)
	}
}

// Attempts, checked exhaustively against the rule in words: what may be signed after a
// history of signatures and starts.
func TestAttemptRules(t *testing.T) {
	dir, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	digest := func(i int) []byte { d := sha256.Sum256([]byte{byte(i)}); return d[:] }
	for _, started := range []bool{false, true} {
		for signed := uint32(1); signed <= 3; signed++ {
			for asked := uint32(0); asked <= 4; asked++ {
				for _, same := range []bool{false, true} {
					s := &store{dir: dir, nodes: map[identity.NodeName]*nodeFile{"n1": {Boots: []boot{{BootSeq: 1, Peer: peerOf("a")}}}}}
					if r := s.sign(attempt{Attempt: signed, Payload: digest(0), Node: "n1", Peer: peerOf("a")}); r != nil {
						t.Fatal(r)
					}
					if started {
						if r := s.start(0, signed, peerOf("a")); r != nil {
							t.Fatal(r)
						}
					}
					payload := digest(1)
					if same {
						payload = digest(0)
					}
					want := asked == signed && same || asked > signed && !started
					r := s.sign(attempt{Attempt: asked, Payload: payload, Node: "n1", Peer: peerOf("a")})
					if (r == nil) != want {
						t.Errorf("signed %d, started %v, asked %d, same %v: got %v, want granted %v", signed, started, asked, same, r, want)
					}
				}
			}
		}
	}
}

// childDir makes the test binary an enroller in that directory, whose clock stands.
const childDir = "ENROLL_TEST_DIR"

func childMain(path string) int {
	fail := func(err error) int { fmt.Fprintln(os.Stderr, err); return 1 }
	dir, err := durable.Open(path)
	if err != nil {
		return fail(err)
	}
	g, err := makeGenesis()
	if err != nil {
		return fail(err)
	}
	s, err := NewServer(Config{Genesis: g, Key: enrollKey("alpha"), Releases: testReleases(),
		Schemes: []attest.Scheme{forger().Scheme()}, Dir: dir, Now: testTime, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return fail(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fail(err)
	}
	fmt.Printf("https://%s %s\n", ln.Addr(), s.SPKI())
	if err := s.Serve(context.Background(), ln); err != nil {
		return fail(err)
	}
	return 0
}

// An enroller killed with SIGKILL, again and again while it enrols, keeps every promise:
// numbers rise, and who was retired stays so.
func TestKill(t *testing.T) {
	dir, g := t.TempDir(), testGenesis(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var last identity.BootSeq
	var retired []*node
	for round := range 4 {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			cmd.Process.Kill()
			cmd.Wait()
			t.Fatal(err)
		}
		url, spki, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, old := range retired {
			old.URL = url
			_, err := old.enrol()
			wantCode(t, "a boot retired before the kill", err, attest.CodeRetired)
		}
		retired = nil
		acknowledged := make(chan *node, 100)
		go func() {
			defer close(acknowledged)
			for i := range 100 {
				n := newNode(t, g, "n1", fmt.Sprintf("life %d-%d", round, i))
				n.URL, n.SPKI = url, spki
				raw, err := n.enrol()
				if err != nil {
					return // killed
				}
				c, err := consensus.ParseCredential(raw)
				if err != nil || c.BootSeq <= last {
					t.Errorf("boot_seq %v after %d, %v", c, last, err)
					return
				}
				last = c.BootSeq
				acknowledged <- n
			}
		}()
		for range 3 + round {
			if n := <-acknowledged; n != nil {
				retired = append(retired, n)
			}
		}
		cmd.Process.Kill() // most likely in the middle of the next
		cmd.Wait()
		for n := range acknowledged {
			retired = append(retired, n)
		}
		if len(retired) < 3 {
			t.Fatalf("round %d: only %d boots enrolled", round, len(retired))
		}
		retired = retired[:len(retired)-1] // the newest is not
	}
}
