package exchange_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh/exchange"
	"github.com/attestmesh/meshnode/mesh/internal/mempipe"
	"github.com/attestmesh/meshnode/mesh/meshtest"
)

// reunion is a victim that has met the thief before, when the thief was honest: it holds a
// verdict about the thief and a key for it, and the thief holds both keys.
type reunion struct {
	t      *testing.T
	root   *meshtest.Root
	victim *meshtest.Node
	thief  *meshtest.Node
	pairs  *exchange.Pairs  // the victim's
	mine   exchange.PairKey // the thief convinces the victim with it
	theirs exchange.PairKey // the victim convinces the thief with it
	first  *exchange.Session
	conns  int
}

// with gives an honest node a memory.
func with(pairs *exchange.Pairs) func(*exchange.Params) {
	return func(p *exchange.Params) { p.Pairs = pairs }
}

func newPairs(t *testing.T) *exchange.Pairs {
	t.Helper()
	p, err := exchange.NewPairs(0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func roleOf(initiator bool) attest.Role {
	if initiator {
		return attest.RoleClient
	}
	return attest.RoleServer
}

// reunite runs f in a bubble after a first, full exchange.
func reunite(t *testing.T, f func(*reunion)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		root := meshtest.NewRoot()
		r := &reunion{t: t, root: root, victim: root.NewNode(meshID, "alpha/n1"), thief: root.NewNode(meshID, "beta/n1"), pairs: newPairs(t)}
		defer r.victim.Close()
		defer r.thief.Close()
		p, o, err := r.meet(true, nil)
		if err != nil || o.err != nil || o.session.Fast {
			t.Fatalf("first meeting: %v, %v", err, o.err)
		}
		r.first = o.session
		r.mine, r.theirs = r.keys(p)
		if v, k := r.pairs.Len(); v != 1 || k != 1 {
			t.Fatalf("%d verdicts, %d keys after a full exchange", v, k)
		}
		f(r)
	})
}

// keys derives both pair keys as the puppet can.
func (r *reunion) keys(p *puppet) (mine, theirs exchange.PairKey) {
	mine, err := exchange.NewPairKey(p.export, roleOf(p.initiator), p.helloI, p.helloR)
	if err != nil {
		r.t.Fatal(err)
	}
	if theirs, err = exchange.NewPairKey(p.export, roleOf(!p.initiator), p.helloI, p.helloR); err != nil {
		r.t.Fatal(err)
	}
	return mine, theirs
}

// meet lets the thief play against the victim on a new connection.
func (r *reunion) meet(initiates bool, change func(*puppet), params ...func(*exchange.Params)) (*puppet, outcome, error) {
	r.conns++
	secret := fmt.Sprint("connection ", r.conns)
	a, b := mempipe.New()
	p := &puppet{t: r.t, conn: b, node: r.thief, peer: r.victim.Peer, initiator: initiates, export: exporter(secret)}
	if change != nil {
		change(p)
	}
	out := honest(a, r.victim, r.thief.Peer, !initiates, secret, append([]func(*exchange.Params){with(r.pairs)}, params...)...)
	err := p.play()
	_ = b.Close()
	return p, <-out, err
}

// fast returns the hook that sends a FAST under key with the true binder and head; change may
// alter it.
func fast(key exchange.PairKey, change func(*exchange.Fast)) func(*puppet) []byte {
	return func(p *puppet) []byte {
		var head [32]byte
		f := exchange.Fast{Transcript: exchange.Transcript(p.ekm, p.bodies...), MAC: key.MAC(p.ownBinder().Sum(), head), RuntimeHead: head}
		if change != nil {
			change(&f)
		}
		return f.Encode()
	}
}

// stillFriends checks that an attack left the memory as it was: an honest fast exchange
// still works, with the verdict of the first meeting.
func (r *reunion) stillFriends() {
	r.t.Helper()
	if v, k := r.pairs.Len(); v != 1 || k != 1 {
		r.t.Errorf("%d verdicts and %d keys after an attack", v, k)
	}
	appraisals := r.victim.Judge.Appraisals.Load()
	_, o, err := r.meet(true, func(p *puppet) { p.fast = fast(r.mine, nil) })
	if err != nil || o.err != nil || !o.session.Fast || !o.session.NotAfter.Equal(r.first.NotAfter) || r.victim.Judge.Appraisals.Load() != appraisals {
		r.t.Errorf("an honest reunion after the attack: %+v, %v, %v", o.session, o.err, err)
	}
}

