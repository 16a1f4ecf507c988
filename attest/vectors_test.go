package attest_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
)

var update = flag.Bool("update", false, "write testdata/vectors.json")

// vectors are the bytes that evidence is bound to, for every purpose; testdata/vectors.json
// has them for implementations that share no code with this one (python/ has such a one).
// Everything in hex but what is text by nature.
type vectors struct {
	Comment          string            `json:"comment"`
	Binders          []binderVector    `json:"binders"`
	ReportData       []reportVector    `json:"report_data"`
	Batches          []batchVector     `json:"batches"`
	InclusionRefused []inclusionVector `json:"inclusion_refused"`
	Evidence         []evidenceVector  `json:"evidence"`
	EvidenceRefused  []evidenceVector  `json:"evidence_refused"`
}

type binderVector struct {
	Name            string          `json:"name"`
	Purpose         uint8           `json:"purpose"`
	Role            uint8           `json:"role"`
	MeshID          string          `json:"mesh_id"`
	Incarnation     uint64          `json:"incarnation"`
	Attester        string          `json:"attester"`
	Verifier        string          `json:"verifier"`
	HelloI          string          `json:"hello_i"`
	HelloR          string          `json:"hello_r"`
	SPKIHash        string          `json:"spki_hash"`
	ExporterContext string          `json:"exporter_context"`
	EKM             string          `json:"ekm"`
	Bind            string          `json:"bind"`
	Other           []changedVector `json:"other"`
	Moved           []movedVector   `json:"moved"`
}

// changedVector is the digest with one field changed, emptied or left out with its length:
// always another one.
type changedVector struct {
	Field string  `json:"field"`
	Value *string `json:"value"` // null: left out, its length too
	Sum   string  `json:"sum"`
}

// movedVector is the digest with the last byte of one field moved to the front of the next.
type movedVector struct {
	From string `json:"from"`
	To   string `json:"to"`
	Sum  string `json:"sum"`
}

type reportVector struct {
	Kinds        string          `json:"kinds"`
	MeshID       string          `json:"mesh_id"`
	Attester     string          `json:"attester"`
	RuntimeHead  string          `json:"runtime_head"`
	Root         string          `json:"root"`
	ReportData   string          `json:"report_data"`
	TPMExtraData string          `json:"tpm_extra_data"`
	Other        []changedVector `json:"other"`
	Moved        []movedVector   `json:"moved"`
}

type batchVector struct {
	Binders    []string          `json:"binders"`
	Root       string            `json:"root"`
	Inclusions []inclusionVector `json:"inclusions"`
}

type inclusionVector struct {
	Name  string   `json:"name,omitempty"`
	Bind  string   `json:"bind"`
	Index uint64   `json:"index"`
	Size  uint64   `json:"size"`
	Path  []string `json:"path"`
	Root  string   `json:"root,omitempty"` // what a careless verifier would compare with
}

type evidenceVector struct {
	Name    string `json:"name"`
	Encoded string `json:"encoded"`
	Kind    string `json:"kind,omitempty"`
	Items   int    `json:"items,omitempty"`
}

// The labels, written a second time.
const (
	binderLabel = "meshnode-attest/v1 binder"
	reportLabel = "meshnode-attest/v1 report"
)

// field is one length-prefixed part of a digest.
type field struct {
	name  string
	value []byte
}

// digest is the layout of the package comment, written a second time.
func digest(label string, fields []field, leaveOut string) []byte {
	buf := append(binary.BigEndian.AppendUint32(nil, uint32(len(label))), label...)
	for _, f := range fields {
		if f.name != leaveOut {
			buf = append(binary.BigEndian.AppendUint32(buf, uint32(len(f.value))), f.value...)
		}
	}
	return buf
}

func seq(n int, from byte) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = from + byte(i)
	}
	return out
}

func hx(b []byte) string { return hex.EncodeToString(b) }

