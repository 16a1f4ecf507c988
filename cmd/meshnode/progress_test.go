package main

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	var p pace
	begin := time.Unix(1000, 0)
	for _, c := range []struct {
		after      time.Duration
		done, size uint64
		want       string
	}{
		{0, 500, 10_000, ""}, // what was there before is no pace
		{900 * time.Millisecond, 700, 10_000, ""},
		{2 * time.Second, 1500, 10_000, ", 500/s, 17s left"},
		{4 * time.Second, 500, 10_000, ""},
		{10 * time.Second, 10_500, 10_500, ", 1000/s, 0s left"},
		{20 * time.Second, 20_500, 10_500, ""},
	} {
		if got := p.at(begin.Add(c.after), c.done, c.size); got != c.want {
			t.Errorf("after %s: %q, want %q", c.after, got, c.want)
		}
	}
}
