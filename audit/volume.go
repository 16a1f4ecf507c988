package audit

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// A log holds changes and heartbeats, and nobody can fill it (docs/PROTOCOL.md, "How much is logged"). What one
// boot says of another is logged first, when it has changed, and once in consensus.HeartbeatAfter;
// the replay finds what is not (duplicate, replayed), as it finds more verifiers of one organisation than
// MaxVerifiers on one node (limit) and states that were logged too often (not_derived).
//
// Quotas are counted between ticks, which leave no leaf. But a state leaf says how many commands had been
// ordered, and ticks are commands: between two state leaves there are at most as many ticks as commands
// less those that the leaves there need, and an organisation has had ordered at most its quota for each of
// the stretches that these make. More is a finding (quota). That is a bound and not the rule itself:
// an audit accuses nobody falsely, and who stays below it may have gone over the quota of one tick.
// Nothing is counted before the first state leaf, since quotas begin with the first tick.

// volume counts what was ordered since the last state leaf.
type volume struct {
	at, seq uint64 // where that stands, 0 before the first; and the commands before it
	results int    // leaves of results, of which a command has up to consensus.MaxResults
	others  int    // leaves of other commands
	used    map[account]spent
}

// account is one organisation's use of one quota.
type account struct {
	org   identity.OrgID
	quota consensus.Quota
}

// spent is how much was ordered, the last leaf of it, and the highest limit meanwhile.
type spent struct {
	n     int
	last  uint64
	limit int
}

// leaf counts a leaf that was replayed on s, and finds at a state leaf who had more ordered than all
// quotas before it allow.
func (v *volume) leaf(index uint64, e *entry, s *consensus.State) []transparency.Finding {
	if e.Kind() == envelope.TypeState {
		l, err := consensus.ParseLoggedState(e.Raw())
		if err != nil {
			return nil // Replay says why
		}
		out := v.over(index, l.Seq, s.Limits())
		*v = volume{at: index, seq: l.Seq, used: map[account]spent{}}
		return out
	}
	if v.at == 0 {
		return nil
	}
	switch e.Kind() {
	case envelope.TypeMembership: // follows from another
	case envelope.TypeAttestationResult:
		v.results++
	default:
		v.others++
	}
	q, orgs := s.Charged(e.Leaf)
	for _, org := range orgs {
		a := account{org, q}
		had := v.used[a]
		v.used[a] = spent{had.n + 1, index, max(had.limit, s.Limits().Of(q))}
	}
	return nil
}

// over returns a finding for each account that holds more than there can have been quotas.
func (v *volume) over(index, seq uint64, now consensus.Limits) []transparency.Finding {
	if v.at == 0 || seq < v.seq {
		return nil
	}
	commands := seq - v.seq
	need := uint64(v.others + (v.results+consensus.MaxResults-1)/consensus.MaxResults)
	stretches := commands - min(commands, need) + 1
	var out []transparency.Finding
	for _, a := range v.accounts() {
		used := v.used[a]
		limit := uint64(max(used.limit, now.Of(a.quota)))
		if uint64(used.n) <= limit*stretches {
			continue
		}
		out = append(out, finding(used.last, string(attest.CodeQuota), fmt.Sprintf("%s had %d %s ordered between the state leaves %d and %d, by %d commands, of which at most %d were ticks; %d between two ticks are %d at most",
			a.org, used.n, a.quota, v.at, index, commands, stretches-1, limit, limit*stretches)))
	}
	return out
}

// accounts returns the accounts in order.
func (v *volume) accounts() []account {
	return slices.SortedFunc(maps.Keys(v.used), func(a, b account) int {
		return cmp.Or(cmp.Compare(a.org, b.org), cmp.Compare(a.quota, b.quota))
	})
}

// wireVolume is a volume in a saved Auditor.
type wireVolume struct {
	_        struct{} `cbor:",toarray"`
	At, Seq  uint64
	Results  uint64
	Others   uint64
	Accounts []wireAccount
}

type wireAccount struct {
	_           struct{} `cbor:",toarray"`
	Org, Quota  string
	N, At, Most uint64
}

func (v *volume) wire() wireVolume {
	w := wireVolume{At: v.at, Seq: v.seq, Results: uint64(v.results), Others: uint64(v.others)}
	for _, a := range v.accounts() {
		used := v.used[a]
		w.Accounts = append(w.Accounts, wireAccount{Org: string(a.org), Quota: string(a.quota), N: uint64(used.n), At: used.last, Most: uint64(used.limit)})
	}
	return w
}

func (w *wireVolume) of() volume {
	v := volume{at: w.At, seq: w.Seq, results: int(w.Results), others: int(w.Others), used: map[account]spent{}}
	for _, a := range w.Accounts {
		v.used[account{identity.OrgID(a.Org), consensus.Quota(a.Quota)}] = spent{int(a.N), a.At, int(a.Most)}
	}
	return v
}
