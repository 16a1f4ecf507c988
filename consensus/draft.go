package consensus

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/strictyaml"
)

// draftSpec is a proposal as a person writes it. It holds everything that gets signed, so
// that two people who approve copies of one draft sign the same bytes.
type draftSpec struct {
	MeshID            string       `yaml:"mesh_id"`
	Incarnation       uint64       `yaml:"incarnation"`
	Base              uint64       `yaml:"base"`
	Nonce             string       `yaml:"nonce"`
	Created           string       `yaml:"created"`
	Expires           string       `yaml:"expires"`
	ConfirmQuorumLoss bool         `yaml:"confirm_quorum_loss"`
	Actions           []actionSpec `yaml:"actions"`
}

type actionSpec struct {
	AddEntry    *addSpec    `yaml:"add_entry"`
	RemoveEntry *removeSpec `yaml:"remove_entry"`

	constitutionSpec `yaml:",inline"`
	platformSpecs    `yaml:",inline"`
}

type addSpec struct {
	entrySpec `yaml:",inline"`
	Readmit   bool `yaml:"readmit"`
}

type removeSpec struct {
	ID          string `yaml:"id"`
	Measurement string `yaml:"measurement"`
}

// ParseDraft decodes a draft file called name in errors and returns the payload to sign.
func ParseDraft(name string, data []byte) ([]byte, error) {
	var s draftSpec
	if err := strictyaml.Decode(name, data, &s); err != nil {
		return nil, err
	}
	p, err := s.proposal()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	payload, err := p.Payload()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return payload, nil
}

func (s *draftSpec) proposal() (*Proposal, error) {
	p := &Proposal{Incarnation: identity.Incarnation(s.Incarnation), Base: s.Base, Nonce: s.Nonce, ConfirmQuorumLoss: s.ConfirmQuorumLoss, Actions: []Action{}}
	var err error
	if p.MeshID, err = identity.ParseMeshID(s.MeshID); err != nil {
		return nil, fmt.Errorf("mesh_id: %w", err)
	}
	if p.Created, err = parseTime("created", s.Created); err != nil {
		return nil, err
	}
	if p.Expires, err = parseTime("expires", s.Expires); err != nil {
		return nil, err
	}
	for i, as := range s.Actions {
		var a Action
		if as.AddEntry != nil {
			e, err := as.AddEntry.entry()
			if err != nil {
				return nil, fmt.Errorf("actions: %d: %w", i, err)
			}
			a.AddEntry = &AddEntry{Entry: e, Readmit: as.AddEntry.Readmit}
		}
		if as.RemoveEntry != nil {
			a.RemoveEntry = &RemoveEntry{ID: as.RemoveEntry.ID, Measurement: as.RemoveEntry.Measurement}
		}
		if err := as.fill(&a); err != nil {
			return nil, fmt.Errorf("actions: %d: %w", i, err)
		}
		if err := as.platformSpecs.set(&a); err != nil {
			return nil, fmt.Errorf("actions: %d: %w", i, err)
		}
		p.Actions = append(p.Actions, a)
	}
	return p, nil
}

// NewDraft returns the text of a draft on the present base, with no actions yet. It stays
// open for a day; the person may change that up to MaxProposalLifetime.
func (s *PolicyState) NewDraft(nonce [16]byte, now time.Time) []byte {
	now = now.UTC().Truncate(time.Second)
	var b strings.Builder
	fmt.Fprintf(&b, "mesh_id: %s\n", s.genesis.MeshID())
	fmt.Fprintf(&b, "incarnation: %d\n", s.incarnation)
	fmt.Fprintf(&b, "base: %d\n", s.base)
	fmt.Fprintf(&b, "nonce: %q\n", hex.EncodeToString(nonce[:]))
	fmt.Fprintf(&b, "created: %s\n", now.Format(time.RFC3339))
	fmt.Fprintf(&b, "expires: %s\n", now.Add(24*time.Hour).Format(time.RFC3339))
	b.WriteString("# - add_entry: {kind: KIND, measurement: HEX, roles: [member, trainer]}\n")
	b.WriteString("# - remove_entry: {measurement: HEX}\n")
	b.WriteString("# - raise_floor, deny_product, limit_hardware and what else is about hardware: docs/POLICIES.md\n")
	b.WriteString("actions: []\n")
	return []byte(b.String())
}