// Who holds the key is accepted without evidence, in either role, for what was left of the
// window: the attacks below fail for their lie.
func TestFastIsAcceptedWhenHonest(t *testing.T) {
	for _, initiates := range []bool{true, false} {
		reunite(t, func(r *reunion) {
			time.Sleep(time.Minute)
			quotes := r.victim.Attester.Quotes.Load()
			p, o, err := r.meet(initiates, func(p *puppet) {
				p.fast = fast(r.mine, nil)
				id := r.theirs.ID()
				p.hello = func(h *exchange.Hello) { h.Want = id[:] }
			})
			if err != nil || o.err != nil {
				t.Fatalf("initiates %v: %v, %v", initiates, o.err, err)
			}
			id := r.mine.ID()
			if !bytes.Equal(p.asked, id[:]) {
				t.Errorf("the victim wants %x", p.asked)
			}
			s := o.session
			if !s.Fast || !s.AttestedAt.Equal(r.first.AttestedAt) || !s.NotAfter.Equal(r.first.NotAfter) || !s.Result.Affirming() || !s.Claims.Bound {
				t.Errorf("session %+v", s)
			}
			if r.victim.Attester.Quotes.Load() != quotes || r.victim.Judge.Appraisals.Load() != 1 || r.victim.Judge.Rejudgings.Load() != 2 {
				t.Error("a fast exchange cost a quote or an appraisal, or the claims were not judged again")
			}
			// The victim's own MAC is what the specification says.
			theirs := p.bodies[map[bool]int{true: 3, false: 2}[initiates]]
			f, err := exchange.DecodeFast(theirs)
			if err != nil {
				t.Fatal(err)
			}
			b := p.ownBinder()
			b.Attester, b.Verifier, b.Role = b.Verifier, b.Attester, roleOf(!initiates)
			if f.MAC != r.theirs.MAC(b.Sum(), f.RuntimeHead) {
				t.Error("the victim's MAC is another")
			}
			r.stillFriends()
		})
	}
}

func TestFastLies(t *testing.T) {
	for name, c := range map[string]struct {
		fast func(*reunion) func(*puppet) []byte
		code attest.Code
	}{
		"unknown key":                {func(*reunion) func(*puppet) []byte { return fast(exchange.PairKey{1}, nil) }, attest.CodeNotBound},
		"zero key":                   {func(*reunion) func(*puppet) []byte { return fast(exchange.PairKey{}, nil) }, attest.CodeNotBound},
		"key of the other direction": {func(r *reunion) func(*puppet) []byte { return fast(r.theirs, nil) }, attest.CodeNotBound},
		"key's id for the key":       {func(r *reunion) func(*puppet) []byte { return fast(exchange.PairKey(r.mine.ID()), nil) }, attest.CodeNotBound},
		"zero MAC":                   {lie(func(f *exchange.Fast) { f.MAC = [32]byte{} }), attest.CodeNotBound},
		"one bit of the MAC":         {lie(func(f *exchange.Fast) { f.MAC[31] ^= 1 }), attest.CodeNotBound},
		"one bit of the transcript":  {lie(func(f *exchange.Fast) { f.Transcript[0] ^= 1 }), attest.CodeNotBound},
		"head not under the MAC":     {lie(func(f *exchange.Fast) { f.RuntimeHead[0] ^= 1 }), attest.CodeNotBound},
		"MAC of no bytes":            {cut(0), attest.CodeMalformed},
		"MAC of 16 bytes":            {cut(16), attest.CodeMalformed},
		"MAC of 31 bytes":            {cut(31), attest.CodeMalformed},
		"trailing byte": {func(r *reunion) func(*puppet) []byte {
			return func(p *puppet) []byte { return append(fast(r.mine, nil)(p), 0) }
		}, attest.CodeProtocol},
		"empty":                       {func(*reunion) func(*puppet) []byte { return func(*puppet) []byte { return nil } }, attest.CodeMalformed},
		"evidence in the wrong frame": {func(*reunion) func(*puppet) []byte { return (*puppet).ownAttestation }, attest.CodeProtocol},
		"binder of a re-attestation":  {rebound(func(b *attest.Binder) { b.Purpose = attest.PurposeReattest }), attest.CodeNotBound},
		"binder of the other role":    {rebound(func(b *attest.Binder) { b.Role = 3 - b.Role }), attest.CodeNotBound},
		"binder without exporter":     {rebound(func(b *attest.Binder) { b.EKM = nil }), attest.CodeNotBound},
		"binder of another verifier":  {rebound(func(b *attest.Binder) { b.Verifier = b.Attester }), attest.CodeNotBound},
		"reflected":                   {reflected, attest.CodeNotBound},
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				reunite(t, func(r *reunion) {
					_, o, err := r.meet(initiates, func(p *puppet) { p.fast = c.fast(r) })
					wantRefused(c.code, true)(t, r.victim, o, err)
					r.stillFriends()
				})
			}
		})
	}
}

