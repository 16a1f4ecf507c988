package federated

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/federated/safetensors"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// ran returns a mesh whose job of two rounds is done, with an aggregator killed in one.
func ran(t *testing.T, disclosure string) (*fakeMesh, Job) {
	t.Helper()
	m := newMesh(t, five()...)
	spec := m.give(small(), 2)
	spec.Disclosure = disclosure
	job := m.submit(spec)
	m.round(job)
	o := m.open(job.ID, "")
	m.finish(job, m.deliver(job, m.open(job.ID, "aggregator unreachable", m.nodeOf(o.Aggregator.Peer))))
	m.round(job)
	return m, job
}

func TestVerify(t *testing.T) {
	m, job := ran(t, DiscloseFull)
	asked := 0
	r, err := Verify(m.dir, VerifyOptions{GovernKeys: m.GovernKeys(), Inclusion: func(c *Certificate) (string, error) { asked++; return "strong", nil }})
	if err != nil {
		t.Fatal(err)
	}
	if !r.OK || !r.Complete || r.ReExecuted != 3 || !r.Simulated || asked != 3 || len(r.Signers) != 5 ||
		r.JobSignatures != Checked || r.Inclusion != Verified || r.ModelRoot != m.status(job.ID).ModelRoot() {
		t.Errorf("got %+v", r)
	}
	if r.Rounds[1].Attempt != 2 || len(r.Rounds[1].Participants) != 4 {
		t.Errorf("round 1: %+v", r.Rounds[1])
	}
	bare, err := Verify(m.dir, VerifyOptions{})
	if err != nil || !bare.OK || bare.JobSignatures != NotChecked || bare.Inclusion != NotChecked || len(bare.DoesNotProve) != len(r.DoesNotProve)+2 {
		t.Errorf("without genesis and log: %+v, %v", bare, err)
	}
	failing, err := Verify(m.dir, VerifyOptions{Inclusion: func(c *Certificate) (string, error) {
		if c.Round == 1 {
			return "", errors.New("not there")
		}
		return "published", nil
	}})
	if err != nil || failing.OK || failing.Inclusion != NotVerified || len(failing.Findings) != 1 || failing.Findings[0].Round != 1 {
		t.Errorf("got %+v, %v", failing, err)
	}
	unread := func(*Certificate) (string, error) {
		return "", &attest.Error{Reason: attest.NewReason(attest.CodeUnavailable, "log", "", "")}
	}
	if r, err := Verify(m.dir, VerifyOptions{Inclusion: unread}); err != nil || !r.Undecided() || r.Inclusion != NotVerified {
		t.Errorf("got %+v, %v", r, err)
	}
	raw := m.dir[CertificateFile(1)].Data
	c, err := ParseCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	if one := VerifyOne(m.dir, c, VerifyOptions{GovernKeys: m.GovernKeys()}); !one.OK || one.ReExecuted != 1 || one.Complete {
		t.Errorf("got %+v", one)
	}
	if c.Cause == "" || len(c.Excluded) != 1 || len(c.DoesNotProve) < 5 {
		t.Errorf("certificate: %+v", c)
	}
	for _, word := range []string{c.Cause, "n_examples", `"salt"`} {
		for _, leaf := range m.leaves {
			if bytes.Contains(leaf, []byte(word)) {
				t.Errorf("a public leaf holds %q", word)
			}
		}
	}
}

// Terms that do not disclose: signatures and chain are judged, sums are not, and the
// report says so.
func TestVerifyWithoutUpdates(t *testing.T) {
	m, _ := ran(t, DiscloseNone)
	for name := range m.dir {
		if strings.HasPrefix(name, "updates/") {
			t.Fatalf("%s was kept", name)
		}
	}
	r, err := Verify(m.dir, VerifyOptions{})
	if err != nil || !r.OK || r.ReExecuted != 0 || !slices.ContainsFunc(r.DoesNotProve, func(s string) bool { return strings.Contains(s, "not re-run") }) {
		t.Errorf("got %+v, %v", r, err)
	}
}

var update = flag.Bool("update", false, "write testdata/job again")

// The job in testdata was certified by an earlier release; it must verify for ever. It is
// also what the command line's tests read.
func TestKeptJobVerifies(t *testing.T) {
	dir := filepath.Join("testdata", "job")
	if *update {
		writeKeptJob(t, dir)
	}
	r, err := Verify(os.DirFS(dir), VerifyOptions{GovernKeys: newMesh(t, "alpha/n1", "beta/n1", "gamma/n1").GovernKeys()})
	if err != nil || !r.OK || !r.Complete || r.ReExecuted != 3 || r.ModelRoot.String() != keptModel {
		t.Errorf("got %+v, %v", r, err)
	}
}

