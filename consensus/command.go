package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/fxamacker/cbor/v2"
)

// CommandVersion is the version of the framing.
const CommandVersion = 1

// Kind names what a command does.
type Kind string

// The kinds. Bodies of the last four belong to package federated; they are listed here
// because one framing orders all and refuses the rest.
const (
	KindBootstrap   Kind = "bootstrap"
	KindCredential  Kind = "credential"
	KindResults     Kind = "results"
	KindProposal    Kind = "proposal"
	KindTick        Kind = "tick"
	KindSuspension  Kind = "suspension"
	KindLift        Kind = "suspension-lift"
	KindDigest      Kind = "digest"
	KindRecovery    Kind = "recovery"
	KindReady       Kind = "ready"
	KindDrain       Kind = "drain"
	KindRetirement  Kind = "retirement"
	KindWithdrawal  Kind = "withdrawal"
	KindJob         Kind = "job"
	KindRoundOpen   Kind = "round-open"
	KindRoundClose  Kind = "round-close"
	KindRoundCommit Kind = "round-commit"
)

// ErrUnknownCommand is wrapped by DecodeCommand's errors. Whoever applies ordered entries
// must halt on it: the entry means something to a newer release, and a replica that skips
// it has another state from then on.
var ErrUnknownCommand = errors.New("consensus: not a command of this release")

// Command is what Raft orders.
type Command struct {
	V    uint64
	Kind Kind
	Body []byte
}

type wireCommand struct {
	_    struct{} `cbor:",toarray"`
	V    uint64
	Kind string
	Body []byte
}

type codec struct {
	enc cbor.EncMode
	dec cbor.DecMode
}

// wire is deterministic CBOR. Its options are fixed, so that building it cannot fail.
var wire = codec{
	enc: must(cbor.CoreDetEncOptions().EncMode()),
	dec: must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxArrayElements:  MaxResults,
		MaxMapPairs:       16,
		MaxNestedLevels:   4,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	}.DecMode()),
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// decode decodes raw into v and demands that v encodes back to raw.
func (c codec) decode(raw []byte, v any) error {
	if err := c.dec.Unmarshal(raw, v); err != nil {
		return err
	}
	back, err := c.enc.Marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, raw) {
		return fmt.Errorf("not in canonical form")
	}
	return nil
}

func knownKind(k Kind) bool {
	switch k {
	case KindBootstrap, KindCredential, KindResults, KindProposal, KindTick, KindSuspension, KindLift, KindWithdrawal,
		KindDigest, KindRecovery, KindReady, KindDrain, KindRetirement, KindJob, KindRoundOpen, KindRoundClose, KindRoundCommit:
		return true
	}
	return false
}

// EncodeCommand returns the bytes that Raft orders.
func EncodeCommand(c Command) ([]byte, error) {
	if c.V != CommandVersion || !knownKind(c.Kind) || len(c.Body) == 0 {
		return nil, fmt.Errorf("command: version %d kind %.20q with %d bytes: %w", c.V, c.Kind, len(c.Body), ErrUnknownCommand)
	}
	raw, err := wire.enc.Marshal(wireCommand{V: c.V, Kind: string(c.Kind), Body: c.Body})
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxCommand {
		return nil, fmt.Errorf("command: %d bytes, the limit is %d", len(raw), MaxCommand)
	}
	return raw, nil
}

// DecodeCommand decodes what Raft ordered; every error wraps ErrUnknownCommand.
func DecodeCommand(raw []byte) (Command, error) {
	if len(raw) > MaxCommand {
		return Command{}, fmt.Errorf("command: %d bytes, the limit is %d: %w", len(raw), MaxCommand, ErrUnknownCommand)
	}
	var w wireCommand
	if err := wire.decode(raw, &w); err != nil {
		return Command{}, fmt.Errorf("command: %w (%w)", ErrUnknownCommand, err)
	}
	if w.V != CommandVersion || !knownKind(Kind(w.Kind)) || len(w.Body) == 0 {
		return Command{}, fmt.Errorf("command: version %d kind %.20q with %d bytes: %w", w.V, w.Kind, len(w.Body), ErrUnknownCommand)
	}
	return Command{w.V, Kind(w.Kind), w.Body}, nil
}

// NewCommand returns a command of one of this package's kinds over envelopes.
func NewCommand(kind Kind, envelopes ...[]byte) (Command, error) {
	lo, hi, ok := envelopeCount(kind)
	if !ok || len(envelopes) < lo || len(envelopes) > hi {
		return Command{}, fmt.Errorf("command %.20q: %d envelopes, want %d to %d", kind, len(envelopes), lo, hi)
	}
	body, err := wire.enc.Marshal(append([][]byte{}, envelopes...))
	if err != nil {
		return Command{}, err
	}
	return Command{CommandVersion, kind, body}, nil
}

// envelopeCount returns how many envelopes a command of this package carries.
func envelopeCount(kind Kind) (lo, hi int, ok bool) {
	switch kind {
	case KindBootstrap, KindRecovery:
		return 2, 2, true
	case KindCredential, KindProposal, KindSuspension, KindLift, KindWithdrawal, KindReady, KindDrain, KindRetirement:
		return 1, 1, true
	case KindResults:
		return 1, MaxResults, true
	case KindTick:
		return 0, MaxOrganisations, true
	case KindDigest:
		return 0, 0, true
	}
	return 0, 0, false
}

// envelopes decodes the body.
func (c Command) envelopes(lo, hi int) ([][]byte, error) {
	if len(c.Body) > MaxCommand {
		return nil, fmt.Errorf("body of %d bytes, the limit is %d", len(c.Body), MaxCommand)
	}
	var out [][]byte
	if err := wire.decode(c.Body, &out); err != nil {
		return nil, err
	}
	if out == nil || len(out) < lo || len(out) > hi {
		return nil, fmt.Errorf("%d envelopes, want %d to %d", len(out), lo, hi)
	}
	if i := slices.IndexFunc(out, func(e []byte) bool { return len(e) == 0 || len(e) > envelope.MaxSize }); i >= 0 {
		return nil, fmt.Errorf("envelope %d has %d bytes, want 1 to %d", i, len(out[i]), envelope.MaxSize)
	}
	return out, nil
}
