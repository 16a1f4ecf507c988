package simulations

import (
	"testing"
	"time"
)

func TestHistoryCheck(t *testing.T) {
	type op struct {
		from, to int
		access   access
		answer   answer
	}
	swap := func(from, to int, base uint64, a answer) op { return op{from, to, access{swap: true, base: base}, a} }
	read := func(from, to int, found uint64) op { return op{from, to, access{base: beyond}, answer{base: found}} }
	yes := answer{accepted: true}
	no := func(found uint64) answer { return answer{base: found} }
	for name, test := range map[string]struct {
		ops []op
		ok  bool
	}{
		"empty":                          {nil, true},
		"one after the other":            {[]op{swap(0, 1, 0, yes), read(2, 3, 1), swap(4, 5, 1, yes), read(6, 7, 2)}, true},
		"one of two at once":             {[]op{swap(0, 9, 0, yes), swap(1, 8, 0, no(1))}, true},
		"both of two on one base":        {[]op{swap(0, 9, 0, yes), swap(1, 8, 0, yes)}, false},
		"a lost swap":                    {[]op{swap(0, 1, 0, yes), read(2, 3, 0)}, false},
		"an old read":                    {[]op{swap(0, 1, 0, yes), swap(2, 3, 1, yes), read(4, 5, 1)}, false},
		"a read during a swap, either":   {[]op{swap(0, 9, 0, yes), read(1, 2, 0), read(3, 4, 1)}, true},
		"reads that go back":             {[]op{swap(0, 9, 0, yes), read(1, 2, 1), read(3, 4, 0)}, false},
		"refused on the right base":      {[]op{swap(0, 1, 0, no(0))}, false},
		"a base from nowhere":            {[]op{read(0, 1, 1)}, false},
		"no outcome, took effect":        {[]op{swap(0, 1, 0, answer{unknown: true}), read(2, 3, 1)}, true},
		"no outcome, later":              {[]op{swap(0, 1, 0, answer{unknown: true}), read(2, 3, 0), read(4, 5, 1)}, true},
		"no outcome, never":              {[]op{swap(0, 1, 0, answer{unknown: true}), read(2, 3, 0), swap(4, 5, 0, yes), read(6, 7, 1)}, true},
		"no outcome, twice":              {[]op{swap(0, 1, 0, answer{unknown: true}), read(2, 3, 2)}, false},
		"no outcome, before it was made": {[]op{read(0, 1, 1), swap(2, 3, 0, answer{unknown: true})}, false},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			h := newHistory(start)
			for i, o := range test.ops {
				h.add(i, o.access, o.answer, start.Add(time.Duration(o.from)), start.Add(time.Duration(o.to)))
			}
			if err := h.Check(); (err == nil) != test.ok {
				t.Errorf("got %v, want linearizable: %t", err, test.ok)
			}
		})
	}
}

func TestBaseIn(t *testing.T) {
	for _, test := range []struct {
		no   refusedError
		want uint64
		ok   bool
	}{
		{refusedError{"stale_base", "stale_base: proposal base: got 3, want 17"}, 17, true},
		{refusedError{"behind", "behind: proposal base: got 1099511627776, want at most 4"}, 4, true},
		{refusedError{"threshold", "threshold: proposal: got 2, want 4"}, 0, false},
		{refusedError{"stale_base", "stale_base"}, 0, false},
	} {
		if got, ok := baseIn(&test.no); got != test.want || ok != test.ok {
			t.Errorf("%s: got %d, %t", test.no.message, got, ok)
		}
	}
}
