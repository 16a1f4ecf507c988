package consensus

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"hash/maphash"
	"math"
	"sync/atomic"
	"time"

	intoto "github.com/in-toto/attestation/go/v1"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Nearly all leaves of a log are results, and nearly all of reading one is JSON. scanResult reads the
// payload of a result in the one spelling that it can have, each part in its one form: what it
// returns encodes to the bytes that were read (TestScanResultIsDecode holds it against the decoder,
// byte by byte). What it does not know, strings with escapes above all, is left to the decoder: it
// then returns nil. With the result comes what is known of its verifier.
func scanResult(payload []byte) (*AttestationResult, *knownPeer) {
	s := scanner{rest: payload}
	r := &AttestationResult{}
	s.lit(resultHead)
	subject := s.str()
	s.lit(`","digest":{"sha256":"`)
	digest := s.str()
	s.lit(resultPredicate)
	verifier, by := s.party()
	r.Verifier = verifier
	s.lit(`},"subject":{"node":"`)
	party, known := s.party()
	r.Subject = party
	s.lit(`},"mesh_id":"`)
	s.mesh(&r.MeshID)
	s.lit(`","incarnation":`)
	r.Incarnation = identity.Incarnation(s.uint())
	s.lit(`,"epoch":`)
	r.Epoch = identity.Epoch(s.uint())
	s.lit(`,"kind":"`)
	r.Kind = string(s.str())
	s.lit(`","measurement":"`)
	r.Measurement = string(s.str())
	s.lit(`","verdict":"`)
	r.Verdict = attest.Verdict(s.str())
	s.lit(`","codes":[`)
	r.Codes = s.codes()
	for i, f := range []*int8{&r.Vector.InstanceIdentity, &r.Vector.Configuration, &r.Vector.Executables, &r.Vector.FileSystem,
		&r.Vector.Hardware, &r.Vector.RuntimeOpaque, &r.Vector.StorageOpaque, &r.Vector.SourcedData} {
		s.lit(vectorFields[i])
		*f = s.int8()
	}
	if s.lit(`},`); s.has(`"reference":"`) {
		if r.Reference = string(s.str()); r.Reference == "" {
			return nil, nil
		}
		s.lit(`",`)
	}
	s.lit(`"evidence":"`)
	r.Evidence = string(s.str())
	s.lit(`","at":"`)
	r.At = s.time()
	s.lit(`","expires":"`)
	r.Expires = s.time()
	s.lit(`"}}`)
	if s.bad || len(s.rest) > 0 || known == nil || string(digest) != known.digest || string(subject) != r.Subject.Node.String() {
		return nil, nil
	}
	return r, by
}

var (
	resultHead      = `{"_type":"` + intoto.StatementTypeUri + `","subject":[{"name":"`
	resultPredicate = `"}}],"predicateType":"` + envelope.TypeAttestationResult + `","predicate":{"verifier":{"node":"`
	vectorFields    = [8]string{`],"vector":{"instance-identity":`, `,"configuration":`, `,"executables":`, `,"file-system":`,
		`,"hardware":`, `,"runtime-opaque":`, `,"storage-opaque":`, `,"sourced-data":`}
)

// scanner takes one part after the other off rest. Once something is not as it has to be, bad is
// set and nothing after it counts.
type scanner struct {
	rest []byte
	bad  bool
}

// has takes text, if that is next.
func (s *scanner) has(text string) bool {
	if len(s.rest) < len(text) || string(s.rest[:len(text)]) != text {
		return false
	}
	s.rest = s.rest[len(text):]
	return true
}

func (s *scanner) lit(text string) { s.bad = !s.has(text) || s.bad }

// str takes what stands before the next quotation mark, characters that JSON escapes nowhere.
func (s *scanner) str() []byte {
	n := bytes.IndexByte(s.rest, '"')
	if n < 0 {
		s.bad = true
		return nil
	}
	out := s.rest[:n]
	for _, c := range out {
		if c < ' ' || c > '~' || c == '\\' {
			s.bad = true
			return nil
		}
	}
	s.rest = s.rest[n:]
	return out
}

// uint takes a number without a sign.
func (s *scanner) uint() uint64 {
	n := 0
	var out uint64
	for ; n < len(s.rest) && s.rest[n] >= '0' && s.rest[n] <= '9'; n++ {
		d := uint64(s.rest[n] - '0')
		if out > (math.MaxUint64-d)/10 {
			s.bad = true
			return 0
		}
		out = out*10 + d
	}
	if n == 0 || n > 1 && s.rest[0] == '0' {
		s.bad = true
		return 0
	}
	s.rest = s.rest[n:]
	return out
}

func (s *scanner) int8() int8 {
	minus := s.has("-")
	n := s.uint()
	switch {
	case minus && n >= 1 && n <= 1<<7:
		return int8(-int16(n))
	case !minus && n < 1<<7:
		return int8(n)
	}
	s.bad = true
	return 0
}

func (s *scanner) codes() []attest.Code {
	out := []attest.Code{}
	for !s.bad && len(s.rest) > 0 && s.rest[0] != ']' {
		if len(out) > 0 {
			s.lit(`,`)
		}
		s.lit(`"`)
		out = append(out, attest.Code(s.str()))
		s.lit(`"`)
	}
	return out
}

func (s *scanner) mesh(to *identity.MeshID) {
	text := s.str()
	if len(text) != hex.EncodedLen(len(to)) || !lowerHex(text) {
		s.bad = true
		return
	}
	_, err := hex.Decode(to[:], text)
	s.bad = s.bad || err != nil
}

func lowerHex[T string | []byte](text T) bool {
	for i := range len(text) {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// time takes a time in UTC as encoding/json writes it.
func (s *scanner) time() time.Time {
	text := s.str()
	t, err := time.Parse(time.RFC3339, string(text))
	var buf [40]byte
	if err != nil || len(text) == 0 || text[len(text)-1] != 'Z' || !bytes.Equal(t.AppendFormat(buf[:0], time.RFC3339Nano), text) {
		s.bad = true
	}
	return t
}

// party takes a node and its peer, and returns what is known of that.
func (s *scanner) party() (Party, *knownPeer) {
	ref, err := identity.ParseNodeRef(string(s.str()))
	s.lit(`","peer":"`)
	k := knowPeer(s.str())
	s.lit(`"`)
	if s.bad = s.bad || err != nil || k == nil; s.bad {
		return Party{}, nil
	}
	return Party{ref, k.id}, k
}

// knownPeer is what follows from the text of a peer id, which is its one spelling.
type knownPeer struct {
	text   string
	id     identity.PeerID
	digest string // hex SHA-256 of id, as subjects have it
	key    ed25519.PublicKey
	keyID  string
}

// knownPeers spares base58 for peers that come again. It keeps as many as there are places.
var (
	knownPeers [1 << 12]atomic.Pointer[knownPeer]
	peerSeed   = maphash.MakeSeed()
)

func knowPeer(text []byte) *knownPeer {
	place := &knownPeers[maphash.Bytes(peerSeed, text)%uint64(len(knownPeers))]
	if k := place.Load(); k != nil && k.text == string(text) {
		return k
	}
	id, err := identity.ParsePeerID(string(text))
	if err != nil || id.String() != string(text) {
		return nil
	}
	key, err := id.PublicKey()
	if err != nil {
		return nil
	}
	keyID, err := envelope.KeyID(key)
	if err != nil {
		return nil
	}
	sum := sha256.Sum256([]byte(id))
	k := &knownPeer{string(text), id, hex.EncodeToString(sum[:]), key, keyID}
	place.Store(k)
	return k
}
