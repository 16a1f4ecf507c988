package federated

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/attestmesh/meshnode/federated/aggregate"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/federated/mlp"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/strictyaml"
	"go.yaml.in/yaml/v4"
)

// The values of Spec.Rule and Spec.Disclosure.
const (
	// RuleFedAvg is the mean weighted by numbers of examples (McMahan et al. 2017).
	RuleFedAvg = "fedavg"
	// DiscloseFull keeps all updates in clear in the job's directory, for anybody to add
	// up again. DiscloseNone keeps none: the certificate then says so.
	DiscloseFull = "full"
	DiscloseNone = "none"
)

// Spec is a job as a person writes it. Unknown keys are refused; the zero value is.
type Spec struct {
	Name string `yaml:"name" json:"name"`
	// Rounds counts training rounds; the statistics round 0 comes before them.
	Rounds int    `yaml:"rounds" json:"rounds"`
	Seed   uint64 `yaml:"seed" json:"seed"`
	// Features is the number of columns before the label.
	Features int       `yaml:"features" json:"features"`
	Labels   []string  `yaml:"labels" json:"labels"`
	Model    ModelSpec `yaml:"model" json:"model"`
	Train    TrainSpec `yaml:"train" json:"train"`
	// Rule and Arithmetic say how updates become a model.
	Rule       string `yaml:"rule" json:"rule"`
	Arithmetic string `yaml:"arithmetic" json:"arithmetic"`
	// MinParticipants is the fewest updates a round may be made of.
	MinParticipants int `yaml:"min_participants" json:"min_participants"`
	// MaxExamples is the largest number of examples one participant may claim.
	MaxExamples uint64 `yaml:"max_examples" json:"max_examples"`
	// Deadline is how many seconds an attempt at a round may take.
	Deadline int `yaml:"deadline" json:"deadline"`
	// Interval is the least number of seconds from one round's commit to the next opening.
	Interval   int    `yaml:"interval" json:"interval"`
	Disclosure string `yaml:"disclosure" json:"disclosure"`
}

// ModelSpec is the size of the perceptron.
type ModelSpec struct {
	Hidden int `yaml:"hidden" json:"hidden"`
}

// TrainSpec is what a participant does in one round.
type TrainSpec struct {
	Epochs       int     `yaml:"epochs" json:"epochs"`
	Batch        int     `yaml:"batch" json:"batch"`
	LearningRate float64 `yaml:"learning_rate" json:"learning_rate"`
	Momentum     float64 `yaml:"momentum" json:"momentum"`
}

// DefaultSpec returns the values of keys that a file may leave out. Name, features and
// labels have none. Full disclosure is never a default.
func DefaultSpec() Spec {
	return Spec{
		Rounds: 10, Seed: 1, Model: ModelSpec{64}, Train: TrainSpec{3, 16, 0.05, 0.9},
		Rule: RuleFedAvg, Arithmetic: aggregate.F64OrderedV1,
		MinParticipants: 2, MaxExamples: 1_000_000, Deadline: 60, Disclosure: DiscloseNone,
	}
}

// ParseSpec reads a job file called name.
func ParseSpec(name string, raw []byte) (Spec, error) {
	spec := DefaultSpec()
	if err := strictyaml.Decode(name, raw, &spec); err != nil {
		return Spec{}, err
	}
	if err := spec.Validate(); err != nil {
		return Spec{}, &strictyaml.Error{File: name, Problem: err.Error()}
	}
	return spec, nil
}

// YAML returns the file that ParseSpec reads as s.
func (s Spec) YAML() ([]byte, error) {
	raw, err := yaml.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	return raw, nil
}

// Validate refuses a spec that no mesh could run; errors name the key.
func (s Spec) Validate() error {
	if !validName(s.Name) {
		return fmt.Errorf("name %q: want 1 to 64 characters of a-z, 0-9 and '-'", s.Name)
	}
	for _, f := range []struct {
		key      string
		got      int
		min, max int
	}{
		{"rounds", s.Rounds, 1, MaxRounds}, {"features", s.Features, 1, data.MaxFeatures},
		{"model.hidden", s.Model.Hidden, 1, MaxHidden}, {"train.epochs", s.Train.Epochs, 1, MaxEpochs},
		{"train.batch", s.Train.Batch, 1, MaxBatch}, {"deadline", s.Deadline, 1, MaxDeadline}, {"interval", s.Interval, 0, MaxDeadline},
		{"min_participants", s.MinParticipants, 2, MaxParticipants},
	} {
		if f.got < f.min || f.got > f.max {
			return fmt.Errorf("%s %d: want %d to %d", f.key, f.got, f.min, f.max)
		}
	}
	switch {
	case s.MaxExamples < 1 || s.MaxExamples > MaxExamples:
		return fmt.Errorf("max_examples %d: want 1 to %d", s.MaxExamples, uint64(MaxExamples))
	case !(s.Train.LearningRate > 0 && s.Train.LearningRate <= 10):
		return fmt.Errorf("train.learning_rate %v: want more than 0 and at most 10", s.Train.LearningRate)
	case !(s.Train.Momentum >= 0 && s.Train.Momentum < 1):
		return fmt.Errorf("train.momentum %v: want at least 0 and less than 1", s.Train.Momentum)
	case s.Rule != RuleFedAvg:
		return fmt.Errorf("rule %q: want %s", s.Rule, RuleFedAvg)
	case s.Arithmetic != aggregate.F64OrderedV1:
		return fmt.Errorf("arithmetic %q: want %s", s.Arithmetic, aggregate.F64OrderedV1)
	case s.Disclosure != DiscloseFull && s.Disclosure != DiscloseNone:
		return fmt.Errorf("disclosure %q: want %s or %s", s.Disclosure, DiscloseFull, DiscloseNone)
	}
	return s.validateLabels()
}

