package proof

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit"
	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

// published writes a mesh's log and opens it.
func published(t testing.TB, m *audittest.Mesh, boots ...string) *transparency.Reader {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "log")
	m.Publish(dir, boots...)
	r, err := transparency.OpenReader(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func at(index int) Subject { i := uint64(index); return Subject{Index: &i} }

func export(t testing.TB, m *audittest.Mesh, s Subject, boots ...string) ([]byte, *Report) {
	t.Helper()
	data, r, err := tryExport(t, m, s, boots...)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return data, r
}

func tryExport(t testing.TB, m *audittest.Mesh, s Subject, boots ...string) ([]byte, *Report, error) {
	t.Helper()
	return Export(t.Context(), published(t, m, boots...), s, ExportOptions{Genesis: m.Genesis, At: m.At})
}

func options(m *audittest.Mesh) Options { return Options{Genesis: m.Genesis, At: m.At} }

// refusedAs fails unless err is a Refused of a code.
func refusedAs(t testing.TB, err error, code attest.Code, words ...string) {
	t.Helper()
	var r *Refused
	if !errors.As(err, &r) || r.Code != code {
		t.Errorf("got %v, want %s", err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(r.Message, w) {
			t.Errorf("%q does not say %q", r.Message, w)
		}
	}
}

func small() *audittest.Mesh {
	m := audittest.New(audittest.Options{At: audittest.CompleteAt}).Start()
	m.Command(consensus.KindCredential, m.Credential("beta/n2"))
	m.Command(consensus.KindProposal, m.Proposal(m.Add("next"), "alpha", "beta"))
	m.Command(consensus.KindResults, m.Result("alpha/n1", "beta/n2", "next"))
	m.Force(m.Round(0))
	m.Tick(time.Minute)
	return m
}

// Every leaf of a log with every kind of leaf, two incarnations and every change of who decides can be
// proven; what is said of it is what the log says.
func TestEveryLeaf(t *testing.T) {
	m := audittest.Complete()
	r := published(t, m, m.Cosigners()...)
	report, err := audit.Log(t.Context(), r, audit.Options{Genesis: m.Genesis, At: m.At})
	if err != nil || !report.OK {
		t.Fatalf("%v, %+v", err, report.Findings)
	}
	kinds := map[string]int{}
	for i := 0; i < len(m.Leaves); i += (step + 1) / 2 {
		data, p, err := Export(t.Context(), r, at(i), ExportOptions{Genesis: m.Genesis, At: m.At})
		if err != nil {
			t.Fatalf("entry %d (%s): %v", i, short(kindOf(m.Leaves[i])), err)
		}
		kinds[p.Kind]++
		f, err := Parse(data)
		if err != nil || string(f.Subject.Data) != string(m.Leaves[i]) || p.Index != uint64(i) || p.Root != report.Root || p.Leaf != transparency.LeafHash(m.Leaves[i]) {
			t.Fatalf("entry %d: %v, %+v", i, err, p)
		}
		if p.Level != report.Level || !slices.Equal(p.Cosigners, report.Cosigners) || p.LastEpoch != report.State.Epoch() || p.CompleteTo != report.Size {
			t.Errorf("entry %d: %+v, the audit says %v %v epoch %d", i, p, report.Level, report.Cosigners, report.State.Epoch())
		}
		switch p.Kind {
		case "attestation-result":
			x, err := consensus.ParseResult(m.Leaves[i])
			if err != nil || p.Result == nil || p.Result.Verifier != x.Verifier.Node || p.Result.Verdict != x.Verdict || (x.Verdict == attest.VerdictAffirming) != (p.Result.EntryLeaf != nil) {
				t.Errorf("entry %d: %v, %+v", i, err, p.Result)
			}
		case "proposal", "bootstrap":
			if p.Policy == nil || p.Policy.Epoch != p.Epoch || p.PolicyLeaf != uint64(i) {
				t.Errorf("entry %d: %+v", i, p)
			}
		case "round":
			if p.Round == nil || len(p.Round.Participants) != 2 || !p.Round.allEligible() {
				t.Errorf("entry %d: %+v", i, p.Round)
			}
		}
		if len(p.Says()) == 0 || len(p.Proves()) < 3 || len(p.ProvesNot()) < 3 {
			t.Errorf("entry %d says too little: %v %v %v", i, p.Says(), p.Proves(), p.ProvesNot())
		}
	}
	if len(kinds) < 13/step {
		t.Errorf("kinds %v", kinds)
	}
}

// Subjects are found by what they are.
func TestSubjects(t *testing.T) {
	m := audittest.Complete()
	r := published(t, m, m.Cosigners()...)
	find := func(s Subject) (*Report, error) {
		_, p, err := Export(t.Context(), r, s, ExportOptions{Genesis: m.Genesis, At: m.At})
		return p, err
	}
	last := uint64(len(m.Leaves) - 1)
	node := audittest.Ref("alpha/n1")
	p, err := find(Subject{Result: &node})
	if err != nil || p.Index != last || p.Result.Measurement != audittest.Measurement("new") {
		t.Errorf("newest result on %s: %v, %+v", node, err, p)
	}
	for epoch := range m.State.Epoch() + 1 {
		if p, err := find(Subject{Policy: &epoch}); err != nil || p.Epoch != epoch || p.Policy == nil {
			t.Errorf("policy of epoch %d: %v, %+v", epoch, err, p)
		}
	}
	if p, err := find(Subject{Entry: m.Entry("last").ID}); err != nil || p.Index != last-2 || p.Policy == nil {
		t.Errorf("entry: %v, %+v", err, p)
	}
	if p, err := find(Subject{Entry: m.Entry("new").ID}); err != nil || p.Index != 0 || p.Kind != "genesis" {
		t.Errorf("entry of genesis: %v, %+v", err, p)
	}
	if p, err := find(Subject{Round: &RoundName{"0011223344556677", 1}}); err != nil || p.Round.Round != 1 {
		t.Errorf("round: %v, %+v", err, p)
	}
	far, stranger := m.State.Epoch()+1, identity.NodeRef{Org: "alpha", Name: "none"}
	for _, s := range []Subject{{Index: new(uint64(last + 1))}, {Policy: &far}, {Result: &stranger}, {Entry: "0000000000000000"}, {Round: &RoundName{"0011223344556677", 9}}} {
		if _, err := find(s); !errors.Is(err, ErrNoSubject) {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// An export of a log whose files are not of one tree names the place.
func TestExportOfDamagedLog(t *testing.T) {
	m := small()
	m.Leaves[5] = append(slices.Clone(m.Leaves[5]), ' ')
	if _, _, err := tryExport(t, m, at(3), audittest.Seats()...); err == nil {
		t.Error("a leaf that is no canonical statement was exported")
	}
	m = small()
	for _, i := range []int{0, 1} {
		m.Leaves[i], m.Leaves[3] = m.Leaves[3], m.Leaves[i]
		if _, _, err := tryExport(t, m, at(3), audittest.Seats()...); err == nil {
			t.Errorf("entry 3 was exported from a log that has it as entry %d", i)
		}
	}
}

func edited(t testing.TB, data []byte, change func(*File)) []byte {
	t.Helper()
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	change(f)
	return f.Marshal()
}

// linked returns the position of a link to a leaf.
func linked(t testing.TB, f *File, index uint64) int {
	t.Helper()
	i := slices.IndexFunc(f.Links, func(l Leaf) bool { return l.Index == index })
	if i < 0 {
		t.Fatalf("no link to entry %d", index)
	}
	return i
}

// What is left out, or put in from elsewhere, is refused.
func TestOmitted(t *testing.T) {
	m := audittest.Complete()
	proposals := m.Find(envelope.TypeProposal)
	results := m.Find(envelope.TypeAttestationResult)
	data, _ := export(t, m, at(int(results[len(results)-1])), m.Cosigners()...)
	verify := func(change func(*File)) error {
		_, err := Verify(edited(t, data, change), options(m))
		return err
	}
	without := func(index uint64) func(*File) {
		return func(f *File) { i := linked(t, f, index); f.Links = slices.Delete(f.Links, i, i+1) }
	}
	if err := verify(func(*File) {}); err != nil {
		t.Fatal(err)
	}
	refusedAs(t, verify(without(0)), attest.CodeNotShown, "genesis")
	refusedAs(t, verify(without(1)), attest.CodePolicyIncomplete)
	// Any one change of the policy.
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range proposals {
		if p == f.Subject.Index {
			continue
		}
		if err := verify(without(p)); err == nil {
			t.Errorf("a file without the change of the policy at entry %d is accepted", p)
		}
	}
	recovery := m.Find(envelope.TypeRecovery)[0]
	refusedAs(t, verify(without(recovery)), attest.CodeMalformed)
	refusedAs(t, verify(without(recovery+1)), attest.CodePolicyIncomplete)
	first := func(f *File) { f.Links = slices.DeleteFunc(f.Links, func(l Leaf) bool { return l.Index >= recovery }) }
	refusedAs(t, verify(first), attest.CodePolicyIncomplete, "it names epoch")
	before, _ := export(t, m, at(5), m.Cosigners()...)
	_, err = Verify(edited(t, before, first), options(m))
	refusedAs(t, err, codeCheckpointInvalid, "origin")
	if _, err := Verify(edited(t, data, func(f *File) { f.Links = nil }), options(m)); err == nil {
		t.Error("a file without links is accepted")
	}
}

// A member whose Credential is not shown was no member, whatever else is there; nor is a cosigner
// whose affirming result is not shown.
func TestNotShown(t *testing.T) {
	m := small()
	index := m.Find(envelope.TypeAttestationResult)
	subject := index[len(index)-1] // alpha/n1 on beta/n2
	credential := m.Find(envelope.TypeCredential)[0]
	data, p := export(t, m, at(int(subject)), audittest.Seats()...)
	if p.Result.SubjectCredential != credential || p.Result.VerifierCredential != 1 || p.Result.VerifierAffirmedBy == nil {
		t.Errorf("%+v", p.Result)
	}
	_, err := Verify(edited(t, data, func(f *File) { i := linked(t, f, credential); f.Links = slices.Delete(f.Links, i, i+1) }), options(m))
	refusedAs(t, err, attest.CodeNotShown, "beta/n2")
	_, err = Verify(edited(t, data, func(f *File) {
		f.Links = slices.DeleteFunc(f.Links, func(l Leaf) bool { return slices.Contains(index, l.Index) })
	}), options(m))
	refusedAs(t, err, codeUnpublished, "alpha/n1: no affirming result")
}

// A leaf, a path or an index that is another's, and a checkpoint of another tree, mesh or key.
func TestForeign(t *testing.T) {
	m := small()
	data, _ := export(t, m, at(5), audittest.Seats()...)
	other, _ := export(t, m, at(6), audittest.Seats()...)
	g, err := Parse(other)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(change func(*File)) error {
		_, err := Verify(edited(t, data, change), options(m))
		return err
	}
	refusedAs(t, verify(func(f *File) { f.Subject.Data = g.Subject.Data }), attest.CodeNotIncluded)
	refusedAs(t, verify(func(f *File) { f.Subject.Path = g.Subject.Path }), attest.CodeNotIncluded)
	refusedAs(t, verify(func(f *File) { f.Subject.Index = 40 }), attest.CodeNotIncluded)
	refusedAs(t, verify(func(f *File) { f.Links[3].Path = f.Links[2].Path }), attest.CodeNotIncluded)

	// Another log of the same mesh: a checkpoint with all signatures, of other leaves.
	fork := small()
	fork.Command(consensus.KindCredential, fork.Credential("alpha/n3"))
	forked, _ := export(t, fork, at(5), audittest.Seats()...)
	h, err := Parse(forked)
	if err != nil {
		t.Fatal(err)
	}
	refusedAs(t, verify(func(f *File) { f.Checkpoint = h.Checkpoint }), attest.CodeNotIncluded)

	// Another mesh altogether.
	stranger := audittest.New(audittest.Options{At: audittest.CompleteAt, Edit: func(g *consensus.Genesis) { g.Name = "other" }})
	_, err = Verify(data, Options{Genesis: stranger.Genesis, At: m.At})
	refusedAs(t, err, codeGenesisMismatch)

	// The same tree, signed by somebody who is not the log.
	c, err := transparency.ParseCheckpoint(g.Checkpoint)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := transparency.NewCheckpoint(c, audittest.Key("not the log"))
	if err != nil {
		t.Fatal(err)
	}
	refusedAs(t, verify(func(f *File) { f.Checkpoint = forged }), codeCheckpointInvalid)
}

// Fewer organisations than a majority of all, or one organisation twice, prove nothing; nor does
// what lies ahead of the verifier's clock, or is too old for it.
func TestCosigners(t *testing.T) {
	m := small()
	_, _, err := tryExport(t, m, at(5), "alpha/n1")
	refusedAs(t, err, codeUnpublished, "want 2 of 3")
	data, p := export(t, m, at(5), "alpha/n1", "gamma/n1")
	if p.Level != transparency.Published || len(p.Cosigners) != 2 {
		t.Errorf("%+v", p)
	}
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(f.Checkpoint), "\n")
	log := len(lines) - 4 // text, empty line, log, alpha, gamma, ""
	alpha := lines[log+1]
	_, err = Verify(edited(t, data, func(f *File) { f.Checkpoint = []byte(strings.Join(lines[:log+2], "")) }), options(m))
	refusedAs(t, err, codeUnpublished, "[alpha]")
	_, err = Verify(edited(t, data, func(f *File) { f.Checkpoint = []byte(strings.Join(lines[:log+2], "") + alpha) }), options(m))
	refusedAs(t, err, codeUnpublished, "[alpha]")
	// What nobody can judge is not carried along.
	_, err = Verify(edited(t, data, func(f *File) { f.Checkpoint = []byte(string(f.Checkpoint) + alpha) }), options(m))
	refusedAs(t, err, codeCheckpointInvalid)
	_, err = Verify(edited(t, data, func(f *File) {
		f.Checkpoint = append(f.Checkpoint, audittest.Cosign(strings.Join(lines[:3], ""), audittest.WitnessName, audittest.Key(audittest.Witness), m.At)...)
	}), options(m))
	refusedAs(t, err, codeCheckpointInvalid, "do not count")

	_, err = Verify(data, Options{Genesis: m.Genesis, At: m.At.Add(-time.Hour)})
	refusedAs(t, err, codeUnpublished)
	_, err = Verify(data, Options{Genesis: m.Genesis, At: m.At.Add(time.Hour), MaxAge: time.Minute})
	refusedAs(t, err, attest.CodeStale, "1h0m0s ago")
	if _, err = Verify(data, Options{Genesis: m.Genesis, At: m.At.Add(10 * 365 * 24 * time.Hour)}); err != nil {
		t.Errorf("ten years later: %v", err)
	}
	for _, o := range []Options{{}, {Genesis: m.Genesis}, {At: m.At}} {
		if _, err := Verify(data, o); err == nil {
			t.Errorf("verified with %+v", o)
		}
	}
}

// Two boots of one organisation that cosign are one organisation.
func TestSameOrganisationTwice(t *testing.T) {
	m := small()
	tree := m.Leaves
	data, _ := export(t, m, at(5), audittest.Seats()...)
	f, err := Parse(data)
	if err != nil {
		t.Fatal(err)
	}
	c, err := transparency.ParseCheckpoint(f.Checkpoint)
	if err != nil || int(c.Size) != len(tree) {
		t.Fatal(err)
	}
	// beta/n2 has a Credential and an affirming result, and holds no seat.
	signed := m.Sealed(c.Size, c.Root, "beta/n1", "beta/n2")
	_, err = Verify(edited(t, data, func(f *File) { f.Checkpoint = signed }), options(m))
	refusedAs(t, err, codeUnpublished, "[beta]")
}

// Who was put out by the policy, or was enrolled by a key that is gone, is not counted any more.
func TestCosignerThatCountsNoMore(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*audittest.Mesh)
		signers []string
		words   string
	}{
		"measurement revoked": {func(m *audittest.Mesh) {
			p := &consensus.Proposal{MeshID: m.Genesis.MeshID(), Base: m.State.Base(), Nonce: strings.Repeat("ef", 16), Created: m.At, Expires: m.At.Add(time.Hour),
				ConfirmQuorumLoss: true, Actions: []consensus.Action{audittest.Remove("new")}}
			payload, err := p.Payload()
			if err != nil {
				panic(err)
			}
			m.Command(consensus.KindProposal, audittest.Sign(payload, "alpha govern", "beta govern"))
		}, audittest.Seats(), "its seat was taken away (revoked)"},
		"enroll keys rotated": {func(m *audittest.Mesh) {
			for _, org := range []string{"beta", "gamma"} {
				m.Amend(audittest.Rotation(org, consensus.KeyEnroll, org+" enroll 2"), "alpha govern", "beta govern", "gamma govern")
			}
		}, audittest.Seats(), "beta/n1: its Credential is by a key that was removed"},
		"retired": {func(m *audittest.Mesh) {
			m.Command(consensus.KindRetirement, m.Retirement("beta/n1", "beta enroll"))
		}, []string{"alpha/n1", "beta/n1"}, "beta/n1: its organisation retired it"},
		"organisation removed": {func(m *audittest.Mesh) {
			m.Amend(consensus.Action{RemoveOrganisation: &consensus.RemoveOrganisation{ID: "beta"}}, "alpha govern", "gamma govern")
		}, []string{"alpha/n1", "beta/n1"}, "beta/n1: its organisation was removed"},
		"drained":  {func(m *audittest.Mesh) { m.Command(consensus.KindDrain, m.Drain("beta/n1")) }, []string{"alpha/n1", "beta/n1"}, "beta/n1: its seat was taken away (drained)"},
		"rebooted": {func(m *audittest.Mesh) { m.Command(consensus.KindCredential, m.Credential("beta/n1 again")) }, []string{"alpha/n1", "beta/n1"}, "beta/n1: a newer boot of it was registered"},
	} {
		t.Run(name, func(t *testing.T) {
			m := small()
			names := small() // that the cosigners had
			c.change(m)
			r := published(t, m)
			raw, err := r.Checkpoint(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			head, err := transparency.ParseCheckpoint(raw)
			if err != nil {
				t.Fatal(err)
			}
			f := &File{Checkpoint: names.Sealed(head.Size, head.Root, c.signers...)}
			p := r.Prover(head)
			for i := range m.Leaves {
				leaf, path, err := p.Leaf(t.Context(), uint64(i))
				if err != nil {
					t.Fatal(err)
				}
				if l := (Leaf{uint64(i), leaf, path}); i == 5 {
					f.Subject = l
				} else {
					f.Links = append(f.Links, l)
				}
			}
			_, err = Verify(f.Marshal(), options(m))
			refusedAs(t, err, codeUnpublished, c.words)
			if name != "measurement revoked" {
				return
			}
			// The policy says the same where what followed from it is left out.
			seats := m.Find(envelope.TypeMembership)
			f.Links = slices.DeleteFunc(f.Links, func(l Leaf) bool { return slices.Contains(seats, l.Index) })
			_, err = Verify(f.Marshal(), options(m))
			refusedAs(t, err, codeUnpublished, "beta/n1: what it runs is not allowed (revoked)")
		})
	}
}

// The level is that of the checkpoint, and outside witnesses are told.
func TestLevels(t *testing.T) {
	m := small()
	m.Amend(consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{audittest.WitnessKey()}}}, "alpha govern", "beta govern", "gamma govern")
	_, p := export(t, m, at(5), append(audittest.Seats(), audittest.Witness)...)
	if p.Level != transparency.Strong || len(p.Outside) != 1 || !strings.Contains(strings.Join(p.Proves(), "\n"), audittest.WitnessName) {
		t.Errorf("%+v", p)
	}
	_, p = export(t, m, at(5), "beta/n1", "gamma/n1")
	if p.Level != transparency.Published || len(p.Outside) != 0 || !strings.Contains(strings.Join(p.ProvesNot(), "\n"), "none of the 1 outside witnesses") {
		t.Errorf("%+v", p)
	}
}

// A false result is refused though it is in the log: the log's seats lied.
func TestFalseResults(t *testing.T) {
	for name, c := range map[string]struct {
		leaf func(*audittest.Mesh) []byte
		code attest.Code
	}{
		"measurement not allowed": {func(m *audittest.Mesh) []byte { return m.Result("alpha/n1", "beta/n1", "evil") }, attest.CodeMeasurementNotAllowed},
		"by a stranger":           {func(m *audittest.Mesh) []byte { return m.Result("alpha/n9", "beta/n1", "new") }, attest.CodeNotShown},
		"by an older boot":        {func(m *audittest.Mesh) []byte { return m.Result("alpha/n1 before", "beta/n1", "new") }, attest.CodeNotShown},
		"of a later epoch": {func(m *audittest.Mesh) []byte {
			return m.Result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.Epoch = 9 })
		}, attest.CodePolicyIncomplete},
		"by a key that was removed": {func(m *audittest.Mesh) []byte {
			m.Amend(audittest.Rotation("alpha", consensus.KeyEnroll, "alpha enroll 2"), "alpha govern", "beta govern", "gamma govern")
			m.Command(consensus.KindCredential, m.Credential("gamma/n3"))
			return m.Result("alpha/n1", "beta/n1", "new")
		}, attest.CodeNoCredential},
		"of another mesh": {func(m *audittest.Mesh) []byte {
			return m.Result("alpha/n1", "beta/n1", "new", func(r *consensus.AttestationResult) { r.MeshID[0]++ })
		}, attest.CodeWrongMesh},
		"with another's signature": {func(m *audittest.Mesh) []byte {
			env, err := envelope.Parse(m.Result("alpha/n1", "beta/n1", "new"))
			if err != nil {
				panic(err)
			}
			return audittest.Sign(env.Payload, "gamma/n1 peer")
		}, attest.CodeWrongSigner},
	} {
		t.Run(name, func(t *testing.T) {
			m := small()
			m.Force(c.leaf(m))
			_, _, err := tryExport(t, m, at(len(m.Leaves)-1), audittest.Seats()...)
			refusedAs(t, err, c.code)
		})
	}
}

