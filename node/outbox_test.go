package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
)

// logged returns what one verifier has in the log of a node, in its order.
func (c *crowd) logged(at *Node, verifier identity.PeerID) (out []*consensus.AttestationResult) {
	c.t.Helper()
	for i := range at.machine.tree.Size() {
		leaf, err := at.machine.tree.Leaf(i)
		if err != nil {
			c.t.Fatal(err)
		}
		if r, err := consensus.ParseResult(leaf); err == nil && r.Verifier.Peer == verifier {
			out = append(out, r)
		}
	}
	return out
}

// apart parts nodes from all others, or joins them again, by links that are dialled anew.
func (c *crowd) apart(nodes []*Node, cut bool) {
	c.t.Helper()
	for _, n := range nodes {
		for _, other := range c.nodes {
			switch {
			case other == n:
			case cut:
				c.network.Cut(n.self, other.self)
			default:
				c.network.Heal(n.self, other.self)
			}
		}
	}
	if !cut {
		c.link(len(c.nodes) - 1)
	}
}

func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// longOutage is an hour of virtual time for make crash, which costs half a minute of a processor, and
// less elsewhere.
func longOutage() time.Duration {
	switch {
	case raceDetector:
		return 3 * time.Minute
	case os.Getenv(crashAll) == "":
		return 20 * time.Minute
	}
	return time.Hour
}

