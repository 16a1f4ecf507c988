package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/mesh"
)

func TestAttesterConfig(t *testing.T) {
	dir := t.TempDir()
	load := func(attester string) (Config, error) {
		path := filepath.Join(dir, "node.yaml")
		text := "genesis: g.json\norganisation: alpha\nnode: n1\ndata: d\nlisten: [/ip4/127.0.0.1/tcp/1]\npublic: 127.0.0.1:2\n" +
			"enroller: {url: \"https://127.0.0.1:3\", spki: " + strings.Repeat("ab", 32) + "}\nattester: " + attester + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return LoadConfig(path)
	}
	for attester, want := range map[string]string{
		"{}":                                      "is missing",
		"{sim: ''}":                               "is missing",
		"{sevsnp: false}":                         "is missing",
		"{sim: a.sock, tpm: {}}":                  "sim and vtpm",
		"{sevsnp: true, tdx: true}":               "sevsnp and tdx",
		"{tpm: {}, collateral: c}":                "needs none",
		"{sim: a.sock, collateral: c}":            "needs none",
		"{collateral: c}":                         "is missing",
		"{tpm: {ak: {handle: 1}}}":                "want both",
		"{tpm: {ak: {certificate_index: 1}}}":     "want both",
		"{tpm: {ak: {}}}":                         "want both",
		"{tpm: {verify: false}}":                  "verify",
		"{sim: " + strings.Repeat("a", 200) + "}": "at most",
	} {
		if _, err := load(attester); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", attester, err, want)
		}
	}
	c, err := load("{tpm: {}}")
	if err != nil {
		t.Fatal(err)
	}
	if o := c.Attester.TPM.options(); o.Device != vtpm.DefaultDevice || o.EventLog != vtpm.DefaultEventLog || o.IMALog != "" || o.AK != nil {
		t.Errorf("defaults %+v", o)
	}
	if c, err = load("{tpm: {device: tpm.sock, ima_log: ima, ek_chain: /etc/chain.pem, ak: {handle: 0x81000003, certificate_index: 0x01C101D0}}}"); err != nil {
		t.Fatal(err)
	}
	want := vtpm.Options{Device: filepath.Join(dir, "tpm.sock"), EventLog: vtpm.DefaultEventLog, IMALog: filepath.Join(dir, "ima"), EKChain: "/etc/chain.pem"}
	o := c.Attester.TPM.options()
	if o.AK == nil || o.AK.Handle != 0x81000003 || o.AK.CertificateIndex != 0x01C101D0 {
		t.Errorf("key %+v", o.AK)
	}
	if o.AK = nil; o != want {
		t.Errorf("got %+v, want %+v", o, want)
	}
	// A key that was provided has a certificate; only one that the node makes is activated.
	if _, activator, err := c.Attester.source(); err != nil || activator != nil {
		t.Errorf("a provided key: activator %v, %v", activator, err)
	}
	c.Attester.TPM.AK = nil
	if _, activator, err := c.Attester.source(); err != nil || activator == nil {
		t.Errorf("a key of the node's own: activator %v, %v", activator, err)
	}
}

// restless is an attester whose state changes.
type restless struct {
	attest.Attester
	state  atomic.Value
	broken atomic.Bool
}

// State implements Watcher.
func (r *restless) State(context.Context) (string, error) {
	if r.broken.Load() {
		return "", errors.New("no answer")
	}
	return r.state.Load().(string), nil
}

// counted is a link that counts how often it is attested again.
type counted struct {
	mesh.Link
	times atomic.Int32
}

// Reattest implements mesh.Link.
func (c *counted) Reattest(context.Context) error { c.times.Add(1); return nil }

// oneLink is a mesh of it.
type oneLink struct {
	mesh.Mesh
	link mesh.Link
}

// Links implements mesh.Mesh.
func (m oneLink) Links() []mesh.Link { return []mesh.Link{m.link} }

// A change is told at once, more of them after a pause; an attester that does not answer has
// not changed.
func TestMachineThatMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, link := &restless{}, &counted{}
		r.state.Store("booted")
		n := &Node{attester: r, mesh: oneLink{link: link}, log: slog.New(slog.DiscardHandler)}
		n.meshUp.Store(true)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); n.watchMachine(ctx) }()
		after := func(d time.Duration, want int32, what string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := link.times.Load(); got != want {
				t.Errorf("%s: attested again %d times, want %d", what, got, want)
			}
		}
		after(time.Minute, 0, "nothing happened")
		r.broken.Store(true)
		after(time.Minute, 0, "no answer")
		r.broken.Store(false)
		after(time.Minute, 0, "the same answer again")
		r.state.Store("one file more")
		after(movedEvery, 1, "a file")
		r.state.Store("two files more")
		after(movedEvery, 1, "another within the pause")
		after(movedPause, 2, "after the pause")
		after(time.Minute, 2, "nothing more")
		cancel()
		<-ended
	})
}
