package consensus

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// platforms is the part of the policy that is about hardware, and when entries end that others
// supersede. Its members are never changed in place: clones share them.
type platforms struct {
	ends     map[string]time.Time // by entry in force
	floors   []attest.Floor       // none of which covers another, in the order of their keys
	denied   map[string]attest.Product
	hardware map[HardwareScope]attest.HardwareList
}

// HardwareScope is whose nodes a list of chips binds: those of an organisation, or those that
// run what an entry allows. Exactly one field is set.
type HardwareScope struct {
	Organisation identity.OrgID `json:"organisation,omitempty" yaml:"organisation"`
	Entry        string         `json:"entry,omitempty" yaml:"entry"`
}

// String names the scope for people.
func (h HardwareScope) String() string {
	if h.Entry != "" {
		return "entry " + h.Entry
	}
	return "organisation " + string(h.Organisation)
}

func (h HardwareScope) check() error {
	switch {
	case h.Organisation != "" && h.Entry == "":
		return h.Organisation.Validate()
	case h.Entry != "" && h.Organisation == "":
		return checkHex("entry", h.Entry, 8)
	}
	return fmt.Errorf("want exactly one of organisation and entry")
}

// known demands that the scope is of this mesh; of an entry it is enough that it was allowed
// once, and of an organisation that it was one, so that lists and removals commute.
func (h HardwareScope) known(s *PolicyState, claim string) error {
	if h.Entry != "" {
		if _, ok := s.entries[h.Entry]; !ok && s.revoked[h.Entry].ID == "" {
			return refuse(attest.CodeUnknownEntry, claim, h.Entry, "an entry that is or was allowed")
		}
		return nil
	}
	if !s.knows(h.Organisation) {
		return refuse(attest.CodeWrongOrganisation, claim, string(h.Organisation), "an organisation that is or was of this mesh")
	}
	return nil
}

func compareScopes(a, b HardwareScope) int { return strings.Compare(a.String(), b.String()) }

// floorKey is the JSON of a floor, which is another one for every other floor.
func floorKey(f attest.Floor) string {
	raw, err := json.Marshal(f)
	if err != nil {
		return "" // integers, strings and times in range cannot fail to encode
	}
	return string(raw)
}

func sortFloors(floors []attest.Floor) {
	slices.SortFunc(floors, func(a, b attest.Floor) int { return strings.Compare(floorKey(a), floorKey(b)) })
}

// end returns when e ceases to be in force, zero for never: its own not_after, or the time at
// which an entry that supersedes it ends it.
func (s *PolicyState) end(e *Entry) time.Time {
	end, superseded := s.platforms.ends[e.ID]
	if !superseded || !e.NotAfter.IsZero() && e.NotAfter.Before(end) {
		return e.NotAfter
	}
	return end
}

// inForce reports whether now is within the validity that e has under s. An unknown time
// counts as within: until the first tick nothing expires.
func (s *PolicyState) inForce(e *Entry, now time.Time) bool {
	if now.IsZero() {
		return true
	}
	end := s.end(e)
	return (e.NotBefore.IsZero() || !now.Before(e.NotBefore)) && (end.IsZero() || now.Before(end))
}

// endAt ends an entry that is in force at a time, or earlier if that is settled already.
func (s *PolicyState) endAt(id string, at time.Time) {
	if _, ok := s.entries[id]; !ok {
		return
	}
	if old, ok := s.platforms.ends[id]; ok && !at.Before(old) {
		return
	}
	s.platforms.ends = with(s.platforms.ends, id, at)
}

// unend forgets when an entry ends.
func (s *PolicyState) unend(id string) {
	if _, ok := s.platforms.ends[id]; ok {
		s.platforms.ends = without(s.platforms.ends, id)
	}
}

// with returns m and one more.
func with[K comparable, V any](m map[K]V, k K, v V) map[K]V {
	out := maps.Clone(m)
	if out == nil {
		out = map[K]V{}
	}
	out[k] = v
	return out
}

// without returns m but for k.
func without[K comparable, V any](m map[K]V, k K) map[K]V {
	out := maps.Clone(m)
	delete(out, k)
	return out
}

