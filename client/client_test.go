package client_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/ratls"
	"github.com/attestmesh/meshnode/attest/runtimelog"
	"github.com/attestmesh/meshnode/client"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	orgs = []identity.OrgID{"alpha", "beta", "gamma"}
	bob  = identity.NodeRef{Org: "beta", Name: "n1"}
)

// clock is a wall clock that tests move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

func TestVerifiedBeforeTheFirstByte(t *testing.T) {
	m := newMesh(t, "good", orgs...)
	for _, protocol := range []string{"h2", "http/1.1"} {
		for _, ref := range []identity.NodeRef{bob, {Org: "beta", Name: "n2"}} { // a seat, and a plain member
			t.Run(protocol+" "+ref.String(), func(t *testing.T) {
				n := serve(t, m, ref, "one", protocol)
				if _, err := n.runtime.Append(started("inference", "program")); err != nil {
					t.Fatal(err)
				}
				var sessions []client.Session
				tr := transport(t, m, client.Policy{Organisations: []identity.OrgID{"beta"}, Node: ref.Name, Measurements: []string{attesttest.Measurement("one")},
					Services: map[string]client.Service{"inference": {Programs: []service.Digest{service.Digest(sum("program"))}, Models: []service.Digest{service.Digest(sum("model"))}}}, Exclusive: true},
					func(c *client.Config) { c.OnSession = func(s client.Session) { sessions = append(sessions, s) } })
				for range 3 {
					out, resp, err := ask(tr, n.address, "prompt")
					if err != nil || out != "POST /services/x prompt" || resp.Trailer.Get("Sum") != "done" {
						t.Fatalf("got %q, %v", out, err)
					}
					if want := map[string]int{"h2": 2, "http/1.1": 1}[protocol]; resp.ProtoMajor != want {
						t.Errorf("spoke HTTP/%d, want %d", resp.ProtoMajor, want)
					}
				}
				if c, r, conns := n.challenges.Load(), n.requests.Load(), n.conns.Load(); c != 1 || r != 3 || conns != 1 {
					t.Errorf("%d challenges and %d requests on %d connections, want 1, 3, 1", c, r, conns)
				}
				if len(sessions) != 1 {
					t.Fatalf("%d sessions", len(sessions))
				}
				s := sessions[0]
				if s.Node != ref || s.Peer != peerOf(n.seat.peer) || s.Protocol != protocol || !s.Result.Affirming() || !s.Simulated() || len(s.Heads) != 3 ||
					s.Checkpoint.Size != m.size || len(s.Events) != 1 || s.Again || s.NotAfter.Sub(s.AttestedAt) != client.DefaultReattest {
					t.Errorf("got %+v", s)
				}
			})
		}
	}
}