// others returns, for every field, the digest with the field empty, with its last bit
// flipped and with the field gone.
func others(label string, fields []field, sum func([]byte) []byte) (out []changedVector) {
	for i, f := range fields {
		values := [][]byte{append(bytes.Clone(f.value), 1)}
		if n := len(f.value); n > 0 {
			values = [][]byte{nil, bytes.Clone(f.value)}
			values[1][n-1] ^= 1
		}
		for _, value := range values {
			changed, v := slices.Clone(fields), hx(value)
			changed[i].value = value
			out = append(out, changedVector{f.name, &v, hx(sum(digest(label, changed, "")))})
		}
		out = append(out, changedVector{f.name, nil, hx(sum(digest(label, fields, f.name)))})
	}
	return out
}

// moved returns the digests with one byte moved across each border between two fields: the
// lengths are what tells them apart.
func moved(label string, fields []field, sum func([]byte) []byte) (out []movedVector) {
	for i := range len(fields) - 1 {
		from, to := fields[i], fields[i+1]
		n := len(from.value)
		if n == 0 {
			continue
		}
		changed := slices.Clone(fields)
		changed[i].value = from.value[:n-1]
		changed[i+1].value = append([]byte{from.value[n-1]}, to.value...)
		out = append(out, movedVector{from.name, to.name, hx(sum(digest(label, changed, "")))})
	}
	return out
}

// distinct requires that every change shows.
func distinct(t *testing.T, name, sum string, other []changedVector, moved []movedVector) {
	t.Helper()
	for _, o := range other {
		if o.Sum == sum {
			t.Errorf("%s: %s does not matter", name, o.Field)
		}
	}
	for _, m := range moved {
		if m.Sum == sum {
			t.Errorf("%s: the border of %s and %s does not matter", name, m.From, m.To)
		}
	}
}

func binders() map[string]attest.Binder {
	peer := func(from byte) string { return "\x00\x24\x08\x01\x12\x20" + string(seq(32, from)) }
	lp := attest.LengthPrefixed
	mesh := [32]byte(seq(32, 0))
	helloI, helloR, nonce := []byte("HELLO of the initiator"), []byte("HELLO of the responder"), seq(32, 0xa0)
	keyID := "5f0c1b3d" + "00112233445566778899aabbccddeeff00112233445566778899aabb"
	return map[string]attest.Binder{
		"1 channel, initiator": {Purpose: attest.PurposeChannel, Role: attest.RoleClient, MeshID: mesh, Incarnation: 2,
			Attester: peer(0x20), Verifier: peer(0x40), HelloI: helloI, HelloR: helloR, EKM: seq(32, 0x60)},
		"1 channel, responder": {Purpose: attest.PurposeChannel, Role: attest.RoleServer, MeshID: mesh, Incarnation: 2,
			Attester: peer(0x40), Verifier: peer(0x20), HelloI: helloI, HelloR: helloR, EKM: seq(32, 0x60)},
		"2 re-attestation, responder": {Purpose: attest.PurposeReattest, Role: attest.RoleServer, MeshID: mesh, Incarnation: 2,
			Attester: peer(0x40), Verifier: peer(0x20), HelloI: append(helloI, '2'), HelloR: append(helloR, '2'), EKM: seq(32, 0x61)},
		"3 RA-TLS certificate": {Purpose: attest.PurposeRATLS, Role: attest.RoleServer, MeshID: mesh, Incarnation: 2,
			Attester: peer(0x40), SPKIHash: seq(32, 0xc0)},
		"4 client challenge": {Purpose: attest.PurposeClientChallenge, Role: attest.RoleServer, MeshID: mesh, Incarnation: 2,
			Attester: peer(0x40), HelloI: nonce, EKM: seq(32, 0x62)},
		"5 enrolment": {Purpose: attest.PurposeEnrolment, Role: attest.RoleClient, MeshID: mesh, Incarnation: 2,
			Attester: peer(0x20), Verifier: keyID, HelloI: nonce, HelloR: lp(lp(nil, []byte(peer(0x20))), seq(32, 0xe0)), EKM: seq(32, 0x63)},
		"5 enrolment by file": {Purpose: attest.PurposeEnrolment, Role: attest.RoleClient, MeshID: mesh, Incarnation: 2,
			Attester: peer(0x20), Verifier: keyID, HelloI: nonce, HelloR: lp(lp(nil, []byte(peer(0x20))), seq(32, 0xe0))},
	}
}

