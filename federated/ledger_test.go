package federated

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/federated/aggregate"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/federated/data"
	"github.com/attestmesh/meshnode/federated/safetensors"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// A whole job over the ledger: everybody's model has the root that is in the log.
func TestJobRuns(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 2))
	for range 3 {
		o := m.open(job.ID, "")
		if got := refs(o.Participants); got != "alpha/n1 beta/n1 delta/n1 epsilon/n1 gamma/n1" {
			t.Fatalf("participants %s", got)
		}
		if want := aggregatorOf(job, o.Round, o.Participants); o.Aggregator.Ref != want.Ref {
			t.Errorf("round %d: aggregator %s, want %s", o.Round, o.Aggregator.Ref, want.Ref)
		}
		m.finish(job, m.deliver(job, o))
	}
	st := m.status(job.ID)
	if st.State != StateDone || len(m.leaves) != 3 {
		t.Fatalf("state %s with %d leaves", st.State, len(m.leaves))
	}
	if _, ok := st.Next(); ok {
		t.Error("a job that is done has a next round")
	}
	root, err := chunk.RootOf(m.dir[ModelFile].Data)
	if err != nil || root != st.ModelRoot() {
		t.Errorf("model root %s, %v, want %s", root, err, st.ModelRoot())
	}
	for i, leaf := range m.leaves {
		r, err := ParseRound(leaf)
		if err != nil || int(r.Round) != i {
			t.Errorf("leaf %d: %+v, %v", i, r, err)
		}
		if bytes.Contains(leaf, []byte("n_examples\"")) {
			t.Error("the public leaf tells numbers of examples")
		}
	}
	o := RoundOpen{Job: job.ID, Round: 3, Attempt: 1}
	body, err := OpenCommand(o)
	m.refuse(attest.CodeJobEnded, KindRoundOpen, body, err)
}

// The aggregator is killed before its close, after its close, and in two attempts in a
// row. The round commits once, under somebody else, with the same result root, and nobody
// trains again; the old aggregator, back from the dead, is fenced.
func TestAggregatorKilled(t *testing.T) {
	for _, closedFirst := range []bool{false, true} {
		m := newMesh(t, five()...)
		job := m.submit(m.give(small(), 1))
		m.round(job)
		first := m.deliver(job, m.open(job.ID, ""))
		trained := map[string]int{}
		for _, n := range m.nodes {
			trained[n.Ref.String()] = n.trained
		}
		dead := m.nodeOf(first.open.Aggregator.Peer)
		late, err := m.closeCommand(first)
		if err != nil {
			t.Fatal(err)
		}
		var lateCommit []byte
		if closedFirst {
			m.must(KindRoundClose, late, nil)
			if lateCommit, err = m.commitCommand(job.ID, m.result(job, first)); err != nil {
				t.Fatal(err)
			}
		}
		second := m.open(job.ID, "aggregator unreachable", dead)
		next := AggregatorOrder(job.ID, 1, first.open.Participants)[1]
		if second.Attempt != 2 || second.Aggregator.Ref != next.Ref {
			t.Fatalf("attempt %d under %s, want 2 under %s", second.Attempt, second.Aggregator.Ref, next.Ref)
		}
		killed := []*fakeNode{dead, m.nodeOf(second.Aggregator.Peer)}
		third := m.deliver(job, m.open(job.ID, "aggregator unreachable again", killed...))
		if len(third.open.Participants) != 3 {
			t.Fatalf("%d participants", len(third.open.Participants))
		}
		for _, n := range m.nodes {
			if n.trained != trained[n.Ref.String()] {
				t.Errorf("%s trained again", n.Ref)
			}
		}
		for _, a := range third.accepted {
			i := slices.IndexFunc(first.accepted, func(b Accepted) bool { return a.Node == b.Node })
			if first.accepted[i].UpdateRoot != a.UpdateRoot || first.accepted[i].Examples != a.Examples || first.accepted[i].Statement == a.Statement {
				t.Errorf("%s: attempt 3 must have the same update and commitment under a new statement", a.Node)
			}
		}
		m.refuse(attest.CodeStaleRound, KindRoundClose, late, nil)
		if lateCommit != nil {
			m.refuse(attest.CodeStaleRound, KindRoundCommit, lateCommit, nil)
		}
		m.finish(job, third)
		m.refuse(attest.CodeStaleRound, KindRoundClose, late, nil)
		if st := m.status(job.ID); st.State != StateDone || len(m.leaves) != 2 {
			t.Fatalf("state %s, %d leaves", st.State, len(m.leaves))
		}
	}
}

