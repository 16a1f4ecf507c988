package node

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// hollow returns a crowd as forgetful does, and a node that has a copy of the state and lacks the tiles.
func hollow(t *testing.T) (c *crowd, late *Node) {
	t.Helper()
	c = forgetful(t)
	c.add(len(c.nodes), "new")
	late = c.nodes[len(c.nodes)-1]
	c.nodes = c.nodes[:len(c.nodes)-1]
	t.Cleanup(func() { late.leave(); late.tasks.Wait(); late.services.stop() })
	if err := late.machine.CatchUp(snapshotOf(t, c.nodes[0].machine)); err != nil {
		t.Fatal(err)
	}
	if late.machine.tree.Missing() == "" {
		t.Fatal("nothing is missing")
	}
	return c, late
}

// serveTiles makes a node answer for tiles as a test says, and counts how often it is asked.
func serveTiles(n *Node, answer func(s mesh.Stream, name string)) *atomic.Int32 {
	var asked atomic.Int32
	n.mesh.Handle(n.protocols.tile, func(_ mesh.Link, s mesh.Stream) {
		defer s.Close()
		var req tileRequest
		if readMessage(s, &req) == nil {
			asked.Add(1)
			answer(s, req.Name)
		}
	})
	return &asked
}

func dial(t *testing.T, from, to *Node) mesh.Link {
	t.Helper()
	link, err := from.mesh.Dial(t.Context(), to.self, to.mesh.Addrs())
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// Whatever a peer sends in place of a tile is refused, nothing of it is stored, and the next peer is asked.
func TestHostileTiles(t *testing.T) {
	c, late := hollow(t)
	good, liar := c.nodes[0], c.nodes[1]
	link := dial(t, late, liar)
	var missing string
	tree := late.machine.tree
	right := func(name string) []byte {
		data, err := good.machine.tree.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		return data
	}
	for name, c := range map[string]struct {
		answer  func(s mesh.Stream, name string)
		foreign bool // and known to be of another log
	}{
		"one bit":   {func(s mesh.Stream, n string) { d := bytes.Clone(right(n)); d[len(d)/2] ^= 1; _ = writeFrame(s, d) }, true},
		"truncated": {func(s mesh.Stream, n string) { d := right(n); _ = writeFrame(s, d[:len(d)-1]) }, true},
		"longer":    {func(s mesh.Stream, n string) { _ = writeFrame(s, append(bytes.Clone(right(n)), 0)) }, true},
		"empty":     {func(s mesh.Stream, _ string) { _ = writeFrame(s, nil) }, true},
		"zeros":     {func(s mesh.Stream, n string) { _ = writeFrame(s, make([]byte, len(right(n)))) }, true},
		"nothing":   {func(mesh.Stream, string) {}, false},
		"a cut frame": {func(s mesh.Stream, n string) {
			_, _ = s.Write(binary.BigEndian.AppendUint32(nil, uint32(len(right(n)))))
		}, false},
		"too large": {func(s mesh.Stream, _ string) { _, _ = s.Write(binary.BigEndian.AppendUint32(nil, maxTile+1)) }, false},
		"a reset":   {func(s mesh.Stream, _ string) { _ = s.Reset() }, false},
	} {
		t.Run(name, func(t *testing.T) {
			serveTiles(liar, c.answer)
			missing = tree.Missing()
			err := late.fillFrom(t.Context(), link, missing)
			if err == nil || errors.Is(err, transparency.ErrForeignTile) != c.foreign {
				t.Errorf("got %v", err)
			}
			if tree.Missing() != missing {
				t.Errorf("%s was taken", missing)
			}
			if _, err := tree.ReadFile(missing); err == nil {
				t.Errorf("%s was stored", missing)
			}
		})
	}
	// A right tile under another name, and one that was not asked for.
	serveTiles(liar, func(s mesh.Stream, n string) { _ = writeFrame(s, right(strings.Replace(n, "000", "001", 1))) })
	for tree.Missing() != "" && !strings.HasSuffix(tree.Missing(), "000") {
		if err := late.machine.fill(tree.Missing(), right(tree.Missing())); err != nil {
			t.Fatal(err)
		}
	}
	if err := late.fillFrom(t.Context(), link, tree.Missing()); !errors.Is(err, transparency.ErrForeignTile) {
		t.Errorf("another tile of the same log: %v", err)
	}
}

// A peer that trickles a byte now and then, without an end, costs no more than its time, and the
// log comes from the others meanwhile.
func TestSlowAndEndlessTilePeers(t *testing.T) {
	c, late := hollow(t)
	slow, endless, good := c.nodes[1], c.nodes[2], c.nodes[0]
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	trickle := serveTiles(slow, func(s mesh.Stream, _ string) {
		_, _ = s.Write(binary.BigEndian.AppendUint32(nil, maxTile))
		_, _ = s.Write([]byte{1})
		select {
		case <-stop:
		case <-late.ctx.Done():
		}
	})
	flood := serveTiles(endless, func(s mesh.Stream, _ string) {
		for {
			if _, err := s.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	// Given up when its time is over.
	ctx, cancel := context.WithTimeout(t.Context(), tileWithin/20)
	defer cancel()
	if err := late.fillFrom(ctx, dial(t, late, slow), late.machine.tree.Missing()); err == nil {
		t.Error("a slow tile was taken")
	}
	if err := late.fillFrom(t.Context(), dial(t, late, endless), late.machine.tree.Missing()); err == nil {
		t.Error("an endless tile was taken")
	}
	dial(t, late, good)
	late.tasks.Go(func() { late.runTiles(late.ctx) })
	await(t, "all tiles come from who gives them", func() bool { return late.machine.tree.Missing() == "" })
	if a, b := trickle.Load(), flood.Load(); a == 0 || a > 2 || b == 0 || b > 2 { // once more at most, before the good one was found
		t.Errorf("they were asked %d and %d times", a, b)
	}
	for i := range late.machine.tree.Size() {
		mine, err := late.machine.tree.Leaf(i)
		theirs, err2 := good.machine.tree.Leaf(i)
		if err != nil || err2 != nil || !bytes.Equal(mine, theirs) {
			t.Fatalf("leaf %d: %v %v", i, err, err2)
		}
	}
}
