package federated

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/fxamacker/cbor/v2"
)

// The kinds of Raft commands that a Ledger applies.
const (
	KindJob         = "job"
	KindRoundOpen   = "round-open"
	KindRoundClose  = "round-close"
	KindRoundCommit = "round-commit"
)

// bodyVersion is the first element of every body.
const bodyVersion = 1

// RoundOpen asks for an attempt at a round. Everything else is derived.
type RoundOpen struct {
	Job     JobID
	Round   uint32
	Attempt uint32
	// Exclude lists peers to leave out as participants and aggregator, sorted. Cause says
	// why, for people; it is needed from attempt 2 on and stays private to the members.
	Exclude []identity.PeerID
	Cause   string
}

type wireJob struct {
	_        struct{} `cbor:",toarray"`
	Version  uint8
	Envelope []byte
}

type wireOpen struct {
	_       struct{} `cbor:",toarray"`
	Version uint8
	Job     string
	Round   uint32
	Attempt uint32
	Exclude [][]byte
	Cause   string
}

type wireClose struct {
	_        struct{} `cbor:",toarray"`
	Version  uint8
	Envelope []byte
	Updates  [][]byte
}

var (
	cborEncode = must(cbor.CoreDetEncOptions().EncMode())
	cborDecode = must(cbor.DecOptions{
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		MaxArrayElements: MaxParticipants,
		MaxNestedLevels:  4,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// JobCommand returns the body of a job command.
func JobCommand(job []byte) ([]byte, error) {
	return encodeBody(wireJob{Version: bodyVersion, Envelope: job})
}

// OpenCommand returns the body of a round-open command.
func OpenCommand(o RoundOpen) ([]byte, error) {
	w := wireOpen{Version: bodyVersion, Job: string(o.Job), Round: o.Round, Attempt: o.Attempt, Exclude: [][]byte{}, Cause: o.Cause}
	for _, p := range o.Exclude {
		w.Exclude = append(w.Exclude, []byte(p))
	}
	return encodeBody(w)
}

// CloseCommand returns the body of a round-close command: the aggregator's close
// statement and the accepted participants' update statements in the same order.
func CloseCommand(closing []byte, updates [][]byte) ([]byte, error) {
	return encodeBody(wireClose{Version: bodyVersion, Envelope: closing, Updates: notNil(updates)})
}

// CommitCommand returns the body of a round-commit command.
func CommitCommand(round []byte) ([]byte, error) {
	return encodeBody(wireJob{Version: bodyVersion, Envelope: round})
}

func encodeBody(w any) ([]byte, error) {
	raw, err := cborEncode.Marshal(w)
	if err == nil && len(raw) > MaxCommand {
		err = fmt.Errorf("command: %d bytes, the limit is %d", len(raw), MaxCommand)
	}
	return raw, err
}

func decodeBody[W any](raw []byte) (W, error) {
	var w, zero W
	if len(raw) > MaxCommand {
		return zero, fmt.Errorf("command: %d bytes, the limit is %d", len(raw), MaxCommand)
	}
	if err := cborDecode.Unmarshal(raw, &w); err != nil {
		return zero, fmt.Errorf("command: %w", err)
	}
	back, err := cborEncode.Marshal(w)
	if err != nil || !bytes.Equal(back, raw) {
		return zero, fmt.Errorf("command: not in canonical form")
	}
	return w, nil
}

func checkVersion(v uint8) error {
	if v != bodyVersion {
		return fmt.Errorf("command: version %d, want %d", v, bodyVersion)
	}
	return nil
}

func decodeEnvelope(raw []byte) ([]byte, error) {
	w, err := decodeBody[wireJob](raw)
	if err != nil {
		return nil, err
	}
	return w.Envelope, checkVersion(w.Version)
}

func decodeOpen(raw []byte) (RoundOpen, error) {
	w, err := decodeBody[wireOpen](raw)
	if err != nil {
		return RoundOpen{}, err
	}
	if err := checkVersion(w.Version); err != nil {
		return RoundOpen{}, err
	}
	o := RoundOpen{Job: JobID(w.Job), Round: w.Round, Attempt: w.Attempt, Cause: w.Cause}
	if err := o.Job.Validate(); err != nil {
		return RoundOpen{}, err
	}
	for _, raw := range w.Exclude {
		p := identity.PeerID(raw)
		if err := p.Validate(); err != nil {
			return RoundOpen{}, fmt.Errorf("round-open: exclude: %w", err)
		}
		if n := len(o.Exclude); n > 0 && o.Exclude[n-1] >= p {
			return RoundOpen{}, fmt.Errorf("round-open: exclude: want distinct peers in order")
		}
		o.Exclude = append(o.Exclude, p)
	}
	if len(o.Cause) > MaxCause || strings.ContainsFunc(o.Cause, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return RoundOpen{}, fmt.Errorf("round-open: cause: want at most %d bytes of printable text", MaxCause)
	}
	if o.Cause == "" && (o.Attempt > 1 || len(o.Exclude) > 0) {
		return RoundOpen{}, fmt.Errorf("round-open: attempt %d without %d peers needs a cause", o.Attempt, len(o.Exclude))
	}
	return o, nil
}

// closing is a decoded round-close.
type closing struct {
	statement[Close]
	raw     []byte
	updates []statement[Update]
	rawUpds [][]byte
}

// decodeClose also requires one update statement for each accepted entry, saying the same.
func decodeClose(raw []byte) (closing, error) {
	w, err := decodeBody[wireClose](raw)
	if err != nil {
		return closing{}, err
	}
	if err := checkVersion(w.Version); err != nil {
		return closing{}, err
	}
	st, err := parseClose(w.Envelope)
	if err != nil {
		return closing{}, err
	}
	out := closing{statement: st, raw: w.Envelope, rawUpds: w.Updates}
	if len(w.Updates) != len(st.predicate.Accepted) {
		return closing{}, fmt.Errorf("round-close: %d update statements for %d accepted", len(w.Updates), len(st.predicate.Accepted))
	}
	for i, a := range st.predicate.Accepted {
		u, err := parseUpdate(w.Updates[i])
		if err != nil {
			return closing{}, err
		}
		if err := supports(u, st.predicate.Turn, a); err != nil {
			return closing{}, err
		}
		out.updates = append(out.updates, u)
	}
	return out, nil
}

// supports reports how an Update statement differs from what an accepted entry claims of it.
func supports(st statement[Update], turn Turn, a Accepted) error {
	u := st.predicate
	if u.Turn != turn || u.Node != a.Node || u.Peer != a.Peer || u.UpdateRoot != a.UpdateRoot ||
		u.Examples != a.Examples || st.digest() != a.Statement {
		return fmt.Errorf("accepted %s: its update statement says something else", a.Node)
	}
	return nil
}

// CheckCommand is the guard before an entry is stored: the body is well-formed and every
// signature of a node in it verifies. It reads no state; Apply does not repeat it. The
// organisations' signatures on a job are checked in Apply.
func CheckCommand(kind string, body []byte) error {
	switch kind {
	case KindJob:
		raw, err := decodeEnvelope(body)
		if err != nil {
			return err
		}
		_, err = ParseJob(raw)
		return err
	case KindRoundOpen:
		_, err := decodeOpen(body)
		return err
	case KindRoundClose:
		c, err := decodeClose(body)
		if err != nil {
			return err
		}
		for _, u := range c.updates {
			if err := u.env.VerifyPeer(u.predicate.Peer); err != nil {
				return fmt.Errorf("round-close: update of %s: %w", u.predicate.Node, err)
			}
		}
		if err := c.env.VerifyPeer(c.predicate.Peer); err != nil {
			return fmt.Errorf("round-close: aggregator %s: %w", c.predicate.Aggregator, err)
		}
		return nil
	case KindRoundCommit:
		raw, err := decodeEnvelope(body)
		if err != nil {
			return err
		}
		_, err = ParseRound(raw)
		return err
	}
	return fmt.Errorf("command: kind %.40q is none of federated's", kind)
}
