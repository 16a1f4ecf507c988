package exchange_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/internal/identity"
	"github.com/attestmesh/meshnode/mesh/exchange"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write testdata/vectors.json")

// vectors are the bytes that both ends must agree about; testdata/vectors.json has them for
// implementations that share no code with this one.
type vectors struct {
	Comment      string `json:"comment"`
	HelloI       string `json:"hello_i"`
	HelloR       string `json:"hello_r"`
	Exporter     string `json:"exporter_context"`
	EKM          string `json:"ekm"`
	BinderI      string `json:"binder_initiator"`
	BinderR      string `json:"binder_responder"`
	ReportDataI  string `json:"report_data_initiator"`
	TranscriptI  string `json:"transcript_att_i"`
	AttI         string `json:"att_i"`
	TranscriptR  string `json:"transcript_att_r"`
	Refusal      string `json:"refusal"`
	EmptyRefusal string `json:"refusal_generic"`
}

func seq(n int, from byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = from + byte(i)
	}
	return out
}

// fixed returns vectors computed from constants only.
func fixed(t *testing.T) vectors {
	t.Helper()
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	hello := func(nonce byte, epoch uint64, credential string) []byte {
		return must(exchange.Hello{Version: 1, MeshID: identity.MeshID(seq(32, 0)), Incarnation: 2, Epoch: epoch,
			Nonce: [32]byte(seq(32, nonce)), Kinds: "sevsnp,vtpm", Credential: []byte(credential)}.Encode())
	}
	v := vectors{Comment: "peers are the Ed25519 keys 20 21 … 3f (initiator) and 40 41 … 5f (responder); the exporter returned 60 61 … 7f; evidence is one TPM item of 4 bytes; runtime head 80 … 9f; one binder under the quote"}
	helloI, helloR := hello(0xa0, 7, "credential of I"), hello(0xc0, 300, "credential of R")
	v.HelloI, v.HelloR = hex.EncodeToString(helloI), hex.EncodeToString(helloR)
	ekm := must(exchange.EKM(func(label string, context []byte, n int) ([]byte, error) {
		if label != "EXPORTER-meshnode-attest-v1" || n != 32 {
			t.Errorf("exporter asked for %q, %d bytes", label, n)
		}
		v.Exporter = hex.EncodeToString(context)
		return seq(32, 0x60), nil
	}, helloI, helloR))
	v.EKM = hex.EncodeToString(ekm)
	peerI, peerR := identity.PeerIDFromKey(seq(32, 0x20)), identity.PeerIDFromKey(seq(32, 0x40))
	b := attest.Binder{Purpose: attest.PurposeChannel, Role: attest.RoleClient, MeshID: [32]byte(seq(32, 0)), Incarnation: 2,
		Attester: string(peerI), Verifier: string(peerR), HelloI: helloI, HelloR: helloR, EKM: ekm}
	bindI := b.Sum()
	b.Role, b.Attester, b.Verifier = attest.RoleServer, b.Verifier, b.Attester
	bindR := b.Sum()
	v.BinderI, v.BinderR = hex.EncodeToString(bindI[:]), hex.EncodeToString(bindR[:])
	proof := attest.Proof{Evidence: attest.Evidence{Kind: "sevsnp,vtpm", Items: []attest.Item{{Type: attest.TypeTPMQuote, Data: seq(4, 1)}}},
		RuntimeHead: [32]byte(seq(32, 0x80)), Inclusion: attest.Inclusion{Size: 1}}
	data, err := proof.ReportData(bindI, [32]byte(seq(32, 0)), string(peerI))
	if err != nil {
		t.Fatal(err)
	}
	v.ReportDataI = hex.EncodeToString(data[:])
	transcript := exchange.Transcript(ekm, helloI, helloR)
	v.TranscriptI = hex.EncodeToString(transcript[:])
	att := must(exchange.NewAttestation(transcript, proof))
	v.AttI = hex.EncodeToString(att)
	transcript = exchange.Transcript(ekm, helloI, helloR, att)
	v.TranscriptR = hex.EncodeToString(transcript[:])
	v.Refusal = hex.EncodeToString(exchange.EncodeReasons([]attest.Reason{attest.NewReason(attest.CodeRevoked, "measurement", "cafe", "an allowed one")}))
	v.EmptyRefusal = hex.EncodeToString(exchange.EncodeReasons(nil))
	return v
}

func TestGoldenVectors(t *testing.T) {
	got, err := json.MarshalIndent(fixed(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile("testdata/vectors.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("the wire changed; got\n%s", got)
	}
}

func TestFrameRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, 1000, 1 << 20} {
		var wire bytes.Buffer
		body := seq(size, 1)
		if err := exchange.WriteFrame(&wire, exchange.FrameAttI, body); err != nil {
			t.Fatal(err)
		}
		wire.WriteString("next")
		got, err := exchange.ReadFrame(&wire, exchange.FrameAttI, size)
		if err != nil || !bytes.Equal(got, body) || wire.String() != "next" {
			t.Errorf("size %d: %d bytes, %v, %d left", size, len(got), err, wire.Len())
		}
	}
}

