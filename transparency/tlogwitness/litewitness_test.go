package tlogwitness

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestmesh/meshnode/internal/loopback"
	"github.com/attestmesh/meshnode/transparency"
)

// litewitness is torchwood's witness in its own process, its key in an ssh-agent: nothing of it is ours.
type litewitness struct {
	t       *testing.T
	dir     string
	address string
	key     transparency.Outside
	print   string // the key's fingerprint
	process *exec.Cmd
}

const litewitnessName = "witness.example/lite"

func startLitewitness(t *testing.T) *litewitness {
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
	w := &litewitness{t: t, dir: dir, address: loopback.Address(t)}
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
	w.key = witnessOf(t, litewitnessName, blob[len(blob)-ed25519.PublicKeySize:])
	w.start()
	return w
}

// witnessOf builds a verifier key as c2sp.org/tlog-cosignature lays it out.
func witnessOf(t *testing.T, name string, public []byte) transparency.Outside {
	t.Helper()
	s, err := torchwood.NewCosignatureSigner(name, publicOnly{public})
	if err != nil {
		t.Fatal(err)
	}
	w, err := transparency.ParseOutside(s.Verifier().String())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *litewitness) path(name string) string { return filepath.Join(w.dir, name) }

func (w *litewitness) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(w.t.Context(), name, args...)
	cmd.Env = append(os.Environ(), "SSH_AUTH_SOCK="+w.path("agent"))
	return cmd
}

func (w *litewitness) run(name string, args ...string) string {
	w.t.Helper()
	out, err := w.command(name, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// start starts it, or starts it again on what it has persisted.
func (w *litewitness) start() {
	w.t.Helper()
	w.process = w.command("litewitness", "-name", litewitnessName, "-key", w.print, "-ssh-agent", w.path("agent"), "-db", w.path("db"), "-listen", w.address)
	var stderr bytes.Buffer
	w.process.Stderr = &stderr
	if err := w.process.Start(); err != nil {
		w.t.Fatal(err)
	}
	process := w.process
	w.t.Cleanup(func() { _ = process.Process.Kill(); _ = process.Wait() })
	w.await(func() bool {
		conn, err := net.DialTimeout("tcp", w.address, time.Second)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
}

func (w *litewitness) kill() { _ = w.process.Process.Kill(); _ = w.process.Wait() }

func (w *litewitness) await(done func() bool) {
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

// know tells it of a log.
func (w *litewitness) know(origin string, public ed25519.PublicKey) {
	w.t.Helper()
	vkey, err := note.NewEd25519VerifierKey(origin, public)
	if err != nil {
		w.t.Fatal(err)
	}
	empty := sha256.Sum256(nil)
	w.run("python3", "-c", tell, w.path("db"), origin, base64.StdEncoding.EncodeToString(empty[:]), vkey)
}

func (w *litewitness) client(log Log) *Client {
	w.t.Helper()
	c, err := New(w.key, "http://"+w.address, log)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	return c
}

func TestLitewitness(t *testing.T) {
	w := startLitewitness(t)
	public := key("log").Public().(ed25519.PublicKey)
	tree := newTree(t, 1)
	c := w.client(tree)
	status := func(err error) int {
		var refused *Refused
		errors.As(err, &refused)
		if refused == nil {
			return 0
		}
		return refused.Status
	}
	if _, err := c.Cosign(t.Context(), checkpoint(t, tree)); status(err) != http.StatusNotFound {
		t.Errorf("a log it does not know: %v", err)
	}
	w.know(origin, public)
	for _, more := range []int{0, 1, 300, 0, 7} {
		grow(t, tree, more)
		out, err := c.Cosign(t.Context(), checkpoint(t, tree))
		if err != nil {
			t.Fatal(err)
		}
		v, err := transparency.Verify(out, transparency.Policy{Origin: origin, LogKey: public, Quorum: transparency.QuorumOf(3), Outside: []transparency.Outside{w.key}, At: time.Now()})
		if err != nil || len(v.Outside) != 1 || v.Outside[0].Name != litewitnessName || len(v.Problems) != 0 {
			t.Fatalf("%+v, %v", v, err)
		}
	}

	// Whom it has cosigned it remembers, whoever asks and whatever happened meanwhile.
	w.kill()
	if _, err := c.Cosign(t.Context(), checkpoint(t, tree)); err == nil || status(err) != 0 {
		t.Errorf("while it is down: %v", err)
	}
	w.start()
	grow(t, tree, 5)
	if _, err := w.client(tree).Cosign(t.Context(), checkpoint(t, tree)); err != nil {
		t.Errorf("after it came back: %v", err)
	}

	// A log that was rolled back, one with another history, one signed by another key.
	older := newTree(t, 20)
	if _, err := w.client(older).Cosign(t.Context(), checkpoint(t, older)); !errors.Is(err, ErrAhead) {
		t.Errorf("rolled back: %v", err)
	}
	fork := newTree(t, 0)
	for range tree.Size() + 3 {
		if _, err := fork.Append([]byte(fmt.Sprint("other leaf ", fork.Size()))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.client(fork).Cosign(t.Context(), checkpoint(t, fork)); status(err) != http.StatusUnprocessableEntity {
		t.Errorf("forked: %v", err)
	}
	size, root := tree.Head()
	stolen, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: origin, Size: size, Root: root}, key("thief"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Cosign(t.Context(), stolen); status(err) != http.StatusForbidden {
		t.Errorf("another log key: %v", err)
	}
}

// Whoever steals the log key can show a witness another history before the mesh does. The mesh
// then hears of it at its next checkpoint, from that witness.
func TestPoisonedWitness(t *testing.T) {
	w := startLitewitness(t)
	w.know(origin, key("log").Public().(ed25519.PublicKey))
	tree, fork := newTree(t, 4), newTree(t, 0)
	for range 9 {
		if _, err := fork.Append([]byte("forged")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.client(fork).Cosign(t.Context(), checkpoint(t, fork)); err != nil {
		t.Fatal(err)
	}
	honest := w.client(tree)
	if _, err := honest.Cosign(t.Context(), checkpoint(t, tree)); !errors.Is(err, ErrAhead) {
		t.Errorf("the smaller honest log: %v", err)
	}
	grow(t, tree, 20)
	var refused *Refused
	if _, err := honest.Cosign(t.Context(), checkpoint(t, tree)); !errors.As(err, &refused) || refused.Status != http.StatusUnprocessableEntity {
		t.Errorf("the larger honest log: %v", err)
	}
}

// publicOnly is the crypto.Signer of a key whose private half the agent has.
type publicOnly struct{ key ed25519.PublicKey }

func (p publicOnly) Public() crypto.PublicKey { return p.key }

func (p publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("only the agent signs")
}
