package node

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"filippo.io/torchwood"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/durable"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/transparency"
	"github.com/attestmesh/meshnode/transparency/tlogwitness"
	"github.com/attestmesh/meshnode/transparency/tlogwitness/witnesstest"
)

const witnessName = "witness.example"

func outsideKey(t *testing.T, key ed25519.PrivateKey) transparency.Outside {
	t.Helper()
	s, err := torchwood.NewCosignatureSigner(witnessName, key)
	if err != nil {
		t.Fatal(err)
	}
	w, err := transparency.ParseOutside(s.Verifier().String())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// A witness whose key the policy has replaced is believed by the new key, and one that the policy
// names no longer is asked nothing.
func TestWitnessUnderANewKey(t *testing.T) {
	c := aged(t)
	n := c.nodes[0]
	old, young := crowdKey("witness", "old"), crowdKey("witness", "new")
	signs, asked := old, 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked++
		body, _ := io.ReadAll(r.Body)
		_, note, _ := bytes.Cut(body, []byte("\n\n"))
		line, err := transparency.Cosign(note, witnessName, signs)
		if err != nil {
			t.Error(err)
		}
		_, _ = w.Write(line)
	}))
	defer srv.Close()
	note := c.checkpointAt(n.machine.tree.Size(), len(crowdOrgs))
	w := witnessClient{config: WitnessConfig{Name: witnessName, URL: srv.URL}, log: n.machine.tree}
	defer w.close()
	cosigned := func(by ed25519.PrivateKey) error {
		client, err := w.of([]transparency.Outside{outsideKey(t, by)})
		if err == nil {
			_, err = client.Cosign(t.Context(), note)
		}
		return err
	}
	if err := cosigned(old); err != nil {
		t.Fatal(err)
	}
	was := w.present
	if err := cosigned(old); err != nil || w.present != was {
		t.Errorf("another client under the same key, %v", err)
	}
	if err := cosigned(young); err == nil {
		t.Error("a cosignature by the old key counts under the new one")
	}
	signs = young
	if err := cosigned(young); err != nil {
		t.Errorf("under the new key: %v", err)
	}
	asked = 0
	if err := n.showNewest(t.Context(), &w, published{note: note}); err == nil || !strings.Contains(err.Error(), "names no witness") || asked != 0 {
		t.Errorf("a witness without a key in the policy was asked %d times: %v", asked, err)
	}
	n.cfg.Witnesses = []WitnessConfig{w.config}
	if out := n.outsideWarnings(); len(out) != 1 || !strings.Contains(out[0], witnessName) {
		t.Errorf("status says %q", out)
	}
}

// What a slow witness brings back neither replaces a checkpoint that was cosigned later or by more,
// nor is it lost, nor does it put off the next.
func TestSlowWitness(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	t.Cleanup(c.close)
	c.found()
	c.affirm()
	key := crowdKey("witness", "old")
	c.order(consensus.KindProposal, c.proposal(crowdOrgs, consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{outsideKey(t, key).Key()}}}))
	n := c.nodes[0]
	size := n.machine.tree.Size()
	few, all := c.checkpointAt(size, len(crowdOrgs)/2+1), c.checkpointAt(size, len(crowdOrgs))
	line, err := transparency.Cosign(few, witnessName, key)
	if err != nil {
		t.Fatal(err)
	}
	cosigned, err := transparency.MergeOutside(few, line, outsideKey(t, key))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.acceptCheckpoint(all); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.newestAt = time.Time{}
	n.mu.Unlock()
	if err := n.acceptCheckpoint(cosigned); err != nil {
		t.Fatal(err)
	}
	p, at := n.lastPublished()
	if len(p.Outside) != 1 || p.Level != transparency.Strong || len(p.Orgs) != len(crowdOrgs) {
		t.Errorf("served: %s by %v, outside %v", p.Level, p.Orgs, p.Outside)
	}
	if !at.IsZero() {
		t.Error("the leader thinks that seats have cosigned again")
	}
}

// cosignWithSeats returns a witness's cosignature (c2sp.org/tlog-cosignature) of the time of a seat's: in a
// bubble it is another year than outside.
func cosignWithSeats(note []byte, key ed25519.PrivateKey) []byte {
	text, lines, _ := bytes.Cut(note, []byte("\n\n"))
	text = append(text, '\n')
	var stamp []byte
	for line := range strings.Lines(string(lines)) {
		words := strings.Fields(line)
		if raw, err := base64.StdEncoding.DecodeString(words[len(words)-1]); err == nil && len(raw) == 4+8+ed25519.SignatureSize {
			stamp = raw[4:12]
		}
	}
	message := fmt.Appendf(nil, "cosignature/v1\ntime %d\n%s", binary.BigEndian.Uint64(stamp), text)
	sum := sha256.Sum256(slices.Concat([]byte(witnessName+"\n"), []byte{4}, key.Public().(ed25519.PublicKey)))
	return fmt.Appendf(nil, "— %s %s\n", witnessName, base64.StdEncoding.EncodeToString(slices.Concat(sum[:4], stamp, ed25519.Sign(key, message))))
}

