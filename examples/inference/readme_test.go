package inference

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/loopback"
)

// pageWithin bounds the whole page.
const pageWithin = 5 * time.Minute

var (
	blocks    = regexp.MustCompile("(?ms)((?:^<!-- [a-z]+: [^\n]* -->\n)*)^```sh\n(.*?)^```$")
	directive = regexp.MustCompile(`(?m)^<!-- (until|shows): (.*) -->$`)
	ports     = regexp.MustCompile(`127\.0\.0\.1:([0-9]+)`)
)

// TestReadme types README.md into one shell at the root of the repository: until repeats a
// block until it shows something, shows demands it at once.
func TestReadme(t *testing.T) {
	for tool, pkg := range map[string]string{"bwrap": "bubblewrap", "curl": "curl", "bash": "bash"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (apt-get install %s)", tool, pkg)
		}
	}
	page, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.MkdirTemp("", "inf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	given := map[string]string{}
	text := ports.ReplaceAllStringFunc(string(page), func(s string) string {
		if given[s] == "" {
			given[s] = loopback.Address(t)
		}
		return given[s]
	})
	var script strings.Builder
	script.WriteString("set -euo pipefail\ntrap 'kill $(cat ~/inference/proxy.pid ~/inference/mesh/pids 2>/dev/null) 2>/dev/null || true' EXIT\n")
	found := blocks.FindAllStringSubmatch(text, -1)
	if len(found) < 10 {
		t.Fatalf("%d blocks", len(found))
	}
	for i, b := range found {
		fmt.Fprintf(&script, "\nblock() {\n%s}\necho '--- block %d'\n", b[2], i+1)
		d := directive.FindStringSubmatch(b[1])
		switch {
		case d == nil:
			script.WriteString("block\n")
		case d[1] == "shows":
			fmt.Fprintf(&script, "block | tee ~/shown; grep -Eq '%s' ~/shown\n", d[2])
		default:
			fmt.Fprintf(&script, "for try in $(seq 300); do block > ~/shown 2>&1 || true; grep -Eq '%s' ~/shown && break; sleep 0.1; done; cat ~/shown; grep -Eq '%s' ~/shown\n", d[2], d[2])
		}
	}
	runtime.LockOSThread() // the shell ends with this thread
	ctx, cancel := context.WithTimeout(t.Context(), pageWithin)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script.String())
	cmd.Dir = filepath.Join("..", "..")
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home, "BOB="+given["127.0.0.1:8443"], "ALPHA_PUBLIC="+loopback.Address(t), "BOB_PUBLIC="+loopback.Address(t), "GAMMA_PUBLIC="+loopback.Address(t),
		"GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"), "GOFLAGS=-buildvcs=false")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &out, &out, 10*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	if err := cmd.Run(); err != nil {
		for _, name := range []string{"inference/proxy.log", "inference/mesh/bob-node.log"} {
			raw, _ := os.ReadFile(filepath.Join(home, name))
			t.Logf("%s:\n%s", name, raw[max(0, len(raw)-4096):])
		}
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Logf("%d blocks", len(found))
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
