package federated

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// VerifyOptions is what a verifier knows beyond the directory.
type VerifyOptions struct {
	// GovernKeys are the organisations' govern keys, from genesis and the log. Without them the
	// report says that the job's signatures were not judged.
	GovernKeys []envelope.Key
	// Inclusion checks that a certificate's leaf is in the log, where its members were
	// eligible, and returns the level of the checkpoint that proves it. An attest.Error
	// gives the finding its code. Without it the report says that nobody looked.
	Inclusion func(*Certificate) (level string, err error)
}

// The values of Report.JobSignatures (the first two) and Report.Inclusion (the others).
const (
	Checked     = "checked"
	NotChecked  = "not checked"
	Verified    = "verified"     // every certificate's leaf is in the log
	NotVerified = "not verified" // of one at least that could not be shown; the findings say of which
)

// Finding is one thing that is wrong. Round is −1 for what concerns the whole job.
type Finding struct {
	Round   int         `json:"round"`
	Code    attest.Code `json:"code"`
	Message string      `json:"message"`
}

// RoundReport is what was found out about one round.
type RoundReport struct {
	Round        uint32             `json:"round"`
	Attempt      uint32             `json:"attempt"`
	Epoch        identity.Epoch     `json:"epoch"`
	Aggregator   identity.NodeRef   `json:"aggregator"`
	Participants []identity.NodeRef `json:"participants"`
	Rule         string             `json:"rule"`
	Arithmetic   string             `json:"arithmetic"`
	ResultRoot   chunk.Root         `json:"result_root"`
	// ReExecuted reports that the sum was done again here and gave ResultRoot.
	ReExecuted bool `json:"re_executed"`
	// LeafIndex and Level are the certificate's own words unless Inclusion is verified.
	LeafIndex *int64 `json:"leaf_index"`
	Level     string `json:"level"`
}

// Report is the result of Verify.
type Report struct {
	OK     bool            `json:"ok"`
	MeshID identity.MeshID `json:"mesh_id"`
	Job    JobID           `json:"job"`
	Name   string          `json:"name"`
	// Complete reports that every round of the job is there.
	Complete      bool             `json:"complete"`
	Rounds        []RoundReport    `json:"rounds"`
	ModelRoot     chunk.Root       `json:"model_root"`
	ReExecuted    int              `json:"re_executed"`
	Simulated     bool             `json:"simulated"`
	Signers       []identity.OrgID `json:"signers"`
	JobSignatures string           `json:"job_signatures"`
	Inclusion     string           `json:"inclusion"`
	Findings      []Finding        `json:"findings"`
	DoesNotProve  []string         `json:"does_not_prove"`
}

// Undecided reports that nothing was found wrong but files that a judgement needs are
// missing.
func (r *Report) Undecided() bool {
	return !r.OK && !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Code != attest.CodeUnavailable })
}

// verifier holds the state of one Verify.
type verifier struct {
	fsys   fs.FS
	opts   VerifyOptions
	report *Report
	job    Job
	// previous is the certificate before the one being verified, if it is there too.
	previous *Certificate
}

// Verify judges a whole job directory: every certificate from round 0 on.
func Verify(fsys fs.FS, opts VerifyOptions) (*Report, error) {
	certs, err := ReadCertificates(fsys)
	if err != nil {
		return nil, err
	}
	return VerifyAll(fsys, certs, opts), nil
}

// ReadCertificates decodes the certificates of a job directory from round 0 to the first
// that is absent; there is at least one. It judges nothing.
func ReadCertificates(fsys fs.FS) ([]*Certificate, error) {
	var certs []*Certificate
	for round := range uint32(MaxRounds + 1) {
		raw, err := readFile(fsys, CertificateFile(round), MaxCertificate)
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, err
		}
		c, err := ParseCertificate(raw)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", CertificateFile(round), err)
		}
		if c.Round != round {
			return nil, fmt.Errorf("%s: is of round %d; give every file its own name back", CertificateFile(round), c.Round)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("no %s; give the directory of a job, which holds one certificate for each round", CertificateFile(0))
	}
	return certs, nil
}

