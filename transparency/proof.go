package transparency

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// FormatProof encodes a c2sp.org/tlog-proof@v1: leaf index is in the tree of checkpoint.
func FormatProof(index uint64, proof []Hash, checkpoint []byte) []byte {
	return torchwood.FormatProof(int64(index), tlog.RecordProof(toTlog(proof)), checkpoint)
}

// VerifyProof checks offline that leaf is in a log at the level that the policy's quorums
// and need ask for, and returns its index and what the checkpoint proves. A need of
// Unpublished is refused: the log key alone proves nothing.
func VerifyProof(leaf, proof []byte, p Policy, need Level) (uint64, Verified, error) {
	if need != Published && need != Strong {
		return 0, Verified{}, errors.New("proof: want level published or strong")
	}
	if len(proof) > maxProof {
		return 0, Verified{}, fmt.Errorf("proof: %d bytes, the limit is %d", len(proof), maxProof)
	}
	head, checkpoint, ok := bytes.Cut(proof, []byte("\n\n"))
	if !ok {
		return 0, Verified{}, errors.New("proof: no checkpoint in it")
	}
	v, err := Verify(checkpoint, p)
	if err != nil {
		return 0, Verified{}, fmt.Errorf("proof: %w", err)
	}
	if v.Level < need {
		return 0, v, fmt.Errorf("proof: its checkpoint of size %d is %s (%d organisations), want %s", v.Size, v.Level, len(v.Orgs), need)
	}
	index, err := proofIndex(string(head))
	if err != nil {
		return 0, v, err
	}
	// The note's signatures are judged by Verify above, which also survives a bad one by
	// somebody else; torchwood checks format, index and Merkle path.
	logKey, err := logVerifier(p.Origin, p.LogKey)
	if err != nil {
		return 0, v, err
	}
	if err := torchwood.VerifyProof(logPolicy(p.Origin, logKey), tlog.RecordHash(leaf), proof); err != nil {
		return 0, v, fmt.Errorf("proof: %w", err)
	}
	return index, v, nil
}

// proofIndex reads the index line; "extra" lines are not authenticated and refused.
func proofIndex(head string) (uint64, error) {
	rest, ok1 := strings.CutPrefix(head, "c2sp.org/tlog-proof@v1\nindex ")
	line, _, _ := strings.Cut(rest, "\n")
	index, err := strconv.ParseUint(line, 10, 63)
	if !ok1 || err != nil || strconv.FormatUint(index, 10) != line {
		return 0, errors.New("proof: want a c2sp.org/tlog-proof@v1 with an index and no extra data")
	}
	return index, nil
}

func logPolicy(origin string, logKey note.Verifier) torchwood.Policy {
	return torchwood.ThresholdPolicy(2, torchwood.OriginPolicy(origin), torchwood.SingleVerifierPolicy(logKey))
}
