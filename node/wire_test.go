package node

import (
	"bytes"
	"encoding/binary"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/federated"
	"github.com/attestmesh/meshnode/federated/chunk"
	"github.com/attestmesh/meshnode/internal/identity"
)

func TestFrames(t *testing.T) {
	var buf bytes.Buffer
	if err := writeFrame(&buf, []byte("abc")); err != nil {
		t.Fatal(err)
	}
	raw := buf.Bytes()
	if got, err := readFrame(bytes.NewReader(raw), 3); err != nil || string(got) != "abc" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := readFrame(bytes.NewReader(raw), 2); err == nil {
		t.Error("a frame over the limit was read")
	}
	for n := range raw {
		if _, err := readFrame(bytes.NewReader(raw[:n]), 3); err == nil {
			t.Errorf("a frame cut after %d bytes was read", n)
		}
	}
	// A length that lies must be refused before memory is taken for it.
	huge := binary.BigEndian.AppendUint32(nil, 1<<32-1)
	if allocated := testing.AllocsPerRun(10, func() { _, _ = readFrame(bytes.NewReader(huge), maxBlob) }); allocated > 8 {
		t.Errorf("%v allocations for a lie", allocated)
	}
	var v struct{ A int }
	if err := readMessage(strings.NewReader("\x00\x00\x00\x01{"), &v); err == nil {
		t.Error("half a message was read")
	}
}

func testOutcome(disclosed bool) outcome {
	a, b := identity.NodeRef{Org: "a", Name: "n1"}, identity.NodeRef{Org: "b", Name: "n1"}
	out := outcome{root: chunk.Root{7}, result: []byte("model"), openings: map[identity.NodeRef]federated.Opening{
		a: {Examples: 3, Salt: federated.Digest{1}}, b: {Examples: 4, Salt: federated.Digest{2}}}}
	if disclosed {
		out.updates = map[identity.NodeRef][]byte{a: []byte("update of a"), b: []byte("update of b")}
	}
	return out
}

func TestOutcomeGoesThroughAStream(t *testing.T) {
	for _, disclosed := range []bool{false, true} {
		var buf bytes.Buffer
		want := testOutcome(disclosed)
		if err := writeOutcome(&buf, want); err != nil {
			t.Fatal(err)
		}
		whole := bytes.Clone(buf.Bytes())
		got, err := readOutcome(&buf)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("disclosed %v: got %+v, %v", disclosed, got, err)
		}
		for n := range whole {
			if _, err := readOutcome(bytes.NewReader(whole[:n])); err == nil {
				t.Fatalf("an outcome cut after %d of %d bytes was read", n, len(whole))
			}
		}
	}
}

func FuzzReadOutcome(f *testing.F) {
	for _, disclosed := range []bool{false, true} {
		var buf bytes.Buffer
		if err := writeOutcome(&buf, testOutcome(disclosed)); err != nil {
			f.Fatal(err)
		}
		f.Add(buf.Bytes())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		out, err := readOutcome(bytes.NewReader(raw))
		if err != nil {
			return
		}
		if len(out.openings) > federated.MaxParticipants {
			t.Fatal("more openings than participants")
		}
		var buf bytes.Buffer
		if err := writeOutcome(&buf, out); err != nil {
			t.Fatal(err)
		}
		back, err := readOutcome(&buf)
		if err != nil && err != io.EOF || !reflect.DeepEqual(back, out) {
			t.Fatalf("%+v came back as %+v, %v", out, back, err)
		}
	})
}