// keptModel is the root of testdata/job/model.safetensors.
const keptModel = "238a324033d4f3c0f53c8b4c3c4918a8b4828ad1ba4374071bda083088f0b93d"

func writeKeptJob(t *testing.T, dir string) {
	t.Helper()
	m := newMesh(t, "alpha/n1", "beta/n1", "gamma/n1")
	table := &data.Dataset{Source: "table", Features: 3}
	for i := range 60 {
		x := float64(i % 7)
		table.X = append(table.X, x, 7-x, float64(i%5))
		table.Labels = append(table.Labels, []string{"low", "high"}[i%7/4])
	}
	spec := m.give(table, 2)
	spec.Name, spec.Model.Hidden = "kept", 4
	job := m.submit(spec)
	for range 3 {
		m.round(job)
	}
	for name, f := range m.dir {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// clone copies a directory that a test spoils.
func clone(dir fstest.MapFS) fstest.MapFS {
	out := maps.Clone(dir)
	for name, f := range out {
		out[name] = &fstest.MapFile{Data: bytes.Clone(f.Data)}
	}
	return out
}

// edit changes the certificate of round 1 as a forger would, who keeps the form.
func edit(t *testing.T, dir fstest.MapFS, change func(c *Certificate)) {
	t.Helper()
	c, err := ParseCertificate(dir[CertificateFile(1)].Data)
	if err != nil {
		t.Fatal(err)
	}
	change(c)
	raw, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	dir[CertificateFile(1)].Data = raw
}

// Every plain field and every file is bound to a signature.
func TestVerifyFinds(t *testing.T) {
	m, _ := ran(t, DiscloseFull)
	flip := func(dir fstest.MapFS, name string) { d := dir[name].Data; d[len(d)-1] ^= 1 }
	gone := UpdateFile(1, mustCert(t, m.dir, 1).Members[0].Ref)
	stranger := m.node("alpha/n1")
	for name, tc := range map[string]struct {
		code  attest.Code
		spoil func(dir fstest.MapFS)
	}{
		"update":           {attest.CodeRootMismatch, func(d fstest.MapFS) { flip(d, gone) }},
		"round model":      {attest.CodeRootMismatch, func(d fstest.MapFS) { flip(d, RoundModelFile(1)) }},
		"base model":       {attest.CodeRootMismatch, func(d fstest.MapFS) { flip(d, RoundModelFile(0)) }},
		"final model":      {attest.CodeRootMismatch, func(d fstest.MapFS) { flip(d, ModelFile) }},
		"final model gone": {attest.CodeUnavailable, func(d fstest.MapFS) { delete(d, ModelFile) }},
		"update gone":      {attest.CodeUnavailable, func(d fstest.MapFS) { delete(d, gone) }},
		"round gone":       {attest.CodeUnavailable, func(d fstest.MapFS) { delete(d, CertificateFile(1)) }},
		"weight":           {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Members[0].Examples++ }) }},
		"salt":             {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Members[0].Salt[0]++ }) }},
		"epoch":            {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Epoch++ }) }},
		"attempt":          {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Attempt++ }) }},
		"rule":             {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Rule = "median" }) }},
		"arithmetic":       {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Arithmetic = "f32" }) }},
		"result root":      {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.ResultRoot[0]++ }) }},
		"base root":        {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.BaseRoot[0]++ }) }},
		"name":             {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Name = "other" }) }},
		"rounds":           {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Rounds++ }) }},
		"disclosure":       {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Disclosure = DiscloseNone }) }},
		"mesh":             {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.MeshID[0]++ }) }},
		"not simulated":    {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Simulated = false }) }},
		"promises":         {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.DoesNotProve = c.DoesNotProve[1:] }) }},
		"member dropped":   {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Members = c.Members[1:] }) }},
		"member renamed":   {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Members[0].Ref.Name = "n9" }) }},
		"measurement":      {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Members[0].Measurement = "ff" }) }},
		"members exchanged": {attest.CodeBadSignature, func(d fstest.MapFS) {
			edit(t, d, func(c *Certificate) { c.Members[0], c.Members[1] = c.Members[1], c.Members[0] })
		}},
		"aggregator": {attest.CodeBadSignature, func(d fstest.MapFS) {
			edit(t, d, func(c *Certificate) { c.Aggregator.Ref.Org = "zeta" })
		}},
		"no role": {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.Aggregator.Roles = []string{} }) }},
		"statements exchanged": {attest.CodeBadSignature, func(d fstest.MapFS) {
			edit(t, d, func(c *Certificate) {
				c.Members[0].Statement, c.Members[1].Statement = c.Members[1].Statement, c.Members[0].Statement
			})
		}},
		"no close": {attest.CodeBadSignature, func(d fstest.MapFS) { edit(t, d, func(c *Certificate) { c.CloseEnvelope = nil }) }},
		"close signature": {attest.CodeBadSignature, func(d fstest.MapFS) {
			edit(t, d, func(c *Certificate) { c.CloseEnvelope = unsign(t, c.CloseEnvelope) })
		}},
		"update signature": {attest.CodeBadSignature, func(d fstest.MapFS) {
			edit(t, d, func(c *Certificate) { c.Members[0].Statement = unsign(t, c.Members[0].Statement) })
		}},
		"leaf of another round": {attest.CodeBadSignature, func(d fstest.MapFS) {
			edit(t, d, func(c *Certificate) { c.Leaf = mustCert(t, d, 2).Leaf })
		}},
		"leaf signed by another": {attest.CodeBadSignature, func(d fstest.MapFS) {
			edit(t, d, func(c *Certificate) {
				r, err := ParseRound(c.Leaf)
				if err != nil {
					t.Fatal(err)
				}
				env, err := SignRound(stranger.signer, r)
				if err != nil {
					t.Fatal(err)
				}
				if r.Peer == stranger.Peer {
					env.Signatures[0].Sig[0] ^= 1
				}
				c.Leaf = env.Marshal()
			})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := clone(m.dir)
			tc.spoil(dir)
			r, err := Verify(dir, VerifyOptions{GovernKeys: m.GovernKeys()})
			if err != nil {
				t.Fatal(err)
			}
			if r.OK || !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Code == tc.code }) {
				t.Errorf("got %+v, want %s", r.Findings, tc.code)
			}
			if r.Undecided() != (tc.code == attest.CodeUnavailable) {
				t.Errorf("undecided: %v with %+v", r.Undecided(), r.Findings)
			}
		})
	}
}

