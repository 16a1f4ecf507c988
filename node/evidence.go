package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The evidence behind this node's results stays with it, each file beside the salt that opens the
// commitment in the log. It is what members disclose to an auditor, and all that the mesh knows of chips,
// command lines and files:
//
//	DATA/boot-N/evidence/ORG/NODE/COMMITMENT   mode 0600: 32 bytes of salt, then the evidence as it
//	                                           was encoded on the wire; ORG/NODE showed it
//	DATA/erased.json                           what was erased by order: a list of Erasure
//
// Deleting a file erases: the log's commitment is SHA-256 over 32 random bytes besides the evidence, and
// says nothing about it any more. What was erased by order is recorded first, durably, and
// deleted after: a crash between the two is mended by the next start, which deletes again what was
// erased, from an older copy of DATA too. What is older than Config.KeepEvidence is deleted at the start
// and once an hour. A file's last modification is set to when its result was made, by the mesh's time.
// What the medium keeps of deleted files is the matter of whoever encrypts it.

// Limits of the evidence that is kept.
const (
	defaultKeepEvidence = 365 * 24 * time.Hour
	sweepEvery          = time.Hour
	erasedFile          = "erased.json"
	maxErasures         = 4096
	maxErasedFile       = 1 << 20
	maxEvidenceFile     = saltBytes + attest.MaxEvidence
	saltBytes           = 32
)

// Erasure says what was erased by order: the evidence behind this node's results on Subject, or on all,
// that it made until Before.
type Erasure struct {
	At      time.Time         `json:"at"`
	Subject *identity.NodeRef `json:"subject,omitempty"`
	Before  time.Time         `json:"before"`
	// Files is how many there were; it is in no record.
	Files int `json:"files,omitempty"`
}

// covers reports whether the erasure is of the evidence behind a result on subject of a time.
func (e Erasure) covers(subject identity.NodeRef, at time.Time) bool {
	return (e.Subject == nil || *e.Subject == subject) && !at.After(e.Before)
}

// evidenceStore is the evidence of all boots of one node.
type evidenceStore struct {
	data *durable.Dir // DATA
	here string       // boot-N/evidence

	mu     sync.Mutex
	erased []Erasure // guarded by mu
}

// openEvidence opens the evidence in data and completes what an earlier process was ordered to erase.
func openEvidence(data *durable.Dir, boot string) (*evidenceStore, error) {
	s := &evidenceStore{data: data, here: boot + "/evidence"}
	raw, err := data.ReadFile(erasedFile, maxErasedFile)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &s.erased)
	}
	if err != nil {
		return nil, fmt.Errorf("%s, the record of what was erased: %w", data.Path(erasedFile), err)
	}
	for _, e := range s.erased {
		if _, err := s.remove(e.covers); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// keep stores the evidence behind a result on subject of a time. Until the kernel has written it, it
// does not outlive power.
func (s *evidenceStore) keep(subject identity.NodeRef, at time.Time, commitment string, salt [saltBytes]byte, evidence []byte) error {
	if s == nil || len(evidence) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.ContainsFunc(s.erased, func(e Erasure) bool { return e.covers(subject, at) }) {
		return nil // it was in hand when the order came
	}
	name := s.here + "/" + subject.String() + "/" + commitment
	err := s.data.Replace(name, append(salt[:], evidence...), 0o600)
	if err == nil {
		if err = os.Chtimes(s.data.Path(name), at, at); err != nil {
			_ = s.data.Discard(name)
		}
	}
	return err
}

// open returns the file behind a result. Where it was deleted the error is a *RefusedError that says
// when and why.
func (s *evidenceStore) open(r *consensus.AttestationResult, keep time.Duration, now time.Time) ([]byte, error) {
	raw, err := s.read(r.Evidence)
	if !errors.Is(err, fs.ErrNotExist) {
		return raw, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.erased {
		if e.covers(r.Subject.Node, r.At) {
			return nil, &RefusedError{*reason(codeErased, "evidence", "erased at "+e.At.Format(time.RFC3339), "evidence that is kept; the commitment in the log says nothing about it any more")}
		}
	}
	if end := r.At.Add(keep); now.After(end) {
		return nil, &RefusedError{*reason(codeErased, "evidence", "kept until "+end.Format(time.RFC3339), "evidence of the last "+keep.String()+" (keep_evidence)")}
	}
	return nil, err
}

// read returns the file of a commitment; the error wraps fs.ErrNotExist where there is none.
func (s *evidenceStore) read(commitment string) ([]byte, error) {
	if raw, err := hex.DecodeString(commitment); err != nil || len(raw) != sha256.Size {
		return nil, malformed(fmt.Errorf("%.70q is no commitment: want 64 characters of hex", commitment))
	}
	names, err := filepath.Glob(s.data.Path("boot-*", "evidence", "*", "*", commitment))
	if err != nil || len(names) == 0 {
		return nil, fs.ErrNotExist
	}
	name, err := filepath.Rel(s.data.Path(), names[0])
	if err != nil {
		return nil, err
	}
	raw, err := s.data.ReadFile(filepath.ToSlash(name), maxEvidenceFile)
	if err == nil && (len(raw) < saltBytes || consensus.EvidenceCommitment([saltBytes]byte(raw[:saltBytes]), raw[saltBytes:]) != commitment) {
		err = fmt.Errorf("%s is damaged: it is not what its name commits to", names[0])
	}
	return raw, err
}

// codeErased is of evidence that was deleted on purpose.
const codeErased attest.Code = "erased"

// forget deletes the evidence behind a statement that nobody has seen.
func (s *evidenceStore) forget(r *consensus.AttestationResult) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.data.Discard(s.here + "/" + r.Subject.Node.String() + "/" + r.Evidence)
}

// erase deletes what an order covers, for good.
func (s *evidenceStore) erase(order Erasure) (Erasure, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	order.Files = 0
	same := func(e Erasure) bool {
		return e.Subject == nil && order.Subject == nil || e.Subject != nil && order.Subject != nil && *e.Subject == *order.Subject
	}
	next := slices.DeleteFunc(slices.Clone(s.erased), func(e Erasure) bool { return same(e) && !e.Before.After(order.Before) })
	if next = append(next, order); len(next) > maxErasures {
		return order, fmt.Errorf("%d orders of erasure are recorded, the limit is %d: erase before a date instead of one node at a time", len(next)-1, maxErasures)
	}
	raw, err := json.Marshal(next)
	if err != nil {
		return order, err
	}
	if err := s.data.WriteFile(erasedFile, raw, 0o600); err != nil {
		return order, err
	}
	s.erased = next
	order.Files, err = s.remove(order.covers)
	return order, err
}

// sweep deletes what is older than a time.
func (s *evidenceStore) sweep(before time.Time) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.remove(func(_ identity.NodeRef, at time.Time) bool { return at.Before(before) })
}

