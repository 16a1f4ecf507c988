package enroll

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Names in an enroller's directory.
const (
	metaName      = "enroller.json"
	bootstrapName = "bootstrap.json"
	enteredName   = "incarnation.json"
	nodesName     = "nodes"
	tlsKeyName    = "tls.key"
)

// storeVersion is that of every file's format.
const storeVersion = 1

// owner says whose directory it is: it is of no use to another mesh or organisation.
type owner struct {
	Version      int             `json:"version"`
	MeshID       identity.MeshID `json:"mesh_id"`
	Organisation identity.OrgID  `json:"organisation"`
}

// boot is one life of a node.
type boot struct {
	BootSeq  identity.BootSeq `json:"boot_seq"`
	Peer     identity.PeerID  `json:"peer"`
	Cosigner []byte           `json:"cosigner"`
}

// nodeFile is nodes/NAME.json: every boot that ever got a Credential, newest last. Older
// ones are kept for ever, so that none comes back under a new number.
type nodeFile struct {
	Version int               `json:"version"`
	Name    identity.NodeName `json:"name"`
	Boots   []boot            `json:"boots"`
}

// attempt is bootstrap.json: the one Bootstrap that counts.
type attempt struct {
	Version     int                  `json:"version"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Attempt     uint32               `json:"attempt"`
	Payload     []byte               `json:"payload_sha256"`
	Node        identity.NodeName    `json:"node"`
	Peer        identity.PeerID      `json:"peer"`
	Started     bool                 `json:"started"`
}

// entered is incarnation.json: the incarnation that the enroller serves, and the Recovery
// that began it; absent in incarnation 0.
type entered struct {
	Version     int                  `json:"version"`
	Incarnation identity.Incarnation `json:"incarnation"`
	Recovery    string               `json:"recovery"`
}

// store is the enroller's memory: what it promised never to do again. Every change is
// durable before its method returns nil; after a write that failed, whose outcome nobody
// knows, every method refuses until the process starts again.
type store struct {
	dir *durable.Dir

	mu     sync.Mutex
	broken error                           // guarded by mu, as all below
	nodes  map[identity.NodeName]*nodeFile // what the files hold
	peers  map[identity.PeerID]identity.NodeName
	signed *attempt // nil before the first
}

// openStore reads the state of a directory that the caller has locked.
func openStore(dir *durable.Dir, mesh identity.MeshID, org identity.OrgID) (*store, error) {
	s := &store{dir: dir, nodes: map[identity.NodeName]*nodeFile{}, peers: map[identity.PeerID]identity.NodeName{}}
	want := owner{storeVersion, mesh, org}
	var have owner
	switch err := readJSON(dir, metaName, &have); {
	case errors.Is(err, fs.ErrNotExist):
		if err := writeJSON(dir, metaName, want); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case have != want:
		return nil, fmt.Errorf("%s: belongs to organisation %s of mesh %s (format %d), not to %s of %s (format %d): use another directory",
			dir.Path(metaName), have.Organisation, have.MeshID.Short(), have.Version, org, mesh.Short(), storeVersion)
	}
	if err := s.readNodes(); err != nil {
		return nil, err
	}
	var a attempt
	switch err := readJSON(dir, bootstrapName, &a); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case a.Version != storeVersion:
		return nil, fmt.Errorf("%s: format %d, want %d", dir.Path(bootstrapName), a.Version, storeVersion)
	default:
		s.signed = &a
	}
	return s, nil
}

func (s *store) readNodes() error {
	entries, err := os.ReadDir(s.dir.Path(nodesName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if strings.HasPrefix(e.Name(), ".") {
			continue // what an interrupted write left
		}
		rel := filepath.Join(nodesName, e.Name())
		var f nodeFile
		if err := readJSON(s.dir, rel, &f); err != nil {
			return err
		}
		if !ok || f.Version != storeVersion || string(f.Name) != name || len(f.Boots) == 0 {
			return fmt.Errorf("%s: no record of a node in format %d", s.dir.Path(rel), storeVersion)
		}
		last := identity.BootSeq(0)
		for _, b := range f.Boots {
			if other, taken := s.peers[b.Peer]; taken || b.BootSeq <= last {
				return fmt.Errorf("%s: boot %d of peer %s is out of order or known of node %s too", s.dir.Path(rel), b.BootSeq, b.Peer.Short(), other)
			}
			s.peers[b.Peer], last = f.Name, b.BootSeq
		}
		s.nodes[f.Name] = &f
	}
	return nil
}

// enter records durably which incarnation is served from now on. One that was left is never
// served again, and no incarnation under two Recoveries: signatures for both could found it
// twice.
func (s *store) enter(incarnation identity.Incarnation, recovery string) error {
	var have entered
	err := readJSON(s.dir, enteredName, &have)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case have.Version != storeVersion:
		return fmt.Errorf("%s: format %d, want %d", s.dir.Path(enteredName), have.Version, storeVersion)
	}
	if s.signed != nil && s.signed.Incarnation > have.Incarnation {
		have.Incarnation = s.signed.Incarnation
	}
	switch {
	case incarnation < have.Incarnation:
		return fmt.Errorf("this enroller serves incarnation %d: give it the recovery file of that one", have.Incarnation)
	case incarnation == have.Incarnation && recovery == have.Recovery:
		return nil
	case incarnation == have.Incarnation:
		return fmt.Errorf("incarnation %d began here by the recovery %s, not by %s: an incarnation begins once; recover to a higher one", incarnation, have.Recovery, recovery)
	}
	return writeJSON(s.dir, enteredName, entered{storeVersion, incarnation, recovery})
}

// enrol returns the boot number of a peer that proved to be a node: that of its earlier
// Credential if it is the node's newest boot, a new one if it was never seen.
func (s *store) enrol(name identity.NodeName, peer identity.PeerID, cosigner []byte, now time.Time) (identity.BootSeq, *attest.Reason) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.usable(); r != nil {
		return 0, r
	}
	old := s.nodes[name]
	if known, ok := s.peers[peer]; ok {
		if known != name {
			return 0, refusal(attest.CodeWrongPeer, "peer", peer.String()+", enrolled as "+string(known), "a peer id made by this boot of "+string(name))
		}
		newest := old.Boots[len(old.Boots)-1]
		if newest.Peer != peer {
			return 0, refusal(attest.CodeRetired, "peer", peer.String(), fmt.Sprintf("%s, boot %d", newest.Peer, newest.BootSeq))
		}
		if !bytes.Equal(newest.Cosigner, cosigner) {
			return 0, refusal(attest.CodeDuplicate, "cosigner", "another key", "the key that this boot enrolled with")
		}
		return newest.BootSeq, nil
	}
	next := &nodeFile{Version: storeVersion, Name: name}
	seq := identity.BootSeq(max(now.UnixMilli(), 1))
	if old != nil {
		next.Boots = append(next.Boots, old.Boots...)
		seq = max(seq, old.Boots[len(old.Boots)-1].BootSeq+1)
	}
	next.Boots = append(next.Boots, boot{seq, peer, cosigner})
	if r := s.write(nodesName+"/"+string(name)+".json", next); r != nil {
		return 0, r
	}
	s.nodes[name], s.peers[peer] = next, name
	return seq, nil
}

// sign records that a Bootstrap is signed, before it is. The seat in it must be the newest
// boot of its node. Attempts rise; an attempt has one payload; and none follows one under
// which the seat has started.
func (s *store) sign(a attempt) *attest.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.usable(); r != nil {
		return r
	}
	a.Version, a.Started = storeVersion, false
	if r := s.newest(a.Node, a.Peer); r != nil {
		return r
	}
	if old := s.signed; old != nil && a.Incarnation <= old.Incarnation {
		got := fmt.Sprintf("attempt %d of incarnation %d", a.Attempt, a.Incarnation)
		switch {
		case a.Incarnation < old.Incarnation:
			return refusal(attest.CodeWrongIncarnation, "bootstrap", got, fmt.Sprintf("incarnation %d", old.Incarnation))
		case a.Attempt == old.Attempt && bytes.Equal(a.Payload, old.Payload) && a.Peer == old.Peer:
			return nil // asked again
		case old.Started:
			r := refusal(attest.CodeReplayed, "bootstrap", got, fmt.Sprintf("nothing: the seat started under attempt %d", old.Attempt))
			r.Remedy = "let the mesh start under that attempt; if it cannot, the organisations sign a Recovery"
			return r
		case a.Attempt <= old.Attempt:
			r := refusal(attest.CodeReplayed, "bootstrap", got, fmt.Sprintf("attempt %d or later, or the payload signed before", old.Attempt+1))
			r.Remedy = "propose Bootstrap again with a higher attempt"
			return r
		}
	}
	if r := s.write(bootstrapName, a); r != nil {
		return r
	}
	s.signed = &a
	return nil
}

// start records that the seat which peer is has started under an attempt.
func (s *store) start(incarnation identity.Incarnation, number uint32, peer identity.PeerID) *attest.Reason {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.usable(); r != nil {
		return r
	}
	if s.signed == nil {
		return refusal(attest.CodeUnknownEntry, "attempt", fmt.Sprint(number), "an attempt that this enroller signed")
	}
	next := *s.signed
	if next.Incarnation != incarnation || next.Attempt != number || next.Peer != peer {
		return refusal(attest.CodeRetired, "attempt", fmt.Sprintf("%d of peer %s", number, peer.Short()),
			fmt.Sprintf("%d of peer %s, the last one signed", next.Attempt, next.Peer.Short()))
	}
	if next.Started {
		return nil
	}
	if r := s.newest(next.Node, peer); r != nil {
		return r
	}
	next.Started = true
	if r := s.write(bootstrapName, next); r != nil {
		return r
	}
	s.signed = &next
	return nil
}

// newest refuses a peer that is not, or not any more, a node's newest boot; mu is held.
func (s *store) newest(name identity.NodeName, peer identity.PeerID) *attest.Reason {
	f := s.nodes[name]
	if f == nil {
		return refusal(attest.CodeRetired, "seat "+string(name), peer.String(), "a boot that this enroller enrolled")
	}
	if b := f.Boots[len(f.Boots)-1]; b.Peer != peer {
		return refusal(attest.CodeRetired, "seat "+string(name), peer.String(), fmt.Sprintf("%s, boot %d, the newest", b.Peer, b.BootSeq))
	}
	return nil
}

// usable refuses after a failed write; mu is held.
func (s *store) usable() *attest.Reason {
	if s.broken == nil {
		return nil
	}
	r := refusal(attest.CodeUnavailable, "state", "a failed write", "durable state")
	r.Remedy = "mend the enroller's disk and restart it: " + s.broken.Error()
	return r
}

// write makes v durable; mu is held.
func (s *store) write(name string, v any) *attest.Reason {
	if err := writeJSON(s.dir, name, v); err != nil {
		s.broken = err
		return s.usable()
	}
	return nil
}

// failure returns the failed write after which the store refuses, or nil.
func (s *store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

func readJSON(dir *durable.Dir, name string, v any) error {
	raw, err := dir.ReadFile(name, maxStateFile)
	if err != nil {
		return err
	}
	if err := decodeJSON(raw, v); err != nil {
		return fmt.Errorf("%s: %w", dir.Path(name), err)
	}
	return nil
}

func writeJSON(dir *durable.Dir, name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(raw) > maxStateFile {
		return fmt.Errorf("%s: would have %d bytes, the limit is %d", dir.Path(name), len(raw), maxStateFile)
	}
	return dir.WriteFile(name, append(raw, '\n'), 0o600)
}

// decodeJSON decodes exactly one value without unknown fields.
func decodeJSON(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("trailing data")
	}
	return nil
}

// refusal returns a new reason.
func refusal(code attest.Code, claim, got, want string) *attest.Reason {
	r := attest.NewReason(code, claim, got, want)
	return &r
}
