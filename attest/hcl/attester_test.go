package hcl_test

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/attesttest"
	"github.com/attestmesh/meshnode/attest/hcl"
	"github.com/attestmesh/meshnode/attest/machine"
	"github.com/attestmesh/meshnode/attest/sevsnp"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/attest/vtpm/vtpmtest"
)

// paravisor makes the HCL report of a forged SEV-SNP guest whose TPM has the key ak, and
// returns the certificate of the report's key.
func paravisor(t *testing.T, guest *attesttest.Attester, ak *ecdsa.PublicKey) (report, certificate []byte) {
	t.Helper()
	point, err := ak.Bytes() // 4, X, Y
	if err != nil {
		t.Fatal(err)
	}
	coordinate := func(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
	runtime := fmt.Appendf(nil, `{"keys":[{"kid":"HCLAkPub","kty":"EC","crv":"P-256","x":"%s","y":"%s"}],"vm-configuration":{"secure-boot":true},"user-data":"00"}`,
		coordinate(point[1:33]), coordinate(point[33:]))
	var data attest.ReportData
	sum := sha256.Sum256(runtime)
	copy(data[:], sum[:])
	ev, err := guest.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	word := binary.LittleEndian.AppendUint32
	report = word(append(report, "HCLA"...), 1)
	report = word(word(word(report, 0), 2), 0)
	report = append(append(report, make([]byte, 12)...), ev.Find(attest.TypeSEVSNPReport)[0]...)
	report = word(word(word(word(word(report, uint32(len(runtime)+20)), 1), 2), 1), uint32(len(runtime)))
	// Unlike Azure's, the index is not filled up with zeros: swtpm's have 2,048 bytes at most.
	return append(report, runtime...), ev.Find(attest.TypeCertificate)[0]
}

// A machine with a paravisor: what it attests with is accepted, as one machine.
func TestAttesterWithAParavisor(t *testing.T) {
	tpm := vtpmtest.Start(t)
	tpm.ProvisionAK(t)
	forger := attesttest.NewSEVSNP(sevsnp.Milan, 3)
	report, certificate := paravisor(t, forger.Attester(attesttest.Measurement("paravisor")), tpm.AK().(*ecdsa.PublicKey))
	tpm.WriteIndex(t, hcl.ReportIndex, report)
	scheme, err := hcl.New(forger.Scheme(), vtpm.New(nil))
	if err != nil {
		t.Fatal(err)
	}

	a, closer, err := machine.Find(t.Context(), "sevsnp,vtpm", machine.TPM(tpm.Socket))
	if err != nil {
		t.Fatal(err)
	}
	defer closer()
	var _ attest.Extender = a.(*hcl.Attester)
	if a.Kind() != scheme.Kind() {
		t.Errorf("got kind %s, want %s", a.Kind(), scheme.Kind())
	}
	data := attest.ReportData{4}
	ev, err := a.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	// Azure's certificates are had elsewhere.
	ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCertificate, Data: certificate})
	claims, err := scheme.Verify(t.Context(), ev, &data, time.Now())
	if err != nil || !claims.Bound || claims.SEVSNP == nil || claims.VTPM == nil || claims.VTPM.AKTrust != attest.AKTrustReport {
		t.Fatalf("got %+v, %v, want bound claims of both, the key named by the report", claims, err)
	}
	if err := a.(*hcl.Attester).Extend(t.Context(), []byte("event")); err != nil {
		t.Error(err)
	}

	// The TPM of another machine quotes by another key.
	other := vtpmtest.Start(t)
	other.ProvisionAK(t)
	other.WriteIndex(t, hcl.ReportIndex, report)
	b, closeOther, err := machine.Find(t.Context(), "sevsnp,vtpm", machine.TPM(other.Socket))
	if err != nil {
		t.Fatal(err)
	}
	defer closeOther()
	if ev, err = b.Attest(t.Context(), data); err != nil {
		t.Fatal(err)
	}
	ev.Items = append(ev.Items, attest.Item{Type: attest.TypeCertificate, Data: certificate})
	var refused *attest.Error
	if _, err := scheme.Verify(t.Context(), ev, &data, time.Now()); !errors.As(err, &refused) || refused.Reason.Code != attest.CodeAKBinding {
		t.Errorf("two machines' halves: got %v, want %s", err, attest.CodeAKBinding)
	}
}

func TestAttesterRefusesOtherReports(t *testing.T) {
	guest := attesttest.NewSEVSNP(sevsnp.Milan, 3).Attester(attesttest.Measurement("paravisor"))
	for name, tc := range map[string]struct {
		edit func([]byte) []byte
		says string
	}{
		"none":      {nil, "NV index 0x1400001"},
		"no report": {func([]byte) []byte { return make([]byte, 1300) }, "HCL report: header"},
		"a TD's": {func(raw []byte) []byte {
			binary.LittleEndian.PutUint32(raw[1224:], 4)
			clear(raw[32+1024 : 1216])
			return raw
		}, "host's service"},
	} {
		tpm := vtpmtest.Start(t)
		tpm.ProvisionAK(t)
		report, _ := paravisor(t, guest, tpm.AK().(*ecdsa.PublicKey))
		if tc.edit != nil {
			tpm.WriteIndex(t, hcl.ReportIndex, tc.edit(report))
		}
		if _, _, err := machine.Find(t.Context(), "sevsnp,vtpm", machine.TPM(tpm.Socket)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v, want an error that says %q", name, err, tc.says)
		}
	}
}
