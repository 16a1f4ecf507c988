package consensus

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
)

func TestBootstrap(t *testing.T) {
	m := newMesh(t, 5)
	m.refused(m.command(KindCredential, m.credential("alpha/n2", 1)), attest.CodeNotStarted)
	m.refused(m.command(KindTick), attest.CodeNotStarted)
	raw := m.bootstrap(1)
	out := m.ok(m.command(KindBootstrap, m.g.Raw(), raw))
	if len(out.Leaves) != 2 || !bytes.Equal(out.Leaves[0], m.g.Raw()) || !bytes.Equal(out.Leaves[1], raw) || !m.s.Started() {
		t.Errorf("got %+v", out)
	}
	if got := names(m.s.Seats()); got != "alpha/n1 beta/n1 delta/n1 epsilon/n1 gamma/n1" {
		t.Errorf("seats %s", got)
	}
	if m.s.Quorum() != 3 || m.s.StrongQuorum() != 4 || !m.s.LogKey().Equal(key("log").Public()) {
		t.Errorf("quorum %d, strong %d", m.s.Quorum(), m.s.StrongQuorum())
	}
	m.refused(m.command(KindBootstrap, m.g.Raw(), m.bootstrap(2)), attest.CodeReplayed)
	m.refused(m.order(m.propose(remove("old")), 5), attest.CodeNotStarted) // no time yet
}

func TestBootstrapAttacks(t *testing.T) {
	enrollers := []string{"alpha enroll", "beta enroll", "gamma enroll"}
	edit := func(m *mesh, change func(b *Bootstrap)) []byte {
		b := must(NewPolicyState(m.g).CheckBootstrap(m.bootstrapPayload(1), m.at))
		change(b)
		return m.sign(must(envelope.NewPayload(envelope.TypeBootstrap, meshSubject(b.MeshID), *b)), enrollers...)
	}
	for name, tc := range map[string]struct {
		code attest.Code
		make func(m *mesh) []byte
	}{
		"one enroller missing": {attest.CodeThreshold, func(m *mesh) []byte { return m.sign(m.bootstrapPayload(1), enrollers[:2]...) }},
		"govern key":           {attest.CodeWrongSigner, func(m *mesh) []byte { return m.sign(m.bootstrapPayload(1), append(enrollers[:2:2], "gamma govern")...) }},
		"other mesh":           {attest.CodeWrongMesh, func(m *mesh) []byte { return edit(m, func(b *Bootstrap) { b.MeshID[0]++ }) }},
		"other incarnation":    {attest.CodeWrongIncarnation, func(m *mesh) []byte { return edit(m, func(b *Bootstrap) { b.Incarnation = 1 }) }},
		"no attempt":           {attest.CodeMalformed, func(m *mesh) []byte { return edit(m, func(b *Bootstrap) { b.Attempt = 0 }) }},
		"a seat missing":       {attest.CodeMalformed, func(m *mesh) []byte { return edit(m, func(b *Bootstrap) { b.Credentials = b.Credentials[:2] }) }},
		"two seats of one": {attest.CodeMalformed, func(m *mesh) []byte {
			return edit(m, func(b *Bootstrap) { b.Credentials[1] = string(m.credential("alpha/n2", 1)) })
		}},
		"not a seat": {attest.CodeNotSeat, func(m *mesh) []byte {
			return edit(m, func(b *Bootstrap) {
				b.Credentials[0] = string(m.credential("alpha/n1", 1, func(c *Credential) { c.Roles = []string{RoleMember} }))
			})
		}},
		"credential by another organisation": {attest.CodeNoCredential, func(m *mesh) []byte {
			return edit(m, func(b *Bootstrap) {
				b.Credentials[0] = string(must(SignCredential(signer(t, "beta enroll"), m.credentialOf("alpha/n1", 1))))
			})
		}},
		"shared cosigner key": {attest.CodeMalformed, func(m *mesh) []byte {
			return edit(m, func(b *Bootstrap) {
				b.Credentials[0] = string(m.credential("alpha/n1", 1, func(c *Credential) { c.Cosigner = public("beta/n1 cosigner 1") }))
			})
		}},
		"log key is a cosigner's":      {attest.CodeMalformed, func(m *mesh) []byte { return edit(m, func(b *Bootstrap) { b.LogKey = public("beta/n1 cosigner 1") }) }},
		"log key is an organisation's": {attest.CodeMalformed, func(m *mesh) []byte { return edit(m, func(b *Bootstrap) { b.LogKey = public("beta govern") }) }},
		"not a bootstrap":              {attest.CodeMalformed, func(m *mesh) []byte { return m.credential("alpha/n1", 1) }},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t, 3)
			m.refused(m.command(KindBootstrap, m.g.Raw(), tc.make(m)), tc.code)
		})
	}
	m, other := newMesh(t, 3), newMeshOf(t, func() *Genesis { g := genesisOf(t, 3); g.Name = "other"; return g }())
	m.refused(m.command(KindBootstrap, other.g.Raw(), m.bootstrap(1)), attest.CodeWrongMesh)
	m.refused(m.command(KindBootstrap, other.g.Raw(), other.bootstrap(1)), attest.CodeWrongMesh)
}

