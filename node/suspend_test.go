package node

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/identity"
)

// suspend orders a suspension of a node by an organisation, and returns its id.
func (c *crowd) suspend(org string, ref identity.NodeRef) consensus.SuspensionID {
	c.t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	raw, err := consensus.SignSuspension(crowdSigner(c.t, org, consensus.KeyEmergency), consensus.Suspension{MeshID: c.genesis.MeshID(), Organisation: identity.OrgID(org),
		Nonce: strings.Repeat("0a", 16), Node: &ref, Cause: consensus.CausePrecaution, Issued: now, Until: now.Add(time.Hour)})
	if err != nil {
		c.t.Fatal(err)
	}
	x, _, err := consensus.ParseSuspension(raw)
	if err != nil {
		c.t.Fatal(err)
	}
	c.order(consensus.KindSuspension, raw)
	return x.ID()
}

// lift orders the end of a suspension, by the organisation that it is of.
func (c *crowd) lift(org string, id consensus.SuspensionID) {
	c.t.Helper()
	payload, err := consensus.SuspensionLift{MeshID: c.genesis.MeshID(), Suspension: id}.Payload()
	if err != nil {
		c.t.Fatal(err)
	}
	raw, err := consensus.Sign(payload, crowdSigner(c.t, org, consensus.KeyGovern))
	if err != nil {
		c.t.Fatal(err)
	}
	c.order(consensus.KindLift, raw)
}

// A suspended node serves no request, an answer that is under way is broken off, and nothing
// is deployed; a lift brings the same program back.
func TestSuspendedNodeServesNobody(t *testing.T) {
	h := newHost(t, false)
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	seat := c.nodes[1]
	h.machine, h.genesis, h.ref, h.changed = seat.machine, seat.genesis, seat.ref, seat.changed
	h.completed(h.began()) // of that machine's time
	if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, raw)
	}
	brokenOff := h.answering(t)
	id := c.suspend("alpha", seat.ref)
	brokenOff()
	for _, ask := range []func() (*http.Response, []byte){
		func() (*http.Response, []byte) { return h.do("GET", "/services/inference/slow", nil) },
		func() (*http.Response, []byte) { return h.deploy(2, nil) },
	} {
		if resp, raw := ask(); resp.StatusCode != http.StatusServiceUnavailable || code(raw) != string(attest.CodeSuspended) {
			t.Errorf("%d %s", resp.StatusCode, raw)
		}
	}
	if why := h.withdrawn(); why == nil || why.Code != attest.CodeSuspended {
		t.Errorf("a client's challenge would be refused with %v", why)
	}
	c.lift("alpha", id)
	if resp, raw := h.do("GET", "/services/inference/slow", nil); resp.StatusCode != 200 {
		t.Errorf("after the lift: %d %s", resp.StatusCode, raw)
	}
}

// A node that is stale serves nobody either, whatever is under way: here a machine that stood
// still for a day (T7). Nothing wakes it but time. What it runs being revoked ends it at once,
// before that is ordered.
func TestStaleOrRevokedNodeServesNobody(t *testing.T) {
	h := newHost(t, false)
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	seat := c.nodes[1]
	c.attestAll(func(subject *Node) string { return map[bool]string{true: "old", false: "new"}[subject == seat] })
	h.machine, h.genesis, h.ref, h.changed = seat.machine, seat.genesis, seat.ref, seat.changed
	var asleep atomic.Int64
	h.asleep = func() time.Duration { return time.Duration(asleep.Load()) }
	h.completed(h.began())
	if resp, raw := h.deploy(1, nil); resp.StatusCode != 200 {
		t.Fatalf("%d %s", resp.StatusCode, raw)
	}
	refused := func(want attest.Code) {
		t.Helper()
		if resp, raw := h.do("GET", "/services/inference/slow", nil); resp.StatusCode != http.StatusServiceUnavailable || code(raw) != string(want) {
			t.Errorf("%d %s", resp.StatusCode, raw)
		}
	}
	brokenOff := h.answering(t)
	asleep.Store(int64(24 * time.Hour))
	brokenOff()
	refused(attest.CodeStale)
	h.completed(h.began())
	brokenOff = h.answering(t)
	if _, fresh, err := seat.machine.Hear(c.removal("old", crowdOrgs[:4]...)); err != nil || !fresh {
		t.Fatal(err)
	}
	brokenOff()
	refused(attest.CodeRevoked)
}

