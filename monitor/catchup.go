package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

// catchUp audits what is new by the largest checkpoint that holds, and reports whether there was
// one. An error is fatal.
func (m *Monitor) catchUp(ctx context.Context) (held bool, err error) {
	limited, cancel := context.WithTimeout(ctx, m.limits.round)
	defer cancel()
	m.again = false
	var ahead []*logCopy
	for _, c := range m.copies {
		if c.problem == nil && !c.witness && c.head.Size > m.kept.Audited.Size {
			ahead = append(ahead, c)
		}
	}
	// One that took too long lets the others go first.
	slices.SortStableFunc(ahead, func(a, b *logCopy) int {
		return cmp.Or(cmp.Compare(a.slow, b.slow), cmp.Compare(b.head.Size, a.head.Size))
	})
	for _, c := range ahead {
		if limited.Err() != nil {
			c.unsure = true
			continue
		}
		if !m.mayGoOn(limited, c) {
			continue
		}
		held, err := m.extend(limited, c)
		if held || err != nil || m.again {
			return held, err
		}
	}
	return false, nil
}

// mayGoOn holds a checkpoint that is larger than what was audited against that.
func (m *Monitor) mayGoOn(ctx context.Context, c *logCopy) bool {
	own := m.kept.Audited
	if own.none() {
		return true
	}
	if meshOf(c.head.Origin) != meshOf(own.Origin) {
		c.find(Error, string(attest.CodeWrongMesh), c.head.Origin, "the copy is of %s, this monitor follows %s", c.head.Origin, own.Origin)
		return false
	}
	same := m.signedNow(c)
	if same == signedNot {
		return false
	}
	root, proof, err := c.reader.Prover(c.head.checkpoint()).Earlier(ctx, own.Size)
	var bad *transparency.Tampered
	switch {
	case errors.As(err, &bad): // the audit says which file it is
		return true
	case err != nil:
		c.unsure = true
		c.find(Warning, CodeUnavailable, "", "%v", err)
		return false
	case root == own.Root:
		return true
	case same == signedLater:
		c.find(Error, CodeForked, twoHeads(own, c.head), "%s goes on without entries that were published before: size %d had root %s and has root %s in it; its Recovery has given them up, or it is another history", c.head.Origin, own.Size, own.Root, root)
		return false
	}
	m.conflict(c, c.head, own, &earlier{root, proof})
	return false
}

// signature says what is known of the log key's signature on a checkpoint.
type signature int

const (
	signedNot   signature = iota
	signedNow             // by the log key of the incarnation that was audited
	signedLater           // of a higher incarnation: the audit comes to its key
)

// signedNow checks the log key's signature, and finds what is wrong with it.
func (m *Monitor) signedNow(c *logCopy) signature {
	s := m.state()
	if s == nil || c.head.Origin != s.Origin() {
		return signedLater
	}
	if _, err := transparency.Verify([]byte(c.head.Note), m.policy(s, nil)); err != nil {
		c.find(Error, audit.CodeCheckpointInvalid, c.head.Root.String(), "%v", err)
		return signedNot
	}
	return signedNow
}

// extend audits up to a copy's checkpoint.
func (m *Monitor) extend(ctx context.Context, c *logCopy) (held bool, err error) {
	limited, cancel := context.WithTimeout(ctx, m.limits.audit)
	defer cancel()
	if m.judge.origin == "" {
		m.judge.origin = c.head.Origin
	}
	e, err := m.auditor.Extend(limited, c.reader.Pinned([]byte(c.head.Note)), m.now)
	if m.spoolErr != nil {
		return false, m.spoolErr
	}
	m.pending, m.frozen = !e.Held && !e.Reverted && m.spool.next > m.kept.Audited.Size, nil
	switch {
	case errors.Is(err, audit.ErrOtherLog):
		c.find(Error, string(attest.CodeWrongMesh), c.head.Origin, "%v", err)
		return false, nil
	case err != nil && limited.Err() != nil:
		c.unsure = true
		c.slow++
		if m.again = e.Entries > e.From; !m.again {
			c.find(Warning, CodeUnavailable, "", "no entry could be read within %s", m.limits.audit)
		}
		return false, nil
	case err != nil:
		c.unsure = true
		c.find(Warning, CodeUnavailable, "", "%v", err)
		return false, nil
	case e.Held:
		c.slow = 0
		return true, m.hold(c, e)
	}
	if e.Reverted {
		if err := m.spool.reset(); err != nil {
			return false, err
		}
	}
	for _, f := range e.New {
		severity := Error
		if undecided(f.Code) {
			severity, c.unsure = Warning, true
		}
		c.find(severity, f.Code, fmt.Sprintf("%d %s", f.Index, c.head.Root), "size %d, entry %d: %s", c.head.Size, f.Index, f.Message)
	}
	return false, nil
}

