package transparency

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"filippo.io/torchwood"
	"go.uber.org/goleak"
	"golang.org/x/mod/sumdb/tlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// walkDir walks the log in a directory at its own checkpoint.
func walkDir(t testing.TB, location string) Walked {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := OpenReader(location)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cp, err := r.Checkpoint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCheckpoint(cp)
	if err != nil {
		t.Fatal(err)
	}
	next := uint64(0)
	w, err := r.Walk(ctx, c, WalkOptions{Leaf: func(i uint64, l []byte) error {
		if i != next {
			t.Errorf("leaf %d after %d", i, next)
		}
		next++
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func codes(w Walked) string {
	var out []string
	for _, f := range w.Findings {
		out = append(out, fmt.Sprintf("%d:%s", f.Index, f.Code))
	}
	return strings.Join(out, " ")
}

// bundleOf encodes entries.
func bundleOf(entries [][]byte) []byte {
	var out []byte
	for _, e := range entries {
		out = append(binary.BigEndian.AppendUint16(out, uint16(len(e))), e...)
	}
	return out
}

func entriesOf(t testing.TB, data []byte) [][]byte {
	t.Helper()
	var out [][]byte
	for len(data) > 0 {
		e, rest, err := torchwood.ReadTileEntry(data)
		if err != nil {
			t.Fatal(err)
		}
		out, data = append(out, bytes.Clone(e)), rest
	}
	return out
}

type tamper struct {
	t    testing.TB
	root string
}

func (x tamper) edit(name string, f func([]byte) []byte) {
	x.t.Helper()
	file := filepath.Join(x.root, name)
	data, err := os.ReadFile(file)
	if err != nil {
		x.t.Fatal(err)
	}
	if err := os.WriteFile(file, f(data), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

func (x tamper) entries(name string, f func([][]byte) [][]byte) {
	x.t.Helper()
	x.edit(name, func(data []byte) []byte { return bundleOf(f(entriesOf(x.t, data))) })
}

func (x tamper) remove(name string) {
	x.t.Helper()
	if err := os.Remove(filepath.Join(x.root, name)); err != nil {
		x.t.Fatal(err)
	}
}

func flip(at int) func([]byte) []byte {
	return func(data []byte) []byte {
		data[at] ^= 1
		return data
	}
}

// The tamper cases that concern entries and tiles, each with what is reported and where.
// The log has 600 leaves: two full bundles, a partial one of 88, and tile/1/000.p/2.
func TestTampering(t *testing.T) {
	const partial, partialTile = "tile/entries/002.p/88", "tile/0/002.p/88"
	for _, c := range []struct {
		name string
		do   func(tamper)
		want string
		read uint64
	}{
		{"untouched", func(tamper) {}, "", 600},
		{"byte of an entry flipped", func(x tamper) {
			x.entries("tile/entries/000", func(e [][]byte) [][]byte { e[7][0] ^= 1; return e })
		}, "7:entry_mismatch", 600},
		{"byte of an entry in the partial bundle flipped", func(x tamper) {
			x.entries(partial, func(e [][]byte) [][]byte { e[87][0] ^= 1; return e })
		}, "599:entry_mismatch", 600},
		{"length of an entry flipped", func(x tamper) {
			x.edit("tile/entries/000", func(d []byte) []byte { d[0] = 0xff; return d })
		}, "0:entries_malformed", 0},
		{"entry removed, bundle short", func(x tamper) {
			x.entries("tile/entries/000", func(e [][]byte) [][]byte { return slices.Delete(e, 9, 10) })
		}, "9:entry_mismatch 255:entries_malformed", 255},
		{"entry removed, all later ones shifted", func(x tamper) {
			x.entries("tile/entries/000", func(e [][]byte) [][]byte { return append(slices.Delete(e, 9, 10), leaf(256)) })
			x.entries("tile/entries/001", func(e [][]byte) [][]byte { return append(slices.Delete(e, 0, 1), leaf(512)) })
			x.entries(partial, func(e [][]byte) [][]byte { return slices.Delete(e, 0, 1) })
		}, "9:entry_mismatch 599:entries_malformed", 599},
		{"two entries swapped", func(x tamper) {
			x.entries("tile/entries/001", func(e [][]byte) [][]byte { e[1], e[7] = e[7], e[1]; return e })
		}, "257:entry_mismatch 263:entry_mismatch", 600},
		{"entry inserted", func(x tamper) {
			x.entries("tile/entries/000", func(e [][]byte) [][]byte { return slices.Insert(e, 3, []byte("new")) })
		}, "3:entry_mismatch 255:entries_malformed", 600},
		{"level-0 tile edited", func(x tamper) { x.edit("tile/0/001", flip(32*4)) }, "260:tile_mismatch", 600},
		{"partial level-0 tile edited", func(x tamper) { x.edit(partialTile, flip(32*4)) }, "516:tile_mismatch", 600},
		{"bundle and level-0 tile forged together", func(x tamper) {
			forged := LeafHash([]byte("forged"))
			x.entries("tile/entries/001", func(e [][]byte) [][]byte { e[5] = []byte("forged"); return e })
			x.edit("tile/0/001", func(d []byte) []byte { copy(d[32*5:], forged[:]); return d })
		}, "256:root_mismatch 256:tile_mismatch", 600},
		{"partial bundle and its tile forged together", func(x tamper) {
			forged := LeafHash([]byte("forged"))
			x.entries(partial, func(e [][]byte) [][]byte { e[5] = []byte("forged"); return e })
			x.edit(partialTile, func(d []byte) []byte { copy(d[32*5:], forged[:]); return d })
		}, "600:root_mismatch", 600},
		{"bundle and tile tampered in different places", func(x tamper) {
			x.entries("tile/entries/000", func(e [][]byte) [][]byte { e[7][0] ^= 1; return e })
			x.edit("tile/0/001", flip(0))
		}, "0:tile_mismatch 7:root_mismatch 7:entry_mismatch 256:entry_mismatch", 600},
		{"higher tile edited", func(x tamper) { x.edit("tile/1/000.p/2", flip(32)) }, "256:tile_mismatch", 600},
		{"bundle missing", func(x tamper) { x.remove("tile/entries/001") }, "256:entries_missing", 256},
		{"tile missing", func(x tamper) { x.remove("tile/0/001") }, "256:tile_missing", 600},
		{"higher tile missing", func(x tamper) { x.remove("tile/1/000.p/2") }, "0:tile_missing", 600},
		{"bundle and tile missing", func(x tamper) { x.remove("tile/entries/001"); x.remove("tile/0/001") },
			"256:entries_missing 256:tile_missing", 256},
		{"bundle truncated", func(x tamper) {
			x.edit(partial, func(d []byte) []byte { return d[:len(d)-1] })
		}, "599:entries_malformed", 599},
		{"tile truncated", func(x tamper) {
			x.edit("tile/0/000", func(d []byte) []byte { return d[:len(d)-33] })
		}, "254:tile_malformed", 600},
		{"partial bundle wider than its name", func(x tamper) {
			x.entries(partial, func(e [][]byte) [][]byte { return append(e, []byte("more")) })
		}, "599:entries_malformed", 600},
		{"partial tile wider than its name", func(x tamper) {
			x.edit(partialTile, func(d []byte) []byte { return append(d, make([]byte, 32)...) })
		}, "512:tile_malformed", 600},
		{"root edited", func(x tamper) {
			size, root := uint64(600), Hash{1}
			x.edit("checkpoint", func([]byte) []byte { return signHead(t, Checkpoint{testOrigin, size, root}) })
		}, "600:root_mismatch", 600},
		{"size edited upwards", func(x tamper) {
			x.edit("checkpoint", func([]byte) []byte { return signHead(t, Checkpoint{testOrigin, 1 << 39, Hash{1}}) })
		}, "512:entries_missing", 512},
		{"a fifo in place of a tile", func(x tamper) {
			x.remove("tile/0/001")
			if err := syscall.Mkfifo(filepath.Join(x.root, "tile/0/001"), 0o600); err != nil {
				t.Skip(err)
			}
		}, "256:tile_missing", 600},
		{"a bundle that never ends", func(x tamper) {
			if err := os.Truncate(filepath.Join(x.root, "tile/entries/001"), maxBundle+1); err != nil {
				t.Fatal(err)
			}
		}, "256:entries_malformed", 256},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, path := publishedLog(t, 600)
			c.do(tamper{t, path})
			w := walkDir(t, path)
			sameWalk(t, path, w)
			got := codes(w)
			if c.name == "size edited upwards" { // seventeen missing files and the giving up
				if !strings.HasPrefix(got, c.want) || len(w.Findings) > maxMissing+5 {
					t.Errorf("got %d findings: %s", len(w.Findings), got)
				}
				return
			}
			if got != c.want || w.Read != c.read {
				t.Errorf("got %s, read %d; want %s, read %d\n%+v", got, w.Read, c.want, c.read, w.Findings)
			}
		})
	}
}

// Findings are bounded whatever is wrong.
func TestFindingsAreBounded(t *testing.T) {
	_, path := publishedLog(t, 600)
	tamper{t, path}.entries("tile/entries/000", func(e [][]byte) [][]byte {
		for i := 0; i < len(e); i += 2 {
			e[i] = []byte("x")
		}
		return e
	})
	w := walkDir(t, path)
	if len(w.Findings) != maxFindings || w.More != 28 {
		t.Errorf("%d findings and %d more", len(w.Findings), w.More)
	}
	sameWalk(t, path, w)
}

// A reader of an older checkpoint finds its tiles in the full ones that came later.
func TestOlderCheckpoint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	tree := newTree(t, openDir(t, path))
	appendLeaves(t, tree, 0, 300)
	old := sign(t, tree)
	if err := tree.Publish(old); err != nil {
		t.Fatal(err)
	}
	appendLeaves(t, tree, 300, 70_000)
	if err := tree.Publish(sign(t, tree)); err != nil {
		t.Fatal(err)
	}
	if w := walkDir(t, path); len(w.Findings) != 0 || w.Read != 70_000 || w.Root != tree.Root() {
		t.Errorf("newest: %s, read %d", codes(w), w.Read)
	}
	tamper{t, path}.edit("checkpoint", func([]byte) []byte { return old })
	if w := walkDir(t, path); len(w.Findings) != 0 || w.Read != 300 {
		t.Errorf("older: %s, read %d", codes(w), w.Read)
	}
}

func TestEmptyLog(t *testing.T) {
	_, path := publishedLog(t, 0)
	if w := walkDir(t, path); len(w.Findings) != 0 || w.Read != 0 {
		t.Errorf("%+v", w)
	}
}

// A client that we did not write reads our tiles, from the directory and over HTTP.
func TestTorchwoodClientReads(t *testing.T) {
	tree, path := publishedLog(t, 700)
	server := httptest.NewServer(http.StripPrefix("/log", tree))
	defer server.Close()
	fromDir, err := torchwood.NewTileFS(os.DirFS(path))
	if err != nil {
		t.Fatal(err)
	}
	client := server.Client()
	defer client.CloseIdleConnections()
	fromURL, err := torchwood.NewTileFetcher(server.URL+"/log", torchwood.WithHTTPClient(client))
	if err != nil {
		t.Fatal(err)
	}
	logKey, err := logVerifier(testOrigin, public("log"))
	if err != nil {
		t.Fatal(err)
	}
	for name, src := range map[string]torchwood.TileReader{"directory": fromDir, "url": fromURL} {
		signed, err := src.ReadEndpoint(t.Context(), "checkpoint")
		if err != nil {
			t.Fatal(err)
		}
		c, _, err := torchwood.VerifyCheckpoint(signed, logPolicy(testOrigin, logKey))
		if err != nil {
			t.Fatal(err)
		}
		reader, err := torchwood.NewClient(src)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for i, entry := range reader.AllEntries(t.Context(), c.Tree, 0) {
			if int(i) != n || !bytes.Equal(entry, leaf(n)) {
				t.Fatalf("%s: entry %d is %q", name, i, entry)
			}
			n++
		}
		if err := reader.Err(); err != nil || n != 700 {
			t.Errorf("%s: %d entries, %v", name, n, err)
		}
		entry, proof, err := reader.Entry(t.Context(), c.Tree, 3)
		if err != nil || tlog.CheckRecord(proof, c.N, c.Hash, 3, tlog.RecordHash(entry)) != nil {
			t.Errorf("%s: entry 3: %v", name, err)
		}
	}
	if w := walkDir(t, server.URL+"/log"); len(w.Findings) != 0 || w.Read != 700 {
		t.Errorf("our reader: %+v", w)
	}
	resp, err := client.Post(server.URL+"/log/checkpoint", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
}

func TestReaderStops(t *testing.T) {
	_, path := publishedLog(t, 300)
	r, err := OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	signed, err := r.Checkpoint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := ParseCheckpoint(signed)
	if err != nil {
		t.Fatal(err)
	}
	if w, err := r.Walk(t.Context(), c, WalkOptions{Leaf: func(i uint64, _ []byte) error {
		if i == 5 {
			return errInjected
		}
		return nil
	}}); !errors.Is(err, errInjected) || w.Read != 5 {
		t.Errorf("read %d, %v", w.Read, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Walk(ctx, c, WalkOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := r.Walk(t.Context(), Checkpoint{testOrigin, 1 << 50, Hash{}}, WalkOptions{}); err == nil {
		t.Error("a size over the limit was walked")
	}
	for _, bad := range []string{filepath.Join(path, "nowhere"), "http://", "https://host/?x=1", ""} {
		if r, err := OpenReader(bad); err == nil {
			r.Close()
			t.Errorf("OpenReader(%q) succeeded", bad)
		}
	}
	empty, err := OpenReader(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if _, err := empty.Checkpoint(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no checkpoint: %v", err)
	}
}

func TestExport(t *testing.T) {
	source := filepath.Join(t.TempDir(), "log")
	tree := newTree(t, openDir(t, source))
	appendLeaves(t, tree, 0, 300)
	if err := tree.Publish(sign(t, tree)); err != nil {
		t.Fatal(err)
	}
	target := openDir(t, filepath.Join(t.TempDir(), "copy"))
	export := func() (Checkpoint, error) {
		r, err := OpenReader(source)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cp, err := r.Checkpoint(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r.Export(t.Context(), cp, target, nil)
	}
	var left error
	for _, size := range []int{300, 300, 900, 900} { // the first, the same again, a continuation
		appendLeaves(t, tree, int(tree.Size()), size)
		if err := tree.Publish(sign(t, tree)); err != nil {
			t.Fatal(err)
		}
		c, err := export()
		if err != nil || c.Size != uint64(size) {
			t.Fatalf("%+v %v", c, err)
		}
		if w := walkDir(t, target.Path()); len(w.Findings) != 0 || w.Read != uint64(size) {
			t.Errorf("size %d: %s, read %d", size, codes(w), w.Read)
		}
		_, err = os.Stat(target.Path("tile/0/001.p/44"))
		if !errors.Is(err, left) {
			t.Errorf("size %d: the partial tile of 300: %v", size, err)
		}
		if size == 900 { // a reader may still be at 300, and not at the next
			left = fs.ErrNotExist
		}
	}
	for _, full := range []string{"tile/entries/001", "tile/0/001"} { // partial when there were 300
		if _, err := os.Stat(target.Path(full)); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(target.Path(full + ".p")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s.p is left: %v", full, err)
		}
	}
	appendLeaves(t, tree, 900, 1000)
	if err := tree.Publish(sign(t, tree)); err != nil {
		t.Fatal(err)
	}
	tamper{t, source}.edit("tile/entries/003.p/232", flip(3))
	var bad *Tampered
	if _, err := export(); !errors.As(err, &bad) || len(bad.Findings) == 0 {
		t.Errorf("tampered source: %v", err)
	}
	if w := walkDir(t, target.Path()); w.Read != 900 { // the old checkpoint stays
		t.Errorf("after a failed export: read %d", w.Read)
	}
	tamper{t, source}.remove("tile/entries/003.p/232")
	if _, err := export(); !errors.As(err, &bad) || bad.Findings[0].Index != 768 || bad.Findings[0].Code != CodeEntriesMissing {
		t.Errorf("missing bundle: %v", err)
	}
	if err := os.WriteFile(target.Path("x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := export(); err == nil || !strings.Contains(err.Error(), "empty directory") {
		t.Errorf("a directory with other files: %v", err)
	}
	_, foreign := publishedLog(t, 2000)
	target = openDir(t, foreign)
	if _, err := export(); err == nil || !strings.Contains(err.Error(), "empty directory") {
		t.Errorf("a larger log: %v", err)
	}
}
