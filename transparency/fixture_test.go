package transparency

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
)

const testOrigin = "test.mesh/0123456789abcdef/0"

// key returns the same private key for the same name in every run.
func key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(name string) ed25519.PublicKey { return key(name).Public().(ed25519.PublicKey) }

func cosigner(org, node string) Cosigner {
	ref := identity.NodeRef{Org: identity.OrgID(org), Name: identity.NodeName(node)}
	name := CosignerName(testOrigin, ref, 7)
	return Cosigner{Name: name, Org: ref.Org, Key: public(name)}
}

// leaf is deterministic, of varying length, sometimes empty.
func leaf(i int) []byte {
	return bytes.Repeat([]byte(fmt.Sprintf("leaf %d;", i)), i%5)
}

func appendLeaves(t testing.TB, tree *Tree, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		got, err := tree.Append(leaf(i))
		if err != nil || got != uint64(i) {
			t.Fatalf("Append %d: index %d, %v", i, got, err)
		}
	}
}

func openDir(t testing.TB, path string, opts ...durable.Option) *durable.Dir {
	t.Helper()
	d, err := durable.Open(path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newTree(t testing.TB, dir *durable.Dir) *Tree {
	t.Helper()
	tree, err := NewTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// sign returns the tree's checkpoint with the cosignatures of cosigners.
func sign(t testing.TB, tree *Tree, cosigners ...Cosigner) []byte {
	t.Helper()
	size, root := tree.Head()
	return signHead(t, Checkpoint{testOrigin, size, root}, cosigners...)
}

func signHead(t testing.TB, c Checkpoint, cosigners ...Cosigner) []byte {
	t.Helper()
	out, err := NewCheckpoint(c, key("log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, by := range cosigners {
		line, err := Cosign(out, by.Name, key(by.Name))
		if err != nil {
			t.Fatal(err)
		}
		if out, err = Merge(out, line, by); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func testPolicy(n int, cosigners ...Cosigner) Policy {
	return Policy{Origin: testOrigin, LogKey: public("log"), Cosigners: cosigners,
		Quorum: QuorumOf(n), At: time.Now()}
}

// publishedLog writes a log of n leaves into a directory and returns tree and path.
func publishedLog(t testing.TB, n int) (*Tree, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	tree := newTree(t, openDir(t, path))
	appendLeaves(t, tree, 0, n)
	if err := tree.Publish(sign(t, tree, cosigner("alpha", "n1"), cosigner("beta", "n1"))); err != nil {
		t.Fatal(err)
	}
	return tree, path
}

// files returns the content of every file below root by its relative name.
func files(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		out[strings.TrimPrefix(path, root+"/")] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
