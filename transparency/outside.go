package transparency

import (
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
)

// Outside is a witness that belongs to no organisation of the mesh: it vouches that it has
// seen one append-only history, which is all that it can know. It is no part of a Level, so
// that one that is down holds up nothing; that its cosignature is there, and how new it is,
// is for auditors to judge. The zero value verifies nothing and no policy accepts it.
type Outside struct {
	verifier *torchwood.CosignatureVerifier
}

// Witnessed is a cosignature of an outside witness that holds.
type Witnessed struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
}

// ParseOutside decodes a verifier key of c2sp.org/tlog-cosignature (Ed25519, type 0x04):
// "<name>+<key hash, 8 hex>+<base64>".
func ParseOutside(vkey string) (Outside, error) {
	v, err := torchwood.NewCosignatureVerifier(vkey)
	if err != nil {
		return Outside{}, fmt.Errorf("witness %.100q: %w", vkey, err)
	}
	return Outside{v}, nil
}

// Name is the name under which it cosigns.
func (w Outside) Name() string {
	if w.verifier == nil {
		return ""
	}
	return w.verifier.Name()
}

// KeepOutside returns newer with the cosignatures of outside witnesses that only older has, where
// both are signatures of one text.
func KeepOutside(older, newer []byte, by []Outside) ([]byte, error) {
	from, err := openNote(older)
	if err != nil {
		return nil, err
	}
	to, err := openNote(newer)
	if err != nil || from.Text != to.Text {
		return newer, err
	}
	for _, w := range by {
		has := func(s note.Signature) bool { return s.Name == w.Name() }
		if i := slices.IndexFunc(from.UnverifiedSigs, has); i >= 0 && !slices.ContainsFunc(to.UnverifiedSigs, has) {
			line := "\u2014 " + w.Name() + " " + from.UnverifiedSigs[i].Base64 + "\n"
			if newer, err = MergeOutside(newer, []byte(line), w); err != nil {
				return nil, err
			}
		}
	}
	return newer, nil
}

// OutsideOf decodes verifier keys. One that is none counts for nothing: what it is to have signed is
// missing.
func OutsideOf(vkeys []string) (out []Outside) {
	for _, vkey := range vkeys {
		if w, err := ParseOutside(vkey); err == nil {
			out = append(out, w)
		}
	}
	return out
}

// MergeOutside is Merge for the line of an outside witness.
func MergeOutside(checkpoint, line []byte, by Outside) ([]byte, error) {
	if by.verifier == nil {
		return nil, fmt.Errorf("cosignature of an outside witness without a key")
	}
	return merge(checkpoint, line, by.verifier)
}

// WitnessedBy returns the checkpoint of a note that one of witnesses has cosigned, and its name. The
// log's own signature is not looked at, since a witness signs only what the log key has signed.
func WitnessedBy(signed []byte, witnesses []Outside) (Checkpoint, string, error) {
	n, err := openNote(signed)
	if err != nil {
		return Checkpoint{}, "", err
	}
	c, err := parseText(n.Text)
	if err != nil {
		return Checkpoint{}, "", err
	}
	for _, w := range witnesses {
		if w.verifier == nil {
			return Checkpoint{}, "", fmt.Errorf("an outside witness without a key")
		}
		for _, s := range n.UnverifiedSigs {
			if raw, err := base64.StdEncoding.DecodeString(s.Base64); err == nil && len(raw) > 4 && s.Name == w.Name() && s.Hash == w.verifier.KeyHash() && w.verifier.Verify([]byte(n.Text), raw[4:]) {
				return c, s.Name, nil
			}
		}
	}
	return Checkpoint{}, "", fmt.Errorf("checkpoint of size %d: no cosignature by any of %d witnesses", c.Size, len(witnesses))
}
