package transparency

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/tlog"
)

// Reader reads a published log and believes nothing it reads.
type Reader struct {
	location string
	src      source
}

// OpenReader opens the log in a directory or at an http(s) URL. A directory that cannot
// be opened is an error; of a server nothing is asked yet.
func OpenReader(location string) (*Reader, error) {
	src, err := openSource(location)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return &Reader{location, src}, nil
}

// Close releases the directory or idle connections.
func (r *Reader) Close() error { return r.src.Close() }

// Location returns what OpenReader was given.
func (r *Reader) Location() string { return r.location }

// Checkpoint returns the published signed checkpoint, unverified. Where there is none the
// error wraps fs.ErrNotExist.
func (r *Reader) Checkpoint(ctx context.Context) ([]byte, error) {
	data, err := r.src.fetch(ctx, checkpointName, maxNote)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return data, nil
}

// HasTiles reports whether a directory without a checkpoint holds the tiles of a log
// nevertheless. Of a server that cannot be told.
func (r *Reader) HasTiles() bool {
	d, ok := r.src.(dirSource)
	if !ok {
		return false
	}
	st, err := d.root.Stat("tile")
	return err == nil && st.IsDir()
}

// fileProblem is what is wrong with one file of the log, as opposed to an error in
// reading it.
type fileProblem struct {
	code    string
	offset  int // first entry or hash of the file concerned
	message string
}

// hashTile reads a tile of level ≥ 0. A problem comes with whatever hashes are there.
func (r *Reader) hashTile(ctx context.Context, t tlog.Tile) ([]Hash, *fileProblem, error) {
	name := torchwood.TilePath(t)
	data, fallback, err := r.fetchTile(ctx, t, maxHashTile)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &fileProblem{CodeTileMissing, 0, name + " is missing"}, nil
	case errors.Is(err, errTooLarge):
		return nil, &fileProblem{CodeTileMalformed, 0, name + " is larger than any valid tile"}, nil
	case err != nil:
		return nil, nil, err
	}
	hashes := make([]Hash, 0, t.W)
	for i := range min(t.W, len(data)/tlog.HashSize) {
		hashes = append(hashes, Hash(data[i*tlog.HashSize:]))
	}
	if want := t.W * tlog.HashSize; len(data) < want || len(data) > want && !fallback {
		return hashes, &fileProblem{CodeTileMalformed, len(hashes) % t.W,
			fmt.Sprintf("%s has %d bytes, want %d", name, len(data), want)}, nil
	}
	return hashes, nil, nil
}

// bundle reads an entry bundle. A problem comes with the entries before it.
func (r *Reader) bundle(ctx context.Context, t tlog.Tile) ([][]byte, *fileProblem, error) {
	name := torchwood.TilePath(t)
	data, fallback, err := r.fetchTile(ctx, t, maxBundle)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &fileProblem{CodeEntriesMissing, 0, name + " is missing"}, nil
	case errors.Is(err, errTooLarge):
		return nil, &fileProblem{CodeEntriesMalformed, 0, name + " is larger than any valid bundle"}, nil
	case err != nil:
		return nil, nil, err
	}
	entries, rest, problem := splitBundle(data, t.W)
	if problem == nil && len(rest) > 0 && !fallback {
		problem = &fileProblem{CodeEntriesMalformed, t.W - 1, fmt.Sprintf("%d bytes follow the last of %d entries", len(rest), t.W)}
	}
	if problem != nil {
		problem.message = name + ": " + problem.message
	}
	return entries, problem, nil
}

// splitBundle decodes width entries and returns what follows them.
func splitBundle(data []byte, width int) (entries [][]byte, rest []byte, problem *fileProblem) {
	entries, rest = make([][]byte, 0, width), data
	for len(entries) < width {
		entry, next, err := torchwood.ReadTileEntry(rest)
		if err != nil {
			return entries, rest, &fileProblem{CodeEntriesMalformed, len(entries),
				fmt.Sprintf("entry %d of %d cannot be read: %v", len(entries), width, err)}
		}
		entries, rest = append(entries, entry), next
	}
	return entries, rest, nil
}

// fetchTile fetches a tile or bundle; for a partial one that is gone, the full one.
func (r *Reader) fetchTile(ctx context.Context, t tlog.Tile, limit int64) (data []byte, fallback bool, err error) {
	data, err = r.src.fetch(ctx, torchwood.TilePath(t), limit)
	if !errors.Is(err, fs.ErrNotExist) || t.W == torchwood.TileWidth {
		return data, false, err
	}
	t.W = torchwood.TileWidth
	data, err = r.src.fetch(ctx, torchwood.TilePath(t), limit)
	return data, true, err
}