func binderVectors(t *testing.T) (out []binderVector) {
	all := binders()
	for _, name := range []string{"1 channel, initiator", "1 channel, responder", "2 re-attestation, responder", "3 RA-TLS certificate",
		"4 client challenge", "5 enrolment", "5 enrolment by file"} {
		b := all[name]
		fields := []field{{"purpose", []byte{byte(b.Purpose)}}, {"role", []byte{byte(b.Role)}}, {"mesh_id", b.MeshID[:]},
			{"incarnation", binary.BigEndian.AppendUint64(nil, b.Incarnation)}, {"attester", []byte(b.Attester)},
			{"verifier", []byte(b.Verifier)}, {"hello_i", b.HelloI}, {"hello_r", b.HelloR}, {"spki_hash", b.SPKIHash}, {"ekm", b.EKM}}
		sum := func(buf []byte) []byte { s := sha256.Sum256(buf); return s[:] }
		got := b.Sum()
		if want := sum(digest(binderLabel, fields, "")); !bytes.Equal(got[:], want) {
			t.Errorf("%s: Sum %x, the layout says %x", name, got, want)
		}
		v := binderVector{Name: name, Purpose: uint8(b.Purpose), Role: uint8(b.Role), MeshID: hx(b.MeshID[:]), Incarnation: b.Incarnation,
			Attester: hx([]byte(b.Attester)), Verifier: hx([]byte(b.Verifier)), HelloI: hx(b.HelloI), HelloR: hx(b.HelloR),
			SPKIHash: hx(b.SPKIHash), EKM: hx(b.EKM), Bind: hx(got[:]), Other: others(binderLabel, fields, sum), Moved: moved(binderLabel, fields, sum)}
		distinct(t, name, v.Bind, v.Other, v.Moved)
		if len(b.EKM) > 0 {
			v.ExporterContext = hx(sum(attest.LengthPrefixed(attest.LengthPrefixed(nil, b.HelloI), b.HelloR)))
		}
		out = append(out, v)
	}
	return out
}

func reportVectors(t *testing.T) (out []reportVector) {
	mesh, head, root := [32]byte(seq(32, 0)), [32]byte(seq(32, 0x80)), [32]byte(seq(32, 0xb0))
	attester := binders()["1 channel, initiator"].Attester
	for _, c := range []struct {
		kinds string
		head  [32]byte
	}{{"sevsnp", head}, {"tdx", [32]byte{}}, {"sevsnp,vtpm", head}, {"sim", head}} {
		fields := []field{{"kinds", []byte(c.kinds)}, {"mesh_id", mesh[:]}, {"attester", []byte(attester)},
			{"runtime_head", c.head[:]}, {"root", root[:]}}
		sum := func(buf []byte) []byte { s := sha512.Sum512(buf); return s[:] }
		got := attest.NewReportData(c.kinds, mesh, attester, c.head, root)
		if want := sum(digest(reportLabel, fields, "")); !bytes.Equal(got[:], want) {
			t.Errorf("%s: NewReportData %x, the layout says %x", c.kinds, got, want)
		}
		extra := sha256.Sum256(got[:])
		v := reportVector{Kinds: c.kinds, MeshID: hx(mesh[:]), Attester: hx([]byte(attester)), RuntimeHead: hx(c.head[:]), Root: hx(root[:]),
			ReportData: hx(got[:]), TPMExtraData: hx(extra[:]), Other: others(reportLabel, fields, sum), Moved: moved(reportLabel, fields, sum)}
		distinct(t, c.kinds, v.ReportData, v.Other, v.Moved)
		out = append(out, v)
	}
	return out
}

