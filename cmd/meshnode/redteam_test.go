package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p"
	ic "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libp2ptls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"

	"github.com/attestmesh/meshnode/consensus"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh"
	"github.com/attestmesh/meshnode/node"
)

// announce serves what a node with that key announces of itself.
func announce(t *testing.T, key ed25519.PrivateKey, addrs ...string) string {
	t.Helper()
	p := identity.PeerIDFromKey(key.Public().(ed25519.PublicKey))
	cred, err := forgeCredential(&consensus.Credential{MeshID: identity.MeshID{7}}, identity.NodeRef{Org: "alpha", Name: "n1"}, p)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(node.Announcement{Peer: p, Addresses: addrs, Credential: cred})
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// A node that lets stock peers in is reported as broken, with exit 1.
func TestRedteamReportsABrokenNode(t *testing.T) {
	key := freshKey()
	k, err := ic.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(k), libp2p.DisableMetrics(), libp2p.Transport(tcp.NewTCPTransport), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Security(string(mesh.SecurityID), libp2ptls.New), libp2p.Security(noise.ID, noise.New))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	url := announce(t, key, h.Addrs()[0].String())
	for _, c := range []struct {
		args []string
		exit int
		says string
	}{
		{[]string{"--attack", "stock-noise", "--attack", "stock-plaintext"}, exitRefused, "\nBROKEN  stock-noise "},
		{[]string{"--attack", "stock-noise"}, exitRefused, "stock-noise broke the node. It tries to dial with libp2p Noise; a flawed node would "},
		{[]string{"--attack", "stock-noise", "--json"}, exitRefused, `"broken":1,"skipped":0,"outcomes":[{"attack":"stock-noise","status":"broken"`},
	} {
		var out, errOut bytes.Buffer
		exit := execute(context.Background(), append([]string{"redteam", url}, c.args...), strings.NewReader(""), &out, &errOut)
		if exit != c.exit || !strings.Contains(out.String(), c.says) {
			t.Errorf("%q: exit %d, %s%s", c.args, exit, out.String(), errOut.String())
		}
	}
}

// An announcement is anybody's word: it cannot point the attacks at others.
func TestRedteamAttacksNobodyElse(t *testing.T) {
	h, err := libp2p.New(libp2p.DisableMetrics(), libp2p.Transport(tcp.NewTCPTransport), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0"),
		libp2p.Security(string(mesh.SecurityID), libp2ptls.New))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	for name, c := range map[string]struct {
		addr string
		exit int
		says string
	}{
		"another machine": {"/ip4/192.0.2.1/tcp/4001", exitUsage, "not shown to be your own node: /ip4/192.0.2.1/tcp/4001 is no loopback address"},
		"another peer":    {h.Addrs()[0].String(), exitUnavailable, "the target does not answer as peer"},
		"no address":      {"/ip4/127.0.0.1/udp/1/quic-v1", exitUnavailable, "announces no TCP address"},
	} {
		var out, errOut bytes.Buffer
		exit := execute(context.Background(), []string{"redteam", announce(t, freshKey(), c.addr)}, strings.NewReader(""), &out, &errOut)
		if exit != c.exit || !strings.Contains(errOut.String(), c.says) {
			t.Errorf("%s: exit %d, %s%s", name, exit, out.String(), errOut.String())
		}
	}
}
