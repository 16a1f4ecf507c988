package chains

import (
	"crypto/x509"
	"encoding/binary"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func cert(from, to time.Duration) *x509.Certificate {
	return &x509.Certificate{NotBefore: noon.Add(from), NotAfter: noon.Add(to)}
}

func TestValidity(t *testing.T) {
	for name, c := range map[string]struct {
		certs []*x509.Certificate
		at    time.Duration
		want  bool
	}{
		"none":               {nil, 0, false},
		"one":                {[]*x509.Certificate{cert(-2, 2)}, 0, true},
		"first instant":      {[]*x509.Certificate{cert(-2, 2), cert(-1, 3)}, -1, true},
		"last instant":       {[]*x509.Certificate{cert(-2, 2), cert(-1, 3)}, 2, true},
		"before the latest":  {[]*x509.Certificate{cert(-2, 2), cert(-1, 3)}, -2, false},
		"after the earliest": {[]*x509.Certificate{cert(-1, 3), cert(-2, 2)}, 3, false},
		"never together":     {[]*x509.Certificate{cert(-2, -1), cert(1, 2)}, 0, false},
		"without dates":      {[]*x509.Certificate{{}}, 0, false},
		"one without dates":  {[]*x509.Certificate{cert(-1, 1), {}}, 0, false},
	} {
		if got := Validity(c.certs...).Holds(noon.Add(c.at)); got != c.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
	if (Span{}).Holds(time.Time{}) || (Span{}).And(Validity(cert(-1, 1))).Holds(noon) {
		t.Error("the zero span has an instant")
	}
}

func key(i int) (k Key) {
	binary.BigEndian.PutUint64(k[:], uint64(i))
	return k
}

func TestMemory(t *testing.T) {
	m := New[string](2)
	m.Keep(key(1), Validity(cert(-1, 1)), "one")
	if v, ok := m.Recall(key(1), noon); !ok || v != "one" {
		t.Errorf("got %q, %v", v, ok)
	}
	if v, ok := m.Recall(key(1), noon.Add(2)); ok || v != "" {
		t.Errorf("outside its span: got %q, %v", v, ok)
	}
	if _, ok := m.Recall(key(2), noon); ok {
		t.Error("recalled what was never kept")
	}
	m.Keep(key(2), Span{}, "without a span")
	if _, ok := m.Recall(key(2), noon); ok {
		t.Error("recalled what is never valid")
	}
	m.Recall(key(1), noon)
	m.Keep(key(3), Validity(cert(-1, 1)), "three")
	if _, ok := m.Recall(key(1), noon); !ok || m.Len() != 2 {
		t.Errorf("what was asked for last is gone; %d remembered", m.Len())
	}
	var none *Memory[string]
	none.Keep(key(1), Validity(cert(-1, 1)), "one")
	if _, ok := none.Recall(key(1), noon); ok || none.Len() != 0 {
		t.Error("no memory remembers")
	}
}

func TestMemoryIsBoundedAndConcurrent(t *testing.T) {
	m := New[int](8)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 1000 {
				m.Keep(key(g*1000+i), Validity(cert(-1, 1)), i)
				if v, ok := m.Recall(key(g*1000+i), noon); ok && v != i {
					t.Errorf("key %d holds %d", g*1000+i, v)
				}
			}
		})
	}
	wg.Wait()
	if m.Len() != 8 {
		t.Errorf("%d remembered, want 8", m.Len())
	}
}