// classifyPlatforms says whether hardware that after accepts was accepted before, and no entry
// lasts longer, whatever is attested and whenever.
func classifyPlatforms(before, after *PolicyState) Class {
	b, a := &before.platforms, &after.platforms
	for id, end := range b.ends {
		if _, allowed := after.entries[id]; !allowed {
			continue
		}
		if later, ok := a.ends[id]; !ok || later.After(end) {
			return ClassWiden
		}
	}
	for _, f := range b.floors {
		if !attest.Covered(a.floors, f) {
			return ClassWiden
		}
	}
	for key := range b.denied {
		if _, ok := a.denied[key]; !ok {
			return ClassWiden
		}
	}
	for scope, list := range b.hardware {
		if next, ok := a.hardware[scope]; !ok || !admitsLess(next, list) {
			return ClassWiden
		}
	}
	return ClassNarrow
}

// admitsLess reports whether every chip that a admits is admitted by b.
func admitsLess(a, b attest.HardwareList) bool {
	if a.Any {
		for c := range b.Removed {
			if _, ok := a.Removed[c]; !ok {
				return false
			}
		}
		return b.Any
	}
	for c := range a.Listed {
		if a.Admits(c) && !b.Admits(c) {
			return false
		}
	}
	return true
}

// platformChanges returns those changes of a that are about hardware.
func (a Action) platformChanges() (set []action) {
	if a.RaiseFloor != nil {
		set = append(set, a.RaiseFloor)
	}
	if a.DenyProduct != nil {
		set = append(set, a.DenyProduct)
	}
	if a.AllowProduct != nil {
		set = append(set, a.AllowProduct)
	}
	if a.LimitHardware != nil {
		set = append(set, a.LimitHardware)
	}
	if a.AddHardware != nil {
		set = append(set, a.AddHardware)
	}
	if a.RemoveHardware != nil {
		set = append(set, a.RemoveHardware)
	}
	if a.UnlimitHardware != nil {
		set = append(set, a.UnlimitHardware)
	}
	return set
}

// checkRoom enforces the limits on what is demanded of platforms.
func (p *platforms) checkRoom() error {
	chips := 0
	for _, l := range p.hardware {
		chips = max(chips, len(l.Listed), len(l.Removed))
	}
	if len(p.floors) > MaxFloors || len(p.denied) > MaxDenied || len(p.hardware) > MaxHardware || chips > MaxChips {
		return refuse(attest.CodeLimit, "platforms", fmt.Sprintf("%d floors, %d denied products, %d lists with up to %d chips", len(p.floors), len(p.denied), len(p.hardware), chips),
			fmt.Sprintf("at most %d, %d, %d and %d", MaxFloors, MaxDenied, MaxHardware, MaxChips))
	}
	return nil
}

// demand adds to an appraisal policy for nodes of org what s demands of their hardware.
func (s *PolicyState) demand(p *attest.Policy, org identity.OrgID) {
	p.Platforms.Floors = slices.Clone(s.platforms.floors)
	for _, key := range slices.Sorted(maps.Keys(s.platforms.denied)) {
		p.Platforms.Denied = append(p.Platforms.Denied, s.platforms.denied[key])
	}
	if l, ok := s.platforms.hardware[HardwareScope{Organisation: org}]; ok {
		p.Platforms.Hardware = append(p.Platforms.Hardware, l)
	}
}

// reference is that of an entry, with what the policy adds to it.
func (s *PolicyState) reference(e *Entry) attest.Reference {
	r := e.reference()
	if end := s.end(e); !end.IsZero() {
		r.NotAfter = end.Add(-time.Nanosecond) // a reference's is the last moment, an end the first after it
	}
	if l, ok := s.platforms.hardware[HardwareScope{Entry: e.ID}]; ok {
		r.Platform.Hardware = &l
	}
	return r
}

// demandsPlatform reports whether e admits less hardware than the policy does.
func (s *PolicyState) demandsPlatform(e *Entry) bool {
	_, listed := s.platforms.hardware[HardwareScope{Entry: e.ID}]
	return listed || len(e.MinimumTCB) > 0 || e.TDX != nil
}

