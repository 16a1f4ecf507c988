package tlogwitness

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/transparency"
	"github.com/attestmesh/meshnode/transparency/tlogwitness/witnesstest"
)

// foreign is a witness in a process of its own that we did not write.
type foreign interface {
	Know(origin, vkey string)
	Kill()
	Restart()
	Backup() []byte
	RestoreFrom([]byte)
}

// foreigners starts each of them for one test.
func foreigners(t *testing.T, f func(t *testing.T, w foreign, url, vkey, name string)) {
	t.Run("litewitness", func(t *testing.T) {
		w := witnesstest.Start(t)
		f(t, w, w.URL, w.Key, witnesstest.Name)
	})
	t.Run("omniwitness", func(t *testing.T) {
		w := witnesstest.StartOmni(t)
		f(t, w, w.URL, w.Key, witnesstest.OmniName)
	})
}

func clientOf(t *testing.T, url, vkey string, log Log) *Client {
	t.Helper()
	key, err := transparency.ParseOutside(vkey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(key, url, log)
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

// What a witness has to do, each does: of the logs it was told of it cosigns one history, whatever
// happens to it, and says by its status what is wrong with another.
func TestForeignWitnesses(t *testing.T) { foreigners(t, foreignWitness) }

func foreignWitness(t *testing.T, w foreign, url, wkey, name string) {
	public := key("log").Public().(ed25519.PublicKey)
	tree := newTree(t, 1)
	witness, err := transparency.ParseOutside(wkey)
	if err != nil {
		t.Fatal(err)
	}
	c := clientOf(t, url, wkey, tree)
	status := func(err error) int {
		var refused *Refused
		errors.As(err, &refused)
		if refused == nil {
			return 0
		}
		return refused.Status
	}
	unknown, stranger := http.StatusNotFound, http.StatusForbidden
	if name == witnesstest.OmniName { // of the version that is tested; its database knows no "not there"
		unknown, stranger = http.StatusInternalServerError, http.StatusInternalServerError
	}
	if _, err := c.Cosign(t.Context(), checkpoint(t, tree)); status(err) != unknown {
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
		if err != nil || len(v.Outside) != 1 || v.Outside[0].Name != name || len(v.Problems) != 0 {
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
	if _, err := clientOf(t, url, wkey, tree).Cosign(t.Context(), checkpoint(t, tree)); err != nil {
		t.Errorf("after it came back: %v", err)
	}

	// A log that was rolled back, one with another history, one signed by another key.
	older := newTree(t, 20)
	if _, err := clientOf(t, url, wkey, older).Cosign(t.Context(), checkpoint(t, older)); !errors.Is(err, ErrAhead) {
		t.Errorf("rolled back: %v", err)
	}
	fork := newTree(t, 0)
	for range tree.Size() + 3 {
		if _, err := fork.Append([]byte(fmt.Sprint("other leaf ", fork.Size()))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := clientOf(t, url, wkey, fork).Cosign(t.Context(), checkpoint(t, fork)); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("forked: %v", err)
	}
	size, root := tree.Head()
	stolen, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: origin, Size: size, Root: root}, key("thief"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Cosign(t.Context(), stolen); status(err) != stranger {
		t.Errorf("another log key: %v", err)
	}
}

// Whoever steals the log key can show a witness another history before the mesh does. The mesh
// then hears of it at its next checkpoint, from that witness, whichever of the two is longer.
func TestPoisonedWitness(t *testing.T) {
	foreigners(t, func(t *testing.T, w foreign, url, wkey, _ string) {
		w.Know(origin, vkey(t, key("log").Public().(ed25519.PublicKey)))
		tree, fork := newTree(t, 4), newTree(t, 0)
		for range 9 {
			if _, err := fork.Append([]byte("forged")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := clientOf(t, url, wkey, fork).Cosign(t.Context(), checkpoint(t, fork)); err != nil {
			t.Fatal(err)
		}
		honest := clientOf(t, url, wkey, tree)
		if _, err := honest.Cosign(t.Context(), checkpoint(t, tree)); !errors.Is(err, ErrAhead) {
			t.Errorf("the smaller honest log: %v", err)
		}
		var refused *Refused
		for what, more := range map[string]int{"of the same size": 5, "larger": 20} {
			grown := newTree(t, 4+more)
			if _, err := clientOf(t, url, wkey, grown).Cosign(t.Context(), checkpoint(t, grown)); !errors.As(err, &refused) || !refused.Disagrees() {
				t.Errorf("the honest log %s: %v", what, err)
			}
		}
	})
}

// L11: a witness that was restored from a backup lags: it cosigns what goes on from there, and
// until then it cosigns nothing that is older than what the log shows it.
func TestWitnessFromBackup(t *testing.T) {
	foreigners(t, func(t *testing.T, w foreign, url, wkey, name string) {
		w.Know(origin, vkey(t, key("log").Public().(ed25519.PublicKey)))
		tree := newTree(t, 10)
		c := clientOf(t, url, wkey, tree)
		cosigned := func() {
			t.Helper()
			out, err := c.Cosign(t.Context(), checkpoint(t, tree))
			if err != nil || !strings.Contains(string(out), name) {
				t.Fatalf("%s, %v", out, err)
			}
		}
		cosigned()
		w.Kill()
		backup := w.Backup()
		w.Restart()
		older := checkpoint(t, tree)
		grow(t, tree, 20)
		cosigned()
		w.Kill()
		w.RestoreFrom(backup)
		w.Restart()
		grow(t, tree, 3)
		cosigned() // the client is told the old size and proves from there
		if _, err := c.Cosign(t.Context(), older); !errors.Is(err, ErrAhead) {
			t.Errorf("an older checkpoint: %v", err)
		}
		if _, err := clientOf(t, url, wkey, newTree(t, 0)).Cosign(t.Context(), older); !errors.Is(err, ErrAhead) {
			t.Errorf("an older checkpoint, by another client: %v", err)
		}
	})
}
