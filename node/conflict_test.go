package node

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/audit/misbehaviour"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
)

// parted is a mesh in which a traitor has shown two histories: each of two groups of seats has applied
// another proposal. It returns a checkpoint of each, cosigned by the group and the traitor.
func (c *crowd) parted(ours, theirs []*Node, traitor *Node) (own, other []byte) {
	c.t.Helper()
	for _, side := range []struct {
		nodes []*Node
		entry string
		note  *[]byte
	}{{ours, "ours", &own}, {theirs, "theirs", &other}} {
		c.fed = side.nodes
		c.order(consensus.KindProposal, c.proposal(crowdOrgs[:5], consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry(side.entry)}}))
		*side.note = c.noteOf(side.nodes[0], append([]*Node{traitor}, side.nodes...)...)
	}
	c.base++
	return own, other
}

// noteOf is a checkpoint of one node's tree, signed by the log key and cosigned by whoever it is said to be.
func (c *crowd) noteOf(of *Node, by ...*Node) []byte {
	c.t.Helper()
	size, root := of.machine.tree.Head()
	return c.signed(of, transparency.Checkpoint{Origin: of.origin(), Size: size, Root: root}, by...)
}

func (c *crowd) signed(of *Node, at transparency.Checkpoint, by ...*Node) []byte {
	c.t.Helper()
	note, err := transparency.NewCheckpoint(at, crowdKey("log", "log"))
	if err != nil {
		c.t.Fatal(err)
	}
	for _, n := range by {
		k := of.cosigners()[n.self]
		line, err := transparency.Cosign(note, k.Name, n.keys.Cosigner)
		if err == nil {
			note, err = transparency.Merge(note, line, k)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return note
}

// believe has each node believe a checkpoint of its own history.
func (c *crowd) believe(note []byte, nodes ...*Node) {
	c.t.Helper()
	for _, n := range nodes {
		if err := n.acceptCheckpoint(note); err != nil {
			c.t.Fatalf("%s: %v", n.ref, err)
		}
	}
}

func (n *Node) convictedOrgs() (out []string) {
	for _, c := range n.conflictStatuses() {
		for _, name := range c.Convicted {
			out = append(out, strings.Split(strings.TrimPrefix(name, n.origin()+"/"), "/")[0])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Two groups that were shown two histories meet: both convict the traitor and nobody else, with a
// file that anybody can verify, and cosign nothing more, since both histories were published.
func TestTwoPublishedHistories(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.found()
		c.affirm()
		c.link(len(crowdOrgs) - 1)
		traitor, ours, theirs := c.nodes[3], c.nodes[:3], c.nodes[4:]
		for _, n := range c.nodes {
			dir, err := durable.Open(filepath.Join(t.TempDir(), misbehaviourDir))
			if err != nil {
				t.Fatal(err)
			}
			n.conflicts.dir = dir
		}
		own, other := c.parted(ours, theirs, traitor)
		c.believe(own, ours...)
		c.believe(other, theirs...)
		for _, n := range ours {
			l, _ := theirs[0].linkTo(n.self)
			theirs[0].showCheckpoint(t.Context(), []mesh.Link{l}, other)
		}
		// The others hear of it by a pull alone.
		for _, n := range theirs {
			l, _ := n.linkTo(ours[0].self)
			for range 2 { // who has not said what it has is sent nothing
				if _, err := n.gossipOnce(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
		}
		synctest.Wait()
		for _, n := range slices.Concat(ours, theirs) {
			status := n.conflictStatuses()
			if got := n.convictedOrgs(); fmt.Sprint(got) != fmt.Sprintf("[%s]", traitor.ref.Org) || !status[0].Published || status[0].Code != attest.CodeMisbehaviour {
				t.Fatalf("%s convicts %v: %+v", n.ref, got, status)
			}
			raw, err := os.ReadFile(status[0].File)
			if err != nil {
				t.Fatal(err)
			}
			r, err := misbehaviour.Verify(raw, c.genesis)
			if err != nil || len(r.Convicted) != 1 || r.Convicted[0].Peer != traitor.self {
				t.Errorf("%s: the file says %+v, %v", n.ref, r.Convicted, err)
			}
			if !strings.Contains(fmt.Sprint(n.Status().Warnings), "misbehaviour: two histories") {
				t.Errorf("%s does not say so: %q", n.ref, n.Status().Warnings)
			}
			for _, by := range []identity.PeerID{ours[0].self, n.self} {
				if err := n.mayCosign(by); !errors.Is(err, errTwoHistories) {
					t.Errorf("%s cosigns: %v", n.ref, err)
				}
			}
		}
		// A node that starts anew on that directory knows it still.
		again := c.nodes[0]
		dir := again.conflicts.dir
		again.conflicts = newConflicts()
		again.loadConflicts(dir)
		if got := again.convictedOrgs(); len(got) != 1 || again.mayCosign(again.self) == nil {
			t.Errorf("after a restart %v are convicted", got)
		}
	})
}

// A seat that has cosigned another history, too few of which were cosigned, is not counted any more and
// gets no cosignature; the others go on.
func TestConvictedIsNotCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		c.found()
		c.affirm()
		c.link(1)
		traitor, ours, theirs := c.nodes[6], c.nodes[:5], c.nodes[5:6]
		own, other := c.parted(ours, theirs, traitor)
		c.believe(own, ours...)
		n := ours[0]
		if err := n.hearCheckpoint(theirs[0].self, other); !errors.Is(err, errTwoHistories) {
			t.Fatal(err)
		}
		if got := n.convictedOrgs(); fmt.Sprint(got) != fmt.Sprintf("[%s]", traitor.ref.Org) || n.conflictStatuses()[0].Published {
			t.Fatalf("convicted %v, %+v", got, n.conflictStatuses())
		}
		if n.mayCosign(traitor.self) == nil || n.mayCosign(ours[1].self) != nil {
			t.Errorf("cosigns for the traitor: %v, for others: %v", n.mayCosign(traitor.self), n.mayCosign(ours[1].self))
		}
		c.fed = ours
		c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
		if err := n.acceptCheckpoint(c.noteOf(n, append([]*Node{traitor}, ours[:3]...)...)); err == nil {
			t.Error("the traitor's cosignature still counts: with it there is a quorum")
		}
		if err := n.acceptCheckpoint(c.noteOf(n, ours[:4]...)); err != nil {
			t.Errorf("the others alone: %v", err)
		}
	})
}

// Whoever has the log key and nobody's cosignature convicts nobody and stops nothing: an alarm, once.
// Whoever has not even that costs itself a fault.
func TestLeakedLogKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs)+1, func(int) string { return "new" })
		defer c.close()
		c.found()
		c.affirm()
		c.link(len(crowdOrgs))
		n, thief := c.nodes[0], c.nodes[len(crowdOrgs)]
		size, _ := n.machine.tree.Head()
		c.believe(c.noteOf(n, c.nodes[:4]...), n)
		show := func(note []byte) {
			t.Helper()
			l, ok := thief.linkTo(n.self)
			if !ok {
				t.Fatal("no link")
			}
			thief.showCheckpoint(t.Context(), []mesh.Link{l}, note)
			synctest.Wait()
		}
		forged, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: n.origin(), Size: size, Root: transparency.Hash{1}}, crowdKey("thief", "log"))
		if err != nil {
			t.Fatal(err)
		}
		show(forged)
		if s := n.conflictStatuses(); len(s) != 0 || !n.gossip.bad(forged) {
			t.Errorf("a checkpoint that nobody knows raises %+v", s)
		}
		for i := range 3 * maxAgainst {
			show(c.signed(n, transparency.Checkpoint{Origin: n.origin(), Size: size - 1, Root: transparency.Hash{byte(i + 1)}}))
			time.Sleep(time.Second)
		}
		s := n.conflictStatuses()
		if len(s) != 1 {
			t.Fatalf("%d alarms", len(s))
		}
		for _, x := range s {
			if x.Code != attest.CodeLogKeyLeaked || len(x.Convicted) > 0 || x.Published {
				t.Errorf("got %+v", x)
			}
		}
		if w := fmt.Sprint(n.Status().Warnings); !strings.Contains(w, "log_key_leaked") {
			t.Errorf("status does not say so: %s", w)
		}
		for _, by := range c.nodes {
			if err := n.mayCosign(by.self); err != nil {
				t.Errorf("for %s: %v", by.ref, err)
			}
		}
		c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
		if err := n.acceptCheckpoint(c.noteOf(n, c.nodes[:4]...)); err != nil {
			t.Errorf("it does not go on: %v", err)
		}
	})
}