// VerifyAll is Verify of what ReadCertificates returned for fsys.
func VerifyAll(fsys fs.FS, certs []*Certificate, opts VerifyOptions) *Report {
	v := newVerifier(fsys, opts, certs[0])
	for _, c := range certs {
		v.certificate(c)
		v.previous = c
	}
	// The model of a job that goes on after a gap is a later round's.
	if !v.gaps(len(certs)) {
		v.finalModel()
	}
	return v.finish()
}

// VerifyOne judges one certificate with the files beside it in fsys.
func VerifyOne(fsys fs.FS, c *Certificate, opts VerifyOptions) *Report {
	v := newVerifier(fsys, opts, c)
	v.certificate(c)
	return v.finish()
}

func newVerifier(fsys fs.FS, opts VerifyOptions, first *Certificate) *verifier {
	v := &verifier{fsys: fsys, opts: opts, report: &Report{
		MeshID: first.MeshID, Job: first.Job, Name: first.Name, Rounds: []RoundReport{}, Signers: []identity.OrgID{},
		JobSignatures: NotChecked, Inclusion: NotChecked, Findings: []Finding{}, DoesNotProve: []string{},
	}}
	if opts.Inclusion != nil {
		v.report.Inclusion = Verified
	}
	job, err := ParseJob(first.JobEnvelope)
	if err == nil && opts.GovernKeys != nil {
		v.report.JobSignatures = Checked
		job, err = job.Signed(opts.GovernKeys)
	}
	if err != nil {
		v.found(-1, attest.CodeBadSignature, "%v", err)
	}
	v.job = job
	v.report.Signers = notNil(job.Signers)
	return v
}

func (v *verifier) found(round int, code attest.Code, format string, args ...any) {
	v.report.Findings = append(v.report.Findings, Finding{round, code, fmt.Sprintf(format, args...)})
}

func (v *verifier) finish() *Report {
	r := v.report
	r.OK = len(r.Findings) == 0
	if n := len(r.Rounds); n > 0 {
		r.ModelRoot = r.Rounds[n-1].ResultRoot
		r.Complete = n == v.job.Spec.Rounds+1
	}
	r.DoesNotProve = doesNotProve(v.job.Spec.Disclosure, r.Simulated)
	if r.JobSignatures == NotChecked {
		r.DoesNotProve = append(r.DoesNotProve, "which organisations wanted the job: their keys, which genesis holds, were not given")
	}
	if r.Inclusion == NotChecked {
		r.DoesNotProve = append(r.DoesNotProve, "that the rounds are in the log and their members were eligible: the log was not read")
	}
	return r
}

// certificate judges one certificate and adds its report.
func (v *verifier) certificate(c *Certificate) {
	n := int(c.Round)
	before := len(v.report.Findings)
	if err := v.statements(c); err != nil {
		v.found(n, attest.CodeBadSignature, "%v", err)
	}
	v.chain(c)
	// A sum over statements that are not what they seem proves nothing.
	sound := len(v.report.Findings) == before
	level := v.inclusion(c)
	rr := RoundReport{
		Round: c.Round, Attempt: c.Attempt, Epoch: c.Epoch, Aggregator: c.Aggregator.Ref, Participants: []identity.NodeRef{},
		Rule: c.Rule, Arithmetic: c.Arithmetic, ResultRoot: c.ResultRoot,
	}
	for _, m := range c.Members {
		rr.Participants = append(rr.Participants, m.Ref)
	}
	if c.Log != nil {
		index := int64(c.Log.Index)
		rr.LeafIndex, rr.Level = &index, level
	}
	if sound {
		rr.ReExecuted = v.reExecute(c)
	}
	if rr.ReExecuted {
		v.report.ReExecuted++
	}
	v.report.Simulated = v.report.Simulated || c.simulated()
	v.report.Rounds = append(v.report.Rounds, rr)
}

