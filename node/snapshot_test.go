package node

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// affirm orders an affirming edge between every two seats.
func (c *crowd) affirm() {
	c.t.Helper()
	c.order(consensus.KindResults, c.edgesOfSeats()...)
}

func (c *crowd) edgesOfSeats() (batch [][]byte) {
	c.t.Helper()
	now := time.Now()
	for _, v := range c.nodes[:len(crowdOrgs)] {
		for _, s := range c.nodes[:len(crowdOrgs)] {
			if v == s {
				continue
			}
			raw, err := consensus.SignResult(v.key, consensus.AttestationResult{
				Verifier: consensus.Party{Node: v.ref, Peer: v.self}, Subject: consensus.Party{Node: s.ref, Peer: s.self}, MeshID: c.genesis.MeshID(),
				Kind: attest.KindSim, Measurement: attesttest.Measurement("new"), Verdict: attest.VerdictAffirming, Reference: c.entry("new").ID,
				Evidence: consensus.EvidenceCommitment([32]byte{1}, []byte("e")), At: now, Expires: now.Add(time.Hour)})
			if err != nil {
				c.t.Fatal(err)
			}
			batch = append(batch, raw)
		}
	}
	return batch
}

// idle orders ticks without samples until so many commands were ordered.
func (c *crowd) idle(seq uint64) {
	c.t.Helper()
	for c.nodes[0].machine.Seq() < seq {
		c.order(consensus.KindTick)
	}
}

// renewal returns a Credential of the same boot that is valid for longer.
func (c *crowd) renewal(n *Node, longer time.Duration) []byte {
	c.t.Helper()
	cred, err := consensus.ParseCredential(n.credential())
	if err != nil {
		c.t.Fatal(err)
	}
	cred.Expires = cred.Expires.Add(longer)
	raw, err := consensus.SignCredential(crowdSigner(c.t, string(n.ref.Org), consensus.KeyEnroll), *cred)
	if err != nil {
		c.t.Fatal(err)
	}
	return raw
}

// checkpointAt returns the first machine's checkpoint of a size, cosigned by the first k seats.
func (c *crowd) checkpointAt(size uint64, k int) []byte {
	c.t.Helper()
	m := c.nodes[0].machine
	root, err := m.tree.RootAt(size)
	if err != nil {
		c.t.Fatal(err)
	}
	note, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: m.state.Origin(), Size: size, Root: root}, crowdKey("log", "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range c.nodes[:k] {
		by := cosignersOf(m.state)[n.self]
		line, err := transparency.Cosign(note, by.Name, n.keys.Cosigner)
		if err == nil {
			note, err = transparency.Merge(note, line, by)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return note
}

// aged returns a crowd whose state was logged and published, and some commands after. The last
// node is a member; all others are seats.
func aged(t testing.TB) *crowd {
	t.Helper()
	c := newCrowd(t, len(crowdOrgs)+1, func(int) string { return "new" })
	t.Cleanup(c.close)
	c.found()
	c.affirm()
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
	c.idle(consensus.DigestEvery)
	c.order(consensus.KindDigest)
	c.order(consensus.KindCredential, c.nodes[len(crowdOrgs)].credential())
	note := c.checkpointAt(c.nodes[0].machine.tree.Size(), len(crowdOrgs)/2+1)
	for _, n := range c.nodes {
		n.machine.published(n.machine.tree.Size(), note)
	}
	c.propose(consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: attesttest.Measurement("old")}})
	return c
}

