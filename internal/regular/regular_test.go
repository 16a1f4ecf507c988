package regular

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestOpen(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(path("file"), []byte("text"), 0o600), os.Symlink("file", path("link")),
		syscall.Mkfifo(path("pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "link"} {
		f, err := Open(path(name))
		if err != nil {
			t.Fatal(err)
		}
		if raw, err := io.ReadAll(f); err != nil || string(raw) != "text" {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
		f.Close()
	}
	for name, want := range map[string]string{path("pipe"): "a named pipe", dir: "a directory", "/dev/null": "a device"} {
		_, err := Open(name)
		var not *NotRegularError
		if !errors.As(err, &not) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", name, err, want)
		}
	}
	if _, err := Open(path("absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}
