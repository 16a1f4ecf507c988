package client

import (
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/strictyaml"
	"github.com/attestmesh/meshnode/service"
)

// Policy is what a client demands of a node beyond what the mesh demands. Its zero value
// demands nothing more. The mesh's own policy always holds: no field here admits what the
// organisations have not.
type Policy struct {
	// Organisations whose nodes are accepted; none: every organisation of the mesh.
	Organisations []identity.OrgID
	// Node is the only node accepted, where it is set; it needs exactly one organisation.
	Node identity.NodeName
	// Measurements accepted, of those that the mesh allows; none: all of these.
	Measurements []string
	// Services that must run, and with what.
	Services map[string]Service
	// Exclusive refuses a node that has started anything else than Services names.
	Exclusive bool
	// MaxAge bounds the age of the newest checkpoint; 0: DefaultMaxAge.
	MaxAge time.Duration
	// Reattest is how long a proof is believed; 0: DefaultReattest.
	Reattest time.Duration
}

// Service says what may run under a service's name: one of Programs with one of Models.
type Service struct {
	Programs  []service.Digest // at least one
	Models    []service.Digest // none: any
	Manifests []service.Digest // none: any
}

// policyFile is the YAML of a Policy.
type policyFile struct {
	Organisations []identity.OrgID        `yaml:"organisations"`
	Node          identity.NodeName       `yaml:"node"`
	Measurements  []string                `yaml:"measurements"`
	Services      map[string]serviceEntry `yaml:"services"`
	Exclusive     bool                    `yaml:"exclusive"`
	MaxAge        string                  `yaml:"max_age"`
	Reattest      string                  `yaml:"reattest"`
}

type serviceEntry struct {
	Programs  []string `yaml:"programs"`
	Models    []string `yaml:"models"`
	Manifests []string `yaml:"manifests"`
}

// ReadPolicy reads a policy file: strict YAML, unknown keys refused.
func ReadPolicy(path string) (Policy, error) {
	var f policyFile
	if err := strictyaml.ReadFile(path, &f); err != nil {
		return Policy{}, err
	}
	p, err := f.policy()
	if err == nil {
		err = f.noEmptyList()
	}
	if err == nil {
		err = p.Validate()
	}
	if err != nil {
		return Policy{}, &strictyaml.Error{File: path, Problem: err.Error()}
	}
	return p, nil
}

// noEmptyList refuses lists that are there and name nothing: a program that wrote one did not
// mean any organisation, or whatever the mesh allows.
func (f policyFile) noEmptyList() error {
	for key, empty := range map[string]bool{"organisations": f.Organisations != nil && len(f.Organisations) == 0,
		"measurements": f.Measurements != nil && len(f.Measurements) == 0} {
		if empty {
			return fmt.Errorf("%s: an empty list would mean any; name at least one, or leave it out", key)
		}
	}
	for name, e := range f.Services {
		for key, list := range map[string][]string{"models": e.Models, "manifests": e.Manifests} {
			if list != nil && len(list) == 0 {
				return fmt.Errorf("services.%.32s.%s: an empty list would mean any; name at least one, or leave it out", name, key)
			}
		}
	}
	return nil
}

func (f policyFile) policy() (Policy, error) {
	p := Policy{Organisations: f.Organisations, Node: f.Node, Measurements: f.Measurements, Exclusive: f.Exclusive, Services: map[string]Service{}}
	for name, e := range f.Services {
		var s Service
		for _, list := range []struct {
			key string
			in  []string
			out *[]service.Digest
		}{{"programs", e.Programs, &s.Programs}, {"models", e.Models, &s.Models}, {"manifests", e.Manifests, &s.Manifests}} {
			for i, text := range list.in {
				var d service.Digest
				if err := d.UnmarshalText([]byte(text)); err != nil {
					return Policy{}, fmt.Errorf("services.%.32s.%s[%d]: %w", name, list.key, i, err)
				}
				*list.out = append(*list.out, d)
			}
		}
		p.Services[name] = s
	}
	for _, d := range []struct {
		key  string
		text string
		out  *time.Duration
	}{{"max_age", f.MaxAge, &p.MaxAge}, {"reattest", f.Reattest, &p.Reattest}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil {
			return Policy{}, fmt.Errorf("%s: %.40q is no duration: write 5m or 30s", d.key, d.text)
		}
		if *d.out = v; v == 0 {
			return Policy{}, fmt.Errorf("%s: 0 would mean the default; leave it out", d.key)
		}
	}
	return p, nil
}

// Validate checks every field by itself.
func (p Policy) Validate() error {
	if len(p.Organisations) > maxListed || len(p.Measurements) > maxListed || len(p.Services) > maxServices {
		return fmt.Errorf("more than %d organisations or measurements, or %d services", maxListed, maxServices)
	}
	for _, o := range p.Organisations {
		if err := o.Validate(); err != nil {
			return fmt.Errorf("organisations: %w", err)
		}
	}
	if p.Node != "" {
		if err := p.Node.Validate(); err != nil {
			return fmt.Errorf("node: %w", err)
		}
		if len(p.Organisations) != 1 {
			return fmt.Errorf("node: name exactly one organisation with it, there are %d", len(p.Organisations))
		}
	}
	for _, m := range p.Measurements {
		if raw, err := hex.DecodeString(m); err != nil || len(raw) == 0 || hex.EncodeToString(raw) != m {
			return fmt.Errorf("measurements: %.40q is not lower-case hex", m)
		}
	}
	for name, s := range p.Services {
		if err := service.CheckName(name); err != nil {
			return fmt.Errorf("services: %w", err)
		}
		if len(s.Programs) == 0 {
			return fmt.Errorf("services.%s.programs: name at least one", name)
		}
		if max(len(s.Programs), len(s.Models), len(s.Manifests)) > maxListed {
			return fmt.Errorf("services.%s: lists of more than %d", name, maxListed)
		}
	}
	if p.MaxAge != 0 && (p.MaxAge < minMaxAge || p.MaxAge > maxMaxAge) {
		return fmt.Errorf("max_age: %s, want %s to %s", p.MaxAge, minMaxAge, maxMaxAge)
	}
	if p.Reattest != 0 && (p.Reattest < minReattest || p.Reattest > maxReattest) {
		return fmt.Errorf("reattest: %s, want %s to %s", p.Reattest, minReattest, maxReattest)
	}
	return nil
}

func (p Policy) maxAge() time.Duration {
	if p.MaxAge == 0 {
		return DefaultMaxAge
	}
	return p.MaxAge
}

func (p Policy) reattest() time.Duration {
	if p.Reattest == 0 {
		return DefaultReattest
	}
	return p.Reattest
}

// admits says whether a node's name is accepted.
func (p Policy) admits(ref identity.NodeRef) bool {
	return (len(p.Organisations) == 0 || slices.Contains(p.Organisations, ref.Org)) && (p.Node == "" || p.Node == ref.Name)
}

// wanted prints what admits accepts.
func (p Policy) wanted() string {
	switch {
	case p.Node != "":
		return identity.NodeRef{Org: p.Organisations[0], Name: p.Node}.String()
	case len(p.Organisations) == 1:
		return "a node of " + string(p.Organisations[0])
	}
	return fmt.Sprintf("a node of one of %v", p.Organisations)
}