// A round is refused that was not signed by its aggregator, or in which somebody took part who was no
// member with the role; of one whose members too few affirm that is said.
func TestFalseRounds(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*audittest.Mesh) []byte
		code   attest.Code
	}{
		"a stranger": {func(m *audittest.Mesh) []byte {
			return m.Round(1, func(r *federated.Round) { r.Accepted[1] = audittest.Accepted("beta/n9") })
		}, attest.CodeNotShown},
		"an older boot": {func(m *audittest.Mesh) []byte {
			return m.Round(1, func(r *federated.Round) { r.Accepted[1].Peer = audittest.PeerOf("beta/n1 before") })
		}, attest.CodeNotShown},
		"without the role": {func(m *audittest.Mesh) []byte {
			m.Command(consensus.KindCredential, m.Credential("beta/n3", func(c *consensus.Credential) { c.Roles = []string{consensus.RoleMember} }))
			return m.Round(1, func(r *federated.Round) { r.Accepted[1] = audittest.Accepted("beta/n3") })
		}, attest.CodeNotEligible},
		"of a later epoch": {func(m *audittest.Mesh) []byte {
			return m.Round(1, func(r *federated.Round) { r.Epoch = 9 })
		}, attest.CodePolicyIncomplete},
		"with another's signature": {func(m *audittest.Mesh) []byte {
			env, err := envelope.Parse(m.Round(1))
			if err != nil {
				panic(err)
			}
			return audittest.Sign(env.Payload, "alpha/n1 peer")
		}, attest.CodeBadSignature},
	} {
		t.Run(name, func(t *testing.T) {
			m := small()
			m.Force(c.change(m))
			_, _, err := tryExport(t, m, at(len(m.Leaves)-1), audittest.Seats()...)
			refusedAs(t, err, c.code)
		})
	}
	m := small()
	// alpha/n1 alone affirms beta/n2.
	m.Force(m.Round(1, func(r *federated.Round) { r.Accepted[1] = audittest.Accepted("beta/n2") }))
	_, p := export(t, m, at(len(m.Leaves)-1), audittest.Seats()...)
	if p.Round.allEligible() || len(p.Round.Participants[1].AffirmedBy) != 1 || !strings.Contains(strings.Join(p.Says(), "\n"), "from beta/n2: affirmed by alpha/n1 (entry 10); up to 2 organisations were needed") {
		t.Errorf("%+v\n%v", p.Round, p.Says())
	}
	// And what was found an hour before counts for nothing.
	m = small()
	m.Tick(90 * time.Minute)
	m.Command(consensus.KindResults, m.Result("beta/n1", "alpha/n1", "new"))
	m.Force(m.Round(1))
	_, p = export(t, m, at(len(m.Leaves)-1), audittest.Seats()...)
	if got := p.Round.Participants; len(got[0].AffirmedBy) != 1 || len(got[1].AffirmedBy) != 0 {
		t.Errorf("%+v", got)
	}
}

