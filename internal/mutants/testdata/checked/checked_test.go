package checked

import "testing"

func TestNegative(t *testing.T) {
	if check(-1) == nil {
		t.Error("-1 passed")
	}
}

func TestLarge(*testing.T) { _ = check(21) }
