package audit

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/transparency"
)

// mesh is an audittest.Mesh of the present, so that cosignatures fit, whose logs are audited.
type mesh struct {
	audittest.Mesh
	t testing.TB
}

func (m *mesh) check(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// newMesh returns a mesh before Bootstrap.
func newMesh(t testing.TB) *mesh { return newMeshOf(t, consensus.FSMVersion) }

// newMeshOf is newMesh of a version of the state machine.
func newMeshOf(t testing.TB, version int) *mesh {
	now := time.Now().UTC().Truncate(time.Second)
	return &mesh{*audittest.New(audittest.Options{At: now, Version: version}), t}
}

// started returns a mesh after Start.
func started(t testing.TB) *mesh { return newMesh(t).start() }

func (m *mesh) start() *mesh {
	m.Start()
	return m
}

// publish writes the log with a checkpoint cosigned by nodes, and returns its directory.
func (m *mesh) publish(cosigners ...string) string {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "log")
	m.Publish(path, cosigners...)
	return path
}

// now is the auditor's time: not before the cosignatures.
func (m *mesh) now() time.Time {
	at := m.CosignedAt()
	if now := time.Now(); now.After(at) {
		at = now
	}
	return at
}

var seats = audittest.Seats()

// audit audits a published log against the mesh's own genesis.
func (m *mesh) audit(location string, change ...func(*Options)) Report {
	m.t.Helper()
	opts := Options{Genesis: m.Genesis, At: m.now()}
	for _, f := range change {
		f(&opts)
	}
	r, err := transparency.OpenReader(location)
	m.check(err)
	defer r.Close()
	report, err := Log(m.t.Context(), r, opts)
	m.check(err)
	if opts.Disclosed == nil {
		keep(m.t, location, opts, report)
	}
	if report.OK != (len(report.Findings) == 0) {
		m.t.Errorf("ok is %v with findings %v", report.OK, report.Findings)
	}
	return report
}

func codes(r Report) string {
	var out []string
	for _, f := range r.Findings {
		out = append(out, fmt.Sprintf("%d:%s", f.Index, f.Code))
	}
	return strings.Join(out, " ")
}

func payloadOf(m *mesh, raw []byte) []byte {
	m.t.Helper()
	e, err := envelope.Parse(raw)
	m.check(err)
	return e.Payload
}
