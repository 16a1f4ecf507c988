package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/audit/audittest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/transparency"
)

// growing is a log that is published again and again as its mesh goes on.
type growing struct {
	*mesh
	tree   *transparency.Tree
	reader *transparency.Reader
}

func grows(m *mesh) *growing {
	m.t.Helper()
	path := filepath.Join(m.t.TempDir(), "log")
	dir, err := durable.Open(path)
	m.check(err)
	tree, err := transparency.NewTree(dir)
	m.check(err)
	r, err := transparency.OpenReader(path)
	m.check(err)
	m.t.Cleanup(func() { r.Close() })
	return &growing{m, tree, r}
}

// publish appends the leaves that are new and publishes.
func (g *growing) publish(cosigners ...string) {
	g.t.Helper()
	size, _ := g.tree.Head()
	_, err := g.tree.AppendAll(g.Leaves[size:])
	g.check(err)
	g.check(g.tree.Publish(g.Checkpoint(g.tree, cosigners...)))
}

func (g *growing) extend(a *Auditor) Extension {
	g.t.Helper()
	e, err := a.Extend(g.t.Context(), g.reader, g.now())
	g.check(err)
	return e
}

// log is what Log says of the same.
func (g *growing) log() Report {
	g.t.Helper()
	r, err := Log(g.t.Context(), g.reader, Options{Genesis: g.Genesis, At: g.now()})
	g.check(err)
	return r
}

func sameReport(t testing.TB, what string, got, want Report) {
	t.Helper()
	got.State, want.State = nil, nil
	got.Claims, want.Claims = nil, nil
	if a, b := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); a != b {
		t.Fatalf("%s:\n got %.3000s\nwant %.3000s", what, a, b)
	}
}