func snapshotOf(t testing.TB, m *Machine) []byte {
	t.Helper()
	encode, err := m.Give()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := encode()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// fresh returns a machine of the mesh that has heard nothing yet.
func (c *crowd) fresh() *Machine {
	c.t.Helper()
	tree, err := transparency.NewTree(nil)
	if err != nil {
		c.t.Fatal(err)
	}
	return newMachine(c.genesis, tree, newNotifier(), time.Now)
}

// same demands that two machines are one: state, log, and what comes next.
func same(t *testing.T, a, b *Machine) {
	t.Helper()
	sizeA, rootA := a.tree.Head()
	sizeB, rootB := b.tree.Head()
	if a.Digest() != b.Digest() || sizeA != sizeB || rootA != rootB {
		t.Fatalf("machines differ: %+v size %d root %s, and %+v size %d root %s", a.Digest(), sizeA, rootA, b.Digest(), sizeB, rootB)
	}
}

func TestSnapshotStartsMachine(t *testing.T) {
	c := aged(t)
	seat := c.nodes[0].machine
	for name, prepare := range map[string]func(m *Machine){
		"from nothing": func(*Machine) {},
		"from behind the copy": func(m *Machine) {
			history, _ := seat.Since(0, 500)
			for i, command := range history {
				if err := m.follow(uint64(i)+1, command); err != nil {
					t.Fatal(err)
				}
			}
		},
		"from beyond the copy": func(m *Machine) {
			history, _ := seat.Since(0, consensus.DigestEvery+2)
			for i, command := range history {
				if err := m.follow(uint64(i)+1, command); err != nil {
					t.Fatal(err)
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := c.fresh()
			prepare(m)
			raw := snapshotOf(t, seat)
			if err := m.CheckSnapshot(raw, []identity.PeerID{c.nodes[3].self}); err != nil {
				t.Fatal(err)
			}
			if err := m.Restore(raw); err != nil {
				t.Fatal(err)
			}
			same(t, seat, m)
			command, err := command(consensus.KindTick)
			if err != nil {
				t.Fatal(err)
			}
			a, b := seat.apply(command), m.apply(command)
			if a.Seq != b.Seq || a.Reason != nil || b.Reason != nil {
				t.Fatalf("the next command: %+v and %+v", a, b)
			}
			if err := m.CatchUp(raw); err == nil || !strings.Contains(err.Error(), "applied here already") {
				t.Errorf("caught up twice: %v", err)
			}
		})
	}
	// A node that did not ask CheckSnapshot is as careful.
	m := c.fresh()
	if err := m.Restore(snapshotOf(t, seat)); err != nil || m.Seq() != seat.Seq() {
		t.Fatalf("%v at command %d", err, m.Seq())
	}
}

// A copy that nobody would believe is none: while seats are vacant fewer publish than it takes.
func TestSnapshotWaitsForItsQuorum(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	t.Cleanup(c.close)
	c.found()
	c.affirm()
	c.idle(consensus.DigestEvery)
	c.order(consensus.KindDigest)
	m := c.nodes[0].machine
	enough := m.state.SnapshotQuorum()
	m.published(m.tree.Size(), c.checkpointAt(m.tree.Size(), enough-1))
	if _, err := m.Give(); !errors.Is(err, errNoState) {
		t.Fatalf("got %v, want no copy yet", err)
	}
	m.published(m.tree.Size(), c.checkpointAt(m.tree.Size(), enough))
	if err := c.fresh().CheckSnapshot(snapshotOf(t, m), nil); err != nil {
		t.Fatal(err)
	}
}

// A seat that hears no Raft follows others. What Raft delivers later, a snapshot of the past among it, is
// what it has already; and it stores no snapshot before Raft has come as far as itself.
func TestSnapshotOfThePast(t *testing.T) {
	c := aged(t)
	seat := c.nodes[0].machine
	raw := snapshotOf(t, seat)
	m := c.fresh()
	follow := func(upTo int) {
		history, _ := seat.Since(0, upTo)
		for i, command := range history {
			if err := m.follow(uint64(i)+1, command); err != nil {
				t.Fatal(err)
			}
		}
	}
	end := seat.Seq()
	for range 3 {
		c.order(consensus.KindTick)
	}
	follow(int(seat.Seq()))
	if err := m.CheckSnapshot(raw, []identity.PeerID{c.nodes[3].self}); err != nil {
		t.Fatal(err)
	}
	if err := m.Restore(raw); err != nil {
		t.Fatal(err)
	}
	same(t, seat, m)
	if m.ordered != end {
		t.Fatalf("Raft has delivered %d commands, want %d", m.ordered, end)
	}
	note := seat.states.published.checkpoint
	m.published(m.tree.Size(), note)
	if _, err := m.Snapshot(); !errors.Is(err, errNotLevel) {
		t.Fatalf("a snapshot of what Raft has not delivered: %v", err)
	}
	rest, _ := seat.Since(end, 10)
	for _, command := range rest {
		if out := m.Apply(0, 0, command).(Applied); !errors.Is(out.Err, errFollowed) {
			t.Fatalf("delivered again: %+v", out)
		}
	}
	if _, err := m.Snapshot(); errors.Is(err, errNotLevel) {
		t.Fatal(err)
	}
	tick, err := command(consensus.KindTick)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := seat.apply(tick), m.Apply(0, 0, tick).(Applied); a.Seq != b.Seq || b.Err != nil {
		t.Fatalf("the next command: %+v and %+v", a, b)
	}
	same(t, seat, m)

	// Of another history it is refused, however old it is.
	other := c.fresh()
	history, _ := seat.Since(0, int(seat.Seq()))
	history[5] = history[6] // the first samples of the clock are in the log of neither
	other.mu.Lock()
	other.history, other.base = history, 0
	other.mu.Unlock()
	if err := other.CheckSnapshot(raw, nil); err != nil {
		t.Fatalf("a difference long before the copy: %v", err)
	}
	history[end-1] = tick
	if err := other.CheckSnapshot(raw, nil); err == nil || !strings.Contains(err.Error(), "two histories") {
		t.Fatalf("got %v", err)
	}
}

// A learner without tiles proves nothing old; it gets them from anybody.
func TestSnapshotTiles(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs)+1, func(int) string { return "new" })
	defer c.close()
	seat, member := c.nodes[0].machine, c.nodes[len(crowdOrgs)]
	c.found()
	c.affirm()
	for i := range 600 {
		c.order(consensus.KindCredential, c.renewal(member, time.Duration(i)*time.Second))
	}
	c.idle(consensus.DigestEvery)
	c.order(consensus.KindDigest)
	c.order(consensus.KindCredential, c.renewal(member, time.Hour))
	seat.published(seat.tree.Size(), c.checkpointAt(seat.tree.Size(), len(crowdOrgs)))
	m := c.fresh()
	if err := m.Restore(snapshotOf(t, seat)); err != nil {
		t.Fatal(err)
	}
	same(t, seat, m)
	old := c.genesis.Raw()
	if _, ok := m.leafIndex(old); ok {
		t.Fatal("the index of an old leaf is known before its tile came")
	}
	for name := m.tree.Missing(); name != ""; name = m.tree.Missing() {
		data, err := seat.tree.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.fill(name, data[:len(data)-1]); err == nil {
			t.Fatalf("%s was taken though it is cut", name)
		}
		if err := m.fill(name, data); err != nil {
			t.Fatal(err)
		}
	}
	if i, ok := m.leafIndex(old); !ok || i != 0 {
		t.Fatalf("the index of genesis: %d, %v", i, ok)
	}
	for _, i := range []uint64{0, 200, 255, 256, 511, 512, 640} {
		want, err1 := seat.tree.Leaf(i)
		got, err2 := m.tree.Leaf(i)
		if err1 != nil || err2 != nil || !bytes.Equal(got, want) {
			t.Fatalf("leaf %d: %v, %v", i, err1, err2)
		}
	}
}