// remove deletes files durably; mu is held, or nobody else has s yet. One that was not finished, which
// nobody finishes any more, is as old as it takes.
func (s *evidenceStore) remove(which func(identity.NodeRef, time.Time) bool) (count int, err error) {
	touched := map[string]bool{}
	err = s.each(func(name string, subject identity.NodeRef, st fs.FileInfo) error {
		at := st.ModTime()
		if strings.HasPrefix(st.Name(), ".") {
			at = time.Time{}
		}
		if !which(subject, at) {
			return nil
		}
		if err := s.data.Discard(name); err != nil {
			return err
		}
		touched[filepath.ToSlash(filepath.Dir(name))] = true
		count++
		return nil
	})
	for dir := range touched {
		if synced := s.data.Sync(dir); err == nil {
			err = synced
		}
	}
	return count, err
}

// each visits the files of all boots, by their names below DATA.
func (s *evidenceStore) each(visit func(name string, subject identity.NodeRef, st fs.FileInfo) error) error {
	roots, err := filepath.Glob(s.data.Path("boot-*", "evidence"))
	if err != nil {
		return err
	}
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			st, err := e.Info()
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			below, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			subject, err := identity.ParseNodeRef(filepath.ToSlash(below))
			if err != nil {
				return nil // nobody's that we put there
			}
			name, err := filepath.Rel(s.data.Path(), path)
			if err != nil {
				return err
			}
			return visit(filepath.ToSlash(name), subject, st)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// KeptEvidence is one file of evidence, as far as it can be told without the log.
type KeptEvidence struct {
	Commitment string           `json:"commitment"`
	Subject    identity.NodeRef `json:"subject"`
	At         time.Time        `json:"at"`
	Bytes      int64            `json:"bytes"`
}

// list returns what is kept, in the order of time.
func (s *evidenceStore) list() ([]KeptEvidence, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []KeptEvidence{}
	err := s.each(func(name string, subject identity.NodeRef, st fs.FileInfo) error {
		if base := filepath.Base(name); !strings.HasPrefix(base, ".") {
			out = append(out, KeptEvidence{base, subject, st.ModTime().UTC(), st.Size()})
		}
		return nil
	})
	slices.SortFunc(out, func(a, b KeptEvidence) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Commitment, b.Commitment)
	})
	return out, err
}