// A seat that keeps its cosignature from this log, and puts it under any number of others, with the log
// key or without, is no reason to verify the policy chain again and again, and takes no other's place on
// the disk: who is convicted after it is.
func TestSeatThatCosignsOtherHistoriesOnly(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	n, idle, traitor := c.nodes[0], c.nodes[5], c.nodes[3]
	dir, err := durable.Open(filepath.Join(t.TempDir(), misbehaviourDir))
	if err != nil {
		t.Fatal(err)
	}
	n.conflicts.dir = dir
	own := c.noteOf(n, c.nodes[:4]...)
	c.believe(own, n)
	size, _ := n.machine.tree.Head()
	at := transparency.Checkpoint{Origin: n.origin(), Size: size}
	var bare []byte
	for i := range 3 * maxMisbehaviourFiles {
		at.Root = transparency.Hash{1, byte(i)}
		note := c.signed(n, at, idle)
		if i%2 == 0 { // its own line alone
			body, _, _ := strings.Cut(string(note), "\n\n")
			bare = []byte(body + "\n\n" + string(note[bytes.LastIndex(note, []byte("\u2014 ")):]))
			note = bare
		}
		if err := n.hearCheckpoint(idle.self, note); !errors.Is(err, errTwoHistories) {
			t.Fatal(err)
		}
	}
	if files, _ := filepath.Glob(dir.Path("*.json")); len(files) != 1 {
		t.Errorf("%d files say that the log key has leaked, want one", len(files))
	}
	policy := n.machine.state.PolicyState
	for _, x := range n.conflicts.against {
		if x.report.Verdict == "" && n.conflicts.worthwhile(own, x, policy, n.knownCosigners()) {
			t.Errorf("the checkpoint of root %s is tried for ever", x.at.Root)
		}
	}
	if !slices.ContainsFunc(n.conflicts.against, func(x *conflict) bool { return bytes.Equal(x.note, bare) }) {
		t.Error("the newest is not among them")
	}
	if err := n.hearCheckpoint(idle.self, c.signed(n, transparency.Checkpoint{Origin: n.origin(), Root: transparency.Hash{1}}, idle)); !errors.Is(err, errForeign) {
		t.Errorf("one of size 0: %v", err)
	}
	at.Root = transparency.Hash{2}
	if err := n.hearCheckpoint(idle.self, c.signed(n, at, traitor)); !errors.Is(err, errTwoHistories) {
		t.Fatal(err)
	}
	if got := n.convictedOrgs(); fmt.Sprint(got) != fmt.Sprintf("[%s]", traitor.ref.Org) {
		t.Errorf("convicted %v", got)
	}
	for _, s := range n.conflictStatuses() {
		if s.File == "" {
			t.Errorf("no file of %+v", s)
		}
	}
}