// The same participants give the same result root, whoever adds it up.
func TestResultDoesNotDependOnTheAggregator(t *testing.T) {
	root := func(unlucky bool) chunk.Root {
		m := newMesh(t, append(five(), "zeta/agg")...)
		m.node("zeta/agg").Roles = []string{RoleAggregator}
		spec := m.give(small(), 1)
		job := m.submit(spec)
		m.round(job)
		o := m.open(job.ID, "")
		if unlucky { // another attempt without exclusion: equal participants
			o = m.open(job.ID, "deadline")
		}
		m.finish(job, m.deliver(job, o))
		return m.status(job.ID).ModelRoot()
	}
	if a, b := root(false), root(true); a != b {
		t.Errorf("%s, %s", a, b)
	}
}

func TestRevokedBetweenOpenAndClose(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	a := m.deliver(job, m.open(job.ID, ""))
	victim := m.node("gamma/n1")
	if a.open.Aggregator.Ref == victim.Ref {
		victim = m.node("beta/n1")
	}
	m.revoke(victim)
	body, err := m.closeCommand(a)
	why := m.refuse(attest.CodeNotEligible, KindRoundClose, body, err)
	if why.Claim != victim.Ref.String() || !strings.Contains(why.Got, "epoch 2") {
		t.Errorf("got %s", why)
	}
	// The aggregator closes without it, in the same attempt.
	i := slices.IndexFunc(a.accepted, func(x Accepted) bool { return x.Node == victim.Ref })
	a.accepted, a.statements = slices.Delete(a.accepted, i, i+1), slices.Delete(a.statements, i, i+1)
	m.finish(job, a)
	c := m.status(job.ID).Committed[0]
	if refs(c.Members) == refs(c.Participants) || len(c.Members) != 4 {
		t.Errorf("members %s", refs(c.Members))
	}
}

func TestRevokedBetweenCloseAndCommit(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	a := m.deliver(job, m.open(job.ID, ""))
	body, err := m.closeCommand(a)
	m.must(KindRoundClose, body, err)
	commit, err := m.commitCommand(job.ID, m.result(job, a))
	victim := m.node("gamma/n1")
	if a.open.Aggregator.Ref == victim.Ref {
		victim = m.node("beta/n1")
	}
	m.revoke(victim)
	m.refuse(attest.CodeNotEligible, KindRoundCommit, commit, err)
	next := m.open(job.ID, "beta/n1 was revoked")
	if _, in := next.Participant(victim.Peer); in || next.Epoch != 2 {
		t.Fatal("the revoked node is in the next attempt")
	}
	m.finish(job, m.deliver(job, next))
}

func TestRevokedAggregator(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	a := m.deliver(job, m.open(job.ID, ""))
	dead := m.nodeOf(a.open.Aggregator.Peer)
	i := slices.IndexFunc(a.accepted, func(x Accepted) bool { return x.Node == dead.Ref })
	a.accepted, a.statements = slices.Delete(a.accepted, i, i+1), slices.Delete(a.statements, i, i+1)
	body, err := m.closeCommand(a)
	if err != nil {
		t.Fatal(err)
	}
	m.must(KindRoundClose, body, nil)
	commit, err := m.commitCommand(job.ID, m.result(job, a))
	m.revoke(dead)
	m.refuse(attest.CodeNotEligible, KindRoundCommit, commit, err)
}

