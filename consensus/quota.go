package consensus

import (
	"fmt"
	"maps"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Quotas bound what one organisation can make all others store and check: so much of each kind
// between two ticks, however many nodes it has. What is over a quota is refused like anything
// else, without a trace, and may come again after the next tick. Only what takes effect is
// counted: a refused command costs a signature or two, and nobody's state. The clock begins
// with the first tick, and an audit, which has no ticks, counts nothing.

// Limits are what each organisation may have and may add. Zero numbers of the last four stand
// for the defaults; they came with fsm_version 4, before which nothing is counted by tick.
type Limits struct {
	// Nodes is the largest number of nodes of one organisation.
	Nodes int `json:"nodes"`
	// Results (by its nodes as verifiers), Credentials (and retirements of boots that have none),
	// Proposals (that it has signed) and Suspensions are how many one organisation may have ordered between two ticks.
	Results     int `json:"results,omitempty"`
	Credentials int `json:"credentials,omitempty"`
	Proposals   int `json:"proposals,omitempty"`
	Suspensions int `json:"suspensions,omitempty"`
}

// WithDefaults returns l with the defaults in place of zeros.
func (l Limits) WithDefaults() Limits {
	for _, q := range []struct {
		n    *int
		zero int
	}{{&l.Nodes, DefaultNodes}, {&l.Results, DefaultResults}, {&l.Credentials, DefaultCredentials}, {&l.Proposals, DefaultProposals}, {&l.Suspensions, DefaultSuspensions}} {
		if *q.n == 0 {
			*q.n = q.zero
		}
	}
	return l
}

func (l Limits) validate(version int) error {
	if l.Nodes < 1 || l.Nodes > MaxNodes {
		return fmt.Errorf("limits.nodes: got %d, want 1 to %d", l.Nodes, MaxNodes)
	}
	for _, q := range []struct {
		name string
		n    int
	}{{"results", l.Results}, {"credentials", l.Credentials}, {"proposals", l.Proposals}, {"suspensions", l.Suspensions}} {
		if q.n < 0 || q.n > MaxQuota {
			return fmt.Errorf("limits.%s: got %d, want 1 to %d, or none for the default", q.name, q.n, MaxQuota)
		}
		if q.n != 0 && version < fsmGovernance {
			return fmt.Errorf("limits.%s: fsm_version %d does not know it", q.name, version)
		}
	}
	return nil
}

// Describe lists the limits for people.
func (l Limits) Describe() string {
	l = l.WithDefaults()
	return fmt.Sprintf("%d nodes; between two ticks %d results, %d credentials, %d proposals, %d suspensions", l.Nodes, l.Results, l.Credentials, l.Proposals, l.Suspensions)
}

// quota is a kind of thing that is counted.
type quota int

const (
	quotaResults quota = iota
	quotaCredentials
	quotaProposals
	quotaSuspensions
	quotas
)

func (q quota) String() string {
	return [quotas]string{"results", "credentials", "proposals", "suspensions"}[q]
}

// usage is how much of each quota is used up.
type usage [quotas]int

// limit returns what l allows of q.
func (l Limits) limit(q quota) int {
	l = l.WithDefaults()
	return [quotas]int{l.Results, l.Credentials, l.Proposals, l.Suspensions}[q]
}

// counts reports whether quotas are counted now.
func (s *State) counts() bool { return s.genesis.FSMVersion >= fsmGovernance && !s.now.IsZero() }

// checkQuota refuses what is over a quota of org.
func (s *State) checkQuota(q quota, org identity.OrgID) error {
	used, limit := s.used[org][q], s.limits.limit(q)
	if !s.counts() || used < limit {
		return nil
	}
	return refuse(attest.CodeQuota, fmt.Sprintf("%s of %s", q, org), fmt.Sprintf("%d since tick %d", used, s.tickSeq),
		fmt.Sprintf("at most %d between two ticks; again after tick %d", limit, s.tickSeq+1))
}

// spend counts one of q against org.
func (s *State) spend(q quota, org identity.OrgID) {
	if s.counts() {
		u := s.used[org]
		u[q]++
		s.used[org] = u
	}
}

// OverQuota returns why Apply would refuse all of c for quotas alone, or nil: whoever orders
// commands asks it first and spares the others the work. It judges nothing else, so that a
// state that is behind refuses nothing that would hold.
func (s *State) OverQuota(c Command) *attest.Reason {
	if !s.counts() || len(s.used) == 0 {
		return nil
	}
	lo, hi, ok := envelopeCount(c.Kind)
	if !ok {
		return nil
	}
	raws, err := c.envelopes(lo, hi)
	if err != nil {
		return nil
	}
	var first error
	for _, raw := range raws {
		q, orgs := s.charged(c.Kind, raw)
		over := error(nil)
		for _, org := range orgs {
			if err := s.checkQuota(q, org); err != nil {
				over = err
			}
		}
		if over == nil {
			return nil
		}
		first = over
	}
	if first == nil {
		return nil
	}
	return ReasonOf(first)
}

// charged returns who pays for one envelope of a command, in which quota; nobody for what has
// none or cannot be decoded. No signature is checked.
func (s *State) charged(kind Kind, raw []byte) (quota, []identity.OrgID) {
	switch kind {
	case KindResults:
		if r, err := ParseResult(raw); err == nil {
			return quotaResults, []identity.OrgID{r.Verifier.Node.Org}
		}
	case KindCredential:
		if c, err := ParseCredential(raw); err == nil {
			return quotaCredentials, []identity.OrgID{c.Organisation}
		}
	case KindSuspension:
		if x, _, err := ParseSuspension(raw); err == nil {
			return quotaSuspensions, []identity.OrgID{x.Organisation}
		}
	case KindProposal:
		if _, env, err := ParseProposal(raw); err == nil {
			return quotaProposals, signedBy(env, s.orgs.all(KeyGovern))
		}
	}
	return 0, nil
}

// Quota names a kind of thing of which an organisation has so many ordered between two ticks:
// "results", "credentials", "proposals" or "suspensions".
type Quota string

// Of returns how many of q the limits allow between two ticks.
func (l Limits) Of(q Quota) int {
	for i := range quotas {
		if i.String() == string(q) {
			return l.limit(i)
		}
	}
	return 0
}

// Charged returns as what an ordered leaf was counted, and against whom, for whoever has the leaves
// and not the ticks; nobody for what is not counted, or not always. No signature is checked beyond
// those that ParseLeaf has.
func (s *State) Charged(l *Leaf) (Quota, []identity.OrgID) {
	var kind Kind
	switch l.kind {
	case envelope.TypeAttestationResult:
		if l.result == nil {
			return "", nil
		}
		return Quota(quotaResults.String()), []identity.OrgID{l.result.Verifier.Node.Org}
	case envelope.TypeCredential:
		kind = KindCredential
	case envelope.TypeProposal:
		kind = KindProposal
	case envelope.TypeSuspension:
		kind = KindSuspension
	default:
		return "", nil
	}
	q, orgs := s.charged(kind, l.raw)
	return Quota(q.String()), orgs
}

type usageImage struct {
	_            struct{} `cbor:",toarray"`
	Organisation string
	Used         []int // in the order of the quotas
}

// quotaSection is what is used of quotas, in the digest of a state.
func (s *State) quotaSection() section {
	im := []usageImage{}
	for _, org := range slices.Sorted(maps.Keys(s.used)) {
		u := s.used[org]
		im = append(im, usageImage{Organisation: string(org), Used: u[:]})
	}
	return section{Name: "quotas", Image: im}
}

// quotaPart is the same in an encoded state.
func quotaPart() part {
	return part{"quotas",
		func(s *State) any { return s.quotaSection().Image },
		func(s *State, raw []byte) error {
			var im []usageImage
			if err := images.decode(raw, &im); err != nil {
				return err
			}
			for _, u := range im {
				if len(u.Used) != int(quotas) {
					return fmt.Errorf("%d quotas of %.40q, want %d", len(u.Used), u.Organisation, int(quotas))
				}
				s.used[identity.OrgID(u.Organisation)] = usage(u.Used)
			}
			return nil
		}}
}