func TestCredentialAttacks(t *testing.T) {
	for name, tc := range map[string]struct {
		code   attest.Code
		label  string
		change func(*mesh, *Credential)
	}{
		"other mesh":         {attest.CodeWrongMesh, "", func(_ *mesh, c *Credential) { c.MeshID[0]++ }},
		"other incarnation":  {attest.CodeWrongIncarnation, "", func(_ *mesh, c *Credential) { c.Incarnation = 1 }},
		"other organisation": {attest.CodeNoCredential, "beta enroll", func(*mesh, *Credential) {}},
		"unknown one":        {attest.CodeNoCredential, "", func(_ *mesh, c *Credential) { c.Organisation = "omega" }},
		"govern key":         {attest.CodeNoCredential, "alpha govern", func(*mesh, *Credential) {}},
		"expired":            {attest.CodeCredentialExpired, "", func(m *mesh, c *Credential) { c.Issued, c.Expires = start, m.s.Now() }},
		"from the future": {attest.CodeCredentialExpired, "", func(m *mesh, c *Credential) {
			c.Issued, c.Expires = m.at.Add(time.Hour), m.at.Add(2*time.Hour)
		}},
		"another's peer":         {attest.CodeRetired, "", func(_ *mesh, c *Credential) { c.Peer = peerOf("beta/n1", 1) }},
		"another's cosigner key": {attest.CodeDuplicate, "", func(_ *mesh, c *Credential) { c.Cosigner = public("beta/n1 cosigner 1") }},
		"another's peer key":     {attest.CodeDuplicate, "", func(_ *mesh, c *Credential) { c.Cosigner.PublicKey = boot("beta/n1", 1).Public() }},
		"the log key":            {attest.CodeDuplicate, "", func(_ *mesh, c *Credential) { c.Cosigner = public("log") }},
		"an organisation's key":  {attest.CodeDuplicate, "", func(_ *mesh, c *Credential) { c.Cosigner = public("gamma govern") }},
	} {
		t.Run(name, func(t *testing.T) {
			m := started(t, 3)
			c := m.credentialOf("alpha/n2", 1)
			tc.change(m, &c)
			if tc.label == "" {
				tc.label = "alpha enroll"
			}
			m.refused(m.command(KindCredential, must(SignCredential(signer(t, tc.label), c))), tc.code)
		})
	}
	m := started(t, 3)
	for name, change := range map[string]func(*Credential){
		"cosigner is the peer key": func(c *Credential) { c.Cosigner.PublicKey = boot("alpha/n2", 1).Public() },
		"no boot_seq":              func(c *Credential) { c.BootSeq = 0 },
		"two days":                 func(c *Credential) { c.Expires = c.Issued.Add(48 * time.Hour) },
		"no peer":                  func(c *Credential) { c.Peer = "" },
		"unknown role":             func(c *Credential) { c.Roles = []string{"king"} },
		"bad name":                 func(c *Credential) { c.Node = "N1" },
		"bad checkpoint":           func(c *Credential) { c.Checkpoint.Size = 1 },
	} {
		c := m.credentialOf("alpha/n2", 1, change)
		if _, err := SignCredential(signer(t, "alpha enroll"), c); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := ParseCredential(bytes.Repeat([]byte(" "), MaxCredential+1)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("oversized: %v", err)
	}
}

func TestNewestBootWins(t *testing.T) {
	m := started(t, 3)
	m.attestAll(allNew)
	m.ok(m.command(KindCredential, m.credential("alpha/n2", 1)))
	m.ok(m.command(KindResults, m.result("beta/n1", "alpha/n2", "new"), m.result("gamma/n1", "alpha/n2", "new"), m.result("alpha/n2", "beta/n1", "new")))
	if !m.s.IsEligible(peerOf("alpha/n2", 1), m.at) {
		t.Fatal("a node that two organisations affirm is not eligible")
	}
	m.refused(m.command(KindCredential, m.credential("alpha/n2", 1)), attest.CodeReplayed)
	renewal := m.credential("alpha/n2", 1, func(c *Credential) { c.Expires = c.Expires.Add(time.Second); c.Issued = c.Issued.Add(time.Second) })
	m.ok(m.command(KindCredential, renewal))
	m.refused(m.command(KindCredential, m.credential("alpha/n2", 1, func(c *Credential) { c.BootSeq = 5000 })), attest.CodeRetired)

	out := m.ok(m.command(KindCredential, m.credential("alpha/n2", 3)))
	if len(out.Retired) != 1 || out.Retired[0] != peerOf("alpha/n2", 1) || len(out.Leaves) != 1 {
		t.Errorf("got %+v", out)
	}
	if !m.s.Retired(peerOf("alpha/n2", 1)) || len(m.s.Edges(peerOf("alpha/n2", 1))) != 0 || len(m.s.Edges(peerOf("beta/n1", 1))) != 2 {
		t.Error("the old boot left edges")
	}
	if m.s.IsEligible(peerOf("alpha/n2", 1), m.at) || m.s.IsEligible(peerOf("alpha/n2", 3), m.at) {
		t.Error("verdicts outlived the boot they were about")
	}
	m.refused(m.command(KindCredential, m.credential("alpha/n2", 2)), attest.CodeRetired)                                                         // older boot
	m.refused(m.command(KindCredential, m.credential("alpha/n2", 1, func(c *Credential) { c.BootSeq = 9000 })), attest.CodeRetired)               // old identity
	m.refused(m.command(KindCredential, m.credential("alpha/n3", 1, func(c *Credential) { c.Peer = peerOf("alpha/n2", 1) })), attest.CodeRetired) // under another name
	m.ok(m.command(KindCredential, m.credential("alpha/n3", 1)))
	m.refused(m.command(KindCredential, m.credential("alpha/n4", 1)), attest.CodeLimit) // limits.nodes is 3
}

// A seat that reboots leaves the Raft configuration, with a leaf that says so.
func TestSeatReboots(t *testing.T) {
	m := started(t, 5)
	raw := m.credential("beta/n1", 2)
	out := m.ok(m.command(KindCredential, raw))
	if len(out.Leaves) != 2 || !out.SeatsChanged {
		t.Fatalf("got %+v", out)
	}
	leaf, err := ParseMembership(out.Leaves[1])
	if err != nil || leaf.Node.String() != "beta/n1" || leaf.Peer != peerOf("beta/n1", 1) || leaf.Code != attest.CodeRetired || leaf.Cause != "credential "+sha256Hex(raw) {
		t.Errorf("%+v %v", leaf, err)
	}
	if names(m.s.Seats()) != "alpha/n1 delta/n1 epsilon/n1 gamma/n1" || m.s.Quorum() != 3 || m.s.StrongQuorum() != 3 {
		t.Errorf("seats %s quorum %d strong %d", names(m.s.Seats()), m.s.Quorum(), m.s.StrongQuorum())
	}
	m.ok(m.command(KindCredential, m.credential("alpha/n1", 2)))
	m.ok(m.command(KindCredential, m.credential("delta/n1", 2)))
	m.ok(m.command(KindCredential, m.credential("gamma/n1", 2)))
	if len(m.s.Seats()) != 1 || m.s.Quorum() != 2 {
		t.Errorf("%d seats, quorum %d: n must not fall below half of the organisations", len(m.s.Seats()), m.s.Quorum())
	}
	// The organisation keeps its vote.
	m.ok(m.order(m.propose(remove("old")), 3))
}

func TestEviction(t *testing.T) {
	m := started(t, 5)
	runs := func(node string) string {
		if node == "beta/n1" {
			return "old"
		}
		return "new"
	}
	m.attestAll(runs)
	if len(m.s.Eligible(m.at)) != 5 {
		t.Fatalf("eligible: %s", names(m.s.Eligible(m.at)))
	}
	out := m.ok(m.order(m.propose(remove("old")), 3))
	if len(out.Evicted) != 1 || out.Evicted[0] != peerOf("beta/n1", 1) || len(out.Leaves) != 2 || !out.SeatsChanged {
		t.Fatalf("got %+v", out)
	}
	leaf := must(ParseMembership(out.Leaves[1]))
	if leaf.Code != attest.CodeRevoked || leaf.Epoch != 1 || leaf.Cause != "proposal "+out.Proposal.ID.String() {
		t.Errorf("leaf %+v", leaf)
	}
	n, _ := m.s.Node(peerOf("beta/n1", 1))
	if n.Standing != StandingEvicted || n.Code != attest.CodeRevoked || n.Seat {
		t.Errorf("node %+v", n)
	}
	if got := names(m.s.Eligible(m.at)); got != "alpha/n1 delta/n1 epsilon/n1 gamma/n1" {
		t.Errorf("eligible: %s", got)
	}
	for _, e := range m.s.Affirming(peerOf("alpha/n1", 1), m.at) {
		if e.Verifier.Node.Org == "beta" {
			t.Error("an edge by an evicted verifier still counts")
		}
	}
	// A late affirming edge, judged under the old epoch, is not let in; nor is a sample.
	out = m.command(KindResults, m.result("alpha/n1", "beta/n1", "old", func(r *AttestationResult) { r.Epoch = 0; r.At = r.At.Add(time.Second) }))
	m.refused(out, attest.CodeRevoked)
	m.refused(m.command(KindTick, m.sample("beta/n1", 1)), attest.CodeNotSeat)
	if policy := m.s.AttestPolicy(identity.NodeRef{}, RoleSeat); len(policy.Revoked) != 1 || policy.Revoked[0].Measurement != measurement("old") || policy.Epoch != 1 {
		t.Errorf("policy %+v", policy)
	}
	if m.s.N() != 5 {
		t.Error("an evicted organisation lost its vote")
	}
	// Evicted once: a second narrowing reports nobody anew.
	if out := m.ok(m.order(m.propose(removeID(entry(t, "old").ID)), 3)); len(out.Evicted) != 0 || len(out.Leaves) != 1 {
		t.Errorf("got %+v", out)
	}
}

func TestOwnMajority(t *testing.T) {
	m := started(t, 5)
	m.attestAll(func(node string) string {
		if node < "delta" {
			return "old"
		}
		if node == "delta/n1" {
			return "old"
		}
		return "new"
	})
	m.refused(m.order(m.propose(remove("old")), 5), attest.CodeQuorumLoss) // alpha, beta, delta: 2 of 5 would remain
	out := m.ok(m.order(m.propose(remove("old"), func(p *Proposal) { p.ConfirmQuorumLoss = true }), 5))
	if len(out.Evicted) != 3 || len(m.s.Seats()) != 2 || m.s.Quorum() != 2 {
		t.Errorf("evicted %d, seats %s, quorum %d", len(out.Evicted), names(m.s.Seats()), m.s.Quorum())
	}
}

// Entries expire by ordered time: members go at once, seats only where a quorum remains.
func TestExpiryByTick(t *testing.T) {
	for _, tc := range []struct {
		name  string
		runs  func(string) string
		seats string
	}{
		{"a minority", func(n string) string { return map[bool]string{true: "brief", false: "new"}[n == "beta/n1"] }, "alpha/n1 gamma/n1"},
		{"everybody", func(string) string { return "brief" }, "alpha/n1 beta/n1 gamma/n1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := started(t, 3)
			brief := entry(t, "brief")
			brief.ID, brief.NotAfter = "", m.at.Add(10*time.Second)
			brief = must(NewEntry(brief))
			m.ok(m.order(m.propose(add(brief)), 3))
			var batch [][]byte
			for _, v := range []string{"alpha/n1", "beta/n1", "gamma/n1"} {
				for _, s := range []string{"alpha/n1", "beta/n1", "gamma/n1"} {
					if v != s {
						batch = append(batch, m.result(v, s, tc.runs(s), func(r *AttestationResult) {
							if tc.runs(s) == "brief" {
								r.Reference = brief.ID
							}
						}))
					}
				}
			}
			if out := m.ok(m.command(KindResults, batch...)); len(out.Skipped) != 0 {
				t.Fatalf("%+v", out.Skipped)
			}
			if out := m.tick(2 * time.Second); len(out.Evicted) != 0 || len(out.Leaves) != 0 {
				t.Fatalf("evicted before the end: %+v", out)
			}
			m.tick(9 * time.Second)
			if got := names(m.s.Seats()); got != tc.seats {
				t.Errorf("seats %s, want %s", got, tc.seats)
			}
			if got := m.s.Eligible(m.at); len(got) > 2 {
				t.Errorf("expired, yet eligible: %s", names(got))
			}
		})
	}
}

