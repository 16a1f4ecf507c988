package monitor

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/attestmesh/meshnode/audit/proof"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

// Receipt is a leaf that must be in the log.
type Receipt struct {
	Name string // of the file
	// Hash is the leaf's, in hex: what a receipt is known by.
	Hash string
	// Head is the checkpoint that proved it at Index; none where all that is known is the leaf.
	Head  head
	Index uint64
}

// ReadReceipt reads a file that says that a leaf is in the log: what log prove or log show wrote, the
// certificate of a round, or the leaf itself, as it was handed in. The path from the leaf to the
// checkpoint's root is checked here; whether the log has that root is what the monitor watches.
func ReadReceipt(path string) (Receipt, error) {
	f, err := os.Open(path)
	if err != nil {
		return Receipt{}, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, proof.MaxFile+1))
	if err != nil {
		return Receipt{}, err
	}
	r, err := parseReceipt(raw)
	if err != nil {
		return Receipt{}, fmt.Errorf("%s: %w", path, err)
	}
	r.Name = filepath.Base(path)
	return r, nil
}

func parseReceipt(raw []byte) (Receipt, error) {
	if bytes.HasPrefix(raw, []byte("c2sp.org/tlog-proof@v1\n")) {
		p, err := proof.Parse(raw)
		if errors.Is(err, proof.ErrBare) {
			err = errors.New("a tlog-proof without its leaf")
		}
		if err != nil {
			return Receipt{}, err
		}
		return newReceipt(p.Subject.Data, p.Subject.Index, p.Subject.Path, p.Checkpoint)
	}
	leaf := bytes.TrimSuffix(raw, []byte("\n"))
	if _, err := envelope.Parse(leaf); err == nil {
		h := transparency.LeafHash(leaf)
		return Receipt{Hash: hex.EncodeToString(h[:])}, nil
	}
	c, err := federated.ParseCertificate(raw)
	if err != nil {
		return Receipt{}, fmt.Errorf("neither a proof by log prove, nor a leaf, nor a certificate: %w", err)
	}
	if c.Log == nil {
		h := transparency.LeafHash(c.Leaf)
		return Receipt{Hash: hex.EncodeToString(h[:])}, nil
	}
	var path []transparency.Hash
	for i, s := range c.Log.Proof {
		h, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil || len(h) != len(transparency.Hash{}) {
			return Receipt{}, fmt.Errorf("certificate: hash %d of the proof is not 32 bytes in base64", i)
		}
		path = append(path, transparency.Hash(h))
	}
	return newReceipt(c.Leaf, c.Log.Index, path, []byte(c.Log.Checkpoint))
}

// newReceipt checks that the path leads from the leaf to the checkpoint's root.
func newReceipt(leaf []byte, index uint64, path []transparency.Hash, note []byte) (Receipt, error) {
	h, err := headOf(note)
	if err != nil {
		return Receipt{}, err
	}
	if err := transparency.VerifyInclusion(leaf, index, path, h.Size, h.Root); err != nil {
		return Receipt{}, fmt.Errorf("the path does not lead from the leaf to its checkpoint: %w", err)
	}
	hash := transparency.LeafHash(leaf)
	return Receipt{Hash: hex.EncodeToString(hash[:]), Head: h, Index: index}, nil
}

// waiting is what is known of a receipt.
type waiting struct {
	Since time.Time `json:"since"` // it was first given here
	Found bool      `json:"found"`
	// Scanned says that all leaves were compared with it that were audited before it was given.
	Scanned bool `json:"scanned"`
}