// A round is never made of fewer than the minimum, and who waits is told for whom.
func TestBelowMinimum(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	a := m.deliver(job, m.open(job.ID, ""))
	a.accepted, a.statements = a.accepted[:2], a.statements[:2]
	body, err := m.closeCommand(a)
	why := m.refuse(attest.CodeBelowMinimum, KindRoundClose, body, err)
	if why.Got != "2 updates (alpha/n1, beta/n1)" || why.Want != "at least 3" {
		t.Errorf("got %s", why)
	}
	for _, name := range []string{"gamma/n1", "delta/n1", "epsilon/n1"} {
		m.revoke(m.node(name))
	}
	o, _ := m.status(job.ID).Next()
	o.Cause = "revoked"
	body, err = OpenCommand(o)
	why = m.refuse(attest.CodeBelowMinimum, KindRoundOpen, body, err)
	if why.Got != "2 trainers (alpha/n1, beta/n1)" || !strings.Contains(why.Want, "alpha, beta, delta, epsilon, gamma") {
		t.Errorf("got %s", why)
	}
	if _, planned := m.ledger.Plan(o, m); planned == nil || planned.String() != why.String() {
		t.Errorf("a person who asks is told %v", planned)
	}
}

func TestAttemptsEnd(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	for range MaxAttempts {
		m.open(job.ID, "deadline: 2 of 3 updates")
	}
	o, _ := m.status(job.ID).Next()
	o.Cause = "deadline: 2 of 3 updates"
	if _, why := m.ledger.Plan(o, m); why == nil || why.Code != attest.CodeRoundFailed {
		t.Errorf("planned: %v", why)
	}
	body, err := OpenCommand(o)
	m.must(KindRoundOpen, body, err)
	st := m.status(job.ID)
	if st.State != StateFailed || st.Failed.Code != attest.CodeRoundFailed || !strings.Contains(st.Failed.String(), "deadline: 2 of 3 updates") || st.Open != nil {
		t.Errorf("got %+v", st.Failed)
	}
	m.refuse(attest.CodeJobEnded, KindRoundOpen, body, err)
}

// A node whose organisation did not sign takes no part: neither trains nor adds up.
func TestOnlySignersTakePart(t *testing.T) {
	m := newMesh(t, append(five(), "alpha/n2")...)
	job := m.submit(m.give(small(), 1), "alpha", "beta", "gamma")
	if fmt.Sprint(job.Signers) != "[alpha beta gamma]" {
		t.Fatalf("signers %v", job.Signers)
	}
	o := m.open(job.ID, "")
	if got := refs(o.Participants); got != "alpha/n1 alpha/n2 beta/n1 gamma/n1" {
		t.Errorf("participants %s", got)
	}
	if !job.SignedBy(o.Aggregator.Ref.Org) {
		t.Errorf("aggregator %s", o.Aggregator.Ref)
	}
}

func TestRolesDecide(t *testing.T) {
	m := newMesh(t, five()...)
	spec := m.give(small(), 1)
	for _, n := range m.nodes {
		n.Roles = []string{RoleTrainer}
	}
	job := m.submit(spec)
	o, _ := m.status(job.ID).Next()
	body, err := OpenCommand(o)
	m.refuse(attest.CodeBelowMinimum, KindRoundOpen, body, err)
	m.node("delta/n1").Roles = []string{RoleAggregator}
	open := m.open(job.ID, "")
	if open.Aggregator.Ref.Org != "delta" || len(open.Participants) != 4 {
		t.Errorf("aggregator %s over %s", open.Aggregator.Ref, refs(open.Participants))
	}
}

func TestManyParticipantsAreCut(t *testing.T) {
	var names []string
	for i := range MaxParticipants + 6 {
		names = append(names, fmt.Sprintf("o%d/n", i))
	}
	m := newMesh(t, names...)
	spec := m.give(data.Digits(700, 1), 1)
	env, err := NewJob(testMeshID, spec)
	if err != nil {
		t.Fatal(err)
	}
	job := Job{ID: "0123456789abcdef", Spec: spec, Envelope: env.Marshal()}
	for _, n := range m.nodes {
		job.Signers = append(job.Signers, n.Ref.Org)
	}
	a, _ := candidates(job, 1, nil, m.Eligible())
	b, _ := candidates(job, 2, nil, m.Eligible())
	if len(a) != MaxParticipants || refs(a) == "unordered" || refs(a) == refs(b) {
		t.Errorf("%d participants in round 1, the same in round 2: %v", len(a), refs(a) == refs(b))
	}
	for range 20 {
		rand.Shuffle(len(a), func(i, j int) { a[i], a[j] = a[j], a[i] })
		if got, want := AggregatorOrder(job.ID, 1, a)[0], aggregatorOf(job, 1, a); got.Ref != want.Ref {
			t.Errorf("aggregator %s, want %s", got.Ref, want.Ref)
		}
	}
}

