package audit

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
)

var kept atomic.Int64

// keep copies an audited log with its verdict into the directory named by MESHNODE_KEEP_LOGS, one
// numbered directory each, for python/test_audit.py: every log that these tests make has to get
// the same verdict there. Does nothing where the variable is not set.
func keep(t testing.TB, location string, opts Options, report Report) {
	t.Helper()
	to := os.Getenv("MESHNODE_KEEP_LOGS")
	if st, err := os.Stat(location); to == "" || err != nil || !st.IsDir() {
		return
	}
	to = filepath.Join(to, fmt.Sprintf("%04d", kept.Add(1)))
	verdict := map[string]any{"test": t.Name(), "at": opts.At.UTC(), "max_age_ms": opts.MaxAge.Milliseconds(), "report": report}
	raw, err := json.Marshal(verdict)
	if err == nil {
		err = os.CopyFS(filepath.Join(to, "log"), os.DirFS(location))
	}
	if err == nil && opts.Genesis != nil {
		err = os.WriteFile(filepath.Join(to, "genesis.json"), opts.Genesis.Raw(), 0o644)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(to, "verdict.json"), raw, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
