package monitor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/misbehaviour"
	"github.com/attestmesh/meshnode/transparency"
)

// compare holds what each copy shows against what it showed before, and against what was audited.
func (m *Monitor) compare(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.limits.round)
	defer cancel()
	for _, c := range m.copies {
		if c.problem != nil {
			continue
		}
		if m.kept.Audited.none() {
			continue
		}
		if meshOf(c.head.Origin) != meshOf(m.kept.Audited.Origin) {
			if len(c.found) == 0 {
				c.find(Error, string(attest.CodeWrongMesh), c.head.Origin, "the copy is of %s, this monitor follows %s", c.head.Origin, m.kept.Audited.Origin)
			}
			continue
		}
		m.compareCopy(ctx, c)
	}
}

func (m *Monitor) compareCopy(ctx context.Context, c *logCopy) {
	own, old := m.kept.Audited, m.kept.Copies[c.location]
	if c.head.Size < old.Size {
		c.find(Error, CodeRolledBack, twoHeads(old.head, c.head), "the checkpoint has size %d, the copy showed one of size %d before", c.head.Size, old.Size)
	}
	next := shown{head: c.head}
	switch {
	case old.checkpoint() == c.head.checkpoint() && old.Checked:
		next.Checked = true
	case c.head.Size > own.Size:
		m.compareAhead(c, old)
	default:
		next.Checked = m.compareBehind(ctx, c)
	}
	if c.head.Size >= old.Size {
		m.kept.Copies[c.location] = next
	}
}

// compareAhead is about a size that could not be audited.
func (m *Monitor) compareAhead(c *logCopy, old shown) {
	if c.head.Size == old.Size && c.head.Root != old.Root && c.head.Origin == old.Origin && m.signedNow(c) == signedNow {
		m.conflict(c, old.head, c.head, nil)
		return
	}
	if len(c.found) > 0 {
		return // which says why
	}
	c.found = append(c.found, condition{Code: CodeBehind, Subject: c.location, Severity: Warning, grace: max(m.cfg.MaxAge, m.cfg.Interval),
		Message: fmt.Sprintf("size %d is shown, and no copy gives its entries: %d are audited", c.head.Size, m.kept.Audited.Size)})
}

// compareBehind is about a size that was audited. It reports whether it could be compared.
func (m *Monitor) compareBehind(ctx context.Context, c *logCopy) bool {
	own := m.kept.Audited
	at := &earlier{root: own.Root}
	if c.head.Size < own.Size {
		var err error
		if at, err = m.earlier(ctx, c.head.Size); err != nil {
			c.unsure = true
			return false
		}
	}
	if at.root == c.head.Root {
		return true
	}
	s := m.state()
	if s != nil && c.head.Origin == s.Origin() {
		if m.signedNow(c) == signedNow {
			m.conflict(c, own, c.head, at)
		}
		return false
	}
	c.find(Error, CodeForked, twoHeads(own, c.head), "%s of size %d has root %s, in the log that was audited that size has root %s", c.head.Origin, c.head.Size, c.head.Root, at.root)
	return false
}

// earlier is the root at a smaller size, and the proof that leads on from there.
type earlier struct {
	root  transparency.Hash
	proof []transparency.Hash
}

// RootAt and ConsistencyProof make it a misbehaviour.History of the one size that is asked about.
func (e *earlier) RootAt(uint64) (transparency.Hash, error) { return e.root, nil }

// ConsistencyProof returns the proof.
func (e *earlier) ConsistencyProof(_, _ uint64) ([]transparency.Hash, error) { return e.proof, nil }

// earlier reads from any copy what the audited log was at a smaller size; every hash is held
// against the audited root.
func (m *Monitor) earlier(ctx context.Context, size uint64) (*earlier, error) {
	err := errors.New("no copy can be read")
	for _, c := range m.copies {
		if c.witness || c.reader == nil {
			continue
		}
		var e earlier
		if e.root, e.proof, err = c.reader.Prover(m.kept.Audited.checkpoint()).Earlier(ctx, size); err == nil {
			return &e, nil
		}
	}
	return nil, err
}

