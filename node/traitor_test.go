package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/misbehaviour"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// twoFaced is the network of a seat that may lie: Raft hears one thing of it here and another there.
type twoFaced struct {
	mesh.Mesh
	raft mesh.Protocol

	mu  sync.Mutex
	lie map[identity.PeerID][2][]byte // guarded by mu; what a peer is sent in place of what
	cut map[identity.PeerID]bool      // guarded by mu; peers that hear no Raft from it
}

func (m *twoFaced) Link(p identity.PeerID) (mesh.Link, bool) {
	l, ok := m.Mesh.Link(p)
	return facedLink{l, m}, ok
}

func (m *twoFaced) to(p identity.PeerID) (lie [2][]byte, cut bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lie[p], m.cut[p]
}

type facedLink struct {
	mesh.Link
	m *twoFaced
}

func (l facedLink) Open(ctx context.Context, p mesh.Protocol) (mesh.Stream, error) {
	_, cut := l.m.to(l.Peer())
	if p == l.m.raft && cut {
		return nil, errors.New("cut off")
	}
	s, err := l.Link.Open(ctx, p)
	if err != nil || p != l.m.raft {
		return s, err
	}
	return &facedStream{Stream: s, peer: l.Peer(), m: l.m}, nil
}

// facedStream rewrites the entries of AppendEntries (docs/PROTOCOL.md §19).
type facedStream struct {
	mesh.Stream
	peer  identity.PeerID
	m     *twoFaced
	mu    sync.Mutex
	buf   []byte // guarded by mu; what is no whole frame yet
	hello bool   // guarded by mu; it is over
}

