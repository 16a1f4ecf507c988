package node

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
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
	e := newEdges(nil)
	if e.heldBack(0) || e.heldBack(7) {
		t.Error("held back without a cause")
	}
	e.holdBack(7)
	if !e.heldBack(7) || e.heldBack(8) {
		t.Error("want it held back until the next tick")
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
