package redteam

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/security/insecure"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	quic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	webrtc "github.com/libp2p/go-libp2p/p2p/transport/webrtc"
	"github.com/libp2p/go-libp2p/p2p/transport/websocket"
	webtransport "github.com/libp2p/go-libp2p/p2p/transport/webtransport"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/mesh"
)

// control is a channel on which an attack must succeed.
type control struct {
	flaws  []string
	weaken func(*attest.Binder)
}

func without(flaws ...string) control { return control{flaws: flaws} }

func forgetting(f func(*attest.Binder), flaws ...string) control { return control{flaws, f} }

func forgetFreshness(b *attest.Binder) { b.HelloI, b.HelloR, b.EKM = nil, nil, nil }
func forgetEKM(b *attest.Binder)       { b.EKM = nil }
func forgetEKMAndVerifier(b *attest.Binder) {
	b.EKM, b.Verifier = nil, ""
}

// controls has for every attack at least one flawed channel, here or in the two tests below.
func controls() map[string][]control {
	return map[string][]control{
		"quote-oracle":        {without("any Credential"), without("talks to strangers"), without("any Credential", "quotes for anybody")},
		"public-credential":   {without("Credential's peer is believed")},
		"reflect-hello":       {without("Credential's peer is believed")},
		"early-muxer":         {without("muxer first")},
		"garbage":             {without("no deadlines")},
		"oversize":            {without("no frame limit")},
		"out-of-order":        {without("any frame will do", "lenient HELLO", "any Credential")},
		"tls12":               {without("TLS 1.2")},
		"resumption":          {without("session tickets")},
		"no-certificate":      {without("no client certificate")},
		"version-zero":        {without("lenient HELLO")},
		"version-next":        {without("lenient HELLO")},
		"wrong-mesh":          {without("any mesh")},
		"wrong-incarnation":   {without("any incarnation")},
		"kind-downgrade":      {without("lenient HELLO")},
		"want-malformed":      {without("lenient HELLO")},
		"zero-nonce":          {without("lenient HELLO")},
		"nonce-reuse":         {without("constant nonce")},
		"forged-credential":   {without("any Credential")},
		"tampered-credential": {without("any Credential")},
		"older-boot":          {without("no retired boots")},
		"replay":              {without("report data ignored"), forgetting(forgetFreshness)},
		"stale-evidence":      {without("report data ignored"), forgetting(forgetFreshness)},
		"static-report-data":  {without("report data ignored")},
		"forged-evidence":     {without("evidence unverified")},
		"splice":              {without("any genuine node's evidence")},
		"splice-path":         {without("inclusion ignored")},
		"wrong-role":          {forgetting(func(b *attest.Binder) { b.Role = 0 })},
		"wrong-purpose":       {forgetting(func(b *attest.Binder) { b.Purpose = 0 })},
		"wrong-verifier":      {forgetting(func(b *attest.Binder) { b.Verifier = "" })},
		"wrong-mesh-binding":  {forgetting(func(b *attest.Binder) { b.MeshID = [32]byte{} })},
		"no-exporter":         {forgetting(forgetEKM)},
		"no-nonce":            {forgetting(func(b *attest.Binder) { b.HelloI, b.HelloR = nil, nil })},
		"wrong-transcript":    {without("no transcript")},
		"reflect-evidence":    {without("report data ignored")},
		"skip-evidence":       {without("evidence is optional")},
		"skip-ack":            {without("no ACK")},
		"wrong-ack":           {without("any ACK")},
		"oversize-evidence":   {without("no frame limit")},
		"relay":               {forgetting(forgetEKMAndVerifier, "Credential's peer is believed")},
		"relay-stolen-key":    {forgetting(forgetEKM)},
		"diversion":           {forgetting(forgetEKMAndVerifier)},
		"fast-unasked":        {without("any frame will do", "evidence is optional")},
		"seat-streams":        {without("admits every stream")},
		"unknown-stream":      {without("admits every stream")},
		"slow":                {without("no deadlines"), without("one at a time")},
		"half-open":           {without("one at a time")},
	}
}

// Every attack of the catalogue succeeds against at least one flawed channel.
func TestEveryAttackHasItsControl(t *testing.T) {
	have := controls()
	for name := range stockControls() {
		have[strings.TrimSuffix(name, "-webtransport")] = []control{{}}
	}
	for name := range endpointControls() {
		have[name] = []control{{}}
	}
	for name := range httpControls() {
		have[name] = []control{{}}
	}
	for _, a := range Attacks() {
		if len(have[a.Name]) == 0 {
			t.Errorf("%s has no flawed channel on which it succeeds", a.Name)
		}
		delete(have, a.Name)
		if a.Tries == "" || a.Flaw == "" || a.run == nil {
			t.Errorf("%s does not say what it is", a.Name)
		}
	}
	for name := range have {
		t.Errorf("a control for %s, which is no attack", name)
	}
}

