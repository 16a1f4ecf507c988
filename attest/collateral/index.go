package collateral

import (
	"cmp"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

// Index is a set of entries, in the order of their names and then in that in which they
// were issued. It is a value and not changed once made.
type Index struct{ entries []Entry }

// NewIndex makes an index of entries, in any order; of two of the same object it keeps one.
func NewIndex(entries ...Entry) Index {
	out := slices.Clone(entries)
	slices.SortFunc(out, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.Issued.Compare(b.Issued), cmp.Compare(a.Evaluation, b.Evaluation), cmp.Compare(a.Digest, b.Digest))
	})
	return Index{slices.CompactFunc(out, func(a, b Entry) bool { return a.Digest == b.Digest && a.Type == b.Type })}
}

// IndexOf makes an index of those items that are collateral.
func IndexOf(items []attest.Item) Index {
	var entries []Entry
	for _, item := range items {
		if e, err := Read(item); err == nil {
			entries = append(entries, e)
		}
	}
	return NewIndex(entries...)
}

// Entries returns all entries.
func (x Index) Entries() []Entry { return slices.Clone(x.entries) }

// named returns the entries of a name.
func (x Index) named(name string) []Entry {
	from, _ := slices.BinarySearchFunc(x.entries, name, func(e Entry, name string) int { return cmp.Compare(e.Name, name) })
	to := from
	for to < len(x.entries) && x.entries[to].Name == name {
		to++
	}
	return x.entries[from:to]
}

// Current returns the entry of a name that counts at a time, which may have expired by then;
// see the package comment. ok is false where none was issued by then.
func (x Index) Current(name string, at time.Time) (best Entry, ok bool) {
	for _, e := range x.named(name) {
		if !e.Issued.After(at) && (!ok || !older(e, best)) {
			best, ok = e, true
		}
	}
	return best, ok
}

// older reports whether b takes precedence over a.
func older(a, b Entry) bool {
	return cmp.Or(cmp.Compare(a.Evaluation, b.Evaluation), a.Issued.Compare(b.Issued)) < 0
}

// States of an entry at a time.
const (
	StateCurrent     = "current"
	StateExpired     = "expired"       // and nothing newer counts
	StateSuperseded  = "superseded"    // another one counts
	StateNotYetValid = "not_yet_valid" // it was issued later
)

// State says what an entry of x is worth at a time.
func (x Index) State(e Entry, at time.Time) string {
	if e.Issued.After(at) {
		return StateNotYetValid
	}
	if best, ok := x.Current(e.Name, at); ok && best.Digest != e.Digest {
		// Several signing chains may be in use at once: each signs documents of its days.
		if e.Type != attest.TypeTDXTCBChain || !e.Holds(at) {
			return StateSuperseded
		}
	}
	if !e.Holds(at) {
		return StateExpired
	}
	return StateCurrent
}
