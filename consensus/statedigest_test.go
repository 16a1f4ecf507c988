package consensus

import (
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/internal/identity"
)

func TestStateDigest(t *testing.T) {
	m := governing(t, 2)
	ref, err := identity.ParseNodeRef("alpha/n1")
	if err != nil {
		t.Fatal(err)
	}
	good := StateDigest{MeshID: m.g.MeshID(), Node: ref, Peer: peerOf("alpha/n1", 1), Seq: 7, Digest: strings.Repeat("ab", 32)}
	raw, err := SignStateDigest(boot("alpha/n1", 1), good)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ParseStateDigest(raw); err != nil || *got != good {
		t.Fatalf("got %+v, %v", got, err)
	}
	for name, change := range map[string]func(d *StateDigest){
		"no mesh":       func(d *StateDigest) { d.MeshID = identity.MeshID{} },
		"no node":       func(d *StateDigest) { d.Node = identity.NodeRef{} },
		"another peer":  func(d *StateDigest) { d.Peer = peerOf("beta/n1", 1) },
		"half a digest": func(d *StateDigest) { d.Digest = "ab" },
	} {
		d := good
		change(&d)
		if _, err := SignStateDigest(boot("alpha/n1", 1), d); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	forged := []byte(strings.Replace(string(raw), `"sig":"`, `"sig":"A`, 1))
	for name, bad := range map[string][]byte{"forged": forged, "large": make([]byte, MaxStateDigest+1), "other": m.credential("alpha/n1", 1), "cut": raw[:len(raw)-1]} {
		if _, err := ParseStateDigest(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