func lie(change func(*exchange.Fast)) func(*reunion) func(*puppet) []byte {
	return func(r *reunion) func(*puppet) []byte { return fast(r.mine, change) }
}

// cut returns a FAST whose MAC has n bytes.
func cut(n int) func(*reunion) func(*puppet) []byte {
	return func(r *reunion) func(*puppet) []byte {
		return func(p *puppet) []byte {
			body := fast(r.mine, nil)(p)
			head := append(bytes.Clone(body[:35]), 0x58, byte(n))
			if n < 24 {
				head = append(bytes.Clone(body[:35]), 0x40+byte(n))
			}
			return append(append(head, body[37:37+n]...), body[69:]...)
		}
	}
}

func rebound(change func(*attest.Binder)) func(*reunion) func(*puppet) []byte {
	return func(r *reunion) func(*puppet) []byte {
		return func(p *puppet) []byte {
			p.binder = change
			return fast(r.mine, nil)(p)
		}
	}
}

// reflected sends the victim's own MAC back, where there is one already.
func reflected(r *reunion) func(*puppet) []byte {
	return func(p *puppet) []byte {
		b := p.ownBinder()
		b.Attester, b.Verifier, b.Role = b.Verifier, b.Attester, roleOf(!p.initiator)
		return fast(r.mine, func(f *exchange.Fast) { f.MAC = r.theirs.MAC(b.Sum(), [32]byte{}) })(p)
	}
}

// A key that convinces one verifier, or speaks for one attester, is worth nothing elsewhere.
func TestFastWithAnothersKey(t *testing.T) {
	for _, initiates := range []bool{true, false} {
		reunite(t, func(r *reunion) {
			// gamma is a genuine node too, and has met the same victim.
			beta, key := r.thief, r.mine
			r.thief = r.root.NewNode(meshID, "gamma/n1")
			defer r.thief.Close()
			p, o, err := r.meet(true, nil)
			if err != nil || o.err != nil {
				t.Fatal(err, o.err)
			}
			gammas, _ := r.keys(p)
			_, o, err = r.meet(initiates, func(p *puppet) { p.fast = fast(key, nil) })
			wantRefused(attest.CodeNotBound, true)(t, r.victim, o, err)
			gamma := r.thief
			r.thief = beta // with beta's identity and gamma's key
			_, o, err = r.meet(initiates, func(p *puppet) { p.fast = fast(gammas, nil) })
			wantRefused(attest.CodeNotBound, true)(t, r.victim, o, err)
			r.thief = gamma
			if v, k := r.pairs.Len(); v != 2 || k != 2 {
				t.Errorf("%d verdicts, %d keys", v, k)
			}
			r.thief = beta
		})
	}
}

// Nobody but the verifier chooses the shorter form.
func TestFastUnasked(t *testing.T) {
	for name, prepare := range map[string]func(*reunion) []func(*exchange.Params){
		"forgotten": func(r *reunion) []func(*exchange.Params) { r.pairs.Drop(r.thief.Peer); return nil },
		"restarted": func(r *reunion) []func(*exchange.Params) { r.pairs = newPairs(r.t); return nil },
		"without a memory": func(r *reunion) []func(*exchange.Params) {
			return []func(*exchange.Params){func(p *exchange.Params) { p.Pairs = nil }}
		},
		"after the window": func(r *reunion) []func(*exchange.Params) { time.Sleep(exchange.DefaultWindow); return nil },
		"in a re-attestation": func(r *reunion) []func(*exchange.Params) {
			return []func(*exchange.Params){func(p *exchange.Params) { p.Purpose = attest.PurposeReattest }}
		},
		"after the policy has changed": func(r *reunion) []func(*exchange.Params) {
			r.victim.Judge.AppraiseFunc = excluded
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				reunite(t, func(r *reunion) {
					params := prepare(r)
					verdicts, _ := r.pairs.Len()
					p, o, err := r.meet(initiates, func(p *puppet) { p.fast = fast(r.mine, nil) }, params...)
					wantRefused(attest.CodeProtocol, true)(t, r.victim, o, err)
					if len(p.asked) != 0 {
						t.Errorf("the victim wants %x", p.asked)
					}
					if v, _ := r.pairs.Len(); v > verdicts {
						t.Error("a verdict came of it")
					}
				})
			}
		})
	}
}

