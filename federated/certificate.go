package federated

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/identity"
)

// certificateFormat is the value of Certificate.Format.
const certificateFormat = "meshnode round certificate v1"

// EnvelopeJSON is an envelope that stands as JSON within JSON. White space around its
// parts is not kept: the compact form is the envelope.
type EnvelopeJSON []byte

// MarshalJSON returns the envelope.
func (e EnvelopeJSON) MarshalJSON() ([]byte, error) {
	if len(e) == 0 {
		return []byte("null"), nil
	}
	return e, nil
}

// UnmarshalJSON compacts raw.
func (e *EnvelopeJSON) UnmarshalJSON(raw []byte) error {
	var buf bytes.Buffer
	if err := json.Compact(&buf, raw); err != nil {
		return err
	}
	*e = buf.Bytes()
	return nil
}

// CertifiedMember is a participant of a certified round.
type CertifiedMember struct {
	Member
	UpdateRoot chunk.Root `json:"update_root"`
	// Examples and Salt open the commitment in Statement; with the sum of all Examples
	// they give the weight.
	Examples uint64 `json:"n_examples"`
	Salt     Digest `json:"salt"`
	// Statement is the participant's own Update statement.
	Statement EnvelopeJSON `json:"statement"`
}

// LogProof ties a leaf to a checkpoint. Its fields are filled by the node that exports a
// certificate and judged by whoever reads logs; this package carries them.
type LogProof struct {
	Origin string `json:"origin"`
	Index  uint64 `json:"index"`
	// Checkpoint is the signed note; Proof are the base64 hashes of the inclusion proof.
	Checkpoint string   `json:"checkpoint"`
	Proof      []string `json:"proof"`
	// Level is unpublished, published or strong, by the cosigning organisations.
	Level     string           `json:"level"`
	Cosigners []identity.OrgID `json:"cosigners"`
}

// Certificate is the offline proof of one committed round. It belongs to the members: it
// holds what the public leaf only commits to.
type Certificate struct {
	Format      string            `json:"format"`
	MeshID      identity.MeshID   `json:"mesh_id"`
	Job         JobID             `json:"job"`
	Name        string            `json:"name"`
	Round       uint32            `json:"round"`
	Rounds      int               `json:"rounds"`
	Attempt     uint32            `json:"attempt"`
	Epoch       identity.Epoch    `json:"epoch"`
	Rule        string            `json:"rule"`
	Arithmetic  string            `json:"arithmetic"`
	Disclosure  string            `json:"disclosure"`
	BaseRoot    chunk.Root        `json:"base_root"`
	ResultRoot  chunk.Root        `json:"result_root"`
	Aggregator  Member            `json:"aggregator"`
	Members     []CertifiedMember `json:"members"`
	Rejected    []Rejected        `json:"rejected"`
	Excluded    []identity.PeerID `json:"excluded"`
	Cause       string            `json:"cause"`
	Simulated   bool              `json:"simulated"`
	ReExecutors []identity.OrgID  `json:"re_executors"`

	JobEnvelope   EnvelopeJSON `json:"job_envelope"`
	CloseEnvelope EnvelopeJSON `json:"close_envelope"`
	Leaf          EnvelopeJSON `json:"leaf"`
	Log           *LogProof    `json:"log"`
	DoesNotProve  []string     `json:"does_not_prove"`
}