func inclusion(bind [32]byte, p attest.Inclusion) inclusionVector {
	v := inclusionVector{Bind: hx(bind[:]), Index: p.Index, Size: p.Size, Path: []string{}}
	for _, h := range p.Path {
		v.Path = append(v.Path, hx(h))
	}
	return v
}

func batchVectors(t *testing.T) (out []batchVector) {
	for n := 1; n <= 5; n++ {
		var leaves [][32]byte
		var v batchVector
		for i := range n {
			leaves = append(leaves, [32]byte(seq(32, byte(0x10*i))))
			v.Binders = append(v.Binders, hx(leaves[i][:]))
		}
		root, proofs, err := attest.BatchRoot(leaves)
		if err != nil {
			t.Fatal(err)
		}
		v.Root = hx(root[:])
		for i, p := range proofs {
			if got, err := p.Root(leaves[i]); err != nil || got != root {
				t.Errorf("leaf %d of %d: root %x, %v", i, n, got, err)
			}
			v.Inclusions = append(v.Inclusions, inclusion(leaves[i], p))
		}
		out = append(out, v)
	}
	return out
}

// refusedInclusions are proofs that have no root, or another one than the tree of three
// leaves that they claim to be of.
func refusedInclusions(t *testing.T) (out []inclusionVector) {
	leaves := [][32]byte{[32]byte(seq(32, 0)), [32]byte(seq(32, 0x10)), [32]byte(seq(32, 0x20))}
	root, proofs, err := attest.BatchRoot(leaves)
	if err != nil {
		t.Fatal(err)
	}
	long := make([][]byte, attest.MaxPath+1)
	for i := range long {
		long[i] = make([]byte, 32)
	}
	good := proofs[1]
	first := sha256.Sum256(append([]byte{0}, leaves[0][:]...))
	second := sha256.Sum256(append([]byte{0}, leaves[1][:]...))
	inner := sha256.Sum256(append(append([]byte{1}, first[:]...), second[:]...))
	for _, c := range []struct {
		name string
		bind [32]byte
		p    attest.Inclusion
	}{
		{"an empty tree", leaves[1], attest.Inclusion{}},
		{"index at the size", leaves[1], attest.Inclusion{Index: 3, Size: 3, Path: good.Path}},
		{"a tree above 65536", leaves[1], attest.Inclusion{Index: 1, Size: 1<<attest.MaxPath + 1, Path: good.Path}},
		{"a path of 17", leaves[1], attest.Inclusion{Index: 1, Size: 3, Path: long}},
		{"a path too short", leaves[1], attest.Inclusion{Index: 1, Size: 3, Path: good.Path[:1]}},
		{"a path too long", leaves[1], attest.Inclusion{Index: 1, Size: 3, Path: append(slices.Clone(good.Path), make([]byte, 32))}},
		{"no path", leaves[1], attest.Inclusion{Index: 1, Size: 3}},
		{"an element of 31 bytes", leaves[1], attest.Inclusion{Index: 1, Size: 3, Path: [][]byte{good.Path[0], good.Path[1][:31]}}},
		{"another leaf's place", leaves[1], proofs[0]},
		{"another leaf", leaves[0], good},
		{"a binder of nobody's", [32]byte(seq(32, 0x77)), good},
		{"path in another order", leaves[1], attest.Inclusion{Index: 1, Size: 3, Path: [][]byte{good.Path[1], good.Path[0]}}},
		{"an inner node as a leaf", inner, attest.Inclusion{Index: 0, Size: 2, Path: [][]byte{good.Path[1]}}},
	} {
		if got, err := c.p.Root(c.bind); err == nil && got == root {
			t.Errorf("%s: proved", c.name)
		}
		v := inclusion(c.bind, c.p)
		v.Name, v.Root = c.name, hx(root[:])
		out = append(out, v)
	}
	return out
}

