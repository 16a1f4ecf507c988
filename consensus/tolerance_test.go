package consensus

import (
	"strings"
	"testing"
)

func TestSeatWarning(t *testing.T) {
	for n, want := range map[int]struct {
		tolerance int
		text      string
	}{0: {0, "no fault tolerance"}, 1: {0, "no fault tolerance"}, 2: {0, "no fault tolerance"}, 3: {1, ""}, 4: {1, "no more failures than 3: 1"},
		5: {2, ""}, 6: {2, "no more failures than 5: 2"}, 7: {3, ""}} {
		if got := Tolerance(n); got != want.tolerance {
			t.Errorf("%d seats bear %d failures, want %d", n, got, want.tolerance)
		}
		if got := SeatWarning(n); want.text == "" && got != "" || !strings.Contains(got, want.text) {
			t.Errorf("%d seats: %q, want %q", n, got, want.text)
		}
	}
}
