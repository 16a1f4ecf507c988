package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDiskStatus(t *testing.T) {
	data := t.TempDir()
	for _, boot := range []string{"boot-1", "boot-2", "boot-3"} {
		if err := os.MkdirAll(filepath.Join(data, boot, "log"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	n := &Node{cfg: Config{Data: data}, logDir: filepath.Join(data, "boot-3", "log")}
	if d := n.diskStatus(); d == nil || d.Size == 0 || d.Free > d.Size || d.Older != 2 {
		t.Errorf("got %+v", d)
	}
	n.logDir = ""
	if d := n.diskStatus(); d != nil || d.warnings(data) != nil {
		t.Errorf("in a simulation: %+v", d)
	}
	full := &DiskStatus{Free: leastFree - 1, Size: 1 << 40, Older: 2}
	if w := full.warnings("data"); len(w) != 1 || !strings.Contains(w[0], "511 MiB are free") || !strings.Contains(w[0], "2 of them") {
		t.Errorf("got %q", w)
	}
}
