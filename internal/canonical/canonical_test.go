package canonical

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

type pair struct {
	_    struct{} `cbor:",toarray"`
	Name string
	Data []byte
}

func TestCBORHasOneForm(t *testing.T) {
	codec := NewCBOR(16)
	good, err := codec.Encode(pair{Name: "a", Data: []byte{1}})
	if err != nil || hex.EncodeToString(good) != "8261614101" {
		t.Fatalf("%x, %v", good, err)
	}
	if empty, err := codec.Encode(pair{}); err != nil || hex.EncodeToString(empty) != "826040" {
		t.Errorf("nothing is %x, %v, want an empty text and an empty string", empty, err)
	}
	var p pair
	if err := codec.Decode(good, &p); err != nil || p.Name != "a" || !bytes.Equal(p.Data, []byte{1}) {
		t.Fatalf("%+v, %v", p, err)
	}
	for name, raw := range map[string]string{
		"nothing":         "",
		"trailing byte":   "826161410100",
		"cut":             "82616141",
		"longer length":   "98026161410101"[:12],
		"longer text":     "827801614101",
		"indefinite":      "9f61614101ff",
		"a tag":           "c18261614101",
		"null":            "8261 61f6",
		"three elements":  "8361614101f6",
		"one element":     "816161",
		"a map":           "a161614101",
		"seventeen":       "91" + strings.Repeat("40", 17),
		"nested too deep": strings.Repeat("81", 9) + "40",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(raw, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		var p pair
		if err := codec.Decode(b, &p); err == nil {
			t.Errorf("%s: decoded %+v", name, p)
		}
	}
}

func TestJSONHasOneForm(t *testing.T) {
	type object struct {
		A string `json:"a"`
		B int    `json:"b"`
	}
	good, err := JSON(object{"<", 1})
	if err != nil || string(good) != `{"a":"<","b":1}` {
		t.Fatalf("%s, %v", good, err)
	}
	var o object
	if err := DecodeJSON(good, &o); err != nil || o != (object{"<", 1}) {
		t.Fatalf("%+v, %v", o, err)
	}
	for _, raw := range []string{
		``, `null`, `{}`, `{"a":"<"}`, `{"b":1,"a":"<"}`, `{"a":"<","b":1,"c":2}`, `{"a":"<","a":"<","b":1}`, `{"A":"<","b":1}`,
		`{"a": "<","b":1}`, `{"a":"\u003c","b":1}`, `{"a":"<","b":1.0}`, `{"a":"<","b":1}` + "\n", `{"a":"<","b":1}{}`,
	} {
		if err := DecodeJSON([]byte(raw), &o); err == nil {
			t.Errorf("%s decoded", raw)
		}
	}
}

func FuzzCBOR(f *testing.F) {
	codec := NewCBOR(16)
	f.Add([]byte("\x82\x61\x61\x41\x01"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var p pair
		if codec.Decode(raw, &p) != nil {
			return
		}
		if back, err := codec.Encode(p); err != nil || !bytes.Equal(back, raw) {
			t.Errorf("%x decodes to %+v, which is %x", raw, p, back)
		}
	})
}
