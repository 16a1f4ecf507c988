package tdx

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/attestmesh/meshnode/attest"
)

// sampleAt is a time at which the library's sample quote is valid.
var sampleAt = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// rawQuote is the library's sample without the bytes that follow its signature section.
func rawQuote() []byte {
	v4 := frames[0]
	end := v4.section() + int(binary.LittleEndian.Uint32(testdata.RawQuote[v4.end():]))
	return append([]byte(nil), testdata.RawQuote[:end]...)
}

func scheme(t testing.TB) *Scheme {
	t.Helper()
	s, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func evidence(quote []byte, more ...attest.Item) attest.Evidence {
	return attest.Evidence{Kind: attest.KindTDX, Items: append([]attest.Item{{Type: attest.TypeTDXQuote, Data: quote}}, more...)}
}

func code(t *testing.T, err error) attest.Code {
	t.Helper()
	var e *attest.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an *attest.Error", err)
	}
	return e.Reason.Code
}

// sharedEvidence returns the folder of samples that are not part of this repository.
func sharedEvidence(t *testing.T) string {
	t.Helper()
	for dir, _ := os.Getwd(); dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			path := filepath.Join(filepath.Dir(dir), "shared", "data", "evidence")
			if _, err := os.Stat(path); err != nil {
				t.Skipf("no samples at ../shared/data/evidence beside the repository: %v", err)
			}
			return path
		}
	}
	t.Skip("no go.mod above the package")
	return ""
}

func read(t *testing.T, elem ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type sample struct {
	Name, Kind, Measurement, Note string
	ReportData                    string `json:"report_data"`
	Files                         map[string]string
	At                            time.Time
	Genuine, Debug                bool
	Version                       uint16
	RTMR                          []string
	TDAttributes                  string `json:"td_attributes"`
	TEETCBSVN                     string `json:"tee_tcb_svn"`
	FMSPC                         string
	TCBStatus                     string `json:"tcb_status"`
}

var collateralTypes = []struct{ file, itemType string }{
	{"tcb_info", attest.TypeTDXTCBInfo}, {"qe_identity", attest.TypeTDXQEIdent},
	{"tcb_signing_chain", attest.TypeTDXTCBChain}, {"pck_crl", attest.TypeCRL}, {"root_crl", attest.TypeCRL},
}

// load returns the evidence of a sample with its collateral.
func (s sample) load(t *testing.T, dir string) attest.Evidence {
	t.Helper()
	ev := evidence(read(t, dir, s.Files["quote"]))
	for _, c := range collateralTypes {
		if f := s.Files[c.file]; f != "" {
			ev.Items = append(ev.Items, attest.Item{Type: c.itemType, Data: read(t, dir, f)})
		}
	}
	return ev
}

func loadSamples(t *testing.T) (string, []sample) {
	t.Helper()
	dir := sharedEvidence(t)
	var all, out []sample
	if err := json.Unmarshal(read(t, dir, "expected.json"), &all); err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Kind == attest.KindTDX {
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		t.Fatal("no samples")
	}
	return dir, out
}