// An organisation that has ever new cosigners convicted, or puts lines of nodes that hold no seat on
// everything, keeps nobody from convicting another one.
func TestConvictionsOfOneOrganisation(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs)+1, func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	n, member, traitor := c.nodes[0], c.nodes[len(crowdOrgs)], c.nodes[3]
	dir, err := durable.Open(filepath.Join(t.TempDir(), misbehaviourDir))
	if err != nil {
		t.Fatal(err)
	}
	n.conflicts.dir = dir
	c.order(consensus.KindCredential, member.credential())
	k := transparency.Cosigner{Name: n.genesis.CosignerName(0, member.ref, 1), Org: member.ref.Org, Key: member.keys.Cosigner.Public().(ed25519.PublicKey)}
	if !slices.ContainsFunc(n.knownCosigners(), func(o transparency.Cosigner) bool { return o.Name == k.Name && o.Key.Equal(k.Key) }) {
		t.Fatalf("%s is not known", k.Name)
	}
	sign := func(note []byte) []byte {
		t.Helper()
		line, err := transparency.Cosign(note, k.Name, member.keys.Cosigner)
		if err == nil {
			note, err = transparency.Merge(note, line, k)
		}
		if err != nil {
			t.Fatal(err)
		}
		return note
	}
	own := sign(c.noteOf(n, c.nodes[:4]...))
	c.believe(own, n)
	size, _ := n.machine.tree.Head()
	at := transparency.Checkpoint{Origin: n.origin(), Size: size}
	for i := range 3 {
		at.Root = transparency.Hash{1, byte(i)}
		if err := n.hearCheckpoint(member.self, sign(c.signed(n, at))); !errors.Is(err, errTwoHistories) {
			t.Fatal(err)
		}
	}
	for i, x := range n.conflicts.against {
		if i > 0 && x.report.Verdict != "" {
			t.Errorf("that the log key has leaked is said again: %+v", x.report)
		}
		if n.conflicts.worthwhile(own, x, n.machine.state.PolicyState, n.conflicts.convictable(n.knownCosigners())) {
			t.Errorf("the checkpoint of root %s is tried for ever", x.at.Root)
		}
	}
	for i := range maxMisbehaviourFiles {
		name := fmt.Sprint("boot ", i)
		x := &conflict{at: at, report: misbehaviour.Report{Verdict: misbehaviour.VerdictMisbehaviour, Origin: at.Origin, Convicted: []misbehaviour.Convicted{{Cosigner: name, Organisation: "zeta"}}}, raw: []byte(name)}
		n.conflicts.mu.Lock()
		n.conflicts.against = append(n.conflicts.against, x)[max(0, len(n.conflicts.against)+1-maxAgainst):]
		n.conflicts.convict(x.report)
		n.keepConflict(x)
		n.conflicts.mu.Unlock()
	}
	if files, _ := filepath.Glob(dir.Path("*.json")); len(files) > maxFilesOfOrg+1 {
		t.Errorf("%d files", len(files))
	}
	at.Root = transparency.Hash{2}
	if err := n.hearCheckpoint(traitor.self, c.signed(n, at, traitor)); !errors.Is(err, errTwoHistories) {
		t.Fatal(err)
	}
	s := n.conflictStatuses()
	if last := s[len(s)-1]; len(s) > maxAgainst || last.File == "" || fmt.Sprint(last.Convicted) != "["+n.cosigners()[traitor.self].Name+"]" {
		t.Errorf("%d alarms, the last is %+v", len(s), last)
	}
}

