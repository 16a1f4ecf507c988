package audit

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// Codes of findings about disclosed evidence.
const (
	CodeEvidenceMismatch = "evidence_mismatch" // a disclosed file is not what its result commits to
	CodeFalseResult      = "false_result"      // a result says what its evidence does not
	CodeEvidenceReused   = "evidence_reused"   // one quote is behind results on two peers
	CodeEvidenceWithheld = "evidence_withheld" // not disclosed, where Options.RequireDisclosed asks for it
)

// Reappraised is what disclosed evidence says about the results of a log.
type Reappraised struct {
	// Results are those in the log; Confirmed of them are what their evidence says.
	Results   int `json:"results"`
	Confirmed int `json:"confirmed"`
	// Withheld are the affirming results whose evidence was not disclosed, at WithheldLeaves; of
	// these the first maxListed.
	Withheld       int      `json:"withheld"`
	WithheldLeaves []uint64 `json:"withheld_leaves"`
	// Undecided are results whose evidence was disclosed and does not decide, the first maxListed.
	Undecided     int        `json:"undecided"`
	UndecidedList []Unjudged `json:"undecided_list"`
}

// Unjudged is a result that its disclosed evidence neither confirms nor contradicts.
type Unjudged struct {
	Leaf    uint64 `json:"leaf"`
	Message string `json:"message"`
}

const (
	// maxListed bounds the lists of a Reappraised; the rest is counted.
	maxListed = 100
	// maxQuotes bounds the quotes that are remembered, to tell one that comes back.
	maxQuotes = 1 << 18
	// dueSlack is how much later than by its own clock a verifier may let a demand bind that comes
	// due by time: it waits for the tick.
	dueSlack = 3*consensus.TickInterval + consensus.ClockSkew
)

// reappraisal holds the results of a log against the evidence behind them:
//
//   - The evidence is what the result commits to. A file that is not is found.
//   - Behind an affirming result it is genuine under genesis' roots at the time of the result and
//     by the attestation key in the subject's Credential, if that names one; it shows the kind and the
//     measurement of the result; and the policy at that place in the log, with the entry that the
//     result names, affirms it, hardware and TCB floors included. A result may name an earlier
//     epoch, and is then also held against the policy of that. Anything else is a false result.
//   - Behind a result of another verdict, it shows the measurement that the result names, if it
//     is genuine. Why a verifier refused is not judged: it may have heard what no leaf says.
//   - One quote stands behind results on one peer.
//
// Evidence was verified when a link began, and later results about the same link are by what it showed
// then: it is verified at the time of the first disclosed result it is behind. If that is too
// late for the collateral that came with it, the result is undecided. So is one on a seat that a demand
// put out which came due by time: whether it was spared, only ordered time says.
type reappraisal struct {
	e        *Evidence
	required bool
	out      Reappraised
	verified map[[16]byte]time.Time       // when evidence was genuine first
	quoted   map[[16]byte]identity.PeerID // whom a quote is about
	epochs   map[identity.Epoch]int       // length of the policy chain
	older    *consensus.PolicyState       // of the epoch asked for last
}

func newReappraisal(opts Options) *reappraisal {
	if opts.Disclosed == nil {
		return nil
	}
	return &reappraisal{e: opts.Disclosed, required: opts.RequireDisclosed,
		out:      Reappraised{WithheldLeaves: []uint64{}, UndecidedList: []Unjudged{}},
		verified: map[[16]byte]time.Time{}, quoted: map[[16]byte]identity.PeerID{}, epochs: map[identity.Epoch]int{}}
}

// report returns what came of it, nil where no evidence was disclosed.
func (x *reappraisal) report() *Reappraised {
	if x == nil {
		return nil
	}
	return &x.out
}

