package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/consensus/replica"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// forgetful returns a crowd whose first seat keeps no command behind the published copy, and has
// a log of several tiles.
func forgetful(t *testing.T) *crowd {
	t.Helper()
	c := newCrowd(t, len(crowdOrgs)+1, func(int) string { return "new" })
	t.Cleanup(c.close)
	seat, member := c.nodes[0].machine, c.nodes[len(crowdOrgs)]
	seat.keep = 0
	c.found()
	c.affirm()
	for i := range 600 {
		c.order(consensus.KindCredential, c.renewal(member, time.Duration(i)*time.Second))
	}
	c.idle(consensus.DigestEvery)
	c.order(consensus.KindDigest)
	c.order(consensus.KindCredential, c.renewal(member, time.Hour))
	seat.published(seat.tree.Size(), c.checkpointAt(seat.tree.Size(), len(crowdOrgs)))
	if _, kept := seat.Since(consensus.DigestEvery-1, 1); kept {
		t.Fatal("commands before the copy are kept")
	}
	return c
}

// await polls until f holds.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); !f(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// A member that starts when the first commands are not kept any more follows from a copy of the
// state, hears what comes next, and has the whole log in the end.
func TestMemberStartsFromSnapshot(t *testing.T) {
	c := forgetful(t)
	seat := c.nodes[0]
	c.add(len(c.nodes), "new")
	late := c.nodes[len(c.nodes)-1]
	c.nodes = c.nodes[:len(c.nodes)-1] // commands reach it by following alone
	defer func() { late.leave(); late.tasks.Wait(); late.services.stop() }()
	late.tasks.Go(func() { late.follow(late.ctx) })
	late.tasks.Go(func() { late.runTiles(late.ctx) })
	if _, err := late.mesh.Dial(t.Context(), seat.self, seat.mesh.Addrs()); err != nil {
		t.Fatal(err)
	}
	await(t, "the state is the seat's", func() bool { return late.machine.Digest() == seat.machine.Digest() })
	same(t, seat.machine, late.machine)
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
	seat.changed.notify()
	await(t, "the next command is heard", func() bool { return late.machine.Digest() == seat.machine.Digest() })
	await(t, "all tiles have come", func() bool { return late.machine.tree.Missing() == "" })
	got, err := late.machine.tree.Leaf(0)
	if err != nil || !bytes.Equal(got, c.genesis.Raw()) {
		t.Fatalf("leaf 0: %v", err)
	}
	if late.machine.Halted() != nil || late.ctx.Err() != nil {
		t.Fatal(late.machine.Halted())
	}
}

// pipeStream is one end of a stream in memory: what it reads, and where its writes go.
type pipeStream struct {
	mesh.Stream
	io.Reader
	io.Writer
}

func (pipeStream) Close() error                  { return nil }
func (pipeStream) Reset() error                  { return nil }
func (pipeStream) SetDeadline(time.Time) error   { return nil }
func (p pipeStream) Read(b []byte) (int, error)  { return p.Reader.Read(b) }
func (p pipeStream) Write(b []byte) (int, error) { return p.Writer.Write(b) }

// What a peer sends in place of a snapshot is refused before it is held.
func TestReadSnapshot(t *testing.T) {
	framed := func(size int, parts ...[]byte) []byte {
		var buf bytes.Buffer
		head, err := json.Marshal(snapshotHead{size})
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range append([][]byte{head}, parts...) {
			if err := writeFrame(&buf, part); err != nil {
				t.Fatal(err)
			}
		}
		return buf.Bytes()
	}
	for name, c := range map[string]struct {
		sent []byte
		want string
	}{
		"whole":               {framed(5, []byte("abc"), []byte("de")), ""},
		"nothing":             {framed(0), "bytes, want"},
		"negative":            {framed(-1), "bytes, want"},
		"huge":                {framed(replica.MaxSnapshot + 1), "bytes, want"},
		"cut":                 {framed(5, []byte("abc")), "EOF"},
		"more than announced": {framed(5, []byte("abcdef")), "5 are left"},
		"empty part":          {framed(5, nil), "a part of 0 bytes"},
		"part too large":      {framed(1<<20, make([]byte, snapshotFrame+1)), "limit"},
	} {
		got, err := readSnapshot(pipeStream{Reader: bytes.NewReader(c.sent)}, func() {})
		if c.want == "" && (err != nil || string(got) != "abcde") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

// Snapshots are given to few at a time, and tiles under their names only.
func TestGivingIsBounded(t *testing.T) {
	c := forgetful(t)
	n := c.nodes[0]
	var leave func()
	for i := range maxGivers {
		var ok bool
		if leave, ok = n.givers.enter(identity.PeerID(fmt.Sprint(i))); !ok {
			t.Fatal(i)
		}
	}
	var out bytes.Buffer
	link := seatLink{peer: "late"}
	if n.handleSnapshot(link, pipeStream{Writer: &out}); out.Len() != 0 {
		t.Fatal("one too many was given a snapshot")
	}
	leave()
	if n.handleSnapshot(seatLink{peer: "0"}, pipeStream{Writer: &out}); out.Len() != 0 {
		t.Fatal("one peer was given two snapshots at a time")
	}
	n.handleSnapshot(link, pipeStream{Writer: &out})
	raw, err := readSnapshot(pipeStream{Reader: &out}, func() {})
	if err != nil || !bytes.Equal(raw, snapshotOf(t, n.machine)) || len(n.givers.to) != maxGivers-1 {
		t.Fatalf("%d bytes, %v", len(raw), err)
	}
	for _, name := range []string{"../../etc/passwd", "tile/9/000", ""} {
		var in bytes.Buffer
		out.Reset()
		if err := writeMessage(&in, tileRequest{name}); err != nil {
			t.Fatal(err)
		}
		if n.handleTile(nil, pipeStream{Reader: &in, Writer: &out}); out.Len() != 0 {
			t.Errorf("%q was given", name)
		}
	}
}

// A log that is another than the one before the snapshot ends the node.
func TestSnapshotOfAnotherHistory(t *testing.T) {
	c := forgetful(t)
	m := c.fresh()
	m.before = &earlierHead{size: 3}
	if err := m.Restore(snapshotOf(t, c.nodes[0].machine)); err != nil {
		t.Fatal(err)
	}
	m.before = &earlierHead{size: 3} // some other root
	for name := m.tree.Missing(); name != ""; name = m.tree.Missing() {
		data, err := c.nodes[0].machine.tree.ReadFile(name)
		if err == nil {
			err = m.fill(name, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := m.checkBefore(); err == nil || !strings.Contains(err.Error(), "two histories") {
		t.Fatalf("got %v", err)
	}
	if err := m.checkBefore(); err != nil {
		t.Fatalf("looked at twice: %v", err)
	}
}
