package audit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/schemes"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
)

// saltSize is what a node keeps before the evidence, to open the commitment with.
const saltSize = 32

// Evidence is what members have disclosed to an auditor: directories in which the file that a
// commitment names (64 characters of lower-case hex, the "evidence" of an attestation result)
// holds 32 bytes of salt and then the evidence as it was encoded on the wire:
//
//	COMMITMENT                        as log disclose writes it
//	evidence/COMMITMENT
//	*/evidence/COMMITMENT
//	*/evidence/ORG/NODE/COMMITMENT    the data directory of a node; ORG/NODE is the subject
//
// Nothing else in them is read: which leaf a file belongs to says the log, and whether it is
// the right file the commitment. Where several directories have a file, the first that is right counts.
type Evidence struct {
	dirs    []fs.FS
	schemes map[identity.MeshID]map[string]attest.Scheme
}

// NewEvidence returns the evidence in dirs.
func NewEvidence(dirs ...fs.FS) *Evidence {
	return &Evidence{dirs: dirs, schemes: map[identity.MeshID]map[string]attest.Scheme{}}
}

// errForeign is of a file that is not what its result commits to.
var errForeign = errors.New("the file is not what the result commits to")

// Disclose finds the evidence behind a result, holds it against the commitment and verifies
// it under the roots of g, at the time of the result.
func (e *Evidence) Disclose(g *consensus.Genesis, res *consensus.AttestationResult) Disclosed {
	raw, err := e.open(res)
	if errors.Is(err, fs.ErrNotExist) {
		return Disclosed{}
	}
	if err != nil {
		return Disclosed{Given: true, Err: err}
	}
	claims, err := e.verify(g, raw, res)
	return Disclosed{Given: true, Claims: claims, Err: err}
}

// open returns the encoded evidence behind a result. The error is errForeign, wraps
// fs.ErrNotExist, or says why a file could not be read.
func (e *Evidence) open(res *consensus.AttestationResult) ([]byte, error) {
	patterns := []string{res.Evidence, "evidence/" + res.Evidence, "*/evidence/" + res.Evidence,
		fmt.Sprintf("*/evidence/%s/%s", res.Subject.Node, res.Evidence)}
	err := error(fs.ErrNotExist)
	for _, dir := range e.dirs {
		for _, pattern := range patterns {
			names, bad := fs.Glob(dir, pattern)
			if bad != nil {
				return nil, bad
			}
			for _, name := range names {
				raw, failed := readSmall(dir, name)
				if failed == nil && (len(raw) < saltSize || consensus.EvidenceCommitment([saltSize]byte(raw[:saltSize]), raw[saltSize:]) != res.Evidence) {
					failed = errForeign
				}
				if failed == nil {
					return raw[saltSize:], nil
				}
				err = failed
			}
		}
	}
	return nil, err
}

func readSmall(dir fs.FS, name string) ([]byte, error) {
	st, err := fs.Stat(dir, name) // before Open, which waits for the writer of a fifo
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", name)
	}
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, saltSize+attest.MaxEvidence+1))
	if err == nil && len(raw) > saltSize+attest.MaxEvidence {
		err = fmt.Errorf("%s is larger than any evidence", name)
	}
	return raw, err
}

func (e *Evidence) verify(g *consensus.Genesis, raw []byte, res *consensus.AttestationResult) (attest.Claims, error) {
	known := e.schemes[g.MeshID()]
	if known == nil {
		all, err := schemes.Under(schemes.Roots{Sim: g.SimRoots(), VTPMKeys: g.VTPMRoots()})
		if err != nil {
			return attest.Claims{}, err
		}
		known = map[string]attest.Scheme{}
		for _, s := range all {
			known[s.Kind()] = s
		}
		e.schemes[g.MeshID()] = known
	}
	ev, err := attest.DecodeEvidence(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	scheme := known[ev.Kind]
	if scheme == nil || ev.Kind != res.Kind && res.Kind != "" {
		return attest.Claims{}, fmt.Errorf("evidence of kind %q behind a result on %q", ev.Kind, res.Kind)
	}
	return attest.Verify(context.Background(), scheme, ev, nil, res.At)
}
