package tesserabench

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/ratio"
	"github.com/attestmesh/meshnode/transparency"
)

// BenchmarkRatioTessera appends batches of 256 leaves of 1 KiB, durably: to Tessera's POSIX driver, which
// syncs every file, and to a tree that is synced after each batch. In a mesh the tree need not be, for
// Raft's log is.
func BenchmarkRatioTessera(b *testing.B) {
	const batch = 256
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	secret, _, err := note.GenerateKey(rand.Reader, "example.org/bench")
	if err != nil {
		b.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		b.Fatal(err)
	}
	driver, err := posix.New(ctx, posix.Config{Path: filepath.Join(b.TempDir(), "tessera")})
	if err != nil {
		b.Fatal(err)
	}
	appender, shutdown, _, err := tessera.NewAppender(ctx, driver, tessera.NewAppendOptions().
		WithCheckpointSigner(signer).WithBatching(batch, time.Second).WithCheckpointInterval(time.Second))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = shutdown(ctx) }()
	dir, err := durable.Open(filepath.Join(b.TempDir(), "tree"))
	if err != nil {
		b.Fatal(err)
	}
	tree, err := transparency.NewTree(dir)
	if err != nil {
		b.Fatal(err)
	}
	n := uint64(0)
	leaves := func() (out [][]byte) {
		for range batch {
			leaf := make([]byte, 1024)
			binary.BigEndian.PutUint64(leaf, n)
			out, n = append(out, leaf), n+1
		}
		return out
	}
	theirs := func() {
		var futures []tessera.IndexFuture
		for _, leaf := range leaves() {
			futures = append(futures, appender.Add(ctx, tessera.NewEntry(leaf)))
		}
		for _, index := range futures {
			if _, err := index(); err != nil {
				b.Fatal(err)
			}
		}
	}
	ours := func() {
		if _, err := tree.AppendAll(leaves()); err != nil {
			b.Fatal(err)
		}
		if err := tree.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		ratio.Print("log.append_vs_tessera", ratio.Of(25, ratio.Wall(4, theirs), ratio.Wall(4, ours)))
	}
}
