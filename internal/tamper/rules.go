package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
)

const (
	alpha = "alpha/n1 reborn"
	beta  = "beta/n1 reborn"
	gamma = "gamma/n1 reborn"
)

// lie is something that all seats cosign: it appends or changes leaves, and returns the index of
// the first that does not hold.
type lie struct {
	name, what string
	do         func(*spoiled) int
	code       string
}

func told(lies ...lie) []tamperCase {
	var out []tamperCase
	for _, l := range lies {
		out = append(out, tamperCase{l.name, l.what, func(s *spoiled) verdict {
			at := l.do(s)
			s.sealAll()
			return found(at, l.code)
		}})
	}
	return out
}

// appended appends one leaf.
func appended(f func(s *spoiled) []byte) func(*spoiled) int {
	return func(s *spoiled) int {
		s.At = s.At.Add(time.Second)
		s.Force(f(s))
		return len(s.Leaves) - 1
	}
}

func resultCases() []tamperCase {
	type result = consensus.AttestationResult
	says := func(release string, change ...func(*result)) func(*spoiled) int {
		return appended(func(s *spoiled) []byte { return s.Result(alpha, beta, release, change...) })
	}
	round := func(change func(*federated.Round)) func(*spoiled) int {
		return appended(func(s *spoiled) []byte {
			return s.Round(1, func(r *federated.Round) {
				r.Job, r.Aggregator, r.Peer = "8899aabbccddeeff", audittest.Ref(gamma), audittest.PeerOf(gamma)
				r.Accepted = []federated.Accepted{audittest.Accepted(alpha), audittest.Accepted(beta)}
				change(r)
			})
		})
	}
	return told(
		lie{"16-unlisted", "a result affirms what no policy ever allowed", says("evil"), "measurement_not_allowed"},
		lie{"16-not-yet-allowed", "a result affirms what the next leaf allows", func(s *spoiled) int {
			s.Force(s.Result(alpha, beta, "later"))
			s.Force(s.Proposal(s.Add("later"), "alpha", "beta"))
			return size
		}, "measurement_not_allowed"},
		lie{"16-revoked", "a result affirms what was revoked", says("old"), "revoked"},
		lie{"16-superseded-epoch", "a result affirms what was revoked, under the epoch before", says("old", func(r *result) { r.Epoch = 1 }), "revoked"},
		lie{"16-future-epoch", "a result names an epoch to come", says("last", func(r *result) { r.Epoch++ }), "behind"},
		lie{"16-expired-entry", "a result affirms what was allowed for an hour, two hours later", func(s *spoiled) int {
			s.At = audittest.CompleteAt.Add(2 * time.Hour)
			return says("brief", func(r *result) { r.Reference = s.brief() })(s)
		}, "expired"},
		lie{"16-another-kind", "a result affirms a measurement on a kind of machine that it is not allowed on", says("last", func(r *result) { r.Kind = "tdx" }), "measurement_not_allowed"},
		lie{"16-another-mesh", "a result of another mesh", says("last", func(r *result) { r.MeshID[0] ^= 1 }), "wrong_mesh"},
		lie{"16-another-incarnation", "a result of the incarnation before", says("last", func(r *result) { r.Incarnation = 0 }), "wrong_incarnation"},
		lie{"16-subject-unknown", "a result on a node without a Credential", appended(func(s *spoiled) []byte { return s.Result(alpha, "beta/n9", "last") }), "no_credential"},
		lie{"16-subject-former", "a result on a boot of the incarnation before", appended(func(s *spoiled) []byte { return s.Result(alpha, "beta/n1", "last") }), "retired"},
		lie{"16-round-by-a-stranger", "a round by an aggregator without a Credential", func(s *spoiled) int {
			s.Credential("beta/n9")
			return round(func(r *federated.Round) { r.Aggregator, r.Peer = audittest.Ref("beta/n9"), audittest.PeerOf("beta/n9") })(s)
		}, "not_aggregator"},
		lie{"16-round-with-a-stranger", "a round with a trainer of the incarnation before", round(func(r *federated.Round) { r.Accepted[1] = audittest.Accepted("beta/n1") }), "not_eligible"},
		lie{"16-round-left-out", "a round after one that is not there", round(func(r *federated.Round) { r.Round = 2 }), "stale_round"},
		lie{"16-round-twice", "a round that was committed already", round(func(r *federated.Round) { r.Round, r.BaseRoot = 0, chunk.Root{} }), "stale_round"},
		lie{"16-round-from-another-model", "a round from another model than the one before ended in", round(func(r *federated.Round) { r.BaseRoot = chunk.Root{5} }), "root_mismatch"},
		lie{"16-round-signed-by-another", "a round that its aggregator has not signed", func(s *spoiled) int {
			at := round(func(*federated.Round) {})(s)
			s.change(at, func(l leaf) leaf { return l.sign(alpha + " peer") })
			return at
		}, "bad_signature"},

		lie{"19-expired", "a result that was over before it was ordered", says("last", func(r *result) { r.At, r.Expires = r.At.Add(-2*time.Hour), r.At.Add(-time.Hour) }), "stale"},
		lie{"19-from-the-future", "a result of the year 2200", says("last", func(r *result) { r.At = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC); r.Expires = r.At.Add(time.Hour) }), "ahead"},
		lie{"19-after-the-checkpoint", "a result that is a day newer than the checkpoint's cosignatures", func(s *spoiled) int {
			s.Leaves[inFull] = parse(s.Leaves[inFull]).postponed(24 * time.Hour).bytes()
			return inFull
		}, "ahead"},
		lie{"19-lifetime", "a result that counts for a year", appended(func(s *spoiled) []byte {
			l := parse(s.Result(alpha, beta, "last"))
			return l.set(l.field("expires"), s.At.AddDate(1, 0, 0).Format(time.RFC3339)).signBoot().bytes()
		}), "malformed"},
		lie{"19-over-before-it-began", "a result that ends before it begins", appended(func(s *spoiled) []byte {
			l := parse(s.Result(alpha, beta, "last"))
			return l.set(l.field("expires"), s.At.Add(-time.Hour).Format(time.RFC3339)).signBoot().bytes()
		}), "malformed"},
		lie{"19-replayed", "a result is ordered a second time", appended(func(s *spoiled) []byte { return s.Leaves[inFull] }), "replayed"},
		lie{"19-nothing-new", "a result that says what its verifier said a second before", func(s *spoiled) int {
			s.Force(s.Result(alpha, beta, "spare"))
			s.At = s.At.Add(time.Second)
			s.Force(s.Result(alpha, beta, "spare"))
			return size + 1
		}, "duplicate"},
	)
}

