package transparency

import (
	"cmp"
	"slices"
)

// Finding is one thing that is wrong with a log. Index is the first leaf concerned, or
// the log's size where the checkpoint as such is concerned.
type Finding struct {
	Index   uint64 `json:"index"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Codes of the Findings of a Walk.
const (
	CodeEntryMismatch    = "entry_mismatch"    // an entry is not the one whose hash the tree holds
	CodeEntriesMissing   = "entries_missing"   // an entry bundle is not there
	CodeEntriesMalformed = "entries_malformed" // an entry bundle holds too few or too many entries
	CodeTileMismatch     = "tile_mismatch"     // a tile holds another hash than the entries give
	CodeTileMissing      = "tile_missing"      // a tile is not there
	CodeTileMalformed    = "tile_malformed"    // a tile holds too few or too many hashes
	CodeRootMismatch     = "root_mismatch"     // neither entries nor tiles give the checkpoint's root
)

// findings collects Findings up to a limit and counts the rest.
type findings struct {
	list []Finding
	more int
}

func (f *findings) add(index uint64, code, message string) {
	if slices.Contains(f.list, Finding{index, code, message}) { // of a tile that was read again
		return
	}
	if len(f.list) >= maxFindings {
		f.more++
		return
	}
	f.list = append(f.list, Finding{index, code, message})
}

func (f *findings) merge(g findings) {
	for _, x := range g.list {
		f.add(x.Index, x.Code, x.Message)
	}
	f.more += g.more
}

func (f *findings) sorted() []Finding {
	SortFindings(f.list)
	return f.list
}

// SortFindings orders findings by index and leaves those of one index as they came.
func SortFindings(list []Finding) {
	slices.SortStableFunc(list, func(a, b Finding) int { return cmp.Compare(a.Index, b.Index) })
}
