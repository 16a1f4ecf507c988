package consensus

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

var update = flag.Bool("update", false, "rewrite testdata/golden")

// The bytes of everything that is signed or ordered are fixed for ever: logs of old meshes
// hold them, and other programs read them. A change here is a new predicate type or
// command version, never an edit.
func TestGolden(t *testing.T) {
	m := started(t, 2)
	proposal := m.sign(m.payload(m.propose(add(entry(t, "x")), remove("old"))), m.governors(2)...)
	removed := must(membershipLeaf(Membership{MeshID: m.g.MeshID(), Epoch: 1, Change: ChangeSeatRemoved, Node: m.s.Seats()[0].Ref, Peer: m.s.Seats()[0].Peer,
		Code: attest.CodeRevoked, Cause: "tick 7"}))
	command := must(EncodeCommand(must(NewCommand(KindCredential, m.credential("alpha/n2", 1)))))
	digest := m.s.Digest()
	v2 := suspending(t, 3)
	suspension, id := v2.suspend("alpha emergency")
	v2.ok(v2.command(KindSuspension, suspension))
	suspendedDigest := v2.s.Digest()
	v3 := measuring(t, 3)
	recovery, rebirth := governed(t, 3).goldenRecovery()
	v4 := seating(t, 3)
	v4.reboots("beta/n1", 2)
	ready := v4.ready(v4.readyOf("beta/n1", 2), boot("beta/n1", 2), "alpha/n1 1", "gamma/n1 1")
	taken := v4.ok(v4.command(KindReady, ready)).Leaves[1]
	hw := hardware(t, 3)
	onPlatforms := hw.sign(hw.payload(hw.propose(platformActions(t, hw))), hw.governors(3)...)
	hw.ok(hw.command(KindProposal, onPlatforms))
	gov := governing(t, 3)
	amended := gov.sign(gov.payload(gov.propose(amendments...)), by("alpha", "beta", "gamma", "eta")...)
	gov.ok(gov.vote(gov.propose(rotate("alpha enroll", "alpha enroll 2")), by("alpha", "beta")...))
	gov.ok(gov.command(KindCredential, gov.credential("beta/n2", 1)))
	section := func(s section) []byte { return []byte(hex.EncodeToString(must(wire.enc.Marshal(s))) + "\n") }
	wd := governing(t, 3)
	for name, got := range map[string][]byte{
		"proposal-constitution.json": amended,
		"section-constitution.hex":   section(gov.s.constitutionSection()),
		"section-quotas.hex":         section(gov.s.quotaSection()),
		"ready.json":                 ready,
		"membership-taken.json":      taken,
		"drain.json":                 v4.drain("alpha/n1", 1),
		"retirement.json":            v4.retirement("alpha/n1", 1, "alpha govern"),
		"credential-ak.json":         v3.credential("alpha/n2", 1, activated),
		"proposal-ima.json":          v3.sign(v3.payload(v3.propose(add(booted(t, "meshnode", "init")))), v3.governors(2)...),
		"proposal-platforms.json":    onPlatforms,
		"genesis.json":               m.g.Raw(),
		"bootstrap.json":             newMesh(t, 2).bootstrap(1),
		"credential.json":            m.credential("alpha/n2", 1, func(c *Credential) { c.Checkpoint = CheckpointSeen{9, sha256Hex(nil)} }),
		"proposal.json":              proposal,
		"attestation-result.json":    m.result("alpha/n1", "beta/n1", "new"),
		"time-sample.json":           m.sample("alpha/n1", 1),
		"membership.json":            removed,
		"suspension.json":            suspension,
		"suspension-entry.json":      must1(v2.suspend("beta emergency", func(x *Suspension) { x.Organisation = "beta" }, onEntry(t, "new"))),
		"state.json":                 must(stateLeaf(LoggedState{MeshID: m.g.MeshID(), Epoch: 1, Seq: 1024, Policy: sha256Hex(nil), Digest: sha256Hex([]byte("state"))})),
		"state-digest.json":          must(SignStateDigest(boot("alpha/n1", 1), StateDigest{MeshID: m.g.MeshID(), Node: m.s.Seats()[0].Ref, Peer: peerOf("alpha/n1", 1), Seq: 1024, Digest: sha256Hex([]byte("state"))})),
		"withdrawal.json":            wd.withdraw(wd.propose(add(entry(t, "x"))), "beta", "beta govern"),
		"suspension-lift.json":       v2.lift(id, "beta govern", "gamma govern"),
		"digest-suspended.hex":       []byte(hex.EncodeToString(suspendedDigest[:]) + "\n"),
		"recovery.json":              recovery,
		"bootstrap-recovery.json":    rebirth,
		"command.hex":                []byte(hex.EncodeToString(command) + "\n"),
		"digest.hex":                 []byte(hex.EncodeToString(digest[:]) + "\n"),
	} {
		path := filepath.Join("testdata", "golden", name)
		if *update {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
		}
	}
}