// leaf is called after each leaf that the replay found as it should be, with the state that
// this leads to.
func (x *reappraisal) leaf(seen Seen) []transparency.Finding {
	index, s := seen.Index, seen.State
	if x == nil || s == nil {
		return nil
	}
	if _, known := x.epochs[s.Epoch()]; !known {
		x.epochs[s.Epoch()] = len(s.PolicyChain())
	}
	res := seen.Result()
	if res == nil {
		return nil // or the replay says why it is none
	}
	x.out.Results++
	raw, err := x.e.open(res)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(raw) == 0:
		return x.withheld(index, res)
	case errors.Is(err, errForeign):
		return []transparency.Finding{finding(index, CodeEvidenceMismatch, fmt.Sprintf("the evidence that was disclosed behind the result of %s on %s: %v", res.Verifier.Node, res.Subject.Node, err))}
	case err != nil:
		return x.undecided(index, err.Error())
	}
	claims, err := x.verify(s.Genesis(), raw, res)
	if err != nil {
		return x.notGenuine(index, res, err)
	}
	if why := x.reused(claims, res); why != "" {
		return []transparency.Finding{finding(index, CodeEvidenceReused, why)}
	}
	if res.Measurement != "" && claims.Measurement != res.Measurement {
		return x.false(index, res, "measurement "+short(claims.Measurement)+" where the result names "+short(res.Measurement))
	}
	if res.Verdict == attest.VerdictAffirming {
		if out, sure := x.affirmed(index, res, claims, s); !sure || out != nil {
			return out
		}
	}
	x.out.Confirmed++
	return nil
}

func short(hex string) string { return fmt.Sprintf("%.16s…", hex) }

func (x *reappraisal) withheld(index uint64, res *consensus.AttestationResult) []transparency.Finding {
	if res.Verdict != attest.VerdictAffirming {
		return nil
	}
	x.out.Withheld++
	if len(x.out.WithheldLeaves) < maxListed {
		x.out.WithheldLeaves = append(x.out.WithheldLeaves, index)
	}
	if !x.required {
		return nil
	}
	return []transparency.Finding{finding(index, CodeEvidenceWithheld, fmt.Sprintf("%s has not disclosed the evidence behind its affirming result on %s", res.Verifier.Node, res.Subject.Node))}
}

func (x *reappraisal) undecided(index uint64, why string) []transparency.Finding {
	x.out.Undecided++
	if len(x.out.UndecidedList) < maxListed {
		x.out.UndecidedList = append(x.out.UndecidedList, Unjudged{index, why})
	}
	return nil
}

func (x *reappraisal) false(index uint64, res *consensus.AttestationResult, shows string) []transparency.Finding {
	return []transparency.Finding{finding(index, CodeFalseResult, fmt.Sprintf("%s found %s %s, but the evidence that it commits to shows: %s", res.Verifier.Node, res.Subject.Node, res.Verdict, shows))}
}

// verify verifies evidence at the time of the first result that it is behind.
func (x *reappraisal) verify(g *consensus.Genesis, raw []byte, res *consensus.AttestationResult) (attest.Claims, error) {
	sum := sha256.Sum256(raw)
	key := [16]byte(sum[:16])
	began := *res
	if at, ok := x.verified[key]; ok {
		began.At = at
	}
	claims, err := x.e.verify(g, raw, &began)
	if err == nil && len(x.verified) < maxQuotes {
		x.verified[key] = began.At
	}
	return claims, err
}

func (x *reappraisal) notGenuine(index uint64, res *consensus.AttestationResult, err error) []transparency.Finding {
	var refused *attest.Error
	late := errors.As(err, &refused) && (refused.Reason.Code == attest.CodeCollateralStale || refused.Reason.Code == attest.CodeCollateralMissing)
	switch {
	case late:
		return x.undecided(index, err.Error())
	case res.Verdict == attest.VerdictAffirming:
		return x.false(index, res, err.Error())
	}
	x.out.Confirmed++ // it was refused, and is refused now
	return nil
}