// Every altered snapshot is refused, and nothing has changed then.
func TestSnapshotAltered(t *testing.T) {
	c := aged(t)
	raw := snapshotOf(t, c.nodes[0].machine)
	decode := func() (w wireSnapshot, copied wireCopy) {
		if err := snapshots.Decode(raw, &w); err != nil {
			t.Fatal(err)
		}
		if err := snapshots.Decode(w.Copy, &copied); err != nil {
			t.Fatal(err)
		}
		return w, copied
	}
	size := c.nodes[0].machine.states.published.leaf
	few := c.checkpointAt(size+1, len(crowdOrgs)/2) // one organisation too few
	before := c.checkpointAt(size, len(crowdOrgs))
	// The policy and the credentials in it are all signed, but there was more.
	behind := c.fresh()
	history, _ := c.nodes[0].machine.Since(0, 3)
	for i, command := range history {
		if err := behind.follow(uint64(i)+1, command); err != nil {
			t.Fatal(err)
		}
	}
	older, err := behind.state.Image()
	if err != nil {
		t.Fatal(err)
	}
	for name, attack := range map[string]struct {
		alter func(w *wireSnapshot, copied *wireCopy)
		want  string
	}{
		"version":                  {func(w *wireSnapshot, _ *wireCopy) { w.Version = 2 }, "versions"},
		"version of the copy":      {func(_ *wireSnapshot, c *wireCopy) { c.Version = 2 }, "versions"},
		"commands before":          {func(_ *wireSnapshot, c *wireCopy) { c.Seq++ }, "not the state that was logged"},
		"no commands":              {func(w *wireSnapshot, _ *wireCopy) { w.Commands = nil }, "the checkpoint has"},
		"digest command missing":   {func(w *wireSnapshot, _ *wireCopy) { w.Commands = w.Commands[1:] }, "is no digest"},
		"command missing":          {func(w *wireSnapshot, _ *wireCopy) { w.Commands = slices.Delete(w.Commands, 1, 2) }, "root"},
		"too few commands":         {func(w *wireSnapshot, _ *wireCopy) { w.Commands = w.Commands[:1] }, "the checkpoint has"},
		"commands in other order":  {func(w *wireSnapshot, _ *wireCopy) { w.Commands[1], w.Commands[2] = w.Commands[2], w.Commands[1] }, "root"},
		"unknown command":          {func(w *wireSnapshot, _ *wireCopy) { w.Commands[1] = []byte("x") }, "halted"},
		"a place":                  {func(_ *wireSnapshot, c *wireCopy) { c.Places[7]++ }, "not the state that was logged"},
		"places missing":           {func(_ *wireSnapshot, c *wireCopy) { c.Places = c.Places[8:] }, "places"},
		"log size":                 {func(_ *wireSnapshot, c *wireCopy) { c.Size-- }, "bytes, want"},
		"log":                      {func(_ *wireSnapshot, c *wireCopy) { c.Tiles[0][0] ^= 1 }, "not the one in the tree"},
		"empty state":              {func(_ *wireSnapshot, c *wireCopy) { c.State = nil }, "state image"},
		"empty ledger":             {func(_ *wireSnapshot, c *wireCopy) { c.Ledger = nil }, "ledger image"},
		"checkpoint of few":        {func(w *wireSnapshot, _ *wireCopy) { w.Checkpoint = few }, "cosigned by"},
		"no checkpoint":            {func(w *wireSnapshot, _ *wireCopy) { w.Checkpoint = nil }, "checkpoint"},
		"checkpoint before digest": {func(w *wireSnapshot, _ *wireCopy) { w.Checkpoint = before }, "below the state leaf"},
		"an older state":           {func(_ *wireSnapshot, c *wireCopy) { c.State = older }, "not the state that was logged"},
	} {
		t.Run(name, func(t *testing.T) {
			w, copied := decode()
			attack.alter(&w, &copied)
			var err error
			if w.Copy, err = snapshots.Encode(copied); err != nil {
				t.Fatal(err)
			}
			altered, err := snapshots.Encode(w)
			if err != nil {
				t.Fatal(err)
			}
			m := c.fresh()
			if err := m.Restore(altered); err == nil || !strings.Contains(err.Error(), attack.want) {
				t.Fatalf("got %v, want %q", err, attack.want)
			}
			if m.Started() || m.Seq() != 0 || m.tree.Size() != 0 || m.Halted() != nil {
				t.Fatal("something has changed")
			}
		})
	}
}