// L6: the log orders nothing for an hour, while a node goes on finding out more than one tick's quota
// allows. It keeps all of it, on disk, within its bound; when there is a quorum again everything
// that still holds is ordered, once and in its order, and the files go. Then the node is killed with
// findings unordered: the next boot submits those before its own Credential, which retires the
// earlier one; what is left after that is void.
func TestL6LogDownForAnHour(t *testing.T) {
	outage := longOutage()
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		for _, n := range c.nodes {
			n.cred = c.renewal(n, 3*time.Hour)
		}
		c.raft()
		leader := c.leading()
		c.add(len(crowdOrgs), "new")
		x := c.nodes[len(crowdOrgs)]
		x.cred = c.renewal(x, 3*time.Hour)
		var found []mesh.Subject
		credentials := [][]byte{x.cred}
		for i := range 7 {
			ref, key := identity.NodeRef{Org: identity.OrgID(crowdOrgs[i]), Name: "subject"}, crowdKey("subject", fmt.Sprint(i))
			raw, err := crowdEnroller{c, ref, []string{RoleTrainer}, Keys{Peer: key, Cosigner: crowdKey("cosigner", fmt.Sprint(i))}}.Credential(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			credentials = append(credentials, raw)
			found = append(found, mesh.Subject{Peer: identity.PeerIDFromKey(key.Public().(ed25519.PublicKey)), Node: ref, Roles: []string{RoleTrainer}, Credential: raw})
		}
		for _, raw := range credentials {
			command, err := consensus.NewCommand(consensus.KindCredential, raw)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := leader.submit(t.Context(), command); err != nil {
				t.Fatal(err)
			}
		}
		c.link(len(c.nodes) - 1)
		data := t.TempDir()
		boot := func(n *Node, name string) {
			n.edges.dir = mustOpen(t, filepath.Join(data, name, "outbox"))
			n.tasks.Go(func() { n.follow(n.ctx) })
			n.tasks.Go(func() { n.edges.run(n.ctx) })
		}
		boot(x, "boot-1")
		within(t, time.Minute, "follows", func() bool { return x.stands(x.self) })
		finds := func(x *Node, i int) attest.Result {
			s, at := found[i%len(found)], time.Now()
			r := attest.Refuse(at, attest.NewReason(attest.CodeRevoked, "canary claim", "canary got", "canary want"))
			if i/len(found)%2 == 0 {
				r = attest.Result{Verdict: attest.VerdictAffirming, Kind: attest.KindSim, Measurement: attesttest.Measurement("new"), Reference: c.entry("new").ID, At: at}
			}
			x.edges.record(s, []byte("canary evidence"), r)
			return r
		}
		waiting := func(name string) int {
			names, err := os.ReadDir(filepath.Join(data, name, "outbox"))
			if err != nil {
				t.Fatal(err)
			}
			return len(names)
		}
		// What it finds out about the seats by itself is left out of the count.
		logged := func(by *Node) []*consensus.AttestationResult {
			return slices.DeleteFunc(c.logged(c.leading(), by.self), func(r *consensus.AttestationResult) bool { return r.Subject.Node.Name != "subject" })
		}
		waits := func(n *Node) (count int) {
			n.edges.mu.Lock()
			defer n.edges.mu.Unlock()
			for _, s := range found {
				count += n.edges.box.ofPeer[s.Peer]
			}
			return count
		}
		within(t, time.Minute, "an empty outbox", func() bool { return x.edges.status().Waiting == 0 })

		// An hour without a quorum.
		c.apart(c.nodes[:4], true)
		began, tick := time.Now(), leader.machine.TickSeq()
		var want []time.Time
		i := 0
		for ; time.Since(began) < outage; i++ {
			time.Sleep(12 * time.Second)
			want = append(want, finds(x, i).At)
		}
		time.Sleep(time.Second)
		if s := x.edges.status(); waits(x) != len(want) || s.TurnedAway+s.Delayed+s.Expired != 0 || waiting("boot-1") != s.Waiting {
			t.Fatalf("%+v and %d files, want %d findings that wait", s, waiting("boot-1"), len(want))
		}
		if got := leader.machine.TickSeq(); got > tick+5 || len(x.outboxWarnings()) != 0 {
			t.Fatalf("%d ticks without a quorum; warnings %q", got-tick, x.outboxWarnings())
		}
		names, err := os.ReadDir(filepath.Join(data, "boot-1", "outbox"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			raw, err := x.edges.dir.ReadFile(name.Name(), consensus.MaxResult)
			if err != nil || bytes.Contains(raw, []byte("canary")) {
				t.Fatalf("%s holds what the log will not show, %v: %s", name.Name(), err, raw)
			}
			if _, err := consensus.VerifyResult(raw); err != nil {
				t.Fatal(err)
			}
		}
		c.apart(c.nodes[:4], false)
		within(t, 2*time.Minute, "an empty outbox", func() bool { return x.edges.status().Waiting == 0 })
		expired := int(x.edges.status().Expired)
		got := logged(x)
		if len(got) != len(want)-expired || expired > 20 { // those of the first minutes, which are over an hour old by now
			t.Fatalf("%d findings ordered, %d expired, want %d together", len(got), expired, len(want))
		}
		for k, r := range got {
			if !r.At.Equal(want[expired+k].UTC().Truncate(time.Millisecond)) && r.At.Sub(want[expired+k]).Abs() >= time.Second {
				t.Fatalf("finding %d is of %s, want %s", k, r.At, want[expired+k])
			}
			if k > 0 && !r.At.After(got[k-1].At) {
				t.Fatalf("finding %d of %s comes after one of %s", k, r.At, got[k-1].At)
			}
		}
		if n := waiting("boot-1"); n != 0 {
			t.Errorf("%d files of what was ordered", n)
		}

		// Killed with findings that the log could not take.
		c.apart(c.nodes[:4], true)
		time.Sleep(5 * time.Second)
		var left []time.Time
		for range 3 {
			time.Sleep(time.Second)
			left = append(left, finds(x, i).At)
			i++
		}
		time.Sleep(time.Second)
		x.leave()
		x.tasks.Wait()
		if n := waiting("boot-1"); n < len(left) {
			t.Fatalf("%d files are left, want %d", n, len(left))
		}
		y := c.reboot(x)
		y.cred = c.bootOf(y, 2)
		y.edges.older.dirs = openOutboxes(mustOpen(t, data), filepath.Join(data, "boot-2", "outbox"))
		boot(y, "boot-2")
		c.apart(c.nodes[:4], false)
		within(t, 2*time.Minute, "the new boot's Credential", func() bool { return c.nodes[0].stands(y.self) })
		if got := logged(x)[len(got):]; len(got) != len(left) {
			t.Errorf("%d findings of the earlier boot were ordered, want %d", len(got), len(left))
		}
		if _, err := os.Stat(filepath.Join(data, "boot-1", "outbox")); !os.IsNotExist(err) {
			t.Errorf("the earlier boot's outbox is still there: %v", err)
		}
		finds(y, i)
		within(t, time.Minute, "the new boot's own finding", func() bool { return len(logged(y)) == 1 })

		// What is found of the earlier boot from now on is void, and submitted no more.
		raw, err := x.signEdge(edge{found[0], nil, attest.Refuse(time.Now(), attest.NewReason(attest.CodeRevoked, "", "", ""))})
		if err != nil {
			t.Fatal(err)
		}
		late := mustOpen(t, filepath.Join(data, "boot-1", "outbox"))
		if err := late.WriteFile(fileOf(1), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		z := newEdges(y)
		z.older.dirs = []*durable.Dir{late}
		if !z.drainOlder(t.Context()) || z.older.ordered != 0 || z.older.void != 1 {
			t.Errorf("%d ordered, %d void, want one that is void", z.older.ordered, z.older.void)
		}
	})
}

func mustOpen(t testing.TB, path string) *durable.Dir {
	t.Helper()
	dir, err := durable.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// reboot makes another boot of a node that has left, in its place.
func (c *crowd) reboot(old *Node) *Node {
	c.t.Helper()
	i := slices.Index(c.nodes, old)
	c.add(i, "new")
	n := c.nodes[len(c.nodes)-1]
	c.nodes, c.attesters = slices.Delete(c.nodes, i, i+1), slices.Delete(c.attesters, i, i+1)
	return n
}

// bootOf returns a Credential of a node as its boot number seq.
func (c *crowd) bootOf(n *Node, seq identity.BootSeq) []byte {
	c.t.Helper()
	cred, err := consensus.ParseCredential(n.credential())
	if err != nil {
		c.t.Fatal(err)
	}
	cred.BootSeq = seq
	raw, err := consensus.SignCredential(crowdSigner(c.t, string(n.ref.Org), consensus.KeyEnroll), *cred)
	if err != nil {
		c.t.Fatal(err)
	}
	return raw
}

// The 1,025th finding is not lost. An affirming verdict lets its peer in and waits with the link for
// room; a refusal is one all the same and is found again when the peer next asks. What is about one
// organisation's peers leaves room for the others'.
func TestOutboxWhenFull(t *testing.T) {
	e, at := newEdges(nil), time.Unix(1000, 0)
	subject := func(i int) mesh.Subject {
		s := testSubject(t, 1)
		s.Peer, s.Node.Org = identity.PeerID(fmt.Sprint(i)), identity.OrgID(fmt.Sprintf("org%d", i%8))
		return s
	}
	refused := attest.Refuse(at, attest.NewReason(attest.CodeRevoked, "", "", ""))
	for i := range maxPendingEdges {
		e.record(subject(i), nil, affirming(at))
	}
	if s := e.status(); s.Waiting != maxPendingEdges || s.Limit != maxPendingEdges || s.Delayed != 0 {
		t.Fatalf("got %+v", s)
	}
	good, bad := subject(maxPendingEdges), subject(maxPendingEdges+1)
	e.record(good, []byte("evidence"), affirming(at))
	e.record(bad, nil, refused)
	if w := (&Node{edges: e}).outboxWarnings(); len(w) != 1 || !strings.Contains(w[0], "1024 findings of at most 1024") {
		t.Errorf("the operator is told %q", w)
	}
	if s := e.status(); s.Waiting != maxPendingEdges || s.Delayed != 1 || s.TurnedAway != 1 {
		t.Fatalf("got %+v", s)
	}
	if string(e.last[good.Peer].evidence) != "evidence" {
		t.Error("the evidence behind a delayed verdict is gone")
	}
	e.relog(good.Peer, false, at) // it is linked
	e.relog(good.Peer, false, at.Add(relogFirst))
	if e.box.ofPeer[good.Peer] != 0 {
		t.Fatal("it went in where there is no room")
	}
	e.mu.Lock()
	e.box.remove(e.box.queue[0], e.box.queue[1])
	e.mu.Unlock()
	e.relog(good.Peer, false, at.Add(relogFirst+time.Second))
	e.record(bad, nil, refused) // it asks again
	if e.box.ofPeer[good.Peer] != 1 || e.box.ofPeer[bad.Peer] != 1 {
		t.Errorf("there is room for %d and %d", e.box.ofPeer[good.Peer], e.box.ofPeer[bad.Peer])
	}
	one := newEdges(nil)
	for i := range maxPendingEdges {
		one.record(subject(8*i), nil, affirming(at)) // all of one organisation
	}
	if s := one.status(); s.Waiting != maxPendingEdges/edgeShare {
		t.Errorf("%d findings about one organisation's peers wait", s.Waiting)
	}
}

// Where the disk takes nothing a finding is not submitted either, and stays: it is signed, once, when
// the disk is well again, and no evidence of the tries before stays behind.
func TestOutboxDiskFull(t *testing.T) {
	m, _ := testMachine(t)
	data := t.TempDir()
	var failing durable.Op
	dir, err := durable.Open(filepath.Join(data, "outbox"), durable.WithFault(func(op durable.Op, path string) error {
		if op == failing {
			return &os.PathError{Op: string(op), Path: path, Err: unix.ENOSPC}
		}
		return nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	n := &Node{machine: m, genesis: m.state.Genesis(), key: key, self: identity.PeerIDFromKey(public), ref: identity.NodeRef{Org: "alpha", Name: "n1"},
		evidence: &evidenceStore{data: mustOpen(t, data), here: "boot-1/evidence"}, log: slog.New(slog.NewTextHandler(&said, nil))}
	e := newEdges(n)
	e.dir = dir
	files := func(name string) int {
		if name == "evidence" {
			list, err := n.evidence.list()
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
		entries, err := os.ReadDir(filepath.Join(data, name))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	e.record(testSubject(t, 2), []byte("evidence"), affirming(time.Now()))
	for _, failing = range []durable.Op{durable.OpCreate, durable.OpWrite, durable.OpSync, durable.OpRename} {
		e.signWaiting()
		if s := e.status(); s.Waiting != 1 || e.box.queue[0].raw != nil || files("outbox")+files("evidence") != 0 {
			t.Fatalf("%s fails: %d wait, %d and %d files", failing, s.Waiting, files("outbox"), files("evidence"))
		}
	}
	if !strings.Contains(said.String(), "no space left on device") {
		t.Errorf("the operator is told %q", said.String())
	}
	// It is in nobody's hands meanwhile: an order erases its evidence, a heartbeat replaces it.
	e.erase(Erasure{Before: time.Now()})
	if f := e.box.queue[0]; f.evidence != nil {
		t.Error("what waits for the disk keeps evidence that was erased")
	}
	e.record(testSubject(t, 2), []byte("evidence"), affirming(time.Now().Add(consensus.HeartbeatAfter)))
	if s := e.status(); s.Waiting != 1 {
		t.Errorf("%d wait, want the newer one alone", s.Waiting)
	}
	failing = ""
	e.signWaiting()
	if f := e.box.queue[0]; f.raw == nil || f.evidence != nil || files("outbox") != 1 || files("evidence") != 1 {
		t.Errorf("%d and %d files", files("outbox"), files("evidence"))
	}
	if st, err := os.Stat(dir.Path(fileOf(1))); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

// What is about a peer whose Credential the machine refuses is not submitted and leaves nothing: an
// organisation can invent such peers.
func TestRefusedCredentialLeavesNoEvidence(t *testing.T) {
	m, _ := testMachine(t)
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	at := t.TempDir()
	refused := testSubject(t, 2)
	n := &Node{machine: m, genesis: m.state.Genesis(), key: key, self: identity.PeerIDFromKey(public), log: slog.New(slog.DiscardHandler),
		ref: identity.NodeRef{Org: "alpha", Name: "n1"}, evidence: &evidenceStore{data: mustOpen(t, at), here: "boot-1/evidence"}, badCredentials: map[identity.PeerID]error{refused.Peer: errMalformed}}
	e := newEdges(n)
	e.record(refused, []byte("evidence"), affirming(time.Now()))
	e.signWaiting()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if batch := e.head(ctx); len(batch) != 0 || e.status().Waiting != 0 {
		t.Errorf("%d are submitted, %d wait", len(batch), e.status().Waiting)
	}
	if list, err := n.evidence.list(); err != nil || len(list) != 0 {
		t.Errorf("%d files, %v", len(list), err)
	}
}

// What an earlier boot has found outlives a quota that is used up and a leader that is busy.
func TestOlderOutboxWaitsForQuota(t *testing.T) {
	of := func(texts ...string) (out [][]byte) {
		for _, x := range texts {
			out = append(out, []byte(x))
		}
		return out
	}
	refused := func(code attest.Code) error { return &RefusedError{attest.NewReason(code, "", "", "")} }
	for name, x := range map[string]struct {
		out           Applied
		err           error
		want          string
		ordered, void int
		goesOn        bool
	}{
		"ordered":              {Applied{}, nil, "[d]", 2, 1, true},
		"refused for good":     {Applied{}, refused(attest.CodeRetired), "[d]", 0, 3, true},
		"nobody leads":         {Applied{}, context.DeadlineExceeded, "[a b c d]", 0, 0, false},
		"no quota":             {Applied{}, refused(attest.CodeQuota), "[a b c d]", 0, 0, false},
		"a busy leader":        {Applied{}, refused(attest.CodeBusy), "[a b c d]", 0, 0, false},
		"quota for a part":     {Applied{Again: []int{1, 7, -1}}, nil, "[c d]", 1, 1, false},
		"for what was not yet": {Applied{Again: []int{1}}, refused(attest.CodeReplayed), "[c d]", 1, 1, false},
	} {
		o := olderFindings{waiting: of("a", "b", "c", "d")}
		if goesOn := o.submitted(3, of("a", "c"), x.out, x.err); goesOn != x.goesOn || fmt.Sprintf("%s", o.waiting) != x.want || o.ordered != x.ordered || o.void != x.void {
			t.Errorf("%s: goes on %v, %s wait, %d ordered, %d void", name, goesOn, o.waiting, o.ordered, o.void)
		}
	}
}

// What a host puts into the outbox of an earlier boot is nobody's finding.
func TestOlderOutboxIsNotBelieved(t *testing.T) {
	m, _ := testMachine(t)
	own := identity.NodeRef{Org: "alpha", Name: "n1"}
	sign := func(by identity.NodeRef, seed byte) []byte {
		key := ed25519.NewKeyFromSeed(append(make([]byte, 31), seed))
		n := &Node{machine: m, genesis: m.state.Genesis(), key: key, self: identity.PeerIDFromKey(key.Public().(ed25519.PublicKey)), ref: by}
		s := testSubject(t, 2)
		s.Node.Org = "gamma"
		raw, err := n.signEdge(edge{s, nil, affirming(time.Now())})
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	data := mustOpen(t, t.TempDir())
	write := func(boot string, seq uint64, raw []byte) {
		dir := mustOpen(t, data.Path(boot, "outbox"))
		if err := dir.WriteFile(fileOf(seq), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	good, better := sign(own, 11), sign(own, 12)
	altered := bytes.Replace(good, []byte(`"sig":"`), []byte(`"sig":"A`), 1)
	write("boot-900", 3, good)
	write("boot-1000", 1, better)
	write("boot-1000", 2, altered)
	write("boot-1000", 3, sign(identity.NodeRef{Org: "beta", Name: "n1"}, 13))
	write("boot-1000", 4, []byte("junk"))
	write("boot-1000", 5, make([]byte, consensus.MaxResult+1))
	if err := os.WriteFile(data.Path("boot-1000", "outbox", ".0000000000000009.tmp1"), good, 0o600); err != nil {
		t.Fatal(err)
	}
	write("boot-2000", 1, better)
	o := olderFindings{dirs: openOutboxes(data, data.Path("boot-2000", "outbox"))}
	o.load(own, m.state.Genesis().MeshID())
	if len(o.waiting) != 2 || !bytes.Equal(o.waiting[0], good) || !bytes.Equal(o.waiting[1], better) {
		t.Errorf("%d statements of earlier boots, want the two good ones, oldest first", len(o.waiting))
	}
	o = olderFindings{dirs: openOutboxes(data, "")}
	o.load(own, identity.MeshID{1})
	if len(o.waiting) != 0 {
		t.Errorf("%d statements of another mesh", len(o.waiting))
	}
}