func excluded(exchange.Subject) *attest.Reason {
	r := attest.NewReason(attest.CodeMeasurementNotAllowed, "measurement", "00", "another")
	return &r
}

// What was in order when the victim asked may not be when the answer is there.
func TestFastOverruled(t *testing.T) {
	moved := [32]byte{7}
	for name, c := range map[string]struct {
		fast func(*reunion) func(*puppet) []byte
		code attest.Code
		kept bool // the verdict
	}{
		"policy": {func(r *reunion) func(*puppet) []byte {
			return func(p *puppet) []byte {
				r.victim.Judge.AppraiseFunc = excluded
				return fast(r.mine, nil)(p)
			}
		}, attest.CodeMeasurementNotAllowed, false},
		"window": {func(r *reunion) func(*puppet) []byte {
			return func(p *puppet) []byte {
				time.Sleep(3 * time.Second)
				return fast(r.mine, nil)(p)
			}
		}, attest.CodeStale, false},
		"refused elsewhere": {func(r *reunion) func(*puppet) []byte {
			return func(p *puppet) []byte {
				r.pairs.Drop(r.thief.Peer)
				return fast(r.mine, nil)(p)
			}
		}, attest.CodeStale, false},
		"runtime head": {func(r *reunion) func(*puppet) []byte {
			return func(p *puppet) []byte {
				return fast(r.mine, func(f *exchange.Fast) {
					f.RuntimeHead, f.MAC = moved, r.mine.MAC(p.ownBinder().Sum(), moved)
				})(p)
			}
		}, attest.CodeStale, false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				reunite(t, func(r *reunion) {
					time.Sleep(time.Until(r.first.NotAfter) - 2*time.Second)
					p, o, err := r.meet(initiates, func(p *puppet) { p.fast = c.fast(r) })
					wantRefused(c.code, true)(t, r.victim, o, err)
					if len(p.asked) == 0 {
						t.Error("the victim did not ask; nothing was tested")
					}
					if v, _ := r.pairs.Len(); v != 0 {
						t.Error("the verdict stays")
					}
				})
			}
		})
	}
	// Nor may it be when the exchange ends.
	reunite(t, func(r *reunion) {
		_, o, _ := r.meet(true, func(p *puppet) {
			p.fast = fast(r.mine, nil)
			p.ack = func(ack []byte) []byte { r.pairs.Drop(r.thief.Peer); return ack }
		})
		var refusal *exchange.Refusal
		if !errors.As(o.err, &refusal) || refusal.Code() != attest.CodeStale {
			t.Errorf("a verdict dropped before the last frame: %+v, %v", o.session, o.err)
		}
		if v, k := r.pairs.Len(); v+k != 0 {
			t.Errorf("%d verdicts and %d keys are kept", v, k)
		}
	})
	// Another kind of evidence than the verdict's is not what was attested.
	for _, initiates := range []bool{true, false} {
		reunite(t, func(r *reunion) {
			_, o, err := r.meet(initiates, func(p *puppet) {
				p.fast = fast(r.mine, nil)
				p.hello = func(h *exchange.Hello) { h.Kinds = attest.KindTDX }
			})
			wantRefused(attest.CodeProtocol, true)(t, r.victim, o, err)
			r.stillFriends()
		})
	}
}