func mustCert(t *testing.T, dir fstest.MapFS, round uint32) *Certificate {
	t.Helper()
	c, err := ParseCertificate(dir[CertificateFile(round)].Data)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// unsign spoils the first signature of an envelope and keeps its form.
func unsign(t *testing.T, raw []byte) []byte {
	t.Helper()
	env, err := envelope.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	env.Signatures[0].Sig[0] ^= 1
	return env.Marshal()
}

// Two honest histories of one job, which different participants' statistics tell apart:
// a round of one does not follow on a round of the other.
func TestVerifyFindsASplicedHistory(t *testing.T) {
	history := func(without string) *fakeMesh {
		m := newMesh(t, five()...)
		job := m.submit(m.give(small(), 1))
		m.finish(job, m.deliver(job, m.open(job.ID, "unreachable", m.node(without))))
		m.round(job)
		return m
	}
	a, b := history("alpha/n1"), history("beta/n1")
	dir := clone(a.dir)
	for name, f := range b.dir {
		if !strings.Contains(name, "/0") && name != CertificateFile(0) {
			dir[name] = f
		}
	}
	r, err := Verify(dir, VerifyOptions{GovernKeys: a.GovernKeys()})
	if err != nil {
		t.Fatal(err)
	}
	if r.OK || !slices.ContainsFunc(r.Findings, func(f Finding) bool { return strings.HasPrefix(f.Message, "starts from ") }) {
		t.Errorf("got %+v", r.Findings)
	}
}

// The job's id does not cover its signatures: whoever takes one away shows a member whose
// organisation did not agree.
func TestVerifyFindsUnsignedMembers(t *testing.T) {
	m, _ := ran(t, DiscloseFull)
	c := mustCert(t, m.dir, 0)
	env, err := envelope.Parse(c.JobEnvelope)
	if err != nil {
		t.Fatal(err)
	}
	for i := range env.Signatures {
		less := envelope.Envelope{Payload: env.Payload, Signatures: slices.Delete(slices.Clone(env.Signatures), i, i+1)}
		c.JobEnvelope = less.Marshal()
		r := VerifyOne(m.dir, c, VerifyOptions{GovernKeys: m.GovernKeys()})
		if r.OK || len(r.Signers) != 4 || !strings.Contains(r.Findings[0].Message, "did not sign the job") {
			t.Errorf("got %+v", r)
		}
	}
}

// A lying aggregator, whom everybody but the arithmetic believes: it signs a result that
// the updates do not add up to, or weighs them otherwise.
func TestVerifyCatchesALyingAggregator(t *testing.T) {
	for name, lie := range map[string]func(m *fakeMesh, job Job, a *attempt) []byte{
		"drops an update": func(m *fakeMesh, job Job, a *attempt) []byte {
			b := *a
			b.accepted = b.accepted[1:]
			return m.result(job, &b)
		},
		"alters weights": func(m *fakeMesh, job Job, a *attempt) []byte {
			b := *a
			b.deliveries = maps.Clone(a.deliveries)
			d := b.deliveries[a.accepted[0].Node]
			d.Opening.Examples *= 5
			b.deliveries[a.accepted[0].Node] = d
			return m.result(job, &b)
		},
		"one bit": func(m *fakeMesh, job Job, a *attempt) []byte {
			ts, err := safetensors.Decode(m.result(job, a))
			if err != nil {
				t.Fatal(err)
			}
			ts[0].F32[0] += 1e-6
			raw, err := safetensors.Encode(ts)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		},
	} {
		m := newMesh(t, five()...)
		job := m.submit(m.give(small(), 1))
		m.round(job)
		a := m.deliver(job, m.open(job.ID, ""))
		body, err := m.closeCommand(a)
		m.must(KindRoundClose, body, err)
		model := lie(m, job, a)
		body, err = m.commitCommand(job.ID, model)
		m.must(KindRoundCommit, body, err)
		m.write(job, a, model)
		r, err := Verify(m.dir, VerifyOptions{GovernKeys: m.GovernKeys()})
		if err != nil {
			t.Fatal(err)
		}
		if r.OK || len(r.Findings) != 1 || r.Findings[0].Code != attest.CodeResultMismatch || r.ReExecuted != 1 {
			t.Errorf("%s: got %+v", name, r.Findings)
		}
	}
}

// A job whose signatures are not of this mesh's organisations.
func TestVerifyNeedsTheOrganisations(t *testing.T) {
	m, _ := ran(t, DiscloseFull)
	keys := m.GovernKeys()
	r, err := Verify(m.dir, VerifyOptions{GovernKeys: keys[1:]})
	if err != nil || r.OK || r.Findings[0].Code != attest.CodeBadSignature || r.Findings[0].Round != -1 {
		t.Errorf("got %+v, %v", r, err)
	}
}

func TestVerifyMalformed(t *testing.T) {
	if _, err := Verify(fstest.MapFS{}, VerifyOptions{}); err == nil {
		t.Error("an empty directory was verified")
	}
	m, _ := ran(t, DiscloseFull)
	raw := string(m.dir[CertificateFile(0)].Data)
	for name, bad := range map[string]string{
		"empty":         "",
		"cut":           raw[:len(raw)/2],
		"trailing":      raw + "{}",
		"unknown field": strings.Replace(raw, "{", `{"x": 1,`, 1),
		"other format":  strings.Replace(raw, certificateFormat, "v2", 1),
		"compact":       compact(t, raw),
		"too large":     strings.Repeat(" ", MaxCertificate) + raw,
	} {
		dir := clone(m.dir)
		dir[CertificateFile(0)].Data = []byte(bad)
		if _, err := Verify(dir, VerifyOptions{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	dir := clone(m.dir)
	dir[CertificateFile(0)] = dir[CertificateFile(1)]
	if _, err := Verify(dir, VerifyOptions{}); err == nil {
		t.Error("a certificate under another's name was accepted")
	}
	if _, err := fs.Stat(m.dir, UpdateFile(1, identity.NodeRef{Org: "no", Name: "no"})); err == nil {
		t.Error("a stranger's update")
	}
}

func compact(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, []byte(s)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Names cannot be joined into each other's file.
func TestUpdateFilesAreDistinct(t *testing.T) {
	a := UpdateFile(1, identity.NodeRef{Org: "a-b", Name: "c"})
	b := UpdateFile(1, identity.NodeRef{Org: "a", Name: "b-c"})
	if a == b || a != "updates/1/a-b.c.safetensors" {
		t.Errorf("%s, %s", a, b)
	}
}

func TestNewCertificateNeedsOpenings(t *testing.T) {
	m, job := ran(t, DiscloseFull)
	c := m.status(job.ID).Committed[1]
	if _, err := NewCertificate(job, c, nil, nil); err == nil {
		t.Error("a certificate without the numbers was made")
	}
	wrong := map[identity.NodeRef]Opening{}
	for _, a := range c.Closed.Accepted {
		wrong[a.Node] = Opening{1, Digest{}}
	}
	if _, err := NewCertificate(job, c, wrong, nil); err == nil {
		t.Error("a certificate with other numbers was made")
	}
	var zero chunk.Root
	if c.BaseRoot == zero {
		t.Error("round 1 has no base")
	}
}