// reused says whom else a quote is about, or "". A quote covers the key of the peer that shows it.
func (x *reappraisal) reused(claims attest.Claims, res *consensus.AttestationResult) string {
	if claims.ReportData == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(claims.Kind + " " + claims.ReportData))
	key := [16]byte(sum[:16])
	peer, known := x.quoted[key]
	if !known {
		if len(x.quoted) < maxQuotes {
			x.quoted[key] = res.Subject.Peer
		}
		return ""
	}
	if peer == res.Subject.Peer {
		return ""
	}
	return fmt.Sprintf("the quote behind the result of %s on %s stands behind an earlier one on another peer, %s: it can be of one of them only", res.Verifier.Node, res.Subject.Node, peer.Short())
}

// affirmed holds claims against the policy at a place in the log. It is sure unless the result is
// undecided; then, and only then, that it is false is in out.
func (x *reappraisal) affirmed(index uint64, res *consensus.AttestationResult, claims attest.Claims, s *consensus.State) (out []transparency.Finding, sure bool) {
	node, ok := s.Node(res.Subject.Peer)
	if !ok {
		return x.undecided(index, "a newer boot of "+res.Subject.Node.String()+" came with it"), false
	}
	claims, why := node.Credential.Vouch(claims)
	if why != nil {
		return x.false(index, res, why.String()), true
	}
	now := s.PolicyState.AttestPolicy(node.Ref, node.Roles...)
	if affirms(now, dueSlack, claims, res) {
		return nil, true
	}
	if res.Epoch < s.Epoch() {
		then, err := x.policyOf(res.Epoch, s)
		if err != nil {
			return x.undecided(index, err.Error()), false
		}
		if affirms(then.AttestPolicy(node.Ref, node.Roles...), dueSlack, claims, res) {
			return nil, true
		}
	}
	if node.Seat && affirms(now, forEver, claims, res) {
		return x.undecided(index, fmt.Sprintf("a demand that came due by time put out the seat %s, unless it was spared", node.Ref)), false
	}
	return x.false(index, res, attest.Appraise(claims, unbound(now), res.At).Reasons[0].String()), true
}

// forEver is longer than any mesh lives.
const forEver = 100 * 365 * 24 * time.Hour

// policyOf returns the policy of an earlier epoch.
func (x *reappraisal) policyOf(epoch identity.Epoch, s *consensus.State) (*consensus.PolicyState, error) {
	if x.older != nil && x.older.Epoch() == epoch {
		return x.older, nil
	}
	length, ok := x.epochs[epoch]
	chain := s.PolicyChain()
	if !ok || length > len(chain) {
		return nil, fmt.Errorf("no leaf stands under epoch %d", epoch)
	}
	then, err := consensus.ReplayPolicy(s.Genesis(), chain[:length])
	if err == nil {
		x.older = then
	}
	return then, err
}

// unbound is p for evidence whose exchange nobody can repeat.
func unbound(p attest.Policy) attest.Policy {
	p.AllowUnbound = true
	return p
}

// affirms reports whether p, of which demands that come due by time wait for slack, affirms
// claims by the entry that the result names. Where entries overlap the verifier chose one: that one
// alone must suit, too.
func affirms(p attest.Policy, slack time.Duration, claims attest.Claims, res *consensus.AttestationResult) bool {
	p = unbound(p)
	p.References = slices.Clone(p.References)
	for i, r := range p.References {
		if !r.NotAfter.IsZero() {
			p.References[i].NotAfter = r.NotAfter.Add(slack)
		}
	}
	p.Platforms.Floors = slices.Clone(p.Platforms.Floors)
	for i := range p.Platforms.Floors {
		p.Platforms.Floors[i].Wait += slack
	}
	if r := attest.Appraise(claims, p, res.At); r.Affirming() && r.Reference == res.Reference {
		return true
	}
	p.References = slices.DeleteFunc(p.References, func(r attest.Reference) bool { return r.ID != res.Reference })
	return attest.Appraise(claims, p, res.At).Affirming()
}
