package node

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
)

// What one organisation has had refused bounds what is looked at for it, by size, and wears off;
// what a seat passes on for others is more, and others are not held up.
func TestRefusalsAreBounded(t *testing.T) {
	r, now := newRefusals(), time.Unix(1000, 0)
	for i := 0; r.over("mallory", false, now) == nil; i++ {
		if i > refusalBurst {
			t.Fatal("no end")
		}
		r.note("mallory", false, 100<<10, now)
	}
	why := r.over("mallory", false, now)
	if why.Code != attest.CodeBusy || !strings.Contains(why.Want, "again in 1s") {
		t.Errorf("got %v", why)
	}
	if r.over("beta", false, now) != nil || r.over("mallory", true, now) != nil {
		t.Error("others are held up")
	}
	if r.over("mallory", false, now.Add(2*time.Second)) != nil {
		t.Error("it does not wear off")
	}
	honest := newRefusals()
	for range 1000 { // as many nodes submit the Credential of one new peer
		honest.note("beta", false, 2<<10, now)
	}
	if honest.over("beta", false, now) != nil {
		t.Error("an honest crowd is held up")
	}
}

// A refusal that passes is told apart from one that stays, on the socket too.
func TestQuotaIsBackPressure(t *testing.T) {
	quota := &RefusedError{attest.NewReason(attest.CodeQuota, "results of beta", "3", "3")}
	stays := &RefusedError{attest.NewReason(attest.CodeThreshold, "proposal", "1", "2")}
	if !passes(quota) || passes(stays) || passes(errMalformed) || !passes(&RefusedError{attest.NewReason(attest.CodeBusy, "", "", "")}) {
		t.Error("wrong refusals pass")
	}
	for err, want := range map[error]int{quota: http.StatusTooManyRequests, stays: http.StatusForbidden, errors.New("no leader"): http.StatusServiceUnavailable} {
		w := httptest.NewRecorder()
		writeSubmitError(w, err)
		if w.Code != want {
			t.Errorf("%v: status %d, want %d", err, w.Code, want)
		}
	}
}

// Findings that were left out for a quota stay and wait for the next tick.
func TestFindingsWaitForTheTick(t *testing.T) {
	batch := []*finding{{seq: 1}, {seq: 2}, {seq: 3}}
	if got := except(batch, []int{1, 7, -1}); len(got) != 2 || got[0].seq != 1 || got[1].seq != 3 {
		t.Errorf("got %v", got)
	}
	refused := func(code attest.Code) error { return &RefusedError{attest.NewReason(code, "", "", "")} }
	for name, tc := range map[string]struct {
		out  Applied
		err  error
		done int
		over bool
	}{
		"ordered":                             {Applied{}, nil, 3, false},
		"ordered in part":                     {Applied{Again: []int{2}}, nil, 2, true},
		"ordered in part before":              {Applied{Again: []int{1, 2}}, refused(attest.CodeReplayed), 1, true},
		"all over the quota":                  {Applied{}, refused(attest.CodeQuota), 0, true},
		"refused for good":                    {Applied{}, refused(attest.CodeRetired), 3, false},
		"malformed":                           {Applied{}, malformed(errors.New("x")), 3, false},
		"nobody leads, or the answer is lost": {Applied{}, context.DeadlineExceeded, 0, false},
	} {
		if done, over := settled(batch, tc.out, tc.err); len(done) != tc.done || over != tc.over {
			t.Errorf("%s: %d are done, over a quota: %t", name, len(done), over)
		}
	}
	e := newEdges(nil)
	if e.heldBack(0) || e.heldBack(7) {
		t.Error("held back without a cause")
	}
	e.holdBack(7)
	if !e.heldBack(7) || e.heldBack(8) {
		t.Error("want it held back until the next tick")
	}
}

// A batch that was ordered in part, for a quota, and comes again is refused as replayed, and names what was
// left out still: its submitter may not have heard the first answer.
func TestLeftOutForAQuotaIsNamedAgain(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	parties, credentials := c.subjects(2*consensus.MaxResults + 60)
	for _, raw := range credentials {
		c.order(consensus.KindCredential, raw)
	}
	var all [][]byte
	for _, p := range parties {
		if p.Node.Org != c.nodes[0].ref.Org {
			all = append(all, c.news(c.nodes[0], p, 1, time.Now()))
		}
	}
	m, left := c.nodes[0].machine, 0
	for batch := range slices.Chunk(all, consensus.MaxResults) {
		raw, err := command(consensus.KindResults, batch...)
		if err != nil {
			t.Fatal(err)
		}
		if first := m.apply(raw); first.Err != nil {
			t.Fatal(first.Err)
		} else {
			left = len(first.Again)
		}
		again := m.apply(raw)
		if again.Reason == nil || again.Count != 0 || len(again.Again) != left {
			t.Errorf("%d of %d were left out; again %+v", left, len(batch), again)
		}
	}
	if left == 0 {
		t.Error("nothing was left out for a quota")
	}
}