func again(t testing.TB, a *Auditor) *Auditor {
	t.Helper()
	var file bytes.Buffer
	if err := a.Save(&file); err != nil {
		t.Fatal(err)
	}
	next, err := Load(&file, a.opts)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// complete is a mesh of the past with every kind of leaf.
func complete(t testing.TB) *mesh {
	m := &mesh{*audittest.Complete(), t}
	m.Cosigned = time.Now()
	return m
}

// grow appends results until there are n leaves, in each something that was not said before.
func (m *mesh) grow(n int) { m.growFrom(len(m.Leaves)-8, n) }

// growFrom is grow after i such results.
func (m *mesh) growFrom(i, n int) {
	for ; len(m.Leaves) < n; i++ {
		m.At = m.At.Add(time.Second)
		verifier := i % 3
		m.Force(m.Result(seats[verifier], seats[(verifier+1+i/3%2)%3], []string{"old", "new"}[i/6%2]))
	}
}

// However often an auditor goes on, and is saved between, its report is that of one audit.
func TestAuditorGoesOn(t *testing.T) {
	g := grows(started(t))
	a := New(Options{Genesis: g.Genesis})
	from := uint64(0)
	for i, step := range []func(){
		func() {},
		func() {},
		func() { g.Command(consensus.KindCredential, g.Credential("beta/n2")) },
		func() { g.Command(consensus.KindProposal, g.Proposal(g.Add("newer"), "alpha", "gamma")) },
		func() {
			g.Command(consensus.KindResults, g.Result("alpha/n1", "beta/n2", "newer"), g.Result("gamma/n1", "beta/n2", "newer"))
		},
		func() { g.Force(g.Result("alpha/n1", "beta/n2", "evil")) },
		func() { g.Command(consensus.KindProposal, g.Proposal(audittest.Remove("newer"), "alpha", "beta")) },
		func() { g.Force([]byte("no leaf")) },
		func() { g.growFrom(0, 600) },
	} {
		step()
		g.publish(seats...)
		e := g.extend(a)
		if !e.Held || e.Reverted || e.From != from || a.Held().Size != uint64(len(g.Leaves)) {
			t.Fatalf("step %d: %+v", i, e)
		}
		sameReport(t, fmt.Sprint("step ", i), e.Report, g.log())
		if want := map[int]string{5: "12:measurement_not_allowed", 7: "14:malformed"}[i]; codes(Report{Findings: e.New}) != want {
			t.Errorf("step %d: new are %v, want %q", i, e.New, want)
		}
		from = uint64(len(g.Leaves))
		a = again(t, a)
	}
}

// An audit that is stopped at any bundle, saved and loaded, says what one that is not stopped says:
// of a log with every kind of leaf and with lies, and of damaged ones.
func TestAuditorResumes(t *testing.T) {
	m := complete(t)
	m.Grow(1800)
	m.Leaves = slices.Insert(m.Leaves, 900, m.Result(m.Cosigners()[0], m.Cosigners()[1], "evil"), []byte("no leaf"))
	g := grows(m)
	g.publish(m.Cosigners()...)
	want := g.log()
	if got := codes(want); got != "900:measurement_not_allowed 901:malformed" {
		t.Fatalf("%s\n%+v", got, want.Findings)
	}
	rounds := 3
	if underRace {
		rounds = 1
	}
	for round := range rounds {
		a, stops := New(Options{}), 0
		for {
			ctx, cancel := context.WithCancel(t.Context())
			a.opts = Options{Genesis: m.Genesis, Progress: func(uint64, uint64) {
				if rand.IntN(2) == 0 {
					cancel()
				}
			}}
			e, err := a.Extend(ctx, g.reader, g.now())
			cancel()
			if err == nil {
				if !e.Held {
					t.Fatalf("%.2000s", fmt.Sprintf("%+v", e))
				}
				sameReport(t, fmt.Sprintf("round %d, %d stops", round, stops), e.Report, want)
				break
			}
			if !errors.Is(err, context.Canceled) || stops > 20 {
				t.Fatal(stops, err)
			}
			stops++
			a = again(t, a)
		}
	}
}

// The state after each leaf is all that the rest is judged by.
func TestEveryStateCanBeSaved(t *testing.T) {
	m := complete(t)
	m.Grow(len(m.Leaves) + 20)
	g := grows(m)
	g.publish(m.Cosigners()...)
	a, saved := New(Options{Genesis: m.Genesis}), 0
	a.watch = func(s Seen) {
		if !a.replay.started() {
			return
		}
		w, err := a.replay.wire()
		m.check(err)
		next, err := a.unwire(&w)
		if err != nil {
			t.Fatalf("leaf %d: %v", s.Index, err)
		}
		if next.state.Digest() != a.replay.state.Digest() {
			t.Fatalf("leaf %d: another state", s.Index)
		}
		next.at, next.latest = a.replay.at, a.replay.latest
		a.replay = next
		saved++
	}
	e := g.extend(a)
	if !e.Held || saved < len(m.Leaves)-3 {
		t.Fatalf("%d of %d saved, %+v", saved, len(m.Leaves), e)
	}
	sameReport(t, "saved after every leaf", e.Report, g.log())
}

// Every leaf is shown, in order, with the state before and after it.
func TestAuditorShowsEveryLeaf(t *testing.T) {
	m := started(t)
	m.Command(consensus.KindProposal, m.Proposal(m.Add("newer"), "alpha", "gamma"))
	m.Force(m.Result("alpha/n1", "beta/n1", "evil"))
	g := grows(m)
	g.publish(seats...)
	var got []string
	entries := -1
	a := New(Options{Genesis: m.Genesis, Before: func(s Seen) {
		entries = -1
		if s.State != nil {
			entries = len(s.State.Entries())
		}
		if s.Findings != nil {
			t.Errorf("leaf %d has findings before its replay", s.Index)
		}
	}, After: func(s Seen) {
		line := fmt.Sprintf("%d %s %d", s.Index, s.Kind[strings.LastIndexByte(strings.TrimSuffix(s.Kind, "/v1"), '/')+1:], entries)
		if s.State != nil {
			line += fmt.Sprintf(">%d under %d", len(s.State.Entries()), s.Policy)
		}
		for _, f := range s.Findings {
			line += " " + f.Code
		}
		if s.Hash != transparency.LeafHash(m.Leaves[s.Index]) || !bytes.Equal(s.Leaf, m.Leaves[s.Index]) {
			t.Errorf("leaf %d is another", s.Index)
		}
		got = append(got, line)
	}})
	g.extend(a)
	want := []string{"0 genesis/v1 -1", "1 bootstrap/v1 -1>3 under 1"}
	for i := 2; i < 8; i++ {
		want = append(want, fmt.Sprintf("%d attestation-result/v1 3>3 under 1", i))
	}
	want = append(want, "8 proposal/v1 3>4 under 8", "9 attestation-result/v1 4>4 under 8 measurement_not_allowed")
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// A log that was rewritten, or is an older copy, is not the one that was audited, whoever signs it.
func TestAuditorRefusesAnotherHistory(t *testing.T) {
	m := started(t)
	m.grow(300)
	audited := grows(m)
	audited.publish(seats...)
	other := func(n int, change bool) *growing {
		twin := *m
		twin.Leaves = slices.Clone(m.Leaves[:min(n, 300)])
		if change {
			twin.Leaves[200] = m.Leaves[201]
		}
		twin.grow(n)
		g := grows(&twin)
		g.publish(seats...)
		return g
	}
	for _, c := range []struct {
		name string
		log  *growing
		want string
	}{
		{"older", other(290, false), "290:rolled_back"},
		{"of the same size", other(300, true), "300:forked"},
		{"longer", other(700, true), "300:forked"},
		{"as it goes on", other(700, false), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := New(Options{Genesis: m.Genesis})
			if e := audited.extend(a); !e.Held || !e.OK {
				t.Fatalf("%.2000s", fmt.Sprintf("%+v", e))
			}
			for _, a := range []*Auditor{again(t, a), a} {
				e := c.log.extend(a)
				if codes(e.Report) != c.want || codes(Report{Findings: e.New}) != c.want || e.Held != (c.want == "") {
					t.Fatalf("%.2000s", fmt.Sprintf("%+v", e))
				}
				if c.want == "" {
					continue
				}
				if a.Held().Size != 300 {
					t.Errorf("stands at %+v", a.Held())
				}
				if e := audited.extend(a); !e.Held || !e.OK {
					t.Errorf("the true log again: %+v", e)
				}
			}
		})
	}
}

// The log of an incarnation before the one that held is an older one, whoever signed it and however
// long it has grown meanwhile.
func TestAuditorRefusesAnEarlierIncarnation(t *testing.T) {
	m := started(t)
	earlier := *m
	earlier.Leaves = slices.Clone(m.Leaves)
	m.Recover(1, "again", len(m.Leaves), len(m.Leaves))
	g := grows(m)
	g.publish(audittest.Again("again")...)
	a := New(Options{Genesis: m.Genesis})
	if e := g.extend(a); !e.Held || !e.OK {
		t.Fatalf("%.2000s", fmt.Sprintf("%+v", e))
	}
	for _, size := range []int{len(earlier.Leaves), 300} {
		earlier.grow(size)
		old := grows(&earlier)
		old.publish(seats...)
		if e := old.extend(a); codes(e.Report) != fmt.Sprintf("%d:rolled_back", size) || e.Held {
			t.Errorf("%.2000s", fmt.Sprintf("%+v", e))
		}
	}
	if e := g.extend(a); !e.Held || !e.OK {
		t.Errorf("%.2000s", fmt.Sprintf("%+v", e))
	}
}

// An auditor that had to begin again still knows what held.
func TestAuditorBeginsAgainTowardsWhatHeld(t *testing.T) {
	m := started(t)
	m.grow(600)
	g := grows(m)
	g.publish(seats...)
	a := New(Options{Genesis: m.Genesis})
	g.extend(a)
	a.good = nil
	a.restart()
	var file bytes.Buffer
	m.check(a.Save(&file))
	a, err := Load(&file, a.opts)
	m.check(err)
	if a.Held().Size != 600 || a.State() != nil {
		t.Fatalf("%+v", a.Held())
	}
	twin := *m
	twin.Leaves = slices.Clone(m.Leaves)
	twin.Leaves[300] = m.Leaves[301]
	twin.grow(1000)
	other := grows(&twin)
	other.publish(seats...)
	if e := other.extend(a); codes(e.Report) != "600:forked" {
		t.Errorf("%.2000s", fmt.Sprintf("%+v", e))
	}
	// Where tiles do not tell, the entries do when they come to that size.
	a.held.Root[0] ^= 1
	if e := g.extend(a); codes(e.Report) != "600:forked" || e.Held {
		t.Errorf("%.2000s", fmt.Sprintf("%+v", e))
	}
	a.held.Root[0] ^= 1
	if e := g.extend(a); !e.Held || !e.OK {
		t.Errorf("%.2000s", fmt.Sprintf("%+v", e))
	}
}

// What a checkpoint that too few have signed brings counts for nothing once it is gone.
func TestAuditorGoesBackToWhatHeld(t *testing.T) {
	m := started(t)
	g := grows(m)
	g.publish(seats...)
	a := New(Options{Genesis: m.Genesis})
	g.extend(a)
	m.Force(m.Result("alpha/n1", "beta/n1", "evil"))
	g.publish("alpha/n1")
	if e := g.extend(a); codes(e.Report) != "8:measurement_not_allowed 9:unpublished" || e.Held || !e.Reverted || a.Held().Size != 8 {
		t.Fatalf("%.2000s", fmt.Sprintf("%+v", e))
	}
	twin := *m
	twin.Leaves = m.Leaves[:8]
	twin.grow(12)
	next := grows(&twin)
	next.publish(seats...)
	if e := next.extend(a); !e.Held || !e.OK || e.From != 8 {
		t.Errorf("%.2000s", fmt.Sprintf("%+v", e))
	}
}

func TestAuditorRefusesOtherMesh(t *testing.T) {
	m := started(t)
	g := grows(m)
	g.publish(seats...)
	a := New(Options{})
	g.extend(a)
	o := grows(&mesh{*audittest.New(audittest.Options{At: m.At, Edit: func(g *consensus.Genesis) { g.Name = "other" }}).Start(), t})
	o.Cosigned = time.Now()
	o.publish(seats...)
	if _, err := a.Extend(t.Context(), o.reader, time.Now()); !errors.Is(err, ErrOtherLog) {
		t.Errorf("got %v, want %v", err, ErrOtherLog)
	}
	var file bytes.Buffer
	m.check(a.Save(&file))
	if _, err := Load(&file, Options{Genesis: o.Genesis}); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), o.Genesis.MeshID().String()) {
		t.Errorf("got %v, want %v", err, ErrState)
	}
	if _, err := a.Extend(t.Context(), g.reader, time.Time{}); err == nil {
		t.Error("audited at no time")
	}
}

