package transparency

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a node serves has the headers that caches and readers go by.
func TestServedFiles(t *testing.T) {
	tree, path := publishedLog(t, 300)
	s := httptest.NewServer(http.StripPrefix("/log", tree))
	defer s.Close()
	ask := func(method, name, span string) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/log/"+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		if span != "" {
			req.Header.Set("Range", span)
		}
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, body
	}
	for name, want := range map[string][2]string{
		"checkpoint":            {"text/plain; charset=utf-8", "no-cache"},
		"tile/0/000":            {"application/octet-stream", "public, max-age=31536000, immutable"},
		"tile/0/001.p/44":       {"application/octet-stream", "public, max-age=31536000, immutable"},
		"tile/entries/000":      {"application/octet-stream", "public, max-age=31536000, immutable"},
		"tile/entries/001.p/44": {"application/octet-stream", "public, max-age=31536000, immutable"},
	} {
		file, err := os.ReadFile(filepath.Join(path, name))
		if err != nil {
			t.Fatal(err)
		}
		resp, body := ask(http.MethodGet, name, "")
		if resp.StatusCode != http.StatusOK || string(body) != string(file) || resp.Header.Get("Content-Type") != want[0] || resp.Header.Get("Cache-Control") != want[1] {
			t.Errorf("%s: %s, %d bytes of %d, %v", name, resp.Status, len(body), len(file), resp.Header)
		}
		resp, body = ask(http.MethodHead, name, "")
		if resp.StatusCode != http.StatusOK || len(body) != 0 || resp.ContentLength != int64(len(file)) {
			t.Errorf("HEAD %s: %s, %d bytes, length %d", name, resp.Status, len(body), resp.ContentLength)
		}
		resp, body = ask(http.MethodGet, name, "bytes=2-5")
		if resp.StatusCode != http.StatusPartialContent || string(body) != string(file[2:6]) {
			t.Errorf("a range of %s: %s %q", name, resp.Status, body)
		}
	}
	for _, name := range []string{"", "tile", "tile/", "tile/0/002", "tile/0/001.p/45", "tile/entries/1", "tile/0/000.p/256", "tile/8/0/000",
		"../checkpoint", "tile/0/%2e%2e/%2e%2e/checkpoint", ".checkpoint.tmp1", "checkpoint/", "tile/entries/000.p/" + strings.Repeat("9", 300)} {
		resp, body := ask(http.MethodGet, name, "")
		if resp.StatusCode != http.StatusNotFound || resp.Header.Get("Cache-Control") != "no-cache" || len(body) > 100 {
			t.Errorf("%s: %s, %d bytes, %v", name, resp.Status, len(body), resp.Header)
		}
	}
}