// The policy is settled only as far as leaves say so: what lies behind the last that does, and is not
// shown, is named.
func TestCompleteTo(t *testing.T) {
	m := audittest.Complete()
	m.Grow(len(m.Leaves) + 2*maxTail)
	size := len(m.Leaves)
	data, p := export(t, m, at(5), m.Cosigners()...)
	if p.CompleteTo >= uint64(size) || !strings.Contains(strings.Join(p.ProvesNot(), "\n"), fmt.Sprintf("between entries %d and %d", p.CompleteTo, size)) {
		t.Errorf("%+v\n%s", p, strings.Join(p.ProvesNot(), "\n"))
	}
	_, late := export(t, m, at(size-1), m.Cosigners()...)
	if !p.Settled() || late.Settled() || !strings.Contains(strings.Join(late.Says(), "\n"), "as far as the file shows") {
		t.Errorf("%v %v %v", p.Settled(), late.Settled(), late.Says())
	}
	if f, err := Parse(data); err != nil || len(f.Links) > 60 {
		t.Errorf("%d links, %v", len(f.Links), err)
	}
	m.LogState(4 * consensus.DigestEvery)
	m.Command(consensus.KindCredential, m.Credential("alpha/n3"))
	_, p = export(t, m, at(5), m.Cosigners()...)
	if p.CompleteTo != uint64(len(m.Leaves)) || !strings.Contains(strings.Join(p.Proves(), "\n"), "no change of the policy before entry") {
		t.Errorf("%+v", p)
	}
}
