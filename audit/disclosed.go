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

// Evidence is what members have disclosed to an auditor: directories in which a file that a
// commitment names holds the salt and the encoded evidence, as nodes keep them; the data
// directory of a node, or a directory of such files.
type Evidence struct {
	dirs    []fs.FS
	schemes map[identity.MeshID]map[string]attest.Scheme
}

// NewEvidence returns the evidence in dirs.
func NewEvidence(dirs ...fs.FS) *Evidence {
	return &Evidence{dirs: dirs, schemes: map[identity.MeshID]map[string]attest.Scheme{}}
}

// Disclose finds the evidence behind a result, holds it against the commitment and verifies
// it under the roots of g, at the time of the result.
func (e *Evidence) Disclose(g *consensus.Genesis, res *consensus.AttestationResult) Disclosed {
	raw, err := e.find(res.Evidence)
	if errors.Is(err, fs.ErrNotExist) {
		return Disclosed{}
	}
	if err == nil && (len(raw) < saltSize || consensus.EvidenceCommitment([saltSize]byte(raw[:saltSize]), raw[saltSize:]) != res.Evidence) {
		err = errors.New("the file is not what the result commits to")
	}
	if err != nil {
		return Disclosed{Given: true, Err: err}
	}
	claims, err := e.verify(g, raw[saltSize:], res)
	return Disclosed{Given: true, Claims: claims, Err: err}
}

// find reads the file of a commitment, which is 64 characters of hex.
func (e *Evidence) find(commitment string) ([]byte, error) {
	for _, dir := range e.dirs {
		for _, pattern := range []string{commitment, "evidence/" + commitment, "*/evidence/" + commitment} {
			names, err := fs.Glob(dir, pattern)
			if err != nil || len(names) == 0 {
				continue
			}
			return readSmall(dir, names[0])
		}
	}
	return nil, fs.ErrNotExist
}

func readSmall(dir fs.FS, name string) ([]byte, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file", name)
	}
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
	return scheme.Verify(context.Background(), ev, nil, res.At)
}