// refusals are answers that must not be believed. Each is tried over both protocols, and
// each time the node must not get the request.
func refusals() map[string]struct {
	policy client.Policy
	spoil  func(*testing.T, *node)
	want   attest.Code
} {
	type refusal = struct {
		policy client.Policy
		spoil  func(*testing.T, *node)
		want   attest.Code
	}
	mutate := func(f func(n *node, a *ratls.Answer, r *http.Request, nonce [32]byte)) func(*testing.T, *node) {
		return func(_ *testing.T, n *node) {
			n.set(func(n *node) {
				n.mutate = func(a *ratls.Answer, r *http.Request, nonce [32]byte) { f(n, a, r, nonce) }
			})
		}
	}
	proof := func(f func(n *node, nonce, ekm [32]byte) []byte) func(*testing.T, *node) {
		return mutate(func(n *node, a *ratls.Answer, r *http.Request, nonce [32]byte) {
			ekm, err := ratls.EKM(r.TLS.ExportKeyingMaterial, nonce)
			if err != nil {
				n.t.Error(err)
			}
			a.Proof = f(n, nonce, ekm)
		})
	}
	inference := func(program string) map[string]client.Service {
		return map[string]client.Service{"inference": {Programs: []service.Digest{service.Digest(sum(program))}}}
	}
	start := func(events ...runtimelog.Event) func(*testing.T, *node) {
		return func(t *testing.T, n *node) {
			for _, e := range events {
				if _, err := n.runtime.Append(e); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	var replayed *ratls.Answer
	return map[string]refusal{
		"wrong organisation": {policy: client.Policy{Organisations: []identity.OrgID{"alpha", "gamma"}}, want: attest.CodeWrongOrganisation},
		"wrong node":         {policy: client.Policy{Organisations: []identity.OrgID{"beta"}, Node: "n7"}, want: attest.CodeWrongOrganisation},
		"wrong measurement":  {policy: client.Policy{Measurements: []string{attesttest.Measurement("two")}}, want: attest.CodeMeasurementNotAllowed},
		"measurement nobody allowed": {spoil: func(_ *testing.T, n *node) { n.attester.Remeasure(attesttest.Measurement("three")) },
			want: attest.CodeMeasurementNotAllowed},
		"release voted out": {spoil: func(_ *testing.T, n *node) { n.mesh.remove("one") }, want: attest.CodeRevoked},
		"wrong program":     {policy: client.Policy{Services: inference("other")}, spoil: start(started("inference", "program")), want: attest.CodeProgramNotAllowed},
		"program swapped":   {policy: client.Policy{Services: inference("program")}, spoil: start(started("inference", "program"), started("inference", "swapped")), want: attest.CodeProgramNotAllowed},
		"no program":        {policy: client.Policy{Services: inference("program")}, want: attest.CodeProgramNotAllowed},
		"program beside it": {policy: client.Policy{Services: inference("program"), Exclusive: true},
			spoil: start(started("inference", "program"), started("spy", "spy")), want: attest.CodeProgramNotAllowed},
		"earlier program": {policy: client.Policy{Services: inference("program"), Exclusive: true},
			spoil: start(started("inference", "spy"), started("inference", "program")), want: attest.CodeProgramNotAllowed},
		"wrong model": {policy: client.Policy{Services: map[string]client.Service{"inference": {Programs: []service.Digest{service.Digest(sum("program"))}, Models: []service.Digest{{1}}}}},
			spoil: start(started("inference", "program")), want: attest.CodeProgramNotAllowed},
		"log cut short": {policy: client.Policy{Services: inference("program")}, spoil: func(t *testing.T, n *node) {
			start(started("inference", "program"))(t, n)
			short, _ := n.runtime.Snapshot()
			start(started("inference", "swapped"))(t, n)
			n.set(func(n *node) { n.mutate = func(a *ratls.Answer, _ *http.Request, _ [32]byte) { a.RuntimeLog = short } })
		}, want: attest.CodeReplayMismatch},

		"heads of one organisation": {spoil: func(_ *testing.T, n *node) { n.set(func(n *node) { n.heads = 1 }) }, want: attest.CodeStale},
		"no heads":                  {spoil: func(_ *testing.T, n *node) { n.set(func(n *node) { n.heads = 0 }) }, want: attest.CodeStale},
		"one head three times": {spoil: mutate(func(_ *node, a *ratls.Answer, _ *http.Request, _ [32]byte) {
			a.Heads.Statements = [][]byte{a.Heads.Statements[0], a.Heads.Statements[0], a.Heads.Statements[0]}
		}), want: attest.CodeStale},
		"heads over another nonce": {spoil: mutate(func(n *node, a *ratls.Answer, _ *http.Request, _ [32]byte) {
			a.Heads = n.answer(random32(), random32()).Heads
		}), want: attest.CodeStale},
		"heads of strangers": {spoil: mutate(func(n *node, a *ratls.Answer, _ *http.Request, nonce [32]byte) {
			root, _ := a.Heads.Inclusion.Root(ratls.HeadLeaf(nonce))
			for i, o := range orgs {
				a.Heads.Statements[i] = n.mesh.head(n.mesh.enrol(identity.NodeRef{Org: o, Name: "n9"}, 1, allRoles), root, n.mesh.chain, nil)
			}
		}), want: attest.CodeNotSeat},
		"heads with forged names": {spoil: mutate(func(n *node, a *ratls.Answer, _ *http.Request, nonce [32]byte) {
			root, _ := a.Heads.Inclusion.Root(ratls.HeadLeaf(nonce))
			for i := range orgs {
				forged := n.mesh.seats[i]
				good := n.mesh.head(forged, root, n.mesh.chain, nil)
				forged.peer = n.mesh.seats[1].peer // signs, in another's name
				a.Heads.Statements[i] = bytes.Replace(good, good[bytes.Index(good, []byte(`"signatures"`)):],
					n.mesh.head(forged, root, n.mesh.chain, nil)[bytes.Index(n.mesh.head(forged, root, n.mesh.chain, nil), []byte(`"signatures"`)):], 1)
			}
		}), want: attest.CodeBadSignature},
		"two histories": {spoil: mutate(func(n *node, a *ratls.Answer, _ *http.Request, nonce [32]byte) {
			root, _ := a.Heads.Inclusion.Root(ratls.HeadLeaf(nonce))
			a.Heads.Statements[0] = n.mesh.head(n.mesh.seats[0], root, n.mesh.chain, func(h *consensus.Head) { h.Root = rootAt(99) })
		}), want: attest.CodeRootMismatch},
		"policy rolled back": {spoil: func(_ *testing.T, n *node) {
			old := n.mesh.chain
			n.mesh.remove("two")
			chain := n.mesh.chain
			n.set(func(n *node) {
				n.headChain = chain
				n.mutate = func(a *ratls.Answer, _ *http.Request, _ [32]byte) { a.Policy = old }
			})
		}, want: attest.CodeBehind},
		"policy nobody ordered": {spoil: func(_ *testing.T, n *node) {
			old := n.mesh.chain
			n.set(func(n *node) { n.headChain = old })
			n.mesh.remove("two")
		}, want: attest.CodeBehind},
		"no policy": {spoil: mutate(func(_ *node, a *ratls.Answer, _ *http.Request, _ [32]byte) { a.Policy = nil }), want: attest.CodeNotStarted},
		"cosigned by one": {spoil: func(_ *testing.T, n *node) { n.set(func(n *node) { n.cosigned = 1 }) },
			want: attest.CodeStale},
		"checkpoint of another size with other root": {spoil: mutate(func(n *node, a *ratls.Answer, _ *http.Request, nonce [32]byte) {
			root, _ := a.Heads.Inclusion.Root(ratls.HeadLeaf(nonce))
			for i, s := range n.mesh.seats {
				a.Heads.Statements[i] = n.mesh.head(s, root, n.mesh.chain, func(h *consensus.Head) { h.Root = rootAt(99) })
			}
		}), want: attest.CodeRootMismatch},
		"no checkpoint": {spoil: mutate(func(_ *node, a *ratls.Answer, _ *http.Request, _ [32]byte) { a.Checkpoint = nil }), want: attest.CodeBadSignature},

		"wrong nonce": {spoil: proof(func(n *node, _, ekm [32]byte) []byte {
			return encodeProof(n.t, prove(n.t, n.mesh, n.attester, n.seat, n.runtime, n.claimant().ChallengeBinder(random32(), ekm)))
		}), want: attest.CodeNotBound},
		"another connection": {spoil: proof(func(n *node, nonce, _ [32]byte) []byte {
			return encodeProof(n.t, prove(n.t, n.mesh, n.attester, n.seat, n.runtime, n.claimant().ChallengeBinder(nonce, random32())))
		}), want: attest.CodeNotBound},
		"certificate's evidence": {spoil: proof(func(n *node, _, _ [32]byte) []byte {
			c, err := ratls.ParseCertificate(n.cert.Leaf, time.Now())
			if err != nil {
				n.t.Error(err)
			}
			return encodeProof(n.t, c.Proof)
		}), want: attest.CodeNotBound},
		"another node's evidence": {spoil: proof(func(n *node, nonce, ekm [32]byte) []byte {
			other := n.mesh.seats[0]
			c := n.claimant()
			c.Peer = peerOf(other.peer)
			return encodeProof(n.t, prove(n.t, n.mesh, n.attester, other, n.runtime, c.ChallengeBinder(nonce, ekm)))
		}), want: attest.CodeNotBound},
		"evidence of another mesh": {spoil: proof(func(n *node, nonce, ekm [32]byte) []byte {
			other := newMesh(n.t, "other", orgs...)
			return encodeProof(n.t, prove(n.t, n.mesh, other.forger.Attester(attesttest.Measurement("one")), n.seat, n.runtime, n.claimant().ChallengeBinder(nonce, ekm)))
		}), want: attest.CodeNotGenuine},
		"forged evidence": {spoil: func(_ *testing.T, n *node) { n.attester.Forge(attesttest.StolenName) }, want: attest.CodeNotGenuine},
		"garbage proof":   {spoil: mutate(func(_ *node, a *ratls.Answer, _ *http.Request, _ [32]byte) { a.Proof = []byte{1} }), want: attest.CodeMalformed},
		"replayed answer": {spoil: func(t *testing.T, n *node) {
			n.set(func(n *node) {
				a := n.answer(random32(), random32())
				replayed = &a
				n.mutate = func(a *ratls.Answer, _ *http.Request, _ [32]byte) { *a = *replayed }
			})
		}, want: attest.CodeStale},
		"stolen Credential": {spoil: mutate(func(n *node, a *ratls.Answer, _ *http.Request, _ [32]byte) { a.Credential = n.mesh.seats[0].credential }), want: attest.CodeWrongPeer},
		"no Credential":     {spoil: mutate(func(_ *node, a *ratls.Answer, _ *http.Request, _ [32]byte) { a.Credential = nil }), want: attest.CodeNoCredential},
		"Credential of another mesh": {spoil: mutate(func(n *node, a *ratls.Answer, _ *http.Request, _ [32]byte) {
			a.Credential = newMesh(n.t, "other", orgs...).enrol(n.seat.ref, 1, allRoles).credential
		}), want: attest.CodeWrongMesh},
		"node that is stale": {spoil: func(_ *testing.T, n *node) {
			why := attest.NewReason(attest.CodeStale, "last tick", "1m0s ago", "at most 15s")
			n.set(func(n *node) { n.refuse = &why })
		}, want: attest.CodeStale},
	}
}

func TestRefusedBeforeTheFirstByte(t *testing.T) {
	for name, tc := range refusals() {
		for _, protocol := range []string{"h2", "http/1.1"} {
			t.Run(name+" over "+protocol, func(t *testing.T) {
				m := newMesh(t, "bad", orgs...)
				n := serve(t, m, bob, "one", protocol)
				if tc.spoil != nil {
					tc.spoil(t, n)
				}
				tr := transport(t, m, tc.policy, nil)
				_, _, err := ask(tr, n.address, "a secret")
				if code(err) != tc.want {
					t.Errorf("got %v, want %s", err, tc.want)
				}
				if got := n.requests.Load(); got != 0 {
					t.Errorf("%d requests reached a node that was refused", got)
				}
				if n.challenges.Load() != 1 {
					t.Errorf("%d challenges", n.challenges.Load())
				}
			})
		}
	}
}

func TestAnotherMeshsGenesis(t *testing.T) {
	n := serve(t, newMesh(t, "theirs", orgs...), bob, "one")
	tr := transport(t, newMesh(t, "ours", orgs...), client.Policy{}, nil)
	_, _, err := ask(tr, n.address, "a secret")
	if code(err) != attest.CodeWrongMesh || n.requests.Load() != 0 {
		t.Errorf("got %v and %d requests, want %s", err, n.requests.Load(), attest.CodeWrongMesh)
	}
	var r *client.Refusal
	if errors.As(err, &r) && !strings.Contains(r.Reasons[0].Remedy, "your genesis file") {
		t.Errorf("a remedy for operators: %s", r.Reasons[0].Remedy)
	}
}

// A chain that was current once is behind for whoever has seen its continuation, heads or
// no heads.
func TestPolicyIsNeverOlderThanBefore(t *testing.T) {
	m := newMesh(t, "rollback", orgs...)
	n := serve(t, m, bob, "one")
	clk := &clock{}
	tr := transport(t, m, client.Policy{}, func(c *client.Config) { c.Now = clk.now })
	old := m.chain
	m.remove("two")
	if _, _, err := ask(tr, n.address, "x"); err != nil {
		t.Fatal(err)
	}
	m.chain = old // the whole mesh is an old one
	clk.advance(client.DefaultReattest)
	if _, _, err := ask(tr, n.address, "a secret"); code(err) != attest.CodeBehind || n.requests.Load() != 1 {
		t.Errorf("got %v and %d requests, want %s", err, n.requests.Load(), attest.CodeBehind)
	}
}

func TestOldCheckpoint(t *testing.T) {
	m := newMesh(t, "old", orgs...)
	n := serve(t, m, bob, "one")
	clk := &clock{}
	clk.advance(client.DefaultMaxAge + time.Minute)
	tr := transport(t, m, client.Policy{}, func(c *client.Config) { c.Now = clk.now })
	if _, _, err := ask(tr, n.address, "a secret"); code(err) != attest.CodeStale || n.requests.Load() != 0 {
		t.Errorf("got %v, want %s", err, attest.CodeStale)
	}
	clk.advance(consensus.MaxCredentialLifetime)
	if _, _, err := ask(tr, n.address, "a secret"); code(err) != attest.CodeCredentialExpired {
		t.Errorf("got %v, want %s", err, attest.CodeCredentialExpired)
	}
}

func TestReattestation(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		t.Run(protocol, func(t *testing.T) {
			m := newMesh(t, "again", orgs...)
			n := serve(t, m, bob, "one", protocol)
			if _, err := n.runtime.Append(started("inference", "program")); err != nil {
				t.Fatal(err)
			}
			clk := &clock{}
			var again []bool
			var mu sync.Mutex
			tr := transport(t, m, client.Policy{Reattest: time.Minute, Services: map[string]client.Service{"inference": {Programs: []service.Digest{service.Digest(sum("program"))}}}},
				func(c *client.Config) {
					c.Now = clk.now
					c.OnSession = func(s client.Session) {
						mu.Lock()
						defer mu.Unlock()
						again = append(again, s.Again)
					}
				})
			for i := range 3 {
				if _, _, err := ask(tr, n.address, "prompt"); err != nil {
					t.Fatalf("request %d: %v", i, err)
				}
				clk.advance(31 * time.Second)
			}
			if n.challenges.Load() != 2 || n.conns.Load() != 1 || fmt.Sprint(again) != "[false true]" {
				t.Errorf("%d challenges on %d connections, again %v; want 2 on 1", n.challenges.Load(), n.conns.Load(), again)
			}
			// The program is swapped after admission. Within the period the header keeps the
			// request from it; after the period the connection is refused.
			if _, err := n.runtime.Append(started("inference", "swapped")); err != nil {
				t.Fatal(err)
			}
			bodies := len(n.bodies)
			_, _, err := ask(tr, n.address, "a secret")
			if code(err) != attest.CodeProgramNotAllowed {
				t.Errorf("got %v, want %s", err, attest.CodeProgramNotAllowed)
			}
			clk.advance(time.Minute)
			if _, _, err = ask(tr, n.address, "a secret"); code(err) != attest.CodeProgramNotAllowed {
				t.Errorf("got %v, want %s", err, attest.CodeProgramNotAllowed)
			}
			for _, b := range n.bodies[bodies:] {
				t.Errorf("the swapped program got %q", b)
			}
		})
	}
}

// Whoever demands nothing of services is answered under a proof that covers what answers, all
// the same: or a receipt would name what no evidence showed.
func TestStartIsProvedWithoutServicesInPolicy(t *testing.T) {
	for _, protocol := range []string{"h2", "http/1.1"} {
		m := newMesh(t, "started", orgs...)
		n := serve(t, m, bob, "one", protocol)
		var proved atomic.Value
		tr := transport(t, m, client.Policy{}, func(c *client.Config) {
			c.OnSession = func(s client.Session) { proved.Store(s.RuntimeHead) }
		})
		for _, program := range []string{"program", "swapped"} {
			if _, err := n.runtime.Append(started("inference", program)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := ask(tr, n.address, "prompt"); err != nil {
				t.Errorf("%s: %s: %v", protocol, program, err)
			}
			if proved.Load() != n.runtime.Head() {
				t.Errorf("%s: %s answered, and was not proved", protocol, program)
			}
		}
	}
}

// A policy change refuses within the period, on the same connection.
func TestReleaseVotedOut(t *testing.T) {
	m := newMesh(t, "vote", orgs...)
	n := serve(t, m, bob, "one")
	clk := &clock{}
	tr := transport(t, m, client.Policy{Reattest: 30 * time.Second}, func(c *client.Config) { c.Now = clk.now })
	if _, _, err := ask(tr, n.address, "x"); err != nil {
		t.Fatal(err)
	}
	m.remove("one")
	clk.advance(30 * time.Second)
	if _, _, err := ask(tr, n.address, "a secret"); code(err) != attest.CodeRevoked || n.requests.Load() != 1 || n.conns.Load() != 1 {
		t.Errorf("got %v, %d requests on %d connections", err, n.requests.Load(), n.conns.Load())
	}
}

// The constitution in force decides whose word counts: not genesis's.
func TestConstitutionIsFollowed(t *testing.T) {
	m := newMesh(t, "constitution", orgs...)
	leaver := serve(t, m, identity.NodeRef{Org: "gamma", Name: "n1"}, "one")
	n := serve(t, m, bob, "one")
	clk := &clock{}
	with := func(c *client.Config) { c.Now = clk.now }
	tr, gone := transport(t, m, client.Policy{Reattest: 30 * time.Second}, with), transport(t, m, client.Policy{Reattest: 30 * time.Second}, with)
	for _, address := range []string{n.address, leaver.address} {
		if _, _, err := ask(tr, address, "x"); err != nil {
			t.Fatal(err)
		}
	}
	m.propose(consensus.Action{RemoveOrganisation: &consensus.RemoveOrganisation{ID: "gamma"}})
	clk.advance(30 * time.Second)
	if _, _, err := ask(gone, leaver.address, "a secret"); code(err) != attest.CodeOrganisationRemoved {
		t.Errorf("a node of who has left: %v", err)
	}
	if _, _, err := ask(tr, n.address, "x"); err != nil {
		t.Errorf("a node of who has stayed: %v", err)
	}
	only := client.Policy{Organisations: []identity.OrgID{"gamma"}}
	if _, _, err := ask(transport(t, m, only, with), n.address, "x"); code(err) != attest.CodeUnknownOrganisation {
		t.Errorf("a policy that names who has left: %v", err)
	}
	m.seats, n.heads, n.cosigned = m.seats[:2], 2, 2 // gamma signs nothing more
	m.propose(consensus.Action{AddKey: &consensus.AddKey{Organisation: "beta", Key: consensus.Key{Role: consensus.KeyEnroll, Public: envelope.PublicKey{PublicKey: key("new").Public()}}}})
	clk.advance(30 * time.Second)
	if _, _, err := ask(tr, n.address, "x"); err != nil {
		t.Errorf("a Credential by a key beside a new one: %v", err)
	}
	id, err := envelope.KeyID(m.key("beta", consensus.KeyEnroll).Public())
	if err != nil {
		t.Fatal(err)
	}
	m.propose(consensus.Action{RemoveKey: &consensus.RemoveKey{Organisation: "beta", Role: consensus.KeyEnroll, ID: id}})
	clk.advance(30 * time.Second)
	if _, _, err := ask(tr, n.address, "a secret"); code(err) != attest.CodeNoCredential {
		t.Errorf("a Credential by a key that was removed: %v", err)
	}
}

// Seats that were started anew since Bootstrap, and those of organisations that came in, are
// known by the Credentials that the answer shows.
func TestSeatsStartedAnew(t *testing.T) {
	m := newMesh(t, "anew", orgs...)
	n := serve(t, m, bob, "one")
	for i, org := range []identity.OrgID{"beta", "gamma"} {
		m.seats[i+1] = m.enrol(identity.NodeRef{Org: org, Name: "n1"}, 2, allRoles)
	}
	shown := [][]byte{m.seats[1].credential, m.seats[2].credential}
	plain := m.enrol(identity.NodeRef{Org: "beta", Name: "n1"}, 2, consensus.NormaliseRoles(nil)).credential
	for name, tc := range map[string]struct {
		seats [][]byte
		want  attest.Code
	}{
		"not shown":         {nil, attest.CodeNotSeat},
		"one shown, of two": {shown[:1], ""},
		"shown":             {shown, ""},
		"shown twice":       {append(shown, shown...), ""},
		"without the role":  {[][]byte{plain}, attest.CodeNotSeat},
		"no Credential":     {[][]byte{[]byte("{}")}, attest.CodeNotSeat},
	} {
		n.mu.Lock()
		n.seats = tc.seats
		n.mu.Unlock()
		if _, _, err := ask(transport(t, m, client.Policy{}, nil), n.address, "x"); code(err) != tc.want {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
}

// What the organisations demand of the hardware of one of them, clients outside the mesh demand
// of that one's nodes too, and of no others.
func TestListOfChipsBindsClients(t *testing.T) {
	m := newMesh(t, "chips", orgs...)
	n, other := serve(t, m, bob, "one"), serve(t, m, identity.NodeRef{Org: orgs[0], Name: bob.Name}, "one")
	m.propose(consensus.Action{LimitHardware: &consensus.LimitHardware{HardwareScope: consensus.HardwareScope{Organisation: bob.Org}, Chips: []string{strings.Repeat("ab", 32)}}})
	tr := transport(t, m, client.Policy{}, nil)
	if _, _, err := ask(tr, n.address, "a secret"); code(err) != attest.CodeChipNotAllowed || n.requests.Load() != 0 {
		t.Errorf("got %v, %d requests", err, n.requests.Load())
	}
	if _, _, err := ask(tr, other.address, "x"); err != nil {
		t.Errorf("another organisation's node: %v", err)
	}
}

// slowBody lets its test see and time every read.
type slowBody struct {
	chunks []string
	before func(i int)
	i      int
}

func (b *slowBody) Read(p []byte) (int, error) {
	if b.i == len(b.chunks) {
		return 0, io.EOF
	}
	b.before(b.i)
	b.i++
	return copy(p, b.chunks[b.i-1]), nil
}

func (b *slowBody) Close() error { return nil }

// No byte of a body leaves under a proof that has ended: HTTP/2 renews it meanwhile,
// HTTP/1.1 cannot and stops.
func TestLongBody(t *testing.T) {
	for protocol, want := range map[string]attest.Code{"h2": "", "http/1.1": attest.CodeStale} {
		t.Run(protocol, func(t *testing.T) {
			m := newMesh(t, "long", orgs...)
			n := serve(t, m, bob, "one", protocol)
			clk := &clock{}
			tr := transport(t, m, client.Policy{MaxAge: time.Hour}, func(c *client.Config) { c.Now = clk.now })
			body := &slowBody{chunks: []string{"first,", "second,", "third"}, before: func(i int) {
				if i == 0 {
					clk.advance(client.DefaultReattest) // after this chunk
				}
			}}
			req, err := http.NewRequest(http.MethodPost, "https://"+n.address+"/", body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if code(err) != want || (err == nil) != (want == "") {
				if resp != nil {
					out, rerr := io.ReadAll(resp.Body)
					t.Logf("%v %q %v bodies %q", resp.Status, out, rerr, n.bodies)
				}
				t.Fatalf("got %v, want %q", err, want)
			}
			if want != "" {
				return
			}
			defer resp.Body.Close()
			out, err := io.ReadAll(resp.Body)
			if err != nil || string(out) != "POST / first,second,third" || n.challenges.Load() != 2 {
				t.Errorf("got %q, %v after %d challenges", out, err, n.challenges.Load())
			}
		})
	}
	// And where the node fails the second challenge, the rest stays here.
	m := newMesh(t, "long", orgs...)
	n := serve(t, m, bob, "one", "h2")
	clk := &clock{}
	tr := transport(t, m, client.Policy{MaxAge: time.Hour}, func(c *client.Config) { c.Now = clk.now })
	body := &slowBody{chunks: []string{"first", "a secret"}, before: func(i int) {
		if i == 0 {
			n.attester.Remeasure(attesttest.Measurement("three"))
			clk.advance(client.DefaultReattest)
		}
	}}
	req, err := http.NewRequest(http.MethodPost, "https://"+n.address+"/", body)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := tr.RoundTrip(req); code(err) != attest.CodeMeasurementNotAllowed {
		if resp != nil {
			resp.Body.Close()
		}
		t.Errorf("got %v, want %s", err, attest.CodeMeasurementNotAllowed)
	}
	n.set(func(n *node) {
		for _, b := range n.bodies {
			if strings.Contains(b, "secret") {
				t.Errorf("the node got %q", b)
			}
		}
	})
}

// intercept is a middlebox that ends TLS under its own certificate and forwards what it
// reads.
func intercept(t *testing.T, n *node) (address string, seen *atomic.Int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	issuer := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Corporate Inspection CA"}, NotBefore: template.NotBefore, NotAfter: template.NotAfter, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	behind := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	seen = &atomic.Int64{}
	proxy := &httputil.ReverseProxy{Transport: behind, Rewrite: func(r *httputil.ProxyRequest) {
		if r.In.URL.Path != ratls.Path {
			seen.Add(1)
		}
		r.SetURL(&url.URL{Scheme: "https", Host: n.address})
	}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: proxy}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k}}, NextProtos: []string{"h2", "http/1.1"}}))
	}()
	t.Cleanup(func() {
		srv.Close()
		behind.CloseIdleConnections()
		<-done
	})
	return l.Addr().String(), seen
}

