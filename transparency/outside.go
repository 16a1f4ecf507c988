package transparency

import (
	"encoding/base64"
	"fmt"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
)

// Witnessed returns the checkpoint of a note that an outside witness has cosigned, and the
// name of that witness. keys are C2SP verifier keys (c2sp.org/tlog-cosignature); the log's own
// signature is not looked at, since a witness signs only what the log key has signed.
func Witnessed(signed []byte, keys []string) (Checkpoint, string, error) {
	n, err := openNote(signed)
	if err != nil {
		return Checkpoint{}, "", err
	}
	c, err := parseText(n.Text)
	if err != nil {
		return Checkpoint{}, "", err
	}
	for _, key := range keys {
		v, err := torchwood.NewCosignatureVerifier(key)
		if err != nil {
			return Checkpoint{}, "", fmt.Errorf("witness key %.60q: %w", key, err)
		}
		for _, s := range n.UnverifiedSigs {
			if s.Name == v.Name() && cosigned(v, n.Text, s) {
				return c, s.Name, nil
			}
		}
	}
	return Checkpoint{}, "", fmt.Errorf("checkpoint of size %d: no cosignature by any of %d witnesses", c.Size, len(keys))
}

func cosigned(v *torchwood.CosignatureVerifier, text string, s note.Signature) bool {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	return err == nil && len(raw) > 4 && s.Hash == v.KeyHash() && v.Verify([]byte(text), raw[4:])
}