func (s *facedStream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lie, cut := s.m.to(s.peer)
	if cut {
		return 0, errors.New("cut off")
	}
	s.buf = append(s.buf, p...)
	var out []byte
	if !s.hello && len(s.buf) >= 79 {
		out, s.buf, s.hello = append(out, s.buf[:79]...), s.buf[79:], true
	}
	for s.hello && len(s.buf) >= 4 {
		n := 4 + int(binary.BigEndian.Uint32(s.buf))
		if len(s.buf) < n {
			break
		}
		out = append(out, rewritten(s.buf[:n], lie)...)
		s.buf = s.buf[n:]
	}
	if _, err := s.Stream.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// rewritten is a frame with one command in place of another.
func rewritten(frame []byte, lie [2][]byte) []byte {
	const head, fixed = 4 + 1 + 1 + 8, 4*8 + 2
	if frame[5] != 1 || lie[0] == nil || !bytes.Contains(frame, lie[0]) {
		return frame
	}
	out := slices.Clone(frame[:head+fixed])
	rest := frame[head+fixed:]
	for len(rest) > 0 {
		size := int(binary.BigEndian.Uint32(rest[9:13]))
		data := bytes.Replace(rest[13:13+size], lie[0], lie[1], 1)
		out = append(out, rest[:9]...)
		out = binary.BigEndian.AppendUint32(out, uint32(len(data)))
		out = append(out, data...)
		rest = rest[13+size:]
	}
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	return out
}

// betrayal is a mesh of seats of which the leader is a traitor, and of two newcomers, each of which
// runs a release that one of two proposals would let in.
type betrayal struct {
	*crowd
	traitor *Node
	face    *twoFaced
	honest  []*Node // the other seats
	ours    consensus.Command
	theirs  consensus.Command
}

// betrayed founds a mesh of n seats whose leader is about to lie, after a strong checkpoint.
func betrayed(t *testing.T, n int) *betrayal {
	t.Helper()
	all := crowdOrgs
	crowdOrgs = crowdOrgs[:n]
	t.Cleanup(func() { crowdOrgs = all })
	faces := map[int]*twoFaced{}
	c := newFacedCrowd(t, n, func(int) string { return "new" }, func(i int, m mesh.Mesh) mesh.Mesh {
		faces[i] = &twoFaced{Mesh: m, lie: map[identity.PeerID][2][]byte{}, cut: map[identity.PeerID]bool{}}
		return faces[i]
	})
	for i, f := range faces {
		f.raft = c.nodes[i].protocols.raft
	}
	b := &betrayal{crowd: c}
	c.raft()
	b.traitor = c.leading()
	for _, raw := range c.edgesOfSeats() {
		command, err := consensus.NewCommand(consensus.KindResults, raw)
		if err == nil {
			_, err = b.traitor.submit(t.Context(), command)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, seat := range c.nodes {
		if seat == b.traitor {
			b.face = faces[i]
			continue
		}
		b.honest = append(b.honest, seat)
		seat.tasks.Go(func() { seat.runHistories(seat.ctx) })
	}
	await(t, "a strong checkpoint everywhere", func() bool {
		for _, seat := range c.nodes {
			if p, _ := seat.lastPublished(); p.Level != transparency.Strong || p.Size != seat.machine.tree.Size() {
				return false
			}
		}
		return true
	})
	for _, seat := range c.nodes { // founders are fresh once Bootstrap is ordered; see found.go
		seat.completed(seat.began())
	}
	c.add(n, "ours")
	c.add(n+1, "theirs")
	for i, command := range []*consensus.Command{&b.ours, &b.theirs} {
		var err error
		raw := c.proposal(crowdOrgs, consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry([]string{"ours", "theirs"}[i])}})
		if *command, err = consensus.NewCommand(consensus.KindProposal, raw); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// lieTo has the leader send victims the other proposal.
func (b *betrayal) lieTo(victims ...*Node) {
	b.t.Helper()
	ours, err := consensus.EncodeCommand(b.ours)
	if err != nil {
		b.t.Fatal(err)
	}
	theirs, err := consensus.EncodeCommand(b.theirs)
	if err != nil {
		b.t.Fatal(err)
	}
	b.face.mu.Lock()
	defer b.face.mu.Unlock()
	for _, v := range victims {
		b.face.lie[v.self] = [2][]byte{ours, theirs}
	}
}

// hide cuts the leader's Raft off from exactly these.
func (b *betrayal) hide(from ...*Node) {
	b.face.mu.Lock()
	defer b.face.mu.Unlock()
	clear(b.face.cut)
	for _, n := range from {
		b.face.cut[n.self] = true
	}
}

// ordered waits until each of nodes has applied a change that lets in what a release runs.
func (b *betrayal) ordered(release string, nodes ...*Node) {
	b.t.Helper()
	want := b.entry(release).ID
	for _, n := range nodes {
		await(b.t.(*testing.T), fmt.Sprintf("%s has ordered %s", n.ref, release), func() (ok bool) {
			n.machine.View(func(s *consensus.State, _ *federated.Ledger) {
				ok = slices.ContainsFunc(s.Entries(), func(e consensus.Entry) bool { return e.ID == want })
			})
			return ok
		})
	}
}

// publishes has the traitor make a checkpoint of the other history, as it has of its own, and show it to
// whom it belongs to: signed by itself and by whoever of asked gives a cosignature.
func (b *betrayal) publishes(victim *Node, asked ...*Node) {
	b.t.Helper()
	note := b.noteOf(victim, b.traitor)
	for _, n := range asked {
		l, ok := b.traitor.linkTo(n.self)
		if !ok {
			continue
		}
		line, err := b.traitor.askCosignature(b.t.(*testing.T).Context(), l, note)
		if err != nil {
			continue
		}
		merged, err := transparency.Merge(note, line, victim.cosigners()[n.self])
		if err != nil {
			b.t.Fatal(err)
		}
		note = merged
	}
	for _, n := range asked {
		if l, ok := b.traitor.linkTo(n.self); ok {
			b.traitor.showCheckpoint(b.t.(*testing.T).Context(), []mesh.Link{l}, note)
		}
	}
}

// admits reports whether a seat lets in the newcomer that runs a release, and the code if not.
func (b *betrayal) admits(seat *Node, release string) (bool, attest.Code) {
	b.t.Helper()
	newcomer := b.nodes[len(crowdOrgs)]
	if release == "theirs" {
		newcomer = b.nodes[len(crowdOrgs)+1]
	}
	_, err := newcomer.mesh.Dial(b.t.(*testing.T).Context(), seat.self, seat.mesh.Addrs())
	var r *mesh.Refusal
	if errors.As(err, &r) {
		return false, r.Reasons[0].Code
	}
	if err != nil {
		b.t.Fatalf("%s to %s: %v", newcomer.ref, seat.ref, err)
	}
	return true, ""
}

// A leader that orders one widening at some seats and another at the others puts neither in force
// anywhere, whoever of a minority is dead. Who meets others convicts it, and nobody else.
func TestTraitorLeader(t *testing.T) {
	for _, x := range []struct {
		seats, dead int
		turns       bool // the two are shown their history one after the other, while the other is cut off
		published   int  // histories that have a majority, with the traitor
	}{{seats: 3, published: 2}, {seats: 3, turns: true, published: 2}, {seats: 5, published: 2}, {seats: 5, dead: 1, published: 1}, {seats: 5, dead: 2}} {
		t.Run(fmt.Sprintf("%d seats %d dead turns %v", x.seats, x.dead, x.turns), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := betrayed(t, x.seats)
				defer b.close()
				for _, n := range b.honest[len(b.honest)-x.dead:] {
					n.leave()
				}
				alive := b.honest[:len(b.honest)-x.dead]
				ours, theirs := alive[:(len(alive)+1)/2], alive[(len(alive)+1)/2:]
				b.lieTo(theirs...)
				if x.turns {
					b.hide(theirs...)
				}
				if _, err := b.traitor.submit(t.Context(), b.ours); err != nil {
					t.Fatal(err)
				}
				b.ordered("ours", append([]*Node{b.traitor}, ours...)...)
				if x.turns {
					b.hide(ours...)
				}
				b.ordered("theirs", theirs...)
				for range 5 {
					b.publishes(theirs[0], theirs...)
					time.Sleep(time.Second)
				}
				for _, n := range alive {
					p, _ := n.lastPublished()
					if p.Level == transparency.Strong && p.Size == n.machine.tree.Size() {
						t.Errorf("%s: its history is strong, by %v", n.ref, p.Orgs)
					}
					for _, release := range []string{"ours", "theirs"} {
						if in, code := b.admits(n, release); in || code != attest.CodeNotStrong && code != attest.CodeMeasurementNotAllowed {
							t.Errorf("%s lets in %s: %v %s", n.ref, release, in, code)
						}
					}
				}
				roots := map[transparency.Hash]bool{}
				for _, n := range alive {
					if p, _ := n.lastPublished(); p.Size == n.machine.tree.Size() {
						roots[p.Root] = true
					}
				}
				if len(roots) != x.published {
					t.Errorf("%d histories are published, want %d", len(roots), x.published)
				}
				if x.published < 2 {
					return // nobody has cosigned two that anybody has seen
				}
				for _, n := range alive {
					await(t, fmt.Sprintf("%s convicts the traitor", n.ref), func() bool { return len(n.convictedOrgs()) > 0 })
					if got := n.convictedOrgs(); fmt.Sprint(got) != fmt.Sprintf("[%s]", b.traitor.ref.Org) {
						t.Errorf("%s convicts %v", n.ref, got)
					}
					var files [][]byte
					n.conflicts.mu.Lock()
					for _, x := range n.conflicts.against {
						if x.raw != nil {
							files = append(files, x.raw)
						}
					}
					n.conflicts.mu.Unlock()
					for _, raw := range files {
						r, err := misbehaviour.Verify(raw, b.genesis)
						if err != nil || slices.ContainsFunc(r.Organisations(), func(org identity.OrgID) bool { return org != b.traitor.ref.Org }) {
							t.Errorf("%s: the file says %v, %v", n.ref, r.Organisations(), err)
						}
					}
					if n.mayCosign(b.traitor.self) == nil {
						t.Errorf("%s cosigns for the traitor", n.ref)
					}
				}
			})
		})
	}
}