// A saved audit that is damaged at any byte, cut or longer is refused.
func TestLoadRefusesDamage(t *testing.T) {
	m := started(t)
	g := grows(m)
	g.publish(seats...)
	a := New(Options{Genesis: m.Genesis})
	g.extend(a)
	var file bytes.Buffer
	m.check(a.Save(&file))
	good := file.Bytes()
	if _, err := Load(bytes.NewReader(good), a.opts); err != nil {
		t.Fatal(err)
	}
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 1
		if _, err := Load(bytes.NewReader(bad), a.opts); !errors.Is(err, ErrState) {
			t.Fatalf("byte %d of %d flipped: %v", i, len(good), err)
		}
		if _, err := Load(bytes.NewReader(good[:i]), a.opts); !errors.Is(err, ErrState) {
			t.Fatalf("%d of %d bytes: %v", i, len(good), err)
		}
	}
	if _, err := Load(bytes.NewReader(append(slices.Clone(good), 0)), a.opts); !errors.Is(err, ErrState) {
		t.Errorf("one more byte: %v", err)
	}
	// Nothing behind the sum is believed for its form alone.
	body := good[len(stateMagic)+8 : len(good)-32]
	for i := 0; i < len(body); i += 13 {
		bad := slices.Clone(body)
		bad[i] ^= 1
		next := New(a.opts)
		if next.load(bad) == nil {
			_, _ = next.Extend(t.Context(), g.reader, g.now())
		}
	}
}

// What an audit knows is saved, or follows from what is, or is of one Extend: who adds a field says
// here which, and saves it in state.go.
func TestSavedAuditKnowsEveryField(t *testing.T) {
	for of, want := range map[reflect.Type]string{
		reflect.TypeFor[replayer](): "given at genesis state broken policy place recoveries parts derived results rounds suspensions suspects jobs volume governors earliest " +
			"latest", // at and latest are of one Extend; nothing is saved that is broken
		reflect.TypeFor[Auditor](): "opts once claims again watch held good mesh walker replay tree leaves tiles " +
			"at report checkpoint signed walked fresh checks", // of one Extend; claims and again are for Log alone
	} {
		var got []string
		for i := range of.NumField() {
			got = append(got, of.Field(i).Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s has the fields %q, want %q", of.Name(), got, want)
		}
	}
}
