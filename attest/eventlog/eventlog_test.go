package eventlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func read(t testing.TB, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// recordedPCRs were read from the TPM after the boot that made the logs.
func recordedPCRs(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(string(read(t, "testdata", "pcrs.txt"))) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) == 3 {
			out[strings.ToLower(f[0])+":pcr"+f[1]] = f[2]
		}
	}
	return out
}

func TestFirmwareLogExplainsRegisters(t *testing.T) {
	log, err := Parse(read(t, "testdata", "bios"))
	if err != nil {
		t.Fatal(err)
	}
	want, got := recordedPCRs(t), log.Registers()
	if log.Format != "tcg" || log.Entries < 40 || len(got) < 3*8 {
		t.Errorf("%s with %d entries, %d registers", log.Format, log.Entries, len(got))
	}
	for name, v := range got {
		if v != want[name] {
			t.Errorf("%s: got %s, want %s", name, v, want[name])
		}
	}
}

func TestIMAExplainsRegister10(t *testing.T) {
	ascii, err := ParseIMA(read(t, "testdata", "ima-ascii"))
	if err != nil {
		t.Fatal(err)
	}
	binary, err := ParseIMA(read(t, "testdata", "ima-binary"))
	if err != nil {
		t.Fatal(err)
	}
	if ascii.Entries == 0 || ascii.Registers()["sha1:pcr10"] != binary.Registers()["sha1:pcr10"] {
		t.Errorf("ASCII %v, binary %v", ascii.Registers(), binary.Registers())
	}
	// The lists were read after the registers, so a prefix of them explains the TPM.
	raw, want := read(t, "testdata", "ima-binary"), recordedPCRs(t)
	for n := 1; n <= len(raw); n++ {
		if log, err := ParseIMA(raw[:n]); err == nil && log.Registers()["sha256:pcr10"] == want["sha256:pcr10"] {
			if log.Registers()["sha1:pcr10"] != want["sha1:pcr10"] {
				t.Errorf("the banks disagree after %d bytes", n)
			}
			return
		}
	}
	t.Error("no prefix of the list explains PCR 10")
}

func TestTamperedIMA(t *testing.T) {
	raw := read(t, "testdata", "ima-binary")
	raw[len(raw)-1] ^= 1
	if _, err := ParseIMA(raw); err == nil {
		t.Error("data that is not its digest's was accepted")
	}
}

func TestMalformed(t *testing.T) {
	bios := read(t, "testdata", "bios")
	for name, raw := range map[string][]byte{
		"empty": nil, "noise": []byte("noise"), "cut": bios[:len(bios)-3], "json object": []byte(`{}`), "json list": []byte(`[]`),
		"unknown field": []byte(`[{"imr":0,"bogus":1}]`), "rtmr 4": []byte(`[{"imr":4,"digest":"` + strings.Repeat("00", 48) + `"}]`),
		"two values": []byte(`[{"imr":1,"digest":"` + strings.Repeat("00", 48) + `"}] []`),
		"too long":   append(append([]byte(nil), bios...), make([]byte, MaxLog)...),
	} {
		if log, err := Parse(raw); err == nil {
			t.Errorf("%s: got %v", name, log)
		}
	}
	zero := "10 " + strings.Repeat("0", 40) + " ima-ng sha1:00 /x\n"
	for name, raw := range map[string]string{
		"empty": "", "spaces": " \n", "words": "10 nothing", "register 24": strings.Replace(zero, "10", "24", 1),
		"short digest": "10 00 ima-ng sha1:00 /x", "foreign template": strings.Replace(zero, "ima-ng", "evm", 1),
		"legacy binary": string(append([]byte{10, 0, 0, 0}, make([]byte, 20)...)) + "\x03\x00\x00\x00ima",
	} {
		if log, err := ParseIMA([]byte(raw)); err == nil {
			t.Errorf("%s: got %v", name, log)
		}
	}
}

func TestViolationExtendsOnes(t *testing.T) {
	zero, err := ParseIMA([]byte("10 " + strings.Repeat("0", 40) + " ima-ng sha1:00 /x\n"))
	if err != nil {
		t.Fatal(err)
	}
	ones, err := ParseIMA([]byte("10 " + strings.Repeat("f", 40) + " ima-ng sha1:00 /x\n"))
	if err != nil || !maps.Equal(zero.Registers(), ones.Registers()) {
		t.Errorf("got %v and %v, %v", zero.Registers(), ones.Registers(), err)
	}
}

// TestSamples replays the logs that are not part of this repository.
func TestSamples(t *testing.T) {
	var dir string
	for d, _ := os.Getwd(); d != "/"; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			dir = filepath.Join(filepath.Dir(d), "shared", "data", "evidence")
		}
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
	}
	logs, _ := filepath.Glob(filepath.Join(dir, "eventlog", "*", "pcrs.json"))
	for _, path := range logs {
		log, err := Parse(read(t, filepath.Dir(path), "eventlog.bin"))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		var want map[string]map[int]string
		if err := json.Unmarshal(read(t, path), &want); err != nil {
			t.Fatal(err)
		}
		n := 0
		for bank, regs := range want {
			for i, v := range regs {
				n++
				name := fmt.Sprintf("%s:pcr%d", bank, i)
				if log.Format == "ccel" {
					name = fmt.Sprintf("rtmr%d", i-1)
				}
				if got := log.Registers()[name]; got != v {
					t.Errorf("%s: %s: got %s, want %s", filepath.Base(filepath.Dir(path)), name, got, v)
				}
			}
		}
		if n != len(log.Registers()) {
			t.Errorf("%s: %d registers, want %d", path, len(log.Registers()), n)
		}
	}
	for name, want := range map[string]string{
		"ima-ng-full": "82231c67a69da98dc5b3aa10f6343d33109225fc", "ima-test-verification": "c284291abe5329ce5ed4ef741eca6188685a566e",
		"ima-ng-sha256": "8adcb4304b78ee782bbba3733b191591e75dc83d", "ima-ng-unknown": "",
	} {
		log, err := ParseIMA(read(t, dir, "ima", name, "ascii_runtime_measurements"))
		if err != nil || log.Registers()["sha1:pcr10"] != want {
			t.Errorf("%s: got %v, %v, want %s", name, log.Registers(), err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(read(f, "testdata", "bios"))
	f.Add([]byte(`[{"imr":0,"event_type":1,"digest":"","event":"","event_payload":""}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if log, err := Parse(raw); err == nil && log.Format == "" {
			t.Error("neither refused nor parsed")
		}
	})
}

func FuzzParseIMA(f *testing.F) {
	f.Add(read(f, "testdata", "ima-binary"))
	f.Add(read(f, "testdata", "ima-ascii"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		log, err := ParseIMA(raw)
		if err == nil && (log.Entries == 0 || len(log.Banks) == 0 || bytes.Equal(raw, nil)) {
			t.Error("neither refused nor parsed")
		}
	})
}
