package canary

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
)

// Every form is found, at every place, and nothing else is.
func TestFind(t *testing.T) {
	value := []byte("/usr/sbin/<canary>\x00\x91")
	var s Set
	s.Add("path", value)
	s.AddText("chip", "00112233445566778899aabb")
	hidden := func(v []byte) map[string][]byte {
		out := map[string][]byte{"raw": v, "hex": []byte(hex.EncodeToString(v)), "HEX": fmt.Appendf(nil, "%X", v)}
		for i := range 7 {
			padded := append(append(make([]byte, i), v...), make([]byte, 7-i)...)
			out[fmt.Sprint("base64 at ", i)] = []byte(base64.StdEncoding.EncodeToString(padded))
			out[fmt.Sprint("base64url at ", i)] = []byte(base64.RawURLEncoding.EncodeToString(padded))
		}
		return out
	}
	for name, v := range map[string][]byte{"path": value, "chip": {0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb}} {
		for how, text := range hidden(v) {
			around := append(append([]byte(`{"x":"`), text...), `"}`...)
			if got := s.Find(around); !slices.Equal(got, []string{name}) {
				t.Errorf("%s as %s: found %v", name, how, got)
			}
			// In the payload of an envelope, as the log holds it.
			payload := fmt.Appendf(nil, `{"payload":%q,"n":1}`, base64.StdEncoding.EncodeToString(around))
			if got := s.Find(payload); !slices.Equal(got, []string{name}) {
				t.Errorf("%s as %s in an envelope: found %v", name, how, got)
			}
		}
	}
	quoted, err := json.Marshal("got /usr/sbin/<canary>")
	if err != nil {
		t.Fatal(err)
	}
	var text Set
	text.AddText("text", "/usr/sbin/<canary>")
	for _, data := range []string{string(quoted), `"\u002f\u0075\u0073\u0072\u002f\u0073\u0062\u0069\u006e\u002f\u003c\u0063\u0061\u006e\u0061\u0072\u0079\u003e"`} {
		if got := text.Find([]byte(data)); len(got) != 1 {
			t.Errorf("%s: found %v", data, got)
		}
	}
	for _, data := range [][]byte{nil, []byte("/usr/sbin/canary"), make([]byte, 100), []byte("00112233445566778899aa")} {
		if got := s.Find(data); len(got) != 0 {
			t.Errorf("%q: found %v", data, got)
		}
	}
}
