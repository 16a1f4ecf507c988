package consensus

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
)

func TestTickAttacks(t *testing.T) {
	m := started(t, 3)
	all := func(last []byte) [][]byte { return [][]byte{m.sample("alpha/n1", 1), m.sample("beta/n1", 1), last} }
	m.at = m.at.Add(time.Second)
	for name, tc := range map[string]struct {
		code attest.Code
		last []byte
	}{
		"replayed seq":      {attest.CodeStale, m.sample("gamma/n1", 1, func(s *TimeSample) { s.Seq-- })},
		"later seq":         {attest.CodeStale, m.sample("gamma/n1", 1, func(s *TimeSample) { s.Seq++ })},
		"other mesh":        {attest.CodeWrongMesh, m.sample("gamma/n1", 1, func(s *TimeSample) { s.MeshID[0]++ })},
		"other incarnation": {attest.CodeWrongIncarnation, m.sample("gamma/n1", 1, func(s *TimeSample) { s.Incarnation++ })},
		"no seat":           {attest.CodeNotSeat, m.sample("gamma/n2", 1)},
		"same seat twice":   {attest.CodeDuplicate, m.sample("alpha/n1", 1, func(s *TimeSample) { s.Time = s.Time.Add(time.Second) })},
		"not a sample":      {attest.CodeMalformed, m.credential("gamma/n2", 1)},
	} {
		t.Run(name, func(t *testing.T) { m.t = t; m.refused(m.command(KindTick, all(tc.last)...), tc.code) })
	}
	forged := m.sample("gamma/n1", 1)
	forged[len(forged)-8] ^= 1
	m.t = t
	m.refused(m.command(KindTick, all(forged)...), attest.CodeMalformed)
	if _, err := SignTimeSample(boot("alpha/n1", 1), TimeSample{MeshID: m.g.MeshID(), Peer: peerOf("beta/n1", 1), Seq: 1, Time: m.at}); err == nil {
		t.Error("signed in another's name")
	}
}

func TestFirstTickNeedsQuorum(t *testing.T) {
	m := newMesh(t, 4)
	m.ok(m.command(KindBootstrap, m.g.Raw(), m.bootstrap(1)))
	m.refused(m.command(KindTick, m.sample("alpha/n1", 1), m.sample("beta/n1", 1)), attest.CodeStale)
	m.ok(m.command(KindTick, m.sample("alpha/n1", 1), m.sample("beta/n1", 1), m.sample("delta/n1", 1)))
	if !m.s.Now().Equal(m.at) || m.s.TickSeq() != 1 {
		t.Errorf("now %s seq %d", m.s.Now(), m.s.TickSeq())
	}
}

// Fewer than a third of lying seats move time nowhere that honest clocks are not.
func TestStepTime(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 5000 {
		n := 2 + rng.IntN(6)
		now := start
		honest := func() time.Time { return start.Add(time.Second + time.Duration(rng.IntN(1000))*time.Millisecond) }
		liars := rng.IntN((n + 2) / 3)
		var samples []time.Time
		for i := range strong(n) {
			if i < liars {
				samples = append(samples, start.Add(time.Duration(rng.Int64N(int64(96*time.Hour)))-48*time.Hour))
			} else {
				samples = append(samples, honest())
			}
		}
		got, ok := stepTime(now, slices.SortedFunc(slices.Values(samples), time.Time.Compare), n)
		if !ok || got.Before(now) || got.After(start.Add(2*time.Second)) {
			t.Fatalf("%d of %d lie: time %s, samples %v", liars, n, got, samples)
		}
	}
	for _, tc := range []struct {
		name    string
		offsets []time.Duration
		n       int
		want    time.Duration
	}{
		{"quorum jumps", []time.Duration{time.Hour, time.Hour, time.Hour, time.Hour}, 5, time.Hour},
		{"never backwards", []time.Duration{-time.Hour, -time.Hour, -time.Hour, -time.Hour}, 5, 0},
		{"lower median of an even number", []time.Duration{time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second}, 4, 2 * time.Second},
		{"a bare majority steps", []time.Duration{time.Hour, time.Hour, time.Hour}, 5, TickInterval},
		{"a minority does not move time", []time.Duration{time.Hour, time.Hour}, 5, 0},
		{"a lone leader neither", []time.Duration{time.Hour}, 3, 0},
		{"nobody", nil, 3, 0},
	} {
		var samples []time.Time
		for _, d := range tc.offsets {
			samples = append(samples, start.Add(d))
		}
		if got, ok := stepTime(start, samples, tc.n); !ok || !got.Equal(start.Add(tc.want)) {
			t.Errorf("%s: got +%s, want +%s", tc.name, got.Sub(start), tc.want)
		}
	}
	if _, ok := stepTime(time.Time{}, []time.Time{start}, 3); ok {
		t.Error("time began with one sample")
	}
}

// T6: times beyond 2038 and 2106, on a leap day and at the end of a century that has none, and
// at the turn of a year, are times like others.
func TestTimesOfOtherCenturies(t *testing.T) {
	for _, at := range []string{"2038-01-19T03:14:07.999Z", "2106-02-07T06:28:15.999Z", "2100-02-28T23:59:59.999Z", "2104-02-29T23:59:59.999Z",
		"2026-12-31T23:59:59.999Z", "2262-04-11T23:47:16.854Z", "9998-12-31T23:59:59.999Z"} {
		t.Run(at, func(t *testing.T) {
			want, err := time.Parse(time.RFC3339Nano, at)
			if err != nil {
				t.Fatal(err)
			}
			m := suspending(t, 3)
			m.at = want
			m.tick(0)
			id := m.suspended(until(2 * time.Millisecond))
			m.tick(time.Millisecond)
			if !m.s.Now().Equal(want.Add(time.Millisecond)) || m.s.Now().Location() != time.UTC {
				t.Errorf("time is %s", m.s.Now())
			}
			if x, ok := m.s.SuspendedNode(m.ref("beta/n1"), m.s.Now()); !ok || x.ID() != id {
				t.Error("a suspension ended a millisecond early")
			}
			m.tick(time.Millisecond)
			if _, ok := m.s.SuspendedNode(m.ref("beta/n1"), m.s.Now()); ok {
				t.Error("a suspension outlasted its end")
			}
			m.ok(m.order(m.propose(remove("old")), 3))
		})
	}
	// RFC 3339 knows leap seconds and offsets; what is signed knows neither.
	m := started(t, 3)
	for _, bad := range []string{"2026-12-31T23:59:60Z", "2027-01-01T01:00:00+01:00", "2027-01-01T00:00:00.0001Z", "2027-01-01 00:00:00Z"} {
		payload := strings.Replace(string(m.payload(m.propose(remove("old")))), m.at.Add(time.Hour).Format(time.RFC3339), bad, 1)
		if _, err := DecodeProposal([]byte(payload)); err == nil || !strings.Contains(payload, bad) {
			t.Errorf("a time of %s was accepted", bad)
		}
	}
}
