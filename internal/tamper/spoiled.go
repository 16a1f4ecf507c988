package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/audit/audittest"
)

// size is how many leaves the log that is spoiled has: two full bundles and a partial one, and a
// tile of level 1.
const size = 600

// untouched writes the log that is spoiled: a complete one that has grown, and its genesis.
func untouched(dir string) error {
	m := base()
	m.Publish(filepath.Join(dir, "log"), append(m.Cosigners(), audittest.Witness)...)
	return os.WriteFile(filepath.Join(dir, "genesis.json"), m.Genesis.Raw(), 0o644)
}

func base() *audittest.Mesh {
	m := audittest.Complete()
	m.Grow(size)
	return m
}

// spoiled is a copy of a log that is being spoiled.
type spoiled struct {
	*audittest.Mesh        // the mesh whose log it is, at its end: for keys, and for leaves to spoil
	src, dir        string // of the untouched log with genesis, and of the copy
	origin          string
	cp              []byte     // the checkpoint as it was
	lines           []string   // its signatures: that of the log key first
	before          [][]string // runs of meshnode before
	run             []string   // the run that finds it
}

func open(src, dir string) *spoiled {
	s := &spoiled{Mesh: base(), src: src, dir: dir, run: audits("DST/log"), cp: must(os.ReadFile(filepath.Join(dir, "checkpoint")))}
	var unverified *note.UnverifiedNoteError
	if _, err := note.Open(s.cp, note.VerifierList()); !errors.As(err, &unverified) {
		panic(fmt.Sprint("the log to spoil has no checkpoint: ", err))
	}
	text := must(torchwood.ParseCheckpoint(unverified.Note.Text))
	s.origin = text.Origin
	_, sigs, _ := strings.Cut(string(s.cp), "\n\n")
	s.lines = strings.SplitAfter(strings.TrimSuffix(sigs, "\n"), "\n")
	s.lines[len(s.lines)-1] += "\n"
	if text.N != size || text.Hash != rootOf(s.Leaves) || len(s.lines) != 5 {
		panic(fmt.Sprintf("the log to spoil is another one: size %d, root %s, %d signatures", text.N, text.Hash, len(s.lines)))
	}
	return s
}

// file returns the path of a tile or bundle of the log; level -1 is bundles.
func (s *spoiled) file(level int, n int64, width int) string {
	return filepath.Join(s.dir, filepath.FromSlash(torchwood.TilePath(tlog.Tile{H: torchwood.TileHeight, L: level, N: n, W: width})))
}

// bundle is the bundle of a leaf, of which the last one is partial.
func (s *spoiled) bundle(leaf int) string { return s.tile(-1, leaf) }

// tile is the tile of a level, or the bundle, that a leaf is in.
func (s *spoiled) tile(level, leaf int) string {
	across := len(s.Leaves)
	for range level {
		across, leaf = across>>torchwood.TileHeight, leaf>>torchwood.TileHeight
	}
	n := leaf >> torchwood.TileHeight
	return s.file(level, int64(n), min(torchwood.TileWidth, across-n<<torchwood.TileHeight))
}

// edit changes a file.
func edit(name string, f func([]byte) []byte) {
	out := f(must(os.ReadFile(name)))
	check(os.WriteFile(name, out, 0o644))
}

// entries decodes a bundle.
func entries(bundle []byte) [][]byte {
	var out [][]byte
	for len(bundle) > 0 {
		entry, rest, err := torchwood.ReadTileEntry(bundle)
		check(err)
		out, bundle = append(out, entry), rest
	}
	return out
}

// bundleOf encodes one.
func bundleOf(entries [][]byte) []byte {
	var out []byte
	for _, e := range entries {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(e))), e...)
	}
	return out
}

// editEntries changes the entries of the bundle of a leaf.
func (s *spoiled) editEntries(leaf int, f func(in [][]byte) [][]byte) {
	edit(s.bundle(leaf), func(b []byte) []byte { return bundleOf(f(entries(b))) })
}

// editHash changes one hash of the tile of a level that a leaf is under.
func (s *spoiled) editHash(level, leaf int, f func(*tlog.Hash)) {
	edit(s.tile(level, leaf), func(b []byte) []byte {
		at := leaf >> (torchwood.TileHeight * level) % torchwood.TileWidth * tlog.HashSize
		h := tlog.Hash(b[at:])
		f(&h)
		copy(b[at:], h[:])
		return b
	})
}

// stored are the hashes of a tree in the order of package tlog.
type stored []tlog.Hash

func (s stored) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, s[i])
	}
	return out, nil
}

func storedOf(leaves [][]byte) stored {
	var s stored
	for i, leaf := range leaves {
		s = append(s, must(tlog.StoredHashes(int64(i), leaf, s))...)
	}
	return s
}

func rootOf(leaves [][]byte) tlog.Hash {
	return must(tlog.TreeHash(int64(len(leaves)), storedOf(leaves)))
}

// rebuild writes every tile and bundle of the leaves anew; the checkpoint stays.
func (s *spoiled) rebuild() {
	check(os.RemoveAll(filepath.Join(s.dir, "tile")))
	hashes := storedOf(s.Leaves)
	for level := 0; ; level++ {
		across := len(s.Leaves) >> (torchwood.TileHeight * level)
		if across == 0 {
			return
		}
		for n := 0; n<<torchwood.TileHeight < across; n++ {
			width := min(torchwood.TileWidth, across-n<<torchwood.TileHeight)
			s.put(s.file(level, int64(n), width), must(tlog.ReadTileData(tlog.Tile{H: torchwood.TileHeight, L: level, N: int64(n), W: width}, hashes)))
			if level == 0 {
				s.put(s.file(-1, int64(n), width), bundleOf(s.Leaves[n<<torchwood.TileHeight:][:width]))
			}
		}
	}
}

func (s *spoiled) put(name string, data []byte) {
	check(os.MkdirAll(filepath.Dir(name), 0o755))
	check(os.WriteFile(name, data, 0o644))
}

// insert puts a leaf before another.
func (s *spoiled) insert(at int, leaf []byte) { s.Leaves = slices.Insert(s.Leaves, at, leaf) }

// mutate returns a leaf with other bytes at a place in its middle.
func mutate(leaf []byte) []byte {
	out := bytes.Clone(leaf)
	out[len(out)/2] ^= 1
	return out
}