// A node whose organisation is in neither genesis nor the history that it was given says which
// file it needs.
func TestUnknownOrganisation(t *testing.T) {
	g, err := consensus.ParseGenesis(publishedLeaves(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	policy, err := readChain("", g)
	if err != nil || policy.Started() || policy.N() != g.N() {
		t.Errorf("genesis's policy: %v", err)
	}
	var mistake *ConfigError
	_, err = readChain(filepath.Join(t.TempDir(), "absent"), g)
	if !errors.As(err, &mistake) || mistake.Field != "chain" {
		t.Errorf("got %v", err)
	}
	err = unknownOrganisation(Config{Organisation: "zeta"}, errMalformed)
	if !errors.As(err, &mistake) || !strings.Contains(mistake.Remedy, "needs chain") {
		t.Errorf("got %v", err)
	}
}

// L10: one organisation's member submits a thousand results a second for ten seconds. It is told to wait,
// by a code that says so; between two ticks no more of its own are logged than its quota; what another
// organisation finds meanwhile is ordered as before.
func TestL10ThousandLeavesASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const subjects = 128
		seconds := 10
		if raceDetector {
			seconds = 3
		}
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.raft()
		leader := c.leading()
		parties, credentials := c.subjects(subjects)
		submit := func(n *Node, kind consensus.Kind, envelopes ...[]byte) error {
			command, err := consensus.NewCommand(kind, envelopes...)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), submitTimeout)
			defer cancel()
			_, err = n.submit(ctx, command)
			return err
		}
		for _, raw := range credentials {
			if err := submit(leader, consensus.KindCredential, raw); err != nil {
				t.Fatal(err)
			}
		}
		flooder, honest := c.nodes[0], c.nodes[1]
		if flooder == leader || honest == leader {
			flooder, honest = c.nodes[2], c.nodes[3]
		}
		before, tick := leader.machine.tree.Size(), leader.machine.TickSeq()
		var flood sync.WaitGroup
		var mu sync.Mutex
		answers := map[attest.Code]int{}
		for i := range 8 * seconds {
			var batch [][]byte
			for _, p := range parties {
				if p.Node.Org != flooder.ref.Org {
					batch = append(batch, c.news(flooder, p, i, time.Now()))
				}
			}
			flood.Go(func() {
				err := submit(flooder, consensus.KindResults, batch...)
				mu.Lock()
				defer mu.Unlock()
				answers[refusedAs(err)]++
			})
			if i%8 == 0 {
				began := time.Now()
				if err := submit(honest, consensus.KindResults, c.news(honest, parties[i/8], i, time.Now())); err != nil {
					t.Errorf("another organisation's finding %d: %v", i/8, err)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("another organisation's finding %d took %s", i/8, took)
				}
			}
			time.Sleep(time.Second / 8)
		}
		flood.Wait()
		ticks := int(leader.machine.TickSeq() - tick)
		own := len(c.logged(leader, flooder.self))
		if own == 0 || own > (ticks+1)*consensus.DefaultResults {
			t.Errorf("%d leaves of the flood in %d ticks", own, ticks)
		}
		if got := len(c.logged(leader, honest.self)); got < seconds {
			t.Errorf("%d findings of another organisation, want %d", got, seconds)
		}
		if answers[attest.CodeQuota]+answers[attest.CodeBusy] < 4*seconds {
			t.Errorf("the flood was answered %v, want back-pressure", answers)
		}
		t.Logf("%d leaves in %d ticks, %d of the flood, answers %v", leader.machine.tree.Size()-before, ticks, own, answers)
	})
}

// L10: a leaf over 64 KiB is ordered by nobody: the guard refuses its command, and a machine that is given
// it all the same refuses it without a leaf and goes on.
func TestL10LeafOver64KiB(t *testing.T) {
	m, _ := testMachine(t)
	size := m.tree.Size()
	for kind, why := range map[consensus.Kind]string{consensus.KindResults: "results", consensus.KindCredential: "credential", consensus.KindProposal: "proposal"} {
		raw, err := command(kind, bytes.Repeat([]byte("x"), transparency.MaxLeaf+1))
		if err != nil {
			t.Fatal(err)
		}
		if kind == consensus.KindResults && m.Check(raw) == nil {
			t.Errorf("the guard admits %s with a leaf of %d bytes", why, transparency.MaxLeaf+1)
		}
		if out := m.apply(raw); out.Err != nil || out.Reason == nil || out.Count != 0 || m.tree.Size() != size {
			t.Errorf("%s: %+v, %d leaves more", why, out, m.tree.Size()-size)
		}
	}
	if m.Halted() != nil {
		t.Error(m.Halted())
	}
}
