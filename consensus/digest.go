package consensus

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"slices"

	"github.com/attestmesh/meshnode/internal/identity"
)

// The images are what digests are taken of: deterministic CBOR arrays of the state, with
// every map as a list in order. Anything that decides an Apply must be in them.
type policyImage struct {
	_           struct{} `cbor:",toarray"`
	Version     int
	MeshID      []byte
	Incarnation uint64
	Epoch       uint64
	Base        uint64
	Entries     []string // ids, which are hashes of the content
	Revoked     []string
	Seen        [][]byte
	Chain       []byte // SHA-256 over the SHA-256 of every envelope, in order
	ChainLength int
	ChainBytes  int
}

type nodeImage struct {
	_           struct{} `cbor:",toarray"`
	Ref         string
	Credential  []byte // SHA-256 of the envelope
	Measured    bool
	Kind        string
	Measurement string
	Reference   string
	Evicted     string
	Seat        bool
	Removed     string
}

type edgeImage struct {
	_        struct{} `cbor:",toarray"`
	Subject  []byte
	Verifier []byte
	Envelope []byte // SHA-256
}

type retiredImage struct {
	_    struct{} `cbor:",toarray"`
	Peer []byte
	Ref  string
}

type suspensionImage struct {
	_       struct{} `cbor:",toarray"`
	ID      []byte   // which names all that was signed
	Ordered int64    // Unix ms
	Ends    int64    // Unix ms
	Lifted  bool
}

// suspendingImage is that of a state with suspensions.
type suspendingImage struct {
	_           struct{} `cbor:",toarray"`
	State       []byte   // the digest without them
	Suspensions []suspensionImage
}

type stateImage struct {
	_       struct{} `cbor:",toarray"`
	Policy  []byte
	Now     int64 // Unix ms, 0 before the first tick
	TickSeq uint64
	Nodes   []nodeImage
	Edges   []edgeImage
	Retired []retiredImage
}

// section is a part of the state that came with fsmGovernance: the digests of older meshes
// have none. Sections are in the order of their names.
type section struct {
	_     struct{} `cbor:",toarray"`
	Name  string
	Image any // arrays of integers, strings and bytes, with every map as a list in order
}

// sectionedImage is that of a state with sections.
type sectionedImage struct {
	_        struct{} `cbor:",toarray"`
	Without  []byte   // the digest without them
	Sections []section
}

// sections returns the parts of the policy that the images above do not show.
func (s *PolicyState) sections() []section {
	return []section{s.constitutionSection(), {Name: "platforms", Image: s.platforms.image()}}
}

// sections returns the parts of the state beside the policy that the images above do not show.
func (s *State) sections() []section {
	return []section{{Name: "contradicted", Image: s.contradictedImage()}, s.logged.section(), s.quotaSection(),
		{Name: "seats", Image: s.seatsImage()}, {Name: "withdrawals", Image: s.withdrawalImages()}}
}

// withSections adds sections to a digest, in meshes that have them.
func (g *Genesis) withSections(without [32]byte, sections []section) [32]byte {
	if g.FSMVersion < fsmGovernance {
		return without
	}
	return digestOf(sectionedImage{Without: without[:], Sections: sections})
}

// PolicyDigest is equal exactly if two policy states are: what seats sign so that others
// can tell that a chain they replayed is the newest.
func (s *PolicyState) PolicyDigest() [32]byte {
	im := policyImage{Version: s.genesis.FSMVersion, MeshID: s.genesis.meshID[:], Incarnation: uint64(s.incarnation), Epoch: uint64(s.epoch), Base: s.base,
		Entries: slices.Sorted(maps.Keys(s.entries)), Revoked: slices.Sorted(maps.Keys(s.revoked)), ChainLength: len(s.chain), ChainBytes: s.chainBytes}
	for id := range s.seen {
		im.Seen = append(im.Seen, id[:])
	}
	slices.SortFunc(im.Seen, bytes.Compare)
	h := sha256.New()
	for _, raw := range s.chain {
		sum := sha256.Sum256(raw)
		h.Write(sum[:])
	}
	im.Chain = h.Sum(nil)
	return s.genesis.withSections(digestOf(im), s.sections())
}

// Digest is a digest of the full state: equal on every replica after the same commands.
func (s *State) Digest() [32]byte {
	policy := s.PolicyDigest()
	im := stateImage{Policy: policy[:], TickSeq: s.tickSeq}
	if !s.now.IsZero() {
		im.Now = s.now.UnixMilli()
	}
	for _, ref := range s.refs() {
		n := s.nodes[ref]
		ni := nodeImage{Ref: ref.String(), Credential: sum(n.cred.raw), Evicted: string(n.evicted), Seat: n.seat, Removed: string(n.removed)}
		if n.run != nil {
			ni.Measured, ni.Kind, ni.Measurement, ni.Reference = true, n.run.Kind, n.run.Measurement, n.run.Reference
		}
		im.Nodes = append(im.Nodes, ni)
	}
	for _, subject := range sortedPeers(s.edges) {
		verifiers := s.edges[subject]
		for _, verifier := range sortedPeers(verifiers) {
			im.Edges = append(im.Edges, edgeImage{Subject: []byte(subject), Verifier: []byte(verifier), Envelope: sum(verifiers[verifier].raw)})
		}
	}
	for _, peer := range sortedPeers(s.retired) {
		im.Retired = append(im.Retired, retiredImage{Peer: []byte(peer), Ref: s.retired[peer].String()})
	}
	without := s.genesis.withSections(digestOf(im), s.sections())
	if len(s.suspensions) == 0 {
		return without // as it was before there were suspensions
	}
	with := suspendingImage{State: without[:]}
	for id, x := range s.suspensions {
		with.Suspensions = append(with.Suspensions, suspensionImage{ID: id[:], Ordered: x.ordered.UnixMilli(), Ends: x.ends.UnixMilli(), Lifted: x.lifted})
	}
	slices.SortFunc(with.Suspensions, func(a, b suspensionImage) int { return bytes.Compare(a.ID, b.ID) })
	return digestOf(with)
}

func sortedPeers[V any](m map[identity.PeerID]V) []identity.PeerID {
	return slices.Sorted(maps.Keys(m))
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

// digestOf encodes integers, strings and lists of them, which cannot fail; were it to, all
// replicas would agree on the zero digest and none on a wrong one.
func digestOf(image any) [32]byte {
	raw, err := wire.enc.Marshal(image)
	if err != nil {
		return [32]byte{}
	}
	return sha256.Sum256(raw)
}
