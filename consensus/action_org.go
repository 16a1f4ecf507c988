package consensus

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// constitution returns the actions of a that change the constitution.
func (a Action) constitution() []action {
	var set []action
	if a.RotateKey != nil {
		set = append(set, a.RotateKey)
	}
	if a.AddKey != nil {
		set = append(set, a.AddKey)
	}
	if a.RemoveKey != nil {
		set = append(set, a.RemoveKey)
	}
	if a.AddOrganisation != nil {
		set = append(set, a.AddOrganisation)
	}
	if a.RemoveOrganisation != nil {
		set = append(set, a.RemoveOrganisation)
	}
	if a.SetLimits != nil {
		set = append(set, a.SetLimits)
	}
	if a.SetWitnesses != nil {
		set = append(set, a.SetWitnesses)
	}
	return set
}

// RotateKey replaces one key of an organisation by a new one of the same role.
type RotateKey struct {
	Organisation identity.OrgID     `json:"organisation"`
	Role         string             `json:"role"`
	Old          string             `json:"old"` // id of the key that goes, in hex
	Public       envelope.PublicKey `json:"public"`
	NotAfter     time.Time          `json:"not_after,omitzero"` // of the new key
}

func (*RotateKey) class() Class { return ClassConstitution }
func (*RotateKey) since() int   { return fsmGovernance }

func (r *RotateKey) key() Key { return Key{r.Role, r.Public, r.NotAfter} }

func (r *RotateKey) check() error {
	if err := r.Organisation.Validate(); err != nil {
		return fmt.Errorf("rotate_key: %w", err)
	}
	if err := checkHex("rotate_key old", r.Old, 32); err != nil {
		return err
	}
	return checkKey("rotate_key", r.key())
}

func (r *RotateKey) describe() string {
	return fmt.Sprintf("! %s: %s comes in place of key %s%s", r.Organisation, r.key().Describe(), r.Old, voids(r.Role))
}

func (r *RotateKey) apply(next *PolicyState, claim string) error {
	o, i, err := next.findKey(claim, r.Organisation, r.Role, r.Old)
	if err != nil {
		return err
	}
	next.forget(o.ID, o.Keys[i])
	o.Keys[i] = r.key()
	next.setOrganisations(next.orgs.with(o))
	return nil
}

// AddKey gives an organisation one more key.
type AddKey struct {
	Organisation identity.OrgID `json:"organisation"`
	Key
}

func (*AddKey) class() Class { return ClassConstitution }
func (*AddKey) since() int   { return fsmGovernance }

func (a *AddKey) check() error {
	if err := a.Organisation.Validate(); err != nil {
		return fmt.Errorf("add_key: %w", err)
	}
	return checkKey("add_key", a.Key)
}

func (a *AddKey) describe() string {
	return fmt.Sprintf("! %s: one more key, %s", a.Organisation, a.Key.Describe())
}

func (a *AddKey) apply(next *PolicyState, claim string) error {
	o, ok := next.orgs.find(a.Organisation)
	if !ok {
		return unknownOrganisation(claim, a.Organisation)
	}
	if org, k, ok := next.orgs.owner(a.Public.PublicKey); ok {
		return refuse(attest.CodeDuplicate, claim, "the "+k.Describe()+" of "+string(org), "a new key: one has one role and one organisation")
	}
	o.Keys = append(slices.Clone(o.Keys), a.Key)
	next.setOrganisations(next.orgs.with(o))
	return nil
}

// RemoveKey takes a key from an organisation.
type RemoveKey struct {
	Organisation identity.OrgID `json:"organisation"`
	Role         string         `json:"role"`
	ID           string         `json:"id"` // of the key, in hex
}

func (*RemoveKey) class() Class { return ClassConstitution }
func (*RemoveKey) since() int   { return fsmGovernance }

func (r *RemoveKey) check() error {
	if err := r.Organisation.Validate(); err != nil {
		return fmt.Errorf("remove_key: %w", err)
	}
	if !slices.Contains([]string{KeyGovern, KeyEnroll, KeyEmergency}, r.Role) {
		return fmt.Errorf("remove_key: role %.20q, want %s, %s or %s", r.Role, KeyGovern, KeyEnroll, KeyEmergency)
	}
	return checkHex("remove_key id", r.ID, 32)
}

func (r *RemoveKey) describe() string {
	return fmt.Sprintf("! %s: the %s key %s goes%s", r.Organisation, r.Role, r.ID, voids(r.Role))
}

func (r *RemoveKey) apply(next *PolicyState, claim string) error {
	o, i, err := next.findKey(claim, r.Organisation, r.Role, r.ID)
	if err != nil {
		return err
	}
	next.forget(o.ID, o.Keys[i])
	o.Keys = slices.Delete(o.Keys, i, i+1)
	next.setOrganisations(next.orgs.with(o))
	return nil
}

// voids says what the end of a key of a role means besides.
func voids(role string) string {
	if role == KeyEnroll {
		return "; Credentials that it signed are void, its nodes are out until they are enrolled anew"
	}
	return ""
}

// findKey returns an organisation, with keys that may be changed, and the place of one.
func (s *PolicyState) findKey(claim string, org identity.OrgID, role, id string) (Organisation, int, error) {
	o, ok := s.orgs.find(org)
	if !ok {
		return o, 0, unknownOrganisation(claim, org)
	}
	o.Keys = slices.Clone(o.Keys)
	i := slices.IndexFunc(o.Keys, func(k Key) bool { return k.Role == role && k.ID() == id })
	if i < 0 {
		return o, 0, refuse(attest.CodeUnknownKey, claim, fmt.Sprintf("%s has no %s key %.16s", org, role, id), "a key in force")
	}
	return o, i, nil
}

