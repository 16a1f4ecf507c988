package witnesstest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestmesh/meshnode/internal/loopback"
)

// OmniName is the name that an Omniwitness cosigns under.
const OmniName = "witness.example/omni"

// Omniwitness is transparency-dev's witness in its own process, its key and database in files of its
// own. What logs it knows it reads when it starts.
type Omniwitness struct {
	// URL is its submission prefix, Key its verifier key of c2sp.org/tlog-cosignature.
	URL, Key string

	t       *testing.T
	dir     string
	address string
	process *exec.Cmd
}

// StartOmni starts one, which ends with the test, or skips the test where it is not installed.
func StartOmni(t *testing.T) *Omniwitness {
	t.Helper()
	if _, err := exec.LookPath("omniwitness"); err != nil {
		t.Skip("omniwitness is not installed (go install github.com/transparency-dev/witness/cmd/omniwitness@v0.0.0-20260720115447-2e1c6971d19e)")
	}
	w := &Omniwitness{t: t, dir: t.TempDir(), address: loopback.Address(t)}
	private, public, err := note.GenerateKey(rand.Reader, OmniName)
	if err != nil {
		t.Fatal(err)
	}
	w.write("key", private)
	w.write("logs.yaml", "Logs: []\n")
	if w.Key, err = cosignatureKey(public); err != nil {
		t.Fatal(err)
	}
	w.URL = "http://" + w.address
	w.Restart()
	return w
}

// cosignatureKey is the verifier key by which torchwood knows the cosignatures of a note's key.
func cosignatureKey(vkey string) (string, error) {
	fields := strings.SplitN(vkey, "+", 3) // name, hash of the key, base64 of its type and bytes
	raw, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		return "", err
	}
	s, err := torchwood.NewCosignatureSigner(OmniName, publicOnly{raw[1:]})
	if err != nil {
		return "", err
	}
	return s.Verifier().String(), nil
}

func (w *Omniwitness) write(name, text string) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Restart starts it, after Kill on what it has persisted.
func (w *Omniwitness) Restart() {
	w.t.Helper()
	w.process = exec.CommandContext(w.t.Context(), "omniwitness", "--listen", w.address, "--metrics_listen", "",
		"--db_file", filepath.Join(w.dir, "db"), "--private_key_path", filepath.Join(w.dir, "key"), "--additional_logs", filepath.Join(w.dir, "logs.yaml"))
	var stderr bytes.Buffer
	w.process.Stderr = &stderr
	if err := w.process.Start(); err != nil {
		w.t.Fatal(err)
	}
	process := w.process
	w.t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })
	awaitAddress(w.t, w.address)
}

// Kill ends it at once.
func (w *Omniwitness) Kill() { _ = w.process.Process.Kill(); _ = w.process.Wait() }

// Know tells it of a log and its verifier key, for which it starts anew.
func (w *Omniwitness) Know(origin, vkey string) {
	w.t.Helper()
	w.Kill()
	w.write("logs.yaml", fmt.Sprintf("Logs:\n  - Origin: %s\n    PublicKey: %s\n", origin, strings.TrimSpace(vkey)))
	w.Restart()
}

// Backup returns what it has persisted, while it does not run.
func (w *Omniwitness) Backup() []byte {
	w.t.Helper()
	// What is in the write-ahead log goes into the file first.
	if out, err := exec.Command("python3", "-c", "import sqlite3,sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')", filepath.Join(w.dir, "db")).CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(w.dir, "db"))
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// RestoreFrom puts back what Backup returned, while it does not run.
func (w *Omniwitness) RestoreFrom(raw []byte) {
	w.t.Helper()
	for _, name := range []string{"db-wal", "db-shm"} {
		_ = os.Remove(filepath.Join(w.dir, name))
	}
	w.write("db", string(raw))
}

func awaitAddress(t *testing.T, address string) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !answers(address); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("nothing answers at %s within 20 s", address)
		}
	}
}