// A checkpoint that is larger than the own tree is looked at once the tree has come to it, and what is
// kept until then is bounded.
func TestCheckpointAheadOfTree(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	traitor, ours, theirs := c.nodes[6], c.nodes[:5], c.nodes[5:6]
	c.fed = theirs
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("theirs")}})
	other := c.noteOf(theirs[0], theirs[0], traitor)
	c.base = 0
	n := ours[0]
	if err := n.hearCheckpoint(theirs[0].self, other); err != nil || len(n.conflictStatuses()) != 0 {
		t.Fatalf("%v, %+v", err, n.conflictStatuses())
	}
	for i := range 2 * maxAhead {
		note := c.signed(n, transparency.Checkpoint{Origin: n.origin(), Size: 1 << 20, Root: transparency.Hash{byte(i)}})
		if err := n.hearCheckpoint(identity.PeerID(fmt.Sprint("peer ", i)), note); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(n.conflicts.ahead); got > maxAhead {
		t.Errorf("%d checkpoints are kept", got)
	}
	n.conflicts.later(theirs[0].self, other) // it may have made room
	c.fed = ours
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("ours")}})
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("more")}})
	n.reviewAhead()
	if got := n.convictedOrgs(); len(got) != 0 {
		t.Fatalf("convicted %v before any checkpoint of its own covers it", got)
	}
	c.believe(c.noteOf(n, append([]*Node{traitor}, ours...)...), n)
	if got := n.convictedOrgs(); fmt.Sprint(got) != fmt.Sprintf("[%s]", traitor.ref.Org) {
		t.Errorf("convicted %v", got)
	}
}

// L3: a node believes no checkpoint that is older than one that an earlier boot of it has kept, nor one
// of a history that has another root there.
func TestOlderThanSeen(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	n := c.nodes[0]
	older := c.noteOf(n, c.nodes[:4]...)
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
	newer := c.noteOf(n, c.nodes[:4]...)
	kept := func(note []byte) {
		t.Helper()
		n.cfg.Data = t.TempDir()
		dir, err := durable.Open(filepath.Join(n.cfg.Data, "boot-1", "log"))
		if err == nil {
			err = dir.WriteFile("checkpoint", note, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		n.seen = nil
		n.loadSeen()
	}
	refused := func(note []byte, claim string) {
		t.Helper()
		var r *RefusedError
		if err := n.acceptCheckpoint(note); !errors.As(err, &r) || r.Reason.Code != attest.CodeRolledBack || !strings.Contains(r.Reason.Claim, claim) {
			t.Errorf("got %v", err)
		}
		if p, _ := n.lastPublished(); p.note != nil {
			t.Error("it is believed all the same")
		}
	}
	kept(newer)
	refused(older, "checkpoint")
	size, _ := n.machine.tree.Head()
	kept(c.signed(n, transparency.Checkpoint{Origin: n.origin(), Size: size - 1, Root: transparency.Hash{7}}, c.nodes[2], c.nodes[6]))
	refused(newer, "root")
	if got := n.convictedOrgs(); fmt.Sprint(got) != fmt.Sprintf("[%s]", c.nodes[2].ref.Org) {
		t.Errorf("who has cosigned both: %v", got)
	}
	n.conflicts = newConflicts()
	other, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: n.origin(), Size: size + 9, Root: transparency.Hash{7}}, crowdKey("thief", "log"))
	if err != nil {
		t.Fatal(err)
	}
	kept(other) // put there by whoever owns the disk
	if err := n.acceptCheckpoint(newer); err != nil {
		t.Errorf("a file that the log key has not signed: %v", err)
	}
}

