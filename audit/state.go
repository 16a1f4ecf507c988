package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// A saved Auditor is
//
//	"meshnode audit state 1\n"   what it is, and its version
//	8 bytes                      length of the body, big-endian
//	body                         wireAuditor in deterministic CBOR
//	32 bytes                     SHA-256 of all before
//
// The sum tells damage, not forgery: whoever can write the file can make an auditor believe
// that a log was audited which was not. It is as private as the auditor's program.

const stateMagic = "meshnode audit state 1\n"

// MaxState bounds a saved Auditor: the image of governance, and a hundred bytes for each
// training job.
const MaxState = consensus.MaxImage + 64<<20

// ErrState is wrapped by the errors of Load and Save.
var ErrState = errors.New("saved audit")

type wireAuditor struct {
	_          struct{} `cbor:",toarray"`
	Mesh       []byte   // empty before the first checkpoint that held
	Origin     string   // of that checkpoint
	Size       uint64
	Root       []byte
	Replay     wireReplay
	Walker     []byte
	Leaves     []wireFinding
	MoreLeaves uint64
	Tiles      []wireFinding
	MoreTiles  uint64
}

// wireReplay is a replayer; its Genesis is empty if nothing was read.
type wireReplay struct {
	_           struct{} `cbor:",toarray"`
	Genesis     []byte
	Image       []byte
	Policy      uint64
	Recoveries  []wireRecovered
	Parts       []wirePart
	Derived     [][]byte
	Results     uint64
	Rounds      uint64
	Suspensions uint64
	Suspects    []wireSuspect
	Jobs        []wireJob
	Governors   []wireKey
	Earliest    string // RFC 3339, empty if unknown
	Volume      wireVolume
}

type wireFinding struct {
	_       struct{} `cbor:",toarray"`
	Index   uint64
	Code    string
	Message []byte
}

type wireRecovered struct {
	_           struct{} `cbor:",toarray"`
	Index       uint64
	Incarnation uint64
	Planned     bool
	Created     string
	Signers     string // joined by ','
	Founders    string
}

type wirePart struct {
	_     struct{} `cbor:",toarray"`
	Index uint64
	Size  uint64
	Root  string
}

type wireSuspect struct {
	_       struct{} `cbor:",toarray"`
	Ends    string
	Index   uint64
	Code    string
	Message []byte
}

type wireJob struct {
	_                struct{} `cbor:",toarray"`
	ID               string
	Rounds           uint64
	Result           []byte
	Epoch            uint64
	Rule, Arithmetic string
}

type wireKey struct {
	_   struct{} `cbor:",toarray"`
	Org string
	Key []byte // SubjectPublicKeyInfo
}

var states = canonical.NewCBOR(1 << 22)