// What a machine has heard, and a copy of the state shows as ordered, acts by itself no longer.
func TestSnapshotSettlesWhatWasHeard(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs)+1, func(int) string { return "new" })
	t.Cleanup(c.close)
	c.found()
	c.affirm()
	m, seat := c.fresh(), c.nodes[0].machine
	first, _ := seat.Since(0, 1<<10)
	for i, raw := range first {
		if err := m.follow(uint64(i+1), raw); err != nil {
			t.Fatal(err)
		}
	}
	raw := c.removal("old", crowdOrgs[:4]...)
	if _, fresh, err := m.Hear(raw); err != nil || !fresh {
		t.Fatalf("%v, %v", fresh, err)
	}
	c.order(consensus.KindProposal, raw)
	c.idle(consensus.DigestEvery)
	c.order(consensus.KindDigest)
	c.order(consensus.KindCredential, c.nodes[len(crowdOrgs)].credential())
	seat.published(seat.tree.Size(), c.checkpointAt(seat.tree.Size(), len(crowdOrgs)))
	if err := m.CatchUp(snapshotOf(t, seat)); err != nil {
		t.Fatal(err)
	}
	same(t, m, seat)
	if m.Hears() || m.Openings() != seat.Openings() {
		t.Errorf("it still acts on %d statements, openings %d and %d", len(m.Heard()), m.Openings(), seat.Openings())
	}
}

// Two snapshots that are verified at the same time as a third replaces the state are no race.
func TestSnapshotsAreVerifiedAside(t *testing.T) {
	c := aged(t)
	raw, m := snapshotOf(t, c.nodes[0].machine), c.fresh()
	verified := make(chan error)
	for range 2 {
		go func() { verified <- m.CheckSnapshot(raw, nil) }()
	}
	if err := m.CatchUp(raw); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-verified; err != nil {
			t.Error(err)
		}
	}
}
