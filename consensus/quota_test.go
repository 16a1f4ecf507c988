package consensus

import (
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

func withLimits(l Limits) func(*Genesis) { return func(g *Genesis) { g.Limits = l } }

// finding is result number i of one verifier on one subject: each says something new.
func (m *mesh) finding(verifier, subject string, i int) []byte {
	return m.result(verifier, subject, "new", func(r *AttestationResult) {
		r.At = r.At.Add(time.Duration(i) * time.Millisecond)
		r.Vector.Executables = int8(2 + i%90)
	})
}

// One organisation's quota is its own, counts what takes effect, names when it may come again,
// and is back after the next tick.
func TestQuotas(t *testing.T) {
	for name, tc := range map[string]struct {
		limits Limits
		// command is number i of an organisation.
		command func(m *mesh, org string, i int) Command
	}{
		"results": {Limits{Nodes: 9, Results: 3}, func(m *mesh, org string, i int) Command {
			return must(NewCommand(KindResults, m.finding(org+"/n1", map[string]string{"alpha": "beta/n1", "beta": "alpha/n1"}[org], i)))
		}},
		"credentials": {Limits{Nodes: 9, Credentials: 3}, func(m *mesh, org string, i int) Command {
			return must(NewCommand(KindCredential, m.credential(fmt.Sprintf("%s/m%d", org, i), 1)))
		}},
		"suspensions": {Limits{Nodes: 9, Suspensions: 2}, func(m *mesh, org string, i int) Command {
			return must(NewCommand(KindSuspension, must1(m.suspend(org+" emergency", onEntry(m.t, "new"), func(x *Suspension) {
				x.Organisation, x.Nonce = identity.OrgID(org), fmt.Sprintf("%032x", i+1)
				x.Until = x.Issued.Add(time.Millisecond * time.Duration(i+1)) // over by the next tick: no other quota
			}))))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := governing(t, 3, withLimits(tc.limits))
			limit := max(tc.limits.Results, tc.limits.Credentials, tc.limits.Suspensions)
			for i := range limit {
				if why := m.s.OverQuota(tc.command(m, "alpha", i)); why != nil {
					t.Fatalf("%d: %v", i, why)
				}
				m.ok(m.apply(tc.command(m, "alpha", i)))
			}
			c := tc.command(m, "alpha", limit)
			out := m.apply(c)
			m.refused(out, attest.CodeQuota)
			for _, want := range []string{name + " of alpha", fmt.Sprintf("%d since tick 1", limit), fmt.Sprintf("at most %d between two ticks", limit), "again after tick 2"} {
				if !strings.Contains(out.Reason.String(), want) {
					t.Errorf("the refusal lacks %q: %v", want, out.Reason)
				}
			}
			if why := m.s.OverQuota(c); why == nil || !reflect.DeepEqual(*why, *out.Reason) {
				t.Errorf("before it is ordered: %v", why)
			}
			m.refused(m.apply(c), attest.CodeQuota) // what is refused is not counted
			m.ok(m.apply(tc.command(m, "beta", 0))) // nor against others
			m.tick(2 * time.Second)
			if why := m.s.OverQuota(tc.command(m, "alpha", limit)); why != nil {
				t.Errorf("after the tick: %v", why)
			}
			m.ok(m.apply(tc.command(m, "alpha", limit+1)))
		})
	}
}

// What of a batch is within the quota is taken, the rest is left out and may come again.
func TestQuotaCutsBatch(t *testing.T) {
	m := governing(t, 3, withLimits(Limits{Nodes: 9, Results: 3}))
	var batch [][]byte
	for i := range 5 {
		batch = append(batch, m.finding("alpha/n1", "beta/n1", i))
	}
	batch = append(batch, m.finding("beta/n1", "alpha/n1", 0))
	out := m.ok(m.command(KindResults, batch...))
	if len(out.Leaves) != 4 || len(out.Skipped) != 2 || out.Skipped[0].Index != 3 || out.Skipped[0].Reason.Code != attest.CodeQuota {
		t.Errorf("%d leaves, skipped %+v", len(out.Leaves), out.Skipped)
	}
	if m.s.OverQuota(must(NewCommand(KindResults, batch...))) != nil {
		t.Error("a batch that is in part another's is ordered")
	}
	if m.s.OverQuota(must(NewCommand(KindResults, batch[:5]...))) == nil {
		t.Error("a batch that is over a quota as a whole is not ordered")
	}
}

// Proposals count against all who have signed them.
func TestProposalQuota(t *testing.T) {
	m := governing(t, 4, withLimits(Limits{Nodes: 9, Proposals: 2}))
	for i := range 2 {
		m.ok(m.vote(m.propose(add(entry(t, fmt.Sprint(i)))), by("alpha", "beta", "gamma")...))
	}
	p := m.propose(add(entry(t, "x")))
	m.refused(m.vote(p, by("alpha", "beta", "delta")...), attest.CodeQuota)
	m.tick(2 * time.Second)
	m.ok(m.vote(p, by("alpha", "beta", "delta")...))
}

// Limits that are voted in count from then on; what is there stays.
func TestLimitsChange(t *testing.T) {
	m := governing(t, 3, withLimits(Limits{Nodes: 3}))
	m.ok(m.command(KindCredential, m.credential("alpha/n2", 1)))
	m.ok(m.vote(m.propose(setLimits(Limits{Nodes: 1, Credentials: 1})), by("alpha", "beta")...))
	m.refused(m.command(KindCredential, m.credential("alpha/n3", 1)), attest.CodeLimit)
	m.refused(m.command(KindCredential, m.credential("alpha/n2", 2)), attest.CodeQuota) // one this tick already
	m.tick(2 * time.Second)
	m.ok(m.command(KindCredential, m.credential("alpha/n2", 2)))
}

// An older mesh counts nothing.
func TestQuotasNeedVersion(t *testing.T) {
	m := started(t, 3)
	for i := range DefaultResults + 1 {
		m.ok(m.command(KindResults, m.finding("alpha/n1", "beta/n1", i)))
	}
	g := genesisOf(t, 3)
	g.Limits.Results = 5
	if _, err := g.Payload(); err == nil || !strings.Contains(err.Error(), "fsm_version") {
		t.Errorf("an older genesis with quotas: %v", err)
	}
}

// G16: proposals that wait for signatures are files of those who made them. Ten thousand that
// are submitted all the same leave nothing behind, and what is signed in full gets through.
func TestG16TenThousandProposals(t *testing.T) {
	m := governing(t, 5)
	before, heap := m.s.Digest(), heapInUse()
	good := m.sign(m.payload(m.propose(add(entry(t, "x")))), by("alpha", "beta", "gamma", "delta")...)
	var waiting []Command
	for i := range 500 {
		p := m.propose(add(entry(t, "y")))
		p.Nonce = fmt.Sprintf("%032x", i)
		waiting = append(waiting, must(NewCommand(KindProposal, m.sign(m.payload(p), "alpha govern"))))
	}
	for i := range few(10_000) { // one that was refused is a new one when it comes again
		if out := m.s.Apply(waiting[i%len(waiting)]); out.Reason == nil || out.Reason.Code != attest.CodeThreshold {
			t.Fatalf("%d: %v", i, out.Reason)
		}
	}
	if m.s.Digest() != before {
		t.Error("what was refused has changed the state")
	}
	if grown := heapInUse() - heap; grown > 4<<20 {
		t.Errorf("the state has grown by %d bytes", grown)
	}
	m.ok(m.command(KindProposal, good))
}

func heapInUse() int64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapInuse)
}

// Boots that have no Credential can be retired without end: each is remembered, so each counts.
func TestQuotaOfRetirements(t *testing.T) {
	m := governing(t, 3, func(g *Genesis) { g.Limits.Credentials = 2 })
	m.ok(m.command(KindRetirement, m.retirement("alpha/n7", 1, "alpha enroll")))
	m.ok(m.command(KindRetirement, m.retirement("alpha/n7", 2, "alpha enroll")))
	over := m.retirement("alpha/n7", 3, "alpha enroll")
	m.refused(m.command(KindRetirement, over), attest.CodeQuota)
	m.ok(m.command(KindRetirement, m.retirement("alpha/n1", 1, "alpha govern"))) // what is in the state can always go
	m.tick(time.Second)
	m.ok(m.command(KindRetirement, over))
}