// A recorded MAC is bound to its connection, whatever the transcript says.
func TestFastReplay(t *testing.T) {
	for _, initiates := range []bool{true, false} {
		reunite(t, func(r *reunion) {
			var recorded exchange.Fast
			_, o, err := r.meet(initiates, func(p *puppet) {
				p.fast = fast(r.mine, func(f *exchange.Fast) { recorded = *f })
			})
			if err != nil || o.err != nil {
				t.Fatal(err, o.err)
			}
			_, o, err = r.meet(initiates, func(p *puppet) {
				p.fast = fast(r.mine, func(f *exchange.Fast) { f.MAC = recorded.MAC })
			})
			wantRefused(attest.CodeNotBound, true)(t, r.victim, o, err)
			r.stillFriends()
		})
	}
}

// A want that names no key of ours gets evidence: asking for less cannot give less.
func TestWantIsAnsweredWithEvidence(t *testing.T) {
	for name, want := range map[string]func(*reunion) []byte{
		"random":                     func(*reunion) []byte { return bytes.Repeat([]byte{5}, 32) },
		"key itself":                 func(r *reunion) []byte { return r.theirs[:] },
		"key of the other direction": func(r *reunion) []byte { id := r.mine.ID(); return id[:] },
		"after the window": func(r *reunion) []byte {
			time.Sleep(exchange.DefaultWindow)
			id := r.theirs.ID()
			return id[:]
		},
		"another runtime head": func(r *reunion) []byte {
			r.victim.Head.Store(&[32]byte{9})
			id := r.theirs.ID()
			return id[:]
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				reunite(t, func(r *reunion) {
					w := want(r)
					quotes := r.victim.Attester.Quotes.Load()
					_, o, err := r.meet(initiates, func(p *puppet) {
						p.hello = func(h *exchange.Hello) { h.Want = w }
					})
					if err != nil || o.err != nil || r.victim.Attester.Quotes.Load() != quotes+1 {
						t.Errorf("%v, %v, %d quotes", o.err, err, r.victim.Attester.Quotes.Load()-quotes)
					}
				})
			}
		})
	}
	for _, size := range []int{1, 31, 33} {
		for _, initiates := range []bool{true, false} {
			reunite(t, func(r *reunion) {
				_, o, err := r.meet(initiates, func(p *puppet) {
					p.hello = func(h *exchange.Hello) { h.Want = make([]byte, size) }
				})
				wantRefused(attest.CodeProtocol, false)(t, r.victim, o, err)
				r.stillFriends()
			})
		}
	}
}

// Somebody on the path, even inside the secure channel, cannot flip a want: both ends see
// another conversation.
func TestWantFlippedOnPath(t *testing.T) {
	id := bytes.Repeat([]byte{3}, 32)
	for name, c := range map[string]struct{ i, r []byte }{"asked for by I": {id, nil}, "asked for by R": {nil, id}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := meshtest.NewRoot()
				client, server := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
				defer client.Close()
				defer server.Close()
				toClient, atClient := mempipe.New()
				toServer, atServer := mempipe.New()
				clientOut := honest(atClient, client, server.Peer, true, "one", with(newPairs(t)))
				serverOut := honest(atServer, server, client.Peer, false, "one", with(newPairs(t)))
				forward := func(from, to *mempipe.Pipe, kind exchange.FrameType, want []byte) {
					body, err := exchange.ReadFrame(from, kind, exchange.MaxAttestation)
					if err != nil {
						t.Fatal(err)
					}
					if want != nil {
						h, reason := exchange.DecodeHello(body)
						if reason != nil {
							t.Fatal(reason)
						}
						h.Want = want
						if body, err = h.Encode(); err != nil {
							t.Fatal(err)
						}
					}
					_ = exchange.WriteFrame(to, kind, body)
				}
				forward(toClient, toServer, exchange.FrameHelloI, c.i)
				forward(toServer, toClient, exchange.FrameHelloR, c.r)
				forward(toClient, toServer, exchange.FrameAttI, nil)
				_, err := exchange.ReadFrame(toServer, exchange.FrameAttR, exchange.MaxAttestation)
				_ = toServer.Close()
				wantRefused(attest.CodeNotBound, true)(t, server, <-serverOut, err)
				_ = toClient.Close()
				if o := <-clientOut; o.session != nil {
					t.Error("the client got a session")
				}
			})
		})
	}
}

