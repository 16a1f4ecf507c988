package audittest

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// Each of these returns a leaf signed as it should be, and orders nothing. What it says can be
// changed before it is signed.

// Credential is the Credential of a boot for a day.
func (m *Mesh) Credential(boot string, change ...func(*consensus.Credential)) []byte {
	ref := Ref(boot)
	m.boots[PeerOf(boot)] = boot
	c := consensus.Credential{MeshID: m.Genesis.MeshID(), Organisation: ref.Org, Node: ref.Name, Peer: PeerOf(boot), Cosigner: Public(boot + " cosigner"),
		Incarnation: m.State.Incarnation(), Roles: AllRoles(), BootSeq: identity.BootSeq(1000 + len(m.Leaves)), Issued: m.At, Expires: m.At.Add(24 * time.Hour)}
	for _, f := range change {
		f(&c)
	}
	return must(consensus.SignCredential(Signer(string(c.Organisation)+" enroll"), c))
}

// Bootstrap is the Bootstrap by all organisations.
func (m *Mesh) Bootstrap() []byte {
	var creds [][]byte
	var labels []string
	for _, o := range m.Genesis.Organisations {
		creds = append(creds, m.Credential(string(o.ID)+"/n1"))
		labels = append(labels, string(o.ID)+" enroll")
	}
	return Sign(must(consensus.NewBootstrap(m.Genesis, 1, creds, Key("log").Public().(ed25519.PublicKey), m.At)), labels...)
}

// Result is what one boot says of another that runs a release: affirming, for an hour.
func (m *Mesh) Result(verifier, subject, release string, change ...func(*consensus.AttestationResult)) []byte {
	party := func(boot string) consensus.Party { return consensus.Party{Node: Ref(boot), Peer: PeerOf(boot)} }
	r := consensus.AttestationResult{Verifier: party(verifier), Subject: party(subject), MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Epoch: m.State.Epoch(), Kind: "sim",
		Measurement: Measurement(release), Verdict: attest.VerdictAffirming, Codes: []attest.Code{}, Evidence: consensus.EvidenceCommitment([32]byte{1}, []byte("e")),
		Reference: m.Entry(release).ID, Vector: attest.Vector{Executables: 2, Hardware: 2}, At: m.At, Expires: m.At.Add(time.Hour)}
	for _, f := range change {
		f(&r)
	}
	return must(consensus.SignResult(Key(verifier+" peer"), r))
}

// Refusing turns a Result into one that does not affirm.
func Refusing(verdict attest.Verdict, codes ...attest.Code) func(*consensus.AttestationResult) {
	return func(r *consensus.AttestationResult) { r.Verdict, r.Codes, r.Reference = verdict, codes, "" }
}

// AttestAll orders an affirming edge between every two founding nodes.
func (m *Mesh) AttestAll(release string) {
	var boots []string
	for _, o := range m.Genesis.Organisations {
		boots = append(boots, string(o.ID)+"/n1")
	}
	m.attest(release, boots)
}

func (m *Mesh) attest(release string, boots []string) {
	var batch [][]byte
	for _, v := range boots {
		for _, s := range boots {
			if v != s {
				batch = append(batch, m.Result(v, s, release))
			}
		}
	}
	m.Command(consensus.KindResults, batch...)
}

// Proposal is a proposal of one action on the present base, open for an hour and signed by the
// govern keys of organisations.
func (m *Mesh) Proposal(action consensus.Action, orgs ...string) []byte {
	return m.ProposalUntil(m.At.Add(time.Hour), action, orgs...)
}

// ProposalUntil is a Proposal that expires at a given time.
func (m *Mesh) ProposalUntil(expires time.Time, action consensus.Action, orgs ...string) []byte {
	var labels []string
	for _, o := range orgs {
		labels = append(labels, o+" govern")
	}
	p := &consensus.Proposal{MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Base: m.State.Base(), Nonce: m.fresh(), Created: expires.Add(-time.Hour), Expires: expires, Actions: []consensus.Action{action}}
	return Sign(must(p.Payload()), labels...)
}

// Amend orders a change of the constitution, signed by govern keys and keys that come in.
func (m *Mesh) Amend(action consensus.Action, labels ...string) consensus.Outcome {
	env := must(envelope.Parse(m.Proposal(action, "alpha")))
	return m.Command(consensus.KindProposal, Sign(env.Payload, labels...))
}

func (m *Mesh) fresh() string {
	m.nonce++
	return fmt.Sprintf("%032x", m.nonce)
}

// Add is the action that allows a release.
func (m *Mesh) Add(release string) consensus.Action {
	return consensus.Action{AddEntry: &consensus.AddEntry{Entry: m.Entry(release)}}
}

// Remove is the action that revokes a release.
func Remove(release string) consensus.Action {
	return consensus.Action{RemoveEntry: &consensus.RemoveEntry{Measurement: Measurement(release)}}
}

// Rotation is the action that puts the key of a label in place of an organisation's first one.
func Rotation(org, role, to string) consensus.Action {
	return consensus.Action{RotateKey: &consensus.RotateKey{Organisation: identity.OrgID(org), Role: role, Old: KeyID(org + " " + role), Public: Public(to)}}
}