// brief is the id of the entry that is allowed for an hour.
func (s *spoiled) brief() string {
	for _, e := range s.Genesis.Policy.Entries {
		if !e.NotAfter.IsZero() {
			return e.ID
		}
	}
	panic("no such entry")
}

// postponed is a result that was made later, signed.
func (l leaf) postponed(d time.Duration) leaf {
	for _, name := range []string{"at", "expires"} {
		was := l.field(name)
		l = l.set(`"`+name+`":"`+was, `"`+name+`":"`+must(time.Parse(time.RFC3339, was)).Add(d).Format(time.RFC3339))
	}
	return l.signBoot()
}

func policyCases() []tamperCase {
	evil := func(f func(s *spoiled, l leaf) leaf, orgs ...string) func(*spoiled) int {
		return appended(func(s *spoiled) []byte { return f(s, parse(s.Proposal(s.Add("evil"), orgs...))).bytes() })
	}
	same := func(_ *spoiled, l leaf) leaf { return l }
	signedBy := func(labels ...string) func(*spoiled) int {
		return evil(func(_ *spoiled, l leaf) leaf { return l.sign(labels...) }, "alpha")
	}
	resigned := func(edit func(s *spoiled, l leaf) leaf) func(*spoiled) int {
		return evil(func(s *spoiled, l leaf) leaf { return edit(s, l).sign("alpha govern", "beta govern", "gamma govern") }, "alpha")
	}
	based := func(by int) func(*spoiled) int {
		return resigned(func(s *spoiled, l leaf) leaf {
			base := int(s.State.Base())
			return l.set(fmt.Sprintf(`"base":%d`, base), fmt.Sprintf(`"base":%d`, base+by))
		})
	}
	// The state leaf says another epoch.
	epoch := func(by int) func(*spoiled) int {
		return func(s *spoiled) int {
			at := s.first(0, "state")
			var n int
			_, rest, _ := strings.Cut(parse(s.Leaves[at]).json(), `"epoch":`)
			must(fmt.Sscanf(rest, "%d", &n))
			s.change(at, func(l leaf) leaf { return l.set(fmt.Sprintf(`"epoch":%d`, n), fmt.Sprintf(`"epoch":%d`, n+by)) })
			return at
		}
	}
	// The leaf that follows from the revocation of what a seat runs.
	derived := func(f func(s *spoiled, at int)) func(*spoiled) int {
		return func(s *spoiled) int {
			at := s.first(0, "membership", "gamma/n1", "revoked")
			f(s, at)
			return at
		}
	}
	suspension := func(label string, change ...func(*consensus.Suspension)) func(*spoiled) []byte {
		return func(s *spoiled) []byte { return s.Suspension("beta/n1", time.Hour, label, change...) }
	}
	lifted := func(orgs ...string) func(*spoiled) int {
		return func(s *spoiled) int {
			x := suspension("alpha emergency")(s)
			s.Force(x)
			s.Force(s.Lift(x, orgs...))
			return size + 1
		}
	}
	return told(
		lie{"17-one-organisation", "one organisation alone allows a release", evil(same, "alpha"), "threshold"},
		lie{"17-no-organisation", "nobody has signed a change", signedBy(), "wrong_signer"},
		lie{"17-two-keys-of-one", "one organisation signs a change with two keys", func(s *spoiled) int {
			s.Tick(0)
			k := consensus.Key{Role: consensus.KeyGovern, Public: audittest.Public("alpha govern 2")}
			s.Amend(consensus.Action{AddKey: &consensus.AddKey{Organisation: "alpha", Key: k}}, "alpha govern", "beta govern", "gamma govern", "alpha govern 2")
			return signedBy("alpha govern", "alpha govern 2")(s)
		}, "threshold"},
		lie{"17-signature-twice", "one organisation's signature stands there twice", evil(func(_ *spoiled, l leaf) leaf { l.Signatures = append(l.Signatures, l.Signatures[0]); return l }, "alpha"), "wrong_signer"},
		lie{"17-enroll-key", "the second signature is by an enroll key", signedBy("alpha govern", "beta enroll"), "wrong_signer"},
		lie{"17-stranger", "a stranger has signed too", signedBy("alpha govern", "beta govern", "stranger"), "wrong_signer"},
		lie{"17-removed-organisation", "the second signature is by an organisation that left", signedBy("alpha govern", "delta govern"), "wrong_signer"},
		lie{"17-edited", "a change is edited after it was signed", evil(func(s *spoiled, l leaf) leaf {
			return l.set(audittest.Measurement("evil"), audittest.Measurement("devil"))
		}, "alpha", "beta"), "malformed"},
		lie{"17-nonce-edited", "the nonce of a change is edited after it was signed", evil(func(_ *spoiled, l leaf) leaf { return l.set(l.field("nonce"), strings.Repeat("f", 32)) }, "alpha", "beta"), "wrong_signer"},
		lie{"17-stale-base", "a change that was made on the policy before", based(-1), "stale_base"},
		lie{"17-base-gap", "a change that was made on a policy to come", based(+1), "behind"},
		lie{"17-replayed", "a change is ordered a second time", appended(func(s *spoiled) []byte { return s.Leaves[s.first(0, "proposal", audittest.Measurement("last"))] }), "replayed"},
		lie{"17-expired", "a change that had expired", appended(func(s *spoiled) []byte {
			return s.ProposalUntil(audittest.CompleteAt.Add(-time.Hour), s.Add("evil"), "alpha", "beta")
		}), "proposal_expired"},
		lie{"17-another-mesh", "a change of another mesh", resigned(func(s *spoiled, l leaf) leaf {
			id := s.Genesis.MeshID().String()
			return l.set(id, strings.Repeat("0", 8)+id[8:]).set(id, strings.Repeat("0", 8)+id[8:])
		}), "wrong_mesh"},
		lie{"17-another-incarnation", "a change of the incarnation before", resigned(func(_ *spoiled, l leaf) leaf { return l.set(`"incarnation":1`, `"incarnation":0`) }), "wrong_incarnation"},
		lie{"17-constitution", "one organisation alone changes who decides", appended(func(s *spoiled) []byte {
			return s.Proposal(consensus.Action{SetLimits: &consensus.SetLimits{Limits: consensus.Limits{Nodes: 8}}}, "alpha")
		}), "threshold"},
		lie{"17-new-key-silent", "a new govern key that has not signed", appended(func(s *spoiled) []byte {
			return s.Proposal(audittest.Rotation("alpha", consensus.KeyGovern, "alpha govern 2"), "alpha", "beta", "gamma")
		}), "threshold"},
		lie{"17-withdrawn", "a change that an organisation had withdrawn from", func(s *spoiled) int {
			p := s.Proposal(s.Add("evil"), "alpha", "beta")
			s.Force(s.Withdrawal(p, "beta", "beta govern"))
			s.Force(p)
			return size + 1
		}, "threshold"},
		lie{"17-withdrawal-key", "a withdrawal by a key that may not", appended(func(s *spoiled) []byte {
			return s.Withdrawal(s.Proposal(s.Add("evil"), "alpha", "beta"), "beta", "beta emergency")
		}), "wrong_signer"},
		lie{"17-epoch-gap", "a state leaf of an epoch to come", epoch(+1), "not_derived"},
		lie{"17-epoch-reused", "a state leaf of the epoch before", epoch(-1), "not_derived"},
		lie{"17-policy-digest", "a state leaf of another policy", func(s *spoiled) int {
			at := s.first(0, "state")
			s.change(at, func(l leaf) leaf { return l.set(l.field("policy"), strings.Repeat("0", 64)) })
			return at
		}, "not_derived"},
		lie{"17-state-twice", "a state leaf stands twice", func(s *spoiled) int {
			at := s.first(0, "state")
			s.insert(at+1, s.Leaves[at])
			return at + 1
		}, "not_derived"},
		lie{"17-removal-without-cause", "a seat is removed without a cause", appended(func(s *spoiled) []byte { return s.Removal(beta, attest.CodeRevoked, "proposal x") }), "not_derived"},
		lie{"17-removal-left-out", "the leaf of a seat's removal is left out", derived(func(s *spoiled, at int) { s.Leaves = append(s.Leaves[:at], s.Leaves[at+1:]...) }), "derived_missing"},
		lie{"17-removal-edited", "the leaf of a seat's removal says another code", derived(func(s *spoiled, at int) { s.change(at, func(l leaf) leaf { return l.set(`"revoked"`, `"retired"`) }) }), "derived_missing"},
		lie{"17-removal-epoch", "the leaf of a seat's removal says another epoch", derived(func(s *spoiled, at int) {
			s.change(at, func(l leaf) leaf { return l.set(`"epoch":`, `"epoch":1`) })
		}), "derived_missing"},
		lie{"17-removal-signed", "somebody has signed the leaf of a seat's removal", derived(func(s *spoiled, at int) { s.change(at, func(l leaf) leaf { return l.sign("alpha govern") }) }), "derived_missing"},
		lie{"17-removal-of-another", "the leaf of a seat's removal is of another seat", derived(func(s *spoiled, at int) {
			s.Leaves[at] = parse(s.Leaves[at]).set(`"node":"gamma/n1"`, `"node":"alpha/n1"`).bytes()
		}), "derived_missing"},
		lie{"17-genesis-founder", "genesis lacks a founder's signature", func(s *spoiled) int {
			s.change(0, func(l leaf) leaf { l.Signatures = l.Signatures[:2]; return l })
			return 0
		}, "genesis_invalid"},
		lie{"17-genesis-edited", "genesis is edited", func(s *spoiled) int {
			s.change(0, func(l leaf) leaf { return l.set(`"trial"`, `"trail"`) })
			return 0
		}, "genesis_invalid"},
		lie{"17-another-genesis", "the log is that of another mesh, made by the same organisations", func(s *spoiled) int {
			other := audittest.New(audittest.Options{At: audittest.CompleteAt, Edit: func(g *consensus.Genesis) { g.Name = "another" }}).Start()
			s.Mesh = other
			return 0
		}, "genesis_mismatch"},
		lie{"17-bootstrap-enroller", "Bootstrap lacks an enroller's signature", func(s *spoiled) int {
			s.change(1, func(l leaf) leaf { l.Signatures = l.Signatures[:2]; return l })
			return 1
		}, "bootstrap_invalid"},
		lie{"17-bootstrap-missing", "there is no Bootstrap", func(s *spoiled) int {
			s.Leaves = append(s.Leaves[:1], s.Leaves[2:]...)
			return 1
		}, "bootstrap_invalid"},
		lie{"17-bootstrap-twice", "a second Bootstrap", appended(func(s *spoiled) []byte { return s.Leaves[1] }), "unknown_leaf"},
		lie{"17-credential-by-another", "a Credential by another organisation's enroller", appended(func(s *spoiled) []byte {
			return parse(s.Credential("beta/n3")).sign("alpha enroll").bytes()
		}), "no_credential"},
		lie{"17-credential-by-govern-key", "a Credential by a govern key", appended(func(s *spoiled) []byte {
			return parse(s.Credential("beta/n3")).sign("beta govern").bytes()
		}), "no_credential"},
		lie{"17-credential-older", "a Credential of an older boot of a node", appended(func(s *spoiled) []byte {
			return s.Credential("beta/n1 before", func(c *consensus.Credential) { c.BootSeq = 1 })
		}), "retired"},
		lie{"17-suspension-key", "a suspension by a govern key", appended(suspension("alpha govern")), "wrong_signer"},
		lie{"17-suspension-of-nobody", "a suspension of a node that is not there", appended(func(s *spoiled) []byte { return s.Suspension("beta/n9", time.Hour, "alpha emergency") }), "unknown_node"},
		lie{"17-suspension-twice", "a suspension is ordered a second time", func(s *spoiled) int {
			x := suspension("alpha emergency")(s)
			s.Force(x)
			s.Force(x)
			return size + 1
		}, "replayed"},
		lie{"17-lift-by-too-few", "a suspension is lifted by one other organisation", lifted("beta"), "threshold"},
		lie{"17-lift-unknown", "what is lifted was never suspended", appended(func(s *spoiled) []byte { return s.Lift(suspension("alpha emergency")(s), "alpha") }), "unknown_suspension"},
		lie{"17-lift-twice", "a suspension is lifted twice", func(s *spoiled) int {
			lifted("alpha")(s)
			s.Force(parse(s.Leaves[size+1]).sign("beta govern", "gamma govern").bytes())
			return size + 2
		}, "replayed"},
		lie{"17-drain-by-another", "a seat is drained by another", appended(func(s *spoiled) []byte { return parse(s.Drain(beta)).sign(alpha + " peer").bytes() }), "wrong_signer"},
		lie{"17-retired-by-another", "a node is retired by another organisation", appended(func(s *spoiled) []byte { return s.Retirement(beta, "alpha enroll") }), "wrong_signer"},
		lie{"17-seat-that-is-held", "a node takes a seat that is held", func(s *spoiled) int {
			s.join("beta/n3")
			s.Force(s.Ready("beta/n3", alpha, gamma))
			return size + 3
		}, "seat_held"},
	)
}

