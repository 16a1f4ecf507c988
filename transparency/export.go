package transparency

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/internal/durable"
)

// Tampered is the error of an Export whose source is not one consistent log.
type Tampered struct{ Findings []Finding }

// Error names the first finding.
func (t *Tampered) Error() string {
	f := t.Findings[0]
	return fmt.Sprintf("log: %d findings, the first at leaf %d: %s: %s", len(t.Findings), f.Index, f.Code, f.Message)
}

// Export copies the log of a checkpoint into dir: entries and tiles first, then, if the
// copy gives the checkpoint's root, the checkpoint. dir is empty, or holds an earlier or
// interrupted Export of the same log, whose full tiles are kept; its partial tiles go, after the
// checkpoint, where there was a full one by the time of the export before. So dir is at every moment a log that can be served.
// Signatures are not looked at. progress may be nil; it counts leaves.
func (r *Reader) Export(ctx context.Context, checkpoint []byte, dir *durable.Dir, progress func(done, size uint64)) (Checkpoint, error) {
	c, err := ParseCheckpoint(checkpoint)
	if err != nil {
		return Checkpoint{}, err
	}
	if c.Size > maxLogSize {
		return Checkpoint{}, fmt.Errorf("log: size %d, the limit is %d", c.Size, int64(maxLogSize))
	}
	before, err := exportable(dir, c)
	if err != nil {
		return Checkpoint{}, err
	}
	var names []string
	for level := entriesLevel; level < levels(int64(c.Size)); level++ {
		count := int64(c.Size) >> (torchwood.TileHeight * max(level, 0))
		for n := int64(0); n<<torchwood.TileHeight < count; n++ {
			tile := tileAt(level, n, int(min(torchwood.TileWidth, count-n<<torchwood.TileHeight)))
			if err := r.copyTile(ctx, tile, dir); err != nil {
				return Checkpoint{}, err
			}
			names = append(names, torchwood.TilePath(tile))
			if level == entriesLevel && progress != nil {
				progress(min(c.Size, uint64(n+1)<<torchwood.TileHeight), c.Size)
			}
		}
	}
	if err := checkCopy(ctx, dir, c); err != nil {
		return Checkpoint{}, err
	}
	if err := dir.Sync(names...); err != nil {
		return Checkpoint{}, err
	}
	if err := dir.WriteFile(checkpointName, checkpoint, 0o644); err != nil {
		return Checkpoint{}, err
	}
	return c, dropCopied(dir, before)
}

// dropCopied removes the partial tiles that had full ones at size already: those that became full since
// stay for one more export, for readers of the checkpoint before.
func dropCopied(dir *durable.Dir, size uint64) error {
	err := filepath.WalkDir(dir.Path("tile"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() || !strings.HasSuffix(path, ".p") {
			return err
		}
		parts, err := filepath.Rel(dir.Path(), path)
		if err != nil {
			return err
		}
		parts = filepath.ToSlash(parts)
		if tile, err := torchwood.ParseTilePath(parts + "/1"); err != nil || tile.N >= lastTile(tile.L, int64(size)).N {
			return fs.SkipDir
		}
		widths, err := os.ReadDir(path)
		for _, w := range widths {
			if err == nil {
				err = dir.Discard(parts + "/" + w.Name())
			}
		}
		if err == nil {
			err = dir.Discard(parts)
		}
		if err != nil {
			return err
		}
		return fs.SkipDir
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("log: %w", err)
	}
	return nil
}

// exportable refuses directories that hold anything but an export of the same log, and returns its
// size.
func exportable(dir *durable.Dir, c Checkpoint) (size uint64, err error) {
	old, err := os.ReadDir(dir.Path())
	if err != nil {
		return 0, fmt.Errorf("log: %w", err)
	}
	for _, e := range old {
		if e.Name() != checkpointName && e.Name() != "tile" {
			return 0, fmt.Errorf("log: %s holds %q, which is no part of a log; use an empty directory", dir.Path(), e.Name())
		}
	}
	data, err := dir.ReadFile(checkpointName, maxNote)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("log: %w", err)
	}
	have, err := ParseCheckpoint(data)
	if err != nil {
		return 0, fmt.Errorf("log: %s: %w; use an empty directory", dir.Path(), err)
	}
	if have.Origin != c.Origin || have.Size > c.Size {
		return 0, fmt.Errorf("log: %s holds size %d of %s, the source has size %d of %s; use an empty directory",
			dir.Path(), have.Size, have.Origin, c.Size, c.Origin)
	}
	return have.Size, nil
}

// copyTile copies one tile or bundle unless a full one is there already.
func (r *Reader) copyTile(ctx context.Context, t tlog.Tile, dir *durable.Dir) error {
	name := torchwood.TilePath(t)
	if t.W == torchwood.TileWidth {
		if _, err := os.Stat(dir.Path(name)); err == nil {
			return nil
		}
	}
	limit := int64(maxHashTile)
	if t.L == entriesLevel {
		limit = maxBundle
	}
	data, fallback, err := r.fetchTile(ctx, t, limit)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errTooLarge) {
		code := CodeTileMissing
		if t.L == entriesLevel {
			code = CodeEntriesMissing
		}
		first := uint64(t.N) << (torchwood.TileHeight * (max(t.L, 0) + 1))
		return &Tampered{[]Finding{{first, code, err.Error()}}}
	}
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	if fallback { // keep of the full tile what the checkpoint covers
		if t.L >= 0 {
			data = data[:min(len(data), t.W*tlog.HashSize)]
		} else {
			_, rest, _ := splitBundle(data, t.W)
			data = data[:len(data)-len(rest)]
		}
	}
	return dir.Replace(name, data, 0o644)
}

// checkCopy walks the copy.
func checkCopy(ctx context.Context, dir *durable.Dir, c Checkpoint) error {
	local, err := OpenReader(dir.Path())
	if err != nil {
		return err
	}
	defer local.Close()
	walked, err := local.Walk(ctx, c, WalkOptions{})
	if err != nil {
		return err
	}
	if len(walked.Findings) > 0 {
		return &Tampered{walked.Findings}
	}
	return nil
}
