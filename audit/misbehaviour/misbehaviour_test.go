package misbehaviour

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/canonical"
	"github.com/attestmesh/meshnode/transparency"
)

// Who has cosigned two roots of one size, or a tree and another that does not go on from it, is
// convicted, and nobody else.
func TestConvicts(t *testing.T) {
	m := newMesh(t, 5)
	ours, theirs := m.tree("ours", 10, 40), m.tree("theirs", 10, 40)
	for name, c := range map[string]struct {
		own, other []byte
		creds      [][]byte
		want       string
		both       string
		published  bool
	}{
		"one size":                       {own: m.note(ours, 20, "alpha", "beta"), other: m.note(theirs, 20, "beta", "gamma"), want: "beta/1"},
		"another size":                   {own: m.note(ours, 33, "alpha", "beta"), other: m.note(theirs, 17, "beta"), want: "beta/1"},
		"just after the fork":            {own: m.note(ours, 33, "beta"), other: m.note(theirs, 11, "beta"), want: "beta/1"},
		"at a power of two":              {own: m.note(ours, 32, "beta"), other: m.note(theirs, 16, "beta"), want: "beta/1"},
		"two quorums":                    {own: m.note(ours, 20, "alpha", "beta", "delta"), other: m.note(theirs, 20, "delta", "epsilon", "eta"), want: "delta/1", published: true},
		"two boots":                      {own: m.note(ours, 20, "alpha"), other: m.note(theirs, 20, "alpha 2", "beta"), creds: [][]byte{m.credential("alpha", 2)}, both: "[alpha]"},
		"a later boot that lies":         {own: m.note(ours, 20, "alpha 2"), other: m.note(theirs, 20, "alpha 2"), creds: [][]byte{m.credential("alpha", 2)}, want: "alpha/2"},
		"a boot that nobody vouches for": {own: m.note(ours, 20, "alpha 2"), other: m.note(theirs, 20, "alpha 2")},
		"nobody":                         {own: m.note(ours, 20, "alpha", "beta", "delta"), other: m.note(theirs, 20)},
	} {
		data, r, err := New(m.policy, c.creds, ours, c.own, c.other)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		verdict := VerdictLogKeyLeaked
		if c.want != "" || c.published {
			verdict = VerdictMisbehaviour
		}
		again, err := Verify(data, m.g)
		if err != nil || convicted(again) != convicted(r) || r.Verdict != verdict || convicted(r) != c.want || r.Published != c.published || !Is(data) {
			t.Errorf("%s: %s of %q, published %v, then %v; want %q", name, r.Verdict, convicted(r), r.Published, err, c.want)
		}
		if c.both != "" && fmt.Sprint(r.Both) != c.both {
			t.Errorf("%s: both %v", name, r.Both)
		}
		for _, org := range r.Organisations() {
			if !strings.Contains(strings.Join(r.Proves(), "\n"), string(org)+" has cosigned both") {
				t.Errorf("%s: %q names no %s", name, r.Proves(), org)
			}
		}
	}
}

// One history contradicts nothing, whoever has signed what of it.
func TestOneHistory(t *testing.T) {
	m := newMesh(t, 3)
	tree := m.tree("ours", 0, 40)
	for _, pair := range [][2][]byte{
		{m.note(tree, 20, "alpha", "beta"), m.note(tree, 20, "alpha", "beta")},
		{m.note(tree, 40, "alpha", "beta"), m.note(tree, 17, "alpha", "beta")},
		{m.note(tree, 32, "alpha"), m.note(tree, 16, "alpha")},
	} {
		if _, _, err := New(m.policy, nil, tree, pair[0], pair[1]); !errors.Is(err, ErrNothing) {
			t.Errorf("got %v", err)
		}
	}
	if _, _, err := New(m.policy, nil, tree, m.note(tree, 10), m.note(m.tree("theirs", 0, 20), 20)); !errors.Is(err, ErrAhead) {
		t.Errorf("a larger one: %v", err)
	}
}

