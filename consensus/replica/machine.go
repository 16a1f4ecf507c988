package replica

import (
	"fmt"
	"runtime/debug"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Machine is the replicated state machine.
type Machine interface {
	// Apply executes a committed command. It is called for every command in the order of
	// the log, one at a time, on every replica; a replica that starts again calls it from
	// the first. What it does must depend on its arguments and earlier calls alone, and it
	// must not call the Replica and wait. A command that is invalid in the present state
	// is skipped, with the reason as the result. The result goes to the Replica.Apply that
	// submitted the command, if that runs here.
	Apply(index, term uint64, command []byte) any
	// Check refuses a command before it is stored here, as leader or as follower: because
	// it is malformed or badly signed. It runs beside Apply and itself. It must depend on
	// the command alone, or on state that only ever admits more: a command that others
	// have committed and this replica refuses leaves this replica behind for ever.
	Check(command []byte) error
	// Snapshot returns what encodes the machine as it is now, in at most MaxSnapshot bytes. It is
	// called between two Applies and must return at once; encode runs beside later ones. An
	// error says that there is nothing to give yet.
	Snapshot() (encode func() ([]byte, error), err error)
	// CheckSnapshot decides, before anything is stored, whether Restore would take a snapshot
	// that a leader has sent, with the servers of the configuration that came with it. It
	// runs beside Apply, may take seconds and changes nothing.
	CheckSnapshot(snapshot []byte, servers []identity.PeerID) error
	// Restore makes the machine that of a snapshot: of one that CheckSnapshot has passed, or of
	// one that this replica's own Store held. It is called between two Applies.
	Restore(snapshot []byte) error
}

// machineError is the result of commands after the machine has failed.
type machineError struct{ err error }

// adapter implements raft.FSM and raft.ConfigurationStore. Raft calls it from one
// goroutine.
type adapter struct {
	machine Machine
	self    raft.ServerID
	fail    func(error)
	removed func() // this server has left the configuration
	// snapshotIndex returns the index of the newest stored snapshot.
	snapshotIndex func() uint64
	broken        error // belongs to raft's FSM goroutine
	inside        bool  // likewise: the last configuration had this server

	mu      sync.Mutex // held for no waiting
	applied uint64
	moved   chan struct{} // closed when applied grows
}

func newAdapter(m Machine, self identity.PeerID, fail func(error), removed func()) *adapter {
	return &adapter{machine: m, self: raft.ServerID(self.String()), fail: fail, removed: removed, moved: make(chan struct{})}
}

// Apply implements raft.FSM.
func (a *adapter) Apply(l *raft.Log) (result any) {
	if a.broken != nil {
		return machineError{a.broken}
	}
	defer func() {
		if p := recover(); p != nil {
			// The state is unknown now. Going on would diverge, silently.
			a.broken = fmt.Errorf("machine panics at command %d: %v", l.Index, p)
			a.fail(fmt.Errorf("%w\n%s", a.broken, debug.Stack()))
			result = machineError{a.broken}
			return
		}
		a.move(l.Index)
	}()
	return a.machine.Apply(l.Index, l.Term, l.Data)
}

// StoreConfiguration implements raft.ConfigurationStore. Ids are never used twice, so who
// has been in a configuration and is not in a later one is out for good; who has not been
// in any yet may be reading history.
func (a *adapter) StoreConfiguration(index uint64, c raft.Configuration) {
	inside := false
	for _, s := range c.Servers {
		inside = inside || s.ID == a.self
	}
	if a.inside && !inside {
		a.removed()
	}
	a.inside = inside
	a.move(index)
}

func (a *adapter) move(index uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.applied = index
	close(a.moved)
	a.moved = make(chan struct{})
}

// position returns the newest applied index and a channel that is closed when it grows.
func (a *adapter) position() (uint64, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.applied, a.moved
}