func TestFramingRefuses(t *testing.T) {
	good := must(EncodeCommand(must(NewCommand(KindTick))))
	if c, err := DecodeCommand(good); err != nil || c.Kind != KindTick {
		t.Fatal(err)
	}
	raw := func(v any) []byte { return must(wire.enc.Marshal(v)) }
	for name, bad := range map[string][]byte{
		"empty": {}, "trailing": append(bytes.Clone(good), 0), "version": raw([]any{2, "tick", []byte{0x80}}), "kind": raw([]any{1, "grant", []byte{0x80}}),
		"no body": raw([]any{1, "tick", []byte{}}), "short": raw([]any{1, "tick"}), "long": raw([]any{1, "tick", []byte{0x80}, 1}),
		"map": raw(map[string]any{"v": 1}), "indefinite": append([]byte{0x9f}, append(bytes.Clone(good[1:]), 0xff)...), "too large": make([]byte, MaxCommand+1),
		"long integer": append([]byte{0x83, 0x18, 0x01}, good[2:]...),
	} {
		if _, err := DecodeCommand(bad); err == nil || !strings.Contains(err.Error(), ErrUnknownCommand.Error()) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	m := started(t, 2)
	m.refused(m.s.Apply(Command{1, KindJob, []byte{0x80}}), attest.CodeWrongVersion)
	m.refused(m.s.Apply(Command{2, KindTick, []byte{0x80}}), attest.CodeWrongVersion)
	for name, body := range map[string][]byte{"null": {0xf6}, "text": raw([]string{"x"}), "empty envelope": raw([][]byte{{}}), "none": nil, "two": raw([][]byte{{1}, {2}})} {
		if out := m.s.Apply(Command{1, KindProposal, body}); out.Reason == nil || out.Reason.Code != attest.CodeMalformed {
			t.Errorf("%s: %+v", name, out)
		}
	}
	if _, err := NewCommand(KindResults); err == nil {
		t.Error("an empty batch")
	}
}

// Whatever is ordered, good and bad, another replica that gets the same commands has the
// same state, refusals leave no trace (mesh.apply checks), and the policy chain leads a
// node that has seen none of it to the same policy.
func TestReplay(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 7))
		m := started(t, 3+int(seed%3))
		accepted := 0
		for i := range 60 {
			if out := randomCommand(m, rng, i); out.Reason == nil {
				accepted++
			}
		}
		if accepted < 15 {
			t.Fatalf("seed %d: only %d of 60 commands took effect", seed, accepted)
		}
		twin := NewState(must(ParseGenesis(m.g.Raw())))
		for _, c := range m.log {
			twin.Apply(c)
		}
		if twin.Digest() != m.s.Digest() || twin.PolicyDigest() != m.s.PolicyDigest() {
			t.Fatalf("seed %d: replay of %d commands has another digest", seed, len(m.log))
		}
		policy, err := ReplayPolicy(m.g, m.s.PolicyChain())
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if policy.PolicyDigest() != m.s.PolicyDigest() || !reflect.DeepEqual(policy.AttestPolicy(identity.NodeRef{}, RoleTrainer), m.s.AttestPolicy(identity.NodeRef{}, RoleTrainer)) {
			t.Fatalf("seed %d: the policy chain leads elsewhere", seed)
		}
	}
}

