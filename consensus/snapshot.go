package consensus

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/fxamacker/cbor/v2"
)

// MaxImage bounds an encoded State. 5,000 nodes with two edges each and 200 entries take less
// than 3 MiB; what the other limits admit together, an hour of every organisation's worst, stays below.
const MaxImage = 64 << 20

// maxImageList bounds a list in an image: there can be as many strings as edges, 8 by each of 7
// organisations on each of 7,168 nodes, and as many names of retired boots as there are boots.
const maxImageList = MaxOrganisations * max(MaxRetired, MaxOrganisations*MaxNodes*MaxVerifiers)

// imageVersion is the first element of an image.
const imageVersion = 1

// wireImage is the encoding of a State: the policy chain, from which Restore replays the policy,
// and beside it what commands without a step in that chain have left. Strings that recur are
// numbers in Strings, in the order of their first use; nodes are in the order of their
// names and named by their place in it.
type wireImage struct {
	_           struct{} `cbor:",toarray"`
	Version     int
	MeshID      []byte
	Chain       []wireEnvelope
	Now         int64 // Unix ms, 0 before the first tick
	TickSeq     uint64
	Strings     []string
	Nodes       []wireNode
	Retired     []wireRetired
	Suspensions []wireSuspension
	Parts       []wirePart
}

// wireNode is one node and the edges on it.
type wireNode struct {
	_          struct{} `cbor:",toarray"`
	Credential wireCredential
	Run        []uint64 // kind, measurement, reference; empty if not measured
	Evicted    uint64
	Seat       bool
	Removed    uint64
	Edges      []wireEdge
}

// wireRetired are the older boots of one name: their peer ids, in order, one behind the other.
type wireRetired struct {
	_     struct{} `cbor:",toarray"`
	Ref   string
	Peers []byte
}

type wireSuspension struct {
	_        struct{} `cbor:",toarray"`
	Envelope wireEnvelope
	Entry    []byte // JSON of what it suspends; empty for a node
	Ordered  int64  // Unix ms
	Ends     int64  // Unix ms
	Lifted   bool
}

// wirePart is what a part saves.
type wirePart struct {
	_     struct{} `cbor:",toarray"`
	Name  string
	Image []byte
}

// part is a piece of a State that the fields of wireImage do not show: it came later. Its
// load decodes strictly.
type part struct {
	name string
	save func(*State) any
	load func(*State, []byte) error
}

// parts returns them in the order of their names.
func parts() []part {
	return []part{contradictedPart(), loggedPart(), quotaPart(), seatsPart(), withdrawalPart()}
}

func loggedPart() part {
	return part{"logged",
		func(s *State) any { return s.logged.image() },
		func(s *State, raw []byte) error {
			var im loggedImage
			if err := images.decode(raw, &im); err != nil {
				return err
			}
			s.logged = logged{seq: im.Seq, at: timeOf(im.At)}
			return nil
		}}
}

// images is deterministic CBOR with room for a mesh.
var images = codec{
	enc: must(imageEncoding().EncMode()),
	dec: must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxArrayElements:  maxImageList,
		MaxMapPairs:       16,
		MaxNestedLevels:   8,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()),
}

func imageEncoding() cbor.EncOptions {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	return o
}

// interner numbers strings that recur.
type interner struct {
	list    []string
	index   map[string]uint64
	decoded map[uint64]decodedFindings // of list, where it is one
	keys    map[identity.PeerID]string // key ids of verifiers
}

func (t *interner) of(s string) uint64 {
	if i, ok := t.index[s]; ok {
		return i
	}
	i := uint64(len(t.list))
	t.list = append(t.list, s)
	t.index[s] = i
	return i
}

// at returns string i, or an error that names what it was for.
func (t *interner) at(what string, i uint64) (string, error) {
	if i >= uint64(len(t.list)) {
		return "", fmt.Errorf("%s: string %d of %d", what, i, len(t.list))
	}
	return t.list[i], nil
}

// Image encodes s for Restore. It fails before the start, and beyond the limits.
func (s *State) Image() ([]byte, error) {
	if !s.Started() {
		return nil, fmt.Errorf("image: no Bootstrap yet")
	}
	w := wireImage{Version: imageVersion, MeshID: s.genesis.meshID[:], TickSeq: s.tickSeq}
	if !s.now.IsZero() {
		w.Now = s.now.UnixMilli()
	}
	for _, raw := range s.chain {
		w.Chain = append(w.Chain, packEnvelope(raw))
	}
	table := &interner{index: map[string]uint64{}}
	refs := s.refs()
	place := map[identity.PeerID]uint64{}
	for i, ref := range refs {
		place[s.nodes[ref].cred.Peer] = uint64(i)
	}
	for _, ref := range refs {
		w.Nodes = append(w.Nodes, s.packNode(s.nodes[ref], table, place))
	}
	w.Retired = s.packRetired()
	for _, id := range slices.SortedFunc(maps.Keys(s.suspensions), func(a, b SuspensionID) int { return bytes.Compare(a[:], b[:]) }) {
		x := s.suspensions[id]
		ws := wireSuspension{Envelope: packEnvelope(x.raw), Ordered: x.ordered.UnixMilli(), Ends: x.ends.UnixMilli(), Lifted: x.lifted}
		if x.Entry != "" {
			var err error
			if ws.Entry, err = canonical.JSON(x.entry); err != nil {
				return nil, fmt.Errorf("image: %w", err)
			}
		}
		w.Suspensions = append(w.Suspensions, ws)
	}
	for _, p := range parts() {
		raw, err := images.enc.Marshal(p.save(s))
		if err != nil {
			return nil, fmt.Errorf("image: %s: %w", p.name, err)
		}
		w.Parts = append(w.Parts, wirePart{Name: p.name, Image: raw})
	}
	w.Strings = table.list
	raw, err := images.enc.Marshal(w)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if len(raw) > MaxImage {
		return nil, fmt.Errorf("image: %d bytes, the limit is %d", len(raw), MaxImage)
	}
	return raw, nil
}

