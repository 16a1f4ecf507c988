package monitor

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// Rule names leaves that somebody wants to hear of. Each field that is not empty is a regular
// expression (Go, RE2) that must match the whole of one of the values that the leaf has there;
// a field that a leaf of this kind does not have matches nothing. Severity defaults to notice.
type Rule struct {
	Name string `yaml:"name"`
	// Kind of leaf, as log show prints it: attestation-result, credential, proposal, round, …
	Kind string `yaml:"kind"`
	// Organisation, Node (org/name) and Measurement are those that a leaf is about: the subject of
	// a result or Credential, all who took part in a round, all entries of a proposal.
	Organisation string `yaml:"organisation"`
	Node         string `yaml:"node"`
	Measurement  string `yaml:"measurement"`
	// Verifier (org/name) and Verdict are those of a result.
	Verifier string   `yaml:"verifier"`
	Verdict  string   `yaml:"verdict"`
	Severity Severity `yaml:"severity"`
}

// matcher is a compiled Rule.
type matcher struct {
	Rule
	want map[string]*regexp.Regexp
}

// maxPattern bounds one regular expression; RE2 takes time linear in the input for each.
const maxPattern = 1024

func compileRules(rules []Rule) ([]matcher, error) {
	var out []matcher
	for i, r := range rules {
		if r.Name == "" {
			return nil, fmt.Errorf("rule %d has no name", i)
		}
		if slices.ContainsFunc(out, func(m matcher) bool { return m.Name == r.Name }) {
			return nil, fmt.Errorf("rule %q is there twice", r.Name)
		}
		m := matcher{r, map[string]*regexp.Regexp{}}
		for field, pattern := range map[string]string{"kind": r.Kind, "organisation": r.Organisation, "node": r.Node,
			"measurement": r.Measurement, "verifier": r.Verifier, "verdict": r.Verdict} {
			if pattern == "" {
				continue
			}
			if len(pattern) > maxPattern {
				return nil, fmt.Errorf("rule %q: %s: %d bytes, the limit is %d", r.Name, field, len(pattern), maxPattern)
			}
			re, err := regexp.Compile("^(?:" + pattern + ")$")
			if err != nil {
				return nil, fmt.Errorf("rule %q: %s: %w", r.Name, field, err)
			}
			m.want[field] = re
		}
		if len(m.want) == 0 {
			return nil, fmt.Errorf("rule %q matches nothing: give it a kind, organisation, node, measurement, verifier or verdict", r.Name)
		}
		switch m.Severity {
		case "":
			m.Severity = Notice
		case Notice, Warning, Error:
		default:
			return nil, fmt.Errorf("rule %q: severity %.20q: want notice, warning or error", r.Name, r.Severity)
		}
		out = append(out, m)
	}
	return out, nil
}

func (m matcher) matches(f facts) bool {
	for field, re := range m.want {
		if !slices.ContainsFunc(f.values[field], re.MatchString) {
			return false
		}
	}
	return true
}

// facts are what rules can ask of a leaf.
type facts struct {
	kind    string // short form; "unreadable" of what is no envelope
	name    string // of its subject
	values  map[string][]string
	result  *consensus.AttestationResult // of an attestation-result
	changes []string                     // of what changes the policy, for people
}

func (f *facts) add(field, value string) {
	if value != "" && !slices.Contains(f.values[field], value) {
		f.values[field] = append(f.values[field], value)
	}
}

func (f *facts) party(node fmt.Stringer) {
	f.add("node", node.String())
	org, _, _ := strings.Cut(node.String(), "/")
	f.add("organisation", org)
}

// kindUnreadable is the kind of a leaf that is no envelope.
const kindUnreadable = "unreadable"

// proposalHead is how many lines of consensus.Proposal.Describe precede those of its actions.
const proposalHead = 4

// typePrefix and typeSuffix are around the short name of a kind.
const (
	typePrefix = "https://attestmesh.github.io/meshnode/"
	typeSuffix = "/v1"
)

// factsOf reads what a leaf of a predicate type says of itself, "" being none; whether it may say so is
// the audit's business.
func factsOf(kind string, leaf []byte) facts {
	f := facts{kind: kindUnreadable, values: map[string][]string{}}
	if kind != "" {
		f.kind = kind
		if short, ok := strings.CutPrefix(kind, typePrefix); ok {
			f.kind = strings.TrimSuffix(short, typeSuffix)
		}
	}
	f.add("kind", f.kind)
	if err := f.read(kind, leaf); err != nil {
		f.add("kind", kindUnreadable)
	}
	return f
}

// read fills in what leaves of a kind have.
func (f *facts) read(kind string, leaf []byte) error {
	if kind == "" {
		return errors.New("no envelope")
	}
	if kind != envelope.TypeAttestationResult { // of which there are most, and which name it themselves
		env, err := envelope.Parse(leaf)
		if err != nil {
			return err
		}
		f.name, _ = envelope.SubjectName(env.Payload)
	}
	switch kind {
	case envelope.TypeAttestationResult:
		r, err := consensus.ParseResult(leaf)
		if err != nil {
			return err
		}
		f.result, f.name = r, r.Subject.Node.String()
		f.party(r.Subject.Node)
		f.add("measurement", r.Measurement)
		f.add("verifier", r.Verifier.Node.String())
		f.add("verdict", string(r.Verdict))
	case envelope.TypeCredential:
		c, err := consensus.ParseCredential(leaf)
		if err != nil {
			return err
		}
		f.party(c.Ref())
	case envelope.TypeMembership:
		m, err := consensus.ParseMembership(leaf)
		if err != nil {
			return err
		}
		f.party(m.Node)
	case envelope.TypeProposal:
		p, _, err := consensus.ParseProposal(leaf)
		if err != nil {
			return err
		}
		f.changes = []string{}
		if lines := p.Describe(); len(lines) > proposalHead {
			f.changes = lines[proposalHead:]
		}
		f.changes = append([]string{string(p.Class())}, f.changes...)
		for _, a := range p.Actions {
			if a.AddEntry != nil {
				f.add("measurement", a.AddEntry.Entry.Measurement)
			}
			if a.RemoveEntry != nil {
				f.add("measurement", a.RemoveEntry.Measurement)
			}
			if a.AddOrganisation != nil {
				f.add("organisation", string(a.AddOrganisation.ID))
			}
			if a.RemoveOrganisation != nil {
				f.add("organisation", string(a.RemoveOrganisation.ID))
			}
		}
	case envelope.TypeSuspension:
		x, _, err := consensus.ParseSuspension(leaf)
		if err != nil {
			return err
		}
		f.changes = []string{"suspended by " + string(x.Organisation), "! no data for " + x.Target(), "until " + x.Until.Format(time.RFC3339)}
		f.add("organisation", string(x.Organisation))
		if x.Node != nil {
			f.party(*x.Node)
		}
	case envelope.TypeSuspensionLift:
		x, _, err := consensus.ParseSuspensionLift(leaf)
		if err != nil {
			return err
		}
		f.changes = []string{"+ lift suspension " + x.Suspension.String()}
	case envelope.TypeRound:
		r, err := federated.ParseRound(leaf)
		if err != nil {
			return err
		}
		f.party(r.Aggregator)
		for _, a := range r.Accepted {
			f.party(a.Node)
		}
	default:
		// A kind whose subject is a node names it there.
		if org, node, ok := strings.Cut(f.name, "/"); ok && node != "" {
			f.add("node", f.name)
			f.add("organisation", org)
		}
	}
	return nil
}
