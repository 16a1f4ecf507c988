package exchange_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

// fastVectors are the bytes of a connection after the one of vectors.json: both sides hold a
// pair key from there and ask for a MAC; later the connection is attested again.
type fastVectors struct {
	Comment string `json:"comment"`

	PairContextI string `json:"pair_context_initiator"` // of the initiator as attester
	PairContextR string `json:"pair_context_responder"`
	PairKeyI     string `json:"pair_key_initiator"`
	PairKeyR     string `json:"pair_key_responder"`
	PairIDI      string `json:"pair_id_initiator"`
	PairIDR      string `json:"pair_id_responder"`

	HelloI      string     `json:"hello_i"`
	HelloR      string     `json:"hello_r"`
	Exporter    string     `json:"exporter_context"`
	EKM         string     `json:"ekm"`
	BinderI     string     `json:"binder_initiator"`
	BinderR     string     `json:"binder_responder"`
	RuntimeI    string     `json:"runtime_head_initiator"`
	RuntimeR    string     `json:"runtime_head_responder"`
	TranscriptI string     `json:"transcript_fast_i"`
	MACI        string     `json:"mac_initiator"`
	FastI       string     `json:"fast_i"`
	TranscriptR string     `json:"transcript_fast_r"`
	MACR        string     `json:"mac_responder"`
	FastR       string     `json:"fast_r"`
	Ack         string     `json:"ack"`
	Other       []otherMAC `json:"other_macs"`

	Reattest struct {
		HelloI   string `json:"hello_i"`
		HelloR   string `json:"hello_r"`
		Exporter string `json:"exporter_context"`
		EKM      string `json:"ekm"`
		BinderI  string `json:"binder_initiator"`
		BinderR  string `json:"binder_responder"`
	} `json:"reattest"`
	Epoch string `json:"epoch"`
}

// otherMAC is a MAC of the initiator with something else in it.
type otherMAC struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
}

func h32(b [32]byte) string { return hex.EncodeToString(b[:]) }

func mustBytes(t *testing.T) func([]byte, error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}

// conversation is both HELLOs of one exchange between the peers of vectors.json and what
// is bound to them.
type conversation struct{ helloI, helloR, context, ekm []byte }

func newConversation(t *testing.T, nonce byte, ekm byte, wantI, wantR []byte) (c conversation) {
	t.Helper()
	must := mustBytes(t)
	hello := func(nonce byte, want []byte, credential string) []byte {
		return must(exchange.Hello{Version: 1, MeshID: identity.MeshID(seq(32, 0)), Incarnation: 2, Epoch: 301, Nonce: [32]byte(seq(32, nonce)),
			Kinds: "sevsnp,vtpm", Want: want, Credential: []byte(credential)}.Encode())
	}
	c.helloI, c.helloR = hello(nonce, wantI, "credential of I"), hello(nonce+0x10, wantR, "credential of R")
	c.ekm = must(exchange.EKM(func(_ string, context []byte, _ int) ([]byte, error) {
		c.context = bytes.Clone(context)
		return seq(32, ekm), nil
	}, c.helloI, c.helloR))
	return c
}

// binders are the initiator's and the responder's.
func (c conversation) binders(purpose attest.Purpose) (i, r [32]byte) {
	peerI, peerR := string(identity.PeerIDFromKey(seq(32, 0x20))), string(identity.PeerIDFromKey(seq(32, 0x40)))
	b := attest.Binder{Purpose: purpose, Role: attest.RoleClient, MeshID: [32]byte(seq(32, 0)), Incarnation: 2,
		Attester: peerI, Verifier: peerR, HelloI: c.helloI, HelloR: c.helloR, EKM: c.ekm}
	i = b.Sum()
	b.Role, b.Attester, b.Verifier = attest.RoleServer, peerR, peerI
	return i, b.Sum()
}

