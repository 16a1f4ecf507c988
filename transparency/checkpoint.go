package transparency

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Checkpoint names a log and its state at one size.
type Checkpoint struct {
	Origin string
	Size   uint64
	Root   Hash
}

// CosignerName returns the name under which a node cosigns in one boot:
// <origin>/<organisation>/<node>/<boot_seq>.
func CosignerName(origin string, node identity.NodeRef, boot identity.BootSeq) string {
	return origin + "/" + node.String() + "/" + strconv.FormatUint(uint64(boot), 10)
}

// text is what is signed.
func (c Checkpoint) text() string {
	return torchwood.Checkpoint{Origin: c.Origin, Tree: tlog.Tree{N: int64(c.Size), Hash: tlog.Hash(c.Root)}}.String()
}

// parseText decodes what is signed and refuses every other spelling of it.
func parseText(text string) (Checkpoint, error) {
	p, err := torchwood.ParseCheckpoint(text)
	if err != nil {
		return Checkpoint{}, fmt.Errorf("checkpoint: %w", err)
	}
	if p.N > maxLogSize {
		return Checkpoint{}, fmt.Errorf("checkpoint: size %d, the limit is %d", p.N, int64(maxLogSize))
	}
	c := Checkpoint{p.Origin, uint64(p.N), Hash(p.Hash)}
	if c.text() != text || c.Origin == "" {
		return Checkpoint{}, errors.New("checkpoint: not origin, size and root in canonical form")
	}
	return c, nil
}

// openNote splits a signed note into its text and signatures, of which it verifies those
// that known knows. Unlike note.Open it accepts a note without any known signature.
func openNote(signed []byte, known ...note.Verifier) (*note.Note, error) {
	if len(signed) > maxNote {
		return nil, fmt.Errorf("checkpoint: %d bytes, the limit is %d", len(signed), maxNote)
	}
	n, err := note.Open(signed, note.VerifierList(known...))
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		return unverified.Note, nil
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return n, nil
}

// ParseCheckpoint decodes a signed checkpoint without checking any signature.
func ParseCheckpoint(signed []byte) (Checkpoint, error) {
	n, err := openNote(signed)
	if err != nil {
		return Checkpoint{}, err
	}
	return parseText(n.Text)
}

// NewCheckpoint signs a checkpoint with the log key.
func NewCheckpoint(c Checkpoint, logKey ed25519.PrivateKey) ([]byte, error) {
	s, err := logSigner(c.Origin, logKey)
	if err != nil {
		return nil, err
	}
	if _, err := parseText(c.text()); err != nil {
		return nil, err
	}
	out, err := note.Sign(&note.Note{Text: c.text()}, s)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return out, nil
}

// logSigner is the note signer of the log key; the note package makes one from its text
// form only.
func logSigner(origin string, key ed25519.PrivateKey) (note.Signer, error) {
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("checkpoint: no log key")
	}
	vkey, err := note.NewEd25519VerifierKey(origin, key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil, fmt.Errorf("checkpoint: log key: %w", err)
	}
	fields := strings.SplitN(vkey, "+", 3)
	const algEd25519 = 1 // c2sp.org/signed-note, signature types
	seed := base64.StdEncoding.EncodeToString(append([]byte{algEd25519}, key.Seed()...))
	s, err := note.NewSigner(strings.Join([]string{"PRIVATE", "KEY", origin, fields[1], seed}, "+"))
	if err != nil {
		return nil, fmt.Errorf("checkpoint: log key for origin %.100q: %w", origin, err)
	}
	return s, nil
}

// VerifierKey is the log key as c2sp.org/signed-note writes it, for witnesses and for readers that
// others wrote: "<origin>+<key hash, 8 hex>+<base64>".
func VerifierKey(origin string, logKey ed25519.PublicKey) (string, error) {
	vkey, err := note.NewEd25519VerifierKey(origin, logKey)
	if err != nil {
		return "", fmt.Errorf("checkpoint: log key: %w", err)
	}
	return vkey, nil
}

func logVerifier(origin string, key ed25519.PublicKey) (note.Verifier, error) {
	vkey, err := VerifierKey(origin, key)
	if err != nil {
		return nil, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: log key for origin %.100q: %w", origin, err)
	}
	return v, nil
}

// Cosign returns the cosignature line of key over a checkpoint, ended by a newline. It
// reads the clock, so it is never called inside a state machine, and it vouches for
// whatever it is given: seats use a Witness.
func Cosign(checkpoint []byte, name string, key ed25519.PrivateKey) ([]byte, error) {
	n, err := openNote(checkpoint)
	if err != nil {
		return nil, err
	}
	if _, err := parseText(n.Text); err != nil {
		return nil, err
	}
	if len(key) != ed25519.PrivateKeySize {
		return nil, errors.New("cosign: no key")
	}
	s, err := torchwood.NewCosignatureSigner(name, key)
	if err != nil {
		return nil, fmt.Errorf("cosign as %.100q: %w", name, err)
	}
	out, err := note.Sign(&note.Note{Text: n.Text}, s)
	if err != nil {
		return nil, fmt.Errorf("cosign as %.100q: %w", name, err)
	}
	return out[len(n.Text)+1:], nil
}

// Merge adds the cosignature line of one cosigner to a checkpoint after checking it, and
// replaces an earlier one of the same cosigner.
func Merge(checkpoint, line []byte, by Cosigner) ([]byte, error) {
	v, err := by.verifier()
	if err != nil {
		return nil, err
	}
	return merge(checkpoint, line, v)
}

func merge(checkpoint, line []byte, v *torchwood.CosignatureVerifier) ([]byte, error) {
	n, err := openNote(checkpoint)
	if err != nil {
		return nil, err
	}
	if len(line) > maxNote || bytes.Count(line, []byte("\n")) != 1 {
		return nil, fmt.Errorf("cosignature of %s: want one line, got %d bytes", v.Name(), len(line))
	}
	one, err := openNote(append([]byte(n.Text+"\n"), line...), v)
	if err != nil {
		return nil, fmt.Errorf("cosignature of %s: %w", v.Name(), err)
	}
	if len(one.Sigs) != 1 || len(one.UnverifiedSigs) != 0 {
		return nil, fmt.Errorf("cosignature of %s: the line is signed by another name or key", v.Name())
	}
	sigs := n.UnverifiedSigs[:0:0]
	for _, s := range n.UnverifiedSigs {
		if s.Name != v.Name() || s.Hash != v.KeyHash() {
			sigs = append(sigs, s)
		}
	}
	out, err := note.Sign(&note.Note{Text: n.Text, UnverifiedSigs: append(sigs, one.Sigs[0])})
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	if len(out) > maxNote {
		return nil, fmt.Errorf("checkpoint: %d bytes with this cosignature, the limit is %d", len(out), maxNote)
	}
	return out, nil
}