func TestAttacksSucceedOnFlawedChannels(t *testing.T) {
	for name, list := range controls() {
		for i, ctl := range list {
			t.Run(fmt.Sprintf("%s-%d", name, i), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				f := &flawed{w: w, flaws: ctl.flaws, weaken: ctl.weaken}
				a := w.arsenal()
				a.Self.Sum, a.Other.Sum, a.Older.Sum, a.Fresh = f.sum, f.sum, f.sum, nil
				c := w.campaign(t, f.serve(t), a)
				attack := attackNamed(t, name)
				if attack.Needs&NeedAccepted != 0 && !c.accepted {
					t.Fatalf("the honest attempt was refused: %s", c.rejection)
				}
				c.patience = 2 * time.Second
				ctx, cancel := context.WithTimeout(testContext(t), 12*time.Second)
				if name == "older-boot" {
					ctx, cancel = context.WithTimeout(ctx, 2*time.Second)
				}
				defer cancel()
				if o := attack.run(ctx, c); o.Status != Broken {
					t.Errorf("without %q the attack is %s: %s", ctl.flaws, o.Status, o.Evidence)
				}
			})
		}
	}
}

// stockControls are libp2p hosts that let stock peers in, each by one mistake of its
// configuration. They also speak the mesh's private security protocol, as a node would.
func stockControls() map[string][]libp2p.Option {
	private := libp2p.Security(string(mesh.SecurityID), libp2ptls.New)
	overTCP := libp2p.Transport(tcp.NewTCPTransport)
	onTCP := libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0")
	return map[string][]libp2p.Option{
		"stock-default":   {overTCP, onTCP, private, libp2p.Security(noise.ID, noise.New)},
		"stock-tls":       {overTCP, onTCP, private, libp2p.Security(libp2ptls.ID, libp2ptls.New)},
		"stock-noise":     {overTCP, onTCP, private, libp2p.Security(noise.ID, noise.New)},
		"stock-plaintext": {overTCP, onTCP, private, libp2p.Security(insecure.ID, insecure.NewWithIdentity)},
		"stock-quic":      {overTCP, libp2p.Transport(quic.NewTransport), onTCP, private, libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1")},
		"stock-websocket": {libp2p.Transport(websocket.New), overTCP, onTCP, libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0/ws"), private, libp2p.Security(libp2ptls.ID, libp2ptls.New)},
		"stock-webrtc":    {overTCP, libp2p.Transport(webrtc.New), onTCP, private, libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/webrtc-direct")},
		"stock-quic-webtransport": {overTCP, libp2p.Transport(webtransport.New), onTCP, private,
			libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1/webtransport")},
	}
}

func TestStockHostsSucceedOnOpenHosts(t *testing.T) {
	for name, options := range stockControls() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			key, err := ic.UnmarshalEd25519PrivateKey(w.victim.Key)
			if err != nil {
				t.Fatal(err)
			}
			h, err := libp2p.New(append(options, libp2p.Identity(key), libp2p.DisableMetrics(), libp2p.Muxer(yamux.ID, yamux.DefaultTransport))...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = h.Close() })
			var addrs []string
			for _, a := range h.Addrs() {
				addrs = append(addrs, a.String())
			}
			c, err := NewCampaign(testContext(t), w.target(addrs...), Arsenal{})
			if err != nil {
				t.Fatal(err)
			}
			if o := attackNamed(t, strings.TrimSuffix(name, "-webtransport")).run(testContext(t), c); o.Status != Broken {
				t.Errorf("at %q: %s: %s", addrs, o.Status, o.Evidence)
			}
		})
	}
}

// httpControls are public listeners with one mistake each.
func httpControls() map[string]*http.Server {
	return map[string]*http.Server{
		"http-body": {Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })},
		"http-headers": {MaxHeaderBytes: 8 << 20, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusOK)
		})},
		"http-traversal": {Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			data, err := os.ReadFile(path.Join("/srv", strings.TrimPrefix(r.URL.Path, "/log"))) // follows ..
			if err != nil {
				w.WriteHeader(http.StatusNotFound)
			}
			_, _ = w.Write(data)
		})},
		"http-slow": {Handler: http.NotFoundHandler()},
	}
}

func TestHTTPAttacksSucceedOnFlawedListeners(t *testing.T) {
	for name, config := range httpControls() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewUnstartedServer(nil)
			s.Config = config
			s.Start()
			t.Cleanup(s.Close)
			w := newWorld(t)
			target := w.target(w.sound(nil).Addrs()...)
			target.URL = s.URL
			c := w.campaign(t, target, Arsenal{})
			c.patience = 3 * time.Second
			if o := attackNamed(t, name).run(testContext(t), c); o.Status != Broken {
				t.Errorf("%s: %s", o.Status, o.Evidence)
			}
		})
	}
}

// A node that no longer answers after an attack has not held, whatever the attack saw.
func TestDeadTargetIsBroken(t *testing.T) {
	w := newWorld(t)
	m := w.sound(nil)
	c := w.campaign(t, w.target(m.Addrs()...), Arsenal{})
	deadly := Attack{Name: "deadly", run: func(context.Context, *Campaign) Outcome { _ = m.Close(); return held("closed") }}
	if o := c.Run(testContext(t), []Attack{deadly}, nil)[0]; o.Status != Broken || !strings.Contains(o.Evidence, "serves nobody") {
		t.Errorf("%s: %s", o.Status, o.Evidence)
	}
}