// L4, L8, L9, L12: a checkpoint is believed by the cosignatures of enough organisations, each by its
// own cosigner key over this origin, and by nothing else.
func TestCheckpointsThatAreNotBelieved(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	n := c.nodes[0]
	size, root := n.machine.tree.Head()
	at := transparency.Checkpoint{Origin: n.origin(), Size: size, Root: root}
	few := c.noteOf(n, c.nodes[:3]...)
	// cosigned adds a line to few, as somebody under some name by some key.
	cosigned := func(name string, org identity.OrgID, key ed25519.PrivateKey) []byte {
		t.Helper()
		line, err := transparency.Cosign(few, name, key)
		if err == nil {
			line, err = transparency.Merge(few, line, transparency.Cosigner{Name: name, Org: org, Key: key.Public().(ed25519.PublicKey)})
		}
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	fourth, third := n.cosigners()[c.nodes[3].self], n.cosigners()[c.nodes[2].self]
	again := n.cosigners()[c.nodes[2].self].Name
	elsewhere := at
	elsewhere.Origin = c.genesis.Origin(1)
	byNode, err := transparency.NewCheckpoint(at, c.nodes[3].key)
	if err != nil {
		t.Fatal(err)
	}
	body, _, _ := strings.Cut(string(few), "\n\n")
	_, lines, _ := strings.Cut(string(c.signed(n, elsewhere)), "\n\n")
	for name, x := range map[string]struct {
		note []byte
		want string
	}{
		"one organisation too few":                     {few, "cosigned by [alpha beta delta] only, 4 organisations are needed"},
		"one of them twice, under another boot's name": {cosigned(n.genesis.CosignerName(0, c.nodes[2].ref, 7), third.Org, c.nodes[2].keys.Cosigner), "cosigned by [alpha beta delta] only"},
		"one of them twice, by its line again":         {append(bytes.Clone(few), few[bytes.LastIndex(few, []byte("\u2014 "+again)):]...), ""},
		"by the peer key in place of the cosigner's":   {cosigned(fourth.Name, fourth.Org, c.nodes[3].key), "cosigned by [alpha beta delta] only"},
		"by the log key in place of a cosigner's":      {cosigned(fourth.Name, fourth.Org, crowdKey("log", "log")), "cosigned by [alpha beta delta] only"},
		"by another's cosigner key":                    {cosigned(fourth.Name, fourth.Org, c.nodes[4].keys.Cosigner), "cosigned by [alpha beta delta] only"},
		"by a node's key in place of the log's":        {byNode, "not signed by the log key"},
		"without the log's":                            {[]byte(body + "\n\n" + string(few[bytes.LastIndex(few, []byte("\u2014 "+again)):])), "not signed by the log key"},
		"of another incarnation":                       {c.signed(n, elsewhere), "origin"},
		"with another incarnation's line":              {[]byte(body + "\n\n" + lines), ""},
	} {
		err := n.hearCheckpoint(c.nodes[1].self, x.note)
		if err == nil || !strings.Contains(err.Error(), x.want) && !errors.Is(err, errForeign) {
			t.Errorf("%s: %v", name, err)
		}
		if p, _ := n.lastPublished(); p.note != nil {
			t.Fatalf("%s: believed", name)
		}
	}
	if s := n.conflictStatuses(); len(s) > 0 {
		t.Errorf("they raise %+v", s)
	}
	if err := n.hearCheckpoint(c.nodes[1].self, c.noteOf(n, c.nodes[:4]...)); err != nil {
		t.Errorf("a good one: %v", err)
	}
}

// Lines of nobody on a checkpoint that is served already are no news: whoever adds them takes no place, and
// nobody's time.
func TestLinesOfNobody(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	n := c.nodes[0]
	note := c.noteOf(n, c.nodes[:4]...)
	c.believe(note, n)
	changed := n.changed.wait()
	for i := range 2 * maxOwnNotes {
		key := crowdKey("nobody", fmt.Sprint(i))
		k := transparency.Cosigner{Name: fmt.Sprint("nobody.example/", i), Org: "nobody", Key: key.Public().(ed25519.PublicKey)}
		line, err := transparency.Cosign(note, k.Name, key)
		if err == nil {
			line, err = transparency.Merge(note, line, k)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := n.hearCheckpoint(c.nodes[1].self, line); err != nil {
			t.Fatal(err)
		}
	}
	if p, _ := n.lastPublished(); !bytes.Equal(p.note, note) || len(n.conflicts.own) != 1 {
		t.Errorf("%d checkpoints are remembered, and what is served is\n%s", len(n.conflicts.own), p.note)
	}
	select {
	case <-changed:
		t.Error("everybody is woken")
	default:
	}
	more := c.noteOf(n, c.nodes[:6]...)
	if err := n.hearCheckpoint(c.nodes[1].self, more); err != nil {
		t.Fatal(err)
	}
	if p, _ := n.lastPublished(); !bytes.Equal(p.note, more) {
		t.Error("a further cosignature is no news")
	}
	if err := n.hearCheckpoint(c.nodes[1].self, more[:bytes.LastIndex(more, []byte("\u2014 "))]); err != nil {
		t.Fatal(err)
	}
	if p, _ := n.lastPublished(); !bytes.Equal(p.note, more) {
		t.Error("a cosignature can be taken off")
	}
}

// A new incarnation has another origin and another log key: what was found in the one before is over, and
// whoever has the old key signs nothing in it.
func TestNewIncarnationCuresTheLogKey(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	defer c.close()
	c.found()
	c.affirm()
	n := c.nodes[0]
	dir, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	n.conflicts.dir = dir
	c.believe(c.noteOf(n, c.nodes[:4]...), n)
	size, root := n.machine.tree.Head()
	for _, by := range [][]*Node{nil, c.nodes[2:3]} {
		_ = n.hearCheckpoint(c.nodes[1].self, c.signed(n, transparency.Checkpoint{Origin: n.origin(), Size: size, Root: transparency.Hash{1}}, by...))
	}
	if got := n.conflictStatuses(); len(got) != 2 || n.mayCosign(c.nodes[2].self) == nil {
		t.Fatalf("got %+v", got)
	}

	chain := c.rise(5)
	steps := chain[len(chain)-2:]
	var leaves [][]byte
	for i := range size {
		leaf, err := n.machine.tree.Leaf(i)
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leaf)
	}
	l := &oldLog{from: "here", leaves: spooled(t, leaves), at: consensus.CheckpointSeen{Size: size, Root: root.String()}}
	if l.state, l.ledger, err = replayLog(c.genesis, leaves); err != nil {
		t.Fatal(err)
	}
	c.add(0, "new")
	again := c.nodes[len(c.nodes)-1]
	again.loadConflicts(dir)
	if err := again.resume(l, steps[0]); err != nil {
		t.Fatal(err)
	}
	raw, err := command(consensus.KindRecovery, steps...)
	if err != nil {
		t.Fatal(err)
	}
	if out := again.machine.apply(raw); out.Err != nil || out.Reason != nil {
		t.Fatalf("%v %v", out.Err, out.Reason)
	}
	if again.incarnation() != 1 || again.origin() == n.origin() {
		t.Fatalf("incarnation %d, %s", again.incarnation(), again.origin())
	}
	if got := again.conflictStatuses(); len(got) != 0 || again.mayCosign(again.self) != nil {
		t.Errorf("it is still held against the new log: %+v", got)
	}
	size, _ = again.machine.tree.Head()
	if err := again.hearCheckpoint(c.nodes[1].self, c.signed(again, transparency.Checkpoint{Origin: again.origin(), Size: size, Root: transparency.Hash{1}})); !errors.Is(err, errForeign) {
		t.Errorf("the old key in the new log: %v", err)
	}
	if got := again.conflictStatuses(); len(got) != 0 {
		t.Errorf("the old key raises %+v", got)
	}
}