// A file says nothing that it does not prove: each part that is exchanged or left out ends it.
func TestForgedFiles(t *testing.T) {
	m, stranger := newMesh(t, 3), newMesh(t, 4)
	ours, theirs := m.tree("ours", 10, 40), m.tree("theirs", 10, 40)
	good, _, err := New(m.policy, [][]byte{m.credential("alpha", 2)}, ours, m.note(ours, 33, "alpha 2", "beta"), m.note(theirs, 17, "alpha 2", "gamma"))
	m.check(err)
	forge := func(change func(*file)) []byte {
		f, err := parse(good)
		m.check(err)
		change(f)
		raw, err := canonical.JSON(f)
		m.check(err)
		return raw
	}
	same, err := ours.RootAt(17)
	m.check(err)
	for name, c := range map[string]struct {
		file []byte
		want error // nil: some refusal
	}{
		"no root":               {forge(func(f *file) { f.Root = nil }), ErrMalformed},
		"the root of the other": {forge(func(f *file) { r, _ := theirs.RootAt(17); f.Root = &r }), ErrNothing},
		"some root":             {forge(func(f *file) { f.Root = &transparency.Hash{1} }), nil},
		"no proof":              {forge(func(f *file) { f.Proof = nil }), nil},
		"a longer proof":        {forge(func(f *file) { f.Proof = append(f.Proof, transparency.Hash{}) }), nil},
		"the larger first":      {forge(func(f *file) { f.Checkpoints[0], f.Checkpoints[1] = f.Checkpoints[1], f.Checkpoints[0] }), ErrMalformed},
		"the right root": {forge(func(f *file) {
			f.Checkpoints[0] = string(m.signed(transparency.Checkpoint{Origin: m.policy.Origin(), Size: 17, Root: same}, "alpha 2"))
		}), ErrNothing},
		"another incarnation": {forge(func(f *file) {
			f.Checkpoints[0] = string(m.signed(transparency.Checkpoint{Origin: m.g.Origin(1), Size: 17}, "alpha 2"))
		}), nil},
		"no Bootstrap":          {forge(func(f *file) { f.Chain = nil }), ErrMalformed},
		"a Bootstrap of others": {forge(func(f *file) { f.Chain = []string{string(stranger.policy.Bootstrap().Raw())} }), nil},
		"a Credential by another organisation": {forge(func(f *file) {
			raw, err := consensus.SignCredential(m.signer("beta "+consensus.KeyEnroll), mustCredential(t, m.credential("alpha", 2)))
			m.check(err)
			f.Credentials = []string{string(raw)}
		}), nil},
		"a Credential of another mesh": {forge(func(f *file) {
			f.Credentials = []string{string(m.credential("alpha", 2, func(c *consensus.Credential) { c.MeshID = stranger.g.MeshID() }))}
		}), nil},
		"a Credential of another incarnation": {forge(func(f *file) {
			f.Credentials = []string{string(m.credential("alpha", 2, func(c *consensus.Credential) { c.Incarnation = 1 }))}
		}), nil},
		"a later form":   {forge(func(f *file) { f.Version = "misbehaviour/v2" }), ErrMalformed},
		"trailing bytes": {append(bytes.Clone(good), '\n'), ErrMalformed},
		"nothing":        {nil, ErrMalformed},
	} {
		r, err := Verify(c.file, m.g)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: convicts %q, %v", name, convicted(r), err)
		}
	}
	if _, err := Verify(good, stranger.g); !errors.Is(err, ErrOtherMesh) {
		t.Errorf("under the genesis of another mesh: %v", err)
	}
	if r, err := Verify(good, m.g); err != nil || convicted(r) != "alpha/2" {
		t.Fatalf("the good one: %q, %v", convicted(r), err)
	}
	// The Credential left out, its key speaks for nobody: the log key alone is left.
	r, err := Verify(forge(func(f *file) { f.Credentials = []string{} }), m.g)
	if err != nil || r.Verdict != VerdictLogKeyLeaked || len(r.Convicted) != 0 {
		t.Errorf("without the Credential: %+v, %v", r, err)
	}
}