// Wrong statements of every kind are refused and change nothing.
func TestApplyRefuses(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 2))
	m.round(job)
	o := m.open(job.ID, "")
	a := m.deliver(job, o)
	aggregator := m.nodeOf(o.Aggregator.Peer)
	var other *fakeNode
	for _, n := range m.nodes {
		if n != aggregator {
			other = n
		}
	}
	closed := func(signer *fakeNode, change func(c *Close)) ([]byte, error) {
		c := o.CloseStatement(slices.Clone(a.accepted), nil)
		change(&c)
		env, err := SignClose(signer.signer, c)
		if err != nil {
			t.Fatal(err)
		}
		return CloseCommand(env.Marshal(), a.statements[:len(c.Accepted)])
	}
	t.Run("not the aggregator", func(t *testing.T) {
		body, err := closed(other, func(c *Close) { c.Peer, c.Aggregator = other.Peer, other.Ref })
		m.refuse(attest.CodeNotAggregator, KindRoundClose, body, err)
	})
	t.Run("commit before close", func(t *testing.T) {
		r := Round{Turn: o.Turn, Epoch: 1, Rule: RuleFedAvg, Arithmetic: aggregate.F64OrderedV1, ResultRoot: chunk.Root{1},
			Aggregator: aggregator.Ref, Peer: aggregator.Peer, Accepted: a.accepted}
		env, err := SignRound(aggregator.signer, r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := CommitCommand(env.Marshal())
		m.refuse(attest.CodeStaleRound, KindRoundCommit, body, err)
	})
	t.Run("rejected stranger", func(t *testing.T) {
		_, public := newSigner(t, "stranger")
		body, err := closed(aggregator, func(c *Close) {
			c.Rejected = []Rejected{{identity.NodeRef{Org: "zeta", Name: "n1"}, identity.PeerIDFromKey(public), attest.CodeNonFinite}}
		})
		m.refuse(attest.CodeNotParticipant, KindRoundClose, body, err)
	})
	body, err := m.closeCommand(a)
	m.must(KindRoundClose, body, err)
	t.Run("closed twice", func(t *testing.T) { m.refuse(attest.CodeStaleRound, KindRoundClose, body, err) })
	commit := func(change func(r *Round)) ([]byte, error) {
		r, err := m.status(job.ID).RoundStatement(chunk.Root{1})
		if err != nil {
			t.Fatal(err)
		}
		change(&r)
		env, err := SignRound(aggregator.signer, r)
		if err != nil {
			t.Fatal(err)
		}
		return CommitCommand(env.Marshal())
	}
	for name, tc := range map[string]struct {
		code   attest.Code
		change func(r *Round)
	}{
		"other list":       {attest.CodeProtocol, func(r *Round) { r.Accepted = r.Accepted[1:] }},
		"other rule":       {attest.CodeProtocol, func(r *Round) { r.Rule = "median" }},
		"other arithmetic": {attest.CodeProtocol, func(r *Round) { r.Arithmetic = "f32" }},
		"other epoch":      {attest.CodeProtocol, func(r *Round) { r.Epoch++ }},
		"other base":       {attest.CodeRootMismatch, func(r *Round) { r.BaseRoot = chunk.Root{9} }},
		"stale attempt":    {attest.CodeStaleRound, func(r *Round) { r.Attempt++ }},
		"future round":     {attest.CodeStaleRound, func(r *Round) { r.Round++ }},
		"unknown job":      {attest.CodeUnknownJob, func(r *Round) { r.Job = "0123456789abcdef" }},
		"other mesh":       {attest.CodeWrongMesh, func(r *Round) { r.MeshID[0]++ }},
	} {
		t.Run(name, func(t *testing.T) {
			body, err := commit(tc.change)
			m.refuse(tc.code, KindRoundCommit, body, err)
		})
	}
}

