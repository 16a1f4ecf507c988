package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/internal/envelope"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/transparency"
)

const publishedLog = "../audit/testdata/published/log"

// A log that a node kept leads to the state and the ledger that its members had, whatever
// was derived in it and whatever training it holds; one that was changed leads nowhere.
func TestKeptLogIsReplayed(t *testing.T) {
	leaves := publishedLeaves(t)
	g, err := consensus.ParseGenesis(leaves[0])
	if err != nil {
		t.Fatal(err)
	}
	l, err := readPublished(t.Context(), g, publishedLog, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if l.at.Size != uint64(len(leaves)) || !l.state.Started() || len(l.state.Seats()) == 0 {
		t.Errorf("size %d, seats %v", l.at.Size, l.state.Seats())
	}
	n := &Node{genesis: g, cfg: Config{Data: t.TempDir()}, logDir: "-", log: slog.New(slog.DiscardHandler)}
	dir := filepath.Join(n.cfg.Data, "boot-1")
	if err := os.CopyFS(filepath.Join(dir, "log"), os.DirFS(publishedLog)); err != nil {
		t.Fatal(err)
	}
	if found, err := n.findLog(t.Context(), l.at); err != nil || found.at != l.at {
		t.Errorf("found %v, %v", found, err)
	}
	if longer := n.newestLog(t.Context(), l.state.Origin(), l.at.Size-1, n.keptLogs()); longer == nil || longer.at != l.at {
		t.Error("the published log is not found to be longer")
	}
	if longer := n.newestLog(t.Context(), l.state.Origin(), l.at.Size, n.keptLogs()); longer != nil {
		t.Error("a log is longer than itself")
	}
	if longer := n.newestLog(t.Context(), g.Origin(1), 0, n.keptLogs()); longer != nil {
		t.Error("a log of another incarnation counts")
	}
	other := l.at
	other.Root = strings.Repeat("00", 32)
	if _, err := n.findLog(t.Context(), other); err == nil {
		t.Error("a log with another root was found")
	}
	// One byte of an entry: D5.
	bundles, err := filepath.Glob(filepath.Join(dir, "log", "tile", "entries", "*"))
	if err != nil || len(bundles) == 0 {
		t.Fatalf("%v %v", bundles, err)
	}
	err = filepath.Walk(filepath.Join(dir, "log", "tile", "entries"), func(path string, st os.FileInfo, err error) error {
		if err != nil || st.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil {
			data[len(data)/2] ^= 1
			err = os.WriteFile(path, data, 0o600)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.findLog(t.Context(), l.at); err == nil {
		t.Error("a changed log was found")
	}
	if _, _, err := replayLog(g, leaves[:1]); err == nil {
		t.Error("a log without Bootstrap was replayed")
	}
	if _, _, err := replayLog(g, append(leaves[:2:2], []byte("{}"))); err == nil {
		t.Error("a leaf that is nothing was replayed")
	}
}

// replayLog returns the state and the ledger that leaves lead to.
func replayLog(g *consensus.Genesis, leaves [][]byte) (*consensus.State, *federated.Ledger, error) {
	r := newLeafReplay(g)
	for _, leaf := range leaves {
		if err := r.leaf(leaf); err != nil {
			return nil, nil, err
		}
	}
	return r.done()
}

// spooled are leaves outside of memory.
func spooled(t *testing.T, leaves [][]byte) *spool {
	t.Helper()
	s, err := newSpool()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	for _, leaf := range leaves {
		if err := s.append(leaf); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// A peer that serves a log which goes on for ever, or is larger than what it says, is read no further
// than the first leaf that no member signed.
func TestEndlessLogIsReadNoFurtherThanItsForgery(t *testing.T) {
	leaves := publishedLeaves(t)
	g, err := consensus.ParseGenesis(leaves[0])
	if err != nil {
		t.Fatal(err)
	}
	var bundle []byte
	for i := range 256 {
		leaf := leaves[min(i, len(leaves)-1)] // the last again and again
		bundle = append(binary.BigEndian.AppendUint16(bundle, uint16(len(leaf))), leaf...)
	}
	var asked atomic.Int32
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/checkpoint"):
			_, _ = w.Write([]byte(g.Origin(0) + "\n1000000000\n" + base64.StdEncoding.EncodeToString(make([]byte, 32)) + "\n\n— x AAAAAAAA\n"))
		case strings.Contains(r.URL.Path, "/tile/entries/"):
			asked.Add(1)
			_, _ = w.Write(bundle)
		default:
			_, _ = w.Write(make([]byte, 8192))
		}
	}))
	defer endless.Close()
	_, err = readPublished(t.Context(), g, endless.URL, time.Now())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("leaf %d: ", len(leaves))) {
		t.Errorf("got %v, want a refusal of leaf %d", err, len(leaves))
	}
	if asked.Load() > 64 { // those that a walk fetches ahead
		t.Errorf("%d bundles were fetched", asked.Load())
	}
}

// A machine goes on from a log, then from a longer one that another founder has, and from no
// other.
func TestMachineResumes(t *testing.T) {
	leaves := publishedLeaves(t)
	g, err := consensus.ParseGenesis(leaves[0])
	if err != nil {
		t.Fatal(err)
	}
	upTo := func(leaves [][]byte) *oldLog {
		t.Helper()
		acc := transparency.NewAccumulator()
		for _, leaf := range leaves {
			if err := acc.Append(leaf); err != nil {
				t.Fatal(err)
			}
		}
		root, err := acc.Root()
		if err != nil {
			t.Fatal(err)
		}
		s, l, err := replayLog(g, leaves)
		if err != nil {
			t.Fatal(err)
		}
		return &oldLog{leaves: spooled(t, leaves), at: consensus.CheckpointSeen{Size: uint64(len(leaves)), Root: root.String()}, state: s, ledger: l}
	}
	half, all := upTo(leaves[:len(leaves)/2]), upTo(leaves)
	m, bootstrap := testMachine(t)
	if err := m.resume(half); err != nil {
		t.Fatal(err)
	}
	if err := m.resume(all); err != nil {
		t.Fatal(err)
	}
	if size, root := m.tree.Head(); size != all.at.Size || root.String() != all.at.Root || m.Seq() != 0 {
		t.Errorf("size %d, root %s, %d commands", size, root, m.Seq())
	}
	if i, ok := m.leafIndex(leaves[3]); !ok || i != 3 {
		t.Error("leaves are not found by their hash")
	}
	if err := m.resume(half); err == nil {
		t.Error("a machine went back to a shorter log")
	}
	exchanged := append([][]byte{leaves[1], leaves[0]}, leaves[2:]...)
	forged := &oldLog{leaves: spooled(t, exchanged), at: all.at, state: all.state, ledger: all.ledger}
	other, _ := testMachine(t)
	if err := other.resume(half); err != nil {
		t.Fatal(err)
	}
	if err := other.resume(forged); err == nil || !strings.Contains(err.Error(), "two histories") {
		t.Errorf("another beginning: %v", err)
	}
	begun, _ := testMachine(t)
	begun.apply(bootstrap)
	if err := begun.resume(all); err == nil {
		t.Error("a machine that has applied commands was replaced")
	}
}

// rise returns the policy chain of a crowd's mesh that was recovered to incarnation 1, and
// the Recovery's signatures by signers organisations.
func (c *crowd) rise(signers int) [][]byte {
	c.t.Helper()
	n := c.nodes[0]
	size, root := n.machine.tree.Head()
	at := consensus.CheckpointSeen{Size: size, Root: root.String()}
	s, err := consensus.ReplayPolicy(c.genesis, n.machine.PolicyChain())
	if err != nil {
		c.t.Fatal(err)
	}
	file, err := s.DraftRecovery(consensus.Recovery{Incarnation: 1, Organisations: s.OrganisationIDs(), Nonce: strings.Repeat("ab", 16), Created: time.Now(), Expires: time.Now().Add(time.Hour)}, at)
	if err != nil {
		c.t.Fatal(err)
	}
	sign := func(payload []byte, role string, k int) []byte {
		var parts [][]byte
		for _, org := range crowdOrgs[:k] {
			part, err := consensus.Sign(payload, crowdSigner(c.t, org, role))
			if err != nil {
				c.t.Fatal(err)
			}
			parts = append(parts, part)
		}
		raw, err := consensus.Merge(parts...)
		if err != nil {
			c.t.Fatal(err)
		}
		return raw
	}
	recovery := sign(file.Envelope().Payload, consensus.KeyGovern, signers)
	if err := file.Add(sign(file.Envelope().Payload, consensus.KeyGovern, 5)); err != nil {
		c.t.Fatal(err)
	}
	founding, err := file.Founding(time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	var creds [][]byte
	for _, org := range founding.Founders() {
		peer, cosigner := crowdKey(string(org), "risen").Public().(ed25519.PublicKey), crowdKey(string(org), "risen cosigner").Public()
		raw, err := consensus.SignCredential(crowdSigner(c.t, string(org), consensus.KeyEnroll), consensus.Credential{MeshID: c.genesis.MeshID(), Incarnation: 1,
			Organisation: org, Node: "n1", Peer: identity.PeerIDFromKey(peer), Cosigner: envelope.PublicKey{PublicKey: cosigner}, Roles: []string{RoleMember, RoleSeat},
			BootSeq: 1, Issued: time.Now(), Expires: time.Now().Add(time.Hour)})
		if err != nil {
			c.t.Fatal(err)
		}
		creds = append(creds, raw)
	}
	payload, err := founding.NewBootstrap(1, creds, crowdKey("log", "risen").Public().(ed25519.PublicKey), time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	return append(n.machine.PolicyChain(), recovery, sign(payload, consensus.KeyEnroll, len(crowdOrgs)))
}

// A process of a lower incarnation ends when it is shown a higher one that has begun, and by
// nothing less.
func TestHigherIncarnationEndsAProcess(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "release" })
	defer c.close()
	c.found()
	n := c.nodes[2]
	risen := c.rise(5)
	lower := n.machine.PolicyChain()
	for name, chain := range map[string][][]byte{
		"its own":                 lower,
		"too few signatures":      append(append([][]byte{}, lower...), c.rise(4)[len(lower):]...),
		"no Bootstrap":            risen[:len(risen)-1],
		"garbage":                 append(append([][]byte{}, lower...), []byte("{}")),
		"Bootstrap by itself":     append(append([][]byte{}, lower...), risen[len(risen)-1]),
		"another mesh's":          publishedLeaves(t)[:2],
		"one bit of the Recovery": append(append([][]byte{}, lower...), flipped(risen[len(risen)-2]), risen[len(risen)-1]),
	} {
		n.considerChain(name, chain)
		if n.ctx.Err() != nil {
			t.Fatalf("%s ended the node: %v", name, context.Cause(n.ctx))
		}
	}
	n.considerChain("peer", risen)
	var refused *RefusedError
	if err := context.Cause(n.ctx); !errors.As(err, &refused) || refused.Reason.Code != attest.CodeSuperseded || refused.Reason.Remedy == "" {
		t.Errorf("ended with %v", err)
	}
	// Its chain has a step that the recovered mesh gave up.
	c.nodes[3].considerChain("peer", lower)
	c.propose(consensus.Action{AddEntry: &consensus.AddEntry{Entry: c.entry("next")}})
	tail := c.nodes[3]
	tail.considerChain("peer", tail.machine.PolicyChain())
	tail.considerChain("peer", risen)
	if err := context.Cause(tail.ctx); !errors.As(err, &refused) || refused.Reason.Code != attest.CodeSuperseded {
		t.Errorf("a process with a tail of its own ended with %v", err)
	}
}

func flipped(raw []byte) []byte {
	out := bytes.Clone(raw)
	out[len(out)/2] ^= 1
	return out
}

// A peer whose log never ends to come holds up nobody who has the log elsewhere.
func TestTricklingLogIsPassedOver(t *testing.T) {
	c := newCrowd(t, len(crowdOrgs), func(int) string { return "new" })
	t.Cleanup(c.close)
	c.found()
	c.affirm()
	m := c.nodes[0].machine
	size, root := m.tree.Head()
	if err := m.tree.Publish(c.checkpointAt(size, len(crowdOrgs))); err != nil {
		t.Fatal(err)
	}
	log := http.StripPrefix(pathLog, m.tree)
	good := httptest.NewServer(log)
	defer good.Close()
	bad := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == pathLog+"checkpoint" {
			log.ServeHTTP(w, r)
			return
		}
		<-r.Context().Done()
	}))
	defer bad.Close()
	n := c.nodes[1]
	n.logDir, n.cfg.Peers = "somewhere", []string{bad.URL, good.URL}
	within := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	l, err := n.findLog(within(), consensus.CheckpointSeen{Size: size, Root: root.String()})
	if err != nil || !strings.HasPrefix(l.from, good.URL) {
		t.Fatalf("%v", err)
	}
	if l := n.newestLog(within(), m.state.Origin(), 1, n.peerLogs()); l == nil || !strings.HasPrefix(l.from, good.URL) {
		t.Error("the newest log is not found")
	}
}
