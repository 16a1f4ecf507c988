package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/mod/sumdb/tlog"
)

// Leaves of the log that is spoiled: one in a full bundle and one in the last, and where the
// bundles of both begin. Both are results that nothing later hangs on.
const (
	inFull, full = 300, 256
	inLast, last = 550, 512
)

// other is a leaf like the one at an index that says something else, signed by who signed that: one
// organisation alone can make it, and every rule is kept. Only the tree does not have it.
func (s *spoiled) other(at int) []byte {
	return parse(s.Leaves[at]).set(`"evidence":"`, `"evidence":"00`).trim().signBoot().bytes()
}

// trim takes the last two digits of the commitment away again.
func (l leaf) trim() leaf {
	e := l.field("evidence")
	return l.set(e, e[:64])
}

// signBoot signs a result of the present incarnation by the verifier that it names.
func (l leaf) signBoot() leaf { return l.sign(l.field("node") + " reborn peer") }

func entryCases() []tamperCase {
	return []tamperCase{
		{"1-entry-byte", "an outsider flips a bit of an entry", func(s *spoiled) verdict {
			s.editEntries(inFull, func(in [][]byte) [][]byte { in[inFull-full] = mutate(in[inFull-full]); return in })
			return found(inFull, "entry_mismatch")
		}},
		{"1-last-entry-byte", "an outsider flips a bit of an entry of the partial bundle", func(s *spoiled) verdict {
			s.editEntries(size-1, func(in [][]byte) [][]byte { in[size-1-last] = mutate(in[size-1-last]); return in })
			return found(size-1, "entry_mismatch")
		}},
		{"1-length-byte", "an outsider changes the length of an entry: all later ones of its bundle are others", func(s *spoiled) verdict {
			edit(s.bundle(inFull), func(b []byte) []byte {
				at := len(bundleOf(entries(b)[:inFull-full]))
				b[at+1] ^= 1
				return b
			})
			return found(inFull, "entry_mismatch")
		}},
		{"2-entry-removed", "an outsider removes an entry from the bundles and shifts the later ones", func(s *spoiled) verdict {
			s.Leaves = slices.Delete(s.Leaves, inFull, inFull+1)
			s.rebundle()
			return found(inFull, "entry_mismatch")
		}},
		{"2-entry-removed-leaked", "the log key signs a tree without a round that nothing hangs on; the cosignatures stay", func(s *spoiled) verdict {
			at := s.first(0, "round", "8899aabbccddeeff")
			s.Leaves = slices.Delete(s.Leaves, at, at+1)
			s.leaked()
			return found(size-1, "cosignature_invalid")
		}},
		{"2-entry-removed-all", "all seats cosign a tree without the Credential of a node that results are about", func(s *spoiled) verdict {
			at := s.first(0, "credential", "delta/n1")
			s.Leaves = slices.Delete(s.Leaves, at, at+1)
			s.sealAll()
			return found(at, "no_credential")
		}},
		{"3-entries-swapped", "an outsider swaps two neighbours in a bundle", func(s *spoiled) verdict {
			s.swap(inFull, inFull+1)
			s.rebundle()
			return found(inFull, "entry_mismatch")
		}},
		{"3-across-bundles", "an outsider swaps two entries of different bundles", func(s *spoiled) verdict {
			s.swap(100, inLast)
			s.rebundle()
			return found(100, "entry_mismatch")
		}},
		{"3-swapped-all", "all seats cosign a tree in which a result comes before its subject's Credential", func(s *spoiled) verdict {
			at := s.first(0, "credential", "delta/n1")
			s.swap(at, s.first(at, "attestation-result", "delta/n1"))
			s.sealAll()
			return found(at, "no_credential")
		}},
		{"4-entry-inserted", "an outsider inserts an entry into the past and shifts the later ones", func(s *spoiled) verdict {
			s.insert(inFull, s.other(inFull))
			s.rebundle()
			return found(inFull, "entry_mismatch")
		}},
		{"4-entry-inserted-leaked", "the log key signs a tree with an entry more in the past; the cosignatures stay", func(s *spoiled) verdict {
			s.insert(inFull, s.other(inFull))
			s.leaked()
			return found(inFull+1, "replayed") // of one time with the next, and before what is wrong with the checkpoint
		}},
		{"4-entry-inserted-all", "all seats cosign a tree in which a result stands twice", func(s *spoiled) verdict {
			s.insert(inFull+1, s.Leaves[inFull])
			s.sealAll()
			return found(inFull+1, "replayed")
		}},
		{"5-bundle-and-tile", "an outsider forges an entry and its hash in the level-0 tile; the tile above bounds the place", func(s *spoiled) verdict {
			s.forge(inFull)
			return found(full, "root_mismatch")
		}},
		{"5-last-bundle-and-tile", "the same where no tile above covers it: the checkpoint alone says no", func(s *spoiled) verdict {
			s.forge(inLast)
			return found(size, "root_mismatch")
		}},
		{"5-whole-tree", "an outsider forges an entry and every tile above it", func(s *spoiled) verdict {
			s.Leaves[inFull] = s.other(inFull)
			s.rebuild()
			return found(size, "root_mismatch")
		}},
		{"6-level-1", "an outsider edits a hash of a level-1 tile", func(s *spoiled) verdict {
			s.editHash(1, inFull, func(h *tlog.Hash) { h[9] ^= 1 })
			return found(full, "tile_mismatch")
		}},
		{"6-level-1-swapped", "an outsider swaps two hashes of a level-1 tile", func(s *spoiled) verdict {
			edit(s.tile(1, 0), func(b []byte) []byte { return append(bytes.Clone(b[32:64]), b[:32]...) })
			return found(0, "tile_mismatch")
		}},
		{"6-level-0", "an outsider edits a hash of a level-0 tile", func(s *spoiled) verdict {
			s.editHash(0, inFull, func(h *tlog.Hash) { h[9] ^= 1 })
			return found(inFull, "tile_mismatch")
		}},
		{"6-level-0-zeros", "an outsider fills a level-0 tile with zeros", func(s *spoiled) verdict {
			edit(s.tile(0, inFull), func(b []byte) []byte { return make([]byte, len(b)) })
			return found(full, "tile_mismatch")
		}},
	}
}

