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

// Key is the verifier key; empty for the zero value. Under one name there may be one key after the other.
func (w Outside) Key() string {
	if w.verifier == nil {
		return ""
	}
	return w.verifier.String()
}

// KeepOutside returns newer with the cosignatures of outside witnesses that hold in older alone, where
// both are signatures of one text. A line that does not verify by the witness's key of today counts as
// none in either: it neither stands in the way of a good one nor of newer.
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
		if w.lineIn(to) != nil {
			continue
		}
		if line := w.lineIn(from); line != nil {
			if kept, err := MergeOutside(newer, line, w); err == nil { // else there is no room for it
				newer = kept
			}
		}
	}
	return newer, nil
}

// lineIn returns the line by which w cosigns a note, or nil.
func (w Outside) lineIn(n *note.Note) []byte {
	if w.verifier == nil {
		return nil
	}
	for _, s := range n.UnverifiedSigs {
		raw, err := base64.StdEncoding.DecodeString(s.Base64)
		if err == nil && len(raw) > 4 && s.Name == w.Name() && s.Hash == w.verifier.KeyHash() && w.verifier.Verify([]byte(n.Text), raw[4:]) {
			return []byte("\u2014 " + s.Name + " " + s.Base64 + "\n")
		}
	}
	return nil
}

// OutsideOf decodes verifier keys. One that is none counts for nothing: what it is to have signed is
// missing. Of several under one name the first counts.
func OutsideOf(vkeys []string) (out []Outside) {
	for _, vkey := range vkeys {
		w, err := ParseOutside(vkey)
		if err == nil && !slices.ContainsFunc(out, func(o Outside) bool { return o.Name() == w.Name() }) {
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
		if w.lineIn(n) != nil {
			return c, w.Name(), nil
		}
	}
	return Checkpoint{}, "", fmt.Errorf("checkpoint of size %d: no cosignature by any of %d witnesses", c.Size, len(witnesses))
}
