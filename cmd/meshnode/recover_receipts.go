package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/sigstore/sigstore/pkg/signature"
)

// Receipts are one organisation's memory of what it has signed and seen, on the machine that
// holds its govern key. Every policy that was ever in force, and every Recovery, has the
// signatures of more than half of the organisations. So at least one that signs a Recovery
// has seen the newest policy, and refuses an older one: even if every node's disk was rolled
// back, as long as the receipts were not. They are written before anything is signed.
type receipts struct {
	Version int                     `json:"version"`
	Meshes  map[string]*meshReceipt `json:"meshes"` // by mesh id
}

type meshReceipt struct {
	// Incarnation is the highest whose log was seen, Checkpoint the longest of it.
	Incarnation uint64                   `json:"incarnation"`
	Checkpoint  consensus.CheckpointSeen `json:"checkpoint"`
	Epoch       uint64                   `json:"epoch"`
	// Base is the highest that was seen, or on which a proposal was approved.
	Base     uint64            `json:"base"`
	Approved []approvedReceipt `json:"approved"`
	// Recovery is the highest incarnation for which a Recovery was signed, and which one.
	Recovered uint64 `json:"recovered"`
	Recovery  string `json:"recovery"`
}

// approvedReceipt is a proposal that was signed and not yet seen in a policy.
type approvedReceipt struct {
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
}

const (
	receiptsVersion = 1
	receiptsName    = "receipts.json"
	maxReceipts     = 1 << 20
	maxApproved     = 1024
	// approvedFor is how long an approval is remembered after it expired: a mesh that is lost
	// for longer is recovered by people who know.
	approvedFor = 365 * 24 * time.Hour
)

// receiptsBeside is where the receipts of a key are by default.
func receiptsBeside(key string) string {
	if strings.Contains(key, "://") { // of a key service
		return receiptsName
	}
	return filepath.Join(filepath.Dir(key), receiptsName)
}

func readReceipts(path string) (*receipts, error) {
	out := &receipts{Version: receiptsVersion, Meshes: map[string]*meshReceipt{}}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	raw, err := readLimited(path, maxReceipts)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(out); err != nil {
		return nil, usageError("restore the file from a copy; without receipts an organisation cannot tell an old state", "%s: %v", path, err)
	}
	if out.Version != receiptsVersion || out.Meshes == nil {
		return nil, usageError("use the release that wrote it", "%s: version %d, want %d", path, out.Version, receiptsVersion)
	}
	return out, nil
}

func (r *receipts) write(path string) error {
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return writeOver(path, append(raw, '\n'), 0o600)
}

// of returns the receipts of a mesh, made where there are none.
func (r *receipts) of(mesh string) *meshReceipt {
	m := r.Meshes[mesh]
	if m == nil {
		m = &meshReceipt{Approved: []approvedReceipt{}}
		r.Meshes[mesh] = m
	}
	return m
}

// observe remembers how far a log goes that was verified.
func observe(path string, k keptLog) error {
	r, err := readReceipts(path)
	if err != nil {
		return err
	}
	m := r.of(k.MeshID)
	m.saw(k.Incarnation, consensus.CheckpointSeen{Size: k.Size, Root: k.Root}, k.Epoch, k.Base)
	m.ordered(k.state.PolicyState, time.Now())
	return r.write(path)
}

// saw takes up what a verified log or a signed Recovery says.
func (m *meshReceipt) saw(incarnation uint64, at consensus.CheckpointSeen, epoch, base uint64) {
	if incarnation > m.Incarnation || incarnation == m.Incarnation && at.Size > m.Checkpoint.Size {
		m.Incarnation, m.Checkpoint = incarnation, at
	}
	m.Epoch, m.Base = max(m.Epoch, epoch), max(m.Base, base)
}

// ordered forgets the approvals that are in a policy, or expired so long ago that nobody asks.
func (m *meshReceipt) ordered(p *consensus.PolicyState, now time.Time) {
	known := proposalsOf(p)
	m.Approved = slices.DeleteFunc(m.Approved, func(a approvedReceipt) bool { return known[a.ID] || now.Sub(a.Expires) > approvedFor })
}

// proposalsOf returns the ids of the proposals in a policy's chain.
func proposalsOf(p *consensus.PolicyState) map[string]bool {
	out := map[string]bool{}
	for _, raw := range p.PolicyChain() {
		if proposal, _, err := consensus.ParseProposal(raw); err == nil {
			out[proposal.ID().String()] = true
		}
	}
	return out
}

// noteApproval remembers, before it is signed, that a proposal is approved.
func noteApproval(path string, p *consensus.Proposal) error {
	r, err := readReceipts(path)
	if err != nil {
		return err
	}
	m := r.of(p.MeshID.String())
	if slices.ContainsFunc(m.Approved, func(a approvedReceipt) bool { return a.ID == p.ID().String() }) {
		return nil
	}
	m.Base = max(m.Base, p.Base)
	m.Approved = append(m.Approved, approvedReceipt{p.ID().String(), p.Expires})
	if over := len(m.Approved) - maxApproved; over > 0 {
		m.Approved = slices.Delete(m.Approved, 0, over)
	}
	return r.write(path)
}