// A witness is down for an hour: members are admitted, proven and allowed what was voted in as before,
// since cosignatures of organisations alone make a checkpoint published and strong; the operator is told.
// When it is back it is shown the newest checkpoint, and none in between.
func TestWitnessDownForAnHour(t *testing.T) {
	outage := longOutage()
	key := crowdKey("witness", "old")
	var down atomic.Bool
	var asked, cosigned, newest atomic.Int64
	// Outside of the bubble, whose time does not wait for it; no connection outlives its request.
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if down.Load() {
			panic(http.ErrAbortHandler)
		}
		body, _ := io.ReadAll(r.Body)
		head, note, _ := bytes.Cut(body, []byte("\n\n"))
		var old int64
		if _, err := fmt.Sscanf(string(head), "old %d", &old); err != nil {
			t.Errorf("%q: %v", head, err)
		}
		if last := newest.Load(); old != last {
			w.Header().Set("Content-Type", "text/x.tlog.size")
			w.WriteHeader(http.StatusConflict)
			fmt.Fprintf(w, "%d\n", last)
			return
		}
		cp, err := transparency.ParseCheckpoint(note)
		if err != nil {
			t.Error(err)
		}
		line := cosignWithSeats(note, key)
		newest.Store(int64(cp.Size))
		cosigned.Add(1)
		_, _ = w.Write(line)
	}))
	srv.Config.SetKeepAlivesEnabled(false)
	srv.Start()
	defer srv.Close()

	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
		defer c.close()
		for _, n := range c.nodes {
			n.cred = c.renewal(n, 3*time.Hour)
			n.cfg.Witnesses = []WitnessConfig{{Name: witnessName, URL: srv.URL}}
			n.tasks.Go(func() { n.edges.run(n.ctx) })
		}
		c.raft()
		submit := func(kind consensus.Kind, envelope []byte) {
			t.Helper()
			command, err := consensus.NewCommand(kind, envelope)
			if err == nil {
				_, err = c.leading().submit(t.Context(), command)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		c.leading()
		submit(consensus.KindProposal, c.proposal(crowdOrgs, consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{outsideKey(t, key).Key()}}}))
		at := c.nodes[0]
		whole := func(outside int) func() bool {
			return func() bool {
				p, _ := at.lastPublished()
				return p.Size == at.machine.tree.Size() && p.Level == transparency.Strong && len(p.Outside) == outside
			}
		}
		within(t, time.Minute, "a strong checkpoint that the witness has cosigned", whole(1))

		down.Store(true)
		before, began := newest.Load(), time.Now()
		for i := 0; time.Since(began) < outage; i++ {
			time.Sleep(outage / 4)
			release := fmt.Sprint("r", i)
			at.machine.View(func(s *consensus.State, _ *federated.Ledger) { c.base = s.Base() })
			submit(consensus.KindProposal, c.proposal(crowdOrgs[:5], consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry(release)}}))
			c.add(len(c.nodes), release)
			member := c.nodes[len(c.nodes)-1]
			within(t, 10*time.Second, "a link to a new member of a new release", func() bool {
				_, err := member.mesh.Dial(t.Context(), at.self, at.mesh.Addrs())
				return err == nil
			})
			var l mesh.Link
			within(t, time.Second, "the link's other end", func() (ok bool) { l, ok = at.linkTo(member.self); return ok })
			within(t, proofWithin, "the proof of a new member's verdict", func() bool { p, _ := at.proofOf(l.Session()); return p == ProofProven })
			within(t, 10*time.Second, "a strong checkpoint without the witness", whole(0))
		}
		if got := newest.Load(); got != before {
			t.Fatalf("the witness has cosigned size %d while it was down", got)
		}
		if s := c.leading().outsideStatus(); len(s) != 1 || s[0].Error == "" || s[0].Since == nil {
			t.Errorf("the leader's status says %+v", s)
		}
		if n := asked.Load(); n > int64(outage/witnessSlowest)+60 {
			t.Errorf("a witness that is down was asked %d times", n)
		}

		down.Store(false)
		again := cosigned.Load()
		within(t, witnessSlowest+5*time.Second, "a checkpoint of the whole log that the witness has cosigned", whole(1))
		if n := cosigned.Load() - again; n > 2 || newest.Load() != int64(at.machine.tree.Size()) {
			t.Errorf("it was shown %d checkpoints, the newest of size %d, of %d entries", n, newest.Load(), at.machine.tree.Size())
		}
		if s := c.leading().outsideStatus(); s[0].Error != "" || s[0].At == nil {
			t.Errorf("the leader's status says %+v", s)
		}
	})
}

