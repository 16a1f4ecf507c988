package simulations

import (
	"strings"
	"testing"
)

func TestLoggedErrorsCount(t *testing.T) {
	var w watch
	log := w.logger("alpha/n1", nil).With("task", "test").WithGroup("g")
	log.Warn("may happen")
	if err := w.err(); err != nil {
		t.Errorf("a warning counts: %v", err)
	}
	log.Error("panic serving", "who", "x")
	if err := w.err(); err == nil || !strings.Contains(err.Error(), "alpha/n1: panic serving who=x") {
		t.Errorf("got %v", err)
	}
}