// refuses says why this organisation does not sign a Recovery: what it goes on from is older
// than what was seen, or it signed another for that incarnation.
func (m *meshReceipt) refuses(f *consensus.RecoveryFile, neverOrdered []string) error {
	r, from := f.Recovery, uint64(f.Policy.Incarnation())
	older := func(format string, args ...any) error {
		return refusedError(string(attest.CodeRolledBack), "find the log that goes that far (meshnode recover inspect) and draft from it", format, args...)
	}
	switch {
	case from < m.Incarnation:
		return older("the Recovery goes on from incarnation %d; this organisation has seen incarnation %d", from, m.Incarnation)
	case from == m.Incarnation && r.Checkpoint.Size < m.Checkpoint.Size:
		return older("the Recovery goes on from size %d; this organisation has seen size %d, root %s", r.Checkpoint.Size, m.Checkpoint.Size, m.Checkpoint.Root)
	case from == m.Incarnation && r.Checkpoint.Size == m.Checkpoint.Size && r.Checkpoint.Root != m.Checkpoint.Root:
		return older("size %d has root %s in the Recovery and %s in what this organisation has seen: two histories", r.Checkpoint.Size, r.Checkpoint.Root, m.Checkpoint.Root)
	case uint64(r.Epoch) < m.Epoch || r.Base < m.Base:
		return older("the Recovery goes on from epoch %d, base %d; this organisation has seen epoch %d, base %d", r.Epoch, r.Base, m.Epoch, m.Base)
	case uint64(r.Incarnation) < m.Recovered || uint64(r.Incarnation) == m.Recovered && r.ID().String() != m.Recovery:
		return refusedError(string(attest.CodeReplayed), fmt.Sprintf("draft one to incarnation %d (meshnode recover draft --incarnation %d): an incarnation begins once", m.Recovered+1, m.Recovered+1),
			"the Recovery is to incarnation %d; this organisation has signed %s to incarnation %d", r.Incarnation, m.Recovery, m.Recovered)
	}
	known := proposalsOf(f.Policy)
	for _, a := range m.Approved {
		if !known[a.ID] && !slices.Contains(neverOrdered, a.ID) {
			return refusedError(string(attest.CodeRolledBack), "find a log in which it was ordered; if it never was, say so with --never-ordered "+a.ID,
				"this organisation approved the proposal %s, which the policy of the Recovery does not hold", a.ID)
		}
	}
	return nil
}

// seenBefore returns the newest checkpoint in a file of receipts that is of the log which f
// goes on from; zero where no file is named.
func seenBefore(path string, f *consensus.RecoveryFile) (consensus.CheckpointSeen, error) {
	if path == "" {
		return consensus.CheckpointSeen{}, nil
	}
	r, err := readReceipts(path)
	if err != nil {
		return consensus.CheckpointSeen{}, err
	}
	m := r.of(f.Recovery.MeshID.String())
	if m.Incarnation != uint64(f.Policy.Incarnation()) {
		return consensus.CheckpointSeen{}, nil
	}
	return m.Checkpoint, nil
}

// askWitness demands that no witness of genesis has cosigned a longer log.
func askWitness(f *consensus.RecoveryFile, flags signFlags) error {
	r, keys := f.Recovery, f.Policy.Witnesses()
	switch {
	case flags.witness == "" && len(keys) > 0 && !flags.noWitness:
		return usageError("fetch the newest checkpoint that a witness has cosigned and name it with --witness; --without-witness signs all the same", "genesis names %d witnesses", len(keys))
	case flags.witness == "":
		return nil
	}
	note, err := readLimited(flags.witness, maxSignFile)
	if err != nil {
		return err
	}
	c, name, err := transparency.WitnessedBy(note, transparency.OutsideOf(keys))
	if err != nil {
		return refusedError(string(attest.CodeBadSignature), "fetch the checkpoint from the witness again", "%s: %v", flags.witness, err)
	}
	if c.Origin != r.PreviousOrigin || c.Size > r.Checkpoint.Size || c.Size == r.Checkpoint.Size && c.Root.String() != r.Checkpoint.Root {
		return refusedError(string(attest.CodeRolledBack), "find the log that goes that far (meshnode recover inspect) and draft from it",
			"the witness %s has cosigned size %d of %s, root %s; the Recovery goes on from size %d of %s, root %s", name, c.Size, c.Origin, c.Root, r.Checkpoint.Size, r.PreviousOrigin, r.Checkpoint.Root)
	}
	return nil
}

// signWithReceipts compares, remembers and signs, in this order.
func signWithReceipts(ctx context.Context, file *consensus.RecoveryFile, f signFlags, now time.Time) error {
	r := file.Recovery
	if !now.Before(r.Expires) {
		return refusedError(string(attest.CodeRecoveryExpired), "draft it again (meshnode recover draft)", "the Recovery expired at %s", r.Expires.Format(time.RFC3339))
	}
	if err := askWitness(file, f); err != nil {
		return err
	}
	var signers []signature.Signer
	for _, key := range f.keys {
		s, _, err := openKey(ctx, key)
		if err != nil {
			return err
		}
		signers = append(signers, s)
	}
	path := f.receipts
	if path == "" {
		path = receiptsBeside(f.keys[0])
	}
	all, err := readReceipts(path)
	if err != nil {
		return err
	}
	m := all.of(r.MeshID.String())
	if err := m.refuses(file, f.neverOrdered); err != nil {
		return err
	}
	m.saw(uint64(file.Policy.Incarnation()), r.Checkpoint, uint64(r.Epoch), r.Base)
	m.Recovered, m.Recovery = uint64(r.Incarnation), r.ID().String()
	if err := all.write(path); err != nil {
		return err
	}
	for i, s := range signers {
		env := &envelope.Envelope{Payload: file.Envelope().Payload}
		if err := env.Sign(s); err != nil {
			return err
		}
		before, _ := file.Signed()
		if err := file.Add(env.Marshal()); err != nil {
			return err
		}
		if after, _ := file.Signed(); len(after) < max(1, len(before)) {
			return refusedError(string(attest.CodeWrongSigner), "sign with a govern key of a member organisation", "%s: is no govern key of an organisation in force", f.keys[i])
		}
	}
	return nil
}
