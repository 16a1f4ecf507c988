package consensus

import (
	"crypto"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Organisation is one founder, or who was let in since.
type Organisation struct {
	ID    identity.OrgID `json:"id"`
	Roles []string       `json:"roles"` // exactly one of OrgMember, OrgSeat
	Keys  []Key          `json:"keys"`
}

// Key is a public key with its one role.
type Key struct {
	Role   string             `json:"role"`
	Public envelope.PublicKey `json:"public"`
	// NotAfter is when the key ends: it signs nothing that ends later. Zero is never. It is
	// compared with times in the signed bytes, so that a replay needs no clock. From
	// fsm_version 4 on.
	NotAfter time.Time `json:"not_after,omitzero"`
}

// ID returns the key's id: see package envelope. Empty for a key of no known kind.
func (k Key) ID() string {
	id, err := envelope.KeyID(k.Public.PublicKey)
	if err != nil {
		return ""
	}
	return id
}

// outlives reports whether k may sign what ends at a time; zero is nothing that ends.
func (k Key) outlives(end time.Time) bool { return k.NotAfter.IsZero() || !end.After(k.NotAfter) }

// Describe names the key for people: role, id and end.
func (k Key) Describe() string {
	s := k.Role + " key " + k.ID()
	if !k.NotAfter.IsZero() {
		s += " until " + k.NotAfter.Format(time.RFC3339)
	}
	return s
}

// IsMember reports whether o may vote on proposals.
func (o Organisation) IsMember() bool { return slices.Contains(o.Roles, OrgMember) }

// organisations are those of a genesis or of a policy state, sorted by id. What is in it is
// shared: whoever changes one replaces the slice on the way.
type organisations []Organisation

// find returns the organisation named id.
func (os organisations) find(id identity.OrgID) (Organisation, bool) {
	for _, o := range os {
		if o.ID == id {
			return o, true
		}
	}
	return Organisation{}, false
}

// n is the number of member organisations: what governance counts.
func (os organisations) n() int {
	n := 0
	for _, o := range os {
		if o.IsMember() {
			n++
		}
	}
	return n
}

// all returns all keys of one role.
func (os organisations) all(role string) []envelope.Key {
	return os.keys(role, false, time.Time{})
}

// keys returns all keys of one role that may sign what ends at a time, of member
// organisations only if so asked.
func (os organisations) keys(role string, membersOnly bool, end time.Time) []envelope.Key {
	var out []envelope.Key
	for _, o := range os {
		if membersOnly && !o.IsMember() {
			continue
		}
		for _, k := range o.Keys {
			if k.Role == role && k.outlives(end) {
				out = append(out, envelope.Key{Org: o.ID, Public: k.Public.PublicKey})
			}
		}
	}
	return out
}

// orgKeys returns the keys of one role, of one organisation.
func (os organisations) orgKeys(org identity.OrgID, role string, end time.Time) []envelope.Key {
	o, ok := os.find(org)
	if !ok {
		return nil
	}
	return organisations{o}.keys(role, false, end)
}

// owner returns the organisation of a public key, and the key.
func (os organisations) owner(pub crypto.PublicKey) (identity.OrgID, Key, bool) {
	same, ok := pub.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return "", Key{}, false
	}
	for _, o := range os {
		for _, k := range o.Keys {
			if same.Equal(k.Public.PublicKey) {
				return o.ID, k, true
			}
		}
	}
	return "", Key{}, false
}

// ownerOf is owner by key id.
func (os organisations) ownerOf(id string) (identity.OrgID, Key, bool) {
	for _, o := range os {
		for _, k := range o.Keys {
			if k.ID() == id {
				return o.ID, k, true
			}
		}
	}
	return "", Key{}, false
}

// missing returns the organisations that are not among signed.
func (os organisations) missing(signed []identity.OrgID) []identity.OrgID {
	var out []identity.OrgID
	for _, o := range os {
		if !slices.Contains(signed, o.ID) {
			out = append(out, o.ID)
		}
	}
	return out
}

// with returns os with o in place of the organisation of its id, or added in order.
func (os organisations) with(o Organisation) organisations {
	out := slices.Clone(os)
	i, found := slices.BinarySearchFunc(out, o.ID, func(have Organisation, id identity.OrgID) int {
		return strings.Compare(string(have.ID), string(id))
	})
	if found {
		out[i] = o
		return out
	}
	return slices.Insert(out, i, o)
}

// without returns os without the organisation named id.
func (os organisations) without(id identity.OrgID) organisations {
	return slices.DeleteFunc(slices.Clone(os), func(o Organisation) bool { return o.ID == id })
}

// validate demands organisations and keys as a genesis of that version may have them: in
// order, each key with one role under one organisation, and enough members.
func (os organisations) validate(version int) error {
	if len(os) < MinOrganisations || len(os) > MaxOrganisations {
		return fmt.Errorf("organisations: %d, want %d to %d", len(os), MinOrganisations, MaxOrganisations)
	}
	owners := map[string]identity.OrgID{}
	for i, o := range os {
		if i > 0 && os[i-1].ID >= o.ID {
			return fmt.Errorf("organisations: %q after %q, want distinct ids in order", o.ID, os[i-1].ID)
		}
		if err := o.validate(version, owners); err != nil {
			return err
		}
	}
	if n := os.n(); n < MinOrganisations {
		return fmt.Errorf("organisations: %d members, want at least %d", n, MinOrganisations)
	}
	return nil
}

