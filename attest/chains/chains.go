// Package chains remembers certificate chains that a verifier has already traced to its
// root, so that the next report under the same chain costs its own signature only.
//
// A chain is remembered under the digest of the exact bytes that were verified, with the
// span of time in which every certificate of it is valid, and is recalled only for a time
// within that span: whether a signature holds does not change, whether a certificate has
// expired does. What is recalled is thus what a new verification would say. Failures are
// not remembered; they cost their full price each time.
//
// A Memory belongs to one verifier with fixed roots. It holds a fixed number of chains and
// drops the one that was not asked for longest. Only what chains to a vendor's root takes
// a place, and losing one costs time, nothing else.
package chains

import (
	"crypto/x509"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Key is a digest of everything that the verification of a chain read, besides the roots
// and the time.
type Key [32]byte

// Span is a time with both ends included. The zero Span holds no time: the zero time,
// which to others means the clock, is in none.
type Span struct{ From, To time.Time }

// Holds reports whether at is within s.
func (s Span) Holds(at time.Time) bool {
	return !at.IsZero() && !at.Before(s.From) && !at.After(s.To)
}

// And returns the time within both spans.
func (s Span) And(t Span) Span {
	if t.From.After(s.From) {
		s.From = t.From
	}
	if t.To.Before(s.To) {
		s.To = t.To
	}
	return s
}

// Validity returns the time in which all certificates are valid: none for none.
func Validity(certs ...*x509.Certificate) (s Span) {
	for i, c := range certs {
		t := Span{c.NotBefore, c.NotAfter}
		if i == 0 {
			s = t
		}
		s = s.And(t)
	}
	return s
}

// Memory is safe for concurrent use. A nil Memory remembers nothing.
type Memory[V any] struct {
	cache *lru.Cache[Key, entry[V]]
}

type entry[V any] struct {
	span  Span
	value V
}

// New returns a memory of at most size chains. It panics unless size is positive.
func New[V any](size int) *Memory[V] {
	cache, err := lru.New[Key, entry[V]](size)
	if err != nil {
		panic(err)
	}
	return &Memory[V]{cache}
}

// Keep remembers v, the outcome of a verification that succeeded, for times within span.
func (m *Memory[V]) Keep(k Key, span Span, v V) {
	if m != nil {
		m.cache.Add(k, entry[V]{span, v})
	}
}

// Recall returns what was kept under k, if at is within its span.
func (m *Memory[V]) Recall(k Key, at time.Time) (v V, ok bool) {
	if m == nil {
		return v, false
	}
	e, _ := m.cache.Get(k) // without one it is zero, which holds at no time
	if !e.span.Holds(at) {
		return v, false
	}
	return e.value, true
}

// Len returns how many chains are remembered.
func (m *Memory[V]) Len() int {
	if m == nil {
		return 0
	}
	return m.cache.Len()
}
