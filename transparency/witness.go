package transparency

import (
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Witness cosigns for one seat in one boot: only checkpoints of its own log, signed by
// the log key, whose root its own tree computed, of a size no smaller than the last one
// it signed. What it signed last is kept in memory, since its key is: a new boot has a
// new key and a new name.
type Witness struct {
	tree   *Tree
	origin string
	logKey ed25519.PublicKey
	name   string
	key    ed25519.PrivateKey

	mu   sync.Mutex
	last uint64 // guarded by mu
}

// NewWitness returns the witness of tree that signs as name (see CosignerName).
func NewWitness(tree *Tree, origin string, logKey ed25519.PublicKey, name string, key ed25519.PrivateKey) (*Witness, error) {
	if tree == nil || len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("cosign: want a tree and a key")
	}
	if _, err := logVerifier(origin, logKey); err != nil {
		return nil, err
	}
	return &Witness{tree: tree, origin: origin, logKey: logKey, name: name, key: key}, nil
}

// Cosign returns the witness's cosignature line, or says why it does not sign.
func (w *Witness) Cosign(checkpoint []byte) ([]byte, error) {
	v, err := logVerifier(w.origin, w.logKey)
	if err != nil {
		return nil, err
	}
	n, err := openNote(checkpoint, v)
	if err != nil {
		return nil, err
	}
	c, err := parseText(n.Text)
	if err != nil {
		return nil, err
	}
	if c.Origin != w.origin || len(n.Sigs) != 1 {
		return nil, fmt.Errorf("cosign: a checkpoint of %.100q that the log key of %s has not signed", c.Origin, w.origin)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.Size < w.last {
		return nil, fmt.Errorf("cosign: size %d, this node has cosigned %d already", c.Size, w.last)
	}
	root, err := w.tree.RootAt(c.Size)
	if err != nil {
		return nil, fmt.Errorf("cosign: %w", err)
	}
	if root != c.Root {
		return nil, fmt.Errorf("cosign: size %d has root %s here, the checkpoint says %s: two histories", c.Size, root, c.Root)
	}
	line, err := Cosign(checkpoint, w.name, w.key)
	if err != nil {
		return nil, err
	}
	w.last = c.Size
	return line, nil
}

// publicOnly is the crypto.Signer of a key whose private half is elsewhere.
type publicOnly struct{ key ed25519.PublicKey }

// Public returns the public key.
func (p publicOnly) Public() crypto.PublicKey { return p.key }

// Sign refuses.
func (publicOnly) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("no private key")
}
