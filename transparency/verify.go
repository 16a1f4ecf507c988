package transparency

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Level is how widely a checkpoint is vouched for. The zero value is Unpublished.
type Level int

// The levels in rising order.
const (
	Unpublished Level = iota
	Published         // ⌊n/2⌋+1 organisations have cosigned
	Strong            // ⌊2n/3⌋+1 organisations have cosigned
)

// String returns unpublished, published or strong.
func (l Level) String() string {
	switch l {
	case Published:
		return "published"
	case Strong:
		return "strong"
	}
	return "unpublished"
}

// MarshalText returns String's form.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText decodes String's form.
func (l *Level) UnmarshalText(text []byte) error {
	for _, v := range []Level{Unpublished, Published, Strong} {
		if v.String() == string(text) {
			*l = v
			return nil
		}
	}
	return fmt.Errorf("level %.20q: want unpublished, published or strong", text)
}

// Quorum is how many organisations make a checkpoint published and strong.
type Quorum struct{ Published, Strong int }

// QuorumOf returns the quorum among n organisations with a seat.
func QuorumOf(n int) Quorum { return Quorum{n/2 + 1, 2*n/3 + 1} }

// Cosigner is a key whose cosignature speaks for an organisation.
type Cosigner struct {
	Name string // see CosignerName
	Org  identity.OrgID
	Key  ed25519.PublicKey
}

// Policy is what Verify holds a checkpoint against. All fields but Outside are required.
type Policy struct {
	Origin    string
	LogKey    ed25519.PublicKey
	Cosigners []Cosigner
	Quorum    Quorum
	Outside   []Outside // witnesses that belong to no organisation of the mesh
	At        time.Time // the verifier's time; cosignatures more than 2 min ahead do not count
}

// Problem is a cosignature by a known name that does not count, and why.
type Problem struct {
	Code    string
	Name    string
	Message string
}

// Codes of Problem.
const (
	CodeCosignatureInvalid = "cosignature_invalid" // does not verify: forged, or of another text or origin
	CodeCosignatureKey     = "cosignature_key"     // a known name with another key or signature type
	CodeCosignatureTime    = "cosignature_time"    // timestamp zero or ahead of the verifier's clock
)

// Verified is what a checkpoint proves under a Policy.
type Verified struct {
	Checkpoint
	Level     Level
	Orgs      []identity.OrgID // distinct organisations with a valid cosignature, sorted
	Fresh     time.Time        // when the published quorum was last complete; zero if it is not
	Outside   []Witnessed      // by the policy's outside witnesses, in its order; no part of Level
	Problems  []Problem
	Strangers int // signatures by names the policy does not know; they count for nothing
}

// Verify checks a signed checkpoint. It is an error if the checkpoint is malformed, of
// another origin or not signed by the log key, or if the policy is incomplete. Missing
// cosignatures are no error but a lower Level.
func Verify(checkpoint []byte, p Policy) (Verified, error) {
	known, err := p.verifiers()
	if err != nil {
		return Verified{}, err
	}
	logKey, err := logVerifier(p.Origin, p.LogKey)
	if err != nil {
		return Verified{}, err
	}
	n, err := openNote(checkpoint, logKey)
	if err != nil {
		return Verified{}, err
	}
	c, err := parseText(n.Text)
	if err != nil {
		return Verified{}, err
	}
	if c.Origin != p.Origin {
		return Verified{}, fmt.Errorf("checkpoint: origin %.200q, want %q", c.Origin, p.Origin)
	}
	if len(n.Sigs) != 1 {
		return Verified{}, fmt.Errorf("checkpoint: size %d is not signed by the log key", c.Size)
	}
	out := Verified{Checkpoint: c}
	times, outside := map[identity.OrgID]time.Time{}, map[string]time.Time{}
	for _, s := range n.UnverifiedSigs {
		signer, ok := known[s.Name]
		if !ok {
			out.Strangers++
			continue
		}
		at, problem := signer.check(n.Text, s, p.At)
		if problem != nil {
			out.Problems = append(out.Problems, *problem)
			continue
		}
		if signer.Org == "" {
			outside[s.Name] = at
			continue
		}
		if at.After(times[signer.Org]) {
			times[signer.Org] = at
		}
	}
	out.count(times, p.Quorum)
	for _, w := range p.Outside {
		if at, ok := outside[w.Name()]; ok {
			out.Outside = append(out.Outside, Witnessed{w.Name(), at})
		}
	}
	return out, nil
}

// NewestCosignature returns the newest time that a cosignature by a name of origin gives, which
// need not hold; zero if there is none.
func NewestCosignature(checkpoint []byte, origin string) time.Time {
	n, err := openNote(checkpoint)
	if err != nil {
		return time.Time{}
	}
	const length = 4 + 8 + ed25519.SignatureSize // key hash, seconds, signature
	const never = 1 << 40                        // what is later is no time
	newest := uint64(0)
	for _, s := range n.UnverifiedSigs {
		raw, err := base64.StdEncoding.DecodeString(s.Base64)
		if err != nil || len(raw) != length || !strings.HasPrefix(s.Name, origin+"/") {
			continue
		}
		if unix := binary.BigEndian.Uint64(raw[4:]); unix < never {
			newest = max(newest, unix)
		}
	}
	if newest == 0 {
		return time.Time{}
	}
	return time.Unix(int64(newest), 0)
}

