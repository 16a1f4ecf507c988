package mesh

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// thief speaks the start of an exchange by hand, with the identity of a genuine node.
type thief struct {
	t      *testing.T
	node   *node
	peer   identity.PeerID // the victim
	conn   exchange.Conn
	export exchange.Exporter
	asked  []byte
	ekm    []byte
	bodies [][]byte
}

// hello exchanges HELLOs as the TLS client.
func (th *thief) hello() error {
	own, err := exchange.Hello{Version: exchange.Version, MeshID: th.node.MeshID, Epoch: 3, Nonce: [32]byte{1}, Kinds: attest.KindSim,
		Credential: th.node.Credential}.Encode()
	if err != nil {
		th.t.Fatal(err)
	}
	if err := exchange.WriteFrame(th.conn, exchange.FrameHelloI, own); err != nil {
		return err
	}
	back, err := exchange.ReadFrame(th.conn, exchange.FrameHelloR, exchange.MaxHello)
	if err != nil {
		return err
	}
	if h, reason := exchange.DecodeHello(back); reason == nil {
		th.asked = h.Want
	}
	th.bodies = [][]byte{own, back}
	th.ekm, err = exchange.EKM(th.export, own, back)
	return err
}

// fast sends FAST_I with a MAC that proves nothing, and returns the answer.
func (th *thief) fast() error {
	body := exchange.Fast{Transcript: exchange.Transcript(th.ekm, th.bodies...)}.Encode()
	if err := exchange.WriteFrame(th.conn, exchange.FrameFastI, body); err != nil {
		return err
	}
	_, err := exchange.ReadFrame(th.conn, exchange.FrameFastR, exchange.MaxFast)
	return err
}

func wantRefused(t *testing.T, err error, code attest.Code) {
	t.Helper()
	var r *exchange.RefusedError
	if !errors.As(err, &r) || len(r.Reasons) == 0 || r.Reasons[0].Code != code {
		t.Errorf("the attacker got %v, want a refusal with code %s", err, code)
	}
}

// An attack on a new connection is closed, announced to nobody, reaches no handler, changes
// nothing that is remembered and raises one counter by one.
func TestAttackOnNewConnection(t *testing.T) {
	for name, c := range map[string]struct {
		before func(victim *node)
		code   attest.Code
	}{
		"MAC of nothing": {func(*node) {}, attest.CodeNotBound},
		"MAC unasked":    {func(v *node) { v.hub().pairs.Drop(v.hub().Links()[0].Peer()) }, attest.CodeProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			memory(t, func(t *testing.T, w *world, network *MemoryNetwork) {
				a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
				l := w.dial(a, b)
				w.linkTo(b, a)
				synctest.Wait()
				c.before(b)
				var announced []Link
				b.Notify(func(l Link) { announced = append(announced, l) })
				synctest.Wait()
				held, counters, quotes, appraisals := b.held(), b.Counters(), b.Attester.Quotes.Load(), b.Judge.Appraisals.Load()
				end, err := network.connect(a.Mesh.(*memoryMesh), b.Self(), b.Addrs()[0], "")
				if err != nil {
					t.Fatal(err)
				}
				th := &thief{t: t, node: a, peer: b.Peer, conn: end.handshake, export: end.conn.exporter}
				if err = th.hello(); err == nil {
					err = th.fast()
				}
				wantRefused(t, err, c.code)
				_ = end.handshake.Close()
				synctest.Wait()
				counters["refused/"+string(c.code)]++
				if got := b.Counters(); !equal(got, counters) {
					t.Errorf("counters %v, want %v", got, counters)
				}
				if b.held() != held || b.Attester.Quotes.Load() != quotes || b.Judge.Appraisals.Load() != appraisals {
					t.Errorf("held %v, was %v; %d quotes, %d appraisals", b.held(), held, b.Attester.Quotes.Load(), b.Judge.Appraisals.Load())
				}
				if len(announced) != 1 || len(b.Links()) != 1 || l.Cause() != (attest.Reason{}) {
					t.Errorf("announced %d, links %d, the honest link's cause %v", len(announced), len(b.Links()), l.Cause())
				}
				if r := <-b.refusals; r.Code() != c.code {
					t.Errorf("reported %v", r)
				}
			})
		})
	}
}

func equal(a, b map[string]uint64) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

