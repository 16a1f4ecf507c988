package machine

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/attestmesh/meshnode/attest"
	"github.com/attestmesh/meshnode/attest/device"
	"github.com/attestmesh/meshnode/attest/vtpm"
	"github.com/attestmesh/meshnode/attest/vtpm/vtpmtest"
)

func TestSources(t *testing.T) {
	for _, s := range Sources(t.Context()) {
		_, err := os.Stat(s.Path)
		if s.Present == errors.Is(err, fs.ErrNotExist) || s.Gives == "" || s.Name == "" {
			t.Errorf("got %+v where the path has %v", s, err)
		}
	}
	tpm := vtpmtest.Start(t)
	got := look(t.Context(), "TPM", tpm.Socket, "TPM quotes", inspect)
	if !got.Present || got.Err != nil || got.Says != "vendor IBM, banks sha1 sha256 sha384; endorsement key certified by CN=TPM manufacturer of a test" {
		t.Errorf("got %+v", got)
	}
	tpm.ProvisionAK(t)
	if got = look(t.Context(), "TPM", tpm.Socket, "TPM quotes", inspect); !strings.HasSuffix(got.Says, "; a certified attestation key of handle 0x81000003") {
		t.Errorf("got %+v, want the key named", got)
	}
	file := filepath.Join(t.TempDir(), "tpm")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got = look(t.Context(), "TPM", file, "TPM quotes", inspect); !got.Present || got.Err == nil {
		t.Errorf("got %+v of a file that is no TPM, want an error", got)
	}
}

func TestFind(t *testing.T) {
	tpm := vtpmtest.Start(t)
	find := func(kind string, o vtpm.Options) (attest.Evidence, error) {
		a, closer, err := Find(t.Context(), kind, o)
		if err != nil {
			return attest.Evidence{}, err
		}
		ev, err := a.Attest(t.Context(), attest.ReportData{})
		return ev, errors.Join(err, closer())
	}
	key := func(ev attest.Evidence) bool {
		t.Helper()
		msg, err := vtpm.Parse(ev.Find(attest.TypeTPMQuote)[0])
		if err != nil {
			t.Fatal(err)
		}
		return len(msg.GetAkCert()) > 0
	}
	if ev, err := find(attest.KindVTPM, TPM(tpm.Socket)); err != nil || key(ev) {
		t.Errorf("got %v, want a quote by a key without a certificate", err)
	}
	tpm.ProvisionAK(t)
	if ev, err := find(attest.KindVTPM, TPM(tpm.Socket)); err != nil || !key(ev) {
		t.Errorf("got %v, want a quote by the key that came with the machine", err)
	}
	var named *device.Error
	absent := filepath.Join(t.TempDir(), "tpm")
	if _, err := find(attest.KindVTPM, TPM(absent)); !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &named) || named.Device != absent {
		t.Errorf("got %v, want one that names %s", err, absent)
	}
	if _, err := find("sim", TPM(tpm.Socket)); err == nil || err.Error() != `kind "sim", want one of sevsnp tdx sevsnp,vtpm vtpm` {
		t.Errorf("got %v for a kind that no device gives", err)
	}
}

// A device that is there and does not work is not passed over for a weaker one.
func TestFindTakesNoWeakerKind(t *testing.T) {
	if _, err := os.Stat("/dev/sev-guest"); err == nil {
		t.Skip("this is an SEV-SNP guest")
	}
	if _, err := os.Stat("/dev/tdx_guest"); err == nil {
		t.Skip("this is a TD")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Find(ctx, "", TPM(vtpmtest.Start(t).Socket)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the TPM's own error", err)
	}
	for _, kind := range []string{attest.KindSEVSNP, attest.KindTDX} {
		if _, _, err := Find(t.Context(), kind, TPM("/nowhere")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s alone: got %v, want its own error", kind, err)
		}
	}
	_, _, err := Find(t.Context(), "", TPM(filepath.Join(t.TempDir(), "tpm")))
	if err == nil || !strings.HasPrefix(err.Error(), "nothing to attest with: ") || !strings.Contains(err.Error(), "/dev/sev-guest") || !strings.Contains(err.Error(), "/dev/tdx_guest") {
		t.Errorf("got %v, want one that names all that were tried", err)
	}
}