func TestMiddleboxIsNamed(t *testing.T) {
	m := newMesh(t, "box", orgs...)
	n := serve(t, m, bob, "one")
	address, seen := intercept(t, n)
	tr := transport(t, m, client.Policy{}, nil)
	_, _, err := ask(tr, address, "a secret")
	if code(err) != attest.CodeNotBound || seen.Load() != 0 || n.requests.Load() != 0 {
		t.Fatalf("got %v; the box saw %d requests, the node %d", err, seen.Load(), n.requests.Load())
	}
	for _, want := range []string{"Corporate Inspection CA", "which the node's evidence names", "CN=127.0.0.1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	var r *client.Refusal
	if !errors.As(err, &r) || !strings.Contains(r.Reasons[0].Remedy, "terminates TLS") || len(r.Reasons) != 2 {
		t.Errorf("got %+v", r)
	}
	// The same box where the node names no certificate: still refused, still named by what
	// it shows.
	n.set(func(n *node) { n.mutate = func(a *ratls.Answer, _ *http.Request, _ [32]byte) { a.Certificate = nil } })
	if _, _, err := ask(tr, address, "a secret"); code(err) != attest.CodeNotBound || !strings.Contains(err.Error(), "Corporate Inspection CA") {
		t.Errorf("got %v", err)
	}
	// An answer for another connection of the node itself is no middlebox's.
	n.set(func(n *node) {
		n.mutate = func(a *ratls.Answer, _ *http.Request, nonce [32]byte) {
			a.Proof = encodeProof(t, prove(t, m, n.attester, n.seat, n.runtime, n.claimant().ChallengeBinder(nonce, random32())))
		}
	})
	if _, _, err := ask(tr, n.address, "a secret"); code(err) != attest.CodeNotBound || !strings.Contains(err.Error(), "on another connection") {
		t.Errorf("got %v", err)
	}
}

// What is no node is refused, whatever it answers, and gets nothing.
func TestNoNode(t *testing.T) {
	m := newMesh(t, "none", orgs...)
	var requests atomic.Int64
	tlsOf := func(change func(*tls.Config)) string {
		t.Helper()
		cert := serve(t, m, bob, "one").cert
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		cfg := &tls.Config{Certificates: []tls.Certificate{cert}}
		change(cfg)
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != ratls.Path {
				requests.Add(1)
			}
			http.NotFound(w, r)
		})}
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = srv.Serve(tls.NewListener(l, cfg))
		}()
		t.Cleanup(func() {
			srv.Close()
			<-done
		})
		return l.Addr().String()
	}
	tr := transport(t, m, client.Policy{}, nil)
	for name, tc := range map[string]struct {
		change func(*tls.Config)
		want   string
	}{
		"not found": {func(*tls.Config) {}, "404"},
		"TLS 1.2":   {func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }, "protocol version"},
	} {
		if _, _, err := ask(tr, tlsOf(tc.change), "a secret"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if requests.Load() != 0 {
		t.Errorf("%d requests", requests.Load())
	}
	if _, _, err := ask(tr, "127.0.0.1:1", "x"); err == nil {
		t.Error("a closed port answered")
	}
	for _, bad := range []string{"http://127.0.0.1:1/", "https:///", "/"} {
		u, err := url.Parse(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tr.RoundTrip(&http.Request{Method: "GET", URL: u, Header: http.Header{}}); err == nil {
			t.Errorf("%s: sent", bad)
		}
	}
}

// After a switch of protocols nobody would ask for another proof before the next byte.
func TestNoSwitchOfProtocols(t *testing.T) {
	m := newMesh(t, "switch", orgs...)
	n := serve(t, m, bob, "one", "http/1.1")
	tr := transport(t, m, client.Policy{}, nil)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+n.address+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "raw")
	resp, err := tr.RoundTrip(req)
	if code(err) != attest.CodeProtocol {
		t.Errorf("got %v", err)
	}
	if err == nil {
		if w, ok := resp.Body.(io.Writer); ok {
			_, err := w.Write([]byte("unverified"))
			t.Errorf("%s, and what follows can be written: %v", resp.Status, err)
		}
		resp.Body.Close()
	}
}

// A server without the hybrid key exchange proves everything else, and is refused for it.
func TestKeyExchange(t *testing.T) {
	m := newMesh(t, "classic", orgs...)
	n := serve(t, m, bob, "one")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: n}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{n.cert}, CurvePreferences: []tls.CurveID{tls.X25519}, NextProtos: []string{"h2"}}))
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	tr := transport(t, m, client.Policy{}, nil)
	if _, _, err := ask(tr, l.Addr().String(), "a secret"); code(err) != attest.CodeProtocol || !strings.Contains(err.Error(), "X25519MLKEM768") || n.requests.Load() != 0 {
		t.Errorf("got %v", err)
	}
}

