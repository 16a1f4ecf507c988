package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/attest/vtpm/vtpmtest"
)

// meshnode runs a command line.
func meshnode(t *testing.T, args ...string) (exit int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	exit = execute(t.Context(), args, strings.NewReader(""), &out, &errOut)
	return exit, out.String(), errOut.String()
}

// What meshnode attest writes about a measured boot, meshnode appraise accepts under a
// policy that knows the machine, and under no other.
func TestAttestAndAppraise(t *testing.T) {
	sample, err := os.ReadFile("../../attest/vtpm/testdata/secureboot-on-ecc.pb")
	if err != nil {
		t.Fatal(err)
	}
	msg, err := vtpm.Parse(sample)
	if err != nil {
		t.Fatal(err)
	}
	tpm := vtpmtest.Start(t)
	tpm.ProvisionAK(t)
	log := tpm.Boot(t, msg.GetEventLog())
	ima := tpm.StartIMA(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "evidence")
	data := strings.Repeat("5a", attest.ReportDataSize)
	exit, out, errOut := meshnode(t, "attest", "--tpm", tpm.Socket, "--event-log", log, "--ima-log", ima.Path, "--report-data", data, "-o", file, "--json")
	var made attested
	if err := json.Unmarshal([]byte(out), &made); exit != exitOK || err != nil {
		t.Fatalf("exit %d: %s%s", exit, out, errOut)
	}
	if made.Kind != attest.KindVTPM || made.ReportData != data || made.File != file || len(made.Items) != 2 {
		t.Errorf("got %+v", made)
	}

	root := filepath.Join(dir, "root.pem")
	if err := os.WriteFile(root, tpm.IssuerPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	judge := func(policy string, args ...string) (int, appraised) {
		t.Helper()
		path := filepath.Join(dir, "policy.yaml")
		if err := os.WriteFile(path, []byte(policy), 0o600); err != nil {
			t.Fatal(err)
		}
		exit, out, errOut := meshnode(t, append([]string{"appraise", "--json", "--policy", path, file}, args...)...)
		var verdict appraised
		if err := json.Unmarshal([]byte(out), &verdict); err != nil {
			t.Fatalf("exit %d: %s%s", exit, out, errOut)
		}
		return exit, verdict
	}
	exit, strict, errOut := meshnode(t, "appraise", "--default-policy")
	if exit != exitOK {
		t.Fatalf("exit %d: %s", exit, errOut)
	}
	policy := func(measurement, root string) string {
		out := fmt.Sprintf("vtpm_roots: [%s]\n", root) + strict
		for old, new := range map[string]string{
			"references: []\n":      fmt.Sprintf("references: [{kind: vtpm, measurement: %s}]\n", measurement),
			"allow_no_list: true\n": "allow_no_list: false\n",
		} {
			if strings.Count(out, old) != 1 {
				t.Fatalf("the default policy has %q not once: %s", old, out)
			}
			out = strings.Replace(out, old, new, 1)
		}
		return out
	}
	// Nothing is known of the machine yet: what it measures is learnt from the refusal.
	exit, verdict := judge(policy(strings.Repeat("00", 32), root))
	if exit != exitRefused || len(verdict.Reasons) == 0 || verdict.Reasons[0].Code != attest.CodeMeasurementNotAllowed {
		t.Fatalf("exit %d, %+v, want refused for its measurement", exit, verdict)
	}
	measurement := verdict.Reasons[0].Got
	exit, verdict = judge(policy(measurement, root), "--report-data", data)
	if exit != exitOK || verdict.Verdict != attest.VerdictAffirming || !verdict.Bound {
		t.Errorf("exit %d, %+v, want affirming and bound", exit, verdict)
	}
	if exit, verdict = judge(policy(measurement, root), "--report-data", strings.Repeat("a5", attest.ReportDataSize)); exit != exitRefused {
		t.Errorf("over other report data: exit %d, %+v, want refused", exit, verdict)
	}
	foreign := filepath.Join(dir, "foreign.pem")
	if err := os.WriteFile(foreign, vtpmtest.Start(t).IssuerPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if exit, verdict = judge(policy(measurement, foreign)); exit != exitUnavailable || verdict.Reasons[0].Code != attest.CodeNoEndorsement {
		t.Errorf("under another root: exit %d, %+v, want %s", exit, verdict, attest.CodeNoEndorsement)
	}
}

func TestAttestRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		exit int
		says string
	}{
		"no such TPM":       {[]string{"--kind", "vtpm", "--tpm", "/nowhere/tpm", "-o", "x"}, exitUnavailable, "/nowhere/tpm"},
		"what to do then":   {[]string{"--tpm", "/nowhere/tpm", "-o", "x"}, exitUnavailable, "give --tpm the device of a TPM"},
		"no TPM":            {[]string{"--kind", "vtpm", "--tpm", t.TempDir(), "-o", "x"}, exitUnavailable, "neither a TPM device nor a socket"},
		"report data":       {[]string{"--report-data", "zz"}, exitUsage, "hex"},
		"long report data":  {[]string{"--report-data", strings.Repeat("00", 65)}, exitUsage, "64 bytes"},
		"kind":              {[]string{"--kind", "sim"}, exitUsage, "sim"},
		"JSON without file": {[]string{"--json"}, exitUsage, "-o FILE"},
	} {
		exit, out, errOut := meshnode(t, append([]string{"attest"}, tc.args...)...)
		if exit != tc.exit || !strings.Contains(out+errOut, tc.says) {
			t.Errorf("%s: exit %d, %s%s; want %d, saying %q", name, exit, out, errOut, tc.exit, tc.says)
		}
	}
}