func (s *State) packNode(n *node, table *interner, place map[identity.PeerID]uint64) wireNode {
	w := wireNode{Credential: packCredential(n.cred, table), Evicted: table.of(string(n.evicted)), Seat: n.seat, Removed: table.of(string(n.removed))}
	if n.run != nil {
		w.Run = []uint64{table.of(n.run.Kind), table.of(n.run.Measurement), table.of(n.run.Reference)}
	}
	edges := s.edges[n.cred.Peer]
	for _, verifier := range slices.SortedFunc(maps.Keys(edges), func(a, b identity.PeerID) int { return int(place[a]) - int(place[b]) }) {
		w.Edges = append(w.Edges, packEdge(edges[verifier], place[verifier], table))
	}
	return w
}

func (s *State) packRetired() []wireRetired {
	byRef := map[identity.NodeRef][]byte{}
	for _, peer := range sortedPeers(s.retired) {
		byRef[s.retired[peer]] = append(byRef[s.retired[peer]], peer...)
	}
	var out []wireRetired
	for _, ref := range slices.SortedFunc(maps.Keys(byRef), compareRefs) {
		out = append(out, wireRetired{Ref: ref.String(), Peers: byRef[ref]})
	}
	return out
}

func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Restore decodes an Image of a mesh. The policy is replayed from g on, with all
// signatures; those of Credentials and suspensions are verified again, too. What remains,
// above all time, edges and quotas, is as the image says: whoever restores one holds State.Digest
// against a digest that a majority of organisations has logged.
func Restore(g *Genesis, raw []byte) (*State, error) {
	s, err := restore(g, raw)
	if err != nil {
		return nil, fmt.Errorf("state image: %w", err)
	}
	return s, nil
}

func restore(g *Genesis, raw []byte) (*State, error) {
	if len(raw) > MaxImage {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(raw), MaxImage)
	}
	var w wireImage
	if err := images.dec.Unmarshal(raw, &w); err != nil {
		return nil, err
	}
	if w.Version != imageVersion {
		return nil, fmt.Errorf("version %d, this release reads %d", w.Version, imageVersion)
	}
	if !bytes.Equal(w.MeshID, g.meshID[:]) {
		return nil, fmt.Errorf("of mesh %x, want %s", w.MeshID, g.meshID)
	}
	s := NewState(g)
	var err error
	chain := make([][]byte, len(w.Chain))
	for i, e := range w.Chain {
		if chain[i], err = e.unpack(); err != nil {
			return nil, fmt.Errorf("policy chain step %d: %w", i, err)
		}
	}
	if s.PolicyState, err = ReplayPolicy(g, chain); err != nil {
		return nil, err
	}
	if !s.Started() {
		return nil, fmt.Errorf("no Bootstrap")
	}
	s.now, s.tickSeq = timeOf(w.Now), w.TickSeq
	for _, load := range []func(*wireImage) error{s.loadNodes, s.loadRetired, s.loadSuspensions, s.loadParts} {
		if err := load(&w); err != nil {
			return nil, err
		}
	}
	again, err := s.Image()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, raw) {
		return nil, canonical.ErrForm
	}
	return s, nil
}

