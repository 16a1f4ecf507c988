package main

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/node"
)

// TestPolicyHardware: what the command commits to is what verifiers compute from the salted
// evidence of that machine.
func TestPolicyHardware(t *testing.T) {
	dir := t.TempDir()
	snp := attesttest.NewSEVSNP("Milan", 3)
	m := snp.Attester(attesttest.Measurement("x"))
	file := func(name string, ev attest.Evidence) string {
		raw, err := ev.Encode()
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ev, err := m.Attest(t.Context(), attest.ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	known := []attest.Scheme{snp.Scheme()}
	kind, id, err := hardwareOf(t.Context(), known, file("good", ev), time.Now())
	if err != nil || kind != attest.KindSEVSNP {
		t.Fatalf("%s %v", kind, err)
	}
	path := filepath.Join(dir, "salt")
	salt, made, err := saltIn(path)
	if err != nil || !made || salt == ([attest.SaltSize]byte{}) {
		t.Fatalf("%v %v", made, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	again, made, err := saltIn(path)
	if err != nil || made || again != salt {
		t.Errorf("read again: %v %v", made, err)
	}
	salted, err := attest.Salted(m, salt).Attest(t.Context(), attest.ReportData{2})
	if err != nil {
		t.Fatal(err)
	}
	claims, err := attest.Verify(t.Context(), known[0], salted, nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if want, err := attest.HardwareCommitment(salt, kind, id); err != nil || claims.Hardware != want {
		t.Errorf("verifiers compute %s, the command %s (%v)", claims.Hardware, want, err)
	}
	for name, f := range map[string]attesttest.Forgery{"masked": attesttest.MaskedChip, "foreign": attesttest.WrongRoot, "bare": attesttest.NoCertificate} {
		m.Forge(f)
		bad, err := m.Attest(t.Context(), attest.ReportData{1})
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := hardwareOf(t.Context(), known, file(name, bad), time.Now()); err == nil {
			t.Errorf("%s: taken for a chip", name)
		}
	}
	for name, text := range map[string]string{"empty": "", "short": "ab", "long": strings.Repeat("ab", 33), "no hex": strings.Repeat("zz", 32), "two lines": hex.EncodeToString(salt[:]) + "\n\n"} {
		path := filepath.Join(dir, "bad")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := node.ReadSalt(path); err == nil {
			t.Errorf("%s: read as a salt", name)
		}
	}
	if _, err := node.ReadSalt(dir); err == nil {
		t.Error("a directory was read as a salt")
	}
}