func evidenceVectors(t *testing.T) (good, bad []evidenceVector) {
	encode := func(ev attest.Evidence) []byte {
		raw, err := ev.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	snp := attest.Evidence{Kind: "sevsnp", Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: seq(300, 1)}, {Type: attest.TypeCertificate, Data: seq(24, 2)}}}
	for name, ev := range map[string]attest.Evidence{"a report and its certificate": snp,
		"a composite": {Kind: "sevsnp,vtpm", Items: []attest.Item{{Type: attest.TypeSEVSNPReport, Data: seq(2, 1)}, {Type: attest.TypeTPMQuote, Data: seq(2, 3)}}}} {
		raw := encode(ev)
		if _, err := attest.DecodeEvidence(raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		good = append(good, evidenceVector{name, hx(raw), ev.Kind, len(ev.Items)})
	}
	slices.SortFunc(good, func(a, b evidenceVector) int { return strings.Compare(a.Name, b.Name) })
	item := func(data string) string {
		return "8278286170706c69636174696f6e2f766e642e6d6573686e6f64652e73657673" + "6e702d7265706f7274" + data
	}
	for _, c := range [][2]string{
		{"nothing", ""},
		{"trailing byte", hx(encode(snp)) + "00"},
		{"cut", hx(encode(snp)[:40])},
		{"a map", "a0"},
		{"three elements", "83" + "63746478" + "81" + item("4101") + "00"},
		{"kinds out of order", "82" + "6b7674706d2c736576736e70" + "81" + item("4101")},
		{"a kind twice", "82" + "6774" + "64782c746478" + "81" + item("4101")},
		{"an unknown kind", "82" + "63736778" + "81" + item("4101")},
		{"no items", "82" + "63746478" + "80"},
		{"an item without bytes", "82" + "63746478" + "81" + item("40")},
		{"an item of null", "82" + "63746478" + "81" + item("f6")},
		{"an item of text", "82" + "63746478" + "81" + item("6161")},
		{"length not shortest", "82" + "63746478" + "81" + item("580101")},
		{"array not shortest", "9802" + "63746478" + "81" + item("4101")},
		{"indefinite array", "9f" + "63746478" + "81" + item("4101") + "ff"},
		{"indefinite bytes", "82" + "63746478" + "81" + item("5f4101ff")},
		{"a tag", "82" + "c063746478" + "81" + item("4101")},
		{"text that is not UTF-8", "82" + "63ff6478" + "81" + item("4101")},
		{"49 items", "82" + "63746478" + "9831" + strings.Repeat(item("4101"), 49)},
		{"nested too deep", strings.Repeat("81", 64) + "80"},
	} {
		raw, err := hex.DecodeString(c[1])
		if err != nil {
			t.Fatalf("%s: %v", c[0], err)
		}
		if ev, err := attest.DecodeEvidence(raw); err == nil {
			t.Errorf("%s: decoded %+v", c[0], ev)
		}
		bad = append(bad, evidenceVector{Name: c[0], Encoded: c[1]})
	}
	return good, bad
}

func TestGoldenVectors(t *testing.T) {
	v := vectors{Comment: "mesh id 00 01 … 1f, incarnation 2, peers are the Ed25519 keys 20 21 … 3f and 40 41 … 5f; all other values are made up. docs/PROTOCOL.md says what they are.",
		Binders: binderVectors(t), ReportData: reportVectors(t), Batches: batchVectors(t), InclusionRefused: refusedInclusions(t)}
	v.Evidence, v.EvidenceRefused = evidenceVectors(t)
	got, err := json.MarshalIndent(v, "", " ")
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
		t.Error("what evidence is bound to changed: if that is wanted, version it and run with -update")
	}
}