// An attack on a live connection costs that connection and what was remembered of its peer,
// once, with the reason at both ends.
func TestAttackOnReattestation(t *testing.T) {
	for name, c := range map[string]struct {
		script func(*thief)
		code   attest.Code
	}{
		"a MAC for evidence": {func(th *thief) {
			if err := th.hello(); err != nil {
				th.t.Fatal(err)
			}
			wantRefused(th.t, th.fast(), attest.CodeProtocol)
		}, attest.CodeProtocol},
		"another channel's exporter": {func(th *thief) {
			th.export = func(string, []byte, int) ([]byte, error) { return make([]byte, 32), nil }
			th.attest(attest.PurposeReattest)
		}, attest.CodeNotBound},
		"evidence of purpose 1": {func(th *thief) { th.attest(attest.PurposeChannel) }, attest.CodeNotBound},
		"answered late": {func(th *thief) {
			if err := th.hello(); err != nil {
				th.t.Fatal(err)
			}
			time.Sleep(exchange.TotalTimeout)
			_, _ = th.attestation(attest.PurposeReattest)
		}, attest.CodeUnavailable},
		"hung up": {func(th *thief) {
			if err := th.hello(); err != nil {
				th.t.Fatal(err)
			}
			_ = th.conn.(Stream).Reset()
		}, attest.CodeUnavailable},
		"not a HELLO": {func(th *thief) {
			_ = exchange.WriteFrame(th.conn, exchange.FrameAck, make([]byte, 32))
			_, err := exchange.ReadFrame(th.conn, exchange.FrameHelloR, exchange.MaxHello)
			var r *exchange.RefusedError
			if !errors.As(err, &r) {
				th.t.Errorf("got %v", err)
			}
		}, attest.CodeProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			memory(t, func(t *testing.T, w *world, _ *MemoryNetwork) {
				a, b := w.node("alpha/n1", nil), w.node("beta/n1", nil)
				l := w.dial(a, b)
				back := w.linkTo(b, a)
				synctest.Wait()
				counters, before := b.Counters(), back.Session()
				s := rawStream(t, l, reattestProtocol)
				if _, err := exchange.ReadFrame(s, exchange.FrameAccept, 0); err != nil {
					t.Fatal(err)
				}
				_ = s.SetDeadline(time.Time{})
				c.script(&thief{t: t, node: a, peer: l.Peer(), conn: s, export: l.(*link).channel.export})
				await(t, "the victim's Done", back.Done(), 15*time.Second)
				await(t, "Done", l.Done(), 2*time.Second)
				if back.Cause().Code != c.code || l.Cause().Code != c.code {
					t.Errorf("causes %v and %v, want %s", back.Cause(), l.Cause(), c.code)
				}
				if back.Session() != before {
					t.Error("the attack gave the link a verdict")
				}
				synctest.Wait()
				counters["refused/"+string(c.code)]++
				if got := b.Counters(); !equal(got, counters) {
					t.Errorf("counters %v, want %v", got, counters)
				}
				if b.held() != [2]int{} {
					t.Errorf("held %v", b.held())
				}
				b.wantNoLink(t)
			})
		})
	}
}

// attest sends genuine evidence with a binder of purpose over what the thief believes.
func (th *thief) attest(purpose attest.Purpose) {
	if err := th.hello(); err != nil {
		th.t.Fatal(err)
	}
	_, err := th.attestation(purpose)
	wantRefused(th.t, err, attest.CodeNotBound)
}

func (th *thief) attestation(purpose attest.Purpose) ([]byte, error) {
	h, reason := exchange.DecodeHello(th.bodies[1])
	if reason != nil {
		th.t.Fatal(reason)
	}
	b := attest.Binder{Purpose: purpose, Role: attest.RoleClient, MeshID: h.MeshID, Attester: string(th.node.Peer),
		Verifier: string(th.peer), HelloI: th.bodies[0], HelloR: th.bodies[1], EKM: th.ekm}
	proof, err := th.node.Quoter.Prove(th.t.Context(), b.Sum())
	if err != nil {
		return nil, err
	}
	body, err := exchange.NewAttestation(exchange.Transcript(th.ekm, th.bodies...), proof)
	if err != nil {
		return nil, err
	}
	if err := exchange.WriteFrame(th.conn, exchange.FrameAttI, body); err != nil {
		return nil, err
	}
	return exchange.ReadFrame(th.conn, exchange.FrameAttR, exchange.MaxAttestation)
}