func TestJobRefused(t *testing.T) {
	m := newMesh(t, five()...)
	spec := m.give(small(), 1)
	job := m.submit(spec)
	body, err := JobCommand(job.Envelope)
	m.refuse(attest.CodeDuplicate, KindJob, body, err)
	sign := func(mesh identity.MeshID, seed uint64, who ...string) ([]byte, error) {
		s := spec
		s.Seed = seed
		env, err := NewJob(mesh, s)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range who {
			signer, _ := newSigner(t, w)
			if err := env.Sign(signer); err != nil {
				t.Fatal(err)
			}
		}
		return JobCommand(env.Marshal())
	}
	body, err = sign(testMeshID, 8, "govern stranger")
	m.refuse(attest.CodeJobNotSigned, KindJob, body, err)
	body, err = sign(testMeshID, 8, "govern alpha", "govern stranger")
	m.refuse(attest.CodeJobNotSigned, KindJob, body, err)
	body, err = sign(testMeshID, 8)
	m.refuse(attest.CodeJobNotSigned, KindJob, body, err)
	body, err = sign(identity.MeshID{1}, 8, "govern alpha")
	m.refuse(attest.CodeWrongMesh, KindJob, body, err)
	o, err := OpenCommand(RoundOpen{Job: "0123456789abcdef", Attempt: 1})
	m.refuse(attest.CodeUnknownJob, KindRoundOpen, o, err)
	if out := m.ledger.Apply("tick", nil, m); out.Reason == nil {
		t.Error("a command of another room was applied")
	}
	if out := NewLedger(testMeshID).Apply(KindRoundOpen, nil, m); out.Reason == nil {
		t.Error("an empty body was applied")
	}
}

// A node that became a member after the round opened is in the next one, however good its
// update.
func TestLatecomer(t *testing.T) {
	m := newMesh(t, append(five(), "alpha/n2")...)
	job := m.submit(m.give(small(), 1))
	late := m.node("alpha/n2")
	m.gone[late.Peer] = true
	o := m.open(job.ID, "")
	delete(m.gone, late.Peer)
	a := m.deliver(job, o)
	d := m.delivery(late, o, late.work(t, job, o, nil))
	if _, why := o.Admit(job.Spec, late.Peer, nil, d); why == nil || why.Code != attest.CodeNotParticipant {
		t.Errorf("admitted: %v", why)
	}
	st, err := parseUpdate(d.Statement)
	if err != nil {
		t.Fatal(err)
	}
	u := st.predicate
	entry := Accepted{u.Node, u.Peer, u.UpdateRoot, u.Examples, st.digest()}
	a.accepted = slices.Insert(a.accepted, 1, entry) // after alpha/n1
	a.statements = slices.Insert(a.statements, 1, d.Statement)
	body, err := m.closeCommand(a)
	m.refuse(attest.CodeNotParticipant, KindRoundClose, body, err)
}

// What trained must be what was attested.
func TestCloseChecksTheTrainer(t *testing.T) {
	for _, change := range []func(u *Update){
		func(u *Update) { u.Measurement = "ef" },
		func(u *Update) { u.Trainer = "mine" },
	} {
		m := newMesh(t, five()...)
		job := m.submit(m.give(small(), 1))
		o := m.open(job.ID, "")
		a := m.deliver(job, o)
		n := m.nodeOf(a.accepted[2].Peer)
		u := o.UpdateStatement(n.Member, n.kept[0], salt(n, 0))
		change(&u)
		env, err := SignUpdate(n.signer, u)
		if err != nil {
			t.Fatal(err)
		}
		a.statements[2] = env.Marshal()
		a.accepted[2].Statement = statement[Update]{u, env}.digest()
		body, err := m.closeCommand(a)
		m.refuse(attest.CodeMeasurementNotAllowed, KindRoundClose, body, err)
	}
}

// Rounds and attempts are opened in turn, once.
func TestOpenInTurn(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 2))
	m.round(job)
	m.open(job.ID, "")
	for _, o := range []RoundOpen{
		{Round: 0, Attempt: 1}, {Round: 0, Attempt: 2, Cause: "c"}, {Round: 1, Attempt: 1}, {Round: 1, Attempt: 3, Cause: "c"},
		{Round: 2, Attempt: 1}, {Round: 2, Attempt: 2, Cause: "c"}, {Round: 1, Attempt: MaxAttempts + 1, Cause: "c"}, {Round: 1},
	} {
		o.Job = job.ID
		body, err := OpenCommand(o)
		m.refuse(attest.CodeStaleRound, KindRoundOpen, body, err)
	}
}

