package eventlog

import (
	"crypto"
	"strings"
	"testing"
)

// TestDstackRefusals: each check on dstack's list refuses by itself.
func TestDstackRefusals(t *testing.T) {
	digest := strings.Repeat("0a", 48)
	entry := func(imr, digest, payload string) string {
		return `{"imr":` + imr + `,"event_type":1,"digest":"` + digest + `","event":"","event_payload":"` + payload + `"}`
	}
	good := entry("0", digest, "00")
	if log, err := Parse([]byte("[" + good + "]")); err != nil || log.Format != FormatDstack || len(log.Banks["sha384"]) != 1 {
		t.Fatalf("%+v, %v", log, err)
	}
	for name, tc := range map[string]struct{ raw, want string }{
		"no list":      {`{"imr":0}`, "neither a TCG log nor dstack"},
		"nothing":      {"[]", "0 events"},
		"too many":     {"[{}" + strings.Repeat(",{}", MaxEvents) + "]", "65537 events"},
		"short digest": {"[" + entry("0", digest[2:], "") + "]", "SHA-384 digest"},
		"no digest":    {"[" + entry("3", "", "") + "]", "SHA-384 digest"},
		"no hex":       {"[" + entry("0", "zz"+digest[2:], "") + "]", "SHA-384 digest"},
		"hex and more": {"[" + entry("0", digest+"zz", "") + "]", "SHA-384 digest"},
		"RTMR -1":      {"[" + entry("-1", digest, "") + "]", "RTMR 0 to 3"},
		"RTMR 4":       {"[" + entry("4", digest, "") + "]", "RTMR 0 to 3"},
		"payload":      {"[" + entry("0", digest, "0") + "]", "payload is not hex"},
		"second list":  {"[" + good + "] []", "data after"},
	} {
		if log, err := Parse([]byte(tc.raw)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %+v, %v, want an error with %q", name, log.Registers(), err, tc.want)
		}
	}
}

// TestWhoseRegisters: a log of SHA-384 alone is a TD's only if it extends registers 1 to 4.
func TestWhoseRegisters(t *testing.T) {
	for format, registers := range map[string][]int{FormatCCEL: {1, 4}, FormatTCG: {0, 1}} {
		var events []forged
		for _, n := range registers {
			events = append(events, forged{register: n, kind: 8, data: []byte("v")})
		}
		if log, err := Parse(makeLog(crypto.SHA384, events...)); err != nil || log.Format != format {
			t.Errorf("registers %d: %s, %v", registers, log.Format, err)
		}
		events = append(events, forged{register: 5, kind: 8, data: []byte("v")})
		if log, err := Parse(makeLog(crypto.SHA384, events...)); err != nil || log.Format != FormatTCG {
			t.Errorf("registers %d and 5: %s, %v", registers, log.Format, err)
		}
	}
}

// TestVariableLengths that lie.
func TestVariableLengths(t *testing.T) {
	good := variable{globalVariable, "db", []byte{1, 2}}.encode()
	if v, ok := parseVariable(good); !ok || v.name != "db" || len(v.value) != 2 {
		t.Fatalf("%+v", v)
	}
	for at, name := range map[int]string{16: "name", 24: "value"} {
		for i := range 8 {
			bad := append([]byte(nil), good...)
			bad[at+i] = 0xff
			if v, ok := parseVariable(bad); ok {
				t.Errorf("length of the %s: %+v", name, v)
			}
		}
	}
	if v, ok := parseVariable(good[:len(good)-1]); ok {
		t.Errorf("cut short: %+v", v)
	}
	if v, ok := parseVariable(append(good, 0)); ok {
		t.Errorf("a byte more: %+v", v)
	}
	if v, ok := parseVariable(variable{globalVariable, strings.Repeat("n", maxVariableName+1), nil}.encode()); ok {
		t.Errorf("a name of %d characters", len(v.name))
	}
}

// TestPrintable: what a terminal or a log would not show as it is, is no text.
func TestPrintable(t *testing.T) {
	for s, want := range map[string]bool{"root=/dev/ram0 ü\n\tx": true, "": false, "a\x1b[2J": false, "a\x7f": false, "a\xff": false} {
		if printable(s) != want {
			t.Errorf("%q: %v, want %v", s, !want, want)
		}
	}
}

// TestAuthorityThatIsNone: what the register holds, but is no variable, is no authority.
func TestAuthorityThatIsNone(t *testing.T) {
	raw := makeLog(crypto.SHA256, append(goodBoot(), forged{register: 7, kind: evVariableAuth, data: []byte("no variable")})...)
	good, bad := factsOf(t, makeLog(crypto.SHA256, goodBoot()...)), factsOf(t, raw)
	if len(bad.Authorities) != len(good.Authorities) {
		t.Errorf("%+v, want %+v", bad.Authorities, good.Authorities)
	}
}
