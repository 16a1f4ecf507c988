package federated

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

const minimal = "name: t\nfeatures: 2\nlabels: [0, 1]\n"

func TestParseSpec(t *testing.T) {
	s, err := ParseSpec("job.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultSpec()
	if s.Rounds != want.Rounds || s.Train != want.Train || s.Labels[1] != "1" || s.Disclosure != DiscloseNone {
		t.Errorf("got %+v", s)
	}
	s, err = ParseSpec("job.yaml", []byte(minimal+"train: {momentum: 0}\n"))
	if err != nil || s.Train.Momentum != 0 || s.Train.Epochs != want.Train.Epochs {
		t.Errorf("got %+v, %v", s, err)
	}
	for extra, want := range map[string]string{
		"bogus: 1\n":                    `line 4: unknown key "bogus"`,
		"train: {epoch: 1}\n":           `unknown key "epoch"`,
		"rounds: 0\n":                   "rounds 0: want 1 to",
		"rounds: ten\n":                 "line 4",
		"rounds: 100000\n":              "rounds 100000: want 1 to",
		"min_participants: 1\n":         "min_participants 1: want 2 to",
		"train: {learning_rate: 0}\n":   "train.learning_rate 0",
		"train: {learning_rate: .nan}":  "train.learning_rate NaN",
		"train: {learning_rate: .inf}":  "train.learning_rate +Inf",
		"train: {momentum: 1}\n":        "train.momentum 1",
		"rule: krum\n":                  `rule "krum": want fedavg`,
		"arithmetic: f32\n":             `arithmetic "f32": want f64-ordered-v1`,
		"disclosure: some\n":            `disclosure "some"`,
		"model: {hidden: 0}\n":          "model.hidden 0",
		"deadline: -1\n":                "deadline -1",
		"max_examples: 0\n":             "max_examples 0",
		"labels: [1]\n":                 `mapping key "labels" already defined`,
		"---\nname: u\n":                "more than one document",
		"seed: -1\n":                    "line 4",
		"train: {batch: 0, epochs: 1}}": "line",
	} {
		if _, err := ParseSpec("job.yaml", []byte(minimal+extra)); err == nil || !strings.HasPrefix(err.Error(), "job.yaml: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", extra, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                                       "the file is empty",
		"features: 2\nlabels: [a, b]\n":          "name \"\"",
		"name: t\nlabels: [a, b]\n":              "features 0",
		"name: t\nfeatures: 2\n":                 "labels: 0 of them",
		"name: t\nfeatures: 2\nlabels: [a]\n":    "labels: 1 of them",
		"name: t\nfeatures: 2\nlabels: [a, a]":   "twice",
		"name: t\nfeatures: 2\nlabels: [a, '']":  "labels: \"\"",
		"name: T t\nfeatures: 2\nlabels: [a, b]": "name",
	} {
		if _, err := ParseSpec("job.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
	want.Name, want.Features, want.Labels = "t", 3, []string{"0", "yes", "a: b", "null"}
	text, err := want.YAML()
	if err == nil {
		s, err = ParseSpec("again.yaml", text)
	}
	if err != nil || !reflect.DeepEqual(s, want) {
		t.Errorf("%s came back as %+v, %v", text, s, err)
	}
	if (Spec{}).Validate() == nil {
		t.Error("the zero spec is accepted")
	}
}

// The id names the payload: another mesh, or any other term, is another job, and further
// signatures are not.
func TestJobID(t *testing.T) {
	spec, err := ParseSpec("job.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	id := func(mesh identity.MeshID, s Spec, signers ...string) JobID {
		env, err := NewJob(mesh, s)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range signers {
			signer, _ := newSigner(t, name)
			if err := env.Sign(signer); err != nil {
				t.Fatal(err)
			}
		}
		job, err := ParseJob(env.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		return job.ID
	}
	base := id(testMeshID, spec)
	const golden = JobID("6ce0610ffb4570a7")
	if base != golden {
		t.Errorf("got %s, want %s", base, golden)
	}
	other := spec
	other.Seed++
	if id(testMeshID, spec, "a", "b") != base || id(testMeshID, other) == base || id(identity.MeshID{1}, spec) == base {
		t.Error("the id does not name the payload")
	}
	if _, err := NewJob(testMeshID, Spec{}); err == nil {
		t.Error("a zero job was made")
	}
}

// A subject that names something else than the spec is somebody's trick.
func TestParseJobRefuses(t *testing.T) {
	spec, err := ParseSpec("job.yaml", []byte(minimal))
	if err != nil {
		t.Fatal(err)
	}
	wrap := func(subject envelope.Subject, s Spec) []byte {
		payload, err := envelope.NewPayload(envelope.TypeJob, subject, JobPredicate{testMeshID, s})
		if err != nil {
			t.Fatal(err)
		}
		return (&envelope.Envelope{Payload: payload}).Marshal()
	}
	subject, err := jobSubject(spec)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseJob(wrap(subject, spec)); err != nil {
		t.Fatal(err)
	}
	bad := spec
	bad.Rounds = 0
	for name, raw := range map[string][]byte{
		"other subject": wrap(envelope.SubjectOf("t", nil), spec),
		"other name":    wrap(envelope.Subject{Name: "u", Digest: subject.Digest}, spec),
		"bad spec":      wrap(subject, bad),
		"nothing":       nil,
	} {
		if _, err := ParseJob(raw); err == nil {
			t.Errorf("%s accepted", name)
		}
	}
}

// The commitment hides the number and binds job, round and node.
func TestCommitment(t *testing.T) {
	o, ref := Opening{300, Digest{1}}, identity.NodeRef{Org: "a", Name: "n"}
	base := o.Commit("0123456789abcdef", 1, ref)
	if got := hex.EncodeToString(base[:]); got != "cd42ef93eeeecddbc84c09a2f67d0f082d7961efa801eb558701ee16ac96e455" {
		t.Errorf("got %s", got)
	}
	for name, other := range map[string]Digest{
		"number": Opening{301, Digest{1}}.Commit("0123456789abcdef", 1, ref),
		"salt":   Opening{300, Digest{2}}.Commit("0123456789abcdef", 1, ref),
		"job":    o.Commit("1123456789abcdef", 1, ref),
		"round":  o.Commit("0123456789abcdef", 2, ref),
		"org":    o.Commit("0123456789abcdef", 1, identity.NodeRef{Org: "b", Name: "n"}),
		"node":   o.Commit("0123456789abcdef", 1, identity.NodeRef{Org: "a", Name: "m"}),
	} {
		if other == base {
			t.Errorf("%s does not change the commitment", name)
		}
	}
}

// Signed bytes and command bytes are fixed: logs of old meshes hold them, and a change is a
// new version.
func TestGoldenBytes(t *testing.T) {
	signer, public := newSigner(t, "golden")
	peer := identity.PeerIDFromKey(public)
	ref := identity.NodeRef{Org: "alpha", Name: "n1"}
	turn := Turn{MeshID: testMeshID, Job: "0123456789abcdef", Round: 1, Attempt: 2, BaseRoot: [32]byte{7}}
	u, err := SignUpdate(signer, Update{turn, ref, peer, [32]byte{8}, Digest{9}, TrainerBuiltIn, "abcd"})
	if err != nil {
		t.Fatal(err)
	}
	acc := Accepted{ref, peer, [32]byte{8}, Digest{9}, Digest{10}}
	c, err := SignClose(signer, Close{turn, ref, peer, []Accepted{acc}, []Rejected{{identity.NodeRef{Org: "beta", Name: "n1"}, peer, attest.CodeNonFinite}}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := SignRound(signer, Round{turn, 3, RuleFedAvg, "f64-ordered-v1", [32]byte{11}, ref, peer, []Accepted{acc}, nil})
	if err != nil {
		t.Fatal(err)
	}
	open, err := OpenCommand(RoundOpen{"0123456789abcdef", 1, 2, []identity.PeerID{peer}, "unreachable"})
	if err != nil {
		t.Fatal(err)
	}
	closing, err := CloseCommand(c.Marshal(), [][]byte{u.Marshal()})
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	for _, part := range []struct {
		name string
		raw  []byte
	}{{"update", u.Payload}, {"close", c.Payload}, {"round", r.Payload}} {
		got.WriteString(part.name + " " + string(part.raw) + "\n")
	}
	got.WriteString("open " + hex.EncodeToString(open) + "\nclose-command " + hex.EncodeToString(closing[:8]) + "\n")
	want, err := os.ReadFile(filepath.Join("testdata", "golden.txt"))
	if err != nil || got.String() != string(want) {
		t.Errorf("%v; got\n%s", err, got.String())
	}
}

// Two nodes that train with one seed are still two nodes.
func TestParticipate(t *testing.T) {
	d := data.Digits(60, 1)
	spec := DefaultSpec()
	spec.Name, spec.Features, spec.Labels, spec.Rounds = "t", d.Features, d.Classes(), 1
	a, b := identity.NodeRef{Org: "a", Name: "n"}, identity.NodeRef{Org: "b", Name: "n"}
	const job = JobID("0123456789abcdef")
	w, err := spec.Participate(job, 0, a, nil, d)
	if err != nil {
		t.Fatal(err)
	}
	base, err := spec.Combine(0, nil, []Contribution{{a, w.Examples, w.Update}})
	if err != nil {
		t.Fatal(err)
	}
	train := func(round uint32, node identity.NodeRef) Work {
		w, err := spec.Participate(job, round, node, base, d)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	first, again := train(1, a).Root, train(1, a).Root
	if first != again || first == train(1, b).Root || first == train(2, a).Root {
		t.Error("the seed of training does not follow from job, round and node alone")
	}
	bad := spec
	bad.Labels = bad.Labels[1:]
	if _, err := bad.Participate(job, 0, a, nil, d); err == nil {
		t.Error("a label that the job does not have was accepted in round 0")
	}
	bad = spec
	bad.Features++
	if _, err := bad.Participate(job, 0, a, nil, d); err == nil {
		t.Error("another number of features was accepted")
	}
	bad = spec
	bad.MaxExamples = 59
	if _, err := bad.Participate(job, 0, a, nil, d); err == nil {
		t.Error("more examples than the job allows were accepted")
	}
	if _, err := spec.Participate(job, 1, a, []byte("x"), d); err == nil {
		t.Error("a base model that is none was accepted")
	}
	if _, err := spec.Combine(1, base, nil); err == nil {
		t.Error("a mean of nothing")
	}
}
