package transparency

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What a server does wrong is unavailable, never tampered; and a walk ends.
func TestServerFailures(t *testing.T) {
	tree, _ := publishedLog(t, 300)
	var mode atomic.Value
	var asked atomic.Int32
	mode.Store("")
	release := make(chan struct{})
	var seen sync.Map
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		mode := mode.Load()
		asked.Add(1)
		_, again := seen.LoadOrStore(req.URL.Path, true) // files are fetched side by side
		switch {
		case mode == "flaky" && !again, mode == "down":
			http.Error(w, "no", http.StatusServiceUnavailable)
		case mode == "forbidden":
			http.Error(w, "no", http.StatusForbidden)
		case mode == "loop":
			http.Redirect(w, req, req.URL.Path, http.StatusFound)
		case mode == "hang":
			select {
			case <-release:
			case <-req.Context().Done():
			}
		case mode == "endless":
			for req.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		default:
			tree.ServeHTTP(w, req)
		}
	}))
	defer server.Close()
	defer close(release)
	r, err := OpenReader(server.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	r.src.(*httpSource).pause = time.Millisecond
	size, root := tree.Head()
	head := Checkpoint{testOrigin, size, root}
	mode.Store("flaky")
	if w, err := r.Walk(t.Context(), head, WalkOptions{}); err != nil || len(w.Findings) != 0 {
		t.Errorf("flaky: %v %v", w.Findings, err)
	}
	for _, m := range []string{"down", "forbidden", "loop"} {
		mode.Store(m)
		if w, err := r.Walk(t.Context(), head, WalkOptions{}); !errors.Is(err, ErrUnavailable) || len(w.Findings) != 0 {
			t.Errorf("%s: %v %v", m, w.Findings, err)
		}
	}
	mode.Store("hang")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := r.Walk(ctx, head, WalkOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hang: %v", err)
	}
	mode.Store("endless")
	if _, err := r.Checkpoint(t.Context()); err == nil || errors.Is(err, ErrUnavailable) {
		t.Errorf("endless checkpoint: %v", err)
	}
	w, err := r.Walk(t.Context(), Checkpoint{testOrigin, 1, Hash{}}, WalkOptions{})
	if err != nil || codes(w) != "0:entries_malformed 0:tile_malformed" {
		t.Errorf("endless: %s %v", codes(w), err)
	}
	mode.Store("gone")
	server.CloseClientConnections()
	server.Listener.Close()
	if _, err := r.Checkpoint(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("gone: %v", err)
	}
}
