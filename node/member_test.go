package node

import (
	"testing"
	"time"
)

func TestPatience(t *testing.T) {
	var p patience
	within := func(lived, pause time.Duration) {
		t.Helper()
		if got := p.next(lived); got < pause/2 || got >= pause+pause/2 {
			t.Errorf("waits %s, want about %s", got, pause)
		}
	}
	within(0, dialFirst)
	within(0, 2*dialFirst)
	within(dialSlowest-1, 4*dialFirst) // a link that did not last is no better than none
	for range 10 {
		p.next(0)
	}
	within(0, dialSlowest)
	if got := p.next(dialSlowest); got != 0 {
		t.Errorf("waits %s after a link that lasted", got)
	}
	within(0, dialFirst)
}
