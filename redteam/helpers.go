package redteam

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/mesh/exchange"
)

func freshNonce() (n [exchange.NonceSize]byte) {
	_, _ = rand.Read(n[:]) // never fails
	return n
}

func contains[T comparable](list []T, x T) bool { return slices.Contains(list, x) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// pause waits and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
