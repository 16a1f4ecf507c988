package node

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
)

func TestPeerBookJoinsURLAndName(t *testing.T) {
	b, at := newPeerBook(), time.Unix(1000, 0)
	beta := identity.NodeRef{Org: "beta", Name: "n1"}
	b.update(identity.NodeRef{}, "http://b", at, func(p *PeerStatus) { p.State = PeerUnreachable })
	b.update(beta, "http://b", at.Add(time.Second), func(p *PeerStatus) { p.State = PeerConnected })
	b.update(identity.NodeRef{}, "http://b", at.Add(2*time.Second), func(p *PeerStatus) { p.Note = "same peer" })
	peers, _ := b.snapshot()
	if len(peers) != 1 || peers[0].Node != "beta/n1" || peers[0].URL != "http://b" || peers[0].Note != "same peer" {
		t.Fatalf("got %+v, want one peer under its name", peers)
	}
	if !peers[0].Since.Equal(at.Add(time.Second)) {
		t.Errorf("since %s, want the moment its state changed", peers[0].Since)
	}
}

func TestPeerBookSaysWhenAllRefuse(t *testing.T) {
	b, why := newPeerBook(), attest.NewReason(attest.CodeRevoked, "measurement", "x", "y")
	a, c := identity.NodeRef{Org: "a", Name: "n"}, identity.NodeRef{Org: "c", Name: "n"}
	if _, refused := b.refusal(); refused {
		t.Error("nobody has refused yet")
	}
	b.update(a, "", time.Now(), func(p *PeerStatus) { p.State, p.Reason = PeerRefusesUs, &why })
	b.update(c, "", time.Now(), func(p *PeerStatus) { p.State = PeerUnreachable })
	if r, refused := b.refusal(); !refused || r.Code != attest.CodeRevoked {
		t.Errorf("got %v, %v", r, refused)
	}
	b.update(c, "", time.Now(), func(p *PeerStatus) { p.State = PeerConnected })
	if _, refused := b.refusal(); refused {
		t.Error("one connected peer is enough")
	}
}

// What our policy refused is not asked again under that policy; what may pass by itself is.
func TestPeerBookRemembersWhomThePolicyRefuses(t *testing.T) {
	b := newPeerBook()
	for _, code := range []attest.Code{attest.CodeRevoked, attest.CodeMeasurementNotAllowed, attest.CodeExpired, attest.CodeUnavailable} {
		b.refuse("peer", attest.NewReason(code, "measurement", "x", "y"), 3)
		lasting := code == attest.CodeRevoked || code == attest.CodeMeasurementNotAllowed
		if why := b.refused("peer", 3); (why != nil) != lasting || lasting && why.Code != code {
			t.Errorf("%s: %v under the same policy", code, why)
		}
		if why := b.refused("peer", 4); why != nil || b.refused("peer", 3) != nil {
			t.Errorf("%s: %v under another policy", code, why)
		}
	}
}

func TestPeerBookIsBounded(t *testing.T) {
	b := newPeerBook()
	for i := range maxPeers + 10 {
		ref := identity.NodeRef{Org: "flood", Name: identity.NodeName(fmt.Sprint(i))}
		b.update(ref, "", time.Now(), func(p *PeerStatus) { p.State = PeerRefused })
		b.meet(identity.PeerID(fmt.Sprint(i)), ref)
		b.refuse(identity.PeerID(fmt.Sprint(i)), attest.Reason{Code: attest.CodeRevoked}, 0)
	}
	for range maxClosings + 10 {
		b.closed(Closing{})
	}
	if peers, closings := b.snapshot(); len(peers) > maxPeers || len(closings) > maxClosings || len(b.met) > maxPeers || len(b.unwanted) > maxPeers {
		t.Errorf("%d peers, %d closings, %d met", len(peers), len(closings), len(b.met))
	}
}

func TestOutagesAreExplained(t *testing.T) {
	n := &Node{outages: map[string]outage{}, log: slog.New(slog.DiscardHandler)}
	n.noteProbe("enroller", fmt.Errorf("connection refused"))
	since := n.outages["enroller"].since
	n.noteProbe("enroller", fmt.Errorf("still refused"))
	if !n.outages["enroller"].since.Equal(since) {
		t.Error("an outage that goes on has a new beginning")
	}
	ends := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	if w := n.outageWarnings(ends); len(w) != 1 || !strings.Contains(w[0], "still refused") || !strings.Contains(w[0], "2026-01-02T03:04:05Z") {
		t.Errorf("got %q", w)
	}
	n.noteProbe("enroller", nil)
	if w := n.outageWarnings(ends); len(w) != 0 {
		t.Errorf("after it answers again: %q", w)
	}
}

func TestOneLine(t *testing.T) {
	got := oneLine(fmt.Errorf("dial:\n  * [a] refused\n  * [b] %s", strings.Repeat("é", maxNote)))
	if strings.Contains(got, "\n") || len(got) > maxNote+8 || !strings.HasPrefix(got, "dial: * [a] refused") {
		t.Errorf("got %q", got)
	}
}