// A peer's length costs no memory before its bytes arrive.
func TestFrameDoesNotAllocateAhead(t *testing.T) {
	header := []byte{byte(exchange.FrameAttI), 0, 0x1f, 0xff, 0xff}
	allocated := testing.Benchmark(func(b *testing.B) {
		for range b.N {
			if _, err := exchange.ReadFrame(bytes.NewReader(header), exchange.FrameAttI, exchange.MaxAttestation); err == nil {
				b.Fatal("a frame without a body")
			}
		}
	}).AllocedBytesPerOp()
	if allocated > 256<<10 {
		t.Errorf("%d bytes for an announced frame that never came", allocated)
	}
}

func TestReasonsAreTamed(t *testing.T) {
	long := make([]attest.Reason, 40)
	for i := range long {
		long[i] = attest.NewReason(attest.CodeTCBBelowFloor, strings.Repeat("c", 1000), "\x1b[2J\n"+strings.Repeat("ü", 1000), strings.Repeat("w", 1000))
	}
	body := exchange.EncodeReasons(long)
	got, err := exchange.DecodeReasons(body)
	if err != nil || len(got) != exchange.MaxReasons || len(body) > exchange.MaxRefusal {
		t.Fatalf("%d reasons in %d bytes, %v", len(got), len(body), err)
	}
	if !strings.HasPrefix(got[0].Got, "?[2J?") || got[0].Remedy == "" {
		t.Errorf("got %q, remedy %q", got[0].Got, got[0].Remedy)
	}
	for name, body := range map[string]string{
		"escape":        "81847672657665616c65645f66726f6d5f7468655f706565" + "72611b6060",
		"upper case":    "8184614160" + "6060",
		"no code":       "8184606060" + "60",
		"three fields":  "818361616060",
		"trailing":      "8000",
		"indefinite":    "9fff",
		"not shortest":  "9800",
		"a text":        "6161",
		"null":          "f6",
		"seventeen":     "91" + strings.Repeat("846161606060", 17),
		"bad utf-8":     "81846161" + "61ff6060",
		"nested arrays": strings.Repeat("81", 40) + "80",
	} {
		raw, err := hex.DecodeString(body)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := exchange.DecodeReasons(raw); err == nil {
			t.Errorf("%s: decoded %v", name, got)
		}
	}
	if _, err := exchange.DecodeReasons(make([]byte, exchange.MaxRefusal+1)); err == nil {
		t.Error("an oversize list was decoded")
	}
}

func TestRefusalText(t *testing.T) {
	generic := exchange.Refusal{Peer: identity.PeerIDFromKey(seq(32, 1)), Remote: true}
	if generic.Code() != attest.CodeNoCredential || !strings.Contains(generic.Error(), "refused us") || generic.Normalize().Reasons[0].Remedy == "" {
		t.Errorf("a generic refusal reads %q", generic.Error())
	}
	var err error = &exchange.Refusal{Peer: generic.Peer, Reasons: []attest.Reason{attest.NewReason(attest.CodeDebug, "policy", "on", "off")}}
	if err.Error() != "refused peer "+generic.Peer.String()+": debug: policy: got on, want off" {
		t.Error(err)
	}
}

func TestHelloIsStrict(t *testing.T) {
	v := fixed(t)
	good, err := hex.DecodeString(v.HelloI)
	if err != nil {
		t.Fatal(err)
	}
	if _, reason := exchange.DecodeHello(good); reason != nil {
		t.Fatal(reason)
	}
	for name, change := range map[string]func([]byte) []byte{
		"trailing byte":       func(b []byte) []byte { return append(b, 0) },
		"cut":                 func(b []byte) []byte { return b[:len(b)-1] },
		"nine elements":       func(b []byte) []byte { b[0] = 0x89; return append(b, 0xf6) },
		"version as text":     func(b []byte) []byte { b[1] = 0x60; return b },
		"version in two":      func(b []byte) []byte { return append([]byte{b[0], 0x18, 1}, b[2:]...) },
		"mesh id of 31":       func(b []byte) []byte { b[3] = 31; return append(b[:4], b[5:]...) },
		"mesh id of 33":       func(b []byte) []byte { b[3] = 33; return append(b[:4], append([]byte{0}, b[4:]...)...) },
		"a map":               func([]byte) []byte { return []byte{0xa0} },
		"indefinite array":    func(b []byte) []byte { b[0] = 0x9f; return append(b, 0xff) },
		"a tag":               func(b []byte) []byte { return append([]byte{0xc1}, b...) },
		"oversize":            func(b []byte) []byte { return make([]byte, exchange.MaxHello+1) },
		"nothing":             func([]byte) []byte { return nil },
		"want is not empty":   func(b []byte) []byte { return bytes.Replace(b, []byte("vtpm\x40"), []byte("vtpm\x41\x01"), 1) },
		"want is null":        func(b []byte) []byte { return bytes.Replace(b, []byte("vtpm\x40"), []byte("vtpm\xf6"), 1) },
		"unknown kind":        func(b []byte) []byte { return bytes.Replace(b, []byte("vtpm"), []byte("wtpm"), 1) },
		"credential as text":  func(b []byte) []byte { return bytes.Replace(b, []byte("\x4fcred"), []byte("\x6fcred"), 1) },
		"incarnation is -1":   func(b []byte) []byte { b[36] = 0x20; return b },
		"nonce shorter by 16": func(b []byte) []byte { b[39] = 16; return append(b[:40], b[56:]...) },
	} {
		bad := change(bytes.Clone(good))
		if bytes.Equal(bad, good) {
			t.Errorf("%s: nothing was changed", name)
		}
		if h, reason := exchange.DecodeHello(bad); reason == nil {
			t.Errorf("%s: decoded %+v", name, h)
		}
	}
	if _, err := (exchange.Hello{Version: 1, Credential: make([]byte, exchange.MaxHello)}).Encode(); err == nil {
		t.Error("a HELLO that no peer accepts was encoded")
	}
}

