package enroll

import (
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/internal/strictyaml"
)

// Releases is an organisation's own list: which software its nodes may run to be called
// its nodes, and which nodes it has. Being listed admits nobody to the mesh. The zero
// value lists nothing.
//
//	releases:
//	  - measurement: 96 hex characters of lower case
//	    kind: sevsnp
//	    roles: [seat, trainer, aggregator]
//	nodes:
//	  - name: n1
//	    roles: [seat, trainer]
type Releases struct {
	Releases []Release `yaml:"releases"`
	Nodes    []Node    `yaml:"nodes"`
}

// Release is one measurement of one kind with the roles it may hold.
type Release struct {
	Measurement string   `yaml:"measurement"`
	Kind        string   `yaml:"kind"`
	Roles       []string `yaml:"roles"`
}

// Node is one stable name with the roles it may hold.
type Node struct {
	Name  identity.NodeName `yaml:"name"`
	Roles []string          `yaml:"roles"`
}

// LoadReleases reads and checks the strict YAML file at path.
func LoadReleases(path string) (Releases, error) {
	var r Releases
	if err := strictyaml.ReadFile(path, &r); err != nil {
		return Releases{}, err
	}
	if err := r.Validate(); err != nil {
		return Releases{}, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// Validate checks every entry; errors name the field.
func (r Releases) Validate() error {
	if len(r.Releases) > maxEntries || len(r.Nodes) > maxEntries {
		return fmt.Errorf("%d releases and %d nodes, the limit of each is %d", len(r.Releases), len(r.Nodes), maxEntries)
	}
	if len(r.Releases) == 0 {
		return fmt.Errorf("releases: the list is empty, so no node could enrol")
	}
	if len(r.Nodes) == 0 {
		return fmt.Errorf("nodes: the list is empty, so no node could enrol")
	}
	seen := map[string]bool{}
	for i, e := range r.Releases {
		field := fmt.Sprintf("releases[%d]", i)
		if _, err := attest.ParseKinds(e.Kind); err != nil {
			return fmt.Errorf("%s.kind: %w", field, err)
		}
		if err := checkMeasurement(e.Measurement); err != nil {
			return fmt.Errorf("%s.measurement: %w", field, err)
		}
		if err := checkRoles(e.Roles); err != nil {
			return fmt.Errorf("%s.roles: %w", field, err)
		}
		if key := e.Kind + " " + e.Measurement; seen[key] {
			return fmt.Errorf("%s: %.16s… of kind %s is listed twice", field, e.Measurement, e.Kind)
		} else {
			seen[key] = true
		}
	}
	for i, n := range r.Nodes {
		field := fmt.Sprintf("nodes[%d]", i)
		if err := n.Name.Validate(); err != nil {
			return fmt.Errorf("%s.name: %w", field, err)
		}
		if err := checkRoles(n.Roles); err != nil {
			return fmt.Errorf("%s.roles: %w", field, err)
		}
		if seen["node "+string(n.Name)] {
			return fmt.Errorf("%s: %s is listed twice", field, n.Name)
		}
		seen["node "+string(n.Name)] = true
	}
	return nil
}

// checkMeasurement wants a digest in lower-case hex, of SHA-256 to SHA-512.
func checkMeasurement(s string) error {
	raw, err := hex.DecodeString(s)
	if err != nil || s != strings.ToLower(s) || len(raw) < sha512.Size256 || len(raw) > sha512.Size {
		return fmt.Errorf("%.20q is no digest: want 64 to 128 characters of lower-case hex, as meshnode version prints for sim", s)
	}
	return nil
}

// checkRoles wants known roles, each once. Every node is a member, listed or not.
func checkRoles(roles []string) error {
	known := []string{consensus.RoleMember, consensus.RoleSeat, consensus.RoleTrainer, consensus.RoleAggregator}
	for i, role := range roles {
		if !slices.Contains(known, role) {
			return fmt.Errorf("%.40q is none of %s", role, strings.Join(known, ", "))
		}
		if slices.Contains(roles[:i], role) {
			return fmt.Errorf("%s is listed twice", role)
		}
	}
	return nil
}

// grant decides which roles a node of a name gets when it runs a measurement: those it
// asked for and "member", if both its name and its release hold all it asked for.
func (r Releases) grant(name identity.NodeName, claims attest.Claims, asked []string) ([]string, *attest.Reason) {
	node, reason := r.node(name)
	if reason != nil {
		return nil, reason
	}
	i := slices.IndexFunc(r.Releases, func(e Release) bool {
		return e.Kind == claims.Kind && e.Measurement == claims.Measurement
	})
	if i < 0 {
		reason := attest.NewReason(attest.CodeMeasurementNotAllowed, "measurement", claims.Measurement, "a release of kind "+claims.Kind+" on the organisation's own list")
		reason.Remedy = "add the measurement to the enroller's releases file and restart the enroller, or run a listed release"
		return nil, &reason
	}
	granted := consensus.NormaliseRoles(asked)
	for _, role := range granted {
		if role == consensus.RoleMember {
			continue
		}
		if !slices.Contains(node.Roles, role) {
			return nil, roleReason(role, "roles of node "+string(name), node.Roles)
		}
		if !slices.Contains(r.Releases[i].Roles, role) {
			return nil, roleReason(role, "roles of the release", r.Releases[i].Roles)
		}
	}
	return granted, nil
}

func (r Releases) node(name identity.NodeName) (Node, *attest.Reason) {
	i := slices.IndexFunc(r.Nodes, func(n Node) bool { return n.Name == name })
	if i < 0 {
		reason := attest.NewReason(attest.CodeUnknownEntry, "node", string(name), "a node on the organisation's own list")
		reason.Remedy = "add the name under nodes in the enroller's releases file and restart the enroller"
		return Node{}, &reason
	}
	return r.Nodes[i], nil
}

func roleReason(role, what string, have []string) *attest.Reason {
	reason := attest.NewReason(attest.CodeUnknownEntry, "role", role, what+": "+strings.Join(have, ", "))
	reason.Remedy = "grant the role in the enroller's releases file and restart the enroller, or ask for fewer roles"
	return &reason
}
