package consensus

import (
	"reflect"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/internal/identity"
)

// Remembering that a Credential is correctly signed changes no answer: a genesis that has
// seen it says what one without a memory says, at every time, in every incarnation, and of
// every mutation.
func TestRememberedCredentials(t *testing.T) {
	m := newMesh(t, 3)
	forgetful := *m.g
	forgetful.signed = nil
	raw := m.credential("alpha/n9", 1)
	agree := func(what string, inc identity.Incarnation, raw []byte, at time.Time) {
		t.Helper()
		c1, err1 := m.g.VerifyCredential(inc, raw, at)
		c2, err2 := forgetful.VerifyCredential(inc, raw, at)
		if !reflect.DeepEqual(c1, c2) || (err1 == nil) != (err2 == nil) || err1 != nil && !reflect.DeepEqual(ReasonOf(err1), ReasonOf(err2)) {
			t.Errorf("%s: remembering says %+v, %v; not remembering %+v, %v", what, c1, err1, c2, err2)
		}
	}
	for range 2 {
		agree("genuine", 0, raw, m.at)
	}
	if m.g.signed.Len() == 0 {
		t.Fatal("nothing was remembered")
	}
	remembered := m.g.signed.Len()
	c, err := ParseCredential(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []time.Time{{}, c.Issued.Add(-ClockSkew - 1), c.Issued.Add(-ClockSkew), c.Expires.Add(-1), c.Expires, c.Expires.AddDate(1, 0, 0)} {
		agree("at "+at.String(), 0, raw, at)
	}
	agree("another incarnation", 1, raw, m.at)
	for i := range raw {
		mutated := append([]byte(nil), raw...)
		mutated[i] ^= 1
		agree("mutated", 0, mutated, m.at)
	}
	agree("cut", 0, raw[:len(raw)-1], m.at)
	agree("trailing", 0, append(append([]byte(nil), raw...), ' '), m.at)
	agree("nothing", 0, nil, m.at)
	agree("too long", 0, make([]byte, MaxCredential+1), m.at)
	if got := m.g.signed.Len(); got != remembered {
		t.Errorf("%d remembered, %d of them wrong", got, got-remembered)
	}
	foreign := newMesh(t, 4)
	if _, err := foreign.g.VerifyCredential(0, raw, m.at); err == nil {
		t.Error("another mesh accepted it")
	}
}

// What a caller does to a Credential that it got does not reach the next one.
func TestRememberedCredentialsAreCopies(t *testing.T) {
	m := newMesh(t, 3)
	raw := m.credential("alpha/n9", 1)
	for range 3 {
		c, err := m.g.VerifyCredential(0, raw, m.at)
		if err != nil || c.Node != "n9" || c.Roles[0] != NormaliseRoles(allRoles)[0] || string(c.Raw()) != string(raw) {
			t.Fatalf("got %+v, %v", c, err)
		}
		c.Node, c.Roles[0] = "changed", "changed"
		c.Raw()[0] ^= 1
		if raw[0] != '{' { // the first call's bytes are the caller's own
			raw[0] ^= 1
		}
	}
}

func BenchmarkVerifyCredential(b *testing.B) {
	m := newMesh(b, 3)
	raw := m.credential("alpha/n9", 1)
	forgetful := *m.g
	forgetful.signed = nil
	for name, g := range map[string]*Genesis{"first": &forgetful, "again": m.g} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := g.VerifyCredential(0, raw, m.at); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
