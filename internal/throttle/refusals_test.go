package throttle

import (
	"testing"
	"time"
)

func TestRefusals(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r := &Refusals{Rate: 2, Burst: 10}
	for i := range 10 {
		if w := r.Wait("a", now); w != 0 {
			t.Fatalf("refusal %d: wait %s", i, w)
		}
		r.Note("a", 1, now)
	}
	if w := r.Wait("a", now); w <= 0 {
		t.Error("who owes all of it may come")
	}
	r.Note("a", 4, now)
	if w := r.Wait("a", now); w != 2*time.Second {
		t.Errorf("wait %s, want 2 s", w)
	}
	if w := r.Wait("b", now); w != 0 {
		t.Errorf("another waits %s", w)
	}
	if w := r.Wait("a", now.Add(-time.Hour)); w != 2*time.Second {
		t.Errorf("after the clock went back: %s", w)
	}
	if w := r.Wait("a", now.Add(2500*time.Millisecond)); w != 0 {
		t.Errorf("later: %s", w)
	}
	if w := new(Refusals).Wait("a", now); w <= 0 {
		t.Error("the zero value lets somebody in")
	}
}