// validate checks one organisation; owners are the keys of those before it and get its own.
func (o Organisation) validate(version int, owners map[string]identity.OrgID) error {
	if err := o.ID.Validate(); err != nil {
		return fmt.Errorf("organisations: %w", err)
	}
	if len(o.Roles) != 1 || o.Roles[0] != OrgMember && o.Roles[0] != OrgSeat {
		return fmt.Errorf("organisation %s: roles %.60q, want exactly one of %q and %q", o.ID, o.Roles, OrgMember, OrgSeat)
	}
	if len(o.Keys) > MaxKeys {
		return fmt.Errorf("organisation %s: %d keys, want at most %d", o.ID, len(o.Keys), MaxKeys)
	}
	have := map[string]int{}
	for _, k := range o.Keys {
		id, err := k.check(version)
		if err != nil {
			return fmt.Errorf("organisation %s: %w", o.ID, err)
		}
		if other, ok := owners[id]; ok {
			return fmt.Errorf("organisation %s: key %s is listed already, for %s: a key has one role and one organisation", o.ID, id[:16], other)
		}
		owners[id] = o.ID
		have[k.Role]++
	}
	if have[KeyGovern] == 0 || have[KeyEnroll] == 0 {
		return fmt.Errorf("organisation %s: %d govern and %d enroll keys, want at least one of each", o.ID, have[KeyGovern], have[KeyEnroll])
	}
	return nil
}

// check demands a known role and a kind of key that it allows, and returns the key's id.
func (k Key) check(version int) (string, error) {
	id, err := envelope.KeyID(k.Public.PublicKey)
	if err != nil {
		return "", err
	}
	switch k.Role {
	case KeyGovern, KeyEmergency:
	case KeyEnroll:
		if _, ok := k.Public.PublicKey.(ed25519.PublicKey); !ok {
			return "", fmt.Errorf("enroll key %s is not Ed25519", id[:16])
		}
	default:
		return "", fmt.Errorf("key %s has role %.20q, want %s, %s or %s", id[:16], k.Role, KeyGovern, KeyEnroll, KeyEmergency)
	}
	if k.NotAfter.IsZero() {
		return id, nil
	}
	if version < fsmGovernance {
		return "", fmt.Errorf("key %s has a not_after, which fsm_version %d does not know", id[:16], version)
	}
	return id, checkTime("key "+id[:16]+" not_after", k.NotAfter)
}

// validateWitnesses demands C2SP verifier keys of distinct names: of two keys under one name no
// verifier knows which counts, and would believe no checkpoint at all.
func validateWitnesses(witnesses []string) error {
	if len(witnesses) > MaxWitnesses {
		return fmt.Errorf("witnesses: %d, want at most %d", len(witnesses), MaxWitnesses)
	}
	for i, w := range witnesses {
		if !witnessPattern.MatchString(w) {
			return fmt.Errorf("witnesses: %.60q is no verifier key of the form name+hash+key", w)
		}
		if slices.ContainsFunc(witnesses[:i], func(o string) bool { return witnessName(o) == witnessName(w) }) {
			return fmt.Errorf("witnesses: %.60q is named twice; a new key replaces the old one", witnessName(w))
		}
	}
	return nil
}

func witnessName(vkey string) string {
	name, _, _ := strings.Cut(vkey, "+")
	return name
}

// ownWitness returns a witness among witnesses whose name is one of the logs of a mesh, or of their
// cosigners, and empty if there is none: as above.
func ownWitness(logOrigin string, witnesses []string) string {
	i := slices.IndexFunc(witnesses, func(w string) bool {
		return witnessName(w) == logOrigin || strings.HasPrefix(w, logOrigin+"/")
	})
	if i < 0 {
		return ""
	}
	return witnessName(witnesses[i])
}

// verify verifies every signature of env by keys, which may sign what ends at a time, and
// returns the distinct organisations that signed. What is signed by another key is refused,
// with what is known of that key.
func (s *PolicyState) verify(env *envelope.Envelope, keys []envelope.Key, claim string, end time.Time) ([]identity.OrgID, error) {
	orgs, err := env.Verify(keys)
	if err == nil {
		return orgs, nil
	}
	for _, sig := range env.Signatures {
		if len(signedBy(&envelope.Envelope{Signatures: []envelope.Signature{sig}}, keys)) > 0 {
			continue
		}
		if why := s.describeKey(sig.KeyID, end); why != "" {
			return nil, refuse(attest.CodeWrongSigner, claim, "a signature by "+why, "keys in force for this alone")
		}
	}
	return nil, refuseErr(attest.CodeWrongSigner, claim, err)
}

// describeKey says what a key is that may not sign; empty for one that nobody has named.
func (s *PolicyState) describeKey(id string, end time.Time) string {
	if org, k, ok := s.orgs.ownerOf(id); ok {
		of := fmt.Sprintf("the %s key %.16s of %s", k.Role, id, org)
		if o, _ := s.orgs.find(org); !o.IsMember() {
			return of + ", a neutral seat"
		}
		if !k.outlives(end) {
			return fmt.Sprintf("%s, which ends at %s, before what it signs", of, k.NotAfter.Format(time.RFC3339))
		}
		return of
	}
	if f, ok := s.formerKey(id); ok {
		return fmt.Sprintf("the %s key %.16s of %s, which was removed", f.Role, id, f.Organisation)
	}
	return ""
}
