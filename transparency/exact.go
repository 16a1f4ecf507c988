package transparency

import (
	"encoding/base64"
	"fmt"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// A checkpoint that is kept for years holds nothing that nobody can judge: what somebody adds to
// it, or changes in a signature that does not count, must not go unnoticed.

// VerifyExact is Verify of a checkpoint in which every signature is the log key's, a known
// cosigner's or a known outside witness's, holds, and is written in the one canonical way. Whatever
// else stands in it is an error.
func VerifyExact(checkpoint []byte, p Policy) (Verified, error) {
	v, err := Verify(checkpoint, p)
	if err != nil {
		return v, err
	}
	if len(v.Problems) > 0 {
		x := v.Problems[0]
		return v, fmt.Errorf("checkpoint: %s: %s: %s", x.Code, x.Name, x.Message)
	}
	if v.Strangers > 0 {
		return v, fmt.Errorf("checkpoint: %d signatures by names that do not count", v.Strangers)
	}
	n, err := openNote(checkpoint)
	if err != nil {
		return v, err
	}
	names := map[string]bool{}
	for _, s := range n.UnverifiedSigs {
		raw, err := base64.StdEncoding.Strict().DecodeString(s.Base64)
		if err != nil || base64.StdEncoding.EncodeToString(raw) != s.Base64 || names[s.Name] {
			return v, fmt.Errorf("checkpoint: the signature of %.200q is not in canonical form, or there twice", s.Name)
		}
		names[s.Name] = true
	}
	same, err := note.Sign(&note.Note{Text: n.Text, UnverifiedSigs: n.UnverifiedSigs})
	if err != nil || string(same) != string(checkpoint) {
		return v, fmt.Errorf("checkpoint: not in canonical form")
	}
	return v, nil
}

// Trim returns a checkpoint with those of its signatures alone that VerifyExact accepts under p.
func Trim(checkpoint []byte, p Policy) ([]byte, error) {
	known, err := p.verifiers()
	if err != nil {
		return nil, err
	}
	logKey, err := logVerifier(p.Origin, p.LogKey)
	if err != nil {
		return nil, err
	}
	n, err := openNote(checkpoint, logKey)
	if err != nil {
		return nil, err
	}
	if len(n.Sigs) != 1 {
		return nil, fmt.Errorf("checkpoint: not signed by the log key")
	}
	kept, names := n.Sigs, map[string]bool{p.Origin: true}
	for _, s := range n.UnverifiedSigs {
		if by, ok := known[s.Name]; ok && !names[s.Name] {
			if _, problem := by.check(n.Text, s, p.At); problem == nil {
				kept, names[s.Name] = append(kept, s), true
			}
		}
	}
	for i, s := range kept {
		raw, err := base64.StdEncoding.DecodeString(s.Base64)
		if err != nil {
			return nil, fmt.Errorf("checkpoint: %w", err)
		}
		kept[i].Base64 = base64.StdEncoding.EncodeToString(raw)
	}
	out, err := note.Sign(&note.Note{Text: n.Text, UnverifiedSigs: kept})
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	return out, nil
}

// VerifyInclusion checks that leaf stands at index in a tree.
func VerifyInclusion(leaf []byte, index uint64, proof []Hash, size uint64, root Hash) error {
	if size > maxLogSize || index >= size {
		return fmt.Errorf("proof: leaf %d in a tree of size %d", index, size)
	}
	if err := tlog.CheckRecord(toTlog(proof), int64(size), tlog.Hash(root), int64(index), tlog.RecordHash(leaf)); err != nil {
		return fmt.Errorf("proof: leaf %d is not in the tree of size %d with root %s: %w", index, size, root, err)
	}
	return nil
}