// A witness that we did not write was shown another history first, by a thief of the log key, and cosigns
// ours no more. The leader says so; nothing waits for it: a newcomer is admitted and proven, and the
// checkpoint is as strong as the organisations make it.
func TestPoisonedWitnessHoldsUpNothing(t *testing.T) {
	t.Run("litewitness", func(t *testing.T) {
		w := witnesstest.Start(t)
		poisoned(t, w.Know, witnesstest.Name, w.URL, w.Key)
	})
	t.Run("omniwitness", func(t *testing.T) {
		w := witnesstest.StartOmni(t)
		poisoned(t, w.Know, witnesstest.OmniName, w.URL, w.Key)
	})
}

func poisoned(t *testing.T, know func(origin, vkey string), name, url, wkey string) {
	all := crowdOrgs
	crowdOrgs = crowdOrgs[:3]
	t.Cleanup(func() { crowdOrgs = all })
	c := newCrowd(t, len(crowdOrgs)+1, func(int) string { return "new" })
	defer c.close()
	for _, n := range c.nodes {
		n.cfg.Witnesses = []WitnessConfig{{Name: name, URL: url}}
	}
	origin, logKey := c.genesis.Origin(0), crowdKey("log", "log")
	vkey, err := transparency.VerifierKey(origin, logKey.Public().(ed25519.PublicKey))
	if err != nil {
		t.Fatal(err)
	}
	know(origin, vkey)
	dir, err := durable.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	fork, err := transparency.NewTree(dir)
	if err == nil {
		_, err = fork.AppendAll([][]byte{[]byte("forged"), []byte("forged too")})
	}
	if err != nil {
		t.Fatal(err)
	}
	size, root := fork.Head()
	note, err := transparency.NewCheckpoint(transparency.Checkpoint{Origin: origin, Size: size, Root: root}, logKey)
	if err != nil {
		t.Fatal(err)
	}
	key, err := transparency.ParseOutside(wkey)
	if err != nil {
		t.Fatal(err)
	}
	thief, err := tlogwitness.New(key, url, fork)
	if err == nil {
		_, err = thief.Cosign(t.Context(), note)
		thief.Close()
	}
	if err != nil {
		t.Fatal(err)
	}

	seats, newcomer := c.nodes[:len(crowdOrgs)], c.nodes[len(crowdOrgs)]
	c.nodes = seats
	c.raft()
	leader := c.leading()
	c.nodes = append(seats, newcomer)
	submit := func(kind consensus.Kind, raw []byte) {
		t.Helper()
		command, err := consensus.NewCommand(kind, raw)
		if err == nil {
			_, err = leader.submit(t.Context(), command)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, raw := range c.edgesOfSeats() {
		submit(consensus.KindResults, raw)
	}
	submit(consensus.KindProposal, c.proposal(crowdOrgs, consensus.Action{SetWitnesses: &consensus.SetWitnesses{Witnesses: []string{wkey}}}))
	await(t, "the leader says that the log key has leaked", func() bool {
		s := leader.conflictStatuses()
		return len(s) == 1 && s[0].Code == attest.CodeLogKeyLeaked && s[0].Witness == name && len(s[0].Convicted) == 0
	})
	if out := leader.outsideStatus(); len(out) != 1 || out[0].At != nil || out[0].Error == "" {
		t.Errorf("outside: %+v", out)
	}
	submit(consensus.KindCredential, newcomer.credential())
	c.dial(newcomer, leader)
	await(t, "the newcomer is admitted", func() bool { return leader.hasLink(newcomer.self) })
	l, _ := leader.linkTo(newcomer.self)
	raw, err := leader.signEdge(edge{l.Session().Subject, nil, l.Session().Result})
	if err != nil {
		t.Fatal(err)
	}
	submit(consensus.KindResults, raw)
	await(t, "the newcomer is proven", func() bool { p, _ := leader.proofOf(l.Session()); return p == ProofProven })
	await(t, "the log is strong, and by organisations alone", func() bool {
		p, _ := leader.lastPublished()
		return p.Level == transparency.Strong && len(p.Orgs) == len(crowdOrgs) && len(p.Outside) == 0 && p.Size == leader.machine.tree.Size()
	})
}
