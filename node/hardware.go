package node

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// Whoever holds a machine can try to read all guests on it, and one guest can hand its quotes
// to another. Organisations that count each other's findings as independent should know when
// two of them are on one machine. It is no reason to refuse: clouds put tenants of different
// organisations onto the same processor. So it is reported, by each node that is linked to
// both: in the log when the second link comes up, in status as long as both stand.
//
// What is compared is what the peers' verified evidence names: SEV-SNP's chip id, TDX's
// platform id (PPID), and a TPM's attestation key. A host that masks the chip id shows none. A
// TPM's key is made by each process anew unless the machine was provided with one, so that
// two nodes at one TPM are mostly not found. A node does not compare with itself: it does not
// verify its own evidence.

const hardwareLabel = "meshnode hardware v1"

// hardwareOf returns names of the hardware that claims are of, of the mesh's own: the first 8
// bytes, in hex, of SHA-256 over label, mesh id, what is named and its id, each with its
// length. Ids are private, and the same in every mesh; names are neither.
func hardwareOf(meshID identity.MeshID, c attest.Claims) (names []string) {
	key := ""
	if c.VTPM != nil {
		key = c.VTPM.AKDigest
	}
	for _, id := range []struct{ what, id string }{{"machine", c.HardwareID}, {"attestation key", key}} {
		if strings.Trim(id.id, "0") == "" {
			continue // none, or masked
		}
		var buf []byte
		for _, part := range []string{hardwareLabel, meshID.String(), id.what, id.id} {
			buf = attest.LengthPrefixed(buf, []byte(part))
		}
		sum := sha256.Sum256(buf)
		names = append(names, hex.EncodeToString(sum[:8]))
	}
	return names
}

// sharedHardware finds hardware that nodes of several organisations show: by its name, the
// names of all nodes that show it, in order.
func sharedHardware(meshID identity.MeshID, sessions []*mesh.Session) map[string][]string {
	nodes, orgs := map[string][]string{}, map[string]map[identity.OrgID]bool{}
	for _, s := range sessions {
		for _, name := range hardwareOf(meshID, s.Claims) {
			if orgs[name] == nil {
				orgs[name] = map[identity.OrgID]bool{}
			}
			orgs[name][s.Node.Org] = true
			nodes[name] = append(nodes[name], s.Node.String())
		}
	}
	maps.DeleteFunc(nodes, func(name string, _ []string) bool { return len(orgs[name]) < 2 })
	for name := range nodes {
		slices.Sort(nodes[name])
		nodes[name] = slices.Compact(nodes[name]) // two boots of a node may be linked for a moment
	}
	return nodes
}

// sessions are the newest verdicts of all live links.
func (n *Node) sessions() []*mesh.Session {
	var out []*mesh.Session
	for _, l := range n.links() {
		out = append(out, l.Session())
	}
	return out
}

// explainHardware adds what peers share to their entries, and a warning for each machine.
func (n *Node) explainHardware(s *Status) {
	shared := sharedHardware(n.genesis.MeshID(), n.sessions())
	for _, name := range slices.Sorted(maps.Keys(shared)) {
		for i := range s.Peers {
			if p := &s.Peers[i]; p.State == PeerConnected && slices.Contains(shared[name], p.Node) {
				p.SharedHardware = name
			}
		}
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s show the same hardware (%s): whoever holds that machine holds them all; "+
			"ask the organisations whether they know", strings.Join(shared[name], " and "), name))
	}
}

// reportHardware writes into the log what the peer of a new link shares with others.
func (n *Node) reportHardware(s *mesh.Session) {
	shared := sharedHardware(n.genesis.MeshID(), n.sessions())
	for _, name := range hardwareOf(n.genesis.MeshID(), s.Claims) {
		if nodes := shared[name]; len(nodes) > 0 {
			n.log.Warn("hardware shared by organisations", "hardware", name, "nodes", strings.Join(nodes, " "))
		}
	}
}
