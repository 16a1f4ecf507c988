package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

// publishedLeaves reads the log that package audit keeps as a golden vector: a real mesh's
// genesis, Bootstrap and what followed.
func publishedLeaves(t testing.TB) [][]byte {
	t.Helper()
	r, err := transparency.OpenReader("../audit/testdata/published/log")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	note, err := r.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := transparency.ParseCheckpoint(note)
	if err != nil {
		t.Fatal(err)
	}
	var leaves [][]byte
	if _, err := r.Walk(context.Background(), c, transparency.WalkOptions{Leaf: func(_ uint64, leaf []byte) error {
		leaves = append(leaves, bytes.Clone(leaf))
		return nil
	}}); err != nil {
		t.Fatal(err)
	}
	return leaves
}

func testMachine(t testing.TB) (*Machine, []byte) {
	t.Helper()
	leaves := publishedLeaves(t)
	g, err := consensus.ParseGenesis(leaves[0])
	if err != nil {
		t.Fatal(err)
	}
	c, err := consensus.NewCommand(consensus.KindBootstrap, leaves[0], leaves[1])
	if err != nil {
		t.Fatal(err)
	}
	raw, err := consensus.EncodeCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := transparency.NewTree(nil)
	if err != nil {
		t.Fatal(err)
	}
	return newMachine(g, tree, newNotifier(), time.Now), raw
}

func TestMachineOrdersBootstrapFirst(t *testing.T) {
	m, bootstrap := testMachine(t)
	changed := m.changed.wait()
	out := m.apply(bootstrap)
	if out.Err != nil || out.Reason != nil || out.Seq != 1 || out.First != 0 || out.Count != 2 || !m.Started() {
		t.Fatalf("got %+v, started %v", out, m.Started())
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was woken")
	}
	// Ordered twice, it is refused and leaves no leaf, but it is part of the history.
	if again := m.apply(bootstrap); again.Reason == nil || again.Count != 0 || again.Seq != 2 || m.tree.Size() != 2 {
		t.Errorf("a second Bootstrap: %+v", again)
	}
	if got, ok := m.Since(1, 10); !ok || len(got) != 1 || !bytes.Equal(got[0], bootstrap) {
		t.Errorf("history after the first: %d commands", len(got))
	}
	if got, ok := m.Since(2, 10); !ok || got != nil {
		t.Errorf("history after the last: %d commands", len(got))
	}
}

// A member hears every command from two seats; they must say the same.
func TestMachineFollows(t *testing.T) {
	m, bootstrap := testMachine(t)
	if err := m.follow(2, bootstrap); err == nil {
		t.Error("a gap was accepted")
	}
	for range 2 {
		if err := m.follow(1, bootstrap); err != nil {
			t.Fatal(err)
		}
	}
	if m.Seq() != 1 || m.tree.Size() != 2 {
		t.Errorf("seq %d, %d leaves", m.Seq(), m.tree.Size())
	}
	other := bytes.Clone(bootstrap)
	other[len(other)-1] ^= 1
	if err := m.follow(1, other); err == nil || !strings.Contains(err.Error(), "two histories") {
		t.Errorf("got %v", err)
	}
}

// A command that this release does not know must stop the machine: skipping a removal
// would fail open.
func TestMachineHalts(t *testing.T) {
	m, bootstrap := testMachine(t)
	if out := m.apply([]byte("from the future")); !errors.Is(out.Err, errHalted) {
		t.Fatalf("got %+v", out)
	}
	if out := m.apply(bootstrap); !errors.Is(out.Err, errHalted) || m.Started() {
		t.Errorf("a halted machine went on: %+v", out)
	}
	if !errors.Is(m.Halted(), errHalted) {
		t.Errorf("Halted: %v", m.Halted())
	}
}

