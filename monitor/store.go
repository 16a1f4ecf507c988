package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Names in the state directory.
const (
	stateName     = "state.json"
	journalName   = "alerts.jsonl"
	deliveredName = "delivered.json"
	pendingName   = "pending.jsonl" // alerts of leaves that nothing vouches for yet
	auditPrefix   = "audit-"
	evidenceDir   = "evidence"
)

const (
	stateFormat = "meshnode-monitor/v1"
	// maxState bounds what is read back of the monitor's own files.
	maxState = 64 << 20
	// maxAudit bounds a kept audit, which holds the whole governance state of a mesh.
	maxAudit = 1 << 30
)

// Errors of opening a state directory that the operator can mend.
var (
	ErrOtherMesh = errors.New("the state directory is of another mesh")
	ErrStart     = errors.New("the state directory was begun with another range")
	ErrBroken    = errors.New("the state directory is damaged")
)

// kept is the state of a monitor. It is replaced as one file, after all alerts up to Journal are
// on the disk, so that what it says to have been seen has been told.
type kept struct {
	Format string          `json:"format"`
	MeshID identity.MeshID `json:"mesh_id"`
	// Start and End are the range of leaves that rules are told of.
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
	// Audited is the checkpoint up to which everything was audited and told, Note its bytes as
	// they were first seen and Audit the file of the auditor at that size.
	Audited head   `json:"audited"`
	Audit   string `json:"audit,omitempty"`
	// Fresh is when a quorum is known to have cosigned Audited last.
	Fresh time.Time `json:"fresh,omitzero"`
	// Copies are the newest checkpoints that each copy has shown, Seen when each cosigner was
	// heard of, by the time of its newest cosignature.
	Copies     map[string]shown     `json:"copies"`
	Seen       map[string]time.Time `json:"seen"`
	Growth     []point              `json:"growth"`
	Receipts   map[string]waiting   `json:"receipts"`
	Conditions []condition          `json:"conditions"`
	Journal    int64                `json:"journal"`
}

// shown is the largest checkpoint that a copy has shown; Checked once it was held against what was
// audited.
type shown struct {
	head
	Checked bool `json:"checked"`
}

// head is a checkpoint with the signed note that says so.
type head struct {
	Origin string            `json:"origin"`
	Size   uint64            `json:"size"`
	Root   transparency.Hash `json:"root"`
	Note   string            `json:"note"`
}

// none reports whether there is no checkpoint.
func (h head) none() bool { return h.Note == "" }

func (h head) checkpoint() transparency.Checkpoint {
	return transparency.Checkpoint{Origin: h.Origin, Size: h.Size, Root: h.Root}
}

func headOf(note []byte) (head, error) {
	c, err := transparency.ParseCheckpoint(note)
	return head{c.Origin, c.Size, c.Root, string(note)}, err
}

// store is the state directory of one monitor.
type store struct {
	dir     *durable.Dir
	release func()
	journal *journal
	written []byte // the state as it was written last
}

// openStore takes the directory for this process and reads its state, which is new where there is
// none. The error wraps durable.ErrInUse where another monitor has it.
func openStore(path string, opts ...durable.Option) (*store, kept, error) {
	dir, err := durable.Open(path, opts...)
	if err != nil {
		return nil, kept{}, err
	}
	release, err := dir.Lock()
	if err != nil {
		return nil, kept{}, err
	}
	s := &store{dir: dir, release: release}
	k, err := s.read()
	if err == nil {
		s.journal, err = openJournal(dir, k.Journal)
	}
	if err == nil {
		err = s.sweep(k)
	}
	if err != nil {
		s.Close()
		return nil, kept{}, err
	}
	return s, k, nil
}

func (s *store) read() (kept, error) {
	k := kept{Format: stateFormat}
	raw, err := s.dir.ReadFile(stateName, maxState)
	if errors.Is(err, fs.ErrNotExist) {
		// Alerts without a state are of a monitor that was killed in its first round.
		k.Copies, k.Seen, k.Receipts = map[string]shown{}, map[string]time.Time{}, map[string]waiting{}
		return k, nil
	}
	if err != nil {
		return k, err
	}
	k = kept{}
	if err := json.Unmarshal(raw, &k); err != nil {
		return k, fmt.Errorf("%w: %s: %v", ErrBroken, s.dir.Path(stateName), err)
	}
	if k.Format != stateFormat || k.Copies == nil || k.Seen == nil || k.Receipts == nil {
		return k, fmt.Errorf("%w: %s is of format %.40q, want %s", ErrBroken, s.dir.Path(stateName), k.Format, stateFormat)
	}
	return k, nil
}

// sweep removes what an interrupted round left.
func (s *store) sweep(k kept) error {
	list, err := os.ReadDir(s.dir.Path())
	if err != nil {
		return err
	}
	for _, e := range list {
		name := e.Name()
		old := strings.HasPrefix(name, auditPrefix) && name != k.Audit || name == pendingName
		temporary := strings.HasPrefix(name, ".") && strings.Contains(name, ".tmp")
		if old || temporary {
			if err := s.dir.Discard(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// commit makes k the state; held says that it stands at another checkpoint than before, with audit
// as the auditor's there, which may be nil if it cannot be kept. Alerts that k covers are in the
// journal before.
func (s *store) commit(k *kept, held bool, audit []byte) error {
	old := k.Audit
	if held {
		k.Audit = ""
	}
	if audit != nil {
		name := fmt.Sprintf("%s%d", auditPrefix, k.Audited.Size)
		if err := s.dir.WriteFile(name, audit, 0o600); err != nil {
			return err
		}
		k.Audit = name
	}
	k.Journal = s.journal.size
	raw, err := json.Marshal(k)
	if err != nil || bytes.Equal(raw, s.written) {
		return err
	}
	if err := s.dir.WriteFile(stateName, append(raw, '\n'), 0o600); err != nil {
		return err
	}
	s.written = raw
	if old != "" && old != k.Audit {
		return s.dir.Discard(old)
	}
	return nil
}

// auditor returns the kept audit, nil if there is none.
func (s *store) auditor(k *kept) ([]byte, error) {
	if k.Audit == "" {
		return nil, nil
	}
	raw, err := s.dir.ReadFile(k.Audit, maxAudit)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %v", ErrBroken, err)
	}
	return raw, err
}

// delivered is how far each output has taken the journal.
type delivered map[string]int64

func (s *store) readDelivered() (delivered, error) {
	out := delivered{}
	raw, err := s.dir.ReadFile(deliveredName, maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrBroken, err)
	}
	return out, nil
}

func (s *store) writeDelivered(d delivered) error {
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	return s.dir.WriteFile(deliveredName, append(raw, '\n'), 0o600)
}

// Close lets go of the directory.
func (s *store) Close() {
	if s.journal != nil {
		s.journal.Close()
	}
	s.release()
}