func fixedFast(t *testing.T) (v fastVectors) {
	t.Helper()
	must := mustBytes(t)
	full := fixed(t)
	fullI, fullR := must(hex.DecodeString(full.HelloI)), must(hex.DecodeString(full.HelloR))
	pair := func(role attest.Role, from byte, context *string) exchange.PairKey {
		k, err := exchange.NewPairKey(func(label string, c []byte, n int) ([]byte, error) {
			if label != "EXPORTER-meshnode-pair-v1" || n != 32 {
				t.Errorf("exporter asked for %q, %d bytes", label, n)
			}
			*context = hex.EncodeToString(c)
			return seq(n, from), nil
		}, role, fullI, fullR)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	v.Comment = "after vectors.json: the pair exporter returned 10 11 … 2f for the initiator as attester and 30 31 … 4f for the responder; " +
		"each side asks the other for a MAC, the responder's runtime log is empty; other_macs are of the initiator and wrong"
	keyI, keyR := pair(attest.RoleClient, 0x10, &v.PairContextI), pair(attest.RoleServer, 0x30, &v.PairContextR)
	idI, idR := keyI.ID(), keyR.ID()
	v.PairKeyI, v.PairKeyR, v.PairIDI, v.PairIDR = h32(keyI), h32(keyR), h32(idI), h32(idR)

	c := newConversation(t, 0xb0, 0x70, idR[:], idI[:])
	v.HelloI, v.HelloR, v.Exporter, v.EKM = hex.EncodeToString(c.helloI), hex.EncodeToString(c.helloR), hex.EncodeToString(c.context), hex.EncodeToString(c.ekm)
	bindI, bindR := c.binders(attest.PurposeChannel)
	headI, headR := [32]byte(seq(32, 0x80)), [32]byte{}
	v.BinderI, v.BinderR, v.RuntimeI, v.RuntimeR = h32(bindI), h32(bindR), h32(headI), h32(headR)
	transcript := exchange.Transcript(c.ekm, c.helloI, c.helloR)
	fastI := exchange.Fast{Transcript: transcript, MAC: keyI.MAC(bindI, headI), RuntimeHead: headI}.Encode()
	v.TranscriptI, v.MACI, v.FastI = h32(transcript), h32(keyI.MAC(bindI, headI)), hex.EncodeToString(fastI)
	transcript = exchange.Transcript(c.ekm, c.helloI, c.helloR, fastI)
	fastR := exchange.Fast{Transcript: transcript, MAC: keyR.MAC(bindR, headR), RuntimeHead: headR}.Encode()
	v.TranscriptR, v.MACR, v.FastR = h32(transcript), h32(keyR.MAC(bindR, headR)), hex.EncodeToString(fastR)
	v.Ack = h32(exchange.Transcript(c.ekm, c.helloI, c.helloR, fastI, fastR))

	again := newConversation(t, 0xd0, 0x71, nil, nil)
	reI, reR := again.binders(attest.PurposeReattest)
	v.Reattest.HelloI, v.Reattest.HelloR = hex.EncodeToString(again.helloI), hex.EncodeToString(again.helloR)
	v.Reattest.Exporter, v.Reattest.EKM = hex.EncodeToString(again.context), hex.EncodeToString(again.ekm)
	v.Reattest.BinderI, v.Reattest.BinderR = h32(reI), h32(reR)

	fast2, _ := c.binders(attest.PurposeReattest)
	for name, mac := range map[string][32]byte{
		"key of the other direction":    keyR.MAC(bindI, headI),
		"binder of the other direction": keyI.MAC(bindR, headI),
		"binder of another purpose":     keyI.MAC(fast2, headI),
		"binder of another connection":  keyI.MAC(reI, headI),
		"another runtime head":          keyI.MAC(bindI, headR),
	} {
		if h32(mac) == v.MACI {
			t.Errorf("%s: does not matter", name)
		}
		v.Other = append(v.Other, otherMAC{name, h32(mac)})
	}
	slices.SortFunc(v.Other, func(a, b otherMAC) int { return strings.Compare(a.Name, b.Name) })
	v.Epoch = hex.EncodeToString(exchange.EncodeEpoch(301))
	return v
}

func TestFastGoldenVectors(t *testing.T) {
	got, err := json.MarshalIndent(fixedFast(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile("testdata/fast.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/fast.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the wire changed; got\n%s", got)
	}
}
