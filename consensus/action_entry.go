package consensus

import (
	"fmt"

	"github.com/attestmesh/meshnode/attest"
)

// AddEntry allows one more entry.
type AddEntry struct {
	Entry
	// Readmit is demanded where the measurement was revoked before.
	Readmit bool `json:"readmit,omitempty"`
}

func (a *AddEntry) check() error { return a.Entry.check() }
func (*AddEntry) class() Class   { return ClassWiden }
func (*AddEntry) since() int     { return 1 }

func (a *AddEntry) describe() string {
	if a.Readmit {
		return "+ allow again, though revoked: " + a.Describe()
	}
	return "+ allow " + a.Describe()
}

func (a *AddEntry) apply(next *PolicyState, claim string) error {
	e := a.Entry
	if _, ok := next.entries[e.ID]; ok && (!a.Readmit || next.platforms.ends[e.ID].IsZero()) {
		return refuse(attest.CodeReplayed, claim, "entry "+e.ID+" is allowed already", "a new entry")
	}
	if err := next.genesis.admitsEntry(&e); err != nil {
		return err
	}
	for _, id := range e.Supersedes {
		if _, ok := next.entries[id]; !ok && next.revoked[id].ID == "" {
			return refuse(attest.CodeUnknownEntry, claim+" supersedes", id, "an entry that is or was allowed")
		}
	}
	for id, r := range next.revoked {
		if r.Measurement != e.Measurement {
			continue
		}
		if !a.Readmit {
			return refuse(attest.CodeRevoked, claim, "measurement "+e.Measurement+" was revoked", "readmit: true, if it is meant")
		}
		delete(next.revoked, id)
	}
	next.entries[e.ID] = e
	next.unend(e.ID)
	if e.SupersedeAt.IsZero() {
		return nil
	}
	for _, id := range e.Supersedes {
		next.endAt(id, e.SupersedeAt)
	}
	return nil
}

// RemoveEntry revokes one entry by id, or all entries of one measurement. Exactly one
// field is set. The target is absolute: what it names must have been allowed at some
// time, and after it is not, in whatever order removals come.
type RemoveEntry struct {
	ID          string `json:"id,omitempty"`
	Measurement string `json:"measurement,omitempty"`
}

func (*RemoveEntry) class() Class { return ClassNarrow }
func (*RemoveEntry) since() int   { return 1 }

func (r *RemoveEntry) check() error {
	switch {
	case r.ID != "" && r.Measurement == "":
		return checkHex("remove_entry id", r.ID, 8)
	case r.Measurement != "" && r.ID == "":
		return checkHex("remove_entry measurement", r.Measurement, 32, 48, 64)
	}
	return fmt.Errorf("remove_entry: want exactly one of id and measurement")
}

func (r *RemoveEntry) describe() string {
	if r.ID != "" {
		return "- revoke entry " + r.ID
	}
	return "- revoke every entry with measurement " + r.Measurement
}

// names reports whether r targets e.
func (r *RemoveEntry) names(e *Entry) bool {
	return r.ID != "" && e.ID == r.ID || r.Measurement != "" && e.Measurement == r.Measurement
}

func (r *RemoveEntry) apply(next *PolicyState, claim string) error {
	known := false
	for _, e := range next.revoked {
		known = known || r.names(&e)
	}
	for id, e := range next.entries {
		if r.names(&e) {
			known = true
			next.revoked[id] = e
			delete(next.entries, id)
			next.unend(id)
		}
	}
	if !known {
		return refuse(attest.CodeUnknownEntry, claim, r.ID+r.Measurement, "an entry that is or was allowed")
	}
	return nil
}

// classifyEntries says whether after is provably a subset of before.
func classifyEntries(before, after map[string]Entry) Class {
	for id := range after {
		if _, ok := before[id]; !ok {
			return ClassWiden
		}
	}
	return ClassNarrow
}