// Withdrawal is an organisation's from a proposal, signed by the key of a label.
func (m *Mesh) Withdrawal(proposal []byte, org, label string) []byte {
	p, _, err := consensus.ParseProposal(proposal)
	check(err)
	return must(consensus.SignWithdrawal(Signer(label), consensus.WithdrawalOf(p, identity.OrgID(org), m.At)))
}

// Suspension is alpha's of a node for a time, signed by the key of a label.
func (m *Mesh) Suspension(node string, d time.Duration, label string, change ...func(*consensus.Suspension)) []byte {
	ref := Ref(node)
	x := consensus.Suspension{MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Organisation: "alpha", Nonce: m.fresh(), Node: &ref,
		Cause: consensus.CausePrecaution, Issued: m.At, Until: m.At.Add(d)}
	for _, f := range change {
		f(&x)
	}
	return must(consensus.SignSuspension(Signer(label), x))
}

// Lift is the lift of a suspension, signed by the govern keys of organisations.
func (m *Mesh) Lift(suspension []byte, orgs ...string) []byte {
	x, _, err := consensus.ParseSuspension(suspension)
	check(err)
	var labels []string
	for _, o := range orgs {
		labels = append(labels, o+" govern")
	}
	return Sign(must(consensus.SuspensionLift{MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Suspension: x.ID()}.Payload()), labels...)
}

// Ready is the word of a boot that it can vote, confirmed by others.
func (m *Mesh) Ready(boot string, by ...string) []byte {
	r := consensus.Ready{MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Node: Ref(boot), Peer: PeerOf(boot), Seq: 9, Digest: strings.Repeat("ab", 32)}
	payload := must(r.Payload())
	var parts [][]byte
	for _, b := range append([]string{boot}, by...) {
		parts = append(parts, must(consensus.ConfirmReady(Key(b+" peer"), payload)))
	}
	return must(consensus.Merge(parts...))
}

// Drain is the word of a boot that it leaves its seat.
func (m *Mesh) Drain(boot string) []byte {
	return must(consensus.SignDrain(Key(boot+" peer"), consensus.Drain{MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Node: Ref(boot), Peer: PeerOf(boot)}))
}

// Retirement ends a boot for ever, signed by the key of a label.
func (m *Mesh) Retirement(boot, label string) []byte {
	return must(consensus.SignRetirement(Signer(label), consensus.Retirement{MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Node: Ref(boot), Peer: PeerOf(boot)}))
}

// Removal is the unsigned leaf of a seat's removal.
func (m *Mesh) Removal(boot string, code attest.Code, cause string) []byte {
	payload := must(envelope.NewPayload(envelope.TypeMembership, envelope.SubjectOf(Ref(boot).String(), []byte(PeerOf(boot))), consensus.Membership{
		MeshID: m.Genesis.MeshID(), Incarnation: m.State.Incarnation(), Epoch: m.State.Epoch(), Change: consensus.ChangeSeatRemoved, Node: Ref(boot), Peer: PeerOf(boot), Code: code, Cause: cause}))
	return (&envelope.Envelope{Payload: payload}).Marshal()
}

// LogState orders a digest command after seq others, appends its leaf and returns it.
func (m *Mesh) LogState(seq uint64) []byte {
	out := m.State.LogState(must(consensus.NewCommand(consensus.KindDigest)), seq, m.State.Digest())
	if out.Reason != nil {
		panic(fmt.Sprintf("audittest: digest refused: %v", out.Reason))
	}
	m.Leaves = append(m.Leaves, out.Leaves...)
	return out.Leaves[0]
}

// AlterState is a state leaf that says something else.
func AlterState(leaf []byte, change func(*consensus.LoggedState)) []byte {
	st := must(envelope.Decode[consensus.LoggedState](must(envelope.Parse(leaf)).Payload, envelope.TypeState))
	change(&st.Predicate)
	return (&envelope.Envelope{Payload: must(json.Marshal(st))}).Marshal()
}

// Round is the leaf of round n of job 0011223344556677: alpha/n1 and beta/n1 took part and
// gamma/n1 added up.
func (m *Mesh) Round(n byte, change ...func(*federated.Round)) []byte {
	r := federated.Round{Turn: federated.Turn{MeshID: m.Genesis.MeshID(), Job: "0011223344556677", Round: uint32(n), Attempt: 1}, Epoch: m.State.Epoch(),
		Rule: "fedavg", Arithmetic: "f64-ordered-v1", ResultRoot: chunk.Root{n + 1}, Aggregator: Ref("gamma/n1"), Peer: PeerOf("gamma/n1"), Rejected: []federated.Rejected{}}
	if n > 0 {
		r.BaseRoot = chunk.Root{n}
	}
	for _, node := range []string{"alpha/n1", "beta/n1"} {
		r.Accepted = append(r.Accepted, Accepted(node))
	}
	for _, f := range change {
		f(&r)
	}
	return must(federated.SignRound(Signer(m.boot(r.Peer)+" peer"), r)).Marshal()
}

// Accepted is the part that a boot took in a Round.
func Accepted(boot string) federated.Accepted {
	return federated.Accepted{Node: Ref(boot), Peer: PeerOf(boot), UpdateRoot: chunk.Root{9}, Examples: federated.Digest{8}, Statement: federated.Digest{7}}
}