func randomCommand(m *mesh, rng *rand.Rand, i int) Outcome {
	letters := []string{"old", "new", "e1", "e2", "e3", "e4"}
	letter := letters[rng.IntN(len(letters))]
	orgs := m.orgs()
	org := func() string { return string(orgs[rng.IntN(len(orgs))]) }
	nodes := m.s.Nodes()
	switch rng.IntN(6) {
	case 0:
		return m.order(m.propose(add(entry(m.t, letter))), 1+rng.IntN(len(orgs)))
	case 1:
		return m.order(m.propose(remove(letter)), 1+rng.IntN(len(orgs)))
	case 2:
		return m.order(m.propose(readmit(entry(m.t, letter)), remove(letters[rng.IntN(len(letters))])), len(orgs))
	case 3:
		return m.command(KindCredential, m.credential(fmt.Sprintf("%s/n%d", org(), 2+rng.IntN(3)), 1+rng.IntN(8)))
	case 4:
		v, s := nodes[rng.IntN(len(nodes))].Ref.String(), nodes[rng.IntN(len(nodes))].Ref.String()
		if v == s {
			return m.command(KindTick)
		}
		return m.command(KindResults, m.result(v, s, letter, func(r *AttestationResult) {
			r.At = r.At.Add(time.Duration(i) * time.Millisecond)
			r.Expires = r.At.Add(time.Hour)
		}))
	default:
		if len(m.s.Seats()) == 0 {
			return m.command(KindTick)
		}
		return m.tick(time.Duration(rng.IntN(4000)) * time.Millisecond)
	}
}

