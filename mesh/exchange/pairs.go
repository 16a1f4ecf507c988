package exchange

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

// PairKey is the secret of one attester and one verifier, made by a full exchange. It
// convinces that verifier alone, for the verifier knows it too.
type PairKey [32]byte

// PairID names a pair key without giving it away.
type PairID [32]byte

// NewPairKey returns the key of the attester that has role in the TLS connection behind
// export.
func NewPairKey(export Exporter, role attest.Role, helloI, helloR []byte) (PairKey, error) {
	hellos := helloDigest(helloI, helloR)
	context := sha256.Sum256(attest.LengthPrefixed(attest.LengthPrefixed(nil, []byte{byte(role)}), hellos[:]))
	k, err := exported(export, PairExporterLabel, context[:], len(PairKey{}))
	if err != nil {
		return PairKey{}, err
	}
	return PairKey(k), nil
}

// ID returns the key's name.
func (k PairKey) ID() PairID {
	return sha256.Sum256(attest.LengthPrefixed(attest.LengthPrefixed(nil, []byte(pairIDLabel)), k[:]))
}

// MAC returns what a FAST frame proves with: that its sender holds k, on the connection of
// bind, while its runtime event log ends in head.
func (k PairKey) MAC(bind, head [32]byte) [32]byte {
	h := hmac.New(sha256.New, k[:])
	for _, part := range [][]byte{[]byte(fastLabel), bind[:], head[:]} {
		h.Write(attest.LengthPrefixed(nil, part))
	}
	return [32]byte(h.Sum(nil))
}

// Pairs is what a node remembers of its full exchanges: verdicts about peers, to ask them
// for a MAC in place of evidence, and keys towards peers, to answer when they ask. It is
// in memory only, so that a restarted node attests in full. It is safe for concurrent use;
// its clock is the monotonic one.
type Pairs struct {
	window time.Duration
	max    int

	mu       sync.Mutex
	verdicts map[identity.PeerID]*verdict // guarded by mu; what is in it is never changed
	keys     map[identity.PeerID]*ownKey  // guarded by mu; likewise
}

// scope is what a key is made for, besides its two ends.
type scope struct {
	mesh        identity.MeshID
	incarnation identity.Incarnation
}

// verdict is an affirming verdict about a peer.
type verdict struct {
	scope
	key        PairKey
	subject    Subject
	claims     attest.Claims
	head       [32]byte
	attestedAt time.Time
	notAfter   time.Time
}

// ownKey is the key by which this node, as attester, convinces one verifier.
type ownKey struct {
	scope
	key      PairKey
	head     [32]byte // of this node's runtime event log, as attested
	notAfter time.Time
}

// NewPairs returns an empty memory in which a full exchange counts for window; 0 is
// DefaultWindow.
func NewPairs(window time.Duration) (*Pairs, error) {
	if window == 0 {
		window = DefaultWindow
	}
	if window < MinWindow || window > MaxWindow {
		return nil, fmt.Errorf("exchange: a window of %s, want %s to %s", window, MinWindow, MaxWindow)
	}
	return &Pairs{window: window, max: MaxPairs, verdicts: map[identity.PeerID]*verdict{}, keys: map[identity.PeerID]*ownKey{}}, nil
}

// Window returns how long a full exchange counts; DefaultWindow for a nil p.
func (p *Pairs) Window() time.Duration {
	if p == nil {
		return DefaultWindow
	}
	return p.window
}

// Len returns the number of verdicts and of keys that have not expired.
func (p *Pairs) Len() (verdicts, keys int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(time.Now())
	return len(p.verdicts), len(p.keys)
}

// Drop forgets peer: the next exchange with it is full, both ways.
func (p *Pairs) Drop(peer identity.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.verdicts, peer)
	delete(p.keys, peer)
}

// verdictAbout returns the unexpired verdict about peer, or nil.
func (p *Pairs) verdictAbout(peer identity.PeerID, in scope) *verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.verdicts[peer]
	if v != nil && (v.scope != in || !time.Now().Before(v.notAfter)) {
		delete(p.verdicts, peer)
		return nil
	}
	return v
}

// keyNamed returns the unexpired key towards peer if its id is id and this node's runtime
// head is still head, or nil. Another head voids the key.
func (p *Pairs) keyNamed(peer identity.PeerID, id PairID, head [32]byte, in scope) *ownKey {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := p.keys[peer]
	if k == nil {
		return nil
	}
	if k.scope != in || k.head != head || !time.Now().Before(k.notAfter) {
		delete(p.keys, peer)
		return nil
	}
	if k.key.ID() != id {
		return nil
	}
	return k
}

// dropVerdict forgets what is held about peer, and dropKey what is held for it.
func (p *Pairs) dropVerdict(peer identity.PeerID) {
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.verdicts, peer)
	}
}

func (p *Pairs) dropKey(peer identity.PeerID) {
	if p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.keys, peer)
	}
}

// store remembers what one exchange established, in one step; nil changes nothing. What is
// older than what is held comes of a slower exchange and is dropped.
func (p *Pairs) store(peer identity.PeerID, v *verdict, k *ownKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expire(time.Now())
	if v != nil {
		if old := p.verdicts[peer]; old == nil || !v.notAfter.Before(old.notAfter) {
			p.verdicts[peer] = v
		}
	}
	if k != nil {
		if old := p.keys[peer]; old == nil || !k.notAfter.Before(old.notAfter) {
			p.keys[peer] = k
		}
	}
	evictOldest(p.verdicts, p.max, func(v *verdict) time.Time { return v.notAfter })
	evictOldest(p.keys, p.max, func(k *ownKey) time.Time { return k.notAfter })
}

// expire forgets what no exchange can use any more; mu is held.
func (p *Pairs) expire(now time.Time) {
	for peer, v := range p.verdicts {
		if !now.Before(v.notAfter) {
			delete(p.verdicts, peer)
		}
	}
	for peer, k := range p.keys {
		if !now.Before(k.notAfter) {
			delete(p.keys, peer)
		}
	}
}

// evictOldest keeps m at most limit long; whoever is put out attests in full next time.
func evictOldest[T any](m map[identity.PeerID]T, limit int, age func(T) time.Time) {
	for len(m) > limit {
		var oldest identity.PeerID
		var at time.Time
		for peer, v := range m {
			if t := age(v); oldest == "" || t.Before(at) {
				oldest, at = peer, t
			}
		}
		delete(m, oldest)
	}
}
