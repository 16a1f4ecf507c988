package audit

import (
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// later orders a new result that was made d from now.
func (m *mesh) later(d time.Duration) {
	m.t.Helper()
	m.Tick(d)
	m.Command(consensus.KindResults, m.Result("alpha/n1", "gamma/n1", "new"))
}

func TestSuspensions(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(m *mesh)
		want string
	}{
		{"a node, lifted by others", func(m *mesh) {
			x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
			m.Command(consensus.KindSuspension, x)
			m.Command(consensus.KindLift, m.Lift(x, "beta", "gamma"))
			m.Force(m.Round(0))
		}, ""},
		{"an entry, lifted by its own", func(m *mesh) {
			x := m.Suspension("beta/n1", time.Hour, "alpha emergency", func(x *consensus.Suspension) { x.Node, x.Entry = nil, m.Entry("new").ID })
			m.Command(consensus.KindSuspension, x)
			m.Command(consensus.KindLift, m.Lift(x, "alpha"))
			m.Force(m.Round(0))
		}, ""},
		{"a round after its end, which no leaf shows", func(m *mesh) {
			m.Command(consensus.KindSuspension, m.Suspension("beta/n1", 20*time.Minute, "alpha emergency"))
			m.Tick(time.Hour)
			m.Force(m.Round(0))
		}, ""},
		{"a round after the end of one that was as long as can be", func(m *mesh) {
			m.Command(consensus.KindSuspension, m.Suspension("beta/n1", 24*time.Hour, "alpha emergency", func(x *consensus.Suspension) {
				x.Issued, x.Until = x.Issued.Add(9*time.Minute), x.Until.Add(9*time.Minute)
			}))
			m.Tick(24*time.Hour + time.Minute)
			m.Force(m.Round(0))
			m.Command(consensus.KindResults, m.Result("alpha/n1", "gamma/n1", "new", func(r *consensus.AttestationResult) {
				r.At, r.Expires = r.At.Add(-56*time.Minute), r.Expires.Add(-56*time.Minute) // before its Until, which no one waited for
			}))
		}, ""},
		{"a round with somebody who was suspended, as a result shows", func(m *mesh) {
			m.Command(consensus.KindSuspension, m.Suspension("beta/n1", 3*time.Hour, "alpha emergency"))
			m.Force(m.Round(0))
			m.later(time.Hour)
		}, "9:suspended"},
		{"a round by an aggregator that was suspended", func(m *mesh) {
			m.Command(consensus.KindSuspension, m.Suspension("gamma/n1", 3*time.Hour, "alpha emergency"))
			m.Force(m.Round(0))
			m.later(time.Hour)
		}, "9:suspended"},
		{"a round while everything was suspended", func(m *mesh) {
			m.Command(consensus.KindSuspension, m.Suspension("beta/n1", 3*time.Hour, "alpha emergency", func(x *consensus.Suspension) { x.Node, x.Entry = nil, m.Entry("new").ID }))
			m.Force(m.Round(0))
			m.later(time.Hour)
		}, "9:suspended 9:suspended 9:suspended"},
		{"by a govern key", func(m *mesh) { m.Force(m.Suspension("beta/n1", time.Hour, "alpha govern")) }, "8:wrong_signer"},
		{"by another organisation", func(m *mesh) { m.Force(m.Suspension("beta/n1", time.Hour, "beta emergency")) }, "8:wrong_signer"},
		{"tampered with", func(m *mesh) {
			e, err := envelope.Parse(m.Suspension("beta/n1", time.Hour, "alpha emergency"))
			m.check(err)
			e.Payload = []byte(strings.Replace(string(e.Payload), "precaution", "vulnerable", 1))
			m.Force(e.Marshal())
		}, "8:wrong_signer"},
		{"of another mesh", func(m *mesh) {
			m.Force(m.Suspension("beta/n1", time.Hour, "alpha emergency", func(x *consensus.Suspension) { x.MeshID[0] ^= 1 }))
		}, "8:wrong_mesh"},
		{"of nobody", func(m *mesh) { m.Force(m.Suspension("beta/n9", time.Hour, "alpha emergency")) }, "8:unknown_node"},
		{"ordered twice", func(m *mesh) {
			x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
			m.Command(consensus.KindSuspension, x)
			m.Force(x)
		}, "9:replayed"},
		{"ordered after its end", func(m *mesh) {
			x := m.Suspension("beta/n1", 10*time.Minute, "alpha emergency")
			m.later(time.Hour)
			m.Force(x)
		}, "9:suspension_ended"},
		{"more than the quota", func(m *mesh) {
			for range consensus.MaxSuspensionsLive {
				m.Command(consensus.KindSuspension, m.Suspension("beta/n1", time.Hour, "alpha emergency"))
			}
			m.Force(m.Suspension("beta/n1", time.Hour, "alpha emergency"))
		}, "11:limit"},
		{"lifted by too few", func(m *mesh) {
			x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
			m.Command(consensus.KindSuspension, x)
			m.Force(m.Lift(x, "beta"))
		}, "9:threshold"},
		{"lifted twice", func(m *mesh) {
			x := m.Suspension("beta/n1", time.Hour, "alpha emergency")
			m.Command(consensus.KindSuspension, x)
			m.Command(consensus.KindLift, m.Lift(x, "alpha"))
			m.Force(m.Lift(x, "beta", "gamma"))
		}, "10:replayed"},
		{"lifted before it was ordered", func(m *mesh) { m.Force(m.Lift(m.Suspension("beta/n1", time.Hour, "alpha emergency"), "alpha")) }, "8:unknown_suspension"},
		{"lifted after its end", func(m *mesh) {
			x := m.Suspension("beta/n1", 10*time.Minute, "alpha emergency")
			m.Command(consensus.KindSuspension, x)
			m.later(time.Hour)
			m.Force(m.Lift(x, "alpha"))
		}, "10:suspension_ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := started(t)
			c.do(m)
			r := m.audit(m.publish(seats[1:]...), func(o *Options) { o.At = o.At.Add(48 * time.Hour) })
			if got := codes(r); got != c.want {
				t.Errorf("got %q, want %q: %v", got, c.want, r.Findings)
			}
			if proves := strings.Join(r.Proves(), "\n"); r.OK != strings.Contains(proves, "suspensions and lifts was signed") {
				t.Errorf("ok is %t, and it proves\n%s", r.OK, proves)
			}
		})
	}
}

// An auditor for whom a suspension has not ended yet needs no later leaf.
func TestSuspensionAheadOfTheAuditor(t *testing.T) {
	m := started(t)
	m.Command(consensus.KindSuspension, m.Suspension("beta/n1", 20*time.Hour, "alpha emergency"))
	m.Force(m.Round(0))
	path := m.publish(seats...)
	if got := codes(m.audit(path)); got != "9:suspended" {
		t.Errorf("got %q", got)
	}
	if got := codes(m.audit(path, func(o *Options) { o.At = o.At.Add(21 * time.Hour) })); got != "" {
		t.Errorf("a day later, got %q", got)
	}
}