// inclusion looks for a certificate's leaf in the log and returns the level of the proof.
func (v *verifier) inclusion(c *Certificate) string {
	if v.opts.Inclusion == nil {
		if c.Log == nil {
			return ""
		}
		return c.Log.Level
	}
	level, err := v.opts.Inclusion(c)
	if err == nil {
		return level
	}
	v.report.Inclusion = NotVerified
	code := attest.CodeReplayMismatch
	var coded *attest.Error
	if errors.As(err, &coded) {
		code = coded.Reason.Code
		if coded.Err != nil {
			err = coded.Err
		}
	}
	v.found(int(c.Round), code, "log: %v", err)
	return level
}

// statements checks every signature of a certificate and that its plain fields say what
// the signed ones do.
func (v *verifier) statements(c *Certificate) error {
	job, err := ParseJob(c.JobEnvelope)
	if err != nil {
		return err
	}
	if job.ID != v.job.ID || job.ID != c.Job || job.MeshID != c.MeshID || job.Spec.Name != c.Name ||
		job.Spec.Rounds != c.Rounds || job.Spec.Disclosure != c.Disclosure || int(c.Round) > job.Spec.Rounds {
		return fmt.Errorf("job %s: the certificate names job %s of another content", job.ID, c.Job)
	}
	leaf, err := ParseRound(c.Leaf)
	if err != nil {
		return fmt.Errorf("leaf: %w", err)
	}
	closed, err := parseClose(c.CloseEnvelope)
	if err != nil {
		return err
	}
	if err := closed.env.VerifyPeer(closed.predicate.Peer); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	turn := Turn{c.MeshID, c.Job, c.Round, c.Attempt, c.BaseRoot}
	arithmetic, rule := job.Spec.arithmetic(c.Round)
	cl := closed.predicate
	switch {
	case leaf.Turn != turn || cl.Turn != turn:
		return errors.New("leaf, close statement and certificate speak of different turns or base roots")
	case leaf.Peer != c.Aggregator.Peer || leaf.Aggregator != c.Aggregator.Ref || cl.Peer != leaf.Peer || cl.Aggregator != leaf.Aggregator:
		return errors.New("leaf, close statement and certificate name different aggregators")
	case leaf.ResultRoot != c.ResultRoot || leaf.Epoch != c.Epoch || leaf.Rule != c.Rule || leaf.Arithmetic != c.Arithmetic:
		return errors.New("the certificate does not say what the leaf says")
	case c.Rule != rule || c.Arithmetic != arithmetic:
		return fmt.Errorf("rule %s by %s, the job wants %s by %s", c.Rule, c.Arithmetic, rule, arithmetic)
	case !slices.Equal(leaf.Accepted, cl.Accepted) || !slices.Equal(leaf.Rejected, cl.Rejected) || !slices.Equal(leaf.Rejected, c.Rejected):
		return errors.New("leaf and close statement list different updates")
	case c.Simulated != c.simulated():
		return errors.New("the certificate hides that evidence was simulated")
	case !slices.Equal(c.DoesNotProve, doesNotProve(job.Spec.Disclosure, c.Simulated)):
		return errors.New("the certificate's words on what it does not prove were changed")
	}
	return v.members(c, leaf)
}

// members checks every participant against the leaf and its own statement.
func (v *verifier) members(c *Certificate, leaf Round) error {
	if len(c.Members) != len(leaf.Accepted) || len(c.Members) < v.job.Spec.MinParticipants {
		return fmt.Errorf("%d members for %d accepted updates, the job wants at least %d", len(c.Members), len(leaf.Accepted), v.job.Spec.MinParticipants)
	}
	for i, m := range c.Members {
		a := leaf.Accepted[i]
		st, err := parseUpdate(m.Statement)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Ref, err)
		}
		if err := st.env.VerifyPeer(m.Peer); err != nil {
			return fmt.Errorf("%s: %w", m.Ref, err)
		}
		if err := supports(st, leaf.Turn, a); err != nil {
			return err
		}
		switch {
		case m.Ref != a.Node || m.Peer != a.Peer || m.UpdateRoot != a.UpdateRoot:
			return fmt.Errorf("%s: the leaf accepts %s with another update", m.Ref, a.Node)
		case m.Measurement != st.predicate.Measurement || !m.Has(RoleTrainer):
			return fmt.Errorf("%s: role or measurement differ from what it signed", m.Ref)
		case Opening{m.Examples, m.Salt}.Commit(c.Job, c.Round, m.Ref) != a.Examples:
			return fmt.Errorf("%s: %d examples do not open its commitment", m.Ref, m.Examples)
		case v.report.JobSignatures == Checked && !v.job.SignedBy(m.Ref.Org):
			return fmt.Errorf("%s: its organisation did not sign the job", m.Ref)
		}
	}
	if !c.Aggregator.Has(RoleAggregator) || (v.report.JobSignatures == Checked && !v.job.SignedBy(c.Aggregator.Ref.Org)) {
		return fmt.Errorf("%s: no aggregator of an organisation that signed the job", c.Aggregator.Ref)
	}
	return nil
}

