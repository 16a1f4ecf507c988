package audit

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/transparency"
)

// Claim is a leaf that is said to be in the log, with the proof that came with it. A nil
// Log does not hold.
type Claim struct {
	Leaf []byte
	Log  *federated.LogProof
}

// Claimed says what a claim is worth. Err is nil if it holds; its attest.Error has code
// unavailable where the log that was read cannot decide it, and another where it is
// refused. The zero value is nothing that holds: Level is unpublished.
type Claimed struct {
	Level transparency.Level // of the proof's checkpoint, by the seats at its size
	Err   error
}

// maxPath is how many hashes a proof of inclusion can have.
const maxPath = 64

// claims judges claims while a log is read.
type claims struct{ all []*claim }

type claim struct {
	Claim
	head    transparency.Checkpoint // of the proof, unverified
	found   bool                    // the leaf stands at its index
	proved  bool                    // the proof holds
	verdict Claimed                 // final once Err is set
}

func newClaims(in []Claim) *claims {
	out := &claims{}
	for _, c := range in {
		next := &claim{Claim: c}
		if err := next.parse(); err != nil {
			next.refuse(attest.CodeMalformed, "%w", err)
		}
		out.all = append(out.all, next)
	}
	return out
}

// parse decodes what names a size.
func (c *claim) parse() error {
	if c.Log == nil {
		return errors.New("no proof of inclusion: export the certificate again once its leaf is published")
	}
	var err error
	if c.head, err = transparency.ParseCheckpoint([]byte(c.Log.Checkpoint)); err != nil {
		return err
	}
	if c.head.Origin != c.Log.Origin || c.head.Size <= c.Log.Index {
		return fmt.Errorf("leaf %d of %.200q with a checkpoint of %d leaves of %.200q", c.Log.Index, c.Log.Origin, c.head.Size, c.head.Origin)
	}
	return nil
}

// refuse sets the verdict; the first reason counts.
func (c *claim) refuse(code attest.Code, format string, args ...any) {
	if c.verdict.Err == nil {
		c.verdict.Err = &attest.Error{Reason: attest.NewReason(code, "log", "", ""), Err: fmt.Errorf(format, args...)}
	}
}

// leaf is called with every leaf, after it was replayed.
func (cs *claims) leaf(index uint64, leaf []byte, a *Auditor) {
	for _, c := range cs.all {
		if c.verdict.Err != nil {
			continue
		}
		if index == c.Log.Index {
			if c.found = bytes.Equal(leaf, c.Leaf); !c.found {
				c.refuse(attest.CodeReplayMismatch, "leaf %d of the log is another one: %s", index, describe(leaf))
			}
		}
		if index+1 == c.head.Size && a.replay.started() {
			c.sameRoot(a.tree)
			c.prove(a)
		}
	}
}

// prove verifies checkpoint and path by the members that the leaves so far make.
func (c *claim) prove(a *Auditor) {
	if c.verdict.Err != nil {
		return
	}
	path, err := decodePath(c.Log.Proof)
	if err != nil {
		c.refuse(attest.CodeMalformed, "%w", err)
		return
	}
	policy := a.policy(a.cosigners())
	proof := transparency.FormatProof(c.Log.Index, path, []byte(c.Log.Checkpoint))
	index, v, err := transparency.VerifyProof(c.Leaf, proof, policy, transparency.Published)
	switch {
	case err != nil && v.Size > a.report.Size && v.Level < transparency.Published:
		c.refuse(attest.CodeUnavailable, "the certificate's checkpoint of size %d is newer than this log of %d leaves, whose seats did not sign it; bring the log up to date", v.Size, a.report.Size)
	case err != nil:
		c.refuse(attest.CodeBadSignature, "%w", err)
	case index != c.Log.Index:
		c.refuse(attest.CodeBadSignature, "the proof is of leaf %d, the certificate names %d", index, c.Log.Index)
	case levelOf(c.Log.Level) > v.Level:
		c.refuse(attest.CodeBadSignature, "the checkpoint of size %d is called %.20q and is %s; export the certificate again", v.Size, c.Log.Level, v.Level)
	}
	c.proved, c.verdict.Level = true, v.Level
}

// sameRoot requires that the log had the root of the proof at its size.
func (c *claim) sameRoot(tree *transparency.Accumulator) {
	root, err := tree.Root()
	if err != nil || root != c.head.Root {
		c.refuse(attest.CodeReplayMismatch, "size %d has root %s here, the certificate's checkpoint says %s: two histories", c.head.Size, root, c.head.Root)
	}
}

// judged is called after the audit and decides what is left. What holds, holds by a log
// that holds.
func (cs *claims) judged(a *Auditor) []Claimed {
	var out []Claimed
	for _, c := range cs.all {
		if !a.report.OK {
			c.verdict = Claimed{}
			f := a.report.Findings[0]
			if a.report.Undecided() {
				c.refuse(attest.CodeUnavailable, "the log could not be audited: %s", f.Message)
			}
			c.refuse(attest.CodeReplayMismatch, "the log itself does not hold: entry %d: %s: %s", f.Index, f.Code, f.Message)
		}
		if c.verdict.Err == nil && !c.found {
			c.refuse(attest.CodeReplayMismatch, "the log ends at %d leaves and the certificate names leaf %d: it is another log, or an older copy", a.report.Size, c.Log.Index)
		}
		if c.verdict.Err == nil && !c.proved && c.head.Size > a.report.Size {
			c.prove(a)
		}
		if c.verdict.Err == nil && !c.proved {
			c.refuse(attest.CodeReplayMismatch, "no membership to judge a checkpoint of size %d by", c.head.Size)
		}
		if c.verdict.Err != nil {
			c.verdict.Level = transparency.Unpublished
		}
		out = append(out, c.verdict)
	}
	return out
}

func decodePath(in []string) ([]transparency.Hash, error) {
	if len(in) > maxPath {
		return nil, fmt.Errorf("a proof of %d hashes, the limit is %d", len(in), maxPath)
	}
	out := make([]transparency.Hash, len(in))
	for i, s := range in {
		raw, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil || len(raw) != len(out[i]) {
			return nil, fmt.Errorf("hash %d of the proof is not 32 bytes in base64", i)
		}
		copy(out[i][:], raw)
	}
	return out, nil
}

// levelOf decodes a claimed level; what is no level is above all.
func levelOf(text string) transparency.Level {
	var l transparency.Level
	if l.UnmarshalText([]byte(text)) != nil {
		return transparency.Strong + 1
	}
	return l
}
