package redteam

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// The catalogue of docs/ATTACKS.md over real sockets: each of these tests demands of the
// victim that the connection is closed, that no link was announced and no handler ran, that
// what it holds about the attacker's peer is as before, and that exactly one counter went
// up by exactly one.

// scene is a victim that is watched, with an attacker that it holds a verdict about.
type scene struct {
	*world
	m       mesh.Mesh
	c       *Campaign
	handled atomic.Int64

	mu     sync.Mutex
	linked []identity.PeerID // guarded by mu
}

func newScene(t *testing.T) *scene {
	t.Helper()
	s := &scene{world: newWorld(t)}
	s.m = s.sound(nil)
	s.m.Handle(seatProtocol, func(_ mesh.Link, st mesh.Stream) { s.handled.Add(1); st.Close() })
	s.m.Notify(func(l mesh.Link) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.linked = append(s.linked, l.Peer())
	})
	c, err := NewCampaign(testContext(t), s.target(s.m.Addrs()...), s.arsenal())
	if err != nil {
		t.Fatal(err)
	}
	s.c = c
	s.looked(t)
	// One honest attempt: from now on the victim holds a verdict about Self.
	if why := c.honest(testContext(t)); why != "" {
		t.Fatal(why)
	}
	s.eventually(t, "a link", func() bool { return s.links() == 1 && s.m.Counters()["attested/full"] == 1 })
	s.eventually(t, "its end", func() bool { return len(s.m.Links()) == 0 })
	return s
}

// looked waits until the victim has counted that the campaign looked who answers and left.
func (s *scene) looked(t *testing.T) {
	t.Helper()
	s.eventually(t, "the look to be counted", func() bool { return s.m.Counters()["refused/unavailable"] == uint64(len(s.c.addrs)) })
}

func (s *scene) links() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.linked)
}

func (s *scene) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if !poll(ok) {
		t.Fatalf("not in time: %s; counters %v", what, s.m.Counters())
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	if !poll(ok) {
		t.Fatal("not in time")
	}
}