// NewCertificate certifies a committed round. openings has one entry for each accepted
// participant; log may be nil until the leaf is published.
func NewCertificate(job Job, c CommittedRound, openings map[identity.NodeRef]Opening, log *LogProof) (*Certificate, error) {
	round, err := ParseRound(c.Leaf)
	if err != nil {
		return nil, err
	}
	out := &Certificate{
		Format: certificateFormat, MeshID: c.MeshID, Job: c.Job, Name: job.Spec.Name, Round: c.Round, Rounds: job.Spec.Rounds,
		Attempt: c.Attempt, Epoch: c.Epoch, Rule: round.Rule, Arithmetic: round.Arithmetic, Disclosure: job.Spec.Disclosure,
		BaseRoot: c.BaseRoot, ResultRoot: c.ResultRoot, Aggregator: c.AggregatorAt,
		Rejected: notNil(c.Closed.Rejected), Excluded: notNil(c.Exclude), Cause: c.Cause, ReExecutors: []identity.OrgID{},
		JobEnvelope: job.Envelope, CloseEnvelope: c.Closed.Envelope, Leaf: c.Leaf, Log: log,
	}
	for i, a := range c.Closed.Accepted {
		o, ok := openings[a.Node]
		if !ok || o.Commit(c.Job, c.Round, a.Node) != a.Examples {
			return nil, fmt.Errorf("certificate: round %d: no opening of %s's commitment", c.Round, a.Node)
		}
		out.Members = append(out.Members, CertifiedMember{c.Members[i], a.UpdateRoot, o.Examples, o.Salt, c.Closed.Updates[i]})
	}
	out.Simulated = out.simulated()
	out.DoesNotProve = doesNotProve(job.Spec.Disclosure, out.Simulated)
	return out, nil
}

func (c *Certificate) simulated() bool {
	is := func(m Member) bool { return slices.Contains(strings.Split(m.Kind, ","), attest.KindSim) }
	return is(c.Aggregator) || slices.ContainsFunc(c.Members, func(m CertifiedMember) bool { return is(m.Member) })
}

// doesNotProve says in words what a reader must not conclude.
func doesNotProve(disclosure string, simulated bool) []string {
	out := []string{
		"what data the participants trained on, or that it was honest: attestation proves code, not data",
		"that a participant's number of examples is true: it is bounded by the job and was fixed before the sum",
		"that the model is good, unbiased or free of what an allowed participant put into its update",
		"anything about an organisation that tampers with its own hardware physically",
	}
	if disclosure == DiscloseFull {
		out = append(out, "that updates stayed secret: the job's terms disclose them")
	} else {
		out = append(out, "the sum itself, to a reader without the updates: attested, not re-run")
	}
	if simulated {
		out = append(out, "anything against the hosts of nodes of kind sim: their evidence is simulated and protects nothing")
	}
	return out
}

// Marshal returns the certificate as indented JSON, as it is kept in files.
func (c *Certificate) Marshal() ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(c); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if buf.Len() > MaxCertificate {
		return nil, fmt.Errorf("certificate: %d bytes, the limit is %d", buf.Len(), MaxCertificate)
	}
	return buf.Bytes(), nil
}

// ParseCertificate decodes a certificate file strictly: it must be what Marshal writes. It
// checks no signature: see Verify.
func ParseCertificate(raw []byte) (*Certificate, error) {
	if len(raw) > MaxCertificate {
		return nil, fmt.Errorf("certificate: %d bytes, the limit is %d", len(raw), MaxCertificate)
	}
	var c Certificate
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("certificate: %w", err)
	}
	if c.Format != certificateFormat {
		return nil, fmt.Errorf("certificate: format %.80q, want %q", c.Format, certificateFormat)
	}
	back, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(back, raw) {
		return nil, fmt.Errorf("certificate: not in the form that meshnode writes")
	}
	return &c, nil
}

// Paths within a job's directory, slash-separated.

// ModelFile is the model of the last committed round.
const ModelFile = "model.safetensors"

// CertificateFile is the certificate of a round.
func CertificateFile(round uint32) string { return fmt.Sprintf("certificate-%d.json", round) }

// RoundModelFile is the model that a round ended in.
func RoundModelFile(round uint32) string { return fmt.Sprintf("models/%d.safetensors", round) }

// UpdateFile is what a participant contributed to a round.
func UpdateFile(round uint32, node identity.NodeRef) string {
	return path.Join("updates", fmt.Sprint(round), fmt.Sprintf("%s.%s.safetensors", node.Org, node.Name))
}