// What Raft delivers after this node has followed others must be the same, command by command.
func TestMachineComparesRaftWithWhatItFollowed(t *testing.T) {
	m, bootstrap := testMachine(t)
	if err := m.follow(1, bootstrap); err != nil {
		t.Fatal(err)
	}
	if out := m.Apply(9, 1, bootstrap).(Applied); out.Seq != 1 || !errors.Is(out.Err, errFollowed) || m.Halted() != nil || m.Seq() != 1 {
		t.Fatalf("the same again: %+v, halted: %v", out, m.Halted())
	}
	tick, err := consensus.NewCommand(consensus.KindTick)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := consensus.EncodeCommand(tick)
	if err != nil {
		t.Fatal(err)
	}
	if out := m.Apply(10, 1, raw).(Applied); out.Seq != 2 || out.Err != nil {
		t.Fatalf("the next: %+v", out)
	}

	m, bootstrap = testMachine(t)
	if err := m.follow(1, bootstrap); err != nil {
		t.Fatal(err)
	}
	if out := m.Apply(9, 1, raw).(Applied); !errors.Is(out.Err, errHalted) || m.Halted() == nil || !strings.Contains(m.Halted().Error(), "two histories") {
		t.Fatalf("another: %+v, halted: %v", out, m.Halted())
	}
}

// A command of a newer release is refused before it is stored, and status says what to do (M16).
func TestNewerReleaseIsNamed(t *testing.T) {
	n := &Node{peers: newPeerBook(), outages: map[string]outage{}}
	m, _ := testMachine(t)
	n.machine = m
	peer := testSubject(t, 1).Peer
	err := m.Check([]byte{0x83, 0x01, 0x65, 'n', 'o', 'v', 'e', 'l', 0x41, 0x01})
	if !errors.Is(err, consensus.ErrUnknownCommand) {
		t.Fatalf("got %v", err)
	}
	n.noteNewer(peer, fmt.Errorf("refused: entry 7: %w", err))
	if got := n.outageWarnings(time.Now()); len(got) != 1 || !strings.Contains(got[0], "start a newer release") {
		t.Errorf("warnings %q", got)
	}
	n.newer.since = time.Now().Add(-2 * newerWithin)
	if got := n.outageWarnings(time.Now()); len(got) != 0 {
		t.Errorf("a minute later: %q", got)
	}
}

// The guard refuses a result whose signature is not the verifier's before it is stored.
func TestMachineChecksResultSignatures(t *testing.T) {
	m, _ := testMachine(t)
	for _, leaf := range publishedLeaves(t) {
		if _, err := consensus.ParseResult(leaf); err != nil {
			continue
		}
		good, err := command(consensus.KindResults, leaf)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Check(good); err != nil {
			t.Fatalf("a genuine result: %v", err)
		}
		sig := bytes.LastIndex(leaf, []byte(`"sig":"`)) + len(`"sig":"`)
		forged := bytes.Clone(leaf)
		forged[sig] ^= 3
		bad, err := command(consensus.KindResults, forged)
		if err == nil && m.Check(bad) == nil {
			t.Error("a forged signature passed the guard")
		}
		return
	}
	t.Fatal("the golden log holds no result")
}

// What has passed is remembered up to a bound, and nothing else passes by it.
func TestCheckedCommandsAreBounded(t *testing.T) {
	var c checked
	sum := func(i int) [32]byte { return [32]byte{byte(i), byte(i >> 8)} }
	for i := range 3 * maxChecked {
		c.add(sum(i), &consensus.Results{})
		c.add(sum(i), &consensus.Results{}) // twice takes one place
	}
	for i := range 3 * maxChecked {
		if c.has(sum(i)) != (i >= 2*maxChecked) {
			t.Fatalf("command %d is remembered: %t", i, c.has(sum(i)))
		}
	}
	if len(c.passed) != maxChecked || len(c.verified) != maxVerified {
		t.Errorf("%d are remembered, %d of them decoded", len(c.passed), len(c.verified))
	}
	raw := []byte("a command")
	c.add(sha256.Sum256(raw), &consensus.Results{})
	if c.take(raw) == nil || c.take(raw) != nil {
		t.Error("what was decoded is not given once")
	}
}

func command(kind consensus.Kind, envelopes ...[]byte) ([]byte, error) {
	c, err := consensus.NewCommand(kind, envelopes...)
	if err != nil {
		return nil, err
	}
	return consensus.EncodeCommand(c)
}

func TestNotifierWakesEverybodyOnce(t *testing.T) {
	n := newNotifier()
	first, second := n.wait(), n.wait()
	n.notify()
	for _, ch := range []<-chan struct{}{first, second} {
		select {
		case <-ch:
		default:
			t.Error("a waiter sleeps on")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	select {
	case <-n.wait():
		t.Error("woken without a change")
	case <-ctx.Done():
	}
}