// answering begins an answer without an end; the function that it returns demands that it is
// broken off.
func (h *host) answering(t *testing.T) (brokenOff func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	req, err := http.NewRequestWithContext(ctx, "GET", h.url+"/services/inference/endless", nil)
	if err != nil {
		t.Fatal(err)
	}
	underWay, err := h.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(underWay.Body, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		defer cancel()
		defer underWay.Body.Close()
		if _, err := io.Copy(io.Discard, underWay.Body); err == nil || ctx.Err() != nil {
			t.Errorf("an answer that was under way has ended with %v", err)
		}
	}
}

// attestAll orders an affirming result between every two seats, on what each runs.
func (c *crowd) attestAll(runs func(*Node) string) {
	c.t.Helper()
	now := time.Now().UTC().Truncate(time.Second)
	var batch [][]byte
	for _, v := range c.nodes[:len(crowdOrgs)] {
		for _, s := range c.nodes[:len(crowdOrgs)] {
			if v == s {
				continue
			}
			raw, err := consensus.SignResult(v.key, consensus.AttestationResult{Verifier: consensus.Party{Node: v.ref, Peer: v.self}, Subject: consensus.Party{Node: s.ref, Peer: s.self},
				MeshID: c.genesis.MeshID(), Kind: attest.KindSim, Measurement: attesttest.Measurement(runs(s)), Verdict: attest.VerdictAffirming, Codes: []attest.Code{},
				Evidence: fmt.Sprintf("%x", sha256.Sum256(nil)), Reference: c.entry(runs(s)).ID, At: now, Expires: now.Add(time.Hour)})
			if err != nil {
				c.t.Fatal(err)
			}
			batch = append(batch, raw)
		}
	}
	c.order(consensus.KindResults, batch...)
}

// A suspended node is in no new round, its update is left out of the open one, and an attempt
// that it aggregates is given up at once.
func TestSuspendedNodeIsInNoRound(t *testing.T) {
	sevenSeats(t, func(t *testing.T, c *crowd) {
		c.attestAll(func(*Node) string { return "new" })
		driver, hit, other := c.nodes[0], c.nodes[1], c.nodes[2]
		eligible := func() (all []federated.Member) {
			driver.machine.View(func(s *consensus.State, _ *federated.Ledger) { all = driver.machine.members(s).Eligible() })
			return all
		}
		before := eligible()
		if len(before) != len(crowdOrgs) {
			t.Fatalf("%d eligible before", len(before))
		}
		open := &federated.OpenRound{Participants: before, Aggregator: federated.Member{Ref: hit.ref, Peer: hit.self}}
		s := newSession(len(before))
		for _, m := range before {
			s.parts[m.Peer] = part{accepted: federated.Accepted{Node: m.Ref, Peer: m.Peer}}
		}
		job := federated.JobStatus{Open: open}
		job.Job.Spec.Deadline = 60
		if why := driver.hopeless(job); why != "" {
			t.Fatalf("hopeless before: %s", why)
		}
		c.suspend("gamma", hit.ref)
		for _, m := range eligible() {
			if m.Peer == hit.self {
				t.Error("the suspended node is eligible")
			}
		}
		if got := len(eligible()); got != len(crowdOrgs)-1 {
			t.Errorf("%d eligible", got)
		}
		if why := driver.hopeless(job); why != "aggregator "+hit.ref.String()+" is suspended" {
			t.Errorf("an attempt that it aggregates: %q", why)
		}
		accepted, rejected, _ := other.list(open, s)
		if len(accepted) != len(crowdOrgs)-1 || len(rejected) != 1 || rejected[0].Peer != hit.self || rejected[0].Code != attest.CodeNotEligible {
			t.Errorf("accepted %d, rejected %v", len(accepted), rejected)
		}
	})
}
