package node

import (
	"testing"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// seatLink is a link of which only the peer is asked.
type seatLink struct {
	mesh.Link
	peer identity.PeerID
}

func (l seatLink) Peer() identity.PeerID { return l.peer }

// Two lanes on one seat hear nothing once that seat is cut off: they must follow two.
func TestLanesFollowDifferentSeats(t *testing.T) {
	f := &followedSeats{busy: map[identity.PeerID]bool{}}
	a, b := seatLink{peer: "a"}, seatLink{peer: "b"}
	first, ok := f.take([]mesh.Link{a})
	if !ok || first.Peer() != "a" {
		t.Fatalf("got %v, %v", first, ok)
	}
	if l, ok := f.take([]mesh.Link{a}); ok {
		t.Errorf("a second lane follows %s too", l.Peer())
	}
	second, ok := f.take([]mesh.Link{a, b})
	if !ok || second.Peer() != "b" {
		t.Errorf("got %v, %v; want the other seat", second, ok)
	}
	f.release("a")
	if l, ok := f.take([]mesh.Link{a, b}); !ok || l.Peer() != "a" {
		t.Errorf("a released seat is not followed again: %v", ok)
	}
	if _, ok := f.take(nil); ok {
		t.Error("no seat was followed")
	}
}
