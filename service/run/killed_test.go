package run

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// marker tells this test's program from all others of the machine.
const marker = "-left-by"

// TestKilledNodeLeavesNothing: a node that was killed leaves no program behind.
func TestKilledNodeLeavesNothing(t *testing.T) {
	if id := os.Getenv("MESHNODE_TEST_VICTIM"); id != "" {
		s := started(t, io.Discard, marker+id)
		if err := ready(t, s); err != nil {
			t.Fatal(err)
		}
		fmt.Println("victim ready")
		select {}
	}
	sandbox(t)
	id := fmt.Sprint(os.Getpid())
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestKilledNodeLeavesNothing$")
	cmd.Env = append(os.Environ(), "MESHNODE_TEST_VICTIM="+id)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.Contains(lines.Text(), "victim ready") {
	}
	if len(running(id)) == 0 {
		t.Error("the program does not run")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); len(running(id)) > 0; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("left: %v", running(id))
		}
	}
}

// running returns the processes whose command line has the marker.
func running(id string) (out []string) {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range paths {
		if raw, err := os.ReadFile(p); err == nil && strings.Contains(string(raw), marker+id) {
			out = append(out, p)
		}
	}
	return out
}