// Evidence that proves nothing about the peer leaves the memory alone; evidence by which the
// peer itself shows what is not wanted ends what was believed of it.
func TestVerdictAfterBadEvidence(t *testing.T) {
	for _, initiates := range []bool{true, false} {
		reunite(t, func(r *reunion) {
			foreign := meshtest.NewRoot().NewAttester()
			_, o, err := r.meet(initiates, func(p *puppet) {
				p.proof = func(proof *attest.Proof) {
					proof.Evidence, _ = foreign.Attest(context.Background(), attest.ReportData{})
				}
			})
			wantRefused(attest.CodeNotGenuine, true)(t, r.victim, o, err)
			r.stillFriends()

			// Asked for a MAC, the peer shows evidence, and the policy has changed meanwhile.
			_, o, err = r.meet(initiates, func(p *puppet) {
				p.att = func(*exchange.Attestation) { r.victim.Judge.AppraiseFunc = excluded }
			})
			wantRefused(attest.CodeMeasurementNotAllowed, true)(t, r.victim, o, err)
			if v, _ := r.pairs.Len(); v != 0 {
				t.Error("the verdict stays")
			}
		})
	}
}

// A peer that refuses us gets evidence the next time, whatever it then asks for.
func TestRefusedKeyIsUsedUp(t *testing.T) {
	reunite(t, func(r *reunion) {
		a, b := mempipe.New()
		out := honest(a, r.victim, r.thief.Peer, true, "two", with(r.pairs))
		if _, err := exchange.ReadFrame(b, exchange.FrameHelloI, exchange.MaxHello); err != nil {
			t.Fatal(err)
		}
		_ = exchange.WriteFrame(b, exchange.FrameRefusal, exchange.EncodeReasons(nil))
		_ = b.Close()
		var refusal *exchange.Refusal
		if o := <-out; !errors.As(o.err, &refusal) || !refusal.Remote {
			t.Fatal(o.err)
		}
		if v, k := r.pairs.Len(); v != 1 || k != 0 {
			t.Errorf("%d verdicts, %d keys", v, k)
		}
	})
}

// lossy is a connection that breaks at one of this end's frames.
type lossy struct {
	*mempipe.Pipe
	left int
}

var errCrash = errors.New("crashed")

func (l *lossy) Write(b []byte) (int, error) {
	if l.left--; l.left < 0 {
		_ = l.Reset()
		return 0, errCrash
	}
	return l.Pipe.Write(b)
}

// Whoever crashes, and wherever: what is not finished leaves nothing, and the next exchange
// finds its way.
func TestCrashLeavesNothing(t *testing.T) {
	for frame := range 3 {
		for _, initiator := range []bool{true, false} {
			synctest.Test(t, func(t *testing.T) {
				root := meshtest.NewRoot()
				client, server := root.NewNode(meshID, "alpha/n1"), root.NewNode(meshID, "beta/n1")
				defer client.Close()
				defer server.Close()
				pairs := map[bool]*exchange.Pairs{true: newPairs(t), false: newPairs(t)}
				run := func(secret string, left int) (outcome, outcome) {
					a, b := mempipe.New()
					crashing, other, node, peer := a, b, client, server
					if !initiator {
						crashing, other, node, peer = b, a, server, client
					}
					rest := honest(other, peer, node.Peer, !initiator, secret, with(pairs[!initiator]))
					s, err := exchange.Run(context.Background(), &lossy{crashing, left}, exchange.Params{Purpose: attest.PurposeChannel,
						Self: node.Peer, Peer: peer.Peer, Initiator: initiator, MeshID: meshID, Epoch: 4, Credential: node.Credential,
						Prover: node.Quoter, Judge: node.Judge, Export: exporter(secret), Pairs: pairs[initiator]})
					return outcome{s, err}, <-rest
				}
				last := 2 // of the initiator: HELLO_I, ATT_I, ACK
				if !initiator {
					last = 1
				}
				o, rest := run("one", frame)
				if frame > last {
					if o.err != nil || rest.err != nil {
						t.Fatal(o.err, rest.err)
					}
					return
				}
				if o.err == nil || rest.err == nil {
					t.Fatalf("frame %d of initiator %v lost: %v, %v", frame, initiator, o.err, rest.err)
				}
				for who, p := range pairs {
					if v, k := p.Len(); v != 0 || k != 0 {
						t.Errorf("frame %d of initiator %v lost: initiator %v holds %d verdicts, %d keys", frame, initiator, who, v, k)
					}
				}
				if o, rest = run("two", 99); o.err != nil || rest.err != nil || o.session.Fast || rest.session.Fast {
					t.Errorf("after the crash: %v, %v", o.err, rest.err)
				}
				// And one that has restarted since shows evidence, though the other asks for less.
				pairs[initiator] = newPairs(t)
				if o, rest = run("three", 99); o.err != nil || rest.err != nil || o.session.Fast || rest.session.Fast {
					t.Errorf("after a restart: %v, %v", o.err, rest.err)
				}
				if o, rest = run("four", 99); o.err != nil || rest.err != nil || !o.session.Fast || !rest.session.Fast {
					t.Errorf("after that: %v, %v", o.err, rest.err)
				}
			})
		}
	}
}