// count derives organisations, level and freshness from each organisation's newest time.
func (v *Verified) count(times map[identity.OrgID]time.Time, q Quorum) {
	newest := make([]time.Time, 0, len(times))
	for org, at := range times {
		v.Orgs = append(v.Orgs, org)
		newest = append(newest, at)
	}
	slices.Sort(v.Orgs)
	slices.SortFunc(newest, func(a, b time.Time) int { return b.Compare(a) })
	switch {
	case len(v.Orgs) >= q.Strong:
		v.Level = Strong
	case len(v.Orgs) >= q.Published:
		v.Level = Published
	}
	// The quorum's time is that of its slowest member: fewer than a quorum cannot make
	// an old checkpoint look new.
	if len(newest) >= q.Published {
		v.Fresh = newest[q.Published-1]
	}
}

// knownCosigner is a seat's key, or an outside witness's, whose Org is empty.
type knownCosigner struct {
	Cosigner
	verifier *torchwood.CosignatureVerifier
}

func (k knownCosigner) check(text string, s note.Signature, now time.Time) (time.Time, *Problem) {
	raw, err := base64.StdEncoding.DecodeString(s.Base64)
	if err != nil || len(raw) < 4 || s.Hash != k.verifier.KeyHash() {
		return time.Time{}, &Problem{CodeCosignatureKey, s.Name, "signed with another key or signature type than the one known for it"}
	}
	if !k.verifier.Verify([]byte(text), raw[4:]) {
		return time.Time{}, &Problem{CodeCosignatureInvalid, s.Name, "the signature is not over this checkpoint"}
	}
	unix, err := torchwood.CosignatureTimestamp(s)
	at := time.Unix(unix, 0).UTC()
	if err != nil || unix <= 0 || unix > now.Add(maxSkew).Unix() { // a time.Time of that much would wrap
		return time.Time{}, &Problem{CodeCosignatureTime, s.Name, fmt.Sprintf("timestamp %d, the verifier's time is %d", unix, now.Unix())}
	}
	return at, nil
}

// verifiers checks the policy and indexes its cosigners by name.
func (p Policy) verifiers() (map[string]knownCosigner, error) {
	switch {
	case p.Origin == "":
		return nil, errors.New("checkpoint policy: no origin")
	case len(p.LogKey) != ed25519.PublicKeySize:
		return nil, errors.New("checkpoint policy: no log key")
	case p.Quorum.Published < 1 || p.Quorum.Strong < p.Quorum.Published:
		return nil, fmt.Errorf("checkpoint policy: quorum %d published, %d strong", p.Quorum.Published, p.Quorum.Strong)
	case p.At.IsZero():
		return nil, errors.New("checkpoint policy: no time to judge timestamps by")
	}
	out, keys := map[string]knownCosigner{}, map[string]string{}
	for _, c := range p.Cosigners {
		v, err := c.verifier()
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(c.Name, p.Origin+"/"+string(c.Org)+"/") {
			return nil, fmt.Errorf("checkpoint policy: cosigner %s is not of origin %s and organisation %s", c.Name, p.Origin, c.Org)
		}
		if _, ok := out[c.Name]; ok {
			return nil, fmt.Errorf("checkpoint policy: cosigner %s is listed twice", c.Name)
		}
		if other, ok := keys[string(c.Key)]; ok {
			return nil, fmt.Errorf("checkpoint policy: cosigners %s and %s have one key", other, c.Name)
		}
		if c.Key.Equal(p.LogKey) {
			return nil, fmt.Errorf("checkpoint policy: cosigner %s uses the log key", c.Name)
		}
		out[c.Name], keys[string(c.Key)] = knownCosigner{c, v}, c.Name
	}
	for _, w := range p.Outside {
		if w.verifier == nil {
			return nil, errors.New("checkpoint policy: an outside witness without a key")
		}
		if strings.HasPrefix(w.Name(), p.Origin+"/") || w.Name() == p.Origin {
			return nil, fmt.Errorf("checkpoint policy: the outside witness %s has a name of this log", w.Name())
		}
		if _, ok := out[w.Name()]; ok {
			return nil, fmt.Errorf("checkpoint policy: outside witness %s is listed twice", w.Name())
		}
		out[w.Name()] = knownCosigner{Cosigner{Name: w.Name()}, w.verifier}
	}
	return out, nil
}

func (c Cosigner) verifier() (*torchwood.CosignatureVerifier, error) {
	if err := c.Org.Validate(); err != nil {
		return nil, fmt.Errorf("cosigner %.100q: %w", c.Name, err)
	}
	if len(c.Key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("cosigner %.100q: no Ed25519 key", c.Name)
	}
	// torchwood makes verifiers from the text form or from a signer; the signer given here
	// knows its public half only and is never asked to sign.
	s, err := torchwood.NewCosignatureSigner(c.Name, publicOnly{c.Key})
	if err != nil {
		return nil, fmt.Errorf("cosigner %.100q: %w", c.Name, err)
	}
	return s.Verifier(), nil
}