func (s *spoiled) swap(i, j int) { s.Leaves[i], s.Leaves[j] = s.Leaves[j], s.Leaves[i] }

// rebundle writes the leaves into the bundles that were there; the last holds what is left.
func (s *spoiled) rebundle() {
	leaves := s.Leaves
	for at := 0; at < size; at += 256 {
		width := min(256, len(leaves)-at)
		if at == last {
			width = len(leaves) - at
		}
		name := s.file(-1, int64(at/256), min(256, size-at))
		check(os.WriteFile(name, bundleOf(leaves[at:at+width]), 0o644))
	}
}

// leaked signs the tree of the leaves with the log key under the cosignatures that were there.
func (s *spoiled) leaked() {
	s.rebuild()
	t := text(s.origin, len(s.Leaves), rootOf(s.Leaves))
	s.write(t, append([]string{logLine(t, s.origin, s.LogKey())}, s.lines[1:]...)...)
}

// forge replaces an entry and its hash.
func (s *spoiled) forge(at int) {
	forged := s.other(at)
	s.editEntries(at, func(in [][]byte) [][]byte { in[at%256] = forged; return in })
	s.editHash(0, at, func(h *tlog.Hash) { *h = tlog.RecordHash(forged) })
}

func fileCases() []tamperCase {
	gone := func(level, leaf int) func(*spoiled) {
		return func(s *spoiled) { check(os.Remove(s.tile(level, leaf))) }
	}
	widen := func(level, leaf, by int) func(*spoiled) {
		return func(s *spoiled) {
			edit(s.tile(level, leaf), func(b []byte) []byte {
				if level < 0 {
					in := entries(b)
					if by < 0 {
						return bundleOf(in[:len(in)+by])
					}
					return bundleOf(append(in, in[:by]...))
				}
				if by < 0 {
					return b[:len(b)+32*by]
				}
				return append(b, b[:32*by]...)
			})
		}
	}
	cut := func(level, leaf, to int) func(*spoiled) {
		return func(s *spoiled) {
			edit(s.tile(level, leaf), func(b []byte) []byte {
				if level < 0 && to > 0 {
					to += len(bundleOf(entries(b)[:leaf%256]))
				}
				return b[:to]
			})
		}
	}
	instead := func(name func(*spoiled) string, put func(name string) error) func(*spoiled) {
		return func(s *spoiled) {
			check(os.Remove(name(s)))
			check(put(name(s)))
		}
	}
	bundle := func(s *spoiled) string { return s.bundle(inFull) }
	checkpoint := func(s *spoiled) string { return filepath.Join(s.dir, "checkpoint") }
	fifo := func(name string) error { return syscall.Mkfifo(name, 0o644) }
	huge := func(name string) error {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			return err
		}
		return os.Truncate(name, 1<<40) // sparse
	}
	empty := func(name string) error { return os.WriteFile(name, nil, 0o644) }
	directory := func(name string) error { return os.Mkdir(name, 0o755) }
	endless := func(name string) error { return os.Symlink("/dev/zero", name) }
	renamed := func(level int) func(*spoiled) {
		return func(s *spoiled) {
			name := s.tile(level, inLast)
			check(os.Rename(name, strings.TrimSuffix(name, "88")+"87"))
		}
	}
	var out []tamperCase
	for _, c := range []struct {
		name, what string
		do         func(*spoiled)
		want       verdict
	}{
		{"bundle-missing", "a full bundle is missing", gone(-1, inFull), found(full, "entries_missing")},
		{"last-bundle-missing", "the partial bundle is missing", gone(-1, inLast), found(last, "entries_missing")},
		{"tile-missing", "a full level-0 tile is missing", gone(0, inFull), found(full, "tile_missing")},
		{"last-tile-missing", "the partial level-0 tile is missing", gone(0, inLast), found(last, "tile_missing")},
		{"level-1-missing", "the level-1 tile is missing", gone(1, 0), found(0, "tile_missing")},
		{"everything-missing", "nothing but the checkpoint is there", func(s *spoiled) { check(os.RemoveAll(filepath.Join(s.dir, "tile"))) }, found(0, "entries_missing")},
		{"bundle-truncated", "a bundle ends in the middle of an entry", cut(-1, inFull, 100), found(inFull, "entries_malformed")},
		{"bundle-empty", "a bundle is empty", cut(-1, inFull, 0), found(full, "entries_malformed")},
		{"tile-truncated", "a level-0 tile ends in the middle of a hash", cut(0, inFull, 32*(inFull-full)+5), found(inFull, "tile_malformed")},
		{"level-1-truncated", "the level-1 tile ends in the middle of a hash", cut(1, 0, 40), found(full, "tile_malformed")},
		{"bundle-wider", "the partial bundle holds more entries than asked for", widen(-1, inLast, 1), found(size-1, "entries_malformed")},
		{"bundle-narrower", "the partial bundle holds fewer entries than asked for", widen(-1, inLast, -1), found(size-1, "entries_malformed")},
		{"full-bundle-wider", "a full bundle holds 257 entries", widen(-1, inFull, 1), found(last-1, "entries_malformed")},
		{"tile-wider", "the partial level-0 tile holds more hashes than asked for", widen(0, inLast, 1), found(last, "tile_malformed")},
		{"tile-narrower", "the partial level-0 tile holds fewer hashes than asked for", widen(0, inLast, -1), found(size-1, "tile_malformed")},
		{"full-tile-wider", "a full level-0 tile holds 257 hashes", widen(0, inFull, 1), found(full, "tile_malformed")},
		{"bundle-of-another-width", "the partial bundle is there under another width", renamed(-1), found(last, "entries_missing")},
		{"tile-of-another-width", "the partial tile is there under another width", renamed(0), found(last, "tile_missing")},
		{"bundle-is-a-fifo", "a fifo that nobody writes stands for a bundle", instead(bundle, fifo), found(full, "entries_missing")},
		{"bundle-is-a-directory", "a directory stands for a bundle", instead(bundle, directory), found(full, "entries_missing")},
		{"bundle-is-huge", "a bundle of a terabyte", instead(bundle, huge), found(full, "entries_malformed")},
		{"bundle-is-endless", "a link to /dev/zero stands for a bundle; what leads out of the directory is not read", instead(bundle, endless), undecided(full, "unavailable")},
		{"checkpoint-missing", "the checkpoint is missing", func(s *spoiled) { check(os.Remove(checkpoint(s))) }, found(0, "checkpoint_missing")},
		{"checkpoint-empty", "the checkpoint is empty", instead(checkpoint, empty), found(0, "checkpoint_invalid")},
		{"checkpoint-is-huge", "a checkpoint of a terabyte", instead(checkpoint, huge), found(0, "checkpoint_invalid")},
		{"checkpoint-is-a-fifo", "a fifo that nobody writes stands for the checkpoint", instead(checkpoint, fifo), found(0, "checkpoint_missing")},
	} {
		out = append(out, tamperCase{"7-" + c.name, c.what, func(s *spoiled) verdict { c.do(s); return c.want }})
	}
	return out
}

// edited is the text of a checkpoint in which one line is another.
func (s *spoiled) edited(number int, line string) string {
	lines := strings.Split(s.head(), "\n")
	if lines[number] == line {
		panic(fmt.Sprintf("line %d is %q already", number, line))
	}
	lines[number] = line
	return strings.Join(lines, "\n")
}