// The control: seats that cosign what they are asked, and not what they have computed, make both
// histories strong, and each lets in a release that the other refuses.
func TestTraitorLeaderAmongSeatsThatSignBlindly(t *testing.T) {
	for _, x := range []struct{ seats, dead int }{{3, 0}, {5, 1}} {
		t.Run(fmt.Sprintf("%d seats %d dead", x.seats, x.dead), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := betrayed(t, x.seats)
				defer b.close()
				for _, n := range b.honest[len(b.honest)-x.dead:] {
					n.leave()
				}
				alive := b.honest[:len(b.honest)-x.dead]
				for _, n := range alive {
					n.mesh.Handle(n.protocols.cosign, func(_ mesh.Link, s mesh.Stream) {
						defer s.Close()
						note, err := readFrame(s, maxCheckpoint)
						if err != nil {
							return
						}
						line, err := transparency.Cosign(note, n.cosigners()[n.self].Name, n.keys.Cosigner)
						if err != nil {
							t.Error(err)
						}
						_ = writeMessage(s, cosignReply{Line: line})
					})
				}
				ours, theirs := alive[:(len(alive)+1)/2], alive[(len(alive)+1)/2:]
				b.lieTo(theirs...)
				if _, err := b.traitor.submit(t.Context(), b.ours); err != nil {
					t.Fatal(err)
				}
				b.ordered("ours", ours...)
				b.ordered("theirs", theirs...)
				b.publishes(theirs[0], alive...)
				await(t, "both are in force", func() bool {
					return ours[0].machine.Awaiting() == nil && theirs[0].machine.Awaiting() == nil
				})
				for seat, release := range map[*Node]string{ours[0]: "ours", theirs[0]: "theirs"} {
					if in, code := b.admits(seat, release); !in {
						t.Errorf("%s refuses %s with %s: this test would find nothing", seat.ref, release, code)
					}
				}
			})
		})
	}
}

// Without a lie the same change is strong within seconds, and lets its release in.
func TestHonestLeaderActivates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := betrayed(t, 3)
		defer b.close()
		seat := b.honest[0]
		if _, err := b.traitor.submit(t.Context(), b.ours); err != nil {
			t.Fatal(err)
		}
		b.ordered("ours", seat)
		if in, code := b.admits(seat, "ours"); in || code != attest.CodeNotStrong {
			t.Errorf("before it is strong: %v %s", in, code)
		}
		await(t, "strong", func() bool { return seat.machine.Awaiting() == nil })
		if in, code := b.admits(seat, "ours"); !in {
			t.Errorf("once it is strong: %s", code)
		}
		if b.traitor.raft().State() != replica.Leader || len(seat.conflictStatuses()) > 0 {
			t.Errorf("%+v", seat.conflictStatuses())
		}
	})
}
