package consensus

import (
	"fmt"

	"github.com/attestmesh/meshnode/internal/identity"
)

// constitutionSpec holds the actions of a draft that change the constitution.
type constitutionSpec struct {
	RotateKey          *rotateKeySpec    `yaml:"rotate_key"`
	AddKey             *orgKeySpec       `yaml:"add_key"`
	RemoveKey          *removeKeySpec    `yaml:"remove_key"`
	AddOrganisation    *orgSpec          `yaml:"add_organisation"`
	RemoveOrganisation *removeOrgSpec    `yaml:"remove_organisation"`
	SetLimits          *limitsSpec       `yaml:"set_limits"`
	SetWitnesses       *setWitnessesSpec `yaml:"set_witnesses"`
}

type rotateKeySpec struct {
	Organisation string `yaml:"organisation"`
	Old          string `yaml:"old"`
	keySpec      `yaml:",inline"`
}

type orgKeySpec struct {
	Organisation string `yaml:"organisation"`
	keySpec      `yaml:",inline"`
}

type removeKeySpec struct {
	Organisation string `yaml:"organisation"`
	Role         string `yaml:"role"`
	ID           string `yaml:"id"`
}

type removeOrgSpec struct {
	ID string `yaml:"id"`
}

// limitsSpec are Limits in YAML.
type limitsSpec struct {
	Nodes       int `yaml:"nodes"`
	Results     int `yaml:"results"`
	Credentials int `yaml:"credentials"`
	Proposals   int `yaml:"proposals"`
	Suspensions int `yaml:"suspensions"`
}

type setWitnessesSpec struct {
	Witnesses []string `yaml:"witnesses"`
}

// fill sets the actions of s in a.
func (s constitutionSpec) fill(a *Action) error {
	if r := s.RotateKey; r != nil {
		k, err := r.key()
		if err != nil {
			return fmt.Errorf("rotate_key: %w", err)
		}
		a.RotateKey = &RotateKey{Organisation: identity.OrgID(r.Organisation), Role: k.Role, Old: r.Old, Public: k.Public, NotAfter: k.NotAfter}
	}
	if r := s.AddKey; r != nil {
		k, err := r.key()
		if err != nil {
			return fmt.Errorf("add_key: %w", err)
		}
		a.AddKey = &AddKey{Organisation: identity.OrgID(r.Organisation), Key: k}
	}
	if r := s.RemoveKey; r != nil {
		a.RemoveKey = &RemoveKey{Organisation: identity.OrgID(r.Organisation), Role: r.Role, ID: r.ID}
	}
	if r := s.AddOrganisation; r != nil {
		o, err := r.organisation()
		if err != nil {
			return fmt.Errorf("add_organisation: %w", err)
		}
		a.AddOrganisation = &AddOrganisation{o}
	}
	if r := s.RemoveOrganisation; r != nil {
		a.RemoveOrganisation = &RemoveOrganisation{identity.OrgID(r.ID)}
	}
	if r := s.SetLimits; r != nil {
		a.SetLimits = &SetLimits{r.limits()}
	}
	if r := s.SetWitnesses; r != nil {
		a.SetWitnesses = &SetWitnesses{append([]string{}, r.Witnesses...)}
	}
	return nil
}

func (s limitsSpec) limits() Limits {
	return Limits(s)
}

func (s keySpec) key() (Key, error) {
	pub, err := parsePublic(s.Public)
	if err != nil {
		return Key{}, fmt.Errorf("%.20s key: %w", s.Role, err)
	}
	end, err := parseTime("not_after", s.NotAfter)
	return Key{Role: s.Role, Public: pub, NotAfter: end}, err
}

func (s orgSpec) organisation() (Organisation, error) {
	o := Organisation{ID: identity.OrgID(s.ID), Roles: s.Roles, Keys: []Key{}}
	if len(o.Roles) == 0 {
		o.Roles = []string{OrgMember}
	}
	for _, ks := range s.Keys {
		k, err := ks.key()
		if err != nil {
			return o, fmt.Errorf("organisation %.40q: %w", s.ID, err)
		}
		o.Keys = append(o.Keys, k)
	}
	return o, nil
}