// Nothing made for a connection's start proves anything about the same connection later, nor
// the other way round; and the exporter must be that connection's.
func TestPurposesDoNotCross(t *testing.T) {
	reattest := func(p *exchange.Params) { p.Purpose = attest.PurposeReattest }
	second := func(b *attest.Binder) { b.Purpose = attest.PurposeReattest }
	for name, c := range map[string]struct {
		puppet func(*puppet)
		params []func(*exchange.Params)
		code   attest.Code // "": accepted
	}{
		"control":                     {func(p *puppet) { p.binder = second }, []func(*exchange.Params){reattest}, ""},
		"purpose 1 for 2":             {func(*puppet) {}, []func(*exchange.Params){reattest}, attest.CodeNotBound},
		"purpose 2 for 1":             {func(p *puppet) { p.binder = second }, nil, attest.CodeNotBound},
		"exporter of another channel": {func(p *puppet) { p.binder, p.export = second, exporter("another") }, []func(*exchange.Params){reattest}, attest.CodeNotBound},
	} {
		t.Run(name, func(t *testing.T) {
			for _, initiates := range []bool{true, false} {
				reunite(t, func(r *reunion) {
					_, o, err := r.meet(initiates, c.puppet, c.params...)
					if c.code == "" {
						if err != nil || o.err != nil || o.session.Fast || !o.session.NotAfter.After(r.first.AttestedAt) {
							t.Errorf("%+v, %v, %v", o.session, o.err, err)
						}
						return
					}
					// An initiator that is not believed hears the other's refusal, or refuses first.
					wantRefused(c.code, true)(t, r.victim, o, err)
					r.stillFriends()
				})
			}
		})
	}
	// On a live connection nobody may ask for less than evidence.
	for _, initiates := range []bool{true, false} {
		reunite(t, func(r *reunion) {
			_, o, err := r.meet(initiates, func(p *puppet) {
				id := r.theirs.ID()
				p.binder, p.hello = second, func(h *exchange.Hello) { h.Want = id[:] }
			}, reattest)
			wantRefused(attest.CodeProtocol, false)(t, r.victim, o, err)
			r.stillFriends()
		})
	}
	// Evidence recorded on the same connection with purpose 1, replayed in purpose 2: the
	// exporter's secret is the same, the nonces are not.
	reunite(t, func(r *reunion) {
		var recorded exchange.Attestation
		r.pairs.Drop(r.thief.Peer)
		if _, o, err := r.meet(true, func(p *puppet) {
			p.export, p.att = exporter("live"), func(a *exchange.Attestation) { recorded = *a }
		}, func(p *exchange.Params) { p.Export = exporter("live") }); err != nil || o.err != nil {
			t.Fatal(err, o.err)
		}
		_, o, err := r.meet(true, func(p *puppet) {
			p.export, p.binder = exporter("live"), second
			p.att = func(a *exchange.Attestation) { a.Evidence, a.Inclusion = recorded.Evidence, recorded.Inclusion }
		}, reattest, func(p *exchange.Params) { p.Export = exporter("live") })
		wantRefused(attest.CodeNotBound, true)(t, r.victim, o, err)
	})
	for _, purpose := range []attest.Purpose{0, attest.PurposeRATLS, attest.PurposeClientChallenge, attest.PurposeEnrolment} {
		reunite(t, func(r *reunion) {
			a, b := mempipe.New()
			_ = b.Close()
			if _, err := exchange.Run(context.Background(), a, exchange.Params{Purpose: purpose, Self: r.victim.Peer, Peer: r.thief.Peer, MeshID: meshID,
				Prover: r.victim.Quoter, Judge: r.victim.Judge, Export: exporter("one")}); err == nil {
				t.Errorf("ran with purpose %d", purpose)
			}
		})
	}
}