// conflict finds that two checkpoints, both signed by the log key, are of two histories, and keeps
// the proof of it. own is the larger one, at what it has at the size of other; nil where the sizes
// are the same.
func (m *Monitor) conflict(c *logCopy, own, other head, at *earlier) {
	if at == nil {
		at = &earlier{root: own.Root}
	}
	s := m.state()
	message := fmt.Sprintf("two histories: a checkpoint of size %d has root %s, the one of size %d has root %s there", other.Size, other.Root, own.Size, at.root)
	for _, code := range []string{CodeMisbehaviour, CodeLogKeyLeaked, CodeForked} {
		told := condition{Scope: "copy " + c.location, Code: code, Subject: c.location}
		if old := m.conds[told.key()]; old != nil && old.Evidence != "" {
			c.found = append(c.found, *old) // it lasts; one proof of it is enough
			return
		}
	}
	code, who := CodeLogKeyLeaked, "signed by the log key alone"
	data, report, err := misbehaviour.New(s.PolicyState, s.Credentials(), at, []byte(own.Note), []byte(other.Note))
	switch {
	case err != nil: // keep what there is
		data, who = []byte(own.Note+"\n"+other.Note), err.Error()
		if m.published(own) && m.published(other) {
			code = CodeForked
		}
	case report.Verdict == misbehaviour.VerdictMisbehaviour:
		code, who = CodeMisbehaviour, fmt.Sprintf("cosigned twice by %v", report.Organisations())
	}
	c.found = append(c.found, condition{Code: code, Subject: c.location, Severity: Error, At: twoHeads(own, other), Message: message + "; " + who, Evidence: m.keepEvidence(data)})
}

// published reports whether a checkpoint has a quorum among the seats of now.
func (m *Monitor) published(h head) bool {
	s := m.state()
	v, err := transparency.Verify([]byte(h.Note), m.policy(s, seats(s)))
	return err == nil && v.Level >= transparency.Published
}

// keepEvidence writes what proves something into the state directory and returns its name there.
func (m *Monitor) keepEvidence(data []byte) string {
	sum := sha256.Sum256(data)
	name := evidenceDir + "/misbehaviour-" + hex.EncodeToString(sum[:8])
	if misbehaviour.Is(data) {
		name += ".json"
	} else {
		name += ".txt"
	}
	if err := m.store.dir.WriteFile(name, data, 0o600); err != nil {
		m.deps.Warn(fmt.Sprintf("evidence could not be kept: %v", err))
		return ""
	}
	return name
}

// twoHeads names an occasion.
func twoHeads(a, b head) string {
	return fmt.Sprintf("%s %d %s %s %d %s", a.Origin, a.Size, a.Root, b.Origin, b.Size, b.Root)
}

// judgeCosigned is about the cosignatures that one copy shows.
func (m *Monitor) judgeCosigned(c *logCopy) {
	s := m.state()
	if s == nil || m.kept.Audited.none() || meshOf(c.head.Origin) != meshOf(m.kept.Audited.Origin) {
		return
	}
	if c.head.Origin != s.Origin() {
		if c.head.Size <= m.kept.Audited.Size && m.cfg.MaxAge > 0 {
			c.found = append(c.found, condition{Code: CodeStale, Subject: c.location, Severity: Warning, At: c.head.Origin, grace: m.cfg.MaxAge,
				Message: fmt.Sprintf("the copy still shows %s; the log goes on as %s", c.head.Origin, s.Origin())})
		}
		return
	}
	v, err := transparency.Verify([]byte(c.head.Note), m.policy(s, seats(s)))
	if err != nil {
		c.find(Error, audit.CodeCheckpointInvalid, c.head.Root.String(), "%v", err)
		return
	}
	for _, p := range v.Problems {
		c.find(Error, p.Code, p.Name, "%s: %s", p.Name, p.Message)
	}
	present := c.head.checkpoint() == m.kept.Audited.checkpoint()
	if present && v.Fresh.After(m.kept.Fresh) {
		m.kept.Fresh, m.judge.before = v.Fresh, v.Fresh
	}
	if c.witness {
		return
	}
	switch {
	case v.Level < transparency.Published && present:
		c.find(Error, CodeUnpublished, "", "size %d is cosigned by %d organisations, want %d", c.head.Size, len(v.Orgs), s.Quorum())
	case v.Level >= transparency.Published && m.cfg.MaxAge > 0 && m.now.Sub(v.Fresh) > m.cfg.MaxAge:
		c.find(Warning, CodeStale, v.Fresh.String(), "a quorum last cosigned at %s, more than %s ago", v.Fresh.Format(timeFormat), m.cfg.MaxAge)
	}
	if present && v.Level == transparency.Published && m.level == transparency.Strong {
		c.found = append(c.found, condition{Code: CodeBelowStrong, Subject: c.location, Severity: Warning, grace: m.cfg.Silent,
			Message: fmt.Sprintf("size %d is cosigned by %d organisations, strong wants %d", c.head.Size, len(v.Orgs), s.StrongQuorum())})
	}
}