func recoveryCases() []tamperCase {
	at := func(f func(s *spoiled, r int) int) func(*spoiled) int {
		return func(s *spoiled) int { return f(s, s.first(0, "recovery")) }
	}
	return told(
		lie{"20-predecessor-cut", "a leaf before the Recovery is gone", at(func(s *spoiled, r int) int {
			s.Leaves = append(s.Leaves[:r-1], s.Leaves[r:]...)
			return r - 1
		}), "recovery_invalid"},
		lie{"20-predecessor-longer", "a leaf more before the Recovery", at(func(s *spoiled, r int) int {
			s.insert(r, s.Result("beta/n1 again", "alpha/n1", "new", func(x *consensus.AttestationResult) {
				audittest.Refusing(attest.VerdictContraindicated, attest.CodeDebug)(x)
				x.Incarnation, x.Epoch, x.At, x.Expires = 0, 1, audittest.CompleteAt.Add(4*time.Minute), audittest.CompleteAt.Add(time.Hour)
			}))
			return r + 1
		}), "recovery_invalid"},
		lie{"20-predecessor-reordered", "two leaves before the Recovery are exchanged", at(func(s *spoiled, r int) int {
			old := s.first(0, "attestation-result", "gamma/n1", audittest.Measurement("old"))
			s.swap(old, old+1)
			return r
		}), "recovery_invalid"},
		lie{"20-one-organisation", "one organisation alone has signed the Recovery", at(func(s *spoiled, r int) int {
			s.change(r, func(l leaf) leaf { return l.sign("alpha govern") })
			return r
		}), "recovery_invalid"},
		lie{"20-recovery-edited", "the Recovery is edited", at(func(s *spoiled, r int) int {
			s.change(r, func(l leaf) leaf { return l.set(l.field("nonce"), strings.Repeat("0", 32)) })
			return r
		}), "recovery_invalid"},
		lie{"20-without-recovery", "the second Bootstrap without the Recovery", at(func(s *spoiled, r int) int {
			s.Leaves = append(s.Leaves[:r], s.Leaves[r+1:]...)
			return r
		}), "unknown_leaf"},
		lie{"20-without-bootstrap", "the Recovery without a Bootstrap", at(func(s *spoiled, r int) int {
			s.Leaves = append(s.Leaves[:r+1], s.Leaves[r+2:]...)
			return r + 1
		}), "recovery_invalid"},
		lie{"20-bootstrap-enroller", "the second Bootstrap lacks an enroller's signature", at(func(s *spoiled, r int) int {
			s.change(r+1, func(l leaf) leaf { l.Signatures = l.Signatures[:2]; return l })
			return r + 1
		}), "recovery_invalid"},
		lie{"20-successor-alone", "the log begins with the Recovery", at(func(s *spoiled, r int) int {
			s.Leaves = s.Leaves[r:]
			return 0
		}), "genesis_invalid"},
		lie{"20-recovery-twice", "the Recovery a second time", appended(func(s *spoiled) []byte { return s.Leaves[s.first(0, "recovery")] }), "recovery_invalid"},
	)
}
