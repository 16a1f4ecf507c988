package tlogwitness

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/transparency"
)

const origin = "sim.example.org/trial/0123456789abcdef/0"

func key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func outside(t *testing.T, name string) transparency.Outside {
	t.Helper()
	s, err := torchwood.NewCosignatureSigner(name, key(name))
	if err != nil {
		t.Fatal(err)
	}
	w, err := transparency.ParseOutside(s.Verifier().String())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func newTree(t *testing.T, leaves int) *transparency.Tree {
	t.Helper()
	dir, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tree, err := transparency.NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	grow(t, tree, leaves)
	return tree
}

func grow(t *testing.T, tree *transparency.Tree, leaves int) {
	t.Helper()
	for range leaves {
		if _, err := tree.Append([]byte(fmt.Sprint("leaf ", tree.Size()))); err != nil {
			t.Fatal(err)
		}
	}
}

func checkpoint(t *testing.T, tree *transparency.Tree) []byte {
	t.Helper()
	size, root := tree.Head()
	out, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: origin, Size: size, Root: root}, key("log"))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// client is one of a witness named "witness.example" whose every answer is serve's.
func client(t *testing.T, log Log, serve http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(serve)
	t.Cleanup(srv.Close)
	c, err := New(outside(t, "witness.example"), srv.URL, log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func conflict(w http.ResponseWriter, size string) {
	w.Header().Set("Content-Type", sizeType)
	w.WriteHeader(http.StatusConflict)
	io.WriteString(w, size)
}

// What a witness must not make of us: each answer ends in an error, after two requests at most.
func TestMisbehavingWitness(t *testing.T) {
	tree := newTree(t, 5)
	cp := checkpoint(t, tree)
	line, err := transparency.Cosign(cp, "other.example", key("other.example"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		serve http.HandlerFunc
		want  string
	}{
		"nothing":        {func(http.ResponseWriter, *http.Request) {}, "no cosignature"},
		"another key":    {func(w http.ResponseWriter, _ *http.Request) { w.Write(line) }, "by its key"},
		"text":           {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") }, "by its key"},
		"without end":    {func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1<<20)) }, "more than"},
		"conflict loop":  {func(w http.ResponseWriter, r *http.Request) { conflict(w, "3\n") }, "another size each time"},
		"another root":   {func(w http.ResponseWriter, r *http.Request) { conflict(w, "5\n") }, "another root of this size"},
		"conflict ahead": {func(w http.ResponseWriter, r *http.Request) { conflict(w, "6\n") }, "larger log"},
		"odd size":       {func(w http.ResponseWriter, r *http.Request) { conflict(w, "03\n") }, "want a size"},
		"negative size":  {func(w http.ResponseWriter, r *http.Request) { conflict(w, "-3\n") }, "want a size"},
		"no newline":     {func(w http.ResponseWriter, r *http.Request) { conflict(w, "3") }, "want a size"},
		"conflict page":  {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "3", http.StatusConflict) }, "409"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, "307"},
		"bad proof":   {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusUnprocessableEntity) }, "no extension"},
		"unknown log": {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusNotFound) }, "origin"},
		"log key":     {func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusForbidden) }, "log key"},
	} {
		t.Run(name, func(t *testing.T) {
			requests := 0
			c := client(t, tree, func(w http.ResponseWriter, r *http.Request) { requests++; tc.serve(w, r) })
			out, err := c.Cosign(t.Context(), cp)
			if err == nil || out != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, %v; want an error with %q", out, err, tc.want)
			}
			if requests > 2 {
				t.Errorf("%d requests", requests)
			}
		})
	}
}

// A witness that does not answer costs the caller's patience and no more.
func TestSilentWitness(t *testing.T) {
	tree := newTree(t, 5)
	released := make(chan struct{})
	c := client(t, tree, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-released:
		}
	})
	defer close(released)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Cosign(ctx, checkpoint(t, tree)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

// The request is the document's, byte by byte, and what the witness cosigned last is remembered.
func TestRequest(t *testing.T) {
	tree := newTree(t, 3)
	var bodies []string
	c := client(t, tree, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		bodies = append(bodies, r.Method+" "+r.URL.Path+"\n"+string(body))
		if len(bodies) == 1 {
			conflict(w, "2\n")
			return
		}
		_, cp, _ := strings.Cut(string(body), "\n\n")
		line, err := transparency.Cosign([]byte(cp), "witness.example", key("witness.example"))
		if err != nil {
			t.Error(err)
		}
		w.Write(line)
	})
	first := checkpoint(t, tree)
	out, err := c.Cosign(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	v, err := transparency.Verify(out, transparency.Policy{Origin: origin, LogKey: key("log").Public().(ed25519.PublicKey),
		Quorum: transparency.QuorumOf(3), Outside: []transparency.Outside{outside(t, "witness.example")}, At: time.Now()})
	if err != nil || len(v.Outside) != 1 {
		t.Fatalf("%+v, %v", v, err)
	}
	grow(t, tree, 1)
	second := checkpoint(t, tree)
	if _, err := c.Cosign(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Cosign(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	want := []string{"old 0\n\n" + string(first), "old 2\n" + proof(t, tree, 2, 3) + "\n" + string(first),
		"old 3\n" + proof(t, tree, 3, 4) + "\n" + string(second), "old 4\n\n" + string(second)}
	if len(bodies) != len(want) {
		t.Fatalf("%d requests, want %d", len(bodies), len(want))
	}
	for i, body := range want {
		if bodies[i] != "POST /add-checkpoint\n"+body {
			t.Errorf("request %d is\n%s\nwant\n%s", i, bodies[i], body)
		}
	}
}

func proof(t *testing.T, tree *transparency.Tree, a, b uint64) (text string) {
	t.Helper()
	hashes, err := tree.ConsistencyProof(a, b)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hashes {
		text += base64.StdEncoding.EncodeToString(h[:]) + "\n"
	}
	return text
}

func TestNew(t *testing.T) {
	w, tree := outside(t, "witness.example"), newTree(t, 0)
	for _, prefix := range []string{"", "witness.example", "ftp://witness.example", "https://", "https://w.example?x", "https://w.example#x", "http://[::1"} {
		if _, err := New(w, prefix, tree); err == nil {
			t.Errorf("%q was accepted", prefix)
		}
	}
	if _, err := New(transparency.Outside{}, "https://w.example", tree); err == nil {
		t.Error("a witness without a key was accepted")
	}
}