// chain requires that a round starts where the one before it ended.
func (v *verifier) chain(c *Certificate) {
	if p := v.previous; p != nil && (c.BaseRoot != p.ResultRoot || c.Job != p.Job || c.Round != p.Round+1) {
		v.found(int(c.Round), attest.CodeRootMismatch, "starts from %s, round %d ended in %s", c.BaseRoot, p.Round, p.ResultRoot)
	}
}

// reExecute adds the updates up again. It reports whether that gave the result root.
func (v *verifier) reExecute(c *Certificate) bool {
	n := int(c.Round)
	var base []byte
	if c.Round > 0 {
		if base = v.file(n, RoundModelFile(c.Round-1), c.BaseRoot); base == nil {
			return false
		}
	}
	result := v.file(n, RoundModelFile(c.Round), c.ResultRoot)
	if result == nil {
		return false
	}
	var in []Contribution
	for _, m := range c.Members {
		update := v.file(n, UpdateFile(c.Round, m.Ref), m.UpdateRoot)
		if update == nil {
			return false
		}
		in = append(in, Contribution{m.Ref, m.Examples, update})
	}
	sum, err := v.job.Spec.Combine(c.Round, base, in)
	if err != nil {
		v.found(n, attest.CodeSchema, "%v", err)
		return false
	}
	root, err := chunk.RootOf(sum)
	if err != nil || root != c.ResultRoot {
		v.found(n, attest.CodeResultMismatch, "the updates add up to %s, the aggregator %s signed %s", root, c.Aggregator.Ref, c.ResultRoot)
		return false
	}
	return true
}

// file reads a file of the directory that must have a root; nil if it has not, which is a
// finding unless the file is absent and the job's terms do not disclose.
func (v *verifier) file(round int, name string, want chunk.Root) []byte {
	raw, err := readFile(v.fsys, name, MaxModel)
	if errors.Is(err, fs.ErrNotExist) && v.job.Spec.Disclosure != DiscloseFull {
		return nil
	}
	if err != nil {
		v.found(round, attest.CodeUnavailable, "%s: %v", name, err)
		return nil
	}
	if root, err := chunk.RootOf(raw); err != nil || root != want {
		v.found(round, attest.CodeRootMismatch, "%s: root %s, signed was %s", name, root, want)
		return nil
	}
	return raw
}

// gaps reports whether there are certificates after the first missing one.
func (v *verifier) gaps(have int) bool {
	entries, err := fs.ReadDir(v.fsys, ".")
	if err != nil {
		v.found(-1, attest.CodeUnavailable, "%v", err)
		return true
	}
	found := false
	for _, e := range entries {
		var round int
		if n, _ := fmt.Sscanf(e.Name(), "certificate-%d.json", &round); n == 1 && round >= have && e.Name() == CertificateFile(uint32(round)) {
			v.found(round, attest.CodeUnavailable, "%s is there and %s is not", e.Name(), CertificateFile(uint32(have)))
			found = true
		}
	}
	return found
}

// finalModel requires that model.safetensors is the last round's result.
func (v *verifier) finalModel() {
	last := v.report.Rounds[len(v.report.Rounds)-1]
	v.file(int(last.Round), ModelFile, last.ResultRoot)
}

func readFile(fsys fs.FS, name string, limit int64) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: over the limit of %d bytes", name, limit)
	}
	return raw, nil
}