func TestReplayPolicyRefuses(t *testing.T) {
	m := started(t, 3)
	m.ok(m.order(m.propose(add(entry(t, "x"))), 3))
	m.ok(m.order(m.propose(remove("old")), 2))
	chain := m.s.PolicyChain()
	forged := m.sign(m.payload(m.propose(add(entry(t, "y")))), "alpha govern")
	for name, tc := range map[string]struct {
		code  attest.Code
		chain [][]byte
	}{
		"genesis alone":      {attest.CodeMalformed, chain[:1]},
		"too few signatures": {attest.CodeThreshold, append(chain[:4:4], forged)},
		"a step left out":    {attest.CodeMalformed, [][]byte{chain[0], chain[2]}},
		"a step repeated":    {attest.CodeReplayed, append(chain[:4:4], chain[3])},
		"too long":           {attest.CodeLimit, make([][]byte, MaxChain+1)},
	} {
		if _, err := ReplayPolicy(m.g, tc.chain); err == nil || ReasonOf(err).Code != tc.code {
			t.Errorf("%s: got %v, want %s", name, err, tc.code)
		}
	}
	fresh := must(ReplayPolicy(m.g, nil))
	if fresh.Started() || fresh.LogKey() != nil {
		t.Error("an empty chain started the mesh")
	}
	// A node extends what it has, and never goes back or aside.
	if err := fresh.Extend(chain[:3]); err != nil || fresh.Epoch() != 1 {
		t.Fatal(err)
	}
	before := fresh.PolicyDigest()
	aside := [][]byte{chain[0], chain[1], chain[3]}
	for _, bad := range [][][]byte{chain[:2], aside, append(chain[:4:4], forged)} {
		if err := fresh.Extend(bad); err == nil || fresh.PolicyDigest() != before {
			t.Errorf("extended by another chain: %v", err)
		}
	}
	if err := fresh.Extend(chain); err != nil || fresh.PolicyDigest() != m.s.PolicyDigest() {
		t.Errorf("%v", err)
	}
	if c, err := fresh.VerifyCredential(m.credential("alpha/n9", 1), m.at); err != nil || c.Node != "n9" {
		t.Errorf("a node without a seat cannot verify a Credential: %v", err)
	}
}