// poll waits for what happens in another goroutine without a signal.
func poll(ok func() bool) bool {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(15 * time.Second); !ok(); <-tick.C {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// holds is the id of the pair key that the victim holds about Self, as its HELLO_R shows.
func (s *scene) holds(t *testing.T) string {
	t.Helper()
	before := s.m.Counters()["refused/protocol"]
	want := s.wants(t, s.c.arsenal.Self)
	s.eventually(t, "the probe to be counted", func() bool { return s.m.Counters()["refused/protocol"] > before })
	return string(want)
}

// wants is what the victim asks of id in HELLO_R: a pair key that it holds, or nothing. A
// machine under load may need a second handshake.
func (s *scene) wants(t *testing.T, id *Identity) []byte {
	t.Helper()
	var a answer
	for range 3 {
		a = s.c.attemptOnce(testContext(t), s.c.addrs[0], id, lies{instead: func(*speaker) (exchange.FrameType, []byte) { return exchange.FrameAck, nil }})
		a.close()
		if !errors.Is(a.err, errNoConnection) {
			break
		}
	}
	h, reason := exchange.DecodeHello(a.helloR)
	if reason != nil {
		t.Fatalf("no HELLO_R: %v", a.err)
	}
	return h.Want
}

// verdicts are the counters of what was decided, without those of connections that ended.
func verdicts(m mesh.Mesh) map[string]uint64 {
	out := m.Counters()
	maps.DeleteFunc(out, func(name string, _ uint64) bool { return strings.HasPrefix(name, "turned_away/") })
	return out
}

// unharmed runs an attack and checks everything that it must have left alone.
func (s *scene) unharmed(t *testing.T, counter string, attack func()) {
	t.Helper()
	held, links := s.holds(t), s.links()
	if len(held) != len(exchange.PairID{}) {
		t.Fatal("the victim holds no verdict about the attacker: nothing could be changed")
	}
	before := verdicts(s.m)
	attack()
	want := maps.Clone(before)
	want[counter]++
	s.eventually(t, counter+" up by one", func() bool { return s.m.Counters()[counter] >= want[counter] })
	if got := verdicts(s.m); !maps.Equal(got, want) {
		t.Errorf("counters went from %v to %v, want one more %s", before, got, counter)
	}
	if got := s.links(); got != links || len(s.m.Links()) != 0 {
		t.Errorf("%d links were announced", got-links)
	}
	if s.handled.Load() != 0 {
		t.Error("a handler ran")
	}
	if s.holds(t) != held {
		t.Error("what the victim holds about the peer has changed")
	}
}

// lie speaks as Self with a lie and demands that the victim refuses with code and closes.
func (s *scene) lie(t *testing.T, l lies, code attest.Code) {
	t.Helper()
	s.as(t, s.c.arsenal.Self, l, code)
}

func (s *scene) as(t *testing.T, id *Identity, l lies, code attest.Code) {
	t.Helper()
	s.unharmed(t, "refused/"+string(code), func() {
		ch, err := dialTLS(testContext(t), s.c.addrs[0], s.victim.Peer, id.Key)
		if err != nil {
			t.Fatal(err)
		}
		defer ch.Close()
		sp := &speaker{conn: ch, export: ch.export, id: id, target: &s.c.target, lies: l}
		_ = ch.SetDeadline(time.Now().Add(answerTimeout))
		err = sp.play(testContext(t))
		var refused *exchange.RefusedError
		if !errors.As(err, &refused) {
			t.Errorf("got %v, want a REFUSAL", err)
		} else if len(refused.Reasons) > 0 && refused.Reasons[0].Code != code {
			t.Errorf("refused with %v, want %s", refused.Reasons, code)
		}
		if _, hungUp := drained(ch, 3*time.Second); !hungUp {
			t.Error("the connection is still open")
		}
	})
}

// outcome runs an attack of the red team's catalogue that makes one attempt.
func (s *scene) outcome(t *testing.T, code attest.Code, run func(context.Context, *Campaign) Outcome) {
	t.Helper()
	s.unharmed(t, "refused/"+string(code), func() {
		if o := run(testContext(t), s.c); o.Status != Held {
			t.Errorf("%s: %s", o.Status, o.Evidence)
		}
	})
}

// record makes an honest attempt and keeps what was sent; it does not acknowledge, so that
// no link comes of it.
func (s *scene) record(t *testing.T) (own, theirs exchange.Attestation) {
	t.Helper()
	before := s.m.Counters()["refused/unavailable"]
	a := s.c.attemptOnce(testContext(t), s.c.addrs[0], s.c.arsenal.Self, lies{att: func(a *exchange.Attestation) { own = *a }})
	a.close()
	theirs, err := exchange.DecodeAttestation(a.attR)
	if err != nil {
		t.Fatalf("nothing recorded: %v, %v", a.err, err)
	}
	s.eventually(t, "the abandoned attempt to be counted", func() bool { return s.m.Counters()["refused/unavailable"] > before })
	return own, theirs
}

func TestC01EvidenceRelayedUnderAnotherPeer(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.outcome(t, attest.CodeNoCredential, func(ctx context.Context, c *Campaign) Outcome { return c.relay(ctx, newKey(), "", attest.CodeNotBound) })
}

func TestC02RecordedEvidenceReplayed(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	own, _ := s.record(t)
	s.lie(t, lies{att: func(a *exchange.Attestation) { own.Transcript = a.Transcript; *a = own }}, attest.CodeNotBound)
}

func TestC03ReplayAfterRestart(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	own, _ := s.record(t)
	if err := s.m.Close(); err != nil {
		t.Fatal(err)
	}
	again := newSceneOf(t, s.world)
	again.lie(t, lies{att: func(a *exchange.Attestation) { own.Transcript = a.Transcript; *a = own }}, attest.CodeNotBound)
}

// newSceneOf starts the same victim again.
func newSceneOf(t *testing.T, w *world) *scene {
	t.Helper()
	s := &scene{world: w}
	s.m = w.sound(nil)
	c, err := NewCampaign(testContext(t), w.target(s.m.Addrs()...), w.arsenal())
	if err != nil {
		t.Fatal(err)
	}
	s.c = c
	s.looked(t)
	if why := c.honest(testContext(t)); why != "" {
		t.Fatal(why)
	}
	s.eventually(t, "a verdict", func() bool { return s.m.Counters()["attested/full"] == 1 && len(s.m.Links()) == 0 })
	return s
}

func TestC04OwnEvidenceReflected(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	_, theirs := s.record(t)
	s.lie(t, lies{att: func(a *exchange.Attestation) { theirs.Transcript = a.Transcript; *a = theirs }}, attest.CodeNotBound)
}

func TestC04OwnHelloReflected(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	before := s.m.Counters()["refused/protocol"]
	first := s.c.attemptOnce(testContext(t), s.c.addrs[0], s.c.arsenal.Self, lies{instead: func(*speaker) (exchange.FrameType, []byte) { return exchange.FrameAck, nil }})
	first.close()
	s.eventually(t, "it to be counted", func() bool { return s.m.Counters()["refused/protocol"] == before+1 })
	s.lie(t, lies{rawHI: func([]byte) []byte { return first.helloR }}, attest.CodeNoCredential)
}

func TestC05RolesSwapped(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.lie(t, lies{binder: func(b *attest.Binder) { b.Role = attest.RoleServer }}, attest.CodeNotBound)
}

func TestC06AnotherMesh(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.lie(t, lies{hello: func(h *exchange.Hello) { h.MeshID[0] ^= 1 }}, attest.CodeWrongMesh)
	s.lie(t, lies{binder: func(b *attest.Binder) { b.MeshID[0] ^= 1 }}, attest.CodeNotBound)
}

func TestC07RelayWithStolenIdentity(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.outcome(t, attest.CodeNotBound, func(ctx context.Context, c *Campaign) Outcome {
		return c.relay(ctx, c.arsenal.Self.Key, c.target.Peer, attest.CodeNotBound)
	})
}

// A genuine node of the same image answers where another was dialled.
func TestC08AnotherGenuineNodeAnswers(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.unharmed(t, "refused/"+string(attest.CodeWrongPeer), func() {
		w := *s.world
		w.victim = s.node("beta/n1")
		b := w.sound(nil)
		_, err := s.m.Dial(testContext(t), s.other.Peer, b.Addrs())
		var r *mesh.Refusal
		if !errors.As(err, &r) || r.Code() != attest.CodeWrongPeer {
			t.Errorf("got %v", err)
		}
		if len(b.Links()) != 0 {
			t.Error("the other node has a link")
		}
	})
}

func TestC09AnotherVersion(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.lie(t, lies{hello: func(h *exchange.Hello) { h.Version = 0 }}, attest.CodeWrongVersion)
	s.lie(t, lies{hello: func(h *exchange.Hello) { h.Version = 2 }}, attest.CodeWrongVersion)
}

// A verified peer that never proves anything is dropped after the total.
func TestC10OneSidedAttestation(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.unharmed(t, "refused/"+string(attest.CodeUnavailable), func() {
		ch, err := dialTLS(testContext(t), s.c.addrs[0], s.victim.Peer, s.self.Key)
		if err != nil {
			t.Fatal(err)
		}
		defer ch.Close()
		sp := &speaker{conn: ch, export: ch.export, id: s.c.arsenal.Self, target: &s.c.target}
		begun := time.Now()
		if err := sp.hellos(); err != nil {
			t.Fatal(err)
		}
		if got, hungUp := drained(ch, exchange.TotalTimeout+3*time.Second); !hungUp || len(got) != 0 || time.Since(begun) < exchange.TotalTimeout-time.Second {
			t.Errorf("after %s: closed %v, %d bytes", time.Since(begun), hungUp, len(got))
		}
	})
}

func TestC11StreamBeforeAttestation(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.outcome(t, attest.CodeProtocol, earlyMuxer)
	s.outcome(t, attest.CodeProtocol, skipAck)
}

func TestC13SlowHandshake(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	s.unharmed(t, "refused/"+string(attest.CodeUnavailable), func() {
		s.c.patience = 5 * time.Second
		if why := s.c.holdSlow(testContext(t), "slow HELLO"); why != "" {
			t.Error(why)
		}
	})
}

// The rest of groups 1 to 21 that one attempt can show, by the code of its refusal.
func TestOneLieOneRefusal(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	flip := func(p *attest.Proof) {
		data := append([]byte{}, p.Evidence.Items[0].Data...)
		data[1] ^= 1
		p.Evidence.Items[0].Data = data
	}
	for name, c := range map[string]struct {
		lie  lies
		code attest.Code
	}{
		"6 splice":                   {lies{maker: s.c.arsenal.Other, binder: func(b *attest.Binder) { b.Attester = string(s.other.Peer) }}, attest.CodeNotBound},
		"6 another leaf":             {lies{att: func(a *exchange.Attestation) { a.Inclusion = attest.Inclusion{Index: 1, Size: 2, Path: paths(1)} }}, attest.CodeNotBound},
		"6 empty tree":               {lies{att: func(a *exchange.Attestation) { a.Inclusion = attest.Inclusion{} }}, attest.CodeNotBound},
		"9 zero nonce":               {lies{hello: func(h *exchange.Hello) { h.Nonce = [32]byte{} }}, attest.CodeProtocol},
		"10 wrong incarnation":       {lies{hello: func(h *exchange.Hello) { h.Incarnation++ }}, attest.CodeWrongIncarnation},
		"11 another attester":        {lies{binder: func(b *attest.Binder) { b.Attester = string(s.other.Peer) }}, attest.CodeNotBound},
		"13 another kind":            {lies{hello: func(h *exchange.Hello) { h.Kinds = attest.KindTDX }}, attest.CodeProtocol},
		"15 frame out of order":      {lies{instead: func(*speaker) (exchange.FrameType, []byte) { return exchange.FrameAck, make([]byte, 32) }}, attest.CodeProtocol},
		"15 trailing byte":           {lies{att: func(a *exchange.Attestation) { a.Evidence = append(a.Evidence, 0) }}, attest.CodeMalformed},
		"18 unknown kind":            {lies{hello: func(h *exchange.Hello) { h.Kinds = "none" }}, attest.CodeKindNotAllowed},
		"18 want of 31 bytes":        {lies{rawHI: func(b []byte) []byte { return withWant(b, make([]byte, 31)) }}, attest.CodeProtocol},
		"19 MAC of zeros":            {lies{instead: fastOf(func(*speaker) []byte { return make([]byte, 32) })}, attest.CodeNotBound},
		"19 MAC truncated":           {lies{instead: fastOf(func(*speaker) []byte { return make([]byte, 16) })}, attest.CodeMalformed},
		"19 MAC under another key":   {lies{instead: fastOf(func(sp *speaker) []byte { return macUnder(exchange.PairKey{1}, sp) })}, attest.CodeNotBound},
		"30 one bit of the evidence": {lies{proof: flip}, attest.CodeNotGenuine},
	} {
		t.Run(name, func(t *testing.T) {
			s.c.arsenal.Self = s.again(t) // the victim bounds full attestations of one peer
			s.lie(t, c.lie, c.code)
		})
	}
}

// again is another enrolled peer, that the victim holds a verdict about.
func (s *scene) again(t *testing.T) *Identity {
	t.Helper()
	s.c.arsenal.Self = asIdentity(s.node("alpha/redteam"))
	links := s.links()
	if why := s.c.honest(testContext(t)); why != "" {
		t.Fatal(why)
	}
	s.eventually(t, "a link that ends", func() bool { return s.links() == links+1 && len(s.m.Links()) == 0 })
	return s.c.arsenal.Self
}

func fastOf(mac func(*speaker) []byte) func(*speaker) (exchange.FrameType, []byte) {
	return func(sp *speaker) (exchange.FrameType, []byte) {
		return exchange.FrameFastI, fastBody(exchange.Transcript(sp.ekm, sp.bodies...), mac(sp))
	}
}

func macUnder(k exchange.PairKey, sp *speaker) []byte {
	mac := k.MAC(sp.binder().Sum(), [32]byte{})
	return mac[:]
}

// The control of the MACs: under the key that both ends derived it is accepted.
func TestFastIsAcceptedWithItsKey(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	// A full exchange whose key the attacker keeps, as the genuine node it is.
	ch, err := dialTLS(testContext(t), s.c.addrs[0], s.victim.Peer, s.self.Key)
	if err != nil {
		t.Fatal(err)
	}
	sp := &speaker{conn: ch, export: ch.export, id: s.c.arsenal.Self, target: &s.c.target}
	if err := sp.play(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := sp.acknowledge(); err != nil {
		t.Fatal(err)
	}
	key, err := exchange.NewPairKey(ch.export, attest.RoleClient, sp.helloI, sp.helloR)
	if err != nil {
		t.Fatal(err)
	}
	s.eventually(t, "the second verdict", func() bool { return s.m.Counters()["attested/full"] == 2 })
	ch.Close()
	a := s.c.attemptOnce(testContext(t), s.c.addrs[0], s.c.arsenal.Self, lies{instead: fastOf(func(sp *speaker) []byte { return macUnder(key, sp) })})
	defer a.close()
	if a.err != nil {
		t.Errorf("the right MAC was refused: %v", a.err)
	}
	// The key of the other direction is another: it convinces nobody.
	back, err := exchange.NewPairKey(ch.export, attest.RoleServer, sp.helloI, sp.helloR)
	if err != nil {
		t.Fatal(err)
	}
	b := s.c.attemptOnce(testContext(t), s.c.addrs[0], s.c.arsenal.Self, lies{instead: fastOf(func(sp *speaker) []byte { return macUnder(back, sp) })})
	if b.err == nil || !strings.Contains(b.err.Error(), string(attest.CodeNotBound)) {
		t.Errorf("the other direction's key: %v", b.err)
	}
}

// Hundreds of peers without a Credential cause no quote and no appraisal.
func TestQuoteOracleAtScale(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	quotes, judged := s.victim.Attester.Quotes.Load(), s.victim.Judge.Appraisals.Load()
	ctx := testContext(t)
	for range 300 {
		a := s.c.attemptOnce(ctx, s.c.addrs[0], stranger(), lies{})
		a.close()
		if a.heard != 0 || len(a.codes) > 0 || a.err == nil {
			t.Fatalf("a stranger got %s, %v, %v", a.heard, a.codes, a.err)
		}
	}
	if s.victim.Attester.Quotes.Load() != quotes || s.victim.Judge.Appraisals.Load() != judged {
		t.Error("a quote or an appraisal was spent on strangers")
	}
}
