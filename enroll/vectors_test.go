package enroll

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/internal/identity"
)

var update = flag.Bool("update", false, "write testdata/vectors.json")

// vectors are what a node and its seat sign towards an enroller, in hex where not text.
// python/ derives them again.
type vectors struct {
	Comment          string `json:"comment"`
	KeyID            string `json:"key_id"`
	Peer             string `json:"peer"`
	Cosigner         string `json:"cosigner"`
	Nonce            string `json:"nonce"`
	HelloR           string `json:"hello_r"`
	BinderByFile     string `json:"binder_by_file"`
	ExporterContext  string `json:"exporter_context"`
	EKM              string `json:"ekm"`
	Binder           string `json:"binder"`
	PeerMessage      string `json:"peer_message"`
	CosignerMessage  string `json:"cosigner_message"`
	Payload          string `json:"payload"`
	BootstrapMessage string `json:"bootstrap_message"`
	Attempt          uint32 `json:"attempt"`
	StartedMessage   string `json:"started_message"`
}

func seq(n int, from byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = from + byte(i)
	}
	return out
}

func TestGoldenVectors(t *testing.T) {
	s := scope{mesh: identity.MeshID(seq(32, 0)), incarnation: 2, keyID: strings.Repeat("0123456789abcdef", 4)}
	peer, cosigner, nonce := identity.PeerIDFromKey(seq(32, 0x20)), ed25519.PublicKey(seq(32, 0xe0)), seq(32, 0xa0)
	b := s.enrolment(peer, cosigner, nonce)
	file := b.Sum()
	context := exporterContext(b)
	b.EKM = seq(32, 0x60)
	bind := b.Sum()
	v := vectors{Comment: "mesh id 00 … 1f, incarnation 2; ekm is what the exporter was said to answer",
		KeyID: s.keyID, Peer: hex.EncodeToString([]byte(peer)), Cosigner: hex.EncodeToString(cosigner), Nonce: hex.EncodeToString(nonce),
		HelloR: hex.EncodeToString(b.HelloR), BinderByFile: hex.EncodeToString(file[:]), ExporterContext: hex.EncodeToString(context[:]),
		EKM: hex.EncodeToString(b.EKM), Binder: hex.EncodeToString(bind[:]),
		PeerMessage: hex.EncodeToString(possession(peerLabel, bind)), CosignerMessage: hex.EncodeToString(possession(cosignerLabel, bind)),
		Payload: "a Bootstrap payload", BootstrapMessage: hex.EncodeToString(s.request(bootstrapLabel, []byte("a Bootstrap payload"))),
		Attempt: 3, StartedMessage: hex.EncodeToString(s.request(startedLabel, attemptBytes(3)))}
	got, err := json.MarshalIndent(v, "", "  ")
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
		t.Errorf("what is signed towards an enroller changed; got\n%s", got)
	}
}
