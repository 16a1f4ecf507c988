package exchange

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

func newTestPairs(t *testing.T) *Pairs {
	t.Helper()
	p, err := NewPairs(0)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What is remembered is bounded; the oldest goes first, and what has expired before it.
func TestPairsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTestPairs(t)
		for i := range MaxPairs + 10 {
			end := time.Now().Add(p.Window())
			p.store(identity.PeerID(fmt.Sprint(i)), &verdict{notAfter: end}, &ownKey{notAfter: end})
			time.Sleep(time.Millisecond)
		}
		if v, k := p.Len(); v != MaxPairs || k != MaxPairs {
			t.Errorf("%d verdicts, %d keys, want %d", v, k, MaxPairs)
		}
		if p.verdictAbout("9", scope{}) != nil || p.verdictAbout("10", scope{}) == nil {
			t.Error("not the oldest went")
		}
		time.Sleep(p.Window())
		if v, k := p.Len(); v != 0 || k != 0 {
			t.Errorf("%d verdicts and %d keys after the window", v, k)
		}
	})
}

// Two exchanges that overlap may end in any order: the younger evidence stays.
func TestPairsKeepTheYounger(t *testing.T) {
	p, now := newTestPairs(t), time.Now()
	younger, older := now.Add(2*time.Minute), now.Add(time.Minute)
	p.store("peer", &verdict{notAfter: younger}, nil)
	p.store("peer", &verdict{notAfter: older}, &ownKey{notAfter: older})
	if v := p.verdictAbout("peer", scope{}); v == nil || !v.notAfter.Equal(younger) {
		t.Errorf("got %+v", v)
	}
}

func TestPairsScopeAndHead(t *testing.T) {
	p, end := newTestPairs(t), time.Now().Add(time.Minute)
	here, there := scope{incarnation: 1}, scope{incarnation: 2}
	k := &ownKey{scope: here, key: PairKey{1}, head: [32]byte{7}, notAfter: end}
	held := func() bool { _, keys := p.Len(); return keys == 1 }
	for name, c := range map[string]struct {
		id   PairID
		head [32]byte
		in   scope
		got  bool
		kept bool
	}{
		"right":               {k.key.ID(), k.head, here, true, true},
		"another id":          {PairKey{2}.ID(), k.head, here, false, true},
		"no id":               {PairID{}, k.head, here, false, true},
		"another head":        {k.key.ID(), [32]byte{8}, here, false, false},
		"another incarnation": {k.key.ID(), k.head, there, false, false},
	} {
		p.store("peer", nil, k)
		if got := p.keyNamed("peer", c.id, c.head, c.in); (got != nil) != c.got || held() != c.kept {
			t.Errorf("%s: got %v, held %v", name, got != nil, held())
		}
	}
	p.store("peer", &verdict{scope: here, notAfter: end}, nil)
	if p.verdictAbout("peer", there) != nil || p.verdictAbout("peer", here) != nil {
		t.Error("a verdict outlived its incarnation")
	}
}

// The window is measured by the monotonic clock, which nobody can set.
func TestPairsClock(t *testing.T) {
	now := time.Now()
	if s := now.Add(DefaultWindow).String(); !strings.Contains(s, "m=") {
		t.Errorf("%s carries no monotonic reading", s)
	}
	// A wall clock set back by an hour would make an end without such a reading last longer.
	s := Session{NotAfter: now.Add(-time.Second)}
	if !s.Expired(now) || !(&Session{}).Expired(now) {
		t.Error("a past window is open")
	}
}

func TestWindowBounds(t *testing.T) {
	for w, ok := range map[time.Duration]bool{0: true, MinWindow: true, MaxWindow: true, MinWindow - 1: false, MaxWindow + 1: false, -1: false} {
		if _, err := NewPairs(w); (err == nil) != ok {
			t.Errorf("a window of %s: %v", w, err)
		}
	}
	var none *Pairs
	if none.Window() != DefaultWindow {
		t.Error("without a memory there is no window")
	}
	none.dropKey("peer")
	none.dropVerdict("peer")
}