func FuzzFrame(f *testing.F) {
	for kind := range 12 {
		f.Add([]byte{byte(kind), 0, 0, 0, 1, 0x80})
	}
	f.Add([]byte{6, 0, 0, 0, 7, 0x81, 0x84, 0x61, 0x61, 0x60, 0x60, 0x60})
	f.Fuzz(func(t *testing.T, wire []byte) {
		r := bytes.NewReader(wire)
		body, err := exchange.ReadFrame(r, exchange.FrameHelloI, exchange.MaxHello)
		if err == nil {
			var back bytes.Buffer
			if werr := exchange.WriteFrame(&back, exchange.FrameHelloI, body); werr != nil || !bytes.HasPrefix(wire, back.Bytes()) {
				t.Errorf("read %x, wrote %x", wire, back.Bytes())
			}
		}
		var refused *exchange.RefusedError
		if errors.As(err, &refused) && !bytes.Contains(wire, exchange.EncodeReasons(refused.Reasons)) {
			t.Errorf("reasons %v are not what was sent", refused.Reasons)
		}
	})
}

func FuzzHello(f *testing.F) {
	good, err := exchange.Hello{Version: 1, Nonce: [32]byte{1}, Kinds: "sim", Credential: []byte("c")}.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{0x81, 2})
	if fast, err := (exchange.Hello{Version: 1, Nonce: [32]byte{1}, Kinds: "sim", Want: make([]byte, 32)}).Encode(); err == nil {
		f.Add(fast)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		h, reason := exchange.DecodeHello(body)
		if reason != nil {
			return
		}
		back, err := h.Encode()
		if err != nil || !bytes.Equal(back, body) {
			t.Errorf("decoded %x, encoded %x, %v", body, back, err)
		}
	})
}

func FuzzAttestation(f *testing.F) {
	proof := attest.Proof{Evidence: attest.Evidence{Kind: "sim", Items: []attest.Item{{Type: "t", Data: []byte{1}}}},
		Inclusion: attest.Inclusion{Index: 1, Size: 2, Path: [][]byte{make([]byte, 32)}}}
	good, err := exchange.NewAttestation([32]byte{1}, proof)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := exchange.DecodeAttestation(body)
		if err != nil {
			return
		}
		back, err := a.Encode()
		if err != nil || !bytes.Equal(back, body) {
			t.Errorf("decoded %x, encoded %x, %v", body, back, err)
		}
		if p, err := a.Proof(); err == nil {
			_, _ = p.ReportData([32]byte{}, [32]byte{}, "peer")
		}
	})
}

func FuzzFast(f *testing.F) {
	good := exchange.Fast{Transcript: [32]byte{1}, MAC: [32]byte{2}, RuntimeHead: [32]byte{3}}.Encode()
	f.Add(good)
	f.Add(append([]byte{0x83, 0x40, 0x40}, good[69:]...))
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := exchange.DecodeFast(body)
		if err != nil {
			return
		}
		if back := v.Encode(); !bytes.Equal(back, body) {
			t.Errorf("decoded %x, encoded %x", body, back)
		}
	})
}

func FuzzReasons(f *testing.F) {
	f.Add(exchange.EncodeReasons([]attest.Reason{attest.NewReason(attest.CodeBusy, "a", "b", "c")}))
	f.Fuzz(func(t *testing.T, body []byte) {
		reasons, err := exchange.DecodeReasons(body)
		if err == nil && !bytes.Equal(exchange.EncodeReasons(reasons), body) {
			t.Errorf("decoded %x into %v", body, reasons)
		}
	})
}

func ExampleTranscript() {
	t := exchange.Transcript(seq(32, 0), []byte("HELLO_I"), []byte("HELLO_R"))
	fmt.Printf("%x\n", t[:8])
	// Output: bcda7f2093873a7c
}