// hold notes that a checkpoint held.
func (m *Monitor) hold(c *logCopy, e audit.Extension) error {
	s := m.auditor.State()
	if s == nil {
		return fmt.Errorf("%s: a log without a governance held", c.location)
	}
	m.mesh, m.judge.mesh, m.kept.MeshID = s.MeshID(), s.MeshID(), s.MeshID()
	m.kept.Audited, m.kept.Fresh, m.told = c.head, e.Fresh, c.head.Size
	for _, f := range e.New {
		if !m.replayed[f] && !ofCosigners(f.Code) {
			at := f.Index
			m.extra = append(m.extra, Alert{ID: alertID(m.mesh, f.Code, decimal(f.Index), c.location), Severity: Error, Code: f.Code, Origin: c.head.Origin, Index: &at, Subject: c.location, Message: f.Message})
		}
	}
	m.extra = append(m.extra, m.judge.late(e.Fresh)...)
	m.judge.before, m.judge.ahead = e.Fresh, nil
	for hash := range m.spool.found {
		w := m.kept.Receipts[hash]
		w.Found = true
		m.kept.Receipts[hash] = w
	}
	m.grown(e.Fresh, c.head.Size)
	return nil
}

// ofCosigners reports whether a finding is about cosignatures, which every round judges anew.
func ofCosigners(code string) bool {
	switch code {
	case CodeUnpublished, CodeStale, CodeUnavailable, transparency.CodeCosignatureInvalid, transparency.CodeCosignatureKey, transparency.CodeCosignatureTime:
		return true
	}
	return false
}

// leaf is shown every leaf by the auditor.
func (m *Monitor) leaf(s audit.Seen) {
	if m.spoolErr != nil {
		return
	}
	if s.Index < m.spool.next { // the audit has gone back to what held
		m.spoolErr = m.spool.reset()
		m.judge.ahead = nil
	}
	m.spool.next = s.Index + 1
	if s.Index < m.told {
		return
	}
	if s.Index == 0 && m.kept.MeshID.IsZero() {
		if g, err := consensus.ParseGenesis(s.Leaf); err == nil {
			m.judge.mesh = g.MeshID()
		}
	}
	for _, f := range s.Findings {
		if len(m.replayed) < maxReplayed {
			m.replayed[f] = true
		}
	}
	hash := s.Hash.String()
	if w, ok := m.kept.Receipts[hash]; ok && !w.Found {
		m.spool.found[hash] = true
	}
	for _, a := range m.judge.judge(entry{s.Index, s.Kind, s.Leaf, s.Findings, s.State}) {
		a.Time = m.now
		line, err := encodeAlert(a)
		if err == nil {
			err = m.spool.add(line)
		}
		if err != nil && m.spoolErr == nil {
			m.spoolErr = err
		}
	}
}

// maxReplayed is more than an audit lists of one extension.
const maxReplayed = 1000

// policy is what checkpoints are held against in a state of governance.
func (m *Monitor) policy(s *consensus.State, cosigners []transparency.Cosigner) transparency.Policy {
	return transparency.Policy{Origin: s.Origin(), LogKey: s.LogKey(), Cosigners: cosigners, At: m.now,
		Quorum: transparency.Quorum{Published: s.Quorum(), Strong: s.StrongQuorum()}, Outside: transparency.OutsideOf(s.Witnesses())}
}

// seats are those whose cosignatures count.
func seats(s *consensus.State) []transparency.Cosigner {
	var out []transparency.Cosigner
	for _, n := range s.Seats() {
		if n.Standing == consensus.StandingMeasured {
			out = append(out, transparency.Cosigner{Name: s.CosignerName(n.Ref, n.BootSeq), Org: n.Ref.Org, Key: n.Credential.CosignerKey()})
		}
	}
	return out
}
