package enroll

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/envelope"
)

// rotated returns the policy after alpha's enroll key was replaced by one that ends.
func (w *world) rotated(next ed25519.PrivateKey, ends time.Time) *consensus.PolicyState {
	w.t.Helper()
	check := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	sign := func(payload []byte, keys ...ed25519.PrivateKey) []byte {
		w.t.Helper()
		env := &envelope.Envelope{Payload: payload}
		for _, k := range keys {
			s, err := envelope.NewSigner(k)
			check(err)
			check(env.Sign(s))
		}
		raw, err := consensus.Merge(env.Marshal())
		check(err)
		return raw
	}
	var credentials [][]byte
	var enroll, govern []ed25519.PrivateKey
	for _, org := range testOrgs {
		credentials = append(credentials, w.credentialOf(org, string(org), 1, "seat"))
		enroll, govern = append(enroll, enrollKey(org)), append(govern, keyOf(string(org)+" govern"))
	}
	first, err := consensus.ReplayPolicy(w.genesis, nil)
	check(err)
	payload, err := first.NewBootstrap(1, credentials, keyOf("log").Public().(ed25519.PublicKey), w.clock.Now())
	check(err)
	chain := [][]byte{w.genesis.Raw(), sign(payload, enroll...)}
	old, err := envelope.KeyID(enrollKey("alpha").Public())
	check(err)
	p := consensus.Proposal{MeshID: w.genesis.MeshID(), Nonce: strings.Repeat("0", 32), Created: w.clock.Now(), Expires: w.clock.Now().Add(time.Hour),
		Actions: []consensus.Action{{RotateKey: &consensus.RotateKey{Organisation: "alpha", Role: consensus.KeyEnroll, Old: old,
			Public: envelope.PublicKey{PublicKey: next.Public()}, NotAfter: ends}}}}
	payload, err = p.Payload()
	check(err)
	policy, err := consensus.ReplayPolicy(w.genesis, append(chain, sign(payload, govern...)))
	check(err)
	return policy
}

// An enroller goes on under the key that replaced its old one, for as long as that lasts.
func TestEnrollKeyInForce(t *testing.T) {
	w := newWorld(t)
	next, ends := keyOf("alpha enroll next"), w.clock.Now().Add(10*time.Hour)
	policy := w.rotated(next, ends)
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config){
		"the new key without the policy": func(c *Config) { c.Key = next },
		"the old key with the policy":    func(c *Config) { c.Policy = policy },
		"a govern key":                   func(c *Config) { c.Policy, c.Key = policy, keyOf("alpha govern") },
	} {
		cfg := w.config()
		change(&cfg)
		if s, err := NewServer(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			s.Close()
		}
	}
	w.change = func(c *Config) { c.Key, c.Policy = next, policy }
	w.start()
	if w.server.Organisation() != "alpha" {
		t.Errorf("enroller of %s", w.server.Organisation())
	}
	n := w.boot("n1", "first")
	_, err := n.enrol() // it knows genesis's keys alone
	wantCode(t, "a node that has not heard of the new key", err, attest.CodeWrongSigner)
	w.clock.advance(time.Second)
	n.InForce = func() (out []crypto.PublicKey) {
		for _, k := range policy.OrgKeys("alpha", consensus.KeyEnroll) {
			out = append(out, k.Public)
		}
		return out
	}
	raw, err := n.enrol()
	if err != nil {
		t.Fatal(err)
	}
	c, err := policy.VerifyCredential(raw, w.clock.Now())
	if err != nil || !c.Expires.Equal(ends) {
		t.Errorf("expires %v, want %v with the key: %v", c, ends, err)
	}
	if _, err := w.genesis.VerifyCredential(0, raw, w.clock.Now()); err == nil {
		t.Error("genesis's keys verify it too")
	}
	w.clock.advance(11 * time.Hour)
	_, err = n.Credential(context.Background(), n.prover)
	wantCode(t, "after the key's end", err, attest.CodeUnavailable)
}