func unknownOrganisation(claim string, id identity.OrgID) error {
	return refuse(attest.CodeUnknownOrganisation, claim, string(id), "an organisation of this mesh")
}

func checkKey(what string, k Key) error {
	if _, err := k.check(fsmGovernance); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// AddOrganisation lets an organisation in. It has a seat, which is empty until one of its
// nodes takes it.
type AddOrganisation struct{ Organisation }

func (*AddOrganisation) class() Class { return ClassConstitution }
func (*AddOrganisation) since() int   { return fsmGovernance }

func (a *AddOrganisation) check() error {
	if err := a.Organisation.validate(fsmGovernance, map[string]identity.OrgID{}); err != nil {
		return fmt.Errorf("add_organisation: %w", err)
	}
	return nil
}

func (a *AddOrganisation) describe() string {
	var keys []string
	for _, k := range a.Keys {
		keys = append(keys, k.Describe())
	}
	return fmt.Sprintf("! organisation %s comes in as %s, with %s", a.ID, strings.Join(a.Roles, " "), strings.Join(keys, ", "))
}

func (a *AddOrganisation) apply(next *PolicyState, claim string) error {
	if _, ok := next.orgs.find(a.ID); ok {
		return refuse(attest.CodeReplayed, claim, "organisation "+string(a.ID)+" is in already", "a new organisation")
	}
	for _, k := range a.Keys {
		if org, have, ok := next.orgs.owner(k.Public.PublicKey); ok {
			return refuse(attest.CodeDuplicate, claim, "the "+have.Describe()+" of "+string(org), "new keys: one has one role and one organisation")
		}
	}
	if len(next.orgs) >= MaxOrganisations {
		return refuse(attest.CodeLimit, claim, fmt.Sprintf("%d organisations", len(next.orgs)), fmt.Sprintf("at most %d", MaxOrganisations))
	}
	next.setOrganisations(next.orgs.with(a.Organisation))
	return nil
}

// RemoveOrganisation puts an organisation out: its keys sign nothing any more, its
// Credentials are void, its nodes are evicted for good and its seat is gone.
type RemoveOrganisation struct {
	ID identity.OrgID `json:"id"`
}

func (*RemoveOrganisation) class() Class { return ClassConstitution }
func (*RemoveOrganisation) since() int   { return fsmGovernance }

func (r *RemoveOrganisation) check() error {
	if err := r.ID.Validate(); err != nil {
		return fmt.Errorf("remove_organisation: %w", err)
	}
	return nil
}

func (r *RemoveOrganisation) describe() string {
	return fmt.Sprintf("! organisation %s goes, with its vote, its seat and all of its nodes", r.ID)
}

func (r *RemoveOrganisation) apply(next *PolicyState, claim string) error {
	o, ok := next.orgs.find(r.ID)
	if !ok {
		return unknownOrganisation(claim, r.ID)
	}
	for _, k := range o.Keys {
		next.forget(o.ID, k)
	}
	next.setOrganisations(next.orgs.without(r.ID))
	return nil
}

// SetLimits replaces all limits. What an organisation has already it keeps.
type SetLimits struct{ Limits }

func (*SetLimits) class() Class { return ClassConstitution }
func (*SetLimits) since() int   { return fsmGovernance }

func (l *SetLimits) check() error {
	if err := l.Limits.validate(fsmGovernance); err != nil {
		return fmt.Errorf("set_limits: %w", err)
	}
	return nil
}

func (l *SetLimits) describe() string { return "! limits of each organisation: " + l.Limits.Describe() }

func (l *SetLimits) apply(next *PolicyState, claim string) error {
	if next.limits == l.Limits {
		return refuse(attest.CodeReplayed, claim, "these limits are in force already", "other limits")
	}
	next.limits = l.Limits
	return nil
}

// SetWitnesses replaces the list of outside witnesses.
type SetWitnesses struct {
	Witnesses []string `json:"witnesses"` // C2SP verifier keys
}

func (*SetWitnesses) class() Class { return ClassConstitution }
func (*SetWitnesses) since() int   { return fsmGovernance }

func (w *SetWitnesses) check() error {
	if w.Witnesses == nil {
		return fmt.Errorf("set_witnesses: want a list, which may be empty")
	}
	if err := validateWitnesses(w.Witnesses); err != nil {
		return fmt.Errorf("set_witnesses: %w", err)
	}
	return nil
}

func (w *SetWitnesses) describe() string {
	if len(w.Witnesses) == 0 {
		return "! no outside witnesses"
	}
	return "! outside witnesses: " + strings.Join(w.Witnesses, ", ")
}

func (w *SetWitnesses) apply(next *PolicyState, claim string) error {
	if slices.Equal(next.witnesses, w.Witnesses) {
		return refuse(attest.CodeReplayed, claim, "these witnesses are in force already", "other witnesses")
	}
	if name := ownWitness(next.genesis.LogOrigin, w.Witnesses); name != "" {
		return refuse(attest.CodeMalformed, claim, "a witness named "+name, "names outside "+next.genesis.LogOrigin)
	}
	next.witnesses = slices.Clone(w.Witnesses)
	return nil
}
