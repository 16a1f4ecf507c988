package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"strings"
	"testing"

	libp2pcrypto "github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// The peer id must be the one libp2p computes: the binder, credentials and the log name
// peers by it, and packages without libp2p must agree with packages that have it.
func TestPeerIDAgreesWithLibp2p(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	lp, err := libp2pcrypto.UnmarshalEd25519PublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	want, err := peer.IDFromPublicKey(lp)
	if err != nil {
		t.Fatal(err)
	}
	got := PeerIDFromKey(pub)
	if string(got) != string(want) || got.String() != want.String() {
		t.Fatalf("got %s, want %s", got, want)
	}
	back, err := ParsePeerID(got.String())
	if err != nil || back != got {
		t.Fatalf("ParsePeerID: %v %v", back, err)
	}
	key, err := got.PublicKey()
	if err != nil || !key.Equal(pub) {
		t.Fatalf("PublicKey: %v", err)
	}
}

func TestNamesRefuse(t *testing.T) {
	for _, s := range []string{"", "A/b", "a/", "/b", "a", "a/b/c", "a/b c", "a/" + strings.Repeat("x", 33), "ä/b"} {
		if r, err := ParseNodeRef(s); err == nil {
			t.Errorf("ParseNodeRef(%q) = %v, want an error", s, r)
		}
	}
	if r, err := ParseNodeRef("clinic-1/n1"); err != nil || r.String() != "clinic-1/n1" {
		t.Errorf("got %v, %v", r, err)
	}
	for _, s := range []string{"", "00", strings.Repeat("AB", 32), strings.Repeat("zz", 32)} {
		if _, err := ParseMeshID(s); err == nil {
			t.Errorf("ParseMeshID(%q): want an error", s)
		}
	}
	if err := PeerID("").Validate(); err == nil {
		t.Error("the zero peer id must not validate")
	}
}
