package simulations

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/node"
)

// five is a mesh of five seats.
const five = `
mesh alpha beta gamma delta epsilon
allow new old
start alpha/n1 new seat
start beta/n1 new seat
start gamma/n1 new seat
start delta/n1 new seat
start epsilon/n1 new seat
expect phase member of rest
`

// three is a mesh of three seats.
const three = `
mesh alpha beta gamma
allow new old
start alpha/n1 new seat
start beta/n1 new seat
start gamma/n1 new seat
expect phase member of rest
`

// stage plays a script and then does what a text cannot say.
func stage(t *testing.T, text string, prepare func(*world), then func(*actor)) {
	t.Helper()
	stageOn(t, nil, text, prepare, then)
}

// stageOn is stage on a kind of platform.
func stageOn(t *testing.T, on *hardware, text string, prepare func(*world), then func(*actor)) {
	t.Helper()
	t.Parallel()
	s := parse(t, text)
	synctest.Test(t, func(t *testing.T) {
		_, err := s.Play(1, Options{hardware: on, prepare: prepare, NodeLog: nodeLogger(), Log: func(line string) { t.Log(line) }, then: func(p *player) error {
			then(&actor{T: t, p: p})
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// actor is the test on its stage.
type actor struct {
	*testing.T
	p *player
}

// do plays more lines.
func (a *actor) do(lines string) {
	a.Helper()
	s, err := Parse("then", "mesh alpha\nallow new\n"+lines)
	if err == nil {
		err = a.p.run(s)
	}
	if err != nil {
		a.Fatal(err)
	}
}

func (a *actor) host(name string) *host {
	a.Helper()
	h, err := a.p.world.host(a.p.real(name))
	if err != nil {
		a.Fatal(err)
	}
	return h
}

func (a *actor) status(name string) node.Status {
	a.Helper()
	s, err := a.host(name).status()
	if err != nil {
		a.Fatal(err)
	}
	return s
}

func (a *actor) mesh(name string) mesh.Mesh {
	a.Helper()
	m := a.host(name).mesh.Load()
	if m == nil {
		a.Fatalf("%s has no mesh", name)
	}
	return *m
}

func (a *actor) link(from, to string) mesh.Link {
	a.Helper()
	peer := a.mesh(to).Self()
	var l mesh.Link
	a.eventually("a link from "+from+" to "+to, func() (ok bool) { l, ok = a.mesh(from).Link(peer); return ok })
	return l
}

func (a *actor) eventually(what string, ok func() bool) {
	a.Helper()
	for end := time.Now().Add(expectWithin); !ok(); time.Sleep(pollEvery) {
		if time.Now().After(end) {
			a.Fatalf("not within %s: %s", expectWithin, what)
		}
	}
}

// protocol is the name that nodes of this mesh give a stream.
func (a *actor) protocol(what string) mesh.Protocol {
	return mesh.Protocol("/meshnode/" + a.p.world.genesis.MeshID().Short() + "/" + what + "/1")
}

// open opens a stream; its error says who refused it and why.
func (a *actor) open(from, to, what string) (mesh.Stream, error) {
	a.Helper()
	l := a.link(from, to)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return l.Open(ctx, a.protocol(what))
}

// echoes gives a node a data protocol that holds streams open, in place of its blobs.
func (a *actor) echoes(names ...string) {
	for _, name := range names {
		a.mesh(name).Handle(a.protocol("blob"), func(_ mesh.Link, s mesh.Stream) {
			defer s.Close()
			_, _ = io.Copy(s, s)
		})
	}
}

// stream opens a data stream between two nodes that echo.
func (a *actor) stream(from, to string) mesh.Stream {
	a.Helper()
	s, err := a.open(from, to, "blob")
	if err != nil {
		a.Fatalf("data from %s to %s: %v", from, to, err)
	}
	return s
}

// bulk opens a data stream on a connection of its own.
func (a *actor) bulk(from, to string) mesh.Stream {
	a.Helper()
	a.link(to, from)
	l := a.link(from, to)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := a.mesh(from).Bulk(ctx, l.Peer(), a.mesh(to).Addrs(), a.protocol("blob"))
	if err != nil {
		a.Fatalf("bulk from %s to %s: %v", from, to, err)
	}
	return s
}

// flows reports the error of a byte there and back.
func flows(s mesh.Stream) error {
	one := []byte{1}
	_ = s.SetDeadline(time.Now().Add(time.Second))
	if _, err := s.Write(one); err != nil {
		return err
	}
	_, err := io.ReadFull(s, one)
	return err
}

// refusal demands that err is a refusal with a code, by the peer or by this end.
func (a *actor) refusal(err error, remote bool, code attest.Code) {
	a.Helper()
	var r *mesh.Refusal
	if !errors.As(err, &r) || r.Remote != remote || r.Code() != code {
		a.Errorf("got %v, want a refusal (remote %t) with code %s", err, remote, code)
	}
}

// quotes counts what all attesters made so far.
func (a *actor) quotes() (sum int) {
	for _, h := range a.p.world.hosts {
		sum += h.attester.Calls()
	}
	return sum
}

// opinion is a mesh.Judge that refuses some protocols besides, or believes all streams.
type opinion struct {
	mesh.Judge
	permit func(s *mesh.Session, p mesh.Protocol, answer *attest.Reason) *attest.Reason
}

func (o opinion) Permit(s *mesh.Session, p mesh.Protocol) *attest.Reason {
	return o.permit(s, p, o.Judge.Permit(s, p))
}

func (o opinion) Keep(s *mesh.Session, p mesh.Protocol) *attest.Reason {
	return o.permit(s, p, o.Judge.Keep(s, p))
}

// A joiner that has nothing but genesis meets a mesh that is twenty epochs further. What it
// runs was allowed by the last of them.
func TestJoinerAfterTwentyEpochs(t *testing.T) {
	lines := strings.Builder{}
	for i := range 10 {
		fmt.Fprintf(&lines, "propose add r%d signed alpha beta gamma at alpha/n1\n", i)
		if i < 9 {
			fmt.Fprintf(&lines, "propose remove r%d signed alpha beta at beta/n1\n", i)
		}
	}
	lines.WriteString("propose remove old signed alpha beta at beta/n1\nstart alpha/n2 r9\nexpect phase member of alpha/n2 within 10s\nexpect equal rest\n")
	lines.WriteString("expect proof proven of rest at alpha/n2 within 10s\nexpect proof proven of alpha/n2 at alpha/n1 beta/n1 gamma/n1 within 10s\n")
	stage(t, three+lines.String(), nil, func(a *actor) {
		if s := a.status("alpha/n2"); s.Epoch != 20 || s.Base != 10 {
			a.Errorf("epoch %d, base %d, want 20 and 10", s.Epoch, s.Base)
		}
		a.echoes("beta/n1")
		if err := flows(a.stream("alpha/n2", "beta/n1")); err != nil {
			a.Errorf("an eligible node's data: %v", err)
		}
	})
}

// A host shows a starting node an old mesh: two of five seats that were cut off before the
// rest decided, with the policy chain, checkpoint and directory of that time. They answer
// everything that the host wants to know. The node must release nothing, and say why. When
// the host lets the truth through, the very same node becomes a member.
func TestJoinerFedAnOldMeshReleasesNothing(t *testing.T) {
	var data sync.Map // what the joiner's judge said about data, by answer
	var heads atomic.Int32
	old := []string{"alpha/n1", "beta/n1"}
	prepare := func(w *world) {
		w.judge = func(h *host, j mesh.Judge) mesh.Judge {
			switch {
			case slices.Contains(old, h.name): // in the host's hands: they ask for everything
				return opinion{j, func(_ *mesh.Session, _ mesh.Protocol, _ *attest.Reason) *attest.Reason { return nil }}
			case h.name == "delta/n2":
				return opinion{j, func(_ *mesh.Session, p mesh.Protocol, answer *attest.Reason) *attest.Reason {
					if strings.HasSuffix(string(p), "/blob/1") || strings.HasSuffix(string(p), "/round/1") {
						data.Store(answer == nil, true)
					}
					return answer
				}}
			}
			return j
		}
	}
	stage(t, five+"silence alpha/n1 beta/n1 | rest\nwait 1s\n", prepare, func(a *actor) {
		a.do("expect leader among gamma/n1 delta/n1 epsilon/n1\npropose remove old signed gamma delta epsilon at gamma/n1\nwait 20s\n")
		// The joiner's machine reaches the two old seats only.
		joiner := a.p.world.address(len(a.p.world.hosts))
		for _, h := range a.p.world.hosts {
			if !slices.Contains(old, h.name) {
				a.p.world.wire.Silence(h.machine, joiner)
				a.p.world.parted = append(a.p.world.parted, [2]string{h.machine, joiner})
			}
		}
		a.do("start delta/n2 new trainer\nwait 5s\n")
		if got := a.host("delta/n2").machine; got != joiner {
			a.Fatalf("the joiner is on %s, want %s", got, joiner)
		}
		for range 30 {
			for _, what := range []string{"blob", "round"} {
				_, err := a.open("alpha/n1", "delta/n2", what)
				a.refusal(err, true, attest.CodeStale)
				_, err = a.open("delta/n2", "alpha/n1", what)
				a.refusal(err, false, attest.CodeStale)
			}
			s, err := a.open("beta/n1", "delta/n2", "head")
			if err != nil {
				a.Fatal(err)
			}
			if err := writeJSON(s, `{"nonce":"`+strings.Repeat("A", 43)+`="}`); err != nil {
				a.Fatal(err)
			}
			_ = s.SetDeadline(time.Now().Add(time.Second))
			if n, _ := s.Read(make([]byte, 1)); n != 0 {
				heads.Add(1)
			}
			_ = s.Close()
			a.do("expect phase joining code stale of delta/n2\nwait 1s\n")
		}
		if _, permitted := data.Load(true); permitted || heads.Load() > 0 {
			a.Errorf("the joiner permitted data or signed %d heads", heads.Load())
		}
		s := a.status("delta/n2")
		if s.PhaseReason == nil || s.PhaseReason.Claim != "start-up proof" || s.Epoch != 0 || s.Log.Size == 0 {
			a.Errorf("epoch %d, %d leaves, reason %+v: want the old mesh, and that the proof is missing", s.Epoch, s.Log.Size, s.PhaseReason)
		}
		a.do("heal\nexpect phase member of rest within 30s\n")
		a.echoes("gamma/n1")
		if err := flows(a.stream("delta/n2", "gamma/n1")); err != nil {
			a.Errorf("data once the host lets the truth through: %v", err)
		}
		if _, permitted := data.Load(true); !permitted {
			a.Error("the recording judge heard of no data")
		}
	})
}

func writeJSON(s mesh.Stream, text string) error {
	_, err := s.Write(append([]byte{0, 0, 0, byte(len(text))}, text...))
	return err
}

// A node that has heard no tick for max_staleness ends its data streams. When it hears ticks
// again that is not enough: it needs a new proof over its own nonce. Its links stay.
func TestGapNeedsANewProof(t *testing.T) {
	for _, who := range []string{"alpha/n2", "beta/n1"} { // a member without a seat, and a seat
		t.Run(strings.ReplaceAll(who, "/", "-"), func(t *testing.T) {
			var deaf, mute atomic.Bool
			prepare := func(w *world) {
				w.judge = func(h *host, j mesh.Judge) mesh.Judge {
					return opinion{j, func(s *mesh.Session, p mesh.Protocol, answer *attest.Reason) *attest.Reason {
						if s.Node.String() != who && h.name != who {
							return answer
						}
						if deaf.Load() && strings.HasSuffix(string(p), "/follow/1") || (deaf.Load() || mute.Load()) && strings.HasSuffix(string(p), "/head/1") {
							r := attest.NewReason(attest.CodeBusy, "head", "the test says no", "")
							return &r
						}
						return answer
					}}
				}
			}
			stage(t, three+"start alpha/n2 new\nstart gamma/n2 new\nexpect phase member of rest\n", prepare, func(a *actor) {
				a.echoes("gamma/n2", who)
				out, in, bulk := a.stream(who, "gamma/n2"), a.stream("gamma/n2", who), a.bulk(who, "gamma/n2")
				for _, s := range []mesh.Stream{out, in, bulk} {
					if err := flows(s); err != nil {
						a.Fatal(err)
					}
				}
				up := a.link(who, "gamma/n2")
				// Only seats are parted from it, and no member tells it what they order: nothing but the
				// missing ticks ends the streams.
				deaf.Store(true)
				parted := "silence " + who + " | " + strings.Join(without([]string{"alpha/n1", "beta/n1", "gamma/n1"}, who), " ") + "\n"
				a.do(parted + "wait 10s\n")
				if err := flows(out); err != nil {
					a.Fatalf("before max_staleness: %v", err)
				}
				a.do("wait 8s\nexpect phase joining code stale of " + who + "\n")
				a.refusal(flows(out), false, attest.CodeStale)
				a.refusal(flows(bulk), false, attest.CodeStale)
				if flows(in) == nil {
					a.Error("a stream that was opened by the peer is still open")
				}
				_, err := a.open("gamma/n2", who, "blob")
				a.refusal(err, true, attest.CodeStale)
				mute.Store(true)
				deaf.Store(false)
				a.do("heal\nwait 10s\nexpect phase joining code stale of " + who + "\n")
				if s := a.status(who); s.PhaseReason.Claim != "start-up proof" {
					a.Errorf("got %+v, want that the proof is missing", s.PhaseReason)
				}
				_, err = a.open("gamma/n2", who, "blob")
				a.refusal(err, true, attest.CodeStale)
				mute.Store(false)
				a.do("expect phase member of rest\n")
				if err := flows(a.stream(who, "gamma/n2")); err != nil {
					a.Errorf("after the new proof: %v", err)
				}
				if now := a.link(who, "gamma/n2"); now != up {
					a.Error("the link to a member that was always reachable was made anew")
				}
			})
		})
	}
}

func without(list []string, out string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == out })
}

// All seats have a gap at once. None is fresh, yet together they must become so again.
func TestOutageOfTheWholeMeshEnds(t *testing.T) {
	stage(t, three+"start alpha/n2 new\nexpect phase member of rest\n", nil, func(a *actor) {
		a.do("silence alpha/n1 | beta/n1 | gamma/n1\nwait 40s\nexpect phase joining code stale of rest\nheal\nexpect phase member of rest within 20s\n")
	})
}

// The newest boot of a node wins: the older one's links are closed by everybody, and it is
// refused from then on, whoever dials.
func TestNewestBootWins(t *testing.T) {
	stage(t, three+"start alpha/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		a.echoes("beta/n1")
		old := a.mesh("alpha/n2").Self()
		s, link := a.stream("alpha/n2", "beta/n1"), a.link("alpha/n2", "beta/n1")
		a.do("reboot alpha/n2 new\nexpect phase member of alpha/n2 within 10s\nexpect phase refused code retired of alpha/n2'\n")
		if flows(s) == nil {
			a.Error("a stream of the older boot is still open")
		}
		<-link.Done()
		if link.Cause().Code != attest.CodeRetired {
			a.Errorf("the older boot's link ended with %v", link.Cause())
		}
		for _, name := range []string{"alpha/n1", "beta/n1", "gamma/n1"} {
			if _, up := a.mesh(name).Link(old); up {
				a.Errorf("%s is linked to the older boot", name)
			}
			a.eventually(name+"'s record of closing the older boot's link", func() bool {
				return slices.ContainsFunc(a.status(name).Closed, func(c node.Closing) bool { return c.Peer == old.String() && c.Code == attest.CodeRetired })
			})
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_, err := a.mesh("alpha/n2'").Dial(ctx, a.mesh(name).Self(), a.mesh(name).Addrs())
			cancel()
			a.refusal(err, true, attest.CodeNoCredential) // as to everybody without a valid one
			ctx, cancel = context.WithTimeout(context.Background(), 5*time.Second)
			_, err = a.mesh(name).Dial(ctx, old, a.mesh("alpha/n2'").Addrs())
			cancel()
			a.refusal(err, false, attest.CodeRetired)
		}
		a.do("wait 10s\nexpect phase refused code retired of alpha/n2'\nexpect phase member of rest -alpha/n2'\n")
	})
}

// A measurement is voted out: exactly the links and streams to nodes that run it end, within
// a second, also between members that hold no seat. The others keep theirs.
func TestRevocationClosesExactlyWhatItHits(t *testing.T) {
	stage(t, three+"start alpha/n2 new\nstart beta/n2 old\nstart gamma/n2 new\nexpect phase member of rest\nexpect linked rest\n", nil, func(a *actor) {
		hit, spared := "beta/n2", []string{"alpha/n1", "beta/n1", "gamma/n1", "alpha/n2", "gamma/n2"}
		a.echoes(append([]string{hit}, spared...)...)
		type pair struct{ from, to, by string }
		cut, kept, links := map[pair]mesh.Stream{}, map[pair]mesh.Stream{}, map[pair]mesh.Link{}
		for _, from := range spared {
			cut[pair{from, hit, "link"}], cut[pair{hit, from, "link"}] = a.stream(from, hit), a.stream(hit, from)
			cut[pair{from, hit, "bulk"}], cut[pair{hit, from, "bulk"}] = a.bulk(from, hit), a.bulk(hit, from)
			for _, to := range spared {
				if to != from {
					by := pair{from, to, "link"}
					kept[by], links[by] = a.stream(from, to), a.link(from, to)
				}
			}
		}
		kept[pair{"alpha/n2", "gamma/n2", "bulk"}] = a.bulk("alpha/n2", "gamma/n2")
		links[pair{"alpha/n2", "gamma/n2", "bulk"}] = a.link("alpha/n2", "gamma/n2")
		for p, s := range kept {
			if err := flows(s); err != nil {
				a.Fatalf("before the change, from %s to %s by %s: %v", p.from, p.to, p.by, err)
			}
		}
		for p, s := range cut {
			if err := flows(s); err != nil {
				a.Fatalf("before the change, from %s to %s by %s: %v", p.from, p.to, p.by, err)
			}
		}
		spent := func() (sum int) {
			for _, name := range spared {
				sum += a.host(name).attester.Calls()
			}
			return sum
		}
		a.do("wait 2s\n")
		quotes := spent()
		a.do("propose remove old signed alpha beta at gamma/n1\nexpect closed beta/n2 by rest -beta/n2 within 1s\n")
		decided := a.p.world.proposed
		for p, s := range cut {
			if err := flows(s); err == nil {
				a.Errorf("data still flows from %s to %s by %s", p.from, p.to, p.by)
			}
		}
		if took := time.Since(decided); took > time.Second {
			a.Errorf("%s from the proposal to the last stream", took)
		}
		for p, s := range kept {
			if err := flows(s); err != nil {
				a.Errorf("data from %s to %s by %s: %v", p.from, p.to, p.by, err)
			}
			if l := a.link(p.from, p.to); l != links[p] {
				a.Errorf("the link from %s to %s was made anew", p.from, p.to)
			}
		}
		a.do("expect kept rest -beta/n2\nexpect unlinked beta/n2 from rest\nwait 60s\nexpect kept rest -beta/n2\n")
		if now := spent(); now != quotes {
			a.Errorf("%d quotes by nodes that the change did not hit", now-quotes)
		}
	})
}

// A peer that has not heard of a change is served for five seconds. After that it gets policy
// and log only, until it has caught up; its link stays all the time and no quote is made. What
// it could hear from other members is kept from it.
func TestPeerThatIsBehindGetsPolicyAndLogOnly(t *testing.T) {
	var deaf atomic.Bool
	prepare := func(w *world) {
		w.judge = func(h *host, j mesh.Judge) mesh.Judge {
			return opinion{j, func(_ *mesh.Session, p mesh.Protocol, answer *attest.Reason) *attest.Reason {
				if s := string(p); h.name == "alpha/n2" && deaf.Load() && (strings.HasSuffix(s, "/gossip/1") || strings.HasSuffix(s, "/follow/1")) {
					r := attest.NewReason(attest.CodeBusy, "gossip", "the test says no", "")
					return &r
				}
				return answer
			}}
		}
	}
	stage(t, three+"start alpha/n2 new\nstart gamma/n2 new\nexpect phase member of rest\nexpect linked rest\n", prepare, func(a *actor) {
		deaf.Store(true)
		a.echoes("alpha/n2", "gamma/n2")
		s, up := a.stream("gamma/n2", "alpha/n2"), a.link("gamma/n2", "alpha/n2")
		a.do("wait 2s\n")
		quotes := a.quotes()
		a.do("silence alpha/n2 | alpha/n1 beta/n1 gamma/n1\npropose remove old signed alpha beta at gamma/n1\nwait 4s\n")
		if before, after := a.status("gamma/n2").Epoch, a.status("alpha/n2").Epoch; before != 1 || after != 0 {
			a.Fatalf("epochs %d and %d, want 1 and 0", before, after)
		}
		if err := flows(s); err != nil {
			a.Fatalf("within the grace: %v", err)
		}
		if err := flows(a.stream("alpha/n2", "gamma/n2")); err != nil {
			a.Fatalf("a new stream within the grace: %v", err)
		}
		a.do("wait 2s\n")
		a.refusal(flows(s), false, attest.CodeBehind)
		_, err := a.open("gamma/n2", "alpha/n2", "blob")
		a.refusal(err, false, attest.CodeBehind)
		_, err = a.open("alpha/n2", "gamma/n2", "blob")
		a.refusal(err, true, attest.CodeBehind)
		for _, what := range []string{"head", "submit", "checkpoint"} { // it would follow at once
			if s, err := a.open("alpha/n2", "gamma/n2", what); err != nil {
				a.Errorf("%s: %v", what, err)
			} else {
				_ = s.Close()
			}
		}
		peer := func() node.PeerStatus {
			peers := a.status("gamma/n2").Peers
			return peers[slices.IndexFunc(peers, func(p node.PeerStatus) bool { return p.Node == "alpha/n2" })]
		}
		if p := peer(); p.State != node.PeerConnected || p.Code != attest.CodeBehind || p.Epoch != 0 {
			a.Errorf("status says %+v", p)
		}
		deaf.Store(false)
		a.do("heal\nexpect phase member of rest\n")
		a.eventually("the peer's epoch", func() bool { return up.PeerEpoch() == 1 })
		if err := flows(a.stream("alpha/n2", "gamma/n2")); err != nil {
			a.Errorf("after it has caught up: %v", err)
		}
		if p := peer(); p.Code != "" || p.Epoch != 1 {
			a.Errorf("status says %+v", p)
		}
		if a.link("gamma/n2", "alpha/n2") != up {
			a.Error("the link was made anew")
		}
		if now := a.quotes(); now != quotes {
			a.Errorf("%d quotes because of an epoch", now-quotes)
		}
	})
}

// A node's results do not get into the log: after ten seconds of ordered time it quarantines
// whom it cannot prove. Data ends, the rest goes on; it begins again with the proof.
func TestQuarantine(t *testing.T) {
	var block atomic.Bool
	block.Store(true)
	prepare := func(w *world) {
		w.judge = func(h *host, j mesh.Judge) mesh.Judge {
			return opinion{j, func(s *mesh.Session, p mesh.Protocol, answer *attest.Reason) *attest.Reason {
				submits := strings.HasSuffix(string(p), "/submit/1") || strings.HasSuffix(string(p), "/petition/1")
				if h.name != "alpha/n2" && s.Node.String() == "alpha/n2" && block.Load() && submits {
					r := attest.NewReason(attest.CodeBusy, "submit", "the test says no", "")
					return &r
				}
				return answer
			}}
		}
	}
	stage(t, three+"start gamma/n2 new\nexpect phase member of rest\nexpect proof proven of rest at rest within 10s\n", prepare, func(a *actor) {
		a.do("start alpha/n2 new\nexpect phase member of alpha/n2 within 10s\n") // others' results on it are logged
		a.link("alpha/n2", "gamma/n2")
		a.do("expect proof pending of gamma/n2 beta/n1 at alpha/n2\n")
		a.echoes("alpha/n2", "gamma/n2")
		s, up := a.stream("alpha/n2", "gamma/n2"), a.link("alpha/n2", "gamma/n2")
		a.do("wait 8s\nexpect proof pending of gamma/n2 beta/n1 at alpha/n2 within 1s\n")
		if err := flows(s); err != nil {
			a.Fatalf("while the proof is awaited: %v", err)
		}
		a.do("wait 6s\nexpect proof quarantined of gamma/n2 alpha/n1 beta/n1 gamma/n1 at alpha/n2 within 1s\n")
		a.refusal(flows(s), false, attest.CodeQuarantined)
		_, err := a.open("alpha/n2", "gamma/n2", "blob")
		a.refusal(err, false, attest.CodeQuarantined)
		_, err = a.open("gamma/n2", "alpha/n2", "round")
		a.refusal(err, true, attest.CodeQuarantined)
		for _, what := range []string{"follow", "head", "checkpoint"} {
			if s, err := a.open("gamma/n2", "alpha/n2", what); err != nil {
				a.Errorf("%s: %v", what, err)
			} else {
				_ = s.Close()
			}
		}
		block.Store(false)
		a.do("expect proof proven of rest at alpha/n2 within 10s\nexpect phase member of rest\n")
		if err := flows(a.stream("alpha/n2", "gamma/n2")); err != nil {
			a.Errorf("with the proof: %v", err)
		}
		if a.link("alpha/n2", "gamma/n2") != up {
			a.Error("the link was made anew")
		}
	})
}

// Without ticks no ordered time passes: an outage of the log quarantines nobody.
func TestNoQuarantineWithoutTicks(t *testing.T) {
	stage(t, three+"silence alpha/n1 | beta/n1 | gamma/n1\nwait 1s\n", nil, func(a *actor) {
		a.do("start beta/n2 new\nwait 60s\nexpect proof pending of beta/n1 alpha/n1 at beta/n2\nheal\nexpect phase member of rest\nexpect proof proven of rest at rest within 10s\n")
	})
}
