package transparency

import (
	"bytes"
	"errors"
	"io/fs"
	"net/http"
	"strings"
	"time"
)

// ServeHTTP serves the tree's files, read-only, at the paths of c2sp.org/tlog-tiles: mount
// it with the prefix stripped. Tiles never change and may be cached for ever; the checkpoint is asked for
// anew each time, and that there is no file now, too. Ranges and HEAD work as everywhere.
func (t *Tree) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	name := strings.TrimPrefix(req.URL.Path, "/")
	data, err := t.ReadFile(name)
	w.Header().Set("Cache-Control", "no-cache")
	if errors.Is(err, fs.ErrNotExist) {
		http.NotFound(w, req)
		return
	}
	if err != nil {
		http.Error(w, "cannot read the log", http.StatusInternalServerError)
		return
	}
	if name == checkpointName {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(data))
}
