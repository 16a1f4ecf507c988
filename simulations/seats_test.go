package simulations

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/node"
)

// tap hears what nodes log: do is called with the node's name and the message.
type tap struct {
	do func(at, message string)
	at string
}

// Enabled implements slog.Handler.
func (t tap) Enabled(context.Context, slog.Level) bool { return true }

// Handle implements slog.Handler.
func (t tap) Handle(_ context.Context, r slog.Record) error { t.do(t.at, r.Message); return nil }

// WithAttrs implements slog.Handler.
func (t tap) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "at" {
			t.at = a.Value.String()
		}
	}
	return t
}

// WithGroup implements slog.Handler.
func (t tap) WithGroup(string) slog.Handler { return t }

// Whoever leads vanishes at each step of the replacement of a seat: the next leader goes on
// from there, and in the end every organisation has one voter.
func TestLeaderVanishesBetweenSteps(t *testing.T) {
	for _, step := range []string{"non-voter added", "voter added", "server removed"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			s := parse(t, five+`
clients 2
crash beta/n1
name old leader
reboot beta/n1 new seat
`)
			synctest.Test(t, func(t *testing.T) {
				var w *world
				var once sync.Once
				vanished := make(chan string, 1)
				opts := Options{
					Log: func(line string) { t.Log(line) }, prepare: func(made *world) { w = made },
					NodeLog: slog.New(tap{do: func(at, message string) {
						if message != step {
							return
						}
						once.Do(func() {
							gone, err := w.host(at)
							if err != nil {
								t.Error(err)
								return
							}
							for _, h := range w.hosts {
								if h != gone {
									w.wire.Silence(h.machine, gone.machine)
								}
							}
							vanished <- at
						})
					}}),
					then: func(p *player) error {
						a := &actor{T: t, p: p}
						at := <-vanished
						if err := a.host(at).stop(); err != nil {
							return err
						}
						t.Logf("%s vanished after %q", at, step)
						a.do("expect leader among rest\nexpect voting rest\nexpect phase member of rest")
						a.do(fmt.Sprintf("reboot %s new seat\nexpect voting rest", at))
						a.do("expect voters alpha/n1 beta/n1 gamma/n1 delta/n1 epsilon/n1 at rest\nquiet\nexpect equal rest\nexpect published rest")
						return nil
					},
				}
				r, err := s.Play(1, opts)
				if err != nil {
					t.Fatal(err)
				}
				if err := r.History.Check(); err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

// Nodes join while leadership changes, again and again: each is in exactly once (M3).
func TestJoinDuringLeaderChange(t *testing.T) {
	stage(t, three, nil, func(a *actor) {
		a.do("clients 2")
		for i := range 8 {
			name := fmt.Sprintf("%s/n%d", []string{"alpha", "beta", "gamma"}[i%3], 2+i)
			a.do(fmt.Sprintf("name away leader\nsilence away | rest\nstart %s new\nwait 1s-4s\nheal", name))
			a.do(fmt.Sprintf("expect phase member of %s within 40s", name))
			delete(a.p.names, "away")
		}
		a.do("expect phase member of rest\nquiet\nexpect equal rest\nexpect published rest\nexpect voters alpha/n1 beta/n1 gamma/n1 at alpha/n1 beta/n1 gamma/n1")
		if got := len(a.status("alpha/n1").Peers); got != 2+8 {
			a.Errorf("alpha/n1 knows %d peers, want 10", got)
		}
	})
}

// A seat that reaches everybody but the leader gets no log from it: it stays without a vote,
// holds up nothing, and takes its seat once it can (M12).
func TestLearnerThatCannotCatchUp(t *testing.T) {
	stage(t, five, nil, func(a *actor) {
		a.do("name first leader")
		other := "beta/n1"
		if a.p.real("first") == other {
			other = "gamma/n1"
		}
		a.do(fmt.Sprintf("name lost %s\nclients 2\ncrash lost\nreboot lost new seat\nsilence lost | first\nwait 60s-90s", other))
		if s := a.status(other); s.Raft.State != "joining" {
			a.Errorf("%s is %s", other, s.Raft.State)
		}
		if s := a.status("first"); s.Raft.State != "leader" || slices.ContainsFunc(s.Raft.Voters, func(v string) bool { return v == other }) {
			a.Errorf("the leader is %s of %v: the replaced voter must be gone after a minute", s.Raft.State, s.Raft.Voters)
		}
		a.do("heal\nexpect voting rest\nexpect phase member of rest\nquiet\nexpect equal rest\nexpect published rest")
	})
}

// A live node that its organisation retires is cut off everywhere within five seconds, though
// its sessions were good, and is told why (M19).
func TestRetiredNodeIsCutOff(t *testing.T) {
	stage(t, five, nil, func(a *actor) {
		a.do("name lead leader")
		victim := "beta/n1"
		if a.p.real("lead") == victim {
			victim = "gamma/n1"
		}
		a.do(fmt.Sprintf("retire %s at lead\nexpect unlinked %s from rest within 5s\nexpect phase refused code retired of %s", victim, victim, victim))
		a.do(fmt.Sprintf("expect voters rest -%s at rest -%s within 5s\nwait 20s\nexpect unlinked %s from rest\nexpect phase member of rest -%s", victim, victim, victim, victim))
	})
}

// Whoever leads is retired; the last holder is not (M10).
func TestLeaderIsRetired(t *testing.T) {
	stage(t, three, nil, func(a *actor) {
		a.do("name lead leader\nretire lead at lead\nexpect leader among rest -lead within 10s\nexpect voters rest -lead at rest -lead")
		a.do("name next leader\nretire next at next\nexpect voters rest -lead -next at rest -lead -next\nname last leader")
		var no *refusedError
		if err := a.p.retire("last", a.p.real("last")); !errors.As(err, &no) || no.code != string(attest.CodeQuorumLoss) {
			a.Errorf("the last seat: %v, want it refused with quorum_loss", err)
		}
	})
}

// Meshes of every size are founded, lose a seat and get it back.
func TestMeshSizes(t *testing.T) {
	orgs := []string{"alpha", "beta", "delta", "epsilon", "eta", "gamma", "zeta"}
	for _, n := range []int{3, 4, 7} { // five are in most other tests
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			text := "mesh"
			for _, o := range orgs[:n] {
				text += " " + o
			}
			text += "\nallow new\n"
			for _, o := range orgs[:n] {
				text += "start " + o + "/n1 new seat\n"
			}
			stage(t, text+"expect phase member of rest\n", nil, func(a *actor) {
				a.do("clients 2\nname lead leader\ncrash lead\nexpect leader among rest\nreboot lead new seat\nexpect voting rest\nexpect phase member of rest")
				a.do("drain beta/n1\nstop beta/n1\nreboot beta/n1 new seat\nexpect voting rest\nexpect phase member of rest\nquiet\nexpect equal rest\nexpect published rest")
				if s := a.status("alpha/n1"); len(s.Raft.Voters) != n {
					a.Errorf("voters %v", s.Raft.Voters)
				}
			})
		})
	}
}

// How long after its start a seat votes again, with nothing else in the way.
func TestSeatVotesSoon(t *testing.T) {
	stage(t, five, nil, func(a *actor) {
		holders := func() (out []string) {
			for _, seat := range a.status("alpha/n1").Seats {
				out = append(out, seat.Node)
			}
			return out
		}
		a.do("drain gamma/n1\nstop gamma/n1")
		if got := holders(); !slices.Equal(got, []string{"alpha/n1", "beta/n1", "delta/n1", "epsilon/n1", ""}) {
			a.Errorf("seats %q, want gamma's to be vacant", got)
		}
		start := time.Now()
		a.do("reboot gamma/n1 new seat\nexpect voting gamma/n1 within 10s")
		a.Logf("voted %s after its start", time.Since(start))
		if got := holders(); got[4] != "gamma/n1" {
			a.Errorf("seats %q", got)
		}
		if s := a.status("gamma/n1"); s.Phase == node.PhaseRefused {
			a.Error(s.PhaseReason)
		}
	})
}

// The log key is for holders of seats alone, and nobody confirms who may take none.
func TestSeatStreamGivesStrangersNothing(t *testing.T) {
	stage(t, three+"start alpha/n2 new seat\nexpect phase member of alpha/n2\n", nil, func(a *actor) {
		ask := func(from string, request any) (reply struct {
			Ready  []byte `json:"ready"`
			LogKey []byte `json:"log_key"`
			Error  string `json:"error"`
		}) {
			a.Helper()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			s, err := a.link(from, "beta/n1").Open(ctx, node.SeatProtocols(a.p.world.genesis.MeshID())[1])
			if err != nil {
				a.Fatal(err)
			}
			defer s.Close()
			body, err := json.Marshal(request)
			if err == nil {
				_, err = s.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
			}
			var head [4]byte
			if err == nil {
				_, err = io.ReadFull(s, head[:])
			}
			answer := make([]byte, binary.BigEndian.Uint32(head[:]))
			if err == nil {
				_, err = io.ReadFull(s, answer)
			}
			if err == nil {
				err = json.Unmarshal(answer, &reply)
			}
			if err != nil {
				a.Fatal(err)
			}
			return reply
		}
		if got := ask("alpha/n1", map[string]any{"log_key": true}); len(got.LogKey) != 32 || got.Error != "" {
			a.Errorf("a holder gets %d bytes, %q", len(got.LogKey), got.Error)
		}
		if got := ask("alpha/n2", map[string]any{"log_key": true}); len(got.LogKey) != 0 || got.Error == "" {
			a.Errorf("a node with the role and no seat gets %d bytes, %q", len(got.LogKey), got.Error)
		}
		self := a.mesh("alpha/n2").Self()
		ready := func(change func(*consensus.Ready)) []byte {
			r := consensus.Ready{MeshID: a.p.world.genesis.MeshID(), Node: identity.NodeRef{Org: "alpha", Name: "n2"}, Peer: self, Seq: 3, Digest: strings.Repeat("ab", 32)}
			change(&r)
			payload, err := r.Payload()
			if err != nil {
				a.Fatal(err)
			}
			return payload
		}
		for name, payload := range map[string][]byte{
			"a seat that is held":    ready(func(*consensus.Ready) {}),
			"another peer's":         ready(func(r *consensus.Ready) { r.Peer = a.mesh("gamma/n1").Self() }),
			"another mesh's":         ready(func(r *consensus.Ready) { r.MeshID[0]++ }),
			"another incarnation's":  ready(func(r *consensus.Ready) { r.Incarnation++ }),
			"no Ready":               []byte("{}"),
			"a proposal in disguise": []byte(`{"_type":"https://in-toto.io/Statement/v1"}`),
		} {
			if got := ask("alpha/n2", map[string]any{"ready": payload}); len(got.Ready) != 0 || got.Error == "" {
				a.Errorf("%s: %d bytes, %q", name, len(got.Ready), got.Error)
			}
		}
		if got := ask("alpha/n2", map[string]any{}); got.Error == "" {
			a.Errorf("nothing asked: %+v", got)
		}
	})
}

// Seats are started anew so fast that some have no time for a start-up proof of their own before
// the last one that had one is gone: the taking of a seat is one, or all would wait for each
// other for ever.
func TestSeatsNeverWaitForEachOthersProof(t *testing.T) {
	stage(t, `
mesh alpha beta
allow new
start alpha/n1 new seat
start beta/n1 new seat
expect phase member of rest
`, nil, func(a *actor) {
		for range 6 {
			for _, n := range []string{"alpha/n1", "beta/n1"} {
				a.do(fmt.Sprintf("drain %s\nstop %s\nreboot %s new seat\nexpect voting rest", n, n, n))
			}
		}
		a.do("expect phase member of rest\nexpect equal rest\nexpect published rest")
	})
}
