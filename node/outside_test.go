package node

import (
	"bytes"
	"crypto/ed25519"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/transparency"
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