func TestManyRequestsShareOneProof(t *testing.T) {
	m := newMesh(t, "many", orgs...)
	for protocol, most := range map[string]int64{"h2": 1, "http/1.1": 20} {
		n := serve(t, m, bob, "one", protocol)
		tr := transport(t, m, client.Policy{}, nil)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				body := fmt.Sprint("prompt ", i)
				if out, _, err := ask(tr, n.address, body); err != nil || out != "POST /services/x "+body {
					t.Errorf("got %q, %v", out, err)
				}
			})
		}
		wg.Wait()
		if c := n.challenges.Load(); c > most || c != n.conns.Load() {
			t.Errorf("%s: %d challenges on %d connections, want at most %d", protocol, c, n.conns.Load(), most)
		}
		tr.CloseIdleConnections()
		before := n.conns.Load()
		if _, err := tr.Attest(t.Context(), n.address); err != nil {
			t.Error(err)
		}
		if _, _, err := ask(tr, n.address, "x"); err != nil || n.conns.Load() != before+1 {
			t.Errorf("%v; %d connections for a proof and a request after it", err, n.conns.Load()-before)
		}
		tr.Close()
		if _, _, err := ask(tr, n.address, "x"); !errors.Is(err, client.ErrClosed) {
			t.Errorf("got %v after Close", err)
		}
	}
}
