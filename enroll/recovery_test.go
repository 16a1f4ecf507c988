package enroll

import (
	"context"
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

// recovered returns the file of a planned Recovery from size 10 or later, signed by k
// organisations, of a mesh whose first Bootstrap alpha's seat life took part in.
func (w *world) recovered(own []byte, k int) *consensus.RecoveryFile {
	w.t.Helper()
	merge := func(payload []byte, key func(identity.OrgID) ed25519.PrivateKey, orgs ...identity.OrgID) []byte {
		var parts [][]byte
		for _, org := range orgs {
			s, err := envelope.NewSigner(key(org))
			if err != nil {
				w.t.Fatal(err)
			}
			part, err := consensus.Sign(payload, s)
			if err != nil {
				w.t.Fatal(err)
			}
			parts = append(parts, part)
		}
		raw, err := consensus.Merge(parts...)
		if err != nil {
			w.t.Fatal(err)
		}
		return raw
	}
	bootstrap := merge(w.payload(1, own, "log"), enrollKey, testOrgs...)
	s, err := consensus.ReplayPolicy(w.genesis, [][]byte{w.genesis.Raw(), bootstrap})
	if err != nil {
		w.t.Fatal(err)
	}
	now := w.clock.Now()
	file, err := s.DraftRecovery(consensus.Recovery{Incarnation: 1, Organisations: s.OrganisationIDs(), Planned: true, Nonce: strings.Repeat("ab", 16), Created: now, Expires: now.Add(time.Hour)},
		consensus.CheckpointSeen{Size: 10, Root: strings.Repeat("0a", 32)})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := file.Add(merge(file.Envelope().Payload, func(org identity.OrgID) ed25519.PrivateKey { return keyOf(string(org) + " govern") }, testOrgs[:k]...)); err != nil {
		w.t.Fatal(err)
	}
	return file
}

// rebirth is the Bootstrap of incarnation 1 that goes on from at.
func (w *world) rebirth(file *consensus.RecoveryFile, own []byte, at consensus.CheckpointSeen) []byte {
	w.t.Helper()
	b := consensus.Bootstrap{MeshID: w.genesis.MeshID(), Incarnation: 1, Attempt: 1, Recovery: file.Recovery.ID().String(), Continues: at,
		LogKey: envelope.PublicKey{PublicKey: keyOf("log of 1").Public()}}
	for _, org := range testOrgs {
		raw := own
		if org != "alpha" {
			c, err := consensus.ParseCredential(w.credentialOf(org, string(org)+" again", 2, "seat"))
			if err != nil {
				w.t.Fatal(err)
			}
			s, err := envelope.NewSigner(enrollKey(org))
			if err != nil {
				w.t.Fatal(err)
			}
			c.Incarnation = 1
			if raw, err = consensus.SignCredential(s, *c); err != nil {
				w.t.Fatal(err)
			}
		}
		b.Credentials = append(b.Credentials, string(raw))
	}
	payload, err := envelope.NewPayload(envelope.TypeBootstrap, envelope.Subject{Name: "mesh", Digest: map[string]string{"sha256": w.genesis.MeshID().String()}}, b)
	if err != nil {
		w.t.Fatal(err)
	}
	return payload
}

// After a Recovery the enroller names nodes of its incarnation only, and signs a Bootstrap of
// that Recovery only, in time, from no older a log than its organisation has seen.
func TestEnrollerOfARecoveredMesh(t *testing.T) {
	w := newWorld(t)
	_, own := w.seat("first")
	few := w.config()
	few.Recovery = w.recovered(own, 1)
	if _, err := NewServer(few); err == nil || !strings.Contains(err.Error(), "need 2 of 3") {
		t.Errorf("a Recovery that one organisation signed: %v", err)
	}
	file := w.recovered(own, 2)
	seen := consensus.CheckpointSeen{Size: 12, Root: strings.Repeat("0c", 32)}
	w.change = func(c *Config) { c.Recovery, c.Seen = file, seen }
	w.restart()

	old := w.boot("n1", "second")
	old.Roles = []string{"seat"}
	w.clock.advance(time.Second)
	_, err := old.enrol()
	wantCode(t, "a node of incarnation 0", err, attest.CodeWrongIncarnation)
	n := w.boot("n1", "second")
	n.Roles, n.Incarnation = []string{"seat"}, 1
	w.clock.advance(time.Second)
	cred, err := n.enrol()
	if err != nil {
		t.Fatal(err)
	}
	if c, err := consensus.ParseCredential(cred); err != nil || c.Incarnation != 1 {
		t.Errorf("Credential %+v, %v", c, err)
	}
	for name, at := range map[string]consensus.CheckpointSeen{
		"older than the Recovery": {Size: 9, Root: strings.Repeat("09", 32)},
		"older than seen":         {Size: 11, Root: strings.Repeat("0b", 32)},
		"another history":         {Size: 12, Root: strings.Repeat("0d", 32)},
	} {
		wantCode(t, name, w.sign(n, w.rebirth(file, cred, at)), attest.CodeRolledBack)
	}
	good := w.rebirth(file, cred, seen)
	if err := w.sign(n, good); err != nil {
		t.Errorf("what was seen: %v", err)
	}
	wantCode(t, "another place under one attempt", w.sign(n, w.rebirth(file, cred, consensus.CheckpointSeen{Size: 13, Root: strings.Repeat("0d", 32)})), attest.CodeReplayed)
	w.clock.advance(time.Hour)
	_, err = n.SignBootstrap(context.Background(), good)
	wantCode(t, "after the Recovery's end", err, attest.CodeRecoveryExpired)
	if _, err := n.enrol(); err != nil {
		t.Errorf("a renewal long after: %v", err)
	}

	// Started without the file, or with another of the same incarnation, it serves nothing.
	w.change = nil
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewServer(w.config()); err == nil || !strings.Contains(err.Error(), "incarnation 1") {
		t.Errorf("back in incarnation 0: %v", err)
	}
	w.change = func(c *Config) { c.Recovery = file }
	w.start()
}