// What was handed out of an open attempt does not change when the attempt goes on.
func TestViewsDoNotChange(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	before := m.status(job.ID)
	o := m.open(job.ID, "")
	body, err := m.closeCommand(m.deliver(job, o))
	m.must(KindRoundClose, body, err)
	if before.Open != nil || o.Closed != nil || m.status(job.ID).Open.Closed == nil {
		t.Error("a view changed under its reader")
	}
}

// The guard refuses what no honest node signed before it is stored.
func TestGuardRefuses(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	o := m.open(job.ID, "")
	a := m.deliver(job, o)
	aggregator := m.nodeOf(o.Aggregator.Peer)
	stranger, _ := newSigner(t, "stranger")
	env, err := SignClose(stranger, o.CloseStatement(a.accepted, nil))
	if err != nil {
		t.Fatal(err)
	}
	good, err := SignClose(aggregator.signer, o.CloseStatement(a.accepted, nil))
	if err != nil {
		t.Fatal(err)
	}
	forged := m.deliver(job, o)
	u, err := ParseUpdate(forged.statements[1])
	if err != nil {
		t.Fatal(err)
	}
	bad, err := SignUpdate(stranger, u)
	if err != nil {
		t.Fatal(err)
	}
	swapped := slices.Clone(a.accepted)
	swapped[0], swapped[1] = swapped[1], swapped[0]
	unordered, err := SignClose(aggregator.signer, o.CloseStatement(swapped, nil))
	if err != nil {
		t.Fatal(err)
	}
	twice, err := SignClose(aggregator.signer, o.CloseStatement([]Accepted{a.accepted[0], a.accepted[0]}, nil))
	if err != nil {
		t.Fatal(err)
	}
	both, err := SignClose(aggregator.signer, o.CloseStatement(a.accepted, []Rejected{{a.accepted[0].Node, a.accepted[0].Peer, attest.CodeSchema}}))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		close   *envelope.Envelope
		updates [][]byte
	}{
		"signed by a stranger":  {env, a.statements},
		"a statement missing":   {good, a.statements[1:]},
		"a statement forged":    {good, append([][]byte{a.statements[0], bad.Marshal()}, a.statements[2:]...)},
		"statements exchanged":  {good, append([][]byte{a.statements[1], a.statements[0]}, a.statements[2:]...)},
		"not in node order":     {unordered, append([][]byte{a.statements[1], a.statements[0]}, a.statements[2:]...)},
		"one node twice":        {twice, [][]byte{a.statements[0], a.statements[0]}},
		"accepted and rejected": {both, a.statements},
	} {
		body, err := CloseCommand(tc.close.Marshal(), tc.updates)
		if err != nil {
			t.Fatal(err)
		}
		if CheckCommand(KindRoundClose, body) == nil {
			t.Errorf("%s: the guard lets it through", name)
		}
	}
	if err := CheckCommand("tick", nil); err == nil {
		t.Error("the guard lets a command of another room through")
	}
}

