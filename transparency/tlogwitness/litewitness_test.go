package tlogwitness

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/transparency"
	"github.com/attestmesh/meshnode/transparency/tlogwitness/witnesstest"
)

func clientOf(t *testing.T, w *witnesstest.Litewitness, log Log) *Client {
	t.Helper()
	key, err := transparency.ParseOutside(w.Key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(key, w.URL, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func vkey(t *testing.T, public ed25519.PublicKey) string {
	t.Helper()
	key, err := transparency.VerifierKey(origin, public)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestLitewitness(t *testing.T) {
	w := witnesstest.Start(t)
	public := key("log").Public().(ed25519.PublicKey)
	tree := newTree(t, 1)
	witness, err := transparency.ParseOutside(w.Key)
	if err != nil {
		t.Fatal(err)
	}
	c := clientOf(t, w, tree)
	status := func(err error) int {
		var refused *Refused
		errors.As(err, &refused)
		if refused == nil {
			return 0
		}
		return refused.Status
	}
	if _, err := c.Cosign(t.Context(), checkpoint(t, tree)); status(err) != http.StatusNotFound {
		t.Errorf("a log it does not know: %v", err)
	}
	w.Know(origin, vkey(t, public))
	for _, more := range []int{0, 1, 300, 0, 7} {
		grow(t, tree, more)
		out, err := c.Cosign(t.Context(), checkpoint(t, tree))
		if err != nil {
			t.Fatal(err)
		}
		v, err := transparency.Verify(out, transparency.Policy{Origin: origin, LogKey: public, Quorum: transparency.QuorumOf(3), Outside: []transparency.Outside{witness}, At: time.Now()})
		if err != nil || len(v.Outside) != 1 || v.Outside[0].Name != witnesstest.Name || len(v.Problems) != 0 {
			t.Fatalf("%+v, %v", v, err)
		}
	}

	// Whom it has cosigned it remembers, whoever asks and whatever happened meanwhile.
	w.Kill()
	if _, err := c.Cosign(t.Context(), checkpoint(t, tree)); err == nil || status(err) != 0 {
		t.Errorf("while it is down: %v", err)
	}
	w.Restart()
	grow(t, tree, 5)
	if _, err := clientOf(t, w, tree).Cosign(t.Context(), checkpoint(t, tree)); err != nil {
		t.Errorf("after it came back: %v", err)
	}

	// A log that was rolled back, one with another history, one signed by another key.
	older := newTree(t, 20)
	if _, err := clientOf(t, w, older).Cosign(t.Context(), checkpoint(t, older)); !errors.Is(err, ErrAhead) {
		t.Errorf("rolled back: %v", err)
	}
	fork := newTree(t, 0)
	for range tree.Size() + 3 {
		if _, err := fork.Append([]byte(fmt.Sprint("other leaf ", fork.Size()))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := clientOf(t, w, fork).Cosign(t.Context(), checkpoint(t, fork)); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("forked: %v", err)
	}
	size, root := tree.Head()
	stolen, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: origin, Size: size, Root: root}, key("thief"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Cosign(t.Context(), stolen); status(err) != http.StatusForbidden {
		t.Errorf("another log key: %v", err)
	}
}

// Whoever steals the log key can show a witness another history before the mesh does. The mesh
// then hears of it at its next checkpoint, from that witness.
func TestPoisonedWitness(t *testing.T) {
	w := witnesstest.Start(t)
	w.Know(origin, vkey(t, key("log").Public().(ed25519.PublicKey)))
	tree, fork := newTree(t, 4), newTree(t, 0)
	for range 9 {
		if _, err := fork.Append([]byte("forged")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := clientOf(t, w, fork).Cosign(t.Context(), checkpoint(t, fork)); err != nil {
		t.Fatal(err)
	}
	honest := clientOf(t, w, tree)
	if _, err := honest.Cosign(t.Context(), checkpoint(t, tree)); !errors.Is(err, ErrAhead) {
		t.Errorf("the smaller honest log: %v", err)
	}
	grow(t, tree, 20)
	var refused *Refused
	if _, err := honest.Cosign(t.Context(), checkpoint(t, tree)); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
		t.Errorf("the larger honest log: %v", err)
	}
}
