package transparency

import (
	"crypto/ed25519"
	"encoding/base64"
	"slices"

	"golang.org/x/mod/sumdb/note"
)

// Signed says who has signed a checkpoint, whatever it is worth and whenever that was: for those who
// hold somebody's signatures against each other. Nothing in it says that the log is good.
type Signed struct {
	Checkpoint
	LogKey    bool       // the log key has
	Cosigners []Cosigner // those of the given ones that have, in their order
	Outside   []string   // names of those of the given witnesses that have, in their order
}

// Signers returns who of those that are given has signed a checkpoint. Lines of others, and lines that
// do not verify, are passed over.
func Signers(signed []byte, logKey ed25519.PublicKey, cosigners []Cosigner, outside []Outside) (Signed, error) {
	n, err := openNote(signed)
	if err != nil {
		return Signed{}, err
	}
	c, err := parseText(n.Text)
	if err != nil {
		return Signed{}, err
	}
	out := Signed{Checkpoint: c}
	log, err := logVerifier(c.Origin, logKey)
	if err != nil {
		return Signed{}, err
	}
	out.LogKey = hasLine(n, log)
	for _, by := range cosigners {
		v, err := by.verifier()
		if err != nil {
			return Signed{}, err
		}
		if hasLine(n, v) {
			out.Cosigners = append(out.Cosigners, by)
		}
	}
	for _, w := range outside {
		if w.verifier != nil && hasLine(n, w.verifier) {
			out.Outside = append(out.Outside, w.Name())
		}
	}
	return out, nil
}

// hasLine reports whether some line of a note verifies by v.
func hasLine(n *note.Note, v note.Verifier) bool {
	return slices.ContainsFunc(n.UnverifiedSigs, func(s note.Signature) bool {
		raw, err := base64.StdEncoding.DecodeString(s.Base64)
		return err == nil && len(raw) > 4 && s.Name == v.Name() && s.Hash == v.KeyHash() && v.Verify([]byte(n.Text), raw[4:])
	})
}