// platformKnown reports whether the hardware of a node that matched one entry is known to be
// good enough for e. Whether its chip is on a list of e is not: a list of the other entry may be
// newer than the match.
func (s *PolicyState) platformKnown(e, matched *Entry) bool {
	_, listed := s.platforms.hardware[HardwareScope{Entry: e.ID}]
	return !listed && matched.coversPlatform(e)
}

// Floors returns the least TCBs, in the order of their JSON.
func (s *PolicyState) Floors() []attest.Floor { return slices.Clone(s.platforms.floors) }

// Denied returns the products that are refused, in the order of their names.
func (s *PolicyState) Denied() []attest.Product {
	var out []attest.Product
	for _, key := range slices.Sorted(maps.Keys(s.platforms.denied)) {
		out = append(out, s.platforms.denied[key])
	}
	return out
}

// HardwareList is the list of chips of one scope, by their commitments in order.
type HardwareList struct {
	HardwareScope
	// Any says that all chips count but those removed.
	Any     bool     `json:"any,omitempty"`
	Listed  []string `json:"listed"`
	Removed []string `json:"removed"`
}

// HardwareLists returns the lists of chips, in the order of their scopes.
func (s *PolicyState) HardwareLists() []HardwareList {
	out := []HardwareList{}
	for _, scope := range slices.SortedFunc(maps.Keys(s.platforms.hardware), compareScopes) {
		l := s.platforms.hardware[scope]
		out = append(out, HardwareList{scope, l.Any, sortedSet(l.Listed), sortedSet(l.Removed)})
	}
	return out
}

func sortedSet(m map[string]struct{}) []string {
	return slices.AppendSeq([]string{}, slices.Values(slices.Sorted(maps.Keys(m))))
}

// Ends returns when an entry in force ends: its not_after or, before that, the time at which an
// entry that supersedes it ends it. Zero is never.
func (s *PolicyState) Ends(id string) time.Time {
	e, ok := s.entries[id]
	if !ok {
		return time.Time{}
	}
	return s.end(&e)
}

// LastEnd returns when the last of the entries for a measurement ends; zero if one never does, or
// there is none.
func (s *PolicyState) LastEnd(kind, measurement string) time.Time {
	var last time.Time
	for _, e := range s.entries {
		if e.Kind != kind || e.Measurement != measurement {
			continue
		}
		end := s.end(&e)
		if end.IsZero() {
			return time.Time{}
		}
		if end.After(last) {
			last = end
		}
	}
	return last
}

// EntryEnds returns when the allowed entries end that do, by id.
func (s *PolicyState) EntryEnds() map[string]time.Time {
	out := map[string]time.Time{}
	for id, e := range s.entries {
		if at := s.end(&e); !at.IsZero() {
			out[id] = at
		}
	}
	return out
}

type endImage struct {
	_     struct{} `cbor:",toarray"`
	Entry string
	At    int64 // Unix ms
}

type hardwareImage struct {
	_       struct{} `cbor:",toarray"`
	Scope   string
	Any     bool
	Listed  []string
	Removed []string
}

type platformsImage struct {
	_        struct{} `cbor:",toarray"`
	Ends     []endImage
	Floors   []string
	Denied   []string
	Hardware []hardwareImage
}

func (p *platforms) image() platformsImage {
	im := platformsImage{Ends: []endImage{}, Floors: []string{}, Denied: []string{}, Hardware: []hardwareImage{}}
	for _, id := range slices.Sorted(maps.Keys(p.ends)) {
		im.Ends = append(im.Ends, endImage{Entry: id, At: p.ends[id].UnixMilli()})
	}
	for _, f := range p.floors {
		im.Floors = append(im.Floors, floorKey(f))
	}
	im.Denied = append(im.Denied, slices.Sorted(maps.Keys(p.denied))...)
	for _, scope := range slices.SortedFunc(maps.Keys(p.hardware), compareScopes) {
		l := p.hardware[scope]
		im.Hardware = append(im.Hardware, hardwareImage{Scope: scope.String(), Any: l.Any, Listed: sortedSet(l.Listed), Removed: sortedSet(l.Removed)})
	}
	return im
}