// Admit is where lies about an update end, each with its own code.
func TestAdmitRefuses(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 2))
	m.round(job)
	o := m.open(job.ID, "")
	n := m.node("beta/n1")
	base := m.base(o)
	w := n.work(t, job, o, base)
	spoil := func(change func(ts []safetensors.Tensor) []safetensors.Tensor) Work {
		ts, err := safetensors.Decode(w.Update)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := safetensors.Encode(change(ts))
		if err != nil {
			t.Fatal(err)
		}
		root, err := chunk.RootOf(raw)
		if err != nil {
			t.Fatal(err)
		}
		return Work{Update: raw, Root: root, Examples: w.Examples}
	}
	resign := func(change func(u *Update)) Delivery {
		d := m.delivery(n, o, w)
		u := o.UpdateStatement(n.Member, w, d.Opening.Salt)
		change(&u)
		env, err := SignUpdate(n.signer, u)
		if err != nil {
			t.Fatal(err)
		}
		d.Statement = env.Marshal()
		return d
	}
	nan := float32(0)
	nan /= nan
	stolen := m.delivery(m.node("gamma/n1"), o, m.node("gamma/n1").work(t, job, o, base))
	changed := m.delivery(n, o, w)
	changed.Update = bytes.Clone(changed.Update)
	changed.Update[len(changed.Update)-1] ^= 1
	lying := m.delivery(n, o, w)
	lying.Opening.Examples++
	forged := m.delivery(n, o, w)
	stranger, _ := newSigner(t, "stranger")
	env, err := SignUpdate(stranger, o.UpdateStatement(n.Member, w, forged.Opening.Salt))
	if err != nil {
		t.Fatal(err)
	}
	forged.Statement = env.Marshal()
	heavy, none := w, w
	heavy.Examples, none.Examples = job.Spec.MaxExamples+1, 0
	for name, tc := range map[string]struct {
		d    Delivery
		code attest.Code
	}{
		"another node's":    {stolen, attest.CodeNotParticipant},
		"other bytes":       {changed, attest.CodeRootMismatch},
		"lies on weight":    {lying, attest.CodeWeight},
		"too heavy":         {m.delivery(n, o, heavy), attest.CodeWeight},
		"no examples":       {m.delivery(n, o, none), attest.CodeWeight},
		"forged":            {forged, attest.CodeBadSignature},
		"no statement":      {Delivery{}, attest.CodeMalformed},
		"stale attempt":     {resign(func(u *Update) { u.Attempt++ }), attest.CodeStaleRound},
		"last round's":      {resign(func(u *Update) { u.Round, u.BaseRoot = 0, chunk.Root{} }), attest.CodeStaleRound},
		"another job's":     {resign(func(u *Update) { u.Job = "0123456789abcdef" }), attest.CodeStaleRound},
		"wrong base":        {resign(func(u *Update) { u.BaseRoot[0]++ }), attest.CodeRootMismatch},
		"other measurement": {resign(func(u *Update) { u.Measurement = "ef" }), attest.CodeMeasurementNotAllowed},
		"other trainer":     {resign(func(u *Update) { u.Trainer = "mine" }), attest.CodeMeasurementNotAllowed},
		"NaN": {m.delivery(n, o, spoil(func(ts []safetensors.Tensor) []safetensors.Tensor {
			ts[1].F32[7] = nan
			return ts
		})), attest.CodeNonFinite},
		"missing tensor": {m.delivery(n, o, spoil(func(ts []safetensors.Tensor) []safetensors.Tensor { return ts[1:] })), attest.CodeSchema},
		"broadcast": {m.delivery(n, o, spoil(func(ts []safetensors.Tensor) []safetensors.Tensor {
			ts[0].Shape, ts[0].F32 = []int{1}, ts[0].F32[:1]
			return ts
		})), attest.CodeSchema},
		"moved standardisation": {m.delivery(n, o, spoil(func(ts []safetensors.Tensor) []safetensors.Tensor {
			ts[3].F32[0]++
			return ts
		})), attest.CodeSchema},
		"no file": {m.delivery(n, o, Work{Update: []byte("PK"), Root: must(chunk.RootOf([]byte("PK"))), Examples: 5}), attest.CodeMalformed},
	} {
		if _, why := o.Admit(job.Spec, n.Peer, base, tc.d); why == nil || why.Code != tc.code {
			t.Errorf("%s: got %v, want %s", name, why, tc.code)
		}
	}
	if _, why := o.Admit(job.Spec, n.Peer, base, m.delivery(n, o, w)); why != nil {
		t.Errorf("the honest delivery: %s", why)
	}
	if got, why := o.Admit(job.Spec, "", base, m.delivery(n, o, w)); why == nil {
		t.Errorf("a delivery by nobody became %+v", got)
	}
}

func TestStatisticsAdmit(t *testing.T) {
	m := newMesh(t, five()...)
	job := m.submit(m.give(small(), 1))
	o := m.open(job.ID, "")
	n := m.node("beta/n1")
	w := n.work(t, job, o, nil)
	w.Examples++ // the count in the file says otherwise
	if _, why := o.Admit(job.Spec, n.Peer, nil, m.delivery(n, o, w)); why == nil || why.Code != attest.CodeWeight {
		t.Errorf("got %v", why)
	}
}
