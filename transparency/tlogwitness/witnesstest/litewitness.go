// Package witnesstest runs witnesses that we did not write, for tests: torchwood's litewitness v0.9.0 and
// transparency-dev's omniwitness, each in a process of its own, with a key and a database of its own,
// so that it can be killed and go on. Where one of the programs that this takes is not
// installed the test is skipped. No binary links it.
package witnesstest

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"

	"github.com/attestmesh/meshnode/internal/loopback"
)

// Litewitness is torchwood's witness in its own process, its key in an ssh-agent: nothing of it is ours.
type Litewitness struct {
	// URL is its submission prefix, Key its verifier key of c2sp.org/tlog-cosignature.
	URL, Key string

	t       *testing.T
	dir     string
	address string
	print   string // the key's fingerprint
	process *exec.Cmd
}

// Name is the one that it cosigns under.
const Name = "witness.example/lite"

// Start starts one, which ends with the test, or skips the test where it is not installed.
func Start(t *testing.T) *Litewitness {
	t.Helper()
	for _, tool := range []string{"litewitness", "ssh-agent", "ssh-add", "ssh-keygen", "python3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed (go install filippo.io/torchwood/cmd/litewitness@v0.9.0; openssh-client; python3)", tool)
		}
	}
	dir, err := os.MkdirTemp("", "wit") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &Litewitness{t: t, dir: dir, address: loopback.Address(t)}
	w.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", w.path("key"))
	agent := exec.CommandContext(t.Context(), "ssh-agent", "-D", "-a", w.path("agent"))
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = agent.Process.Kill(); _ = agent.Wait() })
	w.await(func() bool { return w.command("ssh-add", w.path("key")).Run() == nil })
	w.print = strings.Fields(w.run("ssh-keygen", "-lf", w.path("key.pub")))[1]
	raw, err := os.ReadFile(w.path("key.pub"))
	if err != nil {
		t.Fatal(err)
	}
	blob, err := base64.StdEncoding.DecodeString(strings.Fields(string(raw))[1])
	if err != nil {
		t.Fatal(err)
	}
	s, err := torchwood.NewCosignatureSigner(Name, publicOnly{blob[len(blob)-ed25519.PublicKeySize:]})
	if err != nil {
		t.Fatal(err)
	}
	w.URL, w.Key = "http://"+w.address, s.Verifier().String()
	w.Restart()
	return w
}

func (w *Litewitness) path(name string) string { return filepath.Join(w.dir, name) }

func (w *Litewitness) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+w.path("agent"))
	return cmd
}

func (w *Litewitness) run(name string, args ...string) string {
	w.t.Helper()
	out, err := w.command(name, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// Restart starts it, after Kill on what it has persisted.
func (w *Litewitness) Restart() {
	w.t.Helper()
	w.process = w.command("litewitness", "-name", Name, "-key", w.print, "-ssh-agent", w.path("agent"), "-db", w.path("db"), "-listen", w.address)
	var stderr bytes.Buffer
	w.process.Stderr = &stderr
	if err := w.process.Start(); err != nil {
		w.t.Fatal(err)
	}
	process := w.process
	w.t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })
	w.await(func() bool { return answers(w.address) })
}

// answers reports whether something takes connections there.
func answers(address string) bool {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// Backup returns what it has persisted, while it does not run.
func (w *Litewitness) Backup() []byte {
	w.t.Helper()
	w.run("python3", "-c", "import sqlite3,sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)')", w.path("db"))
	raw, err := os.ReadFile(w.path("db"))
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// RestoreFrom puts back what Backup returned, while it does not run.
func (w *Litewitness) RestoreFrom(raw []byte) {
	w.t.Helper()
	for _, name := range []string{"db-wal", "db-shm"} {
		_ = os.Remove(w.path(name))
	}
	if err := os.WriteFile(w.path("db"), raw, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Kill ends it at once.
func (w *Litewitness) Kill() { _ = w.process.Process.Kill(); _ = w.process.Wait() }

func (w *Litewitness) await(done func() bool) {
	w.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !done(); <-tick.C {
		if time.Now().After(end) {
			w.t.Fatal("not within 20 s")
		}
	}
}

// tell writes a log into the witness's database. witnessctl would, but one of its modules is not
// to be had from everywhere.
const tell = `
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=10)
db.execute("INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)", (sys.argv[2], sys.argv[3]))
db.execute("INSERT INTO key (origin, key) VALUES (?, ?)", (sys.argv[2], sys.argv[4]))
db.commit()
`

// Know tells it of a log and its verifier key.
func (w *Litewitness) Know(origin, vkey string) {
	w.t.Helper()
	empty := sha256.Sum256(nil)
	w.run("python3", "-c", tell, w.path("db"), origin, base64.StdEncoding.EncodeToString(empty[:]), vkey)
}

// publicOnly is the crypto.Signer of a key whose private half the agent has.
type publicOnly struct{ key ed25519.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.key }

func (p publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("only the agent signs")
}
