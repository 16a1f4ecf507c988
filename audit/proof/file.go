package proof

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/attestmesh/meshnode/transparency"
)

// Limits of a proof file, in bytes, leaves and hashes.
const (
	// MaxFile bounds a file: some thousand leaves with their paths, in base64.
	MaxFile = 24 << 20
	// maxLinks bounds the linking leaves: the changes of policy of a long life, and what a round of
	// the largest job links to.
	maxLinks = 1 << 13
	// maxPath is how many hashes a proof of inclusion can have.
	maxPath = 64
	// maxCheckpoint bounds the signed checkpoint, as package transparency does.
	maxCheckpoint = 64 << 10
)

const (
	header = "c2sp.org/tlog-proof@v1\n"
	magic  = "meshnode-proof/v1\n"
)

// Leaf is a leaf with its proof of inclusion in the tree of the file's checkpoint.
type Leaf struct {
	Index uint64
	Data  []byte
	Path  []transparency.Hash
}

// File is a decoded proof file; nothing of it has been verified.
type File struct {
	Subject    Leaf
	Links      []Leaf // by rising index; the subject is not among them
	Checkpoint []byte // a signed note
}

// ErrBare is the error of a plain tlog-proof: it proves a leaf to who knows the log key, the
// members and the policy, and nothing to who has genesis alone.
var ErrBare = errors.New("a plain tlog-proof without the leaves that link it to genesis")

// Marshal encodes f.
func (f *File) Marshal() []byte {
	extra := []byte(magic)
	extra = appendLeaf(extra, f.Subject.Data)
	for _, l := range f.Links {
		extra = binary.BigEndian.AppendUint64(extra, l.Index)
		extra = appendLeaf(extra, l.Data)
		extra = append(extra, byte(len(l.Path)))
		for _, h := range l.Path {
			extra = append(extra, h[:]...)
		}
	}
	return f.marshal(extra)
}

// marshal encodes what is not in the extra line; extra may be nil for none.
func (f *File) marshal(extra []byte) []byte {
	out := []byte(header)
	if extra != nil {
		out = append(out, "extra "...)
		out = base64.StdEncoding.AppendEncode(out, extra)
		out = append(out, '\n')
	}
	out = fmt.Appendf(out, "index %d\n", f.Subject.Index)
	for _, h := range f.Subject.Path {
		out = base64.StdEncoding.AppendEncode(out, h[:])
		out = append(out, '\n')
	}
	out = append(out, '\n')
	return append(out, f.Checkpoint...)
}

// Plain returns the c2sp.org/tlog-proof@v1 of the subject alone, without extra data.
func (f *File) Plain() []byte { return f.marshal(nil) }

func appendLeaf(out, leaf []byte) []byte {
	out = binary.BigEndian.AppendUint16(out, uint16(len(leaf)))
	return append(out, leaf...)
}

// Parse decodes a proof file. Only the one canonical encoding is accepted. The error of a
// plain tlog-proof is ErrBare.
func Parse(data []byte) (*File, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(data), MaxFile)
	}
	rest, ok := bytes.CutPrefix(data, []byte(header))
	if !ok {
		return nil, fmt.Errorf("no c2sp.org/tlog-proof@v1")
	}
	var extra []byte
	bare := true
	if after, ok := bytes.CutPrefix(rest, []byte("extra ")); ok {
		line, after, ok := bytes.Cut(after, []byte("\n"))
		if !ok {
			return nil, errors.New("the extra line has no end")
		}
		var err error
		if extra, err = base64.StdEncoding.Strict().AppendDecode(nil, line); err != nil {
			return nil, fmt.Errorf("extra: %w", err)
		}
		bare, rest = false, after
	}
	f := &File{}
	if err := f.parseHead(rest); err != nil {
		return nil, err
	}
	if bare {
		if !bytes.Equal(f.marshal(nil), data) {
			return nil, errors.New("not in canonical form")
		}
		return nil, ErrBare
	}
	if err := f.parseExtra(extra); err != nil {
		return nil, fmt.Errorf("extra: %w", err)
	}
	if !bytes.Equal(f.Marshal(), data) {
		return nil, errors.New("not in canonical form")
	}
	return f, nil
}

// parseHead decodes what follows the extra line: index, path and checkpoint.
func (f *File) parseHead(rest []byte) error {
	head, checkpoint, ok := bytes.Cut(rest, []byte("\n\n"))
	if !ok || len(head) > 32+maxPath*64 {
		return errors.New("no index, hashes, empty line and checkpoint")
	}
	if len(checkpoint) > maxCheckpoint {
		return fmt.Errorf("a checkpoint of %d bytes, the limit is %d", len(checkpoint), maxCheckpoint)
	}
	lines := strings.Split(string(head), "\n")
	digits, ok := strings.CutPrefix(lines[0], "index ")
	index, err := strconv.ParseUint(digits, 10, 63)
	if !ok || err != nil {
		return errors.New("no index line")
	}
	if len(lines)-1 > maxPath {
		return fmt.Errorf("%d hashes, the limit is %d", len(lines)-1, maxPath)
	}
	f.Subject.Index, f.Checkpoint = index, checkpoint
	for i, line := range lines[1:] {
		raw, err := base64.StdEncoding.Strict().DecodeString(line)
		if err != nil || len(raw) != 32 {
			return fmt.Errorf("hash %d is not 32 bytes in base64", i)
		}
		f.Subject.Path = append(f.Subject.Path, transparency.Hash(raw))
	}
	return nil
}

// parseExtra decodes the subject's leaf and the links.
func (f *File) parseExtra(extra []byte) error {
	rest, ok := bytes.CutPrefix(extra, []byte(magic))
	if !ok {
		return fmt.Errorf("not %q: made by another program, or by a newer release", magic)
	}
	var err error
	if f.Subject.Data, rest, err = cutLeaf(rest); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	for len(rest) > 0 {
		if len(f.Links) == maxLinks {
			return fmt.Errorf("more than %d links", maxLinks)
		}
		l := Leaf{}
		if len(rest) < 8 {
			return fmt.Errorf("link %d: cut off", len(f.Links))
		}
		l.Index, rest = binary.BigEndian.Uint64(rest), rest[8:]
		if l.Index == f.Subject.Index || len(f.Links) > 0 && l.Index <= f.Links[len(f.Links)-1].Index {
			return fmt.Errorf("link %d: index %d out of order", len(f.Links), l.Index)
		}
		if l.Data, rest, err = cutLeaf(rest); err != nil {
			return fmt.Errorf("link %d: %w", len(f.Links), err)
		}
		if len(rest) == 0 || rest[0] > maxPath || len(rest) < 1+32*int(rest[0]) {
			return fmt.Errorf("link %d: no path", len(f.Links))
		}
		n := int(rest[0])
		rest = rest[1:]
		for range n {
			l.Path = append(l.Path, transparency.Hash(rest))
			rest = rest[32:]
		}
		f.Links = append(f.Links, l)
	}
	return nil
}

func cutLeaf(in []byte) (leaf, rest []byte, err error) {
	if len(in) < 2 {
		return nil, nil, errors.New("cut off")
	}
	n := int(binary.BigEndian.Uint16(in))
	if len(in) < 2+n {
		return nil, nil, errors.New("cut off")
	}
	return in[2 : 2+n : 2+n], in[2+n:], nil
}