func mustCredential(t *testing.T, raw []byte) consensus.Credential {
	t.Helper()
	c, err := consensus.ParseCredential(raw)
	if err != nil {
		t.Fatal(err)
	}
	return *c
}

// An enroll key that was removed since speaks for its organisation still, and the report says so.
func TestRemovedEnrollKey(t *testing.T) {
	m := newMesh(t, 3)
	raw, r := m.removedKey()
	again, err := Verify(raw, m.g)
	if err != nil || convicted(r) != "alpha/2" || convicted(again) != "alpha/2" || !r.Convicted[0].KeyRemoved || !strings.Contains(strings.Join(r.ProvesNot(), "\n"), "removed later") {
		t.Errorf("%+v, %v", r, err)
	}
}

// removedKey is a file about a boot whose enroll key was removed since, and the report about it.
func (m *mesh) removedKey() ([]byte, Report) {
	m.t.Helper()
	cred := m.credential("alpha", 2)
	ours, theirs := m.tree("ours", 10, 40), m.tree("theirs", 10, 40)
	org, _ := m.policy.Organisation("alpha")
	var old string
	for _, k := range org.Keys {
		if k.Role == consensus.KeyEnroll {
			old = k.ID()
		}
	}
	m.extend(consensus.Action{AddKey: &consensus.AddKey{Organisation: "alpha", Key: consensus.Key{Role: consensus.KeyEnroll, Public: public("alpha enroll 2")}}})
	m.extend(consensus.Action{RemoveKey: &consensus.RemoveKey{Organisation: "alpha", Role: consensus.KeyEnroll, ID: old}})
	raw, r, err := New(m.policy, [][]byte{cred}, ours, m.note(ours, 20, "alpha 2"), m.note(theirs, 20, "alpha 2"))
	m.check(err)
	return raw, r
}

// Random histories of honest seats, each of which believes one of two and cosigns what it has of it;
// random traitors, who have the log key and cosign whatever is of use, and write whatever file they
// like. No honest organisation is ever convicted, and whoever has signed both sides of a pair is.
func TestHonestAreNeverConvicted(t *testing.T) {
	const seed = 20260301
	rounds := 24
	if testing.Short() || underRace {
		rounds = 4
	}
	for round := range rounds {
		rnd := rand.New(rand.NewPCG(seed, uint64(round)))
		n := 2 + rnd.IntN(6)
		m := newMesh(t, n)
		traitor := map[string]bool{}
		for _, org := range m.orgs {
			traitor[org] = rnd.IntN(3) == 0
		}
		common, size := 1+rnd.IntN(30), 0
		size = common + 1 + rnd.IntN(60)
		trees := [2]*transparency.Tree{m.tree("ours", common, size), m.tree("theirs", common, size)}
		believes := map[string]int{}
		for _, org := range m.orgs {
			believes[org] = rnd.IntN(2)
		}
		// What honest seats have signed: sizes of their history, and no less than before.
		notes := [2][][]byte{}
		signers := map[string][]string{} // of each note
		for side, tree := range trees {
			at := 1
			for range 4 {
				at += rnd.IntN(size - at + 1)
				note := m.note(tree, at)
				var by []string
				for _, org := range m.orgs {
					if traitor[org] && rnd.IntN(4) > 0 || !traitor[org] && (believes[org] == side || at <= common) && rnd.IntN(3) > 0 {
						note, by = m.cosign(note, org), append(by, org)
					}
				}
				notes[side], signers[string(note)] = append(notes[side], note), by
			}
		}
		for _, own := range notes[0] {
			for _, other := range notes[1] {
				data, r, err := New(m.policy, nil, trees[0], own, other)
				if errors.Is(err, ErrAhead) || errors.Is(err, ErrNothing) {
					continue
				}
				if err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				want := []string{}
				for _, org := range signers[string(own)] {
					if slices.Contains(signers[string(other)], org) {
						want = append(want, org)
					}
				}
				got := []string{}
				for _, org := range r.Organisations() {
					got = append(got, string(org))
				}
				slices.Sort(want)
				if !slices.Equal(got, want) {
					t.Fatalf("round %d: convicted %v, both were signed by %v", round, got, want)
				}
				for _, org := range got {
					if !traitor[org] {
						t.Fatalf("round %d: honest %s is convicted", round, org)
					}
				}
				if q := transparency.QuorumOf(n).Published; r.Published && len(want) == 0 || r.Published != (len(signers[string(own)]) >= q && len(signers[string(other)]) >= q) {
					t.Fatalf("round %d: published %v by %v and %v", round, r.Published, signers[string(own)], signers[string(other)])
				}
				m.frame(rnd, data, notes, trees, traitor)
			}
		}
	}
}

