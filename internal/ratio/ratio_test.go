package ratio

import (
	"testing"
	"time"
)

func TestOf(t *testing.T) {
	var order string
	side := func(name string, d time.Duration) func() time.Duration {
		return func() time.Duration { order += name; return d }
	}
	if got := Of(3, side("a", 3*time.Second), side("b", 2*time.Second)); got != 1.5 || order != "ababbaab" {
		t.Errorf("got %v in the order %s", got, order)
	}
	// One round that met something else does not count.
	values := []time.Duration{4, 4, 100, 4}
	next := func() time.Duration { v := values[0]; values = values[1:]; return v }
	if got := Of(3, next, side("b", 2)); got != 2 {
		t.Errorf("got %v, want 2", got)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 3}} {
		if got := Median(c.in); got != c.want {
			t.Errorf("%v: got %v, want %v", c.in, got, c.want)
		}
	}
}

func TestCPUCountsOtherGoroutines(t *testing.T) {
	spin := func() {
		start := used()
		for used()-start < 5*time.Millisecond {
		}
	}
	if got := CPU(2, func() { done := make(chan struct{}); go func() { spin(); close(done) }(); <-done })(); got < 10*time.Millisecond {
		t.Errorf("got %s, want at least what two goroutines spun", got)
	}
	calls := 0
	Wall(3, func() { calls++ })()
	if calls != 3 {
		t.Errorf("%d calls, want 3", calls)
	}
}
