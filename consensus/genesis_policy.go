package consensus

import (
	"fmt"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// validateKinds checks kinds and the roots they need.
func (g *Genesis) validateKinds() error {
	uses := map[string]bool{}
	for _, list := range []struct {
		role  string
		kinds []string
	}{{RoleMember, g.Kinds.Member}, {RoleSeat, g.Kinds.Seat}, {RoleAggregator, g.Kinds.Aggregator}} {
		if len(list.kinds) == 0 || len(list.kinds) > 8 {
			return fmt.Errorf("kinds.%s: %d kinds, want 1 to 8", list.role, len(list.kinds))
		}
		for i, k := range list.kinds {
			parts, err := attest.ParseKinds(k)
			if err != nil {
				return fmt.Errorf("kinds.%s: %w", list.role, err)
			}
			if slices.Contains(list.kinds[:i], k) {
				return fmt.Errorf("kinds.%s: %q is listed twice", list.role, k)
			}
			for _, p := range parts {
				// Beside a TEE the TPM's key is believed by the TEE's report alone.
				uses[p] = uses[p] || p != attest.KindVTPM || len(parts) == 1
			}
		}
	}
	if (uses[attest.KindSim] || len(g.Roots.Sim) > 0) && !g.AllowSim {
		return fmt.Errorf("allow_sim: false, but kinds or roots admit simulated evidence")
	}
	for _, r := range []struct {
		kind  string
		roots []RootKey
	}{{attest.KindSim, rootKeys(g.Roots.Sim)}, {attest.KindVTPM, g.Roots.VTPM}} {
		if uses[r.kind] && len(r.roots) == 0 {
			return fmt.Errorf("roots.%s: empty, but kinds admit %s", r.kind, r.kind)
		}
		if err := validateRoots(r.roots); err != nil {
			return fmt.Errorf("roots.%s: %w", r.kind, err)
		}
	}
	return nil
}

func rootKeys(in []envelope.PublicKey) []RootKey {
	var out []RootKey
	for _, k := range in {
		out = append(out, RootKey(k))
	}
	return out
}

func validateRoots(roots []RootKey) error {
	if len(roots) > MaxRoots {
		return fmt.Errorf("%d roots, want at most %d", len(roots), MaxRoots)
	}
	seen := map[string]bool{}
	for _, r := range roots {
		id, err := r.id()
		if err != nil {
			return err
		}
		if seen[id] {
			return fmt.Errorf("root %s is listed twice", id[:16])
		}
		seen[id] = true
	}
	return nil
}

func (g *Genesis) validateEntries() error {
	if len(g.Policy.Entries) > MaxEntries {
		return fmt.Errorf("policy.entries: %d, want at most %d", len(g.Policy.Entries), MaxEntries)
	}
	for i := range g.Policy.Entries {
		e := &g.Policy.Entries[i]
		if err := e.check(); err != nil {
			return fmt.Errorf("policy.entries: %w", err)
		}
		if i > 0 && g.Policy.Entries[i-1].ID >= e.ID {
			return fmt.Errorf("policy.entries: %s after %s, want distinct ids in order", e.ID, g.Policy.Entries[i-1].ID)
		}
		if err := g.admitsEntry(e); err != nil {
			return fmt.Errorf("policy.entries: %w", err)
		}
		if len(e.Supersedes) > 0 {
			return fmt.Errorf("policy.entries: entry %s supersedes others, but genesis is the first policy", e.ID)
		}
	}
	return g.validatePlatforms()
}

func (g *Genesis) validatePlatforms() error {
	p := &g.Policy
	if (p.Floors != nil || p.Denied != nil) && g.FSMVersion < fsmGovernance {
		return g.tooEarly("policy.floors, policy.denied", fsmGovernance)
	}
	if len(p.Floors) > MaxFloors || len(p.Denied) > MaxDenied {
		return fmt.Errorf("policy: %d floors and %d denied products, want at most %d and %d", len(p.Floors), len(p.Denied), MaxFloors, MaxDenied)
	}
	for i, f := range p.Floors {
		if err := (&RaiseFloor{f}).check(); err != nil {
			return fmt.Errorf("policy.floors: %w", err)
		}
		if i > 0 && floorKey(p.Floors[i-1]) >= floorKey(f) || attest.Covered(slices.Delete(slices.Clone(p.Floors), i, i+1), f) {
			return fmt.Errorf("policy.floors: %s: want floors in the order of their JSON of which none covers another", floorKey(f))
		}
	}
	for i, d := range p.Denied {
		if err := checkProduct("policy.denied", d); err != nil {
			return err
		}
		if i > 0 && p.Denied[i-1].String() >= d.String() {
			return fmt.Errorf("policy.denied: %s after %s, want distinct products in the order of their names", d, p.Denied[i-1])
		}
	}
	return nil
}

// platforms is what the first policy demands of hardware.
func (p *FirstPolicy) platforms() platforms {
	out := platforms{floors: slices.Clone(p.Floors), denied: map[string]attest.Product{}}
	for _, d := range p.Denied {
		out.denied[d.String()] = d
	}
	return out
}

// admitsEntry demands that the kind of an entry is admitted for each of its roles, and that
// this mesh knows all of its fields.
func (g *Genesis) admitsEntry(e *Entry) error {
	if len(e.IMA) > 0 && g.FSMVersion < fsmActivation {
		return g.tooEarly("entry "+e.ID+" ima", fsmActivation)
	}
	if e.governs() && g.FSMVersion < fsmGovernance {
		return g.tooEarly("entry "+e.ID, fsmGovernance)
	}
	for _, role := range e.Roles {
		if kinds := g.Kinds.kindsFor(role); !slices.Contains(kinds, e.Kind) {
			return refuse(attest.CodeKindNotAllowed, "entry "+e.ID+" as "+role, e.Kind, fmt.Sprint(kinds))
		}
	}
	return nil
}
