package consensus

import (
	"cmp"
	"crypto"
	"crypto/ed25519"
	"fmt"
	"iter"
	"reflect"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// The constitution is who signs what: organisations, their keys and roles, limits and
// witnesses. It starts as genesis's and is changed by proposals of class constitution. The
// thresholds are formulas over it and are in no policy: see NarrowThreshold and WidenThreshold.

// FormerKey is a key that was removed. It signs nothing new and never comes back: what it
// signed can be told for ever from what its organisation signs since.
type FormerKey struct {
	ID           string // as Key.ID
	Organisation identity.OrgID
	Role         string
	public       envelope.PublicKey // verifies what it signed while it was in force, when a state is restored
}

// everKeys returns the keys that org has or had in one role: for what was ordered already.
func (s *PolicyState) everKeys(org identity.OrgID, role string) []envelope.Key {
	keys := s.OrgKeys(org, role)
	for _, f := range s.former {
		if f.Organisation == org && f.Role == role {
			keys = append(keys, envelope.Key{Org: org, Public: f.public.PublicKey})
		}
	}
	return keys
}

// Organisations returns those in force, sorted by id.
func (s *PolicyState) Organisations() []Organisation { return slices.Clone(s.orgs) }

// Organisation returns the organisation in force named id.
func (s *PolicyState) Organisation(id identity.OrgID) (Organisation, bool) { return s.orgs.find(id) }

// OrgKeys returns the keys in force of one role, of one organisation.
func (s *PolicyState) OrgKeys(org identity.OrgID, role string) []envelope.Key {
	o, ok := s.orgs.find(org)
	if !ok {
		return nil
	}
	return organisations{o}.all(role)
}

// GovernKeys returns the govern keys in force of all organisations, neutral seats' too.
func (s *PolicyState) GovernKeys() []envelope.Key { return s.orgs.all(KeyGovern) }

// KeyOwner returns the organisation and role of a public key in force.
func (s *PolicyState) KeyOwner(pub crypto.PublicKey) (identity.OrgID, string, bool) {
	org, k, ok := s.orgs.owner(pub)
	return org, k.Role, ok
}

// KeyEnds returns when a public key in force ends; zero if never, or if it is not in force.
func (s *PolicyState) KeyEnds(pub crypto.PublicKey) time.Time {
	_, k, _ := s.orgs.owner(pub)
	return k.NotAfter
}

// FormerKeys returns the keys that were removed, sorted by id.
func (s *PolicyState) FormerKeys() []FormerKey { return slices.Clone(s.former) }

// Limits returns the limits in force.
func (s *PolicyState) Limits() Limits { return s.limits }

// Witnesses returns the C2SP verifier keys of outside witnesses in force.
func (s *PolicyState) Witnesses() []string { return slices.Clone(s.witnesses) }

// N returns the number of organisations that governance counts.
func (s *PolicyState) N() int { return s.orgs.n() }

// setOrganisations puts orgs in force and indexes their enroll keys.
func (s *PolicyState) setOrganisations(orgs organisations) {
	s.orgs, s.enrollers = orgs, map[string]identity.OrgID{}
	for _, o := range orgs {
		for _, k := range o.Keys {
			if k.Role == KeyEnroll {
				s.enrollers[k.ID()] = o.ID
			}
		}
	}
}

// formerKey returns the removed key named id.
func (s *PolicyState) formerKey(id string) (FormerKey, bool) {
	i, ok := slices.BinarySearchFunc(s.former, id, func(k FormerKey, id string) int { return cmp.Compare(k.ID, id) })
	if !ok {
		return FormerKey{}, false
	}
	return s.former[i], true
}

// knows reports whether an organisation is in force or was.
func (s *PolicyState) knows(org identity.OrgID) bool {
	_, in := s.orgs.find(org)
	return in || slices.ContainsFunc(s.former, func(k FormerKey) bool { return k.Organisation == org })
}

// forget notes that a key of org was removed.
func (s *PolicyState) forget(org identity.OrgID, k Key) {
	f := FormerKey{k.ID(), org, k.Role, k.Public}
	i, _ := slices.BinarySearchFunc(s.former, f.ID, func(k FormerKey, id string) int { return cmp.Compare(k.ID, id) })
	s.former = slices.Insert(slices.Clone(s.former), i, f)
}

// checkConstitution demands a constitution that a genesis could have, and keys of its own for
// every organisation.
func (s *PolicyState) checkConstitution() error {
	if n := s.orgs.n(); n < MinOrganisations {
		return refuse(attest.CodeUnreachableThreshold, "organisations", fmt.Sprintf("%d members left", n), fmt.Sprintf("at least %d", MinOrganisations))
	}
	if err := s.orgs.validate(s.genesis.FSMVersion); err != nil {
		return refuseErr(attest.CodeMalformed, "constitution", err)
	}
	for _, o := range s.orgs {
		for _, k := range o.Keys {
			if f, ok := s.formerKey(k.ID()); ok {
				return refuse(attest.CodeReplayed, fmt.Sprintf("%s key %.16s of %s", k.Role, f.ID, o.ID), "removed from "+string(f.Organisation)+" before", "a new key")
			}
		}
	}
	if len(s.former) > MaxFormerKeys {
		return refuse(attest.CodeLimit, "removed keys", fmt.Sprint(len(s.former)), fmt.Sprintf("at most %d", MaxFormerKeys))
	}
	if s.bootstrap == nil {
		return nil
	}
	used := []ed25519.PublicKey{s.LogKey()}
	for _, c := range s.bootstrap.seats {
		used = append(used, c.CosignerKey())
	}
	for _, key := range used {
		if org, k, ok := s.orgs.owner(key); ok {
			return refuse(attest.CodeDuplicate, k.Describe()+" of "+string(org), "the log's key or a seat's cosigner key", "a key of its own")
		}
	}
	return nil
}

// classifyConstitution says whether anything of the constitution differs.
func classifyConstitution(before, after *PolicyState) Class {
	if before.limits != after.limits || !slices.Equal(before.witnesses, after.witnesses) || !sameOrganisations(before.orgs, after.orgs) {
		return ClassConstitution
	}
	return ClassNarrow
}

func sameOrganisations(a, b organisations) bool {
	return slices.EqualFunc(a, b, func(a, b Organisation) bool {
		return a.ID == b.ID && slices.Equal(a.Roles, b.Roles) && slices.EqualFunc(a.Keys, b.Keys, func(a, b Key) bool { return reflect.DeepEqual(a, b) })
	})
}

// count verifies every signature of a proposal and demands enough distinct member
// organisations. Too few come with the error.
//
// A change of the constitution needs the widen threshold of the organisations before it, by
// their keys before it, and that of those after it, by their keys after it. Every govern key
// that it adds must have signed too: a key that nobody holds would lock its organisation out,
// and be noticed when it is needed. An organisation that replaces keys of its own and nothing
// else, and signs with one of its keys before, needs the narrow threshold: the set of those
// who decide stays the same.
//
// A narrowing does not go stale by a change of keys: signatures by govern keys that were
// removed since it was signed are passed over, and the others are counted.
func (s *PolicyState) count(env *envelope.Envelope, c *change) ([]identity.OrgID, error) {
	end := c.proposal.Expires
	before := s.orgs.keys(KeyGovern, true, end)
	if c.class == ClassConstitution {
		return s.countConstitution(env, c, before)
	}
	passed := ""
	if c.class == ClassNarrow {
		if kept := s.withoutFormer(env); kept != env {
			passed = fmt.Sprintf("; %d signatures by keys that were removed since", len(env.Signatures)-len(kept.Signatures))
			env = kept
		}
	}
	orgs, err := s.verify(env, before, "proposal", end)
	if err != nil {
		return nil, err
	}
	n, want := s.N(), WidenThreshold(s.N())
	if c.class == ClassNarrow {
		want = NarrowThreshold(n)
	}
	if len(orgs) < want {
		return orgs, refuse(attest.CodeThreshold, "proposal", fmt.Sprintf("%d organisations %s%s", len(orgs), orgs, passed), fmt.Sprintf("%d of %d to %s", want, n, c.class))
	}
	return orgs, nil
}

func (s *PolicyState) countConstitution(env *envelope.Envelope, c *change, before []envelope.Key) ([]identity.OrgID, error) {
	end := c.proposal.Expires
	after, added := c.next.orgs.keys(KeyGovern, true, end), s.addedKeys(c.next)
	orgs, err := s.verify(env, joinKeys(before, after, added), "proposal", end)
	if err != nil {
		return nil, err
	}
	for _, k := range added {
		if len(signedBy(env, []envelope.Key{k})) == 0 {
			id, _ := envelope.KeyID(k.Public) // validated
			return orgs, refuse(attest.CodeThreshold, "proposal", fmt.Sprintf("no signature by the new govern key %.16s of %s", id, k.Org), "one by every govern key that it adds")
		}
	}
	for _, side := range []struct {
		keys []envelope.Key
		n    int
		of   string
	}{{before, s.N(), "before"}, {after, c.next.N(), "after"}} {
		signed := signedBy(env, side.keys)
		want := WidenThreshold(side.n)
		if own, ok := c.proposal.rotates(); ok && slices.Contains(signedBy(env, before), own) {
			want = NarrowThreshold(side.n)
		}
		if len(signed) < want {
			return orgs, refuse(attest.CodeThreshold, "proposal", fmt.Sprintf("%d organisations %s by their keys %s the change", len(signed), signed, side.of),
				fmt.Sprintf("%d of the %d there are %s it", want, side.n, side.of))
		}
	}
	return orgs, nil
}

// Brings returns whose key pub becomes by p, and with which role.
func (p *Proposal) Brings(pub crypto.PublicKey) (identity.OrgID, string, bool) {
	id, err := envelope.KeyID(pub)
	if err != nil {
		return "", "", false
	}
	for org, keys := range p.brings() {
		for _, k := range keys {
			if k.ID() == id {
				return org, k.Role, true
			}
		}
	}
	return "", "", false
}

// brings yields the organisations that get keys by p, and the keys, in the order of the actions.
func (p *Proposal) brings() iter.Seq2[identity.OrgID, []Key] {
	return func(yield func(identity.OrgID, []Key) bool) {
		for _, a := range p.Actions {
			var org identity.OrgID
			var keys []Key
			switch {
			case a.RotateKey != nil:
				org, keys = a.RotateKey.Organisation, []Key{a.RotateKey.key()}
			case a.AddKey != nil:
				org, keys = a.AddKey.Organisation, []Key{a.AddKey.Key}
			case a.AddOrganisation != nil:
				org, keys = a.AddOrganisation.ID, a.AddOrganisation.Keys
			default:
				continue
			}
			if !yield(org, keys) {
				return
			}
		}
	}
}

// rotates returns the organisation whose keys are replaced, if p does nothing else.
func (p *Proposal) rotates() (identity.OrgID, bool) {
	var own identity.OrgID
	for _, a := range p.Actions {
		if a.RotateKey == nil || own != "" && a.RotateKey.Organisation != own {
			return "", false
		}
		own = a.RotateKey.Organisation
	}
	return own, own != ""
}

// addedKeys returns the govern keys that next has and s has not.
func (s *PolicyState) addedKeys(next *PolicyState) []envelope.Key {
	return slices.DeleteFunc(next.orgs.all(KeyGovern), func(k envelope.Key) bool {
		_, _, ok := s.orgs.owner(k.Public)
		return ok
	})
}

// joinKeys returns every key once.
func joinKeys(lists ...[]envelope.Key) []envelope.Key {
	var out []envelope.Key
	have := map[string]bool{}
	for _, k := range slices.Concat(lists...) {
		if id, err := envelope.KeyID(k.Public); err == nil && !have[id] {
			have[id] = true
			out = append(out, k)
		}
	}
	return out
}

// signedBy returns the distinct organisations of those keys that have signed, sorted. The
// signatures were verified.
func signedBy(env *envelope.Envelope, keys []envelope.Key) []identity.OrgID {
	var out []identity.OrgID
	for _, k := range keys {
		id, err := envelope.KeyID(k.Public)
		if err == nil && slices.ContainsFunc(env.Signatures, func(sig envelope.Signature) bool { return sig.KeyID == id }) {
			out = append(out, k.Org)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// withoutFormer returns env without the signatures by govern keys that were removed.
func (s *PolicyState) withoutFormer(env *envelope.Envelope) *envelope.Envelope {
	former := func(sig envelope.Signature) bool {
		f, ok := s.formerKey(sig.KeyID)
		return ok && f.Role == KeyGovern
	}
	if !slices.ContainsFunc(env.Signatures, former) {
		return env
	}
	return &envelope.Envelope{Payload: env.Payload, Signatures: slices.DeleteFunc(slices.Clone(env.Signatures), former)}
}

type organisationImage struct {
	_     struct{} `cbor:",toarray"`
	ID    string
	Roles []string
	Keys  []keyImage
}

type keyImage struct {
	_        struct{} `cbor:",toarray"`
	Role     string
	ID       string // which names the key
	NotAfter int64  // Unix ms, 0 for never
}

type constitutionImage struct {
	_             struct{} `cbor:",toarray"`
	Organisations []organisationImage
	Limits        []int
	Witnesses     []string
	Former        []formerImage
}

type formerImage struct {
	_            struct{} `cbor:",toarray"`
	ID           string
	Organisation string
	Role         string
}

// constitutionSection is the constitution in the digest of a policy state.
func (s *PolicyState) constitutionSection() section {
	l := s.limits
	// No list is nil: an empty one has one encoding, wherever the state comes from.
	im := constitutionImage{Organisations: []organisationImage{}, Limits: []int{l.Nodes, l.Results, l.Credentials, l.Proposals, l.Suspensions},
		Witnesses: append([]string{}, s.witnesses...), Former: []formerImage{}}
	for _, o := range s.orgs {
		oi := organisationImage{ID: string(o.ID), Roles: o.Roles, Keys: []keyImage{}}
		for _, k := range o.Keys {
			ki := keyImage{Role: k.Role, ID: k.ID()}
			if !k.NotAfter.IsZero() {
				ki.NotAfter = k.NotAfter.UnixMilli()
			}
			oi.Keys = append(oi.Keys, ki)
		}
		im.Organisations = append(im.Organisations, oi)
	}
	for _, f := range s.former {
		im.Former = append(im.Former, formerImage{ID: f.ID, Organisation: string(f.Organisation), Role: f.Role})
	}
	return section{Name: "constitution", Image: im}
}