func text(note []byte) string {
	head, _, _ := strings.Cut(string(note), "\n\n")
	return head
}

// frame writes files as somebody would who wants others to be convicted: with lines of one note in
// another, other roots, other proofs, Credentials of traitors for others' keys, and bytes changed.
func (m *mesh) frame(rnd *rand.Rand, data []byte, notes [2][][]byte, trees [2]*transparency.Tree, traitor map[string]bool) {
	m.t.Helper()
	f, err := parse(data)
	m.check(err)
	all := slices.Concat(notes[0], notes[1])
	for range 6 {
		g := *f
		for i := range g.Checkpoints {
			body, lines, _ := strings.Cut(string(all[rnd.IntN(len(all))]), "\n\n")
			if rnd.IntN(2) == 0 { // a text of the thief's own, under signatures that exist
				c := transparency.Checkpoint{Origin: m.policy.Origin(), Size: uint64(1 + rnd.IntN(90)), Root: transparency.Hash{byte(rnd.IntN(256))}}
				body = text(m.signed(c))
			}
			g.Checkpoints[i] = body + "\n\n" + lines
		}
		switch rnd.IntN(4) {
		case 0:
			g.Root, g.Proof = nil, nil
		case 1:
			g.Root = &transparency.Hash{byte(rnd.IntN(256))}
		case 2:
			a, b := uint64(1+rnd.IntN(int(trees[1].Size()))), trees[1].Size()
			if root, err := trees[1].RootAt(a); err == nil {
				g.Root = &root
				g.Proof, _ = trees[1].ConsistencyProof(a, b)
			}
		}
		for _, org := range m.orgs {
			if traitor[org] { // its enroller vouches for the key of another organisation's node
				victim := m.orgs[rnd.IntN(len(m.orgs))]
				g.Credentials = append(slices.Clone(g.Credentials), string(m.credential(org, 7, func(c *consensus.Credential) {
					c.Cosigner = public(bootKey(victim, 1, "cosigner"))
				})))
			}
		}
		raw, err := canonical.JSON(g)
		m.check(err)
		m.nobodyHonest(raw, traitor)
	}
	for range 10 {
		raw := bytes.Clone(data)
		raw[rnd.IntN(len(raw))] ^= byte(1 + rnd.IntN(255))
		m.nobodyHonest(raw, traitor)
	}
}

func (m *mesh) nobodyHonest(raw []byte, traitor map[string]bool) {
	m.t.Helper()
	r, err := Verify(raw, m.g)
	if err != nil {
		return
	}
	for _, org := range r.Organisations() {
		if !traitor[string(org)] {
			m.t.Fatalf("a forged file convicts honest %s: %s", org, raw)
		}
	}
}

// FuzzVerify: no bytes make a panic, and none convict anybody in a mesh where nobody has signed
// twice.
func FuzzVerify(f *testing.F) {
	m := newMesh(f, 3)
	ours, theirs := m.tree("ours", 3, 9), m.tree("theirs", 3, 9)
	for _, other := range [][]byte{m.note(theirs, 9, "gamma"), m.note(theirs, 5, "gamma")} {
		data, _, err := New(m.policy, nil, ours, m.note(ours, 9, "alpha", "beta"), other)
		m.check(err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := Verify(data, m.g); err == nil && (len(r.Convicted) > 0 || r.Verdict != VerdictLogKeyLeaked) {
			t.Errorf("%s of %q", r.Verdict, convicted(r))
		}
	})
}
