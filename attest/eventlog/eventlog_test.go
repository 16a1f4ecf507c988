package eventlog

import (
	"crypto"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-eventlog/testdata"
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
}

func FuzzParse(f *testing.F) {
	f.Add(read(f, "testdata", "bios"))
	f.Add(read(f, "testdata", "bios-off"))
	f.Add(makeLog(crypto.SHA256, goodBoot()...))
	f.Add(makeLog(crypto.SHA384, variables(1, 1, hashA)...))
	f.Add(testdata.Debian10EventLog)
	f.Add([]byte(`[{"imr":3,"event_type":134217729,"digest":"","event":"app-id","event_payload":"abcd"}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		log, err := Parse(raw)
		if err != nil {
			return
		}
		if log.Format == "" || log.Entries > MaxEvents {
			t.Errorf("neither refused nor parsed: %s with %d entries", log.Format, log.Entries)
		}
		for bank, registers := range log.Banks {
			facts := log.Facts(bank, registers)
			if facts == nil || len(facts.Components)+len(facts.Files) > log.Entries {
				t.Errorf("%s: %+v", bank, facts)
			}
			if none := log.Facts(bank, nil); none.SecureBoot != nil || none.Components != nil || none.CommandLines != nil || none.Files != nil {
				t.Errorf("%s: facts without a quote: %+v", bank, none)
			}
		}
	})
}

func FuzzDatabase(f *testing.F) {
	f.Add(list(certSHA256, hashA, hashB))
	f.Add(list(certX509, []byte("no certificate")))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if d := parseDatabase(raw); len(d.Certificates)+len(d.Hashes)+d.Other > len(raw)+1 {
			t.Errorf("%d bytes have %d entries", len(raw), len(d.Certificates)+len(d.Hashes)+d.Other)
		}
	})
}