func (s *State) loadNodes(w *wireImage) error {
	table := &interner{list: w.Strings}
	refs := make([]identity.NodeRef, len(w.Nodes))
	for i, wn := range w.Nodes {
		cred, err := s.unpackCredential(wn.Credential, table)
		if err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
		ref := cred.Ref()
		if _, ok := s.peers[cred.Peer]; ok || i > 0 && compareRefs(refs[i-1], ref) >= 0 {
			return fmt.Errorf("node %d: %s after %s, want distinct nodes in order", i, ref, refs[max(i, 1)-1])
		}
		refs[i] = ref
		n := &node{cred: cred, seat: wn.Seat}
		if n.evicted, err = codeAt(table, "evicted", wn.Evicted); err != nil {
			return fmt.Errorf("node %s: %w", ref, err)
		}
		if n.removed, err = codeAt(table, "removed", wn.Removed); err != nil {
			return fmt.Errorf("node %s: %w", ref, err)
		}
		if len(wn.Run) > 0 {
			if n.run, err = measuredAt(table, wn.Run); err != nil {
				return fmt.Errorf("node %s: %w", ref, err)
			}
		}
		s.nodes[ref], s.peers[cred.Peer] = n, ref
	}
	for i, wn := range w.Nodes {
		subject := Party{refs[i], s.nodes[refs[i]].cred.Peer}
		for _, we := range wn.Edges {
			if we.Verifier >= uint64(len(refs)) {
				return fmt.Errorf("edge on %s: verifier %d of %d nodes", subject.Node, we.Verifier, len(refs))
			}
			verifier := refs[we.Verifier]
			e, err := s.unpackEdge(we, Party{verifier, s.nodes[verifier].cred.Peer}, subject, table)
			if err != nil {
				return fmt.Errorf("edge of %s on %s: %w", verifier, subject.Node, err)
			}
			if s.edges[subject.Peer] == nil {
				s.edges[subject.Peer] = map[identity.PeerID]*AttestationResult{}
			}
			s.edges[subject.Peer][e.Verifier.Peer] = e
		}
	}
	return nil
}

func codeAt(table *interner, what string, i uint64) (attest.Code, error) {
	s, err := table.at(what, i)
	if err == nil && s != "" && !codePattern.MatchString(s) {
		err = fmt.Errorf("%s: %.40q is no code", what, s)
	}
	return attest.Code(s), err
}

func measuredAt(table *interner, run []uint64) (*measured, error) {
	if len(run) != 3 {
		return nil, fmt.Errorf("run: %d fields, want kind, measurement and reference", len(run))
	}
	var fields [3]string
	for i, n := range run {
		var err error
		if fields[i], err = table.at("run", n); err != nil {
			return nil, err
		}
	}
	return &measured{fields[0], fields[1], fields[2]}, nil
}

func (s *State) loadRetired(w *wireImage) error {
	for _, r := range w.Retired {
		ref, err := identity.ParseNodeRef(r.Ref)
		if err != nil {
			return fmt.Errorf("retired: %w", err)
		}
		if len(r.Peers) == 0 {
			return fmt.Errorf("retired: no peer of %s", ref)
		}
		for rest := r.Peers; len(rest) > 0; rest = rest[peerIDSize:] {
			if len(rest) < peerIDSize {
				return fmt.Errorf("retired: %d bytes behind the peers of %s", len(rest), ref)
			}
			peer := identity.PeerID(rest[:peerIDSize])
			if err := peer.Validate(); err != nil {
				return fmt.Errorf("retired: %w", err)
			}
			if _, ok := s.peers[peer]; ok {
				return fmt.Errorf("retired: %s is in use", peer.Short())
			}
			s.retired[peer] = ref
		}
	}
	return nil
}

// peerIDSize is the length of the peer id of an Ed25519 key.
const peerIDSize = 38

func (s *State) loadSuspensions(w *wireImage) error {
	for i, ws := range w.Suspensions {
		raw, err := ws.Envelope.unpack()
		if err != nil {
			return fmt.Errorf("suspension %d: %w", i, err)
		}
		x, env, err := ParseSuspension(raw)
		if err != nil {
			return err
		}
		// A recovery ends no suspension: it may be of a lower incarnation.
		if err := s.checkStatement("suspension", x.MeshID, max(x.Incarnation, s.incarnation), fsmSuspensions); err != nil {
			return err
		}
		if _, err := env.Verify(s.everKeys(x.Organisation, KeyEmergency)); err != nil {
			return fmt.Errorf("suspension by %s: %w", x.Organisation, err)
		}
		next := &suspended{Suspension: x, raw: raw, ordered: timeOf(ws.Ordered), ends: timeOf(ws.Ends), lifted: ws.Lifted}
		if (x.Entry == "") != (len(ws.Entry) == 0) {
			return fmt.Errorf("suspension %s: %d bytes of entry for %s", x.id, len(ws.Entry), x.Target())
		}
		if x.Entry != "" {
			if err := canonical.DecodeJSON(ws.Entry, &next.entry); err != nil {
				return fmt.Errorf("suspension %s: entry: %w", x.id, err)
			}
			if next.entry.check() != nil || next.entry.ID != x.Entry {
				return fmt.Errorf("suspension %s: the entry is not %s", x.id, x.Entry)
			}
		}
		s.suspensions[x.id] = next
	}
	return nil
}

func (s *State) loadParts(w *wireImage) error {
	want := parts()
	if len(w.Parts) != len(want) {
		return fmt.Errorf("%d parts, want %d", len(w.Parts), len(want))
	}
	for i, p := range want {
		if w.Parts[i].Name != p.name {
			return fmt.Errorf("part %d is %.40q, want %q", i, w.Parts[i].Name, p.name)
		}
		if err := p.load(s, w.Parts[i].Image); err != nil {
			return fmt.Errorf("part %s: %w", p.name, err)
		}
	}
	return nil
}