// Save writes the Auditor for Load. Where genesis and Bootstrap were not read yet, or a Recovery
// without its Bootstrap, it is as it last held.
func (a *Auditor) Save(w io.Writer) error {
	body, err := a.encode()
	if errors.Is(err, errNotStarted) {
		if body, err = a.good, nil; body == nil {
			body, err = states.Encode(a.wireHeld())
		}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	file := binary.BigEndian.AppendUint64([]byte(stateMagic), uint64(len(body)))
	file = append(file, body...)
	sum := sha256.Sum256(file)
	if _, err := w.Write(append(file, sum[:]...)); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}

// Load reads an Auditor that was saved. One of another mesh than opts.Genesis, if that is given,
// is refused, as is one that is damaged or of another version.
func Load(r io.Reader, opts Options) (*Auditor, error) {
	fail := func(format string, args ...any) (*Auditor, error) {
		return nil, fmt.Errorf("%w: %w", ErrState, fmt.Errorf(format, args...))
	}
	data, err := io.ReadAll(io.LimitReader(r, MaxState+1))
	if err != nil {
		return fail("%w", err)
	}
	rest, ok := bytes.CutPrefix(data, []byte(stateMagic))
	switch {
	case !ok:
		return fail("it does not begin with %q: no saved audit, or one of another version", stateMagic)
	case len(data) > MaxState:
		return fail("larger than %d bytes", MaxState)
	case len(rest) < 8+sha256.Size || binary.BigEndian.Uint64(rest) != uint64(len(rest)-8-sha256.Size):
		return fail("it is not as long as it says")
	}
	sum := sha256.Sum256(data[:len(data)-sha256.Size])
	if !bytes.Equal(sum[:], data[len(data)-sha256.Size:]) {
		return fail("its checksum does not fit: it is damaged")
	}
	a := New(opts)
	if err := a.load(rest[8 : len(rest)-sha256.Size]); err != nil {
		return fail("%w", err)
	}
	return a, nil
}

var errNotStarted = errors.New("no genesis and Bootstrap yet")

func (a *Auditor) wireHeld() wireAuditor {
	w := wireAuditor{}
	if a.held.Size > 0 {
		w.Mesh, w.Origin, w.Size, w.Root = a.mesh[:], a.held.Origin, a.held.Size, a.held.Root[:]
	}
	return w
}

// encode returns the body of a saved Auditor that has a state.
func (a *Auditor) encode() ([]byte, error) {
	if !a.replay.started() {
		return nil, errNotStarted
	}
	w := a.wireHeld()
	var err error
	if w.Walker, err = a.walker.MarshalBinary(); err != nil {
		return nil, err
	}
	if w.Replay, err = a.replay.wire(); err != nil {
		return nil, err
	}
	w.Leaves, w.MoreLeaves = wireFindings(a.leaves)
	w.Tiles, w.MoreTiles = wireFindings(a.tiles)
	body, err := states.Encode(w)
	if limit := MaxState - len(stateMagic) - 8 - sha256.Size; err == nil && len(body) > limit {
		err = fmt.Errorf("%d bytes, the limit is %d", len(body), limit)
	}
	return body, err
}

// load makes a the Auditor that body is of.
func (a *Auditor) load(body []byte) error {
	var w wireAuditor
	if err := states.Decode(body, &w); err != nil {
		return err
	}
	held, mesh := Head{Origin: w.Origin, Size: w.Size}, identity.MeshID{}
	if empty := w.Size == 0; empty != (len(w.Mesh) == 0) || empty != (len(w.Root) == 0) || empty != (w.Origin == "") ||
		!empty && (len(w.Mesh) != len(mesh) || len(w.Root) != len(held.Root)) {
		return errors.New("no whole checkpoint")
	}
	copy(held.Root[:], w.Root)
	copy(mesh[:], w.Mesh)
	if want := a.opts.Genesis; want != nil && w.Size > 0 && mesh != want.MeshID() {
		return fmt.Errorf("it is of mesh %s, the given genesis of %s", mesh, want.MeshID())
	}
	if len(w.Replay.Genesis) == 0 { // nothing that was read is in it
		a.held, a.mesh = held, mesh
		return nil
	}
	replay, err := a.unwire(&w.Replay)
	if err != nil {
		return err
	}
	walker, err := transparency.UnmarshalWalker(w.Walker)
	if err != nil {
		return err
	}
	if walker.At() < w.Size {
		return fmt.Errorf("%d leaves read, but size %d held", walker.At(), w.Size)
	}
	if of := replay.state.MeshID(); w.Size > 0 && of != mesh {
		return fmt.Errorf("its checkpoint is of mesh %s, its state of %s", mesh, of)
	}
	a.held, a.mesh, a.walker, a.replay, a.tree = held, replay.state.MeshID(), walker, replay, walker.Accumulator()
	a.leaves, a.tiles = findingList{unwireFindings(w.Leaves), int(w.MoreLeaves)}, findingList{unwireFindings(w.Tiles), int(w.MoreTiles)}
	if a.walker.At() == w.Size {
		a.good = bytes.Clone(body)
	}
	return nil
}

func (r *replayer) wire() (wireReplay, error) {
	image, err := r.state.Image()
	if err != nil {
		return wireReplay{}, err
	}
	w := wireReplay{Genesis: r.genesis, Image: image, Policy: r.policy, Derived: r.derived, Results: uint64(r.results), Rounds: uint64(r.rounds),
		Suspensions: uint64(r.suspensions), Earliest: wireTime(r.earliest), Volume: r.volume.wire()}
	for _, x := range r.recoveries {
		w.Recoveries = append(w.Recoveries, wireRecovered{Index: x.Index, Incarnation: uint64(x.Incarnation), Planned: x.Planned, Created: wireTime(x.Created),
			Signers: joined(x.Signers), Founders: joined(x.Founders)})
	}
	for _, p := range r.parts {
		w.Parts = append(w.Parts, wirePart{Index: p.index, Size: p.at.Size, Root: p.at.Root})
	}
	for _, s := range r.suspects {
		w.Suspects = append(w.Suspects, wireSuspect{Ends: wireTime(s.ends), Index: s.finding.Index, Code: s.finding.Code, Message: []byte(s.finding.Message)})
	}
	for _, id := range slices.Sorted(maps.Keys(r.jobs)) {
		j := r.jobs[id]
		w.Jobs = append(w.Jobs, wireJob{ID: string(id), Rounds: uint64(j.rounds), Result: j.result[:], Epoch: uint64(j.epoch), Rule: j.rule, Arithmetic: j.arithmetic})
	}
	for _, k := range r.governors {
		der, err := envelope.MarshalPublic(k.Public)
		if err != nil {
			return w, err
		}
		w.Governors = append(w.Governors, wireKey{Org: string(k.Org), Key: der})
	}
	return w, nil
}

func (a *Auditor) unwire(w *wireReplay) (*replayer, error) {
	r := newReplayer(a.opts.Genesis, a.place)
	if found := r.first(w.Genesis); len(found) > 0 {
		return nil, fmt.Errorf("its genesis: %s", found[0].Message)
	}
	var err error
	if r.state, err = consensus.Restore(r.state.Genesis(), w.Image); err != nil {
		return nil, err
	}
	r.volume = w.Volume.of()
	r.policy, r.derived, r.results, r.rounds, r.suspensions = w.Policy, w.Derived, int(w.Results), int(w.Rounds), int(w.Suspensions)
	if r.earliest, err = unwireTime(w.Earliest); err != nil {
		return nil, err
	}
	for _, x := range w.Recoveries {
		created, err := unwireTime(x.Created)
		if err != nil {
			return nil, err
		}
		r.recoveries = append(r.recoveries, Recovered{Index: x.Index, Incarnation: identity.Incarnation(x.Incarnation), Planned: x.Planned, Created: created,
			Signers: unjoined(x.Signers), Founders: unjoined(x.Founders)})
	}
	for _, p := range w.Parts {
		r.parts = append(r.parts, part{p.Index, consensus.CheckpointSeen{Size: p.Size, Root: p.Root}})
	}
	for _, s := range w.Suspects {
		ends, err := unwireTime(s.Ends)
		if err != nil {
			return nil, err
		}
		r.suspects = append(r.suspects, suspect{ends, finding(s.Index, s.Code, string(s.Message))})
	}
	for _, j := range w.Jobs {
		if len(j.Result) != len(chunk.Root{}) {
			return nil, fmt.Errorf("job %.20q: a result of %d bytes", j.ID, len(j.Result))
		}
		r.jobs[federated.JobID(j.ID)] = &job{uint32(j.Rounds), chunk.Root(j.Result), identity.Epoch(j.Epoch), j.Rule, j.Arithmetic}
	}
	r.governors = nil
	for _, k := range w.Governors {
		pub, err := envelope.ParsePublic(k.Key)
		if err != nil {
			return nil, err
		}
		r.governors = append(r.governors, envelope.Key{Org: identity.OrgID(k.Org), Public: pub})
	}
	return r, nil
}

func joined(orgs []identity.OrgID) string {
	names := make([]string, len(orgs))
	for i, o := range orgs {
		names[i] = string(o)
	}
	return strings.Join(names, ",")
}

func unjoined(text string) []identity.OrgID {
	out := []identity.OrgID{}
	for name := range strings.SplitSeq(text, ",") {
		if name != "" {
			out = append(out, identity.OrgID(name))
		}
	}
	return out
}

func wireTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func unwireTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	return time.Parse(time.RFC3339Nano, s)
}

func wireOf(f transparency.Finding) wireFinding {
	return wireFinding{Index: f.Index, Code: f.Code, Message: []byte(f.Message)}
}

func (f *wireFinding) of() transparency.Finding { return finding(f.Index, f.Code, string(f.Message)) }

func wireFindings(in findingList) (out []wireFinding, more uint64) {
	for _, f := range in.list {
		out = append(out, wireOf(f))
	}
	return out, uint64(in.more)
}

func unwireFindings(in []wireFinding) []transparency.Finding {
	var out []transparency.Finding
	for _, f := range in {
		out = append(out, f.of())
	}
	return out
}