func (s Spec) validateLabels() error {
	if len(s.Labels) < 2 || len(s.Labels) > data.MaxLabels {
		return fmt.Errorf("labels: %d of them, want 2 to %d", len(s.Labels), data.MaxLabels)
	}
	seen := make(map[string]bool, len(s.Labels))
	for _, l := range s.Labels {
		bad := strings.ContainsFunc(l, func(r rune) bool { return !strconv.IsPrint(r) })
		if l == "" || len(l) > data.MaxLabel || !utf8.ValidString(l) || bad || strings.TrimSpace(l) != l {
			return fmt.Errorf("labels: %.80q: want 1 to %d bytes of printable UTF-8", l, data.MaxLabel)
		}
		if seen[l] {
			return fmt.Errorf("labels: %q stands there twice", l)
		}
		seen[l] = true
	}
	return nil
}

func validName(s string) bool {
	return len(s) >= 1 && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// shape is the model's.
func (s Spec) shape() mlp.Shape {
	return mlp.Shape{Features: s.Features, Hidden: s.Model.Hidden, Classes: len(s.Labels)}
}

// JobID is the first 16 hex characters of the SHA-256 of a job's payload.
type JobID string

// Validate reports whether j is well-formed.
func (j JobID) Validate() error {
	if len(j) != 16 || strings.Trim(string(j), "0123456789abcdef") != "" {
		return fmt.Errorf("job id %.40q: want 16 characters of lower-case hex", string(j))
	}
	return nil
}

// JobPredicate is what organisations sign: the mesh keeps the job from being replayed in
// another one.
type JobPredicate struct {
	MeshID identity.MeshID `json:"mesh_id"`
	Spec   Spec            `json:"spec"`
}

// Job is an accepted job.
type Job struct {
	ID     JobID
	MeshID identity.MeshID
	Spec   Spec
	// Signers are the organisations whose govern keys signed, sorted; set by Signed only.
	Signers []identity.OrgID
	// Envelope is the job as ordered.
	Envelope []byte
}

// NewJob returns the unsigned envelope of a job: organisations add their signatures.
func NewJob(mesh identity.MeshID, spec Spec) (*envelope.Envelope, error) {
	if err := spec.Validate(); err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	subject, err := jobSubject(spec)
	if err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	payload, err := envelope.NewPayload(envelope.TypeJob, subject, JobPredicate{mesh, spec})
	if err != nil {
		return nil, fmt.Errorf("job: %w", err)
	}
	return &envelope.Envelope{Payload: payload}, nil
}

// jobSubject names the job and digests its spec as compact JSON.
func jobSubject(spec Spec) (envelope.Subject, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return envelope.Subject{}, err
	}
	return envelope.SubjectOf(spec.Name, raw), nil
}

// ParseJob decodes a job's envelope. It checks no signature: see Signed.
func ParseJob(raw []byte) (Job, error) {
	env, err := envelope.Parse(raw)
	if err != nil {
		return Job{}, fmt.Errorf("job: %w", err)
	}
	st, err := envelope.Decode[JobPredicate](env.Payload, envelope.TypeJob)
	if err != nil {
		return Job{}, fmt.Errorf("job: %w", err)
	}
	spec := st.Predicate.Spec
	if err := spec.Validate(); err != nil {
		return Job{}, fmt.Errorf("job: %w", err)
	}
	want, err := jobSubject(spec)
	if err != nil {
		return Job{}, fmt.Errorf("job: %w", err)
	}
	if !sameSubject(st.Subject[0], want) {
		return Job{}, fmt.Errorf("job: the subject is not the spec's")
	}
	sum := sha256.Sum256(env.Payload)
	return Job{
		ID: JobID(hex.EncodeToString(sum[:])[:16]), MeshID: st.Predicate.MeshID, Spec: spec, Envelope: bytes.Clone(raw),
	}, nil
}

// Signed verifies the job's signatures with the organisations' govern keys and returns
// the job with its signers. A node takes part only if its own organisation is among them.
func (j Job) Signed(govern []envelope.Key) (Job, error) {
	env, err := envelope.Parse(j.Envelope)
	if err != nil {
		return Job{}, fmt.Errorf("job: %w", err)
	}
	if j.Signers, err = env.Verify(govern); err != nil {
		return Job{}, fmt.Errorf("job %s: %w", j.ID, err)
	}
	return j, nil
}

// SignedBy reports whether org signed.
func (j Job) SignedBy(org identity.OrgID) bool { return slices.Contains(j.Signers, org) }

func sameSubject(a, b envelope.Subject) bool {
	return a.Name == b.Name && len(a.Digest) == 1 && a.Digest["sha256"] == b.Digest["sha256"]
}
